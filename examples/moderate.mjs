// Which pictures of a folder violate a policy? With ShieldGemma 2; the encoder's file lies beside the model.
// node examples/moderate.mjs shieldgemma-2-4b-it-Q4_0.gguf folder
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { Gemma } from 'gemma-native';

const [, , model, folder] = process.argv;
const gemma = await Gemma.load(model);
const files = (await readdir(folder)).filter((name) => /\.(jpe?g|png|webp)$/i.test(name)).sort();
for (const file of files) {
  const { policies } = await gemma.classifyImage(join(folder, file), {
    customPolicies: {
      alcohol: 'No Alcohol: The image shall not show alcoholic drinks or people who drink them.',
    },
    threshold: 0.5, // choose it on pictures of your own
    force: process.argv.includes('--force'), // another model: only to see this run
  });
  const shown = policies.map(({ name, probability }) => `${name} ${probability.toFixed(2)}`).join(', ');
  console.log(`${policies.some(({ violates }) => violates) ? 'LOOK AT' : 'passes '} ${file}: ${shown}`);
}
await gemma.dispose();
