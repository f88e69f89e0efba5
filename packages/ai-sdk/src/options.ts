// The options that the AI SDK has no setting for: of a model when it is made, of a call as `providerOptions.gemma`. Their names are
// looked at here, their values by gemma-native.
import { InvalidArgumentError, type SharedV4ProviderOptions } from '@ai-sdk/provider';
import type { ChoiceQuestion, EmbedOptions, GenerateOptions, RerankOptions } from 'gemma-native';

const LANGUAGE = [
  'adapter',
  'panAndScan',
  'tile',
  'alpha',
  'maxImageBytes',
  'maxImagePixels',
  'remoteTimeoutMs',
  'minP',
  'repetitionPenalty',
  'penaltyWindow',
  'logitBias',
  'logprobs',
  'stopTokens',
  'draft',
  'toolFormat',
  'onOverflow',
  'choices',
  'regex',
  'grammar',
] as const satisfies readonly (keyof GenerateOptions)[];

// Who may read files of this machine, and fetch from its network, is not for a call to say.
const LANGUAGE_OF_MODEL = [...LANGUAGE, 'allowRemote', 'allowLocal'] as const;

const EMBEDDING = ['task', 'prompt', 'title', 'dimensions', 'normalize', 'truncate', 'adapter'] as const;
const RERANKING = ['instruction', 'truncate', 'adapter'] as const;
const DECISION = [
  'adapter',
  'temperature',
  'answers',
  'panAndScan',
  'tile',
  'alpha',
  'maxImageBytes',
  'maxImagePixels',
] as const;

type Some<T, K extends keyof T> = { [P in K]?: Exclude<T[P], undefined> };

/** Of a call: `providerOptions: { gemma: { ... } }`. As the options of the same names of `gemma.generate`. */
export type GemmaLanguageModelOptions = Some<GenerateOptions, (typeof LANGUAGE)[number]>;

/** Of a model: what holds for all of its calls that say nothing else. */
export type GemmaLanguageModelSettings = GemmaLanguageModelOptions & {
  /**
   * Fetch pictures from http(s) URLs: from public addresses only (`true`, default), also from this machine and its network
   * (`'private'`), or not at all (`false`).
   */
  allowRemote?: boolean | 'private';
  /** Take `file:` URLs of pictures. Default false: messages often come from users. */
  allowLocal?: boolean;
};

/** Of an embedding model or one of its calls; as the options of the same names of `gemma.embed`. */
export type GemmaEmbeddingModelOptions = Some<EmbedOptions, (typeof EMBEDDING)[number]>;

/** Of a reranking model or one of its calls; as the options of the same names of `gemma.rerank`. */
export type GemmaRerankingModelOptions = Some<RerankOptions, (typeof RERANKING)[number]>;

/** Of a decision model or one of its calls; as the options of the same names of `gemma.decide`. */
export type GemmaDecisionModelOptions = Some<ChoiceQuestion, (typeof DECISION)[number]>;

// What the AI SDK has a setting for.
const SETTINGS: Readonly<Record<string, string>> = {
  temperature: 'temperature',
  topK: 'topK',
  topP: 'topP',
  seed: 'seed',
  maxOutputTokens: 'maxOutputTokens',
  stopSequences: 'stopSequences',
  presencePenalty: 'presencePenalty',
  frequencyPenalty: 'frequencyPenalty',
  schema: 'output, or generateObject',
  json: 'output, or generateObject',
  tools: 'tools',
  toolChoice: 'toolChoice',
  maxSteps: 'stopWhen',
  signal: 'abortSignal',
  topN: 'topN',
};

/** @throws InvalidArgumentError */
function checked(where: string, names: readonly string[], given: unknown): Record<string, unknown> {
  if (given === undefined) return {};
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    throw new InvalidArgumentError({ argument: where, message: `${where}: expected an object of options` });
  }
  const known: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(given)) {
    if (!names.includes(name)) {
      const setting = Object.hasOwn(SETTINGS, name) ? `; the setting ${SETTINGS[name]} of the AI SDK is meant` : '';
      const argument = `${where}.${name.slice(0, 40)}`;
      const message = `${argument}: no such option${setting}. There are ${names.join(', ')}`;
      throw new InvalidArgumentError({ argument, message });
    }
    if (value !== undefined) known[name] = value;
  }
  return known;
}

const OF_CALL = 'providerOptions.gemma';
const OF_MODEL = 'settings';

/** @throws InvalidArgumentError for a name that is no option's */
export function languageSettings(settings: GemmaLanguageModelSettings | undefined): GemmaLanguageModelSettings {
  return checked(OF_MODEL, LANGUAGE_OF_MODEL, settings);
}

/** @throws InvalidArgumentError */
export function languageOptions(options: SharedV4ProviderOptions | undefined): GemmaLanguageModelOptions {
  return checked(OF_CALL, LANGUAGE, options?.gemma);
}

/** @throws InvalidArgumentError */
export function embeddingSettings(settings: GemmaEmbeddingModelOptions | undefined): GemmaEmbeddingModelOptions {
  return checked(OF_MODEL, EMBEDDING, settings);
}

/** @throws InvalidArgumentError */
export function embeddingOptions(options: SharedV4ProviderOptions | undefined): GemmaEmbeddingModelOptions {
  return checked(OF_CALL, EMBEDDING, options?.gemma);
}

/** @throws InvalidArgumentError */
export function rerankingSettings(settings: GemmaRerankingModelOptions | undefined): GemmaRerankingModelOptions {
  return checked(OF_MODEL, RERANKING, settings);
}

/** @throws InvalidArgumentError */
export function rerankingOptions(options: SharedV4ProviderOptions | undefined): GemmaRerankingModelOptions {
  return checked(OF_CALL, RERANKING, options?.gemma);
}

/** @throws InvalidArgumentError */
export function decisionSettings(settings: GemmaDecisionModelOptions | undefined): GemmaDecisionModelOptions {
  return checked(OF_MODEL, DECISION, settings);
}

/** @throws InvalidArgumentError */
export function decisionOptions(options: SharedV4ProviderOptions | undefined): GemmaDecisionModelOptions {
  return checked(OF_CALL, DECISION, options?.gemma);
}
