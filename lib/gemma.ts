import { readdir, stat } from 'node:fs/promises';
import { freemem } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { abortable, Cancellation } from './cancellation.js';
import { renderChat, type Message } from './chat-template.js';
import { GemmaError } from './errors.js';
import { drawCrops, readImage, type ImageInput } from './image.js';
import { GemmaStream, runGeneration, type GenerateResult } from './generation.js';
import {
  addon,
  MARKER_BOS,
  type Crop,
  type Device,
  type EngineStats,
  type MemoryPlan,
  type ModelSummary,
  type NativeEvaluateEvent,
  type NativeEvaluateParams,
  type NativeModel,
  type NativeModelInfo,
  type PromptPart,
  type TokenScore,
} from './native.js';
import * as check from './options.js';
import type {
  CropsOptions,
  EstimateOptions,
  GenerateOptions,
  InspectOptions,
  LoadOptions,
  LogitsOptions,
  PerplexityOptions,
  PromptOptions,
} from './options.js';

/**
 * What a model is asked: a string (one user turn for an instruction-tuned model, text to continue for a pretrained one or with
 * `raw: true`), a conversation, or token ids taken as they are.
 */
export type Input = string | readonly Message[] | readonly number[];

/** A loaded model: where it runs and what it is. */
export interface ModelInfo extends NativeModelInfo {
  /** time `Gemma.load` took */
  loadMs: number;
}

/** Whether a model fits into this machine's memory. */
export interface Estimate extends MemoryPlan {
  contextSize: number;
  /** memory this process could use now */
  availableBytes: number;
  fits: boolean;
}

export interface LogitsResult {
  /** ids of the input */
  tokens: number[];
  /** row-major `shape`; empty with `data: false` or `onRow` */
  data: Float32Array;
  /** [positions, vocabulary] */
  shape: [number, number];
  /** per position the best tokens, when asked for with `top` */
  top?: TokenScore[][];
}

export interface PerplexityResult {
  /** exp of the mean negative log-likelihood */
  perplexity: number;
  /** mean negative log-likelihood, natural logarithm */
  nll: number;
  /** predictions the mean is over */
  tokens: number;
}

export interface CropsResult {
  /** of the picture, upright */
  width: number;
  height: number;
  /** in the order in which the model sees them, after the whole picture */
  crops: Crop[];
  /** with `draw`: the picture with the frames of the crops, a PNG file */
  png?: Uint8Array;
}

const DEFAULT_CONTEXT_LADDER = [2048, 8192, 32768, 131072];

// How far the engine may run ahead of a stream's reader, in events.
const MAX_UNREAD = 256;

async function findModelFile(model: string | URL, name = 'model'): Promise<string> {
  let path: string;
  if (model instanceof URL || (typeof model === 'string' && model.startsWith('file:'))) {
    const url = new URL(model);
    if (url.protocol !== 'file:') throw new TypeError(`${name}: expected a path or a file: URL, found ${url.protocol}`);
    path = fileURLToPath(url);
  } else if (typeof model === 'string' && model !== '') {
    path = model;
  } else {
    throw new TypeError(`${name}: expected the path or file: URL of a GGUF file or of a folder that holds one`);
  }
  const found = await stat(path).catch((error: unknown) => {
    const reason = error instanceof Error ? error.message : String(error);
    throw new GemmaError(
      'ERR_FILE',
      `${path}: cannot be opened (${reason}). Expected a GGUF file or a folder that holds one`,
    );
  });
  if (!found.isDirectory()) return path;
  // A model in several files counts once, by its first part; vision files go beside it.
  const files = (await readdir(path))
    .filter((name) => name.endsWith('.gguf') && !/mmproj/i.test(name))
    .filter((name) => !/-\d{5}-of-\d{5}\.gguf$/.test(name) || /-00001-of-\d{5}\.gguf$/.test(name))
    .sort();
  const [file] = files;
  if (file === undefined || files.length > 1) {
    throw new GemmaError(
      'ERR_FILE',
      `${path}: expected one .gguf file in the folder, found ${files.length === 0 ? 'none' : files.join(', ')}; name the file`,
      'AMBIGUOUS_FOLDER',
    );
  }
  return join(path, file);
}

function availableMemory(): number {
  const limit = process.constrainedMemory(); // of the container; 0 or huge without one
  return limit > 0 ? Math.min(freemem(), limit) : freemem();
}

function isTokens(input: Input): input is readonly number[] {
  return Array.isArray(input) && typeof input[0] === 'number';
}

/**
 * A Gemma 3 model in memory. All methods may be called at any time and side by side: the engine serves all calls of a model
 * together. Nothing here computes on the JavaScript thread.
 *
 * Failures are `GemmaError`s with a `code`, wrong arguments `TypeError` or `RangeError`; all arrive as rejections. After
 * `dispose()` every call is `ERR_DISPOSED`.
 */
export class Gemma {
  /** Where the model runs and what it is. */
  readonly info: ModelInfo;
  readonly #model: NativeModel;
  #disposed: Promise<void> | undefined;

  private constructor(model: NativeModel, loadMs: number) {
    this.#model = model;
    this.info = { ...model.info(), loadMs };
  }

  /**
   * Loads a model.
   *
   * @param model path or `file:` URL of a GGUF file (of a split model the first), or of a folder that holds one model
   * @throws GemmaError `ERR_FILE`, `ERR_GGUF_INVALID` (with a detail), `ERR_UNSUPPORTED_MODEL`, `ERR_OUT_OF_MEMORY`,
   * `ERR_BACKEND_UNAVAILABLE`
   */
  static async load(model: string | URL, options: LoadOptions = {}): Promise<Gemma> {
    const settings = check.loadOptions(options);
    const { onProgress } = options;
    return abortable(options.signal, async (cancellation) => {
      const path = await findModelFile(model);
      const draft = options.draft === undefined ? undefined : await findModelFile(options.draft, 'draft');
      const start = performance.now();
      const native = await new Promise<NativeModel>((resolve, reject) => {
        const id = addon().load({ path, ...settings, ...(draft !== undefined && { draft }) }, (event) => {
          if (event.kind === 'progress') {
            if (cancellation.cancelled) return;
            try {
              onProgress?.(event.fraction);
            } catch (error) {
              cancellation.cancel();
              // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- the callback's own error
              reject(error);
            }
          } else if (event.kind === 'failed') {
            // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- a GemmaError made by native code
            reject(event.error);
          } else if (cancellation.cancelled) {
            void event.model.close(); // loaded just before it heard of the cancellation
          } else {
            resolve(event.model);
          }
        });
        cancellation.onCancel(() => addon().cancel(id));
      });
      return new Gemma(native, performance.now() - start);
    });
  }

  /**
   * How much memory a model takes (with `draft`: and its draft model), from its headers alone, and whether that fits this machine now. Bytes.
   *
   * @throws as `load`
   */
  static async estimate(model: string | URL, options: EstimateOptions = {}): Promise<Estimate> {
    const { contextSize = 0, ...settings } = check.estimateOptions(options);
    const path = await findModelFile(model);
    const summary = await addon().inspect({ path, contexts: [contextSize], ...settings });
    const [plan] = summary.memory;
    if (!plan) throw new GemmaError('ERR_INTERNAL', 'no memory plan');
    if (options.draft !== undefined) {
      const draft = await findModelFile(options.draft, 'draft');
      const beside = await addon().inspect({ path: draft, contexts: [plan.contextSize], ...settings });
      for (const key of ['weightsBytes', 'kvBytes', 'scratchBytes', 'screenBytes', 'totalBytes'] as const) {
        plan[key] += beside.memory[0]?.[key] ?? 0;
      }
    }
    const availableBytes = availableMemory();
    return { ...plan, availableBytes, fits: plan.totalBytes <= availableBytes };
  }

  /**
   * What the headers of a model file say: configuration, tensor types, memory per context size. The weights are not read.
   *
   * @throws as `load`
   */
  static async inspect(model: string | URL, options: InspectOptions = {}): Promise<ModelSummary> {
    const { contexts, ...settings } = check.inspectOptions(options);
    const path = await findModelFile(model);
    const summary = await addon().inspect({ path, contexts: contexts ?? DEFAULT_CONTEXT_LADDER, ...settings });
    if (!contexts) {
      const { trainedContext } = summary.config;
      summary.memory = summary.memory.filter((plan) => plan.contextSize <= trainedContext);
    }
    return summary;
  }

  /** The devices this build can compute on, usable ones first, and the instruction set each would take. */
  static async devices(): Promise<Device[]> {
    return addon().devices();
  }

  /**
   * How a picture is cut, without a model: by Pan & Scan (the default here) or into tiles.
   *
   * @throws GemmaError `ERR_FILE`, `ERR_IMAGE` (`IMAGE_LIMIT`, `IMAGE_DECODE`, `IMAGE_FETCH`, `SSRF_BLOCKED`)
   */
  static async crops(image: ImageInput, options: CropsOptions = {}): Promise<CropsResult> {
    const { limits, crops: cut, draw } = check.cropsOptions(options);
    return abortable(options.signal, async () => {
      const pixels = await readImage(image, 'image', limits, options.signal);
      const { width, height } = pixels;
      const crops = addon().cropBoxes({ width, height, ...cut });
      return { width, height, crops, ...(draw && { png: await drawCrops(pixels, crops) }) };
    });
  }

  /** The backend that was compiled in: `'cpu'`. */
  static get backend(): string {
    return addon().backend;
  }

  /**
   * Answers a prompt.
   *
   * @throws GemmaError `ERR_CONTEXT_FULL` (prompt and output do not fit), `ERR_UNSUPPORTED_INPUT`, `ERR_INVALID_ARGUMENT` (roles
   * out of order, a token id past the vocabulary), `ERR_NON_FINITE`, `ERR_DISPOSED`; the signal's reason after an abort
   */
  async generate(input: Input, options: GenerateOptions = {}): Promise<GenerateResult> {
    const settings = check.generateOptions(options);
    return abortable(options.signal, async (cancellation) => {
      const tokens = await this.#encode(input, options);
      return runGeneration(this.#live(), { ...settings, tokens, maxUnread: 0 }, cancellation);
    });
  }

  /**
   * Answers a prompt piece by piece: `for await (const part of gemma.stream(...))`, each part whole characters. `.result` is a
   * promise of what `generate` would return. Options that are wrong throw here, everything else when the stream is read.
   */
  stream(input: Input, options: GenerateOptions = {}): GemmaStream {
    const settings = check.generateOptions(options);
    const cancellation = new Cancellation();
    return new GemmaStream(
      (sink) =>
        abortable(
          options.signal,
          async () => {
            const tokens = await this.#encode(input, options);
            return runGeneration(this.#live(), { ...settings, tokens, maxUnread: MAX_UNREAD }, cancellation, sink);
          },
          cancellation,
        ),
      cancellation,
    );
  }

  /** How many tokens the prompt of an input has, template and `<bos>` included. */
  async countTokens(input: Input, options: PromptOptions = {}): Promise<number> {
    check.checkPromptOptions(options);
    return (await this.#encode(input, options)).length;
  }

  /**
   * Text to token ids. Control strings such as `<start_of_turn>` stay text unless `special` is set: set it only for text you
   * wrote yourself. `bos` puts `<bos>` in front.
   */
  async tokenize(text: string, options: { special?: boolean; bos?: boolean } = {}): Promise<number[]> {
    const { special, bos } = check.tokenizeOptions(options);
    const parts: PromptPart[] = [check.text('text', text)];
    if (bos) parts.unshift(MARKER_BOS);
    return Array.from(await this.#live().encode(parts, special));
  }

  /**
   * Token ids to text; bytes that are no UTF-8 become U+FFFD. Control tokens are written out unless `special` is false.
   *
   * @throws GemmaError `ERR_INVALID_ARGUMENT` for an id past the vocabulary
   */
  async detokenize(ids: readonly number[], options: { special?: boolean } = {}): Promise<string> {
    const { special } = check.detokenizeOptions(options);
    return this.#live().decode(check.tokenIds('ids', ids), special);
  }

  /**
   * The model's scores for the token after the input (`all`: after every token of it), before any sampling: float32, natural
   * units. A position takes four bytes for each entry of the vocabulary, about 1 MB; `onRow` or `top` with `data: false` avoid
   * holding many.
   *
   * @throws as `generate`
   */
  async logits(input: Input, options: LogitsOptions = {}): Promise<LogitsResult> {
    const { all, rows, top } = check.logitsOptions(options);
    const { onRow } = options;
    return abortable(options.signal, async (cancellation) => {
      const tokens = await this.#encode(input, options);
      const vocabulary = this.info.config.vocabularySize;
      const positions = all ? tokens.length : 1;
      const first = tokens.length - positions;
      const collect = rows && !onRow;
      const data = allocate(collect ? positions * vocabulary : 0);
      const best: TokenScore[][] = [];
      await this.#evaluate({ tokens, all, rows, top, next: false }, cancellation, (event) => {
        if (event.top) best.push(event.top);
        if (!event.row) return;
        if (collect) data.set(event.row, (event.position - first) * vocabulary);
        onRow?.(event.row, event.position);
      });
      return {
        tokens: Array.from(tokens),
        data,
        shape: [positions, vocabulary] as [number, number],
        ...(top > 0 && { top: best }),
      };
    });
  }

  /**
   * How well the model predicts a text (or token ids, without `<bos>`): cut into chunks of `contextSize` tokens, each beginning
   * with `<bos>`, every following token counted.
   *
   * @throws RangeError for an empty text; otherwise as `generate`
   */
  async perplexity(text: string | readonly number[], options: PerplexityOptions = {}): Promise<PerplexityResult> {
    const { contextSize } = check.perplexityOptions(options, this.info.contextSize);
    return abortable(options.signal, async (cancellation) => {
      const ids = typeof text === 'string' ? await this.#live().encode([text], false) : check.tokenIds('text', text);
      if (ids.length === 0) throw new RangeError('text: expected some text to score, found none');
      const bos = await this.#live().encode([MARKER_BOS], false);
      let sum = 0;
      for (let start = 0; start < ids.length; start += contextSize - 1) {
        const chunk = ids.subarray(start, start + contextSize - 1);
        const tokens = Int32Array.of(...bos, ...chunk);
        let scored = 0;
        await this.#evaluate({ tokens, all: true, rows: false, top: 0, next: true }, cancellation, (event) => {
          if (event.nextLogprob === undefined) return;
          sum -= event.nextLogprob;
          ++scored;
        });
        if (scored !== chunk.length) {
          throw new GemmaError('ERR_INTERNAL', `perplexity: expected ${chunk.length} scores, got ${scored}`);
        }
        options.onProgress?.(Math.min(1, (start + chunk.length) / ids.length));
      }
      const nll = sum / ids.length;
      return { perplexity: Math.exp(nll), nll, tokens: ids.length };
    });
  }

  /** What the engine is doing now. */
  stats(): EngineStats {
    return this.#live().stats();
  }

  /**
   * Stops everything under way (it rejects with `ERR_DISPOSED`) and frees the model. Resolves when all threads have ended. Any
   * number of calls. A model that is forgotten instead is freed by the garbage collector, some time.
   */
  dispose(): Promise<void> {
    this.#disposed ??= this.#model.close();
    return this.#disposed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  #live(): NativeModel {
    if (this.#disposed) throw new GemmaError('ERR_DISPOSED', 'the model was disposed; load it again to use it');
    return this.#model;
  }

  async #encode(input: Input, { raw = false, bos = true }: PromptOptions): Promise<Int32Array> {
    const model = this.#live();
    let tokens: Int32Array;
    if (typeof input === 'string') {
      const parts: PromptPart[] =
        raw || !this.info.instructionTuned
          ? [...(bos ? ([MARKER_BOS] as const) : []), input]
          : renderChat([{ role: 'user', content: input }]);
      tokens = await model.encode(parts, false);
    } else if (isTokens(input)) {
      tokens = check.tokenIds('input', input);
    } else if (Array.isArray(input)) {
      if (raw) throw new TypeError('raw: only strings can be raw text, found messages');
      tokens = await model.encode(renderChat(input as readonly Message[]), false);
    } else {
      throw new TypeError(`input: expected a string, messages or token ids, found ${typeof input}`);
    }
    if (tokens.length === 0) throw new RangeError('input: expected at least one token, found none');
    return tokens;
  }

  #evaluate(
    params: NativeEvaluateParams,
    cancellation: Cancellation,
    onPosition: (event: Extract<NativeEvaluateEvent, { kind: 'position' }>) => void,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      const id = this.#live().evaluate(params, (event) => {
        if (event.kind === 'position') {
          if (cancellation.cancelled) return;
          try {
            onPosition(event);
          } catch (error) {
            cancellation.cancel();
            // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- the callback's own error
            reject(error);
          }
        } else if (event.error !== undefined) {
          // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- a GemmaError made by native code
          reject(event.error);
        } else {
          resolve();
        }
      });
      cancellation.onCancel(() => addon().cancel(id));
    });
  }
}

function allocate(length: number): Float32Array {
  try {
    return new Float32Array(length);
  } catch {
    throw new GemmaError(
      'ERR_OUT_OF_MEMORY',
      `the logits take ${((length * 4) / 2 ** 30).toFixed(1)} GiB, more than an array can hold; use onRow, or top with data: false`,
    );
  }
}
