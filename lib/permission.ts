// Files as the system and Node's permission model (`--permission`) allow them. The model binds JavaScript alone, so it is asked
// before native code opens a file.
import { resolve } from 'node:path';
import { GemmaError } from './errors.js';
import { plain } from './values.js';

// Types know a Node that has it always; it is there with --permission alone.
// `has('fs.read')` without a path is no answer: Node 20 says true where one folder is allowed.
const permission = process.permission as NodeJS.ProcessPermission | undefined;

/** Whether there is a permission model. */
export const isRestricted = permission !== undefined;

/** Whether the permission model, if there is one, lets this process read a file or folder. */
export function mayRead(path: string): boolean {
  return permission?.has('fs.read', resolve(path)) ?? true;
}

function refusalToRead(path: string): string {
  return `Node's permission model forbids reading a file: allow it with --allow-fs-read=${plain(path)}`;
}

/** Says how to allow it where the permission model does not let this process read a file or folder; else undefined. */
export function refusalOf(path: string): string | undefined {
  return mayRead(path) ? undefined : refusalToRead(resolve(path));
}

/** Throws GemmaError `ERR_FILE`, `PERMISSION` for what `refusalOf` refuses. */
export function checkReadable(path: string): void {
  const refusal = refusalOf(path);
  if (refusal !== undefined) throw new GemmaError('ERR_FILE', refusal, 'PERMISSION');
}

/** What the permission model has refused to read, and the flag that allows it; undefined for another error. */
export function refusalIn(error: unknown): string | undefined {
  const { code, permission: kind, resource = '' } = error as { code?: string; permission?: string; resource?: string };
  return code === 'ERR_ACCESS_DENIED' && kind === 'FileSystemRead' ? refusalToRead(resource) : undefined;
}

/** Throws GemmaError `ERR_FILE`, `PERMISSION` where the permission model does not let this process write a file. */
export function checkWritable(path: string): void {
  if (permission?.has('fs.write', resolve(path)) ?? true) return;
  const message = `Node's permission model forbids writing a file: allow it with --allow-fs-write=${plain(resolve(path))}`;
  throw new GemmaError('ERR_FILE', message, 'PERMISSION');
}
