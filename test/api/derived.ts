// Model files derived from another one's: its tensors in other types, with some left out, behind its metadata. So one generation of
// weights in the repository stands for many files.
import { readFileSync, writeFileSync } from 'node:fs';

const STRING = 8;
const ARRAY = 9;
const SIZES: Readonly<Record<number, number>> = { 0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8 };
const F32 = 0;
const F16 = 1;
const Q8_0 = 8;

export type MatrixType = 'f32' | 'f16' | 'q8_0';

interface Tensor {
  name: string;
  dims: number[]; // innermost first
  values: Float32Array;
}

interface Parsed {
  /** key/value pairs as they are, by key */
  metadata: Map<string, Buffer>;
  tensors: Tensor[];
}

export function half(bits: number): number {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const magnitude = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
  return bits & 0x8000 ? -magnitude : magnitude;
}

// To the nearest, ties to even; of finite numbers that are no larger than the largest half.
export function halfBits(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const magnitude = Math.abs(value);
  if (magnitude === 0) return sign;
  const exponent = Math.max(-14, Math.floor(Math.log2(magnitude)));
  const scaled = magnitude * 2 ** (10 - exponent); // 1024 .. 2047, or less where it is subnormal
  const floor = Math.floor(scaled);
  const rest = scaled - floor;
  const rounded = floor + (rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? 1 : 0);
  return sign | (((exponent + 14) << 10) + rounded); // a carry reaches the exponent
}

/** A GGUF file of F32 and F16 tensors. */
function parse(path: string): Parsed {
  const bytes = readFileSync(path);
  let at = 24;
  const u32 = () => bytes.readUInt32LE((at += 4) - 4);
  const u64 = () => Number(bytes.readBigUInt64LE((at += 8) - 8));
  const string = () => {
    const length = u64();
    return bytes.toString('utf8', at, (at += length));
  };
  const skip = (type: number): void => {
    if (type === STRING) string();
    else if (type === ARRAY) for (let of = u32(), n = u64(); n > 0; --n) skip(of);
    else at += SIZES[type] ?? 0;
  };
  const metadata = new Map<string, Buffer>();
  for (let left = Number(bytes.readBigUInt64LE(16)); left > 0; --left) {
    const key = string();
    const begin = at;
    skip(u32());
    metadata.set(key, bytes.subarray(begin, at));
  }
  const infos: { name: string; dims: number[]; type: number; offset: number }[] = [];
  for (let left = Number(bytes.readBigUInt64LE(8)); left > 0; --left) {
    const name = string();
    const dims = Array.from({ length: u32() }, u64);
    infos.push({ name, dims, type: u32(), offset: u64() });
  }
  const start = Math.ceil(at / 32) * 32;
  const tensors = infos.map(({ name, dims, type, offset }): Tensor => {
    const n = dims.reduce((product, dim) => product * dim, 1);
    const values = Float32Array.from({ length: n }, (_, i) =>
      type === F32 ? bytes.readFloatLE(start + offset + 4 * i) : half(bytes.readUInt16LE(start + offset + 2 * i)),
    );
    return { name, dims, values };
  });
  return { metadata, tensors };
}

// As gguf-py's quantisation and llama.cpp's: blocks of 32 with a half as scale.
function q8(values: Float32Array): Buffer {
  const out = Buffer.alloc((values.length / 32) * 34);
  for (let block = 0; block < values.length / 32; ++block) {
    const of = values.subarray(block * 32, block * 32 + 32);
    const most = of.reduce((max, x) => Math.max(max, Math.abs(x)), 0);
    const d = Math.fround(most / 127);
    const inverse = d === 0 ? 0 : Math.fround(1 / d);
    out.writeUInt16LE(halfBits(d), block * 34);
    for (const [i, x] of of.entries()) {
      const scaled = Math.fround(x * inverse);
      out.writeInt8(Math.sign(scaled) * Math.floor(Math.abs(scaled) + 0.5), block * 34 + 2 + i);
    }
  }
  return out;
}

function encoded({ values }: Tensor, type: number): Buffer {
  if (type === Q8_0) return q8(values);
  const out = Buffer.alloc(values.length * (type === F32 ? 4 : 2));
  for (const [i, x] of values.entries()) {
    if (type === F32) out.writeFloatLE(x, 4 * i);
    else out.writeUInt16LE(halfBits(x), 2 * i);
  }
  return out;
}

export interface Derivation {
  /** of the matrices */
  type?: MatrixType;
  /** keys and tensors that are left out */
  without?: RegExp;
  /** other values: a u32 for a key */
  ints?: Readonly<Record<string, number>>;
  /** changes a tensor's values in place */
  change?: (name: string, values: Float32Array) => void;
}

/** Writes the file that a GGUF file of F32 and F16 tensors becomes. */
export function derive(from: string, to: string, { type = 'f16', without, ints = {}, change }: Derivation): string {
  const { metadata, tensors } = parse(from);
  for (const [key, value] of Object.entries(ints)) {
    const bytes = Buffer.alloc(8);
    bytes.writeUInt32LE(4);
    bytes.writeUInt32LE(value, 4);
    metadata.set(key, bytes);
  }
  const wanted = { f32: F32, f16: F16, q8_0: Q8_0 }[type];
  const head: Buffer[] = [];
  const u32 = (n: number) => head.push(Buffer.from(Uint32Array.of(n).buffer));
  const u64 = (n: number) => head.push(Buffer.from(BigUint64Array.of(BigInt(n)).buffer));
  const string = (text: string) => {
    const bytes = Buffer.from(text);
    u64(bytes.length);
    head.push(bytes);
  };
  const isKept = (name: string) => !without?.test(name);
  const keys = [...metadata].filter(([key]) => isKept(key));
  const kept = tensors.filter(({ name }) => isKept(name));
  head.push(Buffer.from('GGUF'));
  u32(3);
  u64(kept.length);
  u64(keys.length);
  for (const [key, value] of keys) {
    string(key);
    head.push(value);
  }
  const data: Buffer[] = [];
  let offset = 0;
  for (const tensor of kept) {
    change?.(tensor.name, tensor.values);
    const isWhole = wanted !== Q8_0 || (tensor.dims[0] ?? 0) % 32 === 0; // as converters do with what makes no blocks
    const its = tensor.dims.length === 1 ? F32 : isWhole ? wanted : F16;
    const bytes = encoded(tensor, its);
    string(tensor.name);
    u32(tensor.dims.length);
    tensor.dims.forEach(u64);
    u32(its);
    u64(offset);
    const padded = Buffer.alloc(Math.ceil(bytes.length / 32) * 32);
    bytes.copy(padded);
    data.push(padded);
    offset += padded.length;
  }
  const front = Buffer.concat(head);
  const padding = Buffer.alloc(Math.ceil(front.length / 32) * 32 - front.length);
  writeFileSync(to, Buffer.concat([front, padding, ...data]));
  return to;
}
