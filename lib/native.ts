// The only way from TypeScript to the addon: finds the binary, hands it the error class, and says what its functions take.
// Values are checked before they come here (options.ts); native code only guards itself.
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';
import nodeGypBuild from 'node-gyp-build';
import { GemmaError } from './errors.js';

export interface NativeLoadOptions {
  path: string;
  draft?: string;
  device?: string;
  /** absent: as memory allows */
  gpuLayers?: number;
  isa?: string;
  threads?: number;
  contextSize?: number;
  batchSize?: number;
  kvCache?: string;
  mmap?: boolean;
  screenLogits?: boolean;
  /** for keys and values of finished requests with images, which prompts that begin alike go on from; 0 (default): none */
  prefixCacheBytes?: number;
  /** vision encoder; absent: the one in the model file, if it holds one */
  mmproj?: string;
  /** false: no vision encoder, whatever the model file holds */
  vision?: boolean;
  /** default int8 */
  visionPrecision?: 'int8' | 'exact';
}

export type NativeLoadEvent =
  { kind: 'progress'; fraction: number } | { kind: 'loaded'; model: NativeModel } | { kind: 'failed'; error: unknown };

/** Rows of an image in place of tokens[first], tokens[first + 1], ...; in order. */
export interface NativeImage {
  first: number;
  /** [rows, modelDim] */
  embedding: Float32Array;
}

export interface NativeGenerateParams {
  tokens: Int32Array;
  images?: NativeImage[];
  /** -1: to the end of the context */
  maxOutputTokens: number;
  overflowIsError: boolean;
  /** 0: never wait for acknowledge() */
  maxUnread: number;
  draft: 'auto' | 'off' | 'prompt-lookup' | 'model';
  stopSequences: string[];
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  repetitionPenalty: number;
  frequencyPenalty: number;
  presencePenalty: number;
  penaltyWindow: number;
  seed: number;
  /** id, bias, id, bias, ... */
  logitBias: Float64Array;
  logprobs: number;
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
      error?: unknown;
    };

export interface NativeEvaluateParams {
  tokens: Int32Array;
  images?: NativeImage[];
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

export interface NativeEncodeParams {
  /** [n, imageSize, imageSize, 3], red green blue */
  pixels: Uint8Array;
  n: number;
}

export type NativeEncodeEvent =
  | { kind: 'progress'; fraction: number }
  /** embeddings: [n, tokensPerImage, modelDim]; absent when there is an error */
  | { kind: 'finish'; embeddings?: Float32Array; error?: unknown };

/** Bytes of a model with a context of a given size. */
export interface MemoryPlan {
  /** of the file's tensors; mapped, so shared between processes and given back under pressure (unless `mmap: false`) */
  weightsBytes: number;
  /** key/value cache of one full sequence */
  kvBytes: number;
  /** activations of one batch */
  scratchBytes: number;
  /** what makes the best few logits cheap to find (`screenLogits`), built during the first tokens */
  screenBytes: number;
  /** a vision encoder at work: weights, in int8 a copy of its own, and activations; kept from the first image on */
  visionBytes: number;
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

/** What the headers of a model file say, without loading it. */
export interface ModelSummary {
  architecture: string;
  instructionTuned: boolean;
  fileBytes: number;
  parameters: number;
  config: ModelConfig;
  vision?: VisionConfig;
  /** most bytes first */
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
  memory: MemoryPlan;
  config: ModelConfig;
  vision?: VisionConfig & { precision: 'int8' | 'exact' };
  /** the id that MARKER_IMAGE becomes */
  imageToken: number;
  instructionTuned: boolean;
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
  /** beginnings of prompts that are kept */
  prefixes: number;
}

/** Pixels x .. x + width - 1, y .. y + height - 1 of a picture. */
export interface Crop {
  x: number;
  y: number;
  width: number;
  height: number;
}

/** Bytes of a pixel. */
export type PixelLayout = 'grey' | 'grey-alpha' | 'rgb' | 'rgba' | 'cmyk';

/** How a picture is cut; neither: not at all. */
export interface NativeCropOptions {
  panAndScan?: { minCropSize?: number; maxCrops?: number; minRatio?: number };
  /** tiles along the shorter side */
  tile?: number;
}

export interface PreparedImage {
  /** [1 + crops, imageSize, imageSize, 3], RGB: the whole picture, then its crops */
  pixels: Uint8Array;
  crops: Crop[];
}

/** Prompt parts: text, or a marker by number. */
export const MARKER_BOS = 0;
export const MARKER_START_OF_TURN = 1;
export const MARKER_END_OF_TURN = 2;
export const MARKER_START_OF_IMAGE = 3;
export const MARKER_END_OF_IMAGE = 4;
/** a row of an image */
export const MARKER_IMAGE = 5;
export type PromptPart =
  | string
  | typeof MARKER_BOS
  | typeof MARKER_START_OF_TURN
  | typeof MARKER_END_OF_TURN
  | typeof MARKER_START_OF_IMAGE
  | typeof MARKER_END_OF_IMAGE
  | typeof MARKER_IMAGE;

export interface NativeModel {
  info(): NativeModelInfo;
  stats(): EngineStats;
  encode(parts: readonly PromptPart[], special: boolean): Promise<Int32Array>;
  decode(tokens: Int32Array, special: boolean): Promise<string>;
  generate(params: NativeGenerateParams, onEvent: (event: NativeGenerateEvent) => void): number;
  evaluate(params: NativeEvaluateParams, onEvent: (event: NativeEvaluateEvent) => void): number;
  encodeImages(params: NativeEncodeParams, onEvent: (event: NativeEncodeEvent) => void): number;
  acknowledge(id: number, events: number): void;
  /** Stops a generate, evaluate or encodeImages of this model by its id. */
  cancel(id: number): void;
  close(): Promise<void>;
}

export interface NativeAddon {
  readonly backend: string;
  init(errorClass: typeof GemmaError): void;
  devices(): Promise<Device[]>;
  inspect(options: {
    path: string;
    contexts: number[];
    kvCache?: string;
    batchSize?: number;
    screenLogits?: boolean;
    mmproj?: string;
    vision?: boolean;
    visionPrecision?: 'int8' | 'exact';
  }): Promise<ModelSummary>;
  cropBoxes(options: NativeCropOptions & { width: number; height: number }): Crop[];
  /** Reads `data` on another thread, where it is: hand over an array that nobody else has. */
  prepareImage(
    options: NativeCropOptions & {
      data: Uint8Array;
      width: number;
      height: number;
      layout: PixelLayout;
      imageSize: number;
    },
  ): Promise<PreparedImage>;
  load(options: NativeLoadOptions, onEvent: (event: NativeLoadEvent) => void): number;
  /** Stops a load by its id. */
  cancel(id: number): void;
}

let loaded: NativeAddon | undefined;

/** The addon below a package's folder that fits this system. */
export function openAddon(folder: string): NativeAddon {
  const opened = nodeGypBuild(folder) as NativeAddon;
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
      throw new GemmaError(
        'ERR_BACKEND_UNAVAILABLE',
        `gemma-native has no binary for ${process.platform}-${process.arch} in ${root} that loads here. The published package ` +
          'has them for Linux (x64, arm64; glibc 2.28 or musl), Windows (x64) and macOS 11 (x64, arm64): where the system is one of ' +
          'these, install the package again, on this system and with its files prebuilds/ (bundlers and asar archives must leave ' +
          'them outside). In a clone of the repository, `npm run build:native` builds one (needs CMake 3.21 and a C++20 compiler). ' +
          `Reason: ${error instanceof Error ? error.message : String(error)}`,
        'NO_BINARY',
      );
    }
  }
  return loaded;
}
