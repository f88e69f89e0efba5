// The results of a batch: a file of lines that begin with the number of the line they answer. The file itself says what is done, so a
// batch that was killed goes on from it; nothing else is kept.
import { constants } from 'node:fs';
import { open, rm, type FileHandle } from 'node:fs/promises';
import { readLines } from './batch-lines.js';
import { GemmaError } from './errors.js';
import { addon } from './native.js';
import { Pace } from './turns.js';
import { plain, reasonOf } from './values.js';

/** What every result begins with; `JSON.stringify` of an id is a number or a string. */
const RESULT = /^\{"line":([1-9]\d{0,14}),"id":(-?\d[\d.eE+-]*|null|"(?:[^"\\]|\\.)*"),/;
const BEGINNING = '{"line":';

// Of a result, what is looked at again: the longest beginning that RESULT can match is that of an id of 1000 escaped characters.
const HEAD_BYTES = 8 << 10;
const MAX_RESULT_BYTES = 1 << 30;

// Results stay with the system when the process dies; every so often they are put on the disk as well, for a loss of power.
const SYNC_MS = 1000;

const IS_FULL = new Set(['ENOSPC', 'EDQUOT', 'EFBIG']);

// Of so many results the ids are compared with the input's, which tells an output of another input.
const KNOWN_IDS = 1024;

/** What is locked beside an output: on Windows nobody could read a file that is. */
export function lockPath(path: string): string {
  return `${path}.lock`;
}

/** An error of the file system as batches report it. */
export function fileError(error: unknown, path: string, what: string): unknown {
  const { code, syscall } = (error ?? {}) as NodeJS.ErrnoException;
  if (error instanceof GemmaError || syscall === undefined) return error;
  if (code !== undefined && IS_FULL.has(code)) {
    const message = `${plain(path)}: the disk is full (${reasonOf(error)}). What is there stays: the same call goes on from it`;
    return new GemmaError('ERR_FILE', message, 'DISK_FULL');
  }
  return new GemmaError('ERR_FILE', `${plain(path)}: ${what} (${reasonOf(error)})`);
}

/** Lines that have a result: all up to one, and some above it. Lines of a batch begin in order, so these are few. */
class DoneLines {
  #below = 0;
  readonly #above = new Set<number>();
  highest = 0;

  has(line: number): boolean {
    return line <= this.#below || this.#above.has(line);
  }

  add(line: number): void {
    this.#above.add(line);
    while (this.#above.delete(this.#below + 1)) ++this.#below;
    this.highest = Math.max(this.highest, line);
  }
}

export class BatchOutput {
  readonly done = new DoneLines();
  readonly #ids = new Map<number, string>();
  readonly #path: string;
  readonly #file: FileHandle;
  readonly #unlock: () => void;
  #size = 0; // up to the end of the last whole line
  #pending: string[] = [];
  #next: Promise<void> | undefined;
  #last: Promise<void> = Promise.resolve();
  #synced = performance.now();

  private constructor(path: string, file: FileHandle, unlock: () => void) {
    this.#path = path;
    this.#file = file;
    this.#unlock = unlock;
  }

  /**
   * Opens the output of a batch, which nobody else writes until it is closed, reads what is done and cuts off a last line that was not
   * written to its end.
   *
   * @param onResult called with each result that is there, as JSON
   * @throws GemmaError `ERR_FILE` (`IN_USE`, `NOT_A_BATCH`: the file holds something else, `DISK_FULL`); the signal's reason
   */
  static async open(
    path: string,
    overwrite: boolean,
    signal: AbortSignal | undefined,
    onResult: (line: number, bytes: Uint8Array) => void = () => {},
  ): Promise<BatchOutput> {
    const unlock = await addon().lockFile(lockPath(path));
    if (!unlock) throw new GemmaError('ERR_FILE', `${plain(path)}: another batch is writing it`, 'IN_USE');
    try {
      const flags = constants.O_RDWR | constants.O_CREAT | (overwrite ? constants.O_TRUNC : 0);
      const file = await open(path, flags, 0o666);
      try {
        const output = new BatchOutput(path, file, unlock);
        await output.#read(signal, onResult);
        return output;
      } catch (error) {
        await file.close();
        throw error;
      }
    } catch (error) {
      unlock();
      throw fileError(error, path, 'the output cannot be opened');
    }
  }

  async #read(signal: AbortSignal | undefined, onResult: (line: number, bytes: Uint8Array) => void): Promise<void> {
    const pace = new Pace(signal);
    for await (const { number, bytes, size, ended } of readLines(this.#file, MAX_RESULT_BYTES)) {
      const head = Buffer.from(bytes?.subarray(0, HEAD_BYTES) ?? []).toString();
      if (!ended) {
        // Torn, if it is of a batch at all: somebody may have named a file by mistake.
        if (!head.startsWith(BEGINNING.slice(0, head.length))) this.#refuse(number);
        break;
      }
      const [, line = '', id = ''] = RESULT.exec(head) ?? [];
      if (line === '' || bytes?.at(-1) !== 0x7d || this.done.has(Number(line))) this.#refuse(number);
      onResult(Number(line), bytes);
      this.done.add(Number(line));
      this.#ids.set(Number(line), id);
      if (this.#ids.size > KNOWN_IDS) this.#ids.delete(this.#ids.keys().next().value ?? 0);
      this.#size += size;
      if (pace.due) await pace.turn();
    }
    await this.#file.truncate(this.#size);
  }

  #refuse(number: number): never {
    const message = `${plain(this.#path)}: line ${number} is no result of a batch, or a second one of the same line; name another output, or set overwrite`;
    throw new GemmaError('ERR_FILE', message, 'NOT_A_BATCH');
  }

  /**
   * @param id as JSON
   * @throws GemmaError `ERR_FILE` (`OTHER_INPUT`) where the result of a line is known to have another id
   */
  checkId(line: number, id: string): void {
    const known = this.#ids.get(line);
    if (known === undefined || known === id) return;
    this.refuseInput(`the result of line ${line} has the id ${plain(known, 60)}, the line ${plain(id, 60)}`);
  }

  refuseInput(reason: string): never {
    const message = `${plain(this.#path)}: results of another input: ${reason}; name another output, or set overwrite`;
    throw new GemmaError('ERR_FILE', message, 'OTHER_INPUT');
  }

  /** Resolves when the line is with the system. Lines that come while others are written are written together. */
  write(line: string): Promise<void> {
    this.#pending.push(line);
    if (!this.#next) {
      this.#next = this.#last.then(() => this.#flush());
      this.#last = this.#next;
    }
    return this.#next;
  }

  async #flush(): Promise<void> {
    const bytes = Buffer.from(this.#pending.join(''));
    this.#pending = [];
    this.#next = undefined;
    try {
      for (let at = 0; at < bytes.length;) {
        at += (await this.#file.write(bytes, at, bytes.length - at, this.#size + at)).bytesWritten;
      }
      this.#size += bytes.length;
      if (performance.now() - this.#synced < SYNC_MS) return;
      await this.#file.datasync();
      this.#synced = performance.now();
    } catch (error) {
      throw fileError(error, this.#path, 'the output cannot be written');
    }
  }

  /** @param finished every line has its result: nothing is left that a lock is needed for */
  async close(finished: boolean): Promise<void> {
    try {
      await this.#last.catch(() => {});
      await this.#file.truncate(this.#size).catch(() => {}); // what a full disk has taken of a line
      if (finished) await this.#file.sync();
    } catch (error) {
      throw fileError(error, this.#path, 'the output cannot be written');
    } finally {
      await this.#file.close();
      if (finished) await rm(lockPath(this.#path), { force: true }).catch(() => {});
      this.#unlock();
    }
  }
}
