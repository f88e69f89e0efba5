// Files of this machine that callers name, by path or URL. Whatever would make the system ask another machine is refused: on
// Windows \\host\share sends this user's credentials to host.
import { realpath, stat } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { GemmaError } from './errors.js';
import { plain, show } from './values.js';

/** Whether Windows looks for a path elsewhere: on another machine, or among its devices. */
export function isElsewhere(path: string, platform: NodeJS.Platform = process.platform): boolean {
  return platform === 'win32' && /^[\\/]{2}/.test(path) && !/^\\\\\?\\[a-z]:\\/i.test(path);
}

/**
 * The path of a file that is named by its path or by a `file:` URL. `name` begins the messages of errors.
 *
 * @throws TypeError for what is no path, and for URLs that name no file; GemmaError `code`/`LOCAL_BLOCKED` where the file would be on another machine, and for
 * every path without `allowLocal`
 */
export function localPath(
  file: string | URL,
  name: string,
  { allowLocal }: { allowLocal: boolean },
  code: 'ERR_FILE' | 'ERR_IMAGE' | 'ERR_VIDEO',
): string {
  const blocked = (reason: string) =>
    new GemmaError(code, `${name}: ${plain(String(file))}: ${reason}`, 'LOCAL_BLOCKED');
  if (!allowLocal) throw blocked('files of this machine are not read (option allowLocal)');
  let path: string = file as string;
  if (!(file instanceof URL) && (typeof file !== 'string' || file === '')) {
    throw new TypeError(`${name}: expected a path or a file: URL, found ${show(file)}`);
  }
  if (file instanceof URL || /^file:/i.test(path)) {
    try {
      const url = new URL(file);
      if (url.protocol !== 'file:') throw new TypeError('expected a file: URL');
      if (url.host !== '') throw blocked('a file of another machine');
      path = fileURLToPath(url);
    } catch (error) {
      if (error instanceof GemmaError) throw error;
      throw new TypeError(`${name}: ${plain(path)}: expected a path or a file: URL that names a file of this machine`, {
        cause: error,
      });
    }
  }
  if (isElsewhere(path)) throw blocked('a file of another machine');
  return path;
}

/**
 * The path of a file that another one may take the place of: the end of a link, or the path itself where nothing is there yet. A
 * rename would put a file in the place of a link, and of a device such as /dev/null.
 *
 * @throws GemmaError `ERR_FILE` for a device, a pipe or a socket
 */
export async function replaceablePath(path: string): Promise<string> {
  const found = await stat(path).catch(() => undefined);
  if (!found) return path;
  if (!found.isFile() && !found.isDirectory()) {
    throw new GemmaError('ERR_FILE', `${plain(path)}: cannot be written (not a regular file)`);
  }
  return realpath(path).catch(() => path);
}

/** Whether two paths name one file. */
export async function isSameFile(a: string, b: string): Promise<boolean> {
  const [first, second] = await Promise.all([a, b].map((path) => stat(path, { bigint: true }).catch(() => undefined)));
  if (!first || !second) return false;
  if (first.ino !== 0n || second.ino !== 0n) return first.ino === second.ino && first.dev === second.dev;
  return (await realpath(a)) === (await realpath(b)); // a file system without numbers
}
