// gemma-native rerank: documents in the order of their relevance to a query.
import {
  adapterOptions,
  candidatesOf,
  number,
  using,
  withAdapters,
  withModel,
  type DefineCommand,
  type ModelFlags,
} from '../options.js';
import { printJson, printLine, table, UsageError, withProgress } from '../output.js';

interface RerankFlags extends ModelFlags {
  raw?: boolean;
  instruction?: string;
  topN?: number;
  truncate?: boolean;
  file?: string;
}

async function rerank(query: string, given: readonly string[], flags: RerankFlags, signal: AbortSignal): Promise<void> {
  const { raw, instruction, topN, truncate, file } = flags;
  const documents = candidatesOf('documents', given, file);
  if (documents.length === 0) throw new UsageError('documents: expected at least one, as arguments or with --file');
  await using(flags, signal, async (gemma) => {
    const ranking = await withProgress('Ranking', !!flags.json, (onProgress) =>
      gemma.rerank(query, documents, {
        ...(raw !== undefined && { raw }),
        ...(instruction !== undefined && { instruction }),
        ...(topN !== undefined && { topN }),
        ...(truncate && { truncate }),
        ...adapterOptions(flags),
        onProgress,
        signal,
      }),
    );
    if (flags.json) printJson({ ranking });
    else printLine(table(ranking.map(({ index, score, document }) => [score.toFixed(4), `#${index}`, document])));
  });
}

export function addRerank(command: DefineCommand, signal: AbortSignal): void {
  withAdapters(
    withModel(command('rerank <query> [documents...]', 'documents in the order of their relevance to a query')),
  )
    .option('--file <file>', 'a file with a document in each line, instead of arguments')
    .option('--instruction <text>', 'what makes a document relevant')
    .option('--top-n <n>', 'so many of the best', number)
    .option('--truncate', 'cut the end off documents that do not fit into the context')
    .option('--raw', 'ask by text to continue, also an instruction-tuned model')
    .option('--no-raw', 'ask in a conversation, also without a chat template')
    .action((query: string, documents: string[], flags: RerankFlags) => rerank(query, documents, flags, signal));
}
