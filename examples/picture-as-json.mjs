// A picture as data: the answer is an object that fits a schema, and the stream shows it grow. The demonstration model knows this
// schema by its adapter.
// node examples/picture-as-json.mjs [picture.png]
import { dirname, join } from 'node:path';
import { Gemma } from 'gemma-native';

const schema = {
  type: 'object',
  properties: {
    shapes: {
      type: 'array',
      items: {
        type: 'object',
        properties: {
          shape: { enum: ['circle', 'square', 'triangle', 'star', 'cross', 'ring'] },
          colour: { enum: ['red', 'orange', 'yellow', 'green', 'blue', 'purple', 'brown', 'black'] },
          position: { type: 'string' },
        },
        required: ['shape', 'colour', 'position'],
      },
    },
    text: { type: 'string' },
  },
  required: ['shapes', 'text'],
};

const picture = process.argv[2] ?? join(dirname(Gemma.demoModel), 'pictures', 'shapes.png');
const gemma = await Gemma.load('demo', { adapters: { tools: Gemma.demoAdapter } });
const stream = gemma.stream('Describe the picture as JSON.', {
  images: [picture],
  schema,
  adapter: 'tools',
  maxOutputTokens: 400,
  temperature: 0,
});
let seen = 0;
for await (const { shapes = [] } of stream.partialObjects()) {
  for (; seen < shapes.length; ++seen) console.log(`shape ${seen + 1}`);
}
const { object } = await stream.result;
console.table(object.shapes);
if (object.text) console.log(object.text);
await gemma.dispose();
