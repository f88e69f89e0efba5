// The only way from TypeScript to the addon: finds the binary, hands it the error class, and says what its functions take.
// Values are checked before they come here (options.ts); native code only guards itself.
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';
import type nodeGypBuild from 'node-gyp-build';
import { GemmaError } from './errors.js';
import type { Crop } from './media.js';
import type { CropParams } from './media-options.js';
import type { GenerateParams, LoadParams, MemoryParams } from './options.js';
import { mayRead, refusalIn, refusalOf } from './permission.js';
import type { MergeResult } from './merge.js';
import type { ImportanceResult, Quantization, QuantizeResult } from './quantize.js';
import { reasonOf } from './values.js';

/** Of an adapter's folder, what its configuration says: a rank and a scale for each module that has a pair. */
export interface NativePeftSettings {
  modules: string[];
  ranks: Int32Array;
  scales: Float64Array;
  /** last names of modules that are there as a whole */
  saved: string[];
  /** ids of embedding rows that are there, ascending */
  tokens: Int32Array;
  dora: boolean;
  /** pairs have biases */
  bias: boolean;
}

/** An adapter's file: GGUF, or safetensors with settings. */
export interface NativeAdapterSource {
  name: string;
  path: string;
  peft?: NativePeftSettings;
}

/** An adapter of a call, and how much of it is added. */
export interface NativeAdapterUse {
  name: string;
  scale: number;
}

/** A loaded adapter. */
export interface AdapterInfo {
  name: string;
  /** the largest of its matrices' */
  rank: number;
  /** of the file, those that count */
  tensors: number;
  /** of memory, working memory included */
  bytes: number;
  /** whether it changes the vision encoder */
  vision: boolean;
}

export interface NativeAdapterInfo extends AdapterInfo {
  /** of what it says; two that are equal compute alike */
  hash: string;
}

/** The options as the table in options.ts makes them, and the files. */
export interface NativeLoadOptions extends Partial<LoadParams> {
  path: string;
  adapters?: NativeAdapterSource[];
  draft?: string;
  /** vision encoder; absent: the one in the model file, if it holds one */
  mmproj?: string;
  /** false: no vision encoder, whatever the model file holds */
  vision?: boolean;
}

type NativeLoadEvent =
  { kind: 'progress'; fraction: number } | { kind: 'loaded'; model: NativeModel } | { kind: 'failed'; error: unknown };

/** Rows of an image in place of tokens[first], tokens[first + 1], ...; in order. */
export interface NativeImage {
  first: number;
  /** [rows, modelDim] */
  embedding: Float32Array | HeldRows;
}

/** A copy of rows that native code made before; for one call. */
export interface HeldRows {
  readonly held: unique symbol;
}

/** What answers are bound to. */
export interface NativeGrammarSource {
  /** any JSON object or array; a JSON Schema; a regular expression; EBNF; structural tags, as XGrammar 0.2 reads them */
  kind: 'json' | 'jsonSchema' | 'regex' | 'ebnf' | 'structuralTag';
  /**
   * `''` for `'json'`. Control tokens are allowed only where structural tags name them, by their ids (`findToken`): `{ type: 'token',
   * token: 105 }`. Text between the tags of `token_triggered_tags` may hold each of them that `exclude_tokens` does not list.
   */
  text: string;
  /** of `'ebnf'`: the rule to begin with; default: `root` */
  root?: string;
}

/** A grammar compiled for one model's vocabulary. Any number of calls of that model may have it, at the same time too. */
export interface NativeGrammar {
  /** of memory, without what all grammars of a model share */
  readonly bytes: number;
  /** 0 when it was in the cache */
  readonly compileMs: number;
}

/** The options as the table in options.ts makes them, and what they are applied to. */
export interface NativeGenerateParams extends Omit<GenerateParams, 'stopTokens'> {
  stopTokens: Int32Array;
  tokens: Int32Array;
  images?: NativeImage[];
  adapters?: readonly NativeAdapterUse[];
  /** computed while no other request has work */
  background?: boolean;
  /** of this model */
  grammar?: NativeGrammar;
  /** 0: never wait for acknowledge() */
  maxUnread: number;
}

/** Rows of an image as they were saved; many are copied on another thread. */
export interface SavedImage {
  first: number;
  embedding: Float32Array | Promise<Float32Array>;
}

/** A token with its score: natural logarithms, of the model's own distribution. */
export interface TokenScore {
  token: number;
  logit: number;
  logprob: number;
}

export type NativeGenerateEvent =
  | { kind: 'prefill'; done: number }
  | { kind: 'token'; token: number; text: string; inText: boolean; chosen?: TokenScore; top?: TokenScore[] }
  | {
      kind: 'finish';
      text: string;
      reason: 'stop' | 'length' | 'cancelled' | 'error';
      stopSequence?: string;
      inputTokens: number;
      outputTokens: number;
      /** of inputTokens, those a finished request had left in the cache */
      cachedInputTokens: number;
      draftedTokens: number;
      acceptedTokens: number;
      queueMs: number;
      prefillMs: number;
      decodeMs: number;
      /** with a grammar: whether the answer is a whole text of it */
      grammarComplete?: boolean;
      error?: unknown;
    };

export interface NativeEvaluateParams {
  tokens: Int32Array;
  images?: NativeImage[];
  adapters?: readonly NativeAdapterUse[];
  /** computed while no other request has work */
  background?: boolean;
  /** every position, not only the last */
  all: boolean;
  /** hand over the logits */
  rows: boolean;
  /** so many best tokens per position */
  top: number;
  /** log-probability of the token that follows in the input */
  next: boolean;
}

export type NativeEvaluateEvent =
  | { kind: 'position'; position: number; row?: Float32Array; top?: TokenScore[]; nextLogprob?: number }
  | { kind: 'finish'; error?: unknown };

export interface NativeScoreParams {
  tokens: Int32Array;
  images?: NativeImage[];
  adapters?: readonly NativeAdapterUse[];
  /** computed while no other request has work */
  background?: boolean;
  /** tokens of all candidates, one after the other */
  candidates: Int32Array;
  /** tokens of each */
  lengths: Int32Array;
}

export type NativeScoreEvent =
  /** of the tokens of whole candidates from `first` on; likeliest: 1 where no other token was likelier */
  | { kind: 'scores'; first: number; logprobs: Float64Array; likeliest: Uint8Array }
  | { kind: 'finish'; error?: unknown };

export interface NativeEmbedParams {
  /** of all texts, one after the other */
  tokens: Int32Array;
  /** tokens of each */
  lengths: Int32Array;
  /** of an embedding, the first are kept */
  dimensions: number;
  /** to a length of 1 */
  normalize: boolean;
  adapters: readonly NativeAdapterUse[];
  /** computed while no other request has work */
  background?: boolean;
}

export type NativeEmbedEvent =
  /** [n, dimensions] of texts from `first` on */
  { kind: 'texts'; first: number; rows: Float32Array } | { kind: 'finish'; error?: unknown };

export interface NativeEncodeParams {
  /** [n, imageSize, imageSize, 3], red green blue */
  pixels: Uint8Array;
  n: number;
  adapters?: readonly NativeAdapterUse[];
  /** computed while no other request has work */
  background?: boolean;
}

export interface NativeStateParams {
  path: string;
  /** of a prompt with its answer */
  tokens: Int32Array;
  images?: NativeImage[];
  adapters?: readonly NativeAdapterUse[];
  /** the caller's own */
  metadata: string;
}

type NativeEncodeEvent =
  | { kind: 'progress'; fraction: number }
  /** embeddings: [n, tokensPerImage, modelDim]; absent when there is an error */
  | { kind: 'finish'; embeddings?: Float32Array; error?: unknown };

/** Bytes of a model with a context of a given size. */
export interface MemoryPlan {
  /** of the file's tensors; mapped, so shared between processes and given back under pressure (unless `mmap: false` or `quantize`) */
  weightsBytes: number;
  /** key/value cache of one full sequence, and what is kept for prompts that begin alike (`prefixCacheBytes`) */
  kvBytes: number;
  /** activations and logits of one batch, working memory of the operations */
  scratchBytes: number;
  /** what makes the best few logits cheap to find (`screenLogits`), built during the first tokens */
  screenBytes: number;
  /** adapters that are loaded with the model, and what these work with */
  adapterBytes: number;
  /** a vision encoder at work: weights, in int8 a copy of its own, and activations; kept from the first image on */
  visionBytes: number;
  /** what structured output and tools know of the vocabulary; kept from the first grammar on */
  grammarBytes: number;
  totalBytes: number;
}

/** What a file says about its model. */
export interface ModelConfig {
  name: string;
  /** "270M", "1B", ... */
  size: string;
  layers: number;
  modelDim: number;
  ffnDim: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  vocabularySize: number;
  /** positions the model was trained for */
  trainedContext: number;
  /** positions a local layer sees, its own included */
  slidingWindow: number;
  globalLayers: number;
  rmsEpsilon: number;
  queryScale: number;
  ropeBaseGlobal: number;
  ropeBaseLocal: number;
  ropeFactorGlobal: number;
  /** 0: none */
  finalSoftcap: number;
  /** an embedding model: texts become vectors (`embed`), nothing is written */
  encoder: boolean;
  /** of an embedding model: whether its file has the dense layers behind the pooled rows */
  denseLayers: boolean;
  /** of what `embed` makes of a text */
  embeddingDim: number;
  /** what `embed` makes of a text's rows, by sentence-transformers' names; `'mean'` where a file says nothing else */
  pooling: 'mean' | 'cls' | 'lasttoken' | 'max' | 'mean_sqrt_len_tokens' | 'weightedmean';
  /** whether embeddings have a length of 1 where `normalize` says nothing else */
  normalizedEmbeddings: boolean;
}

/** What a file says about its vision encoder. */
export interface VisionConfig {
  /** pixels along a side */
  imageSize: number;
  patchSize: number;
  tokensPerImage: number;
  layers: number;
  modelDim: number;
  ffnDim: number;
  heads: number;
}

/** What a file says about conversations; empty where it says nothing. */
export interface NativeChatMetadata {
  /** Jinja */
  template: string;
  /** `'gemma-3'` */
  baseName: string;
  /** `'it'` */
  finetune: string;
}

/** What the headers of a model file say, without loading it. */
export interface NativeModelSummary {
  architecture: string;
  chat: NativeChatMetadata;
  fileBytes: number;
  parameters: number;
  /** of the matrix that logits are computed with: the embedding, where a model has no other; 0 of an embedding model */
  outputBytes: number;
  config: ModelConfig;
  vision?: VisionConfig;
  /** most bytes first; with the option `quantize` those that the model would be loaded with */
  tensorTypes: { type: string; tensors: number; bytes: number }[];
  memory: (MemoryPlan & { contextSize: number })[];
}

/** A device that this build computes on, or why it does not. */
export interface Device {
  /** `'cpu'`, `'cuda:0'`; `'cuda'` for a backend that finds no device */
  name: string;
  description: string;
  /** instruction sets usable here, best first; a GPU's chip */
  isas: string[];
  /** the one taken unless told otherwise */
  isa: string;
  /** physical cores this process may use; multiprocessors of a GPU */
  cores: number;
  memoryBytes: number;
  available: boolean;
  /** why it is not available */
  reason?: string;
}

export interface NativeModelInfo {
  /** `'cpu'`, `'cuda:0'`, `'cpu + cuda:0'` */
  device: string;
  /** layers on GPUs */
  gpuLayers: number;
  isa: string;
  threads: number;
  contextSize: number;
  kvCache: string;
  /** loaded with a model that drafts for it */
  draftModel: boolean;
  /** what weights of floats were quantised to, with the option of this name; absent where none were */
  quantize?: Quantization;
  memory: MemoryPlan;
  config: ModelConfig;
  vision?: VisionConfig & { precision: 'int8' | 'exact' };
  /** bytes of UTF-8 text that one token stands for at most */
  longestToken: number;
  /** ids that stand around a text that is embedded, -1 for none */
  textStart: number;
  textEnd: number;
  /** the id that MARKER_IMAGE becomes */
  imageToken: number;
  /** ids of the tokens that end an answer */
  endTokens: Int32Array;
  chat: NativeChatMetadata;
}

/** A snapshot of the engine's work. */
export interface EngineStats {
  /** passes through the layers so far */
  steps: number;
  kvPagesInUse: number;
  kvBytesResident: number;
  /** calls being computed, and calls waiting for their turn */
  running: number;
  waiting: number;
  /** streams whose readers have fallen behind: they take nobody's turn */
  paused: number;
  /** beginnings of prompts that are kept, and the bytes that these take */
  prefixes: number;
  prefixBytes: number;
  /** of all calls that have begun: tokens of their prompts, and those of them that were not computed again */
  promptTokens: number;
  cachedPromptTokens: number;
}

/** Bytes of a pixel. */
export type PixelLayout = 'grey' | 'grey-alpha' | 'rgb' | 'rgba' | 'cmyk';

/** How a picture is cut; neither: not at all. */
export type NativeCropOptions = CropParams;

export interface PreparedImage {
  /** [1 + crops, imageSize, imageSize, 3], RGB: the whole picture, then its crops */
  pixels: Uint8Array;
  crops: Crop[];
}

/** Prompt parts: text, a marker by number, or a token by -1 - id. */
export const MARKER_BOS = 0;
export const MARKER_START_OF_TURN = 1;
export const MARKER_END_OF_TURN = 2;
export const MARKER_START_OF_IMAGE = 3;
export const MARKER_END_OF_IMAGE = 4;
/** a row of an image */
export const MARKER_IMAGE = 5;
export type PromptPart = string | number;

/** The tokens that only chat templates write. */
export interface NativeMarkers {
  texts: string[];
  /** of the texts */
  ids: Int32Array;
  /** ids, -1 for none */
  bos: number;
  eos: number;
  unknown: number;
  pad: number;
  startOfImage: number;
}

export interface NativeModel {
  info(): NativeModelInfo;
  stats(): EngineStats;
  markers(): NativeMarkers;
  /** The id of the token that is spelled so, -1 for none. */
  findToken(spelling: string): number;
  /**
   * Text in bytes is UTF-8, read where it is on another thread: hand over arrays that nobody else has, and the array `stop` too, whose
   * first number ends the work when it is no longer 0 (`ERR_DISPOSED`, `CANCELLED`).
   */
  encode(parts: readonly (PromptPart | Uint8Array)[], special: boolean, stop: Int32Array): Promise<Int32Array>;
  /** UTF-8; the rest as of `encode` */
  decode(tokens: Int32Array, special: boolean, stop: Int32Array): Promise<Uint8Array>;
  /**
   * Compiles off the JavaScript thread. Grammars are kept by their source.
   *
   * @throws GemmaError `ERR_INVALID_ARGUMENT`, with `BAD_SCHEMA`, `BAD_REGEX`, `BAD_GRAMMAR` or `BAD_STRUCTURAL_TAG` for a source that
   *   is not one or that no text satisfies, `GRAMMAR_TOO_LARGE` for one that takes too much time or memory; `ERR_DISPOSED`
   */
  /** `quickly`: null where it takes more than a quarter of a second; otherwise it may wait for others. See grammar-compiler.ts. */
  compileGrammar(source: NativeGrammarSource, quickly: true): Promise<NativeGrammar | null>;
  compileGrammar(source: NativeGrammarSource, quickly: false): Promise<NativeGrammar>;
  generate(params: NativeGenerateParams, onEvent: (event: NativeGenerateEvent) => void): number;
  evaluate(params: NativeEvaluateParams, onEvent: (event: NativeEvaluateEvent) => void): number;
  score(params: NativeScoreParams, onEvent: (event: NativeScoreEvent) => void): number;
  /** Copies rows for the images of one call: one at a time, where a call would copy all of them at once. */
  holdRows(embedding: Float32Array): HeldRows;
  embed(params: NativeEmbedParams, onEvent: (event: NativeEmbedEvent) => void): number;
  encodeImages(params: NativeEncodeParams, onEvent: (event: NativeEncodeEvent) => void): number;
  /**
   * Writes tokens, images and metadata (at most 16 MiB) to a file, with the keys and values of the longest beginning of the tokens
   * that the prefix cache holds: `positions` of them. The file takes its name when it is whole and on the disk.
   *
   * Rejects with `ERR_FILE`, `ERR_INVALID_ARGUMENT` (`BAD_TOKEN`, `BAD_IMAGE`, `STATE_METADATA`), `ERR_CONTEXT_FULL`, `ERR_DISPOSED`.
   */
  saveState(params: NativeStateParams): Promise<{ bytes: number; positions: number }>;
  /**
   * Reads such a file and puts its keys and values into the prefix cache, from where prompts that begin with its tokens and images go
   * on to the same bits. `positions` is 0 where they were computed with other arithmetic (another device or instruction set), or the
   * cache has no room for them: the tokens are right then, and are computed again.
   *
   * Rejects with `ERR_FILE` (`NOT_A_STATE`, `STATE_VERSION`, `STATE_DAMAGED`), `ERR_UNSUPPORTED_MODEL` (`STATE_MODEL`,
   * `STATE_KV_TYPE`), `ERR_CONTEXT_FULL`, `ERR_DISPOSED`.
   */
  restoreState(
    path: string,
    adapters?: readonly NativeAdapterUse[],
  ): Promise<{ tokens: Int32Array; images: SavedImage[]; metadata: string; positions: number }>;
  /**
   * Reads an adapter off the JavaScript thread. `stop`: an array that nobody else has, whose first number ends the work when it is no
   * longer 0.
   */
  loadAdapter(source: NativeAdapterSource, stop: Int32Array): Promise<NativeAdapterInfo>;
  /** Calls that have it keep it. Throws `ERR_INVALID_ARGUMENT`, `UNKNOWN_ADAPTER`. */
  unloadAdapter(name: string): void;
  adapters(): NativeAdapterInfo[];
  acknowledge(id: number, events: number): void;
  /** Stops a generate, evaluate, score, embed or encodeImages of this model by its id. */
  cancel(id: number): void;
  close(): Promise<void>;
}

/** Of work that ends with a result. */
export type NativeWorkEvent<T> =
  { kind: 'progress'; fraction: number } | { kind: 'done'; result: T } | { kind: 'failed'; error: unknown };

export interface NativeQuantizeOptions {
  path: string;
  output: string;
  type: string;
  /** where the vision encoder of a folder goes */
  mmprojOutput?: string;
  mmprojType?: string;
  /** a model without one is an error */
  needsMmproj?: boolean;
  /** of a folder */
  chatTemplate?: string;
  overrides?: { pattern: string; type: string }[];
  /** path of a matrix */
  importance?: string;
  allowRequantize?: boolean;
  overwrite?: boolean;
  threads?: number;
}

export interface NativeMergeOptions extends NativeQuantizeOptions {
  /** the vision encoder of a GGUF file */
  mmproj?: string;
  adapters?: (NativeAdapterSource & { scale: number })[];
  /** another model */
  other?: string;
  blend?: 'linear' | 'slerp';
  weight?: number;
  weights?: { pattern: string; weight: number }[];
}

/** A training in memory; opaque. */
export interface NativeTraining {
  readonly training: unique symbol;
}

export interface NativeFinetuneOptions {
  path: string;
  mmap?: boolean;
  isa?: string;
  threads?: number;
  activationBytes?: number;
  /** tokens of a row at most */
  maxRows?: number;
  rank?: number;
  alpha?: number;
  rslora?: boolean;
  dropout?: number;
  seed?: number;
  targets?: readonly string[];
  layers?: readonly number[];
  optimizer?: 'adamw' | 'sgd';
  weightDecay?: number;
  clip?: number;
  loss?: 'next-token' | 'distillation' | 'dpo';
  temperature?: number;
  teacherShare?: number;
  beta?: number;
  /** where training begins */
  adapter?: NativeAdapterSource;
}

export interface NativeTrainingInfo {
  training: NativeTraining;
  /** numbers that are trained */
  parameters: number;
  /** of memory, beside the model's own */
  parameterBytes: number;
  activationBytes: number;
  workspaceBytes: number;
  /** names of the matrices that are trained */
  targets: string[];
}

export interface NativeTrainingExample {
  tokens: Int32Array;
  /** of each token's loss */
  weights: Float32Array;
  images?: { first: number; n: number; rows: Float32Array }[];
  teacher?: { k: number; ids: Int32Array; logits: Float32Array };
  /** log-probability of the answer by the model without its adapter */
  reference?: number;
}

/** Examples of a row, of rows; of pairs the preferred one first. */
export type NativeTrainingBatch = readonly (readonly NativeTrainingExample[])[];

export interface NativeStepResult {
  loss: number;
  gradientNorm: number;
  /** that count */
  tokens: number;
  rewardMargin: number;
  rewardAccuracy: number;
}

export interface NativeEvaluationResult {
  loss: number;
  /** what the loss was divided by */
  weight: number;
  tokens: number;
  rewardMargin: number;
  rewardAccuracy: number;
  /** of each example */
  logProbs: Float64Array;
}

type Work<Options, Result> = (options: Options, onEvent: (event: NativeWorkEvent<Result>) => void) => number;

export interface NativeAddon {
  openFinetuning: Work<NativeFinetuneOptions, NativeTrainingInfo>;
  finetuneStep: Work<{ training: NativeTraining; batch: NativeTrainingBatch; learningRate: number }, NativeStepResult>;
  finetuneEvaluate: Work<
    { training: NativeTraining; batch: NativeTrainingBatch; useAdapter: boolean },
    NativeEvaluationResult
  >;
  finetuneSave: Work<{ training: NativeTraining; path: string; metadata: string }, object>;
  finetuneRestore: Work<{ training: NativeTraining; path: string }, { metadata: string }>;
  /** The adapter's tensors as PEFT has them; `gguf`: also as llama.cpp has them. */
  finetuneWrite: Work<
    { training: NativeTraining; path: string; modelPrefix: string; gguf?: string; name: string },
    object
  >;
  closeFinetuning(training: NativeTraining): void;
  readonly backend: string;
  init(errorClass: typeof GemmaError): void;
  devices(): Promise<Device[]>;
  inspect(
    options: MemoryParams & {
      path: string;
      contexts: number[];
      draft?: string;
      mmproj?: string;
      vision?: boolean;
      adapters?: NativeAdapterSource[];
    },
  ): Promise<NativeModelSummary>;
  cropBoxes(options: NativeCropOptions & { width: number; height: number }): Crop[];
  /**
   * A part of a picture stretched to a square, [imageSize, imageSize, 3]. Reads `data` on another thread, where it is: hand over an
   * array that nobody else has.
   */
  prepareSquare(options: {
    data: Uint8Array;
    width: number;
    height: number;
    layout: PixelLayout;
    /** what transparency becomes; default: `'drop'` */
    alpha?: 'drop' | 'white';
    box: Crop;
    imageSize: number;
  }): Promise<Uint8Array>;
  /** Names of the modules that a PEFT adapter's safetensors has pairs of. */
  adapterModules(path: string): Promise<string[]>;
  /**
   * Takes an exclusive lock of a file, which is made where it is not there; other processes, Python's `filelock` too, respect it. Null while
   * somebody else has it: there is no waiting. It ends with the call of the function, or with the process.
   *
   * Rejects with `ERR_FILE`.
   */
  lockFile(path: string): Promise<(() => void) | null>;
  load(options: NativeLoadOptions, onEvent: (event: NativeLoadEvent) => void): number;
  /** Writes a model file in other types. */
  quantize(
    options: NativeQuantizeOptions,
    onEvent: (event: NativeWorkEvent<Omit<QuantizeResult, 'path'>>) => void,
  ): number;
  /** Writes a model with adapters in it, or the mean of two. */
  merge(options: NativeMergeOptions, onEvent: (event: NativeWorkEvent<Omit<MergeResult, 'path'>>) => void): number;
  importance(
    options: { path: string; output: string; text: string; chunkSize: number; threads?: number },
    onEvent: (event: NativeWorkEvent<Omit<ImportanceResult, 'path'>>) => void,
  ): number;
  /** Stops a load, quantize, merge or importance by its id. */
  cancel(id: number): void;
}

let loaded: NativeAddon | undefined;

// To tell musl from glibc, node-gyp-build looks for a file of Alpine's when it is loaded, and throws where the permission model
// forbids that. The answer of LIBC keeps it from looking.
function loadNodeGypBuild(): typeof nodeGypBuild {
  const load = () => createRequire(__filename)('node-gyp-build') as typeof nodeGypBuild;
  if (process.platform !== 'linux' || process.env.LIBC || mayRead('/etc/alpine-release')) return load();
  const { header } = process.report.getReport() as { header: { glibcVersionRuntime?: string } };
  process.env.LIBC = header.glibcVersionRuntime ? 'glibc' : 'musl';
  try {
    return load();
  } finally {
    delete process.env.LIBC;
  }
}

/** The addon below a package's folder that fits this system. */
export function openAddon(folder: string): NativeAddon {
  const opened = loadNodeGypBuild()(folder) as NativeAddon;
  opened.init(GemmaError);
  return opened;
}

// GEMMA_ADDON names a binary other than the one beside this package, such as a build for another backend.
function load(root: string): NativeAddon {
  const { GEMMA_ADDON: path } = process.env;
  if (!path) return openAddon(root);
  const opened = createRequire(__filename)(resolve(path)) as NativeAddon;
  opened.init(GemmaError);
  return opened;
}

// The true reason first, then what to do about it.
function whyNoAddon(error: unknown, root: string): string {
  const { code } = error as { code?: string };
  if (code === 'ERR_DLOPEN_DISABLED') {
    return (
      'Node was started so that it loads no native addons: add --allow-addons, which --permission asks for, or leave out ' +
      '--no-addons'
    );
  }
  // What node-gyp-build consists of, and the folder that it looks into and finds empty.
  const refusal = refusalIn(error) ?? refusalOf(join(root, 'prebuilds', '/'));
  if (refusal !== undefined) return `the native addon cannot be loaded: ${refusal}`;
  return (
    `the native addon cannot be loaded: ${reasonOf(error)
      .trim()
      .replace(/\s*\n\s*/g, ', ')}. It is sought in ${root} for ` +
    `${process.platform}-${process.arch}. The published package has binaries for Linux (x64, arm64; glibc 2.28 or musl), Windows ` +
    '(x64) and macOS 11 (x64, arm64): where the system is one of these, install the package again, on this system and with its ' +
    'files prebuilds/ (bundlers and asar archives must leave them outside). In a clone of the repository, `npm run build:native` ' +
    'builds one (needs CMake 3.21 and a C++20 compiler)'
  );
}

/**
 * This package's addon, loaded on first use; backends.ts knows those of other packages.
 *
 * @throws GemmaError `ERR_BACKEND_UNAVAILABLE` when no binary fits this machine
 */
export function addon(): NativeAddon {
  if (!loaded) {
    const root = join(__dirname, '..');
    try {
      loaded = load(root);
    } catch (error) {
      throw new GemmaError('ERR_BACKEND_UNAVAILABLE', whyNoAddon(error, root), 'NO_BINARY');
    }
  }
  return loaded;
}
