// The interface of Ollama with Ollama's own client: answers are those of gemma-native, and what cannot be done is refused by its name.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Gemma } from 'gemma-native';
import { Ollama, type ChatResponse } from 'ollama';
import type { z } from 'zod';
import { createServer, type Server } from '../src/index.js';
import { chatBody, embedBody, embeddingsBody, generateBody, showBody } from '../src/ollama/fields.js';
import { data, rejection, until } from '../../../test/api/helpers.js';
import { brokenStream } from './helpers.js';
import { wrongOnes } from './wrong.js';

let gemma: Gemma;
let server: Server;
let host: string;
let client: Ollama;
beforeAll(async () => {
  gemma = await Gemma.load(join(data, 'mm-a-f16.gguf'), { contextSize: 4096 });
  server = await createServer({
    models: [
      { name: 'tiny', model: gemma, aliases: ['org/other:q4'] },
      { name: 'file', model: join(data, 'text-a-f16.gguf') },
      { name: 'vectors', model: join(data, 'embedding-f16.gguf') },
    ],
  });
  host = await server.listen({ port: 0 });
  client = new Ollama({ host });
});
afterAll(async () => {
  await server.close();
  await gemma.dispose();
});

const model = 'tiny';
const photo = join(data, 'images', 'photo.png');
const messages = [
  { role: 'system', content: 'Be brief.' },
  { role: 'user', content: 'What is the largest planet?' },
];
const options = { seed: 5, num_predict: 12, temperature: 0.8, top_k: 30, top_p: 0.9, min_p: 0.01 };
const own = { seed: 5, maxOutputTokens: 12, temperature: 0.8, topK: 30, topP: 0.9, minP: 0.01 };

function post(path: string, body: unknown, type = 'application/json'): Promise<Response> {
  const text = typeof body === 'string' ? body : JSON.stringify(body);
  return fetch(`${host}${path}`, { method: 'POST', headers: { 'content-type': type }, body: text });
}

async function gathered(
  stream: AsyncIterable<ChatResponse>,
): Promise<{ text: string; last: ChatResponse; parts: number }> {
  let text = '';
  let last: ChatResponse | undefined;
  let parts = 0;
  for await (const part of stream) {
    text += part.message.content;
    last = part;
    ++parts;
  }
  return { text, last: last!, parts };
}

test('chat, whole and streamed', async () => {
  const alone = await gemma.generate(messages as never, own);
  const whole = await client.chat({ model, messages, options });
  expect(whole).toMatchObject({
    model,
    message: { role: 'assistant', content: alone.text },
    done: true,
    done_reason: 'length',
    prompt_eval_count: alone.usage.inputTokens,
    eval_count: 12,
  });
  for (const duration of ['total', 'load', 'prompt_eval', 'eval'] as const) {
    expect(Number.isInteger(whole[`${duration}_duration`])).toBe(true);
  }
  expect(Date.parse(String(whole.created_at))).toBeLessThanOrEqual(Date.now());
  const { text, last, parts } = await gathered(await client.chat({ model, messages, options, stream: true }));
  expect([text, last.done_reason, last.eval_count]).toEqual([alone.text, 'length', 12]);
  expect(parts).toBeGreaterThan(2);
  // Streamed is what it is where nobody says otherwise.
  const answer = await fetch(`${host}/api/chat`, {
    method: 'POST',
    body: JSON.stringify({ model, messages, options }),
  });
  expect(answer.headers.get('content-type')).toBe('application/x-ndjson');
  expect((await answer.text()).trimEnd().split('\n')).toHaveLength(parts);
});

test('generate: a turn, with a system message, raw', async () => {
  const prompt = 'Name a colour';
  const text = async (request: object) => (await client.generate({ model, prompt, options, ...request })).response;
  expect(await text({})).toBe((await gemma.generate(prompt, own)).text);
  expect(await text({ raw: true })).toBe((await gemma.generate(prompt, { ...own, raw: true })).text);
  const asked = [{ role: 'system' as const, content: 'Shout.' }, { role: 'user' as const, content: prompt }]; // prettier-ignore
  expect(await text({ system: 'Shout.' })).toBe((await gemma.generate(asked, own)).text);
  let streamed = '';
  for await (const part of await client.generate({ model, prompt, options, stream: true })) streamed += part.response;
  expect(streamed).toBe((await gemma.generate(prompt, own)).text);
  const { text: all } = await gemma.generate(prompt, { ...own, maxOutputTokens: 40 });
  const stop = all.slice(10, 12);
  expect(await text({ options: { ...options, num_predict: 40, stop: [stop] } })).toBe(all.slice(0, all.indexOf(stop)));
});

test('pictures', async () => {
  const bytes = readFileSync(photo);
  const alone = await gemma.generate('What is this?', { ...own, images: [photo] });
  const asked = { model, prompt: 'What is this?', options };
  expect((await client.generate({ ...asked, images: [bytes] })).response).toBe(alone.text);
  expect((await client.generate({ ...asked, images: [bytes.toString('base64')] })).response).toBe(alone.text);
  const message = { role: 'user', content: 'What is this?', images: [bytes] };
  const { message: said, prompt_eval_count } = await client.chat({ model, messages: [message], options });
  expect([said.content, prompt_eval_count]).toEqual([alone.text, alone.usage.inputTokens]);
  for (const image of ['/etc/passwd', 'file:///etc/passwd', 'http://127.0.0.1/x.png', '', 'AAAA']) {
    const error = await rejection(client.chat({ model, messages: [{ ...message, images: [image] }] }));
    expect(error).toMatchObject({ status_code: 400 });
  }
});

test('answers that are held to JSON, to a schema', async () => {
  const format = { type: 'object', properties: { ripe: { type: 'boolean' }, n: { type: 'integer', minimum: 1, maximum: 9 } }, required: ['ripe', 'n'] }; // prettier-ignore
  const long = { ...options, num_predict: 300 };
  const { message } = await client.chat({ model, messages, format, options: long });
  expect(JSON.parse(message.content)).toEqual({ ripe: expect.any(Boolean), n: expect.any(Number) });
  const alone = await gemma.generate(messages as never, { ...own, maxOutputTokens: 300, schema: format });
  expect(message.content).toBe(alone.text);
  const any = await client.generate({ model, prompt: 'x', format: 'json', options: { ...long, temperature: 0 } });
  expect(any.response).toBe(
    (await gemma.generate('x', { ...own, temperature: 0, maxOutputTokens: 300, json: true })).text,
  );
  const wrong = await rejection(client.chat({ model, messages, format: { type: 'integre' } }));
  expect(wrong).toMatchObject({ status_code: 400, error: expect.stringContaining('format') });
});

test('tools: calls, whole and streamed, and their results', async () => {
  const parameters = {
    type: 'object',
    properties: { city: { type: 'string', enum: ['Rome', 'Oslo'] } },
    required: ['city'],
  };
  const tools = [{ type: 'function', function: { name: 'weather', description: 'The weather', parameters } }];
  const inputSchema = parameters;
  // The tiny model calls a tool where it must, so one is asked of the library: the interface has no such wish.
  const call = { function: { name: 'weather', arguments: { city: 'Rome' } } };
  const asked = [
    { role: 'user', content: 'How is it in Rome?' },
    { role: 'assistant', content: '', tool_calls: [call, call] },
    { role: 'tool', content: '{"degrees": 21}', tool_name: 'weather' },
    { role: 'tool', content: 'warm' },
  ];
  const { message } = await client.chat({ model, messages: asked, tools, options });
  const alone = await gemma.generate(
    [
      { role: 'user', content: 'How is it in Rome?' },
      {
        role: 'assistant',
        content: '',
        toolCalls: ['a', 'b'].map((id) => ({ id, name: 'weather', input: { city: 'Rome' } })),
      },
      { role: 'tool', toolCallId: 'a', content: { degrees: 21 } },
      { role: 'tool', toolCallId: 'b', content: 'warm' },
    ],
    { ...own, tools: { weather: { description: 'The weather', inputSchema } } },
  );
  expect(message.content).toBe(alone.text);
  const stray = { role: 'tool', content: 'x', tool_name: 'other' };
  expect(await rejection(client.chat({ model, messages: [...asked, stray], tools }))).toMatchObject({
    status_code: 400,
    message: expect.stringContaining('messages[4]'),
  });
});

test('calls that the model makes', async () => {
  // This interface has no wish that a tool be called, and a model that knows nothing calls one where it must.
  const { generate, stream } = gemma;
  const forced = <T extends object>(options: T) => ({ ...options, toolChoice: 'required' as const });
  const spies = [
    jest.spyOn(gemma, 'generate').mockImplementation((input, o) => generate.call(gemma, input, forced(o ?? {}))),
    jest.spyOn(gemma, 'stream').mockImplementation((input, o) => stream.call(gemma, input, forced(o ?? {}))),
  ];
  const parameters = { type: 'object', properties: { city: { enum: ['Rome', 'Oslo'] } }, required: ['city'] };
  const tools = [{ type: 'function', function: { name: 'weather', parameters } }] as never;
  const asked = { model, messages, tools, options: { ...options, num_predict: 200 } };
  try {
    const { message, done_reason } = await client.chat(asked);
    const { toolCalls = [] } = await gemma.generate(messages as never, {
      ...own,
      maxOutputTokens: 200,
      tools: { weather: { inputSchema: parameters } },
    });
    expect(toolCalls.length).toBeGreaterThan(0);
    const calls = toolCalls.map(({ name, input }, index) => ({ id: expect.any(String), function: { index, name, arguments: input } })); // prettier-ignore
    expect([message.tool_calls, done_reason]).toEqual([calls, 'stop']);
    const streamed: unknown[] = [];
    for await (const part of await client.chat({ ...asked, stream: true })) {
      streamed.push(...(part.message.tool_calls ?? []));
    }
    expect(streamed.map((call) => (call as { function: object }).function)).toEqual(
      calls.map((call) => ({ ...call.function, index: expect.any(Number) })),
    );
    // As clients send them back.
    const results = calls.map(() => ({ role: 'tool', content: 'warm', tool_name: 'weather' }));
    spies.forEach((spy) => spy.mockRestore());
    const next = await client.chat({ model, messages: [...messages, message, ...results], tools, options });
    expect(next.done).toBe(true);
  } finally {
    spies.forEach((spy) => spy.mockRestore());
  }
});

test('log-probabilities', async () => {
  const asked = { model, messages, options: { ...options, num_predict: 5 }, logprobs: true, top_logprobs: 2 };
  const { logprobs = [] } = await client.chat(asked);
  const alone = await gemma.generate(messages as never, { ...own, maxOutputTokens: 5, logprobs: 2 });
  expect(logprobs.map(({ logprob }) => logprob)).toEqual(alone.logprobs?.map(({ logprob }) => logprob));
  expect(logprobs[0]?.top_logprobs).toHaveLength(2);
  const streamed: number[] = [];
  for await (const part of await client.chat({ ...asked, stream: true })) {
    streamed.push(...(part.logprobs ?? []).map(({ logprob }) => logprob));
  }
  expect(streamed).toEqual(logprobs.map(({ logprob }) => logprob));
});

test('embeddings', async () => {
  const direct = await Gemma.load(join(data, 'embedding-f16.gguf'));
  try {
    const texts = ['one', 'another text'];
    const { data: all, shape, usage } = await direct.embed(texts);
    const found = await client.embed({ model: 'vectors', input: texts });
    expect(found.embeddings).toEqual([0, 1].map((i) => Array.from(all.subarray(i * shape[1], (i + 1) * shape[1]))));
    expect(found.prompt_eval_count).toBe(usage.inputTokens);
    const short = await client.embed({ model: 'vectors', input: 'one', dimensions: 8 });
    expect(short.embeddings[0]).toEqual(Array.from((await direct.embed('one', { dimensions: 8 })).data));
    const { embedding } = await client.embeddings({ model: 'vectors', prompt: 'one' });
    expect(embedding).toEqual(Array.from((await direct.embed('one', { normalize: false })).data));
    expect((await client.embed({ model: 'vectors', input: [] })).embeddings).toEqual([]);
    expect((await client.embed({ model: 'vectors', input: 'word '.repeat(10_000) })).embeddings).toHaveLength(1);
    const whole = rejection(client.embed({ model: 'vectors', input: 'word '.repeat(10_000), truncate: false }));
    expect(await whole).toMatchObject({ status_code: 400 });
  } finally {
    await direct.dispose();
  }
});

test('a client that leaves ends the work', async () => {
  const format = { type: 'array', items: { type: 'integer' }, minItems: 1000 }; // no short answer
  const stream = await client.chat({ model, messages, options: { seed: 1 }, format, stream: true });
  const read = async () => {
    for await (const { done } of stream) if (!done) stream.abort();
  };
  expect(await rejection(read())).toMatchObject({ name: 'AbortError' });
  await until(() => gemma.stats().running === 0 && server.context.admission.inFlight === 0);
});

test('what fails while an answer is streamed is its last line', async () => {
  const spy = jest.spyOn(gemma, 'stream').mockReturnValue(brokenStream as never);
  try {
    const seen: string[] = [];
    const read = async () => {
      for await (const { message } of await client.chat({ model, messages, stream: true })) seen.push(message.content);
    };
    expect(await rejection(read())).toMatchObject({ message: expect.stringContaining('the model was disposed') });
    expect(seen).toEqual(['begun']);
  } finally {
    spy.mockRestore();
  }
});

test('models: listed, shown, loaded, kept and unloaded', async () => {
  const { models } = await client.list();
  expect(models.map(({ name }) => name)).toEqual(['tiny', 'file', 'vectors']);
  expect(models[1]).toMatchObject({
    size: expect.any(Number),
    details: { family: 'gemma3', quantization_level: 'F16' },
  });
  expect(models[1]?.digest).toMatch(/^[0-9a-f]{64}$/);
  const shown = (await client.show({ model: 'file' })) as unknown as {
    capabilities: string[];
    model_info: Record<string, unknown>;
  };
  expect(shown.capabilities).toContain('completion');
  expect(shown.model_info['gemma3.context_length']).toEqual(expect.any(Number));
  expect((await client.show({ model: 'vectors' })).capabilities).toEqual(['embedding']);
  expect((await client.show({ model: 'tiny' })).capabilities).toContain('vision');
  const loaded = async () => (await client.ps()).models.map(({ name }) => name);
  expect(await loaded()).not.toContain('file');
  expect(await client.generate({ model: 'file:latest', prompt: '', keep_alive: '10m' })).toMatchObject({
    done: true,
    done_reason: 'load',
  });
  expect(await loaded()).toContain('file');
  const { expires_at } = (await client.ps()).models.find(({ name }) => name === 'file')!;
  expect(new Date(expires_at).getTime()).toBeGreaterThan(Date.now() + 500_000);
  expect(await client.chat({ model: 'file', messages: [], keep_alive: 0 })).toMatchObject({ done_reason: 'unload' });
  expect(await loaded()).not.toContain('file');
  const first = await client.chat({ model: 'org/other:q4', messages, options });
  expect(first.message.content).toBe((await client.chat({ model, messages, options })).message.content);
  expect((await fetch(host, { method: 'HEAD' })).status).toBe(200); // how some look whether somebody is there
  expect((await client.version()).version).toMatch(/^\d+\.\d+\.\d+$/);
});

test('what is not there is refused in its own form', async () => {
  const refusals: [path: string, body: unknown, status: number, message: RegExp][] = [
    ['/api/chat', { model: 'none', messages }, 404, /"none" does not exist/],
    ['/api/chat', { model, messages, think: true }, 400, /^think: Gemma 3 does not think/],
    ['/api/chat', { model, messages, think: 'high' }, 400, /^think:/],
    ['/api/generate', { model, prompt: 'a', suffix: 'b' }, 400, /^suffix: Gemma 3 cannot fill/],
    ['/api/generate', { model, prompt: 'a', template: 'b' }, 400, /^template:/],
    ['/api/generate', { model, prompt: 'a', context: [1] }, 400, /^context:/],
    ['/api/generate', { model, prompt: 'a', raw: true, system: 'x' }, 400, /^system:/],
    ['/api/chat', { model, messages, options: { num_gpu: 1 } }, 400, /^options\.num_gpu: cannot be set/],
    ['/api/chat', { model, messages, options: { mirostat: 1 } }, 400, /^options\.mirostat:/],
    ['/api/chat', { model, messages, options: { num_predict: 0 } }, 400, /^options\.num_predict:/],
    ['/api/chat', { model, messages, options: { num_ctx: 1e6 } }, 400, /^options\.num_ctx: .*4096 positions/],
    ['/api/chat', { model, messages, options: { num_ctx: 5 } }, 400, /^options\.num_ctx: .*leaves no room/],
    ['/api/chat', { model, messages, keep_alive: 'soon' }, 400, /^keep_alive: expected a duration/],
    ['/api/chat', { model, messages, top_logprobs: 2 }, 400, /^top_logprobs:/],
    [
      '/api/chat',
      {
        model,
        messages: [
          { role: 'user', content: 'a' },
          { role: 'user', content: 'b' },
        ],
      },
      400,
      /./,
    ],
    ['/api/chat', { model: 'vectors', messages }, 400, /./],
    ['/api/chat', '{"model":', 400, /JSON/],
    ['/api/pull', { model: 'x' }, 404, /no such path/],
    ['/api/embed', { model, input: 'x', options: { num_ctx: 5 } }, 400, /options/],
  ];
  for (const [path, body, status, message] of refusals) {
    const answer = await post(path, body);
    expect([body, answer.status]).toEqual([body, status]);
    expect(await answer.json()).toEqual({ error: expect.stringMatching(message) });
  }
  expect(
    (await post('/api/chat', { model, messages, stream: false, options: { num_predict: 1 } }, 'text/plain')).status,
  ).toBe(200);
  expect((await post('/api/chat', 'a=b', 'application/xml')).status).toBe(415);
});

test('num_ctx is where an answer ends', async () => {
  const { usage } = await gemma.generate(messages as never, own);
  const { eval_count, done_reason } = await client.chat({ model, messages, options: { ...options, num_predict: 100, num_ctx: usage.inputTokens + 7 } }); // prettier-ignore
  expect([eval_count, done_reason]).toEqual([7, 'length']);
});

/** a PNG of one pixel */
const PIXEL = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';

const bodies: [path: string, schema: z.ZodType, body: object][] = [
  [
    '/api/chat',
    chatBody,
    {
      model,
      messages: [
        ...messages,
        { role: 'assistant', content: 'x', tool_calls: [{ id: 'a', function: { name: 'f', arguments: {} } }] },
        { role: 'tool', content: 'x', tool_name: 'f', tool_call_id: 'a' },
        { role: 'assistant', content: 'x' },
        { role: 'user', content: 'x', images: [PIXEL] },
      ],
      stream: false,
      keep_alive: '5m',
      think: false,
      logprobs: true,
      top_logprobs: 1,
      options: { ...options, num_predict: 1, num_ctx: 4000, stop: ['x'], repeat_penalty: 1.1, repeat_last_n: 3, presence_penalty: 0.1, frequency_penalty: 0.1, mirostat: 0, tfs_z: 1, typical_p: 1 }, // prettier-ignore
    },
  ],
  [
    '/api/chat',
    chatBody,
    {
      model,
      messages,
      stream: false,
      options: { num_predict: 1 },
      tools: [
        { type: 'function', function: { name: 'f', description: 'x', parameters: { type: 'object', properties: {} } } },
      ],
    },
  ],
  [
    '/api/generate',
    generateBody,
    {
      model,
      prompt: 'x',
      system: 'y',
      raw: false,
      images: [],
      stream: false,
      format: 'json',
      options: { num_predict: 1 },
    },
  ],
  [
    '/api/embed',
    embedBody(2048),
    { model: 'vectors', input: ['x'], truncate: true, dimensions: 8, keep_alive: 60, options: {} },
  ],
  ['/api/embeddings', embeddingsBody, { model: 'vectors', prompt: 'x', keep_alive: -1, options: {} }],
  ['/api/show', showBody, { model, verbose: false }],
];

test.each(bodies)('%s: every wrong type is a 400', async (url, schema, body) => {
  expect(schema.safeParse(body).success).toBe(true);
  const all = [...wrongOnes(body, ['arguments', 'parameters'])];
  const work = all.values();
  const worker = async () => {
    for (const { where, body: wrong } of work) {
      const answer = await post(url, wrong);
      const told = await answer.text();
      const isGood = schema.safeParse(wrong).success;
      expect([where, answer.status]).toEqual([where, isGood ? expect.any(Number) : 400]);
      expect([where, [200, 400, 404].includes(answer.status)]).toEqual([where, true]);
      if (answer.status !== 200) expect(JSON.parse(told)).toEqual({ error: expect.any(String) });
    }
  };
  await Promise.all(Array.from({ length: 8 }, worker));
  expect(all.length).toBeGreaterThan(15);
});
