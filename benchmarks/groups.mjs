// The figures, in groups. A group measures its models one after the other and returns figures:
//
//   { group, model, what, unit, lowerIsBetter?, engines: { name: { values, ofPeak? } }, baseline?, note? }
//
// values has one number a round; ofPeak the fraction of the machine's peak, per round; baseline { what, engines: { name: values } }
// is what the same engine did without (one sequence, a quiet machine, no drafting).
import { spawn } from 'node:child_process';
import { createReadStream } from 'node:fs';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { batchedBench, complete, decodeAt, encodeImage, llamaBench, observe, run, tokenizeRates } from './peers.mjs';

const HERE = dirname(fileURLToPath(import.meta.url));
const ROOT = dirname(HERE);
const OURS = 'gemma-native';
const BEFORE = 'before';
const BIG_BYTES = 1.5e9;

export const GROUPS = {
  prefill: { title: 'Prefill of 512 tokens', models: ['270m', '1b', '4b', '4b-k'], measure: rates },
  decode: { title: 'Decode, one sequence', models: ['270m', '1b', '4b', '4b-k'], measure: rates },
  long: { title: 'Decode with a long context', models: ['270m', '1b'], measure: longContext },
  batch: { title: 'Eight sequences at once', models: ['270m', '1b'], measure: batch },
  draft: { title: 'Prompt lookup', models: ['270m'], measure: draft },
  busy: { title: 'Decode beside one busy process', models: ['270m', '1b'], measure: busy },
  start: { title: 'From nothing to the first token', models: ['4b', '4b-k'], measure: start },
  memory: { title: 'Peak of resident memory', models: ['4b'], measure: memory },
  tokenizer: { title: 'Tokenizer', models: ['270m'], measure: tokenizer },
  image: { title: 'Image of 896 x 896', models: ['4b'], measure: image },
};

/** checkout: the folder of another build of the package. */
async function ours(task, settings, bench, checkout = ROOT) {
  const { threads, isa, device } = bench;
  const json = JSON.stringify({ task, threads, isa, device, ...settings });
  return JSON.parse(await run(process.execPath, [join(checkout, 'benchmarks', 'measure.mjs'), json]));
}

function readOnce(file) {
  return new Promise((done, reject) => {
    createReadStream(file, { highWaterMark: 1 << 22 })
      .on('error', reject)
      .on('end', done)
      .resume();
  });
}

/**
 * Rounds of one model: in each the file is read once, so that nobody pays for a cold page cache, then every engine runs, in turn,
 * and the peaks are measured before and after. `{ results: { engine: [per round] }, peaks: [per round, the better of the two] }`
 */
async function alternate(bench, model, engines, { rounds = bench.rounds } = {}) {
  const results = Object.fromEntries(Object.keys(engines).map((name) => [name, []]));
  const peaks = [await bench.measurePeaks()];
  for (let round = 0; round < rounds; round++) {
    await readOnce(model);
    for (const [name, once] of Object.entries(engines)) {
      const result = await once();
      bench.log(`  ${name.padEnd(14)} ${describe(result)}`);
      results[name].push(result);
    }
    peaks.push(await bench.measurePeaks());
  }
  return { results, peaks: peaks.slice(1).map((after, i) => better(peaks[i], after)) };
}

const describe = (result) =>
  Object.entries(result)
    .filter(([, value]) => typeof value === 'number' || Array.isArray(value))
    .map(
      ([key, value]) =>
        `${key} ${[value]
          .flat()
          .map((x) => Number(x.toPrecision(4)))
          .join(' ')}`,
    )
    .join('   ');

const better = (a, b) =>
  Object.fromEntries(
    Object.entries(b).map(([key, value]) => [key, typeof value === 'number' ? Math.max(value, a[key] ?? 0) : value]),
  );

// What a model needs per token: bytes that a decode step reads (`decodeBytes` of the weights and the cache; `screenedBytes` with
// the output matrix read through its screen, as ours does), operations of a prefill position (two per multiply-add).
async function costs(model, context) {
  const { Gemma } = await import('../dist/index.mjs');
  const { config, parameters, fileBytes, outputBytes, memory } = await Gemma.inspect(model, {
    contexts: [context ?? 512],
  });
  const { vocabularySize, modelDim } = config;
  const decodeBytes = memory[0].weightsBytes + (context ? memory[0].kvBytes : 0);
  return {
    big: fileBytes > BIG_BYTES,
    decodeBytes,
    screenedBytes: decodeBytes - outputBytes + memory[0].screenBytes,
    // logits are computed for the last position only, so the embedding is no part of the prefill
    prefillOps: 2 * (parameters - vocabularySize * modelDim),
  };
}

// { engine: { values, ofPeak } } from rounds of results; `need(engine)` is what one unit of the value takes of the peak.
function engineValues(results, pick, peaks, peak, need) {
  return Object.fromEntries(
    Object.entries(results).map(([name, rounds]) => {
      const values = rounds.flatMap(pick);
      const most = (i) => peaks[Math.min(i, peaks.length - 1)]?.[peak];
      const ofPeak =
        peak && peaks.every((p) => p[peak] > 0) ? values.map((v, i) => (v * need(name)) / (most(i) * 1e9)) : undefined;
      return [name, { values, ...(ofPeak && { ofPeak }) }];
    }),
  );
}

// A GPU reads the output matrix itself.
const read =
  (bytes, { device }) =>
  (name) =>
    [OURS, BEFORE].includes(name) && device === 'cpu' ? bytes.screenedBytes : bytes.decodeBytes;

const PEAK_NOTES = {
  int8Gops: 'of the 8-bit multiply-add rate',
  bf16Gops: 'of the rate of the bf16 tiles that ours computes with',
  readGBps:
    'of the read bandwidth, each weight counted once a token, the output matrix for ours as the screen that it reads instead',
};

// What bounds products of many rows: the rate of what ours multiplies with.
const productPeak = (results) => (results[OURS][0].isa === 'amx_bf16' ? 'bf16Gops' : 'int8Gops');

// Prefill and decode come from one run of each engine.
async function rates(bench, model, wanted) {
  const { big, prefillOps, ...bytes } = await costs(model);
  const prompt = wanted.includes('prefill') ? 512 : 0;
  const decode = wanted.includes('decode') ? (big ? 32 : 128) : 0;
  const engines = { [OURS]: () => ours('rates', { model, prompt, decode }, bench) };
  if (bench.before) engines[BEFORE] = () => ours('rates', { model, prompt, decode }, bench, bench.before);
  for (const peer of bench.peers) {
    engines[peer.name] = () => llamaBench(peer, { model, prompt, decode, threads: bench.threads, big });
  }
  const { results, peaks } = await alternate(bench, model, engines);
  for (const peer of bench.peers) peer.version = results[peer.name][0].version;
  const figures = [];
  if (prompt > 0) {
    figures.push({
      group: 'prefill',
      what: `prefill of ${prompt} tokens`,
      unit: 'tokens/s',
      peakNote: PEAK_NOTES[productPeak(results)],
      engines: engineValues(
        results,
        (r) => r.prefill,
        peaks,
        productPeak(results),
        () => prefillOps,
      ),
    });
  }
  if (decode > 0) {
    figures.push({
      group: 'decode',
      what: `decode of ${decode} tokens`,
      unit: 'tokens/s',
      peakNote: PEAK_NOTES.readGBps,
      engines: engineValues(results, (r) => r.decode, peaks, 'readGBps', read(bytes, bench)),
    });
  }
  return figures.map((figure) => ({ ...figure, peaks }));
}

const PORTIONS = 3;

// One fill of the cache, then portions of decode; a portion counts as a round. (Filling 32k positions takes minutes.)
async function longContext(bench, model) {
  const figures = [];
  for (const context of [16384, 32640]) {
    const bytes = await costs(model, context);
    const settings = { model, context, portions: PORTIONS, tokens: 32 };
    const engines = { [OURS]: () => ours('decodeAt', settings, bench) };
    const peer = bench.peers.find(({ tools }) => tools.own);
    if (peer) {
      engines[peer.name] = async () => ({ rates: await decodeAt(peer, { ...settings, threads: bench.threads }) });
    }
    const { results, peaks } = await alternate(bench, model, engines, { rounds: 1 });
    figures.push({
      group: 'long',
      what: `decode after ${context} positions`,
      unit: 'tokens/s',
      peakNote: `${PEAK_NOTES.readGBps}, and the cache`,
      engines: engineValues(results, (r) => r.rates, peaks, 'readGBps', read(bytes, bench)),
      peaks,
    });
  }
  return figures;
}

async function batch(bench, model) {
  const { big } = await costs(model);
  const settings = { model, sequences: 8, decode: big ? 16 : 64 };
  const engines = { [OURS]: () => ours('batch', settings, bench) };
  const peer = bench.peers.find(({ tools }) => tools['llama-batched-bench']);
  if (peer) engines[peer.name] = () => batchedBench(peer, { ...settings, threads: bench.threads });
  const { results, peaks } = await alternate(bench, model, engines);
  return [
    {
      group: 'batch',
      what: 'eight sequences, together',
      unit: 'tokens/s',
      engines: engineValues(results, (r) => r.all, peaks),
      baseline: baseline('one sequence', results, (r) => r.one),
      peaks,
    },
  ];
}

const baseline = (what, results, pick) => ({
  what,
  engines: Object.fromEntries(Object.entries(results).map(([name, rounds]) => [name, rounds.flatMap(pick)])),
});

// A passage to be summarised in a sentence and then quoted: the answer repeats much of the prompt.
async function draft(bench, model) {
  const story = await readFile(join(ROOT, 'test', 'reference', 'data', 'long-text.txt'), 'utf8');
  const passage = story.slice(0, story.indexOf('\n', 1500)).trim();
  const text =
    `Read the passage, give a summary of one sentence, then quote the passage word for word.\n\nPassage:\n${passage}\n\n` +
    `Summary: A letter to the keeper of a dark lighthouse makes its reader climb the path.\n\nPassage, quoted:\n`;
  const peaks = [await bench.measurePeaks()];
  await readOnce(model);
  const { plain, drafted } = await ours('draft', { model, text, decode: 256, rounds: bench.rounds }, bench);
  const results = { [OURS]: plain.map((value, i) => ({ plain: value, drafted: drafted[i] })) };
  for (const result of results[OURS]) bench.log(`  ${OURS.padEnd(14)} ${describe(result)}`);
  return [
    {
      group: 'draft',
      what: 'decode with prompt lookup, summary and quotation',
      unit: 'tokens/s',
      engines: engineValues(results, (r) => r.drafted, peaks),
      baseline: baseline('plain decode', results, (r) => r.plain),
      peaks,
    },
  ];
}

/** Runs `work` while another process computes on one core; detached, because kernels may share the cores among sessions first. */
async function besideBusy(work) {
  // It ends with us, also where we are killed.
  const loop = `while (process.ppid === ${process.pid}) for (let i = 0; i < 1e7; i++);`;
  const other = spawn(process.execPath, ['-e', loop], { stdio: 'ignore', detached: true });
  const ended = new Promise((done) => other.on('close', done));
  try {
    return await work();
  } finally {
    other.kill('SIGKILL');
    await ended;
  }
}

async function busy(bench, model) {
  const { big } = await costs(model);
  const quietTokens = big ? 16 : 48;
  // A peer that waits for its threads takes a second for a token and more.
  const both = (once, busyTokens) => async () => {
    const quiet = (await once(quietTokens)).decode;
    return { quiet, busy: (await besideBusy(() => once(busyTokens))).decode };
  };
  const engines = { [OURS]: both((decode) => ours('rates', { model, prompt: 0, decode }, bench), quietTokens) };
  for (const peer of bench.peers) {
    const once = (decode) => llamaBench(peer, { model, prompt: 0, decode, threads: bench.threads, big });
    engines[peer.name] = both(once, 12);
  }
  const { results, peaks } = await alternate(bench, model, engines);
  return [
    {
      group: 'busy',
      what: 'decode beside one busy process',
      unit: 'tokens/s',
      engines: engineValues(results, (r) => r.busy, peaks),
      baseline: baseline('quiet', results, (r) => r.quiet),
      peaks,
    },
  ];
}

const SHORT_PROMPT = 'The lighthouse on Skerry Point had been dark for eleven years when the'; // 16 tokens with <bos>
const CONTEXT = 8192;

async function start(bench, model) {
  const settings = { model, text: SHORT_PROMPT, context: CONTEXT };
  const own = () => {
    const json = JSON.stringify({ task: 'complete', threads: bench.threads, isa: bench.isa, ...settings });
    return observe(process.execPath, [join(HERE, 'measure.mjs'), json]);
  };
  const first = (once) => async () => ({ ms: (await once()).firstMs });
  const engines = { [OURS]: first(own) };
  const peer = bench.peers.find(({ tools }) => tools['llama-completion']);
  if (peer) engines[peer.name] = first(() => complete(peer, { ...settings, threads: bench.threads }));
  const { results, peaks } = await alternate(bench, model, engines);
  return [
    {
      group: 'start',
      what: 'process start to first token, prompt of 16',
      unit: 'ms',
      lowerIsBetter: true,
      engines: engineValues(results, (r) => r.ms, peaks),
      peaks,
    },
  ];
}

// Ours with all 8k positions in the cache, because it grows as it fills. llama.cpp has its cache from the start: a prompt of one
// batch is enough there.
async function memory(bench, model) {
  const json = JSON.stringify({ task: 'fill', threads: bench.threads, isa: bench.isa, model, context: CONTEXT });
  const bytes = (once) => async () => ({ megabytes: (await once()).peakBytes / 1e6 });
  const engines = { [OURS]: bytes(() => observe(process.execPath, [join(HERE, 'measure.mjs'), json])) };
  const peer = bench.peers.find(({ tools }) => tools['llama-completion']);
  return withText(2600, async (file) => {
    if (peer)
      engines[peer.name] = bytes(() => complete(peer, { model, file, context: CONTEXT, threads: bench.threads }));
    const { results, peaks } = await alternate(bench, model, engines, { rounds: 1 });
    return [
      {
        group: 'memory',
        what: 'peak with a context of 8k',
        unit: 'MB',
        lowerIsBetter: true,
        engines: engineValues(results, (r) => r.megabytes, peaks),
        peaks,
      },
    ];
  });
}

async function tokenizer(bench, model) {
  return withText(Infinity, async (file, bytes) => {
    const rounds = bench.rounds;
    const engines = {
      [OURS]: async () => (await ours('tokenize', { model, file, rounds }, bench)).rates,
    };
    const peer = bench.peers.find(({ tools }) => tools.own);
    if (peer) engines[peer.name] = async () => (await tokenizeRates(peer, { model, file, bytes, rounds })).rates;
    const each = Object.fromEntries(
      Object.entries(engines).map(([name, once]) => [name, async () => ({ MBps: (await once()).map((x) => x / 1e6) })]),
    );
    const { results, peaks } = await alternate(bench, model, each, { rounds: 1 });
    return [
      {
        group: 'tokenizer',
        what: `${(bytes / 1e6).toFixed(1)} MB of prose and source code`,
        unit: 'MB/s',
        engines: engineValues(results, (r) => r.MBps, peaks),
        peaks,
      },
    ];
  });
}

// Random weights of the size of Gemma's vision encoder. One round: a peer takes minutes for an image.
async function image(bench, model) {
  const mmproj = await bench.findVision();
  const { default: sharp } = await import('sharp');
  const temporary = await mkdtemp(join(tmpdir(), 'gemma-bench-'));
  try {
    const file = join(temporary, 'image.png');
    const noise = { type: 'gaussian', mean: 128, sigma: 40 };
    await sharp({ create: { width: 896, height: 896, channels: 3, noise } })
      .png()
      .toFile(file);
    const engines = { [OURS]: () => ours('image', { model, mmproj, file }, bench) };
    const peer = bench.peers.find(({ tools }) => tools['llama-mtmd-cli']);
    if (peer) engines[peer.name] = () => encodeImage(peer, { model, mmproj, image: file, threads: bench.threads });
    const { results, peaks } = await alternate(bench, model, engines, { rounds: 1 });
    const figure = (what, values, rest = {}) => ({
      group: 'image',
      what,
      unit: 'ms',
      lowerIsBetter: true,
      engines: values,
      peaks,
      ...rest,
    });
    const mine = (pick) => engineValues({ [OURS]: results[OURS] }, pick, peaks);
    const one = engineValues(results, (r) => r.ms, peaks);
    // The encoder's operations: 4096 patches through 27 layers of 1152 and 4304, attention of all with all.
    const operations = 2 * 4096 * (27 * (4 * 1152 ** 2 + 2 * 1152 * 4304 + 2 * 4096 * 1152) + 588 * 1152);
    const peak = productPeak(results);
    if (peaks[0][peak] > 0) {
      for (const engine of Object.values(one))
        engine.ofPeak = engine.values.map((ms) => operations / (ms * 1e6) / peaks[0][peak]);
    }
    const firstQuestion = {
      what: 'the first question',
      engines: { [OURS]: results[OURS].map((r) => r.firstQuestionMs) },
    };
    return [
      figure('encoding one image', one, { peakNote: PEAK_NOTES[peak] }),
      figure(
        'encoding an image with four crops',
        mine((r) => r.fiveMs),
      ),
      figure(
        'second question about an image',
        mine((r) => r.secondQuestionMs),
        { baseline: firstQuestion },
      ),
    ];
  } finally {
    await rm(temporary, { recursive: true });
  }
}

// A file with the first `length` characters of a text: the story of the tests, then this repository's sources.
async function withText(length, work) {
  let text = await readFile(join(ROOT, 'test', 'reference', 'data', 'long-text.txt'), 'utf8');
  for (const folder of ['native', 'lib', 'test/native', 'test/api', 'test/reference']) {
    if (text.length >= length) break;
    const names = await readdir(join(ROOT, folder), { recursive: true });
    for (const name of names.sort().filter((n) => /\.(cpp|h|ts|py|md)$/.test(n))) {
      text += await readFile(join(ROOT, folder, name), 'utf8');
    }
  }
  text = text.slice(0, length);
  const temporary = await mkdtemp(join(tmpdir(), 'gemma-bench-'));
  try {
    const file = join(temporary, 'text.txt');
    await writeFile(file, text);
    return await work(file, Buffer.byteLength(text));
  } finally {
    await rm(temporary, { recursive: true });
  }
}

/** All figures of the groups named, each group over its own models unless `models` names others. */
export async function measureGroups(bench, names, models) {
  const figures = [];
  const order = Object.keys(GROUPS).filter((name) => names.includes(name));
  const done = new Set();
  for (const name of order) {
    const { title, measure, models: usual } = GROUPS[name];
    if (done.has(measure)) continue;
    done.add(measure);
    for (const { short, file } of models) {
      if (short && !usual.includes(short)) continue;
      bench.log(`${title}: ${basename(file)}`);
      for (const figure of await measure(bench, file, names)) figures.push({ ...figure, model: basename(file) });
    }
  }
  return figures.sort((a, b) => order.indexOf(a.group) - order.indexOf(b.group));
}
