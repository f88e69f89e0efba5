// Models that other programs have downloaded, the list of all, and the commands.
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { Gemma, GemmaError } from '../../lib/index.js';
import { cli, data, rejection, runNode, tiny } from './helpers.js';
import { COMMIT, FakeHub, hashOf } from './hub-server.js';

// The system's answer, which process.env of a test does not reach.
let mockHome = '';
jest.mock('node:os', () => ({ ...jest.requireActual<object>('node:os'), homedir: () => mockHome }));

const picture = join(data, 'mm-a-f16.gguf');
const encoder = join(data, 'mmproj-mm-a-f16.gguf');

let folder: string;
let hub: FakeHub;
const kept = { ...process.env };
beforeAll(async () => (hub = await new FakeHub().start()));
afterAll(() => hub.stop());
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'gemma-local-'));
  for (const name of ['OLLAMA_MODELS', 'HF_HOME', 'HF_HUB_CACHE', 'LLAMA_CACHE', 'XDG_CACHE_HOME', 'HF_TOKEN'])
    delete process.env[name];
  mockHome = folder;
});
afterEach(() => {
  process.env = { ...kept };
  hub.reset();
  rmSync(folder, { recursive: true });
});

async function detail(promise: Promise<unknown>): Promise<string> {
  const error = await rejection(promise);
  if (!(error instanceof GemmaError)) throw error;
  return `${error.code} ${error.detail}`;
}

function put(path: string, content: string | Buffer): string {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, content);
  return path;
}

const ollama = () => join(folder, '.ollama', 'models');
const kinds = { model: 'application/vnd.ollama.image.model', projector: 'application/vnd.ollama.image.projector' };

/** Puts a model where Ollama does. */
function ollamaModel(path: string, files: { model?: string; projector?: string }, root = ollama()): string[] {
  const paths: string[] = [];
  const layers = Object.entries(files).map(([kind, file]) => {
    const bytes = readFileSync(file);
    const digest = hashOf(bytes, true);
    paths.push(put(join(root, 'blobs', `sha256-${digest}`), bytes));
    return { mediaType: kinds[kind as 'model'], digest: `sha256:${digest}`, size: bytes.length };
  });
  const license = { mediaType: 'application/vnd.ollama.image.license', digest: `sha256:${'0'.repeat(64)}`, size: 5 };
  put(join(root, 'manifests', path), JSON.stringify({ schemaVersion: 2, layers: [...layers, license] }));
  return paths;
}

test("Ollama's models", async () => {
  ollamaModel('registry.ollama.ai/library/gemma3/4b', { model: picture, projector: encoder });
  const gemma = await Gemma.load('ollama:gemma3:4b');
  expect(gemma.info.vision).toBeDefined();
  await gemma.dispose();
  expect(await Gemma.inspect('ollama:gemma3:4b')).toEqual(await Gemma.inspect(picture, { mmproj: encoder }));
  const blind = await Gemma.load('ollama:gemma3:4b', { mmproj: false });
  expect(blind.info.vision).toBeUndefined();
  await blind.dispose();

  ollamaModel('hf.co/o/r/latest', { model: tiny });
  expect((await Gemma.inspect('ollama:hf.co/o/r')).config).toEqual((await Gemma.inspect(tiny)).config);
  expect(await detail(Gemma.load('ollama:gemma3:12b'))).toBe('ERR_DOWNLOAD NOT_FOUND');
  process.env.OLLAMA_MODELS = join(folder, 'other');
  expect(await detail(Gemma.load('ollama:gemma3:4b'))).toBe('ERR_DOWNLOAD NOT_FOUND');
  ollamaModel('registry.ollama.ai/library/gemma3/4b', { model: tiny }, join(folder, 'other'));
  expect((await Gemma.inspect('ollama:gemma3:4b')).vision).toBeUndefined();
});

test("Ollama's manifests may hold anything", async () => {
  const manifest = join(ollama(), 'manifests', 'registry.ollama.ai', 'library', 'x', 'latest');
  const digest = `sha256:${'a'.repeat(64)}`;
  const layer = { mediaType: kinds.model, digest, size: 5 };
  for (const text of [
    '',
    '[]',
    '{"layers":5}',
    '{"layers":[null]}',
    '{"layers":[{}]}',
    JSON.stringify({ layers: [{ ...layer, digest: 'sha256:../../../../etc/passwd' }] }),
    ' '.repeat(2 << 20),
  ]) {
    put(manifest, text);
    expect([text.slice(0, 60), await detail(Gemma.load('ollama:x'))]).toEqual([
      text.slice(0, 60),
      'ERR_DOWNLOAD BAD_RESPONSE',
    ]);
  }
  put(manifest, JSON.stringify({ layers: [layer] }));
  expect(await detail(Gemma.load('ollama:x'))).toBe('ERR_DOWNLOAD NOT_FOUND');
  const blob = put(join(ollama(), 'blobs', `sha256-${'a'.repeat(64)}`), 'four');
  expect(await detail(Gemma.load('ollama:x'))).toBe('ERR_DOWNLOAD HASH_MISMATCH');
  rmSync(blob);
  symlinkSync(put(join(folder, 'secret'), '12345'), blob);
  expect(await detail(Gemma.load('ollama:x'))).toBe('ERR_DOWNLOAD PATH_REJECTED');
  put(manifest, JSON.stringify({ layers: [] }));
  expect(await detail(Gemma.load('ollama:x'))).toBe('ERR_UNSUPPORTED_MODEL OLLAMA_LAYERS');
  put(manifest, JSON.stringify({ layers: [layer, { ...layer, mediaType: 'application/vnd.ollama.image.adapter' }] }));
  expect(await detail(Gemma.load('ollama:x'))).toBe('ERR_UNSUPPORTED_MODEL OLLAMA_LAYERS');
  rmSync(manifest);
  symlinkSync(put(join(folder, 'manifest'), JSON.stringify({ layers: [layer] })), manifest);
  expect(await detail(Gemma.load('ollama:x'))).toBe('ERR_DOWNLOAD PATH_REJECTED');
});

test("LM Studio's models", async () => {
  const models = join(folder, '.lmstudio', 'models', 'o', 'r');
  put(join(models, 'm-Q4_0.gguf'), readFileSync(picture));
  put(join(models, 'mmproj-m-f16.gguf'), readFileSync(encoder));
  put(join(models, 'm-Q8_0.gguf'), readFileSync(tiny));
  expect((await Gemma.inspect('lmstudio:o/r')).vision).toBeDefined();
  expect((await Gemma.inspect('lmstudio:o/r/m-Q8_0.gguf', { mmproj: false })).config).toEqual(
    (await Gemma.inspect(tiny)).config,
  );
  expect(await detail(Gemma.inspect('lmstudio:o/other'))).toBe('ERR_DOWNLOAD NOT_FOUND');
  expect(await detail(Gemma.inspect('lmstudio:o/r/none.gguf'))).toBe('ERR_DOWNLOAD NOT_FOUND');
  // Where its settings say.
  put(join(folder, '.lmstudio-home-pointer'), `${join(folder, 'home')}\n`);
  put(join(folder, 'home', 'settings.json'), JSON.stringify({ downloadsFolder: join(folder, 'chosen') }));
  put(join(folder, 'chosen', 'p', 'q', 'm.gguf'), readFileSync(tiny));
  expect((await Gemma.inspect('lmstudio:p/q')).config).toEqual((await Gemma.inspect(tiny)).config);
  put(join(folder, 'home', 'settings.json'), 'nonsense');
  expect(await detail(Gemma.inspect('lmstudio:p/q'))).toBe('ERR_DOWNLOAD NOT_FOUND');
});

test('all models on this machine, and what is none', async () => {
  expect(await Gemma.localModels()).toEqual([]);
  hub.add('org/model', { 'a-Q8_0.gguf': readFileSync(picture), 'mmproj-a-f16.gguf': readFileSync(encoder) });
  await Gemma.pull('hf:org/model', { endpoint: hub.endpoint });
  const [blob] = ollamaModel('registry.ollama.ai/library/gemma3/270m', { model: tiny });
  put(join(ollama(), 'manifests', 'registry.ollama.ai', 'library', 'broken', 'latest'), '{');
  const studio = put(
    join(folder, '.lmstudio', 'models', 'o', 'r', 'm.gguf'),
    readFileSync(join(data, 'text-a-q4_0.gguf')),
  );
  const cache = join(folder, '.cache', 'llama.cpp');
  process.env.LLAMA_CACHE = cache;
  const cached = join(cache, 'o_r_m.gguf');
  mkdirSync(cache, { recursive: true });
  copyFileSync(tiny, cached);
  put(join(cache, 'other.gguf'), 'no model');
  put(join(cache, 'p_q_mmproj-f16.gguf'), readFileSync(encoder));
  const models = await Gemma.localModels();
  const snapshot = join(folder, '.cache', 'huggingface', 'hub', 'models--org--model', 'snapshots', COMMIT);
  expect(models).toEqual([
    expect.objectContaining({
      name: 'hf:org/model:a-Q8_0.gguf',
      source: 'huggingface',
      path: join(snapshot, 'a-Q8_0.gguf'),
      mmproj: join(snapshot, 'mmproj-a-f16.gguf'),
      bytes: readFileSync(picture).length + readFileSync(encoder).length,
      vision: true,
      type: 'F16',
    }),
    expect.objectContaining({ name: 'ollama:gemma3:270m', source: 'ollama', path: blob, vision: false }),
    expect.objectContaining({ name: 'lmstudio:o/r/m.gguf', source: 'lmstudio', path: studio, type: 'Q4_0' }),
    expect.objectContaining({ name: cached, source: 'llama.cpp', path: cached }),
  ]);
  process.env.HF_HUB_OFFLINE = '1';
  for (const { name, vision } of models) expect((await Gemma.inspect(name)).vision !== undefined).toBe(vision);

  // The command shows the same.
  const env = { ...process.env, HOME: folder, USERPROFILE: folder };
  const shown = await runNode([cli, 'list', '--json'], { env });
  expect(JSON.parse(shown.stdout)).toEqual({ models });
  const text = await runNode([cli, 'list'], { env });
  for (const { name } of models) expect(text.stdout).toContain(name);
  expect(await rejection(Gemma.localModels({ signal: AbortSignal.abort(new Error('no')) }))).toEqual(new Error('no'));
});

test('pull and run on the command line', async () => {
  hub.add('org/model', { 'm.gguf': readFileSync(tiny) }, { license: 'gemma\x1b[31m' });
  const args = ['--endpoint', hub.endpoint, '--cache-dir', join(folder, 'cache')];
  const first = await runNode([cli, 'pull', 'hf:org/model', ...args]);
  const path = join(folder, 'cache', 'models--org--model', 'snapshots', COMMIT, 'm.gguf');
  expect(first).toMatchObject({ code: 0, stdout: `${path}\n` });
  expect(first.stderr).toMatch(
    /^org\/model@main \(c0ffeec\), licence: gemma \[31m\n {2}m.gguf {2}754 KiB\n754 KiB of 754 KiB to download\ntakes .*\n$/,
  );
  const again = await runNode([cli, 'pull', '--json', 'hf:org/model', ...args]);
  expect(again).toMatchObject({ code: 0, stderr: '' });
  expect(JSON.parse(again.stdout)).toMatchObject({ path, downloadedBytes: 0 });
  const none = await runNode([cli, 'pull', '--json', 'hf:org/none', ...args]);
  expect(none.code).toBe(1);
  expect(JSON.parse(none.stdout)).toMatchObject({ error: { code: 'ERR_DOWNLOAD', detail: 'NOT_FOUND' } });
  expect((await runNode([cli, 'pull', 'nothing', ...args])).code).toBe(2);
  const env = { HF_ENDPOINT: hub.endpoint, HF_HUB_CACHE: join(folder, 'fresh') };
  const run = await runNode(
    [cli, 'run', '--json', '--model', 'hf:org/model', '--max-tokens', '3', '--seed', '1', 'Hi'],
    { env },
  );
  expect(JSON.parse(run.stdout)).toMatchObject({ usage: { outputTokens: expect.any(Number) } });
});

test('a proxy is asked for everything, and not for what is excepted', async () => {
  hub.add('org/model', { 'm.gguf': readFileSync(tiny) });
  const asked: string[] = [];
  const tunnels: string[] = [];
  const proxy = createServer((request, response) => {
    asked.push(`${request.method} ${new URL(request.url ?? '').origin} ${request.headers['proxy-authorization']}`);
    void fetch(request.url ?? '', { redirect: 'manual', headers: { range: request.headers.range ?? 'bytes=0-' } }).then(
      async (answer) => {
        const headers = Object.fromEntries([...answer.headers].filter(([name]) => name !== 'transfer-encoding'));
        response.writeHead(answer.status, headers).end(Buffer.from(await answer.arrayBuffer()));
      },
    );
  }).on('connect', (request, socket) => {
    tunnels.push(request.url ?? '');
    socket.end('HTTP/1.1 403 Forbidden\r\n\r\n');
  });
  await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
  const { port } = proxy.address() as AddressInfo;
  try {
    process.env.HTTP_PROXY = process.env.HTTPS_PROXY = `http://me:word@127.0.0.1:${port}`;
    const options = { endpoint: hub.endpoint, cacheDir: join(folder, 'cache') };
    hub.knowsRanges = false;
    await Gemma.pull('hf:org/model', { ...options, check: false });
    const credentials = `Basic ${Buffer.from('me:word').toString('base64')}`;
    expect(asked).toEqual([
      `GET ${hub.endpoint} ${credentials}`,
      `GET ${hub.endpoint} ${credentials}`,
      `GET ${hub.cdn} ${credentials}`,
    ]);
    process.env.NO_PROXY = '127.0.0.1';
    await Gemma.pull('hf:org/model', { ...options, cacheDir: join(folder, 'direct'), check: false });
    expect(asked).toHaveLength(3);
    const error = (await rejection(
      Gemma.pull('hf:org/model', { ...options, endpoint: 'https://hub.invalid', cacheDir: join(folder, 'none') }),
    )) as GemmaError;
    expect(error).toMatchObject({ code: 'ERR_DOWNLOAD', detail: 'NETWORK' });
    expect(error.message).toContain(`the proxy 127.0.0.1:${port} answered 403`);
    expect(error.message).not.toContain('word');
    expect(tunnels[0]).toBe('hub.invalid:443');
  } finally {
    proxy.closeAllConnections();
    await new Promise((resolve) => proxy.close(resolve));
  }
});
