// Who is served now, who waits, and who is sent away. So many requests are computed together; the next are taken from the client that
// has the fewest under way, so nobody's hundred requests delay another's one.
import { HttpError } from './errors.js';

export interface AdmissionOptions {
  /** requests that are computed at the same time */
  maxConcurrent: number;
  /** requests that wait for their turn; one more is refused (429) */
  maxQueue: number;
  /** how long a request may wait for its turn (503), in milliseconds; 0: any time */
  queueTimeoutMs: number;
}

/** A place among the requests that are computed. */
export interface Slot {
  /** milliseconds that it waited */
  readonly waitedMs: number;
  /** Gives the place to the next one. Any number of calls. */
  release(): void;
}

interface Waiting {
  client: string;
  since: number;
  resolve: (slot: Slot) => void;
  reject: (error: unknown) => void;
  /** ends its listeners and its clock */
  forget: () => void;
}

const MEMORY = 0.2; // weight of the latest request in the mean time that requests take
const MAX_RETRY_SECONDS = 60;

export class Admission {
  readonly #options: AdmissionOptions;
  /** requests under way by client */
  readonly #active = new Map<string, number>();
  /** by client, the oldest first */
  readonly #queues = new Map<string, Waiting[]>();
  #inFlight = 0;
  #waiting = 0;
  #meanMs = 1000;
  #closed = false;
  #onDrained: (() => void)[] = [];

  constructor(options: AdmissionOptions) {
    this.#options = options;
  }

  /** requests that are computed */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** requests that wait for their turn */
  get waiting(): number {
    return this.#waiting;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /**
   * Waits for a place.
   *
   * @param client whose requests count together: a key or an address
   * @throws HttpError 429 `queue_full`, 503 `shutting_down`, 503 `queue_timeout`; the signal's reason
   */
  async enter(client: string, signal: AbortSignal): Promise<Slot> {
    signal.throwIfAborted();
    if (this.#closed) throw this.#shuttingDown();
    if (this.#inFlight < this.#options.maxConcurrent) return this.#take(client, performance.now());
    if (this.#waiting >= this.#options.maxQueue) this.#makeRoom(client);
    return new Promise((resolve, reject) => {
      const onAbort = () => this.#leave(waiting, signal.reason);
      const { queueTimeoutMs } = this.#options;
      const clock =
        queueTimeoutMs > 0
          ? setTimeout(() => this.#leave(waiting, this.#tooLong()), queueTimeoutMs).unref()
          : undefined;
      const waiting: Waiting = {
        client,
        since: performance.now(),
        resolve,
        reject,
        forget: () => {
          signal.removeEventListener('abort', onAbort);
          clearTimeout(clock);
        },
      };
      signal.addEventListener('abort', onAbort, { once: true });
      const queue = this.#queues.get(client);
      if (queue) queue.push(waiting);
      else this.#queues.set(client, [waiting]);
      ++this.#waiting;
    });
  }

  /** From now on every new request is refused, those that wait too. Resolves when the last that is computed has ended. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const queue of [...this.#queues.values()]) {
      for (const waiting of [...queue]) this.#leave(waiting, this.#shuttingDown());
    }
    if (this.#inFlight > 0) await new Promise<void>((resolve) => this.#onDrained.push(resolve));
  }

  #take(client: string, since: number): Slot {
    const start = performance.now();
    ++this.#inFlight;
    this.#active.set(client, (this.#active.get(client) ?? 0) + 1);
    let released = false;
    return {
      waitedMs: start - since,
      release: () => {
        if (released) return;
        released = true;
        --this.#inFlight;
        const left = (this.#active.get(client) ?? 1) - 1;
        if (left > 0) this.#active.set(client, left);
        else this.#active.delete(client);
        this.#meanMs += MEMORY * (performance.now() - start - this.#meanMs);
        this.#next();
      },
    };
  }

  #next(): void {
    if (this.#waiting > 0 && this.#inFlight < this.#options.maxConcurrent) {
      // The client with the fewest under way; of several the one that has waited longest.
      const [queue] = [...this.#queues.values()].sort(([a], [b]) => {
        const active = (waiting?: Waiting) => this.#active.get(waiting?.client ?? '') ?? 0;
        return active(a) - active(b) || (a?.since ?? 0) - (b?.since ?? 0);
      });
      const first = queue?.[0];
      if (first) {
        this.#remove(first);
        first.resolve(this.#take(first.client, first.since));
      }
    }
    if (this.#inFlight === 0) for (const done of this.#onDrained.splice(0)) done();
  }

  // The queue is full: the latest request of whoever has most in it goes, unless that is the newcomer's own client.
  #makeRoom(client: string): void {
    const queues = [...this.#queues.values()];
    const longest = queues.reduce((a, b) => (b.length > a.length ? b : a), [] as Waiting[]);
    const own = this.#queues.get(client)?.length ?? 0;
    const last = longest.at(-1);
    if (!last || longest.length <= own + 1) throw this.#full();
    this.#leave(last, this.#full());
  }

  #leave(waiting: Waiting, reason: unknown): void {
    if (this.#remove(waiting)) waiting.reject(reason);
  }

  #remove(waiting: Waiting): boolean {
    const queue = this.#queues.get(waiting.client) ?? [];
    const at = queue.indexOf(waiting);
    if (at < 0) return false;
    waiting.forget();
    queue.splice(at, 1);
    if (queue.length === 0) this.#queues.delete(waiting.client);
    --this.#waiting;
    return true;
  }

  // When the queue will have moved by as many as are computed together, by how long requests took lately.
  #retry(): Record<string, string> {
    const rounds = (this.#waiting + 1) / Math.max(1, this.#options.maxConcurrent);
    const seconds = Math.ceil((rounds * this.#meanMs) / 1000);
    return { 'retry-after': String(Math.min(MAX_RETRY_SECONDS, Math.max(1, seconds))) };
  }

  #full(): HttpError {
    const { maxQueue } = this.#options;
    const message = `too many requests: ${maxQueue} wait for their turn already, as many as may`;
    return new HttpError(429, 'queue_full', message, { headers: this.#retry() });
  }

  #tooLong(): HttpError {
    const message = `the request waited ${this.#options.queueTimeoutMs} ms for its turn, as long as one may`;
    return new HttpError(503, 'queue_timeout', message, { headers: this.#retry() });
  }

  #shuttingDown(): HttpError {
    return new HttpError(503, 'shutting_down', 'the server is shutting down', { headers: { 'retry-after': '5' } });
  }
}
