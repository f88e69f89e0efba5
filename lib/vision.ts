// Pictures to rows of the model's width: what is known from before is taken from the cache, the rest is encoded a few squares at
// a time. A square is a picture, or a crop of one, stretched to the encoder's size; its rows depend on its pixels alone.
import type { Cancellation } from './cancellation.js';
import { digest, type EmbeddingCache } from './embedding-cache.js';
import { GemmaError } from './errors.js';
import type { Crop, ImageEmbedding } from './media.js';
import type { NativeAdapterUse, NativeEncodeParams, NativeModel, PreparedImage } from './native.js';
import { runOperation } from './operation.js';
import { copyInto, nextTurn } from './turns.js';
import { show } from './values.js';

/** A picture on its way into a prompt: its squares, or their rows where these are known. */
export type Picture = PreparedImage | { rows: Float32Array[]; crops: Crop[] };

// Squares of one call of the encoder. It works through them one after another; a few are enough to keep it busy.
const SQUARES_PER_CALL = 4;

export function isEmbedding(value: unknown): value is ImageEmbedding {
  return typeof value === 'object' && value !== null && (value as ImageEmbedding).data instanceof Float32Array;
}

/** The rows of each square of an embedding that a caller hands back; copies. Throws RangeError for one that does not fit. */
export async function rowsOfEmbedding(
  embedding: ImageEmbedding,
  name: string,
  tokensPerImage: number,
  modelDim: number,
): Promise<Float32Array[]> {
  const { data, shape, crops } = embedding as Partial<ImageEmbedding>;
  const squares = Array.isArray(crops) ? 1 + crops.length : NaN;
  if (
    !data ||
    !Array.isArray(shape) ||
    shape[0] !== squares * tokensPerImage ||
    shape[1] !== modelDim ||
    data.length !== shape[0] * shape[1]
  ) {
    throw new RangeError(
      `${name}: expected an embedding of this model, { data, shape: [${tokensPerImage} x (1 + crops), ${modelDim}], crops } ` +
        `without pooling, found shape ${Array.isArray(shape) ? `[${shape.slice(0, 3).map(show).join(', ')}]` : show(shape)}`,
    );
  }
  const size = tokensPerImage * modelDim;
  const all: Float32Array[] = [];
  for (let i = 0; i < squares; ++i) {
    const rows = new Float32Array(size);
    await copyInto(rows, data.subarray(i * size, (i + 1) * size), 0);
    all.push(rows);
  }
  return all;
}

/** What a caller gets for the rows of a picture's squares: all of them, or their mean. */
export async function embeddingOf(
  squares: readonly Float32Array[],
  modelDim: number,
  crops: Crop[],
  pooling: 'none' | 'mean',
): Promise<ImageEmbedding> {
  const values = squares.reduce((sum, rows) => sum + rows.length, 0);
  const n = values / modelDim;
  if (pooling === 'none') {
    const data = new Float32Array(values);
    let at = 0;
    for (const rows of squares) {
      await copyInto(data, rows, at);
      at += rows.length;
    }
    return { data, shape: [n, modelDim], crops };
  }
  const sums = new Float64Array(modelDim);
  for (const rows of squares) {
    await nextTurn();
    for (let i = 0; i < rows.length; i += modelDim) {
      for (let k = 0; k < modelDim; ++k) sums[k] = (sums[k] ?? NaN) + (rows[i + k] ?? NaN);
    }
  }
  return { data: Float32Array.from(sums, (sum) => sum / n), shape: [1, modelDim], crops };
}

export class ImageEncoder {
  readonly #live: () => NativeModel;
  readonly #cache: EmbeddingCache;
  readonly #squareBytes: number;
  readonly #squareLength: number;
  #turn: Promise<unknown> = Promise.resolve();

  /** @param live the model, or throws when it was disposed */
  constructor(
    live: () => NativeModel,
    imageSize: number,
    tokensPerImage: number,
    modelDim: number,
    cache: EmbeddingCache,
  ) {
    this.#live = live;
    this.#cache = cache;
    this.#squareBytes = imageSize * imageSize * 3;
    this.#squareLength = tokensPerImage * modelDim; // values of its rows
  }

  /**
   * The rows [tokensPerImage, modelDim] of each square of n pictures. Nobody may change them: the cache keeps some.
   * `onProgress` gets fractions of all pictures; `adapters` count as far as they change the encoder; `background`: as the option `priority`. Throws what `picture` throws and what the engine reports.
   */
  async embed(
    n: number,
    picture: (i: number) => Picture | Promise<Picture>,
    cancellation: Cancellation,
    onProgress: (fraction: number) => void = () => {},
    adapters: readonly NativeAdapterUse[] = [],
    background = false,
  ): Promise<Float32Array[][]> {
    const own = this.#ofEncoder(adapters);
    const results: Float32Array[][] = [];
    // What has to be encoded, by key, and who waits for it: equal squares wait for one.
    const pending = new Map<string, { pixels: Uint8Array; takers: ((rows: Float32Array) => void)[] }>();
    let done = 0; // pictures
    const flush = async (upTo: number) => {
      const work = [...pending];
      pending.clear();
      await this.#encode(work, { adapters: own.uses, background }, cancellation, (fraction) =>
        onProgress((done + fraction * (upTo - done)) / n),
      );
      done = upTo;
    };
    for (let i = 0; i < n; ++i) {
      const prepared = await picture(i);
      if ('rows' in prepared) {
        results.push(prepared.rows);
        continue;
      }
      const rows: Float32Array[] = [];
      results.push(rows);
      for (let k = 0; k * this.#squareBytes < prepared.pixels.length; ++k) {
        const pixels = prepared.pixels.subarray(k * this.#squareBytes, (k + 1) * this.#squareBytes);
        const key = (await digest(pixels)) + own.key;
        const take = (found: Float32Array) => (rows[k] = found);
        const waiting = pending.get(key);
        const known = waiting ? undefined : await this.#cache.get(key, this.#squareLength);
        if (waiting) waiting.takers.push(take);
        else if (known) take(known);
        else pending.set(key, { pixels, takers: [take] });
      }
      if (pending.size >= SQUARES_PER_CALL) await flush(i + 1);
    }
    await flush(n);
    onProgress(1);
    return results;
  }

  // Those of the adapters that change the encoder, and what tells their embeddings from others.
  #ofEncoder(adapters: readonly NativeAdapterUse[]): { uses: readonly NativeAdapterUse[]; key: string } {
    if (adapters.length === 0) return { uses: [], key: '' };
    const known = new Map(
      this.#live()
        .adapters()
        .map((adapter) => [adapter.name, adapter]),
    );
    const uses = adapters.filter(({ name }) => known.get(name)?.vision);
    return { uses, key: uses.map(({ name, scale }) => ` ${known.get(name)?.hash} ${scale}`).join('') };
  }

  // Calls of the encoder take turns, so that of two requests with the same new picture the second finds it encoded.
  async #encode(
    work: readonly [string, { pixels: Uint8Array; takers: readonly ((rows: Float32Array) => void)[] }][],
    how: Pick<NativeEncodeParams, 'adapters' | 'background'>,
    cancellation: Cancellation,
    onProgress: (fraction: number) => void,
  ): Promise<void> {
    if (work.length === 0) return;
    const turn = this.#turn.then(async () => {
      const missing: (typeof work)[number][] = [];
      for (const entry of work) {
        const rows = await this.#cache.get(entry[0], this.#squareLength);
        if (rows) entry[1].takers.forEach((take) => take(rows));
        else missing.push(entry);
      }
      // A few at a time: pixels and rows are copied on this thread, and of a picture in tiles there are hundreds.
      for (let first = 0; first < missing.length; first += SQUARES_PER_CALL) {
        const squares = missing.slice(first, first + SQUARES_PER_CALL);
        const pixels = new Uint8Array(squares.length * this.#squareBytes);
        for (const [i, [, square]] of squares.entries()) await copyInto(pixels, square.pixels, i * this.#squareBytes);
        const embeddings = await this.#run({ pixels, n: squares.length, ...how }, cancellation, (fraction) =>
          onProgress((first + fraction * squares.length) / missing.length),
        );
        for (const [i, [key, square]] of squares.entries()) {
          const rows = new Float32Array(this.#squareLength);
          await copyInto(rows, embeddings.subarray(i * this.#squareLength, (i + 1) * this.#squareLength), 0);
          square.takers.forEach((take) => take(rows));
          this.#cache.set(key, rows);
        }
      }
    });
    this.#turn = turn.catch(() => {});
    return turn;
  }

  #run(
    params: NativeEncodeParams,
    cancellation: Cancellation,
    onProgress: (fraction: number) => void,
  ): Promise<Float32Array> {
    let model: NativeModel | undefined;
    return runOperation(
      {
        start: (listener: Parameters<NativeModel['encodeImages']>[1]) => {
          if (cancellation.cancelled)
            throw new GemmaError('ERR_DISPOSED', 'cancelled before its images were encoded', 'CANCELLED');
          model = this.#live();
          return model.encodeImages(params, listener);
        },
        stop: (id) => model?.cancel(id),
        onEvent: (event) => {
          if (event.kind === 'finish') {
            return event.embeddings ? { value: event.embeddings } : { error: event.error };
          }
          if (!cancellation.cancelled) onProgress(event.fraction);
          return undefined;
        },
      },
      cancellation,
    );
  }
}
