// Queues on a real Redis: every job has one result, whatever is killed. GEMMA_QUEUE_JOBS: how many jobs (CI: few; 10000 for a long run).
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Gemma } from 'gemma-native';
import { Queue } from 'bullmq';
import { checkJob, Producer, type QueuedJob, type QueuedResult } from '../src/queue.js';
import { queueMain } from '../src/queue-cli.js';
import { createWorker } from '../src/worker.js';
import { realModel, root, tiny } from '../../../test/api/helpers.js';

const N = Number(process.env.GEMMA_QUEUE_JOBS ?? 200);
const folder = mkdtempSync(join(tmpdir(), 'gemma-queue-'));
let port: number;
let redisServer: ChildProcess;
let redis: string;
let gemma: Gemma;

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port: found } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return found;
}

// What it has said is on the disk when it says so: nothing is lost with it.
async function startRedis() {
  if (spawnSync('redis-server', ['--version']).status !== 0) {
    throw new Error('redis-server is missing: apt-get install redis-server, brew install redis');
  }
  const flags = ['--port', String(port), '--bind', '127.0.0.1', '--dir', folder, '--save', '', '--appendonly', 'yes'];
  redisServer = spawn('redis-server', [...flags, '--appendfsync', 'always'], { stdio: ['ignore', 'pipe', 'ignore'] });
  let said = '';
  await new Promise<void>((resolve) => {
    redisServer.stdout!.on('data', (chunk) => {
      said += String(chunk);
      if (said.includes('Ready to accept connections')) resolve();
    });
  });
}

async function killRedis() {
  redisServer.kill('SIGKILL');
  await once(redisServer, 'close');
}

beforeAll(async () => {
  port = await freePort();
  redis = `redis://127.0.0.1:${port}`;
  await startRedis();
  gemma = await Gemma.load(tiny);
});

afterAll(async () => {
  await gemma?.dispose();
  await killRedis();
  rmSync(folder, { recursive: true, force: true });
});

let failed: (error: Error) => void = () => {};

function spawnWorker(queue: string, maxDeaths = 100, model = tiny): ChildProcess {
  const main = join(root, 'packages', 'server', 'dist', 'main.js');
  const flags = [
    '--queue',
    queue,
    '--redis',
    redis,
    '--model',
    model,
    '--threads',
    '1',
    '--lock',
    '1',
    '--max-deaths',
    String(maxDeaths),
  ];
  const child = spawn(process.execPath, [main, 'worker', ...flags], { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  child.stderr.on('data', (chunk) => (said += String(chunk)));
  child.on('exit', (code) => {
    if (code !== null) failed(new Error(`a worker ended: ${said}`));
  });
  return child;
}

const optionsOf = (i: number) => ({ seed: i, maxOutputTokens: 10 });
const jobs = (n: number): QueuedJob[] =>
  Array.from({ length: n }, (_, i) => ({ id: `job ${i}`, prompt: `Say ${i}`, options: optionsOf(i) }));

/** Whether some worker has begun the queue's only job for the nth time. */
async function isBegun(queue: string, n: number): Promise<boolean> {
  const inner = new Queue(queue, { connection: { url: redis } });
  inner.on('error', () => {});
  const [job] = await inner.getActive();
  await inner.close();
  return (job?.attemptsStarted ?? 0) >= n;
}

/** Results until there are n, none of them twice. */
async function take(
  producer: Producer,
  n: number,
  onResult: (n: number) => Promise<void> = async () => {},
): Promise<Map<string, QueuedResult>> {
  const found = new Map<string, QueuedResult>();
  for await (const result of producer.results({ follow: true })) {
    if (found.has(result.id)) throw new Error(`${result.id} has two results`);
    found.set(result.id, result);
    await onResult(found.size);
    if (found.size === n) break;
  }
  // The last one is still in the queue, because nobody asked for the next.
  const last = [...found.keys()].at(-1);
  for await (const { id } of producer.results()) if (id !== last) throw new Error(`${id} is one too many`);
  return found;
}

test(
  'every job has one result, though workers are killed and Redis restarts',
  async () => {
    const queue = 'killed';
    const producer = await Producer.connect({ queue, redis, maxWaiting: Math.ceil(N / 2) });
    const workers = [spawnWorker(queue), spawnWorker(queue)];
    try {
      const failure = new Promise<never>((_, reject) => (failed = reject));
      const given = producer.add(jobs(N));
      const every = Math.max(1, Math.floor(N / 6));
      let kills = 0;
      const found = await Promise.race([
        failure,
        take(producer, N, async (n) => {
          if (n % every !== 0 || n >= N) return;
          const i = kills++ % 2;
          workers[i]!.kill('SIGKILL');
          workers[i] = spawnWorker(queue);
          if (kills % 3 !== 2) return;
          await killRedis();
          await startRedis();
        }),
      ]);
      expect(await given).toBe(N);
      expect(kills).toBeGreaterThanOrEqual(5);
      expect(found.size).toBe(N);
      for (let i = 0; i < N; i += Math.ceil(N / 20)) {
        const { text } = await gemma.generate(`Say ${i}`, optionsOf(i));
        expect(found.get(`job ${i}`)).toMatchObject({ result: { text, seed: i } });
      }
      expect(await producer.counts()).toEqual({ waiting: 0, active: 0, delayed: 0, completed: 0, failed: 0 });
    } finally {
      for (const worker of workers) worker.kill('SIGKILL');
      await producer.close();
    }
  },
  600_000 + 100 * N,
);

test('bad jobs are set aside with their errors, and others go on', async () => {
  const queue = 'bad';
  const producer = await Producer.connect({ queue, redis });
  const worker = await createWorker({ gemma, queue, redis });
  try {
    const bad: QueuedJob[] = [
      { id: 'option', prompt: 'a', options: { nonsense: 1 } },
      { id: 'path', prompt: 'a', images: ['/etc/hostname'] },
      { id: 'roles', messages: [{ role: 'nobody', content: 'a' }] },
      { id: 'long', prompt: 'a '.repeat(1 << 17) },
      { id: 'embedding', embed: ['a', 'b'], options: { pooling: 'last' } },
    ];
    await producer.add([...bad, ...jobs(3)]);
    const found = await take(producer, 8);
    const code = (id: string) => (found.get(id) as { error?: { code: string } } | undefined)?.error?.code;
    expect(['option', 'path', 'roles', 'long'].map(code)).toEqual([
      'ERR_INVALID_ARGUMENT',
      'ERR_UNSUPPORTED_INPUT', // no vision encoder: it does not come to the path
      'ERR_INVALID_ARGUMENT',
      'ERR_CONTEXT_FULL',
    ]);
    for (let i = 0; i < 3; ++i) expect(found.get(`job ${i}`)).toHaveProperty('result.text');
    const text = await worker.metrics.metrics();
    expect(text).toMatch(/gemma_jobs_total\{status="completed"\} [34]/);
    expect(text).toContain('gemma_queue_jobs{state="waiting"} 0');
  } finally {
    await worker.close();
    await producer.close();
  }
});

test('a job that takes its workers down with it is set aside', async () => {
  const queue = 'poison';
  const producer = await Producer.connect({ queue, redis });
  // Half a minute's work at least, so no worker ends it before it dies.
  const options = { schema: { type: 'string', minLength: 100_000 }, maxOutputTokens: 3000 };
  await producer.add([{ id: 'poison', prompt: 'a', options }]);
  let worker: ChildProcess | undefined;
  try {
    for (let deaths = 0; deaths < 2; ++deaths) {
      worker = spawnWorker(queue, 1, realModel());
      while ((await producer.counts()).active === 0 || !(await isBegun(queue, deaths + 1))) await sleep(10);
      worker.kill('SIGKILL');
    }
    worker = spawnWorker(queue, 1, realModel());
    const found = await take(producer, 1);
    expect(found.get('poison')).toMatchObject({ error: { code: 'ERR_POISON' } });
  } finally {
    worker?.kill('SIGKILL');
    await producer.close();
  }
});

test('a full queue holds the producer back; jobs that are known are not added again', async () => {
  const queue = 'full';
  const producer = await Producer.connect({ queue, redis, maxWaiting: 100 });
  let asked = 0;
  const source = (function* () {
    for (const job of jobs(350)) {
      ++asked;
      yield job;
    }
  })();
  const controller = new AbortController();
  const adding = producer.add(source, controller.signal);
  while ((await producer.counts()).waiting! < 100) await sleep(10);
  await sleep(500);
  expect(asked).toBe(200); // a hundred are in, a hundred wait
  controller.abort(new Error('enough'));
  await expect(adding).rejects.toThrow('enough');
  const roomy = await Producer.connect({ queue, redis });
  await roomy.add(jobs(50));
  expect((await roomy.counts()).waiting).toBe(100);
  await roomy.close();
  await producer.close();
});

test('files: enqueue, worker, collect; what a killed collector wrote stands there once', async () => {
  const queue = 'files';
  const input = join(folder, 'in.jsonl');
  const output = join(folder, 'out.jsonl');
  writeFileSync(
    input,
    jobs(20)
      .map((job) => `${JSON.stringify(job)}\n`)
      .join('') + '\n',
  );
  const flags = ['--queue', queue, '--redis', redis];
  expect(await queueMain(['node', 'main', 'enqueue', input, ...flags])).toBe(0);
  const worker = await createWorker({ gemma, queue, redis });
  // A collector died behind its first result, in the middle of its second.
  writeFileSync(output, '{"id":"job 3","result":"of before"}\n{"id":"jo');
  expect(await queueMain(['node', 'main', 'collect', output, ...flags])).toBe(0);
  const lines = readFileSync(output, 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as QueuedResult);
  expect(lines[0]).toEqual({ id: 'job 3', result: 'of before' });
  expect(lines.map(({ id }) => id).sort()).toEqual(
    jobs(20)
      .map(({ id }) => id)
      .sort(),
  );
  writeFileSync(input, '{"id":"a","prompt":"b"}\n{"id":"c"}\n');
  const errors = jest.spyOn(process.stderr, 'write').mockReturnValue(true);
  expect(await queueMain(['node', 'main', 'enqueue', input, ...flags])).toBe(2);
  expect(String(errors.mock.calls.at(-1)?.[0])).toMatch(/in\.jsonl, line 2: .*expected one of prompt/);
  expect(await queueMain(['node', 'main', 'collect'])).toBe(2);
  errors.mockRestore();
  await worker.close();
});

test('what is no job is told', () => {
  for (const [job, message] of [
    [{ prompt: 'a' }, /id: is missing/],
    [{ id: 1, prompt: 'a' }, /id: /],
    [{ id: 'a' }, /expected one of/],
    [{ id: 'a', prompt: 'b', embed: ['c'] }, /expected one of/],
    [{ id: 'a', prompt: 'b', pictures: [] }, /pictures: there is no such/],
    [{ id: 'a', embed: ['c'], images: ['x'] }, /images: only beside prompt/],
    [[], /expected object/],
  ] as const) {
    expect(() => checkJob(job)).toThrow(message);
  }
});
