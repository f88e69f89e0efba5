// What callers give as a schema, a JSON Schema or an object of a schema library, made ready: for the grammar that holds an answer to it,
// and for the check of what the grammar cannot enforce.
import { GemmaError } from './errors.js';
import { copyJson, readSchema, type CopyLimits, type Json, type SchemaGraph } from './json-schema.js';
import { grammarSchema } from './schema-grammar.js';
import { PatternError } from './pattern.js';
import { problemsOf } from './schema-validator.js';
import { Allowance, atOnce, inSlices, type Sliced } from './turns.js';
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
  readonly #where: string;
  readonly #reading: Sliced<void>;
  #graph: SchemaGraph | undefined;
  #error: unknown;
  #json: string | undefined;
  #writing: Promise<string> | undefined;

  constructor(schema: Json, where: string) {
    this.schema = schema;
    this.#where = where;
    this.#reading = this.#read();
  }

  // Several may drive it on, each for a while: its end is told by the members.
  *#read(): Sliced<void> {
    try {
      this.#graph = yield* readSchema(this.schema, this.#where);
    } catch (error) {
      this.#error = error;
    }
  }

  // When it has been read.
  #found(): SchemaGraph {
    if (!this.#graph) throw this.#error;
    return this.#graph;
  }

  /** Reads what may be read at once, and throws what is found to be wrong there. */
  begin(allowance: Allowance): void {
    if (allowance.begin(this.#reading)) this.#found();
  }

  #graphNow(): SchemaGraph {
    atOnce(this.#reading);
    return this.#found();
  }

  async #graphInSlices(): Promise<SchemaGraph> {
    await inSlices(this.#reading);
    return this.#found();
  }

  #written(schema: Json): string {
    return (this.#json = JSON.stringify(schema));
  }

  // Names of properties are matched while the schema is rewritten.
  *#rewritten(graph: SchemaGraph): Sliced<Json> {
    try {
      return yield* grammarSchema(graph);
    } catch (error) {
      if (!(error instanceof PatternError)) throw error;
      const message = `${this.#where}: matching names with a pattern: ${error.message}`;
      throw new GemmaError('ERR_INVALID_ARGUMENT', message, 'SCHEMA_LIMIT');
    }
  }

  get json(): string {
    return this.#json ?? this.#written(atOnce(this.#rewritten(this.#graphNow())));
  }

  async grammar(): Promise<string> {
    const write = async () => this.#json ?? this.#written(await inSlices(this.#rewritten(await this.#graphInSlices())));
    return (this.#writing ??= write());
  }

  validate(value: unknown): string[] {
    const graph = this.#graphNow();
    return atOnce(problemsOf(graph, graph.root, value));
  }

  async problems(value: unknown): Promise<string[]> {
    const graph = await this.#graphInSlices();
    return inSlices(problemsOf(graph, graph.root, value));
  }
}

// Schemas that were prepared lately, by their text: the same ones come with every call, of tools up to 128.
const KEPT = 256;
const MAX_KEPT = 1 << 21; // characters of them
const kept = new Map<string, Prepared>();
let keptCharacters = 0;

function prepared(schema: Json, where: string, allowance: Allowance): Prepared {
  const key = `${where} ${JSON.stringify(schema)}`;
  const found = kept.get(key) ?? new Prepared(schema, where);
  found.begin(allowance);
  if (!kept.delete(key)) keptCharacters += key.length;
  kept.set(key, found); // the latest is the last
  for (const oldest of kept.keys()) {
    if (kept.size <= KEPT && keptCharacters <= MAX_KEPT) break;
    kept.delete(oldest);
    keptCharacters -= oldest.length;
  }
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

/** What the schemas of one call take together. */
export interface SharedLimits {
  copies?: CopyLimits;
  allowance?: Allowance;
}

/**
 * Takes a JSON Schema or an object of a schema library. `where` begins the messages, such as `'schema'`. A schema of some hundred parts
 * and more is read where it is first used, in slices; what is wrong with it is thrown there.
 *
 * @throws TypeError for what is neither; GemmaError `ERR_INVALID_ARGUMENT` (`BAD_SCHEMA`, `BAD_REGEX`), `ERR_UNSUPPORTED_INPUT`
 * (`SCHEMA_KEYWORD`: a keyword that can neither be enforced nor checked, with its place)
 */
export function prepareSchema(
  schema: unknown,
  where: string,
  { copies, allowance = new Allowance() }: SharedLimits = {},
): PreparedSchema {
  if (!isObject(schema) || Array.isArray(schema)) {
    throw new TypeError(
      `${where}: expected a JSON Schema (an object) or a schema of zod, valibot or arktype, found ${show(schema)}`,
    );
  }
  const standard = standardOf(schema, where);
  if (!standard && typeof schema === 'function') throw new TypeError(`${where}: expected a schema, found a function`);
  const copy = copyJson(standard ? jsonSchemaOf(standard, where) : schema, where, copies);
  const own = prepared(copy, where, allowance);
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
