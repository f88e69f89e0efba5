// The model behind a chat model or embeddings: loaded when it is first needed, once, unless it was given loaded.
import { Gemma, GemmaError, type LoadOptions } from 'gemma-native';

/** Which model. */
export interface ModelFields {
  /** A Gemma that is loaded, which several objects may share, or a name as `Gemma.load` takes it, loaded with the first call. */
  model: Gemma | string | URL;
  /** How a model that is named is loaded. */
  load?: LoadOptions;
}

export class ModelSource {
  readonly name: string;
  readonly #model: Gemma | string | URL;
  readonly #options: LoadOptions;
  readonly #closing = new AbortController();
  #loading: Promise<Gemma> | undefined;
  #disposed: Promise<void> | undefined;

  constructor({ model, load = {} }: ModelFields) {
    if (!(model instanceof Gemma) && !(model instanceof URL) && (typeof model !== 'string' || model === '')) {
      throw new TypeError('model: expected a Gemma, or a name or URL as Gemma.load takes it');
    }
    this.#model = model;
    this.#options = load;
    this.name = model instanceof Gemma ? model.info.config.name || 'gemma' : String(model);
  }

  /** The model, when it is loaded. */
  get loaded(): Gemma | undefined {
    return this.#model instanceof Gemma ? this.#model : undefined;
  }

  /**
   * The loaded model. An abort ends the waiting alone.
   *
   * @throws GemmaError as `Gemma.load`, `ERR_DISPOSED`; the signal's reason
   */
  async get(signal?: AbortSignal): Promise<Gemma> {
    signal?.throwIfAborted();
    const work = this.#load();
    if (!signal) return work;
    return new Promise((resolve, reject) => {
      const stop = () => {
        // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- the caller's own reason
        reject(signal.reason);
      };
      signal.addEventListener('abort', stop, { once: true });
      work.then(resolve, reject).finally(() => signal.removeEventListener('abort', stop));
    });
  }

  async #load(): Promise<Gemma> {
    if (this.#model instanceof Gemma) return this.#model;
    if (this.#disposed)
      throw new GemmaError('ERR_DISPOSED', 'the model was disposed of; make another object to use it');
    if (this.#loading) return this.#loading;
    const { signal } = this.#options;
    const signals = [this.#closing.signal, ...(signal ? [signal] : [])];
    const loading = Gemma.load(this.#model, { ...this.#options, signal: AbortSignal.any(signals) });
    this.#loading = loading;
    // What failed is tried again by who asks next: the file may be there by then.
    loading.catch(() => (this.#loading = undefined));
    return loading;
  }

  /** Frees the model if it was loaded here, and ends what is under way. */
  dispose(): Promise<void> {
    return (this.#disposed ??= this.#dispose());
  }

  async #dispose(): Promise<void> {
    const loading = this.#loading;
    this.#closing.abort(new GemmaError('ERR_DISPOSED', 'the model was disposed of'));
    const gemma = await loading?.catch(() => undefined);
    await gemma?.dispose();
  }
}
