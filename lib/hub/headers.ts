// The headers of a model that is not here yet: its first bytes, which are downloaded anyway, in files as long as the real ones. Native
// code reads headers and asks for sizes, and so tells of a model what it will tell of the whole one, before gigabytes are downloaded.
import { mkdir, mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, sep } from 'node:path';
import { GemmaError } from '../errors.js';
import { addon, type NativeModelSummary } from '../native.js';
import { refusedBy } from './failure.js';
import type { RepoFile } from './listing.js';
import type { Selection } from './select.js';

/** The least and the most of a file that is looked at: Gemma 3's vocabulary takes 6 to 15 MiB. */
const FIRST_BYTES = 8 << 20;
const MOST_BYTES = 64 << 20;
const COPY_BYTES = 1 << 20;

interface Headed {
  readonly selection: Selection<RepoFile>;
  readonly scene: { readonly name: { readonly repo: string } };
  /** Has the first bytes of a file, or all of it, and hands over where. */
  head(file: RepoFile, bytes: number, use: (path: string) => Promise<void>): Promise<void>;
}

/** A file of `size` bytes that begins like another one and takes no room for the rest. */
async function copyHead(from: string, to: string, bytes: number, size: number): Promise<void> {
  const source = await open(from, 'r');
  const target = await open(to, 'wx').catch(async (error: unknown) => {
    await source.close();
    throw error;
  });
  try {
    const block = Buffer.alloc(Math.min(COPY_BYTES, bytes));
    for (let at = 0; at < bytes;) {
      const { bytesRead } = await source.read(block, 0, Math.min(block.length, bytes - at), at);
      if (bytesRead === 0) break;
      await target.write(block, 0, bytesRead, at);
      at += bytesRead;
    }
    await target.truncate(size);
  } finally {
    await source.close();
    await target.close();
  }
}

async function layOut(order: Headed, folder: string, bytes: number): Promise<{ path: string; mmproj?: string }> {
  const { kind, model, mmproj } = order.selection;
  const place = async (file: RepoFile) => {
    // What is small is wanted whole: a configuration, a vocabulary.
    const isWeights = /\.(?:gguf|safetensors)$/i.test(file.name);
    const wanted = isWeights ? Math.min(bytes, file.bytes) : file.bytes;
    const to = join(folder, ...file.name.split('/'));
    await mkdir(dirname(to), { recursive: true });
    await order.head(file, wanted, (from) => copyHead(from, to, wanted, file.bytes));
    return to;
  };
  const paths: string[] = [];
  for (const file of model) paths.push(await place(file));
  const encoder = mmproj && (await place(mmproj));
  return { path: kind === 'gguf' ? (paths[0] ?? '') : folder, ...(encoder !== undefined && { mmproj: encoder }) };
}

/**
 * Works with the headers of a model. The summary is of its default context.
 *
 * @throws GemmaError `ERR_DOWNLOAD`; what the headers are: `ERR_GGUF_INVALID`, `ERR_UNSUPPORTED_MODEL`; the signal's reason
 */
export async function withHeaders<T>(
  order: Headed,
  signal: AbortSignal,
  work: (at: { path: string; mmproj?: string }, summary: NativeModelSummary) => Promise<T>,
): Promise<T> {
  const { repo } = order.scene.name;
  let folder = '';
  try {
    for (let bytes = FIRST_BYTES; ; bytes *= 2) {
      signal.throwIfAborted();
      folder = await mkdtemp(join(tmpdir(), 'gemma-headers-'));
      const at = await layOut(order, folder, bytes);
      const { path, mmproj } = at;
      let summary;
      try {
        summary = await addon().inspect({ path, contexts: [0], ...(mmproj !== undefined && { mmproj }) });
      } catch (error) {
        // A header that is longer than what is here goes on with zeros, which is not a header.
        const mayBeCut =
          error instanceof GemmaError && error.code === 'ERR_GGUF_INVALID' && error.detail !== 'BAD_MAGIC';
        if (!mayBeCut || bytes >= MOST_BYTES) throw error;
        await rm(folder, { recursive: true, force: true });
        continue;
      }
      return await work(at, summary);
    }
  } catch (error) {
    if (error instanceof GemmaError) {
      const message = error.message.replaceAll(`${folder}${sep}`, `hf:${repo}:`);
      throw new GemmaError(error.code, message, error.detail);
    }
    throw refusedBy(error) ?? error;
  } finally {
    if (folder !== '') await rm(folder, { recursive: true, force: true });
  }
}
