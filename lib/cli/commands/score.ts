// gemma-native score: how likely each of some candidates is after a prompt.
import { Option } from 'commander';
import {
  candidatesOf,
  collect,
  adapterOptions,
  imageOptions,
  using,
  withAdapters,
  withImages,
  withModel,
  type DefineCommand,
  type ImageFlags,
  type ModelFlags,
} from '../options.js';
import { printJson, printLine, table, UsageError, withProgress } from '../output.js';

interface ScoreFlags extends ModelFlags, ImageFlags {
  raw?: boolean;
  system?: string;
  file?: string;
  includeEnd?: boolean;
  normalize?: 'tokens' | 'bytes';
}

async function score(prompt: string, given: readonly string[], flags: ScoreFlags, signal: AbortSignal): Promise<void> {
  const { raw, system, image = [], includeEnd, normalize } = flags;
  if (raw && system !== undefined) throw new UsageError('--system: raw text has no system message');
  const candidates = candidatesOf('candidates', given, flags.file);
  if (candidates.length === 0) throw new UsageError('candidates: expected at least one, as arguments or with --file');
  const { images, ...seen } = imageOptions(flags);
  const shown = image.map((path) => ({ type: 'image' as const, image: path }));
  const input =
    system === undefined
      ? prompt
      : [
          { role: 'system' as const, content: system },
          { role: 'user' as const, content: [...shown, { type: 'text' as const, text: prompt }] },
        ];
  await using(flags, signal, async (gemma) => {
    const scores = await withProgress('Scoring', !!flags.json, (onProgress) =>
      gemma.score(input, candidates, {
        signal,
        ...seen,
        ...adapterOptions(flags),
        onProgress,
        ...(typeof input === 'string' && images && { images }),
        ...(raw !== undefined && { raw }),
        ...(includeEnd && { includeEnd }),
        ...(normalize && { normalize }),
      }),
    );
    if (flags.json) {
      printJson({ candidates: scores });
      return;
    }
    const rows = scores
      .toSorted((a, b) => a.rank - b.rank)
      .map(({ text, probability, logprob, tokens, normalized }) => [
        `${(probability * 100).toFixed(2).padStart(6)} %`,
        `logprob ${logprob.toFixed(3)}`,
        ...(normalized === undefined ? [] : [`${normalized.toFixed(4)} per ${(normalize ?? '').slice(0, -1)}`]),
        `${tokens.length} token${tokens.length === 1 ? '' : 's'}`,
        JSON.stringify(text),
      ]);
    printLine(table(rows));
  });
}

export function addScore(command: DefineCommand, signal: AbortSignal): void {
  withAdapters(
    withImages(withModel(command('score <prompt> [candidates...]', 'how likely candidates are to follow a prompt'))),
  )
    .option('--raw', 'the candidates continue the text, also with an instruction-tuned model')
    .option('--no-raw', 'the candidates begin an answer, also without a chat template')
    .option('--system <text>', 'system message')
    .option('--file <file>', 'a file with a candidate in each line, instead of arguments')
    .option('--include-end', 'each candidate is the whole answer, with the token that ends it')
    .addOption(
      new Option('--normalize <length>', 'rank by the mean for each of these, instead of the whole').choices([
        'tokens',
        'bytes',
      ]),
    )
    .option('--image <file>', 'a picture before the prompt; as often as wanted', collect)
    .action((prompt: string, candidates: string[], flags: ScoreFlags) => score(prompt, candidates, flags, signal));
}
