// Under Node's permission model: what is needed, and errors that say what is missing.
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { writeSentenceModel } from './checkpoint.js';
import { data, root, runNode, tiny } from './helpers.js';
import { FakeHub } from './hub-server.js';

const permission = process.allowedNodeEnvironmentFlags.has('--permission')
  ? '--permission'
  : '--experimental-permission';
// The package and what it depends on, which lies inside it here.
const own = [root, realpathSync(join(root, 'node_modules'))].map((path) => `--allow-fs-read=${join(path, '/')}`);

let folder: string;
beforeAll(() => (folder = mkdtempSync(join(tmpdir(), 'gemma-permission-'))));
afterAll(() => rmSync(folder, { recursive: true }));

/** What a program prints that may do only what the flags say. */
async function run(flags: readonly string[], program: string): Promise<string> {
  const script = join(folder, 'program.cjs');
  writeFileSync(
    script,
    `
    const { Gemma } = require(${JSON.stringify(root)});
    (async () => {
      try { process.stdout.write(String(await (${program})())); }
      catch (error) { process.stdout.write([error.name, error.code, error.detail, error.message].join('|')); }
    })();`,
  );
  const { stdout, stderr } = await runNode([permission, `--allow-fs-read=${script}`, ...flags, script]);
  return stdout || stderr;
}

const answer = (options = {}) => `async () => {
  const gemma = await Gemma.load('demo', ${JSON.stringify(options)});
  const { text } = await gemma.generate('What is the capital of France?', { temperature: 0 });
  await gemma.dispose();
  return text;
}`;
const paris = 'The capital of France is Paris.';

test('--allow-addons and reading the package are enough', async () => {
  expect(await run([...own, '--allow-addons'], answer())).toBe(paris);
});

test('without --allow-addons: that comes first', async () => {
  expect(await run(own, answer())).toMatch(
    /^GemmaError\|ERR_BACKEND_UNAVAILABLE\|NO_BINARY\|Node was started so that it loads no native addons: add --allow-addons/,
  );
});

test('files that may not be read are not read, by native code either', async () => {
  const model = join(folder, 'model.gguf');
  const other = join(folder, 'other.gguf');
  copyFileSync(tiny, model);
  copyFileSync(tiny, other);
  const load = (path: string, options = {}) =>
    `async () => { const gemma = await Gemma.load(${JSON.stringify(path)}, ${JSON.stringify(options)}); await gemma.dispose(); return 'loaded'; }`;
  const flags = [...own, '--allow-addons', `--allow-fs-read=${model}`];
  const denied = (path: string) =>
    `GemmaError|ERR_FILE|PERMISSION|Node's permission model forbids reading a file: allow it with --allow-fs-read=${path}`;
  expect(await run(flags, load(model))).toBe('loaded');
  expect(await run(flags, load(other))).toBe(denied(other));
  expect(await run(flags, load(folder))).toBe(denied(folder));
  expect(await run(flags, load(model, { draft: other }))).toBe(denied(other));
  expect(await run(flags, load(model, { mmproj: other }))).toBe(denied(other));
  expect(await run(flags, `() => Gemma.inspect(${JSON.stringify(other)})`)).toBe(denied(other));
  expect(await run(flags, `() => Gemma.estimate(${JSON.stringify(model)}, { draft: ${JSON.stringify(other)} })`)).toBe(
    denied(other),
  );
  const [first, second] = ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf'].map((name) => join(folder, name)) as [
    string,
    string,
  ];
  copyFileSync(tiny, first);
  copyFileSync(tiny, second);
  expect(await run([...flags, `--allow-fs-read=${first}`], load(first))).toBe(denied(second));
});

test('folders of modules of sentence-transformers', async () => {
  const path = writeSentenceModel(join(folder, 'sentence'), join(data, 'embedding-f16.gguf'), {
    pooling: 'mean',
    normalize: true,
    dense: [{ activation: 'Identity', bias: false }],
  });
  const load = `async () => { const gemma = await Gemma.load(${JSON.stringify(path)}); await gemma.dispose(); return 'loaded'; }`;
  const flags = [...own, '--allow-addons'];
  expect(await run([...flags, `--allow-fs-read=${join(path, '/')}`], load)).toBe('loaded');
  expect(await run(flags, load)).toMatch(/^GemmaError\|ERR_FILE\|PERMISSION\|/);
});

test('video and chat templates of other models: the flag is named', async () => {
  const flags = [...own, '--allow-addons'];
  const video = `async () => {
    const gemma = await Gemma.load('demo');
    const content = [{ type: 'video', video: ${JSON.stringify(join(root, 'package.json'))} }];
    return gemma.generate([{ role: 'user', content }]).finally(() => gemma.dispose());
  }`;
  expect(await run(flags, video)).toMatch(/^GemmaError\|ERR_VIDEO\|NO_FFMPEG\|.*--allow-child-process$/);
  const template = `async () => {
    const gemma = await Gemma.load('demo', { chatTemplate: '{{ messages[0].content }}' });
    return gemma.generate([{ role: 'user', content: 'Hi' }]).then(() => 'answered').finally(() => gemma.dispose());
  }`;
  expect(await run(flags, template)).toMatch(/^GemmaError\|ERR_CHAT_TEMPLATE\|TEMPLATE_THREAD\|.*--allow-worker$/);
  expect(await run([...flags, '--allow-worker'], template)).toBe('answered');
});

test('images, with what sharp needs', async () => {
  const image = join(root, 'models', 'pictures', 'shapes.png');
  const program = `async () => {
    const gemma = await Gemma.load('demo');
    const { shape } = await gemma.embedImage(${JSON.stringify(image)});
    await gemma.dispose();
    return shape;
  }`;
  expect(await run([...own, '--allow-addons'], program)).toMatch(/^\d+,\d+$/);
});

test('models of the hub, with the cache', async () => {
  const hub = await new FakeHub().start();
  try {
    hub.add('org/model', { 'm.gguf': readFileSync(tiny) });
    const cacheDir = join(folder, 'cache');
    const options = { endpoint: hub.endpoint, cacheDir, token: false, check: false };
    const pull = `async () => (await Gemma.pull('hf:org/model', ${JSON.stringify(options)})).path`;
    const flags = [
      ...own,
      '--allow-addons',
      ...(process.allowedNodeEnvironmentFlags.has('--allow-net') ? ['--allow-net'] : []),
    ];
    expect(await run(flags, pull)).toBe(
      `GemmaError|ERR_FILE|PERMISSION|Node's permission model forbids it: allow it with --allow-fs-write=${cacheDir}`,
    );
    mkdirSync(cacheDir);
    const cache = [`--allow-fs-read=${join(cacheDir, '/')}`, `--allow-fs-write=${join(cacheDir, '/')}`];
    const path = await run([...flags, ...cache], pull);
    expect(path).toMatch(/m\.gguf$/);
    expect(readFileSync(path).equals(readFileSync(tiny))).toBe(true);
  } finally {
    await hub.stop();
  }
});
