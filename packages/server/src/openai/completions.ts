// POST /v1/completions: text that goes on, with the log-probabilities of prompts where they are echoed. What EleutherAI's
// lm-evaluation-harness (`local-completions`) asks of it: prompts as token ids, `echo`, `logprobs` and one token.
import type { FastifyInstance } from 'fastify';
import type { Gemma, GenerateOptions, GenerateResult, TokenLogprobs, TokenScore } from 'gemma-native';
import { z } from 'zod';
import { event, serve, stream, type Job, type ServerContext } from '../context.js';
import { HttpError } from '../errors.js';
import { list, parsed, tokenIds } from '../fields.js';
import { interleaved, pooled } from '../interleave.js';
import { answer, answerParts, type Question } from './answer.js';
import {
  bounds,
  chatUsage,
  checkChoices,
  endLogprobs,
  finite,
  harmless,
  idsOf,
  newId,
  now,
  sampling,
  samplingOptions,
  seedOf,
  spelled,
  streamOptions,
  textLogprobs,
} from './common.js';
import { errorBody, openaiError } from './errors.js';

const AT_ONCE = 16;
const DEFAULT_TOKENS = 16;
const BOS = '<bos>';

/** The body of a request. Exported for tests, which make wrong ones of it. */
export const completionsBody = z.strictObject({
  model: z.string(),
  prompt: z.union([z.string(), list(z.string(), 65536, 1), tokenIds, list(tokenIds, 65536, 1)]),
  echo: z.boolean().nullish(),
  logprobs: z.int().min(0).max(100).nullish(),
  max_tokens: z.int().min(0).nullish(),
  n: z.int().min(1).nullish(),
  best_of: z.literal(1).nullish(),
  suffix: z.literal('').nullish(),
  stream: z.boolean().nullish(),
  stream_options: streamOptions,
  /** whether `<bos>` stands before a text; token ids are taken as they are */
  bos: z.boolean().optional(),
  ...sampling,
  ...bounds,
  ...harmless,
});

type Body = z.output<typeof completionsBody>;

/** A prompt, and how many tokens its answer may have. */
interface Asked {
  prompt: string | number[];
  /** a text as it was given: with the `<bos>` that is no part of `prompt` */
  shown: string;
  question: Question | undefined; // none: nothing is to be written
}

function wrong(param: string, message: string): HttpError {
  return new HttpError(400, 'invalid_value', `${param}: ${message}`, { param });
}

function promptsOf({ prompt }: Body, max: number): (string | number[])[] {
  const prompts = typeof prompt === 'string' || typeof prompt[0] === 'number' ? [prompt] : prompt;
  if (prompts.length > max) throw wrong('prompt', `expected at most ${max} prompts, found ${prompts.length}`);
  return prompts as (string | number[])[];
}

function askedOf(body: Body, { limits }: ServerContext): Asked[] {
  const n = checkChoices(body.n ?? 1, limits.maxChoices);
  const { max_tokens: maxTokens } = body;
  const nothing = maxTokens === 0;
  if (nothing && !body.echo) throw wrong('max_tokens', 'expected at least 1, or echo: true beside it');
  if (body.stream_options != null && body.stream !== true)
    throw wrong('stream_options', 'expected stream: true beside it');
  const options: GenerateOptions = {
    ...samplingOptions(body),
    ...(!nothing && { maxOutputTokens: maxTokens ?? DEFAULT_TOKENS }),
    ...(body.bos !== undefined && { bos: body.bos }),
    ...(body.logprobs != null && { logprobs: Math.max(1, body.logprobs) }),
  };
  return promptsOf(body, limits.maxInputs).flatMap((given) =>
    Array.from({ length: n }, (_, i): Asked => {
      const isText = typeof given === 'string';
      // Ids that were decoded to a text begin with what is written before a text anyway.
      const prompt = isText && body.bos !== false && given.startsWith(BOS) ? given.slice(BOS.length) : given;
      const own = { ...options, ...seedOf(options.seed, i), ...(isText && { raw: true }) };
      const question = nothing ? undefined : { input: prompt, options: own, oneCall: false };
      return { prompt, shown: isText ? given : '', question };
    }),
  );
}

/** Tokens with what is known of each, as OpenAI's older interface writes it. */
interface Logprobs {
  tokens: string[];
  token_logprobs: (number | null)[];
  top_logprobs: (Record<string, number> | null)[];
  text_offset: number[];
}

interface Entry {
  token: number;
  /** undefined: nothing stands before it */
  logprob?: number;
  top: readonly TokenScore[];
}

class LogprobWriter {
  readonly #job: Job;
  readonly #top: number;
  #offset: number;

  /** @param before so many characters of the first tokens are not in the text */
  constructor(job: Job, top: number, before = 0) {
    this.#job = job;
    this.#top = top;
    this.#offset = -before;
  }

  async write(entries: readonly Entry[]): Promise<Logprobs> {
    const { gemma, signal } = this.#job;
    const texts = await spelled(gemma, idsOf(entries as readonly TokenLogprobs[]), signal);
    const written: Logprobs = { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] };
    for (const { token, logprob, top } of entries) {
      const text = texts.get(token) ?? '';
      written.tokens.push(text);
      written.token_logprobs.push(logprob === undefined ? null : finite(logprob));
      written.top_logprobs.push(logprob === undefined ? null : this.#best(texts, text, logprob, top));
      written.text_offset.push(Math.max(0, this.#offset));
      this.#offset += text.length;
    }
    return written;
  }

  // The token itself is among them. Of those that are spelled alike the likeliest counts.
  #best(texts: ReadonlyMap<number, string>, text: string, logprob: number, top: readonly TokenScore[]) {
    const best = new Map<string, number>([[text, finite(logprob)]]);
    for (const { token, logprob: other } of top.slice(0, this.#top)) {
      const spelling = texts.get(token) ?? '';
      best.set(spelling, Math.max(finite(other), best.get(spelling) ?? -Infinity));
    }
    return Object.fromEntries(best);
  }
}

/** A prompt as it is echoed. */
interface Echo {
  text: string;
  entries: Entry[];
  nTokens: number;
  /** characters of `<bos>` where the text has none */
  before: number;
}

async function idsOfPrompt(
  gemma: Gemma,
  prompt: string | number[],
  { bos }: Body,
  signal: AbortSignal,
): Promise<number[]> {
  return typeof prompt === 'string' ? gemma.tokenize(prompt, { bos: bos ?? true, signal }) : prompt;
}

async function echoOf(job: Job, { prompt, shown }: Asked, body: Body): Promise<Echo> {
  const { gemma, signal } = job;
  const ids = await idsOfPrompt(gemma, prompt, body, signal);
  const isText = typeof prompt === 'string';
  const text = isText ? shown : await gemma.detokenize(ids, { signal });
  const before = isText && body.bos !== false && prompt === shown ? BOS.length : 0;
  if (body.logprobs == null) return { text, entries: [], nTokens: ids.length, before };
  const { adapter } = body;
  const options = { all: true, data: false, next: true, top: Math.max(1, body.logprobs), signal };
  const { top = [], nextLogprobs = [] } = await gemma.logits(ids, {
    ...options,
    ...(adapter !== undefined && { adapter }),
  });
  const entries = ids.map((token, i): Entry => {
    const logprob = nextLogprobs[i - 1];
    if (logprob === undefined) return { token, top: [] };
    // In float32, as those of the best tokens are: whether this is one of them is told by comparing.
    return { token, logprob: Math.fround(logprob), top: top[i - 1] ?? [] };
  });
  return { text, entries, nTokens: ids.length, before };
}

const NO_USAGE = { inputTokens: 0, outputTokens: 0, imageTokens: 0, cachedInputTokens: 0 };

function finishOf({ finishReason }: GenerateResult): string {
  return finishReason === 'length' ? 'length' : 'stop';
}

// A prompt that nothing is written for was read all the same.
function readAlone(job: Job, nTokens: number): GenerateResult['usage'] {
  const usage = { ...NO_USAGE, inputTokens: nTokens };
  job.answered(usage);
  return usage;
}

async function choiceOf(job: Job, asked: Asked, index: number, body: Body) {
  const { question } = asked;
  const echo = body.echo ? await echoOf(job, asked, body) : undefined;
  const result = question && (await answer(job, question));
  const usage = result?.usage ?? readAlone(job, echo?.nTokens ?? 0);
  const writer = new LogprobWriter(job, body.logprobs ?? 0, echo?.before);
  // The token that ended the answer is among them, as OpenAI has it: who asks for one token finds one.
  const own = result && [...(await textLogprobs(job.gemma, result, job.signal)), ...endLogprobs(job.gemma, result)];
  const entries = [...(echo?.entries ?? []), ...(own ?? [])];
  const choice = {
    index,
    text: (echo?.text ?? '') + (result?.text ?? ''),
    logprobs: body.logprobs == null ? null : await writer.write(entries),
    finish_reason: result ? finishOf(result) : 'length',
  };
  return { choice, usage };
}

// The tokens of a prompt count once, however many answers it has.
function usageOf(usages: readonly GenerateResult['usage'][], n: number) {
  const sum = { ...NO_USAGE };
  usages.forEach((usage, i) => {
    if (i % n === 0) {
      sum.inputTokens += usage.inputTokens;
      sum.cachedInputTokens += usage.cachedInputTokens;
    }
    sum.outputTokens += usage.outputTokens;
  });
  return chatUsage(sum);
}

async function* chunks(
  job: Job,
  body: Body,
  asked: readonly Asked[],
  stallTimeoutMs: number,
): AsyncGenerator<string, void, undefined> {
  const withUsage = body.stream_options?.include_usage === true;
  const head = { id: newId('cmpl-'), object: 'text_completion', created: now(), model: job.model };
  const usages: GenerateResult['usage'][] = [];
  const sources = asked.map(async function* (each, index): AsyncGenerator<string, void, undefined> {
    const { question } = each;
    const echo = body.echo ? await echoOf(job, each, body) : undefined;
    const writer = new LogprobWriter(job, body.logprobs ?? 0, echo?.before);
    const chunk = async (text: string, entries: readonly Entry[], finish: string | null) =>
      event({
        ...head,
        choices: [
          { index, text, logprobs: body.logprobs == null ? null : await writer.write(entries), finish_reason: finish },
        ],
        ...(withUsage && { usage: null }),
      });
    if (echo) yield chunk(echo.text, echo.entries, question ? null : 'length');
    if (!question) {
      usages[index] = readAlone(job, echo?.nTokens ?? 0);
      return;
    }
    for await (const answered of answerParts(job, question, stallTimeoutMs)) {
      if (answered.kind === 'part') {
        yield chunk(answered.part.text, answered.part.logprobs ?? [], null);
      } else {
        usages[index] = answered.result.usage;
        yield chunk('', endLogprobs(job.gemma, answered.result), finishOf(answered.result));
      }
    }
  });
  yield* interleaved(sources);
  if (withUsage) yield event({ ...head, choices: [], usage: usageOf(usages, body.n ?? 1) });
  yield event('[DONE]');
}

export async function completions(app: FastifyInstance, context: ServerContext): Promise<void> {
  const { limits } = context;
  const names = { maxOutputTokens: 'max_tokens', input: 'prompt', ids: 'prompt', text: 'prompt' };
  app.post('/v1/completions', { config: { names } }, async (request, reply) => {
    const body = parsed(completionsBody, request.body);
    const asked = askedOf(body, context);
    if (body.stream && asked.length > limits.maxChoices) {
      throw wrong(
        'stream',
        `expected at most ${limits.maxChoices} prompts and answers in a stream, found ${asked.length}`,
      );
    }
    return serve(context, request, reply, body.model, async (job) => {
      if (body.stream) {
        const texts = chunks(job, body, asked, limits.stallTimeoutMs);
        await stream(context, job, reply, 'text/event-stream; charset=utf-8', texts, (error) =>
          event(errorBody(openaiError(error, request))),
        );
        return reply;
      }
      const made = await pooled(asked, AT_ONCE, job.signal, (each, i, signal) =>
        choiceOf({ ...job, signal }, each, i, body),
      );
      return {
        id: newId('cmpl-'),
        object: 'text_completion',
        created: now(),
        model: job.model,
        choices: made.map(({ choice }) => choice),
        usage: usageOf(
          made.map(({ usage }) => usage),
          body.n ?? 1,
        ),
      };
    });
  });
}
