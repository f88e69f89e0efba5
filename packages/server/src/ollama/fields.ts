// The parameters of Ollama's interface. What cannot be done here is refused by its name; what changes nothing may be given with the value
// that says so.
import type { GenerateOptions } from 'gemma-native';
import { z } from 'zod';
import { HttpError } from '../errors.js';
import { given, list } from '../fields.js';

const MAX_IMAGES = 64;
const MAX_TOOLS = 128;
const MAX_MESSAGES = 4096;

/** A parameter that there is in Ollama and cannot be here. */
const refused = (reason: string) => z.never({ error: reason }).optional();
const atLoad = refused('cannot be set by a request here: it is decided where the server is configured');

/** `options`: how tokens are chosen. */
export const runOptions = z.strictObject({
  num_predict: z.int().min(-2).optional(),
  num_ctx: z.int().min(1).optional(),
  temperature: z.number().min(0).optional(),
  top_k: z.int().min(0).optional(),
  top_p: z.number().gt(0).max(1).optional(),
  min_p: z.number().min(0).max(1).optional(),
  seed: z.int().min(0).optional(),
  stop: z.union([z.string(), list(z.string(), 256)]).optional(),
  repeat_penalty: z.number().optional(),
  repeat_last_n: z.int().min(-1).optional(),
  presence_penalty: z.number().optional(),
  frequency_penalty: z.number().optional(),
  num_batch: atLoad,
  num_gpu: atLoad,
  main_gpu: atLoad,
  num_thread: atLoad,
  num_keep: refused('is not there: a prompt that is too long is an error, nothing of it is left out'),
  use_mmap: atLoad,
  use_mlock: atLoad,
  low_vram: atLoad,
  numa: atLoad,
  mirostat: z.literal(0, { error: 'is not there; 0 is accepted' }).optional(),
  tfs_z: z.literal(1, { error: 'is not there; 1 is accepted' }).optional(),
  typical_p: z.literal(1, { error: 'is not there; 1 is accepted' }).optional(),
});

export type RunOptions = z.output<typeof runOptions>;

const UNITS: Readonly<Record<string, number>> = {
  ns: 1e-6,
  us: 1e-3,
  µs: 1e-3,
  μs: 1e-3,
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000,
};
const DURATION = /^[+-]?(?:(?:\d{1,15}\.?\d{0,15}|\.\d{1,15})(?:ns|us|µs|μs|ms|s|m|h))+$/;

/** Go's durations in milliseconds: `'5m'`, `'1h30m'`, seconds as a number; what is below zero is for ever. */
function durationMs(value: string | number): number {
  if (typeof value === 'number') return value < 0 ? Infinity : value * 1000;
  if (/^[+-]?0$/.test(value)) return 0;
  if (value.startsWith('-')) return Infinity;
  let ms = 0;
  for (const [, number = '', unit = ''] of value.matchAll(/([\d.]+)([^\d.]+)/g))
    ms += Number(number) * (UNITS[unit] ?? 0);
  return ms;
}

const expected = "expected a duration such as '5m', or seconds";
const keepAlive = z
  .union(
    [
      z.number(),
      z
        .string()
        .max(64)
        .regex(/^[+-]?0$|^(?=.*\d)/, expected),
    ],
    { error: expected },
  )
  .refine((value) => typeof value === 'number' || /^[+-]?0$/.test(value) || DURATION.test(value), expected)
  .transform(durationMs)
  .nullish();

/** Answers without thoughts, which is all there is. */
const think = z.literal(false, { error: 'Gemma 3 does not think before it answers; false is accepted' }).nullish();

const format = z
  .union([z.enum(['', 'json']), z.record(z.string(), z.unknown())], { error: "expected 'json' or a JSON Schema" })
  .nullish();

const images = list(z.string(), MAX_IMAGES).nullish();

const common = {
  model: z.string(),
  stream: z.boolean().nullish(),
  format,
  keep_alive: keepAlive,
  think,
  logprobs: z.boolean().nullish(),
  top_logprobs: z.int().min(0).max(20).nullish(),
  options: runOptions.nullish(),
};

const call = z.strictObject({
  id: z.string().optional(),
  function: z.strictObject({
    index: z.int().optional(), // of the call among its neighbours, which stand in order
    name: z.string(),
    arguments: z.record(z.string(), z.unknown()),
  }),
});

const noThoughts = z.literal('', { error: 'Gemma 3 has no thoughts' }).nullish();

const message = z.discriminatedUnion('role', [
  z.strictObject({ role: z.literal('system'), content: z.string() }),
  z.strictObject({ role: z.literal('user'), content: z.string().default(''), images }),
  z.strictObject({
    role: z.literal('assistant'),
    content: z.string().default(''),
    tool_calls: list(call, MAX_TOOLS).nullish(),
    thinking: noThoughts,
  }),
  z.strictObject({
    role: z.literal('tool'),
    content: z.string(),
    tool_name: z.string().optional(),
    tool_call_id: z.string().optional(),
  }),
]);

export type OllamaMessage = z.output<typeof message>;

const tool = z.strictObject({
  type: z.literal('function'),
  function: z.strictObject({
    name: z.string(),
    description: z.string().nullish(),
    parameters: z.record(z.string(), z.unknown()).nullish(),
  }),
});

/** The bodies of requests. Exported for tests, which make wrong ones of them. */
export const chatBody = z.strictObject({
  ...common,
  messages: list(message, MAX_MESSAGES).nullish(),
  tools: list(tool, MAX_TOOLS).nullish(),
});

export const generateBody = z.strictObject({
  ...common,
  prompt: z.string().nullish(),
  system: z.string().nullish(),
  raw: z.boolean().nullish(),
  images,
  suffix: refused('Gemma 3 cannot fill in the middle'),
  template: refused("is not taken from requests: the server's configuration names another chat template"),
  context: refused('is no longer part of the interface: send the conversation to /api/chat'),
});

export type ChatBody = z.output<typeof chatBody>;
export type GenerateBody = z.output<typeof generateBody>;
export type AnswerBody = Pick<GenerateBody, keyof typeof common>;

const noOptions = z.strictObject({}, { error: 'nothing can be set for embeddings' }).nullish();

export const embedBody = (maxInputs: number) =>
  z.strictObject({
    model: z.string(),
    input: z.union([z.string(), list(z.string(), maxInputs)]),
    truncate: z.boolean().nullish(),
    dimensions: z.int().min(1).nullish(),
    keep_alive: keepAlive,
    options: noOptions,
  });

export const embeddingsBody = z.strictObject({
  model: z.string(),
  prompt: z.string(),
  keep_alive: keepAlive,
  options: noOptions,
});

export const showBody = z.strictObject({
  model: z.string(),
  verbose: z.boolean().nullish(), // what it would add are arrays of the vocabulary, which no model's answer has
});

/** How gemma-native's options are called here, for errors. */
export const NAMES: Readonly<Record<string, string>> = {
  maxOutputTokens: 'options.num_predict',
  temperature: 'options.temperature',
  topK: 'options.top_k',
  topP: 'options.top_p',
  minP: 'options.min_p',
  seed: 'options.seed',
  stopSequences: 'options.stop',
  repetitionPenalty: 'options.repeat_penalty',
  penaltyWindow: 'options.repeat_last_n',
  presencePenalty: 'options.presence_penalty',
  frequencyPenalty: 'options.frequency_penalty',
  schema: 'format',
  texts: 'input',
};

/**
 * What gemma-native is told.
 *
 * @throws HttpError 400
 */
export function answerOptions(body: AnswerBody): GenerateOptions {
  const { num_predict, stop, ...others } = body.options ?? {};
  if (num_predict === 0) {
    throw new HttpError(400, 'invalid_value', 'options.num_predict: expected 1 or more, or -1 for no limit', {
      param: 'options.num_predict',
    });
  }
  if (body.top_logprobs != null && body.logprobs !== true) {
    throw new HttpError(400, 'invalid_value', 'top_logprobs: expected logprobs: true beside it', {
      param: 'top_logprobs',
    });
  }
  return {
    ...given({
      maxOutputTokens: num_predict !== undefined && num_predict > 0 ? num_predict : undefined,
      temperature: others.temperature,
      topK: others.top_k,
      topP: others.top_p,
      minP: others.min_p,
      seed: others.seed,
      stopSequences: typeof stop === 'string' ? [stop] : stop,
      repetitionPenalty: others.repeat_penalty,
      penaltyWindow: others.repeat_last_n,
      presencePenalty: others.presence_penalty,
      frequencyPenalty: others.frequency_penalty,
    }),
    ...(body.logprobs && { logprobs: Math.max(1, body.top_logprobs ?? 0) }),
    ...(body.format === 'json' && { json: true }),
    ...(typeof body.format === 'object' && body.format !== null && { schema: body.format }),
    onOverflow: 'truncate', // num_predict is how much there may be, not how much there must be room for
  };
}
