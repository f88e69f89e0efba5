import { Gemma } from '../../lib/index.js';
import { rejection, sleep, tiny, withModel } from './helpers.js';

const ENDLESS = { raw: true, seed: 1, logitBias: { 1: -Infinity, 6: -Infinity } };

async function idle(gemma: Gemma, withinMs: number): Promise<void> {
  const start = performance.now();
  while (gemma.stats().running + gemma.stats().waiting > 0) {
    if (performance.now() - start > withinMs) throw new Error(`still busy after ${withinMs} ms`);
    await sleep(1);
  }
}

describe('abort', () => {
  let gemma: Gemma;
  beforeAll(async () => (gemma = await Gemma.load(tiny)));
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
    }
    await idle(gemma, 1000);
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
    expect(await rejection(stream.result)).toBe('enough');
    await idle(gemma, 1000);
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
      setTimeout(() => controller.abort(), 2);
      expect(await rejection(call(controller.signal))).toMatchObject({ name: 'AbortError' });
    }
    await idle(gemma, 2000);
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
    }
    await idle(gemma, 2000);
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
