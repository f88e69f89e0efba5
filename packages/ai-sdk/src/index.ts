export { createGemma, gemma, type GemmaProvider, type GemmaProviderSettings } from './provider.js';
export type { ModelSettings, ModelSource } from './models.js';
export type {
  GemmaDecisionModelOptions,
  GemmaEmbeddingModelOptions,
  GemmaLanguageModelOptions,
  GemmaLanguageModelSettings,
  GemmaRerankingModelOptions,
} from './options.js';
