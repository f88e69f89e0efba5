// JSON that comes piece by piece, as the value that it is so far. Every character is looked at once; a value that is handed out shares
// what was complete with those before it, so only what is open is copied.

/** A value that is still growing: whatever comes later may be missing. */
export type DeepPartial<T> = T extends readonly (infer Item)[]
  ? DeepPartial<Item>[]
  : T extends object
    ? { [Key in keyof T]?: DeepPartial<T[Key]> }
    : T;

interface Open {
  /** what is complete in it */
  value: unknown[] | Record<string, unknown>;
  /** of an object: the name of the property that is being read */
  key?: string;
  size: number;
}

type State = 'value' | 'first' | 'key' | 'colon' | 'next' | 'text' | 'escape' | 'code' | 'word' | 'end';

const ESCAPES: Readonly<Record<string, string>> = { b: '\b', f: '\f', n: '\n', r: '\r', t: '\t' };
const SPACE = new Set([' ', '\n', '\r', '\t']);

/** Copied members for each character that came: bounds all copies by a multiple of the text. */
const COPIES_PER_CHARACTER = 64;

function put(into: Open, value: unknown): void {
  ++into.size;
  if (Array.isArray(into.value)) into.value.push(value);
  else {
    // Not by assignment, which for __proto__ would not make a property.
    Object.defineProperty(into.value, into.key ?? '', { value, writable: true, enumerable: true, configurable: true });
  }
}

/** Reads a text in pieces. What is no JSON ends the reading: the value stays what it was. */
export class PartialJson {
  readonly #open: Open[] = [];
  #state: State = 'value';
  #isKey = false;
  /** the string or the word that is being read */
  #text = '';
  #code = '';
  /** the string ends with the first half of a character */
  #isHalf = false;
  #root: unknown;
  #hasChanged = false;
  #unspent = 0;

  /** Takes a piece. */
  push(piece: string): void {
    this.#unspent += piece.length * COPIES_PER_CHARACTER;
    for (let at = 0; at < piece.length && this.#state !== 'end';) at = this.#step(piece, at);
  }

  /**
   * The value so far, when it is another than the last that was taken and there is something to show; strings may be cut off, numbers
   * and words are there when they are complete. Do not change it: parts of it are in the next one.
   */
  take(): { value: unknown } | undefined {
    if (!this.#hasChanged) return undefined;
    const cost = this.#open.reduce((sum, { size }) => sum + size, 0);
    if (cost > this.#unspent) return undefined; // with a later piece
    this.#unspent = 0;
    this.#hasChanged = false;
    return { value: this.#snapshot() };
  }

  #snapshot(): unknown {
    const isText = !this.#isKey && ['text', 'escape', 'code'].includes(this.#state);
    const text = this.#isHalf ? this.#text.slice(0, -1) : this.#text;
    let inner: { value: unknown } | undefined = isText ? { value: text } : undefined;
    if (this.#open.length === 0) return inner ? inner.value : this.#root;
    for (let i = this.#open.length - 1; i >= 0; --i) {
      const { value, key, size } = this.#open[i] as Open;
      const copy: Open = {
        value: Array.isArray(value) ? [...value] : { ...value },
        size,
        ...(key !== undefined && { key }),
      };
      if (inner) put(copy, inner.value);
      inner = { value: copy.value };
    }
    return inner?.value;
  }

  // Returns where it goes on.
  #step(piece: string, at: number): number {
    const next = piece[at] as string;
    switch (this.#state) {
      case 'text':
        return this.#inText(piece, at);
      case 'escape':
        if (next === 'u') this.#state = 'code';
        else this.#addText(ESCAPES[next] ?? next);
        return at + 1;
      case 'code':
        this.#code += next;
        if (this.#code.length === 4) {
          const code = parseInt(this.#code, 16);
          this.#code = '';
          this.#addText(String.fromCharCode(code));
          this.#isHalf = code >= 0xd800 && code < 0xdc00;
        }
        return at + 1;
      case 'word':
        if (/[\w+.-]/.test(next)) {
          this.#text += next;
          return at + 1;
        }
        this.#endWord();
        return at;
      default:
    }
    if (SPACE.has(next)) return at + 1;
    const top = this.#open.at(-1);
    if ((next === ']' || next === '}') && (this.#state === 'next' || this.#state === 'first')) {
      this.#close();
      return at + 1;
    }
    switch (this.#state) {
      case 'next':
        this.#state = next !== ',' || !top ? 'end' : Array.isArray(top.value) ? 'value' : 'key';
        return at + 1;
      case 'colon':
        this.#state = next === ':' ? 'value' : 'end';
        return at + 1;
      case 'first':
        if (top && !Array.isArray(top.value)) this.#state = 'key';
        else this.#state = 'value';
        return at;
      case 'key':
        this.#isKey = true;
        this.#text = '';
        this.#state = next === '"' ? 'text' : 'end';
        return at + 1;
      default:
        this.#begin(next);
        return at + 1;
    }
  }

  #begin(next: string): void {
    if (next === '{' || next === '[') {
      this.#open.push({ value: next === '{' ? {} : [], size: 0 });
      this.#state = 'first';
      this.#hasChanged = true;
    } else if (next === '"') {
      this.#isKey = false;
      this.#text = '';
      this.#state = 'text';
      this.#hasChanged = true;
    } else {
      this.#text = next;
      this.#state = 'word';
    }
  }

  #inText(piece: string, at: number): number {
    let end = at;
    while (end < piece.length && piece[end] !== '"' && piece[end] !== '\\') ++end;
    if (end > at) {
      this.#text += piece.slice(at, end);
      this.#isHalf = false;
      if (!this.#isKey) this.#hasChanged = true;
    }
    if (end === piece.length) return end;
    if (piece[end] === '\\') this.#state = 'escape';
    else if (this.#isKey) {
      (this.#open.at(-1) as Open).key = this.#text;
      this.#isKey = false;
      this.#state = 'colon';
    } else this.#complete(this.#text);
    return end + 1;
  }

  #addText(text: string): void {
    this.#text += text;
    this.#isHalf = false;
    this.#state = 'text';
    if (!this.#isKey) this.#hasChanged = true;
  }

  #endWord(): void {
    let value: unknown;
    try {
      value = JSON.parse(this.#text);
    } catch {
      this.#state = 'end';
      return;
    }
    this.#complete(value);
  }

  #complete(value: unknown): void {
    this.#hasChanged = true;
    const top = this.#open.at(-1);
    if (top) {
      put(top, value);
      this.#state = 'next';
    } else {
      this.#root = value;
      this.#state = 'end';
    }
  }

  #close(): void {
    const { value } = this.#open.pop() as Open;
    this.#complete(value);
  }
}
