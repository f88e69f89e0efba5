// Model files in other types, and the importance of their inputs: what is done without a loaded model.
import { abortable, type Cancellation } from './cancellation.js';
import { GemmaError } from './errors.js';
import { isSameFile, localPath, replaceablePath } from './local-file.js';
import { findModelFile } from './model-files.js';
import { addon, type NativeAddon, type NativeWorkEvent } from './native.js';
import { runOperation } from './operation.js';
import {
  booleans,
  callbacks,
  choices,
  custom,
  elsewhere,
  integers,
  known,
  or,
  signals,
  valuesOf,
  type TableOf,
} from './option-table.js';
import { checkReadable, checkWritable } from './permission.js';
import { plain, show, text as asText } from './values.js';

/** What a whole file can be quantised to. */
export const QUANTIZATIONS = [
  'f16',
  'bf16',
  'q8_0',
  'q6_k',
  'q5_k_m',
  'q5_1',
  'q5_0',
  'q4_k_m',
  'q4_1',
  'q4_0',
  'iq4_xs',
] as const;
export type Quantization = (typeof QUANTIZATIONS)[number];

const TENSOR_TYPES = [
  'f32',
  'f16',
  'bf16',
  'q8_0',
  'q6_k',
  'q5_k',
  'q5_1',
  'q5_0',
  'q4_k',
  'q4_1',
  'q4_0',
  'iq4_nl',
  'iq4_xs',
] as const;
/** What a single tensor can be quantised to. */
export type TensorType = (typeof TENSOR_TYPES)[number];

export interface QuantizeOptions {
  /** What most matrices become; the rest follows llama.cpp's rules for files of that name. */
  type: Quantization;
  /**
   * Other types for some tensors: name, with or without `.weight`, or a pattern with `*` and `?`; of several that name a tensor the
   * first counts. One that names no matrix is `ERR_INVALID_ARGUMENT` (`NO_SUCH_TENSOR`).
   */
  overrides?: Readonly<Record<string, TensorType>>;
  /** Path or `file:` URL of an importance matrix, of `Gemma.importance` or llama.cpp's `llama-imatrix`: weighs errors. */
  importance?: string | URL;
  /** Default false: tensors that are quantised already and would change are `ERR_UNSUPPORTED_INPUT` (`REQUANTIZE`). */
  allowRequantize?: boolean;
  /** Default false: an output that is there is `ERR_FILE` (`FILE_EXISTS`). */
  overwrite?: boolean;
  /** Threads that compute. Default: the physical cores this process may use. */
  threads?: number;
  /** Called with the fraction that is written, 0 to 1. */
  onProgress?: (fraction: number) => void;
  /** Aborting rejects with the signal's reason. What was written stays in `OUTPUT.part` for the next time. */
  signal?: AbortSignal;
}

export interface QuantizeResult {
  /** of the file that was written */
  path: string;
  bytes: number;
  /** of the file that was read */
  sourceBytes: number;
  /** what the file consists of, most bytes first */
  types: { type: string; tensors: number; bytes: number }[];
  /** tensors whose rows do not fit the blocks of the type that they should have had */
  fallbacks: { tensor: string; wanted: string; type: string }[];
  /** tensors that an interrupted run had written already */
  resumedTensors: number;
}

export interface ImportanceOptions {
  /** Tokens that are read together, 8 to 65536. Default: 512. */
  chunkSize?: number;
  /** Threads that compute. Default: the physical cores this process may use. */
  threads?: number;
  /** Called with the fraction that is done, 0 to 1. */
  onProgress?: (fraction: number) => void;
  /** Aborting rejects with the signal's reason. */
  signal?: AbortSignal;
}

export interface ImportanceResult {
  /** of the file that was written */
  path: string;
  bytes: number;
  /** of the text, what was read: whole chunks */
  tokens: number;
  chunks: number;
  /** that the file has columns of */
  tensors: number;
}

const MAX_OVERRIDES = 1000;
const MAX_PATTERN = 200;
const MAX_TEXT = 1 << 26; // characters

const overrideList = custom((name, value) => {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new TypeError(`${name}: expected an object of types by tensor, found ${show(value)}`);
  }
  const entries = Object.entries(value as Record<string, unknown>);
  if (entries.length > MAX_OVERRIDES) {
    throw new RangeError(`${name}: expected at most ${MAX_OVERRIDES}, found ${entries.length}`);
  }
  return entries.map(([pattern, type]) => {
    if (pattern === '' || pattern.length > MAX_PATTERN) {
      throw new RangeError(`${name}: expected patterns of 1 to ${MAX_PATTERN} characters, found ${pattern.length}`);
    }
    return { pattern, type: choices(...TENSOR_TYPES).check(`${name}[${plain(pattern, 60)}]`, type) };
  });
});

const QUANTIZE = {
  type: choices(...QUANTIZATIONS),
  overrides: overrideList,
  importance: elsewhere,
  allowRequantize: booleans,
  overwrite: or(booleans, false),
  threads: integers(1, 1024),
  onProgress: callbacks,
  signal: signals,
} satisfies TableOf<QuantizeOptions>;

const IMPORTANCE = {
  chunkSize: or(integers(8, 65536), 512),
  threads: integers(1, 1024),
  onProgress: callbacks,
  signal: signals,
} satisfies TableOf<ImportanceOptions>;

type Written<T> = Omit<T, 'path'>; // as native code tells it

/** Runs native work that ends with a result. */
function run<T extends object>(
  start: (onEvent: (event: NativeWorkEvent<T>) => void) => number,
  native: NativeAddon,
  cancellation: Cancellation,
  onProgress: (fraction: number) => void = () => {},
): Promise<T> {
  return runOperation(
    {
      start,
      stop: (id) => native.cancel(id),
      onEvent: (event: NativeWorkEvent<T>) => {
        if (event.kind === 'done') return { value: event.result };
        if (event.kind === 'failed') return { error: event.error };
        if (!cancellation.cancelled) onProgress(event.fraction);
        return undefined;
      },
    },
    cancellation,
  );
}

async function outputPath(output: string | URL): Promise<string> {
  const named = localPath(output, 'output', { allowLocal: true }, 'ERR_FILE');
  checkWritable(named);
  const path = await replaceablePath(named);
  checkWritable(path);
  return path;
}

/** The files of a model: of a split one all parts. */
function partsOf(path: string): string[] {
  const [, start = '', count = 0] = /^(.*-)00001-of-(\d{5})\.gguf$/s.exec(path) ?? [];
  const parts = Array.from({ length: Math.max(0, Number(count) - 1) }, (_, i) => {
    return `${start}${String(i + 2).padStart(5, '0')}-of-${count}.gguf`;
  });
  return [path, ...parts];
}

/** As `Gemma.quantize`. */
export async function quantize(
  input: string | URL,
  output: string | URL,
  options: QuantizeOptions,
): Promise<QuantizeResult> {
  known(QUANTIZE, options);
  const { type, ...settings } = valuesOf(QUANTIZE, options);
  if (type === undefined) throw new TypeError(`type: expected one of ${QUANTIZATIONS.join(', ')}, found nothing`);
  const { onProgress, importance } = options;
  return abortable(options.signal, async (cancellation) => {
    const path = await findModelFile(input, 'input');
    const to = await outputPath(output);
    checkWritable(`${to}.part`);
    for (const part of partsOf(path)) {
      if (!(await isSameFile(part, to))) continue;
      throw new GemmaError('ERR_INVALID_ARGUMENT', `${plain(to)}: the output is the input; name another`, 'SAME_FILE');
    }
    const matrix =
      importance === undefined ? undefined : localPath(importance, 'importance', { allowLocal: true }, 'ERR_FILE');
    if (matrix !== undefined) checkReadable(matrix);
    const native = addon();
    const work = { path, output: to, type, ...settings, ...(matrix !== undefined && { importance: matrix }) };
    const result = await run<Written<QuantizeResult>>(
      (listener) => native.quantize(work, listener),
      native,
      cancellation,
      onProgress,
    );
    return { path: to, ...result };
  });
}

/** As `Gemma.importance`. */
export async function importance(
  model: string | URL,
  text: string,
  output: string | URL,
  options: ImportanceOptions = {},
): Promise<ImportanceResult> {
  known(IMPORTANCE, options);
  const settings = valuesOf(IMPORTANCE, options);
  const from = asText('text', text);
  if (from.length > MAX_TEXT) {
    throw new RangeError(`text: expected at most ${MAX_TEXT} characters, found ${from.length}`);
  }
  return abortable(options.signal, async (cancellation) => {
    const path = await findModelFile(model);
    const to = await outputPath(output);
    const native = addon();
    const work = { path, output: to, text: from, ...settings };
    const result = await run<Written<ImportanceResult>>(
      (listener) => native.importance(work, listener),
      native,
      cancellation,
      options.onProgress,
    );
    return { path: to, ...result };
  });
}
