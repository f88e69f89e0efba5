// Who is served, who waits and who is refused; models that come and go; the end of a server. Nothing here depends on time: what must
// happen first is waited for.
import { createServer as createHttpServer, request } from 'node:http';
import { connect, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { Gemma } from 'gemma-native';
import { Admission, type Slot } from '../src/admission.js';
import { ModelRegistry, type ModelEvent } from '../src/models.js';
import { data, rejection, tiny, until } from '../../../test/api/helpers.js';
import { createServer } from '../src/index.js';
import { collected, post, start, type Running } from './helpers.js';

const never = new AbortController().signal;
const another = join(data, 'text-27b-f16.gguf');

describe('admission', () => {
  const limits = { maxConcurrent: 1, maxQueue: 3, queueTimeoutMs: 0 };

  test('who has the fewest under way is next, and nobody waits behind an absent one', async () => {
    const admission = new Admission({ ...limits, maxConcurrent: 2, maxQueue: 10 });
    const order: string[] = [];
    const slots: Slot[] = [];
    const enter = (client: string) =>
      admission.enter(client, never).then((slot) => {
        order.push(client);
        slots.push(slot);
      });
    await enter('a');
    await enter('a');
    const waiting = [enter('a'), enter('a'), enter('b'), enter('c')];
    expect([admission.inFlight, admission.waiting]).toEqual([2, 4]);
    for (let i = 0; i < 4; ++i) {
      slots[i]!.release();
      slots[i]!.release(); // counts once
      await until(() => slots.length === i + 3);
    }
    await Promise.all(waiting);
    // b has none under way. Then neither a nor c has one, and a has waited longer.
    expect(order).toEqual(['a', 'a', 'b', 'a', 'c', 'a']);
  });

  test('a full queue refuses, and says when to come again', async () => {
    const admission = new Admission(limits);
    await admission.enter('a', never);
    const own = [1, 2, 3].map(() => admission.enter('a', never).catch((error: unknown) => error));
    const error = await rejection(admission.enter('a', never));
    expect(error).toMatchObject({ status: 429, code: 'queue_full' });
    expect(Number((error as { headers: Record<string, string> }).headers['retry-after'])).toBeGreaterThanOrEqual(1);
    // Another client takes the place of the latest of the one that fills the queue.
    void admission.enter('b', never).catch(() => {});
    expect(await own[2]).toMatchObject({ status: 429 });
    expect(admission.waiting).toBe(3);
  });

  test('who leaves, and who waits too long, leaves the queue', async () => {
    const admission = new Admission({ ...limits, queueTimeoutMs: 1 });
    const slot = await admission.enter('a', never);
    expect(await rejection(admission.enter('a', never))).toMatchObject({ status: 503, code: 'queue_timeout' });
    const leaving = new AbortController();
    const patient = new Admission(limits);
    await patient.enter('a', never);
    const left = patient.enter('a', leaving.signal);
    leaving.abort(new Error('gone'));
    expect(await rejection(left)).toMatchObject({ message: 'gone' });
    expect(patient.waiting).toBe(0);
    slot.release();
    await admission.close();
  });

  test('at the end those that wait are refused, those that are computed finish', async () => {
    const admission = new Admission(limits);
    const slot = await admission.enter('a', never);
    const waiting = admission.enter('b', never);
    let closed = false;
    const closing = admission.close().then(() => (closed = true));
    expect(await rejection(waiting)).toMatchObject({ status: 503, code: 'shutting_down' });
    expect(await rejection(admission.enter('c', never))).toMatchObject({ status: 503 });
    expect(closed).toBe(false);
    slot.release();
    await closing;
  });
});

describe('models', () => {
  async function withRegistry(
    room: number,
    work: (models: ModelRegistry, events: ModelEvent[]) => Promise<void>,
    pinned = false,
  ): Promise<void> {
    const plans = await Promise.all([tiny, another].map((path) => Gemma.estimate(path, { contextSize: 64 })));
    const [a, b] = plans.map(({ totalBytes }) => totalBytes);
    const events: ModelEvent[] = [];
    const models = new ModelRegistry(
      [
        { name: 'a', model: tiny, options: { contextSize: 64 }, pinned, aliases: ['first'] },
        { name: 'b', model: another, options: { contextSize: 64 } },
      ],
      { maxMemoryBytes: room === 1 ? Math.max(a!, b!) : a! + b!, onEvent: (event) => events.push(event) },
    );
    try {
      await models.start();
      await work(models, events);
    } finally {
      await models.close();
    }
  }
  const said = (events: ModelEvent[]) => events.map(({ kind, name }) => `${kind} ${name}`);

  test('are loaded when they are wanted, once for all who want them', async () => {
    await withRegistry(2, async (models, events) => {
      expect(models.list().map(({ state }) => state)).toEqual(['unloaded', 'unloaded']);
      const leases = await Promise.all(['a', 'first', 'b', 'a'].map((name) => models.acquire(name, never)));
      expect(said(events)).toEqual(['loaded a', 'loaded b']);
      expect(leases.map(({ name }) => name)).toEqual(['a', 'a', 'b', 'a']);
      expect(models.find('first')!.inUse).toBe(3);
      expect((await leases[0]!.gemma.generate('x', { maxOutputTokens: 1 })).tokens).toHaveLength(1);
      for (const lease of leases) lease.release();
    });
  });

  test('make room for each other, but not while they are in use', async () => {
    await withRegistry(1, async (models, events) => {
      const a = await models.acquire('a', never);
      let hasB = false;
      const b = models.acquire('b', never).then((lease) => {
        hasB = true;
        return lease;
      });
      await until(() => models.find('a')!.state === 'leaving');
      // Who wants a now waits behind b, which would else wait for ever.
      const next = models.acquire('a', never);
      expect((await a.gemma.generate('x', { maxOutputTokens: 8 })).tokens.length).toBeGreaterThan(0);
      expect(hasB).toBe(false);
      a.release();
      const lease = await b;
      expect(said(events)).toEqual(['loaded a', 'unloaded a', 'loaded b']);
      expect(models.loadedBytes).toBe(models.find('b')!.bytes);
      lease.release();
      (await next).release();
      expect(said(events).slice(3)).toEqual(['unloaded b', 'loaded a']);
    });
  });

  test('stay where they are pinned: what does not fit beside them is refused', async () => {
    await withRegistry(
      1,
      async (models, events) => {
        expect(said(events)).toEqual(['loaded a']);
        expect(await rejection(models.acquire('b', never))).toMatchObject({ status: 503, code: 'model_too_large' });
        await models.unload('a');
        expect(models.find('a')!.state).toBe('loaded');
      },
      true,
    );
  });

  test('are unloaded when they were not used for long enough, or when that is asked for', async () => {
    await withRegistry(2, async (models, events) => {
      (await models.acquire('a', never)).release(0);
      await until(() => said(events).includes('unloaded a'));
      const lease = await models.acquire('b', never);
      await models.unload('b');
      expect(models.find('b')!.state).toBe('loaded'); // somebody has it
      lease.release();
      await until(() => said(events).includes('unloaded b'));
      (await models.acquire('b', never)).release(3_600_000);
      expect(models.find('b')!.expiresAt).toBeGreaterThan(Date.now());
      await models.unload('b');
      expect(models.find('b')!.state).toBe('unloaded');
    });
  });

  test('whose file is not there are a failure of the server, without its path', async () => {
    const events: ModelEvent[] = [];
    const models = new ModelRegistry([{ name: 'x', model: '/nowhere/secret.gguf' }], {
      onEvent: (event) => events.push(event),
    });
    const error = (await rejection(models.acquire('x', never))) as Error;
    expect(error).toMatchObject({ status: 503, code: 'model_unavailable' });
    expect(error.message).not.toContain('secret');
    expect(said(events)).toEqual(['failed x']);
    expect(await rejection(models.acquire('y', never))).toMatchObject({ status: 404 });
    await models.close();
  });

  test('have different names', () => {
    expect(() => new ModelRegistry([{ model: tiny }, { model: tiny }])).toThrow('two are called text-a-f16');
    expect(() => new ModelRegistry([])).toThrow('expected at least one');
  });
});

describe('a server', () => {
  const endless = (gemma: Gemma) => ({
    model: 'tiny',
    messages: [{ role: 'user', content: 'Hello' }],
    logit_bias: Object.fromEntries(gemma.info.endTokens.map((id) => [id, -100])),
    stream: true,
  });
  const short = { model: 'tiny', messages: [{ role: 'user', content: 'Hello' }], max_tokens: 1 };
  let gemma: Gemma;
  beforeAll(async () => {
    gemma = await Gemma.load(tiny, { contextSize: 4096 });
  });
  afterAll(() => gemma.dispose());
  const running = async (options: object, work: (running: Running) => Promise<void>) => {
    const started = await start({ models: [{ name: 'tiny', model: gemma }], ...options });
    try {
      await work(started);
    } finally {
      await started.server.close();
    }
  };

  test('wants one of its keys, and each key is a client', async () => {
    await running({ apiKeys: ['secret', 'other'] }, async ({ url, client, server }) => {
      expect((await fetch(`${url}/health`)).status).toBe(200);
      for (const key of ['', 'secre', 'secret ', 'SECRET']) {
        const { status, body } = await post(
          `${url}/v1/chat/completions`,
          short,
          key === '' ? {} : { authorization: `Bearer ${key}x` },
        );
        expect([status, body.error!.code]).toEqual([401, 'invalid_api_key']);
      }
      expect((await client.chat.completions.create({ ...short, stream: false } as never)) as object).toHaveProperty(
        'choices',
      );
      for (const headers of [
        { authorization: 'Bearer other' },
        { 'x-goog-api-key': 'other' },
        { 'x-api-key': 'secret' },
      ]) {
        expect((await post(`${url}/v1/chat/completions`, short, headers as Record<string, string>)).status).toBe(200);
      }
      expect((await fetch(`${url}/metrics`)).status).toBe(401);
      expect(server.context.admission.inFlight).toBe(0);
    });
    const open = await createServer({ models: [{ name: 'tiny', model: gemma }] });
    expect(await rejection(open.listen({ host: '0.0.0.0', port: 0 }))).toBeInstanceOf(TypeError);
    await open.close();
  });

  test('answers this machine alone, and no pages of other origins', async () => {
    await running({ corsOrigins: ['https://good.example'] }, async ({ url }) => {
      const ask = (headers: Record<string, string>, method = 'GET') =>
        new Promise<{ status: number; allowed: string | undefined }>((resolve, reject) => {
          request(`${url}/v1/models`, { method, headers }, (response) => {
            response.resume();
            const allowed = response.headers['access-control-allow-origin'];
            response.on('end', () => resolve({ status: response.statusCode!, allowed }));
          })
            .on('error', reject)
            .end();
        });
      expect((await ask({})).status).toBe(200);
      expect((await ask({ host: 'evil.example' })).status).toBe(403);
      expect((await ask({ host: 'localhost:1234' })).status).toBe(200);
      expect((await ask({ origin: 'https://evil.example' })).status).toBe(403);
      expect((await ask({ origin: 'null' })).status).toBe(403);
      expect(await ask({ origin: 'https://good.example' })).toEqual({ status: 200, allowed: 'https://good.example' });
      expect(await ask({ origin: 'https://good.example' }, 'OPTIONS')).toEqual({
        status: 204,
        allowed: 'https://good.example',
      });
      expect((await ask({ origin: url })).status).toBe(200); // a page of its own
    });
  });

  test('queues, refuses with Retry-After, and counts', async () => {
    await running({ maxConcurrent: 1, maxQueue: 1 }, async ({ url, client, server }) => {
      const { admission } = server.context;
      const stream = await client.chat.completions.create(endless(gemma) as never);
      const waiting = post(`${url}/v1/chat/completions`, short);
      await until(() => admission.waiting === 1);
      const refused = await post(`${url}/v1/chat/completions`, short);
      expect([refused.status, refused.body.error!.code]).toEqual([429, 'queue_full']);
      expect(Number(refused.headers.get('retry-after'))).toBeGreaterThanOrEqual(1);
      const gauges = await (await fetch(`${url}/metrics`)).text();
      expect(gauges).toMatch(/^gemma_requests_in_flight 1$/m);
      expect(gauges).toMatch(/^gemma_requests_waiting 1$/m);
      (stream as unknown as { controller: AbortController }).controller.abort(); // leaves, which makes room
      expect((await waiting).status).toBe(200);
      await until(() => gemma.stats().running === 0);
      const counted = await (await fetch(`${url}/metrics`)).text();
      expect(counted).toMatch(/^gemma_requests_total\{api="openai",status="429"\} 1$/m);
      expect(counted).toMatch(/^gemma_tokens_total\{model="tiny",kind="output"\} 1$/m);
      expect(counted).toMatch(/^gemma_time_to_first_token_seconds_count\{model="tiny"\} 2$/m);
    });
  });

  test('stops the work of who leaves: while it waits, while it is read, while it is answered', async () => {
    await running({ maxConcurrent: 2 }, async ({ url, server }) => {
      const { admission } = server.context;
      const { port } = new URL(url);
      const send = (body: object) => {
        const json = JSON.stringify(body);
        const socket = connect(Number(port), '127.0.0.1');
        socket.on('error', () => {});
        socket.write(
          `POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(json)}\r\n\r\n${json}`,
        );
        return socket;
      };
      const long = 'word '.repeat(500); // takes the engine several steps to read
      const reading = send({ ...endless(gemma), stream: false, messages: [{ role: 'user', content: long }] });
      const answering = send(endless(gemma));
      await until(() => gemma.stats().running === 2);
      const waiting = send(endless(gemma));
      await until(() => admission.waiting === 1);
      waiting.destroy();
      await until(() => admission.waiting === 0);
      reading.destroy();
      answering.destroy();
      await until(() => admission.inFlight === 0 && gemma.stats().running === 0);
    });
  });

  test('ends when its answers have: new requests get 503 meanwhile', async () => {
    const { url, client, server } = await start({ models: [{ name: 'tiny', model: gemma }] });
    // Too much for the buffers between: it cannot end before it is read.
    const large = { ...endless(gemma), max_tokens: 2000, logprobs: true, top_logprobs: 20 };
    const stream = await client.chat.completions.create(large as never);
    expect((await fetch(`${url}/ready`)).status).toBe(200);
    const closing = server.close();
    expect((await fetch(`${url}/ready`)).status).toBe(503);
    expect((await post(`${url}/v1/chat/completions`, short)).status).toBe(503);
    const chunks = await collected(stream as unknown as AsyncIterable<{ choices: { finish_reason: string | null }[] }>);
    expect(chunks.at(-1)!.choices[0]!.finish_reason).toBe('length');
    await closing;
    await server.close(); // any number of times
    await expect(fetch(`${url}/health`)).rejects.toThrow();
    expect((await gemma.generate('x', { maxOutputTokens: 1 })).tokens).toHaveLength(1); // handed over, so not disposed
  });

  test('ends answers that take too long to finish, and requests that take too long at all', async () => {
    const { client, server } = await start({ models: [{ name: 'tiny', model: gemma }], shutdownTimeoutMs: 0 });
    const stream = await client.chat.completions.create(endless(gemma) as never);
    const reading = collected(stream as unknown as AsyncIterable<unknown>);
    reading.catch(() => {});
    await server.close();
    expect(((await rejection(reading)) as Error).message).toContain('shutting down');
    await running({ requestTimeoutMs: 1 }, async ({ url }) => {
      const { status, body } = await post(`${url}/v1/chat/completions`, { ...endless(gemma), stream: false });
      expect([status, body.error!.code]).toEqual([504, 'timeout']);
    });
  });

  test('a reader that takes nothing loses its connection, and its place', async () => {
    await running({ stallTimeoutMs: 50 }, async ({ url, server }) => {
      const { port } = new URL(url);
      const json = JSON.stringify({ ...endless(gemma), logprobs: true, top_logprobs: 20 });
      const socket = connect(Number(port), '127.0.0.1');
      socket.on('error', () => {});
      socket.pause();
      socket.write(
        `POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${json.length}\r\n\r\n${json}`,
      );
      await until(() => server.context.admission.inFlight === 1);
      await until(() => server.context.admission.inFlight === 0);
      socket.destroy();
    });
  });

  test('fetches pictures only where that is allowed, and none from its own network by itself', async () => {
    const site = createHttpServer((_, response) => response.end('no picture')).listen(0, '127.0.0.1');
    await new Promise((resolve) => site.once('listening', resolve));
    const picture = {
      type: 'image_url',
      image_url: { url: `http://127.0.0.1:${(site.address() as AddressInfo).port}/x.png` },
    };
    const demo = await Gemma.load('demo');
    try {
      for (const [remoteImages, message] of [
        [false, 'fetches no URLs'],
        [true, 'not a public address'],
        ['private', 'cannot be decoded'],
      ] as const) {
        const { server, url } = await start({ models: [{ name: 'demo', model: demo }], remoteImages });
        const { status, body } = await post(`${url}/v1/chat/completions`, {
          ...short,
          model: 'demo',
          messages: [{ role: 'user', content: [picture] }],
        });
        expect([status, body.error!.code, body.error!.message]).toEqual([
          400,
          'invalid_image',
          expect.stringContaining(message),
        ]);
        await server.close();
      }
    } finally {
      await demo.dispose();
      site.close();
    }
  });

  test('logs what happens, and nothing of what was asked', async () => {
    const lines: object[] = [];
    const { pino } = await import('pino');
    const logger = pino({ level: 'debug' }, { write: (line: string) => void lines.push(JSON.parse(line) as object) });
    await running({ logger, apiKeys: ['secret-key'] }, async ({ url }) => {
      const headers = { authorization: 'Bearer secret-key' };
      await post(
        `${url}/v1/chat/completions?key=secret-key`,
        { ...short, messages: [{ role: 'user', content: 'my-words' }] },
        headers,
      );
      await post(`${url}/v1/chat/completions`, '{ "my-words" }', headers);
    });
    const logged = JSON.stringify(lines);
    expect(lines).toContainEqual(
      expect.objectContaining({ msg: 'request', status: 200, client: 'key 1', path: '/v1/chat/completions' }),
    );
    expect(logged).not.toContain('my-words');
    expect(logged).not.toContain('secret-key');
  });
});
