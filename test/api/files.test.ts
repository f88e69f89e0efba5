// Files that are cut, written to, of types nobody computes with, broken in every part: an error that names the file, once.
import { execFileSync } from 'node:child_process';
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  closeSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import nodeGypBuild from 'node-gyp-build';
import { Gemma, GemmaError, type LoadOptions } from '../../lib/index.js';
import { data, rejection, root, runNode, tiny } from './helpers.js';

const isWindows = process.platform === 'win32';
const model = join(data, 'mm-a-f16.gguf');
const mmproj = join(data, 'mmproj-mm-a-f16.gguf');
const pixels = { data: new Uint8Array(64 * 48 * 3), width: 64, height: 48 };

let folder: string;
beforeEach(() => (folder = mkdtempSync(join(tmpdir(), 'gemma-files-'))));
afterEach(() => rmSync(folder, { recursive: true, force: true }));

function copy(from: string, name = 'model.gguf'): string {
  const path = join(folder, name);
  copyFileSync(from, path);
  utimesSync(path, new Date(0), new Date(0)); // whatever is written later has another time, on any clock
  return path;
}

/** The error, which must name the file once. */
async function errorNaming(path: string, work: Promise<unknown> | (() => Promise<unknown>)): Promise<GemmaError> {
  const error = (await rejection(typeof work === 'function' ? work() : work)) as GemmaError;
  expect(error).toBeInstanceOf(GemmaError);
  if (error.message.split(path).length !== 2) throw new Error(`expected ${path} once in: ${error.message}`);
  expect(error.message.length).toBeLessThan(1024);
  return error;
}

const describeUnix = isWindows ? describe.skip : describe; // there the system lets nobody write to a mapped file

describeUnix('a file that changes while it is in use', () => {
  const cuts: [string, (path: string) => void][] = [
    ['cut to nothing', (path) => truncateSync(path, 0)],
    ['cut in the middle', (path) => truncateSync(path, 200_000)],
    [
      'written to',
      (path) => {
        const file = openSync(path, 'r+');
        writeSync(file, Buffer.alloc(1000, 0x3c), 0, 1000, 200_000);
        closeSync(file);
      },
    ],
  ];

  test.each(cuts)('the model, %s: what is under way and what comes is ERR_FILE', async (_, change) => {
    const path = copy(tiny);
    const gemma = await Gemma.load(path, { threads: 2 });
    const stream = gemma.stream('Hi', { raw: true, seed: 1, logitBias: { 1: -Infinity, 6: -Infinity } });
    const read = (async () => {
      let first = true;
      for await (const part of stream) {
        void part;
        if (first) change(path);
        first = false;
      }
    })();
    expect(await errorNaming(path, read)).toMatchObject({ code: 'ERR_FILE', detail: 'FILE_CHANGED' });
    const changed = { code: 'ERR_FILE', detail: 'FILE_CHANGED' };
    expect(await errorNaming(path, gemma.generate('Hi'))).toMatchObject(changed);
    expect(await errorNaming(path, gemma.logits('Hi'))).toMatchObject(changed);
    expect(await errorNaming(path, gemma.perplexity('Hi'))).toMatchObject(changed);
    await gemma.dispose();
  });

  test.each(cuts)('the vision encoder, %s', async (_, change) => {
    const path = copy(mmproj, 'mmproj.gguf');
    const gemma = await Gemma.load(model, { mmproj: path });
    change(path);
    const error = await errorNaming(path, gemma.embedImage(pixels));
    expect(error).toMatchObject({ code: 'ERR_FILE', detail: 'FILE_CHANGED' });
    expect((await gemma.generate('Hi', { maxOutputTokens: 3 })).finishReason).toBeDefined(); // text does without it
    await gemma.dispose();
  });

  test.each(cuts)('the draft model, %s', async (_, change) => {
    const path = copy(tiny, 'draft.gguf');
    const gemma = await Gemma.load(tiny, { draft: path });
    change(path);
    const error = await errorNaming(path, gemma.generate('Hi', { raw: true, maxOutputTokens: 20 }));
    expect(error).toMatchObject({ code: 'ERR_FILE', detail: 'FILE_CHANGED' });
    await gemma.dispose();
  });

  test.each(cuts)('read into memory, %s: nothing happens', async (_, change) => {
    const path = copy(model);
    const encoder = copy(mmproj, 'mmproj.gguf');
    const gemma = await Gemma.load(path, { mmap: false, mmproj: encoder });
    const options = { maxOutputTokens: 5, temperature: 0 };
    const before = await gemma.generate('Hi', options);
    const embedding = await gemma.embedImage(pixels);
    change(path);
    change(encoder);
    expect((await gemma.generate('Hi', options)).tokens).toEqual(before.tokens);
    expect(await gemma.embedImage(pixels)).toEqual(embedding);
    await gemma.dispose();
  });

  test('renamed over or removed: the file that was loaded stays', async () => {
    const path = copy(tiny);
    const gemma = await Gemma.load(path);
    const before = await gemma.generate('Hi', { temperature: 0, maxOutputTokens: 5 });
    writeFileSync(join(folder, 'new'), 'x');
    renameSync(join(folder, 'new'), path);
    expect((await gemma.generate('Hi', { temperature: 0, maxOutputTokens: 5 })).tokens).toEqual(before.tokens);
    rmSync(path);
    expect((await gemma.generate('Hi', { temperature: 0, maxOutputTokens: 5 })).tokens).toEqual(before.tokens);
    await gemma.dispose();
  });

  test('cut between dispose and loading', async () => {
    const path = copy(tiny);
    const gemma = await Gemma.load(path);
    truncateSync(path, 0);
    await gemma.dispose();
    expect(await errorNaming(path, Gemma.load(path))).toMatchObject({ code: 'ERR_GGUF_INVALID', detail: 'TRUNCATED' });
  });

  // Another process cuts and restores the file all the time: whatever happens, it is a model or an error.
  test.each(['load', 'load without mapping', 'inspect', 'estimate'])('cut again and again: %s', async (what) => {
    const path = copy(tiny);
    const script = `
      const fs = require('fs'), bytes = fs.readFileSync(${JSON.stringify(tiny)});
      process.stdout.write('x');
      for (const end = Date.now() + 60_000; Date.now() < end;) {
        fs.writeFileSync(${JSON.stringify(path)}, bytes);
        fs.truncateSync(${JSON.stringify(path)}, 4096);
      }`;
    const codes = new Set<string>();
    const use = async (kill: (signal: NodeJS.Signals) => void) => {
      for (let i = 0; i < 150; ++i) {
        try {
          if (what === 'inspect') await Gemma.inspect(path, { mmproj: false });
          else if (what === 'estimate') await Gemma.estimate(path, { mmproj: false });
          else await (await Gemma.load(path, { mmproj: false, mmap: what === 'load', threads: 1 })).dispose();
        } catch (error) {
          codes.add((error as GemmaError).code);
        }
      }
      kill('SIGKILL');
    };
    await runNode(['-e', script], { onOutput: (kill) => void use(kill) });
    expect([...codes].filter((code) => code !== 'ERR_FILE' && code !== 'ERR_GGUF_INVALID')).toEqual([]);
  });

  // As with a package for GPUs installed: each has a handler of its own, and passes on what is the other's.
  test('with two addons in the process, each of which has mapped a file', async () => {
    const addons = [0, 1].map((i) => copy(nodeGypBuild.resolve(root), `addon${i}.node`));
    const models = [0, 1].map((i) => copy(tiny, `model${i}.gguf`));
    const script = `
      const { truncateSync } = require('fs');
      const { GemmaError } = require(${JSON.stringify(root)});
      const load = (file, path) => new Promise((done, fail) => {
        const addon = require(file);
        addon.init(GemmaError);
        addon.load({ path, device: 'cpu' }, (event) => {
          if (event.kind === 'loaded') done(event.model);
          if (event.kind === 'failed') fail(event.error);
        });
      });
      const generate = (model) => new Promise((done) => {
        model.generate({ tokens: Int32Array.of(2, 5, 7), maxOutputTokens: 3, maxUnread: 0 }, (event) => {
          if (event.kind === 'finish') done(event.error?.detail ?? event.reason);
        });
      });
      (async () => {
        const [addons, paths] = ${JSON.stringify([addons, models])};
        const models = [await load(addons[0], paths[0]), await load(addons[1], paths[1])];
        for (const i of [0, 1]) {
          console.log(await generate(models[i]));
          truncateSync(paths[i], 0);
          console.log(await generate(models[i]));
        }
        process.exit();
      })();`;
    const { stdout, signal } = await runNode(['-e', script]);
    expect(signal).toBe(null);
    expect(stdout.trim().split('\n')).toEqual([
      expect.stringMatching(/stop|length/),
      'FILE_CHANGED',
      expect.stringMatching(/stop|length/),
      'FILE_CHANGED',
    ]);
  });

  test('in a worker that has ended: signals of others still end the process, by their own name', async () => {
    const load = `
      const { Gemma } = require(${JSON.stringify(root)});
      Gemma.load(${JSON.stringify(tiny)}).then(() => process.exit());`;
    const script = `
      const { Worker } = require('worker_threads');
      new Worker(${JSON.stringify(load)}, { eval: true }).on('exit', () => {
        setTimeout(() => process.kill(process.pid, 'SIGBUS'), 100);
        setTimeout(() => {}, 60_000);
      });`;
    expect(await runNode(['-e', script])).toMatchObject({ signal: 'SIGBUS' });
  });
});

// Edits of the headers, by the place of a name in them.
function edit(
  from: string,
  to: string,
  change: (bytes: Buffer, at: (name: string) => number) => Buffer | void,
): string {
  const bytes = readFileSync(from);
  const at = (name: string) => {
    const place = bytes.indexOf(name);
    if (place < 0) throw new Error(`${from} has no ${name}`);
    return place + name.length;
  };
  writeFileSync(to, change(bytes, at) ?? bytes);
  return to;
}

/** Sets the type of a tensor of two dimensions. */
function withType(from: string, to: string, tensor: string, type: number): string {
  return edit(from, to, (bytes, at) => void bytes.writeUInt32LE(type, at(tensor) + 4 + 2 * 8));
}

describe('types that nothing here computes with', () => {
  test.each([
    ['I8', 24], // of one byte: the tensor takes half the place it had
    ['I16', 25],
  ])('%s is ERR_UNSUPPORTED_MODEL with its name and the tensor', async (name, type) => {
    const path = withType(tiny, join(folder, 'a.gguf'), 'blk.0.ffn_down.weight', type);
    for (const work of [() => Gemma.load(path), () => Gemma.inspect(path), () => Gemma.estimate(path)]) {
      const error = await errorNaming(path, work);
      expect(error).toMatchObject({ code: 'ERR_UNSUPPORTED_MODEL', detail: 'TENSOR_TYPE' });
      expect(error.message).toContain(`tensor blk.0.ffn_down.weight has the type ${name},`);
    }
  });

  test('one that is newer than this version, by its number', async () => {
    const path = withType(tiny, join(folder, 'a.gguf'), 'blk.0.ffn_down.weight', 57);
    const error = await errorNaming(path, Gemma.load(path));
    expect(error).toMatchObject({ code: 'ERR_UNSUPPORTED_MODEL', detail: 'TENSOR_TYPE' });
    expect(error.message).toContain('tensor "blk.0.ffn_down.weight": type 57 is unknown to this version');
  });
});

describe('every error of loading names the file, once', () => {
  const broken: [string, (bytes: Buffer, at: (name: string) => number) => Buffer | void][] = [
    ['BAD_MAGIC', (bytes) => void bytes.write('GGUX')],
    ['BAD_VERSION', (bytes) => void bytes.writeUInt32LE(99, 4)],
    ['COUNT_LIMIT', (bytes) => void bytes.writeBigUInt64LE(1n << 60n, 8)],
    ['BAD_STRING', (bytes) => void bytes.writeBigUInt64LE(0n, 24)],
    ['TRUNCATED', (bytes) => bytes.subarray(0, 100)],
    ['TRUNCATED', (bytes) => bytes.subarray(0, bytes.length - 5000)],
    ['BAD_TYPE', (bytes, at) => void bytes.writeUInt32LE(99, at('general.architecture'))],
    ['BAD_TENSOR_TYPE', (bytes, at) => void bytes.writeUInt32LE(200, at('blk.0.attn_k.weight') + 4 + 2 * 8)],
    ['BAD_SHAPE', (bytes, at) => void bytes.writeBigInt64LE(-1n, at('blk.0.attn_k.weight') + 4)],
    ['BAD_OFFSET', (bytes, at) => void bytes.writeBigUInt64LE(1n, at('blk.0.attn_k.weight') + 4 + 2 * 8 + 4)],
    ['BAD_HPARAM', (bytes, at) => void bytes.writeUInt32LE(0, at('.attention.head_count') + 4)],
    ['BAD_TENSOR', (bytes, at) => void bytes.write('x', at('blk.0.ffn_down.weight') - 1)],
  ];
  const unsupported: [string, (bytes: Buffer, at: (name: string) => number) => void][] = [
    ['another architecture', (bytes, at) => void bytes.write('gemmaX', at('general.architecture') + 4 + 8)],
    ['another type', (bytes, at) => void bytes.writeUInt32LE(24, at('blk.0.ffn_down.weight') + 4 + 2 * 8)],
  ];
  const cases = [...broken, ...unsupported];

  test.each(cases)('%s, of the model', async (what, change) => {
    const path = edit(tiny, join(folder, 'a.gguf'), change);
    const wanted = broken.some(([detail]) => detail === what)
      ? { code: 'ERR_GGUF_INVALID', detail: what }
      : { code: 'ERR_UNSUPPORTED_MODEL' };
    for (const work of [
      () => Gemma.load(path),
      () => Gemma.load(path, { mmap: false }),
      () => Gemma.inspect(path),
      () => Gemma.estimate(path),
      () => Gemma.load(tiny, { draft: path }),
      () => Gemma.estimate(tiny, { draft: path }),
    ]) {
      expect(await errorNaming(path, work)).toMatchObject(wanted);
    }
  });

  const encoderCases = cases
    .filter(([what]) => !/BAD_|another/.test(what) || ['BAD_MAGIC', 'BAD_VERSION'].includes(what))
    .concat([
      ['BAD_HPARAM', (bytes, at) => void bytes.writeUInt32LE(0, at('clip.vision.block_count') + 4)],
      ['BAD_TENSOR', (bytes, at) => void bytes.write('x', at('v.blk.0.attn_q.weight') - 1)],
      ['another architecture', (bytes, at) => void bytes.write('clap', at('general.architecture') + 4 + 8)],
    ]);
  test.each(encoderCases)('%s, of the vision encoder: named, or found beside the model', async (_, change) => {
    const path = edit(mmproj, join(folder, 'mmproj-a.gguf'), change);
    for (const work of [
      () => Gemma.load(model, { mmproj: path }),
      () => Gemma.inspect(model, { mmproj: path }),
      () => Gemma.estimate(model, { mmproj: path }),
    ]) {
      expect((await errorNaming(path, work)).code).toMatch(/ERR_GGUF_INVALID|ERR_UNSUPPORTED_MODEL/);
    }
    const gemma = await Gemma.load(copy(model, 'a.gguf'));
    expect(await errorNaming(path, gemma.embedImage(pixels))).toMatchObject({ detail: 'NO_VISION' });
    await gemma.dispose();
  });

  test('a context that the model was not trained for; a draft model of other tokens', async () => {
    const contextSize = 100_000_000;
    expect(await errorNaming(tiny, Gemma.load(tiny, { contextSize }))).toMatchObject({ detail: 'CONTEXT_SIZE' });
    const other = Gemma.demoModel;
    const drafted = Gemma.load(tiny, { draft: other });
    expect(await errorNaming(other, drafted)).toMatchObject({ detail: 'DRAFT_VOCABULARY' });
  });

  test('what cannot be opened', async () => {
    const none = join(folder, 'none.gguf');
    mkdirSync(join(folder, 'empty'));
    const load = (path: string, options?: LoadOptions) => errorNaming(path, Gemma.load(path, options));
    expect(await load(none)).toMatchObject({ code: 'ERR_FILE' });
    expect((await load(none)).message).toContain('ENOENT: no such file or directory)');
    expect(await load(join(folder, 'empty'))).toMatchObject({ code: 'ERR_FILE', detail: 'AMBIGUOUS_FOLDER' });
    for (const options of [{ draft: none }, { mmproj: none }])
      expect(await errorNaming(none, Gemma.load(tiny, options))).toMatchObject({ code: 'ERR_FILE' });
    const long = 'x'.repeat(1e6);
    const error = (await rejection(Gemma.load(long))) as GemmaError;
    expect(error).toMatchObject({ code: 'ERR_FILE' });
    expect(error.message.length).toBeLessThan(1024);
    if (isWindows) return;
    const pipe = join(folder, 'pipe.gguf');
    execFileSync('mkfifo', [pipe]);
    expect(await load(pipe)).toMatchObject({ code: 'ERR_FILE' });
    expect(await load('/dev/zero')).toMatchObject({ code: 'ERR_FILE' });
    if (process.getuid?.() === 0) return; // who may read everything
    const secret = copy(tiny, 'secret.gguf');
    execFileSync('chmod', ['000', secret]);
    expect(await load(secret)).toMatchObject({ code: 'ERR_FILE' });
  });

  test('the parts of a split model', async () => {
    const first = join(folder, 'm-00001-of-00002.gguf');
    const second = join(folder, 'm-00002-of-00002.gguf');
    // Metadata of a first part: put in front of the others.
    edit(tiny, first, (bytes) => {
      const entry = (key: string, value: number) => {
        const name = Buffer.alloc(8 + key.length + 4 + 2);
        name.writeBigUInt64LE(BigInt(key.length), 0);
        name.write(key, 8);
        name.writeUInt32LE(2, 8 + key.length);
        name.writeUInt16LE(value, 8 + key.length + 4);
        return name;
      };
      const added = Buffer.concat([entry('split.no', 0), entry('split.count', 2)]);
      const padding = (32 - (added.length % 32)) % 32; // the data stay aligned
      const filler = Buffer.alloc(padding + 32 >= 24 ? padding + 32 : padding + 64);
      filler.writeBigUInt64LE(1n, 0);
      filler.write('x', 8);
      filler.writeUInt32LE(8, 9);
      filler.writeBigUInt64LE(BigInt(filler.length - 21), 13);
      bytes.writeBigUInt64LE(bytes.readBigUInt64LE(16) + 3n, 16);
      return Buffer.concat([bytes.subarray(0, 24), added, filler, bytes.subarray(24)]);
    });
    expect(await errorNaming(second, Gemma.load(first))).toMatchObject({
      code: 'ERR_GGUF_INVALID',
      detail: 'MISSING_SPLIT',
    });
    for (const [detail, change] of broken.slice(0, 7)) {
      edit(tiny, second, change);
      expect(await errorNaming(second, Gemma.load(first))).toMatchObject({ code: 'ERR_GGUF_INVALID', detail });
    }
    copyFileSync(tiny, second);
    expect(await errorNaming(second, Gemma.load(first))).toMatchObject({ detail: 'MISSING_SPLIT' });
    renameSync(first, join(folder, 'renamed.gguf'));
    const renamed = join(folder, 'renamed.gguf');
    expect(await errorNaming(renamed, Gemma.load(renamed))).toMatchObject({ detail: 'MISSING_SPLIT' });
  });
});
