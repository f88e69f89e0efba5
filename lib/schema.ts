// What callers give as a schema, a JSON Schema or an object of a schema library, made ready: for the grammar that holds an answer to it,
// and for the check of what the grammar cannot enforce.
import { GemmaError } from './errors.js';
import { copyJson, readSchema, type Json, type SchemaGraph } from './json-schema.js';
import { grammarSchema } from './schema-grammar.js';
import { PatternError } from './pattern.js';
import { problemsOf } from './schema-validator.js';
import { atOnce, inSlices, type Sliced } from './turns.js';
import { plain, reasonOf, show } from './values.js';

/** What a schema library's `validate` returns (Standard Schema). */
export type StandardResult<Output> =
  | { readonly value: Output; readonly issues?: undefined }
  | {
      readonly issues: readonly {
        readonly message: string;
        readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined;
      }[];
    };

/**
 * A schema with the Standard Schema interface that also gives its JSON Schema (Standard JSON Schema): zod 4, arktype, valibot by
 * `toStandardJsonSchema` of `@valibot/to-json-schema`.
 */
export interface StandardSchema<Output = unknown> {
  readonly '~standard': {
    readonly version: 1;
    readonly vendor: string;
    readonly validate: (value: unknown) => StandardResult<Output> | Promise<StandardResult<Output>>;
    readonly types?: { readonly input: unknown; readonly output: Output } | undefined;
    readonly jsonSchema?: {
      readonly input: (options: { readonly target: 'draft-2020-12' }) => Record<string, unknown>;
    };
  };
}

/** The type of what a schema's `validate` returns. */
export type OutputOf<S extends StandardSchema> = NonNullable<S['~standard']['types']>['output'];

/** A schema, ready for use. */
export interface PreparedSchema {
  /** the JSON Schema, a copy of its own */
  readonly schema: unknown;
  /**
   * What `compileGrammar` takes as `jsonSchema`. Made when it is first asked for; `grammar()` does that without holding the thread.
   *
   * @throws GemmaError `ERR_INVALID_ARGUMENT` (`BAD_SCHEMA`) where no value meets the schema, (`SCHEMA_LIMIT`)
   */
  readonly json: string;
  grammar(): Promise<string>;
  /**
   * What is wrong with a value by the JSON Schema, formats asserted: at most ten problems; none: it meets the schema.
   *
   * @throws GemmaError `ERR_INVALID_ARGUMENT` (`SCHEMA_LIMIT`) where that takes too much work
   */
  validate(value: unknown): string[];
  /**
   * A value by the JSON Schema and by the library's own `validate`, whose output is returned.
   *
   * @throws GemmaError `ERR_OUTPUT_INVALID` (`SCHEMA_MISMATCH`, `VALIDATION`) naming the problems; what `validate` throws
   */
  parse(value: unknown): Promise<unknown>;
}

class Prepared {
  readonly schema: Json;
  readonly #graph: SchemaGraph;
  readonly #where: string;
  #json: string | undefined;

  constructor(schema: Json, where: string) {
    this.schema = schema;
    this.#graph = readSchema(schema, where);
    this.#where = where;
  }

  #written(schema: Json | undefined): string {
    if (schema === undefined)
      throw new GemmaError('ERR_INVALID_ARGUMENT', `${this.#where}: no value meets the schema`, 'BAD_SCHEMA');
    return (this.#json = JSON.stringify(schema));
  }

  // Names of properties are matched while the schema is rewritten.
  *#rewritten(): Sliced<Json | undefined> {
    try {
      return yield* grammarSchema(this.#graph);
    } catch (error) {
      if (!(error instanceof PatternError)) throw error;
      const message = `${this.#where}: matching names with a pattern: ${error.message}`;
      throw new GemmaError('ERR_INVALID_ARGUMENT', message, 'SCHEMA_LIMIT');
    }
  }

  get json(): string {
    return this.#json ?? this.#written(atOnce(this.#rewritten()));
  }

  async grammar(): Promise<string> {
    return this.#json ?? this.#written(await inSlices(this.#rewritten()));
  }

  validate(value: unknown): string[] {
    return atOnce(problemsOf(this.#graph, this.#graph.root, value));
  }

  problems(value: unknown): Promise<string[]> {
    return inSlices(problemsOf(this.#graph, this.#graph.root, value));
  }
}

// Schemas that were prepared lately, by their text: the same one comes with every call.
const KEPT = 16;
const kept = new Map<string, Prepared>();

function prepared(schema: Json, where: string): Prepared {
  const key = `${where} ${JSON.stringify(schema)}`;
  const found = kept.get(key) ?? new Prepared(schema, where);
  kept.delete(key);
  kept.set(key, found); // the latest is the last
  if (kept.size > KEPT) kept.delete(kept.keys().next().value as string);
  return found;
}

function isObject(value: unknown): value is object {
  return (typeof value === 'object' && value !== null) || typeof value === 'function';
}

function standardOf(schema: object, where: string): StandardSchema['~standard'] | undefined {
  if (!('~standard' in schema)) return undefined;
  const standard = schema['~standard'];
  const { validate } = (isObject(standard) ? standard : {}) as Partial<StandardSchema['~standard']>;
  if (typeof validate !== 'function')
    throw new TypeError(`${where}: expected a schema with the Standard Schema interface`);
  return standard as StandardSchema['~standard'];
}

function jsonSchemaOf({ vendor, jsonSchema }: StandardSchema['~standard'], where: string): unknown {
  if (typeof jsonSchema?.input !== 'function') {
    throw new TypeError(
      `${where}: the schema of ${plain(String(vendor), 40)} does not tell its JSON Schema (Standard JSON Schema); zod 4 and arktype do, ` +
        'valibot by toStandardJsonSchema of @valibot/to-json-schema',
    );
  }
  try {
    return jsonSchema.input({ target: 'draft-2020-12' });
  } catch (error) {
    throw new GemmaError('ERR_INVALID_ARGUMENT', `${where}: it has no JSON Schema: ${reasonOf(error)}`, 'BAD_SCHEMA');
  }
}

function mismatch(problems: readonly string[], detail: string): GemmaError {
  return new GemmaError('ERR_OUTPUT_INVALID', `the value does not meet the schema: ${problems.join('; ')}`, detail);
}

function issueText({
  message,
  path,
}: {
  message: string;
  path?: readonly (PropertyKey | { key: PropertyKey })[] | undefined;
}): string {
  const keys = path?.map((part) => String(typeof part === 'object' ? part.key : part)) ?? [];
  return plain(keys.length > 0 ? `/${keys.join('/')}: ${message}` : String(message), 200);
}

/**
 * Takes a JSON Schema or an object of a schema library. `where` begins the messages, such as `'schema'`.
 *
 * @throws TypeError for what is neither; GemmaError `ERR_INVALID_ARGUMENT` (`BAD_SCHEMA`, `BAD_REGEX`), `ERR_UNSUPPORTED_INPUT`
 * (`SCHEMA_KEYWORD`: a keyword that can neither be enforced nor checked, with its place)
 */
export function prepareSchema(schema: unknown, where: string): PreparedSchema {
  if (!isObject(schema) || Array.isArray(schema)) {
    throw new TypeError(
      `${where}: expected a JSON Schema (an object) or a schema of zod, valibot or arktype, found ${show(schema)}`,
    );
  }
  const standard = standardOf(schema, where);
  if (!standard && typeof schema === 'function') throw new TypeError(`${where}: expected a schema, found a function`);
  const own = prepared(copyJson(standard ? jsonSchemaOf(standard, where) : schema, where), where);
  return {
    schema: own.schema,
    get json() {
      return own.json;
    },
    grammar: () => own.grammar(),
    validate: (value) => own.validate(value),
    async parse(value) {
      const problems = await own.problems(value);
      if (problems.length > 0) throw mismatch(problems, 'SCHEMA_MISMATCH');
      if (!standard) return value;
      const result = await standard.validate(value);
      if (result.issues) throw mismatch(result.issues.slice(0, 10).map(issueText), 'VALIDATION');
      return result.value;
    },
  };
}
