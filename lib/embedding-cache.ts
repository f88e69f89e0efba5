// Embeddings of pictures by what is in them, so that no picture is encoded twice: in memory up to a limit, what was used longest
// ago goes first; optionally in a folder, for the next process. A file that is cut or damaged counts as absent.
import { randomUUID, webcrypto } from 'node:crypto';
import { mkdir, open, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

const MAGIC = Buffer.from('gemma-native embedding 1\n\0\0\0\0\0\0\0', 'latin1'); // 32 bytes, so that the floats are aligned
const HEADER = MAGIC.length + 32; // and the SHA-256 of the floats; they follow, little-endian

/** Hex SHA-256, computed on another thread. */
export async function digest(data: Uint8Array): Promise<string> {
  return Buffer.from(await webcrypto.subtle.digest('SHA-256', data)).toString('hex');
}

/**
 * What tells a file from others without reading all of its gigabytes: its length, its first MiB (the headers) and 64 blocks
 * spread over the rest.
 */
export async function fileIdentity(path: string): Promise<string> {
  const file = await open(path);
  try {
    const { size } = await file.stat();
    const places = [0, ...Array.from({ length: 64 }, (_, i) => Math.floor(((i + 1) * size) / 65))];
    const blocks: Uint8Array[] = [Buffer.from(String(size))];
    for (const place of places) {
      const block = Buffer.alloc(Math.min(size, place === 0 ? 1 << 20 : 4096));
      const { bytesRead } = await file.read(block, 0, block.length, place);
      blocks.push(block.subarray(0, bytesRead));
    }
    return await digest(Buffer.concat(blocks));
  } finally {
    await file.close();
  }
}

/** Holds arrays by key; nobody may change an array that went in or came out. */
export class EmbeddingCache {
  readonly #entries = new Map<string, Float32Array>(); // the latest used last
  readonly #maxBytes: number;
  readonly #folder: { path: string; identity: () => Promise<string> } | undefined;
  #identity: Promise<string> | undefined;
  #bytes = 0;

  /** `identity`: of everything but the picture that an embedding depends on; part of the names of files. */
  constructor(maxBytes: number, folder?: { path: string; identity: () => Promise<string> }) {
    this.#maxBytes = maxBytes;
    this.#folder = folder;
  }

  /** The embedding of this many values; undefined when there is none. */
  async get(key: string, length: number): Promise<Float32Array | undefined> {
    const found = this.#entries.get(key);
    if (found) {
      this.#entries.delete(key);
      this.#entries.set(key, found);
      return found;
    }
    if (!this.#folder) return undefined;
    const stored = await this.#read(key, length);
    if (stored) this.#keep(key, stored);
    return stored;
  }

  async set(key: string, embedding: Float32Array): Promise<void> {
    this.#keep(key, embedding);
    if (this.#folder) await this.#write(key, embedding);
  }

  #keep(key: string, embedding: Float32Array): void {
    if (embedding.byteLength > this.#maxBytes) return;
    this.#bytes += embedding.byteLength - (this.#entries.get(key)?.byteLength ?? 0);
    this.#entries.delete(key);
    this.#entries.set(key, embedding);
    for (const [oldest, { byteLength }] of this.#entries) {
      if (this.#bytes <= this.#maxBytes) break;
      this.#entries.delete(oldest);
      this.#bytes -= byteLength;
    }
  }

  async #path(key: string): Promise<string> {
    const { path, identity } = this.#folder ?? { path: '', identity: async () => '' };
    this.#identity ??= identity();
    return join(path, `${await digest(Buffer.from(`${await this.#identity} ${key}`))}.embedding`);
  }

  async #read(key: string, length: number): Promise<Float32Array | undefined> {
    const path = await this.#path(key);
    let bytes: Buffer;
    try {
      bytes = await readFile(path);
    } catch {
      return undefined;
    }
    const floats = new Uint8Array(length * 4);
    floats.set(bytes.subarray(HEADER, HEADER + floats.length));
    const sound =
      bytes.length === HEADER + floats.length &&
      bytes.subarray(0, MAGIC.length).equals(MAGIC) &&
      bytes.toString('hex', MAGIC.length, HEADER) === (await digest(floats));
    if (sound) return new Float32Array(floats.buffer);
    await rm(path, { force: true }).catch(() => {});
    return undefined;
  }

  // Under another name first: whoever reads finds a whole file or none. A full or read-only disk costs time, not the answer.
  async #write(key: string, embedding: Float32Array): Promise<void> {
    const path = await this.#path(key);
    const unfinished = `${path}.${randomUUID()}`;
    const floats = new Uint8Array(embedding.buffer, embedding.byteOffset, embedding.byteLength);
    try {
      await mkdir(this.#folder?.path ?? '', { recursive: true });
      await writeFile(unfinished, Buffer.concat([MAGIC, Buffer.from(await digest(floats), 'hex'), floats]));
      await rename(unfinished, path);
    } catch {
      await rm(unfinished, { force: true }).catch(() => {});
    }
  }
}
