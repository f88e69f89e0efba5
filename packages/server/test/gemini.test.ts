// The interface of Gemini with Google's own client: answers are those of gemma-native, and what cannot be done is refused by its name.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  FunctionCallingConfigMode,
  GoogleGenAI,
  Type,
  type FunctionCall,
  type GenerateContentResponse,
  type Part,
} from '@google/genai';
import { Gemma, type Input } from 'gemma-native';
import type { z } from 'zod';
import { batchEmbedBody, countBody, embedBody, generateBody } from '../src/gemini/fields.js';
import { jsonSchemaOf } from '../src/gemini/schema.js';
import { createServer, type Server } from '../src/index.js';
import { data, rejection, until } from '../../../test/api/helpers.js';
import { brokenStream, lendDispatcher } from './helpers.js';
import { wrongOnes } from './wrong.js';

lendDispatcher();

let gemma: Gemma;
let server: Server;
let baseUrl: string;
let ai: GoogleGenAI;
beforeAll(async () => {
  gemma = await Gemma.load(join(data, 'mm-a-f16.gguf'), { contextSize: 4096 });
  server = await createServer({
    models: [
      { name: 'tiny', model: gemma, aliases: ['org/other:q4'] },
      { name: 'vectors', model: join(data, 'embedding-f16.gguf') },
    ],
    apiKeys: ['right'],
  });
  baseUrl = await server.listen({ port: 0 });
  ai = new GoogleGenAI({ apiKey: 'right', httpOptions: { baseUrl } });
});
afterAll(async () => {
  await server.close();
  await gemma.dispose();
});

const model = 'tiny';
const photo = join(data, 'images', 'photo.png');
const question = 'What is the largest planet?';
const messages = [
  { role: 'system' as const, content: 'Be brief.' },
  { role: 'user' as const, content: question },
];
const sampling = { seed: 5, temperature: 0.8, topK: 30, topP: 0.9, maxOutputTokens: 12 };
const config = { ...sampling, systemInstruction: 'Be brief.' };

function post(
  path: string,
  body: unknown,
  headers: Record<string, string> = { 'x-goog-api-key': 'right' },
): Promise<Response> {
  const text = typeof body === 'string' ? body : JSON.stringify(body);
  return fetch(`${baseUrl}/v1beta/${path}`, { method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body: text }); // prettier-ignore
}

async function gathered(stream: AsyncIterable<GenerateContentResponse>) {
  let text = '';
  let last: GenerateContentResponse | undefined;
  let parts = 0;
  for await (const chunk of stream) {
    text += chunk.text ?? '';
    last = chunk;
    ++parts;
  }
  return { text, last: last!, parts };
}

test('answers, whole and streamed', async () => {
  const alone = await gemma.generate(messages, sampling);
  const whole = await ai.models.generateContent({ model, contents: question, config });
  expect(whole.text).toBe(alone.text);
  expect(whole.candidates?.[0]).toMatchObject({ finishReason: 'MAX_TOKENS', index: 0, content: { role: 'model' } });
  const { inputTokens } = alone.usage;
  const counts = { promptTokenCount: inputTokens, candidatesTokenCount: 12, totalTokenCount: inputTokens + 12 };
  expect(whole.usageMetadata).toMatchObject(counts);
  expect(whole.modelVersion).toBe('tiny');
  const { text, last, parts } = await gathered(
    await ai.models.generateContentStream({ model, contents: question, config }),
  );
  expect(text).toBe(alone.text);
  expect(last.candidates?.[0]?.finishReason).toBe('MAX_TOKENS');
  expect(last.usageMetadata).toMatchObject(counts);
  expect(parts).toBeGreaterThan(2);
  // Without events it is an array.
  const asked = {
    contents: [{ parts: [{ text: question }] }],
    system_instruction: { parts: [{ text: 'Be brief.' }] },
    generation_config: { ...sampling, topK: undefined, top_k: 30 },
  };
  const array = (await (await post('models/tiny:streamGenerateContent', asked)).json()) as GenerateContentResponse[];
  expect(array.flatMap(({ candidates }) => candidates?.[0]?.content?.parts ?? []).map((part) => part.text).join('')).toBe(alone.text); // prettier-ignore
  expect(array).toHaveLength(parts);
});

test('several candidates', async () => {
  const found = await ai.models.generateContent({
    model,
    contents: question,
    config: { ...config, candidateCount: 3 },
  });
  const alone = await Promise.all([5, 6, 7].map((seed) => gemma.generate(messages, { ...sampling, seed })));
  expect(found.candidates?.map(({ content }) => content?.parts?.[0]?.text)).toEqual(alone.map(({ text }) => text));
  expect(found.candidates?.map(({ index }) => index)).toEqual([0, 1, 2]);
  expect(found.usageMetadata?.candidatesTokenCount).toBe(36);
  const texts = ['', '', ''];
  for await (const { candidates = [] } of await ai.models.generateContentStream({
    model,
    contents: question,
    config: { ...config, candidateCount: 3 },
  })) {
    // prettier-ignore
    for (const { index = 0, content } of candidates) texts[index] += content?.parts?.[0]?.text ?? '';
  }
  expect(texts).toEqual(alone.map(({ text }) => text));
});

test('a conversation of the client', async () => {
  const chat = ai.chats.create({ model, config });
  const first = await chat.sendMessage({ message: question });
  let second = '';
  for await (const chunk of await chat.sendMessageStream({ message: 'And the next one?' })) second += chunk.text ?? '';
  const third = await chat.sendMessage({ message: 'And then?' }); // its history has each piece of the second answer
  const answer = (content: string) => ({ role: 'assistant' as const, content });
  const talk: Input = [...messages, answer(first.text ?? ''), { role: 'user', content: 'And the next one?' }];
  expect(second).toBe((await gemma.generate(talk, sampling)).text);
  const on: Input = [...talk, answer(second), { role: 'user', content: 'And then?' }];
  expect(third.text).toBe((await gemma.generate(on, sampling)).text);
});

test('pictures, and counts of tokens', async () => {
  const inlineData = { mimeType: 'image/png', data: readFileSync(photo).toString('base64') };
  const contents = [{ inlineData }, 'What is this?'];
  const alone = await gemma.generate('What is this?', { ...sampling, images: [photo] });
  const found = await ai.models.generateContent({ model, contents, config: sampling });
  expect(found.text).toBe(alone.text);
  const { inputTokens, imageTokens } = alone.usage;
  expect(found.usageMetadata?.promptTokensDetails).toEqual([
    { modality: 'TEXT', tokenCount: inputTokens - imageTokens },
    { modality: 'IMAGE', tokenCount: imageTokens },
  ]);
  expect((await ai.models.countTokens({ model, contents })).totalTokens).toBe(inputTokens);
  const asked = { generateContentRequest: { model: 'models/tiny', contents: [{ parts: [{ text: question }] }], systemInstruction: { parts: [{ text: 'Be brief.' }] } } }; // prettier-ignore
  const counted = await (await post('models/tiny:countTokens', asked)).json();
  expect(counted).toEqual({ totalTokens: await gemma.countTokens(messages) });
  for (const [mimeType, bytes] of [
    ['image/png', '/etc/passwd'],
    ['image/png', ''],
    ['image/png', 'AAAA'],
    ['video/mp4', inlineData.data],
  ]) {
    // prettier-ignore
    const parts = [{ inlineData: { mimeType, data: bytes } }, { text: 'x' }];
    expect((await post('models/tiny:generateContent', { contents: [{ parts }] })).status).toBe(400);
  }
});

test('answers that are held to JSON, to schemas, to choices', async () => {
  const responseSchema = {
    type: Type.OBJECT,
    properties: {
      n: { type: Type.INTEGER, format: 'int32', minimum: 1, maximum: 9 },
      ripe: { type: Type.BOOLEAN },
      tags: { type: Type.ARRAY, items: { type: Type.STRING, enum: ['a', 'b'] }, minItems: '1', maxItems: '2' },
      name: { type: Type.STRING, enum: ['x'], nullable: true },
    },
    propertyOrdering: ['ripe', 'tags', 'n', 'name'],
    required: ['n', 'ripe', 'tags', 'name'],
  };
  const json = { ...config, maxOutputTokens: 300, responseMimeType: 'application/json' };
  const found = await ai.models.generateContent({ model, contents: question, config: { ...json, responseSchema } });
  const value = JSON.parse(found.text ?? '') as { n: number; ripe: boolean; tags: string[]; name: string | null };
  expect(Object.keys(value)).toEqual(['ripe', 'tags', 'n', 'name']);
  expect(value).toEqual({
    n: expect.any(Number),
    ripe: expect.any(Boolean),
    tags: expect.any(Array),
    name: value.name,
  });
  expect([null, 'x']).toContain(value.name);
  const responseJsonSchema = { type: 'object', properties: { a: { const: 1 } }, required: ['a'], additionalProperties: false }; // prettier-ignore
  const other = await ai.models.generateContent({ model, contents: question, config: { ...json, responseJsonSchema } });
  expect(other.text).toBe((await gemma.generate(messages, { ...sampling, maxOutputTokens: 300, schema: responseJsonSchema })).text); // prettier-ignore
  const any = await ai.models.generateContent({ model, contents: question, config: { ...json, temperature: 0 } });
  expect(any.text).toBe((await gemma.generate(messages, { ...sampling, temperature: 0, maxOutputTokens: 300, json: true })).text); // prettier-ignore
  const choice = { type: Type.STRING, enum: ['yes', 'no'] };
  const chosen = await ai.models.generateContent({ model, contents: question, config: { ...config, responseMimeType: 'text/x.enum', responseSchema: choice } }); // prettier-ignore
  expect(chosen.text).toBe((await gemma.generate(messages, { ...sampling, choices: ['yes', 'no'] })).text);
});

test('functions: called, answered, narrowed', async () => {
  const parameters = { type: Type.OBJECT, properties: { city: { type: Type.STRING, enum: ['Rome', 'Oslo'] } }, required: ['city'] }; // prettier-ignore
  const tools = [
    { functionDeclarations: [{ name: 'weather', description: 'The weather', parameters }, { name: 'time' }] },
  ];
  const inputSchema = {
    type: 'object',
    properties: { city: { type: 'string', enum: ['Rome', 'Oslo'] } },
    required: ['city'],
  };
  const toolConfig = {
    functionCallingConfig: { mode: FunctionCallingConfigMode.ANY, allowedFunctionNames: ['weather'] },
  };
  const called = { ...config, maxOutputTokens: 200, tools, toolConfig };
  const found = await ai.models.generateContent({ model, contents: question, config: called });
  const own = { weather: { description: 'The weather', inputSchema } };
  const alone = await gemma.generate(messages, {
    ...sampling,
    maxOutputTokens: 200,
    tools: own,
    toolChoice: 'required',
  });
  const calls = alone.toolCalls?.map(({ name, input }) => ({ id: expect.any(String), name, args: input })) ?? [];
  expect(calls.length).toBeGreaterThan(0);
  expect(found.functionCalls).toEqual(calls);
  expect(found.candidates?.[0]?.finishReason).toBe('STOP');
  const streamed: unknown[] = [];
  for await (const chunk of await ai.models.generateContentStream({ model, contents: question, config: called })) {
    streamed.push(...(chunk.functionCalls ?? []));
  }
  expect(streamed).toEqual(calls);
  // The answer goes back with results, by ids, and by names where there are none.
  const content = found.candidates?.[0]?.content;
  const resultOf = ({ id = '', name = '' }: FunctionCall, withId: boolean): Part => ({
    functionResponse: { ...(withId && { id }), name, response: { degrees: 21 } },
  });
  const last: string[] = [];
  for (const withId of [true, false]) {
    const parts = found.functionCalls!.map((call) => resultOf(call, withId));
    const contents = [{ role: 'user', parts: [{ text: question }] }, content!, { role: 'user', parts }];
    last.push((await ai.models.generateContent({ model, contents, config: { ...config, tools } })).text ?? '');
  }
  expect(last[0]).toBe(last[1]);
  const none = { functionCallingConfig: { mode: FunctionCallingConfigMode.NONE } };
  const said = await ai.models.generateContent({
    model,
    contents: question,
    config: { ...config, tools, toolConfig: none },
  });
  expect(said.text).toBe((await gemma.generate(messages, sampling)).text);
});

test('log-probabilities', async () => {
  const wanted = { ...config, maxOutputTokens: 5, responseLogprobs: true, logprobs: 2 };
  const { candidates } = await ai.models.generateContent({ model, contents: question, config: wanted });
  const alone = await gemma.generate(messages, { ...sampling, maxOutputTokens: 5, logprobs: 2 });
  const { logprobsResult, avgLogprobs } = candidates![0]!;
  expect(logprobsResult?.chosenCandidates?.map(({ tokenId, logProbability }) => [tokenId, logProbability])).toEqual(
    alone.logprobs?.map(({ token, logprob }) => [token, logprob]),
  );
  expect(logprobsResult?.topCandidates?.[0]?.candidates).toHaveLength(2);
  const sum = alone.logprobs!.reduce((total, { logprob }) => total + logprob, 0);
  expect(avgLogprobs).toBeCloseTo(sum / 5, 12);
});

test('embeddings', async () => {
  const direct = await Gemma.load(join(data, 'embedding-f16.gguf'));
  try {
    const texts = ['one', 'another text'];
    const valuesOf = async (text: string, options: object) => Array.from((await direct.embed(text, options)).data);
    const found = await ai.models.embedContent({ model: 'vectors', contents: texts });
    expect(found.embeddings?.map(({ values }) => values)).toEqual(
      await Promise.all(texts.map((text) => valuesOf(text, {}))),
    );
    const query = { taskType: 'RETRIEVAL_QUERY', outputDimensionality: 8 };
    const asked = await ai.models.embedContent({ model: 'vectors', contents: 'one', config: query });
    expect(asked.embeddings?.[0]?.values).toEqual(await valuesOf('one', { task: 'query', dimensions: 8 }));
    const requests = [
      { content: { parts: [{ text: 'a' }] }, taskType: 'RETRIEVAL_DOCUMENT', title: 'T' },
      { content: { parts: [{ text: 'b' }] } },
      { content: { parts: [{ text: 'c' }] }, taskType: 'RETRIEVAL_DOCUMENT' },
    ];
    const mixed = (await (await post('models/vectors:batchEmbedContents', { requests })).json()) as { embeddings: { values: number[] }[] }; // prettier-ignore
    expect(mixed.embeddings.map(({ values }) => values)).toEqual([
      await valuesOf('a', { task: 'document', title: 'T' }),
      await valuesOf('b', {}),
      await valuesOf('c', { task: 'document' }),
    ]);
    const single = (await (await post('models/vectors:embedContent', requests[1])).json()) as { embedding: { values: number[] } }; // prettier-ignore
    expect(single.embedding.values).toEqual(await valuesOf('b', {}));
  } finally {
    await direct.dispose();
  }
});

test('a client that leaves ends the work', async () => {
  const responseJsonSchema = { type: 'array', items: { type: 'integer' }, minItems: 1000 }; // no short answer
  const controller = new AbortController();
  const long = { seed: 1, responseMimeType: 'application/json', responseJsonSchema, abortSignal: controller.signal };
  const read = async () => {
    for await (const { candidates } of await ai.models.generateContentStream({
      model,
      contents: question,
      config: long,
    })) {
      if (candidates) controller.abort();
    }
  };
  expect(await rejection(read())).toMatchObject({ name: 'AbortError' });
  await until(() => gemma.stats().running === 0 && server.context.admission.inFlight === 0);
});

test('what fails while an answer is streamed is its last piece', async () => {
  const spy = jest.spyOn(gemma, 'stream').mockReturnValue(brokenStream as never);
  try {
    const seen: unknown[] = [];
    const read = async () => {
      for await (const { text } of await ai.models.generateContentStream({ model, contents: 'x' })) seen.push(text);
    };
    expect(await rejection(read())).toMatchObject({ status: 503, message: expect.stringContaining('was disposed') });
    expect(seen).toEqual(['begun']);
    const asked = { contents: [{ parts: [{ text: 'x' }] }] };
    const array = (await (await post('models/tiny:streamGenerateContent', asked)).json()) as unknown[];
    expect(array).toHaveLength(2);
    expect(array[1]).toMatchObject({ error: { code: 503, status: 'UNAVAILABLE' } });
  } finally {
    spy.mockRestore();
  }
});

test('models, by pages and by names', async () => {
  const names: unknown[] = [];
  for await (const each of await ai.models.list({ config: { pageSize: 1 } })) names.push(each.name);
  expect(names).toEqual(['models/tiny', 'models/vectors']);
  const found = await ai.models.get({ model });
  expect(found).toMatchObject({ name: 'models/tiny', inputTokenLimit: 4096, temperature: 1, topK: 64 });
  expect((await ai.models.get({ model: 'vectors' })).supportedActions).not.toContain('generateContent');
  const other = await post('models/org%2Fother%3Aq4:countTokens', { contents: [{ parts: [{ text: 'x' }] }] });
  expect(other.status).toBe(200);
  // Under /v1 the list is Google's for Google's clients alone.
  const list = async (headers: Record<string, string>, query = '') =>
    Object.keys((await (await fetch(`${baseUrl}/v1/models${query}`, { headers })).json()) as object);
  expect(await list({ 'x-goog-api-key': 'right' })).toEqual(['models']);
  expect(await list({}, '?key=right')).toEqual(['models']);
  expect(await list({ authorization: 'Bearer right' })).toEqual(['object', 'data']);
});

test('keys, by header and by query', async () => {
  const contents = [{ parts: [{ text: 'x' }] }];
  const path = 'models/tiny:countTokens';
  expect((await post(`${path}?key=right`, { contents }, {})).status).toBe(200);
  for (const answer of [await post(path, { contents }, {}), await post(`${path}?key=wrong`, { contents }, {})]) {
    expect([answer.status, await answer.json()]).toEqual([401, { error: expect.objectContaining({ code: 401, status: 'UNAUTHENTICATED' }) }]); // prettier-ignore
  }
  const stranger = new GoogleGenAI({ apiKey: 'wrong', httpOptions: { baseUrl } });
  expect(await rejection(stranger.models.generateContent({ model, contents: 'x' }))).toMatchObject({ status: 401 });
});

test("what is not there is refused in Google's form", async () => {
  const contents = [{ parts: [{ text: 'x' }] }];
  const refusals: [body: object, field: string | undefined, message: RegExp][] = [
    [{}, 'contents', /missing/],
    [{ contents: [] }, 'contents', /./],
    [{ contents, more: 1 }, 'more', /no such parameter/],
    [{ contents: [{ parts: [{ text: 'x', more: 1 }] }] }, 'contents[0].parts[0].more', /./],
    [{ contents: [{ parts: [{}] }] }, 'contents[0].parts[0]', /expected one of text/],
    [{ contents: [{ parts: [{ fileData: { fileUri: 'x' } }] }] }, 'contents[0].parts[0].fileData', /keeps no files/],
    [{ contents, cachedContent: 'x' }, 'cachedContent', /./],
    [{ contents, model: 'models/other' }, 'model', /the model of the path/],
    [{ contents, generationConfig: { temprature: 1 } }, 'generationConfig.temprature', /./],
    [{ contents, generationConfig: { temperature: 'hot' } }, 'generationConfig.temperature', /./],
    [{ contents, generationConfig: { top_k: 1, topK: 1 } }, 'generationConfig.top_k', /./],
    [{ contents, generationConfig: { candidateCount: 9 } }, 'generationConfig.candidateCount', /at most 8/],
    [
      { contents, generationConfig: { thinkingConfig: { thinkingBudget: 100 } } },
      'generationConfig.thinkingConfig.thinkingBudget',
      /./,
    ],
    [{ contents, generationConfig: { responseModalities: ['AUDIO'] } }, 'generationConfig.responseModalities[0]', /./],
    [{ contents, generationConfig: { responseSchema: { type: 'STRING' } } }, 'generationConfig.responseMimeType', /./],
    [{ contents, generationConfig: { logprobs: 2 } }, 'generationConfig.logprobs', /./],
    [{ contents, generationConfig: { speechConfig: {} } }, 'generationConfig.speechConfig', /./],
    [{ contents, generationConfig: { responseMimeType: 'application/json', responseSchema: { type: 'OBJECT', properties: { a: { type: 'WORD' } } } } }, 'generationConfig.responseSchema.properties.a.type', /./], // prettier-ignore
    [{ contents, tools: [{ googleSearch: {} }] }, 'tools[0].googleSearch', /functionDeclarations/],
    [{ contents, tools: [{ functionDeclarations: [{ name: 'f' }, { name: 'f' }] }] }, undefined, /two are called/],
    [
      { contents, toolConfig: { functionCallingConfig: { mode: 'ANY' } } },
      'toolConfig.functionCallingConfig.mode',
      /./,
    ],
    [
      { contents, safetySettings: [{ category: 'A', threshold: 'BLOCK_LOW_AND_ABOVE' }] },
      'safetySettings[0].threshold',
      /blocks no/,
    ],
    [
      { contents: [{ role: 'model', parts: [{ inlineData: { mimeType: 'image/png', data: 'x' } }] }] },
      undefined,
      /of the model/,
    ],
    [{ contents: [{ parts: [{ functionResponse: { name: 'f', response: {} } }] }] }, undefined, /no call/],
  ];
  for (const [body, field, message] of refusals) {
    const answer = await post('models/tiny:generateContent', body);
    const { error } = (await answer.json()) as { error: { code: number; message: string; status: string; details: { fieldViolations?: { field: string }[] }[] } }; // prettier-ignore
    expect([body, answer.status, error.code, error.status]).toEqual([body, 400, 400, 'INVALID_ARGUMENT']);
    expect(error.message).toMatch(message);
    if (field !== undefined) expect([body, error.details[1]?.fieldViolations?.[0]?.field]).toEqual([body, field]);
  }
  expect((await post('models/none:generateContent', { contents })).status).toBe(404);
  expect((await post('models/tiny:dance', { contents })).status).toBe(404);
  expect((await post('models/tiny:generateContent?alt=sse', { contents })).status).toBe(400);
  expect((await post('models/tiny:generateContent?alt=xml', { contents })).status).toBe(400);
  expect((await post('models/vectors:generateContent', { contents })).status).toBe(400);
  expect((await post('models/tiny:generateContent', '{')).status).toBe(400);
});

test('schemas in capitals', () => {
  expect(
    jsonSchemaOf({ type: 'string', format: 'date-time', minLength: '3', description: 'd', example: 'e' }, 's'),
  ).toEqual({
    type: 'string',
    format: 'date-time',
    minLength: 3,
    description: 'd',
    examples: ['e'],
  });
  expect(jsonSchemaOf({ anyOf: [{ type: 'NUMBER' }, { type: 'NULL' }], title: 't' }, 's')).toEqual({ anyOf: [{ type: 'number' }, { type: 'null' }], title: 't' }); // prettier-ignore
  for (const wrong of [
    null,
    1,
    [],
    { type: 1 },
    { nullable: 'x' },
    { minItems: -1 },
    { minItems: 'a' },
    { items: [] },
    { anyOf: {} },
    { not: {} },
    { properties: [] },
    { propertyOrdering: ['a'] },
    { properties: {}, propertyOrdering: 1 },
  ]) {
    // prettier-ignore
    expect(() => jsonSchemaOf(wrong, 's')).toThrow(/^s/);
  }
});

/** a PNG of one pixel */
const PIXEL = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';

const bodies: [path: string, schema: z.ZodType, body: object][] = [
  [
    'models/tiny:generateContent',
    generateBody,
    {
      model: 'models/tiny',
      contents: [
        { role: 'user', parts: [{ text: 'x' }, { inlineData: { mimeType: 'image/png', data: PIXEL } }] },
        { role: 'model', parts: [{ text: 'y' }, { functionCall: { id: 'a', name: 'f', args: {} } }] },
        { role: 'user', parts: [{ functionResponse: { id: 'a', name: 'f', response: {} } }] },
      ],
      systemInstruction: { role: 'user', parts: [{ text: 'z' }] },
      generationConfig: {
        ...sampling,
        maxOutputTokens: 1,
        candidateCount: 1,
        stopSequences: ['x'],
        presencePenalty: 0.1,
        frequencyPenalty: 0.1,
        responseMimeType: 'text/plain',
        responseLogprobs: true,
        logprobs: 1,
        responseModalities: ['TEXT'],
        thinkingConfig: { thinkingBudget: 0, includeThoughts: false },
      },
      tools: [{ functionDeclarations: [{ name: 'f', description: 'd', parameters: { type: 'OBJECT' } }] }],
      toolConfig: { functionCallingConfig: { mode: 'VALIDATED', allowedFunctionNames: ['f'] } },
      safetySettings: [{ category: 'HARM_CATEGORY_HARASSMENT', threshold: 'BLOCK_NONE' }],
    },
  ],
  [
    'models/tiny:countTokens',
    countBody,
    { model: 'models/tiny', contents: [{ role: 'user', parts: [{ text: 'x' }] }] },
  ],
  [
    'models/vectors:embedContent',
    embedBody,
    { model: 'models/vectors', content: { parts: [{ text: 'x' }] }, taskType: 'RETRIEVAL_DOCUMENT', title: 't', outputDimensionality: 8 }, // prettier-ignore
  ],
  ['models/vectors:batchEmbedContents', batchEmbedBody(2048), { requests: [{ content: { parts: [{ text: 'x' }] } }] }],
];

test.each(bodies)('%s: every wrong type is a 400', async (path, schema, body) => {
  expect(schema.safeParse(body).success).toBe(true);
  expect((await post(path, body)).status).toBe(200);
  const all = [...wrongOnes(body, ['args', 'response', 'parameters'])];
  const work = all.values();
  const worker = async () => {
    for (const { where, body: wrong } of work) {
      const answer = await post(path, wrong);
      const told: unknown = await answer.json();
      const isGood = schema.safeParse(wrong).success;
      expect([where, answer.status]).toEqual([where, isGood ? expect.any(Number) : 400]);
      expect([where, [200, 400].includes(answer.status)]).toEqual([where, true]);
      if (answer.status !== 200) expect(told).toMatchObject({ error: { code: 400, status: 'INVALID_ARGUMENT' } });
    }
  };
  await Promise.all(Array.from({ length: 8 }, worker));
  expect(all.length).toBeGreaterThan(20);
});
