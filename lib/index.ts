export {
  Gemma,
  type CropsResult,
  type Estimate,
  type LogitsResult,
  type ModelInfo,
  type ModelSummary,
  type PerplexityResult,
} from './gemma.js';
export type { AdapterOption, AdapterPaths } from './adapters.js';
export type { Backend } from './backends.js';
export type { BatchGenerateOptions, BatchOptions, BatchProgress, BatchResult } from './batch.js';
export { evaluate, evaluationTable } from './evaluate/index.js';
export type { EvaluateOptions, EvaluationModel, EvaluationProgress, PersonalDataFinding } from './evaluate/evaluate.js';
export type { MetricName } from './evaluate/outcome.js';
export type { EvaluationComparison, EvaluationResult, EvaluationScore } from './evaluate/report.js';
export type { ScorerName, ScorerOption } from './evaluate/scorers.js';
export type {
  EvaluationExample,
  EvaluationKind,
  EvaluationTask,
  FewShotOptions,
  MemorizationOptions,
} from './evaluate/task.js';
export type { LocalModel } from './hub/local.js';
export type { PulledModel, PullPlan, PullProgress } from './hub/pulled.js';
export type { HubOptions, LocalModelsOptions, PullOptions } from './hub-options.js';
export { ERROR_CODES, GemmaError, type GemmaErrorCode } from './errors.js';
export { Conversation, type TurnInput } from './conversation.js';
export type {
  ChatOptions,
  Overflow,
  RestoreChatOptions,
  SummarizeOverflow,
  TurnByChoices,
  TurnBySchema,
  TurnOptions,
} from './chat-options.js';
export { GemmaStream } from './stream.js';
export type {
  MalformedCallStreamPart,
  StreamPart,
  TextStreamPart,
  ToolCallStreamPart,
  ToolResultStreamPart,
} from './parts.js';
export type { MalformedCall, Tool, ToolCall, ToolChoice, ToolExecution, ToolResult, Tools } from './tools.js';
export type { ToolFormatName } from './tool-formats/format.js';
export type { FinishReason, GenerateResult, GenerateStep, Timings, TokenLogprobs, Usage } from './result.js';
export type { DeepPartial } from './partial-json.js';
export type { OutputOf, StandardResult, StandardSchema } from './schema.js';
export type { StructuredOptions } from './structured.js';
export type { CandidateScore } from './score.js';
export { fitTemperature, type LabelledDecision } from './decide.js';
export type { BooleanDecision, ChoiceDecision, Decision, ScoreDecision } from './decide.js';
export type { RankedDocument } from './rerank.js';
export type { ImageSafety, PolicyResult } from './image-safety.js';
export type {
  BooleanQuestion,
  ChoiceQuestion,
  ClassifyImageOptions,
  ImagePolicy,
  Question,
  QuestionOptions,
  RerankOptions,
  ScoreQuestion,
} from './decision-options.js';
export type { Embeddings } from './embed.js';
export type { EmbeddingTask } from './embedding-prompts.js';
export type { ChatInfo } from './chat.js';
export type {
  ImportanceOptions,
  ImportanceResult,
  Quantization,
  QuantizeOptions,
  QuantizeResult,
  TensorType,
  WriteOptions,
} from './quantize.js';
export type { MergedAdapter, MergeOptions, MergeResult, MergeWith } from './merge.js';
export type { FinetuneOptions, FinetuneProgress, FinetuneTarget } from './finetune/options.js';
export type { FinetuneResult, FinetuneRun } from './finetune/run.js';
export type { ContentPart, ImagePart, Message, TextPart, ToolMessage, TurnMessage, VideoPart } from './messages.js';
export type { Crop, ImageEmbedding, ImageInput, RawImage } from './media.js';
export type { Input } from './prompt.js';
export type { AdapterInfo, Device, EngineStats, MemoryPlan, ModelConfig, TokenScore, VisionConfig } from './native.js';
export type { CropOptions, ImageOptions, PanAndScanOptions, VideoOptions } from './media-options.js';
export type {
  CountTokensOptions,
  CropsOptions,
  DetokenizeOptions,
  EmbedImageOptions,
  EmbedOptions,
  EstimateOptions,
  GenerateOptions,
  ImageCacheOptions,
  InspectOptions,
  KvCacheType,
  LoadAdapterOptions,
  LoadOptions,
  LogitsOptions,
  PerplexityOptions,
  PromptOptions,
  PromptProgress,
  ScoreOptions,
  TokenizeOptions,
  ToolOptions,
  TypedByChoices,
  TypedBySchema,
} from './options.js';
