// Getting models from a hub: what is chosen, where it goes, and everything that may go wrong on the way.
import { randomBytes } from 'node:crypto';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative, sep } from 'node:path';
import { Gemma, GemmaError, type PullOptions, type PullProgress } from '../../lib/index.js';
import { pullModel } from '../../lib/hub/pull.js';
import type { PullSettings } from '../../lib/hub/pulled.js';
import { parseModelName, type HubName } from '../../lib/hub/names.js';
import { TUNING, type Tuning } from '../../lib/hub/transfer.js';
import { writeSentenceModel } from './checkpoint.js';
import { data, rejection, tiny } from './helpers.js';
import { COMMIT, FakeHub, hashOf } from './hub-server.js';

let mockTemporary: string | undefined;
jest.mock('node:os', () => {
  const os = jest.requireActual<typeof import('node:os')>('node:os');
  return { ...os, tmpdir: () => mockTemporary ?? os.tmpdir() };
});

let hub: FakeHub;
let folder: string;
beforeAll(async () => (hub = await new FakeHub().start()));
afterAll(() => hub.stop());
beforeEach(() => (folder = mkdtempSync(join(tmpdir(), 'gemma-hub-'))));
afterEach(() => {
  hub.reset();
  hub.repos.clear();
  rmSync(folder, { recursive: true });
});

const own = (): PullOptions => ({ endpoint: hub.endpoint, cacheDir: folder, token: false });
const pull = (name: string, options: PullOptions = {}) => Gemma.pull(name, { ...own(), check: false, ...options });

/** The same without waiting. */
function hasty(name: string, tuning: Partial<Tuning> = {}, options: Partial<PullSettings> = {}, signal?: AbortSignal) {
  const settings: PullSettings = {
    endpoint: hub.endpoint,
    cacheDir: folder,
    token: false,
    mmproj: true,
    check: false,
    onProgress: () => {},
    ...options,
  };
  const quick = { ...TUNING, backoffMs: 0, ...tuning };
  return pullModel(parseModelName(name) as HubName, settings, signal ?? new AbortController().signal, quick);
}

async function detail(promise: Promise<unknown>): Promise<string> {
  const error = await rejection(promise);
  if (!(error instanceof GemmaError)) throw error;
  expect(error.message).not.toMatch(/secret|signature/);
  return `${error.code} ${error.detail}`;
}

const repoFolder = () => join(folder, 'models--org--model');
const blob = (hash: string) => join(repoFolder(), 'blobs', hash);
const big = randomBytes(300_000);

describe('a model', () => {
  test('is downloaded into the cache as huggingface_hub lays it out', async () => {
    const files = { 'README.md': 'hello', 'sub/model-Q4_K_M.gguf': big, 'mmproj-f16.gguf': randomBytes(5000) };
    const repo = hub.add('org/model', files, { license: 'gemma' });
    const events: PullProgress[] = [];
    const result = await pull('hf:org/model', { onProgress: (event) => events.push(event) });
    const snapshot = join(repoFolder(), 'snapshots', COMMIT);
    expect(result).toEqual({
      path: join(snapshot, 'sub', 'model-Q4_K_M.gguf'),
      mmproj: join(snapshot, 'mmproj-f16.gguf'),
      bytes: 305_000,
      downloadedBytes: 305_000,
      files: ['sub/model-Q4_K_M.gguf', 'mmproj-f16.gguf'],
      repo: 'org/model',
      revision: 'main',
      commit: COMMIT,
      license: 'gemma',
      upToDate: true,
    });
    expect(readFileSync(result.path)).toEqual(big);
    const { hash } = repo.files.get('sub/model-Q4_K_M.gguf')!;
    expect(readlinkSync(result.path)).toBe(join('..', '..', '..', 'blobs', hash));
    expect(readFileSync(join(repoFolder(), 'refs', 'main'), 'utf8')).toBe(COMMIT);
    expect(readdirSync(join(repoFolder(), 'blobs')).sort()).toEqual(
      [hash, repo.files.get('mmproj-f16.gguf')!.hash].sort(),
    );
    expect(events[0]).toMatchObject({
      stage: 'plan',
      bytes: 0,
      fraction: 0,
      plan: {
        license: 'gemma',
        gated: false,
        page: `${hub.endpoint}/org/model`,
        totalBytes: 305_000,
        downloadBytes: 305_000,
        files: [
          { name: 'sub/model-Q4_K_M.gguf', bytes: 300_000, cached: false },
          { name: 'mmproj-f16.gguf', bytes: 5000, cached: false },
        ],
      },
    });
    expect(events.at(-1)).toMatchObject({ stage: 'done', bytes: 305_000, fraction: 1 });

    // Again: one look at the hub, nothing downloaded.
    hub.requests.length = 0;
    expect(await pull('hf:org/model')).toMatchObject({ path: result.path, downloadedBytes: 0, upToDate: true });
    expect(hub.requests.map(({ kind }) => kind)).toEqual(['api']);
  });

  test('is loaded, estimated and inspected by its name', async () => {
    hub.add('org/model', { 'text-a-f16.gguf': readFileSync(tiny) });
    const options = { hub: { endpoint: hub.endpoint, cacheDir: folder, token: false as const } };
    // Before it is here: by its first bytes.
    expect(await Gemma.estimate('hf:org/model', options)).toEqual({
      ...(await Gemma.estimate(tiny)),
      availableBytes: expect.any(Number),
    });
    const summary = await Gemma.inspect('hf:org/model', options);
    expect(summary).toEqual(await Gemma.inspect(tiny));
    expect(existsSync(join(repoFolder(), 'snapshots'))).toBe(false);
    const stages: string[] = [];
    const onProgress = ({ stage }: PullProgress) => stages.push(stage);
    const gemma = await Gemma.load('hf:org/model', { hub: { ...options.hub, onProgress } });
    expect(await gemma.countTokens('Hi')).toBeGreaterThan(0);
    await gemma.dispose();
    expect([...new Set(stages)]).toEqual(['plan', 'download', 'done']);
    // And without the hub.
    const offline = await Gemma.load('hf:org/model', {
      hub: { ...options.hub, endpoint: 'http://127.0.0.1:9', offline: true },
    });
    await offline.dispose();
  });

  test('of sentence-transformers comes with the folders of its modules, and nothing else', async () => {
    const identity = { activation: 'Identity', bias: false };
    const source = writeSentenceModel(join(folder, 'source'), join(data, 'embedding-f16.gguf'), {
      pooling: 'mean',
      normalize: true,
      dense: [identity, identity],
      prompts: { prompts: { query: 'find: ' } },
    });
    const names = readdirSync(source, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => relative(source, join(entry.parentPath, entry.name)).split(sep).join('/'));
    const others = [
      'onnx/config.json',
      'original/model.safetensors',
      '2_Dense/pytorch_model.bin',
      '2_Dense/x/config.json',
    ];
    const files = Object.fromEntries(names.map((name) => [name, readFileSync(join(source, name))]));
    hub.add('org/model', { ...files, ...Object.fromEntries(others.map((name) => [name, big])) });
    const options = { hub: { endpoint: hub.endpoint, cacheDir: folder, token: false as const } };
    const texts = ['Paris', 'a longer text than that'];
    const own = await Gemma.load(source);
    const want = await own.embed(texts, { task: 'query' });
    const { config } = await Gemma.inspect('hf:org/model', options);
    expect({ ...config, name: own.info.config.name }).toEqual(own.info.config);
    await own.dispose();
    for (const offline of [false, true]) {
      const gemma = await Gemma.load('hf:org/model', { hub: { ...options.hub, offline } });
      expect(gemma.info.prompts).toMatchObject({ query: 'find: ' });
      expect(await gemma.embed(texts, { task: 'query' })).toEqual(want);
      await gemma.dispose();
    }
    const snapshot = join(repoFolder(), 'snapshots', COMMIT);
    for (const name of others) expect(existsSync(join(snapshot, name))).toBe(false);
    // A link that somebody has put there leads nowhere else.
    const dense = join(snapshot, '3_Dense', 'model.safetensors');
    const secret = mkdtempSync(join(tmpdir(), 'gemma-secret-'));
    try {
      writeFileSync(join(secret, 'weights'), files['3_Dense/model.safetensors']!);
      rmSync(dense);
      symlinkSync(join(secret, 'weights'), dense);
      const loading = Gemma.load('hf:org/model', { hub: { ...options.hub, offline: true } });
      expect(await detail(loading)).toBe('ERR_DOWNLOAD PATH_REJECTED');
    } finally {
      rmSync(secret, { recursive: true });
    }
    // Nor do paths of modules.
    const escaping = JSON.stringify([{ type: 'sentence_transformers.models.Transformer', path: '../../../..' }]);
    hub.add('org/escaping', { ...files, 'modules.json': escaping });
    expect(await detail(Gemma.load('hf:org/escaping', options))).toBe('ERR_SAFETENSORS_INVALID BAD_MODULES');
  });

  test('of another kind is refused by its first bytes', async () => {
    const encoder = readFileSync(join(data, 'mmproj-mm-a-f16.gguf'));
    const padded = Buffer.concat([encoder, Buffer.alloc(9 << 20)]);
    mockTemporary = folder;
    hub.add('org/model', { 'model.gguf': padded, 'text.gguf': 'GGUX'.repeat(1000) });
    expect(await detail(Gemma.pull('hf:org/model:model.gguf', own()))).toBe('ERR_UNSUPPORTED_MODEL undefined');
    expect(statSync(`${blob(hashOf(padded, true))}.incomplete`).size).toBeLessThan(padded.length);
    expect(await detail(Gemma.pull('hf:org/model:text.gguf', own()))).toBe('ERR_GGUF_INVALID BAD_MAGIC');
    expect(readdirSync(folder).filter((name) => name.startsWith('gemma-headers-'))).toEqual([]);
    mockTemporary = undefined;
  });
});

describe('the transfer', () => {
  const name = 'hf:org/model:model.gguf';
  let hash: string;
  beforeEach(() => {
    hash = hub.add('org/model', { 'model.gguf': big }).files.get('model.gguf')!.hash;
  });
  const isWhole = () => readFileSync(blob(hash)).equals(big) && !existsSync(`${blob(hash)}.incomplete`);
  const ranges = () => hub.requests.filter(({ kind }) => kind === 'cdn').map(({ range }) => range);

  test('goes on where a connection was cut', async () => {
    let cuts = 3;
    hub.deliver = (response, body, start, end) => {
      if (cuts-- <= 0) return void response.end(body.subarray(start, end));
      response.write(body.subarray(start, start + 70_000), () => response.destroy());
    };
    await hasty(name);
    expect(isWhole()).toBe(true);
    const [first, ...others] = ranges();
    expect(first).toBeUndefined();
    expect(others).toHaveLength(3);
    const starts = others.map((range) => Number(/bytes=(\d+)-299999$/.exec(range ?? '')![1]));
    expect(starts).toEqual(starts.toSorted((a, b) => a - b));
    expect(starts[2]).toBeGreaterThan(starts[0]!);
  });

  test('goes on from what an earlier process left, of whatever program', async () => {
    mkdirSync(join(repoFolder(), 'blobs'), { recursive: true });
    writeFileSync(`${blob(hash)}.incomplete`, big.subarray(0, 123_457));
    const seen: number[] = [];
    await hasty(name, {}, { onProgress: ({ stage, bytes }) => stage === 'plan' && seen.push(bytes) });
    expect(isWhole()).toBe(true);
    expect(ranges()).toEqual(['bytes=123457-299999']);
    expect(seen).toEqual([123_457]);
  });

  test('begins again where what was left is damaged or too long', async () => {
    mkdirSync(join(repoFolder(), 'blobs'), { recursive: true });
    const damaged = Buffer.from(big.subarray(0, 100_000));
    damaged[50_000]! ^= 1;
    for (const left of [damaged, Buffer.concat([big, big])]) {
      rmSync(blob(hash), { force: true });
      rmSync(join(repoFolder(), 'snapshots'), { recursive: true, force: true });
      writeFileSync(`${blob(hash)}.incomplete`, left);
      await hasty(name);
      expect(isWhole()).toBe(true);
    }
    expect(ranges()).toEqual(['bytes=100000-299999', undefined, undefined]);
  });

  test('works with a server that knows no ranges', async () => {
    hub.knowsRanges = false;
    let cut = true;
    hub.deliver = (response, body) => {
      if (cut) response.write(body.subarray(0, 200_000), () => response.destroy());
      else response.end(body);
      cut = false;
    };
    await hasty(name);
    expect(isWhole()).toBe(true);
  });

  test('keeps nothing of a body with another hash', async () => {
    hub.deliver = (response, body) => void response.end(Buffer.alloc(body.length, 7));
    expect(await detail(hasty(name))).toBe('ERR_DOWNLOAD HASH_MISMATCH');
    expect(readdirSync(join(repoFolder(), 'blobs'))).toEqual([]);
    expect(existsSync(join(repoFolder(), 'snapshots'))).toBe(false);
    expect(existsSync(join(repoFolder(), 'refs'))).toBe(false);
    hub.deliver = undefined;
    await hasty(name);
    expect(isWhole()).toBe(true);
  });

  test("refuses lengths that are not the file's, and bodies without end", async () => {
    const answer = (length: number | undefined) => {
      hub.fault = (_, response, kind) => {
        if (kind !== 'cdn') return false;
        response.writeHead(200, length === undefined ? {} : { 'content-length': length });
        const more = () => {
          while (!response.destroyed && response.write(Buffer.alloc(16_384)));
          if (!response.destroyed) response.once('drain', more);
        };
        more();
        return true;
      };
    };
    for (const length of [299_999, 300_001, undefined]) {
      answer(length);
      expect(await detail(hasty(name))).toBe('ERR_DOWNLOAD BAD_RESPONSE');
      expect(existsSync(blob(hash))).toBe(false);
      rmSync(folder, { recursive: true });
    }
    const ranged = (range: string) => {
      hub.fault = (_, response, kind) => {
        if (kind === 'cdn') response.writeHead(206, { 'content-range': range }).end();
        return kind === 'cdn';
      };
    };
    for (const range of ['bytes 0-299999/300000', 'bytes 1000-300000/300001', 'bytes 1000-299999/4', 'x']) {
      mkdirSync(join(repoFolder(), 'blobs'), { recursive: true });
      writeFileSync(`${blob(hash)}.incomplete`, big.subarray(0, 1000));
      ranged(range);
      expect(await detail(hasty(name))).toBe('ERR_DOWNLOAD BAD_RESPONSE');
    }
    hub.fault = (_, response, kind) => {
      if (kind === 'cdn') response.writeHead(200, { 'content-encoding': 'gzip' }).end();
      return kind === 'cdn';
    };
    rmSync(folder, { recursive: true });
    expect(await detail(hasty(name))).toBe('ERR_DOWNLOAD BAD_RESPONSE');
    mkdirSync(folder, { recursive: true });
  });

  test('tries again after answers that may pass, as long as it is asked to wait', async () => {
    const answers = [503, 500, 429, 408, 403];
    hub.fault = (_, response, kind) => {
      const status = kind === 'cdn' ? answers.shift() : undefined;
      if (status !== undefined) response.writeHead(status, { 'retry-after': '0' }).end();
      return status !== undefined;
    };
    await hasty(name);
    expect(isWhole()).toBe(true);
    expect(answers).toEqual([]);
    for (const [status, after, expected] of [
      [500, '0', 'NETWORK'],
      [429, '0', 'RATE_LIMITED'],
      [429, '86400', 'RATE_LIMITED'],
      [429, new Date(Date.now() + 86_400_000).toUTCString(), 'RATE_LIMITED'],
    ] as const) {
      rmSync(folder, { recursive: true });
      hub.requests.length = 0;
      hub.fault = (_, response) => {
        response.writeHead(status, { 'retry-after': after }).end();
        return true;
      };
      expect(await detail(hasty(name, { tries: 3 }))).toBe(`ERR_DOWNLOAD ${expected}`);
      expect(hub.requests).toHaveLength(after === '0' ? 3 : 1);
      mkdirSync(folder, { recursive: true });
    }
  });

  test('ends where nothing comes', async () => {
    const silent = ['api', 'hub', 'cdn'] as const;
    for (const where of silent) {
      hub.fault = (_, __, kind) => kind === where;
      expect(await detail(hasty(name, { idleMs: 30, tries: 2 }))).toBe('ERR_DOWNLOAD NETWORK');
    }
    hub.fault = undefined;
    hub.deliver = (response, body) => void response.write(body.subarray(0, 1000));
    expect(await detail(hasty(name, { idleMs: 30, tries: 2 }))).toBe('ERR_DOWNLOAD NETWORK');
    expect(await detail(hasty(name, { tries: 2 }, { endpoint: 'http://127.0.0.1:9' }))).toBe('ERR_DOWNLOAD NETWORK');
  });

  test('says that the disk is full, and goes on when there is room', async () => {
    let room = 2;
    const write: Tuning['write'] = async (handle, bytes, position) => {
      if (room-- <= 0)
        throw Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC', syscall: 'write' });
      await TUNING.write(handle, bytes, position);
    };
    expect(await detail(hasty(name, { write }))).toBe('ERR_DOWNLOAD NO_SPACE');
    const { size } = statSync(`${blob(hash)}.incomplete`);
    expect(size).toBeGreaterThan(0);
    await hasty(name);
    expect(isWhole()).toBe(true);
    expect(ranges().at(-1)).toBe(`bytes=${size}-299999`);
    // Said before, where it is known.
    hub.listing = (info) => ({
      ...info,
      siblings: [{ rfilename: 'model.gguf', size: 2 ** 50, lfs: { sha256: '0'.repeat(64), size: 2 ** 50 } }],
    });
    hub.requests.length = 0;
    expect(await detail(hasty(name))).toBe('ERR_DOWNLOAD NO_SPACE');
    expect(hub.requests.map(({ kind }) => kind)).toEqual(['api']);
  });

  test('stops when it is aborted, and leaves what has come', async () => {
    const controller = new AbortController();
    hub.deliver = (response, body) => void response.write(body.subarray(0, 100_000));
    const onProgress = () => {
      if (existsSync(`${blob(hash)}.incomplete`) && statSync(`${blob(hash)}.incomplete`).size >= 65_536)
        controller.abort(new Error('enough'));
    };
    const write: Tuning['write'] = async (...args) => {
      await TUNING.write(...args);
      onProgress();
    };
    expect(await rejection(hasty(name, { write }, {}, controller.signal))).toEqual(new Error('enough'));
    hub.deliver = undefined;
    await pull(name);
    expect(isWhole()).toBe(true);
    const stopped = AbortSignal.abort(new Error('before'));
    expect(await rejection(pull(name, { signal: stopped }))).toEqual(new Error('before'));
  });

  test('rejects with what a callback throws', async () => {
    const onProgress = () => {
      throw new Error('mine');
    };
    expect(await rejection(pull(name, { onProgress }))).toEqual(new Error('mine'));
  });

  test('happens once for all that want a file at the same time', async () => {
    const stages = new Set<string>();
    const onProgress = ({ stage }: PullProgress) => stages.add(stage);
    const results = await Promise.all([1, 2, 3].map(() => pull(name, { onProgress })));
    expect(new Set(results.map(({ path }) => path)).size).toBe(1);
    expect(results.map(({ downloadedBytes }) => downloadedBytes).sort()).toEqual([0, 0, 300_000]);
    expect(ranges()).toEqual([undefined]);
    expect(stages).toContain('wait');
  });

  test('makes other names of a file where there are no links', async () => {
    process.env.HF_HUB_DISABLE_SYMLINKS = '1';
    try {
      const { path } = await pull(name);
      expect(lstatSync(path).isFile()).toBe(true);
      expect(statSync(path).ino).toBe(statSync(blob(hash)).ino);
      expect(await pull(name)).toMatchObject({ downloadedBytes: 0 });
    } finally {
      delete process.env.HF_HUB_DISABLE_SYMLINKS;
    }
  });

  test('does not follow links out of the cache, nor names', async () => {
    const secret = join(folder, 'secret');
    const cacheDir = join(folder, 'cache');
    writeFileSync(secret, big);
    const at = join(cacheDir, 'models--org--model');
    mkdirSync(join(at, 'blobs'), { recursive: true });
    for (const path of [join(at, 'blobs', hash), join(at, 'snapshots', COMMIT, 'model.gguf')]) {
      mkdirSync(join(path, '..'), { recursive: true });
      symlinkSync(secret, path);
      expect(await detail(pull(name, { cacheDir }))).toBe('ERR_DOWNLOAD PATH_REJECTED');
      rmSync(path);
    }
    symlinkSync(secret, join(at, 'blobs', `${hash}.incomplete`));
    expect(await detail(pull(name, { cacheDir }))).toMatch(/^ERR_DOWNLOAD (CACHE|PATH_REJECTED)$/);
    expect(readFileSync(secret).equals(big)).toBe(true);
    rmSync(join(at, 'blobs', `${hash}.incomplete`));
    rmSync(join(at, 'snapshots'), { recursive: true });
    mkdirSync(join(folder, 'elsewhere'));
    symlinkSync(join(folder, 'elsewhere'), join(at, 'snapshots'));
    expect(await detail(pull(name, { cacheDir }))).toBe('ERR_DOWNLOAD PATH_REJECTED');
    expect(readdirSync(join(folder, 'elsewhere', COMMIT))).toEqual([]);
  });

  test('says that a cache cannot be written', async () => {
    writeFileSync(join(folder, 'file'), '');
    expect(await detail(pull(name, { cacheDir: join(folder, 'file', 'cache') }))).toBe('ERR_DOWNLOAD CACHE');
  });
});

describe('the hub', () => {
  const name = 'hf:org/model:model.gguf';

  test('gets the token, and nobody else', async () => {
    hub.add('org/model', { 'model.gguf': big }, { gated: true, license: 'gemma' });
    hub.add('org/hidden', { 'model.gguf': big }, { private: true });
    expect(await detail(pull(name))).toBe('ERR_DOWNLOAD GATED');
    expect(((await rejection(pull(name))) as Error).message).toContain(`${hub.endpoint}/org/model`);
    expect(await detail(pull('hf:org/hidden'))).toBe('ERR_DOWNLOAD NOT_FOUND');
    expect(await detail(pull(name, { token: 'hf_wrong' }))).toBe('ERR_DOWNLOAD UNAUTHORIZED');
    hub.requests.length = 0;
    await pull(name, { token: `${hub.token}\n` });
    await pull('hf:org/hidden', { token: hub.token });
    const sent = (wanted: string) =>
      hub.requests.filter(({ kind }) => kind === wanted).map(({ authorization }) => authorization);
    expect(new Set([...sent('api'), ...sent('hub')])).toEqual(new Set([`Bearer ${hub.token}`]));
    expect(sent('cdn')).toEqual([undefined]); // one file, known by its hash, of two repositories: two caches
  });

  test('takes tokens from the environment and from a file', async () => {
    hub.add('org/model', { 'model.gguf': big }, { gated: true });
    const file = join(folder, 'token');
    writeFileSync(file, `${hub.token}\n`);
    const settings = { endpoint: hub.endpoint, check: false };
    const names = ['HF_TOKEN', 'HF_TOKEN_PATH', 'HF_HUB_DISABLE_IMPLICIT_TOKEN'] as const;
    const before = names.map((one) => process.env[one]);
    try {
      for (const [i, env] of [{ HF_TOKEN: hub.token }, { HF_TOKEN_PATH: file }].entries()) {
        for (const one of names) delete process.env[one];
        Object.assign(process.env, env);
        await Gemma.pull(name, { ...settings, cacheDir: join(folder, String(i)) });
        process.env.HF_HUB_DISABLE_IMPLICIT_TOKEN = '1';
        expect(await detail(Gemma.pull(name, { ...settings, cacheDir: join(folder, 'none') }))).toBe(
          'ERR_DOWNLOAD GATED',
        );
      }
    } finally {
      names.forEach((one, i) => {
        if (before[i] === undefined) delete process.env[one];
        else process.env[one] = before[i];
      });
    }
  });

  test('has no such repository, revision or file', async () => {
    hub.add('org/model', { 'model.gguf': big });
    expect(await detail(pull('hf:org/none'))).toBe('ERR_DOWNLOAD NOT_FOUND');
    expect(await detail(pull('hf:org/model@v2'))).toBe('ERR_DOWNLOAD NOT_FOUND');
    expect(await detail(pull('hf:org/model:other.gguf'))).toBe('ERR_DOWNLOAD NOT_FOUND');
  });

  test('names a branch, a tag, a commit, a pull request', async () => {
    hub.add('org/model', { 'model.gguf': big });
    await pull('hf:org/model@refs/pr/1:model.gguf');
    await pull(`hf:org/model@${COMMIT}`);
    await pull('hf:org/model@v1');
    const refs = join(repoFolder(), 'refs');
    expect(readFileSync(join(refs, 'refs', 'pr', '1'), 'utf8')).toBe(COMMIT);
    expect(readdirSync(refs).sort()).toEqual(['refs', 'v1']);
    expect(await pull('hf:org/model@v1', { offline: true })).toMatchObject({ commit: COMMIT, upToDate: false });
  });

  test('is not needed for what is here', async () => {
    hub.add('org/model', { 'model-Q4_K_M.gguf': big, 'model-Q8_0.gguf': big.subarray(1) });
    expect(await detail(pull('hf:org/model', { offline: true }))).toBe('ERR_DOWNLOAD OFFLINE');
    const { path } = await pull('hf:org/model:q8_0');
    hub.requests.length = 0;
    expect(await pull('hf:org/model:Q8_0', { offline: true })).toMatchObject({
      path,
      upToDate: false,
      downloadedBytes: 0,
    });
    expect(await detail(pull('hf:org/model:Q4_K_M', { offline: true }))).toBe('ERR_DOWNLOAD NOT_FOUND');
    process.env.HF_HUB_OFFLINE = '1';
    try {
      expect(await pull('hf:org/model:Q8_0')).toMatchObject({ path });
    } finally {
      delete process.env.HF_HUB_OFFLINE;
    }
    expect(hub.requests).toEqual([]);
    hub.fault = (_, response) => {
      response.writeHead(503).end();
      return true;
    };
    expect(await pull('hf:org/model:Q8_0')).toMatchObject({ path, upToDate: false });
    expect(hub.requests).toHaveLength(1);
  });

  test('may answer anything', async () => {
    hub.add('org/model', { 'model.gguf': big });
    const sibling = { rfilename: 'model.gguf', size: 5, blobId: 'a'.repeat(40) };
    const answers: [string, unknown][] = [
      ['no object', []],
      ['no commit', { siblings: [sibling] }],
      ['another commit', { sha: 'main', siblings: [sibling] }],
      ['no files', { sha: COMMIT }],
      ['no name', { sha: COMMIT, siblings: [{}] }],
      ['no size', { sha: COMMIT, siblings: [{ ...sibling, size: undefined }] }],
      ['a negative size', { sha: COMMIT, siblings: [{ ...sibling, size: -1 }] }],
      ['a size that is none', { sha: COMMIT, siblings: [{ ...sibling, size: 1e300 }] }],
      ['a path for a hash', { sha: COMMIT, siblings: [{ ...sibling, blobId: '../../../x' }] }],
      [
        'the hash of Git for a large file',
        { sha: COMMIT, siblings: [{ ...sibling, lfs: { sha256: 'a'.repeat(40) } }] },
      ],
      ['a file twice', { sha: COMMIT, siblings: [sibling, sibling] }],
      [
        'too many files',
        { sha: COMMIT, siblings: Array.from({ length: 20_001 }, (_, i) => ({ ...sibling, rfilename: `${i}` })) },
      ],
    ];
    for (const [what, answer] of answers) {
      hub.listing = () => answer;
      expect([what, await detail(hasty('hf:org/model'))]).toEqual([what, 'ERR_DOWNLOAD BAD_RESPONSE']);
    }
    for (const path of [
      '../x.gguf',
      '/x.gguf',
      'a/../../x.gguf',
      'a\\..\\x.gguf',
      'C:x.gguf',
      'con.gguf',
      'a//b.gguf',
      `${'x'.repeat(300)}.gguf`,
      'a\u0000.gguf',
    ]) {
      hub.listing = () => ({ sha: COMMIT, siblings: [{ ...sibling, rfilename: path }] });
      expect([path, await detail(hasty('hf:org/model'))]).toEqual([path, 'ERR_DOWNLOAD PATH_REJECTED']);
    }
    const raw = (body: string | Buffer) => {
      hub.fault = (_, response) => {
        response.writeHead(200).end(body);
        return true;
      };
    };
    for (const body of ['', '<html>', Buffer.alloc(33 << 20, 32)]) {
      raw(body);
      expect(await detail(hasty('hf:org/model'))).toBe('ERR_DOWNLOAD BAD_RESPONSE');
    }
    for (const location of ['/loop', 'file:///etc/passwd', 'ftp://x/', 'http://[', 'http:\\\\x']) {
      hub.fault = (_, response) => {
        response.writeHead(302, { location: location === '/loop' ? `${hub.endpoint}/loop` : location }).end();
        return true;
      };
      expect([location, await detail(hasty('hf:org/model'))]).toEqual([location, 'ERR_DOWNLOAD BAD_RESPONSE']);
    }
    expect(existsSync(join(folder, '..', 'x.gguf'))).toBe(false);
  });
});
