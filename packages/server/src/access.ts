// Who may ask: API keys, hosts and origins. A server without a key answers this machine alone, and no page of a browser can reach it by a
// name of its own (DNS rebinding) or from another origin.
import { createHash, timingSafeEqual } from 'node:crypto';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { HttpError } from './errors.js';

export interface AccessOptions {
  /** keys, one of which each request must have; none: everybody may ask */
  apiKeys: readonly string[];
  /** names besides this machine's own under which a server without keys answers; of one with keys every name is good */
  allowedHosts: readonly string[];
  /** origins whose pages may ask: `'https://example.org'`, or `'*'` */
  corsOrigins: readonly string[];
}

const LOOPBACK = /^(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])$/;

/** Whether a server that listens there can be reached from this machine alone. */
export function isLoopback(host: string): boolean {
  return LOOPBACK.test(host) || host === '::1';
}

function digest(key: string): Buffer {
  return createHash('sha256').update(key).digest();
}

// The key, wherever clients of the interfaces put it.
function keyOf(request: FastifyRequest): string | undefined {
  const { authorization, 'x-goog-api-key': google, 'x-api-key': other } = request.headers;
  const [, bearer] = /^Bearer +(.+)$/i.exec(authorization ?? '') ?? [];
  if (bearer !== undefined) return bearer;
  const { key } = (request.query ?? {}) as { key?: unknown };
  for (const value of [google, other, key]) if (typeof value === 'string') return value;
  return undefined;
}

export class Access {
  readonly #keys: readonly Buffer[];
  readonly #hosts: ReadonlySet<string>;
  readonly #origins: readonly string[];

  constructor({ apiKeys, allowedHosts, corsOrigins }: AccessOptions) {
    this.#keys = apiKeys.map(digest); // of one length, so that comparing takes one time
    this.#hosts = new Set(allowedHosts.map((host) => host.toLowerCase()));
    this.#origins = corsOrigins;
  }

  /**
   * Whose request it is.
   *
   * @throws HttpError 401
   */
  client(request: FastifyRequest): string {
    if (this.#keys.length === 0) return request.ip;
    const given = keyOf(request);
    if (given !== undefined) {
      const hash = digest(given);
      let found = -1;
      this.#keys.forEach((key, i) => {
        if (timingSafeEqual(key, hash)) found = i;
      });
      if (found >= 0) return `key ${found + 1}`;
    }
    const what = given === undefined ? 'no API key was given' : 'the API key is wrong';
    throw new HttpError(401, 'invalid_api_key', `${what}: expected Authorization: Bearer KEY`, {
      headers: { 'www-authenticate': 'Bearer' },
    });
  }

  /**
   * The host that a request names.
   *
   * @throws HttpError 403
   */
  checkHost(request: FastifyRequest): void {
    if (this.#keys.length > 0 || this.#hosts.has('*')) return;
    const host = (request.headers.host ?? '').toLowerCase().replace(/:\d+$/, '');
    if (LOOPBACK.test(host) || this.#hosts.has(host)) return;
    throw new HttpError(403, 'host_not_allowed', 'this server does not answer under this name (option allowedHosts)');
  }

  /**
   * Lets pages of the allowed origins read the answer; of others none may ask.
   *
   * @throws HttpError 403
   */
  checkOrigin(request: FastifyRequest, reply: FastifyReply): void {
    const { origin, host } = request.headers;
    if (origin === undefined) return;
    const isOwn = origin === `http://${host}` || origin === `https://${host}`;
    const isAllowed = this.#origins.includes('*') || this.#origins.includes(origin);
    if (!isOwn && !isAllowed) {
      throw new HttpError(
        403,
        'origin_not_allowed',
        'pages of this origin may not ask this server (option corsOrigins)',
      );
    }
    if (!isAllowed) return;
    void reply.headers({
      'access-control-allow-origin': this.#origins.includes('*') ? '*' : origin,
      vary: 'origin',
      'access-control-expose-headers': 'retry-after, x-request-id',
    });
  }

  /** Answers what a browser asks before the request itself. */
  preflight(request: FastifyRequest, reply: FastifyReply): FastifyReply {
    const wanted = request.headers['access-control-request-headers'];
    return reply
      .headers({
        'access-control-allow-methods': 'GET, POST, DELETE, HEAD',
        ...(wanted !== undefined && { 'access-control-allow-headers': wanted }),
        'access-control-max-age': '600',
      })
      .code(204)
      .send();
  }
}
