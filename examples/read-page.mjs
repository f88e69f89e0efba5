// Reads small text in a wide picture, first without and then with Pan & Scan, whose crops keep it legible. Pan & Scan does not crop a
// square page; { tile: 2 } cuts it into 2 x 2.
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
