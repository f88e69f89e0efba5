// Merging: what comes of adapters has the logits of PEFT's own unmerged forward, and of the same adapters loaded; means of two models are
// computed here once more, in double precision.
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'; // prettier-ignore
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gemma, type MergeOptions, type Message } from '../../lib/index.js';
import { checkpointOf, readGguf, safetensors, writeCheckpoint } from './checkpoint.js';
import { derive } from './derived.js';
import { cli, data, runNode } from './helpers.js';
import { readJson, Tensors } from './reference.js';

const adapters = join(data, 'adapters');
const base = join(adapters, 'text-f16.gguf');
const golden = readJson<{ ids: number[]; runs: { name: string; adapters: Record<string, number> }[] }>(
  'adapters/adapters.json',
);
const { ids } = golden;
let folder: string;
const out = (name: string) => join(folder, name);

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'gemma-merge-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function logitsOf(model: string, loaded: Record<string, string> = {}, adapter: Record<string, number> = {}) {
  const gemma = await Gemma.load(model, { kvCache: 'f32', mmproj: false, adapters: loaded });
  try {
    return (await gemma.logits(ids, { adapter })).data;
  } finally {
    await gemma.dispose();
  }
}

/** Root of the mean square difference, of the deviation of what is expected. */
function difference(found: Float32Array, expected: Float32Array): number {
  const mean = expected.reduce((sum, value) => sum + value, 0) / expected.length;
  let error = 0;
  let size = 0;
  expected.forEach((value, i) => {
    error += ((found[i] ?? NaN) - value) ** 2;
    size += (value - mean) ** 2;
  });
  return Math.sqrt(error / size);
}

describe('adapters', () => {
  const tensors = new Tensors('adapters/logits.safetensors');
  const runs = golden.runs.filter(({ name }) => name !== 'base-text' && name !== 'lora-bias');
  // float32 differs from float64 by 5e-6; every adapter moves the logits by more than 1.
  test.each(runs)('$name', async ({ name }) => {
    const path = out(`${name}.merged.gguf`);
    const result = await Gemma.merge(base, path, { adapters: [join(adapters, name)], type: 'f32' });
    expect(result.changedTensors).toBeGreaterThan(0);
    const found = await logitsOf(path);
    expect(difference(found, tensors.f32(name))).toBeLessThan(3e-5);
    expect(difference(found, await logitsOf(base, { it: join(adapters, name) }, { it: 1 }))).toBeLessThan(3e-5);
  });

  test.each<Record<string, number>>([
    { bf16: 0.5 },
    { dora: 0.7 },
    { bf16: 1, 'rs-patterns': -0.5 },
    { bf16: 0.25, dora: 1.5 },
    { head: 0.5, embed: 2 },
    { 'token-rows': 1, bf16: 1 },
    { 'saved-norm': 1, 'qv-layer0': 0.3 },
    { 'embed-tied': 1, 'token-rows': 1 },
  ])('%j', async (scales) => {
    const names = Object.keys(scales);
    const path = out('several.gguf');
    const list = names.map((name) => ({ path: join(adapters, name), scale: scales[name] ?? 0 }));
    await Gemma.merge(base, path, { adapters: list, type: 'f32', overwrite: true });
    const loaded = Object.fromEntries(names.map((name) => [name, join(adapters, name)]));
    expect(difference(await logitsOf(path), await logitsOf(base, loaded, scales))).toBeLessThan(3e-5);
  });
});

describe('a vision encoder', () => {
  const model = join(data, 'mm-a-f16.gguf');
  const mmproj = join(data, 'mmproj-mm-a-f16.gguf');
  const pixels = new Uint8Array(24 * 24 * 3).map((_, i) => i * 7);
  const seen = [
    { role: 'user', content: [{ type: 'image', image: { data: pixels, width: 24, height: 24, channels: 3 } }, { type: 'text', text: 'What?' }] }, // prettier-ignore
  ] as Message[];

  // A LoRA of rank 2 for matrices of both halves.
  function writeAdapter(path: string): string {
    let state = 1;
    const random = () => ((state = (state * 48271) % 2147483647) / 2147483647 - 0.5) * 0.3;
    const pair = (module: string, nOut: number, nIn: number) => {
      const tensor = (rows: number, columns: number) => ({ dtype: 'F32', shape: [rows, columns], data: Buffer.from(Float32Array.from({ length: rows * columns }, random).buffer) }); // prettier-ignore
      const name = `base_model.model.model.${module}`;
      return [
        [`${name}.lora_A.weight`, tensor(2, nIn)],
        [`${name}.lora_B.weight`, tensor(nOut, 2)],
      ] as const;
    };
    const tensors = new Map([
      ...pair('vision_tower.vision_model.encoder.layers.1.self_attn.q_proj', 144, 144),
      ...pair('vision_tower.vision_model.encoder.layers.0.mlp.fc1', 200, 144),
      ...pair('language_model.layers.2.self_attn.o_proj', 64, 128),
    ]);
    mkdirSync(path);
    writeFileSync(join(path, 'adapter_model.safetensors'), safetensors(tensors));
    writeFileSync(join(path, 'adapter_config.json'), JSON.stringify({ peft_type: 'LORA', r: 2, lora_alpha: 4 }));
    return path;
  }

  const look = async (path: string, options: object, adapter: Record<string, number> = {}) => {
    const gemma = await Gemma.load(path, { kvCache: 'f32', visionPrecision: 'exact', ...options });
    try {
      return (await gemma.logits(seen, { adapter })).data;
    } finally {
      await gemma.dispose();
    }
  };

  test('adapters that change it, of a file and of a folder', async () => {
    const adapter = writeAdapter(out('sees'));
    const expected = await look(model, { mmproj, adapters: { it: adapter } }, { it: 0.5 });
    expect(difference(await look(model, { mmproj }), expected)).toBeGreaterThan(0.01);
    const list = [{ path: adapter, scale: 0.5 }];
    const types = { type: 'f32', mmprojType: 'f32' } as const;
    const result = await Gemma.merge(model, out('seen.gguf'), { adapters: list, mmproj, ...types });
    expect(result).toMatchObject({ changedTensors: 3, mmproj: { path: out('mmproj-seen.gguf') } });
    expect(difference(await look(out('seen.gguf'), {}), expected)).toBeLessThan(3e-5);
    const from = writeCheckpoint(out('checkpoint'), checkpointOf(model, mmproj, { layout: 'new' }));
    const named = out('other-name.gguf');
    await Gemma.merge(from, out('of-folder.gguf'), { adapters: list, mmprojOutput: named, ...types });
    expect(readFileSync(named).equals(readFileSync(out('mmproj-seen.gguf')))).toBe(false); // other keys
    expect(await look(out('of-folder.gguf'), { mmproj: named })).toEqual(await look(out('seen.gguf'), {}));
    await expect(
      Gemma.merge(from, out('none.gguf'), { adapters: list, mmprojOutput: false, type: 'f16' }),
    ).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT', detail: 'NO_MMPROJ' });
    await expect(Gemma.merge(model, out('none.gguf'), { adapters: list, type: 'f16' })).rejects.toMatchObject({
      code: 'ERR_ADAPTER_INVALID',
    });
    expect(existsSync(out('none.gguf'))).toBe(false);
  });
});

// As mergekit computes them (merge_methods/slerp.py), in double precision; norms of Gemma as checkpoints store them.
describe('a mean of two models', () => {
  let other: string;
  beforeAll(() => {
    let state = 7;
    const random = () => (state = (state * 48271) % 2147483647) / 2147483647 - 0.5;
    other = derive(base, out('other.gguf'), {
      type: 'f32',
      change: (name, values) => {
        // Some tensors nearly parallel, some far from it.
        const size = name.includes('attn_v') ? 1e-4 : 0.2;
        values.forEach((value, i) => (values[i] = value + size * random()));
      },
    });
  });

  const floats = (path: string) =>
    new Map([...readGguf(path).tensors].map(([name, { dtype, data: bytes }]) => {
      const own = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
      return [name, dtype === 'F32' ? new Float32Array(own) : Float32Array.from(new Uint16Array(own), toFloat)];
    })); // prettier-ignore

  function toFloat(half: number): number {
    const exponent = (half >> 10) & 31;
    const sign = half & 0x8000 ? -1 : 1;
    return sign * (exponent === 0 ? (half & 1023) * 2 ** -24 : (1 + (half & 1023) / 1024) * 2 ** (exponent - 15));
  }

  function mean(a: Float32Array, b: Float32Array, t: number, isArc: boolean, one: number): Float64Array {
    let [ofA, ofB] = [1 - t, t];
    let [aa, ab, bb] = [0, 0, 0];
    a.forEach((x, i) => {
      const y = (b[i] ?? NaN) - one;
      aa += (x - one) ** 2;
      ab += (x - one) * y;
      bb += y ** 2;
    });
    const cosine = ab / Math.sqrt(aa * bb);
    if (isArc && Math.abs(cosine) <= 0.9995) {
      const angle = Math.acos(cosine);
      ofA = Math.sin((1 - t) * angle) / Math.sin(angle);
      ofB = Math.sin(t * angle) / Math.sin(angle);
    }
    return Float64Array.from(a, (x, i) => ofA * (x - one) + ofB * ((b[i] ?? NaN) - one) + one);
  }

  test.each([
    ['linear', 0.5],
    ['linear', 0.125],
    ['slerp', 0.5],
    ['slerp', 0.9],
    ['linear', 1],
    ['slerp', 0],
  ] as const)('%s, %d', async (method, weight) => {
    const path = out('mean.gguf');
    const weights = { 'blk.1.*': 0.25, 'blk.?.ffn_*': 0 };
    await Gemma.merge(base, path, { with: { model: other, method, weight, weights }, type: 'f32', overwrite: true });
    const [a, b, found] = [base, other, path].map(floats);
    expect([...(found?.keys() ?? [])]).toEqual([...(a?.keys() ?? [])]);
    for (const [name, values] of found ?? []) {
      const t = name.startsWith('blk.1.') ? 0.25 : /^blk\.\d\.ffn_/.test(name) ? 0 : weight;
      const one = name.endsWith('norm.weight') ? 1 : 0;
      const expected = mean(a?.get(name) ?? new Float32Array(), b?.get(name) ?? new Float32Array(), t, method === 'slerp', one); // prettier-ignore
      const worst = expected.reduce(
        (most, value, i) => Math.max(most, Math.abs(value - (values[i] ?? NaN)) / (Math.abs(value) + 2 ** -40)),
        0,
      );
      expect([name, worst <= 2 ** -23]).toEqual([name, true]);
    }
    expect((await logitsOf(path)).every(Number.isFinite)).toBe(true);
  });

  test('a folder with a file, both halves of vision models', async () => {
    const files = ['mm-a-f16.gguf', 'mmproj-mm-a-f16.gguf'].map((name) => join(data, name)) as [string, string];
    const from = writeCheckpoint(out('half'), checkpointOf(...files, { layout: 'old' }));
    const same = writeCheckpoint(out('other-half'), checkpointOf(...files, { layout: 'new', dtype: 'F32' }));
    const result = await Gemma.merge(from, out('halves.gguf'), { with: { model: same }, type: 'f16' });
    expect(result.changedTensors).toBeGreaterThan(100);
    // The mean of equals is what they are.
    for (const [mixed, file] of [
      ['halves.gguf', files[0]],
      ['mmproj-halves.gguf', files[1]],
    ] as const) {
      const [found, expected] = [readGguf(out(mixed)).tensors, readGguf(file).tensors];
      for (const [name, tensor] of expected) expect(found.get(name)?.data.equals(tensor.data)).toBe(true);
    }
    await expect(Gemma.merge(from, out('no.gguf'), { with: { model: files[0] }, type: 'f16' })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      detail: 'OTHER_MODEL',
    });
    const mixed = await Gemma.merge(files[1], out('encoders.gguf'), { with: { model: files[1] }, type: 'f16' });
    expect(mixed.mmproj).toBeUndefined();
    const found = readGguf(out('encoders.gguf')).tensors;
    for (const [name, { data: bytes }] of readGguf(files[1]).tensors) {
      expect(found.get(name)?.data.equals(bytes)).toBe(true);
    }
  });
});

test('what cannot be is refused, and nothing is left in place', async () => {
  const lora = join(adapters, 'bf16');
  const refused = async (options: Omit<MergeOptions, 'type'>, model = base, path = out('no.gguf')) => {
    const error: unknown = await Gemma.merge(model, path, { type: 'f16', ...options }).catch(
      (reason: unknown) => reason,
    );
    return (error as { detail?: string }).detail;
  };
  expect(await refused({ adapters: [join(adapters, 'lora-bias')] })).toBe('UNSUPPORTED');
  expect(await refused({ adapters: [join(adapters, 'embed'), join(adapters, 'token-rows'), join(adapters, 'token-rows')] })).toBe('CONFLICT'); // prettier-ignore
  expect(await refused({ adapters: [lora] }, join(data, 'text-a-f16.gguf'))).toBe('BAD_TENSOR');
  expect(await refused({ with: { model: join(data, 'text-a-f16.gguf') } })).toBe('OTHER_MODEL');
  expect(await refused({ with: { model: base, weights: { 'blk.77.*': 1 } } })).toBe('NO_SUCH_TENSOR');
  expect(await refused({ adapters: [lora], mmprojOutput: out('x.gguf') })).toBe('NO_MMPROJ');
  const quantised = out('q8.gguf');
  await Gemma.quantize(base, quantised, { type: 'q8_0' });
  expect(await refused({ adapters: [lora] }, quantised)).toBe('REQUANTIZE');
  const copy = out('copy.gguf');
  copyFileSync(base, copy);
  expect(await refused({ adapters: [lora], overwrite: true }, base, base)).toBe('SAME_FILE');
  expect(await refused({ with: { model: copy }, overwrite: true }, base, copy)).toBe('SAME_FILE');
  copyFileSync(base, `${copy}.part`);
  expect(await refused({ with: { model: `${copy}.part` }, overwrite: true }, base, copy)).toBe('SAME_FILE');
  const own = out('own-adapter');
  mkdirSync(own);
  for (const file of readdirSync(lora)) copyFileSync(join(lora, file), join(own, file));
  expect(await refused({ adapters: [own], overwrite: true }, base, join(own, 'adapter_model.safetensors'))).toBe('SAME_FILE'); // prettier-ignore
  expect(await refused({ adapters: [lora] }, base, copy)).toBe('FILE_EXISTS');
  expect(existsSync(out('no.gguf'))).toBe(false);

  const wrong = (options: object) => Gemma.merge(base, out('no.gguf'), { type: 'f16', ...options });
  await expect(wrong({})).rejects.toThrow(TypeError);
  await expect(wrong({ adapters: [lora], with: { model: base } })).rejects.toThrow(TypeError);
  await expect(wrong({ adapters: [] })).rejects.toThrow(RangeError);
  await expect(wrong({ adapters: lora })).rejects.toThrow(TypeError);
  await expect(wrong({ adapters: [{ path: lora, scale: NaN }] })).rejects.toThrow(RangeError);
  await expect(wrong({ adapters: [{ path: lora, size: 1 }] })).rejects.toThrow('size');
  await expect(wrong({ with: { model: base, weight: 1.1 } })).rejects.toThrow(RangeError);
  await expect(wrong({ with: { model: base, weight: -0.1 } })).rejects.toThrow(RangeError);
  await expect(wrong({ with: { model: base, method: 'cubic' } })).rejects.toThrow('method');
  await expect(wrong({ with: { model: base, weights: { '*': 2 } } })).rejects.toThrow(RangeError);
  await expect(wrong({ with: base })).rejects.toThrow(TypeError);
  await expect(wrong({ with: { model: base }, mmproj: base })).rejects.toThrow('mmproj');
  await expect(wrong({ adapter: lora })).rejects.toThrow('adapter');
});

test('what was aborted at any moment goes on, to the same bytes', async () => {
  const options: MergeOptions = {
    adapters: [{ path: join(adapters, 'dora'), scale: 0.7 }],
    type: 'q8_0',
    overwrite: true,
  };
  const whole = out('whole.gguf');
  await Gemma.merge(base, whole, options);
  const path = out('aborted.gguf');
  for (let turns = 0; turns < 24; ++turns) {
    const controller = new AbortController();
    const merging = Gemma.merge(base, path, { ...options, signal: controller.signal });
    for (let i = 0; i < turns ** 2; ++i) await new Promise(setImmediate);
    controller.abort(new Error('mine'));
    await merging.catch((error: unknown) => expect(error).toMatchObject({ message: 'mine' }));
  }
  await Gemma.merge(base, path, options);
  expect(readFileSync(path).equals(readFileSync(whole))).toBe(true);
  expect(existsSync(`${path}.part`)).toBe(false);
});

test('the command line', async () => {
  const path = out('cli.gguf');
  const merge = (...args: string[]) => runNode([cli, 'merge', base, path, '--overwrite', '--json', ...args]);
  const lora = join(adapters, 'bf16');
  const { code, stdout } = await merge('--adapter', `${lora}=0.5`, '--type', 'f32');
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({ path, bytes: statSync(path).size });
  expect(difference(await logitsOf(path), await logitsOf(base, { it: lora }, { it: 0.5 }))).toBeLessThan(3e-5);
  const mixed = await merge('--with', base, '--method', 'slerp', '--weight', '0.3', '--tensor-weight', 'blk.0.*=0', '--type', 'f16'); // prettier-ignore
  expect(JSON.parse(mixed.stdout)).toMatchObject({ path });
  expect((await merge('--type', 'f16')).code).toBe(2);
  expect((await merge('--adapter', lora, '--weight', '0.5', '--type', 'f16')).code).toBe(2);
});
