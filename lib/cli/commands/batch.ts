// gemma-native batch: a file of requests to a file of results.
import { SingleBar } from 'cli-progress';
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
import { duration, note, printJson, printLine } from '../output.js';

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

// How often progress is told where no bar can be drawn.
const NOTE_MS = 10_000;

function rates({ lines, failedLines, linesPerSecond, tokensPerSecond, secondsLeft }: BatchProgress): string {
  const failed = failedLines > 0 ? `, ${failedLines} failed` : '';
  const speed = `${linesPerSecond.toFixed(1)} lines/s, ${Math.round(tokensPerSecond)} tokens/s`;
  return `${lines} lines${failed}, ${speed}, ${duration(secondsLeft)} left`;
}

/** Tells of a batch on stderr: a bar on a terminal, else a line from time to time. */
function batchProgress(): { update: (progress: BatchProgress) => void; stop: () => void } {
  let last = performance.now();
  if (!process.stderr.isTTY) {
    const update = (progress: BatchProgress) => {
      if (performance.now() - last < NOTE_MS) return;
      last = performance.now();
      note(`${Math.floor((100 * progress.bytes) / Math.max(1, progress.totalBytes))} %: ${rates(progress)}`);
    };
    return { update, stop: () => {} };
  }
  let shown: SingleBar | undefined;
  const update = (progress: BatchProgress) => {
    if (!shown) {
      const format = '[{bar}] {percentage} % {rates}';
      shown = new SingleBar({ format, clearOnComplete: true, stream: process.stderr, hideCursor: true });
      shown.start(progress.totalBytes, 0, { rates: '' });
    }
    shown.update(progress.bytes, { rates: rates(progress) });
  };
  return { update, stop: () => shown?.stop() };
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
