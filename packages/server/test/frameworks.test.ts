// Frameworks over their own clients of OpenAI's interface, which only have another baseURL: the AI SDK and LangChain.js. Answers are those of
// the bare API with the same seed.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createOpenAICompatible, type OpenAICompatibleProvider } from '@ai-sdk/openai-compatible';
import { HumanMessage, ToolMessage, type AIMessageChunk } from '@langchain/core/messages';
import { tool as langchainTool } from '@langchain/core/tools';
import { ChatOpenAI, OpenAIEmbeddings, type ChatOpenAIFields } from '@langchain/openai';
import {
  APICallError,
  embedMany,
  generateObject,
  generateText,
  Output,
  stepCountIs,
  streamObject,
  streamText,
  tool,
} from 'ai';
import { Gemma } from 'gemma-native';
import { z } from 'zod';
import { data, rejection, root } from '../../../test/api/helpers.js';
import { collected, loadDemo, start, type Running } from './helpers.js';
import { runAgent } from '../../langchain/test/agent.js';

const wild = { temperature: 1.5, topP: 0.99, seed: 7 };
const story = 'Tell me a story.';
const sum = 'What is 417 plus 311?';
const numbers = z.object({ a: z.int().min(0).max(999), b: z.int().min(0).max(999) });
const shape = z.object({ shape: z.enum(['circle', 'square']), n: z.int().min(1).max(9) });
const picture = readFileSync(join(root, 'models', 'pictures', 'shapes.png'));
const question = 'Describe the picture.';
const embedded = ['one text', 'and another'];

let demo: Gemma;
let embedding: Gemma;
let running: Running;
let described: string;
let rows: number[][];
beforeAll(async () => {
  demo = await loadDemo();
  embedding = await Gemma.load(join(data, 'embedding-f16.gguf'));
  running = await start({
    models: [
      { name: 'demo', model: demo },
      { name: 'embedding', model: embedding },
    ],
    apiKeys: ['a secret'],
  });
  described = (await demo.generate(question, { images: [picture], temperature: 0 })).text;
  const { data: all, shape: sizes } = await embedding.embed(embedded);
  rows = embedded.map((_, i) => Array.from(all.subarray(i * sizes[1], (i + 1) * sizes[1])));
});
afterAll(async () => {
  await running.server.close();
  await demo.dispose();
  await embedding.dispose();
});

describe('AI SDK, @ai-sdk/openai-compatible', () => {
  let provider: OpenAICompatibleProvider;
  beforeAll(() => {
    provider = createOpenAICompatible({
      name: 'gemma',
      baseURL: `${running.url}/v1`,
      apiKey: 'a secret',
      includeUsage: true,
      supportsStructuredOutputs: true,
    });
  });
  // What is gemma-native's own goes under the provider's name.
  const taught = { providerOptions: { gemma: { adapter: 'tools' } }, temperature: 0 };
  const add = tool({ description: 'Adds two numbers', inputSchema: numbers, execute: ({ a, b }) => a + b });

  test('generateText and streamText', async () => {
    const expected = await demo.generate(story, { ...wild, maxOutputTokens: 40 });
    const asked = { model: provider('demo'), prompt: story, ...wild, maxOutputTokens: 40 };
    const { text, usage, finishReason } = await generateText(asked);
    expect({ text, finishReason }).toEqual({ text: expected.text, finishReason: expected.finishReason });
    const { inputTokens, outputTokens } = expected.usage;
    const counts = { inputTokens, outputTokens, totalTokens: inputTokens + outputTokens };
    expect(usage).toMatchObject(counts);
    const stream = streamText(asked);
    expect((await collected(stream.textStream)).join('')).toBe(expected.text);
    expect(await stream.usage).toMatchObject(counts);
    expect(await stream.finishReason).toBe(expected.finishReason);
  });

  test('options of gemma-native’s own', async () => {
    const own = { topK: 500, minP: 0.1, repetitionPenalty: 1.3 };
    const expected = await demo.generate(story, { ...wild, ...own, maxOutputTokens: 20 });
    const asked = { model: provider('demo'), prompt: story, ...wild, maxOutputTokens: 20 };
    expect((await generateText({ ...asked, providerOptions: { gemma: own } })).text).toBe(expected.text);
  });

  test('a picture', async () => {
    const { text } = await generateText({
      model: provider('demo'),
      messages: [
        {
          role: 'user',
          content: [
            { type: 'file', data: picture, mediaType: 'image/png' },
            { type: 'text', text: question },
          ],
        },
      ],
      temperature: 0,
    });
    expect(text).toBe(described);
  });

  test('generateObject, streamObject and Output', async () => {
    const asked = { model: provider('demo'), prompt: 'Which shape?', seed: 7 };
    const expected = (await demo.generate(asked.prompt, { schema: shape, seed: 7 })).object;
    expect((await generateObject({ ...asked, schema: shape })).object).toEqual(expected);
    const streamed = streamObject({ ...asked, schema: shape });
    await collected(streamed.partialObjectStream);
    expect(await streamed.object).toEqual(expected);
    expect((await generateText({ ...asked, output: Output.object({ schema: shape }) })).output).toEqual(expected);
  });

  test('a loop over tools, whole and streamed', async () => {
    const asked = { model: provider('demo'), prompt: sum, tools: { add }, stopWhen: stepCountIs(3), ...taught };
    const { text, steps } = await generateText(asked);
    expect(text).toBe('417 plus 311 is 728.');
    expect(steps.map(({ finishReason }) => finishReason)).toEqual(['tool-calls', 'stop']);
    expect(steps[0]!.toolResults).toMatchObject([{ toolName: 'add', input: { a: 417, b: 311 }, output: 728 }]);
    const stream = streamText(asked);
    expect((await collected(stream.textStream)).join('')).toBe(text);
    expect((await stream.steps).map(({ finishReason }) => finishReason)).toEqual(['tool-calls', 'stop']);
    const forced = await generateText({
      ...asked,
      stopWhen: stepCountIs(1),
      toolChoice: { type: 'tool', toolName: 'add' },
    });
    expect(forced.toolCalls).toMatchObject([{ toolName: 'add' }]);
  });

  test('embeddings', async () => {
    const model = provider.embeddingModel('embedding');
    expect((await embedMany({ model, values: embedded })).embeddings).toEqual(rows);
  });

  test('errors have the status and what was wrong', async () => {
    const ask = (model: string, options: object) =>
      rejection(generateText({ model: provider(model), prompt: story, maxRetries: 0, ...options }));
    for (const [error, status, message] of [
      [await ask('nobody', {}), 404, 'the model "nobody" does not exist'],
      [await ask('demo', { temperature: 3 }), 400, 'temperature: '],
      [await ask('demo', { providerOptions: { gemma: { mirostat: 2 } } }), 400, 'mirostat'],
    ] as const) {
      expect(APICallError.isInstance(error)).toBe(true);
      expect(error).toMatchObject({
        statusCode: status,
        message: expect.stringContaining(message),
        isRetryable: false,
      });
    }
  });
});

describe('LangChain.js, @langchain/openai', () => {
  const chat = (fields: ChatOpenAIFields = {}) =>
    new ChatOpenAI({
      model: 'demo',
      apiKey: 'a secret',
      configuration: { baseURL: `${running.url}/v1` },
      maxRetries: 0,
      ...fields,
    });
  const taught = () => chat({ temperature: 0, modelKwargs: { adapter: 'tools' } });
  const add = langchainTool(({ a, b }) => a + b, { name: 'add', description: 'Adds two numbers', schema: numbers });
  const whole = (chunks: readonly AIMessageChunk[]) => chunks.reduce((message, chunk) => message.concat(chunk));

  test('invoke, stream and batch', async () => {
    const expected = await demo.generate(story, { ...wild, maxOutputTokens: 40 });
    const model = chat({ temperature: 1.5, topP: 0.99, maxTokens: 40, modelKwargs: { seed: 7 } });
    const { inputTokens, outputTokens } = expected.usage;
    const told = {
      content: expected.text,
      usage_metadata: { input_tokens: inputTokens, output_tokens: outputTokens },
      response_metadata: { finish_reason: expected.finishReason },
    };
    expect(await model.invoke(story)).toMatchObject(told);
    const chunks = await collected(await model.stream(story));
    expect(chunks.length).toBeGreaterThan(10);
    expect(whole(chunks)).toMatchObject(told);
    const answers = await chat({ temperature: 0 }).batch(['Hello!', 'Count to five.']);
    const alone = await Promise.all(
      ['Hello!', 'Count to five.'].map((text) => demo.generate(text, { temperature: 0 })),
    );
    expect(answers.map(({ content }) => content)).toEqual(alone.map(({ text }) => text));
  });

  test('pictures in both forms', async () => {
    const base64 = picture.toString('base64');
    const text = { type: 'text' as const, text: question };
    const url = `data:image/png;base64,${base64}`;
    for (const message of [
      new HumanMessage({ contentBlocks: [{ type: 'image', data: base64, mimeType: 'image/png' }, text] }),
      new HumanMessage({ content: [{ type: 'image_url', image_url: { url } }, text] }),
    ]) {
      expect((await chat({ temperature: 0 }).invoke([message])).content).toBe(described);
    }
  });

  test('tools: calls, results, streamed calls, choices', async () => {
    const agent = taught().bindTools([add]);
    const messages = await runAgent(agent, add, sum);
    expect(messages.map((message) => message.getType())).toEqual(['human', 'ai', 'tool', 'ai']);
    expect(messages[1]).toMatchObject({ tool_calls: [{ name: 'add', args: { a: 417, b: 311 } }] });
    expect(messages.at(-1)!.text).toBe('417 plus 311 is 728.');
    expect(whole(await collected(await agent.stream(sum))).tool_calls).toMatchObject([
      { name: 'add', args: { a: 417, b: 311 } },
    ]);
    for (const choice of ['required', 'add', 'any']) {
      const forced = await taught().bindTools([add], { tool_choice: choice }).invoke('Hello!');
      expect(forced.tool_calls!.map(({ name }) => name)).toContain('add');
    }
  });

  test('structured output by each of its methods', async () => {
    const prompt = 'Which shape?';
    const expected = (await demo.generate(prompt, { schema: shape, seed: 7 })).object;
    const model = chat({ modelKwargs: { seed: 7 } });
    expect(await model.withStructuredOutput(shape, { method: 'jsonSchema' }).invoke(prompt)).toEqual(expected);
    for (const method of [undefined, 'functionCalling'] as const) {
      const found = await model
        .withStructuredOutput(shape, { ...(method && { method }), name: 'shape' })
        .invoke(prompt);
      expect(shape.parse(found)).toEqual(found);
    }
  });

  test('the interface of responses', async () => {
    const expected = await demo.generate(story, { ...wild, maxOutputTokens: 40 });
    const model = chat({
      temperature: 1.5,
      topP: 0.99,
      maxTokens: 40,
      modelKwargs: { seed: 7 },
      useResponsesApi: true,
    });
    expect((await model.invoke(story)).text).toBe(expected.text);
    expect(whole(await collected(await model.stream(story))).text).toBe(expected.text);
    const agent = chat({ temperature: 0, modelKwargs: { adapter: 'tools' }, useResponsesApi: true }).bindTools([add]);
    const said = await agent.invoke(sum);
    expect(said.tool_calls).toMatchObject([{ name: 'add', args: { a: 417, b: 311 } }]);
    const result: unknown = await add.invoke({ ...said.tool_calls![0]!, type: 'tool_call' });
    const messages = [new HumanMessage(sum), said, result as ToolMessage];
    expect((await agent.invoke(messages)).text).toBe('417 plus 311 is 728.');
  });

  test('embeddings', async () => {
    const embeddings = new OpenAIEmbeddings({
      model: 'embedding',
      apiKey: 'a secret',
      configuration: { baseURL: `${running.url}/v1` },
    });
    expect(await embeddings.embedDocuments(embedded)).toEqual(rows);
    expect(await embeddings.embedQuery(embedded[0]!)).toEqual(rows[0]);
  });

  test('errors have the status and the code', async () => {
    expect(await rejection(chat({ model: 'nobody' }).invoke(story))).toMatchObject({ status: 404 });
    expect(await rejection(chat({ temperature: 3 }).invoke(story))).toMatchObject({
      status: 400,
      code: 'invalid_value',
    });
    expect(await rejection(chat({ apiKey: 'wrong' }).invoke(story))).toMatchObject({ status: 401 });
  });
});
