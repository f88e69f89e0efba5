// Schemas of Google's interface, which are those of OpenAPI 3.0 with types in capitals, to JSON Schema.
import { HttpError } from '../errors.js';

const TYPES: Readonly<Record<string, string>> = {
  STRING: 'string',
  NUMBER: 'number',
  INTEGER: 'integer',
  BOOLEAN: 'boolean',
  ARRAY: 'array',
  OBJECT: 'object',
  NULL: 'null',
};

/** What says how numbers are stored, or that an enum is one: nothing for text. */
const NO_FORMAT = new Set(['enum', 'float', 'double', 'int32', 'int64']);

const COUNTS = new Set(['minItems', 'maxItems', 'minProperties', 'maxProperties', 'minLength', 'maxLength']);
const AS_THEY_ARE = new Set([
  'title',
  'description',
  'enum',
  'default',
  'example',
  'required',
  'minimum',
  'maximum',
  'pattern',
]);

function wrong(where: string, message: string): HttpError {
  return new HttpError(400, 'invalid_value', `${where}: ${message}`, { param: where });
}

function objectOf(value: unknown, where: string): Record<string, unknown> {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  throw wrong(where, 'expected a schema');
}

// Counts are 64-bit integers, which this form of JSON writes as text.
function countOf(value: unknown, where: string): number {
  const count = typeof value === 'string' && /^\d{1,15}$/.test(value) ? Number(value) : value;
  if (typeof count === 'number' && Number.isInteger(count) && count >= 0) return count;
  throw wrong(where, 'expected an integer of at least 0');
}

function propertiesOf(value: unknown, ordering: unknown, where: string): Record<string, unknown> {
  const entries = new Map(Object.entries(objectOf(value, where)));
  if (ordering !== undefined && !Array.isArray(ordering))
    throw wrong(where, 'propertyOrdering: expected an array of names');
  const order = ((ordering ?? []) as unknown[]).filter(
    (name): name is string => typeof name === 'string' && entries.has(name),
  );
  const names = new Set([...order, ...entries.keys()]);
  return Object.fromEntries(
    [...names].map((name) => [name, jsonSchemaOf(entries.get(name), `${where}.${name.slice(0, 100)}`)]),
  );
}

/**
 * A schema as JSON Schema. Its keywords are looked at where it is used.
 *
 * @param where the parameter, for messages
 * @throws HttpError 400 for a keyword that these schemas have not, and for what is no schema
 */
export function jsonSchemaOf(schema: unknown, where: string): Record<string, unknown> {
  const result: Record<string, unknown> = {};
  let nullable = false;
  const given = objectOf(schema, where);
  for (const [key, value] of Object.entries(given)) {
    if (value === null || value === undefined) continue;
    const place = `${where}.${key.slice(0, 100)}`;
    if (key === 'type') {
      const name = typeof value === 'string' ? value.toUpperCase() : '';
      if (name === 'TYPE_UNSPECIFIED') continue;
      if (!Object.hasOwn(TYPES, name)) throw wrong(place, `expected one of ${Object.keys(TYPES).join(', ')}`);
      result.type = TYPES[name];
    } else if (key === 'nullable') {
      if (typeof value !== 'boolean') throw wrong(place, 'expected true or false');
      nullable = value;
    } else if (key === 'format') {
      if (typeof value !== 'string') throw wrong(place, 'expected a string');
      if (!NO_FORMAT.has(value)) result.format = value;
    } else if (key === 'properties') {
      result.properties = propertiesOf(value, given.propertyOrdering ?? undefined, place);
    } else if (key === 'propertyOrdering') {
      if (given.properties === undefined) throw wrong(place, 'expected properties beside it');
    } else if (key === 'items') {
      result.items = jsonSchemaOf(value, place);
    } else if (key === 'anyOf') {
      if (!Array.isArray(value)) throw wrong(place, 'expected an array of schemas');
      result.anyOf = value.map((item, i) => jsonSchemaOf(item, `${place}[${i}]`));
    } else if (COUNTS.has(key)) {
      result[key] = countOf(value, place);
    } else if (AS_THEY_ARE.has(key)) {
      result[key === 'example' ? 'examples' : key] = key === 'example' ? [value] : value;
    } else {
      throw wrong(
        place,
        'there is no such keyword; responseJsonSchema and parametersJsonSchema take all of JSON Schema',
      );
    }
  }
  return nullable ? { anyOf: [result, { type: 'null' }] } : result;
}
