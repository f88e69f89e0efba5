// A server: its options, and what all interfaces have in common. Each interface is a plugin of its own (openai.ts).
import { randomUUID } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import fastify, { LogController, type FastifyBaseLogger, type FastifyInstance } from 'fastify';
import { Access, isLoopback } from './access.js';
import { Admission } from './admission.js';
import { parseJson, readBody } from './body.js';
import type { Limits, ServerContext } from './context.js';
import { HttpError, sendable } from './errors.js';
import { gemini, geminiUrl } from './gemini.js';
import { Metrics } from './metrics.js';
import { ModelRegistry, type ModelEvent, type ModelSpec } from './models.js';
import { ollama } from './ollama.js';
import { openai } from './openai.js';
import { page } from './page.js';

export interface ServerOptions {
  /** what is served */
  models: readonly ModelSpec[];
  /** keys, one of which each request must have. Without one the server listens to this machine alone. */
  apiKeys?: readonly string[];
  /** names under which a server without keys answers besides `localhost` and its addresses; `'*'`: any. Default none. */
  allowedHosts?: readonly string[];
  /** origins whose pages may ask from a browser; `'*'`: any. Default none. */
  corsOrigins?: readonly string[];
  /** memory that loaded models may take together by their plans. Default: four fifths of this machine's. */
  maxMemoryBytes?: number;
  /** A model that nobody has used for so long is unloaded, in milliseconds. Default Infinity. */
  keepAliveMs?: number;
  /** requests that are computed at the same time. Default 32. */
  maxConcurrent?: number;
  /** requests that wait for their turn; one more is 429. Default 256. */
  maxQueue?: number;
  /** how long a request may wait for its turn (503), in milliseconds; 0: any time. Default 60000. */
  queueTimeoutMs?: number;
  /** how long a request may take in all (504), in milliseconds; 0: any time. Default 600000. */
  requestTimeoutMs?: number;
  /** how long a stream's reader may take nothing before it loses its connection, in milliseconds; 0: any time. Default 60000. */
  stallTimeoutMs?: number;
  /** how long `close` waits for answers under way before it ends them, in milliseconds. Default 30000. */
  shutdownTimeoutMs?: number;
  /** bytes of a request's body (413). Default 32 MiB. */
  maxBodyBytes?: number;
  /** how long headers may take to come, in milliseconds. Default 10000. */
  headersTimeoutMs?: number;
  /** how long a request may take to come, body included (408), in milliseconds. Default 60000. */
  bodyTimeoutMs?: number;
  /** connections at most; more are closed at once. Default 4096. */
  maxConnections?: number;
  /** answers that one request may ask for (`n`). Default 8. */
  maxChoices?: number;
  /** texts that one request may have completed or embedded. Default 2048. */
  maxInputs?: number;
  /** Fetch pictures from http(s) URLs of clients: from public addresses (true), or from this machine's network too. Default false. */
  remoteImages?: boolean | 'private';
  /** bytes of a picture's file. Default 20 MiB. */
  maxImageBytes?: number;
  /** pixels of a picture. Default 50 million. */
  maxImagePixels?: number;
  /** how long fetching a picture may take, in milliseconds. Default 10000. */
  remoteTimeoutMs?: number;
  /** where logs go: a logger with pino's methods. Default: none. */
  logger?: FastifyBaseLogger;
}

export interface Server {
  /** the Fastify instance: for plugins and routes of your own before `listen`, and for `inject` in tests */
  readonly app: FastifyInstance;
  readonly context: ServerContext;
  /**
   * Loads the pinned models and begins to listen. Resolves with the URL.
   *
   * @throws TypeError for an address that others can reach, without an API key
   */
  listen(options?: { host?: string; port?: number }): Promise<string>;
  /** Refuses new requests (503), lets answers under way finish, then ends. Any number of calls. */
  close(): Promise<void>;
}

const MAX_HEADER_BYTES = 16 << 10;

function limitsOf(options: ServerOptions): Limits {
  return {
    requestTimeoutMs: options.requestTimeoutMs ?? 600_000,
    stallTimeoutMs: options.stallTimeoutMs ?? 60_000,
    maxChoices: options.maxChoices ?? 8,
    maxInputs: options.maxInputs ?? 2048,
    remoteImages: options.remoteImages ?? false,
    maxImageBytes: options.maxImageBytes ?? 20 << 20,
    maxImagePixels: options.maxImagePixels ?? 50e6,
    remoteTimeoutMs: options.remoteTimeoutMs ?? 10_000,
  };
}

function makeApp(options: ServerOptions): FastifyInstance {
  const { logger, headersTimeoutMs = 10_000, bodyTimeoutMs = 60_000, maxBodyBytes = 32 << 20 } = options;
  const app = fastify({
    ...(logger && { loggerInstance: logger }),
    bodyLimit: maxBodyBytes,
    requestTimeout: bodyTimeoutMs,
    keepAliveTimeout: 30_000,
    http: {
      maxHeaderSize: MAX_HEADER_BYTES,
      headersTimeout: headersTimeoutMs,
      connectionsCheckingInterval: 1000, // how late Node may notice that one of these times is over
    },
    forceCloseConnections: 'idle',
    genReqId: () => randomUUID(),
    rewriteUrl: geminiUrl,
    logController: new LogController({ disableRequestLogging: true }), // it would log URLs with their queries
    routerOptions: { maxParamLength: 300 },
    // What Node's parser refuses never becomes a request.
    clientErrorHandler(error, socket) {
      if (socket.destroyed || !socket.writable) return;
      const [status, reason] =
        error.code === 'HPE_HEADER_OVERFLOW'
          ? [431, 'Request Header Fields Too Large']
          : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
            ? [408, 'Request Timeout']
            : [400, 'Bad Request'];
      socket.end(`HTTP/1.1 ${status} ${reason}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n`);
    },
  });
  app.server.maxConnections = options.maxConnections ?? 4096;
  app.removeAllContentTypeParsers();
  app.addContentTypeParser(
    'application/json',
    async (request: Parameters<typeof readBody>[0], payload: Parameters<typeof readBody>[1]) =>
      parseJson(await readBody(request, payload, maxBodyBytes)),
  );
  return app;
}

/**
 * Makes a server; `listen` starts it.
 *
 * @throws TypeError for wrong options
 */
export async function createServer(options: ServerOptions): Promise<Server> {
  const app = makeApp(options);
  const { log } = app;
  const onEvent = (event: ModelEvent) => {
    if (event.kind === 'failed') log.error({ model: event.name, err: event.error }, 'a model could not be loaded');
    else log.info({ model: event.name, ...event }, `model ${event.kind}`);
  };
  const { maxMemoryBytes, keepAliveMs } = options;
  const models = new ModelRegistry(options.models, {
    onEvent,
    ...(maxMemoryBytes !== undefined && { maxMemoryBytes }),
    ...(keepAliveMs !== undefined && { keepAliveMs }),
  });
  const { maxConcurrent = 32, maxQueue = 256, queueTimeoutMs = 60_000 } = options;
  const admission = new Admission({ maxConcurrent, maxQueue, queueTimeoutMs });
  const { apiKeys = [], allowedHosts = [], corsOrigins = [] } = options;
  const access = new Access({ apiKeys, allowedHosts, corsOrigins });
  const metrics = new Metrics(models, admission);
  const ending = new AbortController();
  setMaxListeners(0, ending.signal); // each request under way listens
  const context: ServerContext = { models, admission, metrics, limits: limitsOf(options), log, ending: ending.signal };
  let started = false;

  app.decorateRequest('client', '');
  app.decorateRequest('begun', 0);
  app.addHook('onRequest', async (request, reply) => {
    request.begun = performance.now();
    void reply.header('x-request-id', request.id);
    access.checkHost(request);
    access.checkOrigin(request, reply);
    if (request.method === 'OPTIONS') return access.preflight(request, reply);
    if (request.routeOptions.config.open) return undefined;
    request.client = access.client(request);
    if (admission.closed) {
      throw new HttpError(503, 'shutting_down', 'the server is shutting down', { headers: { 'retry-after': '5' } });
    }
    return undefined;
  });
  app.addHook('onResponse', async (request, reply) => {
    const { method, url, routeOptions, client } = request;
    const seconds = (performance.now() - request.begun) / 1000;
    metrics.request(routeOptions.config.api ?? 'server', reply.statusCode, seconds);
    // No query: it may hold a key.
    log.info(
      { id: request.id, client, method, path: url.split('?', 1)[0], status: reply.statusCode, seconds },
      'request',
    );
  });

  // What no interface has: its errors have a form of their own.
  app.setErrorHandler((error, request, reply) => {
    const { status, code, message, headers } = sendable(error, request.log);
    return reply.code(status).headers(headers).send({ error: { code, message } });
  });
  app.setNotFoundHandler((request) => {
    throw new HttpError(
      404,
      'not_found',
      `${request.method} ${request.url.split('?', 1)[0]?.slice(0, 200)}: there is no such path`,
    );
  });

  app.get('/health', { config: { open: true } }, async () => ({ status: 'ok' }));
  app.get('/ready', { config: { open: true } }, async (_, reply) => {
    const ready = started && !admission.closed;
    return reply.code(ready ? 200 : 503).send({ status: ready ? 'ready' : admission.closed ? 'closing' : 'starting' });
  });
  app.get('/metrics', async (_, reply) =>
    reply.type(metrics.registry.contentType).send(await metrics.registry.metrics()),
  );

  for (const api of [openai, gemini, ollama, page]) await app.register((scope: FastifyInstance) => api(scope, context));

  let closing: Promise<void> | undefined;
  const close = async () => {
    const { shutdownTimeoutMs = 30_000 } = options;
    const clock = setTimeout(() => ending.abort(), shutdownTimeoutMs).unref();
    await admission.close();
    clearTimeout(clock);
    await app.close();
    await models.close();
  };
  return {
    app,
    context,
    async listen({ host = '127.0.0.1', port = 8080 } = {}) {
      if (!isLoopback(host) && apiKeys.length === 0) {
        throw new TypeError(`host: ${host} can be reached by others; give an API key, or listen on 127.0.0.1`);
      }
      await models.start();
      const url = await app.listen({ host, port });
      started = true;
      return url;
    },
    close: () => (closing ??= close()),
  };
}
