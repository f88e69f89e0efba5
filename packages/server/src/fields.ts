// Bodies against zod schemas. Every schema is strict: what an interface does not know is an error that names it, never ignored.
import { z } from 'zod';
import { HttpError } from './errors.js';

const MAX_NAME = 200;

type Issue = z.core.$ZodIssue;

function pathOf(path: readonly PropertyKey[]): string {
  const text = path.reduce<string>((sofar, key) => {
    if (typeof key === 'number') return `${sofar}[${key}]`;
    return sofar === '' ? String(key) : `${sofar}.${String(key)}`;
  }, '');
  return text.length > MAX_NAME ? `${text.slice(0, MAX_NAME)}...` : text;
}

// Of alternatives the one that came furthest is what was meant: it has the deepest problem, and the fewest.
function closest(issue: Issue, before: readonly PropertyKey[] = []): { issue: Issue; path: PropertyKey[] } {
  const path = [...before, ...issue.path];
  if (issue.code !== 'invalid_union' || issue.errors.length === 0) return { issue, path };
  const depth = (issues: readonly Issue[]) => Math.max(0, ...issues.map((each) => each.path.length));
  const [best] = [...issue.errors].sort((a, b) => depth(b) - depth(a) || a.length - b.length);
  const [first] = best ?? [];
  return first && (depth(best ?? []) > 0 || issue.errors.length === 1) ? closest(first, path) : { issue, path };
}

/**
 * A body as its schema makes it.
 *
 * @throws HttpError 400 that names the parameter: `unknown_parameter`, `missing_parameter` or `invalid_value`
 */
export function parsed<S extends z.ZodType>(schema: S, body: unknown): z.output<S> {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  if (!issue) throw new HttpError(400, 'invalid_value', 'the body is not what was expected');
  const found = closest(issue);
  if (found.issue.code === 'unrecognized_keys') {
    const param = pathOf([...found.path, found.issue.keys[0] ?? '']);
    throw new HttpError(400, 'unknown_parameter', `${param}: there is no such parameter here`, { param });
  }
  const param = pathOf(found.path);
  const isMissing = found.issue.code === 'invalid_type' && found.issue.message.endsWith('received undefined');
  const what = found.issue.message.slice(0, 400);
  const message = isMissing ? `${param}: is missing` : `${param === '' ? 'the body' : param}: ${what}`;
  throw new HttpError(400, isMissing ? 'missing_parameter' : 'invalid_value', message, {
    ...(param !== '' && { param }),
  });
}

/** An array of so many at most, whose length is looked at before its items are. */
export function list<S extends z.ZodType>(item: S, max: number, min = 0) {
  return z.array(z.unknown()).min(min).max(max).pipe(z.array(item));
}

/** Token ids, of which there may be many: looked at in one go. */
export const tokenIds = z.custom<number[]>(
  (value) =>
    Array.isArray(value) && value.length > 0 && value.every((id) => Number.isInteger(id) && id >= 0 && id < 2 ** 31),
  'expected an array of token ids',
);

/** An object without the members that are undefined or null. */
export function given<T extends object>(values: T): { [K in keyof T]?: NonNullable<T[K]> } {
  const entries = Object.entries(values).filter(([, value]) => value !== undefined && value !== null);
  return Object.fromEntries(entries) as { [K in keyof T]?: NonNullable<T[K]> };
}
