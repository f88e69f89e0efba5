// Finds near duplicates among 100 pictures. Each picture becomes one vector; vectors are compared by their angle.
// node examples/near-duplicates.mjs gemma-3-4b-it.gguf [folder]    (without a folder: on 100 pictures drawn here)
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { Gemma } from 'gemma-native';

const [model, folder] = process.argv.slice(2);

// 90 colour gradients, and copies of 10 of them with a little noise.
function draw(i) {
  const [width, height] = [160, 120];
  const [kind, noise] = i < 90 ? [i, 0] : [(i - 90) * 9, 5];
  const data = new Uint8Array(width * height * 3);
  for (let p = 0; p < data.length; ++p) {
    const [x, y, c] = [Math.floor(p / 3) % width, Math.floor(p / 3 / width), p % 3];
    const wave = Math.sin((x * Math.cos(kind) + y * Math.sin(kind)) / (4 + (kind % 9)) + c * kind);
    data[p] = 120 + 100 * wave + noise * (((p * 7919) % 13) / 13);
  }
  return { data, width, height };
}

const names = folder
  ? (await readdir(folder)).filter((name) => /\.(jpe?g|png|webp|gif|avif|tiff?)$/i.test(name)).slice(0, 100)
  : Array.from({ length: 100 }, (_, i) => `drawn ${i}`);
const pictures = folder ? names.map((name) => join(folder, name)) : names.map((_, i) => draw(i));

const gemma = await Gemma.load(model);
const embeddings = await gemma.embedImage(pictures, { pooling: 'mean' });
const vectors = embeddings.map(({ data }) => data);

// The part that all pictures share carries no information: subtract the mean, then normalise.
const mean = vectors[0].map((_, d) => vectors.reduce((sum, vector) => sum + vector[d], 0) / vectors.length);
for (const vector of vectors) {
  for (let d = 0; d < vector.length; ++d) vector[d] -= mean[d];
  const length = Math.hypot(...vector);
  for (let d = 0; d < vector.length; ++d) vector[d] /= length;
}
const pairs = [];
for (let i = 0; i < vectors.length; ++i) {
  for (let j = 0; j < i; ++j) {
    const cosine = vectors[i].reduce((sum, x, d) => sum + x * vectors[j][d], 0);
    if (cosine > 0.95) pairs.push({ a: names[j], b: names[i], cosine });
  }
}
pairs.sort((p, q) => q.cosine - p.cosine);
console.log(`${pairs.length} pairs among ${names.length} pictures`);
for (const { a, b, cosine } of pairs.slice(0, 20)) console.log(`${cosine.toFixed(4)}  ${a}  ${b}`);
await gemma.dispose();
