// The interface of OpenAI.
import type { FastifyInstance } from 'fastify';
import type { ServerContext } from './context.js';
import { sendable } from './errors.js';

export async function openai(app: FastifyInstance, context: ServerContext): Promise<void> {
  app.addHook('onRoute', (route) => {
    route.config = { api: 'openai', ...route.config };
  });
  app.setErrorHandler((error, request, reply) => {
    const { status, code, message, param, headers } = sendable(error, request.log);
    const type = status >= 500 ? 'server_error' : 'invalid_request_error';
    return reply
      .code(status)
      .headers(headers)
      .send({ error: { message, type, param: param ?? null, code } });
  });
  app.get('/v1/models', async () => ({
    object: 'list',
    data: context.models.list().map(({ name, created }) => ({
      id: name,
      object: 'model',
      created: Math.floor(created / 1000),
      owned_by: 'gemma-native',
    })),
  }));
}
