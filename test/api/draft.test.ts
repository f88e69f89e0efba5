// Drafting changes when tokens come, never which.
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Gemma, type GenerateOptions } from '../../lib/index.js';
import { data, realModel, rejection, tiny } from './helpers.js';

const small = join(data, 'text-a-q4_0.gguf');
const prompt = 'One two three four five. One two three four five. One two three';
const endless = { raw: true, logitBias: { 1: -Infinity, 6: -Infinity } };

let gemma: Gemma;
beforeAll(async () => (gemma = await Gemma.load(tiny, { draft: pathToFileURL(small), prefixCacheBytes: 0 })));
afterAll(() => gemma.dispose());

const cases: [string, GenerateOptions][] = [
  ['greedy', { temperature: 0 }],
  ['sampled', { seed: 5 }],
  ['cool, few candidates', { seed: 6, temperature: 0.4, topK: 5 }],
  ['all candidates', { seed: 7, topK: 0, topP: 1 }],
  ['penalties', { seed: 8, temperature: 0.5, repetitionPenalty: 1.2, frequencyPenalty: 0.1, penaltyWindow: -1 }],
  ['log-probabilities', { seed: 9, temperature: 0.3, logprobs: 4 }],
];
test.each(cases)('the same tokens with each kind of draft: %s', async (_name, options) => {
  const settings = { ...endless, maxOutputTokens: 120, ...options };
  const plain = await gemma.generate(prompt, { ...settings, draft: false });
  expect(plain.tokens).toHaveLength(120);
  expect(plain.timings).toMatchObject({ draftedTokens: 0, acceptedTokens: 0 });
  for (const draft of ['model', 'prompt-lookup', undefined] as const) {
    const { text, tokens, logprobs, finishReason, timings } = await gemma.generate(prompt, {
      ...settings,
      ...(draft && { draft }),
    });
    expect(text).toBe(plain.text);
    expect({ tokens, logprobs, finishReason }).toEqual({
      tokens: plain.tokens,
      logprobs: plain.logprobs,
      finishReason: plain.finishReason,
    });
    expect(timings.acceptedTokens).toBeLessThanOrEqual(timings.draftedTokens);
  }
});

test('streams, stop sequences and a reader who leaves', async () => {
  const settings = { ...endless, maxOutputTokens: 100, temperature: 0 };
  const all = await gemma.generate(prompt, { ...settings, draft: false });
  const stop = all.text.slice(20, 26);
  for (const draft of ['model', 'prompt-lookup'] as const) {
    let text = '';
    const stream = gemma.stream(prompt, { ...settings, draft, stopSequences: [stop] });
    for await (const part of stream) text += part.text;
    expect(text).toBe(all.text.slice(0, all.text.indexOf(stop)));
    expect(await stream.result).toMatchObject({ text, finishReason: 'stop', stopSequence: stop });

    const left = gemma.stream(prompt, { ...settings, maxOutputTokens: 2000, draft });
    for await (const part of left) if (part.text) break;
    expect((await left.result).finishReason).toBe('other');
  }
  while (gemma.stats().running > 0) await new Promise((resolve) => setTimeout(resolve, 1));
  expect(gemma.stats().kvPagesInUse).toBe(0);
});

test('what is loaded, and what it takes', async () => {
  expect(gemma.info.draftModel).toBe(true);
  const [both, one, other] = await Promise.all([
    Gemma.estimate(tiny, { draft: small, contextSize: 512 }),
    Gemma.estimate(tiny, { contextSize: 512 }),
    Gemma.estimate(small, { contextSize: 512, prefixCacheBytes: 0 }), // one for both
  ]);
  for (const key of ['weightsBytes', 'kvBytes', 'screenBytes'] as const) expect(both[key]).toBe(one[key] + other[key]);
  // Both models work in the same memory, but for their activations.
  expect(both.scratchBytes).toBeGreaterThan(Math.max(one.scratchBytes, other.scratchBytes));
  expect(both.scratchBytes).toBeLessThan(one.scratchBytes + other.scratchBytes);
  expect(await Gemma.estimate(tiny, { draft: small, prefixCacheBytes: 0 })).toMatchObject(gemma.info.memory);
});

test('a draft model that is none', async () => {
  const alone = await Gemma.load(tiny);
  try {
    expect(alone.info.draftModel).toBe(false);
    expect(await rejection(alone.generate('x', { draft: 'model' }))).toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      detail: 'NO_DRAFT',
    });
  } finally {
    await alone.dispose();
  }
  expect(await rejection(Gemma.load(tiny, { draft: join(data, 'missing.gguf') }))).toMatchObject({ code: 'ERR_FILE' });
  expect(await rejection(Gemma.load(tiny, { draft: '' }))).toBeInstanceOf(TypeError);
  expect(await rejection(Gemma.load(tiny, { draft: join(data, 'mmproj-mm-a-f16.gguf') }))).toMatchObject({
    code: 'ERR_UNSUPPORTED_MODEL',
  });
  expect(await rejection(Gemma.load(realModel(), { draft: tiny }))).toMatchObject({
    code: 'ERR_UNSUPPORTED_MODEL',
    detail: 'DRAFT_VOCABULARY',
    message: expect.stringContaining(tiny) as string,
  });
});

test('the real model quotes from its prompt', async () => {
  const text =
    'The lighthouse at Cape Morrow was built in 1871 by the harbour company. It stood on a narrow cliff above the sea, and its ' +
    'lamp could be seen for twenty miles on a clear night. For forty years the keeper was a man named Elias Brandt.';
  const real = await Gemma.load(realModel(), { contextSize: 1024 });
  try {
    const options = { raw: true, temperature: 0, maxOutputTokens: 60 };
    const question = `Text:\n${text}\n\nQuestion: Quote the text above.\nAnswer: "The lighthouse at`;
    const plain = await real.generate(question, { ...options, draft: false });
    const drafted = await real.generate(question, { ...options, draft: 'prompt-lookup' });
    expect(drafted.tokens).toEqual(plain.tokens);
    expect(plain.text.startsWith(' Cape Morrow was built in 1871')).toBe(true);
    const sampled = { ...options, temperature: 1, seed: 3, maxOutputTokens: 40 };
    expect((await real.generate(question, { ...sampled, draft: 'prompt-lookup' })).tokens).toEqual(
      (await real.generate(question, { ...sampled, draft: false })).tokens,
    );
  } finally {
    await real.dispose();
  }
});
