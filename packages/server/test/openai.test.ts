// The interface of OpenAI with its own client, which only has another baseURL. Answers are those of the bare API with the same seed.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Gemma, type GenerateOptions, type Input } from 'gemma-native';
import OpenAI from 'openai';
import type { ChatCompletionCreateParamsNonStreaming, ChatCompletionMessageParam } from 'openai/resources';
import { data, rejection, root, tiny, until } from '../../../test/api/helpers.js';
import { resultOf } from '../src/openai/common.js';
import { collected, loadDemo, post, start, type Running } from './helpers.js';

const shapes = join(root, 'models', 'pictures', 'shapes.png');
const sign = join(root, 'models', 'pictures', 'sign.png');
const dataUrl = (path: string) => `data:image/png;base64,${readFileSync(path).toString('base64')}`;

let demo: Gemma;
let running: Running;
let client: OpenAI;
beforeAll(async () => {
  demo = await loadDemo();
  running = await start({
    models: [
      { name: 'demo', model: demo, aliases: ['gpt-4o'] },
      { name: 'tiny', model: tiny, options: { contextSize: 512 } },
      { name: 'org/embedding', model: join(data, 'embedding-f16.gguf') },
    ],
  });
  ({ client } = running);
});
afterAll(async () => {
  await running.server.close();
  await demo.dispose();
});

const user = (content: string): ChatCompletionMessageParam[] => [{ role: 'user', content }];
const chat = (body: Partial<ChatCompletionCreateParamsNonStreaming> & Record<string, unknown>) =>
  client.chat.completions.create({ model: 'demo', messages: user('What is the capital of France?'), seed: 7, ...body });
const bare = (input: Input, options: GenerateOptions = {}) => demo.generate(input, { seed: 7, ...options });

const weather: OpenAI.ChatCompletionFunctionTool = {
  type: 'function',
  function: {
    name: 'count_shapes',
    description: 'Counts the shapes of a colour',
    parameters: {
      type: 'object',
      properties: { colour: { enum: ['red', 'blue'] } },
      required: ['colour'],
      additionalProperties: false,
    },
  },
};
const bareTools = {
  count_shapes: { description: 'Counts the shapes of a colour', inputSchema: weather.function.parameters! },
};

describe('chat completions', () => {
  test('an answer is that of the bare API', async () => {
    const { choices, usage, model, object } = await chat({});
    const expected = await bare('What is the capital of France?');
    expect(choices).toEqual([
      {
        index: 0,
        message: { role: 'assistant', content: expected.text, refusal: null },
        logprobs: null,
        finish_reason: 'stop',
      },
    ]);
    expect([model, object]).toEqual(['demo', 'chat.completion']);
    expect(usage).toMatchObject({
      prompt_tokens: expected.usage.inputTokens,
      completion_tokens: expected.usage.outputTokens,
      total_tokens: expected.usage.inputTokens + expected.usage.outputTokens,
    });
  });

  test('a model answers under its alias and gives its own name', async () => {
    expect((await chat({ model: 'gpt-4o' })).model).toBe('demo');
  });

  test('sampling options reach the model', async () => {
    const options = {
      temperature: 1.7,
      topP: 0.99,
      topK: 500,
      minP: 0.01,
      frequencyPenalty: 0.5,
      presencePenalty: 0.25,
    };
    const bias = { 300: -50 };
    const { choices } = await chat({
      temperature: 1.7,
      top_p: 0.99,
      topK: 500,
      minP: 0.01,
      frequency_penalty: 0.5,
      presence_penalty: 0.25,
      logit_bias: bias,
      max_completion_tokens: 40,
    });
    const expected = await bare('What is the capital of France?', { ...options, logitBias: bias, maxOutputTokens: 40 });
    expect(choices[0]!.message.content).toBe(expected.text);
  });

  test('stop sequences and the limit of tokens end an answer', async () => {
    const stopped = await chat({ stop: ['France'] });
    expect(stopped.choices[0]).toMatchObject({ finish_reason: 'stop' });
    expect(stopped.choices[0]!.message.content).not.toContain('France');
    const cut = await chat({ max_tokens: 2 });
    expect(cut.choices[0]!.finish_reason).toBe('length');
    expect(cut.usage!.completion_tokens).toBe(2);
  });

  test('instructions of several messages are one system message', async () => {
    const { choices } = await chat({
      messages: [
        { role: 'developer', content: 'Be brief.' },
        { role: 'system', content: [{ type: 'text', text: 'Be kind.' }] },
        ...user('Hello'),
      ],
    });
    const expected = await bare([
      { role: 'system', content: 'Be brief.\n\nBe kind.' },
      { role: 'user', content: 'Hello' },
    ]);
    expect(choices[0]!.message.content).toBe(expected.text);
  });

  test('several answers have seeds of their own', async () => {
    const { choices, usage } = await chat({ n: 3, temperature: 1.5, topK: 0, max_tokens: 12 });
    const options = { temperature: 1.5, topK: 0, maxOutputTokens: 12 };
    const expected = await Promise.all(
      [7, 8, 9].map((seed) => bare('What is the capital of France?', { ...options, seed })),
    );
    expect(choices.map(({ message }) => message.content)).toEqual(expected.map(({ text }) => text));
    expect(choices.map(({ index }) => index)).toEqual([0, 1, 2]);
    expect(usage!.completion_tokens).toBe(expected.reduce((sum, each) => sum + each.usage.outputTokens, 0));
  });

  test('pictures come as data URLs, and are cut by extra fields', async () => {
    const ask = (url: string, extra: object = {}) =>
      chat({
        messages: [
          {
            role: 'user',
            content: [
              { type: 'image_url', image_url: { url, detail: 'auto' } },
              { type: 'text', text: 'What does it say?' },
            ],
          },
        ],
        temperature: 0,
        ...extra,
      });
    const cut = await ask(dataUrl(sign), { panAndScan: true });
    const expected = await bare('What does it say?', { images: [sign], temperature: 0, panAndScan: true });
    expect(cut.choices[0]!.message.content).toBe(expected.text);
    expect(expected.text).toContain('OCEAN');
    expect(cut.usage!.prompt_tokens).toBe(expected.usage.inputTokens);
    const whole = await ask(dataUrl(sign));
    expect(whole.usage!.prompt_tokens).toBeLessThan(cut.usage!.prompt_tokens);
    for (const url of [sign, `file://${sign}`, 'http://127.0.0.1/x.png', 'ftp://example.org/x.png', '../x.png']) {
      const error = (await rejection(ask(url))) as InstanceType<typeof OpenAI.APIError>;
      expect([error.status, error.param, error.code]).toEqual([
        400,
        'messages[0].content[0].image_url.url',
        'invalid_image',
      ]);
    }
  });

  test('log-probabilities are those of the bare API', async () => {
    const { choices } = await chat({ logprobs: true, top_logprobs: 3 });
    const expected = await bare('What is the capital of France?', { logprobs: 3 });
    const entries = choices[0]!.logprobs!.content!;
    const own = expected.logprobs!.slice(0, -1); // the last is the token that ends the answer
    expect(entries.map(({ logprob }) => logprob)).toEqual(own.map(({ logprob }) => logprob));
    expect(entries.map(({ token }) => token).join('')).toBe(expected.text);
    expect(Buffer.from(entries.flatMap(({ bytes }) => bytes!)).toString()).toBe(expected.text);
    expect(entries.map(({ top_logprobs: top }) => top.map(({ logprob }) => logprob))).toEqual(
      own.map(({ top }) => top.map(({ logprob }) => logprob)),
    );
  });

  test('a JSON Schema binds the answer', async () => {
    const schema = {
      type: 'object',
      properties: { shape: { enum: ['circle', 'square'] }, n: { type: 'integer', minimum: 1, maximum: 9 } },
      required: ['shape', 'n'],
      additionalProperties: false,
    };
    const { choices } = await chat({
      response_format: { type: 'json_schema', json_schema: { name: 'x', schema, strict: true } },
    });
    const expected = await bare('What is the capital of France?', { schema });
    expect(JSON.parse(choices[0]!.message.content!)).toEqual(expected.object);
    const json = await chat({ response_format: { type: 'json_object' }, max_tokens: 30 });
    expect(json.choices[0]!.message.content).toBe(
      (await bare('What is the capital of France?', { json: true, maxOutputTokens: 30 })).text,
    );
    const choice = await chat({ choices: ['red', 'blue'] });
    expect(['red', 'blue']).toContain(choice.choices[0]!.message.content);
  });

  test('a tool is called, and its result goes back', async () => {
    const asked = { tools: [weather], tool_choice: { type: 'function' as const, function: { name: 'count_shapes' } } };
    const { choices } = await chat(asked);
    const [call] = choices[0]!.message.tool_calls! as OpenAI.ChatCompletionMessageFunctionToolCall[];
    expect(choices[0]).toMatchObject({ finish_reason: 'tool_calls', message: { content: null } });
    expect(call).toMatchObject({ type: 'function', function: { name: 'count_shapes' } });
    expect(['red', 'blue']).toContain((JSON.parse(call!.function.arguments) as { colour: string }).colour);
    const expected = await bare('What is the capital of France?', {
      tools: bareTools,
      toolChoice: { tool: 'count_shapes' },
    });
    expect(JSON.parse(call!.function.arguments)).toEqual(expected.toolCalls![0]!.input);

    const again = await chat({
      messages: [
        ...user('What is the capital of France?'),
        choices[0]!.message,
        { role: 'tool', tool_call_id: call!.id, content: '{"count": 2}' },
      ],
      tools: [weather],
    });
    const messages = [
      { role: 'user' as const, content: 'What is the capital of France?' },
      {
        role: 'assistant' as const,
        content: '',
        toolCalls: [{ id: call!.id, name: 'count_shapes', input: expected.toolCalls![0]!.input }],
      },
      { role: 'tool' as const, toolCallId: call!.id, content: { count: 2 } },
    ];
    expect(again.choices[0]!.message.content).toBe((await bare(messages, { tools: bareTools })).text);
  });

  test.each([
    ['728', 728],
    ['-1.5', -1.5],
    ['true', true],
    ['null', null],
    [' [1, "x"]', [1, 'x']],
    ['{"count": 2}', { count: 2 }],
    ['two', 'two'],
    ['"two"', '"two"'],
    ['007', '007'],
    ['1e3', '1e3'],
    ['12345678901234567890', '12345678901234567890'],
    ['{"count": ', '{"count": '],
  ])('a result %s', (text, value) => {
    expect(resultOf(text)).toEqual(value);
  });

  test('of parallel calls the first is left where one is wanted', async () => {
    const forced = { tools: [weather], tool_choice: 'required' as const, temperature: 1.5, max_tokens: 400, seed: 1 };
    const several = await chat(forced);
    const one = await chat({ ...forced, parallel_tool_calls: false });
    expect(one.choices[0]!.message.tool_calls).toHaveLength(1);
    expect(one.choices[0]!.finish_reason).toBe('tool_calls');
    expect((several.choices[0]!.message.tool_calls ?? []).length).toBeGreaterThanOrEqual(1);
    const name = ({ function: { arguments: json } }: OpenAI.ChatCompletionMessageFunctionToolCall) => json;
    const first = (list: unknown) => name((list as OpenAI.ChatCompletionMessageFunctionToolCall[])[0]!);
    expect(first(one.choices[0]!.message.tool_calls)).toBe(first(several.choices[0]!.message.tool_calls));
  });

  test('a stream brings the same', async () => {
    const stream = await client.chat.completions.create({
      model: 'demo',
      messages: user('What is the capital of France?'),
      seed: 7,
      stream: true,
      logprobs: true,
      top_logprobs: 2,
      stream_options: { include_usage: true },
    });
    const chunks = await collected(stream);
    const expected = await bare('What is the capital of France?', { logprobs: 2 });
    expect(chunks.map(({ choices }) => choices[0]?.delta.content ?? '').join('')).toBe(expected.text);
    expect(chunks[0]!.choices[0]!.delta).toMatchObject({ role: 'assistant', content: '' });
    expect(chunks.at(-2)!.choices[0]).toMatchObject({ delta: {}, finish_reason: 'stop' });
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { completion_tokens: expected.usage.outputTokens } });
    const logprobs = chunks.flatMap(({ choices }) => choices[0]?.logprobs?.content ?? []);
    expect(logprobs.map(({ logprob }) => logprob)).toEqual(
      expected.logprobs!.slice(0, -1).map(({ logprob }) => logprob),
    );
  });

  test('a stream of several answers, and one with a call', async () => {
    const stream = await client.chat.completions.create({
      model: 'demo',
      messages: user('Hello'),
      seed: 7,
      n: 2,
      stream: true,
      max_tokens: 8,
    });
    const texts = ['', ''];
    for await (const { choices } of stream) for (const { index, delta } of choices) texts[index] += delta.content ?? '';
    expect(texts).toEqual(
      await Promise.all([7, 8].map(async (seed) => (await bare('Hello', { seed, maxOutputTokens: 8 })).text)),
    );
    const runner = client.chat.completions.stream({
      model: 'demo',
      messages: user('Hello'),
      seed: 7,
      tools: [weather],
      tool_choice: 'required',
      parallel_tool_calls: false,
    });
    const final = await runner.finalChatCompletion();
    expect(final.choices[0]!.message.tool_calls).toHaveLength(1);
    expect(final.choices[0]!.finish_reason).toBe('tool_calls');
  });

  test("the client's own loop over tools ends with an answer", async () => {
    const seen: unknown[] = [];
    const runner = client.chat.completions.runTools(
      {
        model: 'demo',
        messages: user('Hello'),
        seed: 7,
        max_tokens: 60,
        tool_choice: 'required',
        tools: [
          {
            type: 'function',
            function: {
              name: 'count_shapes',
              description: 'Counts the shapes of a colour',
              parameters: weather.function.parameters!,
              parse: JSON.parse,
              function: (input: unknown) => {
                seen.push(input);
                return 'two';
              },
            },
          },
        ],
      },
      { maxChatCompletions: 2 },
    );
    await runner.done();
    expect(seen.length).toBeGreaterThan(0);
  });
});

describe('completions', () => {
  const complete = (body: Partial<OpenAI.CompletionCreateParamsNonStreaming> & Record<string, unknown>) =>
    client.completions.create({ model: 'demo', prompt: 'The capital', seed: 7, max_tokens: 6, ...body });

  test('text goes on as in the bare API, prompts by text and by ids', async () => {
    const expected = await bare('The capital', { raw: true, maxOutputTokens: 6 });
    const ids = await demo.tokenize('The capital', { bos: true });
    for (const prompt of ['The capital', ids]) {
      const { choices, usage, object } = await complete({ prompt });
      expect(choices).toEqual([{ index: 0, text: expected.text, logprobs: null, finish_reason: 'length' }]);
      expect(usage).toMatchObject({ prompt_tokens: ids.length, completion_tokens: 6 });
      expect(object).toBe('text_completion');
    }
    const several = await complete({ prompt: [ids, ids.slice(0, 2)], n: 2 });
    expect(several.choices.map(({ index }) => index)).toEqual([0, 1, 2, 3]);
    expect(several.choices[0]!.text).toBe(expected.text);
    expect(several.choices[2]!.text).toBe((await bare(ids.slice(0, 2), { maxOutputTokens: 6 })).text);
    expect(several.usage!.prompt_tokens).toBe(ids.length + 2);
  });

  // What lm-evaluation-harness makes of an answer (lm_eval/models/openai_completions.py, parse_logprobs).
  test('an echoed prompt has the log-probabilities of its tokens', async () => {
    const context = await demo.tokenize('The capital of France', { bos: true });
    const candidates = ['is Paris.', 'a red circle'];
    const prompts = await Promise.all(
      candidates.map(async (text) => [...context, ...(await demo.tokenize(` ${text}`))]),
    );
    const { choices } = await complete({ prompt: prompts, echo: true, logprobs: 1, max_tokens: 1, temperature: 0 });
    const scores = await demo.score(
      context,
      prompts.map((ids) => ids.slice(context.length)),
    );
    choices.forEach(({ logprobs }, i) => {
      const own = logprobs!.token_logprobs!.slice(context.length, -1);
      const top = logprobs!.top_logprobs!.slice(context.length, -1);
      const sum = own.reduce((total, logprob) => total + logprob, 0);
      expect(own).toEqual(scores[i]!.tokenLogprobs.map(Math.fround));
      expect(sum).toBeCloseTo(scores[i]!.logprob, 5);
      expect(own.every((logprob, k) => logprob === Math.max(...Object.values(top[k]!)))).toBe(scores[i]!.greedy);
      expect(logprobs!.tokens).toHaveLength(prompts[i]!.length + 1);
      expect(logprobs!.token_logprobs![0]).toBeNull();
    });
    const alone = await complete({ prompt: prompts[0]!, echo: true, logprobs: 0, max_tokens: 0 });
    expect(alone.choices[0]!.logprobs!.tokens).toHaveLength(prompts[0]!.length);
    expect(alone.choices[0]!.text).toContain('The capital of France is Paris.');
  });

  test('a text is echoed as it was given; with its own <bos> it has one all the same', async () => {
    const asked = { echo: true, logprobs: 1, max_tokens: 3, temperature: 0 };
    const [given, decoded, none] = await Promise.all([
      complete({ ...asked, prompt: 'The capital' }),
      complete({ ...asked, prompt: '<bos>The capital' }),
      complete({ ...asked, prompt: '<bos>The capital', bos: false }),
    ]);
    const [{ text, logprobs }] = given.choices as [OpenAI.CompletionChoice];
    expect(text).toMatch(/^The capital/);
    expect(decoded.choices[0]!.text).toBe(`<bos>${text}`);
    const own = decoded.choices[0]!.logprobs!;
    for (const key of ['tokens', 'token_logprobs', 'top_logprobs'] as const) expect(own[key]).toEqual(logprobs![key]);
    expect(logprobs!.tokens![0]).toBe('<bos>');
    expect(none.choices[0]!.logprobs!.tokens!.slice(0, 2)).not.toContain('<bos>'); // it is text like any other
    for (const { choices } of [given, decoded, none]) {
      const { text: whole, logprobs: found } = choices[0]!;
      found!.tokens!.forEach((token, i) => {
        if (token !== '<bos>') expect(whole.slice(found!.text_offset![i]).startsWith(token)).toBe(true);
      });
    }
  });

  test('a stream brings the same', async () => {
    const body = { model: 'demo', prompt: 'The capital', seed: 7, max_tokens: 6, echo: true, logprobs: 2 };
    const chunks = await collected(
      await client.completions.create({ ...body, stream: true, stream_options: { include_usage: true } }),
    );
    const whole = await client.completions.create(body);
    const choices = chunks.flatMap((chunk) => chunk.choices);
    expect(choices.map(({ text }) => text).join('')).toBe(whole.choices[0]!.text);
    for (const key of ['tokens', 'token_logprobs', 'top_logprobs', 'text_offset'] as const) {
      expect(choices.flatMap(({ logprobs }): unknown[] => logprobs![key]!)).toEqual(whole.choices[0]!.logprobs![key]);
    }
    expect(chunks.at(-1)!.usage).toMatchObject({ completion_tokens: 6 });
  });
});

describe('responses', () => {
  test('an answer is that of the bare API', async () => {
    const response = await client.responses.create({
      model: 'demo',
      instructions: 'Be brief.',
      input: 'What is the capital of France?',
      include: ['message.output_text.logprobs'],
      top_logprobs: 2,
      metadata: { trace: 'a' },
      seed: 7,
    } as OpenAI.Responses.ResponseCreateParamsNonStreaming);
    const expected = await bare(
      [
        { role: 'system', content: 'Be brief.' },
        { role: 'user', content: 'What is the capital of France?' },
      ],
      { logprobs: 2 },
    );
    expect(response.output_text).toBe(expected.text);
    expect(response).toMatchObject({ status: 'completed', model: 'demo', store: false, metadata: { trace: 'a' } });
    expect(response.usage).toMatchObject({ output_tokens: expected.usage.outputTokens });
    const [message] = response.output as OpenAI.Responses.ResponseOutputMessage[];
    const { logprobs } = message!.content[0] as OpenAI.Responses.ResponseOutputText;
    expect(logprobs!.map(({ logprob }) => logprob)).toEqual(
      expected.logprobs!.slice(0, -1).map(({ logprob }) => logprob),
    );
    const cut = await client.responses.create({ model: 'demo', input: 'Hello', max_output_tokens: 2 });
    expect(cut).toMatchObject({ status: 'incomplete', incomplete_details: { reason: 'max_output_tokens' } });
  });

  test('a conversation with a picture, a call and its result', async () => {
    const tools: OpenAI.Responses.FunctionTool[] = [
      { type: 'function', strict: true, ...weather.function, parameters: weather.function.parameters! },
    ];
    const input: OpenAI.Responses.ResponseInput = [
      {
        role: 'user',
        content: [
          { type: 'input_image', image_url: dataUrl(shapes), detail: 'auto' },
          { type: 'input_text', text: 'How many shapes are red?' },
        ],
      },
    ];
    const first = await client.responses.create({
      model: 'demo',
      input,
      tools,
      tool_choice: { type: 'function', name: 'count_shapes' },
    });
    const [call] = first.output as OpenAI.Responses.ResponseFunctionToolCall[];
    expect(call).toMatchObject({ type: 'function_call', name: 'count_shapes', status: 'completed' });
    const second = await client.responses.create({
      model: 'demo',
      input: [
        ...input,
        ...(first.output as OpenAI.Responses.ResponseInput),
        { type: 'function_call_output', call_id: call!.call_id, output: '2' },
      ],
      tools,
      max_output_tokens: 30,
    });
    expect(second.output.length).toBeGreaterThan(0);
  });

  test('a stream of events builds the same response', async () => {
    const body = { model: 'demo', input: 'What is the capital of France?', seed: 7 };
    const events = await collected(
      await client.responses.create({ ...body, stream: true } as OpenAI.Responses.ResponseCreateParamsStreaming),
    );
    const expected = await bare('What is the capital of France?');
    expect(events.map((event) => event.sequence_number)).toEqual(events.map((_, i) => i));
    const kinds = [...new Set(events.map(({ type }) => type))];
    expect(kinds).toEqual([
      'response.created',
      'response.in_progress',
      'response.output_item.added',
      'response.content_part.added',
      'response.output_text.delta',
      'response.output_text.done',
      'response.content_part.done',
      'response.output_item.done',
      'response.completed',
    ]);
    const deltas = events.map((event) => (event.type === 'response.output_text.delta' ? event.delta : ''));
    expect(deltas.join('')).toBe(expected.text);
    const final = await client.responses
      .stream({
        ...body,
        tools: [{ type: 'function', strict: true, ...weather.function, parameters: weather.function.parameters! }],
        tool_choice: 'required',
        parallel_tool_calls: false,
      })
      .finalResponse();
    expect(final.output.at(-1)).toMatchObject({ type: 'function_call', name: 'count_shapes' });
  });

  test('what would have to be kept is refused', async () => {
    for (const [param, value] of [
      ['previous_response_id', 'resp_1'],
      ['store', true],
      ['background', true],
    ] as const) {
      const { status, body } = await post(`${running.url}/v1/responses`, { model: 'demo', input: 'x', [param]: value });
      expect([status, body.error!.param]).toEqual([400, param]);
    }
  });
});

describe('embeddings and models', () => {
  test('embeddings in both encodings, shortened where asked', async () => {
    const gemma = await Gemma.load(join(data, 'embedding-f16.gguf'));
    try {
      const input = ['one text', 'and another'];
      const { data: expected, shape, usage } = await gemma.embed(input);
      const rows = input.map((_, i) => Array.from(expected.subarray(i * shape[1], (i + 1) * shape[1])));
      // The client asks for base64 by itself.
      for (const encoding_format of [undefined, 'float', 'base64'] as const) {
        const response = await client.embeddings.create({
          model: 'org/embedding',
          input,
          ...(encoding_format && { encoding_format }),
        });
        const got = response.data.map(({ embedding }) =>
          typeof embedding === 'string'
            ? Array.from(new Float32Array(new Uint8Array(Buffer.from(embedding, 'base64')).buffer))
            : embedding,
        );
        expect(got).toEqual(rows);
        expect(response.usage.prompt_tokens).toBe(usage.inputTokens);
      }
      const short = await client.embeddings.create({ model: 'org/embedding', input: 'one text', dimensions: 8 });
      expect(short.data[0]!.embedding).toEqual(Array.from((await gemma.embed('one text', { dimensions: 8 })).data));
    } finally {
      await gemma.dispose();
    }
  });

  test('models are listed, and found by names with slashes', async () => {
    expect((await collected(client.models.list())).map(({ id }) => id)).toEqual(['demo', 'tiny', 'org/embedding']);
    expect(await client.models.retrieve('demo')).toMatchObject({ id: 'demo', object: 'model' });
    expect((await (await fetch(`${running.url}/v1/models/org/embedding`)).json()) as object).toMatchObject({
      id: 'org/embedding',
    });
    expect(await rejection(client.models.retrieve('none'))).toBeInstanceOf(OpenAI.NotFoundError);
  });
});

describe('errors', () => {
  test("have OpenAI's form and name the parameter", async () => {
    const cases: [body: object, param: string | null, code: string, status?: number][] = [
      [{ model: 'nobody' }, 'model', 'model_not_found', 404],
      [{ messages: [] }, 'messages', 'invalid_value'],
      [{ messages: undefined }, 'messages', 'missing_parameter'],
      [{ temperature: 'hot' }, 'temperature', 'invalid_value'],
      [{ temperature: 3 }, 'temperature', 'invalid_value'],
      [{ top_p: 0 }, 'top_p', 'invalid_value'],
      [{ topk: 4 }, 'topk', 'unknown_parameter'],
      [{ n: 99 }, 'n', 'invalid_value'],
      [{ functions: [] }, 'functions', 'unknown_parameter'],
      [
        { messages: [{ role: 'user', content: [{ type: 'text' }] }] },
        'messages[0].content[0].text',
        'missing_parameter',
      ],
      [{ messages: [{ role: 'user', content: 'x', name: 'y' }] }, 'messages[0].name', 'unknown_parameter'],
      [{ messages: [{ role: 'robot', content: 'x' }] }, 'messages[0].role', 'invalid_value'],
      [{ logit_bias: { 999999: 1 } }, null, 'invalid_value'],
      [{ max_tokens: 100000 }, 'messages', 'context_length_exceeded'],
      [{ adapter: 'nobody' }, null, 'invalid_value'],
      [{ tools: [{ type: 'function', function: { name: 'bad name' } }] }, 'tools.bad name', 'invalid_value'],
      [
        { response_format: { type: 'json_schema', json_schema: { name: 'x', schema: { type: 'nothing' } } } },
        'response_format.json_schema.schema/type',
        'invalid_value',
      ],
      [{ stream_options: { include_usage: true } }, 'stream_options', 'invalid_value'],
    ];
    for (const [change, param, code, status = 400] of cases) {
      const answer = await post(`${running.url}/v1/chat/completions`, {
        model: 'demo',
        messages: user('x'),
        ...change,
      });
      expect([change, answer.status, answer.body.error?.code]).toEqual([change, status, code]);
      if (param !== null) expect(answer.body.error!.param).toBe(param);
      expect(typeof answer.body.error!.message).toBe('string');
    }
  });

  test('what fails before the first token of a stream has a status', async () => {
    const stream = client.chat.completions.create({ model: 'tiny', messages: user('word '.repeat(600)), stream: true });
    expect(await rejection(stream)).toMatchObject({ status: 400, code: 'context_length_exceeded' });
  });

  test('who leaves ends the work', async () => {
    const stream = await client.chat.completions.create({
      model: 'demo',
      messages: user('Hello'),
      stream: true,
      max_tokens: 1500,
      // An answer that does not end by itself.
      logit_bias: Object.fromEntries(demo.info.endTokens.map((id) => [id, -100])),
    });
    await stream[Symbol.asyncIterator]().next();
    stream.controller.abort(); // which closes the connection
    await until(() => demo.stats().running === 0 && running.server.context.admission.inFlight === 0);
  });
});
