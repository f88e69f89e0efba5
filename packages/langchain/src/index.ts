export { ChatGemma, type ChatGemmaCallOptions, type ChatGemmaFields } from './chat-gemma.js';
export { GemmaEmbeddings, type GemmaEmbeddingsFields } from './embeddings.js';
export type { GemmaCallSettings, GemmaSettings } from './settings.js';
export type { ModelFields } from './source.js';
