// Weights that are quantised while they are loaded: the model is that of the file which Gemma.quantize writes, to the bit.
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gemma, type LoadOptions, type Message, type Quantization } from '../../lib/index.js';
import { QUANTIZATIONS } from '../../lib/quantize.js';
import { checkpointOf, writeCheckpoint } from './checkpoint.js';
import { derive } from './derived.js';
import { cli, data, rejection, root, runNode, withModel } from './helpers.js';

const demo = join(root, 'test', 'demo', 'demo-f16.gguf');
const text = join(data, 'text-a-f16.gguf');
let folder: string;
const out = (name: string) => join(folder, name);
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'gemma-quantize-load-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** The file of another type that quantize() makes of a file. */
async function written(from: string, type: Quantization): Promise<string> {
  const path = out(`${statSync(from).ino}-${type}.gguf`);
  await Gemma.quantize(from, path, { type, overwrite: true });
  return path;
}

const TEXT = 'The quiet river opens a letter; 1, 2.';

async function outputs(model: string, options: LoadOptions = {}) {
  return withModel(
    async (gemma) => ({
      kvCache: gemma.info.kvCache,
      logits: (await gemma.logits(TEXT, { raw: true, all: true })).data,
      generated: (await gemma.generate(TEXT, { raw: true, maxOutputTokens: 8, temperature: 0 })).tokens,
    }),
    { mmproj: false, contextSize: 256, ...options },
    model,
  );
}

test.each(QUANTIZATIONS)('%s of a GGUF file', async (quantize) => {
  const seen: number[] = [];
  const ofFile = await outputs(await written(demo, quantize));
  expect(await outputs(demo, { quantize, onProgress: (fraction) => seen.push(fraction) })).toEqual(ofFile);
  expect(seen).toEqual([...seen].sort((a, b) => a - b));
  expect(seen.at(-1)).toBe(1);
  if (quantize !== 'q4_k_m') return;
  for (const options of [{ threads: 1 }, { threads: 3 }, { mmap: false }])
    expect(await outputs(demo, { quantize, ...options })).toEqual(ofFile);
});

test.each(['F16', 'F32', 'BF16'] as const)('a checkpoint of %s', async (dtype) => {
  const gguf = dtype === 'BF16' ? await written(demo, 'bf16') : demo;
  const checkpoint = checkpointOf(gguf, undefined, { layout: 'text', ...(dtype === 'F32' && { dtype }) });
  const path = writeCheckpoint(out(dtype), checkpoint, dtype === 'F32' ? 3 : 1);
  const quantize = dtype === 'F16' ? 'q4_k_m' : 'q8_0';
  const ofFile = await outputs(await written(gguf, quantize));
  expect(await outputs(path, { quantize })).toEqual(ofFile);
  if (dtype === 'F16') expect(await outputs(path, { quantize, mmap: false })).toEqual(ofFile);
});

test('the vision encoder is what it is without', async () => {
  const model = join(data, 'mm-a-f16.gguf');
  const mmproj = join(data, 'mmproj-mm-a-f16.gguf');
  const picture = { data: new Uint8Array(24 * 24 * 3).map((_, i) => i * 7), width: 24, height: 24, channels: 3 };
  const ask: Message[] = [{ role: 'user', content: [{ type: 'image', image: picture }, { type: 'text', text: 'What?' }] }] as Message[]; // prettier-ignore
  const seen = (path: string, options: LoadOptions) =>
    withModel(async (gemma) => [(await gemma.embedImage(picture as never)).data, (await gemma.logits(ask)).data], options, path); // prettier-ignore
  const path = writeCheckpoint(out('seen'), checkpointOf(model, mmproj, { layout: 'new' }));
  const ofFile = await seen(await written(model, 'q8_0'), { mmproj });
  expect(await seen(path, { quantize: 'q8_0' })).toEqual(ofFile);
  expect(await seen(path, { quantize: 'q8_0', mmap: false })).toEqual(ofFile);
});

test('adapters are added to what was quantised; one with magnitudes goes by its rows', async () => {
  const adapters = { dora: join(data, 'adapters', 'dora'), lora: join(data, 'adapters', 'bf16') };
  const base = join(data, 'adapters', 'text-f16.gguf');
  const adapted = (path: string, options: LoadOptions) =>
    withModel(
      async (gemma) => {
        const before = await Promise.all(
          ['dora', 'lora'].map((adapter) => gemma.logits([2, 5, 6, 7, 8, 9], { adapter })),
        );
        await gemma.loadAdapter('later', adapters.dora);
        const later = await gemma.logits([2, 5, 6, 7, 8, 9], { adapter: 'later' });
        expect(later.data).toEqual(before[0]?.data);
        return before.map(({ data: logits }) => logits);
      },
      { adapters, ...options },
      path,
    );
  expect(await adapted(base, { quantize: 'q8_0' })).toEqual(await adapted(await written(base, 'q8_0'), {}));
});

test('an embedding model', async () => {
  const model = join(data, 'embedding-f16.gguf');
  const embedded = (path: string, options: LoadOptions) =>
    withModel(
      async (gemma) => [gemma.info.kvCache, (await gemma.embed(['a b c', 'd'])).data],
      { denseLayers: 'optional', ...options },
      path,
    );
  for (const quantize of ['q8_0', 'q4_0'] as const)
    expect(await embedded(model, { quantize })).toEqual(await embedded(await written(model, quantize), {}));
});

test('a draft model is quantised likewise, and changes nothing', async () => {
  const plain = await outputs(text, { quantize: 'q8_0' });
  expect(await outputs(text, { quantize: 'q8_0', draft: text })).toEqual(plain);
});

test('what is quantised already stays as it is', async () => {
  const quantised = join(data, 'text-a-q4_0.gguf');
  expect(await outputs(quantised, { quantize: 'q8_0' })).toEqual(await outputs(quantised));
  await withModel(async (gemma) => expect(gemma.info.quantize).toBeUndefined(), { quantize: 'q8_0' }, quantised);
  // Floats among them are quantised: here the embedding alone.
  const mixed = out('mixed.gguf');
  await Gemma.quantize(demo, mixed, { type: 'q8_0', overrides: { token_embd: 'f16' } });
  const whole = out('whole.gguf');
  await Gemma.quantize(mixed, whole, { type: 'q8_0' });
  expect(await outputs(mixed, { quantize: 'q8_0' })).toEqual(await outputs(whole));
});

test('memory is planned as it is taken; info and inspect say what was done', async () => {
  const norms = (await Gemma.inspect(demo)).tensorTypes.find(({ type }) => type === 'F32')?.bytes ?? NaN;
  for (const quantize of ['q8_0', 'q4_k_m'] as const) {
    const settings = { quantize, contextSize: 1024, mmproj: false, prefixCacheBytes: 0 } as const;
    const path = await written(demo, quantize);
    const { availableBytes, fits, contextSize, ...plan } = await Gemma.estimate(demo, settings);
    expect([fits, contextSize]).toEqual([availableBytes >= plan.totalBytes, 1024]);
    const ofFile = await Gemma.estimate(path, { ...settings, quantize: undefined as never });
    expect(plan.weightsBytes).toBe(ofFile.weightsBytes + norms); // copies, because the file is let go
    const summary = await Gemma.inspect(demo, { quantize });
    expect(summary.tensorTypes).toEqual((await Gemma.inspect(path)).tensorTypes);
    expect(summary.fileBytes).toBe(statSync(demo).size);
    await withModel(
      async (gemma) => {
        expect(gemma.info).toMatchObject({ quantize, memory: plan });
      },
      settings,
      demo,
    );
  }
});

test('a file whose weights are all copies may change afterwards', async () => {
  const path = derive(text, out('changing.gguf'), {});
  const expected = await outputs(path, { quantize: 'q8_0' });
  await withModel(
    async (gemma) => {
      writeFileSync(path, 'something else');
      expect((await gemma.logits(TEXT, { raw: true, all: true })).data).toEqual(expected.logits);
    },
    { quantize: 'q8_0', contextSize: 256 },
    path,
  );
});

test('what cannot be has its error', async () => {
  await expect(Gemma.load(demo, { quantize: 'q3' as 'q4_0' })).rejects.toThrow(RangeError);
  await expect(Gemma.load(demo, { quantize: 'q3' as 'q4_0' })).rejects.toThrow(/quantize: .*q8_0.*q4_k_m.*"q3"/);
  await expect(Gemma.estimate(demo, { quantize: 4 as never })).rejects.toThrow(TypeError);
  await expect(Gemma.inspect(demo, { quantize: 'Q4_0' as never })).rejects.toThrow(RangeError);

  const broken = derive(text, out('broken.gguf'), {
    type: 'f32',
    change: (name, values) => {
      if (name === 'blk.3.ffn_up.weight') values[64 * 5 + 1] = NaN;
    },
  });
  const error = await rejection(Gemma.load(broken, { quantize: 'q8_0' }));
  expect(error).toMatchObject({
    code: 'ERR_NON_FINITE',
    message: `${broken}: tensor blk.3.ffn_up.weight, row 5: a value is not finite as Q8_0`,
  });
});

test('loading is aborted in the middle of it', async () => {
  const controller = new AbortController();
  const onProgress = (fraction: number) => {
    if (fraction > 0.3) controller.abort(new Error('mine'));
  };
  const { signal } = controller;
  await expect(Gemma.load(demo, { quantize: 'q4_k_m', signal, onProgress })).rejects.toThrow('mine');
});

test('the command line', async () => {
  const args = ['--quantize', 'q4_0', '--json'];
  const logits = ['logits', '--model', demo, '--raw', '--no-mmproj', 'hello there'];
  const [there, ofFile] = await Promise.all([
    runNode([cli, ...logits, ...args]),
    runNode([cli, ...logits.with(2, await written(demo, 'q4_0')), '--json']),
  ]);
  expect(there).toMatchObject({ code: 0, stderr: '' });
  expect(there.stdout).toBe(ofFile.stdout);
  const inspected = await runNode([cli, 'inspect', demo, '--quantize', 'q4_0']);
  expect(inspected.stdout).toMatch(/tensor types, loaded as q4_0\n.*Q4_0/);
  expect(await runNode([cli, 'inspect', demo, '--quantize', 'q3'])).toMatchObject({ code: 2 });
});
