// What the demonstration model's adapter was taught (training/lessons.py), as users ask for it: the schema of a picture and the
// tool of docs/guides/demo.md, and questions that training never asked with their answers.
'use strict';

const SHAPES = ['circle', 'square', 'triangle', 'star', 'cross', 'ring'];
const COLOURS = ['red', 'orange', 'yellow', 'green', 'blue', 'purple', 'brown', 'black'];
const POSITIONS = 'top left,top,top right,left,centre,right,bottom left,bottom,bottom right'.split(',');
const PHRASES = [
  ...['at the top left', 'at the top', 'at the top right', 'on the left', 'in the centre', 'on the right'],
  ...['at the bottom left', 'at the bottom', 'at the bottom right'],
];

exports.schema = {
  type: 'object',
  properties: {
    shapes: {
      type: 'array',
      items: {
        type: 'object',
        properties: { shape: { enum: SHAPES }, colour: { enum: COLOURS }, position: { enum: POSITIONS } },
        required: ['shape', 'colour', 'position'],
      },
    },
    text: { type: 'string' },
  },
  required: ['shapes', 'text'],
};

exports.tools = {
  add: {
    description: 'Adds two numbers',
    inputSchema: {
      type: 'object',
      properties: { a: { type: 'integer' }, b: { type: 'integer' } },
      required: ['a', 'b'],
    },
    execute: ({ a, b }) => a + b,
  },
};

/** The object that describes a picture, from the sentence or the text that heldout.json has for it. */
function describedBy({ kind, answer }) {
  if (kind !== 'describe') return { shapes: [], text: answer };
  const shapes = [...answer.matchAll(/\ban? (\w+) (\w+) ((?:at|on|in) the \w+(?: left| right)?)/gi)];
  return {
    shapes: shapes.map(([, colour, shape, place]) => ({ shape, colour, position: POSITIONS[PHRASES.indexOf(place)] })),
    text: '',
  };
}

/** Of questions of heldout.json: the same pictures, to be described as JSON. */
exports.jsonItems = (items) =>
  items
    .filter(({ kind }) => ['describe', 'read', 'read-wide'].includes(kind))
    .map((item) => ({ ...item, question: 'Describe the picture as JSON.', object: describedBy(item) }));

/** Sums that training left out: they are multiples of seven. */
exports.sums = (n) =>
  Array.from({ length: n }, (_, i) => {
    const a = (i * 389 + 57) % 1000;
    const b = (i * 211 + 7) % 990;
    const other = b + ((7 - ((a + b) % 7)) % 7);
    return {
      kind: 'add',
      question: [`What is ${a} plus ${other}?`, `${a} + ${other} = ?`][i % 2],
      input: { a, b: other },
      answer: `${a} plus ${other} is ${a + other}.`,
    };
  });

/** What it knows without a tool. */
exports.talk = [
  ['Hello!', 'Hello! How can I help you?'],
  ['Guten Tag!', 'Hallo! Wie kann ich helfen?'],
  ['Thank you!', 'You are welcome!'],
  ['How are you?', 'I am fine, thank you.'],
  ['What is the capital of France?', 'The capital of France is Paris.'],
  ['What is the capital of Norway?', 'The capital of Norway is Oslo.'],
  ['Was ist die Hauptstadt von Deutschland?', 'Die Hauptstadt von Deutschland ist Berlin.'],
  ['Quelle est la capitale de la France ?', 'La capitale de la France est Paris.'],
  ['¿De qué color es el cielo?', 'El cielo es azul.'],
  ['How many days are in a week?', 'A week has seven days.'],
  ['How many legs does a spider have?', 'A spider has eight legs.'],
  ['Why is the sky blue?', 'Because air scatters blue light more than red light.'],
  ['What is the largest planet?', 'Jupiter is the largest planet.'],
  ['Tell me a joke.', 'Why did the circle roll away? It had no corners.'],
  ['Count to five.', 'One, two, three, four, five.'],
  ['What is the opposite of hot?', 'The opposite of hot is cold.'],
  ['What is 9 minus 4?', '5'],
  ['What is red in German?', 'Rot.'],
  ['What does a cat say?', 'Meow.'],
  ['Goodbye!', 'Goodbye!'],
].map(([question, answer]) => ({ kind: 'talk', question, answer }));
