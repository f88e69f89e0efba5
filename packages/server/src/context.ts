// What every interface gets, and the way of a request through the server: a place among those that are computed, the model, the work,
// and everything given back at its end, however it ends.
import { setMaxListeners } from 'node:events';
import type { FastifyBaseLogger, FastifyReply, FastifyRequest } from 'fastify';
import type { Gemma, GenerateResult, ImageOptions } from 'gemma-native';
import type { Admission } from './admission.js';
import { imageOptions, type PictureLimits } from './content.js';
import { ClientGone, HttpError } from './errors.js';
import type { Metrics } from './metrics.js';
import type { ModelRegistry } from './models.js';
import { traced } from './telemetry.js';

/** The limits of requests, defaults filled in. */
export interface Limits extends PictureLimits {
  /** how long a request may take in all, in milliseconds; 0: any time */
  requestTimeoutMs: number;
  /** how long a stream's reader may take nothing, in milliseconds; 0: any time */
  stallTimeoutMs: number;
  /** answers that one request may ask for */
  maxChoices: number;
  /** texts that one request may have completed, or embedded */
  maxInputs: number;
}

export interface ServerContext {
  readonly models: ModelRegistry;
  readonly admission: Admission;
  readonly metrics: Metrics;
  readonly limits: Limits;
  readonly log: FastifyBaseLogger;
  /** aborted when the server has waited long enough for the last answers at its end */
  readonly ending: AbortSignal;
}

/** A request that is being computed. */
export interface Job {
  readonly gemma: Gemma;
  /** the model's own name, also where the request had an alias */
  readonly model: string;
  /** aborted when the client leaves, the request takes too long or the server ends. For every call of gemma-native. */
  readonly signal: AbortSignal;
  /** for every call that takes pictures of the client */
  readonly images: ImageOptions;
  /** The first token came; only the first call counts. */
  firstToken(): void;
  /** Counts the tokens of an answer, or of what was read alone. */
  answered(usage: GenerateResult['usage']): void;
  /** Keeps the model loaded for so long when it is not used any more, instead of the server's `keepAliveMs`. */
  keepAlive(ms: number): void;
}

declare module 'fastify' {
  interface FastifyRequest {
    /** whose request it is: the number of its API key, or its address */
    client: string;
    /** when it came, of `performance.now()` */
    begun: number;
  }
  interface FastifyContextConfig {
    /** the interface, for metrics */
    api?: string;
    /** without an API key, as `/health` */
    open?: boolean;
  }
}

/**
 * Has a request computed. The work does all that needs the model, streaming included; when it ends the request's place and the model
 * are given back. While the client is there, what the work throws is for the interface's error handler.
 */
export async function serve<T>(
  context: ServerContext,
  request: FastifyRequest,
  reply: FastifyReply,
  model: string,
  work: (job: Job) => Promise<T>,
): Promise<T> {
  const { models, admission, metrics, limits, ending } = context;
  if (!models.find(model)) throw models.notFound(model);
  const controller = new AbortController();
  setMaxListeners(0, controller.signal); // each of the calls for a request listens
  const onClose = () => {
    if (!reply.raw.writableFinished) controller.abort(new ClientGone());
  };
  const onEnding = () => controller.abort(new HttpError(503, 'shutting_down', 'the server is shutting down'));
  const { requestTimeoutMs } = limits;
  const onDeadline = () =>
    controller.abort(new HttpError(504, 'timeout', `the request took more than ${requestTimeoutMs} ms`));
  const clock = requestTimeoutMs > 0 ? setTimeout(onDeadline, requestTimeoutMs).unref() : undefined;
  reply.raw.on('close', onClose);
  ending.addEventListener('abort', onEnding);
  try {
    if (reply.raw.destroyed) throw new ClientGone();
    if (ending.aborted) onEnding();
    const slot = await admission.enter(request.client, controller.signal);
    metrics.queued(slot.waitedMs / 1000);
    try {
      const lease = await models.acquire(model, controller.signal);
      let keepAliveMs: number | undefined;
      let begun = false;
      try {
        return await traced(request.routeOptions.url ?? 'request', lease.name, (trace) =>
          work({
            gemma: lease.gemma,
            model: lease.name,
            signal: controller.signal,
            images: imageOptions(limits),
            firstToken: () => {
              if (begun) return;
              begun = true;
              metrics.firstToken(lease.name, (performance.now() - request.begun) / 1000);
            },
            answered: (usage) => {
              metrics.tokens(lease.name, usage);
              trace.set({
                'gen_ai.usage.input_tokens': usage.inputTokens,
                'gen_ai.usage.output_tokens': usage.outputTokens,
              });
            },
            keepAlive: (ms) => {
              keepAliveMs = ms;
            },
          }),
        );
      } finally {
        lease.release(keepAliveMs);
      }
    } finally {
      slot.release();
    }
  } finally {
    clearTimeout(clock);
    reply.raw.off('close', onClose);
    ending.removeEventListener('abort', onEnding);
  }
}

// Waits until what was written has left; false where the client left, or took nothing for too long.
function drained({ raw }: FastifyReply, stallTimeoutMs: number, signal: AbortSignal): Promise<boolean> {
  return new Promise((resolve) => {
    const end = (left: boolean) => {
      clearTimeout(clock);
      raw.off('drain', onDrain);
      raw.off('close', onClose);
      signal.removeEventListener('abort', onClose);
      resolve(left);
    };
    const onDrain = () => end(true);
    const onClose = () => end(false);
    const clock = stallTimeoutMs > 0 ? setTimeout(onClose, stallTimeoutMs).unref() : undefined;
    raw.on('drain', onDrain);
    raw.on('close', onClose);
    signal.addEventListener('abort', onClose);
    if (raw.destroyed || signal.aborted) end(false);
  });
}

/**
 * Streams texts to the client as they come, and waits where it reads more slowly. What fails before the first text is thrown, so that it
 * becomes an answer with a status; later failures are written by `failed` as the stream's last text. A client that takes nothing for
 * `stallTimeoutMs` loses its connection.
 *
 * @param texts its `return` is called when the client leaves
 */
export async function stream(
  { limits }: ServerContext,
  { signal }: Job,
  reply: FastifyReply,
  contentType: string,
  texts: AsyncIterable<string>,
  failed: (error: unknown) => string,
): Promise<void> {
  const { raw } = reply;
  const reader = texts[Symbol.asyncIterator]();
  try {
    let next = await reader.next();
    const headers: Record<string, unknown> = reply.getHeaders();
    reply.hijack();
    raw.writeHead(200, {
      ...(headers as Record<string, string>),
      'content-type': contentType,
      'cache-control': 'no-cache',
      'x-accel-buffering': 'no', // a proxy is to pass on each event at once
    });
    try {
      while (!next.done) {
        if (!raw.write(next.value) && !(await drained(reply, limits.stallTimeoutMs, signal))) {
          raw.destroy();
          return;
        }
        next = await reader.next();
      }
    } catch (error) {
      reply.request.log.info({ err: error }, 'a stream ended with an error');
      if (!raw.destroyed) raw.write(failed(error));
    }
    raw.end();
  } finally {
    await reader.return?.();
  }
}

/** Server-sent events, one with a name where one is given. */
export function event(data: unknown, name?: string): string {
  return `${name === undefined ? '' : `event: ${name}\n`}data: ${typeof data === 'string' ? data : JSON.stringify(data)}\n\n`;
}
