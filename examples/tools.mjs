// A function that the model calls. It is made to call it first, and then answers with what came back. Use an instruction-tuned model.
// node examples/tools.mjs model-it.gguf
import { Gemma } from 'gemma-native';

const weather = {
  description: 'The weather of a city now',
  inputSchema: {
    type: 'object',
    properties: { city: { type: 'string', maxLength: 40, description: 'Name of the city' } },
    required: ['city'],
    additionalProperties: false,
  },
  execute: async ({ city }) => ({ sky: 'clear', celsius: city.length }),
};

const gemma = await Gemma.load(process.argv[2]);
const stream = gemma.stream('How is the weather in Paris?', {
  tools: { weather },
  toolChoice: { tool: 'weather' },
  maxOutputTokens: 60,
  temperature: 0,
});
let call;
for await (const part of stream) {
  if (part.type === 'tool-call') call = `${part.name}(${JSON.stringify(part.input)})`;
  if (part.type === 'tool-result') console.log(`${call} = ${JSON.stringify(part.output)}`);
  process.stdout.write(part.text);
}
console.log();
await gemma.dispose();
