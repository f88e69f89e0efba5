// Adapters as callers name them: where one is, and which of them a call has. Native code reads the tensors; what a folder of PEFT's
// says about them is read here (peft-config.ts).
import { stat } from 'node:fs/promises';
import { basename, dirname, extname, join } from 'node:path';
import { GemmaError } from './errors.js';
import { localPath } from './local-file.js';
import { addon, type NativeAdapterSource, type NativeAdapterUse } from './native.js';
import { checkReadable } from './permission.js';
import { number, plain, reasonOf, show, text } from './values.js';

// Loaded with the first call that needs them: a program that asks a model for text is not to wait for them.
const lazy = {
  get peftConfig() {
    return require('./peft-config.js') as typeof import('./peft-config.js');
  },
};

/** An adapter by its name, or several with how much of each is added: `{ style: 1, facts: 0.5 }`. An empty object is none. */
export type AdapterOption = string | Readonly<Record<string, number>>;

/** Where adapters are: by name, or by path alone, named after their folders or files. */
export type AdapterPaths = Readonly<Record<string, string | URL>> | readonly (string | URL)[];

export const MAX_ADAPTERS = 16; // of a call
const MAX_LOADED = 1024; // with a model
export const MAX_SCALE = 1e6;
const MAX_NAME = 200;

const CONFIG = 'adapter_config.json';
const TENSORS = 'adapter_model.safetensors';

/** @throws TypeError, RangeError */
export function adapterName(name: string, value: unknown): string {
  const found = text(name, value);
  if (found === '' || found.length > MAX_NAME) {
    throw new RangeError(`${name}: expected a name of 1 to ${MAX_NAME} characters, found ${show(found)}`);
  }
  return found;
}

/** @throws TypeError, RangeError */
export function adapterUses(name: string, value: unknown): NativeAdapterUse[] {
  if (typeof value === 'string') return [{ name: adapterName(name, value), scale: 1 }];
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new TypeError(`${name}: expected the name of an adapter, or names with scales, found ${show(value)}`);
  }
  const names = Object.keys(value);
  if (names.length > MAX_ADAPTERS) {
    throw new RangeError(`${name}: expected at most ${MAX_ADAPTERS} adapters, found ${names.length}`);
  }
  return names.map((key) => ({
    name: adapterName(name, key),
    scale: number(
      `${name}[${plain(key, 60)}]`,
      (value as Record<string, unknown>)[key],
      (scale) => Math.abs(scale) <= MAX_SCALE,
      `a number from -${MAX_SCALE} to ${MAX_SCALE}`,
    ),
  }));
}

/** @throws TypeError, RangeError */
export function adapterPaths(name: string, value: AdapterPaths | undefined): [string, string | URL][] {
  if (value === undefined) return [];
  if (typeof value !== 'object' || (value as unknown) === null || value instanceof URL) {
    throw new TypeError(`${name}: expected paths by name, or a list of paths, found ${show(value)}`);
  }
  const entries: [string, string | URL][] = Array.isArray(value)
    ? (value as readonly (string | URL)[]).map((path) => [ownName(path), path])
    : Object.entries(value as Readonly<Record<string, string | URL>>);
  if (entries.length > MAX_LOADED) {
    throw new RangeError(`${name}: expected at most ${MAX_LOADED} adapters, found ${entries.length}`);
  }
  for (const [key] of entries) adapterName(name, key);
  return entries;
}

// "adapters/style/" and "adapters/style.gguf" are style; a folder's tensors go by the folder.
function ownName(path: string | URL): string {
  const file = localPath(path, 'adapters', { allowLocal: true }, 'ERR_FILE');
  const named = basename(file) === TENSORS ? dirname(file) : file;
  return extname(named) === '.gguf' ? basename(named, '.gguf') : basename(named);
}

/**
 * Finds an adapter and reads what its configuration says.
 *
 * @throws GemmaError `ERR_FILE`, `ERR_ADAPTER_INVALID` (`NO_CONFIG`, `BAD_CONFIG`, `UNSUPPORTED`), `ERR_SAFETENSORS_INVALID`
 */
export async function findAdapter(name: string, path: string | URL): Promise<NativeAdapterSource> {
  const file = localPath(path, `adapter ${plain(name, 60)}`, { allowLocal: true }, 'ERR_FILE');
  checkReadable(file);
  const found = await stat(file).catch((error: unknown) => {
    throw new GemmaError(
      'ERR_FILE',
      `${plain(file)}: cannot be opened (${reasonOf(error)}). Expected an adapter: a folder of PEFT's, or a GGUF file`,
    );
  });
  const isTensors = basename(file) === TENSORS;
  if (!found.isDirectory() && !isTensors) return { name, path: file };
  const folder = isTensors ? dirname(file) : file;
  const tensors = join(folder, TENSORS);
  const config = join(folder, CONFIG);
  checkReadable(tensors);
  checkReadable(config);
  const settings = await lazy.peftConfig.readPeftConfig(config);
  return { name, path: tensors, peft: await settings(await addon().adapterModules(tensors)) };
}
