// The package as it would be published: packed, installed elsewhere, imported both ways.
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { root, runNode, tiny } from './helpers.js';

let folder: string;
let files: string[];

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'gemma-package-'));
  const npm = process.env.npm_execpath;
  const args = ['pack', '--ignore-scripts', '--json', '--pack-destination', folder];
  const output = npm
    ? execFileSync(process.execPath, [npm, ...args], { cwd: root, encoding: 'utf8' })
    : execFileSync('npm', args, { cwd: root, encoding: 'utf8' });
  const packed = JSON.parse(output) as
    { filename: string; files: { path: string }[] }[] | Record<string, { filename: string; files: { path: string }[] }>;
  const [entry] = Object.values(packed);
  files = entry?.files.map((file) => file.path) ?? [];
  // Installed by hand, so that the test needs no registry: its dependencies are those of this checkout.
  const target = join(folder, 'node_modules', 'gemma-native');
  mkdirSync(target, { recursive: true });
  execFileSync('tar', ['-xzf', join(folder, entry?.filename ?? ''), '--strip-components=1', '-C', target]);
  for (const name of [
    'node-gyp-build',
    'commander',
    'cli-progress',
    'string-width',
    'strip-ansi',
    'ansi-regex',
    'emoji-regex',
    'is-fullwidth-code-point',
  ]) {
    symlinkSync(join(root, 'node_modules', name), join(folder, 'node_modules', name));
  }
  const prebuilds = join(target, 'prebuilds', `${process.platform}-${process.arch}`);
  mkdirSync(prebuilds, { recursive: true });
  if (!readdirSync(prebuilds).length) {
    symlinkSync(join(root, 'build', 'Release', 'gemma_native.node'), join(prebuilds, 'gemma-native.node'));
  }
});
afterAll(() => rmSync(folder, { recursive: true }));

test('holds what it needs and no more', () => {
  expect(files).toEqual(
    expect.arrayContaining([
      'package.json',
      'README.md',
      'LICENSE',
      'NOTICE',
      'dist/index.js',
      'dist/index.mjs',
      'dist/index.d.ts',
      'dist/index.d.mts',
      'dist/cli/main.js',
      'models/demo.gguf',
      'models/mmproj-demo.gguf',
    ]),
  );
  expect(
    files.filter(
      (path) => !/^(dist\/|prebuilds\/|models\/|package\.json$|README\.md$|CHANGELOG\.md$|LICENSE$|NOTICE$)/.test(path),
    ),
  ).toEqual([]);
});

const USE = `
  const gemma = await Gemma.load(${JSON.stringify(tiny)});
  const { tokens } = await gemma.generate('Hi', { maxOutputTokens: 3, temperature: 0 });
  await gemma.dispose();
  const error = await Gemma.load('none').catch((error) => error);
  console.log(tokens.length > 0, error instanceof GemmaError, error.code);`;
const RESULT = { code: 0, stdout: 'true true ERR_FILE\n', stderr: '' };

test('imports as an ES module', async () => {
  writeFileSync(join(folder, 'use.mjs'), `import { Gemma, GemmaError } from 'gemma-native';${USE}`);
  expect(await runNode(['use.mjs'], { cwd: folder })).toMatchObject(RESULT);
});

test('is required from CommonJS', async () => {
  writeFileSync(
    join(folder, 'use.cjs'),
    `const { Gemma, GemmaError } = require('gemma-native'); (async () => {${USE}})();`,
  );
  expect(await runNode(['use.cjs'], { cwd: folder })).toMatchObject(RESULT);
});

// What a start takes is mostly modules, each a file to find, read and compile.
test('has loaded with its first answer nothing that only other calls need', async () => {
  writeFileSync(
    join(folder, 'start.cjs'),
    `const { basename } = require('node:path');
    const { Gemma } = require('gemma-native');
    (async () => {
      const gemma = await Gemma.load(${JSON.stringify(tiny)});
      await gemma.generate('Hi', { maxOutputTokens: 3 });
      const loaded = [
        ...process.moduleLoadList.map((name) => name.replace('NativeModule ', '')),
        ...Object.keys(require.cache).map((path) => basename(path)),
      ];
      await gemma.dispose();
      console.log(JSON.stringify(loaded));
    })();`,
  );
  const { code, stdout } = await runNode(['start.cjs'], { cwd: folder });
  expect(code).toBe(0);
  const loaded = JSON.parse(stdout) as string[];
  expect(loaded).toEqual(expect.arrayContaining(['fs', 'gemma.js', 'native.js', 'prompt.js']));
  const builtIn = ['http', 'https', 'net', 'tls', 'dns', 'crypto', 'child_process', 'worker_threads'];
  const own = ['pull', 'local', 'image', 'remote', 'video', 'schema', 'json-schema', 'pattern', 'structured', 'tools'];
  const others = ['tool-loop', 'functiongemma', 'batch', 'embed', 'score', 'quantize', 'merge', 'peft-config'];
  const wanted = [...builtIn, ...[...own, ...others].map((name) => `${name}.js`)];
  expect(loaded.filter((name) => wanted.includes(name))).toEqual([]);
});

test('is one and the same both ways', async () => {
  writeFileSync(
    join(folder, 'both.mjs'),
    `import * as esm from 'gemma-native'; import { createRequire } from 'node:module';
    const cjs = createRequire(import.meta.url)('gemma-native');
    console.log(Object.keys(cjs).filter((name) => name !== '__esModule').every((name) => esm[name] === cjs[name]));`,
  );
  expect(await runNode(['both.mjs'], { cwd: folder })).toMatchObject({ code: 0, stdout: 'true\n', stderr: '' });
});

test('brings its command', async () => {
  const main = join(folder, 'node_modules', 'gemma-native', 'dist', 'cli', 'main.js');
  expect(await runNode([main, 'devices', '--json'], { cwd: folder })).toMatchObject({ code: 0 });
});
