// Pictures to rows of the model's width: what is known from before is taken from the cache, the rest is encoded a few squares at
// a time. A square is a picture, or a crop of one, stretched to the encoder's size; its rows depend on its pixels alone.
import type { Cancellation } from './cancellation.js';
import { digest, type EmbeddingCache } from './embedding-cache.js';
import { GemmaError } from './errors.js';
import type { Crop, NativeModel, PreparedImage } from './native.js';
import { show } from './options.js';

/** What the vision encoder makes of a picture. May stand in a message instead of the picture. */
export interface ImageEmbedding {
  /** row-major `shape` */
  data: Float32Array;
  /** `[tokens, modelDim]`: the rows of the whole picture, then those of each crop; with `pooling: 'mean'` `[1, modelDim]` */
  shape: [number, number];
  /** where the picture was cut */
  crops: Crop[];
}

/** A picture on its way into a prompt: its squares, or their rows where these are known. */
export type Picture = PreparedImage | { rows: Float32Array[] };

// Squares of one call of the encoder. It works through them one after another; a few are enough to keep it busy.
const SQUARES_PER_CALL = 4;

export function isEmbedding(value: unknown): value is ImageEmbedding {
  return typeof value === 'object' && value !== null && (value as ImageEmbedding).data instanceof Float32Array;
}

/** The rows of each square of an embedding that a caller hands back; copies. Throws RangeError for one that does not fit. */
export function rowsOfEmbedding(
  embedding: ImageEmbedding,
  name: string,
  tokensPerImage: number,
  modelDim: number,
): Float32Array[] {
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
        `without pooling, found shape ${Array.isArray(shape) ? `[${shape.join(', ')}]` : show(shape)}`,
    );
  }
  const size = tokensPerImage * modelDim;
  return Array.from({ length: squares }, (_, i) => data.slice(i * size, (i + 1) * size));
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
   * `onProgress` gets fractions of all pictures. Throws what `picture` throws and what the engine reports.
   */
  async embed(
    n: number,
    picture: (i: number) => Picture | Promise<Picture>,
    cancellation: Cancellation,
    onProgress: (fraction: number) => void = () => {},
  ): Promise<Float32Array[][]> {
    const results: Float32Array[][] = [];
    // What has to be encoded, by key, and who waits for it: equal squares wait for one.
    const pending = new Map<string, { pixels: Uint8Array; takers: ((rows: Float32Array) => void)[] }>();
    let done = 0; // pictures
    const flush = async (upTo: number) => {
      const work = [...pending];
      pending.clear();
      await this.#encode(work, cancellation, (fraction) => onProgress((done + fraction * (upTo - done)) / n));
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
        const key = await digest(pixels);
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

  // Calls of the encoder take turns, so that of two requests with the same new picture the second finds it encoded.
  async #encode(
    work: readonly [string, { pixels: Uint8Array; takers: readonly ((rows: Float32Array) => void)[] }][],
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
      if (missing.length === 0) return;
      const pixels = Buffer.concat(missing.map(([, square]) => square.pixels));
      const embeddings = await this.#run(pixels, missing.length, cancellation, onProgress);
      for (const [i, [key, square]] of missing.entries()) {
        const rows = embeddings.slice(i * this.#squareLength, (i + 1) * this.#squareLength);
        square.takers.forEach((take) => take(rows));
        await this.#cache.set(key, rows);
      }
    });
    this.#turn = turn.catch(() => {});
    return turn;
  }

  #run(
    pixels: Uint8Array,
    n: number,
    cancellation: Cancellation,
    onProgress: (fraction: number) => void,
  ): Promise<Float32Array> {
    return new Promise((resolve, reject) => {
      if (cancellation.cancelled) {
        reject(new GemmaError('ERR_DISPOSED', 'cancelled before its images were encoded'));
        return;
      }
      const model = this.#live();
      const id = model.encodeImages({ pixels, n }, (event) => {
        if (event.kind === 'progress') {
          if (cancellation.cancelled) return;
          try {
            onProgress(event.fraction);
          } catch (error) {
            cancellation.cancel();
            // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- the callback's own error
            reject(error);
          }
        } else if (event.embeddings) {
          resolve(event.embeddings);
        } else {
          // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- a GemmaError made by native code
          reject(event.error);
        }
      });
      cancellation.onCancel(() => model.cancel(id));
    });
  }
}
