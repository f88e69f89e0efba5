// node examples/demo.mjs
// Shows what gemma-native does, with the demonstration model in the package: pictures, Pan & Scan, streamed text, speed.
import { createRequire } from 'node:module';
import { basename, dirname, join } from 'node:path';
import { Gemma } from 'gemma-native';

const sharp = createRequire(import.meta.url)('sharp');
const models = dirname(Gemma.demoModel);
const shapes = join(models, 'pictures', 'shapes.png');
const one = join(models, 'pictures', 'one.png');
const other = join(models, 'pictures', 'other.png');
const sign = join(models, 'pictures', 'sign.png');

/** Draws a picture in the terminal, two pixels per character: in colour if the terminal has it, otherwise by brightness. */
async function draw(file, columns) {
  const { width, height } = await sharp(file).metadata();
  const rows = Math.max(2, Math.round((columns * height) / width / 2) * 2);
  const { data } = await sharp(file)
    .removeAlpha()
    .toColourspace('srgb')
    .resize(columns, rows, { fit: 'fill' })
    .raw()
    .toBuffer({ resolveWithObject: true });
  const at = (x, y) => data.subarray((y * columns + x) * 3, (y * columns + x) * 3 + 3);
  const isColour = process.stdout.isTTY && process.stdout.getColorDepth() >= 8;
  for (let y = 0; y < rows; y += 2) {
    let line = '  ';
    for (let x = 0; x < columns; ++x) {
      if (isColour) {
        line += `\x1b[38;2;${at(x, y).join(';')};48;2;${at(x, y + 1).join(';')}m\u2580`;
      } else {
        const light = [...at(x, y), ...at(x, y + 1)].reduce((sum, value) => sum + value, 0) / 6;
        line += '#*+-. '[Math.min(5, Math.floor(light / 42))];
      }
    }
    console.log(isColour ? `${line}\x1b[0m` : line.trimEnd());
  }
}

const gemma = await Gemma.load('demo', { imageCache: { maxBytes: 0 } });
const { config, loadMs } = gemma.info;
console.log(
  `The demonstration model: ${config.layers} layers, loaded in ${Math.round(loadMs)} ms. It is not Google's Gemma.`,
);

/** Asks and prints the answer as it arrives. */
async function ask(question, pictures = [], options = {}, note = '') {
  process.stdout.write(`\n> ${pictures.map((file) => `[${basename(file)}] `).join('')}${question}${note}\n  `);
  const content = [...pictures.map((image) => ({ type: 'image', image })), { type: 'text', text: question }];
  const stream = gemma.stream([{ role: 'user', content }], { temperature: 0, maxOutputTokens: 100, ...options });
  for await (const part of stream) process.stdout.write(part.text);
  const { usage, timings } = await stream.result;
  const speed = `${Math.round(timings.prefillTokensPerSecond)} tokens/s read, ${Math.round(timings.decodeTokensPerSecond)} written`;
  console.log(`\n  (${usage.inputTokens} tokens, ${usage.imageTokens} of them picture; ${speed})`);
}

console.log(`\n${shapes}\n`);
await draw(shapes, 36);
await ask('Describe the picture.', [shapes]);
await ask('Beschreibe das Bild.', [shapes]);
await ask('How many shapes are there?', [shapes]);
await ask('Compare the two pictures.', [one, other]);

console.log(`\n${sign}\n`);
await draw(sign, 96);
await ask('What does it say?', [sign], {}, '   (squeezed into a square)');
await ask('What does it say?', [sign], { panAndScan: true }, '   (with Pan & Scan: also in crops)');
await ask('What is the capital of France?');

await gemma.dispose();
