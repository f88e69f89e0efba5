// One file of a repository into the cache: what has come stays in HASH.incomplete, also when the process is killed, and the next attempt
// asks for what is missing. The file takes its name when its hash is right and it is on the disk.
import { createHash, type Hash } from 'node:crypto';
import { constants } from 'node:fs';
import { open, rm, type FileHandle } from 'node:fs/promises';
import { setTimeout as wait } from 'node:timers/promises';
import { addon } from '../native.js';
import { checkWritable } from '../permission.js';
import { plain } from '../values.js';
import { putInPlace, type RepoCache } from './cache.js';
import { cacheError, downloadError } from './failure.js';
import { connectionError, get, Passing, refusal, type Hub, type Reply } from './http.js';
import { type Listing, type RepoFile } from './listing.js';

/** How patient a download is, and what tests take the place of. */
export interface Tuning {
  /** a connection fails when nothing comes for so long, ms */
  idleMs: number;
  /** attempts without progress, the first included */
  tries: number;
  /** before the second attempt; it doubles, ms */
  backoffMs: number;
  write: (handle: FileHandle, bytes: Uint8Array, position: number) => Promise<void>;
}

export const TUNING: Tuning = { idleMs: 30_000, tries: 6, backoffMs: 1000, write: writeAll };

const MAX_BACKOFF_MS = 30_000;
const MAX_WAIT_MS = 300_000; // that a server may ask for
const PROGRESS = 64 << 10; // bytes that make an attempt count as one with progress
const READ_BYTES = 256 << 10;
const LOCK_POLL_MS = 100;

async function writeAll(handle: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await handle.write(bytes, done, bytes.length - done, position + done);
    done += bytesWritten;
  }
}

/** Sleeps. Throws the signal's reason. */
async function sleep(ms: number, signal: AbortSignal): Promise<void> {
  await wait(ms, undefined, { signal }).catch(() => undefined);
  signal.throwIfAborted();
}

/**
 * Does it again where it failed for a reason that may pass; `progress` says how far it has come.
 *
 * @throws what it throws; of Passing what it stands for
 */
export async function patiently<T>(
  work: () => Promise<T>,
  { tries, backoffMs }: Pick<Tuning, 'tries' | 'backoffMs'>,
  signal: AbortSignal,
  progress: () => number = () => 0,
): Promise<T> {
  for (let failures = 0, before = progress(); ;) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Passing)) throw error;
      if (progress() - before >= PROGRESS) failures = 0;
      before = progress();
      const pause = error.afterMs ?? Math.min(backoffMs * 2 ** failures, MAX_BACKOFF_MS);
      if (++failures >= tries || pause > MAX_WAIT_MS) throw error.final;
      await sleep(pause, signal);
    }
  }
}

/**
 * Works while nobody else has a lock, in this process or another, Python's huggingface_hub too. Of a process that has died nothing stays.
 *
 * @throws GemmaError `ERR_DOWNLOAD` (`CACHE`), `ERR_FILE` (`PERMISSION`); the signal's reason
 */
export async function withLock<T>(
  path: string,
  signal: AbortSignal,
  onWait: () => void,
  work: () => Promise<T>,
): Promise<T> {
  checkWritable(path);
  let release: (() => void) | null;
  for (let waits = 0; ; ++waits) {
    try {
      release = await addon().lockFile(path);
    } catch (error) {
      throw cacheError(error, plain(path));
    }
    if (release) break;
    if (waits === 0) onWait();
    await sleep(LOCK_POLL_MS, signal);
  }
  try {
    signal.throwIfAborted();
    return await work();
  } finally {
    release();
  }
}

function hasherOf({ hash, bytes }: RepoFile): Hash {
  // A blob of Git is hashed with a header.
  return hash.length === 64 ? createHash('sha256') : createHash('sha1').update(`blob ${bytes}\0`);
}

/** Which bytes the answer has: those asked for, or all of a server that knows no ranges. Throws GemmaError. */
function spanOf({ status, message, where }: Reply, file: RepoFile, position: number, until: number) {
  const bad = (what: string) => downloadError('BAD_RESPONSE', `${where}: ${what}`);
  const { 'content-encoding': encoding, 'content-length': length } = message.headers;
  if (encoding !== undefined && encoding !== 'identity')
    throw bad(`expected bytes as they are, found ${plain(encoding)}`);
  if (status === 200) {
    if (length !== undefined && Number(length) !== file.bytes) throw bad(`expected ${file.bytes} bytes, found ${plain(length)}`); // prettier-ignore
    return { at: 0, end: file.bytes };
  }
  const range = message.headers['content-range'] ?? '';
  const [, first, last, total] = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(range) ?? [];
  const fits = Number(first) === position && Number(last) < until && (total === '*' || Number(total) === file.bytes);
  if (!fits) throw bad(`expected bytes ${position}-${until - 1}/${file.bytes}, found ${plain(range) || 'no range'}`);
  return { at: position, end: Number(last) + 1 };
}

/** A file on its way. */
class Transfer {
  readonly #hub: Hub;
  readonly #listing: Listing;
  readonly #file: RepoFile;
  readonly #handle: FileHandle;
  readonly #path: string;
  readonly #tuning: Tuning;
  readonly #onBytes: (bytes: number) => void;
  #etag: string | undefined;
  /** bytes that are in the file */
  position: number;

  constructor(
    hub: Hub,
    listing: Listing,
    file: RepoFile,
    handle: FileHandle,
    path: string,
    position: number,
    tuning: Tuning,
    onBytes: (bytes: number) => void,
  ) {
    this.#hub = hub;
    this.#listing = listing;
    this.#file = file;
    this.#handle = handle;
    this.#path = path;
    this.position = position;
    this.#tuning = tuning;
    this.#onBytes = onBytes;
  }

  /** Everything up to there is in the file when it returns. */
  async fill(until: number, hasher: Hash | undefined, signal: AbortSignal): Promise<void> {
    const attempt = () => this.#attempt(until, hasher, signal);
    await patiently(attempt, this.#tuning, signal, () => this.position);
  }

  /** Adds what the file holds to a hash. */
  async hashInto(hasher: Hash, signal: AbortSignal): Promise<void> {
    const block = Buffer.alloc(Math.min(READ_BYTES, this.position));
    for (let at = 0; at < this.position;) {
      signal.throwIfAborted();
      const { bytesRead } = await this.#handle.read(block, 0, Math.min(block.length, this.position - at), at);
      if (bytesRead === 0) throw downloadError('CACHE', `${plain(this.#path)}: became shorter while it was read`);
      hasher.update(block.subarray(0, bytesRead));
      at += bytesRead;
    }
  }

  async clear(): Promise<void> {
    await this.#handle.truncate(0);
    this.position = 0;
  }

  async #attempt(until: number, hasher: Hash | undefined, signal: AbortSignal): Promise<void> {
    if (this.position >= until) return;
    const { repo, commit, page } = this.#listing;
    const path = this.#file.name.split('/').map(encodeURIComponent).join('/');
    const url = new URL(`${repo}/resolve/${commit}/${path}`, this.#hub.endpoint);
    const isPart = this.position > 0 || until < this.#file.bytes;
    const reply = await get(
      this.#hub,
      url,
      {
        ...(isPart && { range: `bytes=${this.position}-${until - 1}` }),
        ...(isPart && this.#etag !== undefined && { 'if-range': this.#etag }),
      },
      signal,
    );
    try {
      if (reply.status !== 200 && !(isPart && reply.status === 206)) {
        throw refusal(reply, this.#hub, `hf:${repo}:${plain(this.#file.name)}`, page);
      }
      const { etag } = reply.message.headers;
      this.#etag = etag !== undefined && /^"[\x21\x23-\x7e]*"$/.test(etag) ? etag : undefined; // a strong one
      await this.#read(reply, until, hasher, signal);
    } finally {
      reply.message.destroy();
    }
  }

  async #read(reply: Reply, until: number, hasher: Hash | undefined, signal: AbortSignal): Promise<void> {
    const { where, message } = reply;
    const { at: begin, end } = spanOf(reply, this.#file, this.position, until);
    let at = begin;
    try {
      for await (const chunk of message as AsyncIterable<Uint8Array>) {
        if (at + chunk.length > end) throw downloadError('BAD_RESPONSE', `${where}: more than the ${end} bytes that it should have`); // prettier-ignore
        const fresh = chunk.subarray(Math.min(chunk.length, Math.max(0, this.position - at)), Math.max(0, until - at));
        at += chunk.length;
        if (fresh.length === 0) continue;
        await this.#tuning.write(this.#handle, fresh, this.position).catch((error: unknown) => {
          throw cacheError(error, plain(this.#path));
        });
        hasher?.update(fresh);
        this.position += fresh.length;
        this.#onBytes(this.position);
        if (this.position >= until && until < this.#file.bytes) return; // only a head is wanted
      }
    } catch (error) {
      throw connectionError(error, where, signal);
    }
    if (this.position < until) {
      throw new Passing(
        downloadError('NETWORK', `${where}: the connection ended after ${this.position} of ${until} bytes`),
      );
    }
  }
}

interface Job {
  hub: Hub;
  listing: Listing;
  cache: RepoCache;
  signal: AbortSignal;
  tuning: Tuning;
  /** bytes of the file that are here */
  onBytes: (bytes: number) => void;
}

async function withTransfer<T>(job: Job, file: RepoFile, work: (transfer: Transfer) => Promise<T>): Promise<T> {
  const { hub, listing, cache, tuning, onBytes } = job;
  const path = cache.partial(file.hash);
  const flags = constants.O_RDWR | constants.O_CREAT | (constants.O_NOFOLLOW ?? 0);
  const failed = (error: unknown): never => {
    throw cacheError(error, plain(path));
  };
  checkWritable(path);
  const handle = await open(path, flags, 0o666).catch(failed);
  try {
    const found = await handle.stat();
    if (!found.isFile()) throw downloadError('PATH_REJECTED', `${plain(path)}: not a regular file`);
    const transfer = new Transfer(hub, listing, file, handle, path, found.size, tuning, onBytes);
    if (found.size > file.bytes) await transfer.clear();
    onBytes(transfer.position);
    const result = await work(transfer);
    await handle.sync().catch(failed);
    return result;
  } finally {
    await handle.close();
  }
}

/**
 * Has the first bytes of a file at least, in the place where the rest will follow. Under the file's lock. Returns how many there are.
 *
 * @throws as fetchFile
 */
export async function fetchHead(job: Job, file: RepoFile, bytes: number): Promise<number> {
  return withTransfer(job, file, async (transfer) => {
    await transfer.fill(Math.min(bytes, file.bytes), undefined, job.signal);
    return transfer.position;
  });
}

/**
 * Has a whole file in the cache, under its hash. Under the file's lock.
 *
 * @throws GemmaError `ERR_DOWNLOAD`; the signal's reason
 */
export async function fetchFile(job: Job, file: RepoFile): Promise<void> {
  const { cache, signal, listing } = job;
  const path = cache.partial(file.hash);
  await withTransfer(job, file, async (transfer) => {
    for (;;) {
      const hasher = hasherOf(file);
      const kept = transfer.position;
      await transfer.hashInto(hasher, signal);
      await transfer.fill(file.bytes, hasher, signal);
      const found = hasher.digest('hex');
      if (found === file.hash) return;
      // What was there before may have been damaged, by a loss of power say: once more, from the beginning.
      await transfer.clear();
      if (kept > 0) continue;
      throw downloadError(
        'HASH_MISMATCH',
        `hf:${listing.repo}:${plain(file.name)}: expected the hash ${file.hash}, found ${found}. Nothing of it was kept`,
      );
    }
  }).catch(async (error: unknown) => {
    if (error instanceof Error && 'detail' in error && error.detail === 'HASH_MISMATCH')
      await rm(path, { force: true });
    throw error;
  });
  await putInPlace(path, cache.blob(file.hash)).catch((error: unknown) => {
    throw cacheError(error, plain(path));
  });
}
