// gemma-native tokenize: text to token ids.
import { textFrom, using, withModel, type DefineCommand, type ModelFlags } from '../options.js';
import { printJson, printLine } from '../output.js';

interface TokenizeFlags extends ModelFlags {
  special?: boolean;
  bos?: boolean;
  file?: string;
}

async function tokenize(argument: string | undefined, flags: TokenizeFlags, signal: AbortSignal): Promise<void> {
  const text = await textFrom(argument, flags.file, 'text');
  const tokens = await using(flags, signal, (gemma) =>
    gemma.tokenize(text, { special: !!flags.special, bos: !!flags.bos, signal }),
  );
  if (flags.json) printJson({ tokens });
  else printLine(tokens.join(' '));
}

export function addTokenize(command: DefineCommand, signal: AbortSignal): void {
  withModel(command('tokenize [text]', 'text to token ids'))
    .option('--special', 'parse control strings such as <start_of_turn>')
    .option('--bos', 'begin with <bos>')
    .option('--file <file>', 'take the text from a file')
    .action((text: string | undefined, flags: TokenizeFlags) => tokenize(text, flags, signal));
}
