// The command line: a file for each command; here they become one program.
import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { addBatch } from './commands/batch.js';
import { addChat } from './commands/chat.js';
import { addClassifyImage } from './commands/classify-image.js';
import { addCrops } from './commands/crops.js';
import { addDecide } from './commands/decide.js';
import { addDetokenize } from './commands/detokenize.js';
import { addDevices } from './commands/devices.js';
import { addEmbed } from './commands/embed.js';
import { addEmbedImage } from './commands/embed-image.js';
import { addEval } from './commands/eval.js';
import { addFinetune } from './commands/finetune.js';
import { addInspect } from './commands/inspect.js';
import { addList } from './commands/list.js';
import { addLogits } from './commands/logits.js';
import { addPerplexity } from './commands/perplexity.js';
import { addPull } from './commands/pull.js';
import { addQuantize } from './commands/quantize.js';
import { addRerank } from './commands/rerank.js';
import { addRun } from './commands/run.js';
import { addScore } from './commands/score.js';
import { addTokenize } from './commands/tokenize.js';
import { shorten } from '../values.js';
import type { DefineCommand } from './options.js';
import { EXIT_USAGE, reportFailure } from './output.js';

function version(): string {
  return (JSON.parse(readFileSync(`${__dirname}/../../package.json`, 'utf8')) as { version: string }).version;
}

function build(signal: AbortSignal): Command {
  const program = new Command('gemma-native')
    .description('Runs Gemma 3 models.')
    .version(version())
    .exitOverride()
    .configureOutput({ outputError: (text, write) => write(shorten(text, 1000)) }) // it quotes arguments of any length
    .configureHelp({ showGlobalOptions: true });
  const command: DefineCommand = (definition, summary) =>
    program.command(definition).description(summary).exitOverride().allowExcessArguments(false);

  addRun(command, signal);
  addChat(command, signal);
  addTokenize(command, signal);
  addDetokenize(command, signal);
  addLogits(command, signal);
  addScore(command, signal);
  addDecide(command, signal);
  addRerank(command, signal);
  addEmbed(command, signal);
  addEmbedImage(command, signal);
  addBatch(command, signal);
  addClassifyImage(command, signal);
  addPerplexity(command, signal);
  addEval(command, signal);
  addInspect(command);
  addCrops(command, signal);
  addDevices(command);
  addPull(command, signal);
  addList(command, signal);
  addQuantize(command, signal);
  addFinetune(command, signal);
  return program;
}

/** Runs a command line and returns the exit code. */
export async function main(argv: readonly string[]): Promise<number> {
  const interrupt = new AbortController();
  process.once('SIGINT', () => interrupt.abort()); // a second one ends the process
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') interrupt.abort();
    else throw error;
  });
  try {
    await build(interrupt.signal).parseAsync(argv);
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_USAGE; // commander has said why
    return reportFailure(error, argv.includes('--json'));
  }
}
