// Bodies of requests: JSON, within limits of bytes, of nesting and of values, and read in chunks that are worth a call each. A body that
// would hold up the event loop is refused before it is parsed.
import { isUtf8 } from 'node:buffer';
import type { IncomingMessage } from 'node:http';
import type { FastifyRequest } from 'fastify';
import { HttpError } from './errors.js';

const MAX_DEPTH = 100;
const MAX_VALUES = 500_000;
/** characters of a body that stand in no string: numbers, brackets, white space */
const MAX_OUTSIDE = 4 << 20;
const MAX_TINY_CHUNKS = 4096;
const TINY_CHUNK = 64; // bytes, on average

function invalid(message: string): HttpError {
  return new HttpError(400, 'invalid_json', message);
}

/**
 * Looks at the shape of JSON text without parsing it: strings are skipped as a whole, so pictures in base64 cost next to nothing.
 *
 * @throws HttpError 400
 */
function checkShape(json: string): void {
  let depth = 0;
  let values = 0;
  let outside = 0;
  for (let i = 0; i < json.length; ++i) {
    if (++outside > MAX_OUTSIDE)
      throw invalid(`the body: expected at most ${MAX_OUTSIDE} characters outside of strings`);
    switch (json.charCodeAt(i)) {
      case 0x22: // "
        do {
          i = json.indexOf('"', i + 1);
          if (i < 0) throw invalid('the body is no JSON: a string has no end');
        } while (isEscaped(json, i));
        break;
      case 0x5b: // [
      case 0x7b: // {
        if (++depth > MAX_DEPTH) throw invalid(`the body: expected at most ${MAX_DEPTH} levels of nesting`);
        break;
      case 0x5d: // ]
      case 0x7d: // }
        --depth;
        break;
      case 0x2c: // ,
        if (++values > MAX_VALUES) throw invalid(`the body: expected at most ${MAX_VALUES} values`);
        break;
    }
  }
}

function isEscaped(json: string, quote: number): boolean {
  let backslashes = 0;
  while (json.charCodeAt(quote - 1 - backslashes) === 0x5c) ++backslashes;
  return backslashes % 2 === 1;
}

/**
 * JSON text to its value.
 *
 * @throws HttpError 400
 */
export function parseJson(bytes: Buffer): unknown {
  if (bytes.length === 0) throw invalid('the body is empty; expected JSON');
  if (!isUtf8(bytes)) throw invalid('the body is no UTF-8');
  const json = bytes.toString('utf8');
  checkShape(json);
  try {
    return JSON.parse(json) as unknown;
  } catch (error) {
    throw invalid(`the body is no JSON: ${(error as Error).message.slice(0, 200)}`);
  }
}

/**
 * Reads a body.
 *
 * @throws HttpError 413 for more than `maxBytes`, 400 for a flood of tiny chunks or one that was cut off
 */
export function readBody(request: FastifyRequest, payload: IncomingMessage, maxBytes: number): Promise<Buffer> {
  const tooLarge = () => {
    // What is still to come is not read: the connection ends with the answer.
    const headers = { connection: 'close' };
    return new HttpError(413, 'body_too_large', `the body: expected at most ${maxBytes} bytes`, { headers });
  };
  if (Number(request.headers['content-length']) > maxBytes) return Promise.reject(tooLarge());
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let length = 0;
    const fail = (error: HttpError) => {
      payload.pause();
      payload.off('data', onData);
      reject(error);
    };
    const onData = (chunk: Buffer) => {
      length += chunk.length;
      if (length > maxBytes) return fail(tooLarge());
      chunks.push(chunk);
      // Each chunk is a call, so a flood of tiny ones would hold up the event loop.
      if (chunks.length > MAX_TINY_CHUNKS && length < chunks.length * TINY_CHUNK) {
        const message = `the body: more than ${MAX_TINY_CHUNKS} chunks of less than ${TINY_CHUNK} bytes`;
        fail(new HttpError(400, 'tiny_chunks', message, { headers: { connection: 'close' } }));
      }
    };
    payload
      .on('data', onData)
      .on('end', () => resolve(Buffer.concat(chunks, length)))
      .on('error', () => fail(new HttpError(400, 'cut_off', 'the body was cut off')))
      .on('close', () => reject(new HttpError(400, 'cut_off', 'the body was cut off')));
  });
}
