// The real Gemma 3 270M, pretrained.
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { Gemma } from '../../lib/index.js';
import { cli, realModel, rejection, runNode, until } from './helpers.js';
import { continuations } from './reference.js';

let gemma: Gemma;
beforeAll(async () => (gemma = await Gemma.load(realModel(), { contextSize: 4096 })));
afterAll(() => gemma.dispose());

test('is what it says', () => {
  expect(gemma.info).toMatchObject({
    instructionTuned: false,
    config: { size: '270M', layers: 18, modelDim: 640, vocabularySize: 262144, trainedContext: 32768 },
  });
});

test.each(continuations)('continues %j', async (prompt, want) => {
  const { text } = await gemma.generate(prompt, { temperature: 0, maxOutputTokens: 40 });
  expect(text.startsWith(want)).toBe(true);
});

test('screened logits give the tokens of all logits, and are counted in the estimate', async () => {
  const all = await Gemma.load(realModel(), { contextSize: 4096, screenLogits: false });
  try {
    const prompt = 'The history of the lighthouse begins';
    await gemma.generate(prompt, { maxOutputTokens: 20 }); // the screen is ready after 16 tokens
    for (const options of [
      { temperature: 0 },
      { temperature: 0, repetitionPenalty: 1.3, penaltyWindow: -1 },
      { temperature: 1, topK: 64, topP: 0.95 },
      { temperature: 1.5, topK: 200, frequencyPenalty: 0.5, presencePenalty: 0.2 },
      { temperature: 0.8, topK: 40, minP: 0.05, logitBias: { 236743: 4, 506: -Infinity } },
    ]) {
      for (const seed of [1, 2]) {
        const settings = { ...options, seed, maxOutputTokens: 60, draft: false as const };
        const [screened, exhaustive] = await Promise.all([
          gemma.generate(prompt, settings),
          all.generate(prompt, settings),
        ]);
        expect(screened.tokens).toEqual(exhaustive.tokens);
      }
    }
  } finally {
    await all.dispose();
  }
  const [withScreen, without] = await Promise.all([
    Gemma.estimate(realModel()),
    Gemma.estimate(realModel(), { screenLogits: false }),
  ]);
  expect(without.screenBytes).toBe(0);
  // 4 bits for each of 262,144 x 640 weights, and a little for each row.
  expect(withScreen.screenBytes).toBeGreaterThan((262144 * 640) / 2);
  expect(withScreen.screenBytes).toBeLessThan(1.1 * ((262144 * 640) / 2));
  expect(withScreen.totalBytes - without.totalBytes).toBe(withScreen.screenBytes);
});

test('the event loop stays free while all cores compute', async () => {
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  let turns = 0;
  let running = true;
  const turn = () => {
    ++turns;
    if (running) setImmediate(turn);
  };
  turn();
  const seeds = [1, 2, 3];
  await Promise.all(
    seeds.map((seed) => gemma.generate('The weather today', { maxOutputTokens: 60, seed, draft: false })),
  );
  running = false;
  delay.disable();
  const p99 = delay.percentile(99) / 1e6;
  process.stdout.write(
    `event loop delay while generating: p99 ${p99.toFixed(1)} ms, most ${(delay.max / 1e6).toFixed(1)} ms\n`,
  );
  // A loop that waited for steps would turn once or twice in each of the sixty.
  expect(turns).toBeGreaterThan(10 * 60);
});

test('an abort is answered at once and stops the work', async () => {
  for (let i = 0; i < 10; ++i) {
    const controller = new AbortController();
    // Odd rounds are stopped in the middle of a prompt of three batches, even ones after some tokens.
    const [prompt, nSteps] = i % 2 ? ['one two three four '.repeat(300), 1] : ['Hello', 5];
    const before = gemma.stats().steps;
    const call = gemma.generate(prompt, { signal: controller.signal, seed: i, logitBias: { 1: -Infinity } });
    const failed = rejection(call);
    await until(() => gemma.stats().steps >= before + nSteps);
    expect(gemma.stats().running).toBe(1);
    // Told before the event loop turns, so whatever the engine is at.
    let turned = false;
    setImmediate(() => (turned = true));
    controller.abort();
    const { steps } = gemma.stats();
    expect(await failed).toMatchObject({ name: 'AbortError' });
    expect(turned).toBe(false);
    // Stops with the step that was going on, though one more may have begun; left alone, it would fill the context.
    await until(() => gemma.stats().running === 0);
    expect(gemma.stats().steps - steps).toBeLessThanOrEqual(2);
  }
});

test('answers through the command line', async () => {
  const args = [
    'run',
    '--model',
    realModel(),
    '--context',
    '512',
    '--temperature',
    '0',
    '--max-tokens',
    '8',
    '1, 2, 3, 4,',
    '--json',
  ];
  const { stdout, code } = await runNode([cli, ...args]);
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({ text: expect.stringMatching(/^ 5, 6/), finishReason: 'length' });
});
