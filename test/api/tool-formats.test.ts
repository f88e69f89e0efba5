// Formats of tool calls: FunctionGemma's texts as the reference renders and reads them, every format's own texts read back however
// they are cut, and what is no call.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { gunzipSync } from 'node:zlib';
import { prepareSchema } from '../../lib/schema.js';
import type { Found, ToolFormat } from '../../lib/tool-formats/format.js';
import {
  callPieces,
  conversationPieces,
  declarationPieces,
  functiongemma,
  MARKERS,
  responsePieces,
  type Piece,
} from '../../lib/tool-formats/functiongemma.js';
import { functionGemmaGrammar, integerRange, patternGrammar } from '../../lib/tool-formats/functiongemma-grammar.js';
import { plainSchema } from '../../lib/tool-formats/functiongemma-schema.js';
import { formatOf, toolFormat } from '../../lib/tool-formats/formats.js';
import { data } from './helpers.js';

const read = (name: string) => JSON.parse(gunzipSync(readFileSync(join(data, name))).toString('utf8')) as unknown;

const golden = read('tools.json.gz') as {
  declarations: { tool: { function: { name: string; description: string; parameters?: unknown } }; text: string }[];
  calls: { name: string; arguments: unknown; text: string }[];
  outputs: {
    text: string;
    calls: { name: string; arguments: unknown }[];
    content?: string;
    malformed?: true;
    lenient?: true;
  }[];
  responses: { name: string; response: unknown; text: string }[];
};
const chat = read('chat.json.gz') as { templates: Record<string, string> };

const shown = (pieces: readonly Piece[]) =>
  pieces.map((piece) => (typeof piece === 'string' ? piece : 'mark' in piece ? piece.mark : '')).join('');

// Output as the engine hands it over: text, and marks that are tokens.
const marks = new RegExp(`(${MARKERS.join('|')})`);
type Events = [text: string, marker?: string][];
const events = (text: string): Events =>
  text.split(marks).flatMap((piece, i): Events => (i % 2 === 1 ? [['', piece]] : piece === '' ? [] : [[piece]]));

function run(format: ToolFormat, output: Events): Found[] {
  const parser = format.parser();
  const found = output.flatMap(([text, marker]) => parser.push(text, marker));
  found.push(...parser.end());
  // Texts that follow each other are one.
  const joined: Found[] = [];
  for (const each of found) {
    const last = joined.at(-1);
    if (each.type === 'text' && last?.type === 'text') {
      joined[joined.length - 1] = { type: 'text', text: last.text + each.text };
    } else joined.push(each);
  }
  return joined;
}

const callsOf = (found: readonly Found[]) =>
  found.flatMap((each) => (each.type === 'call' ? [{ name: each.name, arguments: each.input }] : []));
const textOf = (found: readonly Found[]) => found.map((each) => (each.type === 'text' ? each.text : '')).join('');

/** Small, fast, and the same everywhere: xorshift. */
function generator(seed: number): (n: number) => number {
  let state = seed | 1;
  return (n) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % n;
  };
}

describe('FunctionGemma as the reference has it', () => {
  test.each(golden.declarations.map((entry) => [entry.tool.function.name, entry] as const))(
    'declares %s',
    (_, entry) => {
      const { name, description, parameters } = entry.tool.function;
      expect(shown(declarationPieces(name, description, parameters))).toBe(entry.text);
    },
  );

  test('what is shown of plain schemas is the schema itself', () => {
    const plain = golden.declarations.filter(({ tool }) => !['union', 'no_type'].includes(tool.function.name));
    for (const { tool } of plain) {
      const { parameters } = tool.function;
      if (parameters) expect(plainSchema(parameters)).toEqual(parameters);
    }
  });

  test.each(golden.calls.map((entry, i) => [i, entry] as const))('writes and reads call %i', (_, entry) => {
    expect(shown(callPieces(entry.name, entry.arguments))).toBe(entry.text);
    const found = run(functiongemma, events(`<start_function_call>${entry.text}<end_function_call>`));
    expect(found).toEqual([expect.objectContaining({ type: 'call', name: entry.name, input: entry.arguments })]);
  });

  test.each(golden.outputs.map((entry, i) => [i, entry] as const))('reads output %i', (_, entry) => {
    const output = entry.text.split('<start_function_response>')[0] ?? ''; // ends the answer
    const found = run(functiongemma, events(output));
    expect(callsOf(found)).toEqual(entry.calls);
    if (entry.lenient) return;
    expect(found.some(({ type }) => type === 'broken')).toBe(entry.malformed ?? false);
    if (!entry.malformed) expect(textOf(found)).toBe(entry.content ?? '');
  });

  test.each(golden.responses.map((entry) => [entry.name, entry] as const))('writes the response of %s', (_, entry) => {
    expect(shown(responsePieces(entry.name, entry.response))).toBe(entry.text);
  });

  test('writes whole conversations', () => {
    const tool = golden.declarations[0]?.tool.function as { name: string; description: string; parameters: object };
    const schema = prepareSchema(tool.parameters, 'x');
    const text = (turns: Parameters<typeof conversationPieces>[0]) =>
      shown(conversationPieces(turns, [{ name: tool.name, description: tool.description, schema }], () => []));
    const question = { role: 'user', content: ' Weather in Paris? ' };
    const head =
      '<bos><start_of_turn>developer\nYou are a model that can do function calling with the following functions' +
      `<start_function_declaration>${golden.declarations[0]?.text}<end_function_declaration><end_of_turn>\n` +
      '<start_of_turn>user\nWeather in Paris?<end_of_turn>\n<start_of_turn>model\n';
    expect(text([question])).toBe(head);
    const calls = [
      { name: 'get_weather', input: { location: 'Paris' } },
      { name: 'get_weather', input: { location: 'Rom' } },
    ];
    const replies = [
      { role: 'tool', content: undefined, reply: { name: 'get_weather', output: { sky: 'grey' } } },
      { role: 'tool', content: undefined, reply: { name: 'get_weather', output: 'sun' } },
    ];
    const called = [question, { role: 'assistant', content: '', calls }, ...replies];
    const turn =
      '<start_function_call>call:get_weather{location:<escape>Paris<escape>}<end_function_call>' +
      '<start_function_call>call:get_weather{location:<escape>Rom<escape>}<end_function_call>' +
      '<start_function_response>response:get_weather{sky:<escape>grey<escape>}<end_function_response>' +
      '<start_function_response>response:get_weather{value:<escape>sun<escape>}<end_function_response>';
    expect(text(called)).toBe(head + turn);
    const answered = [...called, { role: 'assistant', content: 'Grey.' }, { role: 'user', content: 'Thanks' }];
    expect(text(answered)).toBe(
      `${head}${turn}Grey.<end_of_turn>\n<start_of_turn>user\nThanks<end_of_turn>\n<start_of_turn>model\n`,
    );
  });
});

describe('random values through FunctionGemma’s format', () => {
  // GEMMA_ROUND_TRIPS=100000 for the long run.
  const rounds = Number(process.env.GEMMA_ROUND_TRIPS ?? 1000);
  const alphabet = [
    'a',
    'Z',
    '0',
    ' ',
    '\n',
    '"',
    "'",
    '\\',
    '{',
    '}',
    '[',
    ']',
    ',',
    ':',
    '<',
    '>',
    'ä',
    '日',
    '🙂',
    '\0',
    'null',
    '<escape>',
    '<end_function_call>',
    'None',
    '1e5',
    '\u2028',
    '__proto__',
    '-',
  ];

  test(`${rounds} of them come back`, () => {
    const random = generator(20260731);
    const text = () => Array.from({ length: random(5) }, () => alphabet[random(alphabet.length)]).join('');
    const number = () =>
      [
        random(1000) - 500,
        random(1e9) / 997,
        1 / (1 + random(1e6)),
        random(2 ** 31) * 2 ** 40,
        0,
        -0.5,
        1e300 / (1 + random(99)),
        5e-324,
      ][random(8)] as number;
    const value = (depth: number): unknown => {
      switch (random(depth > 0 ? 7 : 4)) {
        case 0:
          return text();
        case 1:
          return number();
        case 2:
          return random(2) === 0;
        case 3:
          return null;
        case 4:
          return Array.from({ length: random(4) }, () => value(depth - 1));
        default:
          return object(depth - 1);
      }
    };
    const object = (depth: number): object =>
      Object.fromEntries(Array.from({ length: random(4) }, () => [text(), value(depth)]));
    // A token that spells a mark within a string is text there, so what is text is handed over as text and marks as marks.
    const handed = (pieces: readonly Piece[]): Events =>
      pieces.map((piece) => (typeof piece === 'string' ? [piece] : ['', 'mark' in piece ? piece.mark : '']));
    for (let i = 0; i < rounds; ++i) {
      const input = object(4);
      const found = run(functiongemma, [
        ['', '<start_function_call>'],
        ...handed(callPieces('tool_1', input)),
        ['', '<end_function_call>'],
      ]);
      if (found.length !== 1 || found[0]?.type !== 'call')
        throw new Error(`round ${i}: ${JSON.stringify({ input, found })}`);
      expect(found[0].input).toEqual(input);
    }
  });
});

describe('random declarations through FunctionGemma’s format', () => {
  type Node = Record<string, unknown>;

  // What a declaration says, read apart from how it is written: strings by their places, keys bare.
  function read(pieces: readonly Piece[]): { name: string; declared: Node } {
    const strings: string[] = [];
    let text = '';
    for (let i = 0; i < pieces.length; ++i) {
      const piece = pieces[i] as Piece;
      if (typeof piece === 'string') text += piece;
      else {
        if (!isDeepStrictEqual(pieces[i + 2], piece)) throw new Error('a string without its end');
        strings.push(pieces[i + 1] as string);
        text += '\0';
        i += 2;
      }
    }
    let at = 0;
    const take = (character: string) => text.charAt(at) === character && ++at > 0;
    const value = (): unknown => {
      if (take('\0')) return strings.shift();
      if (take('[')) {
        const items: unknown[] = [];
        while (!take(']')) {
          items.push(value());
          take(',');
        }
        return items;
      }
      const object: Node = {};
      if (!take('{')) throw new Error(`expected a value: ${text.slice(at)}`);
      while (!take('}')) {
        const [pair, key = ''] = /^([^:]+):/.exec(text.slice(at)) ?? [''];
        at += pair.length;
        object[key] = value();
        take(',');
      }
      return object;
    };
    const [head, name = ''] = /^declaration:([^{]+)/.exec(text) ?? [''];
    at = head.length;
    const declared = value() as Node;
    expect([at, strings]).toEqual([text.length, []]);
    return { name, declared };
  }

  // A declaration's types are in capitals, and what has no description has an empty one.
  const schemaOf = ({ type, description, properties, items, ...rest }: Node): Node => ({
    ...rest,
    ...(typeof type === 'string' && { type: type.toLowerCase() }),
    ...(description !== '' && description !== undefined && { description }),
    ...(properties !== undefined && {
      properties: Object.fromEntries(
        Object.entries(properties as Node).map(([key, each]) => [key, schemaOf(each as Node)]),
      ),
    }),
    ...(items !== undefined && { items: schemaOf(items as Node) }),
  });

  test('the schema that is read back is the one that is kept', () => {
    const random = generator(77);
    const letters = ['a', 'B', '_', '7', 'ä'];
    const texts = ['x', ' ', '\n', '{', '}', '[', ']', ',', ':', '"', '日', '🙂', '<escape>', '\u2028', '\\'];
    const made = (from: readonly string[], n: number) =>
      Array.from({ length: n }, () => from[random(from.length)]).join('');
    const described = () => (random(2) === 0 ? { description: made(texts, 1 + random(6)) } : {});
    const schema = (depth: number): Node => {
      switch (random(depth > 0 ? 6 : 4)) {
        case 0:
          return { type: 'string', ...described() };
        case 1:
          return {
            type: 'string',
            enum: Array.from({ length: 1 + random(3) }, () => made(texts, random(5))),
            ...described(),
          };
        case 2:
          return { type: ['integer', 'number', 'boolean'][random(3)], ...described() };
        case 3:
          return { type: 'array', items: { type: 'string', ...described() }, ...described() };
        case 4:
          return { type: 'array', items: object(depth - 1), ...described() };
        default:
          return object(depth - 1);
      }
    };
    const object = (depth: number): Node => {
      const names = [...new Set(Array.from({ length: 1 + random(4) }, () => made(letters, 1 + random(4))))];
      const required = names.filter(() => random(2) === 0);
      return {
        type: 'object',
        properties: Object.fromEntries(names.map((name) => [name, schema(depth)])),
        ...(required.length > 0 && { required }),
        ...described(),
      };
    };
    for (let i = 0; i < 100; ++i) {
      const parameters = object(3);
      delete parameters.description;
      const kept = plainSchema(parameters);
      const description = made(texts, random(8));
      const { name, declared } = read(declarationPieces(`tool_${i}`, description, kept));
      expect(name).toBe(`tool_${i}`);
      expect(declared.description).toBe(description);
      expect(schemaOf(declared.parameters as Node)).toEqual(kept);
      expect(kept).toEqual(parameters);
    }
  });
});

describe('calls as text', () => {
  const input = { city: 'Köln "am Rhein" }{', n: [1, 2.5, null], deep: { x: true, y: '</tool_call>```' } };
  const formats: [string, ToolFormat, string][] = [
    ['gemma', toolFormat('gemma', undefined), ''],
    ['llama', toolFormat('llama', undefined), ''],
    ['hermes', toolFormat('hermes', undefined), ''],
    ['mistral', toolFormat('mistral', '[TOOL_CALLS]'), ''],
    ['mistral with [ARGS]', toolFormat('mistral', '[TOOL_CALLS][ARGS]'), ''],
  ];

  test.each(formats)('%s: read back however they are cut', (_, format) => {
    const random = generator(97);
    const call = format.writeCall('get_it', input);
    const output = `Let me look: {"name": "Bob"} [1] <b>\n${call}\n${call}\n\nDone {x} \`\`\`.`;
    const whole = run(format, [[output]]);
    expect(callsOf(whole)).toEqual([
      { name: 'get_it', arguments: input },
      { name: 'get_it', arguments: input },
    ]);
    expect(textOf(whole)).toBe('Let me look: {"name": "Bob"} [1] <b>\n\n\nDone {x} ```.');
    for (let i = 0; i < 80; ++i) {
      const pieces: Events = [];
      for (let at = 0; at < output.length;) {
        const n = 1 + random(i % 2 === 0 ? 3 : 40);
        pieces.push([output.slice(at, at + n)]);
        at += n;
      }
      expect(run(format, pieces)).toEqual(whole);
    }
  });

  test.each(formats)('%s: any beginning of a call is no exception', (_, format) => {
    const output = `a ${format.writeCall('get_it', input)} b`;
    for (let n = 0; n <= output.length; ++n) {
      const found = run(format, [[output.slice(0, n)]]);
      const written = found.map((each) => (each.type === 'call' ? each.written : each.text)).join('');
      const dropped = output.slice(0, n).length - written.length;
      expect(dropped).toBeLessThanOrEqual(1); // a blank behind a call
    }
  });

  test.each(formats)('%s: random text', (_, format) => {
    const random = generator(31);
    const words = [
      '{',
      '}',
      '[',
      ']',
      '"',
      ':',
      ',',
      '"name"',
      '"parameters"',
      '"arguments"',
      '<tool_call>',
      '</tool_call>',
      '[TOOL_CALLS]',
      '[ARGS]',
      '```',
      'json\n',
      ' ',
      '\n',
      'x',
      '\\',
      '1',
      '{"name": "f", "parameters": {}}',
    ];
    for (let i = 0; i < 600; ++i) {
      const pieces = Array.from({ length: random(14) }, (): Events[number] => [words[random(words.length)] ?? '']);
      const cut = run(format, pieces);
      expect(cut).toEqual(run(format, [[pieces.map(([text]) => text).join('')]]));
    }
  });

  test('fences round calls go with them', () => {
    const call = '{"name": "f", "parameters": {"a": 1}}';
    const gemma = toolFormat('gemma', undefined);
    expect(gemma.writeCall('f', { a: 1 })).toBe(call);
    const found = run(gemma, [[`Sure.\n\`\`\`json\n${call}\n${call}\n\`\`\`\nAnd: \`\`\`js\n1\n\`\`\``]]);
    expect(callsOf(found)).toHaveLength(2);
    expect(textOf(found)).toBe('Sure.\nAnd: ```js\n1\n```');
  });

  const broken: [string, ToolFormat, string, RegExp][] = [
    ['cut off', toolFormat('gemma', undefined), '{"name": "f", "parameters": {"a": [1, 2', /ends within/],
    ['no object', toolFormat('gemma', undefined), '{"name": "f", "parameters": 5}', /no object/],
    [
      'no JSON',
      toolFormat('hermes', undefined),
      '<tool_call>\n{"name": "f", "arguments": {a}}\n</tool_call>',
      /not valid JSON/,
    ],
    ['no name', toolFormat('hermes', undefined), '<tool_call>{"arguments": {}}</tool_call>', /no name/],
    ['text', toolFormat('hermes', undefined), '<tool_call>call it</tool_call>', /no JSON object/],
    ['no array', toolFormat('mistral', ''), '[TOOL_CALLS]["x"]', /no array of calls/],
    ['no arguments', toolFormat('mistral', '[ARGS]'), '[TOOL_CALLS]f[ARGS]5', /no JSON object/],
  ];
  test.each(broken)('%s is text and a note', (_, format, output, reason) => {
    const found = run(format, [['Well. '], [output]]);
    expect(found[0]).toEqual({ type: 'text', text: 'Well. ' });
    expect(found[1]).toEqual(
      expect.objectContaining({ type: 'broken', reason: expect.stringMatching(reason) as string }),
    );
    expect(found.map((each) => (each.type === 'call' ? '' : each.text)).join('')).toBe(`Well. ${output}`);
  });
});

describe('the grammar of FunctionGemma’s calls', () => {
  // EBNF of literals, classes and groups is nearly a regular expression.
  const matcher = (grammar: string) => {
    const plain = grammar.replace(/"([^"]*)"/g, (_, text: string) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
    return new RegExp(`^(?:${plain.replaceAll(' ', '')})$`, 'u');
  };

  test('integers of a range', () => {
    const random = generator(5);
    for (let i = 0; i < 300; ++i) {
      const least = random(3000) - 1500;
      const most = least + random([3, 50, 2500][i % 3] as number);
      const matches = matcher(integerRange(least, most));
      const wrong: number[] = [];
      for (let n = least - 150; n <= most + 150; n += 1 + random(9)) {
        if (matches.test(String(n)) !== (n >= least && n <= most)) wrong.push(n);
      }
      expect([least, most, wrong]).toEqual([least, most, []]);
      for (const n of [least - 1, least, most, most + 1]) expect(matches.test(String(n))).toBe(n >= least && n <= most);
    }
    expect(matcher(integerRange(104, Infinity)).test('103')).toBe(false);
    expect(matcher(integerRange(-Infinity, -7)).test('-6')).toBe(false);
    for (const n of ['104', '999', '1000', '999999999999999'])
      expect(matcher(integerRange(104, Infinity)).test(n)).toBe(true);
  });

  test('patterns', () => {
    const written = (pattern: string) =>
      (JSON.parse(prepareSchema({ type: 'string', pattern }, 'x').json) as { pattern: string }).pattern;
    const cases: [string, string[], string[]][] = [
      ['^(foo|ba[rz])(-[a-f0-9]+)?$', ['foo', 'bar-0a', 'baz'], ['foo-', 'foo0', 'ba']],
      ['^[äöü]+[^a-z]$', ['äü1', 'üü'], ['ä', 'ür', 'üä\u0001']],
      ['^a{2,3}\\.x*$', ['aa.', 'aaa.xx'], ['a.', 'aab']],
    ];
    for (const [pattern, good, bad] of cases) {
      const matches = matcher(patternGrammar(written(pattern)));
      for (const text of good) expect([pattern, text, matches.test(text)]).toEqual([pattern, text, true]);
      for (const text of bad) expect([pattern, text, matches.test(text)]).toEqual([pattern, text, false]);
    }
  });

  test('a schema of too many rules is refused', () => {
    const properties = Object.fromEntries(Array.from({ length: 9000 }, (_, i) => [`k${i}`, { type: 'null' }]));
    const bound = { type: 'object', properties };
    expect(() => functionGemmaGrammar([{ name: 'f', bound }], 9)).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', detail: 'GRAMMAR_TOO_LARGE' }),
    );
  });
});

test('which format a template writes', () => {
  expect(formatOf(undefined)).toBe('gemma');
  expect(formatOf(chat.templates.chatml)).toBe('gemma');
  expect(formatOf(chat.templates['chatml-tools'])).toBe('hermes');
  expect(formatOf(chat.templates.functiongemma)).toBe('functiongemma');
  expect(formatOf('{% if tools %}[TOOL_CALLS]{% endif %}')).toBe('mistral');
  expect(formatOf(`{% if tools %}{"name": f, "parameters": p}{% endif %}`)).toBe('llama');
  expect(formatOf('{% for t in tools %}<tool_call><function=f>{% endfor %}')).toBe('unknown');
  expect(formatOf('{{ tools }}')).toBe('unknown');
});
