// gemma-native embed: texts to vectors.
import { readFileSync, writeFileSync } from 'node:fs';
import { Option } from 'commander';
import {
  adapterOptions,
  number,
  using,
  withAdapters,
  withModel,
  type DefineCommand,
  type ModelFlags,
} from '../options.js';
import { printJson, printLine, UsageError, withProgress } from '../output.js';

interface EmbedFlags extends ModelFlags {
  task?: string;
  prompt?: string;
  title?: string;
  dimensions?: number;
  normalize?: boolean;
  truncate?: boolean;
  file?: string;
  out?: string;
}

function textsOf(given: readonly string[], file: string | undefined): readonly string[] {
  if (file === undefined) return given;
  if (given.length > 0) throw new UsageError('texts: give them as arguments or with --file, not both');
  return readFileSync(file, 'utf8').replace(/\r?\n$/, '').split(/\r?\n/); // prettier-ignore
}

// Enough of a vector to tell it from others.
function shown(row: Float32Array): string {
  const numbers = Array.from(row.subarray(0, 4), (x) => x.toFixed(4).padStart(7)).join(' ');
  return row.length > 4 ? `${numbers} ...` : numbers;
}

async function embed(given: readonly string[], flags: EmbedFlags, signal: AbortSignal): Promise<void> {
  const texts = textsOf(given, flags.file);
  if (texts.length === 0) throw new UsageError('texts: expected at least one, as arguments or with --file');
  const { task, prompt, title, dimensions, normalize, truncate, out } = flags;
  await using(flags, signal, async (gemma) => {
    const { data, shape, usage } = await withProgress('Embedding', !!flags.json, (onProgress) =>
      gemma.embed(texts, {
        signal,
        onProgress,
        ...adapterOptions(flags),
        ...(task !== undefined && { task }),
        ...(prompt !== undefined && { prompt }),
        ...(title !== undefined && { title }),
        ...(dimensions !== undefined && { dimensions }),
        ...(normalize === false && { normalize }),
        ...(truncate && { truncate }),
      }),
    );
    if (out !== undefined) writeFileSync(out, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    const rows = texts.map((_, i) => data.subarray(i * shape[1], (i + 1) * shape[1]));
    if (flags.json) {
      const embeddings = out === undefined ? { embeddings: rows.map((row) => Array.from(row)) } : {};
      printJson({ shape, tokens: usage.inputTokens, ...embeddings });
      return;
    }
    for (const row of out === undefined ? rows : []) printLine(shown(row));
    printLine(`${shape[0]} embeddings of ${shape[1]} numbers, ${usage.inputTokens} tokens`);
  });
}

export function addEmbed(command: DefineCommand, signal: AbortSignal): void {
  withAdapters(withModel(command('embed [texts...]', 'texts to vectors, for search and comparison')))
    .option('--task <task>', 'what they are for: query, document or another prompt that the model has')
    .option('--prompt <text>', "text that stands before each, instead of a task's")
    .option('--title <text>', 'with --task document: their title')
    .option('--dimensions <n>', 'numbers of a vector, the first are kept', number)
    .option('--no-normalize', 'vectors as the model makes them, not of length 1')
    .option('--truncate', 'cut texts that are longer than the context')
    .option('--file <file>', 'a file with a text in each line, instead of arguments')
    .option('--out <file>', 'write all vectors, float32 little endian')
    .addOption(
      new Option('--dense-layers <need>', 'optional: take a file that was converted without them').choices([
        'required',
        'optional',
      ]),
    )
    .action((texts: string[], flags: EmbedFlags) => embed(texts, flags, signal));
}
