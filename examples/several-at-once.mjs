// Concurrent calls of one model are computed as one batch. Four answers take little longer than one.
// node examples/several-at-once.mjs model.gguf
import { Gemma } from 'gemma-native';

const gemma = await Gemma.load(process.argv[2]);
const prompts = ['The sun is', 'The moon is', 'The sea is', 'The wind is'];
const start = performance.now();
const results = await Promise.all(
  prompts.map((prompt) => gemma.generate(prompt, { raw: true, maxOutputTokens: 20, temperature: 0 })),
);
results.forEach(({ text }, i) => console.log(`${prompts[i]}${text.split('\n')[0]}`));
const tokens = results.reduce((sum, { usage }) => sum + usage.outputTokens, 0);
console.log(`${tokens} tokens in ${((performance.now() - start) / 1000).toFixed(2)} s`);
await gemma.dispose();
