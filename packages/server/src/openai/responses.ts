// POST /v1/responses. Nothing is kept between requests: `previous_response_id` and `store: true` are refused.
import type { FastifyInstance } from 'fastify';
import type { ContentPart, GenerateOptions, GenerateResult, Message, TokenLogprobs, ToolCall } from 'gemma-native';
import { z } from 'zod';
import { pictureOfUrl } from '../content.js';
import { event, serve, stream, type Job, type ServerContext } from '../context.js';
import { HttpError } from '../errors.js';
import { given, list, parsed } from '../fields.js';
import { answer, answerParts, type Question } from './answer.js';
import {
  argumentsOf,
  bounds,
  finite,
  harmless,
  idsOf,
  jsonSchema,
  newId,
  now,
  pictures,
  responseTools,
  resultOf,
  sampling,
  samplingOptions,
  spelled,
  textLogprobs,
  toolsOf,
} from './common.js';
import { openaiError } from './errors.js';

const MAX_ITEMS = 4096;
const MAX_PARTS = 1024;
const LOGPROBS = 'message.output_text.logprobs';

const inputText = z.strictObject({ type: z.literal('input_text'), text: z.string() });
const inputImage = z.strictObject({
  type: z.literal('input_image'),
  image_url: z.string(),
  detail: z.enum(['auto', 'low']).nullish(),
  file_id: z.null().optional(),
});
const outputText = z.strictObject({
  type: z.literal('output_text'),
  text: z.string(),
  annotations: z.array(z.never()).nullish(),
  logprobs: z.array(z.unknown()).nullish(), // of an answer that is sent back
});

// Items of an answer are sent back as they came.
const sentBack = {
  id: z.string().nullish(),
  status: z.enum(['in_progress', 'completed', 'incomplete']).nullish(),
};

const inputMessage = z.strictObject({
  type: z.literal('message').optional(),
  role: z.enum(['user', 'system', 'developer', 'assistant']),
  content: z.union([z.string(), list(z.discriminatedUnion('type', [inputText, inputImage, outputText]), MAX_PARTS, 1)]),
  ...sentBack,
});
const functionCall = z.strictObject({
  type: z.literal('function_call'),
  call_id: z.string(),
  name: z.string(),
  arguments: z.string(),
  ...sentBack,
});
const functionCallOutput = z.strictObject({
  type: z.literal('function_call_output'),
  call_id: z.string(),
  output: z.union([z.string(), list(inputText, MAX_PARTS, 1)]),
  ...sentBack,
});
const item = z.union([inputMessage, functionCall, functionCallOutput]);

const format = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('text') }),
  z.strictObject({ type: z.literal('json_object') }),
  z.strictObject({
    type: z.literal('json_schema'),
    name: z.string(),
    description: z.string().nullish(),
    schema: jsonSchema,
    strict: z.boolean().nullish(), // the schema always binds
  }),
]);

/** The body of a request. Exported for tests, which make wrong ones of it. */
export const responsesBody = z.strictObject({
  model: z.string(),
  input: z.union([z.string(), list(item, MAX_ITEMS, 1)]),
  instructions: z.string().nullish(),
  max_output_tokens: z.int().min(1).nullish(),
  stream: z.boolean().nullish(),
  text: z.strictObject({ format: format.optional() }).nullish(),
  tools: responseTools.nullish(),
  tool_choice: z
    .union([z.enum(['auto', 'none', 'required']), z.strictObject({ type: z.literal('function'), name: z.string() })])
    .nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  include: list(z.literal(LOGPROBS), 1).nullish(),
  top_logprobs: z.int().min(0).max(20).nullish(),
  truncation: z.literal('disabled').nullish(),
  background: z.literal(false).nullish(),
  previous_response_id: z.null('answers are not kept; send the conversation').optional(),
  metadata: z.record(z.string().max(64), z.string().max(512)).nullish(),
  ...sampling,
  ...bounds,
  ...pictures,
  ...harmless,
});

type Body = z.output<typeof responsesBody>;
type Item = z.output<typeof item>;

function wrong(param: string, message: string): HttpError {
  return new HttpError(400, 'invalid_value', `${param}: ${message}`, { param });
}

// Items to messages: calls belong to the assistant's message before them, instructions at the beginning are one message.
function messagesOf({ input, instructions }: Body, { limits }: ServerContext): Message[] {
  const system: string[] = instructions != null ? [instructions] : [];
  const messages: Message[] = [];
  const items: Item[] = typeof input === 'string' ? [{ role: 'user', content: input }] : input;
  items.forEach((each, i) => {
    const where = `input[${i}]`;
    if (each.type === 'function_call') {
      const call = { id: each.call_id, name: each.name, input: argumentsOf(each.arguments, `${where}.arguments`) };
      const last = messages.at(-1);
      const toolCalls: readonly ToolCall[] = last?.role === 'assistant' ? (last.toolCalls ?? []) : [];
      if (last?.role === 'assistant') messages.pop();
      const content = last?.role === 'assistant' ? last.content : '';
      messages.push({ role: 'assistant', content, toolCalls: [...toolCalls, call] });
    } else if (each.type === 'function_call_output') {
      const output = typeof each.output === 'string' ? each.output : each.output.map(({ text }) => text).join('');
      messages.push({ role: 'tool', toolCallId: each.call_id, content: resultOf(output) });
    } else {
      const { role, content } = each;
      const parts =
        typeof content === 'string'
          ? content
          : content.map((part, k): ContentPart => {
              if (part.type !== 'input_image') return { type: 'text', text: part.text };
              if (role !== 'user') throw wrong(`${where}.content[${k}]`, 'only a user shows pictures');
              const place = `${where}.content[${k}].image_url`;
              return { type: 'image', image: pictureOfUrl(part.image_url, place, limits) };
            });
      if (role === 'user' || role === 'assistant') {
        messages.push({ role, content: parts });
      } else {
        if (messages.length > 0) throw wrong(`${where}.role`, 'instructions stand at the beginning');
        system.push(typeof parts === 'string' ? parts : parts.map((part) => (part as { text: string }).text).join(''));
      }
    }
  });
  return [...(system.length > 0 ? [{ role: 'system' as const, content: system.join('\n\n') }] : []), ...messages];
}

function questionOf(body: Body, context: ServerContext): Question {
  const tools = toolsOf(body.tools ?? []);
  const { tool_choice: choice } = body;
  const hasTools = Object.keys(tools).length > 0;
  if (choice != null && choice !== 'none' && choice !== 'auto' && !hasTools) {
    throw wrong('tool_choice', 'expected tools beside it');
  }
  const withLogprobs = body.include?.includes(LOGPROBS) === true;
  if (body.top_logprobs != null && !withLogprobs)
    throw wrong('top_logprobs', `expected include: ['${LOGPROBS}'] beside it`);
  const { format: asked } = body.text ?? {};
  const options: GenerateOptions = {
    ...samplingOptions(body),
    ...given({
      maxOutputTokens: body.max_output_tokens,
      tools: hasTools ? tools : undefined,
      toolChoice: !hasTools
        ? undefined
        : typeof choice === 'object' && choice !== null
          ? { tool: choice.name }
          : choice,
    }),
    ...(withLogprobs && { logprobs: Math.max(1, body.top_logprobs ?? 0) }),
    ...(asked?.type === 'json_object' && { json: true }),
    ...(asked?.type === 'json_schema' && { schema: asked.schema }),
  };
  return { input: messagesOf(body, context), options, oneCall: body.parallel_tool_calls === false };
}

async function logprobsOf(job: Job, entries: readonly TokenLogprobs[], top: number) {
  const texts = await spelled(job.gemma, idsOf(entries), job.signal);
  const entry = ({ token, logprob }: { token: number; logprob: number }) => {
    const text = texts.get(token) ?? '';
    return { token: text, logprob: finite(logprob), bytes: text.includes('\ufffd') ? [] : [...Buffer.from(text)] };
  };
  return entries.map((each) => ({ ...entry(each), top_logprobs: each.top.slice(0, top).map(entry) }));
}

type Status = 'in_progress' | 'completed' | 'incomplete';

function messageItem(id: string, status: Status, text?: string, logprobs: readonly unknown[] = []) {
  const content = text === undefined ? [] : [textPart(text, logprobs)];
  return { id, type: 'message', status, role: 'assistant', content };
}

function textPart(text: string, logprobs: readonly unknown[] = []) {
  return { type: 'output_text', text, annotations: [], logprobs };
}

function callItem(id: string, status: Status, { id: callId, name, input }: ToolCall, args = JSON.stringify(input)) {
  return { id, type: 'function_call', status, call_id: callId, name, arguments: args };
}

function usageOf({ inputTokens, outputTokens, cachedInputTokens }: GenerateResult['usage']) {
  return {
    input_tokens: inputTokens,
    input_tokens_details: { cached_tokens: cachedInputTokens },
    output_tokens: outputTokens,
    output_tokens_details: { reasoning_tokens: 0 },
    total_tokens: inputTokens + outputTokens,
  };
}

/** The object that a response is, at each of its stages. */
class ResponseBody {
  readonly #head: object;
  readonly #tail: object;

  constructor({ model }: Job, body: Body) {
    this.#head = { id: newId('resp_'), object: 'response', created_at: now() };
    this.#tail = {
      instructions: body.instructions ?? null,
      max_output_tokens: body.max_output_tokens ?? null,
      metadata: body.metadata ?? {},
      model,
      parallel_tool_calls: body.parallel_tool_calls ?? true,
      previous_response_id: null,
      reasoning: { effort: null, summary: null },
      store: false,
      temperature: body.temperature ?? 1,
      text: { format: body.text?.format ?? { type: 'text' } },
      tool_choice: body.tool_choice ?? 'auto',
      tools: body.tools ?? [],
      top_p: body.top_p ?? 0.95,
      truncation: 'disabled',
      user: body.user ?? null,
    };
  }

  make(status: Status | 'failed', output: readonly object[], more: object = {}) {
    const rest = { error: null, incomplete_details: null, usage: null, ...more };
    return { ...this.#head, status, output, ...this.#tail, ...rest };
  }

  ended({ finishReason, usage }: GenerateResult, output: readonly object[]) {
    const isCut = finishReason === 'length';
    const more = { usage: usageOf(usage), ...(isCut && { incomplete_details: { reason: 'max_output_tokens' } }) };
    return this.make(isCut ? 'incomplete' : 'completed', output, more);
  }
}

async function whole(job: Job, body: Body, question: Question) {
  const response = new ResponseBody(job, body);
  const result = await answer(job, question);
  const status = result.finishReason === 'length' ? 'incomplete' : 'completed';
  const calls = (result.toolCalls ?? []).map((call) => callItem(newId('fc_'), 'completed', call));
  const logprobs = await logprobsOf(job, await textLogprobs(job.gemma, result, job.signal), body.top_logprobs ?? 0);
  const hasText = result.text !== '' || calls.length === 0;
  const output = [...(hasText ? [messageItem(newId('msg_'), status, result.text, logprobs)] : []), ...calls];
  return response.ended(result, output);
}

/** Events, each with its number. */
class Events {
  #n = 0;

  write(type: string, data: object): string {
    return event({ type, sequence_number: this.#n++, ...data }, type);
  }
}

async function* chunks(
  job: Job,
  body: Body,
  question: Question,
  events: Events,
  stallTimeoutMs: number,
): AsyncGenerator<string, void, undefined> {
  const response = new ResponseBody(job, body);
  const output: object[] = [];
  let open: { id: string; text: string; logprobs: unknown[] } | undefined; // the message that is being written
  let began = false;
  function* begin(): Generator<string> {
    if (began) return;
    began = true;
    yield events.write('response.created', { response: response.make('in_progress', []) });
    yield events.write('response.in_progress', { response: response.make('in_progress', []) });
  }
  function* openMessage(): Generator<string> {
    if (open) return;
    open = { id: newId('msg_'), text: '', logprobs: [] };
    const place = { output_index: output.length };
    yield events.write('response.output_item.added', { ...place, item: messageItem(open.id, 'in_progress') });
    const part = textPart('');
    yield events.write('response.content_part.added', { ...place, item_id: open.id, content_index: 0, part });
  }
  function* closeMessage(status: Status): Generator<string> {
    if (!open) return;
    const { id, text, logprobs } = open;
    const place = { item_id: id, output_index: output.length, content_index: 0 };
    yield events.write('response.output_text.done', { ...place, text, logprobs });
    yield events.write('response.content_part.done', { ...place, part: textPart(text, logprobs) });
    const done = messageItem(id, status, text, logprobs);
    yield events.write('response.output_item.done', { output_index: output.length, item: done });
    output.push(done);
    open = undefined;
  }
  function* writeCall(call: ToolCall): Generator<string> {
    const id = newId('fc_');
    const place = { item_id: id, output_index: output.length };
    const done = callItem(id, 'completed', call);
    const { arguments: args } = done;
    yield events.write('response.output_item.added', {
      output_index: output.length,
      item: callItem(id, 'in_progress', call, ''),
    });
    yield events.write('response.function_call_arguments.delta', { ...place, delta: args });
    yield events.write('response.function_call_arguments.done', { ...place, name: call.name, arguments: args });
    yield events.write('response.output_item.done', { output_index: output.length, item: done });
    output.push(done);
  }
  for await (const each of answerParts(job, question, stallTimeoutMs)) {
    yield* begin();
    if (each.kind === 'end') {
      const { result } = each;
      if (output.length === 0) yield* openMessage(); // an answer without a word is an answer
      yield* closeMessage(result.finishReason === 'length' ? 'incomplete' : 'completed');
      const ended = response.ended(result, output);
      yield events.write(`response.${ended.status}`, { response: ended });
    } else if (each.part.type === 'tool-call') {
      yield* closeMessage('completed');
      yield* writeCall(each.part);
    } else if (each.part.type === 'text') {
      yield* openMessage();
      if (!open) continue;
      const logprobs = await logprobsOf(job, each.part.logprobs ?? [], body.top_logprobs ?? 0);
      open.text += each.part.text;
      open.logprobs.push(...logprobs);
      const place = { item_id: open.id, output_index: output.length, content_index: 0 };
      yield events.write('response.output_text.delta', { ...place, delta: each.part.text, logprobs });
    }
  }
}

export async function responses(app: FastifyInstance, context: ServerContext): Promise<void> {
  const { limits } = context;
  const names = { maxOutputTokens: 'max_output_tokens', schema: 'text.format.schema', messages: 'input' };
  app.post('/v1/responses', { config: { names } }, async (request, reply) => {
    const body = parsed(responsesBody, request.body);
    const question = questionOf(body, context);
    return serve(context, request, reply, body.model, async (job) => {
      if (!body.stream) return whole(job, body, question);
      const events = new Events();
      const texts = chunks(job, body, question, events, limits.stallTimeoutMs);
      await stream(context, job, reply, 'text/event-stream; charset=utf-8', texts, (error) => {
        const { code, message, param } = openaiError(error, request);
        return events.write('error', { code, message, param: param ?? null });
      });
      return reply;
    });
  });
}
