// Memory that is refused at every call, small address spaces, and wrong arguments at every place of the addon: each in a process
// of its own, because what is looked for is its death.
import { execFileSync, spawnSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { checkpointOf, writeCheckpoint } from './checkpoint.js';
import { data, root, runNode, tiny } from './helpers.js';

const faults = join(root, 'test', 'faults');
let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'gemma-faults-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test('every function of the addon with every kind of wrong argument', async () => {
  const exit = await runNode([join(faults, 'arguments.cjs'), root]);
  expect(exit).toMatchObject({ code: 0, signal: null, stderr: '' });
  const { wrong, ...outcomes } = JSON.parse(exit.stdout) as { wrong: string[]; threw: number; worked: number };
  expect(wrong).toEqual([]);
  expect(outcomes.threw).toBeGreaterThan(1000);
  expect(outcomes.worked).toBeGreaterThan(1000);
}, 300_000);

// The library that refuses memory uses what glibc offers, and the preloading of Linux.
const isGlibc =
  process.platform === 'linux' &&
  'glibcVersionRuntime' in (process.report.getReport() as { header: Record<string, unknown> }).header;

(isGlibc ? describe : describe.skip)('memory or the disk is refused', () => {
  let library: string;
  beforeAll(() => {
    library = join(folder, 'refuse.so');
    const files = ['mm-a-f16.gguf', 'mmproj-mm-a-f16.gguf'].map((name) => join(data, name)) as [string, string];
    writeCheckpoint(join(folder, 'checkpoint'), checkpointOf(...files, { layout: 'new' }));
    const compiler = process.env.CXX ?? 'c++';
    execFileSync(compiler, [
      '-std=c++20',
      '-O1',
      '-shared',
      '-fPIC',
      '-o',
      library,
      join(faults, 'refuse.cpp'),
      '-ldl',
    ]);
  });

  // Loading and reading headers make thousands of calls: here every fifth of them is refused, the others too where
  // GEMMA_TEST_EVERY_CALL is set. The native test out_of_memory refuses each of them.
  const many = process.env.GEMMA_TEST_EVERY_CALL ? '1' : '5';
  const stages = {
    load: many,
    quantize: many,
    tokenize: '1',
    generate: '1',
    together: '1',
    stream: '1',
    logits: '1',
    score: '1',
    embed: '1',
    embedImage: '1',
    pictures: '1',
    adapters: many,
    inspect: many,
    devices: '1',
    dispose: '1',
    convert: process.env.GEMMA_TEST_EVERY_CALL ? '1' : '149',
    merge: process.env.GEMMA_TEST_EVERY_CALL ? '1' : '97',
    mix: process.env.GEMMA_TEST_EVERY_CALL ? '1' : '397',
    'convert-disk': process.env.GEMMA_TEST_EVERY_CALL ? '1' : '7',
    'merge-disk': process.env.GEMMA_TEST_EVERY_CALL ? '1' : '5',
  };
  // Every call that asks the system for memory, a mapping or a thread is refused once, and then all from there on.
  test.each(
    Object.entries(stages).flatMap(([stage, stride]) => ['one', 'all'].map((mode) => [stage, mode, stride] as const)),
  )(
    '%s, %s',
    async (stage, mode, stride) => {
      const refusals = join(folder, `${stage}-${mode}`);
      writeFileSync(refusals, Buffer.alloc(4096));
      const exit = await runNode([join(faults, 'sweep.cjs'), root, stage, mode, stride], {
        env: {
          LD_PRELOAD: library,
          GEMMA_REFUSALS: refusals,
          GEMMA_CHECKPOINT: join(folder, 'checkpoint'),
          GEMMA_SCRATCH: folder,
        },
      });
      expect(exit).toMatchObject({ code: 0, signal: null, stderr: '' });
      const { calls, refused, unexpected } = JSON.parse(exit.stdout) as {
        calls: number;
        refused: number;
        unexpected: string[];
      };
      expect(unexpected).toEqual([]);
      expect(calls).toBeGreaterThan(0);
      expect(refused).toBeGreaterThan(0);
    },
    600_000,
  );
});

const hasLimits = process.platform === 'linux' && spawnSync('prlimit', ['--version']).status === 0;

(hasLimits ? test : test.skip)('a small address space', async () => {
  // A model, and behind it a hole: more than may be mapped.
  const large = join(folder, 'large.gguf');
  copyFileSync(tiny, large);
  truncateSync(large, 64 * 2 ** 30);
  const script = `
    const { Gemma } = require(${JSON.stringify(root)});
    const { execFileSync } = require('node:child_process');
    const { readFileSync } = require('node:fs');
    const model = ${JSON.stringify(tiny)};
    (async () => {
      const g = await Gemma.load(model, { threads: 1 });
      const kib = Number(/VmSize:\\s*(\\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]);
      execFileSync('prlimit', ['--pid', String(process.pid), '--as=' + (kib * 1024 + 400 * 2 ** 20)]);
      const say = (name, promise) => promise.then(() => console.log(name, 'done'), (e) => console.log(name, e.code, e.detail));
      await say('threads', Gemma.load(model, { threads: 1000 }));
      await say('mapping', Gemma.load(${JSON.stringify(large)}, { threads: 1 }));
      await say('reading', Gemma.load(${JSON.stringify(large)}, { threads: 1, mmap: false }));
      await say('generate', g.generate('still here', { maxOutputTokens: 3 }));
      await g.dispose();
    })();`;
  const exit = await runNode(['-e', script]);
  expect(exit).toMatchObject({ code: 0, signal: null, stderr: '' });
  expect(exit.stdout.trim().split('\n')).toEqual([
    'threads ERR_OUT_OF_MEMORY THREADS',
    'mapping ERR_OUT_OF_MEMORY undefined',
    'reading ERR_OUT_OF_MEMORY undefined',
    'generate done',
  ]);
});
