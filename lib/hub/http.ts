// GET requests to the hub and to where it redirects. Node's own client: it lets us follow redirects ourselves, so that the token goes to
// the hub and to nobody else; and it takes a connection of ours, so that proxies work in every version of Node (fetch reads HTTPS_PROXY
// only from Node 22.21 and 24.5 on, and only when it is told to).
import { request as httpRequest, type IncomingMessage, type RequestOptions } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { isIP } from 'node:net';
import type { Duplex } from 'node:stream';
import { connect as connectTls } from 'node:tls';
import { GemmaError } from '../errors.js';
import { plain, reasonOf } from '../values.js';
import { downloadError, refusedBy } from './failure.js';

const MAX_REDIRECTS = 6;

export interface Hub {
  endpoint: URL;
  token: string | undefined;
  /** the connection fails when nothing comes for so long, ms */
  idleMs: number;
}

export interface Reply {
  status: number;
  message: IncomingMessage;
  /** without query: what is shown */
  where: string;
  /** of another host than the hub */
  isElsewhere: boolean;
}

/** What may go better next time. */
export class Passing extends Error {
  /** what it becomes where there is no next time */
  readonly final: GemmaError;
  /** the server's wish, ms */
  readonly afterMs: number | undefined;

  constructor(final: GemmaError, afterMs?: number) {
    super(final.message);
    this.final = final;
    this.afterMs = afterMs;
  }
}

/** A URL as messages show it: signed URLs carry secrets in their queries. */
export function shown(url: URL): string {
  return plain(url.origin + url.pathname);
}

/** Whether NO_PROXY excepts a URL: names with what is below them, addresses, '*', each with a port where wanted. */
function isExcepted(url: URL, list: string): boolean {
  const host = url.hostname.replace(/^\[|\]$/g, '').toLowerCase();
  const port = url.port || (url.protocol === 'https:' ? '443' : '80');
  return list
    .toLowerCase()
    .split(/[\s,]+/)
    .some((entry) => {
      if (entry === '*') return true;
      const [, name = '', entryPort] = isIP(entry) ? [entry, entry] : (/^(.*?)(?::(\d+))?$/.exec(entry) ?? []);
      const bare = name.replace(/^\[|\]$/g, '').replace(/^\*?\./, '');
      if (bare === '' || (entryPort !== undefined && entryPort !== port)) return false;
      return host === bare || (isIP(host) === 0 && host.endsWith(`.${bare}`));
    });
}

/** The proxy for a URL, as curl reads the environment. Exported for tests. Throws TypeError for one that is none. */
export function proxyFor(url: URL, env: NodeJS.ProcessEnv = process.env): URL | undefined {
  const of = (name: string) => env[name] || env[name.toUpperCase()];
  const text = of(url.protocol === 'https:' ? 'https_proxy' : 'http_proxy') || of('all_proxy');
  if (!text || isExcepted(url, of('no_proxy') ?? '')) return undefined;
  const full = /^[a-z][a-z0-9+.-]*:\/\//i.test(text) ? text : `http://${text}`;
  const proxy = URL.canParse(full) ? new URL(full) : undefined;
  if (!proxy || !/^https?:$/.test(proxy.protocol)) {
    throw new TypeError(
      `the proxy in the environment: expected an http: or https: URL, found ${proxy?.protocol ?? 'none'}`,
    );
  }
  return proxy;
}

function proxyOptions(proxy: URL): RequestOptions & { headers: Record<string, string> } {
  const user = decodeURIComponent(proxy.username);
  const credentials = Buffer.from(`${user}:${decodeURIComponent(proxy.password)}`).toString('base64');
  return {
    protocol: proxy.protocol,
    host: proxy.hostname.replace(/^\[|\]$/g, ''),
    port: proxy.port || (proxy.protocol === 'https:' ? 443 : 80),
    headers: user ? { 'proxy-authorization': `Basic ${credentials}` } : {},
  };
}

function isSecure({ protocol }: { protocol?: string | null | undefined }): boolean {
  return protocol === 'https:';
}

/** A connection through a proxy. */
function tunnel(proxy: URL, target: URL, idleMs: number, signal: AbortSignal): Promise<Duplex> {
  const options = proxyOptions(proxy);
  const host = `${target.hostname}:${target.port || 443}`;
  return new Promise((resolve, reject) => {
    const request = (isSecure(options) ? httpsRequest : httpRequest)({
      ...options,
      method: 'CONNECT',
      path: host,
      headers: { ...options.headers, host },
      agent: false,
      signal,
      timeout: idleMs,
    });
    request
      .on('connect', ({ statusCode = 0 }, socket) => {
        if (statusCode === 200) return resolve(socket);
        socket.destroy();
        const what = `${shown(target)}: the proxy ${proxy.host} answered ${statusCode}`;
        reject(statusCode < 500 ? downloadError('NETWORK', what) : new Error(what));
      })
      .on('response', (response) => {
        response.destroy();
        reject(new Error(`the proxy ${proxy.host} answered ${response.statusCode}`));
      })
      .on('timeout', () => request.destroy(new Error(`no answer of the proxy ${proxy.host}`)))
      .on('error', reject)
      .on('close', () => reject(new Error(`the proxy ${proxy.host} closed the connection`)))
      .end();
  });
}

/** One request and the head of its answer. */
async function send(
  url: URL,
  headers: Record<string, string>,
  idleMs: number,
  signal: AbortSignal,
): Promise<IncomingMessage> {
  const proxy = proxyFor(url);
  const host = url.hostname.replace(/^\[|\]$/g, '');
  const target = {
    protocol: url.protocol,
    host,
    port: url.port || (isSecure(url) ? 443 : 80),
    path: url.pathname + url.search,
    headers: { ...headers, host: url.host },
  };
  let options: RequestOptions = { ...target, agent: false };
  if (proxy && isSecure(url)) {
    const socket = await tunnel(proxy, url, idleMs, signal);
    const servername = isIP(host) ? '' : host;
    options = { ...target, createConnection: () => connectTls({ socket, servername, host }) };
  } else if (proxy) {
    const through = proxyOptions(proxy);
    options = { ...through, path: url.href, headers: { ...headers, ...through.headers, host: url.host }, agent: false };
  }
  return new Promise((resolve, reject) => {
    const request = (isSecure(options) ? httpsRequest : httpRequest)({ ...options, signal, timeout: idleMs });
    request
      .on('response', resolve)
      .on('upgrade', (_, socket) => socket.destroy())
      .on('timeout', () => request.destroy(new Error(`nothing came for ${idleMs / 1000} s`)))
      .on('error', reject)
      .on('close', () => reject(new Error('the connection was closed without an answer')))
      .end();
  });
}

// Of certificates and names: no second attempt changes them.
const LASTING = /^(?:ENOTFOUND$|ERR_TLS_|CERT_|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO|ERR_SSL|EPROTO$|HPE_)/;

/** An error of a connection: one of ours, one that passes, or the signal's reason. */
export function connectionError(error: unknown, where: string, signal: AbortSignal): unknown {
  signal.throwIfAborted();
  if (error instanceof GemmaError || error instanceof Passing || error instanceof TypeError) return error;
  const refused = refusedBy(error);
  if (refused) return refused;
  const { code = '' } = error as NodeJS.ErrnoException;
  const final = downloadError('NETWORK', `${where}: cannot be reached: ${reasonOf(error) || code}`);
  return LASTING.test(code) ? final : new Passing(final);
}

function nextHop(location: string, from: URL, endpoint: URL): URL {
  const url = URL.canParse(location, from.href) ? new URL(location, from) : undefined;
  if (!url || location.includes('\\'))
    throw downloadError('BAD_RESPONSE', `${shown(from)}: redirects to what is no URL`);
  if (url.protocol === 'https:') return url;
  // http is for whoever wrote it into HF_ENDPOINT, and stays possible from there on; never after https.
  const mayBePlain = endpoint.protocol === 'http:' && from.protocol === 'http:';
  if (url.protocol === 'http:' && mayBePlain) return url;
  throw downloadError(
    'BAD_RESPONSE',
    `${shown(from)}: redirects from https: to ${plain(url.protocol)}, which is not followed`,
  );
}

/**
 * Asks for a URL and follows redirects. The caller reads or destroys the message.
 *
 * @throws Passing, GemmaError `ERR_DOWNLOAD`, the signal's reason
 */
export async function get(hub: Hub, first: URL, headers: Record<string, string>, signal: AbortSignal): Promise<Reply> {
  let url = first;
  for (let redirects = 0; ; ++redirects) {
    const where = shown(url);
    const isHub = url.origin === hub.endpoint.origin;
    let message: IncomingMessage;
    try {
      const own = isHub && hub.token !== undefined ? { authorization: `Bearer ${hub.token}` } : {};
      const common = { 'user-agent': 'gemma-native', 'accept-encoding': 'identity' };
      message = await send(url, { ...common, ...headers, ...own }, hub.idleMs, signal);
    } catch (error) {
      throw connectionError(error, where, signal);
    }
    const status = message.statusCode ?? 0;
    const { location } = message.headers;
    if (![301, 302, 303, 307, 308].includes(status) || location === undefined) {
      return { status, message, where, isElsewhere: !isHub };
    }
    message.destroy();
    if (redirects === MAX_REDIRECTS)
      throw downloadError('BAD_RESPONSE', `${where}: more than ${MAX_REDIRECTS} redirects`);
    url = nextHop(location, url, hub.endpoint);
  }
}

/** What Retry-After asks for: seconds or a date. */
function retryAfter(message: IncomingMessage): number | undefined {
  const value = message.headers['retry-after'];
  if (value === undefined) return undefined;
  const ms = /^\d+$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isFinite(ms) ? Math.max(0, ms) : undefined;
}

/** What an answer other than the wanted one means. `what` is asked for, `page` its page in the hub. */
export function refusal(reply: Reply, hub: Hub, what: string, page: string): GemmaError | Passing {
  const { status, message, where, isElsewhere } = reply;
  const code = String(message.headers['x-error-code'] ?? '');
  const said = plain(String(message.headers['x-error-message'] ?? ''));
  const because = said ? `: ${said}` : '';
  const token =
    hub.token === undefined
      ? 'no token was sent: set HF_TOKEN or the option token'
      : 'the token that was sent has no access';
  if (status === 429) {
    const afterMs = retryAfter(message);
    const wait = afterMs === undefined ? '' : `; it asks to wait ${Math.ceil(afterMs / 1000)} s`;
    return new Passing(downloadError('RATE_LIMITED', `${where}: too many requests${wait}${because}`), afterMs);
  }
  if (status >= 500 || status === 408) {
    return new Passing(
      downloadError('NETWORK', `${where}: the server failed with status ${status}${because}`),
      retryAfter(message),
    );
  }
  // A signed URL is good for some minutes: the next attempt asks the hub for another.
  if (isElsewhere && (status === 401 || status === 403)) {
    return new Passing(downloadError('UNAUTHORIZED', `${where}: refused with status ${status}`));
  }
  if (code === 'GatedRepo') {
    return downloadError('GATED', `${what}: its licence must be accepted at ${page} first, and ${token}${because}`);
  }
  if (status === 404 || code === 'RepoNotFound') {
    const missing = { RevisionNotFound: 'has no such revision', EntryNotFound: 'has no such file' }[code];
    const perhaps = missing ?? `does not exist, or is private and ${token}`;
    return downloadError('NOT_FOUND', `${what}: ${perhaps}${because}`);
  }
  if (status === 401 || status === 403) {
    return downloadError('UNAUTHORIZED', `${what}: refused with status ${status}; ${token}${because}`);
  }
  return downloadError('BAD_RESPONSE', `${where}: expected status 200, found ${status}${because}`);
}
