// What a chat model is made with and a call may say otherwise: options of `gemma.generate` under their own names.
import type { GenerateOptions } from 'gemma-native';

const NAMES = [
  'temperature',
  'topK',
  'topP',
  'minP',
  'maxOutputTokens',
  'seed',
  'stopSequences',
  'stopTokens',
  'repetitionPenalty',
  'frequencyPenalty',
  'presencePenalty',
  'penaltyWindow',
  'logitBias',
  'logprobs',
  'draft',
  'adapter',
  'panAndScan',
  'tile',
  'alpha',
  'maxImageBytes',
  'maxImagePixels',
  'remoteTimeoutMs',
  'toolFormat',
  'onOverflow',
  'choices',
  'regex',
  'grammar',
  'json',
] as const satisfies readonly (keyof GenerateOptions)[];

// Which files and addresses may be opened is not for a call to say.
const OF_MODEL = ['allowRemote', 'allowLocal'] as const;

type Some<T, K extends keyof T> = { [P in K]?: Exclude<T[P], undefined> | undefined };

/** Of a call. As the options of the same names of `gemma.generate`. */
export type GemmaCallSettings = Some<GenerateOptions, (typeof NAMES)[number]>;

/** Of a model: what holds for all of its calls that say nothing else. */
export type GemmaSettings = GemmaCallSettings & {
  /**
   * Fetch pictures from http(s) URLs: from public addresses only (`true`, default), also from this machine and its network
   * (`'private'`), or not at all (`false`).
   */
  allowRemote?: boolean | 'private';
  /** Take paths and `file:` URLs of pictures. Default false: messages often come from users. */
  allowLocal?: boolean;
};

export const SETTINGS: readonly string[] = [...NAMES, ...OF_MODEL];

// What was probably meant by names that other chat models have, which would do nothing.
const HINTS: Readonly<Record<string, string>> = {
  maxTokens: 'maxOutputTokens',
  numPredict: 'maxOutputTokens',
  repeatPenalty: 'repetitionPenalty',
  topLogprobs: 'logprobs, with a number,',
  format: 'json, or withStructuredOutput,',
  response_format: 'json, or withStructuredOutput,',
  toolChoice: 'tool_choice',
};
const MODEL_HINTS: Readonly<Record<string, string>> = {
  ...HINTS,
  stop: 'stopSequences',
  modelName: 'model',
  modelPath: 'model',
  contextSize: 'load, with contextSize in it,',
  numCtx: 'load, with contextSize in it,',
  gpuLayers: 'load, with gpuLayers in it,',
  device: 'load, with device in it,',
};

function checkNames(given: object, hints: Readonly<Record<string, string>>): void {
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || !Object.hasOwn(hints, name)) continue;
    throw new TypeError(`${name}: no such option; ${hints[name]} is meant`);
  }
}

function picked(names: readonly string[], from: object): Record<string, unknown> {
  const given = from as Record<string, unknown>;
  return Object.fromEntries(names.filter((name) => given[name] !== undefined).map((name) => [name, given[name]]));
}

/** @throws TypeError for names that are other chat models' */
export function settingsOf(fields: GemmaSettings): GemmaSettings {
  checkNames(fields, MODEL_HINTS);
  return { allowRemote: true, allowLocal: false, ...picked(SETTINGS, fields) };
}

/** @throws TypeError for names that are other chat models' */
export function callSettingsOf(options: object): GemmaCallSettings {
  checkNames(options, HINTS);
  return picked(NAMES, options);
}
