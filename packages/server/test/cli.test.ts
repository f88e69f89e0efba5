// The command `gemma-native-server`, as its own process: from its start to a first answer and its end, and what it says of wrong flags.
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gemma } from 'gemma-native';
import { root, runNode, tiny } from '../../../test/api/helpers.js';
import { post } from './helpers.js';

const command = join(root, 'packages', 'server', 'dist', 'main.js');
const quiet = ['--log-level', 'silent', '--port', '0'];

interface Started {
  child: ChildProcess;
  url: string;
  /** what it has written to the standard error */
  said: () => string;
}

async function started(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Started> {
  const child = spawn(process.execPath, [command, ...quiet, ...args], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let said = '';
  const url = await new Promise<string>((resolve, reject) => {
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said += text;
      const [, found] = /listens on (\S+)\n/.exec(said) ?? [];
      if (found) resolve(found);
    });
    child.once('error', reject);
    child.once('exit', (code) => reject(new Error(`it ended with ${code}: ${said}`)));
  });
  return { child, url, said: () => said };
}

async function ended({ child }: Started): Promise<unknown> {
  const exit = once(child, 'exit');
  child.kill('SIGTERM');
  return (await exit)[0];
}

// As `npm run serve` starts it (scripts/start.mjs).
test('the demonstration model answers, its adapter too, until a signal ends it', async () => {
  const running = await started(['--model', 'demo', '--adapter', `tools=${Gemma.demoAdapter}`, '--pin']);
  try {
    const page = await fetch(running.url);
    expect(await page.text()).toContain('<title>Gemma</title>');
    const ask = async (content: string, more: object = {}) => {
      const body = { model: 'demo', messages: [{ role: 'user', content }], temperature: 0, ...more };
      const answer = await post(`${running.url}/v1/chat/completions`, body);
      return (answer.body.choices as { message: { content: string | null; tool_calls?: unknown[] } }[])[0]!.message;
    };
    expect((await ask('What is the capital of France?')).content).toBe('The capital of France is Paris.');
    const integers = { a: { type: 'integer' }, b: { type: 'integer' } };
    const parameters = { type: 'object', properties: integers, required: ['a', 'b'] };
    const tools = [{ type: 'function', function: { name: 'add', description: 'Adds two numbers', parameters } }];
    const { tool_calls: calls } = await ask('What is 417 plus 311?', { tools, adapter: 'tools' });
    expect(calls).toMatchObject([{ function: { name: 'add' } }]);
    // More at the same time than an event's listeners may be before Node warns.
    const many = await Promise.all(Array.from({ length: 24 }, () => ask('What is the capital of France?')));
    expect(new Set(many.map(({ content }) => content))).toEqual(new Set(['The capital of France is Paris.']));
  } finally {
    expect(await ended(running)).toBe(0);
  }
  expect(running.said()).toBe(`gemma-native-server listens on ${running.url}\n`);
});

test('keys come from a file and from the environment; models have names and aliases', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'gemma-server-cli-'));
  const file = join(folder, 'keys');
  writeFileSync(file, 'of the file\r\n\n another \n');
  const flags = ['--model', `small=${tiny}`, '--context', '256', '--alias', 'gpt-4o=small', '--api-key-file', file];
  const running = await started(flags, { GEMMA_SERVER_API_KEY: 'of the environment' });
  try {
    for (const [key, status] of [
      ['of the file', 200],
      ['another', 200],
      ['of the environment', 200],
      ['wrong', 401],
    ] as const) {
      const headers = { authorization: `Bearer ${key}` };
      expect((await fetch(`${running.url}/v1/models/gpt-4o`, { headers })).status).toBe(status);
    }
  } finally {
    expect(await ended(running)).toBe(0);
    rmSync(folder, { recursive: true });
  }
});

test('what is wrong is told in a line, with an exit code', async () => {
  const blocker = createServer().listen(0, '127.0.0.1');
  await once(blocker, 'listening');
  const { port } = blocker.address() as AddressInfo;
  const model = ['--model', tiny];
  try {
    const cases: [args: string[], code: number, said: string][] = [
      [[], 2, "required option '--model <model>' not specified"],
      [[...model, '--nothing'], 2, "unknown option '--nothing'"],
      [[...model, '--port', 'x'], 2, 'Expected a whole number'],
      [[...model, '--host', '0.0.0.0'], 2, 'host: 0.0.0.0 can be reached by others; give an API key'],
      [[...model, '--alias', 'a=b'], 2, '--alias: there is no model b'],
      [[...model, ...model], 2, 'models: two are called text-a-f16'],
      [[...model, '--model', 'demo', '--draft', tiny], 2, '--draft: only with one model'],
      [['--model', 'nowhere.gguf', '--pin', '--port', '0'], 1, 'nowhere.gguf'],
      [[...model, '--port', String(port)], 1, 'EADDRINUSE'],
    ];
    const exits = await Promise.all(cases.map(([args]) => runNode([command, '--log-level', 'silent', ...args])));
    cases.forEach(([args, code, said], i) => {
      const { code: found, stderr } = exits[i]!;
      expect([args, found, stderr]).toEqual([args, code, expect.stringContaining(said)]);
      expect(stderr.trim().split('\n').length).toBeLessThan(3); // no stack
    });
  } finally {
    blocker.close();
  }
});
