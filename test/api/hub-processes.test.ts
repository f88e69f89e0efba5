// Downloads of other processes: killed at random moments, and several at once.
import { spawn, type ChildProcess } from 'node:child_process';
import { randomBytes, randomInt } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { root, sleep } from './helpers.js';
import { FakeHub } from './hub-server.js';

let hub: FakeHub;
let folder: string;
beforeAll(async () => (hub = await new FakeHub().start()));
afterAll(() => hub.stop());
beforeEach(() => (folder = mkdtempSync(join(tmpdir(), 'gemma-hub-'))));
afterEach(() => {
  hub.reset();
  rmSync(folder, { recursive: true });
});

const PROGRAM = `
  const { pullModel } = require(${JSON.stringify(join(root, 'dist', 'hub', 'pull.js'))});
  const name = { scheme: 'hf', repo: 'org/model', revision: 'main' };
  const [endpoint, cacheDir] = process.argv.slice(1);
  const settings = { endpoint, cacheDir, token: false, mmproj: true, check: false, onProgress: () => {} };
  pullModel(name, settings, new AbortController().signal).then((pulled) => console.log(JSON.stringify(pulled)));
`;

interface Child {
  process: ChildProcess;
  ended: Promise<{ code: number | null; stdout: string }>;
}

function start(): Child {
  const child = spawn(process.execPath, ['-e', PROGRAM, hub.endpoint, folder], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let stdout = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  return { process: child, ended: new Promise((resolve) => child.on('close', (code) => resolve({ code, stdout }))) };
}

const blobs = () => join(folder, 'models--org--model', 'blobs');
const sizeOf = (path: string) => (existsSync(path) ? statSync(path).size : 0);

test('killed at 50 random moments, a download goes on each time, and nothing but a block comes twice', async () => {
  const BLOCK = 16_384;
  const KILLS = 50;
  const body = randomBytes(6 << 20);
  const { hash } = hub.add('org/model', { 'model.gguf': body }).files.get('model.gguf')!;
  const partial = join(blobs(), `${hash}.incomplete`);
  let kills = 0;
  let served = 0;
  const begins: [number, number][] = [];
  let child = start();
  // A block, and the next one when that is written, so that what was served is known to the byte.
  hub.deliver = async (response, all, from, end) => {
    begins.push([from, sizeOf(partial)]);
    let left = kills < KILLS ? randomInt(1, 13) : Infinity;
    for (let at = from; at < end; at += BLOCK) {
      const block = all.subarray(at, Math.min(at + BLOCK, end));
      const isLast = --left <= 0;
      const written = at + (isLast ? randomInt(0, block.length) : block.length); // killed with a part of it on its way
      served += block.length;
      response.write(block);
      while (sizeOf(partial) < written) await sleep(1);
      if (!isLast) continue;
      ++kills;
      child.process.kill('SIGKILL');
      return void response.destroy();
    }
    response.end();
  };
  let last = await child.ended;
  while (last.code !== 0) {
    expect(existsSync(join(folder, 'models--org--model', 'refs'))).toBe(false);
    expect(existsSync(join(blobs(), hash))).toBe(false);
    child = start();
    last = await child.ended;
  }
  expect(kills).toBe(KILLS);
  for (const [asked, here] of begins) expect(asked).toBe(here); // for what it does not have
  expect(readFileSync(join(blobs(), hash)).equals(body)).toBe(true);
  expect(existsSync(partial)).toBe(false);
  expect(served - body.length).toBeLessThanOrEqual(KILLS * BLOCK);
  expect(served - body.length).toBeGreaterThanOrEqual(0);
  const { bytes, downloadedBytes } = JSON.parse(last.stdout) as { bytes: number; downloadedBytes: number };
  expect(bytes).toBe(body.length);
  expect(downloadedBytes).toBe(body.length - begins.at(-1)![1]); // of the last process
}, 300_000); // 51 times the start of Node

test('several processes download a file once, and one goes on where another was killed', async () => {
  const body = randomBytes(1 << 20);
  const { hash } = hub.add('org/model', { 'model.gguf': body }).files.get('model.gguf')!;
  const partial = join(blobs(), `${hash}.incomplete`);
  let isFirst = true;
  hub.deliver = (response, all, from, end) => {
    if (isFirst) response.write(all.subarray(0, 500_000));
    else response.end(all.subarray(from, end));
    isFirst = false;
  };
  const asked = (kind: string) => hub.requests.filter((request) => request.kind === kind).map(({ range }) => range);
  const first = start();
  while (sizeOf(partial) < 500_000) await sleep(1);
  const others = [start(), start()];
  while (asked('api').length < 3) await sleep(1);
  expect(asked('cdn')).toEqual([undefined]);
  first.process.kill('SIGKILL');
  const ends = await Promise.all(others.map(({ ended }) => ended));
  expect(ends.map(({ code }) => code)).toEqual([0, 0]);
  const results = ends.map(({ stdout }) => JSON.parse(stdout) as { path: string; downloadedBytes: number });
  expect(results.map(({ path }) => readFileSync(path).equals(body))).toEqual([true, true]);
  expect(results.filter(({ downloadedBytes }) => downloadedBytes > 0)).toHaveLength(1);
  expect(asked('cdn')).toEqual([undefined, 'bytes=500000-1048575']);
});
