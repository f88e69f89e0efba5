// Getting a model from the hub: what it consists of, whether it fits, and its files one after the other into the cache.
import { mkdir, statfs, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { GemmaError } from '../errors.js';
import { plain } from '../values.js';
import { RepoCache } from './cache.js';
import { cacheError, downloadError } from './failure.js';
import { withHeaders } from './headers.js';
import type { Hub } from './http.js';
import { fetchListing, type Listing, type RepoFile } from './listing.js';
import { type HubName } from './names.js';
import { hubCache, hubEndpoint, hubToken, isOffline } from './places.js';
import type { PulledModel, PullPlan, PullProgress, PullSettings } from './pulled.js';
import { selectFiles, type Selection } from './select.js';
import { fetchFile, fetchHead, patiently, TUNING, withLock, type Tuning } from './transfer.js';

const SPARE_BYTES = 16 << 20; // of the disk that a download does not take
const REPORT_MS = 100;

/** The places that a pull works with. */
interface Scene {
  name: HubName;
  hub: Hub;
  cache: RepoCache;
  settings: PullSettings;
  signal: AbortSignal;
  tuning: Tuning;
}

async function sceneOf(name: HubName, settings: PullSettings, signal: AbortSignal, tuning: Tuning): Promise<Scene> {
  const hub = {
    endpoint: hubEndpoint(settings.endpoint),
    token: await hubToken(settings.token),
    idleMs: tuning.idleMs,
  };
  return { name, hub, cache: new RepoCache(hubCache(settings.cacheDir), name.repo), settings, signal, tuning };
}

function titleOf({ repo, revision, selector }: HubName): string {
  return `hf:${repo}${revision === 'main' ? '' : `@${revision}`}${selector === undefined ? '' : `:${plain(selector)}`}`;
}

function filesOf<F extends { name: string; bytes: number }>({ model, mmproj }: Selection<F>): F[] {
  return mmproj ? [...model, mmproj] : model;
}

function pulled(
  { name, cache }: Pick<Scene, 'name' | 'cache'>,
  commit: string,
  selection: Selection<{ name: string; bytes: number }>,
): Omit<PulledModel, 'downloadedBytes' | 'upToDate'> {
  const { kind, model, mmproj } = selection;
  const files = filesOf(selection);
  return {
    path: kind === 'gguf' ? cache.pointer(commit, model[0]?.name ?? '') : cache.snapshot(commit),
    ...(mmproj && { mmproj: cache.pointer(commit, mmproj.name) }),
    bytes: files.reduce((sum, { bytes }) => sum + bytes, 0),
    files: files.map((file) => file.name),
    repo: name.repo,
    revision: name.revision,
    commit,
  };
}

/** What is on the disk of it. Throws GemmaError `ERR_DOWNLOAD`. */
async function fromCache(scene: Scene): Promise<PulledModel> {
  const { name, cache, settings } = scene;
  const where = titleOf(name);
  const commit = await cache.readRef(name.revision);
  const local = commit === undefined ? [] : await cache.localFiles(commit);
  if (commit === undefined || local.length === 0) {
    throw downloadError(
      'OFFLINE',
      `${where}: is not in ${plain(cache.root)}, and the hub is not asked (HF_HUB_OFFLINE, or the option offline)`,
    );
  }
  const selection = selectFiles(local, name.selector, where, { mmproj: settings.mmproj });
  const files = filesOf(selection);
  for (const file of files) await cache.checkInside(cache.pointer(commit, file.name));
  return { ...pulled(scene, commit, selection), downloadedBytes: 0, upToDate: false };
}

async function orUndefined<T>(work: Promise<T>): Promise<T | undefined> {
  return work.catch(() => undefined);
}

const UNREACHABLE = new Set(['NETWORK', 'RATE_LIMITED']);

/** Asks the hub what there is; what is on the disk, where the hub cannot be reached. */
async function listingOf(scene: Scene): Promise<{ listing: Listing } | { local: PulledModel }> {
  const { name, hub, signal, tuning } = scene;
  const local = await orUndefined(fromCache(scene));
  const patience = local ? { ...tuning, tries: 1 } : tuning;
  try {
    const ask = () => fetchListing(hub, name.repo, name.revision, signal);
    return { listing: await patiently(ask, patience, signal) };
  } catch (error) {
    if (local && error instanceof GemmaError && UNREACHABLE.has(error.detail ?? '')) return { local };
    throw error;
  }
}

/** Bytes that the disk below a folder has left; undefined where the system does not say. */
async function freeBytes(folder: string): Promise<number | undefined> {
  const found = await statfs(folder).catch(() => undefined);
  return found && found.blocks > 0 ? found.bavail * found.bsize : undefined;
}

async function sizeOf(path: string): Promise<number> {
  return (await stat(path).catch(() => undefined))?.size ?? 0;
}

/** A selection with what of it is here. */
class Order {
  readonly scene: Scene;
  readonly listing: Listing;
  readonly selection: Selection<RepoFile>;
  readonly files: RepoFile[];
  plan!: PullPlan;
  #done = new Map<string, number>(); // bytes that are here, by the file's name
  #reported = 0;
  downloadedBytes = 0;

  constructor(scene: Scene, listing: Listing) {
    const { name, settings } = scene;
    this.scene = scene;
    this.listing = listing;
    this.selection = selectFiles(listing.files, name.selector, titleOf(name), { mmproj: settings.mmproj });
    // Of a checkpoint its small files first: what is wrong with it shows in them.
    const files = filesOf(this.selection);
    this.files = this.selection.kind === 'gguf' ? files : files.toSorted((a, b) => a.bytes - b.bytes);
  }

  get #pointers(): RepoCache {
    return this.scene.cache;
  }

  isHere(file: RepoFile): Promise<boolean> {
    return this.#pointers.has(this.#pointers.pointer(this.listing.commit, file.name), file.bytes);
  }

  async look(): Promise<void> {
    const { cache } = this.scene;
    const { repo, revision, commit, license, gated, page } = this.listing;
    const files = [];
    for (const file of this.files) {
      const cached = (await this.isHere(file)) || (await cache.has(cache.blob(file.hash), file.bytes));
      const part = cached ? file.bytes : Math.min(await sizeOf(cache.partial(file.hash)), file.bytes);
      this.#done.set(file.name, part);
      files.push({ name: file.name, bytes: file.bytes, cached });
    }
    const totalBytes = this.files.reduce((sum, { bytes }) => sum + bytes, 0);
    const downloadBytes = totalBytes - this.#bytes;
    this.plan = { repo, revision, commit, ...(license && { license }), gated, page, files, totalBytes, downloadBytes };
  }

  get #bytes(): number {
    return [...this.#done.values()].reduce((sum, bytes) => sum + bytes, 0);
  }

  report(stage: PullProgress['stage'], file?: RepoFile, memoryBytes?: number): void {
    const bytes = this.#bytes;
    const { totalBytes } = this.plan;
    this.#reported = performance.now();
    this.scene.settings.onProgress({
      stage,
      plan: this.plan,
      ...(file && { file: file.name }),
      bytes,
      fraction: totalBytes > 0 ? bytes / totalBytes : 1,
      ...(memoryBytes !== undefined && { memoryBytes }),
    });
  }

  /** Makes room, or says that there is none. */
  async prepare(): Promise<void> {
    const { cache } = this.scene;
    if (this.plan.downloadBytes === 0 && this.plan.files.every(({ cached }) => cached)) return;
    try {
      await mkdir(cache.root, { recursive: true });
      await cache.prepare();
    } catch (error) {
      throw cacheError(error, plain(cache.folder));
    }
    const free = await freeBytes(cache.root);
    const { downloadBytes } = this.plan;
    if (free !== undefined && free < downloadBytes + SPARE_BYTES) {
      throw downloadError(
        'NO_SPACE',
        `${titleOf(this.scene.name)}: ${downloadBytes} bytes are to be downloaded, and the disk of ${plain(cache.root)} has ${free} left`,
      );
    }
  }

  #job(file: RepoFile) {
    const { hub, cache, signal, tuning } = this.scene;
    let before: number | undefined;
    const onBytes = (bytes: number) => {
      if (before !== undefined) this.downloadedBytes += bytes < before ? bytes : bytes - before; // less: begun again
      before = bytes;
      this.#done.set(file.name, bytes);
      if (performance.now() - this.#reported >= REPORT_MS) this.report('download', file);
    };
    return { hub, listing: this.listing, cache, signal, tuning, onBytes };
  }

  #locked<T>(file: RepoFile, work: () => Promise<T>): Promise<T> {
    const { cache, signal } = this.scene;
    return withLock(cache.lock(file.hash), signal, () => this.report('wait', file), work);
  }

  /** Has the first bytes of a file, and hands over where they are. */
  async head(file: RepoFile, bytes: number, use: (path: string) => Promise<void>): Promise<void> {
    const { cache } = this.scene;
    const pointer = cache.pointer(this.listing.commit, file.name);
    if (await this.isHere(file)) return use(pointer);
    const blob = cache.blob(file.hash);
    if (await cache.has(blob, file.bytes)) return use(blob);
    await this.#locked(file, async () => {
      if (await cache.has(blob, file.bytes)) return use(blob);
      await fetchHead(this.#job(file), file, bytes);
      await use(cache.partial(file.hash));
    });
  }

  /** Has a file. */
  async get(file: RepoFile): Promise<void> {
    const { cache } = this.scene;
    const { commit } = this.listing;
    if (await this.isHere(file)) return;
    await this.#locked(file, async () => {
      if (!(await cache.has(cache.blob(file.hash), file.bytes))) {
        this.report('download', file);
        await fetchFile(this.#job(file), file);
      }
      await cache.place(commit, file).catch((error: unknown) => {
        throw cacheError(error, plain(dirname(cache.pointer(commit, file.name))));
      });
    });
    this.#done.set(file.name, file.bytes);
  }
}

async function orderOf(scene: Scene): Promise<Order | PulledModel> {
  const found = await listingOf(scene);
  if ('local' in found) return found.local;
  const order = new Order(scene, found.listing);
  await order.look();
  return order;
}

/** Whether its headers are those of a model that can be loaded. Throws GemmaError where they are not. */
async function checkHeaders(order: Order): Promise<number | undefined> {
  const { selection, scene, plan } = order;
  const isEncoder = /mmproj[^/]*$/i.test(selection.model[0]?.name ?? '');
  if (!scene.settings.check || plan.downloadBytes === 0 || selection.kind !== 'gguf' || isEncoder) return undefined;
  return withHeaders(order, scene.signal, async (_, summary) => Promise.resolve(summary?.memory[0]?.totalBytes));
}

/**
 * Has a model of the hub on this machine.
 *
 * @throws GemmaError `ERR_DOWNLOAD`, `ERR_UNSUPPORTED_MODEL` and `ERR_GGUF_INVALID` (by its headers, before the rest is downloaded),
 * `ERR_FILE` (`PERMISSION`); TypeError; the signal's reason
 */
export async function pullModel(
  name: HubName,
  settings: PullSettings,
  signal: AbortSignal,
  tuning: Tuning = TUNING,
): Promise<PulledModel> {
  const scene = await sceneOf(name, settings, signal, tuning);
  if (isOffline(settings.offline)) return fromCache(scene);
  const order = await orderOf(scene);
  if (!(order instanceof Order)) return order;
  const { listing, selection } = order;
  order.report('plan');
  await order.prepare();
  const memoryBytes = await checkHeaders(order);
  if (memoryBytes !== undefined) order.report('checked', undefined, memoryBytes);
  for (const file of order.files) {
    signal.throwIfAborted();
    await order.get(file);
  }
  // Only now: whoever asks the cache for a branch finds whole models. A cache that cannot be written has all of it already.
  await scene.cache.writeRef(name.revision, listing.commit).catch(() => undefined);
  order.report('done');
  const { license } = listing;
  return {
    ...pulled(scene, listing.commit, selection),
    ...(license && { license }),
    downloadedBytes: order.downloadedBytes,
    upToDate: true,
  };
}

/** Where a model is whose headers alone are wanted: its files, or its headers in files of its size. */
export async function withHubHeaders<T>(
  name: HubName,
  settings: PullSettings,
  signal: AbortSignal,
  work: (at: { path: string; mmproj?: string }) => Promise<T>,
  tuning: Tuning = TUNING,
): Promise<T> {
  const scene = await sceneOf(name, settings, signal, tuning);
  if (isOffline(settings.offline)) return work(await fromCache(scene));
  const order = await orderOf(scene);
  if (!(order instanceof Order)) return work(order);
  await order.prepare();
  return withHeaders(order, signal, work);
}
