// gemma-native logits: the model's scores for the next token, or for every token of the input.
import { closeSync, openSync, writeSync } from 'node:fs';
import type { Gemma, TokenScore } from '../../index.js';
import {
  collect,
  adapterOptions,
  imageOptions,
  textFrom,
  tokenList,
  using,
  withAdapters,
  withImages,
  withModel,
  type DefineCommand,
  type ImageFlags,
  type ModelFlags,
} from '../options.js';
import { printJson, printLine, table, UsageError } from '../output.js';

function writeFully(file: number, data: Uint8Array): void {
  for (let done = 0; done < data.length;) done += writeSync(file, data, done);
}

async function printTop(gemma: Gemma, tokens: number[], top: TokenScore[][]): Promise<void> {
  for (const [i, best] of top.entries()) {
    const position = tokens.length - top.length + i;
    const token = tokens[position] ?? 0;
    printLine(`position ${position}, after ${JSON.stringify(await gemma.detokenize([token]))} (${token})`);
    const rows: (string | number)[][] = [];
    for (const entry of best) {
      const text = JSON.stringify(await gemma.detokenize([entry.token]));
      rows.push([
        '  ',
        entry.token,
        text,
        `logit ${entry.logit.toFixed(3)}`,
        `${(Math.exp(entry.logprob) * 100).toFixed(2)} %`,
      ]);
    }
    printLine(table(rows));
  }
}

interface LogitsFlags extends ModelFlags, ImageFlags {
  raw?: boolean;
  bos?: boolean;
  all?: boolean;
  out?: string;
  tokens?: number[];
}

async function logits(argument: string | undefined, flags: LogitsFlags, signal: AbortSignal): Promise<void> {
  if (flags.tokens && argument !== undefined) throw new UsageError('give a prompt or --tokens, not both');
  const input = flags.tokens ?? (await textFrom(argument, undefined, 'prompt'));
  await using(flags, signal, async (gemma) => {
    const file = flags.out === undefined ? undefined : openSync(flags.out, 'w');
    try {
      const {
        tokens,
        shape,
        top = [],
      } = await gemma.logits(input, {
        all: !!flags.all,
        top: 5,
        signal,
        ...imageOptions(flags),
        ...adapterOptions(flags),
        // Literally raw: only what was given, <bos> when asked for.
        ...(flags.raw && { raw: true, bos: !!flags.bos }),
        ...(file === undefined
          ? { data: false }
          : { onRow: (row) => writeFully(file, new Uint8Array(row.buffer, row.byteOffset, row.byteLength)) }),
      });
      if (flags.json) printJson({ tokens, shape, top });
      else await printTop(gemma, tokens, top);
    } finally {
      if (file !== undefined) closeSync(file);
    }
  });
}

export function addLogits(command: DefineCommand, signal: AbortSignal): void {
  withAdapters(withImages(withModel(command('logits [prompt]', "the model's scores for the next token"))))
    .option('--raw', 'the text as it is, without template and <bos>')
    .option('--bos', 'with --raw: begin with <bos>')
    .option('--tokens <ids>', 'token ids instead of a prompt, separated by commas', tokenList)
    .option('--all', 'for every position, not only the last')
    .option('--out <file>', 'write all scores, float32 little endian')
    .option('--image <file>', 'a picture before the prompt, or for a run of image tokens; as often as wanted', collect)
    .action((prompt: string | undefined, flags: LogitsFlags) => logits(prompt, flags, signal));
}
