// The interface of Ollama: chat, generate, embed, and what tells of models. Answers are streamed as lines of JSON unless a request says
// otherwise. Models are those of the server's configuration: nothing is pulled, created or deleted.
import type { IncomingMessage } from 'node:http';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type {
  EmbedOptions,
  GenerateOptions,
  GenerateResult,
  Input,
  Timings,
  TokenLogprobs,
  ToolCall,
  Usage,
} from 'gemma-native';
import { parseJson, readBody } from './body.js';
import { serve, stream, type Job, type ServerContext } from './context.js';
import { HttpError, sendable } from './errors.js';
import { parsed } from './fields.js';
import { factsOf, type ModelFacts } from './model-facts.js';
import type { ListedModel } from './models.js';
import {
  answerOptions,
  chatBody,
  embedBody,
  embeddingsBody,
  generateBody,
  NAMES,
  showBody,
  type AnswerBody,
} from './ollama/fields.js';
import { messagesOf, picturesOf } from './ollama/messages.js';
import { answer, answerParts, type Question } from './openai/answer.js';
import { finite, idsOf, spelled, textLogprobs, toolsOf } from './openai/common.js';
import { rowsOf, vectorsText } from './vectors.js';

/** Which of Ollama's versions this interface is like: clients ask it whether it knows what they use. */
const OLLAMA_VERSION = '0.12.11';

const NANOSECONDS = 1e6; // in a millisecond

const JSON_TYPE = 'application/json; charset=utf-8';

const nanoseconds = (ms: number) => Math.round(ms * NANOSECONDS);

/** Names without a tag mean this one. */
const LATEST = ':latest';

/** What a path does with what the model says. */
interface Form {
  /** a piece of an answer */
  text(text: string): object;
  /** calls of tools */
  calls(calls: readonly ToolCall[]): object;
}

const CHAT: Form = {
  text: (content) => ({ message: { role: 'assistant', content } }),
  calls: (calls) => ({
    message: {
      role: 'assistant',
      content: '',
      tool_calls: calls.map(({ id, name, input }, index) => ({ id, function: { index, name, arguments: input } })),
    },
  }),
};

const GENERATE: Form = { text: (response) => ({ response }), calls: () => ({}) };

/** The numbers at the end of an answer. */
function measures(request: FastifyRequest, loadMs: number, usage: Usage, timings: Timings) {
  return {
    total_duration: nanoseconds(performance.now() - request.begun),
    load_duration: nanoseconds(loadMs),
    prompt_eval_count: usage.inputTokens,
    prompt_eval_duration: nanoseconds(timings.prefillMs),
    eval_count: usage.outputTokens,
    eval_duration: nanoseconds(timings.decodeMs),
  };
}

const reasonOf = ({ finishReason }: GenerateResult) => (finishReason === 'length' ? 'length' : 'stop');

async function logprobsOf({ gemma, signal }: Job, entries: readonly TokenLogprobs[], top: number) {
  const texts = await spelled(gemma, idsOf(entries), signal);
  const entry = ({ token, logprob }: { token: number; logprob: number }) => {
    const text = texts.get(token) ?? '';
    return { token: text, logprob: finite(logprob), bytes: [...Buffer.from(text)] };
  };
  return entries.map((each) => ({
    ...entry(each),
    ...(top > 0 && { top_logprobs: each.top.slice(0, top).map(entry) }),
  }));
}

/** No more room than `num_ctx` says: an answer ends there, and a prompt that is longer is an error. */
async function withinContext(
  job: Job,
  { input, options, oneCall }: Question,
  numCtx: number | undefined,
): Promise<Question> {
  if (numCtx === undefined) return { input, options, oneCall };
  const wrong = (message: string) =>
    new HttpError(400, 'context_length_exceeded', `options.num_ctx: ${message}`, { param: 'options.num_ctx' });
  const { contextSize } = job.gemma.info;
  if (numCtx > contextSize) throw wrong(`this server's model has ${contextSize} positions, found ${numCtx}`);
  const { tools, toolChoice, images, raw } = options;
  const counted = { ...job.images, signal: job.signal };
  const nPrompt = await job.gemma.countTokens(input, {
    ...counted,
    ...(tools && { tools }),
    ...(toolChoice !== undefined && { toolChoice }),
    ...(images && { images }),
    ...(raw !== undefined && { raw }),
  });
  if (nPrompt >= numCtx)
    throw wrong(`the prompt of ${nPrompt} tokens leaves no room for an answer in ${numCtx} positions`);
  const maxOutputTokens = Math.min(options.maxOutputTokens ?? Infinity, numCtx - nPrompt);
  return { input, options: { ...options, maxOutputTokens }, oneCall };
}

export async function ollama(app: FastifyInstance, context: ServerContext): Promise<void> {
  const { models, limits } = context;
  const errorOf = (error: unknown, request: FastifyRequest) => sendable(error, request.log, NAMES);

  app.addHook('onRoute', (route) => {
    route.config = { api: 'ollama', ...route.config };
  });
  app.setErrorHandler((error, request, reply) => {
    const { status, message, headers } = errorOf(error, request);
    return reply.code(status).headers(headers).send({ error: message });
  });
  // `curl -d` names a form, and fetch() plain text, where nobody says what it is: Ollama takes JSON of all. Pages of other origins cannot use
  // that: their requests name their origin.
  app.addContentTypeParser(
    ['application/x-www-form-urlencoded', 'text/plain'],
    async (request: FastifyRequest, payload: IncomingMessage) =>
      parseJson(await readBody(request, payload, app.initialConfig.bodyLimit ?? 0)),
  );

  const find = (name: string): ListedModel => {
    const found = models.find(name) ?? (name.endsWith(LATEST) ? models.find(name.slice(0, -LATEST.length)) : undefined);
    if (!found) throw models.notFound(name);
    return found;
  };

  /** Has an answer computed and sends it in a path's form. */
  const respond = async (
    request: FastifyRequest,
    reply: FastifyReply,
    body: AnswerBody,
    form: Form,
    input: Input | undefined,
    own: GenerateOptions,
  ): Promise<unknown> => {
    const { name } = find(body.model);
    const head = () => ({ model: body.model, created_at: new Date().toISOString() });
    const { keep_alive: keepAliveMs } = body;
    const top = body.top_logprobs ?? 0;
    if (input === undefined) {
      // Nothing is asked: the model is loaded, or with keep_alive 0 unloaded.
      if (keepAliveMs === 0) await models.unload(name);
      else
        await serve(
          context,
          request,
          reply,
          name,
          async (job) => void (keepAliveMs != null && job.keepAlive(keepAliveMs)),
        );
      return { ...head(), ...form.text(''), done: true, done_reason: keepAliveMs === 0 ? 'unload' : 'load' };
    }
    const asked = { input, options: { ...answerOptions(body), ...own }, oneCall: false };
    return serve(context, request, reply, name, async (job) => {
      const loadMs = performance.now() - request.begun;
      if (keepAliveMs != null) job.keepAlive(keepAliveMs);
      const question = await withinContext(job, asked, body.options?.num_ctx);
      if (body.stream === false) {
        const result = await answer(job, question);
        const { text, toolCalls = [], usage, timings } = result;
        const entries = body.logprobs ? await textLogprobs(job.gemma, result, job.signal) : undefined;
        const calls = toolCalls.length > 0 ? (form.calls(toolCalls) as { message?: object }) : {};
        const said = form.text(text) as { message?: object };
        return {
          ...head(),
          ...said,
          ...(calls.message && { message: { ...calls.message, ...said.message } }),
          ...(entries && { logprobs: await logprobsOf(job, entries, top) }),
          done: true,
          done_reason: reasonOf(result),
          ...measures(request, loadMs, usage, timings),
        };
      }
      const lines = async function* () {
        for await (const event of answerParts(job, question, limits.stallTimeoutMs)) {
          if (event.kind === 'part') {
            const { part } = event;
            if (part.type !== 'text' && part.type !== 'tool-call') continue; // its text came before it
            const said = part.type === 'text' ? form.text(part.text) : form.calls([part]);
            const entries = body.logprobs && part.logprobs ? await logprobsOf(job, part.logprobs, top) : undefined;
            yield `${JSON.stringify({ ...head(), ...said, ...(entries && { logprobs: entries }), done: false })}\n`;
          } else {
            const { usage, timings } = event.result;
            const end = {
              done: true,
              done_reason: reasonOf(event.result),
              ...measures(request, loadMs, usage, timings),
            };
            yield `${JSON.stringify({ ...head(), ...form.text(''), ...end })}\n`;
          }
        }
      };
      const failed = (error: unknown) => `${JSON.stringify({ error: errorOf(error, request).message })}\n`;
      await stream(context, job, reply, 'application/x-ndjson', lines(), failed);
      return reply;
    });
  };

  app.post('/api/chat', async (request, reply) => {
    const body = parsed(chatBody, request.body);
    const tools = toolsOf((body.tools ?? []).map((tool) => tool.function));
    const messages = messagesOf(body.messages ?? []);
    const own = Object.keys(tools).length > 0 ? { tools } : {};
    return respond(request, reply, body, CHAT, messages.length > 0 ? messages : undefined, own);
  });

  app.post('/api/generate', async (request, reply) => {
    const body = parsed(generateBody, request.body);
    const { system, raw } = body;
    const prompt = body.prompt ?? '';
    const images = picturesOf(body.images, 'images');
    if (raw && system) {
      throw new HttpError(400, 'invalid_value', 'system: raw text has no system message', { param: 'system' });
    }
    const isNothing = prompt === '' && images.length === 0 && !system;
    const parts = [
      ...images.map((image) => ({ type: 'image' as const, image })),
      { type: 'text' as const, text: prompt },
    ];
    const input = isNothing
      ? undefined
      : system
        ? [
            { role: 'system' as const, content: system },
            { role: 'user' as const, content: parts },
          ]
        : prompt;
    const own: GenerateOptions = {
      ...(raw && { raw }),
      ...(!system && images.length > 0 && { images }),
    };
    return respond(request, reply, body, GENERATE, input, own);
  });

  /** Embeds texts and writes the answer, whose vectors stand between two texts. */
  const embed = (
    request: FastifyRequest,
    reply: FastifyReply,
    { model, keepAliveMs, texts }: { model: string; keepAliveMs: number | null | undefined; texts: readonly string[] },
    options: EmbedOptions,
    before: string,
    after: (loadMs: number, inputTokens: number) => string,
  ) =>
    serve(context, request, reply, find(model).name, async (job) => {
      const loadMs = performance.now() - request.begun;
      if (keepAliveMs != null) job.keepAlive(keepAliveMs);
      const nothing = { data: new Float32Array(), shape: [0, 0] as [number, number], usage: { inputTokens: 0 } };
      const found = texts.length > 0 ? await job.gemma.embed(texts, { ...options, signal: job.signal }) : nothing;
      const { inputTokens } = found.usage;
      job.answered({ inputTokens, outputTokens: 0, imageTokens: 0, cachedInputTokens: 0 });
      const text = vectorsText(rowsOf(found), before, (numbers) => numbers, after(loadMs, inputTokens));
      await stream(context, job, reply, JSON_TYPE, text, () => '');
      return reply;
    });

  const embedRequest = embedBody(limits.maxInputs);
  app.post('/api/embed', async (request, reply) => {
    const { model, input, truncate, dimensions, keep_alive: keepAliveMs } = parsed(embedRequest, request.body);
    const texts = typeof input === 'string' ? [input] : input;
    const options = { truncate: truncate ?? true, ...(dimensions != null && { dimensions }) };
    const before = `{"model":${JSON.stringify(model)},"embeddings":[`;
    return embed(request, reply, { model, keepAliveMs, texts }, options, before, (loadMs, inputTokens) => {
      const measured = {
        total_duration: nanoseconds(performance.now() - request.begun),
        load_duration: nanoseconds(loadMs),
        prompt_eval_count: inputTokens,
      };
      return `],${JSON.stringify(measured).slice(1)}`;
    });
  });

  // The older path, whose embeddings have the length that the model gives them.
  app.post('/api/embeddings', async (request, reply) => {
    const { model, prompt, keep_alive: keepAliveMs } = parsed(embeddingsBody, request.body);
    const asked = { model, keepAliveMs, texts: [prompt] };
    return embed(request, reply, asked, { truncate: true, normalize: false }, '{"embedding":', () => '}');
  });

  const detailsOf = (facts: ModelFacts | undefined) => ({
    parent_model: '',
    format: 'gguf',
    family: facts?.architecture ?? '',
    families: facts ? [facts.architecture] : [],
    parameter_size: facts && facts.parameters > 0 ? sizeOf(facts.parameters) : '',
    quantization_level: facts?.quantization.toUpperCase() ?? '',
  });
  const listed = async (model: ListedModel) => {
    // A model whose files cannot be read now is there all the same.
    const facts = await factsOf(model).catch((error: unknown) => {
      app.log.warn({ err: error, model: model.name }, 'a model cannot be inspected');
      return undefined;
    });
    return {
      name: model.name,
      model: model.name,
      modified_at: new Date(model.created).toISOString(),
      size: facts?.fileBytes ?? 0,
      digest: facts?.digest ?? '',
      details: detailsOf(facts),
    };
  };

  app.get('/api/tags', async () => ({ models: await Promise.all(models.list().map(listed)) }));

  app.get('/api/ps', async () => {
    const loaded = models.list().filter(({ state }) => state === 'loaded');
    const entries = loaded.map(async (model) => {
      const { name, digest, details } = await listed(model);
      const { bytes, expiresAt, gemma } = model;
      return {
        name,
        model: name,
        digest,
        details,
        size: bytes,
        // One that is not unloaded by time has Go's way of saying never: far away.
        expires_at: expiresAt === undefined ? NEVER : new Date(expiresAt).toISOString(),
        size_vram: 0,
        context_length: gemma?.info.contextSize ?? 0,
      };
    });
    return { models: await Promise.all(entries) };
  });

  app.post('/api/show', async (request) => {
    const model = find(parsed(showBody, request.body).model);
    const facts = await factsOf(model);
    const { architecture, contextSize, embeddingDim, parameters, title, isEncoder, hasTools, hasVision } = facts;
    return {
      license: '',
      modelfile: '',
      parameters: '',
      template: '',
      system: '',
      details: detailsOf(facts),
      model_info: {
        'general.architecture': architecture,
        'general.basename': title,
        'general.parameter_count': parameters,
        [`${architecture}.context_length`]: contextSize,
        [`${architecture}.embedding_length`]: embeddingDim,
      },
      capabilities: [
        ...(isEncoder ? ['embedding'] : ['completion']),
        ...(hasTools ? ['tools'] : []),
        ...(hasVision ? ['vision'] : []),
      ],
      modified_at: new Date(model.created).toISOString(),
    };
  });

  app.get('/api/version', async () => ({ version: OLLAMA_VERSION }));

  app.all('/api/*', async ({ method, url }) => {
    const path = url.split('?', 1)[0]?.slice(0, 200);
    throw new HttpError(
      404,
      'not_found',
      `${method} ${path}: there is no such path; models are set up where the server is configured`,
    );
  });
}

const NEVER = '2318-01-01T00:00:00.000Z';

/** `'268.10M'`, `'4.30B'` */
function sizeOf(parameters: number): string {
  return parameters >= 1e9 ? `${(parameters / 1e9).toFixed(2)}B` : `${(parameters / 1e6).toFixed(2)}M`;
}
