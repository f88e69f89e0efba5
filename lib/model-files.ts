// Which files belong together: a model by its file or folder, and the vision encoder beside it.
import { readdir, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { GemmaError } from './errors.js';
import { addon } from './native.js';
import { checkReadable, isRestricted, mayRead } from './permission.js';
import { plain, reasonOf } from './values.js';

/** What stands for the demonstration model inside this package, wherever a model is named. */
const DEMO = 'demo';

/** Path of the demonstration model that comes with the package, its vision encoder beside it. */
export const demoModel = join(__dirname, '..', 'models', 'demo.gguf');

// Weights of a Hugging Face checkpoint, in one file or in parts.
const CHECKPOINT_FILE = /^(?:model\.safetensors(?:\.index\.json)?|model-\d{5}-of-\d{5}\.safetensors)$/;

/** Folders of sentence-transformers' modules, such as 2_Dense. Native code takes no others (sentence_modules.cpp). */
export const SENTENCE_MODULE = /^\d{1,4}_\w{1,64}$/;

/** Whether what findModelFile() found is a checkpoint's folder. */
export async function isCheckpoint(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined))?.isDirectory() ?? false;
}

/** Path of the adapter that comes with it, a folder as PEFT writes it. */
export const demoAdapter = join(__dirname, '..', 'models', 'demo-tools');

/**
 * The file of a model that was named by path or URL, itself or its folder; of a Hugging Face checkpoint the folder, whichever of its
 * files was named. Throws TypeError, GemmaError `ERR_FILE`.
 */
export async function findModelFile(model: string | URL, name = 'model'): Promise<string> {
  let path: string;
  if (model instanceof URL || (typeof model === 'string' && model.startsWith('file:'))) {
    const url = new URL(model);
    if (url.protocol !== 'file:')
      throw new TypeError(`${name}: expected a path or a file: URL, found ${plain(url.protocol)}`);
    path = fileURLToPath(url);
  } else if (typeof model === 'string' && model !== '') {
    path = model === DEMO ? demoModel : model;
  } else {
    throw new TypeError(
      `${name}: expected the path or file: URL of a GGUF file, or of a folder that holds one or a safetensors checkpoint`,
    );
  }
  checkReadable(path);
  const cannotBeOpened = (error: unknown): never => {
    throw new GemmaError(
      'ERR_FILE',
      `${plain(path)}: cannot be opened (${reasonOf(error)}). Expected a GGUF file or a folder that holds one`,
    );
  };
  const found = await stat(path).catch(cannotBeOpened);
  if (!found.isDirectory()) {
    const folder = dirname(path);
    if (basename(path) === 'config.json' || CHECKPOINT_FILE.test(basename(path))) {
      checkFolder(folder, await readdir(folder).catch(cannotBeOpened));
      return folder;
    }
    checkParts(path);
    return path;
  }
  // A model in several files counts once, by its first part; vision files go beside it.
  const names = await readdir(path).catch(cannotBeOpened);
  const files = names
    .filter((name) => name.endsWith('.gguf') && !/mmproj/i.test(name))
    .filter((name) => !/-\d{5}-of-\d{5}\.gguf$/.test(name) || /-00001-of-\d{5}\.gguf$/.test(name))
    .sort();
  const isCheckpoint = names.includes('config.json') && names.some((name) => CHECKPOINT_FILE.test(name));
  if (isCheckpoint && files.length === 0) {
    checkFolder(path, names);
    return path;
  }
  const [file] = files;
  if (file === undefined || files.length > 1 || isCheckpoint) {
    const all = [...(isCheckpoint ? ['a safetensors checkpoint (config.json)'] : []), ...files];
    const hint =
      file !== undefined
        ? 'name the file'
        : names.includes('adapter_config.json')
          ? 'this is an adapter, which goes beside a model (option adapters)'
          : 'name the file';
    throw new GemmaError(
      'ERR_FILE',
      `${plain(path)}: expected one model in the folder, a .gguf file or config.json with safetensors files, found ` +
        `${all.length === 0 ? 'none' : plain(all.join(', '))}; ${hint}`,
      'AMBIGUOUS_FOLDER',
    );
  }
  const only = join(path, file);
  checkParts(only);
  return only;
}

// Native code opens these by their names; with modules.json also those in the folders of modules.
function checkFolder(folder: string, names: readonly string[]): void {
  if (!isRestricted) return;
  checkReadable(folder);
  for (const name of names) {
    const path = join(folder, name);
    if (/\.(?:json|safetensors)$|^tokenizer\.model$/.test(name)) checkReadable(path);
    if (names.includes('modules.json') && SENTENCE_MODULE.test(name)) {
      for (const file of ['config.json', 'model.safetensors']) checkReadable(join(path, file));
    }
  }
}

// Native code opens the other parts of a split model by their names.
function checkParts(path: string): void {
  if (!isRestricted) return;
  const [, start = '', count = 0] = /^(.*-)00001-of-(\d{5})\.gguf$/s.exec(path) ?? [];
  for (let i = 2; i <= Number(count); ++i) checkReadable(`${start}${String(i).padStart(5, '0')}-of-${count}.gguf`);
}

/** Where a model's vision encoder is. */
export interface VisionFile {
  /** false: none is wanted */
  wanted: boolean;
  /** undefined: inside the model's file, or there is none */
  path?: string;
  /** why there is none, to tell who asks for one */
  reason: string;
}

const PRECISIONS = [/(?<!b)f16/i, /bf16/i, /q8_0/i, /f32/i]; // best first: what int8 arithmetic needs, then what is larger

function words(file: string): string[] {
  return file.toLowerCase().replace(/\.gguf$/, '').split(/[^a-z0-9]+/); // prettier-ignore
}

// "mmproj-model-f16-4B.gguf" belongs to every model with the word "4b" in its name, "mmproj-F16.gguf" to all; whether it fits
// is seen when it is opened.
function mayBelong(file: string, model: string): boolean {
  const known = new Set([...words(model), 'mmproj', 'model', 'f16', 'bf16', 'f32', 'fp16', 'q8', '0', '']);
  return words(file).every((word) => known.has(word));
}

/** The names among those of files that may be a model's vision encoder, best first. */
export function visionCandidates(names: readonly string[], model: string): string[] {
  const precision = (name: string) => PRECISIONS.findIndex((type) => type.test(name));
  return names
    .filter((name) => /mmproj/i.test(name) && name.toLowerCase().endsWith('.gguf') && mayBelong(name, model))
    .sort((a, b) => words(b).length - words(a).length || precision(a) - precision(b) || (a < b ? -1 : 1));
}

/**
 * The vision encoder of a model: the one named; else a file beside the model with `mmproj` in its name that fits both its name
 * and its width; else what the model's file holds.
 */
export async function findVisionFile(model: string, mmproj: string | URL | false | undefined): Promise<VisionFile> {
  if (mmproj === false) return { wanted: false, reason: 'it was loaded with mmproj: false' };
  if (mmproj !== undefined) return { wanted: true, path: await findModelFile(mmproj, 'mmproj'), reason: '' };
  const folder = dirname(model);
  const beside = visionCandidates(await readdir(folder).catch(() => []), basename(model));
  let reason = mayRead(folder)
    ? 'no file beside it has mmproj in its name and fits'
    : `Node's permission model forbids looking for one beside it: allow it with --allow-fs-read=${resolve(folder)}, or name the file`;
  for (const name of beside) {
    const path = join(folder, name);
    try {
      checkReadable(path);
      await addon().inspect({ path: model, contexts: [1], mmproj: path });
      return { wanted: true, path, reason: '' };
    } catch (error) {
      if (!(error instanceof GemmaError)) throw error;
      reason = `the one beside it cannot be used: ${error.message}`;
    }
  }
  return { wanted: true, reason };
}
