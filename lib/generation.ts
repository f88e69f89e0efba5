// One generation: parameters to the engine, its events to text and a result.
import type { Cancellation } from './cancellation.js';
import { GemmaError } from './errors.js';
import type { NativeGenerateEvent, NativeGenerateParams, NativeModel, TokenScore } from './native.js';

/**
 * `stop`: the model ended its answer, or a stop sequence came; `length`: `maxOutputTokens` or the context's end; `other`: the
 * reader left the stream. (`tool-calls` and `error` are for later versions; errors reject.)
 */
export type FinishReason = 'stop' | 'length' | 'tool-calls' | 'error' | 'other';

export interface Usage {
  inputTokens: number;
  outputTokens: number;
  /** of the input tokens, those of images */
  imageTokens: number;
  /** of the input tokens, those that were not computed again */
  cachedInputTokens: number;
}

export interface Timings {
  /** waiting for other calls */
  queueMs: number;
  /** from the first prompt token to the first logits */
  prefillMs: number;
  /** after the first token */
  decodeMs: number;
  prefillTokensPerSecond: number;
  decodeTokensPerSecond: number;
  /** tokens guessed ahead (option `draft`), and how many of them were right: those came without a step of their own */
  draftedTokens: number;
  acceptedTokens: number;
}

/** A generated token with its log-probability and the likeliest alternatives, best first. */
export interface TokenLogprobs extends TokenScore {
  top: TokenScore[];
}

export interface GenerateResult {
  text: string;
  finishReason: FinishReason;
  usage: Usage;
  timings: Timings;
  /** ids generated, an end token included */
  tokens: number[];
  /** gives the same text again */
  seed: number;
  /** the stop sequence that ended the text, if one did */
  stopSequence?: string;
  /** one entry a token, when asked for */
  logprobs?: TokenLogprobs[];
}

/** A piece of a streamed answer: whole characters, and the tokens that ended with them. */
export interface StreamPart {
  type: 'text';
  text: string;
  tokens: number[];
}

export interface Sink {
  /** Takes a piece of text made of so many events of the engine. */
  part(part: StreamPart, events: number): void;
  /** How the reader tells the engine that it has taken so many events. */
  started(acknowledge: (events: number) => void): void;
}

function rate(tokens: number, ms: number): number {
  return ms > 0 ? (tokens * 1000) / ms : 0;
}

/** Of a generation that was left before it began. */
export function emptyResult(seed: number): GenerateResult {
  return {
    text: '',
    finishReason: 'other',
    usage: { inputTokens: 0, outputTokens: 0, imageTokens: 0, cachedInputTokens: 0 },
    timings: {
      queueMs: 0,
      prefillMs: 0,
      decodeMs: 0,
      prefillTokensPerSecond: 0,
      decodeTokensPerSecond: 0,
      draftedTokens: 0,
      acceptedTokens: 0,
    },
    tokens: [],
    seed,
  };
}

/** Settles when the engine's last event is here. A cancelled generation resolves with what there is. */
export function runGeneration(
  model: NativeModel,
  params: NativeGenerateParams,
  imageTokens: number,
  cancellation: Cancellation,
  onPrompt?: (fraction: number) => void,
  sink?: Sink,
): Promise<GenerateResult> {
  return new Promise((resolve, reject) => {
    let text = '';
    const tokens: number[] = [];
    const logprobs: TokenLogprobs[] = [];
    let newTokens: number[] = []; // since the last part
    let newEvents = 0;
    let acknowledge = (_events: number) => {};

    const emit = (piece: string) => {
      text += piece;
      if (!sink) return;
      ++newEvents;
      if (piece) {
        sink.part({ type: 'text', text: piece, tokens: newTokens }, newEvents);
        newTokens = [];
      } else {
        acknowledge(newEvents); // nothing the reader could take
      }
      newEvents = 0;
    };

    const onEvent = (event: NativeGenerateEvent) => {
      switch (event.kind) {
        case 'prefill':
          acknowledge(1);
          if (cancellation.cancelled) break;
          try {
            onPrompt?.(event.done / params.tokens.length);
          } catch (error) {
            cancellation.cancel();
            // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- the callback's own error
            reject(error);
          }
          break;
        case 'token':
          tokens.push(event.token);
          newTokens.push(event.token);
          if (event.chosen) logprobs.push({ ...event.chosen, top: event.top ?? [] });
          emit(event.text);
          break;
        case 'finish':
          emit(event.text);
          if (event.reason === 'error') {
            // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- a GemmaError made by native code
            reject(event.error);
          } else if (event.reason === 'cancelled' && !cancellation.cancelled) {
            reject(new GemmaError('ERR_DISPOSED', 'the model was disposed during a generation'));
          } else {
            resolve({
              text,
              finishReason: event.reason === 'cancelled' ? 'other' : event.reason,
              usage: {
                inputTokens: event.inputTokens,
                outputTokens: event.outputTokens,
                imageTokens,
                cachedInputTokens: event.cachedInputTokens,
              },
              timings: {
                queueMs: event.queueMs,
                prefillMs: event.prefillMs,
                decodeMs: event.decodeMs,
                prefillTokensPerSecond: rate(event.inputTokens, event.prefillMs),
                decodeTokensPerSecond: rate(Math.max(0, event.outputTokens - 1), event.decodeMs),
                draftedTokens: event.draftedTokens,
                acceptedTokens: event.acceptedTokens,
              },
              tokens,
              seed: params.seed,
              ...(event.stopSequence !== undefined && { stopSequence: event.stopSequence }),
              ...(params.logprobs > 0 && { logprobs }),
            });
          }
          break;
      }
    };
    const id = model.generate(params, onEvent);
    acknowledge = (events) => model.acknowledge(id, events);
    sink?.started(acknowledge);
    cancellation.onCancel(() => model.cancel(id));
  });
}

/**
 * A generation that can be read while it runs: `for await (const part of stream)`. It starts when it is first read, or when
 * `result` is asked for. Leaving the loop stops the work. The engine waits when the reader falls 256 tokens behind.
 */
export class GemmaStream implements AsyncIterable<StreamPart> {
  readonly #run: (sink: Sink) => Promise<GenerateResult>;
  readonly #cancellation: Cancellation;
  readonly #queue: { part: StreamPart; events: number }[] = [];
  #result: Promise<GenerateResult> | undefined;
  #acknowledge: (events: number) => void = () => {};
  #wake: () => void = () => {};
  #unbounded = false;
  #settled = false;
  #failed = false;
  #read = false;

  /** @internal */
  constructor(run: (sink: Sink) => Promise<GenerateResult>, cancellation: Cancellation) {
    this.#run = run;
    this.#cancellation = cancellation;
  }

  /**
   * The whole result, as `generate` returns it. Asking for it lets the engine run ahead of the reader. After the reader left
   * the loop: what there was, with `finishReason` `'other'`.
   */
  get result(): Promise<GenerateResult> {
    const result = this.#start();
    if (!this.#unbounded) {
      this.#unbounded = true;
      for (const entry of this.#queue) {
        this.#acknowledge(entry.events);
        entry.events = 0;
      }
    }
    return result;
  }

  #start(): Promise<GenerateResult> {
    if (this.#result) return this.#result;
    this.#result = this.#run({
      started: (acknowledge) => {
        this.#acknowledge = acknowledge;
      },
      part: (part, events) => {
        if (this.#unbounded) this.#acknowledge(events);
        this.#queue.push({ part, events: this.#unbounded ? 0 : events });
        this.#wake();
      },
    });
    this.#result.then(
      () => {
        this.#settled = true;
        this.#wake();
      },
      () => {
        this.#settled = this.#failed = true;
        this.#wake();
      },
    );
    return this.#result;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<StreamPart, void, undefined> {
    if (this.#read) throw new TypeError('a stream can be read only once');
    this.#read = true;
    const result = this.#start();
    try {
      for (;;) {
        // Aborted or failed: throws, and what is still in the queue is dropped.
        if (this.#failed || this.#cancellation.cancelled) await result;
        const entry = this.#queue.shift();
        if (entry) {
          if (entry.events > 0) this.#acknowledge(entry.events);
          yield entry.part;
        } else if (this.#settled) {
          return;
        } else {
          await new Promise<void>((resolve) => (this.#wake = resolve));
        }
      }
    } finally {
      this.#cancellation.cancel(); // nothing to stop after the end
    }
  }
}
