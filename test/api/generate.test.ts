import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { toUSVString } from 'node:util';
import { Gemma, type StreamPart } from '../../lib/index.js';
import { resultOf, type FinishEvent } from '../../lib/result.js';
import { data, rejection, tiny, withModel } from './helpers.js';

interface Golden {
  cases: { name: string; ids: number[]; text?: string; greedy_ids?: number[]; greedy_gap?: number[] }[];
}
const golden = JSON.parse(readFileSync(join(data, 'text-a.json'), 'utf8')) as Golden;

let gemma: Gemma;
beforeAll(async () => (gemma = await Gemma.load(tiny, { kvCache: 'f32' })));
afterAll(() => gemma.dispose());

describe('generate', () => {
  test('greedy ids are those of the reference', async () => {
    const usable = golden.cases.filter((entry) => entry.greedy_ids?.length);
    expect(usable.length).toBeGreaterThan(0);
    for (const { ids, greedy_ids: want = [], greedy_gap: gap = [] } of usable) {
      // Up to the first step that is too close to call.
      const close = gap.findIndex((g) => g < 0.05);
      const n = close < 0 ? want.length : close;
      if (n === 0) continue;
      const { tokens } = await gemma.generate(ids, { temperature: 0, maxOutputTokens: n });
      expect(tokens.slice(0, n)).toEqual(want.slice(0, tokens.length));
    }
  });

  test('the background has the same results, beside other calls', async () => {
    const asked = { maxOutputTokens: 20, seed: 3, priority: 'background' } as const;
    const alone = await gemma.generate('One of many', { ...asked, priority: 'normal' });
    const rows = await gemma.embed(['a text', 'and another'], { priority: 'normal' });
    const behind = gemma.generate('One of many', asked);
    const embedded = gemma.embed(['a text', 'and another'], { priority: 'background' });
    const scored = gemma.score('Hello', ['one', 'two'], { priority: 'background' });
    await gemma.generate('Somebody waits', { maxOutputTokens: 10 });
    expect((await behind).tokens).toEqual(alone.tokens);
    expect((await embedded).data).toEqual(rows.data);
    expect(await scored).toEqual(await gemma.score('Hello', ['one', 'two']));
    const wrong = { ...asked, priority: 'high' as 'normal' };
    expect(await rejection(gemma.generate('Hello', wrong))).toBeInstanceOf(RangeError);
  });

  test('the result', async () => {
    const start = performance.now();
    const result = await gemma.generate('Hello', { maxOutputTokens: 12, seed: 5, logprobs: 3 });
    const wallMs = performance.now() - start;
    const { usage, timings } = result;
    expect(typeof result.text).toBe('string');
    expect(['stop', 'length']).toContain(result.finishReason);
    expect(usage).toEqual({
      inputTokens: await gemma.countTokens('Hello'),
      outputTokens: result.tokens.length,
      imageTokens: 0,
      cachedInputTokens: 0,
    });
    // Its own times are parts of the call's, one after another; the rates are of the tokens counted above.
    const { queueMs, prefillMs, decodeMs, draftedTokens, acceptedTokens } = timings;
    expect(result.tokens.length).toBeGreaterThan(1);
    expect(queueMs).toBeGreaterThanOrEqual(0);
    expect(prefillMs).toBeGreaterThan(0);
    expect(decodeMs).toBeGreaterThan(0);
    expect(queueMs + prefillMs + decodeMs).toBeLessThanOrEqual(wallMs);
    expect(timings.prefillTokensPerSecond).toBeCloseTo((usage.inputTokens * 1000) / prefillMs, 3); // none were cached
    expect(timings.decodeTokensPerSecond).toBeCloseTo(((usage.outputTokens - 1) * 1000) / decodeMs, 3);
    expect(draftedTokens).toBeGreaterThanOrEqual(acceptedTokens);
    expect(acceptedTokens).toBeLessThan(usage.outputTokens);
    expect(result.seed).toBe(5);
    expect(result.logprobs).toHaveLength(result.tokens.length);
    result.logprobs?.forEach((entry, i) => {
      expect(entry.token).toBe(result.tokens[i]);
      expect(entry.logprob).toBeLessThanOrEqual(0);
      expect(entry.top).toHaveLength(3);
      expect(entry.top[0]?.logprob).toBeGreaterThanOrEqual(entry.logprob);
    });
  });

  test('the reading speed counts tokens that were computed', () => {
    const event = {
      reason: 'stop',
      inputTokens: 100,
      cachedInputTokens: 90,
      prefillMs: 5,
      outputTokens: 1,
      decodeMs: 0,
    };
    const { usage, timings } = resultOf(event as FinishEvent, { text: '', tokens: [1], imageTokens: 0, seed: 1 });
    expect(usage).toMatchObject({ inputTokens: 100, cachedInputTokens: 90 });
    expect(timings.prefillTokensPerSecond).toBe(2000);
  });

  test('an answer that is cut off within a character ends before it', async () => {
    // A character that is no token is made of its bytes; the first of them alone is half a character.
    const bytes = await gemma.tokenize('\u{10ffff}');
    expect(bytes).toHaveLength(4);
    const [lead = 0] = bytes;
    const options = { raw: true, temperature: 0, logitBias: { [lead]: 1e6 } };
    for (const [maxOutputTokens, text] of [
      [1, ''],
      [3, '\ufffd\ufffd'], // two that no other bytes followed, and one that is cut off
    ] as const) {
      const result = await gemma.generate('x', { ...options, maxOutputTokens });
      expect(result).toMatchObject({ text, finishReason: 'length', tokens: Array(maxOutputTokens).fill(lead) });
      const stream = gemma.stream('x', { ...options, maxOutputTokens });
      let streamed = '';
      for await (const part of stream) streamed += part.text;
      expect(streamed).toBe(text);
      expect(await stream.result).toMatchObject({ text, tokens: result.tokens });
    }
  });

  test('a seed gives the same text, also beside others', async () => {
    const options = { maxOutputTokens: 40, seed: 11 };
    const alone = await gemma.generate('Once', options);
    const together = await Promise.all([1, 2, 3, 4].map(() => gemma.generate('Once', options)));
    for (const result of together) expect(result.tokens).toEqual(alone.tokens);
    const another = await gemma.generate('Once', { ...options, seed: 12 });
    expect(another.tokens).not.toEqual(alone.tokens);
  });

  test('strings, messages and ids are the same prompt', async () => {
    const options = { temperature: 0, maxOutputTokens: 8 };
    const text = await gemma.generate('Hi there', options);
    const messages = await gemma.generate([{ role: 'user', content: 'Hi there' }], options);
    const { tokens } = await gemma.logits('Hi there', { data: false });
    const ids = await gemma.generate(tokens, options);
    expect(messages.tokens).toEqual(text.tokens);
    expect(ids.tokens).toEqual(text.tokens);
  });

  test('raw text begins with one <bos>, or none', async () => {
    const text = await gemma.tokenize('Hi');
    expect((await gemma.logits('Hi', { raw: true, data: false })).tokens).toEqual([2, ...text]);
    expect((await gemma.logits('Hi', { raw: true, bos: false, data: false })).tokens).toEqual(text);
    expect(await gemma.countTokens('Hi', { raw: true })).toBe(text.length + 1);
    expect(await rejection(gemma.generate('', { raw: true, bos: false }))).toBeInstanceOf(RangeError);
    expect(await rejection(gemma.generate([]))).toMatchObject({ code: 'ERR_INVALID_ARGUMENT', detail: 'BAD_ROLES' });
    expect(await rejection(gemma.generate([{ role: 'user', content: 'x' }], { raw: true }))).toBeInstanceOf(TypeError);
    expect(await rejection(gemma.generate(5 as never))).toBeInstanceOf(TypeError);
  });

  test('stop sequences', async () => {
    const all = await gemma.generate('Stop', {
      raw: true,
      temperature: 0,
      maxOutputTokens: 60,
      logitBias: { 1: -Infinity, 6: -Infinity },
    });
    const stop = all.text.slice(10, 13);
    expect(stop).toHaveLength(3);
    const cut = await gemma.generate('Stop', {
      raw: true,
      temperature: 0,
      maxOutputTokens: 60,
      logitBias: { 1: -Infinity, 6: -Infinity },
      stopSequences: ['not there at all', stop],
    });
    expect(cut.text).toBe(all.text.slice(0, all.text.indexOf(stop)));
    expect(cut.finishReason).toBe('stop');
    expect(cut.stopSequence).toBe(stop);
  });

  test('banned tokens do not come', async () => {
    const { tokens } = await gemma.generate('Ban', { temperature: 0, maxOutputTokens: 5 });
    const [first = 0] = tokens;
    const other = await gemma.generate('Ban', {
      temperature: 0,
      maxOutputTokens: 5,
      logitBias: { [first]: -Infinity },
    });
    expect(other.tokens).not.toContain(first);
  });

  test('many at once are served together', async () => {
    const before = gemma.stats().steps;
    const results = await Promise.all(
      Array.from({ length: 16 }, (_, i) =>
        gemma.generate(`Number ${i}`, { maxOutputTokens: 50, seed: i, logitBias: { 1: -Infinity, 6: -Infinity } }),
      ),
    );
    expect(results.every((result) => result.usage.outputTokens === 50)).toBe(true);
    expect(gemma.stats().steps - before).toBeLessThan(16 * 50);
  });
});

describe('stream', () => {
  test('parts make up the result', async () => {
    const stream = gemma.stream('Tell', { maxOutputTokens: 50, seed: 3 });
    const parts: StreamPart[] = [];
    for await (const part of stream) parts.push(part);
    const result = await stream.result;
    expect(parts.map((part) => part.text).join('')).toBe(result.text);
    expect(parts.every((part) => part.type === 'text' && part.text !== '')).toBe(true);
    const tokens = parts.flatMap((part) => part.tokens);
    expect(result.tokens.slice(0, tokens.length)).toEqual(tokens);
    expect((await gemma.generate('Tell', { maxOutputTokens: 50, seed: 3 })).text).toBe(result.text);
  });

  test('parts have the log-probabilities of their tokens where these are asked for', async () => {
    const stream = gemma.stream('Tell', { maxOutputTokens: 30, seed: 3, logprobs: 2 });
    const parts: StreamPart[] = [];
    for await (const part of stream) parts.push(part);
    const logprobs = parts.flatMap((part) => part.logprobs ?? []);
    expect(logprobs.map(({ token }) => token)).toEqual(parts.flatMap((part) => part.tokens));
    expect((await stream.result).logprobs!.slice(0, logprobs.length)).toEqual(logprobs);
  });

  test('parts are whole characters', async () => {
    for (let seed = 0; seed < 20; ++seed) {
      let text = '';
      for await (const part of gemma.stream('Ü', { maxOutputTokens: 60, seed, temperature: 2, topK: 0, topP: 1 })) {
        expect(toUSVString(part.text)).toBe(part.text);
        text += part.text;
      }
      expect(Buffer.from(text, 'utf8').toString('utf8')).toBe(text);
    }
  });

  test('the engine waits for a slow reader', async () => {
    const stream = gemma.stream('Slow', {
      raw: true,
      maxOutputTokens: 2000,
      seed: 1,
      logitBias: { 1: -Infinity, 6: -Infinity },
    });
    const reader = stream[Symbol.asyncIterator]();
    await reader.next();
    await new Promise((resolve) => setTimeout(resolve, 500));
    const { steps } = gemma.stats();
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(gemma.stats().steps).toBe(steps); // paused
    let n = 1;
    while (!(await reader.next()).done) ++n;
    expect(n).toBeGreaterThan(256);
    expect((await stream.result).usage.outputTokens).toBe(2000);
  });

  test('the result alone does not wait for a reader', async () => {
    const { usage } = await gemma.stream('Go', {
      raw: true,
      maxOutputTokens: 1000,
      seed: 1,
      logitBias: { 1: -Infinity, 6: -Infinity },
    }).result;
    expect(usage.outputTokens).toBe(1000);
  });

  test('leaving the loop stops the work', async () => {
    const stream = gemma.stream('Leave', { raw: true, seed: 1, logitBias: { 1: -Infinity, 6: -Infinity } });
    let n = 0;
    for await (const part of stream) {
      expect(part.text).not.toBe('');
      if (++n === 5) break;
    }
    const result = await stream.result;
    expect(result.finishReason).toBe('other');
    expect(result.usage.outputTokens).toBeLessThan(3000);
  });

  test('can be read once', async () => {
    const stream = gemma.stream('Once', { maxOutputTokens: 3, seed: 1 });
    for await (const part of stream) void part;
    expect(await rejection(stream[Symbol.asyncIterator]().next())).toBeInstanceOf(TypeError);
  });

  test('reads that come before their parts are answered in order, and throwing leaves', async () => {
    const reader = gemma.stream('Tell', { maxOutputTokens: 50, seed: 3 })[Symbol.asyncIterator]();
    const all = await Promise.all(Array.from({ length: 60 }, () => reader.next()));
    const { text } = await gemma.generate('Tell', { maxOutputTokens: 50, seed: 3 });
    expect(all.map((next) => next.value?.text ?? '').join('')).toBe(text);
    expect(all.at(-1)).toEqual({ done: true, value: undefined });

    const stream = gemma.stream('Tell', { raw: true, seed: 3, logitBias: { 1: -Infinity, 6: -Infinity } });
    const another = stream[Symbol.asyncIterator]();
    await another.next();
    expect(await rejection(another.throw('mine').catch((error: unknown) => Promise.reject(error as Error)))).toBe(
      'mine',
    );
    expect(await another.next()).toEqual({ done: true, value: undefined });
    expect((await stream.result).finishReason).toBe('other');
  });

  test('options are checked at once, the rest when it is read', async () => {
    expect(() => gemma.stream('x', { topP: 7 })).toThrow(RangeError);
    const stream = gemma.stream([999_999]);
    expect(await rejection(stream[Symbol.asyncIterator]().next())).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    expect(await rejection(stream.result)).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  });

  test('an unread stream costs nothing', () => {
    gemma.stream('never read');
    expect(gemma.stats().running).toBe(0);
  });
});

describe('logits', () => {
  test('of the last and of all positions', async () => {
    const all = await gemma.logits([2, 10, 20, 30], { all: true, top: 3 });
    const last = await gemma.logits([2, 10, 20, 30]);
    expect(all.shape).toEqual([4, 448]);
    expect(all.data).toHaveLength(4 * 448);
    expect(last.shape).toEqual([1, 448]);
    expect(Array.from(last.data)).toEqual(Array.from(all.data.subarray(3 * 448)));
    expect(all.top).toHaveLength(4);
    all.top?.forEach((best, i) => {
      const row = Array.from(all.data.subarray(i * 448, (i + 1) * 448));
      expect(best.map((entry) => entry.logit)).toEqual([...row].sort((a, b) => b - a).slice(0, 3));
      const sum = row.reduce((total, x) => total + Math.exp(x), 0);
      expect(best[0]?.logprob).toBeCloseTo((best[0]?.logit ?? 0) - Math.log(sum), 4);
    });
  });

  test('many rows at once let the event loop turn between them', async () => {
    let turns = 0;
    const count = () => {
      ++turns;
      immediate = setImmediate(count);
    };
    let immediate = setImmediate(count);
    const rowsOfTurn = new Map<number, number>();
    await gemma.logits(Array<number>(600).fill(20), {
      all: true,
      onRow: () => {
        // Rows of a step come together, 64 of them; each takes its receiver half a millisecond.
        for (const end = performance.now() + 0.5; performance.now() < end;);
        rowsOfTurn.set(turns, (rowsOfTurn.get(turns) ?? 0) + 1);
      },
    });
    clearImmediate(immediate);
    expect([...rowsOfTurn.values()].reduce((sum, rows) => sum + rows, 0)).toBe(600);
    expect(Math.max(...rowsOfTurn.values())).toBeLessThanOrEqual(16);
  });

  test('row by row', async () => {
    const rows: [number, number][] = [];
    const { data: empty } = await gemma.logits([2, 10, 20], {
      all: true,
      onRow: (row, position) => rows.push([position, row.length]),
    });
    expect(rows).toEqual([0, 1, 2].map((position) => [position, 448]));
    expect(empty).toHaveLength(0);
    const broken = gemma.logits([2, 10, 20], {
      all: true,
      onRow: () => {
        throw new Error('mine');
      },
    });
    expect(await rejection(broken)).toMatchObject({ message: 'mine' });
  });
});

test('perplexity is the mean over chunks that begin with <bos>', async () => {
  const ids = Array.from({ length: 50 }, (_, i) => 20 + ((i * 37) % 400));
  const { perplexity, tokens, nll } = await gemma.perplexity(ids, { contextSize: 20 });
  expect(tokens).toBe(50);
  let sum = 0;
  for (let start = 0; start < ids.length; start += 19) {
    const chunk = [2, ...ids.slice(start, start + 19)];
    const { data: rows } = await gemma.logits(chunk, { all: true });
    for (let i = 0; i + 1 < chunk.length; ++i) {
      const row = Array.from(rows.subarray(i * 448, (i + 1) * 448));
      sum += Math.log(row.reduce((total, x) => total + Math.exp(x), 0)) - (row[chunk[i + 1] ?? 0] ?? 0);
    }
  }
  expect(nll).toBeCloseTo(sum / 50, 4);
  expect(perplexity).toBeCloseTo(Math.exp(sum / 50), 1);
});

describe('text of any length', () => {
  // Longer than what is handed over at once, with characters across every place where it could be cut.
  const long = ['', 'a', 'ab'].map((start) => start + '🙂é'.repeat(50_000));

  test.each(long)('goes to ids and back', async (text) => {
    const ids = await gemma.tokenize(text);
    expect(await gemma.detokenize(ids)).toBe(text);
    expect(await gemma.countTokens(text, { raw: true, bos: false })).toBe(ids.length);
  });

  test('in many parts is one text, in many messages as many', async () => {
    const text = 'onetwothree'.repeat(10_000); // without blanks, of which the template trims those at a part's ends
    const pieces = Array.from({ length: text.length / 5 }, (_, i) => text.slice(i * 5, i * 5 + 5));
    const content = pieces.map((piece) => ({ type: 'text' as const, text: piece }));
    const whole = await gemma.countTokens([{ role: 'user', content: text }]);
    expect(await gemma.countTokens([{ role: 'user', content }])).toBe(whole);

    const turns = (n: number) =>
      Array.from({ length: n }, (_, i) => ({ role: i % 2 ? ('assistant' as const) : ('user' as const), content: 'x' }));
    const [one, two, many] = await Promise.all([1, 3, 2001].map((n) => gemma.countTokens(turns(n))));
    expect(many).toBe((one ?? 0) + 1000 * ((two ?? 0) - (one ?? 0)));
  });

  test('a prompt that cannot fit is refused by its length alone', async () => {
    const endless = 'a'.repeat(2 ** 29 - 100); // its tokens would take gigabytes
    const { contextSize, longestToken } = gemma.info;
    const ids = [2];
    ids.length = 2 ** 31;
    for (const call of [
      gemma.generate(endless, { raw: true }),
      gemma.generate(endless, { raw: true, onOverflow: 'truncate' }),
      gemma.stream(endless, { raw: true }).result,
      gemma.logits(endless, { raw: true }),
      gemma.generate([{ role: 'user', content: endless }]),
      gemma.generate(ids),
      gemma.generate('a'.repeat(contextSize * longestToken + 1), { raw: true }),
    ]) {
      expect(await rejection(call)).toMatchObject({ code: 'ERR_CONTEXT_FULL', detail: 'CONTEXT_OVERFLOW' });
    }
    // As long as what may fit: whether it does, only its tokens tell.
    const longest = ' '.repeat(longestToken * 100);
    expect(await gemma.countTokens(longest, { raw: true })).toBeLessThan(contextSize);
    expect((await gemma.generate(longest, { raw: true, maxOutputTokens: 1 })).usage.outputTokens).toBe(1);
  });

  test('can be aborted', async () => {
    const text = 'word '.repeat(1_000_000);
    const ids = Array<number>(1_000_000).fill(20);
    for (const call of [
      (signal: AbortSignal) => gemma.tokenize(text, { signal }),
      (signal: AbortSignal) => gemma.countTokens(text, { signal }),
      (signal: AbortSignal) => gemma.detokenize(ids, { signal }),
      (signal: AbortSignal) => gemma.perplexity(text, { signal }),
    ]) {
      expect(await rejection(call(AbortSignal.abort('before')))).toBe('before');
      const controller = new AbortController();
      const failed = rejection(call(controller.signal));
      setImmediate(() => controller.abort('within'));
      expect(await failed).toBe('within');
    }
  });
});

test('tokenize and detokenize', async () => {
  for (const text of ['', 'Hello, world!', ' two  blanks ', 'Zeile\n\n\tTab', '你好 🙂', '<b>bold</b>']) {
    const ids = await gemma.tokenize(text);
    expect(await gemma.detokenize(ids)).toBe(text);
    expect(await gemma.tokenize(text, { bos: true })).toEqual([2, ...ids]);
  }
  const turn = await gemma.tokenize('<start_of_turn>', { special: true });
  expect(turn).toHaveLength(1);
  expect(await gemma.detokenize(turn)).toBe('<start_of_turn>');
  expect(await gemma.detokenize(turn, { special: false })).toBe('');
  expect(await gemma.detokenize(await gemma.tokenize('\ud800'))).toBe('\ufffd');
});

test('information without loading', async () => {
  const summary = await Gemma.inspect(tiny);
  expect(summary).toMatchObject({
    architecture: 'gemma3',
    instructionTuned: true,
    config: { layers: 7, slidingWindow: 8 },
  });
  expect(summary.tensorTypes.map((entry) => entry.type).sort()).toEqual(['F16', 'F32']);
  expect(summary.memory.map((plan) => plan.contextSize)).toEqual([2048]);
  const small = await Gemma.estimate(tiny, { contextSize: 128 });
  const large = await Gemma.estimate(tiny, { contextSize: 4096, kvCache: 'f32' });
  expect(small.fits).toBe(true);
  expect(small.kvBytes).toBeLessThan(large.kvBytes);
  const { weightsBytes, kvBytes, scratchBytes, screenBytes, grammarBytes, totalBytes } = small;
  expect(grammarBytes).toBeGreaterThan(0);
  expect(totalBytes).toBe(weightsBytes + kvBytes + scratchBytes + screenBytes + grammarBytes);
  const devices = await Gemma.devices();
  expect(devices[0]).toMatchObject({ name: 'cpu', available: true });
  expect(devices[0]?.isas).toContain('ref');
});

test('load progress and settings', async () => {
  const seen: number[] = [];
  await withModel(
    async (model) => {
      expect(model.info).toMatchObject({
        isa: 'ref',
        threads: 1,
        contextSize: 256,
        kvCache: 'q8_0',
        instructionTuned: true,
      });
      expect(model.info.loadMs).toBeGreaterThan(0);
      expect((await model.generate('Hi', { maxOutputTokens: 3 })).tokens.length).toBeGreaterThan(0);
    },
    {
      isa: 'ref',
      threads: 1,
      contextSize: 256,
      kvCache: 'q8_0',
      mmap: false,
      onProgress: (fraction) => seen.push(fraction),
    },
  );
  expect(seen.at(-1)).toBe(1);
  expect([...seen].sort((a, b) => a - b)).toEqual(seen);
});
