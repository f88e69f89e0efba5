// Why a model cannot be got: one code, and a detail for each reason that a program may want to act on.
import { GemmaError } from '../errors.js';
import { reasonOf } from '../values.js';

export type DownloadDetail =
  | 'AMBIGUOUS_MODEL'
  | 'BAD_RESPONSE'
  | 'CACHE'
  | 'GATED'
  | 'HASH_MISMATCH'
  | 'NETWORK'
  | 'NO_SPACE'
  | 'NOT_FOUND'
  | 'OFFLINE'
  | 'PATH_REJECTED'
  | 'RATE_LIMITED'
  | 'UNAUTHORIZED';

export function downloadError(detail: DownloadDetail, message: string): GemmaError {
  return new GemmaError('ERR_DOWNLOAD', message, detail);
}

const FLAGS: Record<string, string> = {
  FileSystemRead: '--allow-fs-read',
  FileSystemWrite: '--allow-fs-write',
  Net: '--allow-net',
};

/** What Node's permission model has refused, and the flag that allows it; undefined for another error. */
export function refusedBy(error: unknown): GemmaError | undefined {
  const {
    code,
    permission = '',
    resource,
  } = (error ?? {}) as { code?: string; permission?: string; resource?: string };
  if (code !== 'ERR_ACCESS_DENIED') return undefined;
  const flag = FLAGS[permission] ?? permission;
  const value = resource && permission !== 'Net' ? `=${resource}` : '';
  return new GemmaError('ERR_FILE', `Node's permission model forbids it: allow it with ${flag}${value}`, 'PERMISSION');
}

const IS_FULL = new Set(['ENOSPC', 'EDQUOT', 'EFBIG']);

/** An error of the file system while something is put into a cache. */
export function cacheError(error: unknown, path: string): unknown {
  if (error instanceof GemmaError) return error.code === 'ERR_FILE' && error.detail === undefined ? downloadError('CACHE', error.message) : error; // prettier-ignore
  const refused = refusedBy(error);
  if (refused) return refused;
  const { code, syscall } = (error ?? {}) as NodeJS.ErrnoException;
  if (code === undefined || syscall === undefined) return error;
  if (IS_FULL.has(code)) {
    return downloadError('NO_SPACE', `${path}: the disk is full (${reasonOf(error)}). What has come stays: the next attempt goes on from there`); // prettier-ignore
  }
  return downloadError(
    'CACHE',
    `${path}: the cache cannot be written (${reasonOf(error)}). HF_HUB_CACHE or the option cacheDir names another folder`,
  );
}
