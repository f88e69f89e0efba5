// JSON Schema (draft 2020-12; what earlier drafts and OpenAPI 3.0 write otherwise is read too): from a caller's object to checked nodes,
// whose references are resolved. The object is a stranger's: it is copied once, within limits, and never looked at again.
import { GemmaError } from './errors.js';
import { PatternError, Patterns, type Language } from './pattern.js';
import { FORMATS } from './string-formats.js';
import type { Sliced } from './turns.js';
import { opaqueName, plain, reasonOf, show } from './values.js';

export type JsonType = 'null' | 'boolean' | 'integer' | 'number' | 'string' | 'array' | 'object';
const TYPES: readonly string[] = ['null', 'boolean', 'integer', 'number', 'string', 'array', 'object'];

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
type JsonObject = Record<string, Json>;

const MAX_DEPTH = 100;
const MAX_VALUES = 20_000;
const MAX_CHARACTERS = 1 << 18;
const VALUES_PER_STEP = 32;

/** A string's condition: the set that it must be in, and a larger one that is easier to write. */
export interface StringRule {
  text: string;
  language: Language;
  /** its lookaheads taken for met; absent: it has none */
  loose?: Language;
}

/** A schema. What is absent is not asked for. */
export interface SchemaNode {
  readonly id: number;
  /** JSON Pointer */
  readonly path: string;
  /** the schema `false` */
  never?: boolean;
  types?: ReadonlySet<JsonType>;
  /** enum and const: what is allowed, and in canonical form */
  values?: { list: readonly Json[]; known: ReadonlySet<string>; keyword: string }[];
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  multipleOf?: number;
  minLength?: number;
  maxLength?: number;
  pattern?: StringRule;
  format?: StringRule;
  minItems?: number;
  maxItems?: number;
  uniqueItems?: boolean;
  prefixItems?: SchemaNode[];
  items?: SchemaNode;
  contains?: SchemaNode;
  minContains?: number;
  maxContains?: number;
  unevaluatedItems?: SchemaNode;
  minProperties?: number;
  maxProperties?: number;
  required?: readonly string[];
  properties?: ReadonlyMap<string, SchemaNode>;
  patternProperties?: { rule: StringRule; node: SchemaNode }[];
  additionalProperties?: SchemaNode;
  propertyNames?: SchemaNode;
  dependentRequired?: ReadonlyMap<string, readonly string[]>;
  dependentSchemas?: ReadonlyMap<string, SchemaNode>;
  unevaluatedProperties?: SchemaNode;
  ref?: SchemaNode;
  allOf?: SchemaNode[];
  anyOf?: SchemaNode[];
  oneOf?: SchemaNode[];
  not?: SchemaNode;
  if?: SchemaNode;
  then?: SchemaNode;
  else?: SchemaNode;
}

/** A schema that was read. */
export interface SchemaGraph {
  /** begins messages */
  readonly where: string;
  readonly root: SchemaNode;
  readonly patterns: Patterns;
  /** some schema asks what others have looked at */
  readonly hasUnevaluated: boolean;
  /** a node of its own that holds what is given */
  node(fields: Omit<SchemaNode, 'id' | 'path'>, path: string): SchemaNode;
}

/** One text for equal values: keys in order, numbers as JavaScript writes them. */
export function canonical(value: unknown): string {
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  const object = value as Record<string, unknown>;
  const keys = Object.keys(object).sort();
  return `{${keys.map((key) => `${JSON.stringify(key)}:${canonical(object[key])}`).join(',')}}`;
}

/** A token of a JSON Pointer. */
export function pointerToken(key: string | number): string {
  return String(key).replaceAll('~', '~0').replaceAll('/', '~1');
}

function bad(where: string, message: string): GemmaError {
  return new GemmaError('ERR_INVALID_ARGUMENT', `${where}: ${message}`, 'BAD_SCHEMA');
}

function unsupported(where: string, message: string): GemmaError {
  return new GemmaError('ERR_UNSUPPORTED_INPUT', `${where}: ${message}`, 'SCHEMA_KEYWORD');
}

/** What copies together may hold. */
export class CopyLimits {
  #values = 0;
  #characters = 0;
  readonly #maxValues: number;
  readonly #maxCharacters: number;

  constructor(maxValues = MAX_VALUES, maxCharacters = MAX_CHARACTERS) {
    this.#maxValues = maxValues;
    this.#maxCharacters = maxCharacters;
  }

  /** What is passed by so many more values or characters. */
  passedBy(values: number, characters: number): string | undefined {
    if ((this.#values += values) > this.#maxValues) return `${this.#maxValues} values`;
    if ((this.#characters += characters) > this.#maxCharacters) return `${this.#maxCharacters} characters`;
    return undefined;
  }
}

/**
 * Copies a value that is JSON: getters are called once, and what a schema library attaches is left behind. At once, because the
 * caller may change it later.
 *
 * @param limits of several copies together, beside those of one
 * @throws GemmaError `ERR_INVALID_ARGUMENT` (`BAD_SCHEMA`) for circles, for what JSON has not, for more than the limits
 */
export function copyJson(value: unknown, where: string, limits?: CopyLimits): Json {
  const above = new Set<object>();
  const keys: (string | number)[] = []; // of the place
  const here = () =>
    where + keys.map((key) => `/${pointerToken(typeof key === 'string' ? plain(key, 60) : key)}`).join('');
  const own = new CopyLimits();
  const count = (values: number, characters: number) => {
    const passed = own.passedBy(values, characters);
    if (passed !== undefined) throw bad(where, `expected at most ${passed}, found more`);
    const together = limits?.passedBy(values, characters);
    if (together !== undefined) throw bad(where, `expected at most ${together} with all before it, found more`);
  };
  const copy = (found: unknown): Json => {
    count(1, typeof found === 'string' ? found.length : 0);
    if (found === null || typeof found === 'boolean' || typeof found === 'string') return found;
    if (typeof found === 'number') {
      if (!Number.isFinite(found)) throw bad(here(), `expected a finite number, found ${found}`);
      return found;
    }
    if (typeof found !== 'object') throw bad(here(), `expected JSON, found ${show(found)}`);
    if (above.has(found)) throw bad(here(), 'the object contains itself');
    if (above.size >= MAX_DEPTH) throw bad(here(), `expected at most ${MAX_DEPTH} levels, found more`);
    above.add(found);
    const copied = members(found);
    above.delete(found);
    return copied;
  };
  const members = (found: object): Json => {
    if (Array.isArray(found)) {
      const { length } = found;
      if (length > MAX_VALUES) throw bad(where, `expected at most ${MAX_VALUES} values, found more`);
      return Array.from({ length }, (_, i) => {
        keys.push(i);
        const copied = copy((found as unknown[])[i]);
        keys.pop();
        return copied;
      });
    }
    const opaque = opaqueName(found);
    if (opaque !== undefined) throw bad(here(), `expected JSON, found ${opaque}`);
    const object = Object.create(null) as JsonObject;
    for (const key of Object.keys(found)) {
      const member = (found as Record<string, unknown>)[key];
      if (member === undefined) continue;
      count(0, key.length);
      keys.push(key);
      object[key] = copy(member);
      keys.pop();
    }
    return object;
  };
  try {
    return copy(value);
  } catch (error) {
    if (error instanceof GemmaError) throw error;
    throw bad(where, `it cannot be read: ${reasonOf(error)}`); // a getter or a proxy of the caller's
  }
}

// Keywords whose values are no schemas.
const DATA = new Set(['enum', 'const', 'default', 'examples', 'example']);

const BASE = 'schema://root/';

function resolve(reference: string, base: string): string | undefined {
  try {
    const url = new URL(reference, base);
    if (url.hash === '') url.hash = '';
    return url.href.replace(/#$/, '');
  } catch {
    return undefined;
  }
}

class Reader implements SchemaGraph {
  readonly patterns = new Patterns();
  root!: SchemaNode;
  hasUnevaluated = false;
  readonly where: string;
  readonly #nodes = new Map<JsonObject, SchemaNode>();
  readonly #bases = new Map<Json, string>();
  readonly #byUri = new Map<string, { raw: Json; path: string }>();
  readonly #pending: { raw: JsonObject; node: SchemaNode }[] = [];
  readonly #rules = new Map<string, StringRule>();
  #ids = 0;

  constructor(where: string) {
    this.where = where;
  }

  *read(schema: Json): Sliced<this> {
    this.#byUri.set(BASE, { raw: schema, path: '' });
    if (typeof schema === 'object' && schema !== null) yield* this.#index(schema, BASE, '');
    this.root = this.#nodeOf(schema, '');
    for (let next = this.#pending.pop(); next; next = this.#pending.pop()) {
      yield;
      yield* this.#read(next.raw, next.node);
    }
    yield* this.#refuseCircles();
    return this;
  }

  node(fields: Omit<SchemaNode, 'id' | 'path'>, path: string): SchemaNode {
    return { id: this.#ids++, path, ...fields };
  }

  // Where schemas have identifiers and anchors.
  *#index(raw: Json[] | JsonObject, base: string, path: string): Sliced<void> {
    yield;
    let here = base;
    if (!Array.isArray(raw)) {
      const { $id, $anchor, $dynamicAnchor } = raw;
      if (typeof $id === 'string' && !$id.startsWith('#')) {
        const uri = resolve($id, base);
        if (uri === undefined) throw bad(`${this.where}${path}/$id`, `expected a URI, found ${show($id)}`);
        here = uri;
        if (!this.#byUri.has(uri)) this.#byUri.set(uri, { raw, path });
      }
      if (typeof $id === 'string' && $id.startsWith('#')) this.#byUri.set(here + $id, { raw, path });
      for (const anchor of [$anchor, $dynamicAnchor]) {
        if (typeof anchor === 'string') this.#byUri.set(`${here}#${anchor}`, { raw, path });
      }
    }
    this.#bases.set(raw, here);
    for (const [key, member] of Object.entries(raw)) {
      if (typeof member !== 'object' || member === null || DATA.has(key)) continue;
      yield* this.#index(member, here, `${path}/${pointerToken(key)}`);
    }
  }

  #nodeOf(raw: Json | undefined, path: string): SchemaNode {
    if (typeof raw === 'boolean') return this.node(raw ? {} : { never: true }, path);
    if (typeof raw !== 'object' || raw === null || Array.isArray(raw)) {
      throw bad(this.where + path, `expected a schema (an object, true or false), found ${show(raw)}`);
    }
    let node = this.#nodes.get(raw);
    if (!node) {
      node = this.node({}, path);
      this.#nodes.set(raw, node);
      this.#pending.push({ raw, node });
    }
    return node;
  }

  #refTarget(reference: string, raw: JsonObject, path: string): SchemaNode {
    const uri = resolve(reference, this.#bases.get(raw) ?? BASE);
    const found = uri === undefined ? undefined : this.#lookUp(uri);
    if (!found) {
      throw bad(`${this.where}${path}/$ref`, `${show(reference)} is not in the schema, and others are not fetched`);
    }
    return this.#nodeOf(found.raw, found.path);
  }

  #lookUp(uri: string): { raw: Json; path: string } | undefined {
    const direct = this.#byUri.get(uri);
    if (direct) return direct;
    const [resource = '', fragment = ''] = uri.split('#');
    const start = this.#byUri.get(resource);
    if (!start || (fragment !== '' && !fragment.startsWith('/'))) return undefined;
    let { raw, path } = start;
    let decoded: string;
    try {
      decoded = decodeURIComponent(fragment);
    } catch {
      return undefined;
    }
    for (const token of decoded.split('/').slice(1)) {
      const key = token.replaceAll('~1', '/').replaceAll('~0', '~');
      if (typeof raw !== 'object' || raw === null || !Object.hasOwn(raw, key)) return undefined;
      raw = (raw as JsonObject)[key] as Json;
      path += `/${pointerToken(key)}`;
    }
    return { raw, path };
  }

  *#read(raw: JsonObject, node: SchemaNode): Sliced<void> {
    const { path } = node;
    const at = (keyword: string) => `${this.where}${path}/${pointerToken(keyword)}`;
    const has = (keyword: string) => Object.hasOwn(raw, keyword);
    const wrong = (keyword: string, expected: string) =>
      bad(at(keyword), `expected ${expected}, found ${show(raw[keyword])}`);
    const schema = (keyword: string) => this.#nodeOf(raw[keyword], `${path}/${keyword}`);
    const schemas = (keyword: string): SchemaNode[] => {
      const found = raw[keyword];
      if (!Array.isArray(found) || found.length === 0) throw wrong(keyword, 'an array of schemas');
      return found.map((member, i) => this.#nodeOf(member, `${path}/${keyword}/${i}`));
    };
    const entries = (keyword: string): [string, Json][] => {
      const found = raw[keyword];
      if (typeof found !== 'object' || found === null || Array.isArray(found))
        throw wrong(keyword, 'an object of schemas');
      return Object.entries(found);
    };
    const map = (keyword: string) =>
      new Map(
        entries(keyword).map(([key, member]) => [key, this.#nodeOf(member, `${path}/${keyword}/${pointerToken(key)}`)]),
      );
    const strings = (keyword: string, found: Json | undefined): string[] => {
      if (!Array.isArray(found) || !found.every((name) => typeof name === 'string')) {
        throw wrong(keyword, 'an array of strings');
      }
      return found;
    };
    const count = (keyword: string): number => {
      const found = raw[keyword];
      if (typeof found !== 'number' || !Number.isInteger(found) || found < 0) {
        throw wrong(keyword, 'an integer of at least 0');
      }
      return found;
    };
    const number = (keyword: string): number => {
      const found = raw[keyword];
      if (typeof found !== 'number') throw wrong(keyword, 'a number');
      return found;
    };

    for (const keyword of ['$dynamicRef', '$recursiveRef', 'disallow', 'extends']) {
      if (has(keyword)) throw unsupported(at(keyword), 'this keyword is not supported');
    }

    if (has('type')) {
      const found = raw.type;
      const list = Array.isArray(found) ? found : [found];
      if (list.length === 0 || !list.every((type) => typeof type === 'string' && TYPES.includes(type))) {
        throw wrong('type', `${TYPES.join(', ')} or an array of these`);
      }
      node.types = new Set(list as JsonType[]);
    }
    for (const keyword of ['const', 'enum']) {
      if (!has(keyword)) continue;
      const list = keyword === 'const' ? [raw.const as Json] : raw.enum;
      if (!Array.isArray(list)) throw wrong(keyword, 'an array of values');
      const known = new Set<string>();
      for (const [i, value] of list.entries()) {
        if (i % VALUES_PER_STEP === 0) yield;
        known.add(canonical(value));
      }
      (node.values ??= []).push({ list, known, keyword });
    }

    for (const keyword of ['minimum', 'maximum'] as const) if (has(keyword)) node[keyword] = number(keyword);
    for (const [keyword, inclusive] of [
      ['exclusiveMinimum', 'minimum'],
      ['exclusiveMaximum', 'maximum'],
    ] as const) {
      if (!has(keyword)) continue;
      if (typeof raw[keyword] !== 'boolean') node[keyword] = number(keyword);
      else if (raw[keyword] && node[inclusive] !== undefined) node[keyword] = node[inclusive]; // draft 4, OpenAPI 3.0
    }
    if (has('multipleOf')) {
      node.multipleOf = number('multipleOf');
      if (node.multipleOf <= 0) throw wrong('multipleOf', 'a number above 0');
    }
    for (const keyword of [
      'minLength',
      'maxLength',
      'minItems',
      'maxItems',
      'minProperties',
      'maxProperties',
      'minContains',
      'maxContains',
    ] as const) {
      if (has(keyword)) node[keyword] = count(keyword);
    }
    if (has('pattern')) {
      if (typeof raw.pattern !== 'string') throw wrong('pattern', 'a string');
      node.pattern = yield* this.#rule(raw.pattern, at('pattern'));
    }
    if (has('format')) {
      if (typeof raw.format !== 'string') throw wrong('format', 'a string');
      const known = FORMATS.get(raw.format);
      if (known !== undefined) node.format = { ...(yield* this.#rule(known, at('format'))), text: raw.format };
      const bits = raw.format === 'int32' ? 31 : raw.format === 'int64' ? 63 : 0; // OpenAPI
      if (bits > 0 && (raw.type === 'integer' || raw.type === 'number')) {
        node.minimum = Math.max(node.minimum ?? -Infinity, -(2 ** bits));
        node.maximum = Math.min(node.maximum ?? Infinity, 2 ** bits - 1);
      }
    }

    if (has('uniqueItems')) {
      if (typeof raw.uniqueItems !== 'boolean') throw wrong('uniqueItems', 'true or false');
      node.uniqueItems = raw.uniqueItems;
    }
    if (has('prefixItems')) node.prefixItems = schemas('prefixItems');
    if (Array.isArray(raw.items)) {
      // Earlier drafts.
      if (raw.items.length > 0) node.prefixItems = schemas('items');
      if (has('additionalItems')) node.items = schema('additionalItems');
    } else if (has('items')) node.items = schema('items');
    for (const keyword of [
      'contains',
      'unevaluatedItems',
      'additionalProperties',
      'propertyNames',
      'unevaluatedProperties',
      'not',
      'if',
      'then',
      'else',
    ] as const) {
      if (has(keyword)) node[keyword] = schema(keyword);
    }
    if (node.unevaluatedItems ?? node.unevaluatedProperties) this.hasUnevaluated = true;
    for (const keyword of ['allOf', 'anyOf', 'oneOf'] as const) if (has(keyword)) node[keyword] = schemas(keyword);

    if (has('required')) node.required = [...new Set(strings('required', raw.required))];
    if (has('properties')) node.properties = map('properties');
    if (has('patternProperties')) {
      node.patternProperties = [];
      for (const [pattern, member] of map('patternProperties')) {
        const place = `${at('patternProperties')}/${pointerToken(plain(pattern, 60))}`;
        node.patternProperties.push({ rule: yield* this.#rule(pattern, place), node: member });
      }
    }
    const needed = new Map<string, string[]>();
    const schemasNeeded = new Map<string, SchemaNode>();
    for (const keyword of ['dependentRequired', 'dependentSchemas', 'dependencies']) {
      if (!has(keyword)) continue;
      for (const [key, member] of entries(keyword)) {
        if (keyword === 'dependentRequired' || Array.isArray(member)) {
          needed.set(key, [...(needed.get(key) ?? []), ...strings(keyword, member)]);
        } else schemasNeeded.set(key, this.#nodeOf(member, `${path}/${keyword}/${pointerToken(key)}`));
      }
    }
    if (needed.size > 0) node.dependentRequired = needed;
    if (schemasNeeded.size > 0) node.dependentSchemas = schemasNeeded;

    if (has('$ref')) {
      if (typeof raw.$ref !== 'string') throw wrong('$ref', 'a string');
      node.ref = this.#refTarget(raw.$ref, raw, path);
    }
  }

  *#rule(pattern: string, where: string): Sliced<StringRule> {
    const known = this.#rules.get(pattern);
    if (known) return known;
    try {
      const language = yield* this.patterns.search(pattern);
      const loose = /\(\?[=!]/.test(pattern) ? yield* this.patterns.search(pattern, false) : undefined;
      const rule: StringRule = { text: pattern, language, ...(loose && { loose }) };
      this.#rules.set(pattern, rule);
      return rule;
    } catch (error) {
      if (!(error instanceof PatternError)) throw error;
      throw new GemmaError('ERR_INVALID_ARGUMENT', `${where}: the pattern has ${error.message}`, 'BAD_REGEX');
    }
  }

  // A schema that applies itself to the same value again would never end.
  *#refuseCircles(): Sliced<void> {
    const done = new Set<SchemaNode>();
    const open = new Set<SchemaNode>();
    const stack: { node: SchemaNode; rest: SchemaNode[] }[] = [];
    for (const start of [this.root, ...this.#nodes.values()]) {
      if (done.has(start)) continue;
      stack.push({ node: start, rest: inPlace(start) });
      open.add(start);
      for (let top = stack.at(-1); top; top = stack.at(-1)) {
        yield;
        const next = top.rest.pop();
        if (!next) {
          stack.pop();
          open.delete(top.node);
          done.add(top.node);
        } else if (open.has(next)) {
          throw bad(`${this.where}${next.path}`, 'the schema refers to itself without going deeper into the value');
        } else if (!done.has(next)) {
          if (stack.length > MAX_DEPTH)
            throw bad(`${this.where}${next.path}`, `more than ${MAX_DEPTH} schemas in a row`);
          stack.push({ node: next, rest: inPlace(next) });
          open.add(next);
        }
      }
    }
  }
}

/** The schemas that a schema applies to the same value. */
function inPlace(node: SchemaNode): SchemaNode[] {
  return [
    node.ref,
    node.not,
    node.if,
    node.then,
    node.else,
    ...(node.allOf ?? []),
    ...(node.anyOf ?? []),
    ...(node.oneOf ?? []),
    ...(node.dependentSchemas?.values() ?? []),
  ].filter((next) => next !== undefined);
}

/**
 * Reads a schema that nobody else changes. `where` begins the messages.
 *
 * @throws GemmaError `ERR_INVALID_ARGUMENT` (`BAD_SCHEMA`, `BAD_REGEX`), `ERR_UNSUPPORTED_INPUT` (`SCHEMA_KEYWORD`)
 */
export function readSchema(schema: Json, where: string): Sliced<SchemaGraph> {
  return new Reader(where).read(schema);
}
