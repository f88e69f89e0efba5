// gemma-native classify-image: whether pictures violate safety policies, with ShieldGemma 2.
import type { ImagePolicy } from '../../index.js';
import {
  collect,
  imageOptions,
  number,
  pairOf,
  using,
  withAlpha,
  withModel,
  withVision,
  type DefineCommand,
  type ImageFlags,
  type ModelFlags,
} from '../options.js';
import { printJson, printLine, table, withProgress } from '../output.js';

interface ClassifyImageFlags extends ModelFlags, Pick<ImageFlags, 'alpha'> {
  policy?: string[];
  custom?: string[];
  threshold?: number;
  force?: boolean;
}

async function classifyImage(files: readonly string[], flags: ClassifyImageFlags, signal: AbortSignal): Promise<void> {
  const { policy, custom, threshold, force, alpha } = flags;
  const own = policy ?? (custom ? [] : undefined);
  await using(flags, signal, async (gemma) => {
    const found = await withProgress('Looking', !!flags.json, (onProgress) =>
      gemma.classifyImage(files, {
        ...imageOptions({ ...(alpha !== undefined && { alpha }) }),
        ...(own && { policies: own as ImagePolicy[] }), // checked there
        ...(custom && { customPolicies: Object.fromEntries(custom.map((text) => pairOf('--custom', text))) }),
        ...(threshold !== undefined && { threshold }),
        ...(force && { force }),
        onProgress,
        signal,
      }),
    );
    const images = files.map((file, i) => ({ file, policies: found[i]?.policies ?? [] }));
    if (flags.json) {
      printJson({ images });
      return;
    }
    const rows = images.flatMap(({ file, policies }) =>
      policies.map(({ name, probability, violates }) => [
        file,
        name,
        `${(probability * 100).toFixed(2).padStart(6)} %`,
        violates ? 'violates' : '',
      ]),
    );
    printLine(table(rows));
  });
}

export function addClassifyImage(command: DefineCommand, signal: AbortSignal): void {
  withAlpha(withVision(withModel(command('classify-image <files...>', 'whether pictures violate safety policies'))))
    .option(
      '--policy <name>',
      'dangerous, sexual or violence; as often as wanted; default: all, or only --custom',
      collect,
    )
    .option('--custom <name=text>', 'a policy of your own; as often as wanted', collect)
    .option('--threshold <p>', 'violates from this probability on; default 0.5', number)
    .option('--force', 'ask a model that does not call itself ShieldGemma')
    .action((files: string[], flags: ClassifyImageFlags) => classifyImage(files, flags, signal));
}
