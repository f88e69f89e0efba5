// Errors in OpenAI's form.
import type { FastifyRequest } from 'fastify';
import { HttpError, sendable } from '../errors.js';
import { NAMES } from './common.js';

const TYPES: Readonly<Record<number, string>> = {
  401: 'authentication_error',
  403: 'permission_error',
  404: 'not_found_error',
  429: 'rate_limit_error',
};

// What holds the prompt, in one interface or the other.
const PROMPTS = ['messages', 'prompt', 'input'];

/** An error as `HttpError`, its parameter in the words of the request's path; what is the server's own failure is in the log. */
export function openaiError(error: unknown, request: FastifyRequest): HttpError {
  const failure = sendable(error, request.log, { ...NAMES, ...request.routeOptions.config.names });
  const { status, code, message, headers, cause, param } = failure;
  if (code !== 'context_length_exceeded' || param !== undefined) return failure;
  // OpenAI names what is too long; the message does not.
  const prompt = PROMPTS.find((name) => Object.hasOwn(Object(request.body) as object, name));
  return prompt === undefined ? failure : new HttpError(status, code, message, { param: prompt, headers, cause });
}

/** What a client is told of it. */
export function errorBody({ status, code, message, param }: HttpError) {
  const type = TYPES[status] ?? (status >= 500 ? 'server_error' : 'invalid_request_error');
  return { error: { message, type, param: param ?? null, code } };
}
