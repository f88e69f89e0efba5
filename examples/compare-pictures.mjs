// Two pictures in one question, then a second question about the same two. The pictures are encoded and read only once.
// node examples/compare-pictures.mjs gemma-3-4b-it.gguf before.jpg after.jpg
import { Gemma } from 'gemma-native';

const [model, before, after] = process.argv.slice(2);
const gemma = await Gemma.load(model);
const pictures = [
  { type: 'text', text: 'The first picture:' },
  { type: 'image', image: before },
  { type: 'text', text: 'The second picture:' },
  { type: 'image', image: after },
];
for (const question of ['What is different in the second picture?', 'Which of the two is brighter?']) {
  const messages = [{ role: 'user', content: [...pictures, { type: 'text', text: question }] }];
  const start = performance.now();
  const { text, usage } = await gemma.generate(messages, { maxOutputTokens: 100, seed: 1 });
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  console.log(`> ${question}\n${text}`);
  console.log(`(${seconds} s; ${usage.cachedInputTokens} of ${usage.inputTokens} tokens were known)\n`);
}
await gemma.dispose();
