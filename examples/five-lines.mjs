// node examples/five-lines.mjs model.gguf
import { Gemma } from 'gemma-native';

const gemma = await Gemma.load(process.argv[2]);
const { text } = await gemma.generate('The capital of France is', { maxOutputTokens: 30, temperature: 0 });
console.log(text);
await gemma.dispose();
