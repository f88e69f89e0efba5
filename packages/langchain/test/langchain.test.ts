// The chat model and the embeddings under LangChain's own methods: that they give what gemma-native gives, in LangChain's forms. The model
// is the demonstration model, with its adapter for tools and JSON.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { BaseCallbackHandler } from '@langchain/core/callbacks/base';
import { InMemoryCache } from '@langchain/core/caches';
import { ContextOverflowError, getRetryable } from '@langchain/core/errors';
import { load } from '@langchain/core/load';
import { AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage } from '@langchain/core/messages';
import { StringOutputParser } from '@langchain/core/output_parsers';
import { ChatPromptTemplate } from '@langchain/core/prompts';
import { tool } from '@langchain/core/tools';
import { Gemma, type Message } from 'gemma-native';
import { z } from 'zod';
import { data, rejection, root, tiny, until } from '../../../test/api/helpers.js';
import { schema as pictureSchema } from '../../../test/demo/lessons.cjs';
import { heldOutPictures } from '../../../test/demo/pictures.cjs';
import { ChatGemma, GemmaEmbeddings } from '../src/index.js';
import { runAgent } from './agent.js';

const pictures = heldOutPictures();
const items = JSON.parse(readFileSync(join(root, 'test', 'demo', 'heldout.json'), 'utf8')) as {
  kind: string;
  images: string[];
  question: string;
  answer: string;
}[];
const seen = items.find(({ kind }) => kind === 'describe');
if (!seen) throw new Error('no picture');
const { question, answer } = seen;
const picture = new Uint8Array(pictures.get(seen.images[0] ?? '') ?? []);
const base64 = Buffer.from(picture).toString('base64');

let gemma: Gemma;
let chat: ChatGemma;
let taught: ChatGemma;
beforeAll(async () => {
  gemma = await Gemma.load('demo', { adapters: { tools: Gemma.demoAdapter } });
  chat = new ChatGemma({ model: gemma, temperature: 0 });
  taught = new ChatGemma({ model: gemma, temperature: 0, adapter: 'tools' });
});
afterAll(() => gemma.dispose());

const wild = { temperature: 2, topK: 0, topP: 1, seed: 7, maxOutputTokens: 40 };
const story = 'Tell me a story.';
const sum = 'What is 417 plus 311?';

const numbers = z.object({ a: z.int().min(0).max(999), b: z.int().min(0).max(999) });
const add = tool(({ a, b }) => a + b, { name: 'add', description: 'Adds two numbers', schema: numbers });

async function chunksOf(stream: AsyncIterable<AIMessageChunk>): Promise<AIMessageChunk[]> {
  const chunks: AIMessageChunk[] = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

function whole(chunks: readonly AIMessageChunk[]): AIMessageChunk {
  const [first, ...others] = chunks;
  if (!first) throw new Error('no chunk');
  return others.reduce((message, chunk) => message.concat(chunk), first);
}

describe('text', () => {
  test('is what gemma-native writes with the same seed: invoke, stream, batch, options', async () => {
    const bare = await gemma.generate(story, wild);
    const model = new ChatGemma({ model: gemma, ...wild });
    const message = await model.invoke(story);
    expect(message).toBeInstanceOf(AIMessage);
    expect(message.content).toBe(bare.text);
    const { inputTokens, outputTokens } = bare.usage;
    const usage = {
      input_tokens: inputTokens,
      output_tokens: outputTokens,
      total_tokens: inputTokens + outputTokens,
      input_token_details: { cache_read: expect.any(Number), image: 0 },
    };
    const metadata = { model_name: model.model, finish_reason: bare.finishReason, seed: 7 };
    expect(message).toMatchObject({ usage_metadata: usage, response_metadata: metadata });
    const chunks = await chunksOf(await model.stream(story));
    expect(chunks.length).toBeGreaterThan(10);
    const streamed = whole(chunks);
    expect(streamed.content).toBe(bare.text);
    expect(streamed).toMatchObject({ usage_metadata: usage, response_metadata: metadata });
    const other = await chat.invoke(story, { ...wild });
    expect(other.content).toBe(bare.text);
    const batch = await chat.batch(['Hello!', 'Count to five.', 'Thank you!']);
    const alone = await Promise.all(
      ['Hello!', 'Count to five.', 'Thank you!'].map((text) => gemma.generate(text, { temperature: 0 })),
    );
    expect(batch.map(({ content }) => content)).toEqual(alone.map(({ text }) => text));
  });

  test('stops, log-probabilities, tokens', async () => {
    const message = await chat.invoke('Count to five.', { stop: ['three'], logprobs: 1 });
    expect(message.content).toBe('One, two, ');
    expect(message.response_metadata).toMatchObject({ finish_reason: 'stop', stop_sequence: 'three' });
    expect(message.response_metadata.logprobs).toEqual(
      (await gemma.generate('Count to five.', { temperature: 0, stopSequences: ['three'], logprobs: 1 })).logprobs,
    );
    expect(await chat.getNumTokens('Count to five.')).toBe((await gemma.tokenize('Count to five.')).length);
  });

  test('a conversation; messages of one role in a row are one', async () => {
    const messages = [
      new SystemMessage('Be brief.'),
      new SystemMessage('Be kind.'),
      new HumanMessage('Hello!'),
      new AIMessage('Hello!'),
      new HumanMessage({
        content: [
          { type: 'text', text: 'Count to ' },
          { type: 'text', text: 'five.' },
        ],
      }),
      new AIMessage('One, two,'),
    ];
    const bare: Message[] = [
      { role: 'system', content: 'Be brief.\n\nBe kind.' },
      { role: 'user', content: 'Hello!' },
      { role: 'assistant', content: 'Hello!' },
      { role: 'user', content: 'Count to five.' },
      { role: 'assistant', content: 'One, two,' },
    ];
    const expected = await gemma.generate(bare, { temperature: 0, maxOutputTokens: 30 });
    const found = await chat.invoke(messages, { maxOutputTokens: 30 });
    expect(found.content).toBe(expected.text);
    expect(found.usage_metadata).toMatchObject({ input_tokens: expected.usage.inputTokens });
  });

  test('in a chain', async () => {
    const prompt = ChatPromptTemplate.fromMessages([['human', 'What is the capital of {country}?']]);
    const chain = prompt.pipe(chat).pipe(new StringOutputParser());
    expect(await chain.invoke({ country: 'France' })).toBe('The capital of France is Paris.');
  });

  test('events, callbacks and a cache', async () => {
    const tokens: string[] = [];
    const ends: unknown[] = [];
    const handler = BaseCallbackHandler.fromMethods({
      handleLLMNewToken: (token) => void tokens.push(token),
      handleLLMEnd: (output) => void ends.push(output.llmOutput),
    });
    const chunks = await chunksOf(await chat.stream('Count to five.', { callbacks: [handler] }));
    const { content, usage_metadata } = whole(chunks);
    const { output_tokens: completionTokens } = usage_metadata as unknown as { output_tokens: number };
    expect(tokens.join('')).toBe(content);
    expect(ends).toMatchObject([{ tokenUsage: { completionTokens } }]);
    const types = new Set<string>();
    for await (const { event } of chat.streamEvents('Count to five.', { version: 'v2' })) types.add(event);
    expect([...types]).toEqual(['on_chat_model_start', 'on_chat_model_stream', 'on_chat_model_end']);
    const events = chat.streamEvents('Count to five.');
    let text = '';
    for await (const delta of events.text) text += delta;
    expect(text).toBe(content);
    const cached = new ChatGemma({ model: gemma, ...wild, seed: undefined, cache: new InMemoryCache() });
    const first = await cached.invoke(story);
    expect((await cached.invoke(story)).content).toBe(first.content);
    expect((await cached.invoke(story, { seed: 1 })).content).not.toBe(first.content);
  });

  test('what it is', () => {
    expect(chat._llmType()).toBe('gemma-native');
    expect(chat.getLsParams({ stop: ['x'] })).toEqual({
      ls_provider: 'gemma-native',
      ls_model_name: chat.model,
      ls_model_type: 'chat',
      ls_temperature: 0,
      ls_stop: ['x'],
    });
    expect(chat.profile).toMatchObject({
      imageInputs: true,
      toolCalling: true,
      maxInputTokens: gemma.info.contextSize,
    });
    // A loaded model cannot be written down; a name can, without its secrets.
    expect(chat.toJSON()).toMatchObject({ type: 'not_implemented' });
    const named = new ChatGemma({
      model: tiny,
      temperature: 0,
      load: { contextSize: 512, hub: { token: 'hf_secret' } },
    });
    const json = JSON.stringify(named);
    expect(json).not.toContain('hf_secret');
    expect(JSON.parse(json)).toMatchObject({
      type: 'constructor',
      id: ['langchain', 'chat_models', 'gemma-native', 'ChatGemma'],
      kwargs: { temperature: 0, model: tiny },
    });
  });

  test('is made again from what was written down', async () => {
    await using named = new ChatGemma({ model: tiny, temperature: 0, maxOutputTokens: 3, load: { contextSize: 512 } });
    const again = await load<ChatGemma>(JSON.stringify(named), {
      importMap: { 'chat_models__gemma-native': { ChatGemma } },
    });
    expect(again).toBeInstanceOf(ChatGemma);
    expect((await again.invoke('Hi')).content).toBe((await named.invoke('Hi')).content);
    expect((await again.gemma()).info.contextSize).toBe(512);
    await again.dispose();
  });
});

describe('pictures', () => {
  const ask = async (block: object, model = chat) =>
    (await model.invoke([new HumanMessage({ content: [block as { type: 'text' }, { type: 'text', text: question }] })]))
      .content;
  const url = `data:image/webp;base64,${base64}`;

  test.each<[string, object]>([
    ['a standard block, base64', { type: 'image', data: base64, mimeType: 'image/webp' }],
    ['a standard block, bytes', { type: 'image', data: picture, mimeType: 'image/webp' }],
    ['a standard block, data: URL', { type: 'image', url }],
    ['a block of LangChain 0.3', { type: 'image', source_type: 'base64', data: base64, mime_type: 'image/webp' }],
    ['OpenAI’s', { type: 'image_url', image_url: { url } }],
    ['OpenAI’s, short', { type: 'image_url', image_url: url }],
    ['Anthropic’s', { type: 'image', source: { type: 'base64', media_type: 'image/webp', data: base64 } }],
  ])('%s', async (_, block) => {
    expect(await ask(block)).toBe(answer);
  });

  test('URLs and paths, as far as a model may open them', async () => {
    const server = createServer((_, response) => response.end(picture));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const remote = { type: 'image', url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/a.webp` };
    try {
      expect(await ask(remote, new ChatGemma({ model: gemma, temperature: 0, allowRemote: 'private' }))).toBe(answer);
      for (const model of [chat, new ChatGemma({ model: gemma, allowRemote: false })]) {
        expect(await rejection(ask(remote, model))).toMatchObject({ code: 'ERR_IMAGE', detail: 'SSRF_BLOCKED' });
      }
    } finally {
      server.close();
    }
    const local = { type: 'image_url', image_url: { url: join(data, 'images', 'photo.png') } };
    expect(await rejection(ask(local))).toMatchObject({ code: 'ERR_IMAGE', detail: 'LOCAL_BLOCKED' });
    expect(await ask(local, new ChatGemma({ model: gemma, temperature: 0, allowLocal: true }))).not.toBe('');
  });

  test('what is no picture is an error that names the place', async () => {
    expect(await rejection(ask({ type: 'audio', data: 'AAAA', mimeType: 'audio/wav' }))).toEqual(
      new TypeError('messages[0].content[0]: expected a text or a picture, found a block of type audio'),
    );
    expect(await rejection(ask({ type: 'image', fileId: 'x' }))).toBeInstanceOf(TypeError);
  });
});

describe('tools', () => {
  test.each(['v0', 'v1'] as const)(
    'an agent: the model calls, LangChain runs, the model answers (%s)',
    async (form) => {
      const agent = taught.bindTools([add], { outputVersion: form });
      const messages = await runAgent(agent, add, sum);
      expect(messages.map((message) => message.getType())).toEqual(['human', 'ai', 'tool', 'ai']);
      expect(messages[1]).toMatchObject({
        tool_calls: [
          { name: 'add', args: { a: 417, b: 311 }, type: 'tool_call', id: expect.stringMatching(/^\w{9}$/) },
        ],
        response_metadata: { finish_reason: 'tool-calls' },
      });
      expect(messages.at(-1)?.text).toBe('417 plus 311 is 728.');
      expect(messages.at(-1)?.contentBlocks).toMatchObject([{ type: 'text', text: '417 plus 311 is 728.' }]);
    },
  );

  test('a streamed call', async () => {
    const chunks = await chunksOf(await taught.bindTools([add]).stream(sum));
    const calls = chunks.flatMap(({ tool_call_chunks: found = [] }) => found);
    expect(calls).toMatchObject([{ name: 'add', index: 0, type: 'tool_call_chunk', id: expect.any(String) }]);
    expect(JSON.parse(calls[0]?.args ?? '')).toEqual({ a: 417, b: 311 });
    expect(whole(chunks).tool_calls).toMatchObject([{ name: 'add', args: { a: 417, b: 311 } }]);
  });

  test('choices, and tools in other forms', async () => {
    const schema = numbers.toJSONSchema() as Record<string, unknown>;
    const forms = [
      add,
      { type: 'function' as const, function: { name: 'add', description: 'Adds', parameters: schema } },
      { name: 'add', description: 'Adds', schema: numbers },
      { name: 'add', description: 'Adds', input_schema: schema },
    ];
    for (const form of forms) {
      for (const choice of ['any', 'required', 'add', { type: 'function', function: { name: 'add' } }]) {
        const { tool_calls: calls } = await taught.bindTools([form], { tool_choice: choice }).invoke('Hello!');
        expect(calls?.map(({ name }) => name)).toContain('add');
      }
    }
    const { tool_calls: calls } = await taught.bindTools([add], { tool_choice: 'none' }).invoke(sum);
    expect(calls).toEqual([]);
    const wrong = taught.bindTools([add], { tool_choice: 'subtract' }).invoke(sum);
    expect(await rejection(wrong)).toBeInstanceOf(RangeError);
    expect(() => taught.bindTools([{ name: 'x' }])).toThrow(TypeError);
    expect(await rejection(taught.bindTools([add, add]).invoke(sum))).toBeInstanceOf(TypeError);
  });

  test('results: data, a failure, a picture', async () => {
    const call = { id: 'one', name: 'look', args: {}, type: 'tool_call' as const };
    const ask = (result: ConstructorParameters<typeof ToolMessage>[0]) =>
      chat.invoke([
        new HumanMessage('Look.'),
        new AIMessage({ content: '', tool_calls: [call] }),
        new ToolMessage(result),
        new HumanMessage(question),
      ]);
    const bare = (content: unknown, ...shown: Message[]) =>
      gemma.generate(
        [
          { role: 'user', content: 'Look.' },
          { role: 'assistant', content: '', toolCalls: [{ id: 'one', name: 'look', input: {} }] },
          { role: 'tool', toolCallId: 'one', content },
          ...(shown.length > 0 ? shown : [{ role: 'user' as const, content: question }]),
        ],
        { temperature: 0 },
      );
    const same = async (message: AIMessage, expected: Awaited<ReturnType<typeof bare>>) => {
      expect(message.content).toBe(expected.text);
      expect(message.usage_metadata).toMatchObject({ input_tokens: expected.usage.inputTokens });
    };
    const fields = { tool_call_id: 'one', name: 'look' };
    await same(await ask({ ...fields, content: '{"x":[1,2]}' }), await bare({ x: [1, 2] }));
    await same(await ask({ ...fields, content: 'no', status: 'error' }), await bare({ error: 'no' }));
    const image = { type: 'image', data: base64, mimeType: 'image/webp' };
    const shown: Message = {
      role: 'user',
      content: [
        { type: 'text', text: 'Picture 1 of look:' },
        { type: 'image', image: picture },
        { type: 'text', text: `\n\n${question}` },
      ],
    };
    const content = [{ type: 'text', text: 'Here:' }, image];
    await same(await ask({ ...fields, content }), await bare(['Here:', '(picture 1, shown below)'], shown));
  });
});

describe('structured output', () => {
  const shapes = z.fromJSONSchema(pictureSchema as Parameters<typeof z.fromJSONSchema>[0]) as z.ZodObject;
  const schema = pictureSchema as Record<string, unknown>;
  const messages = [
    new HumanMessage({
      content: [
        { type: 'image', data: base64, mimeType: 'image/webp' },
        { type: 'text', text: 'Describe the picture as JSON.' },
      ],
    }),
  ];
  const bare = async () =>
    (
      await gemma.generate(
        [
          {
            role: 'user',
            content: [
              { type: 'image', image: picture },
              { type: 'text', text: 'Describe the picture as JSON.' },
            ],
          },
        ],
        { adapter: 'tools', temperature: 0, schema: pictureSchema },
      )
    ).object;

  test('by a schema of zod, by JSON Schema, as any JSON, with the message beside', async () => {
    const object = await bare();
    expect(await taught.withStructuredOutput(shapes).invoke(messages)).toEqual(object);
    expect(await taught.withStructuredOutput(schema).invoke(messages)).toEqual(object);
    expect(await taught.withStructuredOutput(schema, { method: 'jsonMode' }).invoke(messages)).toEqual(object);
    const { raw, parsed } = await taught.withStructuredOutput(shapes, { includeRaw: true }).invoke(messages);
    expect(parsed).toEqual(object);
    expect(JSON.parse(raw.content as string)).toEqual(object);
  });

  test('as the arguments of a call', async () => {
    const asked = taught.withStructuredOutput(numbers, { method: 'functionCalling', name: 'add' });
    const found: z.infer<typeof numbers> = await asked.invoke(sum);
    expect(found).toEqual({ a: 417, b: 311 });
  });

  test('by choices and patterns of gemma-native', async () => {
    expect((await chat.invoke('Hello!', { choices: ['red', 'blue'] })).content).toMatch(/^(red|blue)$/);
    expect((await chat.invoke('Hello!', { regex: '[xy]{3}' })).content).toMatch(/^[xy]{3}$/);
  });
});

describe('ends', () => {
  let slow: Gemma;
  let endless: ChatGemma;
  beforeAll(async () => {
    slow = await Gemma.load(tiny, { contextSize: 4096 });
    endless = new ChatGemma({
      model: slow,
      temperature: 2,
      topK: 0,
      topP: 1,
      logitBias: Object.fromEntries(slow.info.endTokens.map((id) => [id, -Infinity])),
    });
  });
  afterAll(() => slow.dispose());
  const idle = () => until(() => slow.stats().running + slow.stats().waiting === 0);

  test('an abort: before, during invoke, during stream; a reader who leaves', async () => {
    await expect(endless.invoke('Hi', { signal: AbortSignal.abort(new Error('enough')) })).rejects.toThrow();
    const controller = new AbortController();
    const asked = rejection(endless.invoke('Hi', { signal: controller.signal }));
    await until(() => slow.stats().running > 0);
    controller.abort(new Error('enough'));
    expect(await asked).toEqual(new Error('enough'));
    await idle();
    const other = new AbortController();
    const streaming = async () => {
      for await (const chunk of await endless.stream('Hi', { signal: other.signal })) {
        if (chunk.content !== '') other.abort(new Error('enough'));
      }
    };
    await expect(streaming()).rejects.toThrow();
    await idle();
    for await (const chunk of await endless.stream('Hi')) if (chunk.content !== '') break;
    await idle();
  });

  test('errors', async () => {
    const full = await rejection(chat.invoke('Hi', { maxOutputTokens: 10_000_000 }));
    expect(ContextOverflowError.isInstance(full)).toBe(true);
    expect(full).toMatchObject({ cause: { code: 'ERR_CONTEXT_FULL' } });
    expect(await rejection(chat.invoke('Hi', { topP: 2 }))).toBeInstanceOf(RangeError);
    expect(await rejection(chat.stream('Hi', { topP: 2 }))).toBeInstanceOf(RangeError);
    expect(await rejection(chat.invoke('Hi', { maxTokens: 2 } as object))).toEqual(
      new TypeError('maxTokens: no such option; maxOutputTokens is meant'),
    );
    expect(() => new ChatGemma({ model: gemma, numCtx: 512 } as { model: Gemma })).toThrow(/contextSize/);
    expect(() => new ChatGemma({ model: '' })).toThrow(TypeError);
    const missing = await rejection(new ChatGemma({ model: './no-such-model.gguf' }).invoke('Hi'));
    expect(missing).toMatchObject({ code: 'ERR_FILE' });
    expect(getRetryable(missing)).toBe(false);
  });

  test('too many at once is marked as worth another try', async () => {
    const busy = await Gemma.load(tiny, { contextSize: 2048, maxQueue: 0 });
    const model = new ChatGemma({ model: busy, maxOutputTokens: 50 });
    const calls = await Promise.allSettled(Array.from({ length: 80 }, () => model.invoke('Hi')));
    const reasons = calls.flatMap((call) => (call.status === 'rejected' ? [call.reason as unknown] : []));
    expect(reasons.length).toBeGreaterThan(0);
    for (const reason of reasons) expect(reason).toMatchObject({ code: 'ERR_QUEUE_FULL' });
    expect(reasons.every((reason) => getRetryable(reason))).toBe(true);
    await busy.dispose();
  });

  test('a model that is loaded here: once, when it is needed; and freed', async () => {
    const progress: number[] = [];
    const onProgress = (fraction: number) => void progress.push(fraction);
    const own = new ChatGemma({ model: tiny, maxOutputTokens: 2, load: { contextSize: 256, onProgress } });
    expect(progress).toEqual([]);
    const controller = new AbortController();
    const left = rejection(own.invoke('Hi', { signal: controller.signal }));
    const stays = Promise.all([own.invoke('Hi'), own.invoke('Ho')]);
    controller.abort(new Error('left'));
    expect(await left).toEqual(new Error('left'));
    await stays;
    expect(progress.filter((fraction) => fraction === 1)).toHaveLength(1);
    await own.dispose();
    await own.dispose();
    expect(await rejection(own.invoke('Hi'))).toMatchObject({ code: 'ERR_DISPOSED' });
    const other = new ChatGemma({ model: tiny });
    const waiting = rejection(other.invoke('Hi'));
    await other.dispose();
    expect(await waiting).toMatchObject({ code: 'ERR_DISPOSED' });
  });
});

describe('embeddings', () => {
  const path = join(data, 'embedding-f16.gguf');
  const texts = ['Leaves fall.', 'A dog barks.', 'Rain.'];
  const rowsOf = ({ data: all, shape: [rows, width] }: { data: Float32Array; shape: [number, number] }) =>
    Array.from({ length: rows }, (_, i) => Array.from(all.subarray(i * width, (i + 1) * width)));

  test('are those of gemma-native, for the model’s tasks', async () => {
    await using embeddings = new GemmaEmbeddings({ model: path, dimensions: 8 });
    const embedder = await embeddings.gemma();
    expect(await embeddings.embedDocuments(texts)).toEqual(
      rowsOf(await embedder.embed(texts, { task: 'document', dimensions: 8 })),
    );
    expect(await embeddings.embedQuery('Rain.')).toEqual(
      rowsOf(await embedder.embed('Rain.', { task: 'query', dimensions: 8 }))[0],
    );
    expect(await embeddings.embedDocuments([])).toEqual([]);
    const other = new GemmaEmbeddings({ model: embedder, documentTask: null, queryTask: 'clustering' });
    expect(await other.embedDocuments(texts)).toEqual(rowsOf(await embedder.embed(texts)));
    expect(await other.embedQuery('Rain.')).toEqual(rowsOf(await embedder.embed('Rain.', { task: 'clustering' }))[0]);
    const long = Array.from({ length: 2100 }, (_, i) => `${i}`);
    expect((await other.embedDocuments(long))[2099]).toEqual(rowsOf(await embedder.embed('2099'))[0]);
  });

  test('of a model without tasks', async () => {
    const embeddings = new GemmaEmbeddings({ model: gemma });
    expect(await embeddings.embedQuery('Rain.')).toEqual(rowsOf(await gemma.embed('Rain.'))[0]);
    const asked = new GemmaEmbeddings({ model: gemma, queryTask: 'query' });
    expect(await rejection(asked.embedQuery('Rain.'))).toMatchObject({ detail: 'NO_TASKS' });
  });
});
