// Schemas without a model: patterns against JavaScript's RegExp, the validator against the JSON Schema Test Suite, ajv and the cases of
// test/reference, and what the grammar gets.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { type } from 'arktype';
import * as v from 'valibot';
import { toStandardJsonSchema } from '@valibot/to-json-schema';
import { z } from 'zod';
import { PartialJson } from '../../lib/partial-json.js';
import { readSchema, type Json } from '../../lib/json-schema.js';
import { PatternError, Patterns, type Language } from '../../lib/pattern.js';
import { prepareSchema } from '../../lib/schema.js';
import { grammarSchema } from '../../lib/schema-grammar.js';
import { FORMATS } from '../../lib/string-formats.js';
import { toolSettings } from '../../lib/tools.js';
import type { Sliced } from '../../lib/turns.js';
import { atOnce, data, rejection } from './helpers.js';
import { independentValidator } from './validator.js';

const folder = join(data, 'structured');

interface Case {
  name: string;
  schema: Record<string, unknown>;
  valid: unknown[];
  invalid: unknown[];
}
const { cases, keywords } = JSON.parse(readFileSync(join(folder, 'schemas.json'), 'utf8')) as {
  cases: Case[];
  keywords: { keyword: string; schema: Record<string, unknown>; valid: unknown; invalid: unknown }[];
};

function generator(seed: number): (n: number) => number {
  let state = seed;
  return (n) => {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    return Math.floor(state / 65536) % n;
  };
}

/** A JavaScript regular expression at random. */
function randomPattern(random: (n: number) => number, depth: number): string {
  const atoms = [
    'a',
    'b',
    '.',
    '[ab]',
    '[^a]',
    '\\d',
    '\\w',
    '\\S',
    '1',
    '(?:ab|c)',
    '"',
    '\\\\',
    'é',
    '[^"b]',
    '\\u{1F642}',
  ];
  let text = '';
  for (let i = 1 + random(3); i > 0; --i) {
    const kind = depth === 0 ? 0 : random(11);
    if (kind === 7) text += `(${randomPattern(random, depth - 1)}|${randomPattern(random, depth - 1)})`;
    else if (kind === 8) text += `(?${random(2) ? '=' : '!'}${randomPattern(random, depth - 1)})`;
    else if (kind === 9) text += random(2) ? '^' : '$';
    else {
      text += kind === 10 ? `(${randomPattern(random, depth - 1)})` : (atoms[random(atoms.length)] as string);
      if (random(4) === 0) text += ['*', '+', '?', '{2}', '{0,2}', '{1,}?'][random(6)];
    }
  }
  return text;
}

const searchFor = (patterns: Patterns, pattern: string) => atOnce(patterns.search(pattern));
const wholly = (patterns: Patterns, pattern: string) => atOnce(patterns.whole(pattern));
const has = (patterns: Patterns, language: Language, text: string) => atOnce(patterns.has(language, text));

describe('patterns', () => {
  test('find what RegExp finds', () => {
    const random = generator(7);
    const letters = ['a', 'b', 'c', '1', '"', '\\', 'é', '🙂', '\n', ' '];
    const texts = Array.from({ length: 101 }, (_, i) =>
      Array.from({ length: i % 7 }, () => letters[random(letters.length)]).join(''),
    );
    let tested = 0;
    for (let i = 0; i < 307; ++i) {
      const pattern = randomPattern(random, 2);
      const patterns = new Patterns();
      const expression = new RegExp(pattern, 'u');
      const whole = new RegExp(`^(?:${pattern})$`, 'u');
      let found;
      try {
        found = [searchFor(patterns, pattern), wholly(patterns, pattern)] as const;
      } catch (error) {
        expect(error).toBeInstanceOf(PatternError);
        continue;
      }
      ++tested;
      const [search, all] = found;
      const wrong = texts.filter(
        (text) =>
          has(patterns, search, text) !== expression.test(text) || has(patterns, all, text) !== whole.test(text),
      );
      expect([pattern, wrong]).toEqual([pattern, []]);
    }
    expect(tested).toBeGreaterThan(260);
  });

  test('intersections and complements', () => {
    const patterns = new Patterns();
    const [a, b] = [searchFor(patterns, '^[a-z]+$'), searchFor(patterns, 'ab')];
    const both = patterns.both([a, b, patterns.lengths(3, 4)]);
    const rest = patterns.both([a, patterns.not(b)]);
    for (const [text, inBoth, inRest] of [
      ['ab', false, false],
      ['xab', true, false],
      ['xaby', true, false],
      ['xabyz', false, false],
      ['ba', false, true],
      ['', false, false],
    ] as const) {
      expect([text, has(patterns, both, text), has(patterns, rest, text)]).toEqual([text, inBoth, inRest]);
    }
    // What is written has neither.
    const written = atOnce(patterns.write(both)) as string;
    for (const text of ['xab', 'abab', 'bbab', 'ab', 'aba', 'ababa', 'axb']) {
      expect([text, new RegExp(`^(?:${written})$`, 'u').test(text)]).toEqual([text, has(patterns, both, text)]);
    }
    expect(patterns.both([searchFor(patterns, '^[a-z]*$'), patterns.lengths(2, 4)])).toBe(
      searchFor(patterns, '^[a-z]{2,4}$'),
    );
    expect(patterns.both([searchFor(patterns, '^a'), searchFor(patterns, '^b')])).not.toBe(patterns.none); // only its automaton tells
    expect(atOnce(patterns.write(patterns.both([searchFor(patterns, '^a'), searchFor(patterns, '^b')])))).toBeNull();
  });

  test('those that make others backtrack', () => {
    const patterns = new Patterns();
    const long = 'a'.repeat(30_011);
    for (const pattern of [
      '^(a+)+$',
      '^(a|a)*$',
      '^(a|aa)+$',
      '(x+x+)+y',
      '^(([a-z])+.)+[A-Z]([a-z])+$',
      '^(?=(a+)+b).*$',
    ]) {
      expect(has(patterns, searchFor(patterns, pattern), `${long}!`)).toBe(false);
    }
    expect(has(patterns, searchFor(patterns, '^(a+)+$'), long)).toBe(true);
    const many = searchFor(patterns, '^[ab]*a[ab]{40}c$');
    expect(() => has(patterns, many, 'ab'.repeat(5000))).not.toThrow();
  });

  test.each([
    ['(a', '( without'],
    ['a)', ') without'],
    ['[a', '[ without'],
    ['*a', 'nothing to repeat'],
    ['a{3,2}', 'at least 3'],
    ['a**', 'nothing to repeat'],
    ['(?<=a)b', 'lookbehind'],
    ['(a)\\1', 'back reference'],
    ['\\bword', 'word boundary'],
    ['\\q', 'no escape'],
    ['[z-a]', 'end is before'],
    ['\\p{Nonsense}', 'Unicode property'],
    ['(?i:a)', 'modifier'],
    ['(?:(?!x)a)*', 'repeats'],
    ['a*^b', 'behind something'],
    ['a'.repeat(10_001), 'characters'],
    ['('.repeat(101) + ')'.repeat(101), 'deep'],
    ['a{100001}', 'more than 100000'],
    ['\\', 'at the end'],
    ['\\u{110000}', 'digits'],
    ['^+', 'repeated'],
  ])('%s is refused', (pattern, message) => {
    expect(() => searchFor(new Patterns(), pattern)).toThrow(PatternError);
    expect(() => searchFor(new Patterns(), pattern)).toThrow(message);
  });

  test('Unicode properties are those of RegExp', () => {
    for (const name of ['Lu', 'Script=Han', 'Nd', 'Emoji', 'L', 'Any']) {
      const one = new RegExp(`^\\p{${name}}$`, 'u');
      const patterns = new Patterns();
      const language = wholly(patterns, `\\p{${name}}`);
      const wrong: number[] = [];
      for (let code = 0; code < 0x32000; ++code) {
        if (code === 0xd800) code = 0xe000;
        const inRanges = language.ranges.some((low, i, all) => i % 2 === 0 && low <= code && code <= (all[i + 1] ?? 0));
        if (inRanges !== one.test(String.fromCodePoint(code))) wrong.push(code);
      }
      expect([name, wrong]).toEqual([name, []]);
    }
  });

  test('formats are those of the validators', () => {
    const ajv = independentValidator();
    const patterns = new Patterns();
    const texts = [
      '2024-02-29', '2023-02-29', '1900-02-29', '2000-02-29', '2026-11-31', '2026-1-1', '12:00:00Z', '24:00:00Z', '12:00:00.123+01:00', '12:00',
      '2026-11-28T12:00:00Z', '2026-11-28 12:00:00', '2026-11-28T12:00:00-23:59', 'P1Y2M3DT4H5M6S', 'P2W', 'PT', 'P1Y1D', 'P', 'PT1H', 'PT1S1H',
      'a@b.example', 'a.b+c@sub.example.org', 'a..b@c.de', '.a@b.cd', 'a@-b.cd', 'a@b', 'nobody', 'example.org', '-a.b', 'a-.b', 'a'.repeat(64),
      `${'a.'.repeat(127)}a`, '127.0.0.1', '256.0.0.1', '01.2.3.4', '1.2.3', '::1', '::', '1::2::3', '1:2:3:4:5:6:7:8', '1:2:3:4:5:6:7:8:9',
      '::ffff:1.2.3.4', 'fe80::1', '12345::', 'https://a.example/b?c#d', 'mailto:a@b.cd', 'http://[::1]:80/', 'x y', '//a/b', '/a/b?c', 'a:b', '%zz',
      'http://a b/', 'urn:isbn:1', '', '123e4567-e89b-12d3-a456-426614174000', '123e4567e89b12d3a456426614174000', '/a/b~0c', '/a~2', '0/a', '1#', '01',
    ]; // prettier-ignore
    // Ours knows no quoted names, no leap seconds and no time without a zone; ajv's email takes one label too.
    const wrong: unknown[] = [];
    for (const [format, pattern] of FORMATS) {
      if (format === 'byte') continue;
      const language = searchFor(patterns, pattern);
      for (const text of texts) {
        // ISO 8601 has the first, RFC 3339 does not; nor may a relative path begin with a colon in its first segment (RFC 3986).
        if (text === 'P1Y1D' || (format === 'uri-reference' && /^[^a-z/?#][^/?#]*:/i.test(text))) continue;
        if (has(patterns, language, text) !== ajv.validate({ type: 'string', format }, text))
          wrong.push([format, text]);
      }
      expect(wrong).toEqual([]);
    }
  });
});

describe('the JSON Schema Test Suite', () => {
  const drafts = JSON.parse(gunzipSync(readFileSync(join(folder, 'json-schema-suite.json.gz'))).toString()) as Record<
    string,
    Record<string, { schema: unknown; tests: [unknown, boolean][] }[]>
  >;
  // Formats are asserted here, and vocabularies and the rule of old drafts that $ref hides what stands beside it are not known.
  const differs: Record<string, number> = { 'draft7 ref': 3, 'draft2020-12 format': 13, 'draft2020-12 vocabulary': 1 };
  const refused: Record<string, RegExp> = {
    'draft7 definitions': /is not in the schema/,
    'draft7 ref': /is not in the schema/,
    'draft7 refRemote': /is not in the schema/,
    'draft2020-12 defs': /is not in the schema/,
    'draft2020-12 ref': /is not in the schema/,
    'draft2020-12 refRemote': /is not in the schema/,
    'draft2020-12 dynamicRef': /\$dynamicRef|is not in the schema/,
    'draft2020-12 unevaluatedItems': /\$dynamicRef/,
    'draft2020-12 unevaluatedProperties': /\$dynamicRef/,
  };
  for (const [draft, files] of Object.entries(drafts)) {
    test(draft, () => {
      let checked = 0;
      for (const [file, groups] of Object.entries(files)) {
        const wrong: unknown[] = [];
        for (const { schema, tests } of groups) {
          if (typeof schema === 'boolean') continue;
          let prepared;
          try {
            prepared = prepareSchema(schema, 'schema');
          } catch (error) {
            expect((error as Error).message).toMatch(refused[`${draft} ${file}`] ?? /^never$/);
            continue;
          }
          for (const [value, isValid] of tests) {
            ++checked;
            const problems = prepared.validate(value);
            if ((problems.length === 0) !== isValid) wrong.push({ schema, value, isValid, problems });
          }
        }
        if (wrong.length !== (differs[`${draft} ${file}`] ?? 0))
          expect({ draft, file, wrong }).toEqual({ draft, file, wrong: [] });
      }
      expect(checked).toBeGreaterThan(800);
    });
  }
});

describe('the cases of test/reference', () => {
  const ajv = independentValidator();

  test.each(cases.map(({ name, ...rest }) => [name, rest] as const))('%s', (_, { schema, valid, invalid }) => {
    const prepared = prepareSchema(schema, 'schema');
    const check = ajv.compile(schema);
    for (const value of valid) expect(prepared.validate(value)).toEqual([]);
    for (const value of invalid) expect(prepared.validate(value)).not.toEqual([]);
    for (const value of valid) expect(check(value)).toBe(true);
    expect(JSON.parse(prepared.json)).toBeInstanceOf(Object);
  });

  test.each(keywords.map(({ keyword, ...rest }) => [keyword, rest] as const))(
    'keyword %s',
    (keyword, { schema, valid, invalid }) => {
      const prepared = prepareSchema(schema, 'schema');
      expect(prepared.validate(valid)).toEqual([]);
      // These two are about what a type is asked for to be.
      if (keyword !== 'true schema' && !keyword.startsWith('nullable'))
        expect(prepared.validate(invalid)).not.toEqual([]);
    },
  );
});

/** What the grammar gets. */
function written(schema: object): unknown {
  return JSON.parse(prepareSchema(schema, 'schema').json);
}

describe('what the grammar gets', () => {
  const [integer, string] = [{ type: 'integer', minimum: -7, maximum: 97 }, { type: 'string' }];

  test('schemas that apply together are one', () => {
    const object = (properties: object, required: string[]) => ({
      type: 'object',
      properties,
      required,
      additionalProperties: false,
    });
    expect(
      written({
        allOf: [{ properties: { a: string } }, { properties: { b: integer }, required: ['b'] }],
        required: ['a'],
      }),
    ).toEqual(object({ a: string, b: integer }, ['a', 'b']));
    expect(written({ $defs: { i: integer }, properties: { a: { $ref: '#/$defs/i', minimum: 3 } } })).toEqual({
      type: 'object',
      properties: { a: { type: 'integer', minimum: 3, maximum: 97 } },
      additionalProperties: false,
    });
    expect(
      written({
        allOf: [
          { type: 'integer', minimum: 1 },
          { type: 'number', exclusiveMaximum: 4.5 },
        ],
      }),
    ).toEqual({
      type: 'integer',
      minimum: 1,
      maximum: 4,
    });
    expect(written({ type: 'string', enum: ['a', 'bb', 3], maxLength: 1 })).toEqual({ enum: ['a'] });
  });

  test('what stands beside alternatives goes into each', () => {
    expect(
      written({
        type: 'object',
        properties: { a: integer, b: string },
        anyOf: [{ required: ['a'] }, { required: ['b'] }],
      }),
    ).toEqual({
      anyOf: ['a', 'b'].map((name) => ({
        type: 'object',
        properties: { a: integer, b: string },
        required: [name],
        additionalProperties: false,
      })),
    });
    const conditional = written({
      type: 'object',
      properties: { k: { enum: ['s', 'n'] }, v: {} },
      required: ['k', 'v'],
      if: { properties: { k: { const: 's' } } },
      then: { properties: { v: string } },
      else: { properties: { v: integer } },
    });
    expect(conditional).toEqual({
      anyOf: [
        ['s', string],
        ['n', integer],
      ].map(([k, value]) => ({
        type: 'object',
        properties: { k: { enum: [k] }, v: value },
        required: ['k', 'v'],
        additionalProperties: false,
      })),
    });
  });

  test('properties keep their order', () => {
    const { properties } = written({ properties: { z: integer, a: string, m: {} }, required: ['m', 'z'] }) as {
      properties: object;
    };
    expect(Object.keys(properties)).toEqual(['z', 'a', 'm']);
  });

  test('objects are closed unless the schema opens them', () => {
    const a = { a: string };
    const rest = (schema: object) =>
      (written({ type: 'object', ...schema }) as { additionalProperties: unknown }).additionalProperties;
    expect(rest({ properties: a })).toBe(false);
    expect(rest({ properties: a, additionalProperties: true })).toEqual({});
    expect(rest({ properties: a, additionalProperties: integer })).toEqual(integer);
    expect(rest({ properties: a, unevaluatedProperties: integer })).toEqual(integer);
    expect(rest({})).toEqual({});
    expect(rest({ propertyNames: string, additionalProperties: integer })).toEqual(integer); // zod's records
    expect(written({ propertyNames: { type: 'string', maxLength: 9 }, additionalProperties: integer })).toEqual({
      type: 'object',
      propertyNames: { type: 'string', maxLength: 9 },
      additionalProperties: integer,
    });
    expect(rest({ properties: a, minProperties: 2 })).toEqual({});
  });

  test('recursion', () => {
    const tree = {
      type: 'object',
      properties: { v: integer, kids: { type: 'array', items: { $ref: '#' } } },
      required: ['v'],
    };
    const node = {
      ...tree,
      properties: { v: integer, kids: { type: 'array', items: { $ref: '#/$defs/0' } } },
      additionalProperties: false,
    };
    expect(written(tree)).toEqual({ $ref: '#/$defs/0', $defs: { 0: node } });
  });

  test('what cannot be is left out', () => {
    const endless = { $defs: { e: { properties: { e: { $ref: '#/$defs/e' } }, required: ['e'] } } };
    expect(written({ ...endless, properties: { a: integer, e: { $ref: '#/$defs/e' }, never: false } })).toEqual({
      type: 'object',
      properties: { a: integer },
      additionalProperties: false,
    });
    expect(written({ anyOf: [{ type: 'integer', minimum: 3, maximum: 2 }, string] })).toEqual(string);
  });

  test.each<[string, object]>([
    ['false', { properties: { a: false }, required: ['a'] }],
    ['types', { allOf: [string, integer] }],
    ['bounds', { type: 'integer', minimum: 3, maximum: 2 }],
    ['between two integers', { type: 'integer', exclusiveMinimum: 3, exclusiveMaximum: 4 }],
    ['enum and const', { enum: [1, 2], const: 3 }],
    ['an empty enum', { enum: [] }],
    ['lengths', { type: 'string', minLength: 3, maxLength: 2 }],
    ['patterns', { type: 'string', allOf: [{ pattern: '^a' }, { pattern: '^b' }] }],
    ['a pattern and a length', { type: 'string', pattern: '^abc$', maxLength: 2 }],
    ['items', { type: 'array', minItems: 3, maxItems: 2 }],
    ['a tuple', { type: 'array', prefixItems: [integer, false], minItems: 2 }],
    ['properties', { type: 'object', required: ['a', 'b'], maxProperties: 1 }],
    ['no end', { type: 'object', properties: { a: { $ref: '#' } }, required: ['a'] }],
    ['a name', { type: 'object', propertyNames: { pattern: '^b$' }, required: ['a'] }],
    ['not', { not: {} }],
  ])('no value meets it: %s', async (_, schema) => {
    expect(() => prepareSchema(schema, 'schema').json).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', detail: 'BAD_SCHEMA' }),
    );
    expect(await rejection(prepareSchema(schema, 'schema').grammar())).toMatchObject({ detail: 'BAD_SCHEMA' });
  });

  test.each([
    [{ type: 'integer', minimum: 5, maximum: 3 }, 'no number lies between /minimum 5, /maximum 3'],
    [{ type: 'number', exclusiveMinimum: 1, maximum: 1 }, '/exclusiveMinimum 1, /maximum 1'],
    [{ type: 'integer', minimum: 0.2, maximum: 0.8 }, '/minimum 0.2, /maximum 0.8'],
    [
      { allOf: [{ type: 'integer', minimum: 9 }, { exclusiveMaximum: -1e300 }] },
      '/allOf/0/minimum 9, /allOf/1/exclusiveMaximum',
    ],
  ])('contradicting bounds are named: %j', (schema, message) => {
    expect(() => written(schema)).toThrow(
      expect.objectContaining({ detail: 'BAD_SCHEMA', message: expect.stringContaining(message) as string }),
    );
  });

  test.each([
    [{ type: 'integer', minimum: 1e20 }, '/minimum: expected at most'],
    [{ type: 'integer', exclusiveMinimum: 2 ** 63 }, '/exclusiveMinimum: expected at most'],
    [{ type: 'integer', maximum: -1e20 }, '/maximum: expected at least'],
    [{ type: 'number', minimum: 1e300 }, '/minimum: expected at most'],
    [{ type: 'number', exclusiveMaximum: -(2 ** 54) }, '/exclusiveMaximum: expected at least'],
    [{ properties: { a: { allOf: [{ type: 'integer' }, { minimum: 1e19 }] } } }, '/properties/a/allOf/1/minimum'],
  ])('bounds beyond what a double holds are refused: %j', (schema, message) => {
    expect(() => written(schema)).toThrow(
      expect.objectContaining({
        code: 'ERR_UNSUPPORTED_INPUT',
        detail: 'SCHEMA_KEYWORD',
        message: expect.stringContaining(message) as string,
      }),
    );
  });

  test('wide bounds are those of a double', () => {
    const [minimum, maximum] = [Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER];
    expect(written({ type: 'integer', maximum: 1e20 })).toEqual({ type: 'integer', minimum, maximum });
    expect(written({ type: 'integer', minimum: maximum })).toEqual({ type: 'integer', minimum: maximum, maximum });
    expect(written({ type: 'number', minimum: -1e300, maximum: 7 })).toEqual({ type: 'number', maximum: 7 });
  });

  // XGrammar writes six decimals at most.
  test.each([
    [{ minimum: 0.1234567, maximum: 0.1234569 }, [0.1234567, 0.1234568, 0.1234569]],
    [{ exclusiveMinimum: 0, maximum: 1e-7 }, [5e-8, 1e-7]],
    [{ exclusiveMinimum: 0, exclusiveMaximum: 1e-7 }, [5e-8]],
    [{ minimum: -1e-9, maximum: -1e-9 }, [-1e-9]],
  ])('bounds with no number of six decimals between them: %j', (bounds, values) => {
    expect(written({ type: 'number', ...bounds })).toEqual({ enum: values });
  });

  test('patterns of very many parts are too large, or are checked', async () => {
    for (const part of ['x*', 'x?', '[a-b]', 'x']) {
      const pattern = `^${part.repeat(Math.floor(9000 / part.length))}$`;
      const prepared = prepareSchema({ type: 'string', pattern }, 'schema');
      await prepared.grammar();
      for (const text of ['', 'x'.repeat(5000), 'y']) {
        let isMatch: boolean | undefined;
        try {
          isMatch = prepared.validate(text).length === 0;
        } catch (error) {
          expect(error).toMatchObject({ code: 'ERR_INVALID_ARGUMENT', detail: 'SCHEMA_LIMIT' });
        }
        if (isMatch !== undefined) expect([part, isMatch]).toEqual([part, new RegExp(pattern, 'u').test(text)]);
      }
    }
  });

  test('a pattern that takes too much work to match names', async () => {
    const patternProperties = { [`^${'x?'.repeat(4000)}$`]: true };
    const schema = { type: 'object', properties: { xx: { type: 'integer' } }, patternProperties };
    expect(await rejection(prepareSchema(schema, 'schema').grammar())).toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      detail: 'SCHEMA_LIMIT',
    });
  });

  test('patterns find, and spell what JSON escapes', () => {
    const pattern = (schema: object) =>
      (written({ type: 'string', ...schema }) as { pattern?: string }).pattern as string;
    const matches = (schema: object, text: string) =>
      new RegExp(`^(?:${pattern(schema)})$`, 'u').test(JSON.stringify(text).slice(1, -1));
    expect(matches({ pattern: 'b' }, 'abc')).toBe(true);
    expect(matches({ pattern: 'b' }, 'ac')).toBe(false);
    expect(matches({ pattern: '^".$' }, '"\n')).toBe(false);
    expect(matches({ pattern: '^"\\s\\\\$' }, '"\n\\')).toBe(true);
    for (const schema of [
      { minLength: 2, maxLength: 3 },
      { pattern: '^.{2,3}$' },
      { pattern: '^.*$', minLength: 2, maxLength: 3 },
    ]) {
      expect(written({ type: 'string', ...schema })).toEqual({ type: 'string', minLength: 2, maxLength: 3 });
    }
    // How often a word may come is left to the check.
    expect(pattern({ pattern: '^[A-Za-z ]{1,50}$' })).toMatch(/^\[ A-Za-z\]\+/);
    expect(pattern({ pattern: '^[a-f]{1,50}$' })).toMatch(/^\[a-f\]\{1,50\}/);
    expect(matches({ pattern: '^(?!b)[a-c]$' }, 'b')).toBe(false);
    expect(matches({ pattern: '^(?!b)[a-c]$' }, 'c')).toBe(true);
    expect(pattern({})).toBeUndefined();
    expect(written({ type: 'string', maxLength: 0 })).toEqual({ enum: [''] });
  });
});

describe('work on large schemas is done in small steps', () => {
  const named = (n: number, of: (i: number) => Json): Record<string, Json> =>
    Object.fromEntries(Array.from({ length: n }, (_, i) => [`property${i}`, of(i)]));
  function steps<T>(work: Sliced<T>): { n: number; result: T } {
    for (let n = 1; ; ++n) {
      const { done, value } = work.next();
      if (done) return { n, result: value };
    }
  }

  // Of each so many at least: what is done at once does not grow with the schema.
  test.each<[string, Json, number, number]>([
    ['properties', { type: 'object', properties: named(3000, (i) => ({ type: 'integer', minimum: i })) }, 6000, 9000],
    ['values', { enum: Array.from({ length: 19_000 }, (_, i) => `v${i}`) }, 500, 500],
    ['alternatives', { anyOf: Array.from({ length: 3000 }, (_, i) => ({ const: i })) }, 3000, 3000],
    ['names', { type: 'object', properties: named(2000, () => true), additionalProperties: { type: 'null' } }, 1, 2000],
    ['values that are not', { type: 'string', not: { enum: Array.from({ length: 900 }, (_, i) => `v${i}`) } }, 20, 900],
    ['a long pattern', { type: 'string', pattern: 'ab'.repeat(4000) }, 2000, 1],
    ['properties of Unicode', { type: 'string', pattern: '[\\p{Lo}\\p{Sm}\\p{Nl}\\p{Zs}]' }, 100, 1],
  ])('%s', (_, schema, reading, writing) => {
    const { n, result } = steps(readSchema(schema, 'schema'));
    expect(n).toBeGreaterThanOrEqual(reading);
    expect(steps(grammarSchema(result)).n).toBeGreaterThanOrEqual(writing);
  });

  test('a text that is matched', () => {
    const patterns = new Patterns();
    const language = searchFor(patterns, '^[a-c]*(abc)+$');
    expect(steps(patterns.has(language, 'abc'.repeat(1000))).n).toBeGreaterThan(300);
  });

  test('what is wrong with a large one is told where it is used, with a small one at once', async () => {
    const schema = (n: number) => ({ properties: { ...named(n, () => ({})), last: { type: 'thing' } } });
    expect(() => prepareSchema(schema(3), 'schema')).toThrow(/last\/type/);
    const large = prepareSchema(schema(3000), 'schema');
    const wrong = { code: 'ERR_INVALID_ARGUMENT', detail: 'BAD_SCHEMA' };
    expect(await rejection(large.grammar())).toMatchObject(wrong);
    expect(await rejection(large.grammar())).toMatchObject(wrong);
    expect(await rejection(large.parse({}))).toMatchObject(wrong);
    expect(() => large.validate({})).toThrow(expect.objectContaining(wrong));
    expect(() => prepareSchema(schema(3000), 'schema').json).toThrow(expect.objectContaining(wrong));
  });

  test('who needs it at once does not wait for who reads it in slices', async () => {
    const schema = { type: 'object', properties: named(2500, () => ({ type: 'null' })) };
    const prepared = prepareSchema(schema, 'schema');
    const slow = Promise.all([prepared.grammar(), prepared.parse({ property1: null }), prepared.grammar()]);
    expect(prepared.validate({ property7: 1 })).toHaveLength(1);
    const text = prepared.json;
    expect(await slow).toEqual([text, { property1: null }, text]);
  });

  test('tools share what is done at once, and a limit', () => {
    const inputSchema = { type: 'object', properties: named(300, () => ({ type: 'null' })) };
    const bad = { type: 'object', properties: { a: { type: 'thing' } } };
    const tools = (n: number, last: object, of = inputSchema) => ({
      ...Object.fromEntries(Array.from({ length: n }, (_, i) => [`t${i}`, { inputSchema: { ...of, title: `${i}` } }])),
      last: { inputSchema: last },
    });
    expect(() => toolSettings({ tools: tools(0, bad) })).toThrow(/tools.last.inputSchema/);
    expect(toolSettings({ tools: tools(1, bad) })?.tools).toHaveLength(2); // it is read later
    const large = { type: 'object', properties: named(1000, () => ({ type: 'null' })) };
    expect(() => toolSettings({ tools: tools(100, bad, large) })).toThrow(/at most 40000 values/);
  });
});

describe('schemas of libraries', () => {
  const value = { name: 'Ann', tags: ['x'], kind: 'a', note: null };
  const zod = z.object({
    name: z.string().min(1),
    age: z.int().optional(),
    tags: z.array(z.string()),
    kind: z.enum(['a', 'b']),
    note: z.string().nullable(),
  });
  const valibot = v.object({
    name: v.pipe(v.string(), v.minLength(1)),
    age: v.optional(v.number()),
    tags: v.array(v.string()),
    kind: v.picklist(['a', 'b']),
    note: v.nullable(v.string()),
  });
  const ark = type({ name: 'string>0', 'age?': 'number', tags: 'string[]', kind: "'a'|'b'", note: 'string|null' });

  test.each([
    ['zod', zod],
    ['valibot', toStandardJsonSchema(valibot)],
    ['arktype', ark],
  ])('%s', async (_, schema) => {
    const prepared = prepareSchema(schema, 'schema');
    expect(prepared.validate(value)).toEqual([]);
    expect(await prepared.parse(value)).toEqual(value);
    expect(await rejection(prepared.parse({ ...value, kind: 'c' }))).toMatchObject({
      code: 'ERR_OUTPUT_INVALID',
      detail: 'SCHEMA_MISMATCH',
    });
    expect(JSON.parse(prepared.json)).toMatchObject({
      type: 'object',
      required: expect.arrayContaining(['name', 'tags', 'kind', 'note']) as unknown,
    });
  });

  test('transforms and refinements of their own', async () => {
    const schema = z
      .object({ n: z.string().transform(Number) })
      .refine(({ n }) => n > 3, { message: 'too small', path: ['n'] });
    expect(await prepareSchema(schema, 'schema').parse({ n: '7' })).toEqual({ n: 7 });
    expect(await rejection(prepareSchema(schema, 'schema').parse({ n: '2' }))).toMatchObject({
      code: 'ERR_OUTPUT_INVALID',
      detail: 'VALIDATION',
      message: expect.stringContaining('/n: too small') as unknown,
    });
  });

  test('everyday schemas need no check', () => {
    const everyday = z.object({
      id: z.uuid(),
      email: z.email(),
      born: z.iso.date(),
      at: z.iso.datetime(),
      code: z
        .string()
        .regex(/^[A-Z]{3}-\d+$/)
        .max(10),
      prefix: z.string().startsWith('ab').endsWith('z'),
      scores: z.record(z.string(), z.number().min(0).max(1)),
      byKind: z.record(z.enum(['x', 'y']), z.int()),
      shape: z.discriminatedUnion('type', [
        z.object({ type: z.literal('circle'), r: z.number().positive() }),
        z.object({ type: z.literal('box'), size: z.tuple([z.number(), z.number()]) }),
      ]),
      either: z.union([z.string(), z.int(), z.null()]),
    });
    const schema = JSON.parse(prepareSchema(everyday, 'schema').json) as { properties: Record<string, unknown> };
    expect(Object.keys(schema.properties)).toEqual(Object.keys(everyday.shape));
    for (const name of ['id', 'email', 'born', 'at', 'code', 'prefix'])
      expect(schema.properties[name]).toMatchObject({ pattern: expect.any(String) as unknown });
    expect(schema.properties.byKind).toMatchObject({ required: ['x', 'y'], additionalProperties: false });
  });

  test('those that tell no JSON Schema', () => {
    expect(() => prepareSchema(valibot, 'schema')).toThrow(/toStandardJsonSchema/);
    expect(() => prepareSchema(z.object({ d: z.date() }), 'schema')).toThrow(
      expect.objectContaining({ detail: 'BAD_SCHEMA' }),
    );
    expect(() => prepareSchema({ '~standard': 3 }, 'schema')).toThrow(TypeError);
  });
});

describe('bad schemas', () => {
  const circle: Record<string, unknown> = { type: 'object' };
  circle.properties = { a: circle };
  let deep: object = {};
  for (let i = 0; i < 200; ++i) deep = { items: deep };

  test.each<[string, unknown, string]>([
    ['a circle', circle, 'contains itself'],
    ['a schema that was not awaited', Promise.resolve({ type: 'string' }), 'found Promise'],
    ['a date', { const: { at: new Date(0) } }, 'schema/const/at: expected JSON, found Date'],
    ['a getter that throws', { get type() { throw new Error('no'); } }, 'cannot be read'],
    ['a proxy that throws', new Proxy({}, { ownKeys() { throw new Error('no'); } }), 'cannot be read'],
    ['depth', deep, '100 levels'],
    ['1 MB', { description: 'x'.repeat(1 << 20) }, 'characters'],
    ['many values', { enum: Array.from({ length: 20_001 }, (_, i) => i) }, 'values'],
    ['a sparse array', { enum: Array(1e9) }, 'values'],
    ['a bigint', { minimum: 3n }, 'expected JSON'],
    ['NaN', { minimum: NaN }, 'finite'],
    ['a type', { type: 'text' }, 'schema/type'],
    ['no types', { type: [] }, 'schema/type'],
    ['properties', { properties: [] }, 'schema/properties'],
    ['a property', { properties: { 'a/b': 3 } }, 'schema/properties/a~1b'],
    ['required', { required: 'a' }, 'schema/required'],
    ['required of draft 3', { properties: { a: { required: true } } }, 'schema/properties/a/required'],
    ['enum', { enum: 'a' }, 'schema/enum'],
    ['anyOf', { anyOf: [] }, 'schema/anyOf'],
    ['multipleOf', { multipleOf: 0 }, 'schema/multipleOf'],
    ['minLength', { minLength: -1 }, 'schema/minLength'],
    ['a remote reference', { $ref: 'https://a.example/b' }, 'not fetched'],
    ['a missing reference', { $ref: '#/$defs/a' }, 'schema/$ref'],
    ['a reference to itself', { $ref: '#' }, 'refers to itself'],
    ['two that refer to each other', { $defs: { a: { $ref: '#/$defs/b' }, b: { anyOf: [{ $ref: '#/$defs/a' }] } }, $ref: '#/$defs/a' }, 'refers to itself'],
  ])('%s', (_, schema, message) => {
    expect(() => prepareSchema(schema, 'schema')).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', detail: 'BAD_SCHEMA', message: expect.stringContaining(message) as unknown }),
    );
  }); // prettier-ignore

  test.each([[undefined], [null], [3], ['{}'], [[]], [() => ({})]])('%p is none', (schema) => {
    expect(() => prepareSchema(schema, 'schema')).toThrow(TypeError);
  });

  test('keywords that can neither be enforced nor checked', () => {
    expect(() => prepareSchema({ properties: { a: { $dynamicRef: '#a' } } }, 'schema')).toThrow(
      expect.objectContaining({
        code: 'ERR_UNSUPPORTED_INPUT',
        detail: 'SCHEMA_KEYWORD',
        message: 'schema/properties/a/$dynamicRef: this keyword is not supported',
      }),
    );
    expect(() => prepareSchema({ pattern: '(a)\\1' }, 'schema')).toThrow(
      expect.objectContaining({
        code: 'ERR_INVALID_ARGUMENT',
        detail: 'BAD_REGEX',
        message: expect.stringMatching(/^schema\/pattern: .*back reference/) as unknown,
      }),
    );
  });

  test('those that grow out of measure end', async () => {
    // 2^20 sets of alternatives; what does not fit is left to the check.
    const product = {
      allOf: Array.from({ length: 20 }, (_, i) => ({ anyOf: [{ required: [`a${i}`] }, { required: [`b${i}`] }] })),
    };
    expect((await prepareSchema(product, 'schema').grammar()).length).toBeLessThan(1e6);
    // Sets of schemas that apply together: as many as there are subsets.
    const subsets = Object.fromEntries(
      Array.from({ length: 16 }, (_, i) => [
        `d${i}`,
        {
          type: 'object',
          properties: {
            a: { $ref: `#/$defs/d${(i + 1) % 16}` },
            [`p${i}`]: { allOf: [{ $ref: `#/$defs/d${(i * 5 + 3) % 16}` }, { $ref: `#/$defs/d${(i * 7 + 1) % 16}` }] },
          },
        },
      ]),
    );
    const outcome = await prepareSchema({ $defs: subsets, $ref: '#/$defs/d0' }, 'schema')
      .grammar()
      .catch((error: unknown) => error);
    if (typeof outcome !== 'string') expect(outcome).toMatchObject({ detail: 'SCHEMA_LIMIT' });
    // In a value: each of 30 schemas twice the next.
    const doubling = {
      $defs: Object.fromEntries(
        Array.from({ length: 30 }, (_, i) => [
          `d${i}`,
          i === 29 ? { type: 'string' } : { oneOf: [{ $ref: `#/$defs/d${i + 1}` }, { $ref: `#/$defs/d${i + 1}` }] },
        ]),
      ),
      $ref: '#/$defs/d0',
    };
    expect(() => prepareSchema(doubling, 'schema').validate('x')).toThrow(
      expect.objectContaining({ detail: 'SCHEMA_LIMIT' }),
    );
    let nested: unknown = 1;
    for (let i = 0; i < 20_000; ++i) nested = [nested];
    expect(() => prepareSchema({ items: { $ref: '#' } }, 'schema').validate(nested)).toThrow(
      expect.objectContaining({ detail: 'SCHEMA_LIMIT' }),
    );
  });
});

test('problems say where and what', () => {
  const { validate } = prepareSchema(
    { properties: { a: { items: { type: 'integer', maximum: 3 } }, 'b/c': { const: 'x' } }, required: ['d'] },
    'schema',
  );
  expect(validate({ a: [1, 5, 'x'], 'b/c': 'y' })).toEqual([
    'the value: the property "d" is missing',
    '/a/1: expected at most 3, found 5',
    '/a/2: expected integer, found "x"',
    '/b~1c: expected "x", found "y"',
  ]);
  expect(validate(JSON.parse('{"d":1e999}'))).toEqual([]);
  expect(prepareSchema({ type: 'number' }, 'schema').validate(Infinity)).toHaveLength(1);
  expect(prepareSchema({ multipleOf: 0.01 }, 'schema').validate(0.07)).toEqual([]);
  expect(prepareSchema({ multipleOf: 1e-300 }, 'schema').validate(1e300)).toEqual([]);
});

describe('JSON that comes in pieces', () => {
  /** What of a value may be there while it comes. */
  function isBeginning(part: unknown, whole: unknown): boolean {
    if (typeof part === 'string') return typeof whole === 'string' && whole.startsWith(part);
    if (typeof part !== 'object' || part === null) return Object.is(part, whole);
    const [keys, all] = [Object.keys(part), Object.keys(whole as object)];
    return (
      Array.isArray(part) === Array.isArray(whole) &&
      keys.every((key, i) => key === all[i] && isBeginning((part as never)[key], (whole as never)[key]))
    );
  }
  const values = [
    { a: [1, -2.5e3, { b: 'x"\\\n🙂é', c: null }], d: true, e: {}, f: [], '': 'y' },
    [[], [[]], {}, false, 'a\u2028b', 0],
    JSON.parse('{"__proto__": {"a": 1}, "b": 2}') as unknown,
    'alone\ud83d\ude42',
    -12.5,
    null,
  ];

  test.each(values.map((value) => [JSON.stringify(value), value]))('%s', (_, value) => {
    for (const text of [
      JSON.stringify(value),
      JSON.stringify(value, null, 2),
      JSON.stringify(value).replace(/[^\x20-\x7e]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`),
    ]) {
      for (const step of [1, 2, 3, 7, 1000]) {
        const reader = new PartialJson();
        let last: { value: unknown } | undefined;
        for (let at = 0; at < text.length; at += step) {
          reader.push(text.slice(at, at + step));
          const found = reader.take();
          if (!found) continue;
          expect(isBeginning(found.value, value)).toBe(true);
          last = found;
        }
        reader.push(' ');
        expect((reader.take() ?? last)?.value).toEqual(value);
      }
    }
  });

  test('what was handed out stays as it was', () => {
    const reader = new PartialJson();
    const found = [...'[{"a":"xy"},[1,2],"z"]']
      .map((letter) => (reader.push(letter), reader.take()?.value))
      .filter((value) => value !== undefined);
    expect(found.map((value) => JSON.stringify(value))).toEqual([
      '[]',
      '[{}]',
      '[{"a":""}]',
      '[{"a":"x"}]',
      '[{"a":"xy"}]',
      '[{"a":"xy"}]',
      '[{"a":"xy"}]',
      '[{"a":"xy"},[]]',
      '[{"a":"xy"},[1]]',
      '[{"a":"xy"},[1,2]]',
      '[{"a":"xy"},[1,2],""]',
      '[{"a":"xy"},[1,2],"z"]',
      '[{"a":"xy"},[1,2],"z"]',
      '[{"a":"xy"},[1,2],"z"]',
    ]);
  });

  test('large arrays are not copied for every piece', () => {
    const text = JSON.stringify(Array.from({ length: 20_011 }, (_, i) => i));
    const reader = new PartialJson();
    let copied = 0;
    for (let at = 0; at < text.length; at += 3) {
      reader.push(text.slice(at, at + 3));
      copied += (reader.take()?.value as unknown[] | undefined)?.length ?? 0;
    }
    expect(copied).toBeLessThan(65 * text.length);
    expect(copied).toBeGreaterThan(text.length);
  });

  test('what is no JSON ends it', () => {
    const reader = new PartialJson();
    reader.push('[1, x');
    expect(reader.take()?.value).toEqual([1]);
    reader.push(', 2]');
    expect(reader.take()).toBeUndefined();
  });
});
