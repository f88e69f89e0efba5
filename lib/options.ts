// The options of the public API. An option is described here and nowhere else: its type and documentation in the interface, its
// kind, bounds and default in the row of the same name below. A row that is missing does not compile, and the parameters of native
// code (native.ts) are what the table yields. A new option of generate thus touches four files: this one, binding/convert.cpp,
// which reads it, and the header and source below native/ that use it.
import { adapterUses, type AdapterOption, type AdapterPaths } from './adapters.js';
import type { HubOptions } from './hub-options.js';
import type { EmbedSettings } from './embed.js';
import type { EmbeddingTask } from './embedding-prompts.js';
import type { ImageEmbedding, ImageInput } from './media.js';
import {
  CROP,
  cropParams,
  IMAGE,
  imageLimits,
  mediaLimits,
  VIDEO,
  type CropOptions,
  type CropParams,
  type ImageLimits,
  type ImageOptions,
  type MediaLimits,
  type VideoOptions,
} from './media-options.js';
import {
  booleans,
  called,
  callbacks,
  checked,
  choices,
  custom,
  elsewhere,
  integers,
  known,
  numbers,
  or,
  orIfNull,
  signals,
  strings,
  valuesOf,
  type TableOf,
  type Values,
} from './option-table.js';
import type { ModelConfig, NativeAdapterUse } from './native.js';
import type { Quantization } from './quantize.js';
import type { ToolFormatName } from './tool-formats/format.js';
import type { ToolChoice, Tools, ToolSettings } from './tools.js';
import type { StandardSchema } from './schema.js';
import type { Structure, StructuredOptions } from './structured.js';
import { ANY_SIZE, integer, number, oneOf, plain, show, text } from './values.js';

// Loaded with the first call that needs them: a program that asks a model for text is not to wait for them.
const lazy = {
  get quantize() {
    return require('./quantize.js') as typeof import('./quantize.js');
  },
  get tools() {
    return require('./tools.js') as typeof import('./tools.js');
  },
  get structured() {
    return require('./structured.js') as typeof import('./structured.js');
  },
};

/** See the option `priority` of `PromptOptions`. */
export type Priority = 'normal' | 'background';

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
  /**
   * How keys and values are stored: `'f16'` (default; of an embedding model in floats `'f32'`), `'q8_0'` (half the memory) or `'f32'`.
   */
  kvCache?: KvCacheType;
  /**
   * Default true: the weights are the file's own pages; a file that is written to while it is in use makes calls fail (`ERR_FILE`,
   * `FILE_CHANGED`). False reads the file into memory, for files that may change.
   */
  mmap?: boolean;
  /**
   * Default true: a copy of the output matrix with 4 bits per weight tells which tokens can be among the best, and only these are
   * computed, exactly. The tokens are the same; false saves the memory (`screenBytes` of `Gemma.estimate`), at some 1.3 to 2 times
   * the time per token.
   */
  screenLogits?: boolean;
  /**
   * Quantises weights of floats (F32, F16, BF16) while they are loaded, as `Gemma.quantize` would write them: the model takes the memory, and
   * runs at the speed, of such a file. Weights that are quantised already stay as they are; so does the vision encoder. A draft model is
   * quantised likewise. Default: weights are used as they are stored.
   */
  quantize?: Quantization;
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
  /**
   * A chat template (Jinja, as in `tokenizer.chat_template`) instead of the model's own. Default: the one inside the model's file,
   * else `chat_template.jinja` or the one in `tokenizer_config.json` beside it, else Gemma 3's format. `gemma.info.chat` says which.
   */
  chatTemplate?: string;
  /**
   * Of an embedding model: `'required'` (default) refuses a file that was converted, or a folder that was copied, without the model's
   * dense layers (`ERR_UNSUPPORTED_MODEL`, `NO_DENSE_LAYERS`); `'optional'` takes the pooled rows of a text then, which is another embedding.
   */
  denseLayers?: 'required' | 'optional';
  /** Where embeddings of pictures are kept, so that no picture is encoded twice. False: nowhere. */
  imageCache?: ImageCacheOptions | false;
  /**
   * Memory for the keys and values of earlier prompts and answers: a prompt that begins like one of them is computed from where they
   * part (`usage.cachedInputTokens`). Taken as it is needed; what was used longest ago goes first. Default: a sixteenth of the
   * machine's memory, at most 512 MiB. 0: nothing is kept.
   */
  prefixCacheBytes?: number;
  /**
   * Adapters (LoRA) to load with the model: paths by name, or a list of paths whose folders or files name them. A folder of Hugging
   * Face PEFT, or a GGUF file of llama.cpp's. See `gemma.loadAdapter`.
   */
  adapters?: AdapterPaths;
  /**
   * How many calls may wait while 64 are being computed; one more is `ERR_QUEUE_FULL` at once. Streams whose readers do not read
   * do not count. Default: 512.
   */
  maxQueue?: number;
  /** How models are got that are named `hf:org/repo`. */
  hub?: HubOptions;
  /** Called with the fraction that is loaded, 0 to 1; of downloads `hub.onProgress` tells. */
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
  /** As in `load`. */
  quantize?: Quantization;
  threads?: number;
  /** A draft model that is to be loaded beside. */
  draft?: string | URL;
  /** As in `load`. */
  mmproj?: string | URL | false;
  visionPrecision?: 'int8' | 'exact';
  prefixCacheBytes?: number;
  /** As in `load`. */
  adapters?: AdapterPaths;
  /** As in `load`. Of a model that is not here only the first bytes are downloaded. */
  hub?: HubOptions;
  signal?: AbortSignal;
}

export interface InspectOptions {
  /** Context sizes to plan memory for, at most 256. Default: a ladder up to the model's own. */
  contexts?: readonly number[];
  kvCache?: KvCacheType;
  /** As in `load`: memory is planned for, and `tensorTypes` are, what the model would be loaded with. */
  quantize?: Quantization;
  /** As in `load`. */
  mmproj?: string | URL | false;
  /** As in `estimate`. */
  hub?: HubOptions;
  signal?: AbortSignal;
}

export interface ToolOptions {
  /** Functions that the model may call, by their names; at most 128. See the guide on tools. */
  tools?: Tools;
  /**
   * `'auto'` (default): the model decides; `'required'`: its first answer is calls and nothing else; `{ tool }`: it is one call of
   * this tool; `'none'`: it is not told of tools.
   */
  toolChoice?: ToolChoice;
  /**
   * How calls are written: `'functiongemma'`, `'gemma'` (told by the prompt, for models that know no format), `'llama'`,
   * `'hermes'` or `'mistral'`. Default: as the model's chat template writes them (`gemma.info.chat.toolFormat`).
   */
  toolFormat?: ToolFormatName;
}

export interface PromptOptions extends ImageOptions, CropOptions, VideoOptions, ToolOptions {
  /**
   * True takes a string as text to continue, false as one user turn. Default: false where the model has a chat template or a name
   * of Google's instruction-tuned files (`gemma.info.chat`).
   */
  raw?: boolean;
  /** Begin raw text with `<bos>`. Default true. */
  bos?: boolean;
  /**
   * Pictures for an input that is no conversation: they stand before a string; in token ids they fill the runs of the image
   * token, in order.
   */
  images?: readonly (ImageInput | ImageEmbedding)[];
  /**
   * The adapters that the prompt is computed with: a name, or several with how much of each is added (`{ style: 1, facts: 0.5 }`; -1e6 to
   * 1e6; at most 16, in this order). Default: none. A name that is not loaded is `ERR_INVALID_ARGUMENT` (`UNKNOWN_ADAPTER`).
   */
  adapter?: AdapterOption;
  /**
   * `'background'`: work for which nobody waits. It is computed while no other call of this model has anything to compute, and stops
   * within a layer of the model when one comes; its result is the same. Default `'normal'`.
   */
  priority?: Priority;
}

/** How far a prompt with pictures is: `'images'` are decoded and encoded, then the `'prompt'` is read. */
export interface PromptProgress {
  stage: 'images' | 'prompt';
  /** 0 to 1 */
  fraction: number;
}

export interface GenerateOptions extends PromptOptions, StructuredOptions {
  /** Answers at most, while tools with `execute` are called: 1 to 1000. Default 8. */
  maxSteps?: number;
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
  /** Divides the scores of tokens seen lately; 1e-6 to 1e6. Default 1 (off). */
  repetitionPenalty?: number;
  /** Subtracted from a token's score for each time it was seen lately; -1e6 to 1e6. Default 0. */
  frequencyPenalty?: number;
  /** Subtracted from a token's score if it was seen lately; -1e6 to 1e6. Default 0. */
  presencePenalty?: number;
  /** How many tokens back the penalties look; -1: all. Default 64. */
  penaltyWindow?: number;
  /** Same seed, same text (on the same build and instruction set). An integer from 0 to 2^53 - 1. Default: random. */
  seed?: number;
  /** Added to the scores of tokens, by id, -1e6 to 1e6; -Infinity bans one. At most 16384. */
  logitBias?: Readonly<Record<number, number>>;
  /** Generation ends before the first of these that would appear in the text. At most 256, of at most 1000 characters each. */
  stopSequences?: readonly string[];
  /**
   * Tokens that end the answer besides those that the model's file names (`gemma.info.endTokens`): ids, or texts that are one
   * token each, such as `'<|im_end|>'`. At most 1000.
   */
  stopTokens?: readonly (number | string)[];
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
  /**
   * Of `stream`: a reader that takes none of the parts there are for so many milliseconds, while there are more to come, ends with
   * `ERR_STALLED`. Default 0: it may take any time.
   */
  stallTimeoutMs?: number;
  /** Called while pictures are encoded and the prompt is read, which takes seconds. */
  onProgress?: (progress: PromptProgress) => void;
  /** Aborting rejects with the signal's reason at once and stops the work. */
  signal?: AbortSignal;
}

/** Options whose schema tells the type of `result.object`. */
export interface TypedBySchema<S extends StandardSchema> extends Omit<GenerateOptions, 'schema'> {
  schema: S;
}

/** Options whose choices tell the type of `result.object`. */
export interface TypedByChoices<T extends string> extends Omit<GenerateOptions, 'choices'> {
  choices: readonly T[];
}

export interface EmbedImageOptions extends ImageOptions, CropOptions {
  /** `'mean'`: one row for a picture, the mean of all of them, to compare pictures by. Default `'none'`. */
  pooling?: 'none' | 'mean';
  /** Adapters, as far as they change the vision encoder; as in `generate`. */
  adapter?: AdapterOption;
  /** As in `generate`; a picture that is being encoded stops at the end of a layer. */
  priority?: Priority;
  /** Called with the fraction that is done, 0 to 1. */
  onProgress?: (fraction: number) => void;
  signal?: AbortSignal;
}

export interface EmbedOptions {
  /**
   * What the embeddings are for: EmbeddingGemma was trained with a prompt for each. `'document'` for texts that are to be found, the
   * kind of search for what finds them. A checkpoint's folder may have others (`gemma.info.prompts`). Default: the one that the
   * folder names as its default, else the texts as they are.
   */
  task?: EmbeddingTask | (string & {});
  /** Stands before each text, instead of a task's prompt. `''`: nothing does. */
  prompt?: string;
  /** With `'document'`: the documents' title, or one for each text. Default: none. */
  title?: string | readonly string[];
  /**
   * Numbers of an embedding, the first are kept: EmbeddingGemma was trained for 768, 512, 256 and 128. Default: all
   * (`gemma.info.config.embeddingDim`).
   */
  dimensions?: number;
  /**
   * True: embeddings have a length of 1, also those that `dimensions` has shortened. (sentence-transformers'
   * `truncate_dim` does not normalise again; what it returns are the first numbers of whole embeddings.) False: as the last layer
   * makes them. Default true, but for a folder of sentence-transformers' whose modules do not normalise
   * (`gemma.info.config.normalizedEmbeddings`).
   */
  normalize?: boolean;
  /** True cuts texts that are longer than the context at their end. Default false: they are `ERR_CONTEXT_FULL`. */
  truncate?: boolean;
  /** As in `generate`. */
  adapter?: AdapterOption;
  /** As in `generate`. */
  priority?: Priority;
  /** Called with the fraction of the tokens that is done, 0 to 1. */
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
  /** With `all`: also report the log-probability of each token of the input after those before it. Default false. */
  next?: boolean;
  /** Receives each position's logits instead of their being collected in `data`. */
  onRow?: (logits: Float32Array, position: number) => void;
  signal?: AbortSignal;
}

export interface ScoreOptions extends PromptOptions {
  /**
   * Put the token that ends an answer behind each candidate: `<end_of_turn>` in a conversation, `<eos>` behind raw text. `'yes'` is then
   * the whole answer, no longer the beginning of all that begin so. Default false.
   */
  includeEnd?: boolean;
  /**
   * What `probability` and `rank` go by: the whole log-probability (`'none'`, default), or its mean for each of the candidate's
   * `'tokens'` or `'bytes'` of UTF-8, so that long candidates are not at a disadvantage.
   */
  normalize?: 'none' | 'tokens' | 'bytes';
  /** Called with the fraction of the candidates that is done, 0 to 1. */
  onProgress?: (fraction: number) => void;
  signal?: AbortSignal;
}

export interface PerplexityOptions {
  /** Tokens of one chunk, `<bos>` included, 2 or more. Default 512, at most the model's context. */
  contextSize?: number;
  /** As in `generate`. */
  adapter?: AdapterOption;
  /** Called with the fraction that is done, 0 to 1. */
  onProgress?: (fraction: number) => void;
  signal?: AbortSignal;
}

export interface CountTokensOptions extends PromptOptions {
  signal?: AbortSignal;
}

export interface TokenizeOptions {
  /** Control strings become control tokens. Default false. */
  special?: boolean;
  /** Begin with `<bos>`. Default false. */
  bos?: boolean;
  signal?: AbortSignal;
}

export interface LoadAdapterOptions {
  signal?: AbortSignal;
}

export interface DetokenizeOptions {
  /** Write control tokens out. Default true. */
  special?: boolean;
  signal?: AbortSignal;
}

const MEMORY = {
  contextSize: integers(1),
  batchSize: integers(1, 65536),
  kvCache: choices('f32', 'f16', 'q8_0'),
  screenLogits: booleans,
  quantize: custom((name, value): Quantization => oneOf(name, value, lazy.quantize.QUANTIZATIONS)),
  threads: integers(1, 1024),
  visionPrecision: choices('int8', 'exact'),
  prefixCacheBytes: integers(0, ANY_SIZE),
} as const;

const LOAD = {
  device: orIfNull(strings, () => process.env.GEMMA_DEVICE || 'auto'),
  gpuLayers: custom((name, value) => (value === 'auto' ? undefined : integer(name, value, 0, 1_000_000))),
  isa: orIfNull(strings, () => process.env.GEMMA_ISA ?? ''),
  threads: MEMORY.threads,
  contextSize: MEMORY.contextSize,
  batchSize: MEMORY.batchSize,
  kvCache: MEMORY.kvCache,
  mmap: booleans,
  screenLogits: MEMORY.screenLogits,
  quantize: MEMORY.quantize,
  draft: elsewhere,
  mmproj: elsewhere,
  visionPrecision: MEMORY.visionPrecision,
  chatTemplate: custom((name, value) => {
    const template = text(name, value);
    if (template.length > 1 << 20) {
      throw new RangeError(`${name}: expected at most 1 MiB, found ${template.length} characters`);
    }
    return template;
  }),
  adapters: elsewhere, // adapterPaths()
  denseLayers: choices('required', 'optional'),
  imageCache: elsewhere, // imageCacheOptions()
  maxQueue: elsewhere, // queueOptions()
  prefixCacheBytes: MEMORY.prefixCacheBytes,
  hub: elsewhere, // hubOptions()
  onProgress: callbacks,
  signal: signals,
} as const satisfies TableOf<LoadOptions>;

const IMAGE_CACHE = {
  maxBytes: or(integers(0, ANY_SIZE), 256 << 20),
  folder: strings,
} as const satisfies TableOf<ImageCacheOptions>;

const ESTIMATE = {
  ...MEMORY,
  draft: elsewhere,
  mmproj: elsewhere,
  adapters: elsewhere,
  hub: elsewhere, // hubOptions()
  signal: signals,
} as const satisfies TableOf<EstimateOptions>;

const INSPECT = {
  contexts: custom((name, value) => {
    if (!Array.isArray(value)) throw new TypeError(`${name}: expected an array of integers, found ${show(value)}`);
    atMost(name, value.length, MAX_CONTEXTS);
    return value.map((n, i) => integer(`${name}[${i}]`, n, 1));
  }),
  kvCache: MEMORY.kvCache,
  quantize: MEMORY.quantize,
  mmproj: elsewhere,
  hub: elsewhere, // hubOptions()
  signal: signals,
} as const satisfies TableOf<InspectOptions>;

const ADAPTER = or(custom(adapterUses), () => []);
const PRIORITY = or(choices('normal', 'background'), 'normal');

export const RAW = {
  raw: booleans,
  bos: or(booleans, true),
  images: or(
    custom((name, value) => {
      if (!Array.isArray(value)) throw new TypeError(`${name}: expected an array, found ${show(value)}`);
      return [...(value as readonly (ImageInput | ImageEmbedding)[])];
    }),
    () => [],
  ),
  adapter: ADAPTER,
  priority: PRIORITY,
} as const;

/** Read together, by toolsOf(). */
const TOOLS = {
  tools: elsewhere,
  toolChoice: elsewhere,
  toolFormat: elsewhere,
} as const satisfies TableOf<ToolOptions>;

const PROMPT = { ...RAW, ...IMAGE, ...CROP, ...VIDEO, ...TOOLS } as const satisfies TableOf<PromptOptions>;

const COUNT = { ...PROMPT, signal: signals } as const satisfies TableOf<CountTokensOptions>;

const penalties = numbers('a number from -1e6 to 1e6', (n) => Math.abs(n) <= 1e6);

/** What goes to native code; `onOverflow` under another name. */
const GENERATION = {
  maxOutputTokens: or(integers(1), -1),
  temperature: or(
    numbers('a number from 0 to 1e6', (n) => n >= 0 && n <= 1e6),
    1,
  ),
  topK: or(integers(0), 64),
  topP: or(
    numbers('a number above 0, at most 1', (n) => n > 0 && n <= 1),
    0.95,
  ),
  minP: or(
    numbers('a number from 0 to 1', (n) => n >= 0 && n <= 1),
    0,
  ),
  repetitionPenalty: or(
    numbers('a number from 1e-6 to 1e6', (n) => n >= 1e-6 && n <= 1e6),
    1,
  ),
  frequencyPenalty: or(penalties, 0),
  presencePenalty: or(penalties, 0),
  penaltyWindow: or(integers(-1), 64),
  seed: or(integers(0, ANY_SIZE), () => Math.floor(Math.random() * 2 ** 48)),
  logitBias: or(custom(logitBias), () => new Float64Array()),
  stopSequences: or(custom(stopSequences), () => []),
  stopTokens: or(custom(stopTokens), () => []),
  draft: or(
    custom((name, value): 'auto' | 'off' | 'prompt-lookup' | 'model' =>
      value === false ? 'off' : choices('prompt-lookup', 'model').check(name, value),
    ),
    'auto',
  ),
  logprobs: or(
    custom((name, value) => (typeof value === 'boolean' ? Number(value) : integer(name, value, 0, 100))),
    0,
  ),
  onOverflow: or(choices('error', 'truncate'), 'error'),
} as const;

const STREAM = { stallTimeoutMs: or(integers(0), 0) } as const;

/** Looked at together, by structureIn(). */
export const STRUCTURED = {
  schema: elsewhere,
  json: elsewhere,
  choices: elsewhere,
  regex: elsewhere,
  grammar: elsewhere,
} as const satisfies TableOf<StructuredOptions>;

const structured = called('schema, or json: true');

/** What is known from other libraries, under their names. */
const LATER = {
  jsonSchema: structured,
  json_schema: structured,
  responseFormat: structured,
  response_format: structured,
  format: structured,
  functions: called('tools'),
  tool_choice: called('toolChoice'),
  lora: called('adapter'),
  adapters: called('adapter'),
} as const;

export const GENERATE = {
  ...PROMPT,
  ...GENERATION,
  ...STRUCTURED,
  ...STREAM,
  maxSteps: elsewhere,
  onProgress: callbacks,
  signal: signals,
  ...LATER,
} as const satisfies TableOf<GenerateOptions, keyof typeof LATER>;

export const EMBED_IMAGE = {
  ...IMAGE,
  ...CROP,
  pooling: orIfNull(choices('none', 'mean'), 'none'),
  adapter: ADAPTER,
  priority: PRIORITY,
  onProgress: callbacks,
  signal: signals,
} as const satisfies TableOf<EmbedImageOptions>;

export const EMBED = {
  task: strings,
  prompt: strings,
  title: custom((name, value) => {
    if (typeof value === 'string') return value;
    if (!Array.isArray(value)) throw new TypeError(`${name}: expected a string or an array, found ${show(value)}`);
    return value.slice() as unknown[];
  }),
  dimensions: integers(1),
  normalize: booleans,
  truncate: or(booleans, false),
  adapter: ADAPTER,
  priority: PRIORITY,
  onProgress: callbacks,
  signal: signals,
} as const satisfies TableOf<EmbedOptions>;

const CROPS = {
  ...IMAGE,
  ...CROP,
  draw: orIfNull(booleans, false),
  signal: signals,
} as const satisfies TableOf<CropsOptions>;

const LOGITS = {
  ...PROMPT,
  all: or(booleans, false),
  top: or(integers(0, 1000), 0),
  data: or(booleans, true),
  next: or(booleans, false),
  onRow: callbacks,
  signal: signals,
} as const satisfies TableOf<LogitsOptions>;

const SCORE = {
  ...PROMPT,
  includeEnd: or(booleans, false),
  normalize: or(choices('none', 'tokens', 'bytes'), 'none'),
  onProgress: callbacks,
  signal: signals,
} as const satisfies TableOf<ScoreOptions>;

// Options are checked before a call begins, so arrays have limits: what grows with them holds up the event loop.
const MAX_CONTEXTS = 256;
const MAX_STOP_SEQUENCES = 256;
const MAX_STOP_CHARACTERS = 1000;
const MAX_BIASES = 1 << 14;

function atMost(name: string, n: number, max: number): void {
  if (n > max) throw new RangeError(`${name}: expected at most ${max}, found ${n}`);
}

function stopSequences(name: string, value: unknown): string[] {
  if (!Array.isArray(value)) throw new TypeError(`${name}: expected an array of strings, found ${show(value)}`);
  atMost(name, value.length, MAX_STOP_SEQUENCES);
  return value.map((sequence: unknown, i) => {
    const { length } = text(`${name}[${i}]`, sequence);
    if (length === 0) throw new RangeError(`${name}[${i}]: expected some text`);
    atMost(`${name}[${i}]: characters`, length, MAX_STOP_CHARACTERS);
    return sequence as string;
  });
}

const MAX_STOP_TOKENS = 1000;

function stopTokens(name: string, value: unknown): (number | string)[] {
  if (!Array.isArray(value))
    throw new TypeError(`${name}: expected an array of ids or texts of tokens, found ${show(value)}`);
  if (value.length > MAX_STOP_TOKENS) {
    throw new RangeError(`${name}: expected at most ${MAX_STOP_TOKENS} tokens, found ${value.length}`);
  }
  return Array.from(value as readonly unknown[], (token, i) =>
    typeof token === 'string' ? token : integer(`${name}[${i}]`, token, 0),
  );
}

const isBias = (n: number) => Math.abs(n) <= 1e6 || n === -Infinity;

// Ids and biases in turn.
function logitBias(name: string, value: unknown): Float64Array {
  if (typeof value !== 'object' || value === null) {
    throw new TypeError(`${name}: expected an object of token ids and numbers, found ${show(value)}`);
  }
  const biases = value as Record<string, unknown>;
  const ids = Object.keys(biases);
  atMost(name, ids.length, MAX_BIASES);
  const pairs = new Float64Array(2 * ids.length);
  for (let i = 0; i < ids.length; ++i) {
    const id = ids[i] ?? '';
    const bias = biases[id];
    pairs[2 * i] = integer(`${name}: token id`, Number(id), 0);
    pairs[2 * i + 1] =
      typeof bias === 'number' && isBias(bias)
        ? bias // names for messages are made only where there is one
        : number(`${name}[${plain(id, 60)}]`, bias, isBias, 'a number from -1e6 to 1e6, or -Infinity');
  }
  return pairs;
}

// A setting from the environment counts where the option is not given.
function environmentThreads(): number | undefined {
  const setting = process.env.GEMMA_THREADS;
  if (!setting) return undefined;
  const threads = Number(setting);
  if (!Number.isInteger(threads) || threads < 1) {
    throw new RangeError(`GEMMA_THREADS: expected an integer of at least 1, found ${show(setting)}`);
  }
  return threads;
}

/** What native code is told about memory. */
export type MemoryParams = Values<typeof MEMORY>;

/** What native code is told to load with, but for the files. */
export type LoadParams = Values<typeof LOAD>;

export function loadOptions(options: LoadOptions): LoadParams {
  known(LOAD, options);
  return valuesOf(LOAD, { ...options, threads: options.threads ?? environmentThreads() });
}

export function imageCacheOptions({ imageCache = {} }: LoadOptions): { maxBytes: number; folder?: string } {
  if (imageCache === false) return { maxBytes: 0 };
  known(IMAGE_CACHE, imageCache, 'imageCache');
  return valuesOf(IMAGE_CACHE, imageCache, 'imageCache.');
}

export function queueOptions({ maxQueue }: LoadOptions): { maxQueue: number } {
  return valuesOf({ maxQueue: or(integers(0), 512) }, { maxQueue });
}

export function estimateOptions(options: EstimateOptions): MemoryParams {
  return checked(ESTIMATE, { ...options, threads: options.threads ?? environmentThreads() });
}

export function inspectOptions(options: InspectOptions): Values<typeof INSPECT> {
  return checked(INSPECT, options);
}

/** What a prompt is made with, defaults filled in. */
export interface PromptSettings {
  raw?: boolean;
  bos: boolean;
  images: readonly (ImageInput | ImageEmbedding)[];
  adapter: readonly NativeAdapterUse[];
  priority: Priority;
  limits: MediaLimits;
  crops: CropParams;
  tools?: ToolSettings;
}

function toolsOf(options: PromptOptions & Pick<GenerateOptions, 'maxSteps'>): ToolSettings | undefined {
  const { tools, toolChoice, toolFormat, maxSteps } = options;
  const given = [tools, toolChoice, toolFormat, maxSteps].some((value) => value !== undefined);
  return given ? lazy.tools.toolSettings({ tools, toolChoice, toolFormat, maxSteps }) : undefined;
}

function structureIn(options: StructuredOptions): Structure | undefined {
  const { schema, json, choices: texts, regex, grammar } = options;
  const given = [schema, json, texts, regex, grammar].some((value) => value !== undefined);
  return given ? lazy.structured.structureOf(options) : undefined;
}

/** Looks at the options of a prompt among others. */
export function promptSettings(options: PromptOptions & Pick<GenerateOptions, 'maxSteps'>): PromptSettings {
  const tools = toolsOf(options);
  return {
    ...valuesOf(RAW, options),
    limits: mediaLimits(options),
    crops: cropParams(options),
    ...(tools && { tools }),
  };
}

/** What native code is told about a generation, but for the tokens and their images. */
export interface GenerateParams extends Omit<Values<typeof GENERATION>, 'onOverflow'> {
  overflowIsError: boolean;
}

/** What an answer is asked for with. */
export interface AnswerParams extends GenerateParams {
  structure?: Structure;
}

export function generateOptions(options: GenerateOptions): {
  params: AnswerParams;
  prompt: PromptSettings;
  stallTimeoutMs: number;
} {
  known(GENERATE, options);
  const { onProgress, signal } = GENERATE;
  valuesOf({ ...LATER, onProgress, signal }, options);
  const { onOverflow, ...params } = valuesOf(GENERATION, options);
  const structure = structureIn(options);
  const prompt = promptSettings(options);
  if (structure && prompt.tools?.tools.length) {
    throw new TypeError('tools: an answer that is bound to a schema, choices or a grammar cannot call tools');
  }
  return {
    params: { ...params, overflowIsError: onOverflow === 'error', ...(structure && { structure }) },
    prompt,
    ...valuesOf(STREAM, options),
  };
}

export function logitsOptions(options: LogitsOptions): {
  all: boolean;
  rows: boolean;
  top: number;
  next: boolean;
  prompt: PromptSettings;
} {
  const { all, top, data, next } = checked(LOGITS, options);
  if (next && !all) throw new TypeError('next: only with all, because nothing follows the last token');
  return { all, top, next, rows: data || !!options.onRow, prompt: promptSettings(options) };
}

export function scoreOptions(options: ScoreOptions): {
  includeEnd: boolean;
  normalize: 'none' | 'tokens' | 'bytes';
  prompt: PromptSettings;
} {
  const { includeEnd, normalize } = checked(SCORE, options);
  return { includeEnd, normalize, prompt: promptSettings(options) };
}

/** @param contextSize the model's */
export function perplexityOptions(
  options: PerplexityOptions,
  contextSize: number,
): { contextSize: number; adapter: readonly NativeAdapterUse[] } {
  const table = {
    contextSize: orIfNull(integers(2, contextSize), Math.min(512, contextSize)),
    adapter: ADAPTER,
    onProgress: callbacks,
    signal: signals,
  } as const satisfies TableOf<PerplexityOptions>;
  return checked(table, options);
}

export function embedImageOptions(options: EmbedImageOptions): {
  limits: ImageLimits;
  crops: CropParams;
  pooling: 'none' | 'mean';
  adapter: readonly NativeAdapterUse[];
  priority: Priority;
} {
  const { pooling, adapter, priority } = checked(EMBED_IMAGE, options);
  return { limits: imageLimits(options), crops: cropParams(options), pooling, adapter, priority };
}

/** @param config the model's */
export function embedOptions(
  options: EmbedOptions,
  { embeddingDim, normalizedEmbeddings }: Pick<ModelConfig, 'embeddingDim' | 'normalizedEmbeddings'>,
): EmbedSettings {
  const { dimensions = embeddingDim, normalize = normalizedEmbeddings, ...rest } = checked(EMBED, options);
  if (rest.title !== undefined && rest.task !== 'document') {
    throw new TypeError("title: only with task 'document'");
  }
  if (rest.prompt !== undefined && rest.task !== undefined) {
    throw new TypeError('prompt: it stands in the place of a task; give one of them');
  }
  integer('dimensions', dimensions, 1, embeddingDim);
  return { dimensions, normalize, ...rest };
}

/** Pan & Scan is the default here. */
export function cropsOptions(options: CropsOptions): { limits: ImageLimits; crops: CropParams; draw: boolean } {
  const { draw } = checked(CROPS, options);
  return {
    limits: imageLimits(options),
    crops: cropParams({ panAndScan: options.tile === undefined, ...options }),
    draw,
  };
}

export function tokenizeOptions(options: TokenizeOptions): { special: boolean; bos: boolean } {
  return checked({ special: or(booleans, false), bos: or(booleans, false), signal: signals }, options);
}

export function loadAdapterOptions(options: LoadAdapterOptions): void {
  checked({ signal: signals } as const satisfies TableOf<LoadAdapterOptions>, options);
}

export function detokenizeOptions(options: DetokenizeOptions): { special: boolean } {
  return checked({ special: orIfNull(booleans, true), signal: signals }, options);
}

export function countOptions(options: CountTokensOptions): PromptSettings {
  known(COUNT, options);
  valuesOf({ signal: signals }, options);
  return promptSettings(options);
}
