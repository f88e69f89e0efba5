// The provider: models by their ids, over Gemmas that are loaded once.
import {
  NoSuchModelError,
  type EmbeddingModelV4,
  type Experimental_DecisionModelV4,
  type LanguageModelV4,
  type ProviderV4,
  type RerankingModelV4,
} from '@ai-sdk/provider';
import type { Gemma, LoadOptions } from 'gemma-native';
import { GemmaDecisionModel } from './decision-model.js';
import { GemmaEmbeddingModel } from './embedding-model.js';
import { GemmaLanguageModel } from './language-model.js';
import { Models, type ModelSource } from './models.js';
import type {
  GemmaDecisionModelOptions,
  GemmaEmbeddingModelOptions,
  GemmaLanguageModelSettings,
  GemmaRerankingModelOptions,
} from './options.js';
import { GemmaRerankingModel } from './reranking-model.js';

export interface GemmaProviderSettings {
  /**
   * The models that there are, by ids of yours: what `Gemma.load` takes, with options beside it where wanted, or a Gemma that is loaded.
   * No other id is known then (NoSuchModelError), so ids may come from users. Without it an id is whatever `Gemma.load` takes.
   */
  models?: Readonly<Record<string, ModelSource>>;
  /** How models are loaded that have no options of their own. */
  load?: LoadOptions;
}

/** Models by their ids, or over a Gemma that is loaded. Nothing is loaded before the first call; what is loaded serves all models of its id. */
export interface GemmaProvider extends ProviderV4 {
  (model: string | Gemma, settings?: GemmaLanguageModelSettings): LanguageModelV4;
  languageModel(model: string | Gemma, settings?: GemmaLanguageModelSettings): LanguageModelV4;
  embeddingModel(model: string | Gemma, settings?: GemmaEmbeddingModelOptions): EmbeddingModelV4;
  rerankingModel(model: string | Gemma, settings?: GemmaRerankingModelOptions): RerankingModelV4;
  /** For `experimental_decide` of the AI SDK, which may change there. */
  decisionModel(model: string | Gemma, settings?: GemmaDecisionModelOptions): Experimental_DecisionModelV4;
  /** Throws NoSuchModelError: Gemma draws no pictures. */
  imageModel(modelId: string): never;
  /**
   * The Gemma behind an id, loaded if it is not yet: to load it before the first call, and for what the AI SDK has no name for.
   *
   * @throws NoSuchModelError; GemmaError as `Gemma.load`
   */
  load(model: string): Promise<Gemma>;
  /** Frees the models that this provider loaded; calls under way reject, and later ones too. Those that were given as loaded stay. */
  dispose(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** Makes a provider. Loads nothing yet. */
export function createGemma({ models: sources, load = {} }: GemmaProviderSettings = {}): GemmaProvider {
  const models = new Models(sources, load);
  const languageModel = (model: string | Gemma, settings?: GemmaLanguageModelSettings) =>
    new GemmaLanguageModel(models.handle(model, 'languageModel'), settings);
  return Object.assign(
    (model: string | Gemma, settings?: GemmaLanguageModelSettings) => languageModel(model, settings),
    {
      specificationVersion: 'v4' as const,
      languageModel,
      embeddingModel: (model: string | Gemma, settings?: GemmaEmbeddingModelOptions) =>
        new GemmaEmbeddingModel(models.handle(model, 'embeddingModel'), settings),
      rerankingModel: (model: string | Gemma, settings?: GemmaRerankingModelOptions) =>
        new GemmaRerankingModel(models.handle(model, 'rerankingModel'), settings),
      decisionModel: (model: string | Gemma, settings?: GemmaDecisionModelOptions) =>
        new GemmaDecisionModel(models.handle(model, 'decisionModel'), settings),
      imageModel: (modelId: string): never => {
        throw new NoSuchModelError({ modelId, modelType: 'imageModel' });
      },
      load: (model: string) => models.handle(model, 'languageModel').get(),
      dispose: () => models.dispose(),
      [Symbol.asyncDispose]: () => models.dispose(),
    },
  );
}

/**
 * A provider for the life of a program, over any model that `Gemma.load` takes: `gemma('demo')`, `gemma('hf:org/repo:Q4_K_M')`, or a Gemma
 * that is loaded.
 */
export const gemma: GemmaProvider = createGemma();
