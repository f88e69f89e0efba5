// Embeddings of texts with an EmbeddingGemma of full size and random weights, against sentence-transformers (PyTorch, float32) and
// llama.cpp, which take turns with ours. Needs Python 3 with numpy to write the models, and with torch, sentence-transformers and gguf
// for that peer (PYTHON names one).
//
//   node benchmarks/embeddings.mjs [--texts 1000] [--rounds 5] [--types q8_0,f32] [--threads 2] [--no-python] [--no-llama]
//
// Texts have 20 to 300 tokens. The peers get the tokens and no text: their time has no tokenisation in it, ours has. Ratios are peer's
// time over ours, of the same round: median (lowest to highest). Cosines are those of the first texts to ours.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { cacheDirectory, fetchTestModel } from '../scripts/fetch-test-model.mjs';
import { main, root } from '../scripts/steps.mjs';
import { buildLlamaCpp, embedTexts, run } from './peers.mjs';
import { spread, WORDS } from './samples.mjs';

const PYTHON = process.env.PYTHON ?? 'python3';
const log = (line) => process.stderr.write(`${line}\n`);
// A word is a token, with the space before it; two more stand around a text.
function textsOf(n) {
  let state = 12345;
  const random = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0);
  return Array.from({ length: n }, () =>
    Array.from({ length: 18 + ((random() >>> 8) % 281) }, () => WORDS[random() >>> 28]).join(' '),
  );
}

async function modelOf(style) {
  const file = join(cacheDirectory(), `embeddinggemma-random-${style}.gguf`);
  if (!existsSync(file)) {
    log(`${file}: writing random weights`);
    const script = join(root, 'test', 'reference', 'random_gguf.py');
    const vocabulary = ['--vocab-from', await fetchTestModel(log)];
    await run(PYTHON, [script, '--size', 'embedding', '--style', style, ...vocabulary, '--out', `${file}.part`]);
    await rename(`${file}.part`, file);
  }
  return file;
}

function leastCosine(rows, data, dim) {
  return Math.min(...rows.map((row, i) => row.reduce((sum, x, j) => sum + x * data[i * dim + j], 0)));
}

// The Python peer, which keeps its model between rounds.
async function sentenceTransformers(model, ids, threads) {
  const script = join(root, 'benchmarks', 'embedding_peer.py');
  const child = spawn(PYTHON, [script, model, ids, String(threads)], { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error('embedding_peer.py ended; it needs torch, sentence-transformers and gguf (PYTHON)');
    return JSON.parse(value);
  };
  const { rows } = await next();
  return {
    rows,
    measure: async () => {
      child.stdin.write('\n');
      return (await next()).seconds;
    },
    close: () => child.stdin.end(),
  };
}

await main(async () => {
  const { values } = parseArgs({
    allowNegative: true,
    options: {
      texts: { type: 'string', default: '1000' },
      rounds: { type: 'string', default: '5' },
      types: { type: 'string', default: 'q8_0,f32' },
      threads: { type: 'string', default: '2' },
      python: { type: 'boolean', default: true },
      llama: { type: 'boolean', default: true },
    },
  });
  const threads = Number(values.threads);
  const { Gemma } = createRequire(import.meta.url)(join(root, 'dist', 'index.js'));
  const texts = textsOf(Number(values.texts));
  const folder = await mkdtemp(join(tmpdir(), 'gemma-embeddings-'));
  const ids = join(folder, 'ids.txt');
  const llama = values.llama ? await buildLlamaCpp(log) : undefined;
  let python;
  try {
    for (const type of values.types.split(',')) {
      const model = await modelOf(type);
      const gemma = await Gemma.load(model, { threads });
      const lines = [];
      for (const text of texts) lines.push([...(await gemma.tokenize(text, { bos: true })), 1].join(' '));
      await writeFile(ids, `${lines.join('\n')}\n`);
      if (values.python) python ??= await sentenceTransformers(await modelOf('f32'), ids, threads);
      const first = await gemma.embed(texts.slice(0, 4)); // warms up, too
      const dim = first.shape[1];
      const ours = [];
      const rates = [];
      const ratios = { 'sentence-transformers': [], 'llama.cpp': [] };
      const cosines = {};
      for (let round = 0; round < Number(values.rounds); ++round) {
        const start = performance.now();
        const { usage } = await gemma.embed(texts);
        const seconds = (performance.now() - start) / 1000;
        ours.push(seconds);
        rates.push(usage.inputTokens / seconds);
        const add = (name, taken) => {
          ratios[name].push(taken / seconds);
          log(`${type}, round ${round + 1}: ours ${seconds.toFixed(2)} s, ${name} ${taken.toFixed(2)} s`);
        };
        if (python) add('sentence-transformers', await python.measure());
        if (llama) {
          const { rows, seconds: taken } = await embedTexts(llama, { model, ids, threads });
          cosines['llama.cpp'] = leastCosine(rows, first.data, dim);
          add('llama.cpp', taken);
        }
      }
      if (python && type === 'f32') cosines['sentence-transformers'] = leastCosine(python.rows, first.data, dim);
      const line = (text) => process.stdout.write(`${text}\n`);
      line(`${type}, ${texts.length} texts, ${threads} threads, ${gemma.info.isa}, load ${loadavg()[0].toFixed(1)}`);
      line(`  ours: ${spread(ours)} s, ${spread(rates, 0)} tokens/s`);
      for (const [name, all] of Object.entries(ratios)) {
        const cosine = cosines[name] === undefined ? '' : `; cosine ${cosines[name].toFixed(6)}`;
        if (all.length > 0) line(`  ${name}: ${spread(all)} times our time${cosine}`);
      }
      await gemma.dispose();
    }
  } finally {
    python?.close();
    await rm(folder, { recursive: true });
  }
});
