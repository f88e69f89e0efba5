// Getting models from a hub: what is chosen, where it goes, and everything that may go wrong on the way.
import { createHash, randomBytes } from 'node:crypto';
import { existsSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, realpathSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'; // prettier-ignore
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gemma, GemmaError, type PullOptions, type PullProgress } from '../../lib/index.js';
import { pullModel, type PullSettings } from '../../lib/hub/pull.js';
import { parseModelName, type HubName } from '../../lib/hub/names.js';
import { TUNING, type Tuning } from '../../lib/hub/transfer.js';
import { data, rejection, tiny } from './helpers.js';
import { COMMIT, FakeHub, hashOf } from './hub-server.js';

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
  const settings: PullSettings = { endpoint: hub.endpoint, cacheDir: folder, token: false, mmproj: true, check: false, onProgress: () => {}, ...options }; // prettier-ignore
  const quick = { ...TUNING, backoffMs: 0, ...tuning };
  return pullModel(parseModelName(name) as HubName, settings, signal ?? new AbortController().signal, quick);
}

async function detail(promise: Promise<unknown>): Promise<string> {
  const error = (await rejection(promise)) as GemmaError;
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
    const offline = await Gemma.load('hf:org/model', { hub: { ...options.hub, endpoint: 'http://127.0.0.1:9', offline: true } }); // prettier-ignore
    await offline.dispose();
  });

  test('of another kind is refused by its first bytes', async () => {
    const encoder = readFileSync(join(data, 'mmproj-mm-a-f16.gguf'));
    const padded = Buffer.concat([encoder, Buffer.alloc(20 << 20)]);
    hub.add('org/model', { 'model.gguf': padded, 'text.gguf': 'GGUX'.repeat(1000) });
    expect(await detail(Gemma.pull('hf:org/model:model.gguf', own()))).toBe('ERR_UNSUPPORTED_MODEL undefined');
    expect(statSync(`${blob(hashOf(padded, true))}.incomplete`).size).toBeLessThan(padded.length);
    expect(await detail(Gemma.pull('hf:org/model:text.gguf', own()))).toBe('ERR_GGUF_INVALID BAD_MAGIC');
    expect(readdirSync(tmpdir()).filter((name) => name.startsWith('gemma-headers-'))).toEqual([]);
  });
});
