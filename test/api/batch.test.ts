// Files of requests to files of results: the same answers as single calls give, one result for each line whatever happens.
import { spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gemma, type BatchOptions, type BatchProgress } from '../../lib/index.js';
import { cli, data, rejection, runNode, tiny, until } from './helpers.js';

let folder: string;
let gemma: Gemma;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'gemma-batch-'));
  gemma = await Gemma.load(join(data, 'mm-a-f16.gguf'), { contextSize: 2048 });
});
afterAll(async () => {
  await gemma.dispose();
  rmSync(folder, { recursive: true });
});

let count = 0;
/** Writes an input and names an output. */
function files(lines: readonly (object | string | Buffer)[]): { input: string; output: string } {
  const input = join(folder, `in-${++count}.jsonl`);
  const bytes = lines.map((line) =>
    Buffer.isBuffer(line) ? line : Buffer.from(typeof line === 'string' ? line : JSON.stringify(line)),
  );
  writeFileSync(input, Buffer.concat(bytes.flatMap((line) => [line, Buffer.from('\n')])));
  return { input, output: join(folder, `out-${count}.jsonl`) };
}

type Result = Record<string, unknown> & { line: number; error?: { code: string; message: string; detail?: string } };

function results(path: string): Result[] {
  const text = readFileSync(path, 'utf8');
  expect(text === '' || text.endsWith('\n')).toBe(true);
  return text
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line) as Result);
}

async function batch(lines: readonly (object | string | Buffer)[], options: BatchOptions = {}): Promise<Result[]> {
  const { input, output } = files(lines);
  await gemma.batch(input, output, options);
  return results(output);
}

const numbered = (n: number, options: object = {}) =>
  Array.from({ length: n }, (_, i) => ({
    id: `q${i}`,
    prompt: `Question ${i}: ${'why '.repeat(i % 7)}`,
    options: { seed: i, maxOutputTokens: 1 + ((i * 7) % 23), ...options },
  }));

test('each kind of line gives what its call gives', async () => {
  const photo = join(data, 'images', 'photo.png');
  const base64 = readFileSync(photo).toString('base64');
  const schema = { type: 'object', properties: { ok: { type: 'boolean' } }, required: ['ok'] };
  const tools = {
    look: { inputSchema: { type: 'object', properties: { at: { enum: ['sea', 'sky'] } }, required: ['at'] } },
  };
  const seed = 3;
  const short = { seed, maxOutputTokens: 8 };
  const messages = [
    { role: 'system' as const, content: 'Be brief.' },
    {
      role: 'user' as const,
      content: [
        { type: 'image' as const, image: photo },
        { type: 'text' as const, text: 'What?' },
      ],
    },
  ];
  const found = await batch(
    [
      { id: 'a', prompt: 'Hello', options: { temperature: 0.7 } },
      { id: 7, messages },
      { prompt: 'Look', images: [base64] },
      { prompt: 'Say', options: { schema, maxOutputTokens: 200 } },
      { prompt: 'Say', options: { choices: ['yes', 'no'], logprobs: 2 } },
      { prompt: 'Look', options: { tools, toolChoice: 'required', maxOutputTokens: 200 } },
      { embed: 'A text' },
      { embed: ['A text', 'another'], options: { dimensions: 8 } },
      { embedImage: photo },
      { prompt: 'Count', options: { raw: true, seed: 9 } },
    ],
    { generate: short },
  );
  expect(found.map(({ line }) => line)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  expect(found.map(({ id }) => id)).toEqual(['a', 7, null, null, null, null, null, null, null, null]);
  const alone = await Promise.all([
    gemma.generate('Hello', { ...short, temperature: 0.7 }),
    gemma.generate(messages, short),
    gemma.generate('Look', { ...short, images: [photo] }),
    gemma.generate('Say', { seed, schema, maxOutputTokens: 200 }),
    gemma.generate('Say', { ...short, choices: ['yes', 'no'], logprobs: 2 }),
    gemma.generate('Look', { seed, tools, toolChoice: 'required', maxOutputTokens: 200 }),
  ]);
  for (const [i, { text, finishReason, object, logprobs, usage, toolCalls }] of alone.entries()) {
    const { inputTokens, outputTokens } = usage;
    expect(found[i]).toMatchObject({ text, finishReason, usage: { inputTokens, outputTokens }, seed });
    expect(found[i]?.object).toEqual(object);
    expect(found[i]?.logprobs).toEqual(logprobs && JSON.parse(JSON.stringify(logprobs)));
    expect(
      (found[i]?.toolCalls as { name: string; input: unknown }[] | undefined)?.map(({ name, input }) => [name, input]),
    ).toEqual(toolCalls?.map(({ name, input }) => [name, input]));
  }
  const one = await gemma.embed('A text');
  const two = await gemma.embed(['A text', 'another'], { dimensions: 8 });
  expect(found[6]).toMatchObject({ embedding: Array.from(one.data), usage: one.usage });
  expect(found[7]).toMatchObject({
    embeddings: [0, 8].map((at) => Array.from(two.data.subarray(at, at + 8))),
    usage: two.usage,
  });
  const picture = await gemma.embedImage(photo, { pooling: 'mean' });
  expect(found[8]).toMatchObject({ embedding: Array.from(picture.data), crops: [] });
  expect(found[9]?.text).toBe((await gemma.generate('Count', { ...short, seed: 9, raw: true })).text);
});

test('results in the order of the lines, or as they come', async () => {
  const lines = numbered(150);
  const long = {
    id: 'long',
    prompt: 'x',
    options: {
      seed: 1,
      maxOutputTokens: 600,
      logitBias: Object.fromEntries(gemma.info.endTokens.map((token) => [token, -1e6])),
    },
  };
  const ordered = await batch([long, ...lines]);
  expect(ordered.map(({ line }) => line)).toEqual([...Array(151).keys()].map((i) => i + 1));
  const unordered = await batch([long, ...lines], { ordered: false, concurrency: 8 });
  expect(unordered.findIndex(({ id }) => id === 'long')).toBeGreaterThan(0);
  const sorted = [...unordered].sort((a, b) => a.line - b.line);
  const plainly = ({ line, id, text, finishReason, seed }: Result) => ({ line, id, text, finishReason, seed });
  expect(sorted.map(plainly)).toEqual(ordered.map(plainly));
});

test('what is wrong with a line is its result, and no end', async () => {
  const wrong: [line: object | string | Buffer, message: RegExp][] = [
    ['{"prompt": "x"', /expected JSON/],
    ['null', /expected an object of id, prompt/],
    ['[1]', /expected an object/],
    ['"text"', /expected an object/],
    ['[['.repeat(100_000), /./],
    [Buffer.from([0x22, 0xff, 0x22]), /UTF-8/],
    ['', /expected JSON/],
    [{}, /found none of them/],
    [{ prompt: 'a', embed: 'b' }, /found prompt and embed/],
    [{ promt: 'a' }, /promt: no such key/],
    [{ prompt: 'a', id: {} }, /id: expected a string or a number/],
    [{ prompt: 'a', id: 'x'.repeat(1001) }, /id: expected at most 1000/],
    [{ prompt: 5 }, /./],
    [{ messages: 'x' }, /./],
    [{ messages: [{ role: 'user', content: 'x', images: 5 }] }, /images/],
    [{ messages: [{ role: 'user', content: [{ type: 'image', image: { data: [1], width: 1, height: 1 } }] }] }, /./],
    [{ prompt: 'a', options: 5 }, /options: expected an object/],
    [{ prompt: 'a', options: { topK: 'x' } }, /topK/],
    [{ prompt: 'a', options: { temprature: 1 } }, /temprature: no such option/],
    [{ prompt: 'a', options: { allowRemote: 'private' } }, /allowRemote: no such option/],
    [{ prompt: 'a', options: { allowLocal: true } }, /allowLocal: no such option/],
    [{ prompt: 'a', options: { signal: {} } }, /signal: no such option/],
    [{ prompt: 'a', options: { tools: { f: { inputSchema: { type: 'object' }, execute: 5 } } } }, /execute/],
    [{ prompt: 'a', images: 'x' }, /images: expected an array/],
    [{ prompt: 'a', images: ['http://127.0.0.1/x.png'] }, /./],
    [{ prompt: 'a', images: [join(folder, 'none.png')] }, /none\.png/],
    [{ embed: 'a', images: ['x'] }, /images: only beside prompt/],
    [{ embed: [] }, /at least one/],
    [{ embed: Array(257).fill('x') }, /at most 256/],
    [{ embed: 'a', options: { maxOutputTokens: 1 } }, /maxOutputTokens: no such option/],
    [{ embedImage: 'a', options: { pooling: 'none' } }, /pooling: no such option/],
    [{ embedImage: 5 }, /./],
    ['{"prompt":"a","options":{"__proto__":1}}', /__proto__: no such option/],
    [{ prompt: 'word '.repeat(5000) }, /context/],
    [`{"prompt":"${'x'.repeat(300_000)}"}`, /maxLineBytes/],
  ];
  const lines = wrong.flatMap(([line], i) => [line, { id: i, prompt: 'fine', options: { maxOutputTokens: 1 } }]);
  const found = await batch(lines, { maxLineBytes: 250_000 });
  expect(found).toHaveLength(lines.length);
  for (const [i, [, message]] of wrong.entries()) {
    const { line, error } = found[2 * i]!;
    expect(line).toBe(2 * i + 1);
    expect([i, error?.code]).toEqual([i, expect.stringMatching(/^ERR_/)]);
    expect([i, error?.code === 'ERR_INTERNAL']).toEqual([i, false]);
    expect(error?.message).toMatch(message);
    expect(Buffer.byteLength(error?.message ?? '')).toBeLessThan(1025);
    expect(found[2 * i + 1]).toMatchObject({ line: 2 * i + 2, id: i, finishReason: expect.any(String) });
  }
  expect(found[2 * 33]!.error?.code).toBe('ERR_CONTEXT_FULL');
});

test('lines as files have them', async () => {
  const prompt = (id: number) => JSON.stringify({ id, prompt: 'x', options: { maxOutputTokens: 1 } });
  const ids = async (text: string) => {
    const { input, output } = files([]);
    writeFileSync(input, text);
    const { lines } = await gemma.batch(input, output);
    const found = results(output);
    expect(lines).toBe(found.length);
    return found.map(({ line, id, error }) => (error ? [line, 'error'] : [line, id]));
  };
  expect(await ids('')).toEqual([]);
  expect(await ids('\n\n  \n')).toEqual([]);
  expect(await ids(prompt(1))).toEqual([[1, 1]]);
  expect(await ids(`\ufeff${prompt(1)}\r\n${prompt(2)}\r\n\r\n`)).toEqual([[1, 1], [2, 2]]); // prettier-ignore
  expect(await ids(`\n${prompt(1)}\n\n\n${prompt(2)}\n\n\n`)).toEqual([[1, 'error'], [2, 1], [3, 'error'], [4, 'error'], [5, 2]]); // prettier-ignore
});

const PROGRAM = `
  const { Gemma } = require(${JSON.stringify(join(__dirname, '..', '..'))});
  const [model, input, output, ordered] = process.argv.slice(1);
  Gemma.load(model).then(async (gemma) => {
    process.stdout.write('loaded\\n');
    const result = await gemma.batch(input, output, { ordered: ordered === 'true', concurrency: 16 });
    process.stdout.write(JSON.stringify(result));
    await gemma.dispose();
  });
`;

interface Child {
  kill: () => void;
  loaded: Promise<void>;
  ended: Promise<{ code: number | null; stdout: string }>;
}

function start(input: string, output: string, ordered: boolean): Child {
  const child = spawn(process.execPath, ['-e', PROGRAM, tiny, input, output, String(ordered)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let stdout = '';
  const loaded = new Promise<void>((resolve) => {
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
      resolve();
    });
    child.on('close', () => resolve());
  });
  const ended = new Promise<{ code: number | null; stdout: string }>((resolve) =>
    child.on('close', (code) => resolve({ code, stdout })),
  );
  return { kill: () => child.kill('SIGKILL'), loaded, ended };
}

test.each([true, false])(
  'killed at random moments, a batch goes on each time (ordered: %s)',
  async (ordered) => {
    const KILLS = 4;
    const N = 300;
    const lines = numbered(N, { maxOutputTokens: 30 });
    const { input, output } = files(lines);
    const sizeOf = () => (existsSync(output) ? readFileSync(output).length : 0);
    let kills = 0;
    for (;;) {
      const before = sizeOf();
      const child = start(input, output, ordered);
      let isOver = false;
      void child.ended.then(() => (isOver = true));
      if (kills < KILLS) {
        await child.loaded;
        const more = randomInt(1, 8_000);
        await until(() => isOver || sizeOf() > before + more);
        child.kill();
      }
      const { code, stdout } = await child.ended;
      // Killed in the middle of a line as well, which no moment of ours can be relied on to hit.
      if (code === null && ++kills % 2 === 0) {
        writeFileSync(output, readFileSync(output).subarray(0, -randomInt(1, 60)));
      }
      if (code === 0) {
        const { resumedLines, lines: n } = JSON.parse(stdout.slice('loaded\n'.length)) as {
          resumedLines: number;
          lines: number;
        };
        expect(n).toBe(N);
        if (kills > 0) expect(resumedLines).toBeGreaterThan(0);
        break;
      }
    }
    expect(kills).toBeGreaterThan(0);
    const found = results(output);
    if (ordered) expect(found.map(({ line }) => line)).toEqual(lines.map((_, i) => i + 1));
    expect(new Set(found.map(({ line }) => line)).size).toBe(N);
    expect(found).toHaveLength(N);
    expect(existsSync(`${output}.lock`)).toBe(false);
    const single = await Gemma.load(tiny);
    try {
      for (const i of [0, 17, N - 1]) {
        const { prompt, options } = lines[i]!;
        const { text } = await single.generate(prompt, options);
        expect(found.find(({ line }) => line === i + 1)).toMatchObject({ id: `q${i}`, text });
      }
    } finally {
      await single.dispose();
    }
  },
  240_000,
);

test('aborted, it goes on; a finished one is finished', async () => {
  const lines = numbered(80);
  for (const ordered of [true, false]) {
    const { input, output } = files(lines);
    const abort = new AbortController();
    const reason = new Error('enough');
    const onProgress = ({ lines: n }: BatchProgress) => {
      if (n === 20) abort.abort(reason);
    };
    const stopped = gemma.batch(input, output, { ordered, onProgress, signal: abort.signal, concurrency: 4 });
    expect(await rejection(stopped)).toBe(reason);
    const n = results(output).length;
    expect(n).toBeGreaterThanOrEqual(20);
    expect(n).toBeLessThan(80);
    expect(gemma.stats()).toMatchObject({ running: 0, waiting: 0 });
    const again = await gemma.batch(input, output, { ordered });
    expect(again).toMatchObject({ lines: 80, resumedLines: n, failedLines: 0 });
    const whole = readFileSync(output, 'utf8');
    expect(await gemma.batch(input, output)).toMatchObject({ lines: 80, resumedLines: 80, usage: { inputTokens: 0 } });
    expect(readFileSync(output, 'utf8')).toBe(whole);
    expect(await gemma.batch(input, output, { overwrite: true })).toMatchObject({ resumedLines: 0 });
  }
  const { input, output } = files(lines);
  expect(await rejection(gemma.batch(input, output, { signal: AbortSignal.abort(new Error('before')) }))).toMatchObject(
    { message: 'before' },
  );
  expect(existsSync(output)).toBe(false);
});

test('what could spoil a file is refused', async () => {
  const lines = numbered(4);
  const { input, output } = files(lines);
  const fails = async (from: string, to: string, code: string, detail?: string) =>
    expect(await rejection(gemma.batch(from, to))).toMatchObject({ code, ...(detail && { detail }) });

  await fails(join(folder, 'none'), output, 'ERR_FILE');
  expect(existsSync(output)).toBe(false);
  await fails(folder, output, 'ERR_FILE');
  await fails(input, folder, 'ERR_FILE');
  await fails(input, join(folder, 'no', 'folder'), 'ERR_FILE');
  await fails(input, input, 'ERR_INVALID_ARGUMENT', 'SAME_FILE');
  symlinkSync(input, join(folder, 'link'));
  await fails(input, join(folder, 'link'), 'ERR_INVALID_ARGUMENT', 'SAME_FILE');

  for (const text of [
    'precious',
    'a line\n',
    '{"line":1,"id":null,"text":"x"}\n{"line":1,"id":null,"text":"x"}\n',
    '{"line":0,"id":null,"a":1}\n',
  ]) {
    writeFileSync(output, text);
    await fails(input, output, 'ERR_FILE', 'NOT_A_BATCH');
    expect(readFileSync(output, 'utf8')).toBe(text);
  }
  rmSync(output);

  const [first, second] = [gemma.batch(input, output), gemma.batch(input, output)];
  expect(await rejection(second)).toMatchObject({ code: 'ERR_FILE', detail: 'IN_USE' });
  await first;
  const { input: other } = files(lines.map((line, i) => ({ ...line, id: `other ${i}` })));
  await fails(other, output, 'ERR_FILE', 'OTHER_INPUT');
  const { input: shorter } = files(lines.slice(0, 2));
  await fails(shorter, output, 'ERR_FILE', 'OTHER_INPUT');
  expect(results(output)).toHaveLength(4);

  for (const options of [
    { concurrency: 0 },
    { ordered: 1 },
    { maxLineBytes: 0 },
    { generate: { topK: 'x' } },
    { generate: { signal: AbortSignal.abort() } },
    { embed: { dimensions: 1e6 } },
    { embedImage: { pooling: 'none' } },
    { more: 1 },
    { onProgress: 1 },
  ]) {
    expect(await rejection(gemma.batch(input, output, options as never))).toMatchObject({
      name: expect.stringMatching(/^(Type|Range)Error$/),
    });
  }
});

test('a full disk is an error, and the batch goes on when there is room', async () => {
  const { input, output } = files(numbered(60));
  let room = 2500;
  const { open } = fs;
  const opened = jest.spyOn(fs, 'open').mockImplementation(async (...args) => {
    const handle = await open(...args);
    if (args[0] !== output) return handle;
    const write = handle.write.bind(handle) as (...args: unknown[]) => Promise<unknown>;
    handle.write = (async (bytes: unknown, at: unknown, length: number, position: unknown) => {
      const n = Math.min(room, length);
      if (n === 0)
        throw Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC', syscall: 'write' });
      room -= n;
      return write(bytes, at, n, position);
    }) as never;
    return handle;
  });
  try {
    expect(await rejection(gemma.batch(input, output))).toMatchObject({ code: 'ERR_FILE', detail: 'DISK_FULL' });
  } finally {
    opened.mockRestore();
  }
  const n = results(output).length; // whole lines alone
  expect(n).toBeGreaterThan(0);
  expect(await gemma.batch(input, output)).toMatchObject({ lines: 60, resumedLines: n });
  expect(results(output).map(({ line }) => line)).toEqual([...Array(60).keys()].map((i) => i + 1));
});

test('a callback that throws and a model that is disposed end it', async () => {
  const { input, output } = files(numbered(30));
  const thrown = new Error('of the callback');
  const onProgress = () => {
    throw thrown;
  };
  expect(await rejection(gemma.batch(input, output, { onProgress }))).toBe(thrown);
  const other = await Gemma.load(tiny);
  const disposed = other.batch(input, output, { onProgress: () => void other.dispose(), concurrency: 2 });
  expect(await rejection(disposed)).toMatchObject({ code: 'ERR_DISPOSED' });
  expect(await rejection(other.batch(input, output))).toMatchObject({ code: 'ERR_DISPOSED' });
  expect(results(output).every(({ error }) => error === undefined)).toBe(true);
});

test('lines wait for room in the queue of a model that others use', async () => {
  const busy = await Gemma.load(tiny, { maxQueue: 0 });
  try {
    const streams = Array.from({ length: 60 }, () => busy.generate('x', { maxOutputTokens: 300 }));
    const { input, output } = files(numbered(100));
    const { failedLines } = await busy.batch(input, output);
    await Promise.all(streams);
    expect([failedLines, results(output).length]).toEqual([0, 100]);
  } finally {
    await busy.dispose();
  }
});

test('lines are read as there is room for them', async () => {
  const CONCURRENCY = 4;
  const WINDOW = 8 * CONCURRENCY; // results that wait for the first, and it
  const result = await gemma.generate('x', { maxOutputTokens: 1 });
  let begun = 0;
  let atOnce = 0;
  let most = 0;
  let release = () => {};
  const first = new Promise<void>((resolve) => (release = resolve));
  const spy = jest.spyOn(gemma, 'generate').mockImplementation(async () => {
    most = Math.max(most, ++atOnce);
    if (++begun === 1) await first;
    else await new Promise((resolve) => setImmediate(resolve));
    --atOnce;
    return result;
  });
  try {
    const { input, output } = files(numbered(500));
    const running = gemma.batch(input, output, { concurrency: CONCURRENCY });
    await until(() => begun === WINDOW && atOnce === 1);
    for (let i = 0; i < 100; ++i) await new Promise((resolve) => setImmediate(resolve));
    expect([begun, results(output).length]).toEqual([WINDOW, 0]);
    release();
    expect(await running).toMatchObject({ lines: 500, failedLines: 0 });
    expect(most).toBe(CONCURRENCY);
    expect(results(output).map(({ line }) => line)).toEqual([...Array(500).keys()].map((i) => i + 1));
  } finally {
    spy.mockRestore();
  }
});

test('the command line', async () => {
  const { input, output } = files([{ id: 1, prompt: 'Hello' }, 'wrong', { id: 3, embed: 'a' }]);
  const args = [cli, 'batch', '--model', tiny, '--max-tokens', '5', '--seed', '4', '--dimensions', '4', input, output];
  const exit = await runNode([...args, '--json']);
  expect(exit).toMatchObject({ code: 0, stderr: '' });
  expect(JSON.parse(exit.stdout)).toMatchObject({
    path: output,
    lines: 3,
    resumedLines: 0,
    failedLines: 1,
    usage: { outputTokens: 5 },
  });
  const found = results(output);
  expect(found.map(({ id }) => id)).toEqual([1, null, 3]);
  expect(found[0]).toMatchObject({ seed: 4 });
  expect(found[2]?.embedding).toHaveLength(4);
  const again = await runNode([...args, '--unordered', '--concurrency', '2']);
  expect(again).toMatchObject({ code: 0, stderr: '' });
  expect(again.stdout).toMatch(/3 results, 3 of them before/);
  expect((await runNode([cli, 'batch', '--model', tiny, '--json', input, input])).stdout).toMatch(/SAME_FILE/);
});
