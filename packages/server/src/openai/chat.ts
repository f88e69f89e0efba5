// POST /v1/chat/completions.
import type { FastifyInstance } from 'fastify';
import type { Gemma, GenerateOptions, GenerateResult, TokenLogprobs } from 'gemma-native';
import { z } from 'zod';
import { event, serve, stream, type Job, type ServerContext } from '../context.js';
import { HttpError } from '../errors.js';
import { given, parsed } from '../fields.js';
import { interleaved, pooled } from '../interleave.js';
import { answer, answerParts, type AnswerEvent, type Question } from './answer.js';
import {
  bounds,
  chatTools,
  chatUsage,
  checkChoices,
  finite,
  harmless,
  idsOf,
  jsonSchema,
  newId,
  now,
  pictures,
  sampling,
  samplingOptions,
  seedOf,
  spelled,
  streamOptions,
  textLogprobs,
  toolsOf,
  totalUsage,
} from './common.js';
import { errorBody, openaiError } from './errors.js';
import { chatMessages, messagesOf } from './messages.js';

const namedTool = z.strictObject({ type: z.literal('function'), function: z.strictObject({ name: z.string() }) });

const responseFormat = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('text') }),
  z.strictObject({ type: z.literal('json_object') }),
  z.strictObject({
    type: z.literal('json_schema'),
    json_schema: z.strictObject({
      name: z.string(),
      description: z.string().nullish(),
      schema: jsonSchema,
      strict: z.boolean().nullish(), // the schema always binds
    }),
  }),
]);

/** The body of a request. Exported for tests, which make wrong ones of it. */
export const chatBody = z.strictObject({
  model: z.string(),
  messages: chatMessages,
  stream: z.boolean().nullish(),
  stream_options: streamOptions,
  n: z.int().min(1).nullish(),
  max_tokens: z.int().min(1).nullish(),
  max_completion_tokens: z.int().min(1).nullish(),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.int().min(0).max(20).nullish(),
  tools: chatTools.nullish(),
  tool_choice: z.union([z.enum(['auto', 'none', 'required']), namedTool]).nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  response_format: responseFormat.nullish(),
  modalities: z.tuple([z.literal('text')]).nullish(),
  ...sampling,
  ...bounds,
  ...pictures,
  ...harmless,
});

type ChatBody = z.output<typeof chatBody>;

function wrong(param: string, message: string): HttpError {
  return new HttpError(400, 'invalid_value', `${param}: ${message}`, { param });
}

/** What gemma-native is asked. Throws HttpError 400. */
function questionOf(body: ChatBody, { limits }: ServerContext): Question {
  if (body.max_tokens != null && body.max_completion_tokens != null) {
    throw wrong('max_tokens', 'only one of max_tokens and max_completion_tokens can be given');
  }
  if (body.top_logprobs != null && body.logprobs !== true)
    throw wrong('top_logprobs', 'expected logprobs: true beside it');
  if (body.stream_options != null && body.stream !== true)
    throw wrong('stream_options', 'expected stream: true beside it');
  const tools = toolsOf((body.tools ?? []).map((tool) => tool.function));
  const { tool_choice: choice, response_format: format } = body;
  if (choice != null && choice !== 'none' && Object.keys(tools).length === 0) {
    throw wrong('tool_choice', 'expected tools beside it');
  }
  const options: GenerateOptions = {
    ...samplingOptions(body),
    ...given({
      maxOutputTokens: body.max_completion_tokens ?? body.max_tokens,
      tools: Object.keys(tools).length > 0 ? tools : undefined,
      toolChoice: typeof choice === 'object' && choice !== null ? { tool: choice.function.name } : choice,
    }),
    ...(body.logprobs === true && { logprobs: Math.max(1, body.top_logprobs ?? 0) }),
    ...(format?.type === 'json_object' && { json: true }),
    ...(format?.type === 'json_schema' && { schema: format.json_schema.schema }),
  };
  return { input: messagesOf(body.messages, limits), options, oneCall: body.parallel_tool_calls === false };
}

const FINISH: Readonly<Record<GenerateResult['finishReason'], string>> = {
  stop: 'stop',
  length: 'length',
  'tool-calls': 'tool_calls',
  error: 'stop',
  other: 'stop',
};

function bytesOf(text: string): number[] | null {
  // Of a piece of a character nothing is known but that it is one.
  return text.includes('\ufffd') ? null : [...Buffer.from(text)];
}

async function logprobContent(gemma: Gemma, entries: readonly TokenLogprobs[], top: number, signal: AbortSignal) {
  const texts = await spelled(gemma, idsOf(entries), signal);
  const entry = ({ token, logprob }: { token: number; logprob: number }) => {
    const text = texts.get(token) ?? '';
    return { token: text, logprob: finite(logprob), bytes: bytesOf(text) };
  };
  return entries.map((each) => ({ ...entry(each), top_logprobs: each.top.slice(0, top).map(entry) }));
}

function callOf({ id, name, input }: { id: string; name: string; input: unknown }) {
  return { id, type: 'function', function: { name, arguments: JSON.stringify(input) } };
}

async function choiceOf(job: Job, result: GenerateResult, index: number, body: ChatBody) {
  const calls = (result.toolCalls ?? []).map(callOf);
  const content = result.text === '' && calls.length > 0 ? null : result.text;
  const logprobs = body.logprobs
    ? {
        content: await logprobContent(
          job.gemma,
          await textLogprobs(job.gemma, result, job.signal),
          body.top_logprobs ?? 0,
          job.signal,
        ),
        refusal: null,
      }
    : null;
  return {
    index,
    message: { role: 'assistant', content, refusal: null, ...(calls.length > 0 && { tool_calls: calls }) },
    logprobs,
    finish_reason: FINISH[result.finishReason],
  };
}

async function* chunks(
  job: Job,
  body: ChatBody,
  questions: readonly Question[],
  stallTimeoutMs: number,
): AsyncGenerator<string, void, undefined> {
  const withUsage = body.stream_options?.include_usage === true;
  const head = { id: newId('chatcmpl-'), object: 'chat.completion.chunk', created: now(), model: job.model };
  const chunk = (index: number, delta: object, logprobs: unknown = null, finish: string | null = null) =>
    event({
      ...head,
      choices: [{ index, delta, logprobs, finish_reason: finish }],
      ...(withUsage && { usage: null }),
    });
  const answers = questions.map((question, index) => answerParts(job, question, stallTimeoutMs, index));
  const began = new Set<number>();
  const nCalls = questions.map(() => 0);
  const results: GenerateResult[] = [];
  const deltaOf = ({ part }: Extract<AnswerEvent, { kind: 'part' }>, index: number) => {
    if (part.type === 'text') return { content: part.text };
    if (part.type === 'tool-call') return { tool_calls: [{ index: nCalls[index]!++, ...callOf(part) }] };
    return undefined; // its text came before it
  };
  for await (const each of interleaved(answers)) {
    const { index } = each;
    if (!began.has(index)) {
      began.add(index);
      yield chunk(index, { role: 'assistant', content: '', refusal: null });
    }
    if (each.kind === 'end') {
      results.push(each.result);
      yield chunk(index, {}, null, FINISH[each.result.finishReason]);
      continue;
    }
    const delta = deltaOf(each, index);
    if (!delta) continue;
    const { logprobs: entries } = each.part;
    const logprobs = entries
      ? { content: await logprobContent(job.gemma, entries, body.top_logprobs ?? 0, job.signal), refusal: null }
      : null;
    yield chunk(index, delta, logprobs);
  }
  if (withUsage) yield event({ ...head, choices: [], usage: chatUsage(totalUsage(results)) });
  yield event('[DONE]');
}

export async function chat(app: FastifyInstance, context: ServerContext): Promise<void> {
  const { limits } = context;
  const names = { maxOutputTokens: 'max_completion_tokens', schema: 'response_format.json_schema.schema' };
  app.post('/v1/chat/completions', { config: { names } }, async (request, reply) => {
    const body = parsed(chatBody, request.body);
    const n = checkChoices(body.n ?? 1, limits.maxChoices);
    const question = questionOf(body, context);
    const questions = Array.from({ length: n }, (_, i) => ({
      ...question,
      options: { ...question.options, ...seedOf(question.options.seed, i) },
    }));
    return serve(context, request, reply, body.model, async (job) => {
      if (body.stream) {
        const texts = chunks(job, body, questions, limits.stallTimeoutMs);
        await stream(context, job, reply, 'text/event-stream; charset=utf-8', texts, (error) =>
          event(errorBody(openaiError(error, request))),
        );
        return reply;
      }
      const results = await pooled(questions, n, job.signal, (each, _, signal) => answer({ ...job, signal }, each));
      return {
        id: newId('chatcmpl-'),
        object: 'chat.completion',
        created: now(),
        model: job.model,
        choices: await Promise.all(results.map((result, i) => choiceOf(job, result, i, body))),
        usage: chatUsage(totalUsage(results)),
      };
    });
  });
}
