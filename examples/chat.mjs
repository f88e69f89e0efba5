// A conversation: a system message, then turns that each get all earlier ones. Use an instruction-tuned model.
// node examples/chat.mjs model-it.gguf
import { Gemma } from 'gemma-native';

const gemma = await Gemma.load(process.argv[2]);
const messages = [{ role: 'system', content: 'Answer in one short sentence.' }];
for (const question of ['What is the largest planet?', 'How many moons does it have?']) {
  messages.push({ role: 'user', content: question });
  console.log(`> ${question}`);
  const { text } = await gemma.generate(messages, { maxOutputTokens: 60, seed: 1 });
  messages.push({ role: 'assistant', content: text });
  console.log(text);
}
await gemma.dispose();
