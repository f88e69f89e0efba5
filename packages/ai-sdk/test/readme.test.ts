// The examples of the README, and of the guide.
import * as fs from 'node:fs/promises';
import * as http from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import * as consumers from 'node:stream/consumers';
import * as ai from 'ai';
import * as gemmaNative from 'gemma-native';
import * as zod from 'zod';
import { data, root } from '../../../test/api/helpers.js';
import { runSnippet, snippets } from '../../../test/api/snippets.js';
import * as own from '../src/index.js';

const modules = {
  ai,
  zod,
  'gemma-native': gemmaNative,
  'gemma-native-ai-sdk': own,
  'node:fs/promises': fs,
  'node:http': http,
  'node:stream/consumers': consumers,
};
const renamed = {
  'hf:bartowski/google_gemma-3-4b-it-GGUF:Q4_K_M': 'demo',
  'hf:google/embeddinggemma-300m': join(data, 'embedding-f16.gguf').replaceAll('\\', '/'),
  'shapes.png': join(root, 'models', 'pictures', 'shapes.png').replaceAll('\\', '/'),
  'server.listen(3000)': "await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))",
};
const found = snippets('packages/ai-sdk/README.md');
const run = (i: number, wanted?: string[]) => runSnippet(found[i] ?? '', modules, renamed, wanted);
afterAll(() => own.gemma.dispose());

const paris = 'The capital of France is Paris.';

test('first lines, models', async () => {
  expect((await run(0)).printed).toEqual([paris, 12]);
  const { printed } = await run(1);
  expect(printed).toEqual([expect.any(String)]);
  const [guide = ''] = snippets('docs/guides/frameworks.md');
  expect((await runSnippet(guide, modules, renamed)).printed).toEqual([paris]);
});

test('pictures', async () => {
  expect(String((await run(2)).printed[0])).toMatch(/^A red circle at the top left, /);
});

test('tools', async () => {
  expect((await run(3)).printed.join('')).toBe('417 plus 311 is 728.');
});

test('structured output', async () => {
  expect((await run(4)).printed).toEqual([expect.any(String), expect.any(Number)]);
});

test('a chat in a web page: what the page reads', async () => {
  const { values } = await run(5, ['server']);
  const server = values.server as http.Server;
  try {
    const { port } = server.address() as AddressInfo;
    const message = { id: 'one', role: 'user', parts: [{ type: 'text', text: 'What is the capital of France?' }] };
    const body = JSON.stringify({ messages: [message] });
    const response = await fetch(`http://127.0.0.1:${port}/`, { method: 'POST', body });
    expect(response.headers.get('content-type')).toBe('text/event-stream');
    const lines = (await response.text()).split('\n\n').filter((line) => line !== '');
    expect(lines.at(-1)).toBe('data: [DONE]');
    const parts = lines
      .slice(0, -1)
      .map((line) => JSON.parse(line.slice('data: '.length)) as { type: string; delta?: string });
    expect(parts.map(({ delta = '' }) => delta).join('')).toBe(paris);
    const types = parts.map(({ type }) => type).filter((type) => type !== 'text-delta');
    expect(types).toEqual(['start', 'start-step', 'text-start', 'text-end', 'finish-step', 'finish']);
  } finally {
    server.close();
    server.closeAllConnections();
  }
});

test('embeddings, ranking, decisions', async () => {
  const { printed } = await run(6);
  expect(printed).toEqual([2, expect.any(Number), expect.any(String), expect.any(Number)]);
  expect(found).toHaveLength(7);
});
