// The examples run as they are, against the package under its own name.
import { join } from 'node:path';
import { realModel, root, runNode } from './helpers.js';

const examples: [string, RegExp][] = [
  ['five-lines.mjs', /France/],
  ['stream-abort.mjs', /\((stopped after a second|the story ended by itself)\)\n$/],
  ['chat.mjs', /^> What is the largest planet\?\n[^]*> How many moons/],
  ['several-at-once.mjs', /^The sun is[^]*The wind is[^]*80 tokens in/],
];

test.each(examples)('%s', async (name, output) => {
  const exit = await runNode([join(root, 'examples', name), realModel()]);
  expect(exit).toMatchObject({ code: 0, stderr: '' });
  expect(exit.stdout).toMatch(output);
});
