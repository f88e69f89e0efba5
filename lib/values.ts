// Checks of single values that callers pass. A wrong type is a TypeError, a value out of range a RangeError; the message begins
// with the value's name and says what was expected and what was found.

const MAX_INT32 = 2 ** 31 - 1;

/** The largest bound of an integer that need not fit into 32 bits. */
export const ANY_SIZE = Number.MAX_SAFE_INTEGER;

// As many of the first characters as fit into so many bytes of UTF-8.
function fitting(characters: readonly string[], maxBytes: number): readonly string[] {
  let bytes = 0;
  const end = characters.findIndex((character) => (bytes += Buffer.byteLength(character)) > maxBytes);
  return end < 0 ? characters : characters.slice(0, end);
}

/** A text of at most so many bytes of UTF-8: itself, or its beginning and its end. Looks at no more of it than that. */
export function shorten(text: string, maxBytes: number): string {
  if (text.length <= maxBytes && Buffer.byteLength(text) <= maxBytes) return text;
  const half = Math.floor((maxBytes - 3) / 2);
  const head = fitting([...text.slice(0, half)], half);
  const tail = fitting([...text.slice(-half)].reverse(), half);
  return `${head.join('')}...${[...tail].reverse().join('')}`;
}

/** A text from outside (a path, a URL, what a library says) as it may stand in messages: short, on one line. */
export function plain(text: string, maxBytes = 200): string {
  // eslint-disable-next-line no-control-regex -- these are meant
  return shorten(text, maxBytes).replace(/[\x00-\x1f\x7f-\x9f\u2028\u2029]+/g, ' ');
}

/** A value as messages show it. */
export function show(value: unknown): string {
  if (typeof value === 'string') return plain(JSON.stringify(value.length > 40 ? `${value.slice(0, 40)}...` : value));
  if (typeof value === 'number' || typeof value === 'boolean') return String(value);
  return value === null ? 'null' : Array.isArray(value) ? 'an array' : typeof value;
}

/** What an object is called that keeps its data where JSON does not look, such as a Date, a Map or a promise; else undefined. */
export function opaqueName(value: object): string | undefined {
  const name = Object.prototype.toString.call(value).slice('[object '.length, -1);
  return name === 'Object' || Array.isArray(value) || Object.keys(value).length > 0 ? undefined : plain(name, 40);
}

/** The message of an error, or what was thrown instead of one; without the path that the system's errors repeat. */
export function reasonOf(error: unknown): string {
  try {
    const { message, syscall } = (error ?? {}) as Partial<NodeJS.ErrnoException>;
    if (typeof message !== 'string') return plain(String(error));
    const end = syscall === undefined ? -1 : message.indexOf(`, ${syscall}`);
    return plain(end < 0 ? message : message.slice(0, end), 400);
  } catch {
    return 'an error that cannot be read'; // its getters, its proxy or its toString throw
  }
}

/** A number that `accepts` takes; `expected` describes these. */
export function number(name: string, value: unknown, accepts: (value: number) => boolean, expected: string): number {
  if (typeof value !== 'number') throw new TypeError(`${name}: expected ${expected}, found ${show(value)}`);
  if (!accepts(value)) throw new RangeError(`${name}: expected ${expected}, found ${value}`);
  return value;
}

/** An integer from `min` to `max`, both included. */
export function integer(name: string, value: unknown, min: number, max = MAX_INT32): number {
  const expected = max === MAX_INT32 ? `an integer of at least ${min}` : `an integer from ${min} to ${max}`;
  return number(name, value, (n) => Number.isInteger(n) && n >= min && n <= max, expected);
}

export function boolean(name: string, value: unknown): boolean {
  if (typeof value !== 'boolean') throw new TypeError(`${name}: expected true or false, found ${show(value)}`);
  return value;
}

export function text(name: string, value: unknown): string {
  if (typeof value !== 'string') throw new TypeError(`${name}: expected a string, found ${show(value)}`);
  return value;
}

/** One of some strings. */
export function oneOf<T extends string>(name: string, value: unknown, values: readonly T[]): T {
  const found = text(name, value);
  if (!(values as readonly string[]).includes(found)) {
    throw new RangeError(`${name}: expected one of ${values.join(', ')}, found ${show(value)}`);
  }
  return found as T;
}
