// What a request can fail with, before an interface writes it in its own form: a status, a stable code, and the parameter that is
// wrong. Failures of gemma-native and of Fastify become such errors here and nowhere else.
import type { FastifyBaseLogger } from 'fastify';
import { GemmaError, type GemmaErrorCode } from 'gemma-native';

/** A failure that a client is told. */
export class HttpError extends Error {
  /** of HTTP */
  readonly status: number;
  /** Stable; programs decide by it: `'invalid_value'`, `'model_not_found'`, ... */
  readonly code: string;
  /** the parameter that is wrong, in the words of the interface: `'messages[0].content'` */
  readonly param: string | undefined;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    status: number,
    code: string,
    message: string,
    { param, headers = {}, cause }: { param?: string; headers?: Record<string, string>; cause?: unknown } = {},
  ) {
    super(message, { cause });
    this.name = 'HttpError';
    this.status = status;
    this.code = code;
    this.param = param;
    this.headers = headers;
  }
}

/** The client went away, so nobody is told. 499 is what nginx logs then. */
export class ClientGone extends HttpError {
  constructor() {
    super(499, 'client_gone', 'the client closed the connection');
  }
}

// Codes that are the client's to mend. Everything else that gemma-native reports is a failure of this server, whose message may
// name files of this machine: the log has it, the client does not.
const STATUSES: Partial<Record<GemmaErrorCode, readonly [status: number, code: string]>> = {
  ERR_INVALID_ARGUMENT: [400, 'invalid_value'],
  ERR_UNSUPPORTED_INPUT: [400, 'unsupported_input'],
  ERR_IMAGE: [400, 'invalid_image'],
  ERR_VIDEO: [400, 'invalid_video'],
  ERR_CHAT_TEMPLATE: [400, 'invalid_messages'],
  ERR_CONTEXT_FULL: [400, 'context_length_exceeded'],
  ERR_QUEUE_FULL: [429, 'queue_full'],
  ERR_STALLED: [408, 'reader_stalled'],
  ERR_DISPOSED: [503, 'model_unloaded'],
  ERR_OUT_OF_MEMORY: [503, 'out_of_memory'],
  ERR_OUTPUT_INVALID: [500, 'output_invalid'],
  ERR_NON_FINITE: [500, 'non_finite'],
};

const CLIENT_ERRORS: Readonly<Record<number, string>> = {
  404: 'not_found',
  405: 'method_not_allowed',
  408: 'timeout',
  413: 'body_too_large',
  415: 'unsupported_media_type',
  431: 'headers_too_large',
};

// Messages about arguments begin with the argument's name, `maxOutputTokens: ...`, `messages[0].content: ...`; those of bugs do not.
const ARGUMENT = /^([A-Za-z_$][\w$]*(?:[.[/][^:]{0,200})?)(?=: )/;

function internal(cause: unknown): HttpError {
  return new HttpError(500, 'internal_error', 'the server failed to answer; its log says why', { cause });
}

/**
 * Any failure as an `HttpError`. Wrong arguments of gemma-native name the parameter: `names` are those that the interface calls
 * otherwise, `{ maxOutputTokens: 'max_tokens' }`.
 */
export function toHttpError(error: unknown, names: Readonly<Record<string, string>> = {}): HttpError {
  if (error instanceof HttpError) return error;
  const { message, statusCode } = (error ?? {}) as { message?: unknown; statusCode?: unknown };
  const text = typeof message === 'string' ? message : '';
  const [argument] = ARGUMENT.exec(text) ?? [];
  const [root = ''] = argument?.split(/[.[/]/, 1) ?? [];
  const own = Object.hasOwn(names, root) ? names[root] : undefined;
  const param = own === undefined ? argument : own + (argument ?? '').slice(root.length);
  const renamed = argument !== undefined && param !== undefined ? param + text.slice(argument.length) : text;
  if (error instanceof GemmaError) {
    const [status, code] = STATUSES[error.code] ?? [];
    if (status === undefined || code === undefined) return internal(error);
    if (status === 500) return new HttpError(status, code, text, { cause: error });
    const headers: Record<string, string> = status === 429 || status === 503 ? { 'retry-after': '1' } : {};
    return new HttpError(status, code, renamed, { cause: error, headers, ...(param !== undefined && { param }) });
  }
  if ((error instanceof TypeError || error instanceof RangeError) && param !== undefined) {
    return new HttpError(400, 'invalid_value', renamed, { param, cause: error });
  }
  if (typeof statusCode === 'number' && statusCode >= 400 && statusCode < 500) {
    return new HttpError(statusCode, CLIENT_ERRORS[statusCode] ?? 'invalid_request', text, { cause: error });
  }
  return internal(error);
}

/** As `toHttpError`; what is the server's own failure is in the log. */
export function sendable(error: unknown, log: FastifyBaseLogger, names?: Readonly<Record<string, string>>): HttpError {
  const found = toHttpError(error, names);
  if (found.status >= 500) log.error({ err: found.cause ?? found }, found.message);
  return found;
}
