// Refuses memory, or the disk, to the addon, call by call: node sweep.cjs ROOT STAGE one|all STRIDE, with refuse.cpp loaded before.
// Prints what came of it as JSON; a call that never settles ends with exit code 7.
'use strict';
const fs = require('node:fs');
const { join } = require('node:path');
const [, , root, stage, mode, stride] = process.argv;
const { Gemma } = require(root);
const data = join(root, 'test', 'reference', 'data');

const control = fs.openSync(process.env.GEMMA_REFUSALS, 'r+');
function set(field, value) {
  const bytes = Buffer.alloc(8);
  bytes.writeBigInt64LE(BigInt(value));
  fs.writeSync(control, bytes, 0, 8, field * 8);
}
function seen() {
  const bytes = Buffer.alloc(8);
  fs.readSync(control, bytes, 0, 8, 24);
  return Number(bytes.readBigInt64LE());
}
const LAST = 2 ** 53;

const width = 64;
const height = 48;
const picture = { data: new Uint8Array(width * height * 3).map((_, i) => (i * 7919) & 255), width, height };
const load = () =>
  Gemma.load(join(data, 'mm-a-f16.gguf'), {
    threads: 2,
    mmproj: join(data, 'mmproj-mm-a-f16.gguf'),
    contextSize: 512,
  });
const adapters = join(data, 'adapters');
const loadPlain = () => Gemma.load(join(adapters, 'text-f16.gguf'), { threads: 2, contextSize: 256 });
const unloadAll = async (_, gemma) => {
  for (const { name } of gemma.adapters) await gemma.unloadAdapter(name);
};
const sampled = {
  maxOutputTokens: 6,
  temperature: 1,
  seed: 1,
  logprobs: 2,
  stopSequences: ['a stop sequence that is long'],
  repetitionPenalty: 1.1,
  logitBias: { 5: 1 },
};

// Files that are written: none is in place after a refusal, and what is left of one does not keep the next from being right.
const checkpoint = process.env.GEMMA_CHECKPOINT; // a folder with a vision encoder
const output = join(process.env.GEMMA_SCRATCH ?? '', `${stage}-${mode}.gguf`);
const outputs = [output, join(process.env.GEMMA_SCRATCH ?? '', `mmproj-${stage}-${mode}.gguf`)];
const convert = () => Gemma.quantize(checkpoint, output, { type: 'q8_0', threads: 2 });
const merge = () =>
  Gemma.merge(join(data, 'adapters', 'text-f16.gguf'), output, {
    adapters: [join(data, 'adapters', 'dora'), { path: join(data, 'adapters', 'embed'), scale: 0.5 }],
    type: 'q8_0',
    threads: 2,
  });
const mix = () =>
  Gemma.merge(checkpoint, output, { with: { model: checkpoint, method: 'slerp' }, type: 'f16', threads: 2 });
const read = () => outputs.map((path) => (fs.existsSync(path) ? fs.readFileSync(path).toString('base64') : ''));
const written = (run, what) => ({
  run,
  what,
  prepare: async () => {
    await run();
    const expected = read().join();
    for (const path of outputs) fs.rmSync(path, { force: true });
    return expected;
  },
  after: async (result, _, expected) => {
    if (!result && read().join('') !== '') throw new Error('a file is in place');
    if (!result) await run();
    if (read().join() !== expected) throw new Error('other bytes');
    for (const path of outputs) fs.rmSync(path, { force: true });
  },
});

/** What is swept: with a model (that of load(), where `model` names no other), and what is left to do afterwards. */
const STAGES = {
  load: { run: load, after: (gemma) => gemma?.dispose() },
  quantize: {
    run: () => Gemma.load(join(data, 'text-a-f16.gguf'), { threads: 2, contextSize: 512, quantize: 'q8_0' }),
    after: (gemma) => gemma?.dispose(),
  },
  tokenize: { run: async (gemma) => gemma.detokenize(await gemma.tokenize('hello there a'.repeat(20))) },
  generate: { run: (gemma) => gemma.generate('hello there', sampled) },
  together: {
    run: async (gemma) => {
      const calls = [1, 2, 3].map((i) => gemma.generate('hello '.repeat(i * 20), { ...sampled, temperature: 0 }));
      const failed = (await Promise.allSettled(calls)).find(({ status }) => status === 'rejected');
      if (failed) throw failed.reason;
    },
  },
  stream: {
    run: async (gemma) => {
      for await (const part of gemma.stream('hello there', sampled)) void part;
    },
  },
  logits: { run: (gemma) => gemma.logits([5, 6, 7, 8], { all: true, top: 3 }) },
  score: { run: (gemma) => gemma.score([5, 6, 7, 8], ['hello', [9], 'hello there'], { normalize: 'bytes' }) },
  embed: { run: (gemma) => gemma.embed(['hello', '', 'hello there'.repeat(20)]) },
  embedImage: { run: (gemma) => gemma.embedImage(picture, { panAndScan: true }) },
  pictures: { run: (gemma) => gemma.generate('x', { images: [picture], maxOutputTokens: 3, temperature: 0 }) },
  inspect: { run: () => Gemma.inspect(join(data, 'text-a-f16.gguf')) },
  adapters: {
    model: loadPlain,
    run: async (gemma) => {
      await gemma.loadAdapter('one', join(adapters, 'dora'));
      await gemma.loadAdapter('two', join(adapters, 'plain-f16.gguf'));
      await gemma.generate('hello there', { ...sampled, adapter: { one: 1, two: 0.5 } });
      await gemma.unloadAdapter('one');
    },
    after: unloadAll,
  },
  devices: { run: () => Gemma.devices() },
  convert: written(convert, 0),
  merge: written(merge, 0),
  mix: written(mix, 0),
  'convert-disk': written(convert, 1),
  'merge-disk': written(merge, 1),
  // Each time another model, busy with a call that must settle as well.
  dispose: {
    run: async () => {
      const gemma = await quietly(load);
      const busy = await quietly(async () =>
        gemma.generate('x', { maxOutputTokens: 400 }).then(
          () => 'done',
          (error) => error,
        ),
      );
      await gemma.dispose();
      const error = await busy;
      if (error !== 'done' && !['ERR_DISPOSED', 'ERR_OUT_OF_MEMORY'].includes(error.code)) throw error;
    },
  },
};

// Without refusals.
async function quietly(work) {
  set(0, 0);
  try {
    return await work();
  } finally {
    set(0, 1);
  }
}

const unexpected = [];
for (const event of ['uncaughtException', 'unhandledRejection']) {
  process.on(event, (error) => unexpected.push(`${event}: ${error?.stack ?? error}`));
}
const watch = { at: 0, since: Date.now() };
setInterval(() => {
  if (Date.now() - watch.since < 60_000) return;
  set(0, 0);
  process.stdout.write(`never settled: ${stage}, ${mode}, call ${watch.at}\n`, () => process.exit(7));
}, 1000).unref();
const alive = setInterval(() => {}, 1000); // a promise that never settles must not end the process unseen

(async () => {
  const { run, after, prepare, model = load, what = 0 } = STAGES[stage];
  const gemma = await model();
  const answer = async () =>
    (await gemma.generate('hello there', { maxOutputTokens: 6, temperature: 0 })).tokens.join();
  const want = await answer();
  const prepared = await prepare?.();
  const isExpected = (error) =>
    what === 0 ? error?.code === 'ERR_OUT_OF_MEMORY' : error?.code === 'ERR_FILE' && error.detail === 'DISK_FULL';
  set(4, what);
  const counts = { calls: 0, refused: 0, done: 0 };
  for (let at = 1, reached = true; reached; at += Number(stride)) {
    watch.at = at;
    watch.since = Date.now();
    set(1, at);
    set(2, mode === 'one' ? at : LAST);
    set(3, 0);
    set(0, 1);
    let result;
    let refused = false;
    try {
      result = await run(gemma);
    } catch (error) {
      refused = true;
      if (!isExpected(error)) unexpected.push(`call ${at}: ${error?.stack ?? error}`);
    }
    set(0, 0);
    counts.calls = seen();
    reached = counts.calls >= at;
    counts[refused ? 'refused' : 'done'] += 1;
    try {
      await after?.(result, gemma, prepared);
    } catch (error) {
      unexpected.push(`call ${at}, afterwards: ${error?.stack ?? error}`);
    }
    if (at % 5 === 1 && (await answer()) !== want) unexpected.push(`call ${at}: another answer afterwards`);
  }
  await gemma.dispose();
  clearInterval(alive);
  process.stdout.write(`${JSON.stringify({ ...counts, unexpected: unexpected.slice(0, 5) })}\n`);
})();
