// Reading golden data and comparing logits with it. Every comparison is written so that NaN fails.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { data } from './helpers';

export interface GoldenCase {
  name: string;
  text?: string;
  ids: number[];
  greedy_ids?: number[];
  greedy_gap?: number[];
  greedy_text?: string;
}

export interface Golden {
  tensors: string;
  vocab_size: number;
  cases: GoldenCase[];
}

/**
 * Prompts and how the pretrained Gemma 3 270M goes on greedily, by Hugging Face transformers and llama.cpp alike: as far as the
 * best logit leads by more than the noise of 8-bit activations (after "It is the" it leads by 0.014).
 */
export const continuations: [prompt: string, continuation: string][] = [
  ['The capital of France is', ' the capital of the country of France. It is the'],
  ['1, 2, 3, 4, 5,', ' 6, 7, 8, 9, 10, 11, 12,'],
  ['def fibonacci(n):', '\n    if n == 0:\n        return 0\n    elif n == 1:\n        return'],
];

export function readJson<T>(name: string): T {
  return JSON.parse(readFileSync(join(data, name), 'utf8')) as T;
}

type Header = Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;

/** A .safetensors file: 8 bytes of header length, a JSON header, little-endian data. */
export class Tensors {
  readonly #bytes: Buffer;
  readonly #start: number;
  readonly #header: Header;

  constructor(name: string) {
    this.#bytes = readFileSync(join(data, name));
    const length = Number(this.#bytes.readBigUInt64LE(0));
    this.#start = 8 + length;
    this.#header = JSON.parse(this.#bytes.toString('utf8', 8, this.#start)) as Header;
  }

  has(name: string): boolean {
    return name in this.#header;
  }

  #slice(name: string, dtype: string): ArrayBuffer {
    const entry = this.#header[name];
    if (entry?.dtype !== dtype) throw new Error(`${name}: expected ${dtype}, found ${entry?.dtype ?? 'nothing'}`);
    const [from, to] = entry.data_offsets;
    const copy = new ArrayBuffer(to - from);
    new Uint8Array(copy).set(this.#bytes.subarray(this.#start + from, this.#start + to));
    return copy;
  }

  f32(name: string): Float32Array {
    return new Float32Array(this.#slice(name, 'F32'));
  }
  f64(name: string): Float64Array {
    return new Float64Array(this.#slice(name, 'F64'));
  }
  i32(name: string): Int32Array {
    return new Int32Array(this.#slice(name, 'I32'));
  }
  u8(name: string): Uint8Array {
    return new Uint8Array(this.#slice(name, 'U8'));
  }
}

export interface Distance {
  /** RMS of the difference over RMS of the reference about its mean, the largest of all positions and over all */
  nrmseMax: number;
  nrmse: number;
  /** mean KL(reference || got), nats */
  kl: number;
  /** share of positions with the same best token */
  top1: number;
}

export function logSumExp(row: Float32Array): number {
  let max = -Infinity;
  for (const x of row) if (!(x <= max)) max = x; // a NaN becomes the maximum and stays
  let sum = 0;
  for (const x of row) sum += Math.exp(x - max);
  return max + Math.log(sum);
}

export function argmax(row: Float32Array): number {
  let best = 0;
  for (let i = 1; i < row.length; ++i) if ((row[i] ?? NaN) > (row[best] ?? NaN)) best = i;
  return best;
}

/** Both [positions, vocabulary], row-major. */
export function distance(reference: Float32Array, got: Float32Array, vocabulary: number): Distance {
  if (reference.length !== got.length || reference.length === 0 || reference.length % vocabulary !== 0) {
    throw new Error(`sizes differ: ${reference.length} and ${got.length} values, vocabulary ${vocabulary}`);
  }
  const positions = reference.length / vocabulary;
  let [nrmseMax, squares, variances, kl, same] = [0, 0, 0, 0, 0];
  for (let p = 0; p < positions; ++p) {
    const a = reference.subarray(p * vocabulary, (p + 1) * vocabulary);
    const b = got.subarray(p * vocabulary, (p + 1) * vocabulary);
    const mean = a.reduce((sum, x) => sum + x, 0) / vocabulary;
    const [sumA, sumB] = [logSumExp(a), logSumExp(b)];
    let [square, variance] = [0, 0];
    for (let i = 0; i < vocabulary; ++i) {
      const [x, y] = [a[i] ?? NaN, b[i] ?? NaN];
      square += (x - y) ** 2;
      variance += (x - mean) ** 2;
      kl += Math.exp(x - sumA) * (x - sumA - (y - sumB));
    }
    const nrmse = Math.sqrt(square / variance);
    if (!(nrmse <= nrmseMax)) nrmseMax = nrmse;
    squares += square;
    variances += variance;
    if (argmax(a) === argmax(b)) ++same;
  }
  return { nrmseMax, nrmse: Math.sqrt(squares / variances), kl: kl / positions, top1: same / positions };
}

/** How many leading ids agree, where a first difference at a step whose gap is below the noise is no difference. */
export function greedyAgrees(golden: GoldenCase, got: readonly number[], noise: number): boolean {
  const { greedy_ids: ids = [], greedy_gap: gaps = [] } = golden;
  for (let i = 0; i < ids.length; ++i) {
    if (ids[i] === got[i]) continue;
    return (gaps[i] ?? Infinity) < noise;
  }
  return ids.length > 0;
}
