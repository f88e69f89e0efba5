// The grammar of FunctionGemma's calls, made from the tools' schemas: EBNF as XGrammar reads it, with the <escape> token as Token(id).
// It holds names, types, required keys, enums, counts and lengths; what a schema says beyond that is checked when a call is read.
import { GemmaError } from '../errors.js';

type Schema = Record<string, unknown>;

const MAX_RULES = 20_000;
const MAX_DEPTH = 60;
const MAX_LISTED = 256; // integers of a range that are written out

// jinja's dictsort: by the key in lower case, by code points.
export function sortedEntries(object: object): [string, unknown][] {
  return Object.entries(object)
    .map(([key, value]) => ({ key, value: value as unknown, order: Buffer.from(key.toLowerCase()) }))
    .sort((a, b) => Buffer.compare(a.order, b.order))
    .map(({ key, value }) => [key, value]);
}

function isSchema(value: unknown): value is Schema {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

// A local reference, by its JSON Pointer; undefined where it leads nowhere.
function resolved(root: unknown, ref: unknown): unknown {
  if (typeof ref !== 'string' || !ref.startsWith('#')) return undefined;
  let found = root;
  for (const step of decodeURIComponent(ref.slice(1)).split('/').slice(1)) {
    const key = step.replaceAll('~1', '/').replaceAll('~0', '~');
    if (typeof found !== 'object' || found === null || !Object.hasOwn(found, key)) return undefined;
    found = (found as Record<string, unknown>)[key];
  }
  return found;
}

function without(schema: Schema, ...keys: readonly string[]): Schema {
  return Object.fromEntries(Object.entries(schema).filter(([key]) => !keys.includes(key)));
}

function merged(schemas: readonly unknown[]): Schema {
  const all = schemas.filter(isSchema);
  const properties = Object.fromEntries(
    all.flatMap((each) => (isSchema(each.properties) ? Object.entries(each.properties) : [])),
  );
  const required = all.flatMap((each) => (Array.isArray(each.required) ? (each.required as unknown[]) : []));
  return {
    ...Object.fromEntries(all.flatMap((each) => Object.entries(each))),
    ...(Object.keys(properties).length > 0 && { properties }),
    ...(required.length > 0 && { required: [...new Set(required)] }),
  };
}

// References and allOf in one schema.
function flattened(schema: unknown, root: unknown, depth = 0): unknown {
  if (!isSchema(schema) || depth > MAX_DEPTH) return schema;
  if ('$ref' in schema) {
    const { $ref, ...rest } = schema;
    const target = resolved(root, $ref);
    if (target === undefined) return rest;
    return flattened(
      Object.keys(rest).length > 0 && isSchema(target) ? { ...target, ...rest } : target,
      root,
      depth + 1,
    );
  }
  if (Array.isArray(schema.allOf)) {
    const { allOf, ...rest } = schema;
    return merged([...allOf.map((each) => flattened(each, root, depth + 1)), rest]);
  }
  return schema;
}

const TYPES: Readonly<Record<string, string>> = {
  number: 'number',
  string: 'string',
  boolean: 'boolean',
  object: 'object',
};

function typeOf(values: readonly unknown[]): string | undefined {
  const types = new Set(values.filter((value) => value !== null).map((value) => TYPES[typeof value] ?? ''));
  return types.size === 1 ? [...types][0] : undefined;
}

/**
 * A schema as declarations can show it: references in place, of alternatives the first that is not null, one type. For reading
 * by the model; calls are checked against the schema itself.
 */
export function plainSchema(schema: unknown, root: unknown = schema, depth = 0): Schema {
  let plain = flattened(schema, root);
  if (!isSchema(plain) || depth > 8) return {};
  const alternatives = [plain.anyOf, plain.oneOf].find(Array.isArray) as unknown[] | undefined;
  if (alternatives) {
    const chosen = alternatives
      .map((each) => flattened(each, root))
      .find((each) => isSchema(each) && each.type !== 'null');
    plain = { ...(chosen as Schema | undefined), ...without(plain, 'anyOf', 'oneOf') };
  }
  const shown = without(plain as Schema, '$defs', 'definitions', '$schema', '$id');
  if ('const' in shown) shown.enum = [shown.const];
  if (Array.isArray(shown.type)) shown.type = (shown.type as unknown[]).find((type) => type !== 'null');
  shown.type ??= Array.isArray(shown.enum) ? typeOf(shown.enum) : isSchema(shown.properties) ? 'object' : undefined;
  if (shown.type === undefined) delete shown.type;
  if (isSchema(shown.properties)) {
    shown.properties = Object.fromEntries(
      Object.entries(shown.properties).map(([key, value]) => [key, plainSchema(value, root, depth + 1)]),
    );
  }
  if (isSchema(shown.items)) shown.items = plainSchema(shown.items, root, depth + 1);
  return shown;
}

const NUMBER = '"-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [+-]? [0-9]{1,2})?';
const INTEGER = '"-"? ("0" | [1-9] [0-9]{0,14})';
const NATURAL = '("0" | [1-9] [0-9]{0,14})';
const NULL = '("None" | "null")';

function literal(text: string): string {
  // eslint-disable-next-line no-control-regex -- these are meant
  const escaped = text.replace(/["\\\x00-\x1f\x7f]/g, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, '0')}`);
  return `"${escaped}"`;
}

function times(least: unknown, most: unknown): string {
  const from = typeof least === 'number' && least > 0 ? Math.ceil(least) : 0;
  const to = typeof most === 'number' ? Math.max(from, Math.floor(most)) : undefined;
  if (from === 0 && to === undefined) return '*';
  return `{${from},${to ?? ''}}`;
}

class Writer {
  readonly #escape: string;
  readonly #rules: string[] = [];
  readonly #named = new Map<unknown, string>(); // of schemas, which may refer to themselves
  #n = 0;
  #root: unknown;

  constructor(escapeId: number) {
    this.#escape = `Token(${escapeId})`;
    this.#rules.push(`text ::= ${this.#escape} [^]* ${this.#escape}`);
    this.#rules.push(`number ::= ${NUMBER}`);
    this.#rules.push(`bare ::= [a-zA-Z_] [a-zA-Z0-9_]{0,63}`);
    this.#rules.push(`any ::= text | number | "true" | "false" | ${NULL} | anylist | anymap`);
    this.#rules.push(`anylist ::= "[" (any ("," any)*)? "]"`);
    this.#rules.push(`anymap ::= "{" (bare ":" any ("," bare ":" any)*)? "}"`);
  }

  /** A grammar of calls of some tools. */
  write(tools: readonly { name: string; schema: unknown }[]): string {
    const calls = tools.map(({ name, schema }) => {
      this.#root = schema;
      const flat = flattened(schema, schema);
      const isChoice = isSchema(flat) && (Array.isArray(flat.anyOf) || Array.isArray(flat.oneOf));
      return `${literal(`call:${name}`)} ${isChoice ? this.#rule(this.#body(flat, 0)) : this.#object(flat)}`;
    });
    return [`root ::= ${calls.join(' | ')}`, ...this.#rules].join('\n');
  }

  #rule(body: string): string {
    if (this.#rules.length >= MAX_RULES) {
      throw new GemmaError(
        'ERR_INVALID_ARGUMENT',
        `tools: their schemas make more than ${MAX_RULES} rules`,
        'GRAMMAR_TOO_LARGE',
      );
    }
    const name = `r${++this.#n}`;
    this.#rules.push(`${name} ::= ${body}`);
    return name;
  }

  #quoted(text: string): string {
    return `${this.#escape} ${text === '' ? '' : literal(text)} ${this.#escape}`;
  }

  #constant(value: unknown): string {
    if (typeof value === 'string') return this.#quoted(value);
    if (value === null) return NULL;
    if (typeof value === 'number' || typeof value === 'boolean') return literal(String(value));
    if (typeof value !== 'object') return 'any';
    if (Array.isArray(value)) return `"[" ${value.map((each) => this.#constant(each)).join(' "," ')} "]"`;
    const members = sortedEntries(value).map(([key, item]) => `${this.#key(key)} ":" ${this.#constant(item)}`);
    return `"{" ${members.join(' "," ')} "}"`;
  }

  #key(key: string): string {
    return key === '' || /[{}[\]:,<>\0]/.test(key) || key.trim() !== key ? this.#quoted(key) : literal(key);
  }

  #value(given: unknown, depth: number): string {
    const known = this.#named.get(given);
    if (known !== undefined) return known;
    if (given === true || given === undefined) return 'any';
    if (typeof given !== 'object' || given === null) return 'any';
    if (depth > MAX_DEPTH) {
      throw new GemmaError(
        'ERR_INVALID_ARGUMENT',
        `tools: a schema of more than ${MAX_DEPTH} levels`,
        'GRAMMAR_TOO_LARGE',
      );
    }
    const name = this.#rule('');
    const at = this.#rules.length - 1;
    this.#named.set(given, name);
    this.#rules[at] = `${name} ::= ${this.#body(flattened(given, this.#root), depth)}`;
    return name;
  }

  #body(schema: unknown, depth: number): string {
    if (!isSchema(schema)) return 'any';
    if ('const' in schema) return this.#constant(schema.const);
    if (Array.isArray(schema.enum) && schema.enum.length > 0) {
      return schema.enum.map((each) => this.#constant(each)).join(' | ');
    }
    const alternatives = [schema.anyOf, schema.oneOf].find(Array.isArray) as unknown[] | undefined;
    if (alternatives && alternatives.length > 0) {
      const rest = without(schema, 'anyOf', 'oneOf');
      const bodies = alternatives.map((each) => {
        const flat = flattened(each, this.#root);
        return this.#body(isSchema(flat) ? merged([rest, flat]) : flat, depth + 1);
      });
      return bodies.map((body) => `(${body})`).join(' | ');
    }
    const types = Array.isArray(schema.type) ? (schema.type as unknown[]) : [schema.type];
    return types.map((type) => this.#typed(type, schema, depth)).join(' | ');
  }

  #typed(type: unknown, schema: Schema, depth: number): string {
    switch (type) {
      case 'string':
        if (schema.minLength === undefined && schema.maxLength === undefined) return 'text';
        return `${this.#escape} [^]${times(schema.minLength, schema.maxLength)} ${this.#escape}`;
      case 'number':
        return typeof schema.minimum === 'number' && schema.minimum >= 0 ? NUMBER.slice('"-"? '.length) : 'number';
      case 'integer':
        return this.#integer(schema);
      case 'boolean':
        return '"true" | "false"';
      case 'null':
        return NULL;
      case 'array':
        return this.#array(schema, depth);
      case 'object':
        return this.#object(schema, depth);
      default:
        if (isSchema(schema.properties)) return this.#object(schema, depth);
        return schema.items !== undefined ? this.#array(schema, depth) : 'any';
    }
  }

  #integer({ minimum, maximum, exclusiveMinimum, exclusiveMaximum }: Schema): string {
    const least = Math.max(
      typeof minimum === 'number' ? Math.ceil(minimum) : -Infinity,
      typeof exclusiveMinimum === 'number' ? Math.floor(exclusiveMinimum) + 1 : -Infinity,
    );
    const most = Math.min(
      typeof maximum === 'number' ? Math.floor(maximum) : Infinity,
      typeof exclusiveMaximum === 'number' ? Math.ceil(exclusiveMaximum) - 1 : Infinity,
    );
    if (most >= least && most - least < MAX_LISTED) {
      return Array.from({ length: most - least + 1 }, (_, i) => literal(String(least + i))).join(' | ');
    }
    if (least >= 1) return '[1-9] [0-9]{0,14}';
    return least >= 0 ? NATURAL : INTEGER;
  }

  #array(schema: Schema, depth: number): string {
    if (Array.isArray(schema.prefixItems)) {
      return `"[" ${schema.prefixItems.map((each) => this.#value(each, depth + 1)).join(' "," ')} "]"`;
    }
    const item = this.#value(schema.items, depth + 1);
    const least = typeof schema.minItems === 'number' ? schema.minItems : 0;
    const most = typeof schema.maxItems === 'number' ? schema.maxItems : undefined;
    if (most === 0) return '"[" "]"';
    const list = `${item} ("," ${item})${times(least - 1, most === undefined ? undefined : most - 1)}`;
    return least > 0 ? `"[" ${list} "]"` : `"[" (${list})? "]"`;
  }

  // Keys in the order in which the format writes them; those that are not required may be left out.
  #object(schema: unknown, depth = 0): string {
    if (!isSchema(schema)) return 'anymap';
    const properties = isSchema(schema.properties) ? schema.properties : {};
    const required = (Array.isArray(schema.required) ? (schema.required as unknown[]) : []).filter(
      (key): key is string => typeof key === 'string',
    );
    const extra = schema.additionalProperties;
    if (Object.keys(properties).length === 0 && required.length === 0) {
      if (extra === false) return '"{" "}"';
      if (!isSchema(extra)) return depth === 0 && extra !== true ? '"{" "}"' : 'anymap';
      const pair = `bare ":" ${this.#value(extra, depth + 1)}`;
      return `"{" (${pair} ("," ${pair})*)? "}"`;
    }
    const all = { ...Object.fromEntries(required.map((key) => [key, isSchema(extra) ? extra : true])), ...properties };
    let [first, more] = ['', ''];
    for (const [key, value] of sortedEntries(all).reverse()) {
      if (value === false) continue;
      const pair = `${this.#key(key)} ":" ${this.#value(value, depth + 1)}`;
      const isRequired = required.includes(key);
      const nextFirst = isRequired ? `${pair} ${more}` : `(${pair} ${more})${first === '' ? '?' : ` | ${first}`}`;
      const nextMore = isRequired ? `"," ${pair} ${more}` : `("," ${pair})? ${more}`;
      first = this.#rule(nextFirst);
      more = this.#rule(nextMore);
    }
    return `"{" ${first} "}"`;
  }
}

/**
 * The grammar of one call between its marks, whichever tool it calls.
 *
 * @throws GemmaError `ERR_INVALID_ARGUMENT`/`GRAMMAR_TOO_LARGE`
 */
export function functionGemmaGrammar(tools: readonly { name: string; schema: unknown }[], escapeId: number): string {
  return new Writer(escapeId).write(tools);
}
