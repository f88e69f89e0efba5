// Work on large inputs that has to be done on the JavaScript thread is done in slices, each in a turn of the event loop of its own.
import { GemmaError } from './errors.js';

/** Bytes that are copied in one turn: a fraction of a millisecond. */
export const COPY_SLICE = 256 << 10;

/** Less is copied at once. */
const SMALL = 64 << 10;

let last: Promise<unknown> = Promise.resolve();

/** Resolves in another turn of the event loop: of all that wait, however many, one goes on in each. */
export function nextTurn(): Promise<unknown> {
  last = last.then(() => new Promise((resolve) => setImmediate(resolve)));
  return last;
}

/** target[at...] = source. */
export async function copyInto<T extends Uint8Array | Float32Array>(
  target: T,
  source: T | Uint8ClampedArray,
  at: number,
): Promise<void> {
  const step = COPY_SLICE / source.BYTES_PER_ELEMENT;
  for (let from = 0; from < source.length; from += step) {
    if (source.byteLength > SMALL) await nextTurn();
    target.set(source.subarray(from, from + step), at + from);
  }
}

/** A copy that nobody else can change or take away. */
export async function copyOf(source: Uint8Array | Uint8ClampedArray): Promise<Uint8Array> {
  if (source.length > SMALL) await nextTurn(); // the memory may have to be cleared
  const copy = new Uint8Array(source.length);
  await copyInto(copy, source, 0);
  return copy;
}

/** Bytes that come piece by piece, however small the pieces are. */
export class ByteCollector {
  readonly #slabs: Uint8Array[] = []; // not the pieces: a flood of single bytes would fill the memory with objects
  #length = 0;

  get length(): number {
    return this.#length;
  }

  add(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length;) {
      const used = this.#length % COPY_SLICE;
      if (used === 0) this.#slabs.push(new Uint8Array(COPY_SLICE));
      const part = bytes.subarray(at, at + COPY_SLICE - used);
      this.#slabs.at(-1)?.set(part, used);
      at += part.length;
      this.#length += part.length;
    }
  }

  async all(): Promise<Uint8Array> {
    const bytes = new Uint8Array(this.#length);
    for (const [i, slab] of this.#slabs.entries()) {
      await copyInto(bytes, slab.subarray(0, this.#length - i * COPY_SLICE), i * COPY_SLICE);
    }
    return bytes;
  }
}

// A slice of this length keeps the delay of everything else well below 10 ms.
const SLICE_MS = 3;

/** For work in pieces of a fraction of a millisecond: says when the event loop is to turn between them. */
export class Pace {
  readonly #signal: AbortSignal | undefined;
  #since = performance.now();

  constructor(signal?: AbortSignal) {
    this.#signal = signal;
  }

  /** Whether the thread was held for long enough. */
  get due(): boolean {
    return performance.now() - this.#since >= SLICE_MS;
  }

  /** Lets the event loop turn. Throws the signal's reason when it is aborted. */
  async turn(): Promise<void> {
    await nextTurn();
    this.#signal?.throwIfAborted();
    this.#since = performance.now();
  }
}

/** Work that can pause wherever it yields, and returns its result. */
export type Sliced<T> = Generator<void, T>;

const STEPS_PER_LOOK = 4; // at the clock

/** Does it with turns of the event loop where it takes long. */
export async function inSlices<T>(work: Sliced<T>): Promise<T> {
  const pace = new Pace();
  for (;;) {
    for (let i = 0; i < STEPS_PER_LOOK; ++i) {
      const { done, value } = work.next();
      if (done) return value;
    }
    if (pace.due) await pace.turn();
  }
}

/** Steps that may be done at once, of one call all together; about a millisecond, a few where the code runs for the first time. */
export class Allowance {
  #left = 200;

  /** Does as many as are left. Undefined: they were not enough, and the work goes on where it is. */
  begin<T>(work: Sliced<T>): { value: T } | undefined {
    for (; this.#left > 0; --this.#left) {
      const { done, value } = work.next();
      if (done) return { value };
    }
    return undefined;
  }
}

/** Does it without a turn, where it is known to be short. */
export function atOnce<T>(work: Sliced<T>): T {
  for (;;) {
    const { done, value } = work.next();
    if (done) return value;
  }
}

/**
 * An array for a large result.
 *
 * @throws GemmaError `ERR_OUT_OF_MEMORY` with what `message` says of its size, "1.5 GiB"
 */
export function allocateFloats(length: number, message: (size: string) => string): Float32Array {
  try {
    return new Float32Array(length);
  } catch {
    throw new GemmaError('ERR_OUT_OF_MEMORY', message(`${((length * 4) / 2 ** 30).toFixed(1)} GiB`));
  }
}
