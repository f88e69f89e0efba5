// The interface of Google's Gemini: generateContent, streamGenerateContent, countTokens, embedContent, batchEmbedContents, models.
import type { IncomingMessage } from 'node:http';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { EmbedOptions, GenerateOptions, GenerateResult } from 'gemma-native';
import { event, serve, stream, type Job, type ServerContext } from './context.js';
import { HttpError, sendable } from './errors.js';
import { parsed } from './fields.js';
import {
  batchEmbedBody,
  callQuery,
  countBody,
  embedBody,
  generateBody,
  listQuery,
  NAMES,
  type EmbedBody,
  type GenerateBody,
} from './gemini/fields.js';
import { answerOptions, messagesOf, toolOptions } from './gemini/request.js';
import { callPart, candidate, endOf, errorBody, usageMetadata } from './gemini/response.js';
import { interleaved, pooled } from './interleave.js';
import { factsOf } from './model-facts.js';
import type { ListedModel } from './models.js';
import { answer, answerParts, type Question } from './openai/answer.js';
import { newId, seedOf, totalUsage } from './openai/common.js';
import { vectorsText } from './vectors.js';

const JSON_TYPE = 'application/json; charset=utf-8';

/**
 * Google's clients ask under /v1beta or, newer ones, under /v1, where OpenAI's list of models has the same name: theirs are told by what they
 * alone send. Returns the path under /v1beta.
 */
export function geminiUrl({ method, url = '', headers }: IncomingMessage): string {
  const [, rest, query = ''] = /^\/v1(\/models(?:\/[^?]*)?)(\?.*)?$/s.exec(url) ?? [];
  if (rest === undefined) return url;
  const isGoogles =
    method === 'POST' || 'x-goog-api-client' in headers || 'x-goog-api-key' in headers || /[?&]key=/.test(query);
  return isGoogles ? `/v1beta${rest}${query}` : url;
}

const TASKS: Readonly<Record<string, EmbedOptions['task']>> = {
  RETRIEVAL_QUERY: 'query',
  RETRIEVAL_DOCUMENT: 'document',
  SEMANTIC_SIMILARITY: 'sentence-similarity',
  CLASSIFICATION: 'classification',
  CLUSTERING: 'clustering',
  QUESTION_ANSWERING: 'question-answering',
  FACT_VERIFICATION: 'fact-checking',
  CODE_RETRIEVAL_QUERY: 'code-retrieval',
};

function wrong(param: string, message: string): HttpError {
  return new HttpError(400, 'invalid_value', `${param}: ${message}`, { param });
}

/** The model of a body is that of the path. */
function checkModel(model: string | null | undefined, name: string): void {
  if (model == null || model.replace(/^models\//, '') === name) return;
  throw wrong('model', `expected the model of the path, found ${JSON.stringify(model.slice(0, 100))}`);
}

/** Questions, one for each candidate. Throws HttpError 400. */
function questionsOf(body: GenerateBody, maxChoices: number): Question[] {
  const config = body.generationConfig ?? {};
  const n = config.candidateCount ?? 1;
  if (n > maxChoices) throw wrong('generationConfig.candidateCount', `expected at most ${maxChoices}, found ${n}`);
  const options: GenerateOptions = { ...answerOptions(config), ...toolOptions(body) };
  const input = messagesOf(body);
  return Array.from({ length: n }, (_, i) => ({
    input,
    options: { ...options, ...seedOf(options.seed, i) },
    oneCall: false,
  }));
}

function partsOf({ text, toolCalls = [] }: GenerateResult): object[] {
  return [...(text !== '' || toolCalls.length === 0 ? [{ text }] : []), ...toolCalls.map(callPart)];
}

/** Wanted log-probabilities besides those of the answer's tokens. */
function topOf({ generationConfig }: GenerateBody): number | undefined {
  return generationConfig?.responseLogprobs ? (generationConfig.logprobs ?? 0) : undefined;
}

/** A streamed answer, as objects of the form of a whole one. */
async function* chunks(
  job: Job,
  body: GenerateBody,
  questions: readonly Question[],
  stallTimeoutMs: number,
): AsyncGenerator<object, void, undefined> {
  const head = { modelVersion: job.model, responseId: newId('') };
  const answers = questions.map((question, index) => answerParts(job, question, stallTimeoutMs, index));
  const results: GenerateResult[] = [];
  for await (const each of interleaved(answers)) {
    const { index } = each;
    if (each.kind === 'part') {
      const { part } = each;
      if (part.type === 'text') yield { candidates: [candidate(index, [{ text: part.text }])], ...head };
      if (part.type === 'tool-call') yield { candidates: [candidate(index, [callPart(part)])], ...head };
      continue;
    }
    results.push(each.result);
    const end = await endOf(job, each.result, topOf(body));
    const usage = usageMetadata(totalUsage(results));
    yield { candidates: [candidate(index, [{ text: '' }], end)], usageMetadata: usage, ...head };
  }
}

async function* events(objects: AsyncIterable<object>): AsyncGenerator<string, void, undefined> {
  for await (const each of objects) yield event(each);
}

/** An array whose elements come one by one. */
async function* elements(objects: AsyncIterable<object>): AsyncGenerator<string, void, undefined> {
  let before = '[';
  for await (const each of objects) {
    yield `${before}${JSON.stringify(each)}`;
    before = ',\r\n';
  }
  yield before === '[' ? '[]' : ']';
}

export async function gemini(app: FastifyInstance, context: ServerContext): Promise<void> {
  const { models, limits } = context;
  const errorOf = (error: unknown, request: FastifyRequest) => sendable(error, request.log, NAMES);

  app.addHook('onRoute', (route) => {
    route.config = { api: 'gemini', ...route.config };
  });
  app.setErrorHandler((error, request, reply) => {
    const found = errorOf(error, request);
    return reply.code(found.status).headers(found.headers).send(errorBody(found));
  });

  const find = (name: string): ListedModel => {
    const found = models.find(name);
    if (!found) throw models.notFound(name);
    return found;
  };

  const generateContent = async (name: string, request: FastifyRequest, reply: FastifyReply) => {
    const body = parsed(generateBody, request.body);
    checkModel(body.model, name);
    const questions = questionsOf(body, limits.maxChoices);
    return serve(context, request, reply, name, async (job) => {
      const results = await pooled(questions, questions.length, job.signal, (each, _, signal) =>
        answer({ ...job, signal }, each),
      );
      const candidates = results.map(async (result, i) =>
        candidate(i, partsOf(result), await endOf(job, result, topOf(body))),
      );
      return {
        candidates: await Promise.all(candidates),
        usageMetadata: usageMetadata(totalUsage(results)),
        modelVersion: job.model,
        responseId: newId(''),
      };
    });
  };

  const streamGenerateContent = async (name: string, request: FastifyRequest, reply: FastifyReply) => {
    const { alt } = parsed(callQuery, request.query);
    const body = parsed(generateBody, request.body);
    checkModel(body.model, name);
    const questions = questionsOf(body, limits.maxChoices);
    return serve(context, request, reply, name, async (job) => {
      const objects = chunks(job, body, questions, limits.stallTimeoutMs);
      const type = alt === 'sse' ? 'text/event-stream; charset=utf-8' : JSON_TYPE;
      const texts = alt === 'sse' ? events(objects) : elements(objects);
      const failed = (error: unknown) => {
        const told = errorBody(errorOf(error, request));
        return alt === 'sse' ? event(told) : `,\r\n${JSON.stringify(told)}]`;
      };
      await stream(context, job, reply, type, texts, failed);
      return reply;
    });
  };

  const countTokens = async (name: string, request: FastifyRequest, reply: FastifyReply) => {
    const { model, contents = [], generateContentRequest } = parsed(countBody, request.body);
    checkModel(model, name);
    checkModel(generateContentRequest?.model, name);
    const body: GenerateBody = generateContentRequest ?? { contents };
    const messages = messagesOf(body);
    const tools = toolOptions(body);
    return serve(context, request, reply, name, async ({ gemma, images, signal }) => {
      const totalTokens = await gemma.countTokens(messages, { ...tools, ...images, signal });
      return { totalTokens };
    });
  };

  /** Embeds for several requests, those with the same wishes together, and writes the vectors between two texts. */
  const embed = async (
    name: string,
    request: FastifyRequest,
    reply: FastifyReply,
    bodies: readonly EmbedBody[],
    before: string,
    after: string,
  ) => {
    const groups = new Map<
      string,
      { options: EmbedOptions; titles: (string | undefined)[]; texts: string[]; places: number[] }
    >();
    bodies.forEach(({ model, content, taskType, title, outputDimensionality }, i) => {
      checkModel(model, name);
      const task = taskType == null ? undefined : TASKS[taskType];
      if (title != null && task !== 'document')
        throw wrong('title', 'expected the taskType RETRIEVAL_DOCUMENT beside it');
      const options: EmbedOptions = {
        ...(task && { task }),
        ...(outputDimensionality != null && { dimensions: outputDimensionality }),
      };
      const key = JSON.stringify(options);
      const group = groups.get(key) ?? { options, titles: [], texts: [], places: [] };
      groups.set(key, group);
      group.texts.push(content.parts.map(({ text }) => text).join(''));
      group.titles.push(title ?? undefined);
      group.places.push(i);
    });
    return serve(context, request, reply, name, async (job) => {
      const rows: Float32Array[] = [];
      for (const { options, titles, texts, places } of groups.values()) {
        // 'none' is what the model was trained with where there is none.
        const hasTitles = titles.some((title) => title !== undefined);
        const title = hasTitles ? { title: titles.map((each) => each ?? 'none') } : {};
        const { data, shape, usage } = await job.gemma.embed(texts, { ...options, ...title, signal: job.signal });
        job.answered({ ...usage, outputTokens: 0, imageTokens: 0, cachedInputTokens: 0 });
        const [, width] = shape;
        places.forEach((place, i) => (rows[place] = data.subarray(i * width, (i + 1) * width)));
      }
      const text = vectorsText(rows, before, (numbers) => `{"values":${numbers}}`, after);
      await stream(context, job, reply, JSON_TYPE, text, () => '');
      return reply;
    });
  };

  const embedContent = (name: string, request: FastifyRequest, reply: FastifyReply) =>
    embed(name, request, reply, [parsed(embedBody, request.body)], '{"embedding":', '}');

  const batchBody = batchEmbedBody(limits.maxInputs);
  const batchEmbedContents = (name: string, request: FastifyRequest, reply: FastifyReply) =>
    embed(name, request, reply, parsed(batchBody, request.body).requests, '{"embeddings":[', ']}');

  const methods: Readonly<
    Record<string, (name: string, request: FastifyRequest, reply: FastifyReply) => Promise<unknown>>
  > = {
    generateContent,
    streamGenerateContent,
    countTokens,
    embedContent,
    batchEmbedContents,
  };

  // Names of models may have slashes and colons, as those of repositories do: the method stands behind the last colon.
  app.post<{ Params: { '*': string } }>('/v1beta/models/*', async (request, reply) => {
    const path = request.params['*'];
    const colon = path.lastIndexOf(':');
    const method = path.slice(colon + 1);
    if (colon < 0 || !Object.hasOwn(methods, method)) {
      throw new HttpError(
        404,
        'not_found',
        `expected models/MODEL:METHOD, with one of ${Object.keys(methods).join(', ')}`,
      );
    }
    if (method !== 'streamGenerateContent') {
      const { alt } = parsed(callQuery, request.query);
      if (alt === 'sse') throw wrong('alt', 'only streamGenerateContent answers in events');
    }
    return methods[method]?.(path.slice(0, colon), request, reply);
  });

  const modelBody = async (model: ListedModel) => {
    // A model whose files cannot be read now is there all the same.
    const facts = await factsOf(model).catch((error: unknown) => {
      app.log.warn({ err: error, model: model.name }, 'a model cannot be inspected');
      return undefined;
    });
    const contextSize = model.gemma?.info.contextSize ?? facts?.contextSize;
    return {
      name: `models/${model.name}`,
      baseModelId: model.name,
      version: '001',
      displayName: facts?.title || model.name,
      ...(contextSize !== undefined && { inputTokenLimit: contextSize, outputTokenLimit: contextSize }),
      supportedGenerationMethods: [
        ...(facts?.isEncoder ? [] : ['generateContent', 'streamGenerateContent']),
        'countTokens',
        'embedContent',
        'batchEmbedContents',
      ],
      ...(!facts?.isEncoder && { temperature: 1, topP: 0.95, topK: 64, maxTemperature: 2 }),
    };
  };

  const MAX_PAGE = 1000;
  app.get('/v1beta/models', async (request) => {
    const { pageSize, pageToken } = parsed(listQuery, request.query);
    const all = models.list();
    const from = Number(pageToken ?? 0);
    const to = from + Math.min(pageSize || MAX_PAGE, MAX_PAGE);
    return {
      models: await Promise.all(all.slice(from, to).map(modelBody)),
      ...(to < all.length && { nextPageToken: String(to) }),
    };
  });

  app.get<{ Params: { '*': string } }>('/v1beta/models/*', async (request) => {
    parsed(callQuery, request.query);
    return modelBody(find(request.params['*']));
  });

  app.all('/v1beta/*', async ({ method, url }) => {
    throw new HttpError(404, 'not_found', `${method} ${url.split('?', 1)[0]?.slice(0, 200)}: there is no such path`);
  });
}
