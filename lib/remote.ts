// Bytes from http(s), for callers who allowed it: limits on size, time and redirects, and no way into the network this machine
// stands in. Every connection, redirects too, goes to an address that was looked up and checked by this file, so a name cannot
// answer differently a second time (DNS rebinding).
import { lookup as dnsLookup, type LookupAddress } from 'node:dns';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { BlockList, isIP, type LookupFunction } from 'node:net';
import { abortable } from './cancellation.js';
import { GemmaError } from './errors.js';
import { ByteCollector } from './turns.js';
import { plain, reasonOf } from './values.js';

interface RemoteLimits {
  maxBytes: number;
  timeoutMs: number;
  /** also private, link-local and loopback addresses */
  allowPrivate: boolean;
}

const MAX_REDIRECTS = 5;
const MAX_TINY_CHUNKS = 4096;
const TINY_CHUNK = 64; // bytes, on average
const MAX_INTERIM = 16; // answers with a status below 200 before the one that counts

// IANA's registries of special-purpose addresses, as of 2026. Of IPv6 only global unicast is public, without the ranges that
// carry IPv4 addresses inside (Teredo, 6to4); IPv4-mapped and NAT64 addresses lie outside of it.
const SPECIAL_IPV4 = new BlockList();
for (const [net, prefix] of [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['127.0.0.0', 8],
  ['169.254.0.0', 16],
  ['172.16.0.0', 12],
  ['192.0.0.0', 24],
  ['192.0.2.0', 24],
  ['192.88.99.0', 24],
  ['192.168.0.0', 16],
  ['198.18.0.0', 15],
  ['198.51.100.0', 24],
  ['203.0.113.0', 24],
  ['224.0.0.0', 3],
] as const) {
  SPECIAL_IPV4.addSubnet(net, prefix, 'ipv4');
}
const GLOBAL_IPV6 = new BlockList();
GLOBAL_IPV6.addSubnet('2000::', 3, 'ipv6');
const SPECIAL_IPV6 = new BlockList();
for (const [net, prefix] of [
  ['2001::', 23],
  ['2001:db8::', 32],
  ['2002::', 16],
  ['3fff::', 20],
] as const) {
  SPECIAL_IPV6.addSubnet(net, prefix, 'ipv6');
}

/** Whether an IP address belongs to the public internet. Exported for tests. */
export function isPublicAddress(address: string): boolean {
  switch (isIP(address)) {
    case 4:
      return !SPECIAL_IPV4.check(address, 'ipv4');
    case 6:
      return GLOBAL_IPV6.check(address, 'ipv6') && !SPECIAL_IPV6.check(address, 'ipv6');
    default:
      return false;
  }
}

export function blocked(what: string): GemmaError {
  return new GemmaError('ERR_IMAGE', what, 'SSRF_BLOCKED');
}

function checkUrl(text: string | URL, base: URL | undefined, allowPrivate: boolean): URL {
  // A URL parser reads a backslash as a slash, others do not: who sends one wants the two to disagree.
  if (String(text).includes('\\')) throw blocked(`${plain(String(text))}: a backslash in a URL`);
  let url: URL;
  try {
    url = new URL(text, base);
  } catch {
    throw new GemmaError('ERR_IMAGE', `${plain(String(text))}: not a URL`, 'IMAGE_FETCH');
  }
  if (url.protocol !== 'http:' && url.protocol !== 'https:') {
    throw blocked(`${plain(url.href)}: expected http: or https:, found ${plain(url.protocol)}`);
  }
  const host = url.hostname.replace(/^\[|\]$/g, '');
  if (!allowPrivate && isIP(host) && !isPublicAddress(host)) {
    throw blocked(`${plain(url.href)}: ${plain(host)} is not a public address`);
  }
  return url;
}

// The system's lookup, refused when any answer is not public.
const publicLookup: LookupFunction = (hostname, options, callback) => {
  dnsLookup(hostname, { ...options, all: true }, (error, addresses: LookupAddress[]) => {
    if (error) {
      callback(error, '', 0);
      return;
    }
    const inside = addresses.find(({ address }) => !isPublicAddress(address));
    const [first] = addresses;
    if (inside || !first) {
      callback(blocked(`${plain(hostname)}: ${inside?.address ?? 'no address'} is not a public address`), '', 0);
    } else if (options.all) {
      callback(null, addresses);
    } else {
      callback(null, first.address, first.family);
    }
  });
};

function respond(url: URL, limits: RemoteLimits, signal: AbortSignal): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const request = (url.protocol === 'https:' ? httpsRequest : httpRequest)(url, {
      agent: false, // a connection of its own: a pooled one could have been opened without the check
      signal,
      headers: { accept: 'image/*', 'accept-encoding': 'identity', 'user-agent': 'gemma-native' },
      ...(!limits.allowPrivate && { lookup: publicLookup }),
    });
    let interim = 0;
    request
      .on('response', resolve)
      .on('information', () => {
        if (++interim > MAX_INTERIM) request.destroy(new Error(`more than ${MAX_INTERIM} interim answers`));
      })
      // An answer with status 101 comes as this event, and never as a response.
      .on('upgrade', (_, socket) => {
        socket.destroy();
        reject(new Error('expected status 200, found 101'));
      })
      .on('error', reject)
      .on('close', () => reject(new Error('the connection was closed without an answer')))
      .end();
  });
}

async function readBody(where: string, response: IncomingMessage, maxBytes: number): Promise<Uint8Array> {
  const tooLarge = () =>
    new GemmaError('ERR_IMAGE', `${where}: more than ${maxBytes} bytes (option maxImageBytes)`, 'IMAGE_LIMIT');
  if (Number(response.headers['content-length']) > maxBytes) throw tooLarge();
  const body = new ByteCollector();
  let chunks = 0;
  await new Promise<void>((resolve, reject) => {
    const fail = (error: Error) => {
      response.destroy();
      reject(error);
    };
    response
      .on('data', (chunk: Buffer) => {
        if (response.destroyed) return; // what the parser had already
        if (body.length + chunk.length > maxBytes) return fail(tooLarge());
        // Each chunk is a call, so a flood of tiny ones would hold up the event loop.
        if (++chunks > MAX_TINY_CHUNKS && body.length < chunks * TINY_CHUNK) {
          return fail(new Error(`more than ${MAX_TINY_CHUNKS} chunks of less than ${TINY_CHUNK} bytes`));
        }
        body.add(chunk);
      })
      .on('end', resolve)
      .on('error', reject)
      .on('close', () => reject(new Error('the connection was closed before the end')));
  });
  return body.all();
}

// Follows redirects up to the answer.
async function fetchWithin(first: URL, limits: RemoteLimits, signal: AbortSignal): Promise<Uint8Array> {
  let url = first;
  for (let redirects = 0; ; ++redirects) {
    const where = plain(url.href);
    const response = await respond(url, limits, signal);
    try {
      const { statusCode = 0 } = response;
      const { location } = response.headers;
      if (statusCode >= 300 && statusCode < 400 && location !== undefined) {
        if (redirects === MAX_REDIRECTS) {
          throw new GemmaError('ERR_IMAGE', `${where}: more than ${MAX_REDIRECTS} redirects`, 'IMAGE_FETCH');
        }
        url = checkUrl(location, url, limits.allowPrivate);
      } else if (statusCode === 200) {
        return await readBody(where, response, limits.maxBytes);
      } else {
        throw new GemmaError('ERR_IMAGE', `${where}: expected status 200, found ${statusCode}`, 'IMAGE_FETCH');
      }
    } finally {
      response.destroy();
    }
  }
}

/**
 * The body of an http(s) URL. Ends at the time limit, whatever the server does.
 *
 * @throws GemmaError `ERR_IMAGE` with `SSRF_BLOCKED` (an address that is not public, also behind a redirect; another protocol),
 * `IMAGE_FETCH` (no answer, an answer that is not 200, too many redirects), `IMAGE_LIMIT` (too many bytes); the signal's reason
 */
export async function fetchBytes(
  address: string | URL,
  limits: RemoteLimits,
  signal?: AbortSignal,
): Promise<Uint8Array> {
  const url = checkUrl(address, undefined, limits.allowPrivate);
  const timeout = AbortSignal.timeout(limits.timeoutMs);
  const stop = signal ? AbortSignal.any([signal, timeout]) : timeout;
  try {
    return await abortable(stop, () => fetchWithin(url, limits, stop));
  } catch (error) {
    signal?.throwIfAborted();
    if (error instanceof GemmaError) throw error;
    const reason = timeout.aborted
      ? `no answer within ${limits.timeoutMs} ms (option remoteTimeoutMs)`
      : reasonOf(error);
    throw new GemmaError('ERR_IMAGE', `${plain(url.href)}: cannot be fetched: ${reason}`, 'IMAGE_FETCH');
  }
}
