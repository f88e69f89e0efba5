// node examples/describe-picture.mjs gemma-3-4b-it.gguf picture.jpg ["What does the sign say?"]
// The vision encoder (mmproj-*.gguf) must be in the model's folder.
import { Gemma } from 'gemma-native';

const [model, picture, question = 'Describe this picture.'] = process.argv.slice(2);
const gemma = await Gemma.load(model);
const messages = [
  {
    role: 'user',
    content: [
      { type: 'image', image: picture },
      { type: 'text', text: question },
    ],
  },
];
for await (const part of gemma.stream(messages, { maxOutputTokens: 200 })) process.stdout.write(part.text);
console.log();
await gemma.dispose();
