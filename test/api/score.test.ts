// gemma.score: log-probabilities of transformers and of gemma.logits, what the results add up to, and what is refused.
import sharp from 'sharp';
import { Gemma } from '../../lib/index.js';
import { realModel, rejection, tiny, withModel } from './helpers.js';
import { argmax, logSumExp, readJson, Tensors, type Golden } from './reference.js';

let gemma: Gemma;
beforeAll(async () => (gemma = await Gemma.load(tiny, { kvCache: 'f32' })));
afterAll(() => gemma.dispose());

const sum = (values: readonly number[]) => values.reduce((total, x) => total + x, 0);

/** By the logits of the prompt and the candidate as one text. */
async function byLogits(prompt: readonly number[], candidate: readonly number[]): Promise<number[]> {
  const { data: logits, shape } = await gemma.logits([...prompt, ...candidate], { all: true });
  return candidate.map((token, i) => {
    const row = logits.subarray((prompt.length + i - 1) * shape[1], (prompt.length + i) * shape[1]);
    return (row[token] ?? NaN) - logSumExp(row);
  });
}

test('log-probabilities are those of the reference', async () => {
  const golden = readJson<Golden>('text-a.json');
  const tensors = new Tensors(golden.tensors);
  let seen = 0;
  for (const { name, ids } of golden.cases.filter((c) => c.ids.length > 3)) {
    const logits = tensors.f32(`${name}.logits`);
    const cut = Math.floor(ids.length / 3) + 1;
    const [scored, other] = await gemma.score(ids.slice(0, cut), [ids.slice(cut), [ids[cut] ?? 0]]);
    for (const [i, token] of ids.slice(cut).entries()) {
      const row = logits.subarray((cut + i - 1) * golden.vocab_size, (cut + i) * golden.vocab_size);
      // The logits are within 3e-4 of their spread (exactness.test.ts), which is below 3; a single one may be a few times that off.
      expect(Math.abs((scored?.tokenLogprobs[i] ?? NaN) - ((row[token] ?? NaN) - logSumExp(row)))).toBeLessThan(5e-3);
      ++seen;
    }
    expect(other?.tokenLogprobs[0]).toBe(scored?.tokenLogprobs[0]);
  }
  expect(seen).toBeGreaterThan(100);
});

test('logits tell the log-probability of each token of the input', async () => {
  const ids = await gemma.tokenize('one two three four', { bos: true });
  const { nextLogprobs, top } = await gemma.logits(ids, { all: true, data: false, next: true, top: 1 });
  const [scored] = await gemma.score(ids.slice(0, 1), [ids.slice(1)]);
  expect(nextLogprobs).toEqual(scored!.tokenLogprobs);
  expect(top).toHaveLength(ids.length);
  expect(await rejection(gemma.logits(ids, { next: true }))).toBeInstanceOf(TypeError);
});

test('candidates of unequal lengths that begin alike, in their order', async () => {
  const texts = [
    'red',
    'red and green',
    'reddish',
    ' blue',
    'a far longer thing than all of the others together',
    'x',
    'red',
  ];
  const prompt = await gemma.tokenize('What colour is it?', { bos: true });
  const scores = await gemma.score('What colour is it?', texts, { raw: true });
  expect(scores.map(({ text }) => text)).toEqual(texts);
  for (const { text, tokens, logprob, tokenLogprobs } of scores) {
    expect(tokens).toEqual(await gemma.tokenize(text));
    expect(logprob).toBe(sum(tokenLogprobs));
    const want = await byLogits(prompt, tokens);
    expect(tokenLogprobs).toHaveLength(want.length);
    for (const [i, x] of want.entries()) expect(Math.abs(x - (tokenLogprobs[i] ?? NaN))).toBeLessThan(1e-9);
  }
  expect(scores[6]).toEqual({ ...scores[0], rank: scores[6]?.rank });
  expect(sum(scores.map(({ probability }) => probability))).toBeCloseTo(1, 12);
  expect(scores.map(({ rank }) => rank).toSorted((a, b) => a - b)).toEqual([1, 2, 3, 4, 5, 6, 7]);
  for (const a of scores) {
    for (const b of scores) {
      expect(a.probability / b.probability / Math.exp(a.logprob - b.logprob)).toBeCloseTo(1, 9);
      if (a.logprob > b.logprob) expect(a.rank).toBeLessThan(b.rank);
    }
  }
});

test('a conversation: the candidate begins the answer, and may be all of it', async () => {
  const messages = [{ role: 'user' as const, content: 'Yes or no?' }];
  const end = await gemma.tokenize('<end_of_turn>', { special: true });
  const turn = await gemma.tokenize('<bos><start_of_turn>user\nYes or no?<end_of_turn>\n<start_of_turn>model\n', {
    special: true,
  });
  for (const input of ['Yes or no?', messages]) {
    const [yes, no] = await gemma.score(input, ['Yes', 'No, never'], { raw: false });
    const [yesOnly, empty] = await gemma.score(input, ['Yes', ''], { raw: false, includeEnd: true });
    expect(yesOnly?.tokens).toEqual([...(yes?.tokens ?? []), ...end]);
    expect(yesOnly?.text).toBe('Yes');
    expect(empty?.tokens).toEqual(end);
    expect(yesOnly?.tokenLogprobs.slice(0, -1)).toEqual(yes?.tokenLogprobs);
    const want = await byLogits(turn, no?.tokens ?? []);
    for (const [i, x] of want.entries()) expect(Math.abs(x - (no?.tokenLogprobs[i] ?? NaN))).toBeLessThan(1e-9);
  }
  const [ofText] = await gemma.score('Yes or no?', ['Yes'], { raw: true, includeEnd: true });
  expect(ofText?.tokens.slice(-1)).toEqual([1]); // <eos>
});

test('control tokens in a candidate are text', async () => {
  const [score] = await gemma.score('a', ['<end_of_turn>']);
  expect(score?.tokens.length).toBeGreaterThan(1);
});

test('what temperature 0 writes is greedy', async () => {
  const input = [2, 5, 77, 31];
  const { tokens } = await gemma.generate(input, { temperature: 0, maxOutputTokens: 7 });
  const other = [...tokens.slice(0, 3), (tokens[3] ?? 0) + 1];
  const [written, changed] = await gemma.score(input, [tokens, other]);
  expect([written?.greedy, changed?.greedy]).toEqual([true, false]);
  const { data: logits } = await gemma.logits(input);
  expect(argmax(logits)).toBe(tokens[0]);
});

test('normalised by tokens and by bytes', async () => {
  const texts = ['ä', 'bc', 'a longer one'];
  for (const normalize of ['tokens', 'bytes'] as const) {
    const scores = await gemma.score('x', texts, { normalize });
    const best = Math.max(...scores.map(({ normalized = NaN }) => normalized));
    for (const { text, tokens, logprob, normalized = NaN, probability, rank } of scores) {
      expect(normalized).toBe(logprob / (normalize === 'tokens' ? tokens.length : Buffer.byteLength(text)));
      expect(rank === 1).toBe(normalized === best);
      expect(probability).toBeGreaterThan(0);
    }
    expect(sum(scores.map(({ probability }) => probability))).toBeCloseTo(1, 12);
  }
  expect((await gemma.score('x', texts))[0]).not.toHaveProperty('normalized');
});

test('progress, and many candidates beside each other', async () => {
  const candidates = Array.from({ length: 331 }, (_, i) => [10 + i, 20 + (i % 7), 30]);
  const seen: number[] = [];
  const scores = await gemma.score([2, 9], candidates, { onProgress: (fraction) => seen.push(fraction) });
  expect(scores.map(({ tokens }) => tokens)).toEqual(candidates);
  expect(seen.at(-1)).toBe(1);
  expect(seen).toEqual(seen.toSorted((a, b) => a - b));
  const [alone] = await gemma.score([2, 9], candidates.slice(200, 201));
  expect(alone?.tokenLogprobs).toEqual(scores[200]?.tokenLogprobs);
  expect(gemma.stats().kvPagesInUse).toBe(0);
});

describe('what is refused', () => {
  const score = (candidates: unknown, options = {}) => rejection(gemma.score('a', candidates as string[], options));

  test('candidates that are none', async () => {
    expect(await score('yes')).toBeInstanceOf(TypeError);
    expect(await score(undefined)).toBeInstanceOf(TypeError);
    expect(await score(['a', 7])).toMatchObject({
      name: 'TypeError',
      message: expect.stringContaining('candidates[1]'),
    });
    expect(await score([])).toBeInstanceOf(RangeError);
    expect(await score(['a', ''])).toMatchObject({
      name: 'RangeError',
      message: expect.stringContaining('candidates[1]'),
    });
    expect(await score(['a', []])).toBeInstanceOf(RangeError);
    expect(await score([[1.5]])).toBeInstanceOf(RangeError);
    expect(await score([[-1]])).toBeInstanceOf(RangeError);
    expect(await score([['x']])).toBeInstanceOf(TypeError);
    expect(await score([[448]])).toMatchObject({ code: 'ERR_INVALID_ARGUMENT', detail: 'BAD_TOKEN' });
  });
  test('too many', async () => {
    expect(await score(new Array(16385).fill('a'))).toMatchObject({
      name: 'RangeError',
      message: expect.stringContaining('16384'),
    });
    expect(await score([new Array(262145).fill(3)])).toBeInstanceOf(RangeError);
    expect(await score(new Array(3).fill(new Array(100_000).fill(3)))).toBeInstanceOf(RangeError);
    expect(await score(['a', 'b'.repeat(10_000_000)])).toMatchObject({ code: 'ERR_CONTEXT_FULL' });
  });
  test('what the context has no room for', async () => {
    await withModel(
      async (small) => {
        const input = new Array<number>(60).fill(7);
        const error = await rejection(small.score(input, [[8], [8, 9, 10, 11, 12]]));
        expect(error).toMatchObject({ code: 'ERR_CONTEXT_FULL', message: expect.stringContaining('candidate 1') });
        expect(await small.score(input, [[8, 9, 10, 11]])).toHaveLength(1);
      },
      { contextSize: 64 },
    );
  });
  test('options', async () => {
    expect(await score(['a'], { normalize: 'words' })).toBeInstanceOf(RangeError);
    expect(await score(['a'], { includeEnd: 1 })).toBeInstanceOf(TypeError);
    expect(await score(['a'], { all: true })).toBeInstanceOf(TypeError);
  });
  test('pictures where there is no encoder', async () => {
    expect(await score(['a'], { images: ['x.png'] })).toMatchObject({
      code: 'ERR_UNSUPPORTED_INPUT',
      detail: 'NO_VISION',
    });
  });
});

test('aborted: before, in the middle, after; disposed', async () => {
  const many = Array.from({ length: 4001 }, (_, i) => [10 + (i % 300), 20, 30, 40, 50]);
  expect(await rejection(gemma.score([2], many, { signal: AbortSignal.abort('gone') }))).toBe('gone');
  const controller = new AbortController();
  const seen: number[] = [];
  const error = await rejection(
    gemma.score([2], many, {
      signal: controller.signal,
      onProgress: (fraction) => {
        seen.push(fraction);
        controller.abort('enough');
      },
    }),
  );
  expect(error).toBe('enough');
  expect(seen).toHaveLength(1);
  const thrown = await rejection(
    gemma.score([2], many, {
      onProgress: () => {
        throw new Error('mine');
      },
    }),
  );
  expect(thrown).toMatchObject({ message: 'mine' });
  expect(await gemma.score([2], [[3]])).toHaveLength(1);
  await withModel(async (other) => {
    const running = rejection(other.score([2], many));
    await other.dispose();
    expect(await running).toMatchObject({ code: 'ERR_DISPOSED' });
    expect(await rejection(other.score([2], [[3]]))).toMatchObject({ code: 'ERR_DISPOSED' });
  });
});

test('a picture, by the demonstration model', async () => {
  const svg =
    '<svg width="224" height="224"><rect width="224" height="224" fill="white"/><circle cx="112" cy="112" r="60" fill="red"/></svg>';
  const image = await sharp(Buffer.from(svg)).png().toBuffer();
  await withModel(
    async (demo) => {
      const before = demo.stats().steps;
      const question = 'What colour is the circle?';
      const answers = ['Blue', 'Red', 'Green', 'Yellow'];
      const first = await demo.score(question, answers, { images: [image] });
      const steps = demo.stats().steps - before;
      expect(first.find(({ rank }) => rank === 1)?.text).toBe('Red');
      expect(await demo.score(question, answers, { images: [image] })).toEqual(first);
      expect(demo.stats().steps - before).toBeLessThanOrEqual(2 * steps);
      const [alone] = await demo.score(
        [
          {
            role: 'user',
            content: [
              { type: 'image', image },
              { type: 'text', text: question },
            ],
          },
        ],
        ['Red'],
      );
      expect(alone?.tokenLogprobs).toEqual(first[1]?.tokenLogprobs);
    },
    {},
    Gemma.demoModel,
  );
});

test('the real model knows what it knows', async () => {
  await withModel(
    async (real) => {
      const scores = await real.score('The capital of France is', [' Berlin', ' Paris', ' a banana', ' the moon'], {
        raw: true,
        normalize: 'tokens',
      });
      expect(scores.find(({ rank }) => rank === 1)?.text).toBe(' Paris');
    },
    {},
    realModel(),
  );
});
