// Bytes from http(s), for callers who allowed it: limits on size, time and redirects, and no way into the network this machine
// stands in. Every connection, redirects too, goes to an address that was looked up and checked by this file, so a name cannot
// answer differently a second time (DNS rebinding).
import { lookup as dnsLookup, type LookupAddress } from 'node:dns';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { BlockList, isIP, type LookupFunction } from 'node:net';
import { GemmaError } from './errors.js';

export interface RemoteLimits {
  maxBytes: number;
  timeoutMs: number;
  /** also private, link-local and loopback addresses */
  allowPrivate: boolean;
}

const MAX_REDIRECTS = 5;

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
  if (String(text).includes('\\')) throw blocked(`${String(text)}: a backslash in a URL`);
  let url: URL;
  try {
    url = new URL(text, base);
  } catch {
    throw new GemmaError('ERR_IMAGE', `${String(text)}: not a URL`, 'IMAGE_FETCH');
  }
  if (url.protocol !== 'http:' && url.protocol !== 'https:') {
    throw blocked(`${url.href}: expected http: or https:, found ${url.protocol}`);
  }
  const host = url.hostname.replace(/^\[|\]$/g, '');
  if (!allowPrivate && isIP(host) && !isPublicAddress(host)) {
    throw blocked(`${url.href}: ${host} is not a public address`);
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
      callback(blocked(`${hostname}: ${inside?.address ?? 'no address'} is not a public address`), '', 0);
    } else if (options.all) {
      callback(null, addresses);
    } else {
      callback(null, first.address, first.family);
    }
  });
};

function respond(url: URL, limits: RemoteLimits, signal: AbortSignal): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const request = url.protocol === 'https:' ? httpsRequest : httpRequest;
    request(url, {
      agent: false, // a connection of its own: a pooled one could have been opened without the check
      signal,
      headers: { accept: 'image/*', 'accept-encoding': 'identity', 'user-agent': 'gemma-native' },
      ...(!limits.allowPrivate && { lookup: publicLookup }),
    })
      .on('response', resolve)
      .on('error', reject)
      .end();
  });
}

async function readBody(url: URL, response: IncomingMessage, maxBytes: number): Promise<Buffer> {
  const tooLarge = () =>
    new GemmaError('ERR_IMAGE', `${url.href}: more than ${maxBytes} bytes (option maxImageBytes)`, 'IMAGE_LIMIT');
  if (Number(response.headers['content-length']) > maxBytes) throw tooLarge();
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > maxBytes) throw tooLarge();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, bytes);
}

/**
 * The body of an http(s) URL.
 *
 * @throws GemmaError `ERR_IMAGE` with `SSRF_BLOCKED` (an address that is not public, also behind a redirect; another protocol),
 * `IMAGE_FETCH` (no answer, an answer that is not 200, too many redirects), `IMAGE_LIMIT` (too many bytes); the signal's reason
 */
export async function fetchBytes(address: string | URL, limits: RemoteLimits, signal?: AbortSignal): Promise<Buffer> {
  const timeout = AbortSignal.timeout(limits.timeoutMs);
  const stop = signal ? AbortSignal.any([signal, timeout]) : timeout;
  let url = checkUrl(address, undefined, limits.allowPrivate);
  try {
    for (let redirects = 0; ; ++redirects) {
      const response = await respond(url, limits, stop);
      try {
        const { statusCode = 0 } = response;
        const { location } = response.headers;
        if (statusCode >= 300 && statusCode < 400 && location !== undefined) {
          if (redirects === MAX_REDIRECTS) {
            throw new GemmaError('ERR_IMAGE', `${url.href}: more than ${MAX_REDIRECTS} redirects`, 'IMAGE_FETCH');
          }
          url = checkUrl(location, url, limits.allowPrivate);
        } else if (statusCode === 200) {
          return await readBody(url, response, limits.maxBytes);
        } else {
          throw new GemmaError('ERR_IMAGE', `${url.href}: expected status 200, found ${statusCode}`, 'IMAGE_FETCH');
        }
      } finally {
        response.destroy();
      }
    }
  } catch (error) {
    signal?.throwIfAborted();
    if (error instanceof GemmaError) throw error;
    const reason = timeout.aborted
      ? `no answer within ${limits.timeoutMs} ms (option remoteTimeoutMs)`
      : error instanceof Error
        ? error.message
        : String(error);
    throw new GemmaError('ERR_IMAGE', `${url.href}: cannot be fetched: ${reason}`, 'IMAGE_FETCH');
  }
}
