// The examples of the README, and of the guide.
import * as fs from 'node:fs/promises';
import { join } from 'node:path';
import * as messages from '@langchain/core/messages';
import * as tools from '@langchain/core/tools';
import * as gemmaNative from 'gemma-native';
import * as zod from 'zod';
import { data, root } from '../../../test/api/helpers.js';
import { runSnippet, snippets } from '../../../test/api/snippets.js';
import * as own from '../src/index.js';

const modules = {
  zod,
  'gemma-native': gemmaNative,
  'gemma-native-langchain': own,
  '@langchain/core/messages': messages,
  '@langchain/core/tools': tools,
  'node:fs/promises': fs,
};
const renamed = {
  'hf:google/embeddinggemma-300m': join(data, 'embedding-f16.gguf').replaceAll('\\', '/'),
  'shapes.png': join(root, 'models', 'pictures', 'shapes.png').replaceAll('\\', '/'),
};
const found = snippets('packages/langchain/README.md');
const run = async (i: number) => (await runSnippet(found[i] ?? '', modules, renamed)).printed;

test('first lines', async () => {
  const [content, usage, ...others] = await run(0);
  expect(content).toBe('The capital of France is Paris.');
  const [, guide = ''] = snippets('docs/guides/frameworks.md');
  expect((await runSnippet(guide, modules, renamed)).printed).toEqual([content]);
  expect(usage).toMatchObject({ input_tokens: 20, output_tokens: 12 });
  expect(others.slice(0, -1).join('')).toBe('One, two, three, four, five.');
  expect(others.at(-1)).toEqual([expect.stringMatching(/^Hello/), expect.any(String)]);
});

test('pictures', async () => {
  expect(String((await run(1))[0])).toMatch(/^A red circle at the top left, /);
});

test('tools', async () => {
  expect(await run(2)).toEqual(['417 plus 311 is 728.']);
});

test('structured output, embeddings', async () => {
  expect(await run(3)).toEqual([{ city: expect.any(String), inhabitants: expect.any(Number) }]);
  expect(await run(4)).toEqual([2, expect.any(Number)]);
  expect(found).toHaveLength(5);
});
