// Structured output by a model: what answers are, what becomes of them, and which options there are. What comes out is held against ajv.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { Gemma, type DeepPartial, type GenerateOptions, type StandardSchema } from '../../lib/index.js';
import { generateOptions } from '../../lib/options.js';
import { prepareSchema } from '../../lib/schema.js';
import { data, rejection, tiny } from './helpers.js';
import { independentValidator } from './validator.js';

let gemma: Gemma;
beforeAll(async () => {
  gemma = await Gemma.load(tiny);
});
afterAll(async () => gemma.dispose());

const person = z.object({ name: z.string().max(5), age: z.int().min(0).max(150), kind: z.enum(['a', 'b']) });
const limits = { maxOutputTokens: 400, seed: 1 };

test('an object by a schema of zod', async () => {
  const { object, text, finishReason } = await gemma.generate('Hi', { ...limits, schema: person });
  expect(finishReason).toBe('stop');
  expect(object).toEqual(JSON.parse(text));
  const typed: { name: string; age: number; kind: 'a' | 'b' } | undefined = object;
  expect(person.parse(typed)).toEqual(typed);
});

test('an object by a JSON Schema', async () => {
  const schema = { type: 'object', properties: { n: { type: 'integer', minimum: 3, maximum: 5 } }, required: ['n'] };
  const { object, text } = await gemma.generate('Hi', { ...limits, schema });
  expect(object).toEqual(JSON.parse(text));
  expect([3, 4, 5]).toContain((object as { n: number }).n);
});

test('any JSON', async () => {
  for (let seed = 0; seed < 5; ++seed) {
    const { object, text, finishReason } = await gemma.generate('Hi', { json: true, seed, maxOutputTokens: 100 });
    if (finishReason === 'stop') expect(object).toEqual(JSON.parse(text));
    else expect(object).toBeUndefined();
  }
});

test('choices', async () => {
  const choices = ['yes', 'no', 'no "way"', 'a\\b\nc', 'Grüße 🙂'] as const;
  const found = new Set<string>();
  for (let seed = 0; seed < 40; ++seed) {
    const { object, text, finishReason } = await gemma.generate('Hi', {
      choices,
      seed,
      temperature: 50,
      topK: 0,
      topP: 1,
    });
    const typed: (typeof choices)[number] | undefined = object;
    expect([text, finishReason]).toEqual([typed, 'stop']);
    found.add(text);
  }
  expect([...found].filter((choice) => !(choices as readonly string[]).includes(choice))).toEqual([]);
  expect(found.size).toBeGreaterThan(2);
});

test.each([
  ['[a-c]{3}-\\d{2}', /^[a-c]{3}-\d{2}$/],
  [/(?!aa)[ab]{2}\n"x"?/, /^(?!aa)[ab]{2}\n"x"?$/],
  ['x|yy|', /^(x|yy|)$/],
  ['[^a-z]{1,3}\\.', /^[^a-z]{1,3}\.$/u],
])('regex %s', async (regex, expected) => {
  for (let seed = 0; seed < 8; ++seed) {
    const result = await gemma.generate('Hi', { regex, seed, temperature: 5, maxOutputTokens: 60 });
    expect(result.finishReason).toBe('stop');
    expect(result.text).toMatch(expected);
    expect('object' in result).toBe(false);
  }
});

test('grammar', async () => {
  const grammar = 'root ::= item ("," item)*\nitem ::= "<" [0-9]{1,2} ">"\n';
  const { text, finishReason } = await gemma.generate('Hi', { ...limits, grammar });
  if (finishReason === 'stop') expect(text).toMatch(/^<\d{1,2}>(,<\d{1,2}>)*$/);
  else expect(text).toMatch(/^<\d/);
});

describe('no object', () => {
  const schema = { type: 'string', minLength: 50 };

  test('where the length cuts it', async () => {
    const result = await gemma.generate('Hi', { schema, maxOutputTokens: 5 });
    expect(result.finishReason).toBe('length');
    expect('object' in result).toBe(false);
  });

  test('where a stop sequence cuts it', async () => {
    const result = await gemma.generate('Hi', { regex: 'ab+c', stopSequences: ['b'] });
    expect(result).toMatchObject({ text: 'a', finishReason: 'stop', stopSequence: 'b' });
    const cut = await gemma.generate('Hi', { choices: ['abc'], stopSequences: ['b'] });
    expect(cut.text).toBe('a');
    expect('object' in cut).toBe(false);
  });
});

describe('what a grammar cannot enforce', () => {
  test('is an error, never a result', async () => {
    // Half of all pairs are equal.
    const schema = { type: 'array', items: { type: 'boolean' }, minItems: 2, maxItems: 2, uniqueItems: true };
    const seen = new Set<string>();
    for (let seed = 0; seed < 40 && seen.size < 2; ++seed) {
      try {
        const { object } = await gemma.generate('Hi', { schema, seed, temperature: 50, topK: 0, topP: 1 });
        expect(new Set(object as boolean[]).size).toBe(2);
        seen.add('result');
      } catch (error) {
        expect(error).toMatchObject({
          code: 'ERR_OUTPUT_INVALID',
          detail: 'SCHEMA_MISMATCH',
          message: expect.stringContaining('items that differ') as unknown,
        });
        seen.add('error');
      }
    }
    expect(seen.size).toBe(2);
  });

  test("a library's own check", async () => {
    const schema = z.object({ n: z.int().min(1).max(2) }).refine(() => false, { message: 'never', path: ['n'] });
    expect(await rejection(gemma.generate('Hi', { ...limits, schema }))).toMatchObject({ code: 'ERR_OUTPUT_INVALID', detail: 'VALIDATION', message: expect.stringContaining('/n: never') as unknown });
    const stream = gemma.stream('Hi', { ...limits, schema });
    expect(await rejection((async () => { for await (const part of stream) expect(part.type).toBe('text'); })())).toMatchObject({ detail: 'VALIDATION' });
    expect(await rejection(stream.result)).toMatchObject({ detail: 'VALIDATION' });
  }); // prettier-ignore

  test('what a library makes of it', async () => {
    const schema = z.object({ n: z.enum(['1', '2']).transform(Number) });
    const { object, text } = await gemma.generate('Hi', { ...limits, schema });
    expect(object?.n).toBe(Number((JSON.parse(text) as { n: string }).n));
  });

  test('a check that throws', async () => {
    const schema: StandardSchema = {
      '~standard': { version: 1, vendor: 'test', validate: () => { throw new RangeError('mine'); }, jsonSchema: { input: () => ({ type: 'null' }) } },
    }; // prettier-ignore
    expect(await rejection(gemma.generate('Hi', { ...limits, schema }))).toEqual(new RangeError('mine'));
  });
});

describe('streams', () => {
  const schema = z.object({ a: z.string().max(20), b: z.array(z.int().min(0).max(99)).min(2).max(3) });

  test('carry the value so far', async () => {
    const stream = gemma.stream('Hi', { ...limits, schema });
    const objects: unknown[] = [];
    let text = '';
    for await (const part of stream) {
      text += part.text;
      if (part.object !== undefined) objects.push(structuredClone(part.object));
    }
    const { object, text: all } = await stream.result;
    expect(text).toBe(all);
    expect(object).toEqual(JSON.parse(all));
    expect(objects[0]).toEqual({});
    expect(objects.at(-1)).toEqual(object);
    expect(objects.length).toBeGreaterThan(4);
  });

  test('partialObjects', async () => {
    const stream = gemma.stream('Hi', { ...limits, schema });
    let last: DeepPartial<z.infer<typeof schema>> | undefined;
    for await (const object of stream.partialObjects()) last = object;
    expect((await stream.result).object).toEqual(last);
    const none = gemma.stream('Hi', { maxOutputTokens: 3 }).partialObjects();
    expect(await none.next()).toEqual({ done: true, value: undefined });
  });

  test('left early', async () => {
    const stream = gemma.stream('Hi', { schema: { type: 'string', minLength: 200 } });
    const reader = stream[Symbol.asyncIterator]();
    await reader.next();
    await reader.return(undefined);
    expect(await stream.result).toMatchObject({ finishReason: 'other' });
    expect('object' in (await stream.result)).toBe(false);
  });

  test('aborted', async () => {
    const controller = new AbortController();
    const stream = gemma.stream('Hi', { schema: { type: 'string', minLength: 200 }, signal: controller.signal });
    const read = async () => {
      for await (const part of stream) if (part.text) controller.abort(new Error('enough'));
    };
    expect(await rejection(read())).toEqual(new Error('enough'));
  });
});

test('conversations', async () => {
  const chat = gemma.chat({ schema: { enum: ['a', 'b'] }, maxOutputTokens: 20 });
  expect(['a', 'b']).toContain((await chat.send('Hi')).object);
  // A turn's own takes the place of the conversation's.
  expect((await chat.send('Hi', { regex: 'c{3}' })).text).toBe('ccc');
  expect('object' in (await chat.send('Hi', { json: false }))).toBe(false);
  const impossible = { items: { type: 'boolean' }, minItems: 3, maxItems: 3, uniqueItems: true };
  const before = chat.messages;
  expect(await rejection(chat.send('Hi', { schema: impossible, maxOutputTokens: 400 }))).toMatchObject({
    code: 'ERR_OUTPUT_INVALID',
  });
  expect(chat.messages).toEqual(before);
  await chat.dispose();
});

test('calls side by side have grammars of their own', async () => {
  const results = await Promise.all(
    Array.from({ length: 12 }, (_, i) => gemma.generate('Hi', { schema: { const: { n: i } }, maxOutputTokens: 100 })),
  );
  expect(results.map(({ object }) => object)).toEqual(Array.from({ length: 12 }, (_, i) => ({ n: i })));
});

describe('options', () => {
  test.each<[unknown, typeof TypeError | typeof RangeError, string]>([
    [{ schema: 3 }, TypeError, 'schema'],
    [{ schema: null }, TypeError, 'schema'],
    [{ json: 1 }, TypeError, 'json'],
    [{ choices: 'yes' }, TypeError, 'choices'],
    [{ choices: [] }, RangeError, 'choices'],
    [{ choices: ['a', ''] }, RangeError, 'choices[1]'],
    [{ choices: ['a', 1] }, TypeError, 'choices[1]'],
    [{ choices: ['\ud800'] }, RangeError, 'choices[0]'],
    [{ choices: Array(1001).fill('a') }, RangeError, 'choices'],
    [{ choices: ['x'.repeat(1001)] }, RangeError, 'choices[0]'],
    [{ regex: 3 }, TypeError, 'regex'],
    [{ regex: /a/i }, RangeError, 'regex'],
    [{ grammar: {} }, TypeError, 'grammar'],
    [{ grammar: '' }, RangeError, 'grammar'],
    [{ schema: {}, json: true }, TypeError, 'schema, json'],
    [{ choices: ['a'], regex: 'a' }, TypeError, 'choices, regex'],
  ])('%p', (options, kind, name) => {
    const call = () => generateOptions(options as GenerateOptions);
    expect(call).toThrow(kind);
    expect(call).toThrow(name);
  });

  test('none', () => {
    expect(generateOptions({ json: false }).params.structure).toBeUndefined();
    expect(generateOptions({}).params.structure).toBeUndefined();
    expect(generateOptions({ json: false, choices: ['a'] }).params.structure).toBeDefined();
  });

  test.each<[GenerateOptions, string, string]>([
    [{ regex: '(a' }, 'ERR_INVALID_ARGUMENT', 'BAD_REGEX'],
    [{ regex: '(a)\\1' }, 'ERR_INVALID_ARGUMENT', 'BAD_REGEX'],
    [{ regex: 'a(?!a)a' }, 'ERR_INVALID_ARGUMENT', 'BAD_REGEX'],
    [{ grammar: 'root ::= "a' }, 'ERR_INVALID_ARGUMENT', 'BAD_GRAMMAR'],
    [{ grammar: 'other ::= "a"' }, 'ERR_INVALID_ARGUMENT', 'BAD_GRAMMAR'],
    [{ schema: { type: 'x' } }, 'ERR_INVALID_ARGUMENT', 'BAD_SCHEMA'],
    [{ schema: { type: 'string', enum: [1] } }, 'ERR_INVALID_ARGUMENT', 'BAD_SCHEMA'],
    [{ schema: { $dynamicRef: '#a' } }, 'ERR_UNSUPPORTED_INPUT', 'SCHEMA_KEYWORD'],
  ])('%p', async (options, code, detail) => {
    expect(await rejection(gemma.generate('Hi', options))).toMatchObject({ code, detail });
    expect(await rejection((async () => gemma.stream('Hi', options).result)())).toMatchObject({ code, detail });
  });
});

/** Numbers whose multiples no double tells, ajv's neither. */
function hasHuge(value: unknown): boolean {
  if (typeof value === 'object' && value !== null) return Object.values(value).some(hasHuge);
  return typeof value === 'number' && Math.abs(value) > Number.MAX_SAFE_INTEGER;
}

describe('answers at random meet their schemas', () => {
  // GEMMA_SCHEMA_SAMPLES=1000 for more of them.
  const samples = Number(process.env.GEMMA_SCHEMA_SAMPLES ?? 3);
  const { cases } = JSON.parse(readFileSync(join(data, 'structured', 'schemas.json'), 'utf8')) as {
    cases: { name: string; schema: Record<string, unknown> }[];
  };
  const ajv = independentValidator();
  // No grammar enforces uniqueItems, oneOf of overlapping schemas and fractions without bounds. Numbers may be larger than a double.
  const unsure = /array-unique|one-of$|multiple-of-fraction/;

  test.each(cases.map(({ name, schema }) => [name, schema] as const))('%s', async (name, schema) => {
    const check = ajv.compile(schema);
    // Each token is as likely as any other that may come, but those that end something.
    const ends = await Promise.all(['"', '}', ']', '1'].map((text) => gemma.tokenize(text)));
    const logitBias = Object.fromEntries(ends.map((ids) => [ids.at(-1) as number, 3]));
    let done = 0;
    let invalid = 0;
    let huge = 0;
    const one = async (seed: number) => {
      const options = { schema, seed, temperature: 1e6, topK: 0, topP: 1, maxOutputTokens: 300, logitBias: {} };
      try {
        const { object, finishReason } = await gemma.generate(
          'Hi',
          seed % 2 ? options : { ...options, temperature: 1.5, logitBias },
        );
        if (finishReason === 'length') return;
        ++done;
        if (hasHuge(object)) return;
        expect([object, check(object), ajv.errorsText(check.errors)]).toEqual([object, true, 'No errors']);
        expect(prepareSchema(schema, 'schema').validate(object)).toEqual([]);
      } catch (error) {
        expect(error).toMatchObject({ code: 'ERR_OUTPUT_INVALID' });
        if (/larger than a double/.test((error as Error).message)) ++huge;
        else ++invalid;
      }
    };
    for (let seed = 0; seed < samples; seed += 32) {
      await Promise.all(Array.from({ length: Math.min(32, samples - seed) }, (_, i) => one(seed + i)));
    }
    if (samples > 3)
      process.stderr.write(
        `${name}: ${done} valid, ${invalid + huge} refused, ${samples - done - invalid - huge} cut off\n`,
      );
    if (!unsure.test(name)) expect(invalid).toBe(0);
  });
});
