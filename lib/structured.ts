// Structured output: the options that say what an answer may be, the grammar that holds it to that, and the value that is made of it.
import { GemmaError } from './errors.js';
import type { NativeGrammarSource } from './native.js';
import { PartialJson } from './partial-json.js';
import { ObjectAssembler, TextAssembler, type PartAssembler } from './parts.js';
import { PatternError, Patterns, type Language } from './pattern.js';
import { prepareSchema, type StandardSchema } from './schema.js';
import { Allowance, inSlices, type Sliced } from './turns.js';
import { boolean, plain, show, text } from './values.js';

/** What an answer may be; at most one of these. */
export interface StructuredOptions {
  /**
   * A JSON Schema, or a schema of zod 4, arktype or valibot (Standard JSON Schema): the answer is JSON that meets it, `result.object` its
   * value, as the library's own `validate` returns it. Keywords: docs/guides/structured-output.md.
   */
  schema?: StandardSchema | object;
  /** True: the answer is JSON, `result.object` its value. Default false. */
  json?: boolean;
  /** The answer is one of these texts, and `result.object` too. At most 1000, of at most 1000 characters each. */
  choices?: readonly string[];
  /** A regular expression (ECMAScript's, flag u) that the whole answer matches. */
  regex?: string | RegExp;
  /** A grammar in XGrammar's EBNF, which begins with the rule `root`. Llama.cpp's GBNF is close to it. At most 100,000 characters. */
  grammar?: string;
}

/** How an answer is held to what was asked for. */
export interface Structure {
  /** Without holding the thread. */
  source(): Promise<NativeGrammarSource>;
  assembler(): PartAssembler;
  /**
   * What is made of a whole answer; nothing for some.
   *
   * @throws GemmaError `ERR_OUTPUT_INVALID`
   */
  objectOf(answer: string): Promise<{ object?: unknown }>;
}

const MAX_CHOICES = 1000;
const MAX_CHOICE = 1000;
const MAX_GRAMMAR = 100_000;

function parseJson(answer: string): unknown {
  try {
    return JSON.parse(answer);
  } catch {
    throw new GemmaError('ERR_OUTPUT_INVALID', `the answer is no JSON: ${show(answer)}`, 'SCHEMA_MISMATCH');
  }
}

function schemaStructure(value: unknown): Structure {
  const prepared = prepareSchema(value, 'schema');
  return {
    source: async () => ({ kind: 'jsonSchema', text: await prepared.grammar() }),
    assembler: () => new ObjectAssembler(new PartialJson()),
    objectOf: async (answer) => ({ object: await prepared.parse(parseJson(answer)) }),
  };
}

const jsonStructure: Structure = {
  source: () => Promise.resolve({ kind: 'json', text: '' }),
  assembler: () => new ObjectAssembler(new PartialJson()),
  objectOf: (answer) => Promise.resolve({ object: parseJson(answer) }),
};

/** As EBNF writes it between quotes. */
function quoted(choice: string): string {
  // eslint-disable-next-line no-control-regex -- these are meant
  const escaped = choice.replace(/["\\]/g, '\\$&').replace(/[\x00-\x1f\x7f]/g, (control) => {
    return `\\u${control.charCodeAt(0).toString(16).padStart(4, '0')}`;
  });
  return `"${escaped}"`;
}

function choicesStructure(value: unknown): Structure {
  if (!Array.isArray(value)) throw new TypeError(`choices: expected an array of strings, found ${show(value)}`);
  if (value.length === 0 || value.length > MAX_CHOICES) {
    throw new RangeError(`choices: expected 1 to ${MAX_CHOICES} texts, found ${value.length}`);
  }
  const choices = new Set<string>();
  for (let i = 0; i < value.length; ++i) {
    const choice = text(`choices[${i}]`, value[i]);
    if (choice.length === 0 || choice.length > MAX_CHOICE) {
      throw new RangeError(`choices[${i}]: expected 1 to ${MAX_CHOICE} characters, found ${choice.length}`);
    }
    if (/[\ud800-\udfff]/u.test(choice)) throw new RangeError(`choices[${i}]: half of a character is no text`);
    choices.add(choice);
  }
  const grammar = `root ::= ${[...choices].map(quoted).join(' | ')}\n`;
  return {
    source: () => Promise.resolve({ kind: 'ebnf', text: grammar }),
    assembler: () => new TextAssembler(),
    objectOf: (answer) => Promise.resolve({ object: answer }),
  };
}

function regexStructure(value: unknown): Structure {
  if (value instanceof RegExp && /[^gyu]/.test(value.flags)) {
    throw new RangeError(`regex: expected a regular expression without the flags ${value.flags}`);
  }
  const pattern = value instanceof RegExp ? value.source : value;
  if (typeof pattern !== 'string') throw new TypeError(`regex: expected a string or a RegExp, found ${show(value)}`);
  const bad = (message: string) =>
    new GemmaError('ERR_INVALID_ARGUMENT', `regex: ${message} (${show(pattern)})`, 'BAD_REGEX');
  const patterns = new Patterns();
  const named = (error: unknown) => (error instanceof PatternError ? bad(`the pattern has ${error.message}`) : error);
  // A long pattern is read where it is used; what is wrong with it is thrown there.
  let read: [exact: Language, loose: Language] | undefined;
  const reading = (function* (): Sliced<void> {
    read = [yield* patterns.whole(pattern), yield* patterns.whole(pattern, false)];
  })();
  try {
    new Allowance().begin(reading);
  } catch (error) {
    throw named(error);
  }
  let rest: Promise<void> | undefined;
  const languages = async (): Promise<[exact: Language, loose: Language]> => {
    try {
      if (!read) await (rest ??= inSlices(reading));
      if (read) return read;
    } catch (error) {
      throw named(error);
    }
    throw bad('it could not be read');
  };
  return {
    source: async () => {
      for (const language of await languages()) {
        const written = await inSlices(patterns.write(language, 'plain'));
        if (written === null && !language.nullable) throw bad('no text matches');
        // XGrammar has no empty regular expression.
        if (written === null) return { kind: 'ebnf', text: 'root ::= ""\n' };
        if (written !== undefined) return { kind: 'regex', text: written };
      }
      throw bad('the pattern is too large');
    },
    assembler: () => new TextAssembler(),
    objectOf: async (answer) => {
      // In what was too much for the grammar: lookaheads, long repetitions.
      const [exact] = await languages();
      let isMatch: boolean;
      try {
        isMatch = await inSlices(patterns.has(exact, answer));
      } catch (error) {
        throw named(error);
      }
      if (!isMatch) {
        throw new GemmaError(
          'ERR_OUTPUT_INVALID',
          `the answer does not match the regex: ${show(answer)}`,
          'SCHEMA_MISMATCH',
        );
      }
      return {};
    },
  };
}

function grammarStructure(value: unknown): Structure {
  const grammar = text('grammar', value);
  if (grammar.length === 0 || grammar.length > MAX_GRAMMAR) {
    throw new RangeError(`grammar: expected 1 to ${MAX_GRAMMAR} characters, found ${grammar.length}`);
  }
  return {
    source: () => Promise.resolve({ kind: 'ebnf', text: grammar }),
    assembler: () => new TextAssembler(),
    objectOf: () => Promise.resolve({}),
  };
}

const MAKERS: Readonly<Record<keyof StructuredOptions, (value: unknown) => Structure | undefined>> = {
  schema: schemaStructure,
  json: (value) => (boolean('json', value) ? jsonStructure : undefined),
  choices: choicesStructure,
  regex: regexStructure,
  grammar: grammarStructure,
};

/**
 * What the options ask for; undefined: any text.
 *
 * @throws TypeError, RangeError; GemmaError as `prepareSchema`
 */
export function structureOf(options: StructuredOptions): Structure | undefined {
  const given = (Object.keys(MAKERS) as (keyof StructuredOptions)[])
    .map((name) => ({ name, value: options[name] })) // read once
    .filter(({ name, value }) => value !== undefined && !(name === 'json' && value === false));
  const [first, second] = given;
  if (first && second)
    throw new TypeError(
      `${first.name}, ${second.name}: expected at most one of ${plain(Object.keys(MAKERS).join(', '))}`,
    );
  return first && MAKERS[first.name](first.value);
}
