// The models of a server: loaded when they are first asked for, one at a time, and unloaded, those used longest ago first, when another
// needs their memory. A model that a request has is never unloaded.
import { totalmem } from 'node:os';
import { basename } from 'node:path';
import { Gemma, type LoadOptions } from 'gemma-native';
import { HttpError } from './errors.js';

export interface ModelSpec {
  /** what requests call it; default: of the file or the repository */
  name?: string;
  /** as `Gemma.load` takes it, or a model that is loaded already: it is never unloaded, nor disposed when the server closes */
  model: string | URL | Gemma;
  /** how it is loaded */
  options?: Omit<LoadOptions, 'signal' | 'onProgress'>;
  /** Loaded when the server starts, and never unloaded. Default false. */
  pinned?: boolean;
  /** other names for it */
  aliases?: readonly string[];
}

export interface ModelsOptions {
  /** memory that loaded models may take together by their plans; default: four fifths of this machine's, or of the container's */
  maxMemoryBytes?: number;
  /** A model that nobody has used for so long is unloaded, in milliseconds. Default Infinity. */
  keepAliveMs?: number;
  /** Told of what happens. */
  onEvent?: (event: ModelEvent) => void;
}

export type ModelEvent =
  | { kind: 'loaded'; name: string; ms: number; bytes: number }
  | { kind: 'unloaded'; name: string; reason: 'memory' | 'idle' | 'asked' }
  | { kind: 'failed'; name: string; error: unknown };

/** A model as it is listed. */
export interface ListedModel {
  name: string;
  aliases: readonly string[];
  /** when the server was started, milliseconds since 1970 */
  created: number;
  pinned: boolean;
  /** `'leaving'`: loaded, and unloaded as soon as nobody has it, because another needs its memory */
  state: 'unloaded' | 'loading' | 'loaded' | 'leaving';
  /** of its memory plan; 0 where it was never loaded */
  bytes: number;
  /** requests that have it */
  inUse: number;
  /** when it will be unloaded if nobody uses it, milliseconds since 1970; undefined: not by time */
  expiresAt: number | undefined;
  /** where it is loaded */
  gemma: Gemma | undefined;
  spec: ModelSpec;
}

/** A model in a request's hands. */
export interface Lease {
  readonly name: string;
  readonly gemma: Gemma;
  /**
   * Gives it back. Any number of calls.
   *
   * @param keepAliveMs for how long it then stays loaded without use, instead of the server's `keepAliveMs`
   */
  release(keepAliveMs?: number): void;
}

interface Entry {
  readonly name: string;
  readonly spec: ModelSpec;
  readonly pinned: boolean;
  gemma: Gemma | undefined;
  bytes: number;
  inUse: number;
  usedAt: number; // a count, so that two uses in one millisecond have an order
  keepAliveMs: number;
  expiresAt: number | undefined;
  clock: NodeJS.Timeout | undefined;
  /** being loaded, for all who want it */
  loading: Promise<void> | undefined;
  /** another model waits for its memory: whoever wants it now waits behind that one */
  leaving: boolean;
}

/** What a model is called that was given no name. */
export function defaultName(model: string | URL | Gemma): string {
  if (model instanceof Gemma) return model.info.config.name || 'gemma';
  const text = String(model);
  if (/^(?:hf|ollama|lmstudio):/.test(text)) return text.slice(text.indexOf(':') + 1);
  return basename(text).replace(/\.gguf$/i, '') || text;
}

function defaultMemory(): number {
  const limit = process.constrainedMemory(); // 0 or huge without one
  const memory = limit > 0 ? Math.min(totalmem(), limit) : totalmem();
  return Math.floor(memory * 0.8);
}

const MAX_CLOCK_MS = 2 ** 31 - 1;

export class ModelRegistry {
  readonly #entries = new Map<string, Entry>(); // by names and aliases
  readonly #all: Entry[] = [];
  readonly #maxBytes: number;
  readonly #keepAliveMs: number;
  readonly #onEvent: (event: ModelEvent) => void;
  readonly #created = Date.now();
  #uses = 0;
  #loads: Promise<unknown> = Promise.resolve(); // one after the other
  #onReleased: (() => void)[] = [];
  #closed = false;

  /** @throws TypeError for two models of one name, or none */
  constructor(specs: readonly ModelSpec[], { maxMemoryBytes, keepAliveMs = Infinity, onEvent }: ModelsOptions = {}) {
    this.#maxBytes = maxMemoryBytes ?? defaultMemory();
    this.#keepAliveMs = keepAliveMs;
    this.#onEvent = onEvent ?? (() => {});
    if (specs.length === 0) throw new TypeError('models: expected at least one, found none');
    for (const spec of specs) {
      const loaded = spec.model instanceof Gemma ? spec.model : undefined;
      const entry: Entry = {
        name: spec.name ?? defaultName(spec.model),
        spec,
        pinned: loaded !== undefined || spec.pinned === true,
        gemma: loaded,
        bytes: loaded?.info.memory.totalBytes ?? 0,
        inUse: 0,
        usedAt: 0,
        keepAliveMs,
        expiresAt: undefined,
        clock: undefined,
        loading: undefined,
        leaving: false,
      };
      for (const name of [entry.name, ...(spec.aliases ?? [])]) {
        if (this.#entries.has(name)) throw new TypeError(`models: two are called ${name}`);
        this.#entries.set(name, entry);
      }
      this.#all.push(entry);
    }
  }

  /** All of them, in the order in which they were given. */
  list(): ListedModel[] {
    return this.#all.map((entry) => this.#listed(entry));
  }

  /** One by its name or an alias. */
  find(name: string): ListedModel | undefined {
    const entry = this.#entries.get(name);
    return entry && this.#listed(entry);
  }

  /** bytes that the loaded models take by their plans */
  get loadedBytes(): number {
    return this.#all.reduce((sum, { gemma, bytes }) => sum + (gemma ? bytes : 0), 0);
  }

  /** Loads those that are pinned. */
  async start(): Promise<void> {
    for (const entry of this.#all) if (entry.pinned) await this.#load(entry);
  }

  /**
   * Hands out a model, loaded. The caller releases it.
   *
   * @throws HttpError 404 `model_not_found`, 503 where it cannot be loaded or has no room; the signal's reason (a load that was begun
   * goes on: others may want it)
   */
  async acquire(name: string, signal: AbortSignal): Promise<Lease> {
    const entry = this.#entries.get(name);
    if (!entry) throw this.notFound(name);
    for (;;) {
      signal.throwIfAborted();
      if (this.#closed) throw new HttpError(503, 'shutting_down', 'the server is shutting down');
      if (entry.gemma && !entry.leaving) return this.#lease(entry, entry.gemma);
      await unlessAborted(this.#load(entry), signal);
    }
  }

  notFound(name: string): HttpError {
    const names = this.#all.map((entry) => entry.name).slice(0, 20);
    const shown = name.length > 100 ? `${name.slice(0, 100)}...` : name;
    const message = `the model ${JSON.stringify(shown)} does not exist here; there are ${names.join(', ')}`;
    return new HttpError(404, 'model_not_found', message, { param: 'model' });
  }

  /**
   * Unloads a model when the last request that has it has ended. Nothing happens to a pinned one.
   *
   * @throws HttpError 404
   */
  async unload(name: string): Promise<void> {
    const entry = this.#entries.get(name);
    if (!entry) throw this.notFound(name);
    if (entry.pinned || !entry.gemma) return;
    if (entry.inUse > 0) entry.keepAliveMs = 0;
    else await this.#unload(entry, 'asked');
  }

  /** Disposes all models but those that were handed over loaded. Calls under way reject. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#wake();
    await this.#loads.catch(() => {});
    for (const entry of this.#all) {
      clearTimeout(entry.clock);
      if (entry.gemma && !(entry.spec.model instanceof Gemma)) await entry.gemma.dispose();
    }
  }

  #listed(entry: Entry): ListedModel {
    const { name, spec, pinned, gemma, bytes, inUse, expiresAt, loading, leaving } = entry;
    const state = gemma ? (leaving ? 'leaving' : 'loaded') : loading ? 'loading' : 'unloaded';
    const aliases = spec.aliases ?? [];
    return { name, aliases, created: this.#created, pinned, state, bytes, inUse, expiresAt, gemma, spec };
  }

  #lease(entry: Entry, gemma: Gemma): Lease {
    ++entry.inUse;
    entry.usedAt = ++this.#uses;
    entry.keepAliveMs = this.#keepAliveMs;
    clearTimeout(entry.clock);
    entry.expiresAt = undefined;
    let released = false;
    return {
      name: entry.name,
      gemma,
      release: (keepAliveMs) => {
        if (released) return;
        released = true;
        --entry.inUse;
        if (keepAliveMs !== undefined) entry.keepAliveMs = keepAliveMs;
        if (entry.inUse === 0) this.#idle(entry);
        this.#wake();
      },
    };
  }

  // Nobody has it any more.
  #idle(entry: Entry): void {
    if (entry.pinned || !entry.gemma || entry.leaving || this.#closed) return;
    if (entry.keepAliveMs <= 0) {
      void this.#unload(entry, 'idle');
    } else if (Number.isFinite(entry.keepAliveMs)) {
      entry.expiresAt = Date.now() + entry.keepAliveMs;
      const ms = Math.min(entry.keepAliveMs, MAX_CLOCK_MS);
      entry.clock = setTimeout(() => void this.#unload(entry, 'idle'), ms).unref();
    }
  }

  async #unload(entry: Entry, reason: 'memory' | 'idle' | 'asked'): Promise<void> {
    const { gemma } = entry;
    if (!gemma || entry.inUse > 0) return;
    clearTimeout(entry.clock);
    entry.gemma = undefined;
    entry.expiresAt = undefined;
    entry.leaving = false;
    await gemma.dispose();
    this.#onEvent({ kind: 'unloaded', name: entry.name, reason });
    this.#wake();
  }

  #load(entry: Entry): Promise<void> {
    entry.loading ??= (this.#loads = this.#loads.catch(() => {}).then(() => this.#loadNow(entry))).finally(() => {
      entry.loading = undefined;
    }) as Promise<void>;
    return entry.loading;
  }

  async #loadNow(entry: Entry): Promise<void> {
    const { model, options = {} } = entry.spec;
    if (entry.gemma || model instanceof Gemma || this.#closed) return;
    const start = performance.now();
    try {
      const { contextSize, batchSize, kvCache, screenLogits, quantize, threads, draft, mmproj } = options;
      const { visionPrecision, prefixCacheBytes, adapters, hub } = options;
      const planned = { contextSize, batchSize, kvCache, screenLogits, quantize, threads, draft, mmproj };
      const others = { visionPrecision, prefixCacheBytes, adapters, hub };
      const given = Object.entries({ ...planned, ...others }).filter(([, value]) => value !== undefined);
      const { totalBytes } = await Gemma.estimate(model, Object.fromEntries(given));
      await this.#makeRoom(entry, totalBytes);
      entry.gemma = await Gemma.load(model, options);
      entry.bytes = totalBytes;
      entry.usedAt = ++this.#uses;
      this.#onEvent({ kind: 'loaded', name: entry.name, ms: performance.now() - start, bytes: totalBytes });
    } catch (error) {
      this.#onEvent({ kind: 'failed', name: entry.name, error });
      if (error instanceof HttpError) throw error;
      throw new HttpError(
        503,
        'model_unavailable',
        `the model ${entry.name} cannot be loaded; the server's log says why`,
        {
          cause: error,
        },
      );
    } finally {
      // Those that were to go and need not.
      for (const other of this.#all.filter(({ leaving }) => leaving)) {
        other.leaving = false;
        if (other.inUse === 0) this.#idle(other);
      }
    }
  }

  // Unloads what was used longest ago until so many bytes more fit; waits for requests that have what must go.
  async #makeRoom(entry: Entry, bytes: number): Promise<void> {
    const pinned = this.#all.reduce((sum, other) => sum + (other.gemma && other.pinned ? other.bytes : 0), 0);
    if (pinned + bytes > this.#maxBytes) {
      const message =
        `the model ${entry.name} takes ${bytes} bytes by its plan, and ${Math.max(0, this.#maxBytes - pinned)} are left for it ` +
        'when all others that can be are unloaded';
      throw new HttpError(503, 'model_too_large', message);
    }
    while (this.loadedBytes + bytes > this.#maxBytes) {
      if (this.#closed) throw new HttpError(503, 'shutting_down', 'the server is shutting down');
      const candidates = this.#all.filter((other) => other.gemma && !other.pinned);
      const [oldest] = candidates.toSorted((a, b) => Number(a.inUse > 0) - Number(b.inUse > 0) || a.usedAt - b.usedAt);
      if (!oldest) break;
      if (oldest.inUse === 0) {
        await this.#unload(oldest, 'memory');
        continue;
      }
      oldest.leaving = true;
      await new Promise<void>((resolve) => this.#onReleased.push(resolve));
    }
  }

  #wake(): void {
    for (const woken of this.#onReleased.splice(0)) woken();
  }
}

/** Waits for a promise, but no longer than until the signal is aborted. */
async function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- the caller's own reason
    const onAbort = () => reject(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
