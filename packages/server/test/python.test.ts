// Python's own client of OpenAI, which only has another base_url: openai_client.py asks, and its answers are those of the bare API with the
// same seed. The client comes from the Python package index, pinned, once for each checkout.
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { Gemma } from 'gemma-native';
import { data, root, runNode, until } from '../../../test/api/helpers.js';
import { snippets } from '../../../test/api/snippets.js';
import { loadDemo, start, type Running } from './helpers.js';

const CLIENT = 'openai==3.57.0';
const picture = join(root, 'models', 'pictures', 'shapes.png');
const sign = join(root, 'models', 'pictures', 'sign.png');
const wild = { temperature: 1.5, topP: 0.99, seed: 7, maxOutputTokens: 40 };
const story = 'Tell me a story.';

type Failure = [name: string, status: number | null, code: string | null, param: string | null, message: string];
type Said = { text: string; finish: string; tokens: number[] };
interface Results {
  chat: Said;
  stream: Said;
  asynchronous: string[];
  leaving: string;
  picture: string[];
  tools: { arguments: object; answer: string; streamed: unknown[] };
  schema: { parsed: object; streamed: object; schema: object };
  logprobs: [number, number[]][];
  completions: { text: string; logprobs: (number | null)[] };
  responses: { text: string; streamed: string; parsed: object };
  embeddings: Record<'base64' | 'float' | 'short', number[][]>;
  models: unknown[];
  errors: Record<string, Failure | null>;
}

/** Runs Python with the client; returns what it printed. */
async function python(args: readonly string[], input = ''): Promise<string> {
  const child = spawn('python3', args, { env: { ...process.env, PYTHONPATH: packages } });
  const texts = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const)
    child[name].setEncoding('utf8').on('data', (text: string) => (texts[name] += text));
  child.stdin.end(input);
  const code = await new Promise<number | null>((resolve, reject) => child.on('error', reject).on('close', resolve));
  if (code !== 0) throw new Error(`python3 ended with ${code}: ${texts.stderr}`);
  return texts.stdout;
}

let packages: string;
let demo: Gemma;
let embedding: Gemma;
let running: Running;
let found: Results;
beforeAll(async () => {
  const { code, stdout, stderr } = await runNode([join(root, 'scripts', 'python-packages.mjs'), CLIENT]);
  if (code !== 0) throw new Error(`the client cannot be installed: ${stdout}${stderr}`);
  packages = stdout.trim();
  demo = await loadDemo();
  embedding = await Gemma.load(join(data, 'embedding-f16.gguf'));
  running = await start({
    models: [
      { name: 'demo', model: demo, aliases: ['chat'] },
      { name: 'embedding', model: embedding },
    ],
    apiKeys: ['a secret'],
  });
  const busy = await start({ models: [{ name: 'demo', model: demo }], maxConcurrent: 1, maxQueue: 0 });
  const slot = await busy.server.context.admission.enter('another', new AbortController().signal);
  try {
    const given = { url: running.url, key: 'a secret', busy: busy.url, picture, sign };
    found = JSON.parse(await python([join(__dirname, 'openai_client.py')], JSON.stringify(given))) as Results;
  } finally {
    slot.release();
    await busy.server.close();
  }
}, 600_000);
afterAll(async () => {
  await running?.server.close();
  await demo?.dispose();
  await embedding?.dispose();
});

test('chat completions, whole, streamed and side by side', async () => {
  const { text, finishReason, usage } = await demo.generate(story, wild);
  const said = { text, finish: finishReason, tokens: [usage.inputTokens, usage.outputTokens] };
  expect(found.chat).toEqual(said);
  expect(found.stream).toEqual(said);
  const others = await Promise.all([7, 8, 9].map((seed) => demo.generate(story, { ...wild, seed })));
  expect(found.asynchronous).toEqual(others.map((each) => each.text));
});

test('who leaves a stream ends the work', async () => {
  expect(found.leaving).toBe('assistant');
  await until(() => running.server.context.admission.inFlight === 0 && demo.stats().running === 0);
});

test('pictures, cut by an extra field', async () => {
  const whole = await demo.generate('Describe the picture.', { images: [picture], temperature: 0 });
  const cut = await demo.generate('What does it say?', { images: [sign], temperature: 0, panAndScan: true });
  expect(found.picture).toEqual([whole.text, cut.text]);
});

test('tools of pydantic: a call, its result, and a streamed call', () => {
  expect(found.tools).toEqual({
    arguments: { a: 417, b: 311 },
    answer: '417 plus 311 is 728.',
    streamed: ['tool_calls', { a: 417, b: 311 }],
  });
});

test('a model of pydantic binds the answer', async () => {
  const strict = { ...found.schema.schema, additionalProperties: false };
  const { object } = await demo.generate('Which shape?', { schema: strict, seed: 7, maxOutputTokens: 100 });
  expect(found.schema.parsed).toEqual(object);
  expect(found.schema.streamed).toEqual(object);
});

test('log-probabilities', async () => {
  const { logprobs = [], finishReason } = await demo.generate(story, { ...wild, logprobs: 3 });
  const own = finishReason === 'stop' ? logprobs.slice(0, -1) : logprobs; // without the token that ends the answer
  expect(found.logprobs).toEqual(own.map(({ logprob, top }) => [logprob, top.map((each) => each.logprob)]));
});

test('completions echo a prompt with its log-probabilities', async () => {
  const prompt = 'The capital of France is';
  const ids = await demo.tokenize(prompt, { bos: true });
  const next = await demo.generate(ids, { temperature: 0, maxOutputTokens: 1 });
  const [score] = await demo.score(ids.slice(0, 1), [ids.slice(1)]);
  expect(found.completions.text).toBe(prompt + next.text);
  expect(found.completions.logprobs).toHaveLength(ids.length + 1);
  expect(found.completions.logprobs.slice(0, -1)).toEqual([null, ...score!.tokenLogprobs.map(Math.fround)]);
});

test('responses, whole, streamed and parsed', async () => {
  const { text } = await demo.generate(story, wild);
  expect(found.responses).toMatchObject({ text, streamed: text });
  expect(found.responses.parsed).toEqual({ shape: expect.any(String), n: expect.any(Number) });
});

test('embeddings in both encodings, shortened where asked', async () => {
  for (const [name, options] of [
    ['base64', {}],
    ['float', {}],
    ['short', { dimensions: 8 }],
  ] as const) {
    const { data: rows, shape } = await embedding.embed(['one text', 'and another'], options);
    const expected = [0, 1].map((i) => Array.from(rows.subarray(i * shape[1], (i + 1) * shape[1])));
    expect(found.embeddings[name]).toEqual(expected);
  }
});

test('models', () => {
  expect(found.models).toEqual([['demo', 'embedding'], 'demo']);
});

test('errors are of the client’s own classes, with the code and the parameter', () => {
  const { parameter, unknown, model, key, length, busy, nowhere } = found.errors;
  const message: unknown = expect.any(String);
  expect(parameter).toEqual(['BadRequestError', 400, 'invalid_value', 'temperature', message]);
  expect(unknown).toEqual(['BadRequestError', 400, 'unknown_parameter', 'mirostat', message]);
  expect(model).toEqual(['NotFoundError', 404, 'model_not_found', 'model', message]);
  expect(key).toEqual(['AuthenticationError', 401, 'invalid_api_key', null, message]);
  expect(length).toEqual(['BadRequestError', 400, 'context_length_exceeded', 'messages', message]);
  expect(busy).toEqual(['RateLimitError', 429, 'queue_full', null, message]);
  expect(nowhere?.[0]).toBe('APIConnectionError');
});

test('the example of the guide', async () => {
  const examples = snippets('docs/guides/server.md', 'python');
  expect(examples).toHaveLength(1);
  const code = examples[0]!.replace('http://127.0.0.1:8080', running.url).replace('"none"', '"a secret"');
  expect(await python(['-c', code])).toMatch(/\w/);
});
