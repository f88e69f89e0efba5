// Errors in OpenAI's form.
import type { FastifyRequest } from 'fastify';
import { sendable, type HttpError } from '../errors.js';
import { NAMES } from './common.js';

const TYPES: Readonly<Record<number, string>> = {
  401: 'authentication_error',
  403: 'permission_error',
  404: 'not_found_error',
  429: 'rate_limit_error',
};

/** An error as `HttpError`, its parameter in the words of the request's path; what is the server's own failure is in the log. */
export function openaiError(error: unknown, request: FastifyRequest): HttpError {
  return sendable(error, request.log, { ...NAMES, ...request.routeOptions.config.names });
}

/** What a client is told of it. */
export function errorBody({ status, code, message, param }: HttpError) {
  const type = TYPES[status] ?? (status >= 500 ? 'server_error' : 'invalid_request_error');
  return { error: { message, type, param: param ?? null, code } };
}
