// Stopping work from three sides with one object: an AbortSignal, a reader that leaves its loop, a callback that throws.
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
