// Requests that mean harm, or make no sense: each gets its status, and a client that asks in between gets its answer.
import { randomBytes } from 'node:crypto';
import { connect } from 'node:net';
import { Gemma } from 'gemma-native';
import { gzipSync } from 'node:zlib';
import type { z } from 'zod';
import { tiny } from '../../../test/api/helpers.js';
import { pooled } from '../src/interleave.js';
import { chatBody } from '../src/openai/chat.js';
import { completionsBody } from '../src/openai/completions.js';
import { embeddingsBody } from '../src/openai/embeddings.js';
import { responsesBody } from '../src/openai/responses.js';
import { post, start, type Running } from './helpers.js';

const KIB = 1 << 10;
const MIB = 1 << 20;
const MAX_BODY = 2 * MIB;

let gemma: Gemma;
let running: Running;
let expected: string;
beforeAll(async () => {
  gemma = await Gemma.load(tiny, { contextSize: 512 });
  running = await start({
    models: [{ name: 'tiny', model: gemma }],
    maxBodyBytes: MAX_BODY,
    headersTimeoutMs: 400,
    bodyTimeoutMs: 500,
    maxImagePixels: 1e6,
  });
  expected = (await gemma.generate('Hello', { seed: 1, maxOutputTokens: 8 })).text;
});
afterAll(async () => {
  await running.server.close();
  await gemma.dispose();
});

// After each of them the server is well, and nothing is left of the request.
afterEach(async () => {
  const { status, body } = await post(`${running.url}/v1/chat/completions`, {
    model: 'tiny',
    messages: [{ role: 'user', content: 'Hello' }],
    seed: 1,
    max_tokens: 8,
  });
  const [choice] = body.choices as { message: { content: string } }[];
  expect([status, choice!.message.content]).toEqual([200, expected]);
  expect(running.server.context.admission.waiting).toBe(0);
});

/** Sends bytes as they are; resolves with the statuses of the answers when the connection ends. */
function raw(bytes: string | Buffer, more: (write: (bytes: string) => void) => void = () => {}): Promise<number[]> {
  return new Promise((resolve) => {
    const socket = connect(Number(new URL(running.url).port), '127.0.0.1');
    let answer = '';
    socket.on('data', (chunk: Buffer) => (answer += chunk.toString('latin1')));
    socket.on('error', () => {}); // a connection that is reset has ended too
    socket.on('close', () => resolve([...answer.matchAll(/HTTP\/1\.1 (\d{3})/g)].map(([, status]) => Number(status))));
    socket.write(bytes);
    more((text) => void socket.write(text));
  });
}

const head = (line: string, ...headers: string[]) =>
  `${line}\r\n${['host: localhost', 'connection: close', ...headers].join('\r\n')}\r\n\r\n`;
const chat = 'POST /v1/chat/completions HTTP/1.1';
const json = 'content-type: application/json';
const chunked = 'transfer-encoding: chunked';

describe('HTTP', () => {
  const cases: [name: string, bytes: string | Buffer, statuses: number[]][] = [
    ['both lengths', `${head(chat, json, 'content-length: 4', chunked)}0\r\n\r\nGET /health HTTP/1.1\r\n\r\n`, [400]],
    ['two lengths', `${head(chat, json, 'content-length: 4', 'content-length: 40')}{}`, [400]],
    ['a length with a sign', head(chat, json, 'content-length: +4'), [400]],
    ['a negative length', head(chat, json, 'content-length: -4'), [400]],
    ['a length in words', head(chat, json, 'content-length: four'), [400]],
    ['a length past 64 bits', head(chat, json, 'content-length: 99999999999999999999999'), [400]],
    ['an unknown coding', head(chat, json, 'transfer-encoding: xchunked'), [400]],
    ['chunked, then another coding', head(chat, json, 'transfer-encoding: chunked, identity'), [400]],
    ['a chunk whose size is no number', `${head(chat, json, chunked)}zz\r\n{}\r\n0\r\n\r\n`, [400]],
    ['a chunk past 64 bits', `${head(chat, json, chunked)}fffffffffffffffffff\r\n{}\r\n`, [400]],
    ['a chunk longer than its size', `${head(chat, json, chunked)}1\r\n{}\r\n0\r\n\r\n`, [400]],
    ['a space before the colon', head(chat, json, 'content-length : 4'), [400]],
    ['a lone carriage return', head(chat, 'x: a\rcontent-length: 4'), [400]],
    ['a NUL in a header', head(chat, 'x: a\0b'), [400]],
    ['no host', 'GET /health HTTP/1.1\r\nconnection: close\r\n\r\n', [400]],
    ['another host', 'GET /health HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n', [403]],
    ['a header of 64 KiB', head(chat, `x: ${'a'.repeat(64 * KIB)}`), [431]],
    ['4000 headers', head(chat, ...Array.from({ length: 4000 }, (_, i) => `x${i}: y`)), [431]],
    ['a path of 64 KiB', head(`GET /${'a'.repeat(64 * KIB)} HTTP/1.1`), [431]],
    ['another version', head('GET /health HTTP/9.9'), [400]],
    ['no version', 'GET /health\r\n\r\n', [403]],
    ['an unknown method', head('SMUGGLE /health HTTP/1.1'), [400]],
    ["HTTP/2's beginning", 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', [400]],
    ["TLS's beginning", Buffer.from('160301020001000200030300', 'hex'), [400]],
    ['noise', randomBytes(512), [400]],
    ['a path with ..', head('GET /v1/models/../../etc/passwd HTTP/1.1'), [404]],
    ['a path with .. written otherwise', head('GET /v1/models/..%2f..%2fetc%2fpasswd HTTP/1.1'), [404]],
    ['a path that is no UTF-8', head('GET /v1/models/%ff%fe HTTP/1.1'), [400]],
    ['a method that the path has not', head('DELETE /v1/chat/completions HTTP/1.1'), [404]],
    ['a body of another type', `${head(chat, 'content-type: text/plain', 'content-length: 2')}{}`, [415]],
    ['a body of no type', `${head(chat, 'content-length: 2')}{}`, [415]],
    ['a form', `${head(chat, 'content-type: multipart/form-data; boundary=x', 'content-length: 2')}{}`, [415]],
    ['an announced body of a GiB', head(chat, json, `content-length: ${1 << 30}`), [413]],
    ['a page of another origin', head('GET /v1/models HTTP/1.1', 'origin: https://evil.example'), [403]],
  ];
  test.each(cases)('%s', async (_, bytes, statuses) => {
    expect(await raw(bytes)).toEqual(statuses);
  });

  test('a request within the body of another is a body', async () => {
    const inner = head('GET /v1/models HTTP/1.1');
    expect(await raw(`${head(chat, json, `content-length: ${inner.length}`)}${inner}`)).toEqual([400]);
  });

  test('a body in pieces that grows past the limit', async () => {
    const piece = `10000\r\n${' '.repeat(64 * KIB)}\r\n`;
    expect(await raw(`${head(chat, json, chunked)}${piece.repeat(40)}`)).toEqual([413]);
  });

  test('a flood of pieces of a byte', async () => {
    expect(await raw(`${head(chat, json, chunked)}${'1\r\n \r\n'.repeat(20_000)}`)).toEqual([400]);
  });

  test('headers that never end', async () => {
    expect(await raw(`${chat}\r\nhost: localhost\r\n`)).toEqual([408]);
  });

  test('a body that never ends', async () => {
    expect(await raw(`${head(chat, json, 'content-length: 100')}{`)).toEqual([408]);
  });

  test('a connection that is left in the middle of a body', async () => {
    await new Promise<void>((resolve) => {
      const socket = connect(Number(new URL(running.url).port), '127.0.0.1', () => {
        socket.write(`${head(chat, json, 'content-length: 100')}{`, () => socket.destroy());
      });
      socket.on('close', () => resolve());
    });
  });
});

describe('JSON', () => {
  const valid = { model: 'tiny', messages: [{ role: 'user', content: 'x' }], max_tokens: 1 };
  const content = (text: unknown) => ({ ...valid, messages: [{ role: 'user', content: text }] });
  const image = (url: string) => content([{ type: 'image_url', image_url: { url } }]);
  const deep = (n: number) => '['.repeat(n) + ']'.repeat(n);
  const text = JSON.stringify(valid);
  const nested = (n: number): object => (n === 0 ? { type: 'string' } : { type: 'array', items: nested(n - 1) });
  const schema = (value: unknown) => ({
    ...valid,
    response_format: { type: 'json_schema', json_schema: { name: 'x', schema: value } },
  });
  const call = (args: string) => ({
    ...valid,
    messages: [
      { role: 'user', content: 'x' },
      {
        role: 'assistant',
        content: null,
        tool_calls: [{ id: 'a', type: 'function', function: { name: 'f', arguments: args } }],
      },
      { role: 'tool', tool_call_id: 'a', content: 'y' },
    ],
  });
  const cases: [name: string, body: unknown, code: string, status?: number][] = [
    ['nothing', '', 'invalid_json'],
    ['null', 'null', 'invalid_value'],
    ['an array', '[]', 'invalid_value'],
    ['a string', '"x"', 'invalid_value'],
    ['cut', text.slice(0, -1), 'invalid_json'],
    ['with more behind it', `${text}{}`, 'invalid_json'],
    ['a string without an end', '{"model": "x\\"', 'invalid_json'],
    ['200,000 levels of arrays', deep(200_000), 'invalid_json'],
    ['200,000 levels in a field', `{"model": ${deep(200_000)}}`, 'invalid_json'],
    ['a million values', `[${'0,'.repeat(1e6 - 1)}0]`, 'invalid_json'],
    ['a number past all', text.replace('"max_tokens":1', '"max_tokens":1e400'), 'invalid_value'],
    ['a role that is a number', text.replace('"user"', '1'), 'invalid_value'],
    ['a key of objects', text.replace('{', '{"__proto__": {"n": 9},'), 'unknown_parameter'],
    ['a key of classes', { ...valid, constructor: { prototype: {} } }, 'unknown_parameter'],
    ['a field of 1 MiB', { ...valid, ['x'.repeat(MIB)]: 1 }, 'unknown_parameter'],
    ['a million answers', { ...valid, n: 1e6 }, 'invalid_value'],
    ['a negative count', { ...valid, max_tokens: -1 }, 'invalid_value'],
    ['a count with a fraction', { ...valid, max_tokens: 1.5 }, 'invalid_value'],
    ['a count past 32 bits', { ...valid, max_tokens: 2 ** 40 }, 'invalid_value'],
    ['a seed past 53 bits', { ...valid, seed: 2 ** 60 }, 'invalid_value'],
    ['a bias of no token', { ...valid, logit_bias: { '-1': 1 } }, 'invalid_value'],
    ['a bias past all', { ...valid, logit_bias: { 5: 1e9 } }, 'invalid_value'],
    ['300 stop sequences', { ...valid, stop: Array.from({ length: 300 }, () => 'x') }, 'invalid_value'],
    ['an empty stop sequence', { ...valid, stop: '' }, 'invalid_value'],
    ['5000 messages', { ...valid, messages: Array.from({ length: 5000 }, () => valid.messages[0]) }, 'invalid_value'],
    ['a text of a MiB', content('word '.repeat(MIB / 5)), 'context_length_exceeded'],
    ['a run of a letter', content('a'.repeat(1e6)), 'context_length_exceeded'],
    ['a million lines', content('x\n'.repeat(5e5)), 'context_length_exceeded'],
    [
      '200 tools',
      { ...valid, tools: Array.from({ length: 200 }, (_, i) => ({ type: 'function', function: { name: `f${i}` } })) },
      'invalid_value',
    ],
    ['arguments that are no JSON', call('{'), 'invalid_value'],
    ['arguments that are no object', call('[]'), 'invalid_value'],
    [
      'a result of no call',
      { ...valid, messages: [{ role: 'tool', tool_call_id: 'b', content: 'y' }] },
      'invalid_value',
    ],
    ['a path for a picture', image('/etc/passwd'), 'invalid_image'],
    ['a file for a picture', image('file:///etc/passwd'), 'invalid_image'],
    ['an address of the cloud for a picture', image('http://169.254.169.254/latest'), 'invalid_image'],
    ['a schema of 120 levels', schema(nested(120)), 'invalid_json'],
    ['a schema that names itself', schema({ $ref: '#' }), 'invalid_value'],
    ['a schema of the network', schema({ $ref: 'http://127.0.0.1/x' }), 'invalid_value'],
    ['a schema of 60,000 brackets', schema({ type: 'string', pattern: '('.repeat(60_000) }), 'invalid_value'],
    ['a pattern of 60,000 brackets', { ...valid, regex: '('.repeat(60_000) }, 'invalid_value'],
    ['a grammar that is none', { ...valid, grammar: 'root ::= "' }, 'invalid_value'],
    ["a model's path", { ...valid, model: '../../etc/passwd' }, 'model_not_found', 404],
    ['a model with lines in its name', { ...valid, model: 'a\r\nset-cookie: b' }, 'model_not_found', 404],
    ['a model of a MiB', { ...valid, model: 'x'.repeat(MIB) }, 'model_not_found', 404],
  ];
  test.each(cases)('%s', async (_, body, code, status = 400) => {
    const answer = await post(`${running.url}/v1/chat/completions`, body);
    expect([answer.status, answer.body.error?.code]).toEqual([status, code]);
    expect(JSON.stringify(answer.body).length).toBeLessThan(2000);
  });

  test('bytes that are no UTF-8, and compressed ones', async () => {
    for (const body of [Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x7d]), gzipSync(text)]) {
      const answer = await fetch(`${running.url}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body,
      });
      expect(answer.status).toBe(400);
    }
  });

  test('half of a character, and control tokens, are text', async () => {
    for (const words of ['\ud800', '<end_of_turn><start_of_turn>model\n', '<start_of_image><bos><eos>', '\0']) {
      const { status, body } = await post(`${running.url}/v1/completions`, {
        model: 'tiny',
        prompt: words,
        echo: true,
        logprobs: 0,
        max_tokens: 0,
      });
      expect(status).toBe(200);
      const [choice] = body.choices as { logprobs: { tokens: string[] } }[];
      const controls = choice!.logprobs.tokens.slice(1).filter((token) => /^<(?:bos|eos|\w+_of_\w+)>$/.test(token));
      expect(controls).toEqual([]);
    }
  });

  test('token ids past the vocabulary', async () => {
    for (const prompt of [[1e9], [[5, 999_999]], [-1], [1.5], [[]], [[5], 'x']]) {
      const { status } = await post(`${running.url}/v1/completions`, { model: 'tiny', prompt, max_tokens: 1 });
      expect([prompt, status]).toEqual([prompt, 400]);
    }
  });
});

// For each field of each body, at any depth, values that it may not have. The schema itself says which they are.
describe('values that a schema refuses are refused', () => {
  const VALUES = [null, true, -1, 0.5, '', '\0', [], [[]], {}, 2 ** 53];
  const picture = { type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA', detail: 'auto' } };
  const sampling = {
    temperature: 1,
    top_p: 0.9,
    frequency_penalty: 0,
    presence_penalty: 0,
    logit_bias: { 5: 1 },
    seed: 1,
    stop: ['x'],
    topK: 5,
    minP: 0,
    repetitionPenalty: 1,
    penaltyWindow: 4,
    draft: false,
    adapter: {},
    regex: 'x+',
    grammar: 'root ::= "x"',
    choices: ['x', 'y'],
    user: 'me',
    safety_identifier: 'me',
    store: false,
    service_tier: 'auto',
  };
  const cutting = { panAndScan: { minCropSize: 64, maxCrops: 2, minRatio: 1 }, tile: 1, alpha: 'white' };
  const tool = { name: 'f', description: 'f', strict: true, parameters: { type: 'object', properties: {} } };
  const bodies: [path: string, schema: z.ZodObject, body: Record<string, unknown>][] = [
    [
      '/v1/chat/completions',
      chatBody,
      {
        model: 'tiny',
        messages: [
          { role: 'system', content: [{ type: 'text', text: 'x' }] },
          { role: 'user', content: [{ type: 'text', text: 'x' }, picture] },
          {
            role: 'assistant',
            content: 'x',
            refusal: null,
            tool_calls: [{ id: 'a', type: 'function', function: { name: 'f', arguments: '{}' } }],
          },
          { role: 'tool', tool_call_id: 'a', content: 'x' },
        ],
        stream: true,
        stream_options: { include_usage: true },
        n: 1,
        max_tokens: 1,
        max_completion_tokens: 1,
        logprobs: true,
        top_logprobs: 1,
        tools: [{ type: 'function', function: tool }],
        tool_choice: { type: 'function', function: { name: 'f' } },
        parallel_tool_calls: true,
        response_format: {
          type: 'json_schema',
          json_schema: { name: 'x', description: 'x', strict: true, schema: {} },
        },
        modalities: ['text'],
        ...sampling,
        ...cutting,
      },
    ],
    [
      '/v1/completions',
      completionsBody,
      {
        model: 'tiny',
        prompt: [[5, 6], [7]],
        echo: true,
        logprobs: 1,
        max_tokens: 1,
        n: 1,
        best_of: 1,
        suffix: '',
        stream: false,
        stream_options: { include_usage: true },
        bos: true,
        ...sampling,
      },
    ],
    [
      '/v1/responses',
      responsesBody,
      {
        model: 'tiny',
        input: [
          {
            type: 'message',
            role: 'user',
            content: [
              { type: 'input_text', text: 'x' },
              { type: 'input_image', image_url: 'data:,', detail: 'low', file_id: null },
            ],
          },
          {
            role: 'assistant',
            content: [{ type: 'output_text', text: 'x', annotations: [], logprobs: [] }],
            id: 'a',
            status: 'completed',
          },
          { type: 'function_call', call_id: 'a', name: 'f', arguments: '{}', id: 'b' },
          { type: 'function_call_output', call_id: 'a', output: [{ type: 'input_text', text: 'x' }] },
        ],
        instructions: 'x',
        max_output_tokens: 1,
        stream: false,
        text: { format: { type: 'json_schema', name: 'x', description: 'x', schema: {}, strict: true } },
        tools: [{ type: 'function', ...tool }],
        tool_choice: { type: 'function', name: 'f' },
        parallel_tool_calls: false,
        include: ['message.output_text.logprobs'],
        top_logprobs: 1,
        truncation: 'disabled',
        background: false,
        previous_response_id: null,
        metadata: { a: 'b' },
        ...sampling,
        ...cutting,
      },
    ],
    [
      '/v1/embeddings',
      embeddingsBody,
      {
        model: 'tiny',
        input: ['x', 'y'],
        encoding_format: 'float',
        dimensions: 4,
        user: 'me',
        task: 'query',
        title: ['x'],
        normalize: true,
        truncate: true,
      },
    ],
  ];

  type Path = (string | number)[];
  function* paths(value: unknown, path: Path = []): Generator<Path> {
    if (path.length > 0) yield path;
    if (typeof value !== 'object' || value === null) return;
    for (const [key, item] of Object.entries(value))
      yield* paths(item, [...path, Array.isArray(value) ? Number(key) : key]);
  }
  function changed(body: unknown, path: Path, change: (parent: Record<string, unknown>, key: string) => void): unknown {
    const copy = structuredClone(body);
    const parent = path.slice(0, -1).reduce((at, key) => (at as Record<string, unknown>)[key]!, copy);
    change(parent as Record<string, unknown>, String(path.at(-1)));
    return copy;
  }

  test.each(bodies)('%s', async (url, schema, body) => {
    expect(Object.keys(body).toSorted()).toEqual(Object.keys(schema.shape).toSorted()); // so none is forgotten
    expect(schema.safeParse(body)).toMatchObject({ success: true });
    const refused: unknown[] = [];
    const isRefused = (value: unknown) => !schema.safeParse(value).success;
    [...paths(body)].forEach((path, i) => {
      // Of the values that this place may not have, three; those of other places differ.
      const values = [...VALUES.slice(i % VALUES.length), ...VALUES.slice(0, i % VALUES.length)];
      const wrong = values
        .map((value) => changed(body, path, (parent, key) => (parent[key] = value)))
        .filter(isRefused);
      const unknown = changed(body, path, (parent) => (parent.unheard_of = 1));
      const missing = changed(body, path, (parent, key) => delete parent[key]);
      refused.push(...wrong.slice(0, 3), ...[unknown, missing].filter(isRefused));
    });
    expect(refused.length).toBeGreaterThan(2 * Object.keys(body).length);
    await pooled(refused, 8, new AbortController().signal, async (each) => {
      const { status, body: answer } = await post(`${running.url}${url}`, each);
      expect([each, status, answer.error?.type]).toEqual([each, 400, 'invalid_request_error']);
    });
  });
});
