// JSON inside of other text: where a value ends, and how Python's json.dumps writes one, which models have seen most.

/** JSON with a blank behind each comma and colon. */
export function spacedJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(spacedJson).join(', ')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value) ?? 'null';
  const members = Object.entries(value).filter(([, item]) => item !== undefined);
  return `{${members.map(([key, item]) => `${JSON.stringify(key)}: ${spacedJson(item)}`).join(', ')}}`;
}

const BLANKS = ' \n\r\t';

/** The position of the first character that is no blank, from `at` on. */
export function skipBlanks(text: string, at: number): number {
  while (at < text.length && BLANKS.includes(text.charAt(at))) ++at;
  return at;
}

/**
 * Where the object or array ends that begins at `at`: the position behind it. -1: the text ends before it does; -2: something
 * else stands there.
 */
export function endOfJson(text: string, at: number): number {
  if (at >= text.length) return -1;
  if (text.charAt(at) !== '{' && text.charAt(at) !== '[') return -2;
  let depth = 0;
  for (let i = at; i < text.length; ++i) {
    switch (text.charAt(i)) {
      case '"':
        for (++i; i < text.length && text.charAt(i) !== '"'; ++i) if (text.charAt(i) === '\\') ++i;
        break;
      case '{':
      case '[':
        ++depth;
        break;
      case '}':
      case ']':
        if (--depth === 0) return i + 1;
        break;
    }
  }
  return -1;
}

/** Where the JSON string ends that begins at `at`; as `endOfJson`. */
export function endOfString(text: string, at: number): number {
  if (at >= text.length) return -1;
  if (text.charAt(at) !== '"') return -2;
  for (let i = at + 1; i < text.length; ++i) {
    if (text.charAt(i) === '\\') ++i;
    else if (text.charAt(i) === '"') return i + 1;
  }
  return -1;
}
