// What writing model files takes, whichever of them: where they go, that nothing is written over what is read, and the run of native
// code that does it.
import { readdir, realpath, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { Cancellation } from './cancellation.js';
import { findTemplate } from './chat.js';
import { GemmaError } from './errors.js';
import { localPath, replaceablePath } from './local-file.js';
import { isCheckpoint } from './model-files.js';
import type { NativeAddon, NativeWorkEvent } from './native.js';
import { runOperation } from './operation.js';
import { checkWritable } from './permission.js';
import { plain } from './values.js';

/** As native code tells a result. */
export type Written<T> = Omit<T, 'path'>;

/** Runs native work that ends with a result. */
export function runWork<T extends object>(
  start: (onEvent: (event: NativeWorkEvent<T>) => void) => number,
  native: NativeAddon,
  cancellation: Cancellation,
  onProgress: (fraction: number) => void = () => {},
): Promise<T> {
  return runOperation(
    {
      start,
      stop: (id) => native.cancel(id),
      onEvent: (event: NativeWorkEvent<T>) => {
        if (event.kind === 'done') return { value: event.result };
        if (event.kind === 'failed') return { error: event.error };
        if (!cancellation.cancelled) onProgress(event.fraction);
        return undefined;
      },
    },
    cancellation,
  );
}

/** Where a file is written that is named so. Throws GemmaError `ERR_FILE`. */
export async function outputPath(output: string | URL, name = 'output'): Promise<string> {
  const named = localPath(output, name, { allowLocal: true }, 'ERR_FILE');
  checkWritable(named);
  const path = await replaceablePath(named);
  checkWritable(path);
  return path;
}

/** Likewise of a file that takes several runs, which is `PATH.part` until it is whole. */
export async function resumablePath(output: string | URL, name = 'output'): Promise<string> {
  const path = await outputPath(output, name);
  checkWritable(`${path}.part`);
  return path;
}

/** The files of a model: of a split one all parts, of a folder what is in it. */
export async function filesOfModel(path: string): Promise<string[]> {
  if (await isCheckpoint(path)) {
    const entries = await readdir(path, { withFileTypes: true }).catch(() => []);
    const inner = await Promise.all(
      entries.map(async ({ name }) => {
        if (!/^\d+_\w+$/.test(name)) return []; // a module's of sentence-transformers
        return (await readdir(join(path, name)).catch(() => [])).map((file) => join(path, name, file));
      }),
    );
    return [...entries.map(({ name }) => join(path, name)), ...inner.flat()];
  }
  const [, start = '', count = 0] = /^(.*-)00001-of-(\d{5})\.gguf$/s.exec(path) ?? [];
  const parts = Array.from({ length: Math.max(0, Number(count) - 1) }, (_, i) => {
    return `${start}${String(i + 2).padStart(5, '0')}-of-${count}.gguf`;
  });
  return [path, ...parts];
}

// What two names of one file have in common; undefined where there is no file.
async function identity(path: string): Promise<string | undefined> {
  const found = await stat(path, { bigint: true }).catch(() => undefined);
  if (!found) return undefined;
  return found.ino === 0n ? await realpath(path) : `${found.dev}:${found.ino}`; // file systems without numbers have paths
}

/**
 * Refuses outputs that are inputs, under whatever name, and those that are each other.
 *
 * @throws GemmaError `ERR_INVALID_ARGUMENT`, `SAME_FILE`
 */
export async function checkOutputs(outputs: readonly string[], inputs: readonly string[]): Promise<void> {
  const read = new Set(await Promise.all(inputs.map(identity)));
  const same = (path: string, what: string) =>
    new GemmaError('ERR_INVALID_ARGUMENT', `${plain(path)}: the output is ${what}; name another`, 'SAME_FILE');
  for (const [i, output] of outputs.entries()) {
    for (const path of [output, `${output}.part`]) {
      const found = await identity(path);
      if (found !== undefined && read.has(found)) throw same(path, 'the input');
    }
    const others = outputs.filter((_, at) => at !== i);
    if (others.some((other) => other === output || `${other}.part` === output)) throw same(output, 'named twice');
  }
}

/** The vision encoder's file beside a model's, where it is found when the model is loaded. */
export function mmprojBeside(output: string): string {
  return join(dirname(output), `mmproj-${basename(output)}`);
}

/** Of a folder the chat template; native code reads what else is in it. Throws GemmaError `ERR_FILE`. */
export async function templateOf(path: string): Promise<string | undefined> {
  return (await isCheckpoint(path)) ? (await findTemplate(path))?.source : undefined;
}
