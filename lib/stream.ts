// A generation as something to read: parts wait in a queue, and the engine waits for a reader who falls behind. A reader may also
// leave at any moment, stop reading, or be forgotten: the work ends in each case.
import type { Cancellation } from './cancellation.js';
import { GemmaError } from './errors.js';
import type { Sink } from './generation.js';
import type { DeepPartial } from './partial-json.js';
import type { StreamPart } from './parts.js';
import type { GenerateResult } from './result.js';

type Next = IteratorResult<StreamPart, undefined>;
const END: Next = { done: true, value: undefined };

/** A reader of a stream, who may leave it. */
export interface StreamSink extends Sink {
  /** Resolves when the reader has taken all parts that there are and asked for more, or takes no more. */
  taken(): Promise<void>;
}

interface Waiting {
  resolve: (next: Next | Promise<Next>) => void;
  /** of who waits: a reader whose next part is to come is not forgotten */
  reader: object;
}

/** Between the engine and a reader. Refers to no object that the reader holds, so that these are collected when it forgets them. */
class Channel {
  readonly #run: (sink: StreamSink) => Promise<GenerateResult>;
  readonly #cancellation: Cancellation;
  readonly #stallTimeoutMs: number;
  readonly #parts: { part: StreamPart; events: number }[] = [];
  readonly #waiting: Waiting[] = [];
  #result: Promise<GenerateResult> | undefined;
  #acknowledge: (events: number) => void = () => {};
  #onTaken = () => {};
  #stall: NodeJS.Timeout | undefined;
  #stalled: GemmaError | undefined;
  #unbounded = false;
  #settled = false;
  #failed = false;
  #ended = false;
  /** one reader has begun; there is no other */
  taken = false;

  constructor(run: (sink: StreamSink) => Promise<GenerateResult>, cancellation: Cancellation, stallTimeoutMs: number) {
    this.#run = run;
    this.#cancellation = cancellation;
    this.#stallTimeoutMs = stallTimeoutMs;
  }

  /** @param reader what is held by all who may still read; when it is collected, the work ends */
  start(reader: object): Promise<GenerateResult> {
    if (this.#result) return this.#result;
    this.#result = this.#work();
    this.#result.then(
      () => this.#settle(false),
      () => this.#settle(true),
    );
    forgotten.register(reader, this, this);
    return this.#result;
  }

  async #work(): Promise<GenerateResult> {
    const result = await this.#run({
      started: (acknowledge) => (this.#acknowledge = acknowledge),
      part: (part, events) => this.#push(part, events),
      taken: () =>
        new Promise((resolve) => {
          this.#onTaken = resolve;
          this.#checkTaken();
        }),
    });
    if (this.#stalled) throw this.#stalled;
    return result;
  }

  /** From now on the engine does not wait for the reader, and goes on when there is none. */
  unbound(): void {
    if (this.#unbounded) return;
    this.#unbounded = true;
    forgotten.unregister(this);
    this.#watch();
    for (const entry of this.#parts) {
      this.#acknowledge(entry.events);
      entry.events = 0;
    }
    this.#checkTaken();
  }

  next(reader: object): Promise<Next> {
    const result = this.start(reader);
    if (this.#ended) return Promise.resolve(END);
    // Aborted or failed: rejects, and what is still in the queue is dropped.
    if (this.#failed || this.#cancellation.cancelled) {
      this.#end();
      return result.then(() => END);
    }
    const entry = this.#parts.shift();
    this.#watch();
    if (entry) {
      if (entry.events > 0) this.#acknowledge(entry.events);
      return Promise.resolve({ done: false, value: entry.part });
    }
    if (this.#settled) {
      this.#end();
      return Promise.resolve(END);
    }
    return new Promise((resolve) => {
      this.#waiting.push({ resolve, reader });
      this.#checkTaken();
    });
  }

  /** The reader wants no more. Nothing happens where the work has ended, or was not begun. */
  leave(): void {
    if (this.#result && !this.#settled) this.#cancellation.cancel();
    this.#end();
  }

  #push(part: StreamPart, events: number): void {
    if (this.#cancellation.cancelled) return;
    if (this.#unbounded) this.#acknowledge(events);
    const waiting = this.#waiting.shift();
    if (waiting) {
      if (!this.#unbounded) this.#acknowledge(events);
      waiting.resolve({ done: false, value: part });
    } else {
      this.#parts.push({ part, events: this.#unbounded ? 0 : events });
      if (this.#parts.length === 1) this.#watch();
    }
  }

  #settle(failed: boolean): void {
    this.#settled = true;
    this.#failed = failed;
    forgotten.unregister(this);
    this.#watch();
    this.#checkTaken();
    if (this.#waiting.length === 0) return;
    if (failed) this.#waiting.shift()?.resolve((this.#result as Promise<GenerateResult>).then(() => END));
    this.#end();
  }

  #end(): void {
    this.#ended = true;
    this.#parts.length = 0;
    this.#watch();
    for (const { resolve } of this.#waiting.splice(0)) resolve(END);
    this.#checkTaken();
  }

  #checkTaken(): void {
    const wantsMore = this.#parts.length === 0 && this.#waiting.length > 0;
    if (wantsMore || this.#unbounded || this.#ended || this.#cancellation.cancelled) this.#onTaken();
  }

  // The time that counts is that in which there is a part to take, and more to come.
  #watch(): void {
    if (this.#stallTimeoutMs === 0) return;
    if (this.#parts.length === 0 || this.#unbounded || this.#settled) {
      clearTimeout(this.#stall);
      this.#stall = undefined;
    } else if (this.#stall) {
      this.#stall.refresh();
    } else {
      this.#stall = setTimeout(() => {
        this.#stalled = new GemmaError(
          'ERR_STALLED',
          `the reader of a stream took nothing for ${this.#stallTimeoutMs} ms (option stallTimeoutMs)`,
        );
        this.#parts.length = 0;
        this.#cancellation.cancel(this.#stalled);
        this.#checkTaken();
      }, this.#stallTimeoutMs).unref();
    }
  }
}

const forgotten = new FinalizationRegistry<Channel>((channel) => channel.leave());

/** What `for await` reads. Unlike that of an async generator, `return()` does not wait for a part that is still to come. */
class Reader implements AsyncGenerator<StreamPart, void, undefined> {
  readonly #channel: Channel;
  readonly #reader: object;
  #state: 'new' | 'reading' | 'ended' = 'new';

  constructor(channel: Channel, reader: object) {
    this.#channel = channel;
    this.#reader = reader;
  }

  // Without `async`, which would be three more turns of the microtask queue for each part.
  next(): Promise<IteratorResult<StreamPart, undefined>> {
    if (this.#state === 'ended') return Promise.resolve(END);
    if (this.#state === 'new') {
      if (this.#channel.taken) {
        this.#state = 'ended';
        return Promise.reject(new TypeError('a stream can be read only once'));
      }
      this.#channel.taken = true;
      this.#state = 'reading';
    }
    return this.#channel.next(this.#reader);
  }

  async return(): Promise<IteratorResult<StreamPart, undefined>> {
    if (this.#state === 'reading') this.#channel.leave();
    this.#state = 'ended';
    return END;
  }

  async throw(error: unknown): Promise<IteratorResult<StreamPart, undefined>> {
    await this.return();
    throw error;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.return();
  }
}

/**
 * A generation that can be read while it runs: `for await (const part of stream)`. It starts when it is first read, or when
 * `result` is asked for. Leaving the loop stops the work at any moment, also while pictures are encoded or the prompt is read; so
 * do `destroy()` and `cancel()` of Node's and the web's streams made from it, and forgetting it. The engine waits when the reader
 * falls 256 tokens behind: other calls take its place meanwhile.
 */
export class GemmaStream<T = unknown> implements AsyncIterable<StreamPart<T>> {
  readonly #channel: Channel;
  readonly #reader = {};

  /** @internal */
  constructor(run: (sink: StreamSink) => Promise<GenerateResult>, cancellation: Cancellation, stallTimeoutMs: number) {
    this.#channel = new Channel(run, cancellation, stallTimeoutMs);
  }

  /**
   * The whole result, as `generate` returns it. Asking for it lets the engine run ahead of the reader. After the reader left
   * the loop: what there was, with `finishReason` `'other'`.
   */
  get result(): Promise<GenerateResult<T>> {
    const result = this.#channel.start(this.#reader);
    this.#channel.unbound();
    return result as Promise<GenerateResult<T>>;
  }

  [Symbol.asyncIterator](): AsyncGenerator<StreamPart<T>, void, undefined> {
    return new Reader(this.#channel, this.#reader) as AsyncGenerator<StreamPart<T>, void, undefined>;
  }

  /** Instead of the parts: with `schema` or `json` the value so far, each time that it has grown. A stream is read only once. */
  async *partialObjects(): AsyncGenerator<DeepPartial<T>, void, undefined> {
    for await (const part of this) if ('object' in part) yield part.object as DeepPartial<T>;
  }
}
