// Renders chat templates as transformers does: Jinja 2 in its immutable sandbox, with trim_blocks, lstrip_blocks, loop controls,
// `{% generation %}`, tojson, raise_exception and strftime_now. The library reads a template; what it says is evaluated here,
// by Python's rules and under limits, because templates come from strangers. (The library's own evaluation is JavaScript's:
// `str.lstrip('\n')` drops its argument, variables leak from one round of a loop into the next, `1 == '1'`.)
// Values are: null, booleans, strings, numbers (Python's int), arrays (list), Maps (dict), and the classes below.
import * as library from '@huggingface/jinja';
import { floatText, quoted, strip, stripEnd, stripStart, WORD } from './python-text.js';

/** Why a template gave no text. */
export type TemplateFailure = 'raised' | 'syntax' | 'error' | 'limit';

export class TemplateError extends Error {
  readonly kind: TemplateFailure;
  constructor(kind: TemplateFailure, message: string) {
    super(message);
    this.kind = kind;
  }
}

// The work of one rendering, in units of a node evaluated: what is read or made counts as well, by its length, so that time and
// memory are bounded whatever a template does. Long conversations with elaborate templates take some 10^5.
const MAX_WORK = 4_000_000;
const CHARACTERS_PER_UNIT = 32;
const ITEMS_PER_UNIT = 4;
const MAX_LENGTH = 1 << 26; // of a text
const MAX_ITEMS = 1 << 20; // of a list
const MAX_DEPTH = 1000; // of nested evaluation, as Python's own limit
const MAX_RANGE = 100_000; // Jinja's sandbox has the same

class Float {
  constructor(readonly value: number) {}
}
class Tuple {
  constructor(readonly items: readonly Value[]) {}
}
// What `safe` and `escape` make: text to which Jinja adds other text escaped.
class Markup {
  constructor(readonly text: string) {}
}
class Undefined {
  constructor(readonly name: string) {}
}
class Namespace {
  readonly values = new Map<Key, Value>();
}
class Func {
  constructor(readonly call: (args: readonly Value[], kwargs: Kwargs) => Value) {}
}
class Loop {
  last: readonly Value[] | undefined;
  constructor(
    readonly items: readonly Value[],
    readonly index0: number,
  ) {}
}

type Key = string | number | boolean | null;
type Dict = Map<Key, Value>;
type Kwargs = ReadonlyMap<string, Value>;
type Value =
  null | boolean | string | number | Float | Value[] | Tuple | Dict | Undefined | Markup | Namespace | Func | Loop;

class LoopControl extends Error {
  text = ''; // what the round has written so far
  constructor(readonly ends: boolean) {
    super();
  }
}

class Scope {
  readonly #values = new Map<string, Value>();
  constructor(readonly outer?: Scope) {}
  set(name: string, value: Value): void {
    this.#values.set(name, value);
  }
  get(name: string): Value {
    const value = this.#values.get(name);
    if (value !== undefined) return value;
    return this.outer ? this.outer.get(name) : new Undefined(name);
  }
}

// The library's syntax tree.
interface Node {
  readonly type: string;
}
interface Block extends Node {
  readonly body: readonly Node[];
}
interface Named extends Node {
  readonly value: string;
}
interface Literal<T> extends Node {
  readonly value: T;
}
interface If extends Block {
  readonly test: Node;
  readonly alternate: readonly Node[];
}
interface For extends Block {
  readonly loopvar: Node;
  readonly iterable: Node;
  readonly defaultBlock: readonly Node[];
}
interface Assignment extends Block {
  readonly assignee: Node;
  readonly value: Node | null;
}
interface Macro extends Block {
  readonly name: Named;
  readonly args: readonly Node[];
}
interface CallBlock extends Block {
  readonly call: Call;
  readonly callerArgs: readonly Node[] | null;
}
interface Call extends Node {
  readonly callee: Node;
  readonly args: readonly Node[];
}
interface FilterBlock extends Block {
  readonly filter: Node;
}
interface Filter extends Node {
  readonly operand: Node;
  readonly filter: Node;
}
interface Test extends Node {
  readonly operand: Node;
  readonly negate: boolean;
  readonly test: Named;
}
interface Member extends Node {
  readonly object: Node;
  readonly property: Node;
  readonly computed: boolean;
}
interface Slice extends Node {
  readonly start?: Node;
  readonly stop?: Node;
  readonly step?: Node;
}
interface Unary extends Node {
  readonly operator: { readonly value: string };
  readonly argument: Node;
}
interface Binary extends Node {
  readonly operator: { readonly value: string };
  readonly left: Node;
  readonly right: Node;
}
interface Select extends Node {
  readonly lhs: Node;
  readonly test: Node;
}
interface Ternary extends Node {
  readonly condition: Node;
  readonly trueExpr: Node;
  readonly falseExpr: Node;
}
interface Keyword extends Node {
  readonly key: Named;
  readonly value: Node;
}
interface Spread extends Node {
  readonly argument: Node;
}

function fail(message: string): never {
  throw new TemplateError('error', message);
}

function limit(what: string): never {
  throw new TemplateError('limit', what);
}

let work = 0; // of the rendering under way: there is one at a time

function charge(units = 1): void {
  work += units;
  if (work > MAX_WORK) limit('the template takes too much work');
}

function chargeText(length: number): void {
  if (length > MAX_LENGTH) limit('a text is too long');
  charge(1 + length / CHARACTERS_PER_UNIT);
}

function chargeItems(n: number): void {
  if (n > MAX_ITEMS) limit('a list is too long');
  charge(1 + n / ITEMS_PER_UNIT);
}

// Counts what was made before it is passed on.
function made<T extends Value>(value: T): T {
  if (typeof value === 'string') chargeText(value.length);
  else if (Array.isArray(value)) chargeItems(value.length);
  return value;
}

function typeName(value: Value): string {
  if (value === null) return 'NoneType';
  if (typeof value === 'string') return 'str';
  if (typeof value === 'boolean') return 'bool';
  if (typeof value === 'number') return 'int';
  if (Array.isArray(value)) return 'list';
  if (value instanceof Map) return 'dict';
  return value instanceof Float ? 'float' : value.constructor.name.toLowerCase();
}

function undefinedError({ name }: Undefined): never {
  return fail(`'${name}' is undefined`);
}

function truthy(value: Value): boolean {
  if (value === null || value instanceof Undefined) return false;
  if (Array.isArray(value)) return value.length > 0;
  if (value instanceof Tuple) return value.items.length > 0;
  if (value instanceof Map) return value.size > 0;
  if (value instanceof Float) return value.value !== 0;
  if (value instanceof Markup) return value.text !== '';
  return typeof value === 'object' ? true : Boolean(value);
}

function isSequence(value: Value): value is Value[] | Tuple {
  return Array.isArray(value) || value instanceof Tuple;
}

function itemsOf(value: Value): readonly Value[] {
  if (Array.isArray(value)) return value;
  if (value instanceof Tuple) return value.items;
  if (typeof value === 'string') {
    chargeItems(value.length);
    return Array.from(value);
  }
  if (value instanceof Map) {
    chargeItems(value.size);
    return [...value.keys()];
  }
  if (value instanceof Undefined) return [];
  return fail(`'${typeName(value)}' object is not iterable`);
}

function itemAt(items: readonly Value[], index: number): Value {
  const found = items.at(index);
  return found === undefined ? new Undefined(`item ${index} of ${items.length}`) : found;
}

// The number of a value that counts as one, else undefined.
function numeric(value: Value): number | undefined {
  if (typeof value === 'number') return value;
  if (typeof value === 'boolean') return Number(value);
  return value instanceof Float ? value.value : undefined;
}

function keyOf(value: Value): Key {
  if (value instanceof Float) return value.value;
  if (value === null || typeof value !== 'object') return value;
  return fail(`unhashable type: '${typeName(value)}'`);
}

function equal(a: Value, b: Value): boolean {
  charge();
  [a, b] = [plain(a), plain(b)];
  if (typeof a === 'string' && typeof b === 'string') {
    if (a.length === b.length) chargeText(a.length);
    return a === b;
  }
  if (a === b) return true;
  const [x, y] = [numeric(a), numeric(b)];
  if (x !== undefined && y !== undefined) return x === y;
  if (a instanceof Undefined && b instanceof Undefined) return true;
  if (a instanceof Map && b instanceof Map) {
    return a.size === b.size && [...a].every(([key, value]) => b.has(key) && equal(value, b.get(key) ?? null));
  }
  const same = (Array.isArray(a) && Array.isArray(b)) || (a instanceof Tuple && b instanceof Tuple);
  if (!same) return false;
  const [left, right] = [itemsOf(a), itemsOf(b)];
  return left.length === right.length && left.every((item, i) => equal(item, right[i] ?? null));
}

function compareTexts(a: string, b: string): number {
  chargeText(Math.min(a.length, b.length));
  for (let i = 0; i < a.length && i < b.length; ++i) {
    if (a[i] !== b[i]) return (a.codePointAt(i) ?? 0) - (b.codePointAt(i) ?? 0);
  }
  return a.length - b.length;
}

// Below, at or above zero. Throws as Python does where values have no order.
function compare(a: Value, b: Value, operator = '<'): number {
  charge();
  const [x, y] = [numeric(a), numeric(b)];
  if (x !== undefined && y !== undefined) return x - y;
  if (typeof a === 'string' && typeof b === 'string') return compareTexts(a, b);
  if (isSequence(a) && isSequence(b)) {
    const [left, right] = [itemsOf(a), itemsOf(b)];
    for (let i = 0; i < left.length && i < right.length; ++i) {
      if (!equal(left[i] ?? null, right[i] ?? null)) return compare(left[i] ?? null, right[i] ?? null, operator);
    }
    return left.length - right.length;
  }
  for (const value of [a, b]) if (value instanceof Undefined) undefinedError(value);
  return fail(`'${operator}' not supported between instances of '${typeName(a)}' and '${typeName(b)}'`);
}

function repr(value: Value): string {
  if (value instanceof Markup) return `Markup(${repr(value.text)})`;
  if (typeof value === 'string') {
    chargeText(value.length);
    return quoted(value);
  }
  return value instanceof Undefined ? 'Undefined' : str(value);
}

// Python's integers have no limit.
function intText(value: number): string {
  return Number.isSafeInteger(value) ? String(value) : fail('an integer past 2 ** 53');
}

function str(value: Value): string {
  charge();
  if (typeof value === 'string') return value;
  if (value instanceof Markup) return value.text;
  if (typeof value === 'number') return intText(value);
  if (value === null) return 'None';
  if (typeof value === 'boolean') return value ? 'True' : 'False';
  if (value instanceof Undefined) return '';
  if (value instanceof Float) return floatText(value.value);
  if (Array.isArray(value)) return `[${value.map(repr).join(', ')}]`;
  if (value instanceof Tuple) return `(${value.items.map(repr).join(', ')}${value.items.length === 1 ? ',' : ''})`;
  if (value instanceof Map) return `{${[...value].map(([key, item]) => `${repr(key)}: ${repr(item)}`).join(', ')}}`;
  return `<${typeName(value)}>`;
}

function textOf(value: Value, what: string): string {
  if (value instanceof Undefined) undefinedError(value);
  return typeof value === 'string' ? value : fail(`${what}: expected str, found ${typeName(value)}`);
}

function intOf(value: Value, what: string): number {
  if (value instanceof Undefined) undefinedError(value);
  if (typeof value === 'boolean') return Number(value);
  return typeof value === 'number' ? value : fail(`${what}: expected int, found ${typeName(value)}`);
}

interface JsonFormat {
  indent: number | null;
  ascii: boolean;
  separators: readonly [string, string];
  sorted: boolean;
}

function jsonText(text: string, ascii: boolean): string {
  const json = JSON.stringify(text);
  if (!ascii) return json;
  return json.replace(/[\x7f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

// Python's json.dumps.
function json(value: Value, format: JsonFormat, depth = 0): string {
  if (depth > MAX_DEPTH) limit('tojson: nested too deeply');
  charge();
  value = plain(value);
  if (value === null) return 'null';
  if (typeof value === 'string') {
    chargeText(value.length);
    return jsonText(value, format.ascii);
  }
  if (typeof value === 'boolean') return String(value);
  if (typeof value === 'number') return intText(value);
  if (value instanceof Float) {
    return floatText(value.value).replace('inf', 'Infinity').replace('nan', 'NaN');
  }
  const { indent } = format;
  const line = (level: number) => (indent === null ? '' : `\n${' '.repeat(indent * level)}`);
  const wrap = (open: string, parts: readonly string[], close: string) =>
    parts.length === 0
      ? open + close
      : open + line(depth + 1) + parts.join(format.separators[0] + line(depth + 1)) + line(depth) + close;
  if (isSequence(value)) {
    return wrap('[', itemsOf(value).map((item) => json(item, format, depth + 1)), ']'); // prettier-ignore
  }
  if (value instanceof Map) {
    const entries = [...value];
    if (format.sorted) entries.sort(([a], [b]) => compare(a, b));
    const name = (key: Key) => jsonText(typeof key === 'string' ? key : json(key, format), format.ascii);
    return wrap(
      '{',
      entries.map(([key, item]) => name(key) + format.separators[1] + json(item, format, depth + 1)),
      '}',
    );
  }
  return fail(`Object of type ${typeName(value)} is not JSON serializable`);
}

// Arguments of a function by position or name.
function take(names: readonly string[], args: readonly Value[], kwargs: Kwargs): (Value | undefined)[] {
  if (args.length > names.length) fail(`expected at most ${names.length} arguments, found ${args.length}`);
  for (const name of kwargs.keys()) if (!names.includes(name)) fail(`unexpected keyword argument '${name}'`);
  return names.map((name, i) => (i < args.length ? args[i] : kwargs.get(name)));
}

function capitalize(text: string): string {
  const [first = ''] = text;
  const [initial = '', ...more] = first.toUpperCase(); // more: "Ss" for a sharp s
  return initial + (more.join('') + text.slice(first.length)).toLowerCase();
}

// The argument of strip() and its like.
function charactersOf(chars: Value | undefined): string | undefined {
  return chars === undefined || chars === null ? undefined : textOf(chars, 'strip');
}

const LINE_END = '(?:\\r\\n|[\\n\\r\\v\\f\\x1c-\\x1e\\x85\\u2028\\u2029])';
const LINES = new RegExp(`[^\\n\\r\\v\\f\\x1c-\\x1e\\x85\\u2028\\u2029]*(?:${LINE_END}|$)`, 'g');
const AT_LINE_END = new RegExp(`${LINE_END}$`);

function lines(text: string, keepEnds = false): string[] {
  const found = text.match(LINES) ?? [];
  if (found.at(-1) === '') found.pop();
  return keepEnds ? found : found.map((line) => line.replace(AT_LINE_END, ''));
}

function split(text: string, separator: Value | undefined, most: number, fromRight: boolean): string[] {
  if (separator === undefined || separator === null) {
    const words = [...text.matchAll(WORD)];
    if (most < 0 || words.length <= most) return words.map(([word]) => word);
    if (fromRight) {
      const from = words.length - most;
      const before = words[from - 1];
      const head = before ? [text.slice(0, before.index + before[0].length)] : [];
      return [...head, ...words.slice(from).map(([word]) => word)];
    }
    return [...words.slice(0, most).map(([word]) => word), stripEnd(text.slice(words[most]?.index))];
  }
  const by = textOf(separator, 'split');
  if (by === '') fail('empty separator');
  const parts = text.split(by);
  if (most < 0 || parts.length <= most + 1) return parts;
  if (fromRight) return [parts.slice(0, parts.length - most).join(by), ...parts.slice(parts.length - most)];
  return [...parts.slice(0, most), parts.slice(most).join(by)];
}

function sliceOf<T>(items: readonly T[], start: number | undefined, stop: number | undefined, step: number): T[] {
  if (step === 0) fail('slice step cannot be zero');
  const n = items.length;
  const clamp = (at: number, low: number, high: number) => Math.min(Math.max(at < 0 ? at + n : at, low), high);
  const out: T[] = [];
  if (step > 0) {
    const end = stop === undefined ? n : clamp(stop, 0, n);
    for (let i = start === undefined ? 0 : clamp(start, 0, n); i < end; i += step) out.push(items[i] as T);
  } else {
    const end = stop === undefined ? -1 : clamp(stop, -1, n - 1);
    for (let i = start === undefined ? n - 1 : clamp(start, -1, n - 1); i > end; i += step) out.push(items[i] as T);
  }
  return out;
}

// "%s" and its like, as `'%s: %d' % (name, n)` and the filter `format` write them.
function percentFormat(format: string, args: readonly Value[]): string {
  let next = 0;
  const text = format.replace(
    /%(?:(\.\d+)?([sdirf%])|.|$)/gs,
    (found, precision: string | undefined, kind?: string) => {
      if (kind === '%') return '%';
      if (kind === undefined) fail(`unsupported format '${found}'`);
      const value = args[next++];
      if (value === undefined) fail('not enough arguments for format string');
      if (kind === 's' || kind === 'r') return kind === 's' ? str(value) : repr(value);
      const amount = numeric(value) ?? fail(`%${kind} format: a real number is required, not ${typeName(value)}`);
      return kind === 'f' ? amount.toFixed(Number(precision?.slice(1) ?? 6)) : String(Math.trunc(amount));
    },
  );
  if (next < args.length) fail('not all arguments converted during string formatting');
  return text;
}

const MONTHS = 'January February March April May June July August September October November December'.split(' ');
const DAYS = 'Sunday Monday Tuesday Wednesday Thursday Friday Saturday'.split(' ');

function strftime(date: Date, format: string): string {
  const two = (n: number) => String(n).padStart(2, '0');
  const hour = date.getHours() % 12 || 12;
  const month = MONTHS[date.getMonth()] ?? '';
  const weekday = DAYS[date.getDay()] ?? '';
  const fields: Readonly<Record<string, () => string>> = {
    Y: () => String(date.getFullYear()),
    y: () => two(date.getFullYear() % 100),
    m: () => two(date.getMonth() + 1),
    d: () => two(date.getDate()),
    e: () => String(date.getDate()).padStart(2),
    B: () => month,
    b: () => month.slice(0, 3),
    A: () => weekday,
    a: () => weekday.slice(0, 3),
    H: () => two(date.getHours()),
    I: () => two(hour),
    M: () => two(date.getMinutes()),
    S: () => two(date.getSeconds()),
    p: () => (date.getHours() < 12 ? 'AM' : 'PM'),
    F: () => strftime(date, '%Y-%m-%d'),
    T: () => strftime(date, '%H:%M:%S'),
    '%': () => '%',
  };
  return format.replace(/%(-?)([A-Za-z%])/g, (found, bare: string, name: string) => {
    const text = Object.hasOwn(fields, name) ? fields[name]?.() : undefined;
    if (text === undefined) return fail(`strftime_now: ${found} is not supported`);
    return bare ? text.replace(/^0(?=.)/, '') : text;
  });
}

type Method<T> = (self: T, args: readonly Value[], kwargs: Kwargs) => Value;

const stringMethods = new Map<string, Method<string>>([
  ['upper', (text) => text.toUpperCase()],
  ['lower', (text) => text.toLowerCase()],
  ['casefold', (text) => text.toLowerCase()],
  ['capitalize', (text) => capitalize(text)],
  ['title', (text) => text.replace(/\p{L}+/gu, capitalize)],
  ['strip', (text, [chars]) => strip(text, charactersOf(chars))],
  ['lstrip', (text, [chars]) => stripStart(text, charactersOf(chars))],
  ['rstrip', (text, [chars]) => stripEnd(text, charactersOf(chars))],
  ['startswith', (text, [start = null]) => affixes(start).some((affix) => text.startsWith(affix))],
  ['endswith', (text, [end = null]) => affixes(end).some((affix) => text.endsWith(affix))],
  ['removeprefix', (text, [p = '']) => (text.startsWith(textOf(p, 'removeprefix')) ? text.slice(str(p).length) : text)],
  [
    'removesuffix',
    (text, [s = '']) =>
      s !== '' && text.endsWith(textOf(s, 'removesuffix')) ? text.slice(0, text.length - str(s).length) : text,
  ],
  ['split', (text, args, kwargs) => splitMethod(text, args, kwargs, false)],
  ['rsplit', (text, args, kwargs) => splitMethod(text, args, kwargs, true)],
  ['splitlines', (text, [keep = false]) => lines(text, truthy(keep))],
  [
    'partition',
    (text, [by = null]) => {
      const at = text.indexOf(textOf(by, 'partition'));
      return new Tuple(at < 0 ? [text, '', ''] : [text.slice(0, at), by, text.slice(at + str(by).length)]);
    },
  ],
  [
    'rpartition',
    (text, [by = null]) => {
      const at = text.lastIndexOf(textOf(by, 'rpartition'));
      return new Tuple(at < 0 ? ['', '', text] : [text.slice(0, at), by, text.slice(at + str(by).length)]);
    },
  ],
  ['find', (text, [part = null]) => codePoints(text, text.indexOf(textOf(part, 'find')))],
  ['rfind', (text, [part = null]) => codePoints(text, text.lastIndexOf(textOf(part, 'rfind')))],
  [
    'index',
    (text, [part = null]) => {
      const at = text.indexOf(textOf(part, 'index'));
      return at < 0 ? fail('substring not found') : codePoints(text, at);
    },
  ],
  ['count', (text, [part = null]) => text.split(textOf(part, 'count')).length - 1],
  ['isdigit', (text) => /^\p{Nd}+$/u.test(text)],
  ['isdecimal', (text) => /^\p{Nd}+$/u.test(text)],
  ['isnumeric', (text) => /^\p{N}+$/u.test(text)],
  ['isalpha', (text) => /^\p{L}+$/u.test(text)],
  ['isalnum', (text) => /^[\p{L}\p{N}]+$/u.test(text)],
  ['isspace', (text) => text !== '' && strip(text) === ''],
  ['isupper', (text) => text === text.toUpperCase() && text !== text.toLowerCase()],
  ['islower', (text) => text === text.toLowerCase() && text !== text.toUpperCase()],
]);

const listMethods = new Map<string, Method<readonly Value[]>>([
  ['count', (items, [wanted = null]) => items.filter((item) => equal(item, wanted)).length],
  [
    'index',
    (items, [wanted = null]) => {
      const at = items.findIndex((item) => equal(item, wanted));
      return at < 0 ? fail('the value is not in the list') : at;
    },
  ],
  ['copy', (items) => [...items]],
]);

const dictMethods = new Map<string, Method<Dict>>([
  [
    'get',
    (dict, [key = null, otherwise = null]) => {
      const found = dict.get(keyOf(key));
      return found === undefined ? otherwise : found;
    },
  ],
  ['keys', (dict) => [...dict.keys()]],
  ['values', (dict) => [...dict.values()]],
  ['items', (dict) => pairs(dict)],
  ['copy', (dict) => new Map(dict)],
]);

// What Jinja's immutable sandbox refuses.
const MUTATING = new Set(
  'append extend insert pop remove reverse sort clear popitem setdefault update add discard'.split(' '),
);

function affixes(value: Value): string[] {
  return value instanceof Tuple ? value.items.map((item) => textOf(item, 'affix')) : [textOf(value, 'affix')];
}

function splitMethod(text: string, args: readonly Value[], kwargs: Kwargs, fromRight: boolean): string[] {
  const [separator, most = -1] = take(['sep', 'maxsplit'], args, kwargs);
  return split(text, separator, intOf(most, 'maxsplit'), fromRight);
}

// From an index of UTF-16 units to one of code points, as Python counts.
function codePoints(text: string, at: number): number {
  return at < 0 ? -1 : Array.from(text.slice(0, at)).length;
}

function pairs(dict: Dict): Tuple[] {
  return [...dict].map(([key, value]) => new Tuple([key, value]));
}

const NO_KWARGS: Kwargs = new Map();
const CHAINED = 'chained '; // markChains()

/** What a template may use besides Jinja's own functions: plain data. */
export type Variables = Readonly<Record<string, unknown>>;

// Plain data to values. Numbers with a fraction are floats; JavaScript does not tell 1.0 from 1.
function toValue(data: unknown, depth = 0): Value {
  if (depth > MAX_DEPTH) limit('messages: nested too deeply');
  if (data === undefined || data === null) return null;
  if (typeof data === 'number') return Number.isInteger(data) ? data : new Float(data);
  if (typeof data === 'string' || typeof data === 'boolean') return data;
  if (Array.isArray(data)) return data.map((item) => toValue(item, depth + 1));
  if (typeof data !== 'object') return fail(`a value of type ${typeof data}`);
  return new Map(Object.entries(data).map(([key, item]) => [key, toValue(item, depth + 1)]));
}

function lengthOf(value: Value): number {
  if (typeof value !== 'string') return itemsOf(value).length;
  let n = 0;
  for (let i = 0; i < value.length; ++n) i += (value.codePointAt(i) ?? 0) > 0xffff ? 2 : 1;
  return n;
}

type FilterFunction = (value: Value, args: readonly Value[], kwargs: Kwargs, run: Run) => Value;
type TestFunction = (value: Value, args: readonly Value[], run: Run) => boolean;

function attributeOf(item: Value, path: Value, run: Run): Value {
  if (typeof path === 'number') return run.item(item, path);
  return textOf(path, 'attribute')
    .split('.')
    .reduce<Value>((value, name) => run.item(value, /^\d+$/.test(name) ? Number(name) : name), item);
}

// What sort, unique, min and max compare: without case unless told otherwise.
function sortKey(caseSensitive: Value | undefined, attribute: Value | undefined, run: Run): (item: Value) => Value {
  const fold = !truthy(caseSensitive ?? false);
  return (item) => {
    const value = attribute === undefined || attribute === null ? item : attributeOf(item, attribute, run);
    return fold && typeof value === 'string' ? value.toLowerCase() : value;
  };
}

function sorted(items: readonly Value[], key: (item: Value) => Value, reverse: boolean): Value[] {
  const sign = reverse ? -1 : 1;
  return items
    .map((item) => ({ item, key: key(item) }))
    .sort((a, b) => sign * compare(a.key, b.key))
    .map(({ item }) => item);
}

function extreme(sign: number): FilterFunction {
  return (value, args, kwargs, run) => {
    const [caseSensitive, attribute] = take(['case_sensitive', 'attribute'], args, kwargs);
    const key = sortKey(caseSensitive, attribute, run);
    const [first, ...others] = itemsOf(value);
    if (first === undefined) return new Undefined('an item of an empty sequence');
    return others.reduce((best, item) => (sign * compare(key(item), key(best)) > 0 ? item : best), first);
  };
}

function chosen(keep: boolean, byAttribute: boolean): FilterFunction {
  return (value, args, kwargs, run) => {
    if (kwargs.size > 0) fail('select and reject take no keyword arguments');
    const [attribute, name, ...rest] = byAttribute ? args : [null, ...args];
    const test = name === undefined ? undefined : run.testNamed(textOf(name, 'test'));
    if (!truthy(value)) return []; // None too, as in Jinja
    return itemsOf(value).filter((item) => {
      const seen = byAttribute ? attributeOf(item, attribute ?? null, run) : item;
      return (test ? test(seen, rest, run) : truthy(seen)) === keep;
    });
  };
}

function parsedInt(value: Value, otherwise: Value, base: number): Value {
  const known = numeric(value);
  if (known !== undefined) return Number.isFinite(known) ? Math.trunc(known) : otherwise;
  if (typeof value !== 'string') return otherwise;
  const text = strip(value).replaceAll('_', '');
  if (base !== 10) {
    const parsed = Number.parseInt(text, base);
    return Number.isNaN(parsed) ? otherwise : parsed;
  }
  if (/^[+-]?\d+$/.test(text)) return Number(text);
  const float = text === '' ? NaN : Number(text);
  return Number.isFinite(float) ? Math.trunc(float) : otherwise;
}

const filters = new Map<string, FilterFunction>([
  ['safe', (value) => new Markup(str(value))],
  ['string', (value) => str(value)],
  ['upper', (value) => str(value).toUpperCase()],
  ['lower', (value) => str(value).toLowerCase()],
  ['capitalize', (value) => capitalize(str(value))],
  [
    'title',
    (value) =>
      str(value)
        .split(/([-\s({[<]+)/)
        .map(capitalize)
        .join(''),
  ],
  [
    'trim',
    (value, args, kwargs) => {
      const [chars] = take(['chars'], args, kwargs);
      return strip(str(value), charactersOf(chars));
    },
  ],
  [
    'replace',
    (value, args, kwargs, run) => {
      const [old = null, by = null, count = null] = take(['old', 'new', 'count'], args, kwargs);
      return run.replace(str(value), str(old), str(by), count === null ? -1 : intOf(count, 'count'));
    },
  ],
  ['length', lengthOf],
  ['count', lengthOf],
  ['list', (value) => [...itemsOf(value)]],
  ['first', (value) => itemAt(itemsOf(value), 0)],
  ['last', (value) => itemAt(itemsOf(value), -1)],
  [
    'reverse',
    (value) => (typeof value === 'string' ? Array.from(value).reverse().join('') : itemsOf(value).toReversed()),
  ],
  [
    'join',
    (value, args, kwargs, run) => {
      const [separator = '', attribute] = take(['d', 'attribute'], args, kwargs);
      const items = itemsOf(value).map((item) => (attribute === undefined ? item : attributeOf(item, attribute, run)));
      return items.map(str).join(str(separator));
    },
  ],
  [
    'default',
    (value, args, kwargs) => {
      const [otherwise = '', boolean = false] = take(['default_value', 'boolean'], args, kwargs);
      return value instanceof Undefined || (truthy(boolean) && !truthy(value)) ? otherwise : value;
    },
  ],
  [
    'int',
    (value, args, kwargs) => {
      const [otherwise = 0, base = 10] = take(['default', 'base'], args, kwargs);
      return parsedInt(value, otherwise, intOf(base, 'base'));
    },
  ],
  [
    'float',
    (value, args, kwargs) => {
      const [otherwise = new Float(0)] = take(['default'], args, kwargs);
      const known = numeric(value);
      if (known !== undefined) return new Float(known);
      const text = typeof value === 'string' ? strip(value) : '';
      return text === '' || Number.isNaN(Number(text)) ? otherwise : new Float(Number(text));
    },
  ],
  [
    'abs',
    (value) => {
      const amount = Math.abs(numeric(value) ?? fail(`bad operand type for abs(): '${typeName(value)}'`));
      return value instanceof Float ? new Float(amount) : amount;
    },
  ],
  [
    'round',
    (value, args, kwargs) => {
      const [precision = 0, method = 'common'] = take(['precision', 'method'], args, kwargs);
      const scale = 10 ** intOf(precision, 'precision');
      const scaled = (numeric(value) ?? fail(`round: expected a number, found ${typeName(value)}`)) * scale;
      const halfEven = Math.abs(scaled % 1) === 0.5 ? 2 * Math.round(scaled / 2) : Math.round(scaled);
      return new Float(
        (method === 'ceil' ? Math.ceil(scaled) : method === 'floor' ? Math.floor(scaled) : halfEven) / scale,
      );
    },
  ],
  [
    'items',
    (value) =>
      value instanceof Undefined
        ? []
        : value instanceof Map
          ? pairs(value)
          : fail('Can only get item pairs from a mapping.'),
  ],
  [
    'dictsort',
    (value, args, kwargs, run) => {
      const [caseSensitive, by = 'key', reverse = false] = take(['case_sensitive', 'by', 'reverse'], args, kwargs);
      if (!(value instanceof Map)) return fail(`dictsort: expected a mapping, found ${typeName(value)}`);
      const key = sortKey(caseSensitive, by === 'value' ? 1 : 0, run);
      return sorted(pairs(value), key, truthy(reverse));
    },
  ],
  [
    'sort',
    (value, args, kwargs, run) => {
      const [reverse = false, caseSensitive, attribute] = take(
        ['reverse', 'case_sensitive', 'attribute'],
        args,
        kwargs,
      );
      return sorted(itemsOf(value), sortKey(caseSensitive, attribute, run), truthy(reverse));
    },
  ],
  [
    'unique',
    (value, args, kwargs, run) => {
      const [caseSensitive, attribute] = take(['case_sensitive', 'attribute'], args, kwargs);
      const key = sortKey(caseSensitive, attribute, run);
      const seen = new Set<Key>();
      return itemsOf(value).filter((item) => {
        const of = keyOf(key(item));
        if (seen.has(of)) return false;
        seen.add(of);
        return true;
      });
    },
  ],
  ['min', extreme(-1)],
  ['max', extreme(1)],
  [
    'sum',
    (value, args, kwargs, run) => {
      const [attribute, start = 0] = take(['attribute', 'start'], args, kwargs);
      const values = itemsOf(value).map((item) => (attribute === undefined ? item : attributeOf(item, attribute, run)));
      return values.reduce((sum, item) => run.binary('+', sum, item), start);
    },
  ],
  ['select', chosen(true, false)],
  ['reject', chosen(false, false)],
  ['selectattr', chosen(true, true)],
  ['rejectattr', chosen(false, true)],
  [
    'map',
    (value, args, kwargs, run) => {
      const [name, ...rest] = args;
      if (!truthy(value)) return []; // None too, as in Jinja
      if (name !== undefined) {
        const filter = run.filterNamed(textOf(name, 'map'));
        return itemsOf(value).map((item) => filter(item, rest, kwargs, run));
      }
      const [attribute = null, otherwise] = take(['attribute', 'default'], [], kwargs);
      return itemsOf(value).map((item) => {
        const found = attributeOf(item, attribute, run);
        return found instanceof Undefined && otherwise !== undefined ? otherwise : found;
      });
    },
  ],
  [
    'indent',
    (value, args, kwargs) => {
      const [width = 4, first = false, blank = false] = take(['width', 'first', 'blank'], args, kwargs);
      const margin = typeof width === 'string' ? width : ' '.repeat(Math.min(Math.max(0, intOf(width, 'width')), 1000));
      const found = lines(`${str(value)}\n`);
      const text = found.map((line, i) => (i > 0 && (line !== '' || truthy(blank)) ? margin + line : line)).join('\n');
      return truthy(first) ? margin + text : text;
    },
  ],
  [
    'tojson',
    (value, args, kwargs) => {
      const names = ['ensure_ascii', 'indent', 'separators', 'sort_keys'];
      const [ascii = false, indent = null, separators = null, sort = false] = take(names, args, kwargs);
      const width = indent === null ? null : Math.min(Math.max(0, intOf(indent, 'indent')), 100);
      const [item, key] = separators === null ? [width === null ? ', ' : ',', ': '] : itemsOf(separators).map(str);
      return json(value, {
        indent: width,
        ascii: truthy(ascii),
        separators: [item ?? ', ', key ?? ': '],
        sorted: truthy(sort),
      });
    },
  ],
  ['format', (value, args) => percentFormat(str(value), args)],
  ['wordcount', (value) => (str(value).match(/[\p{L}\p{N}_]+/gu) ?? []).length],
  ['escape', (value) => new Markup(escapeHtml(str(value)))],
  [
    'batch',
    (value, args, kwargs) => {
      const [size = null, fill] = take(['linecount', 'fill_with'], args, kwargs);
      const n = Math.max(1, intOf(size, 'linecount'));
      const rows: Value[][] = [];
      for (const item of itemsOf(value)) {
        if (rows.length === 0 || rows.at(-1)?.length === n) rows.push([]);
        rows.at(-1)?.push(item);
      }
      const last = rows.at(-1);
      if (fill !== undefined && last) while (last.length < Math.min(n, MAX_RANGE)) last.push(fill);
      return rows;
    },
  ],
  [
    'groupby',
    (value, args, kwargs, run) => {
      const [attribute = null, otherwise, caseSensitive] = take(
        ['attribute', 'default', 'case_sensitive'],
        args,
        kwargs,
      );
      const of = (item: Value) => {
        const found = attributeOf(item, attribute, run);
        return found instanceof Undefined && otherwise !== undefined ? otherwise : found;
      };
      const key = (item: Value) => sortKey(caseSensitive, undefined, run)(of(item));
      const groups: { key: Value; name: Value; items: Value[] }[] = [];
      for (const item of sorted(itemsOf(value), key, false)) {
        const last = groups.at(-1);
        if (last && equal(last.key, key(item))) last.items.push(item);
        else groups.push({ key: key(item), name: of(item), items: [item] });
      }
      return groups.map(({ name, items }) => new Tuple([name, items]));
    },
  ],
]);
for (const [alias, name] of [
  ['d', 'default'],
  ['e', 'escape'],
] as const) {
  filters.set(alias, filters.get(name) as FilterFunction);
}

function ordered(accepts: (order: number) => boolean): TestFunction {
  return (value, [other = null]) => accepts(compare(value, other));
}

const isEqual: TestFunction = (value, [other = null]) => equal(value, other);
const tests: Map<string, TestFunction> = new Map<string, TestFunction>([
  ['defined', (value) => !(value instanceof Undefined)],
  ['undefined', (value) => value instanceof Undefined],
  ['none', (value) => value === null],
  ['boolean', (value) => typeof value === 'boolean'],
  ['true', (value) => value === true],
  ['false', (value) => value === false],
  ['string', (value) => typeof value === 'string'],
  ['number', (value) => numeric(value) !== undefined],
  ['integer', (value) => typeof value === 'number'],
  ['float', (value) => value instanceof Float],
  ['mapping', (value) => value instanceof Map],
  [
    'sequence',
    (value) => isSequence(value) || value instanceof Map || typeof value === 'string' || value instanceof Undefined,
  ],
  [
    'iterable',
    (value) => isSequence(value) || value instanceof Map || typeof value === 'string' || value instanceof Undefined,
  ],
  ['callable', (value) => value instanceof Func],
  ['odd', (value) => intOf(value, 'odd') % 2 !== 0],
  ['even', (value) => intOf(value, 'even') % 2 === 0],
  ['divisibleby', (value, [by = null]) => intOf(value, 'divisibleby') % intOf(by, 'divisibleby') === 0],
  ['lower', (value) => str(value) === str(value).toLowerCase() && str(value) !== str(value).toUpperCase()],
  ['upper', (value) => str(value) === str(value).toUpperCase() && str(value) !== str(value).toLowerCase()],
  ['in', (value, [container = null], run) => run.contains(container, value)],
  ['sameas', (value, [other = null]) => value === other],
  ['filter', (value) => filters.has(str(value))],
  ['test', (value) => tests.has(str(value))],
  ['escaped', () => false],
  ...['eq', 'equalto', '=='].map((name) => [name, isEqual] as const),
  ['ne', (value, [other = null]) => !equal(value, other)],
  ['!=', (value, [other = null]) => !equal(value, other)],
  ...['lt', 'lessthan', '<'].map((name) => [name, ordered((order) => order < 0)] as const),
  ...['gt', 'greaterthan', '>'].map((name) => [name, ordered((order) => order > 0)] as const),
  ...['le', '<='].map((name) => [name, ordered((order) => order <= 0)] as const),
  ...['ge', '>='].map((name) => [name, ordered((order) => order >= 0)] as const),
]);

// One rendering.
class Run {
  #depth = 0;
  readonly #root = new Scope();

  constructor(variables: Variables) {
    for (const [name, value] of [
      ['true', true],
      ['false', false],
      ['none', null],
    ] as const) {
      this.#root.set(name, value);
      this.#root.set(capitalize(name), value);
    }
    this.#root.set('range', new Func((args) => this.#range(args)));
    this.#root.set('dict', new Func((args, kwargs) => new Map<Key, Value>([...dictOf(args[0]), ...kwargs])));
    this.#root.set(
      'namespace',
      new Func((args, kwargs) => {
        const namespace = new Namespace();
        for (const [key, value] of [...dictOf(args[0]), ...kwargs]) namespace.values.set(key, value);
        return namespace;
      }),
    );
    this.#root.set('raise_exception', new Func(([message = '']) => { throw new TemplateError('raised', str(message)); })); // prettier-ignore
    this.#root.set('strftime_now', new Func(([format = '']) => strftime(new Date(), textOf(format, 'strftime_now'))));
    for (const [name, value] of Object.entries(variables)) this.#root.set(name, toValue(value));
  }

  render(program: Block): string {
    return this.#block(program.body, this.#root);
  }

  #block(nodes: readonly Node[], scope: Scope): string {
    let text = '';
    try {
      for (const node of nodes) text += made(this.#statement(node, scope));
    } catch (error) {
      if (error instanceof LoopControl) error.text = text + error.text;
      throw error;
    }
    return made(text);
  }

  #statement(node: Node, scope: Scope): string {
    charge();
    switch (node.type) {
      case 'Comment':
        return '';
      case 'If': {
        const { test, body, alternate } = node as If;
        return this.#deeper(() => this.#block(truthy(this.#evaluate(test, scope)) ? body : alternate, scope));
      }
      case 'For':
        return this.#deeper(() => this.#for(node as For, scope));
      case 'Set': {
        const { assignee, value, body } = node as Assignment;
        this.#assign(assignee, value ? this.#evaluate(value, scope) : this.#block(body, new Scope(scope)), scope);
        return '';
      }
      case 'Macro': {
        const { name, args, body } = node as Macro;
        scope.set(name.value, this.#macro(args, body, scope));
        return '';
      }
      case 'CallStatement': {
        const { call, callerArgs, body } = node as CallBlock;
        const [args, kwargs] = this.#arguments(call.args, scope);
        kwargs.set('caller', this.#macro(callerArgs ?? [], body, scope));
        return str(this.#call(this.#evaluate(call.callee, scope), args, kwargs));
      }
      case 'FilterStatement': {
        const { filter, body } = node as FilterBlock;
        return str(this.#filter(this.#block(body, new Scope(scope)), filter, scope));
      }
      case 'Break':
      case 'Continue':
        throw new LoopControl(node.type === 'Break');
      default:
        return str(this.#evaluate(node, scope));
    }
  }

  #deeper<T>(work: () => T): T {
    if (++this.#depth > MAX_DEPTH) limit('the template is nested too deeply');
    try {
      return work();
    } finally {
      --this.#depth;
    }
  }

  #for({ loopvar, iterable, body, defaultBlock }: For, outer: Scope): string {
    const select = iterable.type === 'SelectExpression' ? (iterable as Select) : undefined;
    let items = itemsOf(this.#evaluate(select ? select.lhs : iterable, outer));
    if (select) {
      items = items.filter((item) => {
        const scope = new Scope(outer);
        this.#assign(loopvar, item, scope);
        return truthy(this.#evaluate(select.test, scope));
      });
    }
    let text = '';
    let completed = false;
    let last: Loop['last'];
    for (const [i, item] of items.entries()) {
      const scope = new Scope(outer); // what is set in one round is not there in the next
      const loop = new Loop(items, i);
      loop.last = last;
      scope.set('loop', loop);
      this.#assign(loopvar, item, scope);
      try {
        text += this.#block(body, scope);
        completed = true;
      } catch (error) {
        if (!(error instanceof LoopControl)) throw error;
        text += error.text;
        if (error.ends) break;
      }
      last = loop.last;
    }
    // As Jinja compiles it: also where every round was left by break or continue.
    return completed ? text : text + this.#block(defaultBlock, new Scope(outer));
  }

  #assign(target: Node, value: Value, scope: Scope): void {
    switch (target.type) {
      case 'Identifier':
        scope.set((target as Named).value, value);
        return;
      case 'TupleLiteral': {
        const names = (target as Literal<readonly Node[]>).value;
        const items = itemsOf(value);
        if (items.length !== names.length) fail(`cannot unpack ${items.length} values into ${names.length} names`);
        names.forEach((name, i) => this.#assign(name, items[i] ?? null, scope));
        return;
      }
      case 'MemberExpression': {
        const { object, property, computed } = target as Member;
        const namespace = this.#evaluate(object, scope);
        if (!(namespace instanceof Namespace) || computed) fail('cannot assign attribute on non-namespace object');
        namespace.values.set((property as Named).value, value);
        return;
      }
      default:
        fail('cannot assign to this expression');
    }
  }

  #macro(parameters: readonly Node[], body: readonly Node[], outer: Scope): Func {
    return new Func((args, kwargs) =>
      this.#deeper(() => {
        const scope = new Scope(outer);
        const left = new Map(kwargs);
        const caller = left.get('caller');
        if (caller !== undefined) scope.set('caller', caller);
        left.delete('caller');
        for (const [i, parameter] of parameters.entries()) {
          const { value: otherwise } = parameter as Keyword;
          const isKeyword = parameter.type === 'KeywordArgumentExpression';
          const name = isKeyword ? (parameter as Keyword).key.value : (parameter as Named).value;
          const given = i < args.length ? args[i] : left.get(name);
          left.delete(name);
          if (given !== undefined) scope.set(name, given);
          else scope.set(name, isKeyword ? this.#evaluate(otherwise, scope) : new Undefined(name));
        }
        scope.set('varargs', new Tuple(args.slice(parameters.length)));
        scope.set('kwargs', new Map<Key, Value>(left));
        return this.#block(body, scope);
      }),
    );
  }

  #call(callee: Value, args: readonly Value[], kwargs: Kwargs): Value {
    if (callee instanceof Undefined) undefinedError(callee);
    if (!(callee instanceof Func)) return fail(`'${typeName(callee)}' object is not callable`);
    return made(callee.call(args, kwargs));
  }

  #arguments(nodes: readonly Node[], scope: Scope): [Value[], Map<string, Value>] {
    const args: Value[] = [];
    const kwargs = new Map<string, Value>();
    for (const node of nodes) {
      switch (node.type) {
        case 'KeywordArgumentExpression':
          kwargs.set((node as Keyword).key.value, this.#evaluate((node as Keyword).value, scope));
          break;
        case 'SpreadExpression':
          for (const item of itemsOf(this.#evaluate((node as Spread).argument, scope))) args.push(item);
          break;
        case 'KeywordSpreadExpression':
          for (const [key, value] of dictOf(this.#evaluate((node as Spread).argument, scope)))
            kwargs.set(str(key), value);
          break;
        default:
          args.push(this.#evaluate(node, scope));
      }
    }
    return [args, kwargs];
  }

  #evaluate(node: Node, scope: Scope): Value {
    charge();
    return this.#deeper(() => made(this.#expression(node, scope)));
  }

  #expression(node: Node, scope: Scope): Value {
    switch (node.type) {
      case 'StringLiteral':
      case 'IntegerLiteral':
        return (node as Literal<string | number>).value;
      case 'FloatLiteral':
        return new Float((node as Literal<number>).value);
      case 'ArrayLiteral':
        return (node as Literal<readonly Node[]>).value.map((item) => this.#evaluate(item, scope));
      case 'TupleLiteral':
        return new Tuple((node as Literal<readonly Node[]>).value.map((item) => this.#evaluate(item, scope)));
      case 'ObjectLiteral': {
        const dict: Dict = new Map();
        for (const [key, value] of (node as Literal<ReadonlyMap<Node, Node>>).value) {
          dict.set(keyOf(this.#evaluate(key, scope)), this.#evaluate(value, scope));
        }
        return dict;
      }
      case 'Identifier':
        return scope.get((node as Named).value);
      case 'CallExpression': {
        const { callee, args } = node as Call;
        return this.#call(this.#evaluate(callee, scope), ...this.#arguments(args, scope));
      }
      case 'MemberExpression': {
        const { object, property, computed } = node as Member;
        const value = this.#evaluate(object, scope);
        if (property.type === 'SliceExpression') return this.#slice(value, property, scope);
        if (computed) return this.item(value, this.#evaluate(property, scope));
        const { value: name } = property as Literal<string | number>;
        return typeof name === 'number' ? this.item(value, name) : this.#attribute(value, name);
      }
      case 'UnaryExpression': {
        const { operator, argument } = node as Unary;
        const value = this.#evaluate(argument, scope);
        if (operator.value === 'not') return !truthy(value);
        if (value instanceof Undefined) undefinedError(value);
        const amount = numeric(value) ?? fail(`bad operand type for unary ${operator.value}: '${typeName(value)}'`);
        const signed = operator.value === '-' ? -amount : amount;
        return value instanceof Float ? new Float(signed) : signed;
      }
      case 'BinaryExpression': {
        const { operator, left, right } = node as Binary;
        if (operator.value.startsWith(CHAINED)) return this.#compared(node as Binary, scope).holds;
        const value = this.#evaluate(left, scope);
        if (operator.value === 'and') return truthy(value) ? this.#evaluate(right, scope) : value;
        if (operator.value === 'or') return truthy(value) ? value : this.#evaluate(right, scope);
        return this.binary(operator.value, value, this.#evaluate(right, scope));
      }
      case 'FilterExpression': {
        const { operand, filter } = node as Filter;
        return this.#filter(this.#evaluate(operand, scope), filter, scope);
      }
      case 'TestExpression': {
        const { operand, negate, test } = node as Test;
        return this.testNamed(test.value)(plain(this.#evaluate(operand, scope)), [], this) !== negate;
      }
      case 'SelectExpression': {
        const { lhs, test } = node as Select;
        return truthy(this.#evaluate(test, scope))
          ? this.#evaluate(lhs, scope)
          : new Undefined('the value of an if without else');
      }
      case 'Ternary': {
        const { condition, trueExpr, falseExpr } = node as Ternary;
        return this.#evaluate(truthy(this.#evaluate(condition, scope)) ? trueExpr : falseExpr, scope);
      }
      default:
        return fail(`${node.type}: not supported`);
    }
  }

  // A comparison that another may be chained to, and what that begins with.
  #compared({ operator, left, right }: Binary, scope: Scope): { holds: Value; last: Value } {
    const isChained = operator.value.startsWith(CHAINED);
    const before = isChained
      ? this.#compared(left as Binary, scope)
      : { holds: true, last: this.#evaluate(left, scope) };
    if (!truthy(before.holds)) return { holds: before.holds, last: null };
    const last = this.#evaluate(right, scope);
    const name = isChained ? operator.value.slice(CHAINED.length) : operator.value;
    return { holds: this.binary(name, before.last, last), last };
  }

  filterNamed(name: string): FilterFunction {
    return filters.get(name) ?? fail(`No filter named '${name}'.`);
  }

  testNamed(name: string): TestFunction {
    return tests.get(name) ?? fail(`No test named '${name}'.`);
  }

  #filter(value: Value, filter: Node, scope: Scope): Value {
    const isCall = filter.type === 'CallExpression';
    const callee = isCall ? (filter as Call).callee : filter;
    if (callee.type !== 'Identifier') fail(`${filter.type}: not supported as a filter`);
    const name = (callee as Named).value;
    const [args, kwargs] = isCall ? this.#arguments((filter as Call).args, scope) : [[], NO_KWARGS];
    made(plain(value)); // a filter reads it
    const [, not, test] = /^is (not )?(.*)$/.exec(name) ?? [];
    if (test !== undefined) return this.testNamed(test)(plain(value), args, this) === (not === undefined);
    if (value instanceof Markup && (name === 'escape' || name === 'e')) return value;
    const result = made(this.filterNamed(name)(plain(value), args, kwargs, this));
    return value instanceof Markup && typeof result === 'string' ? new Markup(result) : result;
  }

  #slice(value: Value, { start, stop, step }: Slice, scope: Scope): Value {
    const bound = (node: Node | undefined) => {
      const given = node ? this.#evaluate(node, scope) : null;
      return given === null ? undefined : intOf(given, 'slice');
    };
    if (typeof value !== 'string' && !isSequence(value)) return fail(`'${typeName(value)}' object has no slices`);
    const part = sliceOf(itemsOf(value), bound(start), bound(stop), bound(step) ?? 1);
    if (typeof value === 'string') return part.map(str).join('');
    return Array.isArray(value) ? part : new Tuple(part);
  }

  /** `value[key]`. */
  item(value: Value, key: Value): Value {
    if (value instanceof Undefined) undefinedError(value);
    if (value instanceof Map && (key === null || typeof key !== 'object')) {
      const found = value.get(key);
      if (found !== undefined) return found;
    }
    if (typeof key === 'number' && (typeof value === 'string' || isSequence(value))) {
      const found = itemsOf(value).at(key);
      if (found !== undefined) return found;
    }
    return typeof key === 'string'
      ? this.#attribute(value, key)
      : new Undefined(`${typeName(value)} object[${str(key)}]`);
  }

  // `value.name`: of a dict the methods come before the keys, as in Python.
  #attribute(value: Value, name: string): Value {
    if (value instanceof Undefined) undefinedError(value);
    value = plain(value);
    const bind = <T>(methods: ReadonlyMap<string, Method<T>>, self: T) => {
      const method = methods.get(name);
      return (
        method &&
        new Func((args, kwargs) => {
          made(value); // a method reads it
          return method(self, args, kwargs);
        })
      );
    };
    let found: Value | undefined;
    if (typeof value === 'string') {
      found = this.#stringFunction(value, name) ?? bind(stringMethods, value);
    } else if (isSequence(value)) {
      found = bind(listMethods, itemsOf(value));
    } else if (value instanceof Map) {
      found = bind(dictMethods, value) ?? (MUTATING.has(name) ? undefined : value.get(name));
    } else if (value instanceof Namespace) {
      found = value.values.get(name);
    } else if (value instanceof Loop) {
      found = this.#loopAttribute(value, name);
    }
    if (found === undefined && MUTATING.has(name) && (isSequence(value) || value instanceof Map)) {
      return new Func(() => fail(`access to attribute '${name}' of '${typeName(value)}' object is unsafe.`));
    }
    return found === undefined ? new Undefined(name) : found;
  }

  // The methods of a string whose result may be much longer than it.
  #stringFunction(text: string, name: string): Func | undefined {
    const pad = (side: string) =>
      new Func(([width = null, fill = ' ']) => {
        const n = intOf(width, name) - Array.from(text).length;
        chargeText(Math.max(0, n));
        const [left, right] = side === 'center' ? [n >> 1, n - (n >> 1)] : side === 'left' ? [n, 0] : [0, n];
        return n <= 0 ? text : str(fill).repeat(left) + text + str(fill).repeat(right);
      });
    switch (name) {
      case 'replace':
        return new Func((args, kwargs) => {
          const [old = null, by = null, count = -1] = take(['old', 'new', 'count'], args, kwargs);
          return this.replace(text, textOf(old, name), textOf(by, name), intOf(count, name));
        });
      case 'join':
        return new Func(([items = null]) => itemsOf(items).map((item) => textOf(item, name)).join(text)); // prettier-ignore
      case 'format':
        return new Func((args, kwargs) => {
          let next = 0;
          return text.replace(/\{\{|\}\}|\{(\w*)\}|[{}]/g, (found, field?: string) => {
            if (found === '{{' || found === '}}') return found.charAt(0);
            if (field === undefined) fail('format: only {}, {0} and {name} are supported');
            const value =
              field === '' || /^\d+$/.test(field) ? args[field === '' ? next++ : Number(field)] : kwargs.get(field);
            return value === undefined ? fail(`format: no value for {${field}}`) : str(value);
          });
        });
      case 'center':
        return pad('center');
      case 'rjust':
        return pad('left');
      case 'ljust':
        return pad('right');
      case 'zfill':
        return new Func(([width = null]) => {
          chargeText(Math.max(0, intOf(width, name)));
          return /^[+-]/.test(text)
            ? text.charAt(0) + text.slice(1).padStart(intOf(width, name) - 1, '0')
            : text.padStart(intOf(width, name), '0');
        });
      default:
        return undefined;
    }
  }

  #loopAttribute(loop: Loop, name: string): Value | undefined {
    const { items, index0 } = loop;
    switch (name) {
      case 'index':
        return index0 + 1;
      case 'index0':
        return index0;
      case 'revindex':
        return items.length - index0;
      case 'revindex0':
        return items.length - index0 - 1;
      case 'first':
        return index0 === 0;
      case 'last':
        return index0 === items.length - 1;
      case 'length':
        return items.length;
      case 'depth':
        return 1;
      case 'depth0':
        return 0;
      case 'previtem':
        return index0 === 0 ? new Undefined('loop.previtem') : itemAt(items, index0 - 1);
      case 'nextitem':
        return itemAt(items, index0 + 1);
      case 'cycle':
        return new Func((args) =>
          args.length > 0 ? itemAt(args, index0 % args.length) : fail('no items for cycling given'),
        );
      case 'changed':
        return new Func((args) => {
          const same = loop.last !== undefined && equal([...loop.last], [...args]);
          loop.last = args;
          return !same;
        });
      default:
        return undefined;
    }
  }

  contains(container: Value, value: Value): boolean {
    if (typeof container === 'string') {
      chargeText(container.length);
      return container.includes(textOf(value, "'in <string>'"));
    }
    if (container instanceof Map) return container.has(keyOf(value));
    return itemsOf(container).some((item) => equal(item, value));
  }

  replace(text: string, old: string, by: string, count: number): string {
    chargeText(text.length);
    const parts = old === '' ? ['', ...Array.from(text), ''] : text.split(old);
    const n = count < 0 ? parts.length - 1 : Math.min(count, parts.length - 1);
    chargeText(text.length + n * by.length);
    return parts.slice(0, n + 1).join(by) + (n + 1 < parts.length ? old + parts.slice(n + 1).join(old) : '');
  }

  binary(operator: string, a: Value, b: Value): Value {
    if (operator !== '~' && operator !== '+') [a, b] = [plain(a), plain(b)];
    switch (operator) {
      case '==':
        return equal(a, b);
      case '!=':
        return !equal(a, b);
      case '<':
        return compare(a, b, operator) < 0;
      case '<=':
        return compare(a, b, operator) <= 0;
      case '>':
        return compare(a, b, operator) > 0;
      case '>=':
        return compare(a, b, operator) >= 0;
      case 'in':
        return this.contains(b, a);
      case 'not in':
        return !this.contains(b, a);
      case '~':
        return str(a) + str(b);
      default:
        return this.#arithmetic(operator, a, b);
    }
  }

  #arithmetic(operator: string, a: Value, b: Value): Value {
    for (const value of [a, b]) if (value instanceof Undefined) undefinedError(value);
    if (operator === '+' && isText(a) && isText(b) && !(typeof a === 'string' && typeof b === 'string')) {
      return joinMarkup(a, b);
    }
    if (operator === '%' && typeof a === 'string') return percentFormat(a, b instanceof Tuple ? b.items : [b]);
    if (operator === '+') {
      if (typeof a === 'string' && typeof b === 'string') return a + b;
      if (isSequence(a) && isSequence(b)) chargeItems(itemsOf(a).length + itemsOf(b).length);
      if (Array.isArray(a) && Array.isArray(b)) return [...a, ...b];
      if (a instanceof Tuple && b instanceof Tuple) return new Tuple([...a.items, ...b.items]);
    }
    if (operator === '*') {
      if (typeof b === 'string' || isSequence(b)) [a, b] = [b, a];
      if ((typeof a === 'string' || isSequence(a)) && (typeof b === 'number' || typeof b === 'boolean')) {
        const n = Math.max(0, Number(b));
        if (typeof a === 'string') chargeText(a.length * n);
        else chargeItems(itemsOf(a).length * n);
        if (typeof a === 'string') return a.repeat(n);
        const items = Array.from({ length: n }, () => itemsOf(a)).flat();
        return Array.isArray(a) ? items : new Tuple(items);
      }
    }
    const [x, y] = [numeric(a), numeric(b)];
    if (x === undefined || y === undefined) {
      if (operator === '+' && typeof a === 'string')
        return fail(`can only concatenate str (not "${typeName(b)}") to str`);
      return fail(`unsupported operand type(s) for ${operator}: '${typeName(a)}' and '${typeName(b)}'`);
    }
    if (y === 0 && ['/', '//', '%'].includes(operator)) fail('division by zero');
    const isFloat = a instanceof Float || b instanceof Float || operator === '/' || (operator === '**' && y < 0);
    const result = arithmetic(operator, x, y);
    return isFloat ? new Float(result) : result;
  }

  #range(args: readonly Value[]): number[] {
    const numbers = args.map((value) => intOf(value, 'range'));
    const [start, stop, step = 1] =
      numbers.length < 2 ? [0, numbers[0] ?? fail('range: expected an argument')] : numbers;
    if (step === 0) fail('range() arg 3 must not be zero');
    const n = Math.max(0, Math.ceil(((stop ?? 0) - (start ?? 0)) / step));
    if (n > MAX_RANGE) limit(`range: expected at most ${MAX_RANGE} numbers, found ${n}`);
    chargeItems(n);
    return Array.from({ length: n }, (_, i) => (start ?? 0) + i * step);
  }
}

function arithmetic(operator: string, x: number, y: number): number {
  switch (operator) {
    case '+':
      return x + y;
    case '-':
      return x - y;
    case '*':
      return x * y;
    case '/':
      return x / y;
    case '//':
      return Math.floor(x / y);
    case '%':
      return ((x % y) + y) % y;
    case '**':
      return x ** y;
    default:
      return fail(`operator ${operator}: not supported`);
  }
}

function escapeHtml(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll("'", '&#39;')
    .replaceAll('"', '&#34;');
}

function isText(value: Value): value is string | Markup {
  return typeof value === 'string' || value instanceof Markup;
}

// Where Jinja does not care whether a text is escaped.
function plain(value: Value): Value {
  return value instanceof Markup ? value.text : value;
}

function joinMarkup(a: Value, b: Value): Markup {
  const escaped = (value: Value) => (value instanceof Markup ? value.text : escapeHtml(str(value)));
  return new Markup(escaped(a) + escaped(b));
}

function dictOf(value: Value | undefined): Dict {
  if (value === undefined) return new Map();
  if (value instanceof Map) return value;
  return new Map(
    itemsOf(value).map((pair): [Key, Value] => {
      const [key = null, item = null] = itemsOf(pair);
      return [keyOf(key), item];
    }),
  );
}

interface Token {
  readonly value: string;
  readonly type: string;
}

// Its types refer to files that Node's resolution does not find.
const { parse, tokenize } = library as unknown as {
  tokenize: (source: string, options: { trim_blocks: boolean; lstrip_blocks: boolean }) => Token[];
  parse: (tokens: readonly Token[]) => Block;
};

// The library's parser takes no arguments of tests (`is divisibleby(3)`, `is in ['a']`). They become filters, whose names
// begin with "is ".
function testsToFilters(tokens: readonly Token[]): Token[] {
  const out: Token[] = [];
  const isWord = (token: Token | undefined, ...words: string[]) =>
    token?.type === 'Identifier' && words.includes(token.value);
  const closing = (from: number) => {
    let depth = 0;
    for (let i = from; i < tokens.length; ++i) {
      const type = tokens[i]?.type ?? '';
      if (/^Open(Paren|SquareBracket|CurlyBracket)$/.test(type)) ++depth;
      else if (/^Close(Paren|SquareBracket|CurlyBracket)$/.test(type) && --depth === 0) return i;
    }
    return tokens.length - 1;
  };
  for (let i = 0; i < tokens.length; ++i) {
    const token = tokens[i] as Token;
    const negated = isWord(tokens[i + 1], 'not');
    const at = i + (negated ? 2 : 1);
    const name = tokens[at];
    const first = tokens[at + 1];
    const wantsArgument =
      isWord(token, 'is') &&
      tokens[i - 1]?.type !== 'Dot' &&
      name?.type === 'Identifier' &&
      first !== undefined &&
      (/^(OpenParen|OpenSquareBracket|StringLiteral|NumericLiteral)$/.test(first.type) ||
        (first.type === 'Identifier' && !isWord(first, 'and', 'or', 'not', 'if', 'else', 'is', 'in')));
    if (!wantsArgument) {
      out.push(token);
      continue;
    }
    out.push({ type: 'Pipe', value: '|' }, { type: 'Identifier', value: `is ${negated ? 'not ' : ''}${name.value}` });
    i = at;
    if (first.type === 'OpenParen') continue;
    let end = first.type === 'OpenSquareBracket' ? closing(at + 1) : at + 1;
    for (let next = tokens[end + 1]; first.type === 'Identifier' && next; next = tokens[end + 1]) {
      if (next.type === 'Dot') end += 2;
      else if (next.type === 'OpenSquareBracket') end = closing(end + 1);
      else break;
    }
    const argument = tokens.slice(at + 1, end + 1);
    out.push({ type: 'OpenParen', value: '(' }, ...argument, { type: 'CloseParen', value: ')' });
    i = end;
  }
  return out;
}

// Python reads `a < b < c` as `a < b and b < c`, the library as `(a < b) < c`. The operators that go on such a chain get names
// of their own.
function markChains(tokens: readonly Token[]): Token[] {
  const compared = [false]; // in each bracket that is open
  return tokens.map((token, i) => {
    const { type, value } = token;
    const top = compared.length - 1;
    if (type.startsWith('Open')) {
      compared.push(false);
    } else if (type.startsWith('Close')) {
      compared.pop();
    } else if (type === 'ComparisonBinaryOperator' || (type === 'Identifier' && value === 'in')) {
      if (compared[top]) {
        if (tokens[i - 1]?.value === 'not') throw new TemplateError('syntax', '"not in" in a chain of comparisons');
        return { type: 'ComparisonBinaryOperator', value: CHAINED + value };
      }
      compared[top] = true;
    } else if (/^(Comma|Colon|Equals)$/.test(type) || (type === 'Identifier' && /^(and|or|if|else)$/.test(value))) {
      compared[top] = false;
    }
    return token;
  });
}

/** A template that was read. */
export class Template {
  readonly #program: Block;

  /** @throws TemplateError `syntax`, `limit` */
  constructor(source: string) {
    try {
      const tokens = tokenize(source, { trim_blocks: true, lstrip_blocks: true });
      this.#program = parse(testsToFilters(markChains(tokens)));
    } catch (error) {
      if (error instanceof TemplateError) throw error;
      if (error instanceof RangeError) limit('the template is nested too deeply');
      throw new TemplateError('syntax', error instanceof Error ? error.message : String(error));
    }
  }

  /** @throws TemplateError `raised` (by the template itself), `error`, `limit` */
  render(variables: Variables): string {
    work = 0;
    try {
      return new Run(variables).render(this.#program);
    } catch (error) {
      if (error instanceof RangeError) limit('the template is nested too deeply');
      if (error instanceof LoopControl) fail('break or continue outside of a loop');
      throw error;
    }
  }
}
