// An embedding model of the AI SDK (specification v4) over `gemma.embed`.
import {
  TooManyEmbeddingValuesForCallError,
  type EmbeddingModelV4,
  type EmbeddingModelV4CallOptions,
  type EmbeddingModelV4Result,
} from '@ai-sdk/provider';
import { providerError } from './errors.js';
import type { ModelHandle } from './models.js';
import { embeddingOptions, embeddingSettings, type GemmaEmbeddingModelOptions } from './options.js';

const MAX_VALUES = 2048;

// An embedding here is an array of numbers: of so many rows they are made before other work has its turn.
const ROWS_AT_ONCE = 64;

const nextTurn = () => new Promise<void>((resolve) => setImmediate(resolve));

/** @internal */
export class GemmaEmbeddingModel implements EmbeddingModelV4 {
  readonly specificationVersion = 'v4';
  readonly provider = 'gemma';
  readonly modelId: string;
  /** `embedMany` cuts longer lists. The engine packs the texts of all calls into its steps, so more would gain nothing. */
  readonly maxEmbeddingsPerCall = MAX_VALUES;
  readonly supportsParallelCalls = true;
  readonly #handle: ModelHandle;
  readonly #settings: GemmaEmbeddingModelOptions;

  constructor(handle: ModelHandle, settings: GemmaEmbeddingModelOptions | undefined) {
    this.modelId = handle.modelId;
    this.#handle = handle;
    this.#settings = embeddingSettings(settings);
  }

  async doEmbed({
    values,
    dimensions,
    abortSignal,
    providerOptions,
  }: EmbeddingModelV4CallOptions): Promise<EmbeddingModelV4Result> {
    const { provider, modelId, maxEmbeddingsPerCall } = this;
    if (values.length > maxEmbeddingsPerCall) {
      throw new TooManyEmbeddingValuesForCallError({ provider, modelId, maxEmbeddingsPerCall, values });
    }
    try {
      const options = {
        ...this.#settings,
        ...embeddingOptions(providerOptions),
        ...(dimensions !== undefined && { dimensions }),
        ...(abortSignal && { signal: abortSignal }),
      };
      const gemma = await this.#handle.get(abortSignal);
      const { data, shape, usage } = await gemma.embed(values, options);
      const [rows, width] = shape;
      const embeddings: number[][] = [];
      for (let row = 0; row < rows; ++row) {
        if (row % ROWS_AT_ONCE === ROWS_AT_ONCE - 1) await nextTurn();
        embeddings.push(Array.from(data.subarray(row * width, (row + 1) * width)));
      }
      return { embeddings, usage: { tokens: usage.inputTokens }, warnings: [] };
    } catch (error) {
      throw providerError(error, { modelId, input: values }, abortSignal);
    }
  }
}
