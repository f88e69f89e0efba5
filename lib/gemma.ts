import { freemem } from 'node:os';
import { addonFor, allBackends, allDevices, type Backend } from './backends.js';
import { abortable, Cancellation } from './cancellation.js';
import { EmbeddingCache, fileIdentity } from './embedding-cache.js';
import { GemmaError } from './errors.js';
import { emptyResult, GemmaStream, runGeneration, type GenerateResult, type Sink } from './generation.js';
import { drawCrops, prepareImage, readImage, type ImageInput } from './image.js';
import { demoModel, findModelFile, findVisionFile, type VisionFile } from './model-files.js';
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
  type NativeGenerateParams,
  type NativeModel,
  type NativeModelInfo,
  type PromptPart,
  type TokenScore,
} from './native.js';
import * as check from './options.js';
import { PromptBuilder, type Input, type Prompt } from './prompt.js';
import { ImageEncoder, type ImageEmbedding } from './vision.js';
import type {
  CropsOptions,
  EmbedImageOptions,
  EstimateOptions,
  GenerateOptions,
  InspectOptions,
  LoadOptions,
  LogitsOptions,
  PerplexityOptions,
  PromptOptions,
} from './options.js';

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

const DEFAULT_PREFIX_CACHE = 512 << 20; // without a vision encoder the engine keeps nothing
const MEMORY_KEYS = ['weightsBytes', 'kvBytes', 'scratchBytes', 'screenBytes', 'visionBytes', 'totalBytes'] as const;

function visionSettings({ path, wanted }: VisionFile): { mmproj?: string; vision: boolean } {
  return { ...(path !== undefined && { mmproj: path }), vision: wanted };
}

// How far the engine may run ahead of a stream's reader, in events.
const MAX_UNREAD = 256;

function availableMemory(): number {
  const limit = process.constrainedMemory(); // of the container; 0 or huge without one
  return limit > 0 ? Math.min(freemem(), limit) : freemem();
}

/**
 * A Gemma 3 model in memory. All methods may be called at any time and side by side: the engine serves all calls of a model
 * together. Nothing here computes on the JavaScript thread.
 *
 * Failures are `GemmaError`s with a `code`, wrong arguments `TypeError` or `RangeError`; all arrive as rejections. After
 * `dispose()` every call is `ERR_DISPOSED`.
 */
export class Gemma {
  /**
   * Path of the small model inside this package, which `load('demo')` loads: for a first try and for tests. It describes pictures
   * of coloured shapes, reads short words, and knows a few sentences; it is a demonstration, not Google's Gemma.
   */
  static readonly demoModel: string = demoModel;

  /** Where the model runs and what it is. */
  readonly info: ModelInfo;
  readonly #model: NativeModel;
  readonly #prompts: PromptBuilder;
  readonly #encoder: ImageEncoder | undefined;
  #disposed: Promise<void> | undefined;

  private constructor(model: NativeModel, loadMs: number, cache: EmbeddingCache, noVision: string) {
    this.#model = model;
    this.info = { ...model.info(), loadMs };
    const live = () => this.#live();
    const { vision, config } = this.info;
    if (vision) {
      this.#encoder = new ImageEncoder(live, vision.imageSize, vision.tokensPerImage, config.modelDim, cache);
    }
    this.#prompts = new PromptBuilder(live, this.info, this.#encoder, noVision);
  }

  /**
   * Loads a model.
   *
   * @param model path or `file:` URL of a GGUF file (of a split model the first), or of a folder that holds one model; `'demo'` is the
   * demonstration model inside this package (`Gemma.demoModel`), `'./demo'` a folder of that name
   * @throws GemmaError `ERR_FILE`, `ERR_GGUF_INVALID` (with a detail), `ERR_UNSUPPORTED_MODEL`, `ERR_OUT_OF_MEMORY`,
   * `ERR_BACKEND_UNAVAILABLE`
   */
  static async load(model: string | URL, options: LoadOptions = {}): Promise<Gemma> {
    const settings = check.loadOptions(options);
    const { maxBytes, folder } = check.imageCacheOptions(options);
    const { onProgress } = options;
    return abortable(options.signal, async (cancellation) => {
      const path = await findModelFile(model);
      const draft = options.draft === undefined ? undefined : await findModelFile(options.draft, 'draft');
      const vision = await findVisionFile(path, options.mmproj);
      const backend = await addonFor(settings.device ?? 'auto');
      const start = performance.now();
      const native = await new Promise<NativeModel>((resolve, reject) => {
        const files = { path, ...(draft !== undefined && { draft }), ...visionSettings(vision) };
        const id = backend.load({ prefixCacheBytes: DEFAULT_PREFIX_CACHE, ...files, ...settings }, (event) => {
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
        cancellation.onCancel(() => backend.cancel(id));
      });
      const loadMs = performance.now() - start;
      // What an embedding depends on beside the picture: the encoder's weights and its arithmetic.
      const precision = native.info().vision?.precision ?? '';
      const identity = async () => `${await fileIdentity(vision.path ?? path)} ${precision}`;
      const cache = new EmbeddingCache(maxBytes, folder === undefined ? undefined : { path: folder, identity });
      return new Gemma(native, loadMs, cache, vision.reason);
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
    const vision = visionSettings(await findVisionFile(path, options.mmproj));
    const summary = await addon().inspect({ path, contexts: [contextSize], ...vision, ...settings });
    const [plan] = summary.memory;
    if (!plan) throw new GemmaError('ERR_INTERNAL', 'no memory plan');
    if (options.draft !== undefined) {
      const draft = await findModelFile(options.draft, 'draft');
      const beside = await addon().inspect({ path: draft, contexts: [plan.contextSize], vision: false, ...settings });
      for (const key of MEMORY_KEYS) {
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
    const vision = visionSettings(await findVisionFile(path, options.mmproj));
    const ladder = contexts ?? DEFAULT_CONTEXT_LADDER;
    const summary = await addon().inspect({ path, contexts: ladder, ...vision, ...settings });
    if (!contexts) {
      const { trainedContext } = summary.config;
      summary.memory = summary.memory.filter((plan) => plan.contextSize <= trainedContext);
    }
    return summary;
  }

  /** What can be computed on here: the CPU, then GPUs, with the reason where one cannot be used. */
  static async devices(): Promise<Device[]> {
    return allDevices();
  }

  /**
   * What models can be computed with here: this package for the CPU, the optional packages for GPUs (`gemma-native-cuda`,
   * `gemma-native-rocm`). Says which of them `device: 'auto'` takes and why, and why the others are not there.
   */
  static async backends(): Promise<Backend[]> {
    return allBackends();
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

  /** The backend that was compiled into this package's addon: `'cpu'`, in a clone also `'cuda'` or `'rocm'`. */
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
    const { params, prompt: settings } = check.generateOptions(options);
    return abortable(options.signal, async (cancellation) => {
      const prompt = await this.#promptFor(input, settings, params.maxOutputTokens, options, cancellation);
      return this.#generate(prompt, { ...params, maxUnread: 0 }, options, cancellation);
    });
  }

  /**
   * Answers a prompt piece by piece: `for await (const part of gemma.stream(...))`, each part whole characters. `.result` is a
   * promise of what `generate` would return. Options that are wrong throw here, everything else when the stream is read.
   */
  stream(input: Input, options: GenerateOptions = {}): GemmaStream {
    const { params, prompt: settings } = check.generateOptions(options);
    const cancellation = new Cancellation();
    const run = async (sink: Sink) => {
      try {
        const prompt = await this.#promptFor(input, settings, params.maxOutputTokens, options, cancellation);
        return await this.#generate(prompt, { ...params, maxUnread: MAX_UNREAD }, options, cancellation, sink);
      } catch (error) {
        // Left while its pictures were being encoded.
        const left = cancellation.cancelled && error instanceof GemmaError && error.code === 'ERR_DISPOSED';
        if (left && !this.#disposed) return emptyResult(params.seed);
        throw error;
      }
    };
    return new GemmaStream((sink) => abortable(options.signal, () => run(sink), cancellation), cancellation);
  }

  /** How many tokens the prompt of an input has, template, `<bos>` and pictures included. Encodes no picture. */
  async countTokens(input: Input, options: PromptOptions = {}): Promise<number> {
    return (await this.#prompts.layOut(input, check.checkPromptOptions(options))).tokens.length;
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
    const { all, rows, top, prompt } = check.logitsOptions(options);
    const { onRow } = options;
    return abortable(options.signal, async (cancellation) => {
      const { tokens, images } = await this.#promptFor(input, prompt, 0, {}, cancellation);
      const vocabulary = this.info.config.vocabularySize;
      const positions = all ? tokens.length : 1;
      const first = tokens.length - positions;
      const collect = rows && !onRow;
      const data = allocate(collect ? positions * vocabulary : 0);
      const best: TokenScore[][] = [];
      await this.#evaluate({ tokens, images, all, rows, top, next: false }, cancellation, (event) => {
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

  /**
   * What the vision encoder makes of a picture, or of several: rows of the model's width, to compare pictures by (with
   * `pooling: 'mean'`) or to put into messages instead of the picture. Pictures that were seen before come from the cache.
   *
   * @throws GemmaError `ERR_UNSUPPORTED_INPUT` (`NO_VISION`), `ERR_FILE`, `ERR_IMAGE`; as `generate`
   */
  embedImage(image: ImageInput, options?: EmbedImageOptions): Promise<ImageEmbedding>;
  embedImage(images: readonly ImageInput[], options?: EmbedImageOptions): Promise<ImageEmbedding[]>;
  async embedImage(
    image: ImageInput | readonly ImageInput[],
    options: EmbedImageOptions = {},
  ): Promise<ImageEmbedding | ImageEmbedding[]> {
    const { limits, crops: cut, pooling } = check.embedImageOptions(options);
    const several = Array.isArray(image);
    const images = (several ? image : [image]) as readonly ImageInput[];
    return abortable(options.signal, async (cancellation) => {
      const { encoder, imageSize, tokensPerImage } = this.#prompts.vision();
      const { modelDim } = this.info.config;
      const crops: Crop[][] = [];
      const squares = await encoder.embed(
        images.length,
        async (i) => {
          const name = several ? `images[${i}]` : 'image';
          if (cancellation.cancelled) throw new GemmaError('ERR_DISPOSED', 'cancelled');
          const pixels = await readImage(images[i] as ImageInput, name, limits, options.signal);
          const prepared = await prepareImage(pixels, imageSize, cut);
          crops[i] = prepared.crops;
          return prepared;
        },
        cancellation,
        options.onProgress,
      );
      const results = squares.map((rows, i): ImageEmbedding => {
        const data = new Float32Array(rows.length * tokensPerImage * modelDim);
        rows.forEach((square, k) => data.set(square, k * tokensPerImage * modelDim));
        const shape: [number, number] = [rows.length * tokensPerImage, modelDim];
        const embedding = { data, shape, crops: crops[i] ?? [] };
        return pooling === 'mean' ? meanOf(embedding) : embedding;
      });
      return several ? results : (results[0] as ImageEmbedding);
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

  async #promptFor(
    input: Input,
    settings: check.PromptSettings,
    maxOutputTokens: number,
    { onProgress, signal }: Pick<GenerateOptions, 'onProgress' | 'signal'>,
    cancellation: Cancellation,
  ): Promise<Prompt> {
    const layout = await this.#prompts.layOut(input, settings, { maxOutputTokens, signal });
    return this.#prompts.fill(layout, cancellation, (fraction) => onProgress?.({ stage: 'images', fraction }));
  }

  #generate(
    { tokens, images, imageTokens }: Prompt,
    params: Omit<NativeGenerateParams, 'tokens' | 'images'>,
    { onProgress }: GenerateOptions,
    cancellation: Cancellation,
    sink?: Sink,
  ): Promise<GenerateResult> {
    const onPrompt = onProgress && ((fraction: number) => onProgress({ stage: 'prompt', fraction }));
    return runGeneration(this.#live(), { ...params, tokens, images }, imageTokens, cancellation, onPrompt, sink);
  }

  #evaluate(
    params: NativeEvaluateParams,
    cancellation: Cancellation,
    onPosition: (event: Extract<NativeEvaluateEvent, { kind: 'position' }>) => void,
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      const model = this.#live();
      const id = model.evaluate(params, (event) => {
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
      cancellation.onCancel(() => model.cancel(id));
    });
  }
}

function meanOf({ data, shape: [n, width], crops }: ImageEmbedding): ImageEmbedding {
  const sums = new Float64Array(width);
  for (let i = 0; i < data.length; ++i) sums[i % width] = (sums[i % width] ?? 0) + (data[i] ?? NaN);
  return { data: Float32Array.from(sums, (sum) => sum / n), shape: [1, width], crops };
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
