// Model files in other types, and the importance of their inputs: what is done without a loaded model.
import { abortableWriting } from './cancellation.js';
import { localPath } from './local-file.js';
import { findModelFile, isCheckpoint } from './model-files.js';
import {
  checkOutputs,
  filesOfModel,
  mmprojBeside,
  outputPath,
  resumablePath,
  runWork,
  templateOf,
  type Written,
} from './model-work.js';
import { addon, type NativeQuantizeOptions } from './native.js';
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
import { checkReadable } from './permission.js';
import { plain, show, text as asText } from './values.js';

/** What a whole file can be quantised to. */
export const QUANTIZATIONS = [
  'f32',
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

/** How the file is written, whatever it is made of. */
export interface WriteOptions {
  /** What most matrices become; the rest follows llama.cpp's rules for files of that name. */
  type: Quantization;
  /**
   * Other types for some tensors: name, with or without `.weight`, or a pattern with `*` and `?`; of several that name a tensor the
   * first counts. One that names no matrix is `ERR_INVALID_ARGUMENT` (`NO_SUCH_TENSOR`).
   */
  overrides?: Readonly<Record<string, TensorType>>;
  /**
   * Where the vision encoder of a folder goes, path or `file:` URL. Default: `mmproj-` and the name of the output, beside it, where `load`
   * finds it; false: it is left out. A model without one is `ERR_INVALID_ARGUMENT` (`NO_MMPROJ`) where a file is named.
   */
  mmprojOutput?: string | URL | false;
  /** Type of that file, default `f16`; its vectors, positions and patches stay F32. */
  mmprojType?: Quantization;
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

export type QuantizeOptions = WriteOptions;

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
  /** the vision encoder's file, where one was written */
  mmproj?: { path: string; bytes: number; types: { type: string; tensors: number; bytes: number }[] };
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

export const MAX_OVERRIDES = 1000;
export const MAX_PATTERN = 200;
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

/** The rows of WriteOptions. */
export const WRITE = {
  type: choices(...QUANTIZATIONS),
  mmprojOutput: elsewhere,
  mmprojType: choices(...QUANTIZATIONS),
  overrides: overrideList,
  importance: elsewhere,
  allowRequantize: booleans,
  overwrite: or(booleans, false),
  threads: integers(1, 1024),
  onProgress: callbacks,
  signal: signals,
} satisfies TableOf<WriteOptions>;

const IMPORTANCE = {
  chunkSize: or(integers(8, 65536), 512),
  threads: integers(1, 1024),
  onProgress: callbacks,
  signal: signals,
} satisfies TableOf<ImportanceOptions>;

/** What native code is told of a file that is written, and what it reads for that. */
export interface PreparedWrite {
  work: NativeQuantizeOptions;
  /** files that must not be written over */
  inputs: string[];
  outputs: string[];
}

/**
 * Looks at the options of a file that is written from a model. `hasMmproj`: the vision encoder is in a file of its own.
 *
 * @throws TypeError, RangeError, GemmaError
 */
export async function prepareWrite(
  path: string,
  output: string | URL,
  options: WriteOptions,
  hasMmproj = false,
): Promise<PreparedWrite> {
  const { type, ...settings } = valuesOf(WRITE, options);
  if (type === undefined) throw new TypeError(`type: expected one of ${QUANTIZATIONS.join(', ')}, found nothing`);
  const { importance, mmprojOutput } = options;
  if (mmprojOutput === (true as unknown)) throw new TypeError('mmprojOutput: expected a path, a file: URL or false');
  const to = await resumablePath(output);
  const isBeside = mmprojOutput === undefined && (hasMmproj || (await isCheckpoint(path)));
  const mmproj = mmprojOutput || (isBeside ? mmprojBeside(to) : undefined);
  const mmprojTo = mmproj === undefined ? undefined : await resumablePath(mmproj, 'mmprojOutput');
  const matrix =
    importance === undefined ? undefined : localPath(importance, 'importance', { allowLocal: true }, 'ERR_FILE');
  if (matrix !== undefined) checkReadable(matrix);
  const chatTemplate = await templateOf(path);
  return {
    work: {
      path,
      output: to,
      type,
      ...settings,
      ...(mmprojTo !== undefined && { mmprojOutput: mmprojTo, needsMmproj: !isBeside }),
      ...(matrix !== undefined && { importance: matrix }),
      ...(chatTemplate !== undefined && { chatTemplate }),
    },
    inputs: [...(await filesOfModel(path)), ...(matrix === undefined ? [] : [matrix])],
    outputs: [to, ...(mmprojTo === undefined ? [] : [mmprojTo])],
  };
}

/** As `Gemma.quantize`. */
export async function quantize(
  input: string | URL,
  output: string | URL,
  options: QuantizeOptions,
): Promise<QuantizeResult> {
  known(WRITE, options);
  valuesOf(WRITE, options);
  return abortableWriting(options.signal, async (cancellation) => {
    const path = await findModelFile(input, 'input');
    const { work, inputs, outputs } = await prepareWrite(path, output, options);
    await checkOutputs(outputs, inputs);
    const native = addon();
    const result = await runWork<Written<QuantizeResult>>(
      (listener) => native.quantize(work, listener),
      native,
      cancellation,
      options.onProgress,
    );
    return { path: work.output, ...result };
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
  return abortableWriting(options.signal, async (cancellation) => {
    const path = await findModelFile(model);
    const to = await outputPath(output);
    const native = addon();
    const work = { path, output: to, text: from, ...settings };
    const result = await runWork<Written<ImportanceResult>>(
      (listener) => native.importance(work, listener),
      native,
      cancellation,
      options.onProgress,
    );
    return { path: to, ...result };
  });
}
