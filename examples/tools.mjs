// A function that the model calls, and its answer with what came back. The demonstration model knows this one by its adapter; any
// instruction-tuned model may be named instead.
// node examples/tools.mjs [model-it.gguf]
import { Gemma } from 'gemma-native';

const add = {
  description: 'Adds two numbers',
  inputSchema: {
    type: 'object',
    properties: { a: { type: 'integer' }, b: { type: 'integer' } },
    required: ['a', 'b'],
  },
  execute: ({ a, b }) => a + b,
};

const model = process.argv[2];
const gemma = model ? await Gemma.load(model) : await Gemma.load('demo', { adapters: { tools: Gemma.demoAdapter } });
const options = { tools: { add }, maxOutputTokens: 60, temperature: 0, ...(!model && { adapter: 'tools' }) };
for (const question of ['What is 417 plus 311?', 'What is the capital of France?']) {
  console.log(`> ${question}`);
  for await (const part of gemma.stream(question, options)) {
    if (part.type === 'tool-call') process.stdout.write(`${part.name}(${JSON.stringify(part.input)})`);
    if (part.type === 'tool-result') console.log(` = ${JSON.stringify(part.output)}`);
    process.stdout.write(part.text);
  }
  console.log();
}
await gemma.dispose();
