// Whether a JSON value meets a schema (JSON Schema 2020-12, formats asserted). Work is counted and done in slices: both the schema and
// the value are strangers'.
import { GemmaError } from './errors.js';
import {
  canonical,
  pointerToken,
  type JsonType,
  type SchemaGraph,
  type SchemaNode,
  type StringRule,
} from './json-schema.js';
import { PatternError } from './pattern.js';
import type { Sliced } from './turns.js';
import { plain, show } from './values.js';

const MAX_PROBLEMS = 10;
const MAX_STEPS = 300_000;
const STEPS_PER_SLICE = 500;
const MAX_DEPTH = 400; // of schemas in a value and in each other

/** Where in a value: the way back to its root. */
interface Place {
  above?: Place;
  key?: string | number;
}

/** What of an object or an array schemas have looked at. */
interface Seen {
  keys: Set<string>;
  items: Set<number>;
}

const NOTHING: Seen = { keys: new Set(), items: new Set() };

function pointer(place: Place): string {
  const tokens: string[] = [];
  for (let at: Place | undefined = place; at?.key !== undefined; at = at.above) tokens.push(`/${pointerToken(at.key)}`);
  return plain(tokens.reverse().join(''), 120) || 'the value';
}

// As whole numbers of the same power of ten: what the decimals say, not what floats make of them.
function isMultiple(value: number, divisor: number): boolean {
  const parts = [value, divisor].map((n) => {
    const [, digits = '', decimals = '', exponent = '0'] = /^-?(\d+)(?:\.(\d+))?(?:e([+-]\d+))?$/.exec(String(n)) ?? [];
    return { whole: BigInt(digits + decimals), power: Number(exponent) - decimals.length };
  });
  const power = Math.min(...parts.map((part) => part.power));
  const [a = 0n, b = 1n] = parts.map((part) => part.whole * 10n ** BigInt(part.power - power));
  return a % b === 0n;
}

function isHalf(unit: number, first: number): boolean {
  return unit >= first && unit < first + 0x400;
}

function typeOf(value: unknown): JsonType | undefined {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'array';
  const type = typeof value;
  return type === 'object' || type === 'string' || type === 'boolean' || type === 'number' ? type : undefined;
}

class Check {
  readonly problems: string[] = [];
  readonly #graph: SchemaGraph;
  #steps = 0;
  #sliceEnd = STEPS_PER_SLICE;

  constructor(graph: SchemaGraph) {
    this.#graph = graph;
  }

  #count(steps: number): boolean {
    if ((this.#steps += steps) > MAX_STEPS) {
      throw new GemmaError(
        'ERR_INVALID_ARGUMENT',
        'checking the value against the schema takes too much work',
        'SCHEMA_LIMIT',
      );
    }
    if (this.#steps < this.#sliceEnd) return false;
    this.#sliceEnd = this.#steps + STEPS_PER_SLICE;
    return true;
  }

  *#matches(rule: StringRule, text: string): Sliced<boolean> {
    this.#count(text.length >> 2);
    try {
      return yield* this.#graph.patterns.has(rule.language, text);
    } catch (error) {
      if (!(error instanceof PatternError)) throw error;
      throw new GemmaError(
        'ERR_INVALID_ARGUMENT',
        `matching the pattern ${show(rule.text)}: ${error.message}`,
        'SCHEMA_LIMIT',
      );
    }
  }

  /** What was looked at, or undefined for a value that the schema does not allow; the reasons go to `problems` where it is loud. */
  *value(node: SchemaNode, value: unknown, place: Place, depth: number, isLoud: boolean): Sliced<Seen | undefined> {
    if (depth > MAX_DEPTH) {
      throw new GemmaError(
        'ERR_INVALID_ARGUMENT',
        `the value is nested too deep to check it against the schema`,
        'SCHEMA_LIMIT',
      );
    }
    if (this.#count(1)) yield;
    let isValid = true;
    const fail = (message: string) => {
      isValid = false;
      if (isLoud && this.problems.length < MAX_PROBLEMS) this.problems.push(`${pointer(place)}: ${message}`);
    };
    if (node.never) {
      fail('nothing is allowed here');
      return undefined;
    }
    const seen: Seen = this.#graph.hasUnevaluated ? { keys: new Set(), items: new Set() } : NOTHING;
    const see = (other: Seen | undefined) => {
      if (!other || other === NOTHING) return;
      for (const key of other.keys) seen.keys.add(key);
      for (const item of other.items) seen.items.add(item);
    };

    const type = typeOf(value);
    if (type === undefined) {
      fail(`expected JSON, found ${show(value)}`);
      return undefined;
    }
    if (node.types) {
      const isInteger = type === 'number' && Number.isInteger(value);
      if (!node.types.has(type) && !(isInteger && node.types.has('integer'))) {
        fail(`expected ${[...node.types].join(' or ')}, found ${show(value)}`);
        return undefined;
      }
    }
    for (const { list, known, keyword } of node.values ?? []) {
      if (known.has(canonical(value))) continue;
      fail(
        keyword === 'const'
          ? `expected ${plain(JSON.stringify(list[0]), 80)}, found ${show(value)}`
          : `expected one of ${plain(
              list
                .slice(0, 40)
                .map((choice) => JSON.stringify(choice))
                .join(', '),
              120,
            )}, found ${show(value)}`,
      );
    }

    if (type === 'number') this.#number(node, value as number, fail);
    else if (type === 'string') yield* this.#string(node, value as string, fail);

    // In place, before what asks which properties and items were looked at.
    if (node.ref) {
      const found = yield* this.value(node.ref, value, place, depth + 1, isLoud);
      if (found) see(found);
      else isValid = false;
    }
    for (const part of node.allOf ?? []) {
      const found = yield* this.value(part, value, place, depth + 1, isLoud);
      if (found) see(found);
      else isValid = false;
    }
    for (const keyword of ['anyOf', 'oneOf'] as const) {
      const parts = node[keyword];
      if (!parts) continue;
      let matches = 0;
      for (const part of parts) {
        const found = yield* this.value(part, value, place, depth + 1, false);
        if (!found) continue;
        ++matches;
        see(found);
        if (matches > 1 && keyword === 'oneOf') break;
        if (keyword === 'anyOf' && seen === NOTHING) break;
      }
      if (matches === 0) {
        fail(`it is none of the ${parts.length} that ${keyword} allows`);
        // With one kind of object or array among them the reason is likely there.
        const alike = parts.filter(({ types }) => !types || types.has(type));
        if (isLoud && alike.length === 1) yield* this.value(alike[0] as SchemaNode, value, place, depth + 1, true);
      } else if (matches > 1 && keyword === 'oneOf') fail('it is more than one of those of which oneOf allows one');
    }
    if (node.not && (yield* this.value(node.not, value, place, depth + 1, false))) fail('it is what not forbids');
    if (node.if) {
      const condition = yield* this.value(node.if, value, place, depth + 1, false);
      see(condition);
      const branch = condition ? node.then : node.else;
      if (branch) {
        const found = yield* this.value(branch, value, place, depth + 1, isLoud);
        if (found) see(found);
        else isValid = false;
      }
    }

    if (type === 'object') {
      if (!(yield* this.#object(node, value as Record<string, unknown>, place, depth, isLoud, seen, fail)))
        isValid = false;
    } else if (type === 'array') {
      if (!(yield* this.#array(node, value as unknown[], place, depth, isLoud, seen, fail))) isValid = false;
    }
    return isValid ? seen : undefined;
  }

  #number(node: SchemaNode, value: number, fail: (message: string) => void): void {
    const { minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf } = node;
    if (!Number.isFinite(value)) {
      fail('the number is larger than a double holds');
      return;
    }
    if (minimum !== undefined && value < minimum) fail(`expected at least ${minimum}, found ${value}`);
    if (maximum !== undefined && value > maximum) fail(`expected at most ${maximum}, found ${value}`);
    if (exclusiveMinimum !== undefined && value <= exclusiveMinimum)
      fail(`expected more than ${exclusiveMinimum}, found ${value}`);
    if (exclusiveMaximum !== undefined && value >= exclusiveMaximum)
      fail(`expected less than ${exclusiveMaximum}, found ${value}`);
    if (multipleOf !== undefined && !isMultiple(value, multipleOf))
      fail(`expected a multiple of ${multipleOf}, found ${value}`);
  }

  *#string(node: SchemaNode, value: string, fail: (message: string) => void): Sliced<void> {
    const { minLength, maxLength, pattern, format } = node;
    if (minLength !== undefined || maxLength !== undefined) {
      this.#count(value.length >> 4);
      let length = value.length;
      // Two units that are one character.
      for (let i = 1; i < value.length; ++i) {
        if (isHalf(value.charCodeAt(i - 1), 0xd800) && isHalf(value.charCodeAt(i), 0xdc00)) --length;
      }
      if (minLength !== undefined && length < minLength)
        fail(`expected at least ${minLength} characters, found ${length}`);
      if (maxLength !== undefined && length > maxLength)
        fail(`expected at most ${maxLength} characters, found ${length}`);
    }
    if (pattern && !(yield* this.#matches(pattern, value)))
      fail(`expected a text with the pattern ${show(pattern.text)}, found ${show(value)}`);
    if (format && !(yield* this.#matches(format, value)))
      fail(`expected the format ${format.text}, found ${show(value)}`);
  }

  *#object(
    node: SchemaNode,
    value: Record<string, unknown>,
    place: Place,
    depth: number,
    isLoud: boolean,
    seen: Seen,
    fail: (message: string) => void,
  ): Sliced<boolean> {
    let isValid = true;
    const keys = Object.keys(value);
    this.#count(keys.length >> 3);
    const name = (key: string) => plain(JSON.stringify(key), 60);
    const {
      minProperties,
      maxProperties,
      required,
      properties,
      patternProperties,
      additionalProperties,
      propertyNames,
    } = node;
    if (minProperties !== undefined && keys.length < minProperties)
      fail(`expected at least ${minProperties} properties, found ${keys.length}`);
    if (maxProperties !== undefined && keys.length > maxProperties)
      fail(`expected at most ${maxProperties} properties, found ${keys.length}`);
    for (const key of required ?? []) if (!Object.hasOwn(value, key)) fail(`the property ${name(key)} is missing`);
    for (const [key, others] of node.dependentRequired ?? []) {
      if (!Object.hasOwn(value, key)) continue;
      for (const other of others) {
        if (!Object.hasOwn(value, other)) fail(`with the property ${name(key)} the property ${name(other)} is missing`);
      }
    }
    for (const [key, dependent] of node.dependentSchemas ?? []) {
      if (!Object.hasOwn(value, key)) continue;
      const found = yield* this.value(dependent, value, place, depth + 1, isLoud);
      if (!found) isValid = false;
      else if (seen !== NOTHING) for (const other of found.keys) seen.keys.add(other);
    }
    if (!properties && !patternProperties && !additionalProperties && !propertyNames && !node.unevaluatedProperties)
      return isValid;
    for (const key of keys) {
      const here: Place = { above: place, key };
      if (propertyNames && !(yield* this.value(propertyNames, key, here, depth + 1, false))) {
        fail(`the name ${name(key)} of a property is not allowed`);
      }
      let isOther = true;
      const schemas: SchemaNode[] = [];
      const own = properties?.get(key);
      if (own) schemas.push(own);
      for (const { rule, node: member } of patternProperties ?? []) {
        if (yield* this.#matches(rule, key)) schemas.push(member);
      }
      if (schemas.length > 0) isOther = false;
      else if (additionalProperties) schemas.push(additionalProperties);
      if (isOther && additionalProperties?.never) {
        fail(`there must be no property ${name(key)}`);
        continue;
      }
      for (const member of schemas) {
        if (!(yield* this.value(member, value[key], here, depth + 1, isLoud))) isValid = false;
      }
      if (schemas.length > 0 && seen !== NOTHING) seen.keys.add(key);
    }
    if (node.unevaluatedProperties) {
      for (const key of keys) {
        if (seen.keys.has(key)) continue;
        if (node.unevaluatedProperties.never) fail(`there must be no property ${name(key)}`);
        else if (!(yield* this.value(node.unevaluatedProperties, value[key], { above: place, key }, depth + 1, isLoud)))
          isValid = false;
        seen.keys.add(key);
      }
    }
    return isValid;
  }

  *#array(
    node: SchemaNode,
    value: readonly unknown[],
    place: Place,
    depth: number,
    isLoud: boolean,
    seen: Seen,
    fail: (message: string) => void,
  ): Sliced<boolean> {
    let isValid = true;
    const { minItems, maxItems, prefixItems = [], items, contains, uniqueItems, unevaluatedItems } = node;
    const { length } = value;
    if (minItems !== undefined && length < minItems) fail(`expected at least ${minItems} items, found ${length}`);
    if (maxItems !== undefined && length > maxItems) fail(`expected at most ${maxItems} items, found ${length}`);
    const check = function* (this: Check, schema: SchemaNode, i: number, loud: boolean): Sliced<boolean> {
      return (yield* this.value(schema, value[i], { above: place, key: i }, depth + 1, loud)) !== undefined;
    }.bind(this);
    for (let i = 0; i < length; ++i) {
      const schema = prefixItems[i] ?? items;
      if (!schema) break;
      if (!(yield* check(schema, i, isLoud))) isValid = false;
      if (seen !== NOTHING) seen.items.add(i);
    }
    if (contains) {
      const { minContains = 1, maxContains = Infinity } = node;
      let found = 0;
      for (let i = 0; i < length; ++i) {
        if (!(yield* check(contains, i, false))) continue;
        ++found;
        if (seen !== NOTHING) seen.items.add(i);
      }
      if (found < minContains) fail(`expected at least ${minContains} items as contains says, found ${found}`);
      if (found > maxContains) fail(`expected at most ${maxContains} items as contains says, found ${found}`);
    }
    if (uniqueItems) {
      const known = new Set<string>();
      for (const item of value) {
        const text = canonical(item);
        if (this.#count(1 + (text.length >> 6))) yield;
        if (known.has(text)) {
          fail(`expected items that differ, found ${plain(text, 60)} twice`);
          break;
        }
        known.add(text);
      }
    }
    if (unevaluatedItems) {
      for (let i = 0; i < length; ++i) {
        if (seen.items.has(i)) continue;
        if (!(yield* check(unevaluatedItems, i, isLoud))) isValid = false;
        seen.items.add(i);
      }
    }
    return isValid;
  }
}

/**
 * What is wrong with a value, at most ten problems, each with its place; none: it meets the schema.
 *
 * @throws GemmaError `ERR_INVALID_ARGUMENT` (`SCHEMA_LIMIT`) when that takes too much work
 */
export function* problemsOf(graph: SchemaGraph, node: SchemaNode, value: unknown): Sliced<string[]> {
  const check = new Check(graph);
  const seen = yield* check.value(node, value, {}, 0, true);
  if (!seen && check.problems.length === 0) check.problems.push('the value does not meet the schema');
  return seen ? [] : check.problems;
}

/** Whether a value meets a schema. */
export function* meets(graph: SchemaGraph, node: SchemaNode, value: unknown): Sliced<boolean> {
  return (yield* new Check(graph).value(node, value, {}, 0, false)) !== undefined;
}
