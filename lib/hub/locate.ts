// From what a user calls a model to its files: names of the hub, of Ollama and of LM Studio; paths stay what they are.
import type { PullSettings } from './pulled.js';
import { isModelName, parseModelName } from './names.js';

// Loaded with the first call that needs them: a program that asks a model for text is not to wait for them.
const lazy = {
  get pull() {
    return require('./pull.js') as typeof import('./pull.js');
  },
  get local() {
    return require('./local.js') as typeof import('./local.js');
  },
};

type Named = string | URL;

/** What belongs to a model, by path. */
export interface ModelFiles {
  model: Named;
  /** undefined: the one in the model's file or beside it, if there is one */
  mmproj: Named | false | undefined;
  draft: Named | undefined;
}

interface Wanted {
  mmproj?: Named | false;
  draft?: Named;
}

// Downloads, or has a look at headers, and goes on with what was found.
async function withFiles<T>(
  name: Named,
  what: string,
  settings: PullSettings,
  signal: AbortSignal,
  isHeaders: boolean,
  work: (files: { path: Named; mmproj?: string }) => Promise<T>,
): Promise<T> {
  if (!isModelName(name)) return work({ path: name });
  const parsed = parseModelName(name, what);
  if (parsed.scheme === 'ollama') return work(await lazy.local.findOllama(parsed));
  if (parsed.scheme === 'lmstudio') return work(await lazy.local.findLmStudio(parsed, settings.mmproj));
  if (isHeaders) return lazy.pull.withHubHeaders(parsed, settings, signal, work);
  return work(await lazy.pull.pullModel(parsed, settings, signal));
}

async function withAll<T>(
  model: Named,
  wanted: Wanted,
  settings: PullSettings,
  signal: AbortSignal,
  isHeaders: boolean,
  work: (files: ModelFiles) => Promise<T>,
): Promise<T> {
  const { mmproj, draft } = wanted;
  const alone = { ...settings, mmproj: false };
  const by = <U>(
    name: Named | undefined,
    what: string,
    own: PullSettings,
    next: (files: { path: Named | undefined; mmproj?: string }) => Promise<U>,
  ) => (name === undefined ? next({ path: undefined }) : withFiles(name, what, own, signal, isHeaders, next));
  return by(model, 'model', mmproj === undefined ? settings : alone, ({ path, mmproj: found }) =>
    by(mmproj === false ? undefined : mmproj, 'mmproj', alone, ({ path: named }) =>
      by(draft, 'draft', alone, ({ path: drafting }) =>
        work({ model: path ?? model, mmproj: mmproj === false ? false : (named ?? found), draft: drafting }),
      ),
    ),
  );
}

/**
 * Has all files of a model on this machine.
 *
 * @throws as pullModel; TypeError for names that are none
 */
export function locateModel(
  model: Named,
  wanted: Wanted,
  settings: PullSettings,
  signal: AbortSignal,
): Promise<ModelFiles> {
  return withAll(model, wanted, settings, signal, false, (files) => Promise.resolve(files));
}

/** Works with files that have a model's headers at least; those made for it are gone afterwards. Throws likewise. */
export function withModelHeaders<T>(
  model: Named,
  wanted: Wanted,
  settings: PullSettings,
  signal: AbortSignal,
  work: (files: ModelFiles) => Promise<T>,
): Promise<T> {
  return withAll(model, wanted, settings, signal, true, work);
}
