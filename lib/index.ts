export {
  Gemma,
  type CropsResult,
  type Estimate,
  type LogitsResult,
  type ModelInfo,
  type PerplexityResult,
} from './gemma.js';
export type { Backend } from './backends.js';
export { ERROR_CODES, GemmaError, type GemmaErrorCode } from './errors.js';
export {
  GemmaStream,
  type FinishReason,
  type GenerateResult,
  type StreamPart,
  type Timings,
  type TokenLogprobs,
  type Usage,
} from './generation.js';
export type { ContentPart, ImagePart, Message, TextPart, VideoPart } from './chat-template.js';
export type { ImageInput, RawImage } from './image.js';
export type { Input } from './prompt.js';
export type { ImageEmbedding } from './vision.js';
export type {
  Crop,
  Device,
  EngineStats,
  MemoryPlan,
  ModelConfig,
  ModelSummary,
  TokenScore,
  VisionConfig,
} from './native.js';
export type {
  CropOptions,
  CropsOptions,
  EmbedImageOptions,
  EstimateOptions,
  GenerateOptions,
  ImageCacheOptions,
  ImageOptions,
  InspectOptions,
  KvCacheType,
  LoadOptions,
  LogitsOptions,
  PanAndScanOptions,
  PerplexityOptions,
  PromptOptions,
  PromptProgress,
  VideoOptions,
} from './options.js';
