// A reranking model of the AI SDK (specification v4) over `gemma.rerank`.
import type { RerankingModelV4, RerankingModelV4CallOptions, RerankingModelV4Result } from '@ai-sdk/provider';
import { providerError } from './errors.js';
import type { ModelHandle } from './models.js';
import { rerankingOptions, rerankingSettings, type GemmaRerankingModelOptions } from './options.js';

/** @internal */
export class GemmaRerankingModel implements RerankingModelV4 {
  readonly specificationVersion = 'v4';
  readonly provider = 'gemma';
  readonly modelId: string;
  readonly #handle: ModelHandle;
  readonly #settings: GemmaRerankingModelOptions;

  constructor(handle: ModelHandle, settings: GemmaRerankingModelOptions | undefined) {
    this.modelId = handle.modelId;
    this.#handle = handle;
    this.#settings = rerankingSettings(settings);
  }

  async doRerank({
    documents,
    query,
    topN,
    abortSignal,
    providerOptions,
  }: RerankingModelV4CallOptions): Promise<RerankingModelV4Result> {
    const { modelId } = this;
    try {
      const options = {
        ...this.#settings,
        ...rerankingOptions(providerOptions),
        ...(topN !== undefined && { topN }),
        ...(abortSignal && { signal: abortSignal }),
      };
      const timestamp = new Date();
      const gemma = await this.#handle.get(abortSignal);
      const texts =
        documents.type === 'text' ? documents.values : documents.values.map((value) => JSON.stringify(value));
      const ranked = await gemma.rerank(query, texts, options);
      return {
        ranking: ranked.map(({ index, score }) => ({ index, relevanceScore: score })),
        warnings: [],
        response: { timestamp, modelId },
      };
    } catch (error) {
      throw providerError(error, { modelId, input: documents.values }, abortSignal);
    }
  }
}
