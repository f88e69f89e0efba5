// What a repository holds, as the hub's API says it in one request (GET /api/models/org/repo/revision/main?blobs=true): the commit, and
// for each file its size and its hash. Everything in it is checked: it comes from a server.
import { abortable } from '../cancellation.js';
import { ByteCollector } from '../turns.js';
import { plain } from '../values.js';
import { downloadError } from './failure.js';
import { connectionError, get, refusal, shown, type Hub } from './http.js';
import { COMMIT } from './names.js';

export interface RepoFile {
  /** inside the repository, with slashes */
  name: string;
  bytes: number;
  /** SHA-256 of a file of Git LFS, SHA-1 of a Git blob of others: what huggingface_hub names its blobs by */
  hash: string;
}

export interface Listing {
  repo: string;
  revision: string;
  commit: string;
  files: RepoFile[];
  license?: string;
  /** its licence must be accepted before it can be downloaded */
  gated: boolean;
  /** where people read about it */
  page: string;
}

const MAX_LISTING = 32 << 20; // bytes
const MAX_FILES = 20_000;
const LISTING_MS = 60_000; // all of it

/** The whole body of an answer. Throws GemmaError, Passing. */
async function readAll(message: AsyncIterable<Uint8Array>, where: string, signal: AbortSignal): Promise<Uint8Array> {
  const body = new ByteCollector();
  try {
    for await (const chunk of message) {
      if (body.length + chunk.length > MAX_LISTING) {
        throw downloadError('BAD_RESPONSE', `${where}: more than ${MAX_LISTING} bytes`);
      }
      body.add(chunk);
    }
  } catch (error) {
    throw connectionError(error, where, signal);
  }
  return body.all();
}

function record(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : {};
}

function isSize(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function licenseOf(info: Record<string, unknown>): string | undefined {
  const card = record(info.cardData);
  const named = card.license === 'other' && typeof card.license_name === 'string' ? card.license_name : card.license;
  const tags = Array.isArray(info.tags) ? (info.tags as unknown[]) : [];
  const tag = tags.find((one): one is string => typeof one === 'string' && one.startsWith('license:'));
  const text: unknown = (Array.isArray(named) ? named.join(', ') : named) ?? tag?.slice('license:'.length);
  return typeof text === 'string' && text !== '' ? plain(text, 100) : undefined;
}

/** Exported for tests. Throws GemmaError `ERR_DOWNLOAD`, `BAD_RESPONSE`. */
export function parseListing(json: string, repo: string, revision: string, where: string, page: string): Listing {
  const bad = (what: string) => downloadError('BAD_RESPONSE', `${where}: ${what}`);
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch {
    throw bad('expected JSON');
  }
  const info = record(value);
  const { sha, siblings, gated } = info;
  if (typeof sha !== 'string' || !COMMIT.test(sha)) throw bad('expected a commit');
  if (COMMIT.test(revision) && sha !== revision) throw bad(`expected commit ${revision}, found ${sha}`);
  if (!Array.isArray(siblings)) throw bad('expected a list of files');
  if (siblings.length > MAX_FILES) throw bad(`more than ${MAX_FILES} files`);
  const files = new Map<string, RepoFile>();
  for (const sibling of siblings as unknown[]) {
    const { rfilename: name, size, blobId, lfs } = record(sibling);
    if (typeof name !== 'string') throw bad('expected the name of a file');
    const { sha256, size: large } = record(lfs);
    const bytes = large ?? size;
    const hash = sha256 ?? blobId;
    const isHash = typeof hash === 'string' && (sha256 === undefined ? COMMIT : /^[0-9a-f]{64}$/).test(hash);
    if (!isSize(bytes) || !isHash) throw bad(`${plain(name)}: expected its size and its hash`);
    if (files.has(name)) throw bad(`${plain(name)}: is there twice`);
    files.set(name, { name, bytes, hash });
  }
  const license = licenseOf(info);
  const isGated = gated === true || gated === 'auto' || gated === 'manual';
  return { repo, revision, commit: sha, files: [...files.values()], ...(license && { license }), gated: isGated, page };
}

export function pageOf(hub: Hub, repo: string): string {
  return shown(new URL(repo, hub.endpoint));
}

/** Asks the hub. Throws GemmaError, Passing. */
export async function fetchListing(hub: Hub, repo: string, revision: string, signal: AbortSignal): Promise<Listing> {
  const url = new URL(`api/models/${repo}/revision/${encodeURIComponent(revision)}?blobs=true`, hub.endpoint);
  const page = pageOf(hub, repo);
  const limit = AbortSignal.timeout(LISTING_MS);
  const stop = AbortSignal.any([signal, limit]);
  try {
    return await abortable(stop, async () => {
      const reply = await get(hub, url, { accept: 'application/json' }, stop);
      try {
        if (reply.status !== 200) throw refusal(reply, hub, `hf:${repo}@${revision}`, page);
        const body = await readAll(reply.message, reply.where, stop);
        return parseListing(Buffer.from(body).toString('utf8'), repo, revision, reply.where, page);
      } finally {
        reply.message.destroy();
      }
    });
  } catch (error) {
    signal.throwIfAborted();
    if (limit.aborted) throw downloadError('NETWORK', `${shown(url)}: no whole answer within ${LISTING_MS / 1000} s`);
    throw error;
  }
}
