// Checks what callers pass and fills in defaults, so that native code sees only sound values. Wrong types are TypeError, values
// out of range RangeError; the message begins with the option's name.
import { randomInt } from 'node:crypto';
import { GemmaError } from './errors.js';
import type { ImageInput, ImageLimits } from './image.js';
import type { NativeCropOptions, NativeGenerateParams, NativeLoadOptions } from './native.js';
import type { VideoLimits } from './video.js';
import type { ImageEmbedding } from './vision.js';

export type KvCacheType = 'f32' | 'f16' | 'q8_0';

export interface LoadOptions {
  /**
   * `'cpu'`; in builds for GPUs `'cuda'` or `'rocm'` (all of these), `'cuda:1'` (one by its index) or `'cuda:0,cuda:1'`; or
   * `'auto'` (default, or the environment variable GEMMA_DEVICE): the GPUs that can be used, else the CPU. As few devices are taken
   * as hold the model; `Gemma.devices()` lists them and says why one cannot be used.
   */
  device?: string;
  /**
   * How many of the model's layers lie on GPUs, the last ones; the others are computed by the CPU. Default `'auto'`: as many as
   * their free memory holds beside a full context.
   */
  gpuLayers?: number | 'auto';
  /**
   * Forces an instruction set: `'amx_bf16'`, `'avx512_vnni'`, `'avx_vnni'`, `'avx2'`, `'ref'`. Default: the environment variable
   * GEMMA_ISA, else the best one here. One that is unknown or not usable here is `ERR_BACKEND_UNAVAILABLE`.
   */
  isa?: string;
  /** Threads that compute. Default: the environment variable GEMMA_THREADS, else the physical cores this process may use. */
  threads?: number;
  /** Positions per conversation, prompt and answer together. Default: the model's, at most 32768. */
  contextSize?: number;
  /** Rows of a batch, 1 or more. Default: 512. */
  batchSize?: number;
  /** How keys and values are stored: `'f16'` (default), `'q8_0'` (half the memory) or `'f32'`. */
  kvCache?: KvCacheType;
  /** Default true: the weights are the file's own pages. False reads the file into memory, for files that may change. */
  mmap?: boolean;
  /**
   * Default true: a copy of the output matrix with 4 bits per weight tells which tokens can be among the best, and only these are
   * computed, exactly. The tokens are the same; false saves the memory (`screenBytes` of `Gemma.estimate`), at some 1.3 to 2 times
   * the time per token.
   */
  screenLogits?: boolean;
  /**
   * A smaller model with the same vocabulary that guesses tokens ahead: path or `file:` URL, as for the model itself. The model
   * checks several guesses in one step, so its output comes sooner and is token for token what it would be without. A draft model
   * of another vocabulary is `ERR_UNSUPPORTED_MODEL` (`DRAFT_VOCABULARY`).
   */
  draft?: string | URL;
  /**
   * The model's vision encoder: path or `file:` URL of its mmproj GGUF file. Default: the one inside the model's file, or a file
   * beside it with `mmproj` in its name that fits. False: none.
   */
  mmproj?: string | URL | false;
  /**
   * How the vision encoder computes: `'int8'` (default: weights requantised to 8 bits) or `'exact'` (its float weights in
   * float32, several times slower).
   */
  visionPrecision?: 'int8' | 'exact';
  /** Where embeddings of pictures are kept, so that no picture is encoded twice. False: nowhere. */
  imageCache?: ImageCacheOptions | false;
  /**
   * Memory for the keys and values of prompts with images: a second question about the same pictures does not read them again.
   * Taken as it is needed. Default: 512 MiB with a vision encoder, else 0.
   */
  prefixCacheBytes?: number;
  /** Called with the fraction that is loaded, 0 to 1. */
  onProgress?: (fraction: number) => void;
  /** Aborting rejects `load` with the signal's reason. */
  signal?: AbortSignal;
}

export interface ImageCacheOptions {
  /** Memory at most. Default: 256 MiB (a picture of a 4B model takes 2.6 MB). */
  maxBytes?: number;
  /** Folder to keep embeddings in as well, for later processes; made when it is not there. It grows without a limit. */
  folder?: string;
}

export interface EstimateOptions {
  contextSize?: number;
  batchSize?: number;
  kvCache?: KvCacheType;
  screenLogits?: boolean;
  /** A draft model that is to be loaded beside. */
  draft?: string | URL;
  /** As in `load`. */
  mmproj?: string | URL | false;
  visionPrecision?: 'int8' | 'exact';
}

export interface InspectOptions {
  /** Context sizes to plan memory for. Default: a ladder up to the model's own. */
  contexts?: readonly number[];
  kvCache?: KvCacheType;
  /** As in `load`. */
  mmproj?: string | URL | false;
}

export interface PromptOptions extends ImageOptions, CropOptions, VideoOptions {
  /** Take a string as text to continue, also with an instruction-tuned model. Default false. */
  raw?: boolean;
  /** Begin raw text with `<bos>`. Default true. */
  bos?: boolean;
  /**
   * Pictures for an input that is no conversation: they stand before a string; in token ids they fill the runs of the image
   * token, in order.
   */
  images?: readonly (ImageInput | ImageEmbedding)[];
}

/** How far a prompt with pictures is: `'images'` are decoded and encoded, then the `'prompt'` is read. */
export interface PromptProgress {
  stage: 'images' | 'prompt';
  /** 0 to 1 */
  fraction: number;
}

export interface GenerateOptions extends PromptOptions {
  /** Tokens at most, 1 or more. Default: until the model ends its answer or the context is full. */
  maxOutputTokens?: number;
  /** 0 always takes the likeliest token. Default 1. */
  temperature?: number;
  /** Only the k likeliest tokens are candidates; 0: all. Default 64. */
  topK?: number;
  /** Only the likeliest tokens that together have this probability, in (0, 1]; 1: all. Default 0.95. */
  topP?: number;
  /** Only tokens at least this fraction as likely as the likeliest, 0 to 1. Default 0 (off). */
  minP?: number;
  /** Divides the scores of tokens seen lately; above 0. Default 1 (off). */
  repetitionPenalty?: number;
  /** Subtracted from a token's score for each time it was seen lately. Default 0. */
  frequencyPenalty?: number;
  /** Subtracted from a token's score if it was seen lately. Default 0. */
  presencePenalty?: number;
  /** How many tokens back the penalties look; -1: all. Default 64. */
  penaltyWindow?: number;
  /** Same seed, same text (on the same build and instruction set). An integer from 0 to 2^53 - 1. Default: random. */
  seed?: number;
  /** Added to the scores of tokens, by id; -Infinity bans one. */
  logitBias?: Readonly<Record<number, number>>;
  /** Generation ends before the first of these that would appear in the text. */
  stopSequences?: readonly string[];
  /**
   * How tokens are guessed ahead and checked several in one step: by the `'model'` that `Gemma.load` was given as `draft`, by
   * `'prompt-lookup'` (what followed the last words where they stood before: pays when the answer repeats parts of the prompt or
   * of itself), or not at all (`false`). Default: the draft model if there is one, else prompt lookup. How many are guessed is
   * decided by what has paid so far. The output is the same token for token; `timings` tells how often the guesses were right.
   */
  draft?: 'prompt-lookup' | 'model' | false;
  /** Report the log-probability of each token and of the n likeliest ones (true: 1; at most 100). */
  logprobs?: boolean | number;
  /**
   * When prompt and `maxOutputTokens` do not fit into the context: `'error'` (default) is `ERR_CONTEXT_FULL` before any work,
   * `'truncate'` ends the output where the context ends.
   */
  onOverflow?: 'error' | 'truncate';
  /** Called while pictures are encoded and the prompt is read, which takes seconds. */
  onProgress?: (progress: PromptProgress) => void;
  /** Aborting rejects with the signal's reason at once and stops the work. */
  signal?: AbortSignal;
}

/** What is accepted as a picture. */
export interface ImageOptions {
  /** Bytes of a file at most. Default: 64 MiB. */
  maxImageBytes?: number;
  /** Pixels of a picture at most, checked before it is decoded. Default: 100 million. A side has at most 65535. */
  maxImagePixels?: number;
  /**
   * Fetch pictures from http(s) URLs. True: from public addresses only, `'private'`: also from this machine and its network;
   * set that only for URLs you wrote yourself. Default false.
   */
  allowRemote?: boolean | 'private';
  /** How long fetching may take, in milliseconds. Default: 30000. */
  remoteTimeoutMs?: number;
}

/**
 * Pan & Scan, as Hugging Face's image processor does it: a picture that is wider or higher than a square is seen whole and once
 * more in 2 or more crops side by side, so that small text stays legible.
 */
export interface PanAndScanOptions {
  /** Pixels a crop must have in width and height. Default 256. */
  minCropSize?: number;
  /** Default 4. */
  maxCrops?: number;
  /** Longer side divided by the shorter one from which on a picture is cropped. Default 1.2. */
  minRatio?: number;
}

/** How pictures are cut. */
export interface CropOptions {
  /** Default false, as in the reference. */
  panAndScan?: boolean | PanAndScanOptions;
  /**
   * Instead of Pan & Scan: cut every picture into nearly square tiles, so many along its shorter side (a square page into
   * n x n). For dense pages, where Pan & Scan does nothing. At most 256 tiles. Each costs as much as a picture.
   */
  tile?: number;
}

/** How videos are read. */
export interface VideoOptions {
  /** Videos longer than this are refused. Default: 4 hours. */
  maxVideoSeconds?: number;
  /** Larger files are refused. Default: 16 GiB. */
  maxVideoBytes?: number;
  /** How long decoding one may take, in milliseconds. Default: 10 minutes. */
  videoTimeoutMs?: number;
}

export interface EmbedImageOptions extends ImageOptions, CropOptions {
  /** `'mean'`: one row for a picture, the mean of all of them, to compare pictures by. Default `'none'`. */
  pooling?: 'none' | 'mean';
  /** Called with the fraction that is done, 0 to 1. */
  onProgress?: (fraction: number) => void;
  signal?: AbortSignal;
}

export interface CropsOptions extends ImageOptions, CropOptions {
  /** Also return the picture with a frame around each crop, as PNG. Default false. */
  draw?: boolean;
  signal?: AbortSignal;
}

export interface LogitsOptions extends PromptOptions {
  /** Every position, not only the last. Default false. */
  all?: boolean;
  /** Also report so many best tokens per position, 0 to 1000. Default 0. */
  top?: number;
  /** False leaves `data` empty (for `top` alone). Default true. */
  data?: boolean;
  /** Receives each position's logits instead of their being collected in `data`. */
  onRow?: (logits: Float32Array, position: number) => void;
  signal?: AbortSignal;
}

export interface PerplexityOptions {
  /** Tokens of one chunk, `<bos>` included, 2 or more. Default 512, at most the model's context. */
  contextSize?: number;
  /** Called with the fraction that is done, 0 to 1. */
  onProgress?: (fraction: number) => void;
  signal?: AbortSignal;
}

const MAX_INT32 = 2 ** 31 - 1;

/** A value as messages show it. */
export function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.length > 40 ? `${value.slice(0, 40)}...` : value);
  if (typeof value === 'number' || typeof value === 'bigint' || typeof value === 'boolean') return String(value);
  return value === null ? 'null' : Array.isArray(value) ? 'an array' : typeof value;
}

function number(name: string, value: unknown, accepts: (value: number) => boolean, expected: string): number {
  if (typeof value !== 'number') throw new TypeError(`${name}: expected ${expected}, found ${show(value)}`);
  if (!accepts(value)) throw new RangeError(`${name}: expected ${expected}, found ${value}`);
  return value;
}

export function integer(name: string, value: unknown, min: number, max = MAX_INT32): number {
  const expected = max === MAX_INT32 ? `an integer of at least ${min}` : `an integer from ${min} to ${max}`;
  return number(name, value, (n) => Number.isInteger(n) && n >= min && n <= max, expected);
}

function boolean(name: string, value: unknown): boolean {
  if (typeof value !== 'boolean') throw new TypeError(`${name}: expected true or false, found ${show(value)}`);
  return value;
}

function string(name: string, value: unknown): string {
  if (typeof value !== 'string') throw new TypeError(`${name}: expected a string, found ${show(value)}`);
  return value;
}

function oneOf<T extends string>(name: string, value: unknown, values: readonly T[]): T {
  const text = string(name, value);
  if (!(values as readonly string[]).includes(text)) {
    throw new RangeError(`${name}: expected one of ${values.join(', ')}, found ${show(value)}`);
  }
  return text as T;
}

function callback(name: string, value: unknown): void {
  if (value !== undefined && typeof value !== 'function') {
    throw new TypeError(`${name}: expected a function, found ${show(value)}`);
  }
}

function signal(value: unknown): void {
  if (value !== undefined && !(typeof value === 'object' && value !== null && 'aborted' in value)) {
    throw new TypeError(`signal: expected an AbortSignal, found ${show(value)}`);
  }
}

// Misspelt options would otherwise be ignored without a word.
function known(options: unknown, names: readonly string[], what = 'options'): void {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw new TypeError(`${what}: expected an object, found ${show(options)}`);
  }
  for (const name of Object.keys(options)) {
    if (!names.includes(name)) throw new TypeError(`${name}: no such option; there are ${names.join(', ')}`);
  }
}

function unsupported(name: string, value: unknown, what: string): void {
  if (value === undefined || value === false) return;
  throw new GemmaError('ERR_UNSUPPORTED_INPUT', `${name}: this version of gemma-native has no ${what}`);
}

// A setting from the environment counts where the option is not given.
function environmentThreads(): number | undefined {
  const text = process.env.GEMMA_THREADS;
  if (!text) return undefined;
  const threads = Number(text);
  if (!Number.isInteger(threads) || threads < 1) {
    throw new RangeError(`GEMMA_THREADS: expected an integer of at least 1, found ${show(text)}`);
  }
  return threads;
}

const KV_CACHE_TYPES = ['f32', 'f16', 'q8_0'] as const;

/** Everything but the paths. */
export function loadOptions(options: LoadOptions): Omit<NativeLoadOptions, 'path' | 'draft' | 'mmproj' | 'vision'> {
  known(options, [
    'device',
    'gpuLayers',
    'isa',
    'threads',
    'contextSize',
    'batchSize',
    'kvCache',
    'mmap',
    'screenLogits',
    'draft',
    'mmproj',
    'visionPrecision',
    'imageCache',
    'prefixCacheBytes',
    'onProgress',
    'signal',
  ]);
  callback('onProgress', options.onProgress);
  signal(options.signal);
  const device = options.device ?? (process.env.GEMMA_DEVICE || 'auto');
  const isa = options.isa ?? process.env.GEMMA_ISA ?? '';
  const threads = options.threads ?? environmentThreads();
  return {
    device: string('device', device),
    ...(options.gpuLayers !== undefined &&
      options.gpuLayers !== 'auto' && { gpuLayers: integer('gpuLayers', options.gpuLayers, 0, 1_000_000) }),
    isa: string('isa', isa),
    ...(threads !== undefined && { threads: integer('threads', threads, 1, 1024) }),
    ...memoryOptions(options),
    ...(options.mmap !== undefined && { mmap: boolean('mmap', options.mmap) }),
    ...(options.prefixCacheBytes !== undefined && {
      prefixCacheBytes: integer('prefixCacheBytes', options.prefixCacheBytes, 0, Number.MAX_SAFE_INTEGER),
    }),
  };
}

export function imageCacheOptions({ imageCache = {} }: LoadOptions): { maxBytes: number; folder?: string } {
  if (imageCache === false) return { maxBytes: 0 };
  known(imageCache, ['maxBytes', 'folder'], 'imageCache');
  const { maxBytes = 256 << 20, folder } = imageCache;
  return {
    maxBytes: integer('imageCache.maxBytes', maxBytes, 0, Number.MAX_SAFE_INTEGER),
    ...(folder !== undefined && { folder: string('imageCache.folder', folder) }),
  };
}

function memoryOptions(options: EstimateOptions): {
  contextSize?: number;
  batchSize?: number;
  kvCache?: KvCacheType;
  screenLogits?: boolean;
  visionPrecision?: 'int8' | 'exact';
} {
  return {
    ...(options.visionPrecision !== undefined && {
      visionPrecision: oneOf('visionPrecision', options.visionPrecision, ['int8', 'exact']),
    }),
    ...(options.contextSize !== undefined && { contextSize: integer('contextSize', options.contextSize, 1) }),
    ...(options.batchSize !== undefined && { batchSize: integer('batchSize', options.batchSize, 1, 65536) }),
    ...(options.kvCache !== undefined && { kvCache: oneOf('kvCache', options.kvCache, KV_CACHE_TYPES) }),
    ...(options.screenLogits !== undefined && { screenLogits: boolean('screenLogits', options.screenLogits) }),
  };
}

export function estimateOptions(options: EstimateOptions): ReturnType<typeof memoryOptions> {
  known(options, ['contextSize', 'batchSize', 'kvCache', 'screenLogits', 'draft', 'mmproj', 'visionPrecision']);
  return memoryOptions(options);
}

export function inspectOptions(options: InspectOptions): { contexts?: number[]; kvCache?: KvCacheType } {
  known(options, ['contexts', 'kvCache', 'mmproj']);
  if (options.contexts !== undefined && !Array.isArray(options.contexts)) {
    throw new TypeError(`contexts: expected an array of integers, found ${show(options.contexts)}`);
  }
  return {
    ...(options.contexts && { contexts: options.contexts.map((n, i) => integer(`contexts[${i}]`, n, 1)) }),
    ...(options.kvCache !== undefined && { kvCache: oneOf('kvCache', options.kvCache, KV_CACHE_TYPES) }),
  };
}

const IMAGE_OPTIONS = ['maxImageBytes', 'maxImagePixels', 'allowRemote', 'remoteTimeoutMs'];
const CROP_OPTIONS = ['panAndScan', 'tile'];
const VIDEO_OPTIONS = ['maxVideoSeconds', 'maxVideoBytes', 'videoTimeoutMs'];
const PROMPT_OPTIONS = ['raw', 'bos', 'images', ...IMAGE_OPTIONS, ...CROP_OPTIONS, ...VIDEO_OPTIONS];

/** What a prompt is made with, defaults filled in. */
export interface PromptSettings {
  raw: boolean;
  bos: boolean;
  images: readonly (ImageInput | ImageEmbedding)[];
  limits: ImageLimits;
  crops: NativeCropOptions;
  videoLimits: VideoLimits;
}

function promptOptions(options: PromptOptions): PromptSettings {
  const { raw = false, bos = true, images = [] } = options;
  if (!Array.isArray(images)) throw new TypeError(`images: expected an array, found ${show(images)}`);
  return {
    raw: boolean('raw', raw),
    bos: boolean('bos', bos),
    images: images as PromptSettings['images'],
    limits: imageLimits(options),
    crops: cropOptions(options),
    videoLimits: videoLimits(options),
  };
}

export function checkPromptOptions(options: PromptOptions): PromptSettings {
  known(options, PROMPT_OPTIONS);
  return promptOptions(options);
}

/** Everything but the tokens and their images. */
export function generateOptions(options: GenerateOptions): {
  params: Omit<NativeGenerateParams, 'tokens' | 'images' | 'maxUnread'>;
  prompt: PromptSettings;
} {
  known(options, [
    ...PROMPT_OPTIONS,
    'maxOutputTokens',
    'temperature',
    'topK',
    'topP',
    'minP',
    'repetitionPenalty',
    'frequencyPenalty',
    'presencePenalty',
    'penaltyWindow',
    'seed',
    'logitBias',
    'stopSequences',
    'draft',
    'logprobs',
    'onOverflow',
    'onProgress',
    'signal',
    'schema',
    'tools',
  ]);
  const later = options as { schema?: unknown; tools?: unknown };
  unsupported('schema', later.schema, 'structured output');
  unsupported('tools', later.tools, 'tools');
  callback('onProgress', options.onProgress);
  signal(options.signal);
  const {
    temperature = 1,
    topK = 64,
    topP = 0.95,
    minP = 0,
    repetitionPenalty = 1,
    frequencyPenalty = 0,
    presencePenalty = 0,
    penaltyWindow = 64,
    seed = randomInt(2 ** 48 - 1),
    maxOutputTokens,
    stopSequences = [],
    logprobs = 0,
    onOverflow = 'error',
    draft,
  } = options;
  if (!Array.isArray(stopSequences)) {
    throw new TypeError(`stopSequences: expected an array of strings, found ${show(stopSequences)}`);
  }
  const params: Omit<NativeGenerateParams, 'tokens' | 'images' | 'maxUnread'> = {
    maxOutputTokens: maxOutputTokens === undefined ? -1 : integer('maxOutputTokens', maxOutputTokens, 1),
    overflowIsError: oneOf('onOverflow', onOverflow, ['error', 'truncate']) === 'error',
    stopSequences: stopSequences.map((text: unknown, i) => {
      if (string(`stopSequences[${i}]`, text) === '') throw new RangeError(`stopSequences[${i}]: expected some text`);
      return text as string;
    }),
    draft: draft === undefined ? 'auto' : draft === false ? 'off' : oneOf('draft', draft, ['prompt-lookup', 'model']),
    temperature: number('temperature', temperature, (n) => n >= 0 && Number.isFinite(n), 'a number of at least 0'),
    topK: integer('topK', topK, 0),
    topP: number('topP', topP, (n) => n > 0 && n <= 1, 'a number above 0, at most 1'),
    minP: number('minP', minP, (n) => n >= 0 && n <= 1, 'a number from 0 to 1'),
    repetitionPenalty: number(
      'repetitionPenalty',
      repetitionPenalty,
      (n) => n > 0 && Number.isFinite(n),
      'a number above 0',
    ),
    frequencyPenalty: number('frequencyPenalty', frequencyPenalty, Number.isFinite, 'a finite number'),
    presencePenalty: number('presencePenalty', presencePenalty, Number.isFinite, 'a finite number'),
    penaltyWindow: integer('penaltyWindow', penaltyWindow, -1),
    seed: integer('seed', seed, 0, Number.MAX_SAFE_INTEGER),
    logitBias: logitBias(options.logitBias),
    logprobs: typeof logprobs === 'boolean' ? Number(logprobs) : integer('logprobs', logprobs, 0, 100),
  };
  return { params, prompt: promptOptions(options) };
}

function logitBias(bias: unknown): Float64Array {
  if (bias === undefined) return new Float64Array();
  if (typeof bias !== 'object' || bias === null) {
    throw new TypeError(`logitBias: expected an object of token ids and numbers, found ${show(bias)}`);
  }
  return Float64Array.from(
    Object.entries(bias).flatMap(([id, value]) => [
      integer('logitBias: token id', Number(id), 0),
      number(`logitBias[${id}]`, value, (n) => n < Infinity, 'a number or -Infinity'),
    ]),
  );
}

export function logitsOptions(options: LogitsOptions): {
  all: boolean;
  rows: boolean;
  top: number;
  prompt: PromptSettings;
} {
  known(options, [...PROMPT_OPTIONS, 'all', 'top', 'data', 'onRow', 'signal']);
  callback('onRow', options.onRow);
  signal(options.signal);
  const { all = false, top = 0, data = true } = options;
  return {
    all: boolean('all', all),
    top: integer('top', top, 0, 1000),
    rows: boolean('data', data) || !!options.onRow,
    prompt: promptOptions(options),
  };
}

export function perplexityOptions(options: PerplexityOptions, contextSize: number): { contextSize: number } {
  known(options, ['contextSize', 'onProgress', 'signal']);
  callback('onProgress', options.onProgress);
  signal(options.signal);
  return { contextSize: integer('contextSize', options.contextSize ?? Math.min(512, contextSize), 2, contextSize) };
}

export function imageLimits(options: ImageOptions): ImageLimits {
  const { maxImageBytes = 64 << 20, maxImagePixels = 100e6, allowRemote = false, remoteTimeoutMs = 30_000 } = options;
  if (typeof allowRemote !== 'boolean' && allowRemote !== 'private') {
    throw new TypeError(`allowRemote: expected true, false or 'private', found ${show(allowRemote)}`);
  }
  return {
    maxBytes: integer('maxImageBytes', maxImageBytes, 1),
    maxPixels: integer('maxImagePixels', maxImagePixels, 1),
    allowRemote,
    timeoutMs: integer('remoteTimeoutMs', remoteTimeoutMs, 1),
  };
}

const MAX_CROPS = 256; // kMaxCrops in native/image/image.h

export function cropOptions({ panAndScan = false, tile }: CropOptions): NativeCropOptions {
  if (typeof panAndScan !== 'boolean') known(panAndScan, ['minCropSize', 'maxCrops', 'minRatio'], 'panAndScan');
  if (tile !== undefined) {
    if (panAndScan !== false) throw new TypeError('tile: a picture is cut by panAndScan or into tiles, not both');
    return { tile: integer('tile', tile, 1, MAX_CROPS) };
  }
  if (panAndScan === false) return {};
  const { minCropSize, maxCrops, minRatio } = panAndScan === true ? {} : panAndScan;
  return {
    panAndScan: {
      ...(minCropSize !== undefined && { minCropSize: integer('panAndScan.minCropSize', minCropSize, 1) }),
      ...(maxCrops !== undefined && { maxCrops: integer('panAndScan.maxCrops', maxCrops, 1, MAX_CROPS) }),
      ...(minRatio !== undefined && {
        minRatio: number('panAndScan.minRatio', minRatio, (n) => n >= 0, 'a number of at least 0'),
      }),
    },
  };
}

export function videoLimits(options: VideoOptions): VideoLimits {
  const { maxVideoSeconds = 4 * 3600, maxVideoBytes = 16 * 2 ** 30, videoTimeoutMs = 600_000 } = options;
  return {
    maxSeconds: number('maxVideoSeconds', maxVideoSeconds, (n) => n > 0, 'a number above 0'),
    maxBytes: integer('maxVideoBytes', maxVideoBytes, 1, Number.MAX_SAFE_INTEGER),
    timeoutMs: integer('videoTimeoutMs', videoTimeoutMs, 1),
  };
}

/** How many frames of a video part are wanted; undefined: as many as there is room for. */
export function frameOptions(
  name: string,
  { fps, maxFrames }: { fps?: number | undefined; maxFrames?: number | undefined },
): { fps?: number; maxFrames?: number } {
  if (fps !== undefined) number(`${name}.fps`, fps, (n) => n > 0 && n <= 1000, 'a number above 0, at most 1000');
  if (maxFrames !== undefined) integer(`${name}.maxFrames`, maxFrames, 1);
  if (fps === undefined) return { maxFrames: maxFrames ?? 16 };
  return { fps, ...(maxFrames !== undefined && { maxFrames }) };
}

export function embedImageOptions(options: EmbedImageOptions): {
  limits: ImageLimits;
  crops: NativeCropOptions;
  pooling: 'none' | 'mean';
} {
  known(options, [...IMAGE_OPTIONS, ...CROP_OPTIONS, 'pooling', 'onProgress', 'signal']);
  callback('onProgress', options.onProgress);
  signal(options.signal);
  return {
    limits: imageLimits(options),
    crops: cropOptions(options),
    pooling: oneOf('pooling', options.pooling ?? 'none', ['none', 'mean']),
  };
}

export function cropsOptions(options: CropsOptions): {
  limits: ImageLimits;
  crops: NativeCropOptions;
  draw: boolean;
} {
  known(options, [...IMAGE_OPTIONS, ...CROP_OPTIONS, 'draw', 'signal']);
  signal(options.signal);
  return {
    limits: imageLimits(options),
    crops: cropOptions({ panAndScan: options.tile === undefined, ...options }),
    draw: boolean('draw', options.draw ?? false),
  };
}

export function tokenizeOptions(options: { special?: boolean; bos?: boolean }): { special: boolean; bos: boolean } {
  known(options, ['special', 'bos']);
  const { special = false, bos = false } = options;
  return { special: boolean('special', special), bos: boolean('bos', bos) };
}

export function detokenizeOptions(options: { special?: boolean }): { special: boolean } {
  known(options, ['special']);
  return { special: boolean('special', options.special ?? true) };
}

/** Token ids as native code takes them. Whether they exist in the vocabulary is checked there. */
export function tokenIds(name: string, ids: unknown): Int32Array {
  if (!Array.isArray(ids)) {
    throw new TypeError(`${name}: expected an array of token ids, found ${show(ids)}`);
  }
  return Int32Array.from(ids, (id, i) => integer(`${name}[${i}]`, id, 0));
}

export function text(name: string, value: unknown): string {
  return string(name, value);
}
