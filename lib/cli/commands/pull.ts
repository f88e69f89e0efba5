// gemma-native pull: has a model of the Hugging Face hub on this machine.
import { Gemma, type PullOptions } from '../../index.js';
import { pullProgress } from '../download-progress.js';
import { type DefineCommand } from '../options.js';
import { note, printJson, printLine } from '../output.js';

interface PullFlags {
  endpoint?: string;
  cacheDir?: string;
  offline?: boolean;
  mmproj?: boolean;
  check?: boolean;
  json?: boolean;
}

async function pull(model: string, flags: PullFlags, signal: AbortSignal): Promise<void> {
  const progress = pullProgress(!!flags.json);
  const options: PullOptions = {
    ...(flags.endpoint !== undefined && { endpoint: flags.endpoint }),
    ...(flags.cacheDir !== undefined && { cacheDir: flags.cacheDir }),
    ...(flags.offline && { offline: true }),
    ...(flags.mmproj === false && { mmproj: false }),
    ...(flags.check === false && { check: false }),
    onProgress: progress.update,
    signal,
  };
  try {
    const pulled = await Gemma.pull(model, options);
    progress.stop();
    if (flags.json) return printJson(pulled);
    printLine(pulled.path);
    if (pulled.mmproj !== undefined) printLine(pulled.mmproj);
    if (!pulled.upToDate) note('the hub was not asked: it may have a newer version');
  } finally {
    progress.stop();
  }
}

export function addPull(command: DefineCommand, signal: AbortSignal): void {
  command('pull <model>', 'download a model: hf:org/repo, with @revision and :file or :quantisation behind it')
    .option('--endpoint <url>', 'a mirror of the hub (HF_ENDPOINT)')
    .option('--cache-dir <folder>', 'where models are kept (HF_HUB_CACHE)')
    .option('--offline', 'only look whether it is here (HF_HUB_OFFLINE)')
    .option('--no-mmproj', 'without vision encoder')
    .option('--no-check', 'download it also where its header is not that of a model for gemma-native')
    .option('--json', 'print one JSON object')
    .action((model: string, flags: PullFlags) => pull(model, flags, signal));
}
