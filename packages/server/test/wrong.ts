// Bodies that are wrong in one place each: every field of a good one with values of other types, and keys that nobody knows.

const VALUES: readonly unknown[] = [null, -1.5, 'text', true, [], {}];

/** A body with a change, and where it is. */
export interface Wrong {
  where: string;
  body: unknown;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Copies of a value, each changed in one place. `free` names members that may hold anything, as schemas and arguments do. */
export function* wrongOnes(value: unknown, free: readonly string[], where = ''): Generator<Wrong> {
  for (const other of VALUES) yield { where: `${where} = ${JSON.stringify(other)}`, body: other };
  if (Array.isArray(value)) {
    for (const [i, item] of value.entries()) {
      for (const { where: place, body } of wrongOnes(item, free, `${where}[${i}]`)) {
        yield { where: place, body: value.toSpliced(i, 1, body) };
      }
    }
  } else if (isObject(value)) {
    yield { where: `${where}.unknown`, body: { ...value, unknown: 1 } };
    for (const [key, item] of Object.entries(value)) {
      if (free.includes(key)) continue;
      for (const { where: place, body } of wrongOnes(item, free, `${where}.${key}`)) {
        yield { where: place, body: { ...value, [key]: body } };
      }
    }
  }
}
