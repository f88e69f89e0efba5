// Stopping work from three sides with one object: an AbortSignal, a reader that leaves its loop, a callback that throws.
import { setMaxListeners } from 'node:events';
import { GemmaError } from './errors.js';

export class Cancellation {
  readonly #controller = new AbortController();
  #stop: (() => void) | undefined;

  get cancelled(): boolean {
    return this.#controller.signal.aborted;
  }

  /** For work that is stopped by a signal; it then rejects with the reason of `cancel`. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  cancel(reason: unknown = new GemmaError('ERR_DISPOSED', 'cancelled', 'CANCELLED')): void {
    if (this.cancelled) return;
    this.#controller.abort(reason);
    this.#stop?.();
  }

  /** How to stop what is running now. Called at once if it is too late. */
  onCancel(stop: () => void): void {
    this.#stop = stop;
    if (this.cancelled) stop();
  }
}

/**
 * Runs work. When the signal is aborted the promise rejects with the signal's reason at once, and the cancellation handed to
 * the work is cancelled; what the work answers after that is dropped.
 */
export async function abortable<T>(
  signal: AbortSignal | undefined,
  work: (cancellation: Cancellation) => Promise<T>,
  cancellation = new Cancellation(),
): Promise<T> {
  if (!signal) return work(cancellation);
  signal.throwIfAborted();
  return new Promise<T>((resolve, reject) => {
    const onAbort = () => {
      // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- the caller's own reason
      reject(signal.reason);
      cancellation.cancel(signal.reason);
    };
    signal.addEventListener('abort', onAbort, { once: true });
    work(cancellation)
      .then(resolve, reject)
      .finally(() => signal.removeEventListener('abort', onAbort));
  });
}

/**
 * The same for work that writes files: the promise rejects once the work has let go of them, so that the next call finds them free.
 * Rejects with the signal's reason even if the work had ended when it was aborted.
 */
export async function abortableWriting<T>(
  signal: AbortSignal | undefined,
  work: (cancellation: Cancellation) => Promise<T>,
): Promise<T> {
  const cancellation = new Cancellation();
  if (!signal) return work(cancellation);
  signal.throwIfAborted();
  const onAbort = () => cancellation.cancel(signal.reason);
  signal.addEventListener('abort', onAbort, { once: true });
  try {
    return await work(cancellation);
  } finally {
    signal.removeEventListener('abort', onAbort);
    signal.throwIfAborted();
  }
}

/**
 * Works on items, so many at a time, each with a cancellation of its own. What one throws, or the cancellation of the whole, stops all.
 * Results in the order of the items.
 */
export async function inParallel<T, R>(
  items: readonly T[],
  most: number,
  work: (item: T, i: number, cancellation: Cancellation) => Promise<R>,
  whole: Cancellation,
): Promise<R[]> {
  const results: R[] = [];
  const all = new AbortController();
  setMaxListeners(2 * most, all.signal); // each item listens, and one that has ended for a moment longer
  const stop = () => all.abort(whole.signal.reason);
  whole.signal.throwIfAborted();
  whole.signal.addEventListener('abort', stop, { once: true });
  let next = 0;
  const worker = async () => {
    while (next < items.length) {
      const i = next++;
      results[i] = await abortable(all.signal, (cancellation) => work(items[i] as T, i, cancellation));
    }
  };
  try {
    await Promise.all(Array.from({ length: Math.min(most, items.length) }, worker));
    return results;
  } catch (error) {
    all.abort(error);
    throw error;
  } finally {
    whole.signal.removeEventListener('abort', stop);
  }
}
