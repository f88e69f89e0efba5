// Models that other programs have downloaded: Ollama, LM Studio, llama.cpp, and all of the hub's cache. Manifests and names are those
// programs' data: sizes are limited, and no link leads out of where blobs belong.
import { readdir, readFile, realpath, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { GemmaError } from '../errors.js';
import { addon } from '../native.js';
import { checkReadable } from '../permission.js';
import { plain } from '../values.js';
import { isInside, RepoCache } from './cache.js';
import { downloadError } from './failure.js';
import { COMMIT, isRepo, isSafePath, type LmStudioName, type OllamaName } from './names.js';
import { hubCache, llamaCppCache, lmStudioFolders, ollamaFolders } from './places.js';
import { ggufModels, selectFiles } from './select.js';

export interface Files {
  path: string;
  mmproj?: string;
}

/** A model on this machine that `Gemma.load` takes. */
export interface LocalModel extends Files {
  /** what `Gemma.load` takes: `'hf:org/repo:file'`, `'ollama:gemma3:4b'`, `'lmstudio:org/repo/file'`, or a path */
  name: string;
  source: 'huggingface' | 'ollama' | 'lmstudio' | 'llama.cpp';
  /** what the file calls itself */
  title: string;
  /** `'4B'` */
  size: string;
  /** of most of its weights: `'Q4_K'` */
  type: string;
  /** of all its files */
  bytes: number;
  /** whether it sees pictures */
  vision: boolean;
}

const MAX_MANIFEST = 1 << 20; // bytes
const MAX_ENTRIES = 10_000;

function titleOf({ parts: [host, namespace, model, tag] }: OllamaName): string {
  const short = host === 'registry.ollama.ai' ? (namespace === 'library' ? model : `${namespace}/${model}`) : `${host}/${namespace}/${model}`; // prettier-ignore
  return `ollama:${short}:${tag}`;
}

interface Layer {
  mediaType: string;
  digest: string;
  size: number;
}

function layersOf(json: string): Layer[] | undefined {
  try {
    const { layers } = JSON.parse(json) as { layers?: unknown };
    if (!Array.isArray(layers) || layers.length > MAX_ENTRIES) return undefined;
    const checked = (layers as unknown[]).map((layer) => {
      const { mediaType, digest, size } = layer as Partial<Layer>;
      const isDigest = typeof digest === 'string' && /^sha256[:-][0-9a-f]{64}$/.test(digest);
      return typeof mediaType === 'string' && isDigest && typeof size === 'number' ? { mediaType, digest, size } : undefined; // prettier-ignore
    });
    return checked.every((layer) => layer !== undefined) ? checked : undefined;
  } catch {
    return undefined;
  }
}

/** The files of a model in one of Ollama's folders; undefined where it has no such model. Throws GemmaError. */
async function ollamaModel(folder: string, name: OllamaName): Promise<(Files & { bytes: number }) | undefined> {
  const title = titleOf(name);
  const manifest = join(folder, 'manifests', ...name.parts.map((part) => part.replace(':', '%3A')));
  const found = await stat(manifest).catch(() => undefined);
  if (!found?.isFile()) return undefined;
  checkReadable(manifest);
  if (!(await isInside(manifest, folder))) throw downloadError('PATH_REJECTED', `${plain(manifest)}: leads out of ${plain(folder)}`); // prettier-ignore
  const layers = found.size > MAX_MANIFEST ? undefined : layersOf(await readFile(manifest, 'utf8'));
  if (!layers) throw downloadError('BAD_RESPONSE', `${plain(manifest)}: expected a manifest of Ollama`);
  const kind = (ending: string) =>
    layers.filter(({ mediaType }) => mediaType === `application/vnd.ollama.image.${ending}`);
  const [model] = kind('model');
  const [projector] = kind('projector');
  if (!model || kind('adapter').length > 0) {
    const what = model ? 'an adapter beside the model, which would be left out' : 'no GGUF file';
    throw new GemmaError('ERR_UNSUPPORTED_MODEL', `${title}: has ${what}`, 'OLLAMA_LAYERS');
  }
  const blob = async ({ digest, size }: Layer) => {
    const path = join(folder, 'blobs', digest.replace(':', '-'));
    const file = await stat(path).catch(() => undefined);
    if (!file?.isFile())
      throw downloadError('NOT_FOUND', `${title}: its file ${plain(path)} is missing: ollama pull gets it`);
    if (!(await isInside(path, folder)))
      throw downloadError('PATH_REJECTED', `${plain(path)}: leads out of ${plain(folder)}`);
    if (file.size !== size) throw downloadError('HASH_MISMATCH', `${title}: ${plain(path)}: expected ${size} bytes, found ${file.size}`); // prettier-ignore
    return path;
  };
  const mmproj = projector && (await blob(projector));
  const bytes = model.size + (projector?.size ?? 0);
  return { path: await blob(model), ...(mmproj !== undefined && { mmproj }), bytes };
}

/** What Ollama has downloaded under a name. Throws GemmaError `ERR_DOWNLOAD`, `ERR_UNSUPPORTED_MODEL`. */
export async function findOllama(name: OllamaName): Promise<Files> {
  const folders = ollamaFolders();
  for (const folder of folders) {
    const found = await ollamaModel(folder, name);
    if (found) return found;
  }
  throw downloadError('NOT_FOUND', `${titleOf(name)}: is not in ${plain(folders.join(' or '))} (OLLAMA_MODELS names another folder); \`ollama pull\` gets it`); // prettier-ignore
}

/** The regular files below a folder, links followed, with their names relative to it. */
async function filesBelow(folder: string, depth: number): Promise<{ name: string; bytes: number }[]> {
  const files: { name: string; bytes: number }[] = [];
  const walk = async (prefix: string, left: number): Promise<void> => {
    for (const title of await readdir(join(folder, prefix)).catch(() => [])) {
      if (files.length >= MAX_ENTRIES) return;
      const name = prefix === '' ? title : `${prefix}/${title}`;
      const found = await stat(join(folder, name)).catch(() => undefined);
      if (found?.isDirectory() && left > 0) await walk(name, left - 1);
      if (found?.isFile()) files.push({ name, bytes: found.size });
    }
  };
  await walk('', depth);
  return files;
}

/** What LM Studio has downloaded of a repository. Throws GemmaError `ERR_DOWNLOAD`. */
export async function findLmStudio({ repo, selector }: LmStudioName, mmproj: boolean): Promise<Files> {
  const folders = await lmStudioFolders();
  for (const root of folders) {
    const folder = join(root, ...repo.split('/'));
    checkReadable(folder);
    const files = await filesBelow(folder, 2);
    if (files.length === 0) continue;
    const { kind, model, mmproj: encoder } = selectFiles(files, selector, `lmstudio:${repo}`, { mmproj });
    return {
      path: kind === 'gguf' ? join(folder, model[0]?.name ?? '') : folder,
      ...(encoder && { mmproj: join(folder, encoder.name) }),
    };
  }
  throw downloadError(
    'NOT_FOUND',
    `lmstudio:${repo}: is not in ${plain(folders.join(' or '), 400)}; LM Studio gets it`,
  );
}

type Found = Omit<LocalModel, 'title' | 'size' | 'type' | 'vision'>;

/** The models among files of a folder; `nameOf` says how one is loaded. */
function modelsAmong(
  files: readonly { name: string; bytes: number }[],
  folder: string,
  source: LocalModel['source'],
  nameOf: (file: string) => string,
): Found[] {
  const safe = files.filter(({ name }) => isSafePath(name));
  return ggufModels(safe).map(({ model, mmproj }) => ({
    name: nameOf(model[0]?.name ?? ''),
    source,
    path: join(folder, model[0]?.name ?? ''),
    ...(mmproj && { mmproj: join(folder, mmproj.name) }),
    bytes: [...model, ...(mmproj ? [mmproj] : [])].reduce((sum, { bytes }) => sum + bytes, 0),
  }));
}

async function inHubCache(root: string): Promise<Found[]> {
  const found: Found[] = [];
  for (const title of await readdir(root).catch(() => [])) {
    const repo = title.startsWith('models--') ? title.slice('models--'.length).replace('--', '/') : '';
    if (!isRepo(repo)) continue;
    const cache = new RepoCache(root, repo);
    const main = await cache.readRef('main');
    const commits = await readdir(join(cache.folder, 'snapshots')).catch(() => []);
    for (const commit of commits.filter((one) => COMMIT.test(one)).sort((a) => (a === main ? -1 : 1))) {
      const at = commit === main ? `hf:${repo}` : `hf:${repo}@${commit}`;
      const inside = [];
      for (const file of await cache.localFiles(commit)) {
        if (await isInside(cache.pointer(commit, file.name), root)) inside.push(file);
      }
      found.push(...modelsAmong(inside, cache.snapshot(commit), 'huggingface', (file) => `${at}:${file}`));
      const isCheckpoint = inside.some(({ name }) => name === 'config.json') && inside.some(({ name }) => name.endsWith('.safetensors')); // prettier-ignore
      if (isCheckpoint) {
        const bytes = inside.reduce((sum, file) => sum + file.bytes, 0);
        found.push({ name: at, source: 'huggingface', path: cache.snapshot(commit), bytes });
      }
    }
  }
  return found;
}

async function inOllama(folder: string): Promise<Found[]> {
  const found: Found[] = [];
  for (const { name } of await filesBelow(join(folder, 'manifests'), 3)) {
    const parts = name.split('/');
    if (parts.length !== 4 || !parts.every((part) => isSafePath(part))) continue;
    const ollama: OllamaName = { scheme: 'ollama', parts: parts as OllamaName['parts'] };
    const model = await ollamaModel(folder, ollama).catch(() => undefined);
    if (model) found.push({ ...model, name: titleOf(ollama), source: 'ollama' });
  }
  return found;
}

async function inLmStudio(root: string): Promise<Found[]> {
  const found: Found[] = [];
  for (const org of await readdir(root).catch(() => [])) {
    for (const repo of await readdir(join(root, org)).catch(() => [])) {
      if (!isSafePath(org) || !isSafePath(repo)) continue;
      const folder = join(root, org, repo);
      const nameOf = (file: string) => `lmstudio:${org}/${repo}/${file}`;
      found.push(...modelsAmong(await filesBelow(folder, 2), folder, 'lmstudio', nameOf));
    }
  }
  return found;
}

async function inLlamaCpp(root: string): Promise<Found[]> {
  return modelsAmong(await filesBelow(root, 0), root, 'llama.cpp', (file) => join(root, file));
}

/**
 * Every model on this machine that can be loaded, by what the headers of its file say. Links lead to one entry.
 *
 * @throws the signal's reason
 */
export async function listLocalModels(cacheDir: string | undefined, signal: AbortSignal): Promise<LocalModel[]> {
  const groups = [
    await inHubCache(hubCache(cacheDir)),
    ...(await Promise.all(ollamaFolders().map(inOllama))),
    ...(await Promise.all((await lmStudioFolders()).map(inLmStudio))),
    await inLlamaCpp(llamaCppCache()),
  ];
  const seen = new Set<string>();
  const models: LocalModel[] = [];
  for (const found of groups.flat()) {
    signal.throwIfAborted();
    const real = await realpath(found.path).catch(() => found.path);
    if (seen.has(real)) continue;
    seen.add(real);
    const { path, mmproj } = found;
    try {
      checkReadable(path);
      const { config, vision, tensorTypes } = await addon().inspect({ path, contexts: [1], ...(mmproj !== undefined && { mmproj }) }); // prettier-ignore
      const { type = '' } = tensorTypes.toSorted((a, b) => b.bytes - a.bytes)[0] ?? {};
      models.push({ ...found, title: plain(config.name, 100), size: config.size, type, vision: vision !== undefined });
    } catch (error) {
      if (!(error instanceof GemmaError)) throw error; // of another kind, or damaged: not one of ours
    }
  }
  return models;
}
