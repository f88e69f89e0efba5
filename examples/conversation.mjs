// A conversation that keeps its tokens: each turn reads only what is new. Use an instruction-tuned model.
// node examples/conversation.mjs model-it.gguf
import { Gemma } from 'gemma-native';

const gemma = await Gemma.load(process.argv[2]);
const chat = gemma.chat({ system: 'Answer in one short sentence.', maxOutputTokens: 60, seed: 1, onOverflow: 'shift' });

async function ask(question, options) {
  console.log(`> ${question}`);
  const stream = chat.stream(question, options);
  for await (const part of stream) process.stdout.write(part.text);
  const { usage } = await stream.result;
  console.log(`\n  (${usage.inputTokens} tokens read, ${usage.cachedInputTokens} of them before)`);
}

await ask('What is the largest planet?');
await ask('How many moons does it have?');
const other = chat.fork(); // goes on from here by itself
await ask('How many rings does it have?', { replace: true }); // instead of the last question
await other.regenerate({ seed: 2 }); // another answer to the old one
console.log(other.messages.map(({ role, content }) => `${role}: ${content}`).join('\n'));
await gemma.dispose();
