// The life of processes, threads and objects around a model: exits at every stage, workers that end, forgotten models.
import { runNode, tiny, root } from './helpers.js';

const PRELUDE = `
const { Gemma, GemmaError } = require(${JSON.stringify(root)});
const model = ${JSON.stringify(tiny)};
const ENDLESS = { raw: true, seed: 1, logitBias: { 1: -Infinity, 6: -Infinity } };
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
`;

function script(body: string, flags: string[] = []) {
  return runNode([...flags, '-e', `${PRELUDE}\n(async () => {${body}})();`]);
}

describe('a process ends', () => {
  const stages: [string, string][] = [
    ['while loading', 'Gemma.load(model); process.exit(7);'],
    ['with a model loaded', 'await Gemma.load(model); process.exit(7);'],
    [
      'while generating',
      'const g = await Gemma.load(model); g.generate("x", ENDLESS); await sleep(20); process.exit(7);',
    ],
    [
      'in a stream',
      'const g = await Gemma.load(model); for await (const p of g.stream("x", ENDLESS)) process.exit(7);',
    ],
    ['while tokenizing', 'const g = await Gemma.load(model); g.tokenize("word ".repeat(1e5)); process.exit(7);'],
    [
      'while disposing',
      'const g = await Gemma.load(model); g.generate("x", ENDLESS).catch(() => {}); g.dispose(); process.exit(7);',
    ],
    ['in a progress callback', 'Gemma.load(model, { onProgress: () => process.exit(7) });'],
    [
      'while scoring',
      'const g = await Gemma.load(model); g.logits(Array(4000).fill(20), { all: true, onRow: () => process.exit(7) });',
    ],
  ];
  test.each(stages)('%s', async (_, body) => {
    const exit = await script(body);
    expect(exit).toMatchObject({ code: 7, signal: null, stderr: '' });
  });

  test('by itself when nothing is left to do, with the model still loaded', async () => {
    const exit = await script(
      'const g = await Gemma.load(model); await g.generate("x", { maxOutputTokens: 3 }); console.log("done");',
    );
    expect(exit).toMatchObject({ code: 0, stdout: 'done\n', stderr: '' });
  });

  test('not while a generation is under way', async () => {
    const exit = await script(
      'const g = await Gemma.load(model); g.generate("x", { ...ENDLESS, maxOutputTokens: 500 }).then((r) => console.log(r.tokens.length));',
    );
    expect(exit).toMatchObject({ code: 0, stdout: '500\n' });
  });

  test('by an uncaught error in a loop over a stream', async () => {
    const exit = await script(
      'const g = await Gemma.load(model); for await (const p of g.stream("x", ENDLESS)) throw new Error("mine");',
    );
    expect(exit.code).toBe(1);
    expect(exit.stderr).toContain('mine');
  });
});

describe('worker threads', () => {
  const WORKERS = `
const { Worker } = require('node:worker_threads');
const prelude = ${JSON.stringify(PRELUDE)};
const start = (body) => new Worker(prelude + '(async () => {' + body + '})();', { eval: true });
const end = (worker) => new Promise((resolve, reject) => { worker.on('exit', resolve); worker.on('error', reject); });
`;

  test('load, generate and end, one after another and together', async () => {
    const exit = await script(`${WORKERS}
      const body = 'const g = await Gemma.load(model); const r = await g.generate("x", { ...ENDLESS, maxOutputTokens: 20 });' +
        'require("node:worker_threads").parentPort.postMessage(r.tokens.join()); await g.dispose();';
      const texts = [];
      const one = () => { const w = start(body); w.on('message', (m) => texts.push(m)); return end(w); };
      for (let i = 0; i < 5; ++i) await one();
      await Promise.all(Array.from({ length: 6 }, one));
      console.log(texts.length, new Set(texts).size);`);
    expect(exit).toMatchObject({ code: 0, stdout: '11 1\n', stderr: '' });
  });

  test('terminated at every stage', async () => {
    const exit = await script(
      `${WORKERS}
      const say = 'const say = (m) => require("node:worker_threads").parentPort.postMessage(m);';
      const bodies = [
        say + 'say(1); await Gemma.load(model);',
        say + 'const g = await Gemma.load(model); say(1); await g.generate("x", ENDLESS);',
        say + 'const g = await Gemma.load(model); say(1); for await (const p of g.stream("x", ENDLESS));',
        say + 'const g = await Gemma.load(model); say(1); for (;;) await g.tokenize("word ".repeat(1000));',
        say + 'const g = await Gemma.load(model); say(1); await g.logits(Array(4000).fill(20), { all: true });',
        say + 'say(1); for (;;) { const g = await Gemma.load(model); g.generate("x", ENDLESS).catch(() => {}); await g.dispose(); }',
        say + 'const g = await Gemma.load(model); say(1); g.stream("x", ENDLESS).result; for (;;);',
        say + 'const g = await Gemma.load(model); g.generate("x", ENDLESS); process.exit(0);',
      ];
      let n = 0;
      for (let round = 0; round < 6; ++round) {
        for (const body of bodies) {
          const worker = start(body);
          worker.on('message', async () => { await sleep(round); worker.terminate(); });
          await end(worker);
          ++n;
        }
      }
      const g = await Gemma.load(model);
      console.log(n, (await g.generate('still here', { maxOutputTokens: 3 })).usage.outputTokens > 0);`,
    );
    expect(exit).toMatchObject({ code: 0, signal: null, stdout: '48 true\n', stderr: '' });
  });
});

test('forgotten models are freed', async () => {
  const exit = await script(
    `const { readFileSync } = require('node:fs');
    const mapped = () => readFileSync('/proc/self/maps', 'utf8').split('text-a-f16.gguf').length - 1;
    if (process.platform !== 'linux') return console.log('freed');
    // The list holds the models, so that the collector cannot take some before they are counted.
    let models = [];
    for (let i = 0; i < 20; ++i) models.push(await Gemma.load(model));
    const before = mapped();
    models = undefined;
    for (let i = 0; i < 50 && mapped() > 1; ++i) { gc(); await sleep(10); }
    console.log(mapped() <= 1 && before === 20 ? 'freed' : 'kept ' + mapped() + ' of ' + before);`,
    ['--expose-gc'],
  );
  expect(exit).toMatchObject({ code: 0, stdout: 'freed\n', stderr: '' });
});

test('forgotten streams end', async () => {
  const exit = await script(
    `const g = await Gemma.load(model);
    const kept = g.stream('kept', { ...ENDLESS, maxOutputTokens: 600 });
    await kept[Symbol.asyncIterator]().next();
    const result = g.stream('result', { ...ENDLESS, maxOutputTokens: 600 }).result;
    const forgotten = () => Promise.all(Array.from({ length: 70 }, (_, i) => g.stream('x' + i, ENDLESS)[Symbol.asyncIterator]().next()));
    await forgotten();
    for (let i = 0; i < 500 && g.stats().running + g.stats().paused > 1; ++i) { gc(); await sleep(10); }
    const { running, waiting, paused } = g.stats();
    console.log(running + waiting + paused, (await result).tokens.length, (await kept.result).tokens.length);`,
    ['--expose-gc'],
  );
  expect(exit).toMatchObject({ code: 0, stdout: '1 600 600\n', stderr: '' });
});

test('memory stays where it is over many generations', async () => {
  const exit = await script(
    `const g = await Gemma.load(model, { contextSize: 512 });
    const round = async (n) => {
      for (let i = 0; i < n; ++i) await Promise.all([1, 2, 3, 4].map((s) => g.generate('x', { maxOutputTokens: 30, seed: s, logprobs: 2 })));
      gc();
      return process.memoryUsage().rss;
    };
    await round(800);
    const before = await round(200);
    const after = await round(800);
    console.log(after - before < 20e6 ? 'steady' : 'grew by ' + (after - before));`,
    ['--expose-gc'],
  );
  expect(exit).toMatchObject({ code: 0, stdout: 'steady\n', stderr: '' });
});
