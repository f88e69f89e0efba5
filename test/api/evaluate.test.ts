// evaluate: scores are those of transformers' golden data and of single calls; the output is the state; what is wrong is named.
import { appendFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import {
  evaluate,
  Gemma,
  type EvaluateOptions,
  type EvaluationExample,
  type EvaluationResult,
  type EvaluationTask,
  type MetricName,
} from '../../lib/index.js';
import { cli, realModel, rejection, root, runNode, tiny, withModel } from './helpers.js';
import { logSumExp, readJson } from './reference.js';

let folder: string;
let gemma: Gemma;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'gemma-evaluate-'));
  gemma = await Gemma.load(tiny, { kvCache: 'f32' });
});
afterAll(async () => {
  await gemma.dispose();
  rmSync(folder, { recursive: true });
});

let count = 0;
function file(lines: readonly (object | string)[], name = `task-${++count}.jsonl`): string {
  const path = join(folder, name);
  writeFileSync(path, lines.map((line) => `${typeof line === 'string' ? line : JSON.stringify(line)}\n`).join(''));
  return path;
}

interface Line {
  line: number;
  id: string;
  settings: string;
  scores?: Record<string, unknown>;
  error?: { code: string; message: string };
  output?: string;
  logprobs?: number[];
  [detail: string]: unknown;
}

const linesOf = (path: string): Line[] =>
  readFileSync(path, 'utf8').split('\n').slice(0, -1).map((line) => JSON.parse(line) as Line); // prettier-ignore

const valueOf = ({ scores }: EvaluationResult, metric: MetricName, model = 'model 1') =>
  scores.find((score) => score.metric === metric && score.model === model)?.value;

const one = (task: EvaluationTask, options: EvaluateOptions = {}) => evaluate([gemma], [task], options);

interface GoldenText {
  name: string;
  text?: string;
  ids: number[];
  perplexity?: number;
}

test('perplexity is that of transformers, over texts, words and bytes', async () => {
  const cases = readJson<{ cases: GoldenText[] }>('text-a.json').cases.filter(
    ({ text, ids, perplexity }) => text && perplexity && ids[1] !== 5, // as text a control token is several
  );
  expect(cases.length).toBeGreaterThan(1);
  const data = file(cases.map(({ name, text }) => ({ id: name, text })));
  const result = await one({ data });
  const sum = (of: (example: GoldenText) => number) => cases.reduce((total, example) => total + of(example), 0);
  const nll = sum(({ ids, perplexity = NaN }) => (ids.length - 1) * Math.log(perplexity));
  const near = (metric: MetricName, expected: number) => {
    // Of the logits within 3e-4 of their spread, which is below 3 (exactness.test.ts).
    if (!(Math.abs(Math.log((valueOf(result, metric) ?? NaN) / expected)) <= 1e-3)) {
      throw new Error(`${metric}: expected ${expected}, found ${valueOf(result, metric)}`);
    }
  };
  near('perplexity', Math.exp(nll / sum(({ ids }) => ids.length - 1)));
  near('word_perplexity', Math.exp(nll / sum(({ text = '' }) => text.split(/\s+/).length)));
  near('bits_per_byte', nll / Math.LN2 / sum(({ text = '' }) => Buffer.byteLength(text)));
  const { low = NaN, high = NaN, value, n } = result.scores[0]!;
  expect([low < value, value < high, n]).toEqual([true, true, cases.length]);
});

/** Log-probability of a text after another, by the logits of both as one. */
async function byLogits(prompt: string, continuation: string): Promise<number> {
  const before = await gemma.tokenize(prompt, { bos: true });
  const tokens = await gemma.tokenize(continuation);
  const { data, shape } = await gemma.logits([...before, ...tokens], { all: true });
  return tokens.reduce((sum, token, i) => {
    const row = data.subarray((before.length + i - 1) * shape[1], (before.length + i) * shape[1]);
    return sum + (row[token] ?? NaN) - logSumExp(row);
  }, 0);
}

test('multiple choice: acc by log-likelihood, acc_norm for each character, as lm-evaluation-harness', async () => {
  const words = 'the stone forgets a golden bridge while winter paints every quiet engine under distant rain'.split(
    ' ',
  );
  const examples = Array.from({ length: 23 }, (_, i): EvaluationExample & { choices: string[] } => ({
    prompt: `Question ${i}: ${words.slice(i % 7, (i % 7) + 4).join(' ')}?\nAnswer:`,
    choices: [words[i % 15] ?? '', words.slice(i % 5, (i % 5) + 3).join(' '), `é${words[(i * 7) % 15]}`],
    answer: i % 3,
  }));
  const output = join(folder, 'choice.jsonl');
  const result = await one({ name: 'mc', data: examples, raw: true }, { output });
  let right = 0;
  let rightNormalized = 0;
  let differ = 0;
  const lines = linesOf(output).toSorted((a, b) => a.line - b.line);
  for (const [i, { prompt = '', choices, answer }] of examples.entries()) {
    const want = await Promise.all(choices.map((choice) => byLogits(prompt, ` ${choice}`)));
    for (const [j, x] of want.entries()) expect(Math.abs(x - (lines[i]?.logprobs?.[j] ?? NaN))).toBeLessThan(1e-8);
    const best = (values: number[]) => values.indexOf(Math.max(...values));
    const normalized = want.map((x, j) => x / [...(choices[j] ?? '')].length);
    right += Number(best(want) === answer);
    rightNormalized += Number(best(normalized) === answer);
    differ += Number(best(want) !== best(normalized));
    expect(lines[i]).toMatchObject({ line: i + 1, id: `model 1/mc/${i + 1}`, chosen: best(want) });
  }
  expect(differ).toBeGreaterThan(2);
  expect(valueOf(result, 'acc')).toBe(right / 23);
  expect(valueOf(result, 'acc_norm')).toBe(rightNormalized / 23);
  expect(result).toMatchObject({ path: output, examples: 23, resumed: 0, failures: [], tasks: [{ name: 'mc', kind: 'choice', examples: 23 }] }); // prettier-ignore
});

test('questions as text and as conversation, with examples before them', async () => {
  const data = file([
    { id: 'a', prompt: 'One', answer: 'x1' },
    { id: 'b', prompt: 'Two', answer: ['x2', 'other'] },
    { id: 'c', messages: [{ role: 'user', content: 'Three' }], answer: 'x3', shown: 'shown 3' },
  ]);
  const short = { maxOutputTokens: 9 };
  const outputs = async (task: Partial<EvaluationTask>) => {
    const output = join(folder, `out-${++count}.jsonl`);
    await one({ data, generate: short, ...task }, { output });
    return linesOf(output).toSorted((a, b) => a.line - b.line).map((line) => line.output); // prettier-ignore
  };
  const greedy = { ...short, temperature: 0 };
  const text = async (prompt: string) =>
    (await gemma.generate(prompt, { ...greedy, raw: true, stopSequences: ['\n\n'] })).text;
  const answer = async (messages: { role: 'user' | 'assistant' | 'system'; content: string }[]) =>
    (await gemma.generate(messages, greedy)).text;
  expect(await outputs({ raw: true, limit: 2, system: 'Be brief.', fewShot: { n: 1 } })).toEqual([
    await text('Be brief.\n\nTwo x2\n\nOne'),
    await text('Be brief.\n\nOne x1\n\nTwo'),
  ]);
  expect(await outputs({ fewShot: { n: 2 }, system: 'Be brief.' })).toEqual([
    await answer([
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'Two' },
      { role: 'assistant', content: 'x2' },
      { role: 'user', content: 'Three' },
      { role: 'assistant', content: 'shown 3' },
      { role: 'user', content: 'One' },
    ]),
    await answer([
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'One' },
      { role: 'assistant', content: 'x1' },
      { role: 'user', content: 'Three' },
      { role: 'assistant', content: 'shown 3' },
      { role: 'user', content: 'Two' },
    ]),
    await answer([
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'One' },
      { role: 'assistant', content: 'x1' },
      { role: 'user', content: 'Two' },
      { role: 'assistant', content: 'x2' },
      { role: 'user', content: 'Three' },
    ]),
  ]);
  const seeded = await outputs({ fewShot: { n: 1, seed: 5, examples: data } });
  expect(await outputs({ fewShot: { n: 1, seed: 5, examples: data } })).toEqual(seeded);
});

const picture = join(dirname(Gemma.demoModel), 'pictures', 'shapes.png');
const SHAPES = {
  prompt: 'Describe the picture as JSON.',
  images: [picture],
  answer: { shapes: [{ shape: 'circle', colour: 'red', position: 'top left' }], text: '' },
};

test('a model and its adapter side by side, with pictures; the demonstration model', async () => {
  const tasks: EvaluationTask[] = [
    {
      name: 'facts',
      data: [
        { prompt: 'What is the capital of France?', answer: 'Paris' },
        { prompt: 'What is the capital of France?', answer: 'Rome', id: 'wrong' },
      ],
      scorer: { type: 'contains' },
      raw: false,
    },
    {
      name: 'json',
      data: Array.from({ length: 6 }, (_, id) => ({ ...SHAPES, id })),
      scorer: { type: 'json', paths: ['/shapes/0/shape', '/shapes/0/colour', '/text'] },
      generate: { maxOutputTokens: 400 },
    },
    {
      name: 'colour',
      data: [{ messages: [{ role: 'user', content: [{ type: 'image', image: picture }, { type: 'text', text: 'Which shape is red?' }] }], choices: ['The circle.', 'The star.'], answer: 'The circle.' }], // prettier-ignore
    },
  ];
  const models = [
    { name: 'base', model: 'demo' },
    { name: 'tools', model: 'demo', load: { adapters: { tools: Gemma.demoAdapter } }, adapter: 'tools' },
  ];
  const seen: string[] = [];
  const result = await evaluate(models, tasks, { onProgress: ({ model, done, total }) => seen.push(`${model} ${done}/${total}`) }); // prettier-ignore
  expect(valueOf(result, 'contains', 'base')).toBe(0.5);
  expect([valueOf(result, 'json', 'base'), valueOf(result, 'json', 'tools')]).toEqual([0, 1]);
  expect(valueOf(result, 'json_fields', 'tools')).toBe(1);
  expect(result.scores.filter(({ task }) => task === 'colour')).toHaveLength(4);
  // Six of six: two-sided 2 * 0.5^6.
  expect(result.comparisons.find(({ metric }) => metric === 'json')).toEqual({
    model: 'tools', baseline: 'base', task: 'json', metric: 'json', test: 'mcnemar', n: 6,
    difference: 1, onlyModel: 6, onlyBaseline: 0, pValue: 0.03125,
  }); // prettier-ignore
  expect(seen).toHaveLength(18);
  expect(seen[0]).toBe('base 1/18');
  expect(seen.at(-1)).toBe('tools 18/18');
});

describe('the output is the state', () => {
  const examples = Array.from({ length: 30 }, (_, i) => ({ id: `q${i}`, prompt: `Say ${i}`, answer: String(i) }));
  const task: EvaluationTask = { name: 'say', data: examples, scorer: 'number', generate: { maxOutputTokens: 5 } };

  test('aborted anywhere it goes on, and gives the same; a model may be added', async () => {
    const whole = await evaluate([{ name: 'a', model: tiny }], [task]);
    const output = join(folder, 'state.jsonl');
    for (const stopAt of [1, 11, 23]) {
      const controller = new AbortController();
      const error = await rejection(
        evaluate([{ name: 'a', model: tiny }], [task], {
          output,
          concurrency: 3,
          signal: controller.signal,
          onProgress: ({ done }) => done >= stopAt && controller.abort('enough'),
        }),
      );
      expect(error).toBe('enough');
      expect(linesOf(output).length).toBeGreaterThanOrEqual(stopAt);
      expect(linesOf(output).length).toBeLessThan(30);
      appendFileSync(output, '{"line":30,"id":"a/say/q29","sett'); // as a kill leaves it
    }
    const { resumed, ...rest } = await evaluate([{ name: 'a', model: tiny }], [task], { output });
    expect(resumed).toBeGreaterThanOrEqual(23);
    expect({ ...rest, path: undefined, resumed: 0 }).toEqual({ ...whole, path: undefined });
    expect(linesOf(output).map(({ line }) => line).toSorted((a, b) => a - b)).toEqual([...Array(30).keys()].map((i) => i + 1)); // prettier-ignore
    // Nothing is left to do, so the model need not be there.
    expect((await evaluate([{ name: 'a', model: tiny }], [task], { output })).resumed).toBe(30);
    const both = await evaluate([{ name: 'a', model: tiny }, { name: 'b', model: gemma }], [task], { output }); // prettier-ignore
    expect(both).toMatchObject({ resumed: 30, examples: 60 });
    expect(both.comparisons).toMatchObject([{ model: 'b', baseline: 'a', n: 30 }]);
  });

  test('results of other examples, settings or models are refused', async () => {
    const output = join(folder, 'other.jsonl');
    const run = (changed: EvaluationTask, name = 'a') => evaluate([{ name, model: gemma }], [changed], { output });
    await run(task);
    for (const attempt of [
      () => run({ ...task, data: examples.slice(1) }),
      () => run({ ...task, data: examples.map((example) => ({ ...example, answer: '7' })) }),
      () => run({ ...task, scorer: 'exact' }),
      () => run({ ...task, generate: { maxOutputTokens: 6 } }),
      () => run(task, 'b'),
      () => run({ ...task, limit: 4 }),
    ]) {
      expect(await rejection(attempt())).toMatchObject({ code: 'ERR_FILE', detail: 'OTHER_INPUT' });
    }
    expect((await run(task)).resumed).toBe(30);
    expect(await evaluate([gemma], [task], { output, overwrite: true })).toMatchObject({ resumed: 0 });
    writeFileSync(output, 'my diary\n');
    expect(await rejection(run(task))).toMatchObject({ code: 'ERR_FILE', detail: 'NOT_A_BATCH' });
    expect(readFileSync(output, 'utf8')).toBe('my diary\n');
  });
});

test('an example that fails is counted, named by file and line, and in no score', async () => {
  const data = file([
    { prompt: 'Good', answer: 'x' },
    '',
    { prompt: 'word '.repeat(3000), answer: 'x' },
    { prompt: 'See', images: ['nothing.png'], answer: 'x' },
  ]);
  const output = join(folder, 'failures.jsonl');
  const options = { output };
  const task: EvaluationTask = { data, generate: { maxOutputTokens: 4 } };
  for (const resumed of [0, 3]) {
    const result = await withModel((small) => evaluate([{ name: 'm', model: small }], [task], options), { contextSize: 256 }); // prettier-ignore
    expect(result).toMatchObject({ examples: 3, resumed, failures: [{ model: 'm', failed: 2 }] });
    expect(result.failures[0]?.message).toMatch(/task-\d+\.jsonl:[34]: /);
    expect(result.scores).toMatchObject([{ metric: 'exact_match', n: 1 }]);
  }
  const errors = linesOf(output).flatMap(({ error }) => (error ? [error] : []));
  expect(errors.map(({ code }) => code).toSorted()).toEqual(['ERR_CONTEXT_FULL', 'ERR_UNSUPPORTED_INPUT']);
});

test('wrong lines are named before any model is loaded', async () => {
  const refused = async (lines: readonly (object | string)[], task: Partial<EvaluationTask> = {}) =>
    rejection(evaluate(['no such model'], [{ data: file([{ prompt: 'a', answer: 'b' }, ...lines]), ...task }]));
  for (const [line, message] of [
    ['{"prompt": "a", ', 'expected JSON'],
    ['[1]', 'expected an object'],
    [{ prompt: 'a' }, 'answer: missing'],
    [{ answer: 'a' }, 'expected one of text, prompt, messages'],
    [{ prompt: 'a', answer: 'b', scorer: 'exact' }, 'scorer: no such key'],
    [{ prompt: 'a', answer: { b: 1 } }, 'answer: expected a string'],
    [{ prompt: 'a', answer: 'b', id: 1 }, 'stands a second time'],
    [{ prompt: 'a', answer: 'b', id: {} }, 'id: expected'],
    [{ text: 'a' }, 'expected an example of generation'],
    [{ text: 'a', answer: 'b' }, 'expected text or answer'],
    [{ prompt: 'a', choices: ['x', 'y'], answer: 2 }, 'answer: expected an integer from 0 to 1'],
    [{ prompt: 'a', choices: ['x', 'y'], answer: 'z' }, 'answer: expected the index'],
    [{ prompt: 'a', choices: ['x'], answer: 0 }, 'choices: expected 2'],
    [{ messages: [], answer: 'b' }, 'messages: expected'],
  ] as const) {
    const error = await refused([line]);
    expect(error).toMatchObject({ code: 'ERR_INVALID_ARGUMENT', detail: 'BAD_LINE', message: expect.stringContaining(message) }); // prettier-ignore
    expect((error as Error).message).toMatch(/task-\d+\.jsonl:2: /);
  }
  expect(await refused([{ prompt: 'a', answer: '(' }], { scorer: 'regex' })).toMatchObject({ detail: 'BAD_REGEX' });
  expect(await rejection(evaluate([gemma], [{ data: file([]) }]))).toMatchObject({ detail: 'EMPTY' });
  expect(await rejection(evaluate([gemma], [{ data: join(folder, 'none.jsonl') }]))).toMatchObject({
    code: 'ERR_FILE',
  });
  const data = [{ prompt: 'a', answer: 'b' }, { prompt: 'c', answer: 'd' }]; // prettier-ignore
  for (const [models, tasks, options] of [
    [[], [{ data }]],
    [[gemma], []],
    [[{ model: 7 }], [{ data }]],
    [[gemma], [{ data: 7 }]],
    [[gemma], [{ data, scorer: 'bleu' }]],
    [[gemma], [{ data, scorer: { type: 'exact', tolerance: 1 } }]],
    [[gemma], [{ data, fewShot: { n: 2 } }]],
    [[gemma], [{ data, memorization: true }]],
    [[gemma], [{ data, shots: 2 }]],
    [[gemma], [{ data, generate: { temperature: -1 } }]],
    [[gemma], [{ data, name: 'a' }, { data, name: 'a' }]], // prettier-ignore
    [[{ name: 'a', model: gemma }, { name: 'a', model: gemma }], [{ data }]], // prettier-ignore
    [[gemma], [{ data }], { concurrency: 0 }],
  ] as unknown as Parameters<typeof evaluate>[]) {
    const error = await rejection(evaluate(models, tasks, options));
    expect(error instanceof TypeError || error instanceof RangeError).toBe(true);
  }
  expect(await rejection(evaluate([gemma], [{ data }], { signal: AbortSignal.abort('gone') }))).toBe('gone');
});

test('how much of a corpus the real model knows by heart', async () => {
  const counting = Array.from({ length: 120 }, (_, i) => i + 1).join(', ');
  const noise = Array.from({ length: 150 }, (_, i) => `${((i * 7919) % 1009) * 31} pebbles`).join('; ');
  const corpus = file([{ id: 'counting', text: counting }, { id: 'noise', text: noise }, { id: 'short', text: 'Too short.' }]); // prettier-ignore
  const output = join(folder, 'memorization.jsonl');
  await withModel(
    async (real) => {
      const task: EvaluationTask = { name: 'corpus', data: corpus, memorization: { samples: 3, seed: 12 } };
      const options = { output, scan: (text: string) => (text.includes('pebbles') ? [{ kind: 'pebble' }] : []) };
      const result = await evaluate([{ name: 'real', model: real }], [task], options);
      const lines = linesOf(output);
      expect(result.tasks).toEqual([{ name: 'corpus', kind: 'memorization', examples: lines.length }]);
      const tokens: Record<string, number[]> = { counting: await real.tokenize(counting), noise: await real.tokenize(noise) }; // prettier-ignore
      const pieces = Object.values(tokens).reduce((sum, { length }) => sum + Math.floor(length / 100), 0);
      expect(lines).toHaveLength(Math.min(3, pieces));
      let exact = 0;
      for (const { id, at, distance, output: written, personalData, scores } of lines) {
        const name = id.split('/')[2]?.split('@')[0] ?? '';
        const piece = tokens[name]?.slice(Number(at), Number(at) + 100) ?? [];
        const { tokens: next, text } = await real.generate([2, ...piece.slice(0, 50)], { temperature: 0, maxOutputTokens: 50 }); // prettier-ignore
        expect(written).toBe(text);
        const isExact = next.length === 50 && next.every((token, i) => token === piece[50 + i]);
        exact += Number(isExact);
        expect(isExact).toBe(distance === 0);
        expect(scores).toEqual({
          memorized_exact: Number(isExact),
          memorized_approximate: Number(Number(distance) <= 5),
          personal_data: Number(text.includes('pebbles')),
        });
        expect(personalData).toEqual(text.includes('pebbles') ? ['pebble'] : undefined);
      }
      expect(exact).toBeGreaterThan(0);
      expect(valueOf(result, 'memorized_exact', 'real')).toBe(exact / lines.length);
      expect((await evaluate([{ name: 'real', model: real }], [task], options)).resumed).toBe(lines.length);
    },
    { contextSize: 512 },
    realModel(),
  );
});

describe('the command', () => {
  const examples = join(root, 'examples', 'tasks');
  beforeAll(() => {
    mkdirSync(join(folder, 'node_modules'));
    symlinkSync(join(root, 'packages', 'privacy'), join(folder, 'node_modules', 'gemma-native-privacy'), 'junction');
  });

  test('eval prints a table, or JSON, and goes on from its output; the tasks among the examples', async () => {
    const output = join(folder, 'cli.jsonl');
    const markdown = join(folder, 'table.md');
    const tasks = ['capitals.json', 'arithmetic.json', 'choice.jsonl'].map((name) => join(examples, name));
    const args = [cli, 'eval', ...tasks, '--model', 'demo', '--output', output, '--adapter', Gemma.demoAdapter, '--max-tokens', '12', '--scan']; // prettier-ignore
    const table = await runNode([...args, '--markdown', markdown], { cwd: folder });
    expect(table).toMatchObject({ code: 0, stderr: '' });
    const [header, ...rows] = table.stdout.split('\n');
    expect(header).toMatch(/^task +metric +n +demo +demo \+ demo-tools$/);
    expect(
      rows.slice(0, 6).map((row) => row.replace(' (lower is better)', '').split(/ +/).slice(0, 3).join(' ')),
    ).toEqual([
      'capitals contains 5',
      'capitals personal_data 5',
      'arithmetic number 5',
      'arithmetic personal_data 5',
      'choice acc 6',
      'choice acc_norm 6',
    ]);
    expect(readFileSync(markdown, 'utf8')).toMatch(/^\| task \| metric \| n \| demo \| demo \+ demo-tools \|\n/);
    const json = await runNode([...args, '--json'], { cwd: folder });
    expect(json).toMatchObject({ code: 0, stderr: '' });
    expect(JSON.parse(json.stdout)).toMatchObject({ models: ['demo', 'demo + demo-tools'], examples: 32, resumed: 32 });
  });

  test('what is wrong', async () => {
    const exit = await runNode([cli, 'eval', join(examples, 'choice.jsonl'), '--model', tiny, '--samples', '3', '--json']); // prettier-ignore
    expect(exit.code).toBe(2);
    expect(JSON.parse(exit.stdout)).toMatchObject({ error: { code: 'ERR_USAGE' } });
  });
});
