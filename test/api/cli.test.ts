import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { cli, data, runNode, tiny, withModel, type Exit } from './helpers.js';

let folder: string;
beforeAll(() => (folder = mkdtempSync(join(tmpdir(), 'gemma-cli-'))));
afterAll(() => rmSync(folder, { recursive: true }));

const run = (args: string[], options: Parameters<typeof runNode>[1] = {}) => runNode([cli, ...args], options);

/** The one JSON object on stdout. */
function json(exit: Exit): Record<string, unknown> {
  expect(exit.stdout.trimEnd().split('\n')).toHaveLength(1);
  return JSON.parse(exit.stdout) as Record<string, unknown>;
}

async function succeed(args: string[], options: Parameters<typeof runNode>[1] = {}): Promise<Record<string, unknown>> {
  const [command = '', ...rest] = args;
  const exit = await run([command, '--json', ...rest], options);
  expect(exit).toMatchObject({ code: 0, stderr: '' });
  return json(exit);
}

describe('--json', () => {
  test('run', async () => {
    const args = [
      'run',
      '--model',
      tiny,
      '--max-tokens',
      '10',
      '--seed',
      '4',
      '--top-k',
      '20',
      '--top-p',
      '0.9',
      '--temperature',
      '0.8',
    ];
    const result = await succeed([...args, 'Hello there']);
    expect(result).toMatchObject({
      text: expect.any(String),
      finishReason: expect.stringMatching(/^(stop|length)$/),
      usage: { inputTokens: expect.any(Number), outputTokens: (result.tokens as number[]).length, imageTokens: 0 },
      timings: {
        loadMs: expect.any(Number),
        prefillTokensPerSecond: expect.any(Number),
        decodeTokensPerSecond: expect.any(Number),
      },
    });
    expect((await succeed([...args, 'Hello there'])).tokens).toEqual(result.tokens);
    await withModel(async (gemma) => {
      const same = await gemma.generate('Hello there', {
        maxOutputTokens: 10,
        seed: 4,
        topK: 20,
        topP: 0.9,
        temperature: 0.8,
      });
      expect(same.tokens).toEqual(result.tokens);
      expect(same.usage).toEqual(result.usage);
    });
  });

  test('run takes the prompt from standard input, a system message, stop sequences', async () => {
    const piped = await succeed(['run', '--model', tiny, '--max-tokens', '5', '--seed', '1'], { input: 'From a pipe' });
    const given = await succeed(['run', '--model', tiny, '--max-tokens', '5', '--seed', '1', 'From a pipe']);
    expect(piped.tokens).toEqual(given.tokens);
    const system = await succeed([
      'run',
      '--model',
      tiny,
      '--max-tokens',
      '5',
      '--system',
      'Be brief.',
      '--stop',
      'zzz',
      '--',
      '-x-',
    ]);
    expect((system.usage as { inputTokens: number }).inputTokens).toBeGreaterThan(
      (given.usage as { inputTokens: number }).inputTokens,
    );
  });

  test('an option that may be repeated takes one value each time, and the prompt stays the prompt', async () => {
    const args = ['run', '--model', tiny, '--max-tokens', '20', '--seed', '1'];
    const plain = await succeed([...args, 'Hello there']);
    const stopped = await succeed([...args, '--stop', 'zzz', '--stop', 'yyy', 'Hello there']);
    expect([stopped.usage, stopped.tokens]).toEqual([plain.usage, plain.tokens]);
    const text = plain.text as string;
    const stop = text.slice(3, 6);
    const cut = await succeed([...args, '--stop', 'zzz', '--stop', stop, 'Hello there']);
    expect(cut).toMatchObject({ text: text.slice(0, text.indexOf(stop)), stopSequence: stop });
    // Neither does any other option take more than one word.
    for (const command of ['run', 'logits', 'embed-image', 'crops', 'tokenize', 'perplexity', 'inspect', 'devices']) {
      expect((await run([command, '--help'])).stdout).not.toMatch(/^ +--.*\.\.\.[>\]]/m);
    }
  });

  test('run with drafts', async () => {
    const args = ['run', '--model', tiny, '--raw', '--max-tokens', '40', '--seed', '2', '--temperature', '0.3'];
    const prompt = 'again and again and again and';
    const plain = await succeed([...args, '--no-draft', prompt]);
    expect(plain.timings).toMatchObject({ draftedTokens: 0, acceptedTokens: 0 });
    for (const flags of [['--prompt-lookup'], ['--draft', join(data, 'text-a-q4_0.gguf')], []]) {
      const { tokens, timings } = await succeed([...args, ...flags, prompt]);
      expect(tokens).toEqual(plain.tokens);
      expect(timings).toMatchObject({ draftedTokens: expect.any(Number), acceptedTokens: expect.any(Number) });
    }
    expect((await run([...args, '--json', '--prompt-lookup', '--draft', tiny, prompt])).code).toBe(2);
  });

  test('run bound to a schema, choices or a grammar', async () => {
    const file = (name: string, text: string) => {
      writeFileSync(join(folder, name), text);
      return join(folder, name);
    };
    const properties = { ripe: { type: 'boolean' }, n: { type: 'integer', minimum: 3, maximum: 40 } };
    const schema = file('schema.json', JSON.stringify({ type: 'object', properties, required: ['ripe', 'n'] }));
    const args = ['run', '--model', tiny, '--seed', '3', '--max-tokens', '2000'];
    const { object, text } = await succeed([...args, '--schema', schema, 'A fruit']);
    expect(object).toEqual(JSON.parse(text as string));
    expect(object).toEqual({ ripe: expect.any(Boolean), n: expect.any(Number) });
    expect(await succeed([...args, '--choice', 'yes', '--choice', 'no', 'x'])).toMatchObject({
      text: expect.stringMatching(/^(yes|no)$/),
    });
    const grammar = file('grammar.ebnf', 'root ::= "<" [0-9] [0-9] ">"\n');
    expect((await run([...args, '--grammar', grammar, 'x'])).stdout).toMatch(/^<\d\d>\n$/);

    const none = file('broken.json', '{');
    const wrong = file('wrong.json', '{"type": "integre"}');
    expect(await run([...args, '--schema', none, 'x'])).toMatchObject({
      code: 2,
      stderr: expect.stringContaining(none),
    });
    expect((await run([...args, '--schema', schema, '--regex', 'a', 'x'])).code).toBe(2);
    expect((await run([...args, '--schema', join(folder, 'missing.json'), 'x'])).code).toBe(1);
    expect(json(await run([...args, '--json', '--schema', wrong, 'x']))).toMatchObject({
      error: { code: 'ERR_INVALID_ARGUMENT', detail: 'BAD_SCHEMA' },
    });
  });

  test('run with tools prints what the model calls', async () => {
    const inputSchema = {
      type: 'object',
      properties: { city: { enum: ['Rome', 'Oslo'] } },
      required: ['city'],
      additionalProperties: false,
    };
    const tools = join(folder, 'tools.json');
    writeFileSync(tools, JSON.stringify({ weather: { description: 'Of a city', inputSchema } }));
    const args = ['run', '--model', tiny, '--seed', '3', '--max-tokens', '200', '--tools', tools, '--tool-choice'];
    for (const choice of ['required', 'weather']) {
      const { toolCalls, finishReason } = await succeed([...args, choice, 'Is it cold?']);
      expect((toolCalls as unknown[])[0]).toMatchObject({
        name: 'weather',
        input: { city: expect.stringMatching(/^(Rome|Oslo)$/) },
      });
      expect(['tool-calls', 'length']).toContain(finishReason);
    }
    expect((await run([...args, 'weather', 'Is it cold?'])).stdout).toMatch(/^weather \{"city":"(Rome|Oslo)"\}\n/);
    expect((await run([...args, 'wether', 'Is it cold?'])).code).not.toBe(0);
  });

  test('tokenize and detokenize', async () => {
    const text = 'Hello, world! <start_of_turn>';
    const { tokens } = await succeed(['tokenize', '--model', tiny, '--bos', '--special', text]);
    await withModel(async (gemma) => expect(await gemma.tokenize(text, { bos: true, special: true })).toEqual(tokens));
    const file = join(folder, 'text.txt');
    writeFileSync(file, text);
    expect((await succeed(['tokenize', '--model', tiny, '--bos', '--special', '--file', file])).tokens).toEqual(tokens);
    expect(await succeed(['detokenize', '--model', tiny, ...(tokens as number[]).map(String)])).toEqual({
      text: `<bos>${text}`,
    });
  });

  test('logits', async () => {
    const out = join(folder, 'logits.f32');
    const result = await succeed([
      'logits',
      '--model',
      tiny,
      '--kv',
      'f32',
      '--tokens',
      '2,30,40',
      '--all',
      '--out',
      out,
    ]);
    expect(result).toMatchObject({ tokens: [2, 30, 40], shape: [3, 448] });
    expect((result.top as unknown[][]).map((best) => best.length)).toEqual([5, 5, 5]);
    expect((result.top as unknown[][])[0]?.[0]).toEqual({
      token: expect.any(Number),
      logit: expect.any(Number),
      logprob: expect.any(Number),
    });
    const file = readFileSync(out);
    expect(file.length).toBe(3 * 448 * 4);
    await withModel(
      async (gemma) => {
        const { data } = await gemma.logits([2, 30, 40], { all: true });
        expect(Array.from(data)).toEqual(Array.from({ length: 3 * 448 }, (_, i) => file.readFloatLE(i * 4)));
      },
      { kvCache: 'f32' },
    );
    const raw = await succeed(['logits', '--model', tiny, '--raw', 'Hi']);
    const bos = await succeed(['logits', '--model', tiny, '--raw', '--bos', 'Hi']);
    expect(bos.tokens).toEqual([2, ...(raw.tokens as number[])]);
    expect(raw.shape).toEqual([1, 448]);
  });

  test('perplexity', async () => {
    const file = join(folder, 'long.txt');
    writeFileSync(file, 'Some text to be scored, longer than one chunk of it. '.repeat(20));
    const result = await succeed(['perplexity', '--model', tiny, '--file', file, '--context', '64']);
    expect(result).toMatchObject({ perplexity: expect.any(Number), tokens: expect.any(Number) });
    expect(result.perplexity).toBeGreaterThan(1);
    expect(result.tokens).toBeGreaterThan(100);
  });

  test('inspect and devices', async () => {
    expect(await succeed(['inspect', tiny])).toMatchObject({
      config: { layers: 7 },
      tensorTypes: expect.any(Array),
      memory: expect.any(Array),
    });
    expect(await succeed(['devices'])).toMatchObject({
      backends: ['cpu'],
      devices: [{ name: 'cpu' }],
      isa: expect.any(String),
    });
  });

  test('GEMMA_ISA and the flags decide where it runs', async () => {
    const same = { env: { GEMMA_ISA: 'ref', GEMMA_THREADS: '1', GEMMA_DEVICE: 'cpu' } };
    expect(await succeed(['devices'], same)).toMatchObject({ isa: 'ref' });
    const text = await run(['run', '--model', tiny, '--max-tokens', '2', 'x'], same);
    expect(text.stderr).toContain('cpu, ref, 1 threads');
    const flags = [
      '--isa',
      'ref',
      '--threads',
      '2',
      '--device',
      'cpu',
      '--context',
      '128',
      '--kv',
      'q8_0',
      '--no-mmap',
    ];
    expect((await run(['run', '--model', tiny, ...flags, '--max-tokens', '2', 'x'])).stderr).toContain(
      'cpu, ref, 2 threads',
    );
    const unknown = { env: { GEMMA_ISA: 'sse9' } };
    expect(await run(['run', '--model', tiny, 'x', '--json'], unknown)).toMatchObject({ code: 1 });
    expect(await run(['devices', '--json'], unknown)).toMatchObject({ code: 1 });
  });
});

describe('failures', () => {
  test('are one JSON object and exit 1', async () => {
    const cases: [string[], string][] = [
      [['run', '--model', join(folder, 'none.gguf'), 'x'], 'ERR_FILE'],
      [['run', '--model', tiny, '--image', 'a.png', 'x'], 'ERR_UNSUPPORTED_INPUT'],
      [['run', '--model', tiny, '--context', '32', 'word '.repeat(100)], 'ERR_CONTEXT_FULL'],
      [['detokenize', '--model', tiny, '999999'], 'ERR_INVALID_ARGUMENT'],
      [['perplexity', '--model', tiny, '--file', join(folder, 'none.txt')], 'ERR_FILE'],
      [['inspect', join(folder, 'none.gguf')], 'ERR_FILE'],
    ];
    for (const [args, code] of cases) {
      const exit = await run([...args, '--json']);
      expect(exit).toMatchObject({ code: 1, stderr: '' });
      expect(json(exit)).toEqual({ error: expect.objectContaining({ code, message: expect.any(String) }) });
    }
  });

  test('of usage exit 2', async () => {
    const wrong = [
      ['run'],
      ['run', '--model', tiny, '--nonsense', 'x'],
      ['run', '--model', tiny, '--max-tokens', 'many', 'x'],
      ['run', '--model', tiny, '--temperature', '-1', 'x'],
      ['run', '--model', tiny, '--kv', 'q3', 'x'],
      ['run', '--model', tiny, '--alpha', 'black', 'x'],
      ['run', '--model', tiny, 'two', 'prompts'],
      ['dance'],
      ['detokenize', '--model', tiny, 'x'],
      [],
    ];
    for (const args of wrong) {
      const exit = await run(args);
      expect([args, exit.code, exit.stderr === '']).toEqual([args, 2, false]);
    }
  });

  test('without --json are a line on stderr', async () => {
    const exit = await run(['run', '--model', join(folder, 'none.gguf'), 'x']);
    expect(exit).toMatchObject({ code: 1, stdout: '' });
    expect(exit.stderr).toMatch(/^gemma-native: .*none\.gguf.*\(ERR_FILE\)\n$/);
  });
});

describe('for people', () => {
  test('run streams the text and tells the speed', async () => {
    const exit = await run(['run', '--model', tiny, '--max-tokens', '10', '--seed', '4', 'Hello']);
    expect(exit.code).toBe(0);
    expect(exit.stderr).toMatch(/prompt: \d+ tokens in .* answer: \d+ tokens in .*\(\d+\.\d\/s\), loaded in/);
    const result = await succeed(['run', '--model', tiny, '--max-tokens', '10', '--seed', '4', 'Hello']);
    expect(exit.stdout).toBe(`${result.text as string}\n`);
  });

  test('the others print text', async () => {
    expect((await run(['tokenize', '--model', tiny, 'Hi'])).stdout).toMatch(/^\d+( \d+)*\n$/);
    expect((await run(['logits', '--model', tiny, 'Hi'])).stdout).toMatch(/^position \d+, after/);
    expect((await run(['inspect', tiny])).stdout).toContain('memory by context size');
    expect((await run(['devices'])).stdout).toContain('instruction sets');
    expect(await run(['--version'])).toMatchObject({ code: 0, stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/) });
    expect((await run(['--help'])).stdout).toContain('perplexity');
  });

  test('Ctrl-C ends it cleanly', async () => {
    const exit = await run(['run', '--model', tiny, '--raw', '--seed', '1', '--context', '4096', 'x'], {
      onOutput: (kill) => kill('SIGINT'),
    });
    // The tiny model may have ended by itself before.
    expect([0, 130]).toContain(exit.code);
    expect(exit.signal).toBeNull();
  });
});
