// The examples run as they are, against the package under its own name.
import { join } from 'node:path';
import { Gemma } from '../../lib/index.js';
import { data, realModel, root, runNode } from './helpers.js';

const examples: [string, RegExp][] = [
  ['five-lines.mjs', /France/],
  ['stream-abort.mjs', /\((stopped after a second|the story ended by itself)\)\n$/],
  ['chat.mjs', /^> What is the largest planet\?\n[^]*> How many moons/],
  ['classify.mjs', /^I loved[^\n]*-> good \(\d+ %\)\nA complete[^\n]*-> bad [^\n]*\nThe cook[^\n]*\n$/],
  [
    'decide.mjs',
    /^I loved[^\n]*-> good \(\d+ %, coverage 0\.\d+\)\nIt broke[^\n]*-> bad [^\n]*\n(bug|billing|praise), urgent with [^\n]*\n(\d\.\d\d [^\n]*\n){3}$/,
  ],
  [
    'conversation.mjs',
    /^> What is the largest planet\?\n[^]*> How many rings[^]*read, \d+ of them before\)\nsystem: [^]*\nassistant: /,
  ],
  ['several-at-once.mjs', /^The sun is[^]*The wind is[^]*80 tokens in/],
];

test.each(examples)('%s', async (name, output) => {
  const exit = await runNode([join(root, 'examples', name), realModel()]);
  expect(exit).toMatchObject({ code: 0, stderr: '' });
  expect(exit.stdout).toMatch(output);
});

// Those with pictures run on the tiny model, whose answers say nothing.
const seeing = join(data, 'mm-a-f16.gguf');
const picture = (name: string) => join(data, 'images', name);

const withPictures: [string, string[], RegExp][] = [
  ['describe-picture.mjs', [picture('photo.png')], /\n$/],
  ['compare-pictures.mjs', [picture('odd.png'), picture('photo.png')], /> What is[^]*> Which of[^]*s; [1-9]\d* of/],
  ['read-page.mjs', [picture('wide.png')], /330 x 96, 0 crops\n\nWithout[^]*\n\nWith/],
  ['near-duplicates.mjs', [], /^\d+ pairs among 100 pictures\n[^]*drawn 0 {2}drawn 90\n/],
  ['near-duplicates.mjs', [join(data, 'images')], /^\d+ pairs among 14 pictures\n/],
];

test.each(withPictures)('%s', async (name, args, output) => {
  const exit = await runNode([join(root, 'examples', name), seeing, ...args]);
  expect(exit).toMatchObject({ code: 0, stderr: '' });
  expect(exit.stdout).toMatch(output);
});

test('moderate.mjs', async () => {
  const args = [Gemma.demoModel, join(data, 'images'), '--force'];
  const exit = await runNode([join(root, 'examples', 'moderate.mjs'), ...args]);
  expect(exit).toMatchObject({ code: 0, stderr: '' });
  expect(exit.stdout).toMatch(
    /^((LOOK AT|passes ) \S+: dangerous \d\.\d\d, sexual [^\n]*, violence [^\n]*, alcohol \d\.\d\d\n)+$/,
  );
});

test('search.mjs', async () => {
  for (const model of [join(data, 'embedding-f16.gguf'), join(data, 'text-a-f16.gguf')]) {
    const exit = await runNode([join(root, 'examples', 'search.mjs'), model, 'Which leaves?']);
    expect(exit).toMatchObject({ code: 0, stderr: '' });
    expect(exit.stdout).toMatch(/^> Which leaves\?\n(-?[01]\.\d{3} {2}.+\.\n){5}$/);
  }
});

// Those that the demonstration model and its adapter answer.
const demonstrated: [string, RegExp][] = [
  [
    'tools.mjs',
    /^> What is 417[^]*\nadd\(\{"a":417,"b":311\}\) = 728\n417 plus 311 is 728\.\n> What is the capital[^]*\nThe capital of France is Paris\.\n$/,
  ],
  ['picture-as-json.mjs', /^shape 1\nshape 2\nshape 3\nshape 4\n[^]*circle[^]*red[^]*top left[^]*triangle[^]*green/],
];

test.each(demonstrated)('%s', async (name, output) => {
  const exit = await runNode([join(root, 'examples', name)]);
  expect(exit).toMatchObject({ code: 0, stderr: '' });
  expect(exit.stdout).toMatch(output);
});
