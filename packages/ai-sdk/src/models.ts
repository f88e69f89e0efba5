// The models of a provider: loaded when they are first asked for, once for all who ask, until the provider is disposed of.
import { NoSuchModelError } from '@ai-sdk/provider';
import { Gemma, GemmaError, type LoadOptions } from 'gemma-native';

/** What a model is loaded from, and how: a name as `Gemma.load` takes it, beside the options of `Gemma.load`. */
export interface ModelSettings extends LoadOptions {
  model: string | URL;
}

/** A model that is loaded already, or what to load. */
export type ModelSource = Gemma | string | URL | ModelSettings;

export type ModelType = 'languageModel' | 'embeddingModel' | 'rerankingModel' | 'decisionModel';

/** A model by its id, loaded or not. */
export interface ModelHandle {
  readonly modelId: string;
  /**
   * The loaded model. An abort ends the waiting alone: others may wait for the same model.
   *
   * @throws NoSuchModelError; GemmaError as `Gemma.load`, `ERR_DISPOSED`; the signal's reason
   */
  get(signal?: AbortSignal): Promise<Gemma>;
}

function waitFor<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return work;
  return new Promise((resolve, reject) => {
    const stop = () => {
      // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- the caller's own reason
      reject(signal.reason);
    };
    if (signal.aborted) stop();
    signal.addEventListener('abort', stop, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', stop));
  });
}

// A name that names nothing. Of other failures, such as a damaged file, the engine's own error says more.
function isMissing({ code, detail, message }: GemmaError, model: string | URL): boolean {
  return (
    (code === 'ERR_DOWNLOAD' && detail === 'NOT_FOUND') ||
    message.startsWith(`${String(model)}: cannot be opened (ENOENT`)
  );
}

export class Models {
  readonly #sources: ReadonlyMap<string, ModelSource> | undefined;
  readonly #options: LoadOptions;
  readonly #loading = new Map<string, Promise<Gemma>>();
  readonly #closing = new AbortController();
  #disposed: Promise<void> | undefined;

  constructor(sources: Readonly<Record<string, ModelSource>> | undefined, options: LoadOptions) {
    this.#sources = sources && new Map(Object.entries(sources));
    this.#options = options;
  }

  /**
   * A model by its id, or one that is loaded already. Loads nothing.
   *
   * @throws NoSuchModelError where the provider has a list of models and this is none of them
   */
  handle(model: string | Gemma, modelType: ModelType): ModelHandle {
    if (model instanceof Gemma) return { modelId: model.info.config.name || 'gemma', get: async () => model };
    const source = this.#sources ? this.#sources.get(model) : model;
    if (typeof model !== 'string' || model === '' || source === undefined) {
      throw new NoSuchModelError({ modelId: String(model), modelType });
    }
    if (source instanceof Gemma) return { modelId: model, get: async () => source };
    const isName = typeof source === 'string' || source instanceof URL;
    const { model: name, ...own }: ModelSettings = isName ? { model: source } : source;
    const get = async (signal?: AbortSignal) => {
      signal?.throwIfAborted();
      try {
        return await waitFor(this.#load(model, name, own), signal);
      } catch (error) {
        if (!(error instanceof GemmaError) || !isMissing(error, name)) throw error;
        const message = `No such ${modelType}: ${model} (${error.message})`;
        throw Object.assign(new NoSuchModelError({ modelId: model, modelType, message }), { cause: error });
      }
    };
    return { modelId: model, get };
  }

  #load(id: string, name: string | URL, own: LoadOptions): Promise<Gemma> {
    if (this.#disposed) {
      return Promise.reject(
        new GemmaError('ERR_DISPOSED', 'the provider was disposed of; make another one to use its models'),
      );
    }
    const known = this.#loading.get(id);
    if (known) return known;
    const options: LoadOptions = { ...this.#options, ...own };
    const signals = [this.#closing.signal, ...(options.signal ? [options.signal] : [])];
    const loading = Gemma.load(name, { ...options, signal: AbortSignal.any(signals) });
    this.#loading.set(id, loading);
    // What failed is tried again by who asks next: the file may be there by then.
    loading.catch(() => this.#loading.delete(id));
    return loading;
  }

  /** Frees the models that were loaded here, and ends what is under way. Those that were given as loaded stay. */
  dispose(): Promise<void> {
    return (this.#disposed ??= this.#dispose());
  }

  async #dispose(): Promise<void> {
    const loading = [...this.#loading.values()];
    this.#closing.abort(new GemmaError('ERR_DISPOSED', 'the provider was disposed of'));
    const loaded = await Promise.allSettled(loading);
    await Promise.all(loaded.map(async (result) => result.status === 'fulfilled' && result.value.dispose()));
  }
}
