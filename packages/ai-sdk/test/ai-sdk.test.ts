// The provider under the AI SDK's own functions: that they give what gemma-native gives by itself, and that parts, errors and limits are
// those of the specification. The model is the demonstration model, with its adapter for tools and JSON.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type {
  LanguageModelV4,
  LanguageModelV4CallOptions,
  LanguageModelV4Prompt,
  LanguageModelV4StreamPart,
} from '@ai-sdk/provider';
import {
  APICallError,
  createProviderRegistry,
  embed,
  embedMany,
  experimental_decide as decide,
  generateObject,
  generateText,
  InvalidArgumentError,
  InvalidPromptError,
  NoSuchModelError,
  Output,
  rerank,
  stepCountIs,
  streamObject,
  streamText,
  tool,
  TooManyEmbeddingValuesForCallError,
  UnsupportedFunctionalityError,
  type ModelMessage,
} from 'ai';
import { Gemma, GemmaError, type Message } from 'gemma-native';
import { z } from 'zod';
import { data, realModel, rejection, root, tiny, until } from '../../../test/api/helpers.js';
import { schema as pictureSchema } from '../../../test/demo/lessons.cjs';
import { heldOutPictures } from '../../../test/demo/pictures.cjs';
import { createGemma, gemma as byName } from '../src/index.js';

const pictures = heldOutPictures();
const items = JSON.parse(readFileSync(join(root, 'test', 'demo', 'heldout.json'), 'utf8')) as {
  kind: string;
  images: string[];
  question: string;
  answer: string;
}[];
const seen = items.find(({ kind }) => kind === 'describe');
if (!seen) throw new Error('no picture');
const picture = new Uint8Array(pictures.get(seen.images[0] ?? '') ?? []);

let gemma: Gemma;
let provider: ReturnType<typeof createGemma>;
let model: LanguageModelV4;
let taught: LanguageModelV4;
beforeAll(async () => {
  gemma = await Gemma.load('demo', { adapters: { tools: Gemma.demoAdapter } });
  provider = createGemma();
  model = provider(gemma);
  taught = provider(gemma, { adapter: 'tools' });
});
afterAll(async () => {
  await provider.dispose();
  await gemma.dispose();
});

const wild = { temperature: 2, topK: 0, topP: 1, seed: 7, maxOutputTokens: 40 };
const story = 'Tell me a story.';
const user = (...content: Extract<LanguageModelV4Prompt[number], { role: 'user' }>['content']) =>
  ({ role: 'user', content }) as const;
const said = (text: string) => user({ type: 'text', text });

const numbers = z.object({ a: z.int().min(0).max(999), b: z.int().min(0).max(999) });
const add = tool({
  description: 'Adds two numbers',
  inputSchema: numbers,
  execute: ({ a, b }) => a + b,
});
const sum = { prompt: 'What is 417 plus 311?', temperature: 0 };

const declared: NonNullable<LanguageModelV4CallOptions['tools']>[number] = {
  type: 'function',
  name: 'add',
  description: 'Adds two numbers',
  inputSchema: {
    type: 'object',
    properties: { a: { type: 'integer' }, b: { type: 'integer' } },
    required: ['a', 'b'],
  },
};

async function partsOf(stream: ReadableStream<LanguageModelV4StreamPart>): Promise<LanguageModelV4StreamPart[]> {
  const parts: LanguageModelV4StreamPart[] = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

async function streamed(asked: LanguageModelV4, options: Partial<LanguageModelV4CallOptions>) {
  const { stream } = await asked.doStream({ prompt: [said('What is 417 plus 311?')], temperature: 0, ...options });
  return partsOf(stream);
}

// Each part in a word; pieces of text in a row are one.
function shape(parts: readonly LanguageModelV4StreamPart[]): string[] {
  return parts.map(({ type }) => type).filter((type, i, all) => type !== 'text-delta' || all[i - 1] !== type);
}

describe('text', () => {
  test('is what gemma-native writes with the same seed, whole and streamed', async () => {
    const bare = await gemma.generate(story, wild);
    const whole = await generateText({ model, prompt: story, ...wild });
    expect(whole.text).toBe(bare.text);
    expect(whole.finishReason).toBe(bare.finishReason);
    expect(whole.usage).toMatchObject({
      inputTokens: bare.usage.inputTokens,
      outputTokens: bare.usage.outputTokens,
      totalTokens: bare.usage.inputTokens + bare.usage.outputTokens,
    });
    expect(whole.providerMetadata?.gemma).toMatchObject({ seed: 7, imageTokens: 0 });
    expect(whole.response).toMatchObject({ modelId: model.modelId, id: expect.stringMatching(/^gemma-/) });
    const stream = streamText({ model, prompt: story, ...wild });
    let text = '';
    for await (const delta of stream.textStream) text += delta;
    expect(text).toBe(bare.text);
    expect(await stream.finishReason).toBe(bare.finishReason);
    expect((await stream.usage).outputTokens).toBe(bare.usage.outputTokens);
  });

  test('a seed that was drawn is told, and gives the text again', async () => {
    const { temperature, topK, topP, maxOutputTokens } = wild;
    const first = await generateText({ model, prompt: story, temperature, topK, topP, maxOutputTokens });
    const { seed } = first.providerMetadata?.gemma as { seed: number };
    expect((await generateText({ model, prompt: story, ...wild, seed })).text).toBe(first.text);
  });

  test('settings and options reach the engine', async () => {
    const stopped = await generateText({ model, prompt: 'Count to five.', temperature: 0, stopSequences: ['three'] });
    expect(stopped).toMatchObject({ text: 'One, two, ', finishReason: 'stop', rawFinishReason: 'stop' });
    expect(stopped.providerMetadata?.gemma).toMatchObject({ stopSequence: 'three' });
    const options = { minP: 0.3, repetitionPenalty: 1.4, logprobs: 2, stopTokens: ['e'] };
    const bare = await gemma.generate(story, { ...wild, ...options, presencePenalty: 1, frequencyPenalty: 0.5 });
    const asked = { ...wild, presencePenalty: 1, frequencyPenalty: 0.5 };
    const found = await generateText({ model, prompt: story, ...asked, providerOptions: { gemma: options } });
    expect(found.text).toBe(bare.text);
    expect(found.providerMetadata?.gemma?.logprobs).toEqual(bare.logprobs);
  });

  test('a conversation, with an answer that is begun', async () => {
    const messages: ModelMessage[] = [
      { role: 'user', content: 'Hello!' },
      { role: 'assistant', content: 'Hello!' },
      {
        role: 'user',
        content: [
          { type: 'text', text: 'Count to ' },
          { type: 'text', text: 'five.' },
        ],
      },
      { role: 'assistant', content: 'One, two,' },
    ];
    const bare: Message[] = [
      { role: 'system', content: 'Be brief.\n\nBe kind.' },
      { role: 'user', content: 'Hello!' },
      { role: 'assistant', content: 'Hello!' },
      { role: 'user', content: 'Count to five.' },
      { role: 'assistant', content: 'One, two,' },
    ];
    const instructions = ['Be brief.', 'Be kind.'].map((content) => ({ role: 'system' as const, content }));
    const { text, usage } = await generateText({ model, instructions, messages, temperature: 0, maxOutputTokens: 30 });
    const expected = await gemma.generate(bare, { temperature: 0, maxOutputTokens: 30 });
    expect({ text, input: usage.inputTokens }).toEqual({ text: expected.text, input: expected.usage.inputTokens });
  });

  test('messages of one role in a row are one', async () => {
    const messages: ModelMessage[] = [
      { role: 'user', content: 'Hello!' },
      { role: 'user', content: 'Count to five.' },
    ];
    const { usage } = await generateText({ model, messages, maxOutputTokens: 1 });
    expect(usage.inputTokens).toBe(await gemma.countTokens('Hello!\n\nCount to five.'));
  });

  test('of the real model, free and as a choice', async () => {
    const real = await Gemma.load(realModel(), { contextSize: 512 });
    try {
      const asked = { temperature: 1, seed: 3, maxOutputTokens: 8 };
      const messages: Message[] = [
        { role: 'system', content: 'You know planets.' },
        { role: 'user', content: 'Name one.' },
      ];
      const same = { model: provider(real), instructions: 'You know planets.', prompt: 'Name one.', ...asked };
      expect((await generateText(same)).text).toBe((await real.generate(messages, asked)).text);
      const choices = ['Mars', 'Venus', 'Jupiter'];
      const { object } = await real.generate(messages, { ...asked, choices });
      expect((await generateText({ ...same, providerOptions: { gemma: { choices } } })).text).toBe(object);
    } finally {
      await real.dispose();
    }
  });

  test('a registry finds it by its name', async () => {
    await using own = createGemma({ models: { small: gemma } });
    const registry = createProviderRegistry({ gemma: own });
    const { text } = await generateText({ model: registry.languageModel('gemma:small'), prompt: story, ...wild });
    expect(text).toBe((await gemma.generate(story, wild)).text);
  });
});

describe('pictures', () => {
  const { question, answer } = seen;
  const ask = async (image: Uint8Array | string | URL, mediaType = 'image/webp', asked = model) =>
    generateText({
      model: asked,
      messages: [
        {
          role: 'user',
          content: [
            { type: 'file', data: image, mediaType },
            { type: 'text', text: question },
          ],
        },
      ],
      temperature: 0,
      maxRetries: 0,
    });
  const base64 = Buffer.from(picture).toString('base64');

  test.each<[string, Uint8Array | string, string]>([
    ['bytes', picture, 'image/webp'],
    ['base64', base64, 'image/webp'],
    ['a data: URL', `data:image/webp;base64,${base64}`, 'image/webp'],
    ['any image/*', picture, 'image/*'],
    ['any image', picture, 'image'],
  ])('%s', async (_, image, mediaType) => {
    const { text, providerMetadata } = await ask(image, mediaType);
    expect(text).toBe(answer);
    expect(providerMetadata?.gemma).toMatchObject({ imageTokens: gemma.info.vision?.tokensPerImage });
  });

  test('URLs, as far as a model may open them', async () => {
    const server = createServer((_, response) => response.end(picture));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/a.webp`;
    try {
      expect((await ask(new URL(url), 'image/webp', provider(gemma, { allowRemote: 'private' }))).text).toBe(answer);
      for (const asked of [model, provider(gemma, { allowRemote: false })]) {
        const refused = await rejection(ask(new URL(url), 'image/webp', asked));
        expect(InvalidPromptError.isInstance(refused)).toBe(true);
        expect((refused as Error).cause).toMatchObject({ code: 'ERR_IMAGE', detail: 'SSRF_BLOCKED' });
      }
    } finally {
      server.close();
    }
    const file = pathToFileURL(join(data, 'images', 'photo.png'));
    expect((await ask(file, 'image/png', provider(gemma, { allowLocal: true }))).text).not.toBe('');
    await expect(ask(file, 'image/png')).rejects.toThrow();
    // Past the AI SDK, which would not pass it on.
    const prompt = [user({ type: 'file', data: { type: 'url', url: file }, mediaType: 'image/png' })];
    const refused = await rejection(Promise.resolve(model.doGenerate({ prompt })));
    expect((refused as Error).cause).toMatchObject({ code: 'ERR_IMAGE', detail: 'LOCAL_BLOCKED' });
  });

  test('a string is never a path', async () => {
    const path = join(data, 'images', 'photo.png');
    const prompt = [user({ type: 'file', data: { type: 'data', data: path }, mediaType: 'image/png' })];
    const open = provider(gemma, { allowLocal: true });
    expect(InvalidPromptError.isInstance(await rejection(Promise.resolve(open.doGenerate({ prompt }))))).toBe(true);
  });

  test('Pan & Scan', async () => {
    const wide = readFileSync(join(data, 'images', 'wide.png'));
    const messages: ModelMessage[] = [
      { role: 'user', content: [{ type: 'file', data: wide, mediaType: 'image/png' }] },
    ];
    const panAndScan = { minCropSize: 32 };
    const content = [{ type: 'image' as const, image: wide }];
    const bare = await gemma.generate([{ role: 'user', content }], { panAndScan, temperature: 0, maxOutputTokens: 20 });
    const asked = { model, messages, temperature: 0, maxOutputTokens: 20, providerOptions: { gemma: { panAndScan } } };
    const { text, usage } = await generateText(asked);
    expect({ text, n: usage.inputTokens }).toEqual({ text: bare.text, n: bare.usage.inputTokens });
    expect(bare.usage.imageTokens).toBeGreaterThan(gemma.info.vision?.tokensPerImage ?? Infinity);
  });

  test('text files are read as text, others refused', async () => {
    const file = { type: 'file', data: Buffer.from('Count to five.'), mediaType: 'text/plain' } as const;
    const { text } = await generateText({ model, messages: [{ role: 'user', content: [file] }], temperature: 0 });
    expect(text).toBe((await gemma.generate('Count to five.', { temperature: 0 })).text);
    const refused = await rejection(ask(new Uint8Array(9), 'application/pdf'));
    expect(UnsupportedFunctionalityError.isInstance(refused)).toBe(true);
  });

  test('in the result of a tool', async () => {
    const call = { toolCallId: 'one', toolName: 'look' };
    const prompt: LanguageModelV4Prompt = [
      said('Look.'),
      { role: 'assistant', content: [{ type: 'tool-call', ...call, input: {} }] },
      {
        role: 'tool',
        content: [
          {
            type: 'tool-result',
            ...call,
            output: {
              type: 'content',
              value: [
                { type: 'text', text: 'Here:' },
                { type: 'file', data: { type: 'data', data: picture }, mediaType: 'image/webp' },
              ],
            },
          },
        ],
      },
      said(question),
    ];
    const found = await model.doGenerate({ prompt, temperature: 0 });
    const bare = await gemma.generate(
      [
        { role: 'user', content: 'Look.' },
        { role: 'assistant', content: '', toolCalls: [{ id: 'one', name: 'look', input: {} }] },
        { role: 'tool', toolCallId: 'one', content: ['Here:', '(picture 1, shown below)'] },
        {
          role: 'user',
          content: [
            { type: 'text', text: 'Picture 1 of look:' },
            { type: 'image', image: picture },
            { type: 'text', text: `\n\n${question}` },
          ],
        },
      ],
      { temperature: 0 },
    );
    expect(found.content).toEqual([{ type: 'text', text: bare.text }]);
    expect(found.usage.inputTokens.total).toBe(bare.usage.inputTokens);
  });
});

describe('tools', () => {
  const options = { tools: { add }, ...sum };

  test('a loop', async () => {
    const { text, steps, usage } = await generateText({ ...options, model: taught, stopWhen: stepCountIs(3) });
    expect(text).toBe('417 plus 311 is 728.');
    expect(steps.map(({ finishReason }) => finishReason)).toEqual(['tool-calls', 'stop']);
    expect(steps[0]?.toolResults).toMatchObject([{ toolName: 'add', input: { a: 417, b: 311 }, output: 728 }]);
    const bare = await gemma.generate(sum.prompt, {
      tools: {
        add: {
          description: 'Adds two numbers',
          inputSchema: numbers,
          execute: ({ a, b }: { a: number; b: number }) => a + b,
        },
      },
      adapter: 'tools',
      temperature: 0,
    });
    expect(bare.text).toBe(text);
    expect(usage.outputTokens).toBe(bare.usage.outputTokens);
  });

  test('a streamed loop', async () => {
    const { stream } = streamText({ ...options, model: taught, stopWhen: stepCountIs(3) });
    const types: string[] = [];
    let text = '';
    for await (const part of stream) {
      if (part.type === 'text-delta') text += part.text;
      if (part.type !== 'text-delta' || types.at(-1) !== part.type) types.push(part.type);
    }
    expect(text).toBe('417 plus 311 is 728.');
    const call = ['tool-input-start', 'tool-input-delta', 'tool-input-end', 'tool-call', 'tool-result'];
    const said = ['text-start', 'text-delta', 'text-end'];
    const step = (...parts: string[]) => ['start-step', ...parts, 'finish-step'];
    expect(types).toEqual(['start', ...step(...call), ...step(...said), 'finish']);
  });

  test('the order of a stream’s parts', async () => {
    const parts = await streamed(taught, { tools: [declared] });
    expect(shape(parts)).toEqual([
      ...['stream-start', 'response-metadata'],
      ...['tool-input-start', 'tool-input-delta', 'tool-input-end', 'tool-call'],
      'finish',
    ]);
    const [, , start, delta, , call, finish] = parts;
    expect(start).toMatchObject({ toolName: 'add' });
    expect(call).toMatchObject({ toolName: 'add', input: (delta as { delta: string }).delta });
    expect(JSON.parse((call as { input: string }).input)).toEqual({ a: 417, b: 311 });
    expect(
      new Set(parts.flatMap((part) => ('toolCallId' in part ? part.toolCallId : 'id' in part ? part.id : []))),
    ).toEqual(new Set([(call as { toolCallId: string }).toolCallId, (parts[1] as { id: string }).id]));
    expect(finish).toMatchObject({ finishReason: { unified: 'tool-calls', raw: 'tool-calls' } });
    // Without a tool, and with the engine's own parts between.
    const plain = await streamed(model, { prompt: [said('Count to five.')], includeRawChunks: true });
    expect(shape(plain.filter(({ type }) => type !== 'raw'))).toEqual([
      ...['stream-start', 'response-metadata', 'text-start', 'text-delta', 'text-end', 'finish'],
    ]);
    expect(plain.filter(({ type }) => type === 'raw').length).toBe(
      plain.filter(({ type }) => type === 'text-delta').length,
    );
  });

  test('choices', async () => {
    const free = { tools: { add, other: add }, temperature: 0, model: taught, prompt: 'Hello!', maxOutputTokens: 60 };
    const calls = async (toolChoice: 'required' | 'none' | 'auto' | { type: 'tool'; toolName: 'other' }) =>
      (await generateText({ ...free, toolChoice })).toolCalls.map(({ toolName }) => toolName);
    expect(await calls('none')).toEqual([]);
    expect((await calls('required')).length).toBeGreaterThan(0);
    expect(await calls({ type: 'tool', toolName: 'other' })).toEqual(['other']);
  });

  test('a tool that fails, and one that is not run', async () => {
    const failing = tool({ ...add, execute: () => Promise.reject(new Error('no numbers today')) });
    const { steps } = await generateText({
      ...options,
      model: taught,
      tools: { add: failing },
      stopWhen: stepCountIs(2),
      maxOutputTokens: 60,
    });
    expect(steps).toHaveLength(2);
    expect(steps[0]?.content).toMatchObject([{ type: 'tool-call' }, { type: 'tool-error' }]);
    const left = { description: 'Adds two numbers', inputSchema: numbers };
    const result = await generateText({ ...options, model: taught, tools: { add: left } });
    expect(result).toMatchObject({
      finishReason: 'tool-calls',
      toolResults: [],
      toolCalls: [{ input: { a: 417, b: 311 } }],
    });
  });

  test('what the model does not know is a warning', async () => {
    const { warnings } = await model.doGenerate({
      prompt: [
        user({ type: 'text', text: 'Hello!', providerOptions: { gemma: { panAndScan: true } } }),
        {
          role: 'assistant',
          content: [
            { type: 'reasoning', text: 'hm' },
            { type: 'text', text: 'Hello!' },
          ],
        },
        said('How are you?'),
      ],
      reasoning: 'high',
      maxOutputTokens: 1,
      tools: [{ type: 'provider', id: 'other.search', name: 'search', args: {} }],
    });
    expect(warnings.map((warning) => 'feature' in warning && warning.feature)).toEqual([
      'reasoning parts of the assistant',
      'provider-defined tool other.search',
      'reasoning',
      'providerOptions.gemma of messages and parts',
    ]);
  });
});

describe('structured output', () => {
  const shapes = z.fromJSONSchema(pictureSchema as Parameters<typeof z.fromJSONSchema>[0]);
  const messages: ModelMessage[] = [
    {
      role: 'user',
      content: [
        { type: 'file', data: picture, mediaType: 'image/webp' },
        { type: 'text', text: 'Describe the picture as JSON.' },
      ],
    },
  ];
  const bare = () =>
    gemma.generate(
      [
        {
          role: 'user',
          content: [
            { type: 'image', image: picture },
            { type: 'text', text: 'Describe the picture as JSON.' },
          ],
        },
      ],
      { adapter: 'tools', temperature: 0, schema: shapes },
    );

  test('generateObject, streamObject and Output.object give what gemma-native gives', async () => {
    const { object } = await bare();
    const asked = { model: taught, messages, temperature: 0 };
    expect((await generateObject({ ...asked, schema: shapes })).object).toEqual(object);
    expect((await generateText({ ...asked, output: Output.object({ schema: shapes }) })).output).toEqual(object);
    const stream = streamObject({ ...asked, schema: shapes });
    const partial: unknown[] = [];
    for await (const part of stream.partialObjectStream) partial.push(part);
    expect(partial.length).toBeGreaterThan(3);
    expect(partial.at(-1)).toEqual(object);
    expect(await stream.object).toEqual(object);
  });

  test('any JSON, a choice, choices and a grammar of gemma-native', async () => {
    const asked = { model: taught, messages, temperature: 0, maxOutputTokens: 300 };
    const { output } = await generateText({ ...asked, output: Output.json() });
    expect(output).toEqual((await bare()).object);
    const options = ['red', 'green', 'blue'] as const;
    const choice = await generateText({ ...asked, output: Output.choice({ options: [...options] }) });
    expect(options).toContain(choice.output);
    const providerOptions = { gemma: { choices: [...options] } };
    expect(options).toContain((await generateText({ ...asked, providerOptions })).text);
    const regex = { gemma: { regex: '[xy]{3}' } };
    expect((await generateText({ ...asked, providerOptions: regex })).text).toMatch(/^[xy]{3}$/);
  });

  test('beside tools: calls while there are any, then the object', async () => {
    const output = Output.object({ schema: z.object({ sum: z.int().min(0).max(999) }) });
    const asked = { model: taught, tools: { add }, output, stopWhen: stepCountIs(3), ...sum };
    const whole = await generateText(asked);
    expect(whole.steps.map(({ finishReason }) => finishReason)).toEqual(['tool-calls', 'stop']);
    expect(whole.output.sum).toBeGreaterThanOrEqual(0);
    const stream = streamText(asked);
    let text = '';
    for await (const delta of stream.textStream) text += delta;
    expect(JSON.parse(text)).toEqual(whole.output);
    expect(await stream.output).toEqual(whole.output);
    expect(await stream.usage).toMatchObject({ outputTokens: whole.usage.outputTokens });
  });
});

describe('embeddings', () => {
  let embedder: Gemma;
  beforeAll(async () => {
    embedder = await Gemma.load(join(data, 'embedding-f16.gguf'));
  });
  afterAll(() => embedder.dispose());
  const values = ['Leaves fall.', 'A dog barks.', 'Rain.'];

  test('are those of gemma-native', async () => {
    const bare = await embedder.embed(values, { task: 'document', title: 'none' });
    const [, width] = bare.shape;
    const rows = values.map((_, i) => Array.from(bare.data.subarray(i * width, (i + 1) * width)));
    const asked = provider.embeddingModel(embedder, { task: 'document', title: 'none' });
    const many = await embedMany({ model: asked, values });
    expect(many.embeddings).toEqual(rows);
    expect(many.usage.tokens).toBe(bare.usage.inputTokens);
    const query = { gemma: { task: 'query', dimensions: 8 } };
    const one = await embed({ model: provider.embeddingModel(embedder), value: 'Rain.', providerOptions: query });
    const expected = await embedder.embed('Rain.', { task: 'query', dimensions: 8 });
    expect(one.embedding).toEqual(Array.from(expected.data));
  });

  test('long lists are cut, and what is too long by itself is refused', async () => {
    const asked = provider.embeddingModel(embedder);
    const long = Array.from({ length: 2500 }, (_, i) => `${i}`);
    const { embeddings } = await embedMany({ model: asked, values: long });
    expect(embeddings).toHaveLength(2500);
    const { data: last } = await embedder.embed('2499');
    expect(embeddings.at(-1)).toEqual(Array.from(last));
    const refused = await rejection(Promise.resolve(asked.doEmbed({ values: long })));
    expect(TooManyEmbeddingValuesForCallError.isInstance(refused)).toBe(true);
    const { embeddings: short } = await asked.doEmbed({ values: ['a'], dimensions: 4 });
    expect(short[0]).toHaveLength(4);
    const aborted = asked.doEmbed({ values: long.slice(0, 1000), abortSignal: AbortSignal.abort(new Error('enough')) });
    expect(await rejection(Promise.resolve(aborted))).toEqual(new Error('enough'));
    const task = await rejection(
      Promise.resolve(provider.embeddingModel(gemma, { task: 'query' }).doEmbed({ values })),
    );
    expect(UnsupportedFunctionalityError.isInstance(task)).toBe(true);
    expect((task as Error).cause).toMatchObject({ code: 'ERR_UNSUPPORTED_INPUT', detail: 'NO_TASKS' });
  });
});

test('documents are ranked as gemma-native ranks them', async () => {
  const documents = ['The sky is blue.', 'Paris is the capital of France.', 'Dogs bark.'];
  const query = 'What is the capital of France?';
  const bare = await gemma.rerank(query, documents, { instruction: 'Say whether it helps.' });
  const ranked = await rerank({
    model: provider.rerankingModel(gemma, { instruction: 'Say whether it helps.' }),
    documents,
    query,
    topN: 2,
  });
  const wanted = bare.slice(0, 2).map(({ index, score, document }) => ({ originalIndex: index, score, document }));
  expect(ranked.ranking).toEqual(wanted);
  const objects = documents.map((text) => ({ text }));
  const { ranking } = await rerank({ model: provider.rerankingModel(gemma), documents: objects, query });
  const same = await gemma.rerank(
    query,
    objects.map((document) => JSON.stringify(document)),
  );
  expect(ranking.map(({ originalIndex, score }) => [originalIndex, score])).toEqual(
    same.map(({ index, score }) => [index, score]),
  );
});

test('decisions are those of gemma-native', async () => {
  const state = [
    { type: 'file' as const, data: picture, mediaType: 'image/webp' },
    { type: 'text' as const, text: 'Look.' },
  ];
  const { answers, providerMetadata } = await decide({
    model: provider.decisionModel(gemma),
    state,
    questions: {
      red: { type: 'boolean', instructions: 'Is there a red star?', criteria: { true: 'one or more' } },
      shape: { type: 'choice', instructions: 'Which shape?', criteria: { star: null, ring: 'a circle with a hole' } },
      count: { type: 'score', instructions: 'How many?', criteria: ['none', null, 'two'] },
      only: { type: 'choice', criteria: { yes: null } },
    },
  });
  const content = [
    { type: 'image' as const, image: picture },
    { type: 'text' as const, text: '\n\nLook.' },
  ];
  const input: Message[] = [{ role: 'user', content }];
  const red = await gemma.decide(input, { type: 'boolean', question: 'Is there a red star?\nYes: one or more' });
  const choices = { star: '', ring: 'a circle with a hole' };
  const shape = await gemma.decide(input, { type: 'choice', question: 'Which shape?', choices });
  const count = await gemma.decide(input, { type: 'score', question: 'How many?', levels: ['none', '1', 'two'] });
  expect(answers).toEqual({
    red: { type: 'boolean', probability: red.probabilities.true },
    shape: { type: 'choice', choice: shape.value, probabilities: shape.probabilities },
    count: {
      type: 'score',
      score: count.value,
      probabilities: Object.fromEntries(count.distribution.map(({ value, probability }) => [value, probability])),
    },
    only: { type: 'choice', choice: 'yes', probabilities: { yes: 1 } },
  });
  expect(providerMetadata?.gemma?.coverage).toMatchObject({ shape: shape.coverage });
  const box = decide({ model: provider.decisionModel(gemma), state, questions: { a: { type: 'box' } } });
  await expect(box).rejects.toThrow();
});

describe('ends', () => {
  let slow: Gemma;
  beforeAll(async () => {
    slow = await Gemma.load(tiny, { contextSize: 4096 });
  });
  afterAll(() => slow.dispose());
  const ban = () => Object.fromEntries(slow.info.endTokens.map((id) => [id, -Infinity]));
  const asked = () => ({
    model: provider(slow, { logitBias: ban() }),
    prompt: 'Hi',
    maxRetries: 0,
  });
  const idle = () => until(() => slow.stats().running + slow.stats().waiting === 0);

  test('an abort: before, during generateText, during streamText', async () => {
    const reason = new DOMException('enough', 'AbortError');
    expect(await rejection(generateText({ ...asked(), abortSignal: AbortSignal.abort(reason) }))).toBe(reason);
    const controller = new AbortController();
    const generating = rejection(generateText({ ...asked(), abortSignal: controller.signal }));
    await until(() => slow.stats().running > 0);
    controller.abort(reason);
    expect(await generating).toBe(reason);
    await idle();
    const other = new AbortController();
    let isTold = false;
    const stream = streamText({ ...asked(), abortSignal: other.signal, onAbort: () => void (isTold = true) });
    const types = new Set<string>();
    for await (const part of stream.stream) {
      types.add(part.type);
      if (part.type === 'text-delta') other.abort(reason);
    }
    expect(types).toContain('abort');
    expect(types).not.toContain('error');
    expect(isTold).toBe(true);
    await idle();
  });

  test('a reader who leaves', async () => {
    const { stream } = await asked().model.doStream({ prompt: [said('Hi')], temperature: 2, topK: 0, topP: 1 });
    const reader = stream.getReader();
    for (;;) {
      const { value } = await reader.read();
      if (value?.type === 'text-delta') break;
    }
    await reader.cancel();
    await idle();
  });

  test('too many at once is tried again by the AI SDK', async () => {
    const busy = await Gemma.load(tiny, { contextSize: 2048, maxQueue: 0 });
    const model = provider(busy);
    const calls = Array.from({ length: 80 }, () =>
      rejection(
        Promise.resolve(model.doGenerate({ prompt: [said('Hi')], maxOutputTokens: 50 })).then(() =>
          Promise.reject(new Error('done')),
        ),
      ),
    );
    const refused = (await Promise.all(calls)).filter((error) => APICallError.isInstance(error));
    expect(refused.length).toBeGreaterThan(0);
    expect(refused[0]).toMatchObject({ isRetryable: true, statusCode: 503, cause: { code: 'ERR_QUEUE_FULL' } });
    await busy.dispose();
  });

  test('a model that is disposed of in the middle of a stream', async () => {
    const gone = await Gemma.load(tiny, { contextSize: 4096 });
    const { stream } = await provider(gone, { logitBias: ban() }).doStream({ prompt: [said('Hi')] });
    const parts: LanguageModelV4StreamPart[] = [];
    for await (const part of stream) {
      parts.push(part);
      if (part.type === 'text-delta') void gone.dispose();
    }
    expect(shape(parts).slice(-4)).toEqual(['text-delta', 'text-end', 'error', 'finish']);
    expect(parts.at(-2)).toMatchObject({ error: { name: 'AI_GemmaError', cause: { code: 'ERR_DISPOSED' } } });
    expect(parts.at(-1)).toMatchObject({ finishReason: { unified: 'error', raw: 'ERR_DISPOSED' } });
    const after = await rejection(generateText({ model: provider(gone), prompt: 'Hi' }));
    expect((after as Error).cause).toMatchObject({ code: 'ERR_DISPOSED' });
  });
});

describe('what is wrong', () => {
  const asked = (options: Partial<LanguageModelV4CallOptions>) =>
    Promise.all([
      rejection(Promise.resolve(model.doGenerate({ prompt: [said('Hi')], ...options }))),
      rejection(Promise.resolve(model.doStream({ prompt: [said('Hi')], ...options }))),
    ]);

  test.each<[string, Partial<LanguageModelV4CallOptions>, string]>([
    ['a setting', { topP: 2 }, 'topP'],
    ['a value', { providerOptions: { gemma: { minP: 'x' } } }, 'minP'],
    ['an option that is none', { providerOptions: { gemma: { minp: 1 } } }, 'providerOptions.gemma.minp'],
    ['a setting of the AI SDK', { providerOptions: { gemma: { topK: 1 } } }, 'providerOptions.gemma.topK'],
    [
      'what a call may not say',
      { providerOptions: { gemma: { allowLocal: true } } },
      'providerOptions.gemma.allowLocal',
    ],
    ['an adapter that is not loaded', { providerOptions: { gemma: { adapter: 'x' } } }, 'adapter'],
    ['a tool’s name', { tools: [{ type: 'function', name: 'a b', inputSchema: { type: 'object' } }] }, 'tools.a b'],
  ])('%s', async (_, options, argument) => {
    for (const error of await asked(options)) {
      expect(InvalidArgumentError.isInstance(error)).toBe(true);
      expect((error as InvalidArgumentError).message).toContain(argument);
    }
  });

  test('a prompt that does not fit', async () => {
    for (const error of await asked({ maxOutputTokens: 10_000_000 })) {
      expect(InvalidPromptError.isInstance(error)).toBe(true);
      expect((error as Error).cause).toMatchObject({ code: 'ERR_CONTEXT_FULL' });
    }
  });

  test('roles out of order', async () => {
    const prompt: LanguageModelV4Prompt = [said('Hi'), { role: 'system', content: 'Late.' }, said('Hi')];
    for (const error of await asked({ prompt })) expect(InvalidPromptError.isInstance(error)).toBe(true);
  });

  test('an error of streamText is told by onError', async () => {
    const errors: unknown[] = [];
    const stream = streamText({ model, prompt: 'Hi', topP: 2, onError: ({ error }) => void errors.push(error) });
    await stream.consumeStream();
    expect(errors).toHaveLength(1);
    expect(InvalidArgumentError.isInstance(errors[0])).toBe(true);
  });
});

describe('models', () => {
  test('are loaded once, when they are first asked for', async () => {
    const progress: number[] = [];
    const load = { contextSize: 256, onProgress: (fraction: number) => void progress.push(fraction) };
    const own = createGemma({ models: { chat: tiny, seeing: { model: 'demo', contextSize: 512 } }, load });
    const chat = own('chat');
    own.embeddingModel('chat');
    expect(progress).toEqual([]);
    const [one, two] = await Promise.all([
      generateText({ model: chat, prompt: 'Hi', maxOutputTokens: 2 }),
      generateText({ model: own.languageModel('chat'), prompt: 'Hi', maxOutputTokens: 2 }),
      embed({ model: own.embeddingModel('chat'), value: 'Hi' }),
    ]);
    expect([one, two].map(({ response }) => response.modelId)).toEqual(['chat', 'chat']);
    expect(progress.filter((fraction) => fraction === 1)).toHaveLength(1);
    const loaded = await own.load('chat');
    expect(loaded.info.contextSize).toBe(256);
    expect((await own.load('seeing')).info.contextSize).toBe(512);
    await own.dispose();
    await own.dispose();
    expect(await rejection(loaded.generate('Hi'))).toMatchObject({ code: 'ERR_DISPOSED' });
    expect((await rejection(generateText({ model: chat, prompt: 'Hi' }))) as Error).toMatchObject({
      cause: { code: 'ERR_DISPOSED' },
    });
  });

  test('that are none', async () => {
    const own = createGemma({ models: { chat: tiny } });
    for (const name of ['demo', 'constructor', '']) expect(() => own(name)).toThrow(NoSuchModelError);
    expect(() => own.imageModel('chat')).toThrow(NoSuchModelError);
    const missing = await rejection(generateText({ model: byName('./no-such-model.gguf'), prompt: 'Hi' }));
    expect(NoSuchModelError.isInstance(missing)).toBe(true);
    expect((missing as Error).cause).toMatchObject({ code: 'ERR_FILE' });
    const damaged = await rejection(generateText({ model: byName(join(data, 'public.spec.json')), prompt: 'Hi' }));
    expect(damaged).toMatchObject({ name: 'AI_GemmaError', cause: expect.any(GemmaError) });
    expect(() => provider(gemma, { topK: 3 } as object)).toThrow(/topK of the AI SDK is meant/);
  });

  test('a caller who waits for one may leave, and a provider may be disposed of meanwhile', async () => {
    const own = createGemma({ models: { chat: 'demo' } });
    const controller = new AbortController();
    const prompt = [said('Hi')];
    const left = rejection(Promise.resolve(own('chat').doGenerate({ prompt, abortSignal: controller.signal })));
    const stays = own('chat').doGenerate({ prompt, maxOutputTokens: 1 });
    controller.abort(new Error('left'));
    expect(await left).toEqual(new Error('left'));
    expect((await stays).content).toHaveLength(1);
    await own.dispose();
    const other = createGemma({ models: { chat: 'demo' } });
    const waiting = rejection(Promise.resolve(other('chat').doGenerate({ prompt })));
    await new Promise((resolve) => setImmediate(resolve));
    await other.dispose();
    expect((await waiting) as Error).toMatchObject({ cause: { code: 'ERR_DISPOSED' } });
  });
});
