// Small text in a wide picture: seen whole, and with Pan & Scan also in crops, where it stays legible. A square page is not cropped
// by Pan & Scan; { tile: 2 } instead cuts it into 2 x 2.
// node examples/read-page.mjs gemma-3-4b-it.gguf page.png
import { Gemma } from 'gemma-native';

const [model, page] = process.argv.slice(2);
const gemma = await Gemma.load(model);
const { width, height, crops } = await Gemma.crops(page);
console.log(`${width} x ${height}, ${crops.length} crops`);
for (const panAndScan of [false, true]) {
  const options = { images: [page], panAndScan, maxOutputTokens: 200, temperature: 0 };
  const { text, usage } = await gemma.generate('Write down all text in this picture.', options);
  console.log(`\n${panAndScan ? 'With' : 'Without'} Pan & Scan (${usage.imageTokens} tokens of images):\n${text}`);
}
await gemma.dispose();
