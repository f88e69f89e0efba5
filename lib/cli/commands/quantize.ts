// gemma-native quantize, merge, imatrix: a model in other types, with adapters in it or mixed with another one, and the importance
// matrix that may go into it.
import { readFileSync } from 'node:fs';
import { Option, type Command } from 'commander';
import { Gemma, type Quantization, type QuantizeResult, type TensorType, type WriteOptions } from '../../index.js';
import { QUANTIZATIONS } from '../../quantize.js';
import { adapterFlag, collect, number, type AdapterFlag, type DefineCommand } from '../options.js';
import { bytes, note, printJson, printLine, table, UsageError, withProgress } from '../output.js';

interface WriteFlags {
  type: Quantization;
  mmprojOut?: string | false;
  mmprojType?: Quantization;
  tensorType?: string[];
  imatrix?: string;
  allowRequantize?: boolean;
  overwrite?: boolean;
  threads?: number;
  json?: boolean;
}

interface MergeFlags extends WriteFlags {
  adapter?: AdapterFlag[];
  with?: string;
  weight?: number;
  tensorWeight?: string[];
  method: 'linear' | 'slerp';
  mmproj?: string;
}

function overridesOf(flags: readonly string[]): Record<string, TensorType> {
  return Object.fromEntries(
    flags.map((flag) => {
      const [, pattern, type] = /^(.+)=([^=]+)$/.exec(flag) ?? [];
      if (pattern === undefined) throw new UsageError(`--tensor-type: expected PATTERN=TYPE, found ${flag}`);
      return [pattern, type?.toLowerCase() as TensorType];
    }),
  );
}

function weightsOf(flags: readonly string[]): Record<string, number> {
  return Object.fromEntries(
    flags.map((flag) => {
      const [, pattern, weight = ''] = /^(.+)=([^=]+)$/.exec(flag) ?? [];
      if (pattern === undefined) throw new UsageError(`--tensor-weight: expected PATTERN=WEIGHT, found ${flag}`);
      return [pattern, number(weight)];
    }),
  );
}

function writeOptions(flags: WriteFlags, onProgress: (fraction: number) => void, signal: AbortSignal): WriteOptions {
  return {
    type: flags.type,
    ...(flags.mmprojOut !== undefined && { mmprojOutput: flags.mmprojOut }),
    ...(flags.mmprojType !== undefined && { mmprojType: flags.mmprojType }),
    ...(flags.tensorType && { overrides: overridesOf(flags.tensorType) }),
    ...(flags.imatrix !== undefined && { importance: flags.imatrix }),
    ...(flags.allowRequantize && { allowRequantize: true }),
    ...(flags.overwrite && { overwrite: true }),
    ...(flags.threads !== undefined && { threads: flags.threads }),
    onProgress,
    signal,
  };
}

function report(result: QuantizeResult): void {
  for (const { tensor, wanted, type } of result.fallbacks) {
    note(`${tensor}: ${type}, as its rows do not fit the blocks of ${wanted}`);
  }
  printLine(`${result.path}: ${bytes(result.bytes)} (before ${bytes(result.sourceBytes)})`);
  printLine(table(result.types.map(({ type, tensors, bytes: n }) => ['  ', type, tensors, 'tensors', bytes(n)])));
  if (result.mmproj) printLine(`${result.mmproj.path}: ${bytes(result.mmproj.bytes)}, the vision encoder`);
}

async function quantize(input: string, output: string, flags: WriteFlags, signal: AbortSignal): Promise<void> {
  const result = await withProgress('Quantising', !!flags.json, (onProgress) =>
    Gemma.quantize(input, output, writeOptions(flags, onProgress, signal)),
  );
  if (flags.json) printJson(result);
  else report(result);
}

async function merge(model: string, output: string, flags: MergeFlags, signal: AbortSignal): Promise<void> {
  const isMix = flags.with !== undefined;
  if (!isMix && (flags.weight !== undefined || flags.tensorWeight || flags.method !== 'linear')) {
    throw new UsageError('--weight, --tensor-weight and --method go with --with');
  }
  if (isMix === !!flags.adapter) throw new UsageError('expected --adapter, or --with and another model');
  const result = await withProgress('Merging', !!flags.json, (onProgress) =>
    Gemma.merge(model, output, {
      ...writeOptions(flags, onProgress, signal),
      ...(flags.adapter && { adapters: flags.adapter }),
      ...(flags.mmproj !== undefined && { mmproj: flags.mmproj }),
      ...(flags.with !== undefined && {
        with: {
          model: flags.with,
          method: flags.method,
          ...(flags.weight !== undefined && { weight: flags.weight }),
          ...(flags.tensorWeight && { weights: weightsOf(flags.tensorWeight) }),
        },
      }),
    }),
  );
  if (flags.json) return printJson(result);
  report(result);
  printLine(`${result.changedTensors} tensors have other values`);
}

interface ImatrixFlags {
  chunkSize?: number;
  threads?: number;
  json?: boolean;
}

async function imatrix(
  model: string,
  file: string,
  output: string,
  flags: ImatrixFlags,
  signal: AbortSignal,
): Promise<void> {
  const text = readFileSync(file, 'utf8');
  const result = await withProgress('Reading', !!flags.json, (onProgress) =>
    Gemma.importance(model, text, output, {
      ...(flags.chunkSize !== undefined && { chunkSize: flags.chunkSize }),
      ...(flags.threads !== undefined && { threads: flags.threads }),
      onProgress,
      signal,
    }),
  );
  if (flags.json) printJson(result);
  else printLine(`${result.path}: ${result.tensors} tensors, from ${result.tokens} tokens in ${result.chunks} chunks`);
}

// What both commands have.
function writeFlags(command: Command): Command {
  return command
    .addOption(new Option('--type <type>', 'what most matrices become').choices(QUANTIZATIONS).makeOptionMandatory())
    .option('--tensor-type <pattern=type>', "another type for some tensors: 'blk.*.ffn_down=q6_k'; repeat", collect)
    .option('--mmproj-out <file>', "where a folder's vision encoder goes (default: mmproj-OUTPUT)")
    .option('--no-mmproj-out', 'leave the vision encoder out')
    .addOption(new Option('--mmproj-type <type>', 'type of that file (default: f16)').choices(QUANTIZATIONS))
    .option('--imatrix <file>', 'importance matrix that errors are weighted with')
    .option('--allow-requantize', 'take tensors that are quantised already')
    .option('--overwrite', 'replace the output')
    .option('--threads <n>', 'threads that compute', number)
    .option('--json', 'print one JSON object');
}

// Commander sets a default of true for an option that has a form with "no".
function mmprojOf<T extends WriteFlags>(flags: T): T {
  if ((flags.mmprojOut as unknown) === true) delete flags.mmprojOut;
  return flags;
}

export function addQuantize(command: DefineCommand, signal: AbortSignal): void {
  writeFlags(
    command('quantize <input> <output>', 'write a model, a GGUF file or a checkpoint folder, in other types as GGUF'),
  ).action((input: string, output: string, flags: WriteFlags) => quantize(input, output, mmprojOf(flags), signal));
  writeFlags(command('merge <model> <output>', 'put adapters into the weights of a model, or mix it with another one'))
    .option('--adapter <path>', 'adapter; PATH=SCALE adds so much of it; as often as wanted', adapterFlag)
    .option('--mmproj <file>', 'vision encoder of a GGUF file, for adapters that change it')
    .option('--with <model>', 'another model of the same shape')
    .option('--weight <t>', 'of the other model, 0 to 1 (default: 0.5)', number)
    .option('--tensor-weight <pattern=t>', 'another weight for some tensors; repeat', collect)
    .addOption(new Option('--method <method>', 'how the two are mixed').choices(['linear', 'slerp']).default('linear'))
    .action((model: string, output: string, flags: MergeFlags) => merge(model, output, mmprojOf(flags), signal));
  command('imatrix <model> <text-file> <output>', 'measure how much each input of the matrices counts, over a text')
    .option('--chunk-size <n>', 'tokens that are read together', number)
    .option('--threads <n>', 'threads that compute', number)
    .option('--json', 'print one JSON object')
    .action((model: string, file: string, output: string, flags: ImatrixFlags) =>
      imatrix(model, file, output, flags, signal),
    );
}
