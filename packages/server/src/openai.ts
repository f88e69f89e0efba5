// The interface of OpenAI: chat completions, completions, responses, embeddings, models. Each path is described by a strict schema; the
// guide lists what is accepted.
import type { FastifyInstance } from 'fastify';
import type { ServerContext } from './context.js';
import { HttpError } from './errors.js';
import type { ListedModel } from './models.js';
import { chat } from './openai/chat.js';
import { completions } from './openai/completions.js';
import { embeddings } from './openai/embeddings.js';
import { errorBody, openaiError } from './openai/errors.js';
import { responses } from './openai/responses.js';

declare module 'fastify' {
  interface FastifyContextConfig {
    /** gemma-native's options under the names of the path, for errors */
    names?: Readonly<Record<string, string>>;
  }
}

function modelBody({ name, created }: ListedModel) {
  return { id: name, object: 'model', created: Math.floor(created / 1000), owned_by: 'gemma-native' };
}

export async function openai(app: FastifyInstance, context: ServerContext): Promise<void> {
  app.addHook('onRoute', (route) => {
    route.config = { api: 'openai', ...route.config };
  });
  app.setErrorHandler((error, request, reply) => {
    const found = openaiError(error, request);
    return reply.code(found.status).headers(found.headers).send(errorBody(found));
  });
  await chat(app, context);
  await completions(app, context);
  await responses(app, context);
  await embeddings(app, context);
  app.get('/v1/models', async () => ({ object: 'list', data: context.models.list().map(modelBody) }));
  // Names may have slashes, as those of repositories do.
  app.get<{ Params: { '*': string } }>('/v1/models/*', async ({ params }) => {
    const name = params['*'];
    const found = context.models.find(name);
    if (!found) throw context.models.notFound(name);
    return modelBody(found);
  });
  app.all('/v1/*', async ({ method, url }) => {
    throw new HttpError(404, 'not_found', `${method} ${url.split('?', 1)[0]?.slice(0, 200)}: there is no such path`);
  });
}
