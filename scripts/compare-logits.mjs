#!/usr/bin/env node
// Compares the numbers of two builds bit by bit: logits of every golden model, of the demonstration model with a picture and of
// the real 270M, embeddings of pictures, and sampled tokens, on every instruction set that runs here. For a change that must not
// change a number.
//
//   git worktree add ../before COMMIT && (cd ../before && npm ci --ignore-scripts && npm run build:native && npm run build:ts)
//   node scripts/compare-logits.mjs ../before [--isa avx2,ref] [--no-real]
//
// Both builds are loaded into this process. Ends with "N equal, N different"; exit 1 when one differs.
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { SetupError, fetchModel, main, root } from './steps.mjs';

const DATA = join(root, 'test', 'reference', 'data');
const IMAGES = join(DATA, 'images');
// Contexts of the real model are compared up to this length: longer ones take minutes with scalar kernels.
const REAL_TOKENS = { ref: 24 };

async function build(folder) {
  const entry = join(folder, 'dist', 'index.js');
  if (!existsSync(entry)) throw new SetupError(`${folder}: not built (no dist/index.js)`);
  return (await import(pathToFileURL(entry).href)).Gemma;
}

function goldenModels() {
  const cases = (name) => {
    const path = join(DATA, `${name}.json`);
    if (!existsSync(path)) return undefined;
    const golden = JSON.parse(readFileSync(path, 'utf8'));
    // Ids past the vocabulary stand for rows of pictures, which are compared apart.
    return golden.cases.map(({ ids }) => ids).filter((ids) => ids.every((id) => id < golden.vocab_size));
  };
  const tiny = readdirSync(DATA)
    .filter((name) => name.endsWith('.gguf') && !name.startsWith('mmproj'))
    .map((name) => {
      const stem = basename(name, '.gguf');
      const ids = cases(stem) ?? cases(stem.replace(/-f16$/, ''));
      if (!ids) throw new SetupError(`${name}: no file of cases for it in ${DATA}`);
      return { path: join(DATA, name), ids };
    });
  const { ids } = JSON.parse(readFileSync(join(DATA, 'types', 'types.json'), 'utf8'));
  const types = readdirSync(join(DATA, 'types'))
    .filter((name) => name.endsWith('.gguf'))
    .map((name) => ({ path: join(DATA, 'types', name), ids: [ids] }));
  return [...tiny, ...types];
}

function differingValues(a, b) {
  if (a.length !== b.length) return `${a.length} values and ${b.length}`;
  // Bits, not values: a comparison of floats would take 0 for -0 and would never find NaN equal.
  const x = new Uint32Array(a.buffer, a.byteOffset, a.length);
  const y = new Uint32Array(b.buffer, b.byteOffset, b.length);
  let n = 0;
  for (let i = 0; i < x.length; ++i) if (x[i] !== y[i]) ++n;
  return n === 0 ? undefined : `${n} of ${x.length} values`;
}

const bits = (tokens) => Float32Array.from(tokens);

/** What is compared of one loaded model: a name and a Float32Array each. */
async function* figures(gemma, { ids, question, images }) {
  for (const [i, tokens] of (ids ?? []).entries()) {
    yield [`logits of case ${i}, ${tokens.length} tokens`, (await gemma.logits(tokens, { all: true })).data];
    const options = { maxOutputTokens: 12, draft: false };
    yield [`greedy after case ${i}`, bits((await gemma.generate(tokens, { ...options, temperature: 0 })).tokens)];
    yield [`sampled after case ${i}`, bits((await gemma.generate(tokens, { ...options, seed: 7 })).tokens)];
  }
  for (const image of images ?? []) {
    const content = [
      { type: 'image', image },
      { type: 'text', text: question },
    ];
    yield [`embeddings of ${basename(image)}`, (await gemma.embedImage(image, { panAndScan: true })).data];
    yield [`logits about ${basename(image)}`, (await gemma.logits([{ role: 'user', content }])).data];
  }
}

await main(async () => {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { isa: { type: 'string' }, 'no-real': { type: 'boolean' } },
  });
  if (positionals.length !== 1)
    throw new SetupError('usage: compare-logits.mjs OTHER_CHECKOUT [--isa A,B] [--no-real]');
  const [after, before] = [await build(root), await build(resolve(positionals[0]))];
  const cpu = (await after.devices()).find(({ name }) => name === 'cpu');
  const isas = values.isa?.split(',') ?? cpu.isas;
  const models = goldenModels();
  models.push({
    path: join(DATA, 'mm-a-f16.gguf'),
    question: 'forest',
    images: readdirSync(IMAGES).map((name) => join(IMAGES, name)),
  });
  models.push({ path: 'demo', question: 'Describe the picture.', images: [join(IMAGES, 'photo.png')] });
  if (!values['no-real']) {
    const { cases } = JSON.parse(readFileSync(join(DATA, 'gemma-3-270m-q4_k_m.json'), 'utf8'));
    models.push({ path: await fetchModel(), ids: cases.map(({ ids }) => ids), isReal: true });
  }
  const total = { equal: 0, different: 0 };
  for (const isa of isas) {
    const counted = { ...total };
    for (const model of models) {
      for (const kvCache of model.isReal ? ['f16'] : ['f32', 'f16', 'q8_0']) {
        const name = `${basename(model.path)}, ${isa}, ${kvCache}`;
        const limit = (model.isReal && REAL_TOKENS[isa]) || Infinity;
        const cut = { ...model, ids: model.ids?.map((ids) => ids.slice(0, limit)) };
        const load = (Gemma) =>
          Gemma.load(model.path, { isa, kvCache, device: 'cpu', threads: 2, prefixCacheBytes: 0 });
        let pair;
        try {
          pair = await Promise.all([before, after].map(load));
        } catch (error) {
          if (kvCache !== 'q8_0') throw error; // some tiny models' heads are too narrow for it
          continue;
        }
        const theirs = figures(pair[0], cut);
        for await (const [what, data] of figures(pair[1], cut)) {
          const difference = differingValues((await theirs.next()).value[1], data);
          total[difference ? 'different' : 'equal'] += 1;
          if (difference) process.stdout.write(`different: ${name}: ${what}: ${difference}\n`);
        }
        await Promise.all(pair.map((gemma) => gemma.dispose()));
      }
    }
    process.stdout.write(
      `${isa}: ${total.equal - counted.equal} equal, ${total.different - counted.different} different\n`,
    );
  }
  process.stdout.write(`${total.equal} equal, ${total.different} different\n`);
  if (total.equal === 0 || total.different > 0) process.exitCode = 1;
});
