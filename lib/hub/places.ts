// Where models are on this machine, and where the hub is: environment variables as each program reads its own.
import { readFile, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';

/** A path of a setting, as Python's expanduser and expandvars read it. */
function expanded(path: string): string {
  const home = path.replace(/^~(?=$|[\\/])/, () => homedir());
  return home.replace(/\$(?:\{(\w+)\}|(\w+))/g, (all, a?: string, b?: string) => process.env[a ?? b ?? ''] ?? all);
}

export function isTrue(value: string | undefined): boolean {
  return /^(?:1|on|yes|true)$/i.test(value ?? '');
}

function cacheHome(): string {
  return process.env.XDG_CACHE_HOME || join(homedir(), '.cache');
}

function hfHome(): string {
  return expanded(process.env.HF_HOME || join(cacheHome(), 'huggingface'));
}

/** The cache of huggingface_hub. */
export function hubCache(option: string | undefined): string {
  const { HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE } = process.env;
  return resolve(option ?? expanded(HF_HUB_CACHE || HUGGINGFACE_HUB_CACHE || join(hfHome(), 'hub')));
}

export function isOffline(option: boolean | undefined): boolean {
  return option ?? (isTrue(process.env.HF_HUB_OFFLINE) || isTrue(process.env.TRANSFORMERS_OFFLINE));
}

/**
 * The hub, or its mirror. Throws TypeError.
 */
export function hubEndpoint(option: string | undefined): URL {
  const [name, text] = option === undefined ? ['HF_ENDPOINT', process.env.HF_ENDPOINT || 'https://huggingface.co'] : ['endpoint', option]; // prettier-ignore
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const isPlain = url && /^https?:$/.test(url.protocol) && !url.username && !url.password && !url.search && !url.hash;
  if (!isPlain) throw new TypeError(`${name}: expected an http: or https: URL without user, query and fragment`);
  if (!url.pathname.endsWith('/')) url.pathname += '/';
  return url;
}

// What an HTTP header takes; a token with a newline behind it is common.
function cleaned(token: string): string | undefined {
  const text = token.trim();
  return /^[\x21-\x7e]+$/.test(text) ? text : undefined;
}

/** The token of the option, of HF_TOKEN, or of the file that `hf auth login` writes. False: none. */
export async function hubToken(option: string | false | undefined): Promise<string | undefined> {
  if (option === false) return undefined;
  if (option !== undefined) {
    const token = cleaned(option);
    if (token === undefined) throw new TypeError('token: expected printable characters of ASCII');
    return token;
  }
  const { HF_TOKEN, HUGGING_FACE_HUB_TOKEN, HF_TOKEN_PATH, HF_HUB_DISABLE_IMPLICIT_TOKEN } = process.env;
  if (isTrue(HF_HUB_DISABLE_IMPLICIT_TOKEN)) return undefined;
  const named = cleaned(HF_TOKEN || HUGGING_FACE_HUB_TOKEN || '');
  if (named !== undefined) return named;
  const path = expanded(HF_TOKEN_PATH || join(hfHome(), 'token'));
  const found = await stat(path).catch(() => undefined);
  if (!found?.isFile() || found.size > 1 << 16) return undefined;
  return cleaned(await readFile(path, 'utf8').catch(() => ''));
}

/** Ollama's folders of models: what OLLAMA_MODELS says, else the user's, else that of its service. */
export function ollamaFolders(): string[] {
  const { OLLAMA_MODELS } = process.env;
  if (OLLAMA_MODELS) return [resolve(expanded(OLLAMA_MODELS))];
  const own = join(homedir(), '.ollama', 'models');
  return process.platform === 'linux' ? [own, '/usr/share/ollama/.ollama/models'] : [own];
}

async function smallText(path: string): Promise<string | undefined> {
  const found = await stat(path).catch(() => undefined);
  return found?.isFile() && found.size <= 1 << 16 ? readFile(path, 'utf8').catch(() => undefined) : undefined;
}

/** LM Studio's folders of models: the one of its settings, the one of today, the one of versions before 0.3. */
export async function lmStudioFolders(): Promise<string[]> {
  const pointer = (await smallText(join(homedir(), '.lmstudio-home-pointer')))?.trim();
  const home = pointer || join(homedir(), '.lmstudio');
  let chosen: unknown;
  try {
    const settings = JSON.parse((await smallText(join(home, 'settings.json'))) ?? '{}') as {
      downloadsFolder?: unknown;
    };
    chosen = settings.downloadsFolder;
  } catch {
    // not JSON: LM Studio's business
  }
  const folders = [join(home, 'models'), join(homedir(), '.cache', 'lm-studio', 'models')];
  return [...new Set([...(typeof chosen === 'string' && chosen !== '' ? [chosen] : []), ...folders].map((f) => resolve(f)))]; // prettier-ignore
}

/** Where llama.cpp keeps what it downloads. */
export function llamaCppCache(): string {
  const { LLAMA_CACHE, LOCALAPPDATA } = process.env;
  if (LLAMA_CACHE) return resolve(expanded(LLAMA_CACHE));
  if (process.platform === 'win32' && LOCALAPPDATA) return join(LOCALAPPDATA, 'llama.cpp');
  return join(process.platform === 'darwin' ? join(homedir(), 'Library', 'Caches') : cacheHome(), 'llama.cpp');
}
