// Is a review good or bad? The model writes nothing: it says how likely each label is.
// node examples/classify.mjs gemma-3-270m.gguf
import { Gemma } from 'gemma-native';

const gemma = await Gemma.load(process.argv[2]);
const reviews = [
  'I loved every minute of this film.',
  'A complete waste of time and money.',
  'The cook deserves a medal.',
];
const examples = 'Review: What a wonderful day!\nLabel: good\n\nReview: The room was dirty and loud.\nLabel: bad\n\n';
for (const review of reviews) {
  const scores = await gemma.score(`${examples}Review: ${review}\nLabel:`, [' good', ' bad'], { raw: true });
  const best = scores.find(({ rank }) => rank === 1);
  console.log(`${review} ->${best.text} (${(best.probability * 100).toFixed(0)} %)`);
}
await gemma.dispose();
