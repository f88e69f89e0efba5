// gemma-native list: the models on this machine that can be loaded.
import { Gemma } from '../../index.js';
import { type DefineCommand } from '../options.js';
import { bytes, note, printJson, printLine, printable, table } from '../output.js';

interface ListFlags {
  cacheDir?: string;
  json?: boolean;
}

async function list(flags: ListFlags, signal: AbortSignal): Promise<void> {
  const models = await Gemma.localModels({
    ...(flags.cacheDir !== undefined && { cacheDir: flags.cacheDir }),
    signal,
  });
  if (flags.json) return printJson({ models });
  if (models.length === 0) return note('no model was found; `gemma-native pull hf:org/repo` downloads one');
  const rows = models.map(({ name, title, size, type, bytes: n, vision }) => [
    printable(name),
    size,
    type,
    bytes(n),
    vision ? 'pictures' : '',
    printable(title),
  ]);
  printLine(table([['load as', 'size', 'type', 'on disk', '', 'name'], ...rows]));
}

export function addList(command: DefineCommand, signal: AbortSignal): void {
  command('list', 'models on this machine: of the hub, Ollama, LM Studio and llama.cpp')
    .option('--cache-dir <folder>', "the hub's cache (HF_HUB_CACHE)")
    .option('--json', 'print one JSON object')
    .action((flags: ListFlags) => list(flags, signal));
}
