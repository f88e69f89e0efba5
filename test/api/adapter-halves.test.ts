// Adapters in 32-bit floats beside quantised matrices: kept as halves times a power of two. PEFT's logits within the error of the
// matrices' own quantisation, and the same bits where nothing is rounded.
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gemma } from '../../lib/index.js';
import { safetensors } from './checkpoint.js';
import { derive, half, halfBits } from './derived.js';
import { data } from './helpers.js';
import { readJson, Tensors } from './reference.js';

const folder = join(data, 'adapters');
const golden = readJson<{ ids: number[]; runs: { name: string; adapters: Record<string, number> }[] }>(
  'adapters/adapters.json',
);
const names = [...new Set(golden.runs.flatMap(({ adapters }) => Object.keys(adapters)))];

let scratch: string;
let gemma: Gemma;
beforeAll(async () => {
  scratch = mkdtempSync(join(tmpdir(), 'gemma-halves-'));
  const base = derive(join(folder, 'text-f16.gguf'), join(scratch, 'q8_0.gguf'), { type: 'q8_0' });
  const adapters = Object.fromEntries(names.map((name) => [name, join(folder, name)]));
  gemma = await Gemma.load(base, { kvCache: 'f32', adapters });
});
afterAll(async () => {
  await gemma.dispose();
  rmSync(scratch, { recursive: true });
});

type Change = (name: string, value: number) => number;

/** A copy of an adapter whose matrices' values are changed, as F32 or F16. */
function changed(of: string, name: string, dtype: 'F32' | 'F16', change: Change): string {
  const copy = join(scratch, name);
  cpSync(join(folder, of), copy, { recursive: true });
  const file = join(copy, 'adapter_model.safetensors');
  const bytes = readFileSync(file);
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString('utf8', 8, start)) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  const tensors = new Map<string, { dtype: string; shape: number[]; data: Buffer }>();
  for (const [tensor, info] of Object.entries(header)) {
    if (tensor === '__metadata__') continue;
    const from = bytes.subarray(start + info.data_offsets[0], start + info.data_offsets[1]);
    if (!/lora_[AB]/.test(tensor)) {
      tensors.set(tensor, { dtype: info.dtype, shape: info.shape, data: from });
      continue;
    }
    const to = Buffer.alloc(dtype === 'F32' ? from.length : from.length / 2);
    for (let i = 0; i < from.length / 4; ++i) {
      const value = change(tensor, from.readFloatLE(4 * i));
      if (dtype === 'F32') to.writeFloatLE(value, 4 * i);
      else to.writeUInt16LE(halfBits(value), 2 * i);
    }
    tensors.set(tensor, { dtype, shape: info.shape, data: to });
  }
  writeFileSync(file, safetensors(tensors));
  return copy;
}

async function logitsOf(path: string): Promise<Float32Array> {
  await gemma.loadAdapter('changed', path);
  const { data: logits } = await gemma.logits(golden.ids, { adapter: { changed: 0.75 } });
  await gemma.unloadAdapter('changed');
  return logits;
}

const tensors = new Tensors('adapters/logits.safetensors');
test.each(golden.runs)('$name: logits of PEFT, within the error of the matrices', async ({ name, adapters }) => {
  const { data: logits } = await gemma.logits(golden.ids, { adapter: adapters });
  const expected = tensors.f32(name);
  const mean = expected.reduce((sum, value) => sum + value, 0) / expected.length;
  const squares = (of: (value: number, i: number) => number) =>
    expected.reduce((sum, value, i) => sum + of(value, i) ** 2, 0);
  const error = squares((value, i) => (logits[i] ?? NaN) - value) / squares((value) => value - mean);
  expect(Math.sqrt(error)).toBeLessThan(0.15);
});

test.each(['dora', 'head'])('%s in halves: the same bits as floats and as halves', async (of) => {
  const rounded: Change = (_, value) => half(halfBits(value));
  const floats = await logitsOf(changed(of, `${of}-floats`, 'F32', rounded));
  expect(await logitsOf(changed(of, `${of}-halves`, 'F16', rounded))).toEqual(floats);
});

test.each(['dora', 'head'])('%s: a power of two from A to B changes nothing', async (of) => {
  const plain = await logitsOf(changed(of, `${of}-plain`, 'F32', (_, value) => value));
  for (const power of [-40, 30]) {
    const moved: Change = (name, value) => value * 2 ** (name.includes('lora_A') ? power : -power);
    expect(await logitsOf(changed(of, `${of}-moved-${power}`, 'F32', moved))).toEqual(plain);
  }
});

test('half the memory, as planned', async () => {
  const adapters = { plain: join(folder, 'head') };
  const [halves, floats] = await Promise.all(
    [join(scratch, 'q8_0.gguf'), join(folder, 'text-f16.gguf')].map((model) => Gemma.estimate(model, { adapters })),
  );
  expect(halves?.adapterBytes).toBe(gemma.adapters.find(({ name }) => name === 'head')?.bytes);
  expect(halves?.adapterBytes).toBeLessThan(floats?.adapterBytes ?? 0);
});
