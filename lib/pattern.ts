// Regular expressions of JSON Schema (`pattern`, `patternProperties`, formats) as sets of strings that can be intersected and
// complemented. Strings are matched by Brzozowski's derivatives (J. ACM 11, 1964; with the equivalences of Owens, Reppy and Turon, JFP
// 19, 2009) instead of by JavaScript's RegExp: the time is linear in the text and no pattern backtracks. The same sets are written out
// for XGrammar, which knows neither lookaheads nor searches and writes no JSON escapes.
import type { Sliced } from './turns.js';
import { plain } from './values.js';

/** A pattern that is none, or uses what is not supported, or takes too much work. */
export class PatternError extends Error {}

const LAST = 0x10ffff;
const MAX_LENGTH = 10_000; // characters of a pattern
const MAX_NESTING = 100;
const MAX_COUNT = 100_000; // of a repetition
const MAX_WORK = 100_000; // steps of making sets, for a pattern or a match
const MAX_WRITING = 20_000; // the same, for an intersection that is written out
const MAX_STATES = 400; // of an automaton that is written out
const MAX_TEXT = 16_000; // characters of what is written out
// XGrammar looks through the vocabulary once for each place in a pattern; long where words fit.
const WIDE = 40; // characters of a class
const MAX_WIDE = 16; // such places
const CHARACTERS_PER_STEP = 8; // of a pattern that is read, of a text that is matched
const STEPS_OF_PROPERTY = 32;
const WORK_PER_STEP = 100;

/** Code points: first and last of each range in turn, in order, with gaps between. */
export type Ranges = readonly number[];

const ALL_CHARACTERS: Ranges = [0, LAST];
const DIGITS: Ranges = [0x30, 0x39];
const WORD: Ranges = [0x30, 0x39, 0x41, 0x5a, 0x5f, 0x5f, 0x61, 0x7a];
const LINE_ENDS: Ranges = [0x0a, 0x0a, 0x0d, 0x0d, 0x2028, 0x2029];
// prettier-ignore
const SPACE: Ranges = [
  0x09, 0x0d, 0x20, 0x20, 0xa0, 0xa0, 0x1680, 0x1680, 0x2000, 0x200a, 0x2028, 0x2029, 0x202f, 0x202f, 0x205f, 0x205f, 0x3000, 0x3000,
  0xfeff, 0xfeff,
];

function union(pairs: readonly number[]): Ranges {
  const ranges: [number, number][] = [];
  for (let i = 0; i < pairs.length; i += 2) ranges.push([pairs[i] as number, pairs[i + 1] as number]);
  ranges.sort((a, b) => a[0] - b[0]);
  const merged: number[] = [];
  for (const [low, high] of ranges) {
    const end = merged.length - 1;
    if (end > 0 && low <= (merged[end] as number) + 1) merged[end] = Math.max(merged[end] as number, high);
    else merged.push(low, high);
  }
  return merged;
}

function complement(ranges: Ranges): Ranges {
  const rest: number[] = [];
  let next = 0;
  for (let i = 0; i < ranges.length; i += 2) {
    if ((ranges[i] as number) > next) rest.push(next, (ranges[i] as number) - 1);
    next = (ranges[i + 1] as number) + 1;
  }
  if (next <= LAST) rest.push(next, LAST);
  return rest;
}

function intersection(a: Ranges, b: Ranges): Ranges {
  return complement(union([...complement(a), ...complement(b)]));
}

function contains(ranges: Ranges, character: number): boolean {
  let low = 0;
  let high = ranges.length / 2;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((ranges[2 * middle + 1] as number) < character) low = middle + 1;
    else high = middle;
  }
  return 2 * low < ranges.length && (ranges[2 * low] as number) <= character;
}

const properties = new Map<string, Ranges>();

const SURROGATES = [0xd800, 0xdfff] as const;
const LAST_ASSIGNED = 0x31fff; // beyond are private use and tags
let everyCharacter: string | undefined;

// The characters of a Unicode property: asked of JavaScript's own tables, which find runs of them in a text of all characters.
function unicodeProperty(name: string): Ranges {
  const known = properties.get(name);
  if (known) return known;
  let runs: RegExp;
  try {
    runs = new RegExp(`\\p{${name}}+`, 'gu');
  } catch {
    throw new PatternError(`an unknown Unicode property, ${plain(name, 40)}`);
  }
  const [firstSurrogate, lastSurrogate] = SURROGATES;
  const nSurrogates = lastSurrogate - firstSurrogate + 1;
  const nNarrow = 0x10000 - nSurrogates; // characters of one unit
  if (everyCharacter === undefined) {
    const units = new Uint16Array(nNarrow + 2 * (LAST_ASSIGNED - 0xffff));
    for (let i = 0; i < nNarrow; ++i) units[i] = i < firstSurrogate ? i : i + nSurrogates;
    for (let i = nNarrow, high = 0; i < units.length; i += 2, ++high) {
      units[i] = 0xd800 + (high >> 10);
      units[i + 1] = 0xdc00 + (high & 0x3ff);
    }
    everyCharacter = Buffer.from(units.buffer).toString('utf16le');
  }
  const characterAt = (i: number) =>
    i < firstSurrogate ? i : i < nNarrow ? i + nSurrogates : 0x10000 + ((i - nNarrow) >> 1);
  const found: number[] = [];
  for (const { index, 0: run } of everyCharacter.matchAll(runs)) {
    const [first, last] = [characterAt(index), characterAt(index + run.length - 1)];
    if (first < firstSurrogate && last > lastSurrogate) found.push(first, firstSurrogate - 1, lastSurrogate + 1, last);
    else found.push(first, last);
  }
  properties.set(name, found);
  return found;
}

// Those that a pattern names, in steps: each takes a millisecond or two when it is asked for first.
function* unicodeProperties(pattern: string): Sliced<void> {
  for (const [, name] of pattern.matchAll(/\\[pP]\{([^}]*)\}/g)) {
    if (name === undefined || properties.has(name)) continue;
    for (let i = 0; i < STEPS_OF_PROPERTY; ++i) yield;
    try {
      unicodeProperty(name);
    } catch (error) {
      if (!(error instanceof PatternError)) throw error; // the parser says where, if it is one at all
    }
  }
}

// ---- The syntax: ECMAScript's ----

type Tree =
  | { kind: 'chars'; ranges: Ranges }
  | { kind: 'sequence' | 'choice'; parts: Tree[]; plain: boolean }
  | { kind: 'repeat'; of: Tree; min: number; max: number; plain: boolean }
  | { kind: 'look'; of: Tree; isNegative: boolean }
  | { kind: 'start' | 'end' };

/** Neither anchors nor lookaheads are inside: what it matches does not depend on what is around it. */
function isPlain(tree: Tree): boolean {
  return 'plain' in tree ? tree.plain : tree.kind === 'chars';
}

class Parser {
  readonly #text: readonly string[];
  #at = 0;
  #depth = 0;

  constructor(source: string) {
    if (source.length > MAX_LENGTH) throw new PatternError(`more than ${MAX_LENGTH} characters`);
    this.#text = [...source];
  }

  parse(): Tree {
    const tree = this.#choice();
    if (this.#at < this.#text.length) throw this.#error('a ) without its (');
    return tree;
  }

  #error(message: string): PatternError {
    return new PatternError(`${message}, at character ${this.#at + 1}`);
  }

  get #next(): string | undefined {
    return this.#text[this.#at];
  }

  #take(expected: string): boolean {
    const found =
      expected.length === 1
        ? this.#next === expected
        : this.#text.slice(this.#at, this.#at + expected.length).join('') === expected;
    if (found) this.#at += expected.length;
    return found;
  }

  #choice(): Tree {
    if (++this.#depth > MAX_NESTING) throw this.#error(`groups more than ${MAX_NESTING} deep`);
    const parts = [this.#sequence()];
    while (this.#take('|')) parts.push(this.#sequence());
    --this.#depth;
    return parts.length === 1 ? (parts[0] as Tree) : { kind: 'choice', parts, plain: parts.every(isPlain) };
  }

  #sequence(): Tree {
    const parts: Tree[] = [];
    for (let next = this.#next; next !== undefined && next !== '|' && next !== ')'; next = this.#next) {
      const atom = this.#atom();
      parts.push(this.#repeated(atom));
    }
    return parts.length === 1 ? (parts[0] as Tree) : { kind: 'sequence', parts, plain: parts.every(isPlain) };
  }

  #repeated(of: Tree): Tree {
    const [min, max] = this.#quantifier();
    if (min === 1 && max === 1) return of;
    if (of.kind === 'start' || of.kind === 'end' || of.kind === 'look')
      throw this.#error('an assertion that is repeated');
    this.#take('?'); // lazy: the same strings
    if (this.#quantifier(true)[1] !== 1) throw this.#error('nothing to repeat');
    return { kind: 'repeat', of, min, max, plain: isPlain(of) };
  }

  #quantifier(look = false): [number, number] {
    const before = this.#at;
    let found: [number, number] = [1, 1];
    if (this.#take('*')) found = [0, Infinity];
    else if (this.#take('+')) found = [1, Infinity];
    else if (this.#take('?')) found = [0, 1];
    else if (this.#next === '{') {
      const [, least, comma, most] =
        /^\{(\d+)(,?)(\d*)\}/.exec(this.#text.slice(this.#at, this.#at + 24).join('')) ?? [];
      if (least !== undefined) {
        this.#at = this.#text.indexOf('}', this.#at) + 1;
        const min = Number(least);
        const max = most ? Number(most) : comma ? Infinity : min;
        if (min > max) throw this.#error(`a repetition of at least ${min} and at most ${max}`);
        if (min > MAX_COUNT) throw this.#error(`a repetition of more than ${MAX_COUNT}`);
        found = [min, max > MAX_COUNT ? Infinity : max];
      }
    }
    if (look) this.#at = before;
    return found;
  }

  #atom(): Tree {
    const next = this.#text[this.#at++] as string;
    switch (next) {
      case '^':
        return { kind: 'start' };
      case '$':
        return { kind: 'end' };
      case '.':
        return { kind: 'chars', ranges: complement(LINE_ENDS) };
      case '(':
        return this.#group();
      case '[':
        return { kind: 'chars', ranges: this.#class() };
      case '\\':
        return { kind: 'chars', ranges: this.#escape(false) };
      case '*':
      case '+':
      case '?':
        throw this.#error('nothing to repeat');
      default:
        return { kind: 'chars', ranges: one(next) };
    }
  }

  #group(): Tree {
    let look: boolean | undefined; // negative?
    if (this.#take('?')) {
      if (this.#take('=')) look = false;
      else if (this.#take('!')) look = true;
      else if (this.#take('<')) {
        if (this.#next === '=' || this.#next === '!') throw this.#error('a lookbehind, which is not supported');
        while (this.#next !== undefined && this.#next !== '>') ++this.#at;
        if (!this.#take('>')) throw this.#error('a name without its end');
      } else if (!this.#take(':')) throw this.#error('a modifier of a group, which is not supported');
    }
    const of = this.#choice();
    if (!this.#take(')')) throw this.#error('a ( without its )');
    return look === undefined ? of : { kind: 'look', of, isNegative: look };
  }

  #class(): Ranges {
    const isNegative = this.#take('^');
    const found: number[] = [];
    while (!this.#take(']')) {
      const low = this.#member();
      // A minus between two characters is a range; elsewhere it is itself.
      if (this.#next === '-' && this.#text[this.#at + 1] !== ']' && low.length === 2 && low[0] === low[1]) {
        ++this.#at;
        const high = this.#member();
        if (high.length === 2 && high[0] === high[1]) {
          if ((high[0] as number) < (low[0] as number)) throw this.#error('a range whose end is before its beginning');
          found.push(low[0] as number, high[0] as number);
        } else found.push(...low, 0x2d, 0x2d, ...high);
      } else found.push(...low);
    }
    const ranges = union(found);
    return isNegative ? complement(ranges) : ranges;
  }

  #member(): Ranges {
    const next = this.#text[this.#at++];
    if (next === undefined) throw this.#error('a [ without its ]');
    return next === '\\' ? this.#escape(true) : one(next);
  }

  #hex(digits: number): number | undefined {
    const text = this.#text.slice(this.#at, this.#at + digits).join('');
    if (!new RegExp(`^[0-9a-fA-F]{${digits}}$`).test(text)) return undefined;
    this.#at += digits;
    return parseInt(text, 16);
  }

  #escape(inClass: boolean): Ranges {
    const next = this.#text[this.#at++];
    switch (next) {
      case undefined:
        throw this.#error('a \\ at the end');
      case 'd':
        return DIGITS;
      case 'D':
        return complement(DIGITS);
      case 'w':
        return WORD;
      case 'W':
        return complement(WORD);
      case 's':
        return SPACE;
      case 'S':
        return complement(SPACE);
      case 't':
        return [0x09, 0x09];
      case 'n':
        return [0x0a, 0x0a];
      case 'v':
        return [0x0b, 0x0b];
      case 'f':
        return [0x0c, 0x0c];
      case 'r':
        return [0x0d, 0x0d];
      case '0':
        return [0, 0];
      case 'c': {
        const letter = this.#text[this.#at++] ?? '';
        if (!/^[a-zA-Z]$/.test(letter)) throw this.#error('a control character without its letter');
        const code = letter.charCodeAt(0) % 32;
        return [code, code];
      }
      case 'x':
      case 'u':
        return this.#codePoint(next);
      case 'p':
      case 'P': {
        const end = this.#text.indexOf('}', this.#at);
        if (this.#next !== '{' || end < 0) throw this.#error('a Unicode property without its name');
        const ranges = unicodeProperty(this.#text.slice(this.#at + 1, end).join(''));
        this.#at = end + 1;
        return next === 'p' ? ranges : complement(ranges);
      }
      case 'b':
        if (inClass) return [0x08, 0x08];
        throw this.#error('a word boundary (\\b), which is not supported');
      default:
        if (next === 'B') throw this.#error('a word boundary (\\B), which is not supported');
        if (next === 'k' || /^[1-9]$/.test(next)) throw this.#error('a back reference, which is not supported');
        if (/^[a-zA-Z]$/.test(next)) throw this.#error(`\\${next}, which is no escape`);
        return one(next);
    }
  }

  #codePoint(kind: 'x' | 'u'): Ranges {
    let code: number | undefined;
    if (kind === 'x') code = this.#hex(2);
    else if (this.#next === '{') {
      const end = this.#text.indexOf('}', this.#at);
      const text = this.#text.slice(this.#at + 1, end).join('');
      if (/^[0-9a-fA-F]{1,8}$/.test(text)) code = parseInt(text, 16);
      this.#at = end + 1;
    } else {
      code = this.#hex(4);
      if (code !== undefined && code >= 0xd800 && code < 0xdc00 && this.#take('\\u')) {
        const low = this.#hex(4) ?? 0;
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
      }
    }
    if (code === undefined || code > LAST || code < 0) throw this.#error(`\\${kind} without its digits`);
    return [code, code];
  }
}

function one(character: string): Ranges {
  const code = character.codePointAt(0) as number;
  return [code, code];
}

// ---- Sets of strings ----

/** A set of strings. Equal ones that one `Patterns` made are the same object. */
export interface Language {
  readonly id: number;
  readonly kind: 'none' | 'empty' | 'chars' | 'then' | 'either' | 'both' | 'not' | 'repeat';
  /** holds the empty string */
  readonly nullable: boolean;
  readonly ranges: Ranges;
  readonly parts: readonly Language[];
  readonly min: number;
  readonly max: number;
}

// A set is nested as deep as its pattern is long.
function isOverflow(error: unknown): boolean {
  return error instanceof RangeError && error.message.includes('call stack');
}

function* withinStack<T>(work: Sliced<T>): Sliced<T> {
  try {
    return yield* work;
  } catch (error) {
    throw isOverflow(error) ? new PatternError('too many parts') : error;
  }
}

/** Makes sets of strings, and the automata that decide them. */
export class Patterns {
  readonly none: Language;
  readonly empty: Language;
  /** every string */
  readonly all: Language;
  #known = new Map<string, Language>();
  /** those of one after another, by their numbers */
  #sequences = new Map<number, Language>();
  #ids = 0;
  #left = MAX_WORK;
  readonly #automata = new Map<Language, Automaton>();

  constructor() {
    this.none = this.#make('none', false);
    this.empty = this.#make('empty', true);
    this.all = this.repeat(this.chars(ALL_CHARACTERS), 0, Infinity);
  }

  #make(
    kind: Language['kind'],
    nullable: boolean,
    parts: readonly Language[] = [],
    ranges: Ranges = [],
    min = 0,
    max = 0,
  ): Language {
    const key = `${kind} ${parts.map(({ id }) => id).join(' ')} ${ranges.join(' ')} ${min} ${max}`;
    let known = this.#known.get(key);
    if (!known) this.#known.set(key, (known = this.#new(kind, nullable, parts, ranges, min, max)));
    return known;
  }

  #work(steps: number): void {
    if ((this.#left -= steps) < 0) throw new PatternError('it takes too much work');
  }

  #new(
    kind: Language['kind'],
    nullable: boolean,
    parts: readonly Language[],
    ranges: Ranges = [],
    min = 0,
    max = 0,
  ): Language {
    this.#work(1);
    return { id: this.#ids++, kind, nullable, parts, ranges, min, max };
  }

  chars(ranges: Ranges): Language {
    return ranges.length === 0 ? this.none : this.#make('chars', false, [], ranges);
  }

  text(text: string): Language {
    return [...text].reduceRight((rest, character) => this.then(this.chars(one(character)), rest), this.empty);
  }

  then(first: Language, second: Language): Language {
    if (first === this.none || second === this.none) return this.none;
    if (first === this.empty) return second;
    if (second === this.empty) return first;
    if (first === this.all && second === this.all) return first;
    if (first.kind === 'then') {
      const [head, tail] = first.parts as [Language, Language];
      return this.then(head, this.then(tail, second));
    }
    const key = first.id * 2 ** 26 + second.id;
    let known = this.#sequences.get(key);
    if (!known)
      this.#sequences.set(key, (known = this.#new('then', first.nullable && second.nullable, [first, second])));
    return known;
  }

  /** The set of these strings. */
  *texts(texts: readonly string[]): Sliced<Language> {
    const found: Language[] = [];
    for (const text of texts) {
      if (text.length > MAX_LENGTH) throw new PatternError(`a text of more than ${MAX_LENGTH} characters`);
      yield* this.pause();
      found.push(this.text(text));
    }
    return this.either(found);
  }

  either(parts: readonly Language[]): Language {
    const flat = new Set(parts.flatMap((part) => (part.kind === 'either' ? part.parts : [part])));
    this.#work(flat.size >> 2);
    if (flat.has(this.all)) return this.all;
    flat.delete(this.none);
    const chars = [...flat].filter(({ kind }) => kind === 'chars');
    if (chars.length > 1) {
      for (const part of chars) flat.delete(part);
      flat.add(this.chars(union(chars.flatMap(({ ranges }) => ranges))));
    }
    if (flat.has(this.empty) && [...flat].some((part) => part !== this.empty && part.nullable)) flat.delete(this.empty);
    const sorted = [...flat].sort((a, b) => a.id - b.id);
    if (sorted.length < 2) return sorted[0] ?? this.none;
    return this.#make(
      'either',
      sorted.some(({ nullable }) => nullable),
      sorted,
    );
  }

  both(parts: readonly Language[]): Language {
    const flat = new Set(parts.flatMap((part) => (part.kind === 'both' ? part.parts : [part])));
    this.#work(flat.size >> 2);
    flat.delete(this.all);
    if (flat.has(this.none)) return this.none;
    if (flat.has(this.empty)) return [...flat].every(({ nullable }) => nullable) ? this.empty : this.none;
    // So many of these characters and so many of those: as many as both allow, of those in both.
    const runs = [...flat].filter(
      ({ kind, parts }) => kind === 'chars' || (kind === 'repeat' && parts[0]?.kind === 'chars'),
    );
    if (runs.length > 1) {
      for (const run of runs) flat.delete(run);
      const ranges = runs.map((run) => (run.kind === 'chars' ? run.ranges : (run.parts[0] as Language).ranges));
      const [min, max] = [
        Math.max(...runs.map(({ kind, min }) => (kind === 'chars' ? 1 : min))),
        Math.min(...runs.map(({ kind, max }) => (kind === 'chars' ? 1 : max))),
      ];
      if (min > max) return this.none;
      flat.add(this.repeat(this.chars(ranges.reduce(intersection)), min, max));
      return this.both([...flat]);
    }
    const sorted = [...flat].sort((a, b) => a.id - b.id);
    if (sorted.length < 2) return sorted[0] ?? this.all;
    return this.#make(
      'both',
      sorted.every(({ nullable }) => nullable),
      sorted,
    );
  }

  not(language: Language): Language {
    if (language.kind === 'not') return language.parts[0] as Language;
    if (language === this.none) return this.all;
    if (language === this.all) return this.none;
    return this.#make('not', !language.nullable, [language]);
  }

  repeat(language: Language, min: number, max: number): Language {
    if (max === 0 || language === this.empty) return this.empty;
    if (language === this.none) return min === 0 ? this.empty : this.none;
    if (min === 1 && max === 1) return language;
    const least = language.nullable ? 0 : min;
    if (
      least === 0 &&
      max === Infinity &&
      language.kind === 'repeat' &&
      language.max === Infinity &&
      language.min < 2
    ) {
      return this.repeat(language.parts[0] as Language, 0, Infinity);
    }
    return this.#make('repeat', least === 0, [language], [], least, max);
  }

  /** Strings of so many characters, as JSON Schema counts them: code points. */
  lengths(min: number, max: number): Language {
    return this.repeat(this.chars(ALL_CHARACTERS), min, max);
  }

  /**
   * The strings in which an ECMAScript pattern (flag u) finds something. Without `looks`, lookaheads are taken for met: more strings.
   *
   * @throws PatternError for a pattern that is none; for lookbehinds, back references, word boundaries, modifiers of groups, and for
   * lookaheads and anchors in places where they depend on how often something repeats
   */
  *search(pattern: string, looks = true): Sliced<Language> {
    const tree = yield* this.#parse(pattern);
    this.#left = MAX_WORK;
    const fromStart = yield* withinStack(this.#of(tree, this.all, true, looks));
    const later = isPlain(tree) ? fromStart : yield* withinStack(this.#of(tree, this.all, false, looks));
    if (later === fromStart) return this.then(this.all, later);
    return this.either([fromStart, this.then(this.lengths(1, Infinity), later)]);
  }

  /** The strings that a pattern matches from their beginning to their end. Otherwise as `search`. */
  *whole(pattern: string, looks = true): Sliced<Language> {
    const tree = yield* this.#parse(pattern);
    this.#left = MAX_WORK;
    return yield* withinStack(this.#of(tree, this.empty, true, looks));
  }

  *#parse(pattern: string): Sliced<Tree> {
    const parser = new Parser(pattern);
    yield* unicodeProperties(pattern);
    for (let i = 0; i < pattern.length; i += CHARACTERS_PER_STEP) yield; // reading it is one step
    return parser.parse();
  }

  /** A step's end: others may work with these sets until the next. @internal */
  *pause(): Sliced<void> {
    const left = this.#left;
    yield;
    this.#left = left;
  }

  /** What begins with the tree, followed by `rest`. */
  *#of(tree: Tree, rest: Language, atStart: boolean | 'perhaps', looks: boolean): Sliced<Language> {
    if (isPlain(tree)) return this.then(yield* this.#plain(tree), rest);
    switch (tree.kind) {
      case 'start':
        if (atStart === 'perhaps')
          throw new PatternError('a ^ behind something that may be empty, which is not supported');
        return atStart ? rest : this.none;
      case 'end':
        return this.both([this.empty, rest]);
      case 'look': {
        if (!looks) return rest;
        const ahead = yield* this.#of(tree.of, this.all, atStart, looks);
        return this.both([tree.isNegative ? this.not(ahead) : ahead, rest]);
      }
      case 'choice': {
        const found: Language[] = [];
        for (const part of tree.parts) found.push(yield* this.#of(part, rest, atStart, looks));
        return this.either(found);
      }
      case 'sequence': {
        const starts: (boolean | 'perhaps')[] = [];
        let start = atStart;
        for (const part of tree.parts) {
          starts.push(start);
          start = start === false ? false : after(part, start);
        }
        let tail = rest;
        for (let i = tree.parts.length - 1; i >= 0; --i) {
          if (i % CHARACTERS_PER_STEP === 0) yield* this.pause();
          tail = yield* this.#of(tree.parts[i] as Tree, tail, starts[i] as boolean, looks);
        }
        return tail;
      }
      case 'repeat': {
        const { of, min, max } = tree;
        if (max > 8) throw new PatternError('a lookahead or an anchor in what repeats, which is not supported');
        let found = rest;
        for (let i = max; i > 0; --i) {
          const start = i === 1 || atStart === false ? atStart : 'perhaps';
          const more = yield* this.#of(of, found, start, looks);
          found = i > min ? this.either([more, rest]) : more;
        }
        return found;
      }
      default:
        throw new PatternError('not supported');
    }
  }

  *#plain(tree: Tree): Sliced<Language> {
    switch (tree.kind) {
      case 'chars':
        return this.chars(tree.ranges);
      case 'sequence': {
        let tail = this.empty;
        for (let i = tree.parts.length - 1; i >= 0; --i) {
          if (i % CHARACTERS_PER_STEP === 0) yield* this.pause();
          tail = this.then(yield* this.#plain(tree.parts[i] as Tree), tail);
        }
        return tail;
      }
      case 'choice': {
        const found: Language[] = [];
        for (const part of tree.parts) {
          if (found.length % CHARACTERS_PER_STEP === 0) yield* this.pause();
          found.push(yield* this.#plain(part));
        }
        return this.either(found);
      }
      case 'repeat':
        return this.repeat(yield* this.#plain(tree.of), tree.min, tree.max);
      default:
        throw new PatternError('not supported');
    }
  }

  /** What may follow a character of the set. @internal */
  derivative(language: Language, character: number, known: Map<number, Language>): Language {
    const found = known.get(language.id);
    if (found) return found;
    const of = (part: Language) => this.derivative(part, character, known);
    const made = (): Language => {
      const { kind, parts, ranges, min, max } = language;
      const [first, second] = parts as [Language, Language];
      switch (kind) {
        case 'none':
        case 'empty':
          return this.none;
        case 'chars':
          return contains(ranges, character) ? this.empty : this.none;
        case 'then': {
          const direct = this.then(of(first), second);
          return first.nullable ? this.either([direct, of(second)]) : direct;
        }
        case 'either':
          return this.either(parts.map(of));
        case 'both':
          return this.both(parts.map(of));
        case 'not':
          return this.not(of(first));
        case 'repeat':
          return this.then(of(first), this.repeat(first, Math.max(0, min - 1), max - 1));
      }
    };
    const result = made();
    known.set(language.id, result);
    return result;
  }

  /** The least and the most characters, where a set is all texts of such lengths, line ends perhaps left out. */
  lengthsOf({ kind, parts, min, max }: Language): [number, number] | undefined {
    const [run] = parts;
    const isRun = kind === 'repeat' && run?.kind === 'chars';
    return isRun && complement(union([...run.ranges, ...LINE_ENDS])).length === 0 ? [min, max] : undefined;
  }

  /** @internal */
  automaton(language: Language): Automaton {
    if (this.#known.size + this.#sequences.size > MAX_WORK) {
      // Sets that were made before stay what they are; new ones are only no longer the same objects.
      this.#known = new Map();
      this.#sequences = new Map();
      this.#automata.clear();
    }
    this.#left = MAX_WORK;
    let found = this.#automata.get(language);
    if (!found) this.#automata.set(language, (found = new Automaton(this, language)));
    return found;
  }

  /**
   * Whether the set holds a text. Time: linear in the text.
   *
   * @throws PatternError where the set takes too much work
   */
  *has(language: Language, text: string): Sliced<boolean> {
    if (language === this.all) return true;
    return yield* withinStack(this.#has(language, text));
  }

  *#has(language: Language, text: string): Sliced<boolean> {
    const automaton = this.automaton(language);
    let state = language;
    let nextPause = this.#left - WORK_PER_STEP;
    let n = 0;
    for (const character of text) {
      if (++n % CHARACTERS_PER_STEP === 0 || this.#left < nextPause) {
        yield* this.pause();
        nextPause = this.#left - WORK_PER_STEP;
      }
      state = automaton.next(state, character.codePointAt(0) as number);
      if (state === this.none) return false;
      if (state === this.all) return true;
    }
    return state.nullable;
  }

  /**
   * XGrammar's regular expression of the contents of the JSON strings whose values are in the set: each character has one spelling, so
   * characters of it are counted as in the value. Control characters without a short escape are left out. Undefined: too large. Null:
   * there is none, and the empty string is told by `nullable`. `'plain'`: of the strings themselves.
   */
  *write(language: Language, as: 'json' | 'plain' = 'json'): Sliced<string | null | undefined> {
    try {
      const flat = isFlat(language) ? language : yield* this.#flatten(language);
      if (!flat) return undefined;
      const text = new Writer(as === 'json').write(flat);
      return text === undefined || text.length <= MAX_TEXT ? (text ?? null) : undefined;
    } catch (error) {
      if (error instanceof PatternError || isOverflow(error)) return undefined;
      throw error;
    }
  }

  /** Without intersections and complements: by the automaton's states, taken out one by one. Undefined: too large. */
  *#flatten(language: Language): Sliced<Language | undefined> {
    const automaton = this.automaton(language);
    this.#left = MAX_WRITING;
    const edges = yield* automaton.explore(MAX_STATES);
    if (!edges) return undefined;
    const end = -1;
    const out = new Map<number, Map<number, Language>>();
    const into = new Map<number, Set<number>>();
    const connect = (from: number, to: number, label: Language) => {
      const row = out.get(from) ?? new Map<number, Language>();
      out.set(from, row.set(to, this.either([row.get(to) ?? this.none, label])));
      into.set(to, (into.get(to) ?? new Set()).add(from));
    };
    const start = -2;
    connect(start, language.id, this.empty);
    for (const [{ id, nullable }, targets] of edges) {
      if (nullable) connect(id, end, this.empty);
      for (const [to, ranges] of targets) connect(id, to.id, this.chars(ranges));
    }
    const left = new Set([...edges.keys()].map(({ id }) => id));
    while (left.size > 0) {
      yield* this.pause();
      let best = 0;
      let cost = Infinity;
      for (const id of left) {
        const product = (into.get(id)?.size ?? 0) * (out.get(id)?.size ?? 0);
        if (product < cost) [best, cost] = [id, product];
      }
      left.delete(best);
      const row = out.get(best) ?? new Map<number, Language>();
      const loop = this.repeat(row.get(best) ?? this.none, 0, Infinity);
      row.delete(best);
      const sources = [...(into.get(best) ?? [])].filter((id) => id !== best);
      for (const from of sources) {
        const label = out.get(from)?.get(best) as Language;
        out.get(from)?.delete(best);
        for (const [to, tail] of row) connect(from, to, this.then(label, this.then(loop, tail)));
      }
      for (const to of row.keys()) into.get(to)?.delete(best);
      out.delete(best);
      into.delete(best);
    }
    return out.get(start)?.get(end) ?? this.none;
  }
}

/** Whether what follows the part still is at the start of the text. */
function after(part: Tree, start: boolean | 'perhaps'): boolean | 'perhaps' {
  switch (part.kind) {
    case 'start':
    case 'end':
    case 'look':
      return start;
    case 'chars':
      return false;
    case 'sequence':
      return part.parts.reduce<boolean | 'perhaps'>((now, next) => (now === false ? false : after(next, now)), start);
    case 'choice': {
      const ends = new Set(part.parts.map((choice) => after(choice, start)));
      return ends.size === 1 ? ([...ends][0] as boolean) : 'perhaps';
    }
    case 'repeat': {
      const end = after(part.of, start);
      return part.min > 0 || end === start ? end : 'perhaps';
    }
  }
}

function isFlat(language: Language, seen = new Set<Language>()): boolean {
  if (seen.has(language)) return true;
  seen.add(language);
  const { kind, parts } = language;
  return kind !== 'both' && kind !== 'not' && parts.every((part) => isFlat(part, seen));
}

/** The derivatives of a set by its characters, made as they are needed. */
class Automaton {
  readonly #patterns: Patterns;
  readonly #start: Language;
  /** where classes of characters begin that nothing in the set tells apart; a class may consist of several intervals */
  readonly #starts: number[];
  readonly #classes: number[];
  readonly #representatives: number[] = [];
  readonly #known: Map<number, Language>[] = [];

  constructor(patterns: Patterns, start: Language) {
    this.#patterns = patterns;
    this.#start = start;
    const sets = new Set<Ranges>();
    const seen = new Set<Language>();
    const collect = (language: Language) => {
      if (seen.has(language)) return;
      seen.add(language);
      if (language.kind === 'chars') sets.add(language.ranges);
      language.parts.forEach(collect);
    };
    collect(start);
    const cuts = new Set([0]);
    for (const ranges of sets) ranges.forEach((bound, i) => cuts.add(i % 2 === 0 ? bound : bound + 1));
    this.#starts = [...cuts].filter((cut) => cut <= LAST).sort((a, b) => a - b);
    const bySignature = new Map<string, number>();
    this.#classes = this.#starts.map((first) => {
      const signature = [...sets].map((ranges) => (contains(ranges, first) ? 1 : 0)).join('');
      let number = bySignature.get(signature);
      if (number === undefined) {
        number = this.#representatives.push(first) - 1;
        this.#known.push(new Map());
        bySignature.set(signature, number);
      }
      return number;
    });
  }

  #classOf(character: number): number {
    let low = 0;
    let high = this.#starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((this.#starts[middle] as number) <= character) low = middle;
      else high = middle - 1;
    }
    return this.#classes[low] as number;
  }

  #nextOf(state: Language, number: number): Language {
    return this.#patterns.derivative(
      state,
      this.#representatives[number] as number,
      this.#known[number] as Map<number, Language>,
    );
  }

  next(state: Language, character: number): Language {
    return this.#nextOf(state, this.#classOf(character));
  }

  /** The states from which an end can be reached, and the characters that lead on. Undefined: more than so many. */
  *explore(maxStates: number): Sliced<Map<Language, Map<Language, Ranges>> | undefined> {
    const found = new Map<Language, Map<Language, number[]>>();
    const pending = [this.#start];
    for (let state = pending.pop(); state; state = pending.pop()) {
      if (found.has(state)) continue;
      if (found.size >= maxStates) return undefined;
      yield* this.#patterns.pause();
      const targets = new Map<Language, number[]>();
      found.set(state, targets);
      this.#starts.forEach((first, i) => {
        const target = this.#nextOf(state, this.#classes[i] as number);
        if (target === this.#patterns.none) return;
        const ranges = targets.get(target) ?? [];
        ranges.push(first, (this.#starts[i + 1] ?? LAST + 1) - 1);
        targets.set(target, ranges);
        pending.push(target);
      });
    }
    const alive = new Set([...found.keys()].filter(({ nullable }) => nullable));
    for (let size = -1; size !== alive.size;) {
      size = alive.size;
      for (const [state, targets] of found) {
        if (!alive.has(state) && [...targets.keys()].some((target) => alive.has(target))) alive.add(state);
      }
    }
    const live = new Map<Language, Map<Language, Ranges>>();
    for (const [state, targets] of found) {
      if (!alive.has(state)) continue;
      live.set(state, new Map([...targets].filter(([to]) => alive.has(to)).map(([to, ranges]) => [to, union(ranges)])));
    }
    return live;
  }
}

// ---- XGrammar's syntax ----

/** Spelled with an escape in JSON, which is one letter here; others below U+0020 are left out. */
const ESCAPES = new Map([
  [0x22, '"'],
  [0x5c, '\\\\'],
  [0x08, 'b'],
  [0x0c, 'f'],
  [0x0a, 'n'],
  [0x0d, 'r'],
  [0x09, 't'],
]);
// Nor surrogates: text is UTF-8.
const ANY = complement([0xd800, 0xdfff]);
const RAW = complement(union([0, 0x1f, 0x22, 0x22, 0x5c, 0x5c, 0xd800, 0xdfff]));

// XGrammar 0.2.9 reads an expression of ASCII alone in another way, which takes `a(-b+)?` for `ab` and leaves out what JSON escapes, which
// here is written escaped. So a character beyond ASCII occurs, no time.
const AS_IT_STANDS = '\u00e9{0}';

// A range goes on across the surrogates, as none stands in a text: with the gap, XGrammar 0.2.9 may refuse a token behind one that
// a grammar names, after its mask has allowed it.
function withoutGap(ranges: Ranges): Ranges {
  const before = ranges.indexOf(0xd7ff);
  return before >= 0 && ranges[before + 1] === 0xe000
    ? [...ranges.slice(0, before), ...ranges.slice(before + 2)]
    : ranges;
}

class Writer {
  readonly #isJson: boolean;
  #nWide = 0;
  readonly #sizes = new Map<Language, number>();

  constructor(isJson: boolean) {
    this.#isJson = isJson;
  }

  /** Undefined: nothing can be written but, perhaps, nothing. */
  write(language: Language): string | undefined {
    if (this.#size(language) > MAX_TEXT) throw new PatternError('too long');
    const text = this.#of(language);
    if (text === undefined || text === '') return undefined;
    // eslint-disable-next-line no-control-regex -- all of ASCII
    return this.#isJson && /^[\x00-\x7f]*$/.test(text) ? text + AS_IT_STANDS : text;
  }

  // What is shared between parts is written as often as it occurs.
  #size(language: Language): number {
    const known = this.#sizes.get(language);
    if (known !== undefined) return known;
    const size = language.parts.reduce((sum, part) => sum + this.#size(part) + 2, language.ranges.length + 1);
    this.#sizes.set(language, size);
    return size;
  }

  // '' is the empty string, undefined no string.
  #of({ kind, parts, ranges, min, max }: Language): string | undefined {
    switch (kind) {
      case 'empty':
        return '';
      case 'chars':
        return this.#chars(ranges);
      case 'then': {
        const [first, second] = parts.map((part) => this.#of(part));
        return first === undefined || second === undefined ? undefined : first + second;
      }
      case 'either': {
        const texts = parts.map((part) => this.#of(part)).filter((text) => text !== undefined);
        const some = texts.filter((text) => text !== '');
        if (some.length === 0) return texts[0];
        if (some.length < texts.length) return optional(some.join('|'));
        return some.length === 1 ? group(some[0] as string) : `(${some.join('|')})`;
      }
      case 'repeat': {
        const [run] = parts as [Language];
        const before = this.#nWide;
        const text = this.#of(run);
        if (text === undefined || text === '') return min === 0 || text === '' ? '' : undefined;
        const most = max === Infinity ? Math.max(min, 1) : max;
        if (this.#nWide === before || most <= MAX_WIDE / 2) {
          this.#nWide = before + (this.#nWide - before) * most;
          return min === 0 && max === 1 ? optional(text) : group(text) + quantifier(min, max);
        }
        return group(text) + quantifier(Math.min(min, 1), Infinity); // how many is left to the check
      }
      default:
        return undefined;
    }
  }

  #chars(ranges: Ranges): string | undefined {
    let size = 0;
    for (let i = 0; i < ranges.length; i += 2) size += (ranges[i + 1] as number) - (ranges[i] as number) + 1;
    if (size > WIDE && ++this.#nWide > MAX_WIDE) throw new PatternError('too many wide classes');
    const raw = withoutGap(intersection(ranges, this.#isJson ? RAW : ANY));
    const escapes = [...(this.#isJson ? ESCAPES : [])]
      .filter(([code]) => contains(ranges, code))
      .map(([, letter]) => letter);
    const texts: string[] = [];
    if (raw.length === 2 && raw[0] === raw[1]) texts.push(literal(raw[0] as number));
    else if (raw.length > 0) {
      // A class must not begin with a ^.
      const pairs: string[] = [];
      for (let i = 0; i < raw.length; i += 2) {
        let low = raw[i] as number;
        const high = raw[i + 1] as number;
        if (low === 0x5e) {
          texts.push('\\^');
          if (++low > high) continue;
        }
        pairs.push(low === high ? member(low) : `${member(low)}-${member(high)}`);
      }
      texts.unshift(`[${pairs.join('')}]`);
    }
    if (escapes.length > 0) {
      texts.push(escapes.length === 1 ? `\\\\${escapes[0]}` : `\\\\[${escapes.join('')}]`);
    }
    if (texts.length === 0) return undefined;
    return texts.length === 1 ? texts[0] : `(${texts.join('|')})`;
  }
}

// Not by a question mark: behind a group that ends with a repetition, XGrammar 0.2.9 takes it for leave to begin in that repetition.
function optional(text: string): string {
  return `(${text}|)`;
}

function quantifier(min: number, max: number): string {
  if (max === Infinity) return min === 0 ? '*' : min === 1 ? '+' : `{${min},}`;
  return min === max ? `{${min}}` : `{${min},${max}}`;
}

function group(text: string): string {
  if (text.length > MAX_TEXT) throw new PatternError('too long');
  return text.length === 1 || /^\[(?:[^\]\\]|\\.)*\]$/u.test(text) || isGrouped(text) ? text : `(${text})`;
}

// Whether the first ( ends with the last ).
function isGrouped(text: string): boolean {
  if (!text.startsWith('(') || !text.endsWith(')')) return false;
  let depth = 0;
  let inClass = false;
  for (let i = 0; i < text.length; ++i) {
    const next = text[i];
    if (next === '\\') ++i;
    else if (inClass) inClass = next !== ']';
    else if (next === '[') inClass = true;
    else if (next === '(') ++depth;
    else if (next === ')' && --depth === 0) return i === text.length - 1;
  }
  return false;
}

function control(code: number): string | undefined {
  return code < 0x20 || code === 0x7f ? `\\u${code.toString(16).padStart(4, '0')}` : undefined;
}

function literal(code: number): string {
  const text = String.fromCodePoint(code);
  return control(code) ?? (/[\^$.*+?()[\]{}|/\\]/.test(text) ? `\\${text}` : text);
}

function member(code: number): string {
  const text = String.fromCodePoint(code);
  return control(code) ?? (/[\]\-[\\]/.test(text) ? `\\${text}` : text);
}
