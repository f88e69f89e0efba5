import { totalmem } from 'node:os';
import { adapterName, adapterPaths, findAdapter } from './adapters.js';
import { addonFor, allBackends, allDevices, type Backend } from './backends.js';
import type { BatchOptions, BatchResult } from './batch.js';
import { abortable, Cancellation } from './cancellation.js';
import { decideChat, type Chat, type ChatInfo } from './chat.js';
import type { ChatOptions, RestoreChatOptions } from './chat-options.js';
import { Conversation } from './conversation.js';
import {
  decide,
  type BooleanDecision,
  type ChoiceDecision,
  type Decision,
  type ScoreDecision,
  type Scorer,
} from './decide.js';
import type {
  BooleanQuestion,
  ChoiceQuestion,
  ClassifyImageOptions,
  Question,
  RerankOptions,
  ScoreQuestion,
} from './decision-options.js';
import type { Embeddings } from './embed.js';
import type { EmbeddingCache } from './embedding-cache.js';
import { embeddingPrompts, type EmbeddingPrompts } from './embedding-prompts.js';
import { GemmaError } from './errors.js';
import { runGeneration, type Sink } from './generation.js';
import type { LocalModel } from './hub/local.js';
import { locateModel, withModelHeaders, type ModelFiles } from './hub/locate.js';
import { parseModelName } from './hub/names.js';
import type { PulledModel } from './hub/pulled.js';
import {
  hubOptions,
  localModelsOptions,
  pullOptions,
  type LocalModelsOptions,
  type PullOptions,
} from './hub-options.js';
import type { ImageSafety } from './image-safety.js';
import type { Crop, ImageEmbedding, ImageInput } from './media.js';
import { demoAdapter, demoModel, findModelFile, findVisionFile, type VisionFile } from './model-files.js';
import {
  addon,
  MARKER_BOS,
  type AdapterInfo,
  type Device,
  type EngineStats,
  type MemoryPlan,
  type NativeAdapterUse,
  type NativeAddon,
  type NativeEvaluateEvent,
  type NativeEvaluateParams,
  type NativeLoadOptions,
  type NativeModel,
  type NativeModelInfo,
  type NativeModelSummary,
  type NativeScoreEvent,
  type PromptPart,
  type TokenScore,
} from './native.js';
import type { CropParams, ImageLimits } from './media-options.js';
import { availableMemory } from './memory.js';
import { runOperation, runReporting } from './operation.js';
import * as check from './options.js';
import type { Asker } from './overflow.js';
import { PromptBuilder, type Input, type Prompt } from './prompt.js';
import type { RankedDocument } from './rerank.js';
import type { ImportanceOptions, ImportanceResult, QuantizeOptions, QuantizeResult } from './quantize.js';
import type { MergeOptions, MergeResult } from './merge.js';
import { emptyResult, type GenerateResult } from './result.js';
import type { Candidates, CandidateScore } from './score.js';
import type { FinetuneRun, LoadedModel } from './finetune/run.js';
import type { FinetuneOptions } from './finetune/options.js';
import { GemmaStream } from './stream.js';
import type { AskModel, Bound } from './tool-loop.js';
import { decodeTokens, encodeParts, plainIds, stoppable, tokenIds } from './token-text.js';
import { allocateFloats } from './turns.js';
import { show, text as checkText } from './values.js';
import type { OutputOf, StandardSchema } from './schema.js';
import type { Structure } from './structured.js';
import type { ImageEncoder } from './vision.js';
import type {
  CountTokensOptions,
  CropsOptions,
  DetokenizeOptions,
  EmbedImageOptions,
  EmbedOptions,
  EstimateOptions,
  GenerateOptions,
  InspectOptions,
  LoadAdapterOptions,
  LoadOptions,
  LogitsOptions,
  PerplexityOptions,
  ScoreOptions,
  TokenizeOptions,
  TypedByChoices,
  TypedBySchema,
} from './options.js';

// Loaded with the first call that needs them: a program that asks a model for text is not to wait for them.
const lazy = {
  get batch() {
    return require('./batch.js') as typeof import('./batch.js');
  },
  get decisionOptions() {
    return require('./decision-options.js') as typeof import('./decision-options.js');
  },
  get embed() {
    return require('./embed.js') as typeof import('./embed.js');
  },
  get local() {
    return require('./hub/local.js') as typeof import('./hub/local.js');
  },
  get pull() {
    return require('./hub/pull.js') as typeof import('./hub/pull.js');
  },
  get image() {
    return require('./image.js') as typeof import('./image.js');
  },
  get imageSafety() {
    return require('./image-safety.js') as typeof import('./image-safety.js');
  },
  get rerank() {
    return require('./rerank.js') as typeof import('./rerank.js');
  },
  get quantize() {
    return require('./quantize.js') as typeof import('./quantize.js');
  },
  get merge() {
    return require('./merge.js') as typeof import('./merge.js');
  },
  get finetune() {
    return require('./finetune/run.js') as typeof import('./finetune/run.js');
  },
  get score() {
    return require('./score.js') as typeof import('./score.js');
  },
  get toolLoop() {
    return require('./tool-loop.js') as typeof import('./tool-loop.js');
  },
  get vision() {
    return require('./vision.js') as typeof import('./vision.js');
  },
  get grammarCompiler() {
    return require('./grammar-compiler.js') as typeof import('./grammar-compiler.js');
  },
  get embeddingCache() {
    return require('./embedding-cache.js') as typeof import('./embedding-cache.js');
  },
};

/** A loaded model: where it runs and what it is. */
export interface ModelInfo extends Omit<NativeModelInfo, 'chat' | 'endTokens'> {
  /** which chat template is used, and why */
  chat: ChatInfo;
  /** a string is a turn of a conversation, unless `raw` says otherwise: `chat.template` is not `'none'` */
  instructionTuned: boolean;
  /** ids of the tokens that end an answer (`stopTokens` adds others) */
  endTokens: number[];
  /** what stands before texts that `embed` is given, by the names that its option `task` takes; empty where the model has none */
  prompts: Readonly<Record<string, string>>;
  /** the one of them that counts where neither `task` nor `prompt` is given */
  defaultPrompt?: string;
  /** time `Gemma.load` took */
  loadMs: number;
}

/** What the headers of a model file say, without loading it. */
export interface ModelSummary extends Omit<NativeModelSummary, 'chat'> {
  /** which chat template `load` would use, and why */
  chat: ChatInfo;
  instructionTuned: boolean;
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
  /** of each token but the first, its log-probability after those before it, when asked for with `next`; natural logarithm */
  nextLogprobs?: number[];
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

// Of this machine's memory, or of what the container may take, a sixteenth, and not more than long conversations gain by.
function defaultPrefixCache(): number {
  const limit = process.constrainedMemory(); // 0 or huge without one
  const memory = limit > 0 ? Math.min(totalmem(), limit) : totalmem();
  return Math.min(512 << 20, Math.floor(memory / 16));
}

function chatInfo({ template, reason, toolFormat }: Chat): { chat: ChatInfo; instructionTuned: boolean } {
  return { chat: { template, reason, toolFormat }, instructionTuned: template !== 'none' };
}

/** Works with files that have the headers at least of the models that are named. */
function withHeaders<T>(
  model: string | URL,
  options: EstimateOptions,
  work: (files: ModelFiles) => Promise<T>,
): Promise<T> {
  const hub = hubOptions(options.hub);
  return abortable(options.signal, ({ signal }) => withModelHeaders(model, options, hub, signal, work));
}

function visionSettings({ path, wanted }: VisionFile): { mmproj?: string; vision: boolean } {
  return { ...(path !== undefined && { mmproj: path }), vision: wanted };
}

// So many calls are computed together; others wait.
const MAX_RUNNING = 64;

// How far the engine may run ahead of a stream's reader, in events.
const MAX_UNREAD = 256;

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

  /**
   * Path of an adapter for that model inside this package, with which it describes its pictures as JSON and calls two tools:
   * `load('demo', { adapters: { tools: Gemma.demoAdapter } })`, then `adapter: 'tools'`. See the guide to the demonstration model.
   */
  static readonly demoAdapter: string = demoAdapter;

  /** Where the model runs and what it is. */
  readonly info: ModelInfo;
  readonly #model: NativeModel;
  readonly #prompts: PromptBuilder;
  readonly #encoder: ImageEncoder | undefined;
  readonly #cache: EmbeddingCache;
  readonly #maxQueue: number;
  readonly #path: string;
  readonly #embedding: EmbeddingPrompts;
  #calls = 0; // under way, from their beginning on
  #disposed: Promise<void> | undefined;

  private constructor(
    model: NativeModel,
    native: NativeModelInfo,
    loadMs: number,
    chat: Chat,
    cache: EmbeddingCache,
    noVision: string,
    { maxQueue, path, embedding }: { maxQueue: number; path: string; embedding: EmbeddingPrompts },
  ) {
    this.#model = model;
    this.#maxQueue = maxQueue;
    this.#path = path;
    this.#embedding = embedding;
    const { byTask, defaultTask } = embedding;
    this.info = {
      ...native,
      endTokens: Array.from(native.endTokens),
      ...chatInfo(chat),
      prompts: Object.fromEntries(byTask),
      ...(defaultTask !== undefined && { defaultPrompt: defaultTask }),
      loadMs,
    };
    this.#cache = cache;
    const live = () => this.#live();
    const { vision, config } = this.info;
    if (vision) {
      this.#encoder = new lazy.vision.ImageEncoder(
        live,
        vision.imageSize,
        vision.tokensPerImage,
        config.modelDim,
        cache,
      );
    }
    this.#prompts = new PromptBuilder(live, native, chat, this.#encoder, noVision);
  }

  /**
   * Loads a model.
   *
   * @param model path or `file:` URL of a GGUF file (of a split model the first), or of a folder that holds one, or a Hugging Face checkpoint in safetensors; `'demo'` is the
   * demonstration model inside this package (`Gemma.demoModel`), `'./demo'` a folder of that name; `'hf:org/repo'`, with `@revision`
   * and `:file` or `:quantisation` behind it where wanted, is downloaded from the Hugging Face hub unless it is here;
   * `'ollama:gemma3:4b'` and `'lmstudio:org/repo'` are what these programs have downloaded
   * @throws GemmaError `ERR_FILE`, `ERR_GGUF_INVALID` (with a detail), `ERR_UNSUPPORTED_MODEL`, `ERR_OUT_OF_MEMORY`,
   * `ERR_BACKEND_UNAVAILABLE`, `ERR_DOWNLOAD` (with a detail); with `quantize` `ERR_NON_FINITE`; of adapters as `loadAdapter`
   */
  static async load(model: string | URL, options: LoadOptions = {}): Promise<Gemma> {
    const { chatTemplate, ...settings } = check.loadOptions(options);
    const { maxBytes, folder } = check.imageCacheOptions(options);
    const queue = check.queueOptions(options);
    const named = adapterPaths('adapters', options.adapters);
    const hub = hubOptions(options.hub);
    const { onProgress } = options;
    return abortable(options.signal, async (cancellation) => {
      const files = await locateModel(model, options, hub, cancellation.signal);
      const path = await findModelFile(files.model);
      const draft = files.draft === undefined ? undefined : await findModelFile(files.draft, 'draft');
      const vision = await findVisionFile(path, files.mmproj);
      const adapters = await Promise.all(named.map(([name, file]) => findAdapter(name, file)));
      const backend = await addonFor(settings.device ?? 'auto');
      // Of what embeddings depend on: the encoder's weights. Taken before and after, as the file may be replaced while it is loaded.
      const identify = async () =>
        folder === undefined ? undefined : lazy.embeddingCache.fileIdentity(vision.path ?? path).catch(() => undefined);
      const before = await identify();
      const start = performance.now();
      const native = await loadNative(
        backend,
        {
          prefixCacheBytes: defaultPrefixCache(),
          path,
          ...(draft !== undefined && { draft }),
          ...visionSettings(vision),
          ...settings,
          adapters,
        },
        cancellation,
        onProgress,
      );
      const loadMs = performance.now() - start;
      const info = native.info();
      const identity = `${before} ${info.vision?.precision ?? ''}`; // and of the arithmetic
      const isKept = folder !== undefined && before !== undefined && before === (await identify());
      const cache = new lazy.embeddingCache.EmbeddingCache(maxBytes, isKept ? { path: folder, identity } : undefined);
      try {
        const chat = await decideChat(path, info.config.name, info.chat, chatTemplate);
        const embedding = await embeddingPrompts(path, info.config);
        return new Gemma(native, info, loadMs, chat, cache, vision.reason, { ...queue, path, embedding });
      } catch (error) {
        await native.close();
        throw error;
      }
    });
  }

  /**
   * How much memory a model takes (with `draft`: and its draft model), from its headers alone, and whether that fits this machine now. Bytes.
   *
   * @throws as `load`
   */
  static async estimate(model: string | URL, options: EstimateOptions = {}): Promise<Estimate> {
    const { contextSize = 0, ...settings } = check.estimateOptions(options);
    const named = adapterPaths('adapters', options.adapters);
    const summary = await withHeaders(model, options, async (files) => {
      const path = await findModelFile(files.model);
      const vision = visionSettings(await findVisionFile(path, files.mmproj));
      const draft = files.draft === undefined ? undefined : await findModelFile(files.draft, 'draft');
      return addon().inspect({
        prefixCacheBytes: defaultPrefixCache(),
        path,
        contexts: [contextSize],
        adapters: await Promise.all(named.map(([name, file]) => findAdapter(name, file))),
        ...(draft !== undefined && { draft }),
        ...vision,
        ...settings,
      });
    });
    const [plan] = summary.memory;
    if (!plan) throw new GemmaError('ERR_INTERNAL', 'no memory plan');
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
    return withHeaders(model, options, async (files) => {
      const path = await findModelFile(files.model);
      const vision = visionSettings(await findVisionFile(path, files.mmproj));
      const ladder = contexts ?? DEFAULT_CONTEXT_LADDER;
      const { chat, ...summary } = await addon().inspect({ path, contexts: ladder, ...vision, ...settings });
      if (!contexts) {
        const { trainedContext } = summary.config;
        summary.memory = summary.memory.filter((plan) => plan.contextSize <= trainedContext);
      }
      return { ...summary, ...chatInfo(await decideChat(path, summary.config.name, chat, undefined)) };
    });
  }

  /**
   * Has a model of the Hugging Face hub on this machine, in the cache that Python's huggingface_hub has too: asks what there is, says it
   * (`onProgress`), looks at the model's headers, and downloads what is missing. `load` does the same. What is downloaded is checked
   * against its hash and takes its name when it is whole; a download that was cut, killed or aborted goes on from where it was.
   *
   * @param model `'hf:org/repo'`, with `@revision` and `:file` or `:quantisation` behind it where wanted
   * @throws GemmaError `ERR_DOWNLOAD` (with a detail), `ERR_UNSUPPORTED_MODEL`, `ERR_GGUF_INVALID`, `ERR_FILE` (`PERMISSION`)
   */
  static async pull(model: string, options: PullOptions = {}): Promise<PulledModel> {
    const settings = pullOptions(options);
    const name = parseModelName(checkText('model', model));
    if (name.scheme !== 'hf') throw new TypeError(`model: expected hf:org/repo, found ${show(model)}`);
    return abortable(options.signal, ({ signal }) => lazy.pull.pullModel(name, settings, signal));
  }

  /**
   * The models on this machine that can be loaded: in the caches of the Hugging Face hub and of llama.cpp, of Ollama and LM Studio. Each
   * one's headers are read, so it takes a fraction of a second for each.
   */
  static async localModels(options: LocalModelsOptions = {}): Promise<LocalModel[]> {
    const { cacheDir } = localModelsOptions(options);
    return abortable(options.signal, ({ signal }) => lazy.local.listLocalModels(cacheDir, signal));
  }

  /**
   * Writes a model, or its vision encoder, in other types: a GGUF file that llama.cpp reads too. Takes GGUF files and folders of Hugging
   * Face checkpoints, of which a vision encoder becomes a second file (`mmprojOutput`). Takes memory for a few rows only, on
   * threads of its own. The output takes its name when it is whole; until then it is `OUTPUT.part`, and the same call goes on where an
   * interrupted one was (`resumedTensors`).
   *
   * @param input as `load` takes it: of floats, unless `allowRequantize`
   * @param output path or `file:` URL
   * @throws GemmaError `ERR_FILE` (`FILE_EXISTS`, `IN_USE`: another process is writing it, `DISK_FULL`, `FILE_CHANGED`,
   * `NOT_AN_IMPORTANCE_MATRIX`, `IMPORTANCE_DAMAGED`), `ERR_GGUF_INVALID`, `ERR_UNSUPPORTED_MODEL`, `ERR_UNSUPPORTED_INPUT`
   * (`REQUANTIZE`), `ERR_INVALID_ARGUMENT` (`SAME_FILE`, `NO_SUCH_TENSOR`, `IMPORTANCE_SHAPE`, `NO_MMPROJ`), `ERR_NON_FINITE` (a value that is not
   * finite in its type); the signal's reason after an abort, when nothing is written any more: the same call may follow at once
   */
  static async quantize(input: string | URL, output: string | URL, options: QuantizeOptions): Promise<QuantizeResult> {
    return lazy.quantize.quantize(input, output, options);
  }

  /**
   * Writes a model with adapters put into its weights, or the mean of two models of one shape: a GGUF file, in the way of `quantize`.
   * Values are computed in double precision. A model whose embedding is its output matrix gets an output matrix of its own where an
   * adapter changes one of the two.
   *
   * @param model as `load` takes it: of floats, unless `allowRequantize`
   * @param output path or `file:` URL
   * @throws GemmaError as `quantize`; `ERR_ADAPTER_INVALID` as `loadAdapter`, `UNSUPPORTED` for an adapter that adds biases, `CONFLICT`;
   * `ERR_INVALID_ARGUMENT` (`OTHER_MODEL`: two that do not have the same tensors, `NO_SUCH_TENSOR`, `NO_MMPROJ`)
   */
  static async merge(model: string | URL, output: string | URL, options: MergeOptions): Promise<MergeResult> {
    return lazy.merge.merge(model, output, options);
  }

  /**
   * Measures how much each input of a model's matrices counts, the mean of its square over a text, for `quantize`'s option `importance`.
   * Writes a file in the format of llama.cpp's `llama-imatrix`. Computes on the CPU.
   *
   * @param text of at least one chunk; what is left after the last whole one is not read
   * @throws GemmaError as `load`, `ERR_INVALID_ARGUMENT` (`EMPTY`: less than a chunk), `ERR_FILE`
   */
  static async importance(
    model: string | URL,
    text: string,
    output: string | URL,
    options: ImportanceOptions = {},
  ): Promise<ImportanceResult> {
    return lazy.quantize.importance(model, text, output, options);
  }

  /**
   * Trains an adapter (LoRA) for a model on a file of examples, on the CPU, and writes it as a folder that `loadAdapter` and Python's PEFT
   * take. The model's weights, of whatever type, stay as they are. Everything is done on threads of its own. The output takes its name when
   * training is over; until then it is `OUTPUT.part`, and the same call goes on where an interrupted one was, to the same adapter.
   *
   * @returns a promise of the result that also has `pause()` and `resume()`
   * @throws GemmaError `ERR_INVALID_ARGUMENT` (`BAD_EXAMPLE`, `EXAMPLE_TOO_LONG`, with file and line; `NO_EXAMPLES`), `ERR_FILE`
   * (`FILE_EXISTS`, `IN_USE`, `DISK_FULL`, `OTHER_RUN`: what is there is of another training, `CHECKPOINT_DAMAGED`, `FILE_CHANGED`),
   * `ERR_NON_FINITE` (the learning rate is too high), `ERR_OUT_OF_MEMORY` (`NO_ROOM`), `ERR_UNSUPPORTED_MODEL`; as `load`; the signal's
   * reason after an abort
   */
  static finetune(options: FinetuneOptions): FinetuneRun {
    return lazy.finetune.startFinetuning(options, async (model, load): Promise<LoadedModel> => {
      const gemma = await Gemma.load(model, load);
      const { info } = gemma;
      return {
        path: gemma.#path,
        source: {
          prompts: gemma.#prompts,
          info,
          live: () => gemma.#live(),
          isTurn: info.instructionTuned,
        },
        hasVision: info.vision !== undefined,
        likeliest: async (tokens, top, signal) =>
          (await gemma.logits(tokens, { all: true, top, data: false, signal })).top ?? [],
        dispose: () => gemma.dispose(),
      };
    });
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
      const pixels = await lazy.image.readImage(image, 'image', limits, options.signal);
      const { width, height } = pixels;
      const crops = addon().cropBoxes({ width, height, ...cut });
      return { width, height, crops, ...(draw && { png: await lazy.image.drawCrops(pixels, crops) }) };
    });
  }

  /** The backend that was compiled into this package's addon: `'cpu'`, in a clone also `'cuda'` or `'rocm'`. */
  static get backend(): string {
    return addon().backend;
  }

  /**
   * Answers a prompt.
   *
   * @throws GemmaError `ERR_CONTEXT_FULL` (prompt and output do not fit), `ERR_UNSUPPORTED_INPUT`, `ERR_CHAT_TEMPLATE` (the model's
   * own template refuses the messages, or cannot be used), `ERR_INVALID_ARGUMENT` (roles out of order, a token id past the
   * vocabulary; with tools `UNKNOWN_CALL`, `UNANSWERED_CALL`), `ERR_NON_FINITE`, `ERR_QUEUE_FULL` (too many calls wait, see
   * `maxQueue`; `GRAMMARS`: too many large schemas), `ERR_FILE` (`FILE_CHANGED`), `ERR_DISPOSED`; with structured output `ERR_OUTPUT_INVALID` (the answer does not meet the schema, in what a grammar cannot
   * enforce), `ERR_INVALID_ARGUMENT` (`BAD_SCHEMA`, `BAD_REGEX`, `BAD_GRAMMAR`, `GRAMMAR_TOO_LARGE`); the signal's reason after an abort
   */
  generate<S extends StandardSchema>(input: Input, options: TypedBySchema<S>): Promise<GenerateResult<OutputOf<S>>>;
  generate<const T extends string>(input: Input, options: TypedByChoices<T>): Promise<GenerateResult<T>>;
  generate(input: Input, options?: GenerateOptions): Promise<GenerateResult>;
  async generate(input: Input, options: GenerateOptions = {}): Promise<GenerateResult> {
    const asked = check.generateOptions(options);
    return this.#call(options.signal, (cancellation) => this.#answer(input, asked, 0, options, cancellation));
  }

  /**
   * Answers a prompt piece by piece: `for await (const part of gemma.stream(...))`, each part whole characters. `.result` is a
   * promise of what `generate` would return. Options that are wrong throw here, everything else when the stream is read.
   */
  stream<S extends StandardSchema>(input: Input, options: TypedBySchema<S>): GemmaStream<OutputOf<S>>;
  stream<const T extends string>(input: Input, options: TypedByChoices<T>): GemmaStream<T>;
  stream(input: Input, options?: GenerateOptions): GemmaStream;
  stream(input: Input, options: GenerateOptions = {}): GemmaStream {
    const asked = check.generateOptions(options);
    const { params, stallTimeoutMs } = asked;
    const cancellation = new Cancellation();
    const run = async (sink: Sink) => {
      try {
        return await this.#answer(input, asked, MAX_UNREAD, options, cancellation, sink);
      } catch (error) {
        // Left before the prompt was read.
        const left = cancellation.cancelled && error instanceof GemmaError && error.code === 'ERR_DISPOSED';
        if (left && !this.#disposed) return emptyResult(params.seed);
        throw error;
      }
    };
    const begin = (sink: Sink) => this.#call(options.signal, () => run(sink), cancellation);
    return new GemmaStream(begin, cancellation, stallTimeoutMs);
  }

  /**
   * Begins a conversation, which keeps its messages and their tokens: each turn goes on where the last one ended. Options that are
   * wrong throw here.
   */
  chat(options: ChatOptions = {}): Conversation {
    return Conversation.begin(this.#asker(), options);
  }

  /**
   * A conversation as `save` wrote it: with this model it goes on with the same tokens. Functions, tools and schemas among the options
   * are not saved and can be given again, as can other defaults.
   *
   * @param file path or `file:` URL
   * @throws GemmaError `ERR_FILE` for a file that cannot be read, is damaged or is no saved conversation, `ERR_UNSUPPORTED_MODEL` for
   * one of another model
   */
  async restoreChat(file: string | URL, options: RestoreChatOptions = {}): Promise<Conversation> {
    const { vision, config } = this.info;
    return Conversation.restore(this.#asker(), file, options, {
      tokensPerImage: vision?.tokensPerImage,
      modelDim: config.modelDim,
    });
  }

  /** How many tokens the prompt of an input has, template, `<bos>` and pictures included. Encodes no picture. */
  async countTokens(input: Input, options: CountTokensOptions = {}): Promise<number> {
    const settings = check.countOptions(options);
    return abortable(options.signal, async ({ signal }) => {
      return (await this.#prompts.layOut(input, settings, { signal })).tokens.length;
    });
  }

  /**
   * Text to token ids. Control strings such as `<start_of_turn>` stay text unless `special` is set: set it only for text you
   * wrote yourself. `bos` puts `<bos>` in front.
   */
  async tokenize(text: string, options: TokenizeOptions = {}): Promise<number[]> {
    const { special, bos } = check.tokenizeOptions(options);
    const parts: PromptPart[] = [checkText('text', text)];
    if (bos) parts.unshift(MARKER_BOS);
    return abortable(options.signal, async ({ signal }) => {
      return plainIds(await encodeParts(this.#live(), parts, { special, signal }), signal);
    });
  }

  /**
   * Token ids to text; bytes that are no UTF-8 become U+FFFD. Control tokens are written out unless `special` is false.
   *
   * @throws GemmaError `ERR_INVALID_ARGUMENT` for an id past the vocabulary
   */
  async detokenize(ids: readonly number[], options: DetokenizeOptions = {}): Promise<string> {
    const { special } = check.detokenizeOptions(options);
    return abortable(options.signal, async ({ signal }) => {
      const tokens = await tokenIds('ids', ids, signal);
      return decodeTokens(this.#live(), tokens, { special, signal });
    });
  }

  /**
   * The model's scores for the token after the input (`all`: after every token of it), before any sampling: float32, natural
   * units. A position takes four bytes for each entry of the vocabulary, about 1 MB; `onRow` or `top` with `data: false` avoid
   * holding many.
   *
   * @throws as `generate`
   */
  async logits(input: Input, options: LogitsOptions = {}): Promise<LogitsResult> {
    const { all, rows, top, next, prompt } = check.logitsOptions(options);
    const { onRow } = options;
    return this.#call(options.signal, async (cancellation) => {
      const { tokens, images, adapters, background } = await this.#promptFor(input, prompt, 0, {}, cancellation);
      const vocabulary = this.info.config.vocabularySize;
      const positions = all ? tokens.length : 1;
      const first = tokens.length - positions;
      const collect = rows && !onRow;
      const data = allocateFloats(
        collect ? positions * vocabulary : 0,
        (size) => `the logits take ${size}, more than an array can hold; use onRow, or top with data: false`,
      );
      const best: TokenScore[][] = [];
      const nextLogprobs: number[] = [];
      await this.#evaluate({ tokens, images, adapters, background, all, rows, top, next }, cancellation, (event) => {
        if (event.top) best.push(event.top);
        if (event.nextLogprob !== undefined) nextLogprobs.push(event.nextLogprob);
        if (!event.row) return;
        if (collect) data.set(event.row, (event.position - first) * vocabulary);
        onRow?.(event.row, event.position);
      });
      return {
        tokens: Array.from(tokens),
        data,
        shape: [positions, vocabulary] as [number, number],
        ...(top > 0 && { top: best }),
        ...(next && { nextLogprobs }),
      };
    });
  }

  /**
   * How likely each candidate is to follow the input: as the beginning of the model's answer, or of what continues raw text. The input
   * is read once for all of them. For classification, multiple choice and reranking; results come in the order of the candidates.
   *
   * Input and candidates are tokenised apart: a word that continues raw text brings its space (`' Paris'` after `'... is'`), one that
   * begins an answer does not.
   *
   * @param candidates texts or token ids, 1 to 16384, together at most 262144 tokens
   * @throws RangeError for a candidate without a token; otherwise as `generate`
   */
  async score(
    input: Input,
    candidates: readonly (string | readonly number[])[],
    options: ScoreOptions = {},
  ): Promise<CandidateScore[]> {
    const { includeEnd, normalize, prompt: settings } = check.scoreOptions(options);
    const { onProgress } = options;
    const list = lazy.score.candidateList(candidates);
    return this.#call(options.signal, async (cancellation) => {
      const { signal } = cancellation;
      const model = this.#live();
      const end = includeEnd ? lazy.score.endToken(model, this.#isTurn(input, settings)) : undefined;
      const encoded = await lazy.score.encodeCandidates(model, list, this.info, end, signal);
      const longest = encoded.lengths.reduce((most, n) => Math.max(most, n), 0);
      const prompt = await this.#promptFor(input, settings, longest, {}, cancellation);
      const { logprobs, likeliest } = await this.#scoresAfter(prompt, encoded, cancellation, onProgress);
      return lazy.score.scoresOf(encoded, logprobs, likeliest, normalize, signal);
    });
  }

  /**
   * Answers a question that has a fixed set of answers, with a probability for each: yes or no (`type: 'boolean'`), one of several
   * (`'choice'`), a number on a scale (`'score'`). Nothing is generated: the input is read once, and the probabilities are those of the
   * answers as the model would begin to write them. Questions about the same input share what was computed of it.
   *
   * @param input the text, conversation or token ids that is asked about, or with `verbatim` that asks; pictures as in `generate`
   * @throws TypeError, RangeError; as `generate`
   */
  decide(input: Input, options: BooleanQuestion): Promise<BooleanDecision>;
  decide<const T extends string>(input: Input, options: ChoiceQuestion<T>): Promise<ChoiceDecision<T>>;
  decide(input: Input, options: ScoreQuestion): Promise<ScoreDecision>;
  decide(input: Input, options: Question): Promise<Decision>;
  async decide(input: Input, options: Question): Promise<Decision> {
    const asked = lazy.decisionOptions.questionOptions(options);
    return this.#call(options.signal, (cancellation) => decide(this.#scorer(), input, asked, cancellation));
  }

  /**
   * Documents in the order of their relevance to a query, the best first. The model is asked about each whether it is relevant; the
   * instruction and the query stand first and are computed once.
   *
   * @param documents 0 to 10,000 texts
   * @throws GemmaError `ERR_CONTEXT_FULL` (`CONTEXT_OVERFLOW`) for a document that does not fit, unless `truncate` is set; as `generate`
   */
  async rerank(query: string, documents: readonly string[], options: RerankOptions = {}): Promise<RankedDocument[]> {
    const { topN = Infinity, ...asked } = lazy.decisionOptions.rerankOptions(options);
    const list = lazy.decisionOptions.documentList(query, documents);
    const { onProgress } = options;
    return this.#call(options.signal, async (cancellation) => {
      const scores = await lazy.rerank.relevance(this.#scorer(), list, { query, ...asked }, cancellation, onProgress);
      const ranked = list.map((document, index) => ({ index, score: scores[index] ?? NaN, document }));
      return ranked.sort((a, b) => b.score - a.score).slice(0, topN);
    });
  }

  /**
   * Whether a picture violates safety policies, with ShieldGemma 2: for each policy the probability that it does. All pictures and
   * policies are computed together, and each picture is encoded once.
   *
   * @throws GemmaError `ERR_UNSUPPORTED_MODEL` (`NOT_SHIELDGEMMA`) for a model that does not call itself ShieldGemma, unless `force` is
   * set, and (`NO_MARKER`) for one without the words of the answers; as `embedImage`
   */
  classifyImage(image: ImageInput, options?: ClassifyImageOptions): Promise<ImageSafety>;
  classifyImage(images: readonly ImageInput[], options?: ClassifyImageOptions): Promise<ImageSafety[]>;
  async classifyImage(
    image: ImageInput | readonly ImageInput[],
    options: ClassifyImageOptions = {},
  ): Promise<ImageSafety | ImageSafety[]> {
    const {
      policies: own,
      customPolicies,
      threshold,
      force,
      limits,
      ...answers
    } = lazy.decisionOptions.classifyOptions(options);
    const policies = lazy.imageSafety.policyTexts(own, customPolicies);
    const several = Array.isArray(image);
    const images = (several ? image : [image]) as readonly ImageInput[];
    const { onProgress = () => {} } = options;
    return this.#call(options.signal, async (cancellation) => {
      this.#prompts.vision();
      if (!force) lazy.imageSafety.checkShield(this.#live().info(), this.#path);
      const squares = await this.#encode(images, several, { limits, crops: {} }, cancellation, (fraction) =>
        onProgress(fraction / 2),
      );
      const found = await lazy.imageSafety.violations(
        this.#scorer(),
        squares.map(({ rows }) => ({ rows, crops: [] })),
        policies.map(([, text]) => text),
        answers,
        cancellation,
        (fraction) => onProgress((1 + fraction) / 2),
      );
      const results = found.map((probabilities): ImageSafety => ({
        policies: policies.map(([name], i) => {
          const probability = probabilities[i] ?? NaN;
          return { name, probability, violates: probability >= threshold };
        }),
      }));
      return several ? results : (results[0] as ImageSafety);
    });
  }

  /**
   * How well the model predicts a text (or token ids, without `<bos>`): cut into chunks of `contextSize` tokens, each beginning
   * with `<bos>`, every following token counted.
   *
   * @throws RangeError for an empty text; otherwise as `generate`
   */
  async perplexity(text: string | readonly number[], options: PerplexityOptions = {}): Promise<PerplexityResult> {
    const { contextSize, adapter: adapters } = check.perplexityOptions(options, this.info.contextSize);
    return this.#call(options.signal, async (cancellation) => {
      const { signal } = cancellation;
      const ids =
        typeof text === 'string'
          ? await encodeParts(this.#live(), [text], { signal })
          : await tokenIds('text', text, signal);
      if (ids.length === 0) throw new RangeError('text: expected some text to score, found none');
      const bos = await encodeParts(this.#live(), [MARKER_BOS]);
      let sum = 0;
      for (let start = 0; start < ids.length; start += contextSize - 1) {
        const chunk = ids.subarray(start, start + contextSize - 1);
        const tokens = new Int32Array(bos.length + chunk.length);
        tokens.set(bos);
        tokens.set(chunk, bos.length);
        let scored = 0;
        const params = { tokens, adapters, all: true, rows: false, top: 0, next: true };
        await this.#evaluate(params, cancellation, (event) => {
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
   * Embeddings of texts: vectors that lie close together where the texts mean something alike. For search, clustering and
   * classification, with EmbeddingGemma or another model of sentence-transformers'; of a Gemma 3 that writes texts it is the mean of a
   * text's rows after the last norm, each of which knows what stands before it. Any number of texts in one call costs no padding, and an embedding does not depend on the others.
   * (Of pictures: `embedImage`.)
   *
   * @param texts one or several, at most 65536 with 2^24 tokens in all
   * @throws GemmaError `ERR_CONTEXT_FULL` for a text that is longer than the context (`truncate: true` cuts it), `ERR_UNSUPPORTED_INPUT`
   * (`NO_TASKS`: a task for a model that was trained with none), `ERR_INVALID_ARGUMENT` (`UNKNOWN_ADAPTER`), `ERR_NON_FINITE`, `ERR_QUEUE_FULL`, `ERR_FILE` (`FILE_CHANGED`),
   * `ERR_OUT_OF_MEMORY`, `ERR_DISPOSED`; the signal's reason after an abort
   */
  async embed(texts: string | readonly string[], options: EmbedOptions = {}): Promise<Embeddings> {
    const settings = check.embedOptions(options, this.info.config);
    const list = lazy.embed.textList(texts);
    return this.#call(options.signal, (cancellation) =>
      lazy.embed.embedTexts(this.#live(), this.info, this.#embedding, list, settings, options.onProgress, cancellation),
    );
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
    const { pooling, ...settings } = check.embedImageOptions(options);
    const several = Array.isArray(image);
    const images = (several ? image : [image]) as readonly ImageInput[];
    return this.#call(options.signal, async (cancellation) => {
      const { modelDim } = this.info.config;
      const { onProgress } = options;
      const encoded = await this.#encode(images, several, settings, cancellation, onProgress);
      const results: ImageEmbedding[] = [];
      for (const { rows, crops } of encoded)
        results.push(await lazy.vision.embeddingOf(rows, modelDim, crops, pooling));
      return several ? results : (results[0] as ImageEmbedding);
    });
  }

  /**
   * Does what a file of JSON lines asks for and writes a file of results, one for each line: `{ prompt }`, `{ messages }`, `{ embed }` or
   * `{ embedImage }`, with `id` and `options` where wanted. A line that is wrong or fails has an error as its result. Many lines are worked
   * on at once; memory does not grow with the file. An output that is there already is gone on from, so a batch that was killed or aborted
   * ends with one result for each line all the same. See the guide to batches.
   *
   * @param input path or `file:` URL
   * @param output likewise; another file than the input
   * @throws TypeError, RangeError; GemmaError `ERR_FILE` (`IN_USE`: another batch writes the output, `NOT_A_BATCH`: it holds something else,
   * `OTHER_INPUT`: results of another input, `DISK_FULL`, `PERMISSION`; `FILE_CHANGED`: the model), `ERR_INVALID_ARGUMENT` (`SAME_FILE`),
   * `ERR_DISPOSED`; the signal's reason after an abort
   */
  async batch(input: string | URL, output: string | URL, options: BatchOptions = {}): Promise<BatchResult> {
    const settings = lazy.batch.batchOptions(options);
    check.generateOptions(settings.generate);
    check.embedOptions(settings.embed, this.info.config);
    check.embedImageOptions(settings.embedImage);
    this.#live();
    return lazy.batch.runBatch(this, input, output, settings, options);
  }

  /** The adapters that are loaded, in the order of their names. */
  get adapters(): AdapterInfo[] {
    return this.#live()
      .adapters()
      .map(({ name, rank, tensors, bytes, vision }) => ({ name, rank, tensors, bytes, vision }));
  }

  /**
   * Loads an adapter (LoRA) beside the model, for calls that name it (option `adapter`). The model's weights stay as they are. Calls go on
   * meanwhile.
   *
   * @param path a folder of Hugging Face PEFT (`adapter_config.json`, `adapter_model.safetensors`), or a GGUF file of llama.cpp's
   * @throws GemmaError `ERR_ADAPTER_INVALID` (with a detail; the adapter is damaged, does not fit this model, or uses what is not
   * supported), `ERR_INVALID_ARGUMENT` (`ADAPTER_EXISTS`), `ERR_FILE`, `ERR_GGUF_INVALID`, `ERR_SAFETENSORS_INVALID`, `ERR_OUT_OF_MEMORY`,
   * `ERR_DISPOSED`; the signal's reason after an abort
   */
  async loadAdapter(name: string, path: string | URL, options: LoadAdapterOptions = {}): Promise<AdapterInfo> {
    adapterName('name', name);
    check.loadAdapterOptions(options);
    return abortable(options.signal, async ({ signal }) => {
      const source = await findAdapter(name, path);
      const { rank, tensors, bytes, vision } = await stoppable(signal, (stop) =>
        this.#live().loadAdapter(source, stop),
      );
      return { name, rank, tensors, bytes, vision };
    });
  }

  /**
   * Forgets an adapter. Calls that have begun, or wait, go on with it; its memory is given back after the last of them.
   *
   * @throws GemmaError `ERR_INVALID_ARGUMENT` (`UNKNOWN_ADAPTER`), `ERR_DISPOSED`
   */
  async unloadAdapter(name: string): Promise<void> {
    this.#live().unloadAdapter(adapterName('name', name));
  }

  /** What the engine is doing now. */
  stats(): EngineStats {
    return this.#live().stats();
  }

  /**
   * Stops everything under way (it rejects with `ERR_DISPOSED`) and frees the model. Resolves when all threads have ended. Any
   * number of calls. A model that is forgotten instead is freed by the garbage collector, some time.
   *
   * @throws GemmaError `ERR_OUT_OF_MEMORY` when there is no memory to begin; the model is as it was, and another call may succeed
   */
  async dispose(): Promise<void> {
    if (!this.#disposed) {
      const closed = this.#model.close(); // throws where there is no memory to begin
      this.#prompts.close();
      this.#disposed = closed.then(() => this.#cache.flush());
    }
    await this.#disposed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  #live(): NativeModel {
    if (this.#disposed) throw new GemmaError('ERR_DISPOSED', 'the model was disposed; load it again to use it');
    return this.#model;
  }

  #asker(): Asker {
    return {
      prompts: this.#prompts,
      contextSize: this.info.contextSize,
      live: () => this.#live(),
      call: (work, cancellation) => this.#call(undefined, work, cancellation),
      generate: (prompt, params, options, bound, cancellation, sink) =>
        this.#generate(prompt, { ...params, maxUnread: sink ? MAX_UNREAD : 0 }, options, bound, cancellation, sink),
    };
  }

  #scorer(): Scorer {
    return {
      prompts: this.#prompts,
      info: this.info,
      live: () => this.#live(),
      isTurn: (input, settings) => this.#isTurn(input, settings),
      score: async (prompt, candidates, cancellation) =>
        (await this.#scoresAfter(prompt, candidates, cancellation)).logprobs,
    };
  }

  #isTurn(input: Input, { raw }: check.PromptSettings): boolean {
    const isConversation = Array.isArray(input) && typeof input[0] !== 'number';
    return isConversation || !(raw ?? !this.info.instructionTuned);
  }

  // The rows of pictures' squares, and where the pictures were cut.
  async #encode(
    images: readonly ImageInput[],
    several: boolean,
    {
      limits,
      crops: cut,
      adapter,
      priority,
    }: { limits: ImageLimits; crops: CropParams; adapter?: readonly NativeAdapterUse[]; priority?: check.Priority },
    cancellation: Cancellation,
    onProgress?: (fraction: number) => void,
  ): Promise<{ rows: Float32Array[]; crops: Crop[] }[]> {
    const { encoder, imageSize } = this.#prompts.vision();
    const crops: Crop[][] = [];
    const squares = await encoder.embed(
      images.length,
      async (i) => {
        const name = several ? `images[${i}]` : 'image';
        if (cancellation.cancelled) throw new GemmaError('ERR_DISPOSED', 'cancelled');
        const pixels = await lazy.image.readImage(images[i] as ImageInput, name, limits, cancellation.signal);
        const prepared = await lazy.image.prepareImage(pixels, imageSize, cut);
        crops[i] = prepared.crops;
        return prepared;
      },
      cancellation,
      onProgress,
      adapter,
      priority === 'background',
    );
    return squares.map((rows, i) => ({ rows, crops: crops[i] ?? [] }));
  }

  // Runs a call that computes, when not too many are under way already.
  #call<T>(
    signal: AbortSignal | undefined,
    work: (cancellation: Cancellation) => Promise<T>,
    cancellation?: Cancellation,
  ): Promise<T> {
    const counted = async (begun: Cancellation) => {
      const most = MAX_RUNNING + this.#maxQueue;
      if (this.#calls >= most && this.#calls - this.#live().stats().paused >= most) {
        throw new GemmaError(
          'ERR_QUEUE_FULL',
          `${MAX_RUNNING} calls are being computed and ${this.#maxQueue} wait, as many as may (option maxQueue of load): try again later`,
        );
      }
      ++this.#calls;
      try {
        return await work(begun);
      } finally {
        --this.#calls;
      }
    };
    return abortable(signal, counted, cancellation);
  }

  async #promptFor(
    input: Input,
    settings: check.PromptSettings,
    maxOutputTokens: number,
    { onProgress }: Pick<GenerateOptions, 'onProgress'>,
    cancellation: Cancellation,
  ): Promise<Prompt> {
    const { signal } = cancellation;
    const layout = await this.#prompts.layOut(input, settings, { maxOutputTokens, signal, fits: true });
    signal.throwIfAborted();
    return this.#prompts.fill(layout, cancellation, (fraction) => onProgress?.({ stage: 'images', fraction }));
  }

  // Asks once, or with tools until no more are called.
  async #answer(
    input: Input,
    { params, prompt: settings }: ReturnType<typeof check.generateOptions>,
    maxUnread: number,
    options: GenerateOptions,
    cancellation: Cancellation,
    sink?: Sink,
  ): Promise<GenerateResult> {
    const ask = async (asked: Input, with_: check.PromptSettings, bound: Bound, to: Sink | undefined) => {
      const prompt = await this.#promptFor(asked, with_, params.maxOutputTokens, options, cancellation);
      return this.#generate(prompt, { ...params, maxUnread }, options, bound, cancellation, to);
    };
    const { tools } = settings;
    if (!tools?.tools.length) return ask(input, settings, {}, sink);
    const conversation = [...lazy.toolLoop.conversationOf(input, settings)];
    const used = { ...settings, images: [] }; // they stand in the messages
    const askNext: AskModel = (added, bound, to) => {
      conversation.push(...added);
      return ask(conversation, used, bound, to);
    };
    return lazy.toolLoop.answerWithTools(
      [...conversation],
      tools,
      this.#prompts,
      this.#live(),
      askNext,
      cancellation,
      sink,
    );
  }

  async #generate(
    { tokens, images, imageTokens, adapters, background }: Prompt,
    { stopTokens, structure, ...params }: check.AnswerParams & { maxUnread: number },
    { onProgress }: GenerateOptions,
    { grammar, assembler }: Bound,
    cancellation: Cancellation,
    sink?: Sink,
  ): Promise<GenerateResult> {
    const onPrompt = onProgress && ((fraction: number) => onProgress({ stage: 'prompt', fraction }));
    const stops = Int32Array.from(stopTokens, (token, i) => this.#tokenId(this.#live(), token, i));
    const compile = async (asked: Structure) =>
      lazy.grammarCompiler.compileGrammar(this.#live(), await asked.source(), cancellation.signal);
    const held = grammar ?? (structure && (await compile(structure)));
    const { result, isWhole } = await runGeneration(
      this.#live(),
      { ...params, stopTokens: stops, tokens, images, adapters, background, ...(held && { grammar: held }) },
      imageTokens,
      cancellation,
      onPrompt,
      sink,
      assembler ?? structure?.assembler(),
    );
    // Where a reader left, or a limit or a stop sequence cut it, there is no object.
    return structure && isWhole && result.finishReason === 'stop'
      ? { ...result, ...(await structure.objectOf(result.text)) }
      : result;
  }

  // A stop token by its id or its text.
  #tokenId(model: NativeModel, token: number | string, i: number): number {
    if (typeof token === 'number') return token;
    const id = model.findToken(token);
    if (id < 0) {
      throw new RangeError(
        `stopTokens[${i}]: the vocabulary has no token ${show(token)}; for text of several tokens use stopSequences`,
      );
    }
    return id;
  }

  // Of the tokens of candidates: log-probabilities, and 1 where no other token was likelier.
  async #scoresAfter(
    { tokens, images, adapters, background }: Prompt,
    { tokens: candidates, lengths }: Candidates,
    cancellation: Cancellation,
    onProgress: (fraction: number) => void = () => {},
  ): Promise<{ logprobs: Float64Array; likeliest: Uint8Array }> {
    const logprobs = new Float64Array(candidates.length);
    const likeliest = new Uint8Array(candidates.length);
    const params = { tokens, images, adapters, background, candidates, lengths };
    const start = (listener: (event: NativeScoreEvent) => void) => this.#live().score(params, listener);
    let n = 0;
    const onScores = (scores: Extract<NativeScoreEvent, { kind: 'scores' }>) => {
      logprobs.set(scores.logprobs, n);
      likeliest.set(scores.likeliest, n);
      n += scores.logprobs.length;
      onProgress(n / candidates.length);
    };
    await runReporting({ start, stop: (id) => this.#model.cancel(id) }, onScores, cancellation);
    return { logprobs, likeliest };
  }

  #evaluate(
    params: NativeEvaluateParams,
    cancellation: Cancellation,
    onPosition: (event: Extract<NativeEvaluateEvent, { kind: 'position' }>) => void,
  ): Promise<void> {
    const start = (listener: (event: NativeEvaluateEvent) => void) => this.#live().evaluate(params, listener);
    return runReporting({ start, stop: (id) => this.#model.cancel(id) }, onPosition, cancellation);
  }
}

function loadNative(
  backend: NativeAddon,
  options: NativeLoadOptions,
  cancellation: Cancellation,
  onProgress: (fraction: number) => void = () => {},
): Promise<NativeModel> {
  return runOperation(
    {
      start: (listener: Parameters<NativeAddon['load']>[1]) => backend.load(options, listener),
      stop: (id) => backend.cancel(id),
      onEvent: (event) => {
        switch (event.kind) {
          case 'progress':
            if (!cancellation.cancelled) onProgress(event.fraction);
            return undefined;
          case 'failed':
            return { error: event.error };
          case 'loaded':
            if (!cancellation.cancelled) return { value: event.model };
            void event.model.close(); // loaded just before it heard of the cancellation
            return undefined;
        }
      },
    },
    cancellation,
  );
}
