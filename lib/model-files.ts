// Which files belong together: a model by its file or folder, and the vision encoder beside it.
import { readdir, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { GemmaError } from './errors.js';
import { addon } from './native.js';

/** What stands for the demonstration model inside this package, wherever a model is named. */
const DEMO = 'demo';

/** Path of the demonstration model that comes with the package, its vision encoder beside it. */
export const demoModel = join(__dirname, '..', 'models', 'demo.gguf');

/** The file of a model that was named by path or URL, itself or its folder. Throws TypeError, GemmaError `ERR_FILE`. */
export async function findModelFile(model: string | URL, name = 'model'): Promise<string> {
  let path: string;
  if (model instanceof URL || (typeof model === 'string' && model.startsWith('file:'))) {
    const url = new URL(model);
    if (url.protocol !== 'file:') throw new TypeError(`${name}: expected a path or a file: URL, found ${url.protocol}`);
    path = fileURLToPath(url);
  } else if (typeof model === 'string' && model !== '') {
    path = model === DEMO ? demoModel : model;
  } else {
    throw new TypeError(`${name}: expected the path or file: URL of a GGUF file or of a folder that holds one`);
  }
  const found = await stat(path).catch((error: unknown) => {
    const reason = error instanceof Error ? error.message : String(error);
    throw new GemmaError(
      'ERR_FILE',
      `${path}: cannot be opened (${reason}). Expected a GGUF file or a folder that holds one`,
    );
  });
  if (!found.isDirectory()) return path;
  // A model in several files counts once, by its first part; vision files go beside it.
  const files = (await readdir(path))
    .filter((name) => name.endsWith('.gguf') && !/mmproj/i.test(name))
    .filter((name) => !/-\d{5}-of-\d{5}\.gguf$/.test(name) || /-00001-of-\d{5}\.gguf$/.test(name))
    .sort();
  const [file] = files;
  if (file === undefined || files.length > 1) {
    throw new GemmaError(
      'ERR_FILE',
      `${path}: expected one .gguf file in the folder, found ${files.length === 0 ? 'none' : files.join(', ')}; name the file`,
      'AMBIGUOUS_FOLDER',
    );
  }
  return join(path, file);
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

const PRECISIONS = ['f16', 'bf16', 'q8_0', 'f32']; // best first: what int8 arithmetic needs, then what is larger

function words(file: string): string[] {
  return file.toLowerCase().replace(/\.gguf$/, '').split(/[^a-z0-9]+/); // prettier-ignore
}

// "mmproj-model-f16-4B.gguf" belongs to every model with the word "4b" in its name, "mmproj-F16.gguf" to all; whether it fits
// is seen when it is opened.
function mayBelong(file: string, model: string): boolean {
  const known = new Set([...words(model), 'mmproj', 'model', 'f16', 'bf16', 'f32', 'fp16', 'q8', '0', '']);
  return words(file).every((word) => known.has(word));
}

/**
 * The vision encoder of a model: the one named; else a file beside the model with `mmproj` in its name that fits both its name
 * and its width; else what the model's file holds.
 */
export async function findVisionFile(model: string, mmproj: string | URL | false | undefined): Promise<VisionFile> {
  if (mmproj === false) return { wanted: false, reason: 'it was loaded with mmproj: false' };
  if (mmproj !== undefined) return { wanted: true, path: await findModelFile(mmproj, 'mmproj'), reason: '' };
  const folder = dirname(model);
  const precision = (name: string) => PRECISIONS.findIndex((type) => name.toLowerCase().includes(type)) % 4;
  const beside = (await readdir(folder).catch(() => []))
    .filter((name) => /mmproj/i.test(name) && name.toLowerCase().endsWith('.gguf') && mayBelong(name, basename(model)))
    .sort((a, b) => words(b).length - words(a).length || precision(a) - precision(b) || (a < b ? -1 : 1));
  let reason = 'no file beside it has mmproj in its name and fits';
  for (const name of beside) {
    const path = join(folder, name);
    try {
      await addon().inspect({ path: model, contexts: [1], mmproj: path });
      return { wanted: true, path, reason: '' };
    } catch (error) {
      if (!(error instanceof GemmaError)) throw error;
      reason = `${name} beside it cannot be used: ${error.message}`;
    }
  }
  return { wanted: true, reason };
}
