// gemma.decide: that the probabilities are those of gemma.score on the prompt it describes, calibration, what pictures say, and what is
// refused. The demonstration model answers questions about its pictures; asked in its own words it is right.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import sharp from 'sharp';
import {
  fitTemperature,
  Gemma,
  type ChoiceQuestion,
  type Input,
  type Message,
  type Question,
} from '../../lib/index.js';
import { cli, data, rejection, root, runNode, tiny, until } from './helpers.js';

let gemma: Gemma;
let demo: Gemma;
beforeAll(async () => {
  gemma = await Gemma.load(tiny, { kvCache: 'f32' });
  demo = await Gemma.load('demo');
});
afterAll(async () => {
  await gemma.dispose();
  await demo.dispose();
});

const sum = (values: readonly number[]) => values.reduce((total, x) => total + x, 0);

/** The probabilities of labels after a prompt, by score. */
async function byScore(prompt: Input, labels: readonly string[], options = {}): Promise<number[]> {
  const scores = await gemma.score(prompt, labels, options);
  return scores.map(({ probability }) => probability);
}

function close(found: readonly number[], expected: readonly number[]): void {
  expect(found).toHaveLength(expected.length);
  for (const [i, p] of expected.entries()) expect(Math.abs((found[i] ?? NaN) - p)).toBeLessThan(1e-12);
}

const TURN = { raw: false } as const;

describe('what is asked', () => {
  test('yes or no', async () => {
    const decision = await gemma.decide('A text.', { type: 'boolean', question: 'Is it long?', ...TURN });
    const [yes = NaN, no = NaN] = await byScore('A text.\n\nIs it long?\nAnswer with Yes or No.', ['Yes', 'No'], TURN);
    close([decision.probabilities.true, decision.probabilities.false], [yes, no]);
    expect(decision.value).toBe(yes >= no);
    expect(decision.probability).toBe(Math.max(decision.probabilities.true, decision.probabilities.false));
    expect(decision.coverage).toBeGreaterThan(0);
    expect(decision.coverage).toBeLessThanOrEqual(1);
    const german = await gemma.decide('Ein Text.', { type: 'boolean', labels: { true: 'Ja', false: 'Nein' }, ...TURN });
    close(
      Object.values(german.probabilities),
      await byScore('Ein Text.\n\nAnswer with Ja or Nein.', ['Ja', 'Nein'], TURN),
    );
  });

  test('choices by their names and by letters', async () => {
    const choices = { sun: 'bright', rain: '', 'a storm': 'loud' } as const;
    const named = await gemma.decide('Clouds.', { type: 'choice', question: 'Now?', choices, ...TURN });
    const list = ['Now?', 'Answer with one of these:', '- sun: bright', '- rain', '- a storm: loud'].join('\n');
    const expected = await byScore(`Clouds.\n\n${list}`, Object.keys(choices), TURN);
    close([named.probabilities.sun, named.probabilities.rain, named.probabilities['a storm']], expected);
    expect(named.value).toBe(Object.keys(choices)[expected.indexOf(Math.max(...expected))]);
    const lettered = await gemma.decide('Clouds.', {
      type: 'choice',
      choices: ['sun', 'rain'],
      answers: 'letters',
      ...TURN,
    });
    const letters = 'Clouds.\n\nAnswer with the letter of the best answer:\nA. sun\nB. rain';
    close([lettered.probabilities.sun, lettered.probabilities.rain], await byScore(letters, ['A', 'B'], TURN));
  });

  test('a scale, and levels', async () => {
    const scale = await gemma.decide('Soup.', { type: 'score', question: 'How hot?', min: -1, max: 2, ...TURN });
    const expected = await byScore(
      'Soup.\n\nHow hot?\nAnswer with a number from -1 to 2.',
      ['-1', '0', '1', '2'],
      TURN,
    );
    close(
      scale.distribution.map(({ probability }) => probability),
      expected,
    );
    expect(scale.distribution.map(({ value }) => value)).toEqual([-1, 0, 1, 2]);
    expect(scale.value).toBeCloseTo(sum(expected.map((p, i) => p * (i - 1))), 12);
    const levels = await gemma.decide('Soup.', { type: 'score', levels: ['cold', 'hot'], min: 1, ...TURN });
    const text = 'Soup.\n\nAnswer with the number of what fits best:\n1: cold\n2: hot';
    close(
      levels.distribution.map(({ probability }) => probability),
      await byScore(text, ['1', '2'], TURN),
    );
    expect(levels.distribution).toMatchObject([
      { value: 1, level: 'cold' },
      { value: 2, level: 'hot' },
    ]);
  });

  test('where one answer is the beginning of another one, each is a whole answer', async () => {
    const { distribution } = await gemma.decide('x', { type: 'score', min: 1, max: 10, ...TURN });
    const labels = Array.from({ length: 10 }, (_, i) => String(i + 1));
    const whole = await byScore('x\n\nAnswer with a number from 1 to 10.', labels, { ...TURN, includeEnd: true });
    close(
      distribution.map(({ probability }) => probability),
      whole,
    );
    const { probabilities } = await gemma.decide('x', {
      type: 'choice',
      choices: ['red', 'red and green'],
      verbatim: true,
      raw: true,
    });
    close(
      Object.values(probabilities),
      await byScore('x', [' red', ' red and green'], { raw: true, includeEnd: true }),
    );
  });

  test('text to continue', async () => {
    const { probabilities } = await gemma.decide('A text.', { type: 'boolean', question: 'Long?', raw: true });
    const prompt = 'A text.\n\nLong?\nAnswer with Yes or No.\nAnswer:';
    close(Object.values(probabilities), await byScore(prompt, [' Yes', ' No'], { raw: true }));
    const verbatim = async (input: Input, choices: readonly string[]) =>
      Object.values((await gemma.decide(input, { type: 'choice', choices, verbatim: true, raw: true })).probabilities);
    close(await verbatim('Label:', ['red', ' blue']), await byScore('Label:', [' red', ' blue'], { raw: true }));
    close(await verbatim('Label:\n', ['red', 'blue']), await byScore('Label:\n', ['red', 'blue'], { raw: true }));
    close(await verbatim([2, 9, 30], ['red', 'blue']), await byScore([2, 9, 30], ['red', 'blue']));
  });

  test('conversations: the question is the end of the user’s turn, or a turn of its own', async () => {
    const user: Message = { role: 'user', content: 'Hello.' };
    const asked = 'Polite?\nAnswer with Yes or No.';
    const decide = async (input: readonly Message[]) =>
      Object.values((await gemma.decide(input, { type: 'boolean', question: 'Polite?' })).probabilities);
    const expect_ = async (input: readonly Message[], messages: readonly Message[]) =>
      close(await decide(input), await byScore(messages, ['Yes', 'No']));
    const whole: Message = { role: 'user', content: `Hello.\n\n${asked}` };
    await expect_([user], [whole]);
    await expect_([{ role: 'user', content: [{ type: 'text', text: 'Hello.' }] }], [whole]);
    const answered: Message[] = [user, { role: 'assistant', content: 'Hi.' }];
    await expect_(answered, [...answered, { role: 'user', content: asked }]);
    await expect_(
      [{ role: 'system', content: 'S' }],
      [
        { role: 'system', content: 'S' },
        { role: 'user', content: asked },
      ],
    );
    expect(user.content).toBe('Hello.'); // the caller's own are as they were
  });

  test('what users write stays text', async () => {
    const choices = ['<end_of_turn>', '<start_of_turn>model\n'];
    const decision = await gemma.decide('x', { type: 'choice', choices, question: '<end_of_turn>', ...TURN });
    expect(Object.keys(decision.probabilities)).toEqual(choices);
    const { probabilities } = await gemma.decide('x', { type: 'choice', choices: ['__proto__', 'toString'], ...TURN });
    expect(Object.keys(probabilities)).toEqual(['__proto__', 'toString']);
  });
});

describe('calibration and temperature', () => {
  const ask: ChoiceQuestion = {
    type: 'choice',
    question: 'Which?',
    choices: ['red', 'blue', 'a far longer name'],
    ...TURN,
  };
  const ofDecision = async (input: Input, options: object = {}) =>
    Object.values((await gemma.decide(input, { ...ask, ...options })).probabilities);

  const divided = (p: readonly number[], priors: readonly (readonly number[])[]) => {
    const weights = p.map((x, i) => x / (sum(priors.map((prior) => prior[i] ?? NaN)) / priors.length));
    return weights.map((weight) => weight / sum(weights));
  };

  test('divides by the mean of what inputs without content are answered', async () => {
    const plain = await ofDecision('Text.');
    const priors = [await ofDecision('N/A'), await ofDecision('[MASK]'), await ofDecision('')];
    const calibrated = await ofDecision('Text.', { calibrate: true });
    for (const [i, p] of divided(plain, priors).entries()) expect(calibrated[i]).toBeCloseTo(p, 10);
    const own = await ofDecision('Text.', { calibrate: ['N/A'] });
    for (const [i, p] of divided(plain, priors.slice(0, 1)).entries()) expect(own[i]).toBeCloseTo(p, 10);
    for (const p of await ofDecision('N/A', { calibrate: ['N/A'] })) expect(p).toBeCloseTo(1 / 3, 10);
    const messages: Message[] = [{ role: 'user', content: 'Text.' }];
    close(await ofDecision(messages, { calibrate: [[{ role: 'user', content: 'N/A' }]] }), own);
  });

  test('temperature divides the logarithms', async () => {
    const plain = await ofDecision('Text.');
    const weights = plain.map((p) => Math.sqrt(p));
    for (const [i, p] of (await ofDecision('Text.', { temperature: 2 })).entries()) {
      expect(p).toBeCloseTo((weights[i] ?? NaN) / sum(weights), 10);
    }
    expect(Math.max(...(await ofDecision('Text.', { temperature: 0.01 })))).toBeGreaterThan(0.9);
    const cool = plain.map((p) => p ** 0.01);
    for (const [i, p] of (await ofDecision('Text.', { temperature: 100 })).entries()) {
      expect(p).toBeCloseTo((cool[i] ?? NaN) / sum(cool), 10);
    }
  });

  test('a temperature that fits', async () => {
    const decided = (p: number) => ({
      value: true,
      probability: p,
      coverage: 1,
      probabilities: { true: p, false: 1 - p },
    });
    // Said with 0.99, right in 3 of 4: T makes it 0.75.
    const examples = [true, true, true, false].map((answer) => ({ decision: decided(0.99), answer }));
    expect(1 / (1 + Math.exp(-Math.log(99) / (await fitTemperature(examples))))).toBeCloseTo(0.75, 3);
    expect(await fitTemperature([{ decision: decided(0.6), answer: true }])).toBeCloseTo(0.01, 3);
    expect(await fitTemperature([{ decision: decided(0.6), answer: false }])).toBeCloseTo(100, 0);
    const scale = await gemma.decide('x', { type: 'score', min: 1, max: 3, ...TURN });
    expect(await fitTemperature([{ decision: scale, answer: 2 }])).toBeGreaterThan(0);
    expect(await rejection(fitTemperature([]))).toBeInstanceOf(RangeError);
    expect(await rejection(fitTemperature([{ decision: scale, answer: 9 }]))).toMatchObject({
      name: 'RangeError',
      message: expect.stringContaining('examples[0].answer'),
    });
    expect(await rejection(fitTemperature('x' as never))).toBeInstanceOf(TypeError);
  });

  test('of what is not a text the caller says what has no content', async () => {
    const refused = (input: Input, options: object) =>
      rejection(gemma.decide(input, { ...ask, ...options } as Question));
    for (const [input, options] of [
      [[{ role: 'user', content: 'x' }], {}],
      ['x', { verbatim: true, question: undefined }],
      [[2, 3], { verbatim: true, question: undefined }],
    ] as [Input, object][]) {
      expect(await refused(input, { ...options, calibrate: true })).toMatchObject({
        name: 'TypeError',
        message: expect.stringContaining('calibrate: true replaces a text'),
      });
    }
    expect(await refused('x', { raw: true, calibrate: [[{ role: 'user', content: 'x' }]] })).toMatchObject({
      name: 'TypeError',
      message: expect.stringContaining('calibrate: expected inputs of the same kind'),
    });
  });
});

describe('pictures', () => {
  const picture = async (shape: string) =>
    new Uint8Array(
      await sharp(
        Buffer.from(
          `<svg xmlns="http://www.w3.org/2000/svg" width="200" height="200"><rect width="200" height="200" fill="white"/>${shape}</svg>`,
        ),
      )
        .png()
        .toBuffer(),
    );

  test('the demonstration model, asked in its own words', async () => {
    const red = await picture('<circle cx="100" cy="100" r="60" fill="#d22"/>');
    const colours = ['Red.', 'Blue.', 'Green.', 'Yellow.'] as const;
    const colour = await demo.decide('What colour is the circle?', {
      type: 'choice',
      choices: colours,
      images: [red],
      verbatim: true,
    });
    expect(colour.value).toBe('Red.');
    expect(colour.probability).toBeGreaterThan(0.9);
    expect(colour.coverage).toBeGreaterThan(0.9);
    const is = (text: string) => demo.decide(text, { type: 'boolean', images: [red], verbatim: true });
    expect(await is('Is there a red circle?')).toMatchObject({ value: true });
    expect(await is('Is there a blue star?')).toMatchObject({ value: false });
    // In words that it never saw it says something else.
    const asked = await demo.decide('', {
      type: 'choice',
      question: 'Colour?',
      choices: ['red', 'blue'],
      images: [red],
    });
    expect(asked.coverage).toBeLessThan(0.5);
    const message: Message[] = [
      {
        role: 'user',
        content: [
          { type: 'image', image: red },
          { type: 'text', text: 'What colour is the circle?' },
        ],
      },
    ];
    const ofMessage = await demo.decide(message, { type: 'choice', choices: colours, verbatim: true });
    expect(ofMessage).toEqual(colour);
  });

  test('a grey picture has no content', async () => {
    const red = await picture('<circle cx="100" cy="100" r="60" fill="#d22"/>');
    const grey = { data: new Uint8Array(3).fill(128), width: 1, height: 1 };
    const ask = { type: 'choice', question: 'Colour?', choices: ['red', 'blue'] } as const;
    const own = await demo.decide(
      [
        {
          role: 'user',
          content: [
            { type: 'image', image: red },
            { type: 'text', text: 'x' },
          ],
        },
      ],
      {
        ...ask,
        calibrate: ['N/A', '[MASK]', ''].map((text) => [
          {
            role: 'user',
            content: [
              { type: 'image', image: grey },
              { type: 'text', text },
            ],
          },
        ]),
      },
    );
    const calibrated = await demo.decide('x', { ...ask, images: [red], calibrate: true });
    expect(calibrated.probabilities.red).toBeCloseTo(own.probabilities.red, 10);
  });

  test('need a vision encoder', async () => {
    const refused = gemma.decide('x', { type: 'boolean', images: [join(data, 'images', 'photo.png')] });
    expect(await rejection(refused)).toMatchObject({ detail: 'NO_VISION' });
  });
});

describe('beside others', () => {
  test('equal alone and in company, and nothing is left', async () => {
    const ask = (i: number) =>
      gemma.decide(`Text number ${i}.`, { type: 'boolean', question: 'Long?', calibrate: i % 2 === 0 });
    const together = await Promise.all(Array.from({ length: 40 }, (_, i) => ask(i)));
    for (const i of [0, 1, 17, 39]) expect(await ask(i)).toEqual(together[i]);
    await until(() => gemma.stats().running + gemma.stats().waiting === 0);
  });

  test('questions about the same text share what was computed of it', async () => {
    const text = 'A long text about nothing in particular. '.repeat(12);
    await gemma.decide(text, { type: 'boolean', question: 'First?', ...TURN });
    const before = gemma.stats();
    await gemma.decide(text, { type: 'boolean', question: 'Second?', ...TURN });
    const { promptTokens, cachedPromptTokens } = gemma.stats();
    const read = promptTokens - before.promptTokens - (cachedPromptTokens - before.cachedPromptTokens);
    expect(read).toBeLessThan((promptTokens - before.promptTokens) / 2);
  });

  test('aborted', async () => {
    const reason = new Error('enough');
    const ask = (signal: AbortSignal) =>
      rejection(gemma.decide('x '.repeat(500), { type: 'boolean', calibrate: true, signal, ...TURN }));
    expect(await ask(AbortSignal.abort(reason))).toBe(reason);
    const later = new AbortController();
    setImmediate(() => later.abort(reason));
    expect(await ask(later.signal)).toBe(reason);
    expect(await gemma.decide('x', { type: 'boolean' })).toHaveProperty('value');
  });

  test('a model that was disposed', async () => {
    const gone = await Gemma.load(tiny);
    await gone.dispose();
    expect(await rejection(gone.decide('x', { type: 'boolean' }))).toMatchObject({ code: 'ERR_DISPOSED' });
  });

  test('an input that does not fit', async () => {
    const refused = gemma.decide('word '.repeat(1 << 20), { type: 'boolean' });
    expect(await rejection(refused)).toMatchObject({ code: 'ERR_CONTEXT_FULL' });
  });
});

test('what is refused', async () => {
  const wrong: [unknown, string, string][] = [
    [undefined, 'TypeError', 'options: expected an object'],
    [{}, 'TypeError', 'type: expected a string'],
    [{ type: 'noul' }, 'RangeError', 'type: expected one of boolean, choice, score'],
    [{ type: 'boolean', choices: ['a', 'b'] }, 'TypeError', 'choices: no such option'],
    [{ type: 'boolean', labels: { true: 'x', false: 'x' } }, 'RangeError', 'labels: expected different ones'],
    [{ type: 'boolean', labels: { yes: 'x' } }, 'TypeError', 'yes: no such option'],
    [{ type: 'boolean', labels: { true: ' ' } }, 'RangeError', 'labels.true: expected some text'],
    [{ type: 'boolean', question: 7 }, 'TypeError', 'question: expected a string'],
    [{ type: 'boolean', question: 'x'.repeat(100_001) }, 'RangeError', 'question: expected at most 100000'],
    [{ type: 'boolean', question: 'x', verbatim: true }, 'TypeError', 'question: with verbatim'],
    [{ type: 'boolean', temperature: 0 }, 'RangeError', 'temperature: expected a number from 0.01 to 100'],
    [{ type: 'boolean', temperature: 101 }, 'RangeError', 'temperature:'],
    [{ type: 'boolean', temperature: '1' }, 'TypeError', 'temperature:'],
    [{ type: 'boolean', calibrate: 'N/A' }, 'TypeError', 'calibrate: expected true, false or an array'],
    [{ type: 'boolean', calibrate: [] }, 'RangeError', 'calibrate: expected 1 to 16'],
    [{ type: 'boolean', tools: {} }, 'TypeError', 'tools: no such option'],
    [{ type: 'choice' }, 'TypeError', 'choices: missing'],
    [{ type: 'choice', choices: 'abc' }, 'TypeError', 'choices: expected an array of names'],
    [{ type: 'choice', choices: ['a'] }, 'RangeError', 'choices: expected 2 to 1000'],
    [{ type: 'choice', choices: Array(1001).fill('a') }, 'RangeError', 'choices: expected 2 to 1000'],
    [{ type: 'choice', choices: ['a', 'a'] }, 'RangeError', 'choices: expected different ones'],
    [{ type: 'choice', choices: ['a', 7] }, 'TypeError', 'choices[1]: expected a string'],
    [{ type: 'choice', choices: { a: 'x', b: 7 } }, 'TypeError', 'choices["b"]: expected a string'],
    [{ type: 'choice', choices: ['a', ''] }, 'RangeError', 'choices[1]: expected some text'],
    [
      { type: 'choice', choices: ['a', 'b'], answers: 'numbers' },
      'RangeError',
      'answers: expected one of names, letters',
    ],
    [
      { type: 'choice', choices: Array.from({ length: 27 }, (_, i) => String(i)), answers: 'letters' },
      'RangeError',
      "answers: 'letters'",
    ],
    [{ type: 'score' }, 'TypeError', 'score: expected min and max, or levels'],
    [{ type: 'score', min: 1 }, 'TypeError', 'score: expected min and max'],
    [{ type: 'score', min: 1, max: 1 }, 'RangeError', 'max: expected more than min'],
    [{ type: 'score', min: 1.5, max: 3 }, 'RangeError', 'min:'],
    [{ type: 'score', min: 0, max: 1001 }, 'RangeError', 'max:'],
    [{ type: 'score', levels: ['a', 'b'], max: 3 }, 'TypeError', 'max: follows'],
    [{ type: 'score', levels: ['a'] }, 'RangeError', 'levels: expected 2 to 1000'],
  ];
  for (const [options, name, message] of wrong) {
    expect(await rejection(gemma.decide('x', options as Question))).toMatchObject({
      name,
      message: expect.stringContaining(message),
    });
  }
  expect(await rejection(gemma.decide([2, 3], { type: 'boolean' }))).toMatchObject({
    name: 'TypeError',
    message: expect.stringContaining('verbatim: true'),
  });
  expect(await rejection(gemma.decide(7 as never, { type: 'boolean' }))).toBeInstanceOf(TypeError);
  expect(await rejection(gemma.decide([{ role: 'user' }] as never, { type: 'boolean' }))).toBeInstanceOf(TypeError);
});

test('the command line', async () => {
  const run = async (...args: string[]) => {
    const exit = await runNode([cli, 'decide', '--model', tiny, '--kv', 'f32', '--json', ...args]);
    return { code: exit.code, ...(JSON.parse(exit.stdout) as object) };
  };
  const [yesNo, choice, level, wrong] = await Promise.all([
    run('--question', 'Long?', '--calibrate', 'A text.'),
    run('--choice', 'sun=bright', '--choice', 'rain', '--temperature', '2', 'Clouds.'),
    run('--level', 'cold', '--level', 'hot', 'Soup.'),
    run('--letters', 'x'),
  ]);
  const { code: ok, ...decision } = yesNo as { code: number };
  expect(ok).toBe(0);
  expect(decision).toEqual(await gemma.decide('A text.', { type: 'boolean', question: 'Long?', calibrate: true }));
  expect(choice).toMatchObject({ code: 0, probabilities: { sun: expect.any(Number), rain: expect.any(Number) } });
  expect(level).toMatchObject({ code: 0, distribution: [{ level: 'cold' }, { level: 'hot' }] });
  expect(wrong).toMatchObject({ code: 2, error: { code: 'ERR_USAGE' } });
  const plain = await runNode([cli, 'decide', '--model', tiny, '--min', '1', '--max', '3', 'x']);
  expect(plain.stdout).toMatch(/^[123]\.\d{3}\n[^]*%[^]*probability of/);
});

test('the sentences of the benchmark have labels', () => {
  const sets = JSON.parse(readFileSync(join(root, 'benchmarks', 'decisions.json'), 'utf8')) as Record<
    string,
    string[][]
  >;
  expect(Object.values(sets).map((list) => list.length)).toEqual([30, 30]);
});
