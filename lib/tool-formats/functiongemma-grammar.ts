// The grammar of FunctionGemma's calls: EBNF as XGrammar reads it, with the <escape> token as Token(id). It is made of schemas as
// schema-grammar.ts leaves them: references, alternatives and conditions resolved, patterns anchored and written as JSON writes
// strings. What it cannot hold (multiples, bounds of fractions) is checked when a call is read.
import { GemmaError } from '../errors.js';
import { isSchema, sortedEntries, type Schema } from './functiongemma-schema.js';

const MAX_RULES = 20_000;
const MAX_DEPTH = 60;

const NATURAL = '"0" | [1-9] [0-9]{0,14}';
const FRACTION = '("." [0-9]{1,16})? ([eE] [+-]? [0-9]{1,2})?';
const NULL = '"None" | "null"';

function literal(text: string): string {
  // eslint-disable-next-line no-control-regex -- these are meant
  const escaped = text.replace(/["\\\x00-\x1f\x7f]/g, (c) =>
    c === '"' || c === '\\' ? `\\${c}` : `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
  return `"${escaped}"`;
}

/**
 * A pattern that pattern.ts wrote for JSON, as EBNF and for text without escapes: what JSON escapes is left out of its classes.
 * Exported for tests.
 */
export function patternGrammar(pattern: string): string {
  const plain = pattern.replace(/\|\\\\(\[[^\]]*\]|[bfnrt])/g, '');
  const pieces = plain.match(/\\.|\[(?:\\.|[^\]\\])*\]|\{[0-9,]+\}|./gsu) ?? [];
  return pieces
    .map((piece, i) => {
      if (piece === '|' && pieces[i + 1] === ')') return '| ""';
      if (/^[?*+(){|[]/.test(piece)) return piece;
      return literal(piece.length > 1 && piece.startsWith('\\') ? piece.slice(1) : piece);
    })
    .join(' ')
    .replace(/ (?=[?*+{])/g, '');
}

// The grammar of whole numbers of as many digits as both bounds have, which are not negative.
function sameLength(least: string, most: string): string {
  if (least === '') return '';
  const [low = '', high = ''] = [least.charAt(0), most.charAt(0)];
  const rest = least.length - 1;
  const any = (n: number) => (n > 0 ? ` [0-9]{${n}}` : '');
  const choices: string[] = [];
  const tail = (from: string, to: string) => {
    const inner = sameLength(from, to);
    return inner === '' ? '' : ` (${inner})`;
  };
  if (low === high) return `"${low}"${tail(least.slice(1), most.slice(1))}`;
  const from = /^0*$/.test(least.slice(1)) ? Number(low) : Number(low) + 1;
  const to = /^9*$/.test(most.slice(1)) ? Number(high) : Number(high) - 1;
  if (from > Number(low)) choices.push(`"${low}"${tail(least.slice(1), '9'.repeat(rest))}`);
  if (from <= to) choices.push(`[${from}-${to}]${any(rest)}`);
  if (to < Number(high)) choices.push(`"${high}"${tail('0'.repeat(rest), most.slice(1))}`);
  return choices.join(' | ');
}

const MOST_DIGITS = 15; // of what a double holds exactly

// Whole numbers of a range, not negative.
function naturals(least: number, most: number): string[] {
  const end = Math.min(most, 10 ** MOST_DIGITS - 1);
  const choices: string[] = [];
  for (let from = least; from <= end;) {
    const to = Math.min(end, 10 ** String(from).length - 1);
    choices.push(sameLength(String(from), String(to)));
    from = to + 1;
  }
  return choices;
}

/** The grammar of the integers from `least` to `most`, of at most 15 digits; of any where none of these is so short. Exported for tests. */
export function integerRange(least: number, most: number): string {
  const positive = most >= 0 ? naturals(Math.max(0, least), most) : [];
  const negative = least < 0 ? naturals(Math.max(1, -most), -least) : [];
  const choices = [...positive, ...negative.map((choice) => `"-" (${choice})`)];
  const isAny = choices.length === 0 || (least === -Infinity && most === Infinity);
  return isAny ? `"-"? (${NATURAL})` : choices.join(' | ');
}

function bound(value: unknown, otherwise: number): number {
  return typeof value === 'number' ? value : otherwise;
}

class Writer {
  readonly #escape: string;
  readonly #rules: string[];
  readonly #named = new Map<unknown, string>(); // of schemas, which may refer to themselves
  #root: Schema = {};
  #n = 0;

  constructor(escapeId: number) {
    this.#escape = `Token(${escapeId})`;
    this.#rules = [
      `text ::= ${this.#escape} [^]* ${this.#escape}`,
      `number ::= "-"? (${NATURAL}) ${FRACTION}`,
      `bare ::= [a-zA-Z_] [a-zA-Z0-9_]{0,63}`,
      `any ::= text | number | "true" | "false" | ${NULL} | anylist | anymap`,
      `anylist ::= "[" (any ("," any)*)? "]"`,
      `anymap ::= "{" (bare ":" any ("," bare ":" any)*)? "}"`,
    ];
  }

  /** A grammar of calls of some tools. */
  write(tools: readonly { name: string; bound: unknown }[]): string {
    const calls = tools.map((tool) => {
      const schema = tool.bound;
      this.#root = isSchema(schema) ? schema : {};
      return `${literal(`call:${tool.name}`)} ${this.#value(schema, 0)}`;
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

  #key(key: string): string {
    return key === '' || /[{}[\]:,<>\0]/.test(key) || key.trim() !== key ? this.#quoted(key) : literal(key);
  }

  #constant(value: unknown): string {
    if (typeof value === 'string') return this.#quoted(value);
    if (typeof value === 'number' || typeof value === 'boolean') return literal(String(value));
    if (Array.isArray(value)) return `"[" ${value.map((each) => this.#constant(each)).join(' "," ')} "]"`;
    if (typeof value !== 'object' || value === null) return `(${NULL})`;
    const members = sortedEntries(value).map(([key, item]) => `${this.#key(key)} ":" ${this.#constant(item)}`);
    return `"{" ${members.join(' "," ')} "}"`;
  }

  // The name of a value's rule.
  #value(schema: unknown, depth: number): string {
    if (!isSchema(schema)) return 'any';
    if (typeof schema.$ref === 'string') {
      const { $defs } = this.#root;
      const name = schema.$ref.slice('#/$defs/'.length);
      return this.#value(isSchema($defs) ? $defs[name] : undefined, depth + 1);
    }
    const known = this.#named.get(schema);
    if (known !== undefined) return known;
    if (depth > MAX_DEPTH) {
      throw new GemmaError(
        'ERR_INVALID_ARGUMENT',
        `tools: a schema of more than ${MAX_DEPTH} levels`,
        'GRAMMAR_TOO_LARGE',
      );
    }
    const rule = this.#rule('');
    const at = this.#rules.length - 1;
    this.#named.set(schema, rule);
    this.#rules[at] = `${rule} ::= ${this.#body(schema, depth + 1)}`;
    return rule;
  }

  #body(schema: Schema, depth: number): string {
    if (Array.isArray(schema.enum)) return schema.enum.map((each) => this.#constant(each)).join(' | ');
    if (Array.isArray(schema.anyOf)) return schema.anyOf.map((each) => this.#value(each, depth)).join(' | ');
    switch (schema.type) {
      case 'string':
        if (typeof schema.pattern !== 'string') return 'text';
        return `${this.#escape} (${patternGrammar(schema.pattern)}) ${this.#escape}`;
      case 'number':
        return bound(schema.minimum, -1) >= 0 || bound(schema.exclusiveMinimum, -1) >= 0
          ? `(${NATURAL}) ${FRACTION}`
          : 'number';
      case 'integer':
        return integerRange(bound(schema.minimum, -Infinity), bound(schema.maximum, Infinity));
      case 'boolean':
        return '"true" | "false"';
      case 'null':
        return NULL;
      case 'array':
        return `"[" ${this.#items(schema, depth)} "]"`;
      case 'object':
        return `"{" ${isSchema(schema.properties) ? this.#members(schema, depth) : this.#map(schema, depth)} "}"`;
      default:
        return 'any';
    }
  }

  // The first ones each of a kind of their own, the others alike.
  #items({ prefixItems, items, minItems, maxItems }: Schema, depth: number): string {
    const firsts = Array.isArray(prefixItems) ? (prefixItems as unknown[]) : [];
    const least = bound(minItems, 0);
    const rest = items === false ? 0 : bound(maxItems, Infinity) - firsts.length;
    let tail = '';
    if (rest > 0) {
      const item = this.#value(items, depth);
      const n = Math.max(0, least - firsts.length);
      const most = rest === Infinity ? '' : String(rest);
      tail = `("," ${item}){${n},${most}}`;
      if (firsts.length === 0) {
        const more = `${item} ("," ${item}){${Math.max(0, n - 1)},${rest === Infinity ? '' : rest - 1}}`;
        return n > 0 ? more : `(${more})?`;
      }
    }
    for (const [i, first] of [...firsts.entries()].reverse()) {
      const one = `${i > 0 ? '"," ' : ''}${this.#value(first, depth)} ${tail}`;
      tail = i < least ? one : `(${one})?`;
    }
    return tail;
  }

  // Keys in the order in which the format writes them; those that are not required may be left out.
  #members({ properties, required }: Schema, depth: number): string {
    const needed = Array.isArray(required) ? (required as unknown[]) : [];
    let [first, more] = ['', ''];
    for (const [key, value] of sortedEntries(properties as object).reverse()) {
      const pair = `${this.#key(key)} ":" ${this.#value(value, depth)}`;
      const isNeeded = needed.includes(key);
      const nextFirst = isNeeded ? `${pair} ${more}` : `(${pair} ${more})${first === '' ? '?' : ` | ${first}`}`;
      const nextMore = isNeeded ? `"," ${pair} ${more}` : `("," ${pair})? ${more}`;
      first = this.#rule(nextFirst);
      more = this.#rule(nextMore);
    }
    return first;
  }

  // Any keys, or any that match a pattern.
  #map({ additionalProperties, patternProperties, minProperties, maxProperties }: Schema, depth: number): string {
    const pairs = Object.entries(isSchema(patternProperties) ? patternProperties : {}).map(
      ([pattern, value]) =>
        `${this.#escape} (${patternGrammar(pattern)}) ${this.#escape} ":" ${this.#value(value, depth)}`,
    );
    if (additionalProperties !== false) pairs.push(`bare ":" ${this.#value(additionalProperties, depth)}`);
    const most = bound(maxProperties, Infinity);
    if (pairs.length === 0 || most === 0) return '';
    const pair = this.#rule(pairs.join(' | '));
    const least = bound(minProperties, 0);
    const members = `${pair} ("," ${pair}){${Math.max(0, least - 1)},${most === Infinity ? '' : most - 1}}`;
    return least > 0 ? members : `(${members})?`;
  }
}

/**
 * The grammar of one call between its marks, whichever tool it calls.
 *
 * @throws GemmaError `ERR_INVALID_ARGUMENT`/`GRAMMAR_TOO_LARGE`
 */
export function functionGemmaGrammar(tools: readonly { name: string; bound: unknown }[], escapeId: number): string {
  return new Writer(escapeId).write(tools);
}
