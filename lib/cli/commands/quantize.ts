// gemma-native quantize, imatrix: a model file in other types, and the importance matrix that may go into it.
import { readFileSync } from 'node:fs';
import { Option } from 'commander';
import { Gemma, type Quantization, type TensorType } from '../../index.js';
import { QUANTIZATIONS } from '../../quantize.js';
import { collect, number, type DefineCommand } from '../options.js';
import { bytes, note, printJson, printLine, table, UsageError, withProgress } from '../output.js';

interface QuantizeFlags {
  type: Quantization;
  tensorType?: string[];
  imatrix?: string;
  allowRequantize?: boolean;
  overwrite?: boolean;
  threads?: number;
  json?: boolean;
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

async function quantize(input: string, output: string, flags: QuantizeFlags, signal: AbortSignal): Promise<void> {
  const result = await withProgress('Quantising', !!flags.json, (onProgress) =>
    Gemma.quantize(input, output, {
      type: flags.type,
      ...(flags.tensorType && { overrides: overridesOf(flags.tensorType) }),
      ...(flags.imatrix !== undefined && { importance: flags.imatrix }),
      ...(flags.allowRequantize && { allowRequantize: true }),
      ...(flags.overwrite && { overwrite: true }),
      ...(flags.threads !== undefined && { threads: flags.threads }),
      onProgress,
      signal,
    }),
  );
  if (flags.json) return printJson(result);
  for (const { tensor, wanted, type } of result.fallbacks) {
    note(`${tensor}: ${type}, as its rows do not fit the blocks of ${wanted}`);
  }
  printLine(`${result.path}: ${bytes(result.bytes)} (before ${bytes(result.sourceBytes)})`);
  printLine(table(result.types.map(({ type, tensors, bytes: n }) => ['  ', type, tensors, 'tensors', bytes(n)])));
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

export function addQuantize(command: DefineCommand, signal: AbortSignal): void {
  command('quantize <input> <output>', 'write a model in other types, as a GGUF file')
    .addOption(new Option('--type <type>', 'what most matrices become').choices(QUANTIZATIONS).makeOptionMandatory())
    .option('--tensor-type <pattern=type>', "another type for some tensors: 'blk.*.ffn_down=q6_k'; repeat", collect)
    .option('--imatrix <file>', 'importance matrix that errors are weighted with')
    .option('--allow-requantize', 'take tensors that are quantised already')
    .option('--overwrite', 'replace the output')
    .option('--threads <n>', 'threads that compute', number)
    .option('--json', 'print one JSON object')
    .action((input: string, output: string, flags: QuantizeFlags) => quantize(input, output, flags, signal));
  command('imatrix <model> <text-file> <output>', 'measure how much each input of the matrices counts, over a text')
    .option('--chunk-size <n>', 'tokens that are read together', number)
    .option('--threads <n>', 'threads that compute', number)
    .option('--json', 'print one JSON object')
    .action((model: string, file: string, output: string, flags: ImatrixFlags) =>
      imatrix(model, file, output, flags, signal),
    );
}
