// Makes the pictures of the README and the guides that show what the project does, with the project itself, into docs/pictures:
//
//   node scripts/readme-pictures.mjs    what the model sees of a wide picture without and with Pan & Scan; prints its answers
//   node scripts/readme-pictures.mjs window.png    also the window of the Electron example, which its test has taken:
//       node examples/electron/test/page.mjs --model=models/demo.gguf --picture=models/pictures/shapes.png --height=640
//
// Wants the built package (npm run build).
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { main, root } from './steps.mjs';

const require = createRequire(import.meta.url);
const QUESTION = 'What does it say?';

await main(async () => {
  const { Gemma } = require('../dist/index.js');
  const { prepareImage } = require('../dist/image.js');
  const sharp = require('sharp');
  const sign = join(root, 'models', 'pictures', 'sign.png');
  const picture = (name) => join(root, 'docs', 'pictures', name);

  const { png, crops } = await Gemma.crops(sign, { draw: true });
  await sharp(png).png({ palette: true, compressionLevel: 9 }).toFile(picture('crops.png'));

  const gemma = await Gemma.load('demo');
  const size = gemma.info.vision.imageSize;
  const { data, info } = await sharp(sign).removeAlpha().raw().toBuffer({ resolveWithObject: true });
  const pixels = { data: new Uint8Array(data), width: info.width, height: info.height, layout: 'rgb' };
  const prepared = await prepareImage(pixels, size, { panAndScan: {} });
  // The squares as the encoder gets them, its pixels twice as large, with a gap between.
  const squares = 1 + crops.length;
  for (const [name, count] of [
    ['seen-whole.png', 1],
    ['seen-crops.png', squares],
  ]) {
    const layers = Array.from({ length: count }, (_, i) => ({
      input: prepared.pixels.subarray(i * size * size * 3, (i + 1) * size * size * 3),
      raw: { width: size, height: size, channels: 3 },
      left: i * (size + 4),
      top: 0,
    }));
    const width = count * (size + 4) - 4;
    const blank = { width, height: size, channels: 4, background: { r: 0, g: 0, b: 0, alpha: 0 } };
    const row = await sharp({ create: blank }).composite(layers).png().toBuffer();
    const scaled = sharp(row).resize(2 * width, 2 * size, { kernel: 'nearest' });
    await scaled.png({ palette: true, compressionLevel: 9 }).toFile(picture(name));
  }
  for (const panAndScan of [false, true]) {
    const { text } = await gemma.generate(QUESTION, { images: [sign], panAndScan, temperature: 0 });
    process.stdout.write(`${panAndScan ? 'with' : 'without'} Pan & Scan: ${text}\n`);
  }
  await gemma.dispose();

  const [window] = process.argv.slice(2);
  if (window) await sharp(window).resize({ width: 920 }).webp({ quality: 80 }).toFile(picture('electron.webp'));
});
