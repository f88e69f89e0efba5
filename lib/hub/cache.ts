// The cache of huggingface_hub on disk, so that what one program has downloaded is there for all:
//
//   models--org--name/blobs/HASH                 the bytes, named by the file's hash; HASH.incomplete while they come
//   models--org--name/snapshots/COMMIT/FILE      a link to them
//   models--org--name/refs/REVISION              the commit of a branch or tag
//   .locks/models--org--name/HASH.lock           held by who downloads
import { randomBytes } from 'node:crypto';
import { copyFile, link, lstat, mkdir, open, readdir, readFile, realpath, rename, rm, stat, symlink, writeFile } from 'node:fs/promises'; // prettier-ignore
import { dirname, join, relative, sep } from 'node:path';
import { plain } from '../values.js';
import { downloadError } from './failure.js';
import type { RepoFile } from './listing.js';
import { COMMIT, isSafePath } from './names.js';
import { isTrue } from './places.js';

const MAX_LOCAL_FILES = 10_000;
const MAX_DEPTH = 6;

function beside(path: string): string {
  return `${path}.${randomBytes(4).toString('hex')}.tmp`;
}

/** Whether a path, its links followed, lies below a folder. False where either is not there. */
export async function isInside(path: string, folder: string): Promise<boolean> {
  const [end, root] = await Promise.all([path, folder].map((one) => realpath(one).catch(() => undefined)));
  return end !== undefined && root !== undefined && end.startsWith(root.endsWith(sep) ? root : root + sep);
}

/** Asks the system to have a folder's names on the disk; some systems cannot. */
async function syncFolder(path: string): Promise<void> {
  const handle = await open(path, 'r').catch(() => undefined);
  await handle?.sync().catch(() => undefined);
  await handle?.close();
}

/** Gives a whole file its name, for good. */
export async function putInPlace(from: string, to: string): Promise<void> {
  await rename(from, to);
  await syncFolder(dirname(to));
}

/** The part of the cache that is one repository's. */
export class RepoCache {
  readonly root: string;
  readonly folder: string;
  readonly #locks: string;

  constructor(root: string, repo: string) {
    const title = `models--${repo.replace('/', '--')}`;
    this.root = root;
    this.folder = join(root, title);
    this.#locks = join(root, '.locks', title);
  }

  blob(hash: string): string {
    return join(this.folder, 'blobs', hash);
  }

  partial(hash: string): string {
    return `${this.blob(hash)}.incomplete`;
  }

  lock(hash: string): string {
    return join(this.#locks, `${hash}.lock`);
  }

  snapshot(commit: string): string {
    return join(this.folder, 'snapshots', commit);
  }

  pointer(commit: string, name: string): string {
    return join(this.snapshot(commit), ...name.split('/'));
  }

  /** Makes the folders that downloads need. */
  async prepare(): Promise<void> {
    await mkdir(join(this.folder, 'blobs'), { recursive: true });
    await mkdir(this.#locks, { recursive: true });
  }

  /**
   * Whether a file is there with its size. What other programs have put there is believed.
   *
   * @throws GemmaError `ERR_DOWNLOAD`, `PATH_REJECTED` for a link that leads out of the cache
   */
  async has(path: string, bytes: number): Promise<boolean> {
    const found = await stat(path).catch(() => undefined);
    if (!found?.isFile()) return false;
    await this.checkInside(path);
    return found.size === bytes;
  }

  async checkInside(path: string): Promise<void> {
    if (await isInside(path, this.root)) return;
    throw downloadError('PATH_REJECTED', `${plain(path)}: leads out of the cache ${plain(this.root)}`);
  }

  /**
   * Gives a blob its name in a snapshot: a link as huggingface_hub makes them; where there can be none (Windows without the right to,
   * file systems without links, Node's permission model) a second name of the same file, else a copy.
   */
  async place(commit: string, { name, hash, bytes }: RepoFile): Promise<void> {
    const pointer = this.pointer(commit, name);
    const blob = this.blob(hash);
    if (await this.has(pointer, bytes)) return;
    await mkdir(dirname(pointer), { recursive: true });
    if (!(await isInside(join(dirname(pointer), '.'), this.root))) {
      throw downloadError('PATH_REJECTED', `${plain(pointer)}: leads out of the cache ${plain(this.root)}`);
    }
    const fresh = beside(pointer);
    try {
      await makeLink(blob, fresh);
      await rename(fresh, pointer); // in the place of what was there, such as a link to nothing
    } finally {
      await rm(fresh, { force: true });
    }
  }

  /** The commit that a branch or tag stood for when it was downloaded last. */
  async readRef(revision: string): Promise<string | undefined> {
    if (COMMIT.test(revision)) return revision;
    const path = join(this.folder, 'refs', ...revision.split('/'));
    const found = await stat(path).catch(() => undefined);
    if (!found?.isFile() || found.size > 100 || !(await isInside(path, this.root))) return undefined;
    const commit = (await readFile(path, 'utf8').catch(() => '')).trim();
    return COMMIT.test(commit) ? commit : undefined;
  }

  async writeRef(revision: string, commit: string): Promise<void> {
    if (!isSafePath(revision) || (await this.readRef(revision)) === commit) return;
    const path = join(this.folder, 'refs', ...revision.split('/'));
    await mkdir(dirname(path), { recursive: true });
    const fresh = beside(path);
    try {
      await writeFile(fresh, commit);
      await rename(fresh, path);
    } finally {
      await rm(fresh, { force: true });
    }
  }

  /** The files of a snapshot: whole ones, because nothing else gets a name there. */
  async localFiles(commit: string): Promise<{ name: string; bytes: number }[]> {
    const root = this.snapshot(commit);
    const files: { name: string; bytes: number }[] = [];
    const walk = async (folder: string, depth: number): Promise<void> => {
      for (const entry of await readdir(folder, { withFileTypes: true }).catch(() => [])) {
        const path = join(folder, entry.name);
        if (files.length >= MAX_LOCAL_FILES) return;
        if (entry.isDirectory()) {
          if (depth < MAX_DEPTH) await walk(path, depth + 1);
          continue;
        }
        const found = await stat(path).catch(() => undefined);
        if (found?.isFile()) files.push({ name: relative(root, path).split(sep).join('/'), bytes: found.size });
      }
    };
    await walk(root, 0);
    return files;
  }
}

async function makeLink(blob: string, path: string): Promise<void> {
  const attempts = [
    () => symlink(relative(dirname(path), blob), path),
    () => link(blob, path), // not of a link: of what it leads to there would be no end
    () => copyFile(blob, path),
  ];
  const isLink = (await lstat(blob)).isSymbolicLink();
  if (isTrue(process.env.HF_HUB_DISABLE_SYMLINKS)) attempts.shift();
  for (const attempt of attempts.slice(0, -1)) {
    if (isLink && attempt === attempts.at(-2)) continue;
    try {
      return await attempt();
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'ENOSPC' || code === 'EROFS' || code === 'EDQUOT') throw error;
    }
  }
  await attempts.at(-1)?.();
}
