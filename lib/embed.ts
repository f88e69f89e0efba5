// gemma.embed: from texts and what they are for to batches of token ids, and from the rows of these to one array.
import { Cancellation } from './cancellation.js';
import { promptOf, type EmbeddingPrompts, type PromptChoice } from './embedding-prompts.js';
import { GemmaError } from './errors.js';
import type { NativeAdapterUse, NativeEmbedEvent, NativeModel, NativeModelInfo, PromptPart } from './native.js';
import { runReporting } from './operation.js';
import type { Priority } from './options.js';
import { encodeParts } from './token-text.js';
import { allocateFloats, Pace } from './turns.js';
import { show } from './values.js';

type EmbedInfo = Pick<NativeModelInfo, 'contextSize' | 'longestToken' | 'textStart' | 'textEnd'>;

/** Embeddings of texts, in their order. */
export interface Embeddings {
  /** row-major `shape` */
  data: Float32Array;
  /** [texts, dimensions] */
  shape: [number, number];
  /** prompts and the tokens around each text included */
  usage: { inputTokens: number };
}

/** The options, defaults filled in. */
export interface EmbedSettings extends PromptChoice {
  dimensions: number;
  normalize: boolean;
  truncate: boolean;
  adapter: readonly NativeAdapterUse[];
  priority: Priority;
}

/** Texts as native code takes them together. */
interface Batch {
  /** of all texts */
  first: number;
  tokens: Int32Array;
  lengths: Int32Array;
}

const MAX_TEXTS = 65_536;
const MAX_TOKENS = 1 << 24;

// A batch: few enough that its tokens are copied at once, and that native code takes them (kMaxTextTokens).
const BATCH_TEXTS = 256;
const BATCH_CHARACTERS = 1 << 17;

// So many batches wait in the engine, which has always one to go on with.
const BATCHES_AHEAD = 2;

/**
 * The list, when it is one. The texts themselves are looked at later, with turns of the event loop in between.
 *
 * @throws TypeError, RangeError
 */
export function textList(texts: unknown): readonly unknown[] {
  if (typeof texts === 'string') return [texts];
  if (!Array.isArray(texts)) {
    throw new TypeError(`texts: expected a string or an array of strings, found ${show(texts)}`);
  }
  const { length } = texts;
  if (length === 0) throw new RangeError('texts: expected at least one, found none');
  if (length > MAX_TEXTS) throw new RangeError(`texts: expected at most ${MAX_TEXTS}, found ${length}`);
  return texts.slice() as unknown[];
}

/** The tokens of texts in batches. */
class Batches {
  readonly all: Batch[] = [];
  nTokens = 0;
  readonly #model: NativeModel;
  readonly #info: EmbedInfo;
  readonly #truncate: boolean;
  #texts: string[] = [];
  #characters = 0;
  #first = 0;

  constructor(model: NativeModel, info: EmbedInfo, truncate: boolean) {
    this.#model = model;
    this.#info = info;
    this.#truncate = truncate;
  }

  async add(text: string, signal: AbortSignal): Promise<void> {
    const { contextSize, longestToken } = this.#info;
    // No token stands for more than so many bytes, and a character has at least one.
    if (!this.#truncate && text.length > contextSize * longestToken) {
      this.#tooLong(this.#first + this.#texts.length, `${text.length} characters`);
    }
    if (this.#characters + text.length > BATCH_CHARACTERS) await this.flush(signal);
    this.#texts.push(text);
    this.#characters += text.length;
    if (this.#texts.length === BATCH_TEXTS) await this.flush(signal);
  }

  async flush(signal: AbortSignal): Promise<void> {
    const texts = this.#texts;
    if (texts.length === 0) return;
    const { textStart, textEnd, contextSize } = this.#info;
    const start = -1 - textStart;
    const ids = await encodeParts(
      this.#model,
      texts.flatMap((text): PromptPart[] => [start, text]),
      { signal },
    );
    // No text of a user's becomes the token that begins one: from one to the next there is a text.
    const begins: number[] = [];
    for (const [at, id] of ids.entries()) if (id === textStart) begins.push(at);
    if (begins.length !== texts.length) {
      throw new GemmaError('ERR_UNSUPPORTED_MODEL', "the vocabulary's <bos> is part of ordinary text", 'NO_MARKER');
    }
    const nEnd = textEnd < 0 ? 0 : 1;
    const tokens = new Int32Array(ids.length + nEnd * texts.length);
    const lengths = new Int32Array(texts.length);
    let n = 0;
    for (const [i, begin] of begins.entries()) {
      const room = contextSize - nEnd;
      let length = (begins[i + 1] ?? ids.length) - begin;
      if (length > room) {
        if (!this.#truncate) this.#tooLong(this.#first + i, `${length + nEnd} tokens`);
        length = room; // as sentence-transformers cuts: the end of the text, not the token behind it
      }
      tokens.set(ids.subarray(begin, begin + length), n);
      n += length;
      if (nEnd > 0) tokens[n++] = textEnd;
      lengths[i] = length + nEnd;
    }
    this.nTokens += n;
    if (this.nTokens > MAX_TOKENS) throw new RangeError(`texts: expected at most ${MAX_TOKENS} tokens, found more`);
    this.all.push({ first: this.#first, tokens: tokens.slice(0, n), lengths });
    this.#first += texts.length;
    this.#texts = [];
    this.#characters = 0;
  }

  #tooLong(i: number, found: string): never {
    throw new GemmaError(
      'ERR_CONTEXT_FULL',
      `texts[${i}] of ${found} does not fit into the context of ${this.#info.contextSize} positions: cut it yourself, or with ` +
        'truncate: true',
      'CONTEXT_OVERFLOW',
    );
  }
}

/**
 * Embeddings of texts. All of them are tokenised before the first is computed, so that one that is too long costs nothing.
 *
 * @param texts of textList()
 * @throws TypeError, RangeError; GemmaError `ERR_CONTEXT_FULL`, `ERR_UNSUPPORTED_INPUT` (`NO_TASKS`) and those of native code; the
 *   signal's reason
 */
export async function embedTexts(
  model: NativeModel,
  info: EmbedInfo,
  prompts: EmbeddingPrompts,
  texts: readonly unknown[],
  settings: EmbedSettings,
  onProgress: ((fraction: number) => void) | undefined,
  cancellation: Cancellation,
): Promise<Embeddings> {
  const { dimensions, normalize, truncate, adapter: adapters, priority } = settings;
  if (info.textStart < 0) {
    throw new GemmaError('ERR_UNSUPPORTED_MODEL', "the model's vocabulary has no <bos>", 'NO_MARKER');
  }
  const { signal } = cancellation;
  const prompt = promptOf(settings, prompts, texts.length);
  const batches = new Batches(model, info, truncate);
  const pace = new Pace(signal);
  for (const [i, text] of texts.entries()) {
    if (typeof text !== 'string') throw new TypeError(`texts[${i}]: expected a string, found ${show(text)}`);
    await batches.add(prompt(i) + text, signal);
    if (pace.due) await pace.turn();
  }
  await batches.flush(signal);

  const data = allocateFloats(
    texts.length * dimensions,
    (size) => `the embeddings take ${size}, more than there is; ask for fewer texts at a time`,
  );
  const waiting = batches.all.values();
  let nDone = 0;
  const work = async () => {
    for (const { first, tokens, lengths } of waiting) {
      if (cancellation.cancelled) return;
      const own = new Cancellation(); // one stops one operation
      const stop = () => own.cancel(signal.reason);
      signal.addEventListener('abort', stop, { once: true });
      let next = 0;
      const start = (listener: (event: NativeEmbedEvent) => void) =>
        model.embed(
          { tokens, lengths, dimensions, normalize, adapters, background: priority === 'background' },
          listener,
        );
      await runReporting<NativeEmbedEvent>(
        { start, stop: (id) => model.cancel(id) },
        ({ first: from, rows }) => {
          data.set(rows, (first + from) * dimensions);
          for (const end = from + rows.length / dimensions; next < end; ++next) nDone += lengths[next] ?? 0;
          onProgress?.(nDone / batches.nTokens);
        },
        own,
      ).finally(() => signal.removeEventListener('abort', stop));
    }
  };
  // One that fails stops the other; the first error counts.
  let failure: { error: unknown } | undefined;
  await Promise.all(
    Array.from({ length: BATCHES_AHEAD }, () =>
      work().catch((error: unknown) => {
        failure ??= { error };
        cancellation.cancel();
      }),
    ),
  );
  if (failure) throw failure.error;
  return { data, shape: [texts.length, dimensions], usage: { inputTokens: batches.nTokens } };
}
