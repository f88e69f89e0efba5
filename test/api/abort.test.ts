import { setMaxListeners } from 'node:events';
import { Readable } from 'node:stream';
import { ReadableStream } from 'node:stream/web';
import { Gemma, type GemmaStream, type StreamPart } from '../../lib/index.js';
import { rejection, sleep, tiny, until, withModel } from './helpers.js';

const ENDLESS = { raw: true, seed: 1, logitBias: { 1: -Infinity, 6: -Infinity } };

// Left alone, an endless generation fills the context of 4,096 positions, a step for each.
const FAR_FROM_THE_END = 1000;

// What is in use is of calls that run.
const NOTHING_KEPT = { prefixCacheBytes: 0 };

function idle(gemma: Gemma): boolean {
  const { running, waiting, paused } = gemma.stats();
  return running + waiting + paused === 0;
}

/**
 * Waits until nothing is under way, and sees that few steps were computed since. Calls that had begun stop with the step that was
 * going on, though one more may have begun; one that is cancelled as it begins goes on until its thread gets to say so.
 */
async function stopped(gemma: Gemma, atMost = 2): Promise<void> {
  const { steps } = gemma.stats();
  await until(() => idle(gemma));
  expect(gemma.stats().steps - steps).toBeLessThanOrEqual(atMost);
}

describe('abort', () => {
  let gemma: Gemma;
  beforeAll(async () => (gemma = await Gemma.load(tiny, NOTHING_KEPT)));
  afterAll(() => gemma.dispose());

  test('before the call', async () => {
    const reason = new Error('changed my mind');
    const signal = AbortSignal.abort(reason);
    expect(await rejection(gemma.generate('x', { signal }))).toBe(reason);
    expect(await rejection(gemma.stream('x', { signal }).result)).toBe(reason);
    expect(await rejection(gemma.logits('x', { signal }))).toBe(reason);
    expect(await rejection(gemma.perplexity('x', { signal }))).toBe(reason);
    expect(await rejection(Gemma.load(tiny, { signal }))).toBe(reason);
  });

  test('a generation, at any moment', async () => {
    for (const ms of [0, 0, 1, 2, 5, 20]) {
      const controller = new AbortController();
      const call = gemma.generate('Abort', { ...ENDLESS, signal: controller.signal });
      setTimeout(() => controller.abort(), ms);
      expect(await rejection(call)).toMatchObject({ name: 'AbortError' });
      await stopped(gemma, FAR_FROM_THE_END);
    }
  });

  test('a stream, from its own loop', async () => {
    const controller = new AbortController();
    const stream = gemma.stream('Abort', { ...ENDLESS, signal: controller.signal });
    let n = 0;
    const loop = (async () => {
      for await (const part of stream) {
        expect(part.text).not.toBe('');
        if (++n === 3) controller.abort('enough');
        expect(n).toBeLessThanOrEqual(3);
      }
    })();
    expect(await rejection(loop)).toBe('enough');
    await stopped(gemma);
    expect(await rejection(stream.result)).toBe('enough');
  });

  test('a time limit', async () => {
    const call = gemma.generate('Abort', { ...ENDLESS, signal: AbortSignal.timeout(20) });
    expect(await rejection(call)).toMatchObject({ name: 'TimeoutError' });
  });

  test('logits and perplexity', async () => {
    const ids = Array.from({ length: 4000 }, (_, i) => 20 + (i % 400));
    for (const call of [
      (signal: AbortSignal) => gemma.logits(ids, { all: true, signal }),
      (signal: AbortSignal) => gemma.perplexity([...ids, ...ids, ...ids], { signal }),
    ]) {
      const controller = new AbortController();
      const { steps } = gemma.stats();
      const failed = rejection(call(controller.signal));
      await until(() => gemma.stats().steps > steps);
      controller.abort();
      expect(await failed).toMatchObject({ name: 'AbortError' });
      await stopped(gemma);
    }
  });

  test('one of several leaves the others alone', async () => {
    const options = { ...ENDLESS, maxOutputTokens: 300 };
    const alone = await gemma.generate('Others', options);
    const controller = new AbortController();
    const calls = [0, 1, 2].map((i) =>
      gemma.generate('Others', { ...options, ...(i === 1 && { signal: controller.signal }) }),
    );
    controller.abort();
    const [first, second, third] = await Promise.allSettled(calls);
    expect(second?.status).toBe('rejected');
    for (const other of [first, third]) {
      expect(other?.status === 'fulfilled' && other.value.tokens).toEqual(alone.tokens);
    }
  });

  test('many times over leaves nothing behind', async () => {
    for (let round = 0; round < 50; ++round) {
      const controller = new AbortController();
      const calls = Array.from({ length: 8 }, (_, i) =>
        gemma.generate(`Round ${i}`, { ...ENDLESS, signal: controller.signal }),
      );
      await sleep(round % 4);
      controller.abort();
      for (const result of await Promise.allSettled(calls)) expect(result.status).toBe('rejected');
      await stopped(gemma, FAR_FROM_THE_END);
    }
    expect(gemma.stats().kvPagesInUse).toBe(0);
  });

  test('the signal is let go of', async () => {
    const controller = new AbortController();
    let listeners = 0;
    const { addEventListener, removeEventListener } = controller.signal;
    controller.signal.addEventListener = function (...args: Parameters<typeof addEventListener>) {
      ++listeners;
      addEventListener.apply(this, args);
    };
    controller.signal.removeEventListener = function (...args: Parameters<typeof removeEventListener>) {
      --listeners;
      removeEventListener.apply(this, args);
    };
    for (let i = 0; i < 5; ++i) await gemma.generate('Listen', { maxOutputTokens: 2, signal: controller.signal });
    expect(listeners).toBe(0);
  });
});

describe('leaving a stream while its prompt is read', () => {
  const ways: [string, (stream: GemmaStream) => () => unknown][] = [
    [
      'iterator.return()',
      (stream) => {
        const reader = stream[Symbol.asyncIterator]();
        const next = reader.next();
        return async () => {
          expect(await reader.return()).toEqual({ done: true, value: undefined });
          expect(await next).toEqual({ done: true, value: undefined });
        };
      },
    ],
    [
      'Readable.destroy()',
      (stream) => {
        const readable = Readable.from(stream);
        readable.resume();
        return () => readable.destroy();
      },
    ],
    [
      'ReadableStream.cancel()',
      (stream) => {
        const reader = ReadableStream.from(stream).getReader();
        void reader.read();
        return () => reader.cancel();
      },
    ],
  ];
  test.each(ways)('%s', async (_, begin) => {
    await withModel(
      async (gemma) => {
        const prompt = Array.from({ length: 4000 }, (__, i) => 20 + (i % 400)); // a step for every four
        let reading = false;
        const stream = gemma.stream(prompt, { onProgress: () => (reading = true) });
        const leave = begin(stream);
        await until(() => reading);
        await leave();
        await stopped(gemma, FAR_FROM_THE_END / 2);
        expect(await stream.result).toMatchObject({ finishReason: 'other', text: '', tokens: [] });
      },
      { batchSize: 4 },
    );
  });

  test('before anything was computed', async () => {
    await withModel(async (gemma) => {
      const { steps } = gemma.stats();
      const stream = gemma.stream('word '.repeat(5000));
      const reader = stream[Symbol.asyncIterator]();
      const next = reader.next();
      await reader.return();
      expect(await next).toEqual({ done: true, value: undefined });
      expect(await stream.result).toMatchObject({ finishReason: 'other', usage: { inputTokens: 0 } });
      expect(gemma.stats().steps).toBe(steps);
    });
  });
});

describe('readers who do not read', () => {
  const PARTS = { ...ENDLESS, maxOutputTokens: 1000 };

  async function stall(gemma: Gemma, n: number, options = {}) {
    const readers = Array.from({ length: n }, (_, i) =>
      gemma.stream(`Stall ${i}`, { ...PARTS, seed: i, ...options })[Symbol.asyncIterator](),
    );
    await Promise.all(readers.map((reader) => reader.next()));
    await until(() => gemma.stats().paused === n);
    return readers;
  }

  test('leave their places to others, and get what they would have got', async () => {
    await withModel(async (gemma) => {
      const readers = await stall(gemma, 66);
      expect(gemma.stats()).toMatchObject({ running: 0, waiting: 0, paused: 66 });
      expect((await gemma.generate('Hi', { maxOutputTokens: 5, seed: 1 })).usage.outputTokens).toBeGreaterThan(0);
      const alone = await gemma.generate('Stall 0', { ...PARTS, seed: 0 });
      let rest = '';
      for await (const part of readers[0] as AsyncIterable<StreamPart>) rest += part.text;
      expect(alone.text.endsWith(rest) && rest.length > alone.text.length / 2).toBe(true);
      await Promise.all(readers.map((reader) => reader.return?.()));
      await until(() => idle(gemma));
      expect(gemma.stats().kvPagesInUse).toBe(0);
    }, NOTHING_KEPT);
  });

  test('end with an error after stallTimeoutMs', async () => {
    await withModel(async (gemma) => {
      jest.useFakeTimers({ doNotFake: ['setImmediate', 'nextTick', 'queueMicrotask', 'performance'] });
      try {
        const stream = gemma.stream('Stall', { ...PARTS, stallTimeoutMs: 1000 });
        const reader = stream[Symbol.asyncIterator]();
        await reader.next();
        await until(() => gemma.stats().paused === 1);
        jest.advanceTimersByTime(900);
        expect(await reader.next()).toMatchObject({ done: false }); // the time begins anew
        jest.advanceTimersByTime(900);
        expect(gemma.stats().paused).toBe(1);
        jest.advanceTimersByTime(100);
        expect(await rejection(reader.next())).toMatchObject({ code: 'ERR_STALLED' });
        expect(await rejection(stream.result)).toMatchObject({ code: 'ERR_STALLED' });
        await until(() => idle(gemma));
        expect(jest.getTimerCount()).toBe(0);

        // Who reads to the end, or wants the result alone, does not stall.
        const other = gemma.stream('Read', { ...PARTS, stallTimeoutMs: 1000 });
        for await (const part of other) void part;
        jest.advanceTimersByTime(5000);
        expect((await other.result).usage.outputTokens).toBe(1000);
        expect((await gemma.stream('Result', { ...PARTS, stallTimeoutMs: 1 }).result).usage.outputTokens).toBe(1000);
        expect(jest.getTimerCount()).toBe(0);
      } finally {
        jest.useRealTimers();
      }
    });
  });
});

describe('the queue', () => {
  test('has a limit, which those who do not read do not count for', async () => {
    await withModel(
      async (gemma) => {
        const controller = new AbortController();
        setMaxListeners(0, controller.signal);
        const options = { ...ENDLESS, signal: controller.signal };
        const calls = Array.from({ length: 67 }, (_, i) => rejection(gemma.generate(`Queue ${i}`, options)));
        const refused = [
          gemma.generate('one more', options),
          gemma.stream('one more', options).result,
          gemma.logits('one more'),
          gemma.perplexity('one more'),
        ];
        for (const call of refused) expect(await rejection(call)).toMatchObject({ code: 'ERR_QUEUE_FULL' });
        expect(await gemma.countTokens('counting waits for nobody')).toBeGreaterThan(0);
        await until(() => gemma.stats().running === 64 && gemma.stats().waiting === 3);
        controller.abort();
        await Promise.all(calls);
      },
      { maxQueue: 3 },
    );
    await withModel(
      async (gemma) => {
        const readers = Array.from({ length: 67 }, () => gemma.stream('Stall', ENDLESS)[Symbol.asyncIterator]());
        await Promise.all(readers.map((reader) => reader.next()));
        await until(() => gemma.stats().paused === 67);
        expect((await gemma.generate('Hi', { maxOutputTokens: 3 })).usage.outputTokens).toBeGreaterThan(0);
        await Promise.all(readers.map((reader) => reader.return()));
      },
      { maxQueue: 3 },
    );
  });
});

describe('loading', () => {
  test('can be aborted at any moment', async () => {
    for (let i = 0; i < 20; ++i) {
      const controller = new AbortController();
      const call = Gemma.load(tiny, { signal: controller.signal });
      if (i % 2) setTimeout(() => controller.abort(), i / 4);
      else controller.abort();
      const outcome = await call.then(
        (gemma) => gemma.dispose(),
        (error: unknown) => expect(error).toMatchObject({ name: 'AbortError' }),
      );
      void outcome;
    }
  });

  test('a callback that throws ends it', async () => {
    const call = Gemma.load(tiny, {
      onProgress: () => {
        throw new Error('mine');
      },
    });
    expect(await rejection(call)).toMatchObject({ message: 'mine' });
  });
});

describe('dispose', () => {
  test('while everything runs: all of it is told', async () => {
    for (const ms of [0, 1, 3, 10]) {
      const gemma = await Gemma.load(tiny);
      const calls: Promise<unknown>[] = [
        gemma.generate('a', ENDLESS),
        gemma.stream('b', ENDLESS).result,
        gemma.logits(
          Array.from({ length: 4000 }, () => 20),
          { all: true },
        ),
        gemma.perplexity(Array.from({ length: 20_000 }, () => 20)),
        (async () => {
          for await (const part of gemma.stream('c', ENDLESS)) void part;
        })(),
      ];
      await sleep(ms);
      const closed = gemma.dispose();
      for (const result of await Promise.allSettled(calls)) {
        expect(result).toMatchObject({ status: 'rejected', reason: { code: 'ERR_DISPOSED' } });
      }
      await closed;
    }
  });

  test('tokenizing goes on', async () => {
    const gemma = await Gemma.load(tiny);
    const call = gemma.tokenize('word '.repeat(10_000));
    const closed = gemma.dispose();
    expect((await call).length).toBeGreaterThan(10_000);
    await closed;
  });

  test('load and dispose, again and again, side by side', async () => {
    const round = async (i: number) =>
      withModel(async (gemma) => {
        const { tokens } = await gemma.generate('Again', { maxOutputTokens: 5, temperature: 0 });
        if (i % 3 === 0) void gemma.generate('left alone', ENDLESS).catch(() => undefined);
        return tokens;
      });
    const results = await Promise.all(Array.from({ length: 40 }, (_, i) => round(i)));
    for (const tokens of results) expect(tokens).toEqual(results[0]);
  });

  test('await using', async () => {
    let kept: Gemma;
    {
      const gemma = await Gemma.load(tiny);
      kept = gemma;
      await gemma[Symbol.asyncDispose]();
    }
    expect(await rejection(kept.tokenize('x'))).toMatchObject({ code: 'ERR_DISPOSED' });
  });
});
