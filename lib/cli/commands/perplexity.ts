// gemma-native perplexity: how well the model predicts a text.
import { readFileSync } from 'node:fs';
import { adapterOptions, using, withAdapters, withModel, type DefineCommand, type ModelFlags } from '../options.js';
import { printJson, printLine, withProgress } from '../output.js';

interface PerplexityFlags extends ModelFlags {
  file: string;
}

async function perplexity(flags: PerplexityFlags, signal: AbortSignal): Promise<void> {
  const text = readFileSync(flags.file, 'utf8');
  const context = flags.context ?? 512;
  const result = await using({ ...flags, context }, signal, (gemma) =>
    withProgress('Scoring', !!flags.json, (onProgress) =>
      gemma.perplexity(text, { contextSize: context, ...adapterOptions(flags), onProgress, signal }),
    ),
  );
  if (flags.json) printJson({ ...result, contextSize: context });
  else printLine(`perplexity ${result.perplexity.toFixed(4)} over ${result.tokens} tokens, chunks of ${context}`);
}

export function addPerplexity(command: DefineCommand, signal: AbortSignal): void {
  withAdapters(withModel(command('perplexity', 'how well the model predicts a text')))
    .requiredOption('--file <file>', 'the text')
    .action((flags: PerplexityFlags) => perplexity(flags, signal));
}
