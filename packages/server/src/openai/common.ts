// What the paths of OpenAI's interface have in common: fields that several take, counts of tokens, and log-probabilities.
import { randomUUID } from 'node:crypto';
import type { Gemma, GenerateOptions, GenerateResult, TokenLogprobs, Tools, Usage } from 'gemma-native';
import { z } from 'zod';
import { HttpError } from '../errors.js';
import { given, list } from '../fields.js';

const MAX_TOOLS = 128;
const panAndScan = z.union([
  z.boolean(),
  z.strictObject({
    minCropSize: z.number().optional(),
    maxCrops: z.number().optional(),
    minRatio: z.number().optional(),
  }),
]);

/** How tokens are chosen. */
export const sampling = {
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  logit_bias: z.record(z.string(), z.number().min(-100).max(100)).nullish(),
  seed: z.int().min(0).nullish(),
  stop: z.union([z.string(), list(z.string(), 256)]).nullish(),
  // of gemma-native, under its names
  topK: z.number().optional(),
  minP: z.number().optional(),
  repetitionPenalty: z.number().optional(),
  penaltyWindow: z.number().optional(),
  draft: z.union([z.enum(['prompt-lookup', 'model']), z.literal(false)]).optional(),
  adapter: z.union([z.string(), z.record(z.string(), z.number())]).optional(),
};

/** What a grammar can hold an answer to, beside OpenAI's formats. */
export const bounds = {
  regex: z.string().optional(),
  grammar: z.string().optional(),
  choices: list(z.string(), 1000, 1).optional(),
};

/** How pictures are cut. */
export const pictures = {
  panAndScan: panAndScan.optional(),
  tile: z.number().optional(),
  alpha: z.enum(['drop', 'white']).optional(),
};

/** What needs nothing to be done: who asks, and wishes that are always met. */
export const harmless = {
  user: z.string().nullish(),
  safety_identifier: z.string().nullish(),
  store: z.literal(false).nullish(),
  service_tier: z.enum(['auto', 'default']).nullish(),
};

export const streamOptions = z.strictObject({ include_usage: z.boolean().optional() }).nullish();

/** A JSON Schema, which gemma-native looks at. */
export const jsonSchema = z.record(z.string(), z.unknown());

const extras = ['topK', 'minP', 'repetitionPenalty', 'penaltyWindow', 'draft', 'adapter'] as const;
const others = ['regex', 'grammar', 'choices', 'panAndScan', 'tile', 'alpha'] as const;

type Sampling = z.output<z.ZodObject<typeof sampling>>;
type Others = Partial<z.output<z.ZodObject<typeof bounds>> & z.output<z.ZodObject<typeof pictures>>>;

/** The options of the fields above. */
export function samplingOptions(body: Sampling & Others): GenerateOptions {
  const { temperature, top_p, frequency_penalty, presence_penalty, logit_bias, seed, stop } = body;
  const own = Object.fromEntries([...extras, ...others].map((name) => [name, body[name]]));
  return given({
    ...own,
    temperature,
    topP: top_p,
    frequencyPenalty: frequency_penalty,
    presencePenalty: presence_penalty,
    logitBias: logit_bias,
    seed,
    stopSequences: typeof stop === 'string' ? [stop] : stop,
  });
}

/** How gemma-native's options are called here, for errors. */
export const NAMES: Readonly<Record<string, string>> = {
  topP: 'top_p',
  frequencyPenalty: 'frequency_penalty',
  presencePenalty: 'presence_penalty',
  logitBias: 'logit_bias',
  stopSequences: 'stop',
  toolChoice: 'tool_choice',
  texts: 'input',
};

/** Answers asked for. Throws HttpError 400. */
export function checkChoices(n: number, max: number): number {
  if (n <= max) return n;
  throw new HttpError(400, 'invalid_value', `n: expected at most ${max}, found ${n}`, { param: 'n' });
}

/** The seed of one of several answers: those of neighbours differ, and the first is that of the request. */
export function seedOf(seed: number | undefined, index: number): { seed?: number } {
  return seed === undefined ? {} : { seed: (seed + index) % Number.MAX_SAFE_INTEGER };
}

const functionTool = z.strictObject({
  name: z.string(),
  description: z.string().nullish(),
  parameters: jsonSchema.nullish(),
  strict: z.boolean().nullish(),
});

export const chatTools = list(z.strictObject({ type: z.literal('function'), function: functionTool }), MAX_TOOLS);
export const responseTools = list(functionTool.extend({ type: z.literal('function') }), MAX_TOOLS);

/**
 * Functions as gemma-native takes them; calls always fit the schema, whatever `strict` says.
 *
 * @throws HttpError 400 for two of one name
 */
export function toolsOf(functions: readonly z.output<typeof functionTool>[]): Tools {
  const tools = new Map<string, Tools[string]>();
  functions.forEach(({ name, description, parameters }, i) => {
    if (tools.has(name)) {
      throw new HttpError(400, 'invalid_value', `tools[${i}]: two are called ${JSON.stringify(name.slice(0, 64))}`, {
        param: 'tools',
      });
    }
    // Without parameters a function takes none.
    const inputSchema = parameters ?? { type: 'object', properties: {}, additionalProperties: false };
    tools.set(name, { inputSchema, ...(description != null && { description }) });
  });
  return Object.fromEntries(tools);
}

/**
 * The arguments of a call that a client sends back.
 *
 * @throws HttpError 400
 */
export function argumentsOf(json: string, where: string): object {
  let value: unknown;
  try {
    value = JSON.parse(json === '' ? '{}' : json);
  } catch {
    value = undefined;
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value;
  throw new HttpError(400, 'invalid_value', `${where}: expected the JSON of an object`, { param: where });
}

/**
 * A tool's result: text that is JSON stands for its value, because clients have nothing else to send one as. A number, a truth value or null is
 * taken for one only where it is written as JSON is: `007` and `1e3` stay text.
 */
export function resultOf(text: string): unknown {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return text;
  }
  const isStructure = typeof value === 'object' && value !== null;
  return typeof value !== 'string' && (isStructure || JSON.stringify(value) === text) ? value : text;
}

export function newId(prefix: string): string {
  return `${prefix}${randomUUID().replaceAll('-', '')}`;
}

/** seconds since 1970 */
export function now(): number {
  return Math.floor(Date.now() / 1000);
}

/** Of several answers to one prompt, whose tokens count once. */
export function totalUsage(results: readonly Pick<GenerateResult, 'usage'>[]): Usage {
  const [first] = results;
  const outputTokens = results.reduce((sum, { usage }) => sum + usage.outputTokens, 0);
  return { ...(first?.usage ?? { inputTokens: 0, imageTokens: 0, cachedInputTokens: 0 }), outputTokens };
}

export function chatUsage({ inputTokens, outputTokens, cachedInputTokens, imageTokens }: Usage) {
  return {
    prompt_tokens: inputTokens,
    completion_tokens: outputTokens,
    total_tokens: inputTokens + outputTokens,
    prompt_tokens_details: { cached_tokens: cachedInputTokens, image_tokens: imageTokens },
  };
}

// What tokens spell, by their ids: asked for once for each model.
const spellings = new WeakMap<Gemma, Map<number, string>>();
const AT_ONCE = 64;

/** What each token spells; part of a character is U+FFFD. */
export async function spelled(
  gemma: Gemma,
  ids: Iterable<number>,
  signal: AbortSignal,
): Promise<ReadonlyMap<number, string>> {
  const known = spellings.get(gemma) ?? new Map<number, string>();
  spellings.set(gemma, known);
  const missing = [...new Set(ids)].filter((id) => !known.has(id));
  for (let i = 0; i < missing.length; i += AT_ONCE) {
    const some = missing.slice(i, i + AT_ONCE);
    const texts = await Promise.all(some.map((id) => gemma.detokenize([id], { signal })));
    some.forEach((id, k) => known.set(id, texts[k] ?? ''));
  }
  return known;
}

/** JSON has no infinity; OpenAI writes this for what cannot be. */
export function finite(logprob: number): number {
  return Number.isFinite(logprob) ? logprob : -9999;
}

/** Ids in entries of log-probabilities. */
export function* idsOf(entries: readonly TokenLogprobs[]): Generator<number> {
  for (const { token, top } of entries) {
    yield token;
    for (const { token: other } of top) yield other;
  }
}

/** The token that ended an answer, if one did. */
export function endLogprobs(gemma: Gemma, { logprobs, finishReason }: GenerateResult): TokenLogprobs[] {
  const last = logprobs?.at(-1);
  return last && finishReason === 'stop' && gemma.info.endTokens.includes(last.token) ? [last] : [];
}

/** The tokens that an answer's text is made of: without the one that ended it, and those of a stop sequence. */
export async function textLogprobs(
  gemma: Gemma,
  result: GenerateResult,
  signal: AbortSignal,
): Promise<TokenLogprobs[]> {
  const { logprobs = [] } = result;
  const entries = logprobs.slice(0, logprobs.length - endLogprobs(gemma, result).length);
  if (result.stopSequence === undefined) return entries;
  const texts = await spelled(gemma, idsOf(entries), signal);
  let length = 0;
  const end = entries.findIndex(({ token }) => (length += (texts.get(token) ?? '').length) > result.text.length);
  return end < 0 ? entries : entries.slice(0, end);
}
