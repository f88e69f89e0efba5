import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { toUSVString } from 'node:util';
import { Gemma, type StreamPart } from '../../lib/index.js';
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

  test('the result', async () => {
    const result = await gemma.generate('Hello', { maxOutputTokens: 12, seed: 5, logprobs: 3 });
    const { usage, timings } = result;
    expect(typeof result.text).toBe('string');
    expect(['stop', 'length']).toContain(result.finishReason);
    expect(usage).toEqual({
      inputTokens: await gemma.countTokens('Hello'),
      outputTokens: result.tokens.length,
      imageTokens: 0,
      cachedInputTokens: 0,
    });
    for (const value of Object.values(timings)) expect(value).toBeGreaterThanOrEqual(0);
    expect(timings.prefillTokensPerSecond).toBeGreaterThan(0);
    expect(result.seed).toBe(5);
    expect(result.logprobs).toHaveLength(result.tokens.length);
    result.logprobs?.forEach((entry, i) => {
      expect(entry.token).toBe(result.tokens[i]);
      expect(entry.logprob).toBeLessThanOrEqual(0);
      expect(entry.top).toHaveLength(3);
      expect(entry.top[0]?.logprob).toBeGreaterThanOrEqual(entry.logprob);
    });
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
    expect(await rejection(gemma.generate([]))).toBeInstanceOf(Error);
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
  expect(small.totalBytes).toBe(small.weightsBytes + small.kvBytes + small.scratchBytes + small.screenBytes);
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
