// Embeddings of pictures by what is in them, so that no picture is encoded twice: in memory up to a limit, what was used longest
// ago goes first; optionally in a folder, for the next process. Others may write to that folder: what is not a file of ours, whole
// and sound, counts as absent, and is replaced.
import { constants } from 'node:fs';
import { mkdir, open, readdir, rename, rm, stat, type FileHandle, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

// Neither a link is followed nor a pipe waited for. Windows has no such flags, and no such files.
const {
  O_RDONLY,
  O_NOFOLLOW = 0,
  O_NONBLOCK = 0,
}: { O_RDONLY: number; O_NOFOLLOW?: number; O_NONBLOCK?: number } = constants;

// Files that wait to be written. More are not kept: a disk that is so slow is no help, and the waiting ones take memory.
const MAX_WAITING = 32;

const MAGIC = Buffer.from('gemma-native embedding 1\n\0\0\0\0\0\0\0', 'latin1'); // 32 bytes, so that the floats are aligned
const HEADER = MAGIC.length + 32; // and the SHA-256 of the floats; they follow, little-endian

/** Hex SHA-256, computed on another thread. */
export async function digest(data: Uint8Array): Promise<string> {
  return Buffer.from(await crypto.subtle.digest('SHA-256', data)).toString('hex');
}

/**
 * What tells a file from others without reading all of its gigabytes: its length, its first MiB (the headers) and 64 blocks
 * spread over the rest. Of a checkpoint's folder, its files together.
 */
export async function fileIdentity(path: string): Promise<string> {
  if ((await stat(path)).isDirectory()) {
    const files = (await readdir(path)).filter((name) => /\.(?:json|safetensors)$/.test(name)).sort();
    return digest(Buffer.from((await Promise.all(files.map((name) => fileIdentity(join(path, name))))).join()));
  }
  const file = await open(path, O_RDONLY | O_NONBLOCK);
  try {
    const status = await file.stat();
    if (!status.isFile()) throw new Error('not a regular file');
    const { size } = status;
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

/** Fills `bytes` from a place in the file; false when the file ends before. */
async function readWhole(file: FileHandle, bytes: Uint8Array, from: number): Promise<boolean> {
  for (let done = 0; done < bytes.length;) {
    const { bytesRead } = await file.read(bytes, done, bytes.length - done, from + done);
    if (bytesRead === 0) return false;
    done += bytesRead;
  }
  return true;
}

/** Holds arrays by key; nobody may change an array that went in or came out. */
export class EmbeddingCache {
  readonly #entries = new Map<string, Float32Array>(); // the latest used last
  readonly #maxBytes: number;
  readonly #folder: { path: string; identity: string } | undefined;
  #bytes = 0;
  #writes: Promise<void> = Promise.resolve(); // one after the other
  #waiting = 0;

  /** `identity`: of everything but the picture that an embedding depends on; part of the names of files. */
  constructor(maxBytes: number, folder?: { path: string; identity: string }) {
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

  /** Nobody waits for the folder: what goes there is written afterwards. */
  set(key: string, embedding: Float32Array): void {
    this.#keep(key, embedding);
    if (!this.#folder || this.#waiting >= MAX_WAITING) return;
    ++this.#waiting;
    this.#writes = this.#writes.then(() => this.#write(key, embedding)).finally(() => --this.#waiting);
  }

  /** When all that was set is written, as far as it can be. */
  async flush(): Promise<void> {
    await this.#writes;
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
    const { path, identity } = this.#folder ?? { path: '', identity: '' };
    return join(path, `${await digest(Buffer.from(`${identity} ${key}`))}.embedding`);
  }

  async #read(key: string, length: number): Promise<Float32Array | undefined> {
    let file: FileHandle | undefined;
    try {
      file = await open(await this.#path(key), O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
      const bytes = HEADER + length * 4;
      const status = await file.stat();
      if (!status.isFile() || status.size !== bytes) return undefined;
      const head = Buffer.alloc(HEADER);
      const floats = new Uint8Array(length * 4);
      if (!(await readWhole(file, head, 0)) || !(await readWhole(file, floats, HEADER))) return undefined;
      if (!head.subarray(0, MAGIC.length).equals(MAGIC)) return undefined;
      if (head.toString('hex', MAGIC.length) !== (await digest(floats))) return undefined;
      const embedding = new Float32Array(floats.buffer);
      return embedding.every(Number.isFinite) ? embedding : undefined;
    } catch {
      return undefined;
    } finally {
      await file?.close().catch(() => {});
    }
  }

  // Under another name first: whoever reads, in this process or another, finds a whole file or none, and renaming replaces what is
  // there, even a link or a pipe. A full or read-only disk costs time, not the answer.
  async #write(key: string, embedding: Float32Array): Promise<void> {
    const floats = new Uint8Array(embedding.buffer, embedding.byteOffset, embedding.byteLength);
    let unfinished: string | undefined;
    try {
      const path = await this.#path(key);
      await mkdir(this.#folder?.path ?? '', { recursive: true });
      const content = Buffer.concat([MAGIC, Buffer.from(await digest(floats), 'hex'), floats]);
      const name = `${path}.${crypto.randomUUID()}`;
      unfinished = name;
      await writeFile(name, content, { flag: 'wx' });
      await rename(name, path);
    } catch {
      if (unfinished !== undefined) await rm(unfinished, { force: true }).catch(() => {});
    }
  }
}
