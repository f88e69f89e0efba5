// Names of models that are no paths: hf:org/repo, ollama:gemma3:4b, lmstudio:org/repo. They come from users and from servers, so
// what is no plain name is refused before it becomes part of a path or a URL.
import { plain } from '../values.js';
import { downloadError } from './failure.js';

export interface HubName {
  scheme: 'hf';
  /** `org/name` */
  repo: string;
  /** branch, tag or commit */
  revision: string;
  /** a file, or a part of its name such as `Q4_K_M` */
  selector?: string;
}

export interface OllamaName {
  scheme: 'ollama';
  /** host, namespace, model, tag: folders below `manifests` */
  parts: [string, string, string, string];
}

export interface LmStudioName {
  scheme: 'lmstudio';
  repo: string;
  selector?: string;
}

export type ModelName = HubName | OllamaName | LmStudioName;

const SCHEME = /^(hf|ollama|lmstudio):/;

// What the hub allows: letters, digits, '-', '_', '.', no two '-' or '.' in a row, neither of them at the ends.
const WORD = /^(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?$/;
const REVISION = /^(?!.*(?:\.\.|\/\/|@\{|\.lock(?:\/|$)))[A-Za-z0-9_](?:[\w./+-]{0,253}[\w+-])?$/;

export const COMMIT = /^[0-9a-f]{40}$/;

/** Whether a model is named by one of the schemes. A file of such a name is './hf:...'. */
export function isModelName(model: unknown): model is string {
  return typeof model === 'string' && SCHEME.test(model);
}

export function isRepo(text: string): boolean {
  const words = text.split('/');
  return words.length === 2 && words.every((word) => WORD.test(word));
}

const RESERVED = /^(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)/i; // devices on Windows, in every folder

/** Whether a file's name inside a repository may become a path below a folder of ours, on every system. */
export function isSafePath(path: string): boolean {
  if (path.length === 0 || path.length > 1000) return false;
  return path.split('/').every(
    (part) =>
      part !== '' &&
      part !== '.' &&
      part !== '..' &&
      Buffer.byteLength(part) <= 200 &&
      // eslint-disable-next-line no-control-regex -- these are meant
      !/[\x00-\x1f\x7f\\:*?"<>|]/.test(part) &&
      !/[ .]$/.test(part) &&
      !RESERVED.test(part),
  );
}

function wrong(name: string, model: string, expected: string): TypeError {
  return new TypeError(`${name}: expected ${expected}, found ${plain(model)}`);
}

function hubName(name: string, model: string): HubName {
  const [, repo = '', revision = 'main', selector] = /^hf:([^@:]*)(?:@([^:]*))?(?::(.*))?$/s.exec(model) ?? [];
  if (!isRepo(repo) || !REVISION.test(revision)) {
    throw wrong(name, model, 'hf:org/repo, with @revision and :file or :quantisation behind it where wanted');
  }
  if (selector !== undefined && !isSafePath(selector)) {
    throw downloadError('PATH_REJECTED', `${name}: ${plain(model)}: not the name of a file in a repository`);
  }
  return { scheme: 'hf', repo, revision, ...(selector !== undefined && { selector }) };
}

// As Ollama reads it: [[host/]namespace/]model[:tag]. Unlike the hub's, its words may hold "--".
function ollamaName(name: string, model: string): OllamaName {
  const isWord = (text: string) => /^[A-Za-z0-9_][\w.-]{0,79}$/.test(text) && isSafePath(text);
  const rest = model.slice('ollama:'.length);
  const colon = rest.lastIndexOf(':');
  const hasTag = colon > rest.lastIndexOf('/');
  const words = (hasTag ? rest.slice(0, colon) : rest).split('/');
  const tag = hasTag ? rest.slice(colon + 1) : 'latest';
  const host = words.length === 3 ? (words.shift() ?? '') : 'registry.ollama.ai';
  const [namespace = '', title = ''] = words.length === 2 ? words : ['library', ...words];
  const hostname = /^[A-Za-z0-9][A-Za-z0-9.-]{0,200}(?:%3A\d+|:\d+)?$/.test(host) && !host.includes('..');
  if (words.length > 2 || !hostname || ![namespace, title, tag].every(isWord)) {
    throw wrong(name, model, 'ollama:model[:tag] as `ollama list` shows it');
  }
  return { scheme: 'ollama', parts: [host, namespace, title, tag] };
}

function lmStudioName(name: string, model: string): LmStudioName {
  const [org = '', repo = '', ...file] = model.slice('lmstudio:'.length).split('/');
  const selector = file.length > 0 ? file.join('/') : undefined;
  const isWord = (text: string) => /^[\w]/.test(text) && isSafePath(text);
  if (!isWord(org) || !isWord(repo)) throw wrong(name, model, 'lmstudio:org/repo[/file]');
  if (selector !== undefined && !isSafePath(selector)) {
    throw downloadError('PATH_REJECTED', `${name}: ${plain(model)}: not the name of a file in a folder of LM Studio`);
  }
  return { scheme: 'lmstudio', repo: `${org}/${repo}`, ...(selector !== undefined && { selector }) };
}

/**
 * Takes a name apart. `name` begins the messages.
 *
 * @throws TypeError; GemmaError `ERR_DOWNLOAD`, `PATH_REJECTED`
 */
export function parseModelName(model: string, name = 'model'): ModelName {
  const [, scheme] = SCHEME.exec(model) ?? [];
  if (scheme === undefined) throw wrong(name, model, 'hf:org/repo, ollama:model or lmstudio:org/repo');
  if (scheme === 'hf') return hubName(name, model);
  return scheme === 'ollama' ? ollamaName(name, model) : lmStudioName(name, model);
}
