// The examples of the guides to the server and of its README, as they stand there but for the address.
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import * as genai from '@google/genai';
import { Gemma } from 'gemma-native';
import * as ollama from 'ollama';
import OpenAI from 'openai';
import { root, tiny } from '../../../test/api/helpers.js';
import { runSnippet, snippets } from '../../../test/api/snippets.js';
import * as own from '../src/index.js';
import { lendDispatcher, start, type Running } from './helpers.js';

const picture = readFileSync(join(root, 'models', 'pictures', 'shapes.png')).toString('base64');
const modules = {
  openai: { default: OpenAI },
  '@google/genai': genai,
  ollama,
  'gemma-native-server': own,
};

lendDispatcher();

let demo: Gemma;
let running: Running;
let renamed: Record<string, string>;
beforeAll(async () => {
  demo = await Gemma.load('demo');
  running = await start({ models: [{ name: 'chat', model: demo, aliases: ['gemma'] }] });
  renamed = {
    'http://127.0.0.1:8080': running.url,
    'data:image/jpeg;base64,...': `data:image/png;base64,${picture}`,
    'gemma-3-4b-it-Q4_K_M.gguf': tiny.replaceAll('\\', '/'),
    'port: 8080': 'port: 0',
  };
});
afterAll(async () => {
  await running.server.close();
  await demo.dispose();
});

const run = async (path: string, i = 0) => (await runSnippet(snippets(path)[i]!, modules, renamed)).printed;

test.each(['server', 'server-gemini', 'server-ollama'])('what %s.md says with curl', async (name) => {
  const lines = snippets(`docs/guides/${name}.md`, 'sh').flatMap((code) => code.match(/^curl (?:.*\\\n)*.*$/gm) ?? []);
  expect(lines.length).toBeGreaterThan(0);
  for (const line of lines) {
    const at = line.replaceAll('http://127.0.0.1:8080', running.url);
    const { stdout } = await promisify(execFile)('sh', ['-c', at.replace(/^curl /, 'curl --silent --show-error ')]);
    expect(stdout).toContain('The capital of France is Paris.');
  }
});

test('what they say in JavaScript', async () => {
  const pieces = await run('docs/guides/server.md');
  expect(pieces.join('')).toMatch(/\w/);
  for (const name of ['server-gemini', 'server-ollama']) {
    expect(await run(`docs/guides/${name}.md`)).toEqual([expect.stringMatching(/\w/)]);
  }
});

test('the README', async () => {
  const readme = 'packages/server/README.md';
  const { values } = await runSnippet(snippets(readme)[0]!, modules, renamed, ['choices']);
  expect((values.choices as OpenAI.ChatCompletion.Choice[])[0]!.message.content).toMatch(/\w/);
  expect(await run(readme, 1)).toEqual([expect.stringMatching(/^http:\/\/127\.0\.0\.1:\d+$/)]);
});
