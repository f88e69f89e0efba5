// The demonstration model that comes with the package: what only learned weights can show. The pictures are those of
// `npm run demo:eval` (test/demo), which training never drew; the shares asked for here lie below the ones it measures.
import { readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { Gemma, type GenerateOptions, type Message } from '../../lib/index.js';
import { jsonItems, schema, sums, talk, tools } from '../demo/lessons.cjs';
import { heldOutPictures } from '../demo/pictures.cjs';
import { cli, root, runNode } from './helpers.js';
import { distance, Tensors } from './reference.js';

interface Item {
  kind: string;
  images: string[];
  question: string;
  answer: string;
}

const folder = join(root, 'test', 'demo');
const mmproj = join(dirname(Gemma.demoModel), 'mmproj-demo.gguf');
const items = JSON.parse(readFileSync(join(folder, 'heldout.json'), 'utf8')) as Item[];
const pictures = heldOutPictures();
function picture(name: string): Buffer {
  const bytes = pictures.get(name);
  if (!bytes) throw new Error(`${name} is not in images.tar`);
  return bytes;
}
const of = (kind: string, n: number) => items.filter((item) => item.kind === kind).slice(0, n);

function asked(item: { images: string[]; question: string }): Message[] {
  const images = item.images.map((name) => ({ type: 'image' as const, image: picture(name) }));
  return [{ role: 'user', content: [...images, { type: 'text', text: item.question }] }];
}

async function answers(gemma: Gemma, questions: readonly Item[], options: GenerateOptions = {}): Promise<string[]> {
  const results = await Promise.all(
    questions.map((item) => gemma.generate(asked(item), { temperature: 0, maxOutputTokens: 120, ...options })),
  );
  // It ends each answer by itself.
  expect(results.filter(({ finishReason }) => finishReason !== 'stop')).toEqual([]);
  return results.map(({ text }) => text);
}

function share(questions: readonly Item[], found: readonly string[]): number {
  return questions.filter(({ answer }, i) => answer === found[i]).length / questions.length;
}

function readJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Of words and numbers without a wrong letter. */
const READING = 0.85;

let gemma: Gemma;
let exact: Gemma;
beforeAll(async () => {
  gemma = await Gemma.load('demo');
  exact = await Gemma.load(join(folder, 'demo-f16.gguf'), { mmproj, visionPrecision: 'exact' });
});
afterAll(async () => {
  await gemma.dispose();
  await exact.dispose();
});

test('is small', () => {
  expect(statSync(Gemma.demoModel).size + statSync(mmproj).size).toBeLessThan(12e6);
  expect(gemma.info.instructionTuned).toBe(true);
  expect(gemma.info.vision?.tokensPerImage).toBe(36);
});

test.each(['shape', 'colour', 'where', 'count'])('sees: %s', async (kind) => {
  const questions = of(kind, 60);
  expect(share(questions, await answers(gemma, questions))).toBeGreaterThanOrEqual(0.9);
});

test('says what differs between two pictures, more often than not', async () => {
  const questions = of('compare', 60);
  expect(share(questions, await answers(gemma, questions))).toBeGreaterThanOrEqual(0.6);
});

test('reads', async () => {
  const questions = of('read', 40);
  expect(share(questions, await answers(gemma, questions))).toBeGreaterThanOrEqual(READING);
});

test('reads wide pictures better with Pan & Scan', async () => {
  const questions = of('read-wide', 40);
  const without = share(questions, await answers(gemma, questions));
  const scanned = share(questions, await answers(gemma, questions, { panAndScan: true }));
  expect(scanned).toBeGreaterThanOrEqual(READING);
  expect(without).toBeLessThan(scanned - 0.5);
});

test('Q8_0 and an encoder in 8 bits answer as F16 and exact arithmetic', async () => {
  const questions = ['shape', 'colour', 'where', 'describe', 'compare', 'read'].flatMap((kind) => of(kind, 20));
  const [small, large] = [await answers(gemma, questions), await answers(exact, questions)];
  const same = small.filter((text, i) => text === large[i]).length;
  expect(same / questions.length).toBeGreaterThanOrEqual(0.93);
  expect(Math.abs(share(questions, small) - share(questions, large))).toBeLessThanOrEqual(0.03);
});

interface GoldenCase {
  name: string;
  image: string | null;
  question: string;
  panAndScan: boolean;
  ids: number[];
}

// Limits of test/reference/README.md for float files, the cache in float16.
test('logits are those of transformers', async () => {
  const cases = JSON.parse(readFileSync(join(folder, 'golden.json'), 'utf8')) as GoldenCase[];
  const tensors = new Tensors(join('..', '..', 'demo', 'golden.safetensors'));
  expect(cases.length).toBeGreaterThan(3);
  for (const { name, image, question, panAndScan, ids } of cases) {
    const input = asked({ images: image === null ? [] : [image], question });
    const { tokens, data, shape } = await exact.logits(input, { all: true, panAndScan });
    expect(tokens).toEqual(ids);
    const reference = tensors.f32(name);
    const { nrmse, kl, top1 } = distance(reference, data.subarray(data.length - reference.length), shape[1]);
    expect(nrmse).toBeLessThan(2e-3);
    expect(kl).toBeLessThan(1e-5);
    expect(top1).toBe(1);
  }
});

test('holds a conversation about a picture', async () => {
  const [item] = of('where', 1);
  if (!item) throw new Error('no picture');
  const turns: Message[] = asked({ ...item, question: 'How many shapes are there?' });
  const { text } = await gemma.generate(turns, { temperature: 0 });
  expect(text).toBe(items.find(({ kind, images }) => kind === 'count' && images[0] === item.images[0])?.answer);
  turns.push({ role: 'assistant', content: text }, { role: 'user', content: item.question });
  expect((await gemma.generate(turns, { temperature: 0 })).text).toBe(item.answer);
});

test.each([
  ['What is the capital of France?', 'The capital of France is Paris.'],
  ['Was ist die Hauptstadt von Deutschland?', 'Die Hauptstadt von Deutschland ist Berlin.'],
  ['Combien de jours dans une semaine ?', 'Une semaine a sept jours.'],
  ['¿De qué color es el cielo?', 'El cielo es azul.'],
])('%s', async (question, answer) => {
  const { text, finishReason } = await gemma.generate(question, { temperature: 0, maxOutputTokens: 60 });
  expect({ text, finishReason }).toEqual({ text: answer, finishReason: 'stop' });
});

test('samples: a seed repeats, and a narrow choice is the greedy one', async () => {
  const ask = (options: GenerateOptions) => gemma.generate('Tell me a story.', { maxOutputTokens: 60, ...options });
  const greedy = await ask({ temperature: 0 });
  expect((await ask({ topK: 1 })).tokens).toEqual(greedy.tokens);
  expect((await ask({ topP: 1e-6, topK: 0 })).tokens).toEqual(greedy.tokens);
  const one = await ask({ temperature: 3, topK: 0, topP: 1, seed: 5 });
  expect((await ask({ temperature: 3, topK: 0, topP: 1, seed: 5 })).tokens).toEqual(one.tokens);
  expect((await ask({ temperature: 3, topK: 0, topP: 1, seed: 6 })).tokens).not.toEqual(one.tokens);
});

test('stops at a sequence, and says which', async () => {
  const result = await gemma.generate('Count to five.', { temperature: 0, stopSequences: ['three'] });
  expect(result).toMatchObject({ text: 'One, two, ', finishReason: 'stop', stopSequence: 'three' });
});

describe('with its adapter', () => {
  const options = { adapter: 'tools', temperature: 0, maxOutputTokens: 400 } as const;
  let taught: Gemma;
  beforeAll(async () => {
    taught = await Gemma.load('demo', { adapters: { tools: Gemma.demoAdapter } });
  });
  afterAll(() => taught.dispose());

  const part = (results: readonly boolean[]) => results.filter((isRight) => isRight).length / results.length;

  test('describes pictures as JSON, with the schema and without', async () => {
    const shares = async (kind: string) => {
      const right = await Promise.all(
        jsonItems(of(kind, 20)).map(async (item) => {
          const free = await taught.generate(asked(item), options);
          const { object } = await taught.generate(asked(item), { ...options, schema });
          return [isDeepStrictEqual(readJson(free.text), item.object), isDeepStrictEqual(object, item.object)];
        }),
      );
      return [part(right.map(([free = false]) => free)), part(right.map(([, bound = false]) => bound))];
    };
    // Of objects with up to five shapes, each with three properties, half are right in all of them.
    for (const share of await shares('describe')) expect(share).toBeGreaterThanOrEqual(0.35);
    for (const share of await shares('read')) expect(share).toBeGreaterThanOrEqual(0.8);
  });

  test('calls the tool that a question needs, and says what came back', async () => {
    const right = await Promise.all(
      sums(20).map(async ({ kind, question, input, answer }) => {
        const { text, steps } = await taught.generate(question, { ...options, tools });
        const [call, ...others] = steps?.[0]?.toolCalls ?? [];
        return call?.name === kind && others.length === 0 && isDeepStrictEqual(call.input, input) && text === answer;
      }),
    );
    expect(part(right)).toBeGreaterThanOrEqual(0.8);
  });

  test('answers what it knows without a call', async () => {
    const right = await Promise.all(
      talk.map(async ({ question, answer }) => {
        const { text, toolCalls } = await taught.generate(question, { ...options, tools });
        return text === answer && toolCalls?.length === 0;
      }),
    );
    expect(part(right)).toBeGreaterThanOrEqual(0.8);
  });

  test('is what it was for requests that do not name it', async () => {
    const questions = [...of('describe', 5), ...of('read', 5)];
    expect(await answers(taught, questions)).toEqual(await answers(gemma, questions));
  });
});

test('the command line knows it by name', async () => {
  const args = [cli, 'run', '--json', '--model', 'demo', '--temperature', '0', 'What is the capital of Japan?'];
  const { code, stdout } = await runNode(args);
  expect(code).toBe(0);
  expect((JSON.parse(stdout) as { text: string }).text).toBe('The capital of Japan is Tokyo.');
});

test('the demonstration of npm start', async () => {
  const { code, stdout, stderr } = await runNode([join(root, 'examples', 'demo.mjs')]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout).toMatch(/> \[shapes\.png\] Describe the picture\.\n {2}\S[^]*\.\n/);
  expect(stdout).toContain('What does it say?   (with Pan & Scan');
  expect(stdout).toMatch(/^The demonstration model: 6 layers/);
});
