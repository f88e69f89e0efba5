// gemma-native detokenize: token ids to text.
import { Argument } from 'commander';
import { tokenList, using, withModel, type DefineCommand, type ModelFlags } from '../options.js';
import { printJson, printLine } from '../output.js';

async function detokenize(tokens: number[], flags: ModelFlags, signal: AbortSignal): Promise<void> {
  const text = await using(flags, signal, (gemma) => gemma.detokenize(tokens, { signal }));
  if (flags.json) printJson({ text });
  else printLine(text);
}

export function addDetokenize(command: DefineCommand, signal: AbortSignal): void {
  withModel(command('detokenize', 'token ids to text'))
    .addArgument(
      new Argument('<ids...>').argParser((text, ids: number[] = []) => {
        ids.push(...tokenList(text));
        return ids;
      }),
    )
    .action((ids: number[], flags: ModelFlags) => detokenize(ids, flags, signal));
}
