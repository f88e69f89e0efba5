// gemma-native batch: a file of requests to a file of results.
import type { BatchGenerateOptions, BatchProgress } from '../../index.js';
import {
  adapterOptions,
  imageOptions,
  jsonFrom,
  number,
  samplingOptions,
  using,
  withAdapters,
  withImages,
  withModel,
  withSampling,
  type DefineCommand,
  type ImageFlags,
  type ModelFlags,
  type SamplingFlags,
} from '../options.js';
import { duration, printJson, printLine } from '../output.js';
import { workProgress } from '../work-progress.js';

interface BatchFlags extends ModelFlags, ImageFlags, SamplingFlags {
  raw?: boolean;
  schema?: string;
  task?: string;
  dimensions?: number;
  concurrency?: number;
  unordered?: boolean;
  maxLineBytes?: number;
  overwrite?: boolean;
  remote?: boolean;
}

function rates({ lines, failedLines, linesPerSecond, tokensPerSecond, secondsLeft }: BatchProgress): string {
  const failed = failedLines > 0 ? `, ${failedLines} failed` : '';
  const speed = `${linesPerSecond.toFixed(1)} lines/s, ${Math.round(tokensPerSecond)} tokens/s`;
  return `${lines} lines${failed}, ${speed}, ${duration(secondsLeft)} left`;
}

function batchProgress() {
  const { update, stop } = workProgress('[{bar}] {percentage} % {rates}');
  return {
    update: (progress: BatchProgress) => {
      const { bytes: value, totalBytes: total } = progress;
      const line = () => `${Math.floor((100 * value) / Math.max(1, total))} %: ${rates(progress)}`;
      update({ value, total, bar: () => ({ rates: rates(progress) }), line });
    },
    stop,
  };
}

async function batch(input: string, output: string, flags: BatchFlags, signal: AbortSignal): Promise<void> {
  const { panAndScan, tile, alpha } = imageOptions(flags);
  const pictures = {
    ...(panAndScan && { panAndScan }),
    ...(tile !== undefined && { tile }),
    ...(alpha !== undefined && { alpha }),
    ...(flags.remote && { allowRemote: true }),
  };
  const generate: BatchGenerateOptions = {
    ...pictures,
    ...samplingOptions(flags),
    ...adapterOptions(flags),
    ...(flags.raw !== undefined && { raw: flags.raw }),
    ...(flags.schema !== undefined && { schema: jsonFrom(flags.schema, '--schema') as object }),
  };
  const { task, dimensions, concurrency, maxLineBytes } = flags;
  await using(flags, signal, async (gemma) => {
    const progress = batchProgress();
    try {
      const result = await gemma.batch(input, output, {
        generate,
        embed: { ...(task && { task }), ...(dimensions !== undefined && { dimensions }) },
        embedImage: pictures,
        ...(concurrency !== undefined && { concurrency }),
        ...(maxLineBytes !== undefined && { maxLineBytes }),
        ordered: !flags.unordered,
        overwrite: !!flags.overwrite,
        onProgress: progress.update,
        signal,
      });
      progress.stop();
      if (flags.json) return printJson(result);
      const { lines, resumedLines, failedLines, usage } = result;
      const before = resumedLines > 0 ? `, ${resumedLines} of them before` : '';
      const failed = failedLines > 0 ? `, ${failedLines} with an error` : '';
      printLine(`${result.path}: ${lines} results${before}${failed}`);
      printLine(`${usage.inputTokens} tokens read, ${usage.outputTokens} written`);
    } finally {
      progress.stop();
    }
  });
}

export function addBatch(command: DefineCommand, signal: AbortSignal): void {
  const summary =
    'a file of requests, one in each line, to a file of results; the same command goes on where it was ended';
  withSampling(withImages(withAdapters(withModel(command('batch <input> <output>', summary)))))
    .option('--raw', 'continue prompts, also with an instruction-tuned model')
    .option('--no-raw', 'take prompts as user turns, also without a chat template')
    .option('--schema <file>', 'answers are JSON that meets the JSON Schema in this file')
    .option('--task <task>', 'what embeddings are for: query, document or another prompt that the model has')
    .option('--dimensions <n>', 'numbers of an embedding, the first are kept', number)
    .option('--remote', 'fetch pictures from public http(s) addresses that lines name')
    .option('--concurrency <n>', 'lines that are worked on at once (64)', number)
    .option('--unordered', 'write results as they come, not in the order of the lines')
    .option('--max-line-bytes <n>', 'longer lines are errors (16 MiB)', number)
    .option('--overwrite', 'begin the output anew')
    .action((input: string, output: string, flags: BatchFlags) => batch(input, output, flags, signal));
}
