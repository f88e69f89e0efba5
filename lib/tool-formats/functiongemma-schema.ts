// Schemas as FunctionGemma's declarations show them: its template knows types, properties and items, but no references, alternatives
// or conditions.

export type Schema = Record<string, unknown>;

const MAX_DEPTH = 60;

// jinja's dictsort: by the key in lower case, by code points.
export function sortedEntries(object: object): [string, unknown][] {
  return Object.entries(object)
    .map(([key, value]) => ({ key, value: value as unknown, order: Buffer.from(key.toLowerCase()) }))
    .sort((a, b) => Buffer.compare(a.order, b.order))
    .map(({ key, value }) => [key, value]);
}

export function isSchema(value: unknown): value is Schema {
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
