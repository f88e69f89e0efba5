// Questions with a fixed set of answers: each answer gets a probability, and nothing is generated.
// node examples/decide.mjs gemma-3-270m.gguf
import { Gemma } from 'gemma-native';

const gemma = await Gemma.load(process.argv[2]);

// A pretrained model learns from examples what is asked: the input says all of it (verbatim). Reviews without content tell which label
// the model is fond of anyway (calibrate).
const review = (text) =>
  `Review: What a wonderful day!\nLabel: good\n\nReview: The room was dirty and loud.\nLabel: bad\n\nReview: ${text}\nLabel:`;
const free = ['N/A', ''].map(review);
for (const text of ['I loved every minute of this film.', 'It broke on the second day.']) {
  const { value, probability, coverage } = await gemma.decide(review(text), {
    type: 'choice',
    choices: ['good', 'bad'],
    verbatim: true,
    calibrate: free,
  });
  console.log(`${text} -> ${value} (${(probability * 100).toFixed(0)} %, coverage ${coverage.toFixed(2)})`);
}

// An instruction-tuned model is simply asked. Questions about the same text read it once.
const ticket = 'Since the update the app closes as soon as I open a photo. I have lost a day of work.';
const [kind, urgent, anger] = await Promise.all([
  gemma.decide(ticket, {
    type: 'choice',
    question: 'What is the message about?',
    choices: { bug: 'something does not work', billing: 'money', praise: '' },
  }),
  gemma.decide(ticket, { type: 'boolean', question: 'Is it urgent?' }),
  gemma.decide(ticket, { type: 'score', question: 'How angry is the writer?', min: 1, max: 5 }),
]);
console.log(`${kind.value}, urgent with ${urgent.probabilities.true.toFixed(2)}, anger ${anger.value.toFixed(1)} of 5`);

const documents = [
  'Photos are kept in the folder Pictures.',
  'Restart the app after an update.',
  'We are closed on Sundays.',
];
for (const { score, document } of await gemma.rerank('The app closes after an update', documents)) {
  console.log(`${score.toFixed(2)} ${document}`);
}
await gemma.dispose();
