// Model files with other metadata: the demonstration model's tensors behind keys that a test chooses.
import { readFileSync, writeFileSync } from 'node:fs';
import { Gemma } from '../../lib/index.js';

const UINT32 = 4;
const INT32 = 5;
const STRING = 8;
const ARRAY = 9;
const SIZES: Readonly<Record<number, number>> = { 0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8 };

/** A value as the file stores it, its type included. */
type Stored = Buffer;

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value);
  return Buffer.concat([u64(bytes.length), bytes]);
}

export const stored = {
  string: (value: string): Stored => Buffer.concat([u32(STRING), text(value)]),
  int: (value: number): Stored => Buffer.concat([u32(UINT32), u32(value)]),
  ints: (values: readonly number[]): Stored =>
    Buffer.concat([u32(ARRAY), u32(INT32), u64(values.length), ...values.map(u32)]),
  strings: (values: readonly string[]): Stored =>
    Buffer.concat([u32(ARRAY), u32(STRING), u64(values.length), ...values.map(text)]),
};

/** The key/value pairs of a GGUF file, and what stands behind them. */
class Metadata {
  readonly values = new Map<string, Stored>();
  readonly #bytes: Buffer;
  readonly #infosAt: number;
  readonly #infosEnd: number;
  readonly #dataAt: number;

  constructor(path: string) {
    this.#bytes = readFileSync(path);
    let at = 24;
    const number = () => Number(this.#bytes.readBigUInt64LE((at += 8) - 8));
    const skip = (type: number): void => {
      if (type === STRING) {
        const length = number();
        at += length;
      } else if (type === ARRAY) {
        const of = this.#bytes.readUInt32LE(at);
        at += 4;
        const n = number();
        if (of === STRING) for (let i = 0; i < n; ++i) skip(of);
        else at += n * (SIZES[of] ?? 0);
      } else at += SIZES[type] ?? 0;
    };
    for (let left = Number(this.#bytes.readBigUInt64LE(16)); left > 0; --left) {
      const length = number();
      const key = this.#bytes.toString('utf8', at, at + length);
      at += length;
      const begin = at;
      at += 4;
      skip(this.#bytes.readUInt32LE(begin));
      this.values.set(key, this.#bytes.subarray(begin, at));
    }
    this.#infosAt = at;
    for (let left = Number(this.#bytes.readBigUInt64LE(8)); left > 0; --left) {
      const length = number();
      at += length;
      at += 4 + this.#bytes.readUInt32LE(at) * 8 + 4 + 8;
    }
    this.#infosEnd = at;
    this.#dataAt = Math.ceil(at / 32) * 32;
  }

  /** The items of an array of strings. */
  strings(key: string): string[] {
    const bytes = this.values.get(key) as Buffer;
    const items: string[] = [];
    for (let at = 16; at < bytes.length;) {
      const length = Number(bytes.readBigUInt64LE(at));
      items.push(bytes.toString('utf8', at + 8, at + 8 + length));
      at += 8 + length;
    }
    return items;
  }
  /** The items of an array of 32-bit integers. */
  ints(key: string): number[] {
    const bytes = this.values.get(key) as Buffer;
    return Array.from({ length: (bytes.length - 16) / 4 }, (_, i) => bytes.readInt32LE(16 + 4 * i));
  }

  write(path: string): void {
    const head = Buffer.from(this.#bytes.subarray(0, 24));
    head.writeBigUInt64LE(BigInt(this.values.size), 16);
    const pairs = [...this.values].flatMap(([key, value]) => [text(key), value]);
    const front = Buffer.concat([head, ...pairs, this.#bytes.subarray(this.#infosAt, this.#infosEnd)]);
    const padding = Buffer.alloc(Math.ceil(front.length / 32) * 32 - front.length);
    writeFileSync(path, Buffer.concat([front, padding, this.#bytes.subarray(this.#dataAt)]));
  }
}

export interface Changes {
  /** undefined: the key is left out */
  keys?: Readonly<Record<string, Stored | undefined>>;
  /** other texts of tokens, by id, with their type (3: control, 4: user-defined) */
  tokens?: Readonly<Record<number, readonly [string, number]>>;
}

/** Writes a model, default: the demonstration model, with changed metadata. */
export function writeModel(path: string, { keys = {}, tokens = {} }: Changes, base = Gemma.demoModel): string {
  const file = new Metadata(base);
  for (const [key, value] of Object.entries(keys)) {
    if (value) file.values.set(key, value);
    else file.values.delete(key);
  }
  if (Object.keys(tokens).length > 0) {
    const texts = file.strings('tokenizer.ggml.tokens');
    const types = file.ints('tokenizer.ggml.token_type');
    for (const [id, [name, type]] of Object.entries(tokens)) {
      texts[Number(id)] = name;
      types[Number(id)] = type;
    }
    file.values.set('tokenizer.ggml.tokens', stored.strings(texts));
    file.values.set('tokenizer.ggml.token_type', stored.ints(types));
  }
  file.write(path);
  return path;
}
