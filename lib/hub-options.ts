// Options of getting models, and their checks: of Gemma.pull, and under the name `hub` of load, estimate and inspect.
import {
  booleans,
  callbacks,
  checked,
  custom,
  known,
  or,
  signals,
  strings,
  valuesOf,
  type TableOf,
} from './option-table.js';
import type { PullProgress, PullSettings } from './hub/pulled.js';
import { text } from './values.js';

/** How models are got that are named `hf:org/repo`. Environment variables hold where an option is not given. */
export interface HubOptions {
  /**
   * Token of the Hugging Face hub, for private and gated repositories. Sent to the hub alone, never to where it redirects. Default:
   * HF_TOKEN, else what `hf auth login` has saved. False: none.
   */
  token?: string | false;
  /** URL of the hub or of a mirror. Default: HF_ENDPOINT, else https://huggingface.co. */
  endpoint?: string;
  /** True: only what is on this machine. Default: HF_HUB_OFFLINE, else false. */
  offline?: boolean;
  /** Folder of the cache. Default: HF_HUB_CACHE, else `hub` in HF_HOME, else ~/.cache/huggingface/hub. */
  cacheDir?: string;
  /** Called with what will be downloaded, then with how far that is. */
  onProgress?: (progress: PullProgress) => void;
}

export interface PullOptions extends HubOptions {
  /** False: without the vision encoder. Default true. */
  mmproj?: boolean;
  /**
   * Default true: the first bytes are looked at before the rest is downloaded, so that a model of another kind is an error at once.
   * False downloads whatever it is.
   */
  check?: boolean;
  /** Aborting rejects with the signal's reason. What has come stays; the next call goes on from there. */
  signal?: AbortSignal;
}

export interface LocalModelsOptions {
  /** As in `HubOptions`. */
  cacheDir?: string;
  signal?: AbortSignal;
}

const HUB = {
  token: custom((name, value) => (value === false ? false : text(name, value))),
  endpoint: strings,
  offline: booleans,
  cacheDir: strings,
  onProgress: callbacks,
} as const satisfies TableOf<HubOptions>;

const PULL = {
  ...HUB,
  mmproj: or(booleans, true),
  check: or(booleans, true),
  signal: signals,
} as const satisfies TableOf<PullOptions>;

const LOCAL_MODELS = { cacheDir: strings, signal: signals } as const satisfies TableOf<LocalModelsOptions>;

function reporting(onProgress: HubOptions['onProgress']): Pick<PullSettings, 'onProgress'> {
  return { onProgress: onProgress ?? (() => {}) };
}

export function pullOptions(options: PullOptions): PullSettings {
  return { ...checked(PULL, options), ...reporting(options.onProgress) };
}

/** The option `hub` of load, estimate and inspect. */
export function hubOptions(options: HubOptions | undefined): PullSettings {
  if (options === undefined) return { mmproj: true, check: true, ...reporting(undefined) };
  known(HUB, options, 'hub');
  return { ...valuesOf(HUB, options, 'hub.'), mmproj: true, check: true, ...reporting(options.onProgress) };
}

export function localModelsOptions(options: LocalModelsOptions): { cacheDir?: string } {
  return checked(LOCAL_MODELS, options);
}
