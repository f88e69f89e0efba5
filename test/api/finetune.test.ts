// Fine-tuning: what is learned is what `generate` sends, to the token; the order of steps; the files that come of it, also when a run is
// aborted or killed; what is refused. Arithmetic has its own tests (test/native).
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gemma, type FinetuneOptions, type FinetuneProgress, type Message } from '../../lib/index.js';
import { lossChart, thinned } from '../../lib/finetune/chart.js';
import type { Example } from '../../lib/finetune/examples.js';
import { finetuneSettings } from '../../lib/finetune/options.js';
import { packed, shuffled, split, TrainingPlan } from '../../lib/finetune/plan.js';
import { addon, type NativeTrainingExample } from '../../lib/native.js';
import { cli, data, rejection, runNode, tiny } from './helpers.js';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'gemma-finetune-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

let count = 0;
function jsonl(lines: readonly (object | string)[]): string {
  const path = join(folder, `data-${++count}.jsonl`);
  writeFileSync(path, lines.map((line) => `${typeof line === 'string' ? line : JSON.stringify(line)}\n`).join(''));
  return path;
}
const output = () => join(folder, `out-${++count}`);

const WORDS = ['red', 'green', 'blue', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight'];
const task = (n: number) =>
  Array.from({ length: n }, (_, i) => ({
    prompt: `Say ${WORDS[i % WORDS.length]}`,
    completion: `${WORDS[(i * 3 + 1) % WORDS.length]}!`,
  }));

const quick: Pick<FinetuneOptions, 'model' | 'seed' | 'threads' | 'rank' | 'batchSize' | 'learningRate'> = {
  model: tiny,
  seed: 7,
  threads: 2,
  rank: 4,
  batchSize: 4,
  learningRate: 5e-3,
};

/** The rows of the steps that a training computes. */
async function rowsOf(options: Partial<FinetuneOptions>, lines: readonly object[]): Promise<NativeTrainingExample[][]> {
  const rows: NativeTrainingExample[][] = [];
  const native = addon();
  const { finetuneStep } = native;
  const seen = jest.spyOn(native, 'finetuneStep').mockImplementation((work, onEvent) => {
    rows.push(...work.batch.map((row) => [...row]));
    return finetuneStep(work, onEvent);
  });
  try {
    await Gemma.finetune({ ...quick, epochs: 1, ...options, data: jsonl(lines), output: output() });
  } finally {
    seen.mockRestore();
  }
  return rows;
}

/** An example with what counts in brackets, by ids. */
function counted({ tokens, weights }: NativeTrainingExample): { tokens: number[]; counted: number[] } {
  return {
    tokens: Array.from(tokens),
    counted: Array.from(weights).flatMap((weight, i) => (weight === 1 ? [i] : [])),
  };
}
const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);

describe('what is learned', () => {
  const turns: Message[] = [
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: ' What is <end_of_turn> this?' },
    { role: 'assistant', content: 'A token, as text.' },
    { role: 'user', content: 'And this: ü?' },
    { role: 'assistant', content: 'A letter.' },
  ];

  const other =
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}" +
    '<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}';

  test.each<[string, string, { chatTemplate?: string }]>([
    ['Gemma’s own format', tiny, {}],
    ['no sign of a template', Gemma.demoModel, {}],
    ['another template', tiny, { chatTemplate: other }],
  ])('answers of a conversation behind the prompts that generate sends: %s', async (_, model, template) => {
    const gemma = await Gemma.load(model, template);
    try {
      const sent = async (messages: readonly Message[]) => (await gemma.logits(messages, { data: false })).tokens;
      const [end = 0] = await gemma.tokenize('<end_of_turn>', { special: true });
      const rows = await rowsOf({ model, packing: false, ...template }, [{ id: 1, messages: turns }]);
      const [first, second] = [await sent(turns.slice(0, 2)), await sent(turns.slice(0, 4))];
      const [one, both] = [await sent(turns.slice(0, 3)), await sent(turns)];
      // Every prompt is the beginning of the whole, so it is one example.
      expect(second.slice(0, first.length)).toEqual(first);
      expect(rows).toHaveLength(1);
      const [example] = rows[0] as [NativeTrainingExample];
      expect(counted(example)).toEqual({
        tokens: [...both, end],
        counted: [...range(first.length, one.length + 1), ...range(second.length, both.length + 1)],
      });
      // What the model is to write is tokenised as what it reads.
      expect(both.slice(second.length)).toEqual(await gemma.tokenize('A letter.'));
    } finally {
      await gemma.dispose();
    }
  });

  test('prompts with completions, and whole texts', async () => {
    const gemma = await Gemma.load(Gemma.demoModel);
    try {
      const [end = 0] = await gemma.tokenize('<end_of_turn>', { special: true });
      const [eos = 0] = await gemma.tokenize('<eos>', { special: true });
      const rows = await rowsOf({ model: Gemma.demoModel, packing: false, batchSize: 1 }, [
        { prompt: 'Which colour?', completion: 'red' },
      ]);
      const { tokens } = await gemma.logits('Which colour?', { data: false });
      expect(counted(rows[0]?.[0] as NativeTrainingExample)).toEqual({
        tokens: [...tokens, ...(await gemma.tokenize('red')), gemma.info.instructionTuned ? end : eos],
        counted: range(tokens.length, tokens.length + (await gemma.tokenize('red')).length + 1),
      });
      const [row] = await rowsOf({ model: Gemma.demoModel }, [{ text: 'red and blue' }]);
      const text = await gemma.tokenize('red and blue', { bos: true });
      expect(counted(row?.[0] as NativeTrainingExample)).toEqual({
        tokens: [...text, eos],
        counted: range(1, text.length + 1),
      });
    } finally {
      await gemma.dispose();
    }
  });

  test('pictures stand where generate puts them', async () => {
    const model = join(data, 'mm-a-f16.gguf');
    const image = join(data, 'images', 'photo.png');
    const gemma = await Gemma.load(model);
    try {
      const question: Message = {
        role: 'user',
        content: [
          { type: 'image', image },
          { type: 'text', text: 'What?' },
        ],
      };
      const [row] = await rowsOf({ model }, [{ messages: [question, { role: 'assistant', content: 'A dog' }] }]);
      const [example] = row as [NativeTrainingExample];
      const { tokens } = await gemma.logits([question], { data: false });
      expect(Array.from(example.tokens).slice(0, tokens.length)).toEqual(tokens);
      const { data: rows, shape } = await gemma.embedImage(image);
      expect(example.images).toHaveLength(1);
      const [shown] = example.images as [NonNullable<NativeTrainingExample['images']>[0]];
      expect(shown.n).toBe(shape[0]);
      expect(shown.first).toBe(tokens.indexOf(gemma.info.imageToken));
      expect(Array.from(shown.rows)).toEqual(Array.from(rows));
    } finally {
      await gemma.dispose();
    }
  });
});

describe('what is refused', () => {
  const good = { prompt: 'a', completion: 'b' };
  test.each<[string, object | string, string, RegExp]>([
    ['no JSON', '{"prompt": ', 'BAD_EXAMPLE', /expected JSON/],
    ['no object', '[1]', 'BAD_EXAMPLE', /expected an object/],
    ['no form', {}, 'BAD_EXAMPLE', /found no key/],
    ['a misspelt key', { promt: 'a', completion: 'b' }, 'BAD_EXAMPLE', /promt: no such key/],
    ['another library’s key', { instruction: 'a', output: 'b' }, 'BAD_EXAMPLE', /prompt is meant/],
    ['two forms', { text: 'a', prompt: 'b', completion: 'c' }, 'BAD_EXAMPLE', /text: does not go/],
    ['a wrong type', { prompt: 1, completion: 'b' }, 'BAD_EXAMPLE', /prompt: expected a string, found 1/],
    ['an empty text', { text: '' }, 'BAD_EXAMPLE', /at least one token/],
    ['an empty answer', { prompt: 'a', completion: ' ' }, 'BAD_EXAMPLE', /at least one token/],
    ['no answer', { messages: [{ role: 'user', content: 'a' }] }, 'BAD_EXAMPLE', /message of the assistant/],
    ['roles out of order', { messages: [{ role: 'assistant', content: 'a' }] }, 'BAD_ROLES', /messages\[0\]/],
    ['a wrong message', { messages: [{ role: 'model', content: 'a' }] }, 'BAD_EXAMPLE', /'assistant' is meant/],
    ['a preference', { prompt: 'a', chosen: 'b', rejected: 'c' }, 'BAD_EXAMPLE', /loss: 'dpo'/],
    ['too long', { text: 'word '.repeat(400) }, 'EXAMPLE_TOO_LONG', /maxLength/],
    ['a long line', `{"text":"${'x'.repeat(5000)}"}`, 'BAD_EXAMPLE', /4096 bytes/],
  ])('%s, with file and line', async (_, line, detail, message) => {
    const path = jsonl([good, '', line]);
    const to = output();
    const error = await rejection(Gemma.finetune({ ...quick, data: path, output: to, maxLineBytes: 4096 }));
    expect(error).toMatchObject({ name: 'GemmaError', detail });
    expect((error as Error).message).toMatch(message);
    expect((error as Error).message).toContain(`${path}: line 3: `);
    expect(existsSync(to) || existsSync(`${to}.part`) || existsSync(`${to}.lock`)).toBe(false);
  });

  test('files without examples, files that are there, and wrong options', async () => {
    const path = jsonl([good]);
    const fails = async (options: Partial<FinetuneOptions>, expected: object) =>
      expect(await rejection(Gemma.finetune({ ...quick, data: path, output: output(), ...options }))).toMatchObject(
        expected,
      );
    await fails({ data: jsonl([]) }, { code: 'ERR_INVALID_ARGUMENT', detail: 'NO_EXAMPLES' });
    await fails({ data: jsonl(['', ' ']) }, { code: 'ERR_INVALID_ARGUMENT', detail: 'NO_EXAMPLES' });
    await fails({ data: jsonl([{ text: 'a '.repeat(600) }]), tooLong: 'skip' }, { detail: 'NO_EXAMPLES' });
    await fails({ validation: 0.5 }, { detail: 'NO_EXAMPLES' });
    await fails({ data: join(folder, 'none') }, { code: 'ERR_FILE' });
    await fails({ data: folder }, { code: 'ERR_FILE' });
    await fails({ output: path }, { code: 'ERR_FILE', detail: 'FILE_EXISTS' });
    await fails({ output: path, overwrite: true }, { code: 'ERR_FILE' });
    await fails({ model: join(folder, 'none') }, { code: 'ERR_FILE' });
    await fails({ signal: AbortSignal.abort(new Error('before')) }, { message: 'before' });
    for (const options of [
      { rank: 0 },
      { rank: 1.5 },
      { dropout: 1 },
      { targets: ['lm_head'] },
      { targets: [] },
      { loss: 'mse' },
      { learningRate: 0 },
      { learningRate: NaN },
      { validation: 1 },
      { patience: 1 },
      { teacher: tiny, loss: 'dpo' },
      { steps: 1, epochs: 1 },
      { maxLength: 1e9 },
      { images: { tile: 2, panAndScan: true } },
      { onProgress: 1 },
      { more: 1 },
    ]) {
      await fails(options as never, { name: expect.stringMatching(/^(Type|Range)Error$/) });
    }
    expect(readFileSync(path, 'utf8')).toContain('prompt');
  });

  test('longer examples are cut or left out where that is asked for', async () => {
    const lines = [{ text: 'a b c' }, { text: 'word '.repeat(300) }, { prompt: 'x '.repeat(300), completion: 'y' }];
    const rows = await rowsOf({ tooLong: 'cut', maxLength: 40, packing: false }, lines);
    // Of the third nothing is left that counts.
    expect(rows.map(([example]) => example?.tokens.length).sort((a = 0, b = 0) => a - b)).toEqual([5, 40]);
    const result = await Gemma.finetune({
      ...quick,
      data: jsonl(lines),
      output: output(),
      tooLong: 'skip',
      maxLength: 40,
      epochs: 1,
    });
    expect(result.examples).toEqual({ training: 1, validation: 0, skipped: 2, cut: 0 });
  });
});

describe('the order of training', () => {
  const settings = (options: Partial<FinetuneOptions>) =>
    finetuneSettings({ model: '', data: '', output: '', seed: 3, ...options });

  test('each pass takes every example once, in another order, and a seed decides which', () => {
    const plan = new TrainingPlan(23, settings({ batchSize: 5, epochs: 2 }));
    expect(plan.steps).toBe(10);
    const passes = [0, 5].map((from) => range(from, from + 5).flatMap((step) => plan.batch(step)));
    for (const pass of passes) expect([...pass].sort((a, b) => a - b)).toEqual(range(0, 23));
    expect(passes[0]).not.toEqual(passes[1]);
    // A step's examples do not depend on those before it.
    expect(new TrainingPlan(23, settings({ batchSize: 5 })).batch(7)).toEqual(plan.batch(7));
    expect(shuffled(23, 3, 0)).not.toEqual(shuffled(23, 4, 0));
    expect(plan.epochs(10)).toBe(2);
    expect(plan.epochs(1)).toBeCloseTo(5 / 23);
  });

  test('orders are evenly spread', () => {
    const places = new Int32Array(7);
    for (let seed = 0; seed < 7000; ++seed) places[shuffled(7, seed, 0).indexOf(0)]! += 1;
    for (const n of places) expect(Math.abs(n - 1000)).toBeLessThan(5 * Math.sqrt(1000));
  });

  test('rates rise, then stay or fall', () => {
    const rates = (schedule: 'constant' | 'linear' | 'cosine') => {
      const plan = new TrainingPlan(10, settings({ schedule, steps: 10, warmup: 2, learningRate: 1, batchSize: 1 }));
      return range(0, 10).map((step) => plan.learningRate(step));
    };
    expect(rates('constant')).toEqual([0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    expect(rates('linear')).toEqual([0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]);
    expect(rates('cosine')[6]).toBeCloseTo(0.5);
    expect(rates('cosine')[9]).toBeCloseTo((1 + Math.cos((Math.PI * 7) / 8)) / 2);
  });

  test('parts that are set apart are of every size, and rows are filled first to last', () => {
    const all = range(0, 10);
    expect(split(all, 0, 1)).toEqual({ training: all, validation: [] });
    expect(split([1], 0.5, 1)).toBeUndefined();
    for (const share of [0.01, 0.3, 0.99]) {
      const { training, validation } = split(all, share, 5) ?? { training: [], validation: [] };
      expect([...training, ...validation].sort((a, b) => a - b)).toEqual(all);
      expect(validation).toHaveLength({ 0.01: 1, 0.3: 3, 0.99: 9 }[share] ?? 0);
      expect(split(all, share, 5)).toEqual({ training, validation });
    }
    const examples = [5, 8, 3, 2, 7, 1].map((tokens) => ({ tokens }) as Example);
    const lengths = (packing: boolean) => packed(examples, 10, packing).map((row) => row.map(({ tokens }) => tokens));
    expect(lengths(true)).toEqual([[5, 3, 2], [8, 1], [7]]);
    expect(lengths(false)).toEqual([[5], [8], [3], [2], [7], [1]]);
  });

  test('a curve has every step or its neighbours’ mean', () => {
    const points = range(1, 101).map((step) => ({ step, loss: 100 - step }));
    expect(thinned(points, 10)).toHaveLength(10);
    expect(thinned(points, 10)[0]).toEqual({ step: 10, loss: 94.5 });
    const svg = lossChart(
      points.map((point) => (point.step % 20 ? point : { ...point, validationLoss: point.loss + 1 })),
    );
    expect(svg).toMatch(/^<svg xmlns="http:\/\/www.w3.org\/2000\/svg"[^]*<\/svg>\n$/);
    expect(svg.match(/<circle/g)).toHaveLength(5);
    expect(svg).not.toMatch(/NaN|Infinity|undefined/);
    expect(lossChart([{ step: 1, loss: 2 }])).not.toMatch(/NaN|Infinity/);
  });
});

const tensorsOf = (path: string) => readFileSync(join(path, 'adapter_model.safetensors'));

describe('the result', () => {
  test('it learns a task, and the folder is at once an adapter whose loss is the one that was measured', async () => {
    const lines = task(11);
    const to = output();
    const seen: FinetuneProgress[] = [];
    const result = await Gemma.finetune({
      ...quick,
      data: jsonl(lines),
      output: to,
      steps: 150,
      validation: jsonl(lines.slice(0, 4)),
      evaluateEvery: 50,
      gguf: true,
      baseModel: 'someone/model',
      onProgress: (progress) => seen.push(progress),
    });
    expect(result).toMatchObject({ path: to, steps: 150, resumedSteps: 0, stoppedEarly: false, seed: 7 });
    expect(seen.map(({ step }) => step)).toEqual(range(1, 151));
    expect(seen.filter(({ validationLoss }) => validationLoss !== undefined).map(({ step }) => step)).toEqual([
      50, 100, 150,
    ]);
    expect(seen[0]?.loss).toBeGreaterThan(3);
    expect(result.loss).toBeLessThan(0.1);
    expect(readdirSync(to).sort()).toEqual([
      'adapter.gguf',
      'adapter_config.json',
      'adapter_model.safetensors',
      'loss.svg',
      'training-log.jsonl',
    ]);
    expect(existsSync(`${to}.part`) || existsSync(`${to}.lock`)).toBe(false);
    expect(readFileSync(join(to, 'training-log.jsonl'), 'utf8').trimEnd().split('\n')).toHaveLength(150);
    expect(JSON.parse(readFileSync(join(to, 'adapter_config.json'), 'utf8'))).toMatchObject({
      peft_type: 'LORA',
      base_model_name_or_path: 'someone/model',
      r: 4,
      lora_alpha: 8,
    });

    const gemma = await Gemma.load(tiny, { kvCache: 'f32', isa: 'ref' });
    try {
      await gemma.loadAdapter('peft', to);
      await gemma.loadAdapter('gguf', join(to, 'adapter.gguf'));
      for (const adapter of ['peft', 'gguf']) {
        let sum = 0;
        let n = 0;
        for (const { prompt, completion } of lines.slice(0, 4)) {
          const [score] = await gemma.score(prompt, [completion], { raw: false, includeEnd: true, adapter });
          sum -= score?.logprob ?? NaN;
          n += score?.tokens.length ?? NaN;
        }
        expect(Math.abs(sum / n - (result.validationLoss ?? NaN))).toBeLessThan(1e-3 * (1 + sum / n));
        const { prompt, completion } = lines[5] as { prompt: string; completion: string };
        const { text } = await gemma.generate(prompt, { raw: false, adapter, temperature: 0, maxOutputTokens: 20 });
        expect(text).toBe(completion);
      }
    } finally {
      await gemma.dispose();
    }
  });

  test('packing, threads and rows change nothing but rounding; the same seed gives the same bits', async () => {
    const path = jsonl(task(12));
    const run = async (options: Partial<FinetuneOptions>) => {
      const to = output();
      await Gemma.finetune({ ...quick, data: path, output: to, epochs: 2, dropout: 0.1, ...options });
      return tensorsOf(to);
    };
    const one = await run({});
    expect(await run({})).toEqual(one);
    expect(await run({ threads: 1 })).toEqual(one);
    expect(await run({ activationBytes: 0 })).toEqual(one);
    expect(await run({ seed: 8 })).not.toEqual(one);
  });

  test('training ends where validation gets no better, and the best is kept', async () => {
    const to = output();
    const seen: FinetuneProgress[] = [];
    const result = await Gemma.finetune({
      ...quick,
      learningRate: 2e-2,
      data: jsonl(task(11)),
      validation: jsonl([{ prompt: 'Say red', completion: 'something else that is never said' }]),
      output: to,
      epochs: 100,
      evaluateEvery: 2,
      patience: 3,
      onProgress: (progress) => seen.push(progress),
    });
    expect(result.stoppedEarly).toBe(true);
    expect(result.steps).toBe((result.bestStep ?? NaN) + 6);
    const losses = seen.flatMap(({ validationLoss }) => validationLoss ?? []);
    expect(result.validationLoss).toBe(Math.min(...losses));
    const gemma = await Gemma.load(tiny, { adapters: { a: to } });
    await gemma.dispose();
  });

  test('preferences are learned with the model itself as the reference', async () => {
    const pairs = task(11).map(({ prompt, completion }, i) => ({
      prompt,
      chosen: completion,
      rejected: `${WORDS[(i * 5 + 2) % WORDS.length]}?`,
    }));
    const seen: FinetuneProgress[] = [];
    const result = await Gemma.finetune({
      ...quick,
      loss: 'dpo',
      data: jsonl(pairs),
      output: output(),
      epochs: 12,
      onProgress: (progress) => seen.push(progress),
    });
    expect(seen[0]?.loss).toBeCloseTo(Math.log(2), 5);
    expect(result.loss).toBeLessThan(0.4);
    expect(seen.at(-1)?.rewardAccuracy).toBe(1);
  });

  test('a teacher at hand and one whose logits are stored teach the same', async () => {
    const lines = task(5);
    const teacher = join(data, 'text-a-q4_0.gguf');
    const k = 20;
    const run = async (of: readonly object[], options: Partial<FinetuneOptions>) => {
      const to = output();
      const common = { ...quick, data: jsonl(of), output: to, teacherTopK: k, epochs: 4 };
      const result = await Gemma.finetune({ ...common, ...options });
      return { result, tensors: tensorsOf(to) };
    };
    const live = await run(lines, { teacher });
    const gemma = await Gemma.load(teacher);
    const stored = [];
    for (const line of lines) {
      const prompt = await gemma.logits(line.prompt, { raw: false, data: false });
      const [end = 0] = await gemma.tokenize('<end_of_turn>', { special: true });
      const answer = [...(await gemma.tokenize(line.completion)), end];
      const { top = [] } = await gemma.logits([...prompt.tokens, ...answer], { all: true, top: k, data: false });
      const rows = top.slice(prompt.tokens.length - 1, -1);
      stored.push({
        ...line,
        teacher: {
          tokens: rows.map((row) => row.map(({ token }) => token)),
          logits: rows.map((row) => row.map(({ logit }) => logit)),
        },
      });
    }
    await gemma.dispose();
    const again = await run(stored, { loss: 'distillation' });
    expect(again.tensors).toEqual(live.tensors);
    expect(live.result.loss).toBeGreaterThanOrEqual(0);

    const [first] = stored;
    const wrong = async (line: object, message: RegExp) => {
      const error = await rejection(run([line], { loss: 'distillation' }));
      expect(error).toMatchObject({ detail: 'BAD_EXAMPLE' });
      expect((error as Error).message).toMatch(message);
    };
    await wrong({ ...first, teacher: undefined }, /expected teacher/);
    await wrong({ ...first, teacher: { tokens: [[1]], logits: [[0.5]] } }, /one for each token that counts/);
    await wrong({ ...first, teacher: { tokens: [[1, 1]], logits: [[0, 1]] } }, /each token once/);
    await wrong({ ...first, teacher: { tokens: [[1]], logits: [[0, 1]] } }, /as many logits as tokens/);
  });
});

describe('interruptions', () => {
  const lines = task(20);
  const options: Partial<FinetuneOptions> = {
    epochs: 2,
    checkpointEvery: 3,
    validation: 0.2,
    evaluateEvery: 4,
    dropout: 0.1,
  };
  let path: string;
  let whole: Buffer;
  beforeAll(async () => {
    path = jsonl(lines);
    const to = output();
    await Gemma.finetune({ ...quick, ...options, data: path, output: to });
    whole = tensorsOf(to);
  });

  test('aborted anywhere, it goes on to the same bits', async () => {
    for (const at of [1, 4, 6]) {
      const to = output();
      const abort = new AbortController();
      const reason = new Error('enough');
      const onProgress = ({ step }: FinetuneProgress) => {
        if (step === at) abort.abort(reason);
      };
      const run = Gemma.finetune({ ...quick, ...options, data: path, output: to, onProgress, signal: abort.signal });
      expect(await rejection(run)).toBe(reason);
      expect(existsSync(to)).toBe(false);
      const { seed: _, ...withoutSeed } = quick; // it is the earlier run's
      const again = await Gemma.finetune({ ...withoutSeed, ...options, data: path, output: to });
      expect(again).toMatchObject({ resumedSteps: at, seed: 7 });
      expect(tensorsOf(to)).toEqual(whole);
      expect(readFileSync(join(to, 'training-log.jsonl'), 'utf8').trimEnd().split('\n')).toHaveLength(again.steps);
    }
  });

  test('killed at random moments, it goes on to the same bits', async () => {
    const to = output();
    const args = [cli, 'finetune', tiny, path, '--output', to, '--json'];
    const flags = { seed: 7, threads: 2, rank: 4, 'batch-size': 4, 'learning-rate': 5e-3, epochs: 2 };
    const more = { 'checkpoint-every': 1, validation: 0.2, 'evaluate-every': 4, dropout: 0.1 };
    for (const [name, value] of Object.entries({ ...flags, ...more })) args.push(`--${name}`, String(value));
    let kills = 0;
    for (let i = 0; i < 4; ++i) {
      const child = spawn(process.execPath, args, { stdio: 'ignore' });
      const ended = new Promise<void>((resolve) => child.on('close', () => resolve()));
      // From the moment that there is a checkpoint, at any.
      while (!existsSync(join(`${to}.part`, 'checkpoint.bin')) && child.exitCode === null) {
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
      await new Promise((resolve) => setTimeout(resolve, i === 0 ? 0 : Math.random() * 60));
      if (child.exitCode === null) kills += Number(child.kill('SIGKILL'));
      await ended;
      if (existsSync(to)) break;
    }
    expect(kills).toBeGreaterThan(0);
    if (!existsSync(to)) {
      const { code, stdout, stderr } = await runNode(args);
      expect({ code, stderr }).toMatchObject({ code: 0 });
      expect(JSON.parse(stdout)).toMatchObject({ path: to, seed: 7 });
    }
    expect(tensorsOf(to)).toEqual(whole);
  });

  test('another training is not gone on from; one at a time has the output', async () => {
    const to = output();
    const abort = new AbortController();
    const common = { ...quick, ...options, data: path, output: to };
    const run = Gemma.finetune({ ...common, onProgress: () => abort.abort(), signal: abort.signal });
    const second = rejection(Gemma.finetune(common));
    await rejection(run);
    expect(await second).toMatchObject({ code: 'ERR_FILE', detail: 'IN_USE' });
    const other = async (changed: Partial<FinetuneOptions>, message: RegExp) => {
      const error = await rejection(Gemma.finetune({ ...common, ...changed }));
      expect(error).toMatchObject({ code: 'ERR_FILE', detail: 'OTHER_RUN' });
      expect((error as Error).message).toMatch(message);
    };
    await other({ rank: 5 }, /rank was 4, is 5/);
    await other({ seed: 8 }, /seed was 7, is 8/);
    await other({ data: jsonl(task(3)) }, /data is another/);
    const checkpoint = join(`${to}.part`, 'checkpoint.bin');
    const bytes = readFileSync(checkpoint);
    for (const damaged of [bytes.subarray(0, -1), Buffer.concat([bytes, Buffer.from('x')])]) {
      writeFileSync(checkpoint, damaged);
      expect(await rejection(Gemma.finetune(common))).toMatchObject({ code: 'ERR_FILE', detail: 'CHECKPOINT_DAMAGED' });
    }
    bytes[bytes.length - 100]! ^= 1;
    writeFileSync(checkpoint, bytes);
    expect(await rejection(Gemma.finetune(common))).toMatchObject({ code: 'ERR_FILE', detail: 'CHECKPOINT_DAMAGED' });
    await Gemma.finetune({ ...common, resume: false });
    expect(tensorsOf(to)).toEqual(whole);
    expect(await rejection(Gemma.finetune(common))).toMatchObject({ code: 'ERR_FILE', detail: 'FILE_EXISTS' });
    await Gemma.finetune({ ...common, overwrite: true });
    expect(tensorsOf(to)).toEqual(whole);
  });

  test('it is held up and goes on', async () => {
    const to = output();
    let steps = 0;
    const run = Gemma.finetune({
      ...quick,
      ...options,
      data: path,
      output: to,
      onProgress: ({ step }) => {
        steps = step;
        if (step === 3) run.pause();
      },
    });
    while (!run.isPaused) await new Promise(setImmediate);
    for (let i = 0; i < 200; ++i) await new Promise(setImmediate);
    expect(steps).toBe(3);
    run.resume();
    await run;
    expect(tensorsOf(to)).toEqual(whole);

    const abort = new AbortController();
    const held = Gemma.finetune({
      ...quick,
      data: path,
      output: output(),
      signal: abort.signal,
      onProgress: () => held.pause(),
    });
    while (!held.isPaused) await new Promise(setImmediate);
    abort.abort(new Error('while it waits'));
    expect(await rejection(held)).toMatchObject({ message: 'while it waits' });
  });

  test('a rate that is too high, a callback that throws and a full disk end it with nothing half written', async () => {
    const to = output();
    const common = { ...quick, data: path, output: to };
    const diverged = await rejection(
      Gemma.finetune({
        ...common,
        optimizer: 'sgd',
        learningRate: 1000,
        weightDecay: 1000,
        clip: 0,
        epochs: 20,
        warmup: 0,
        schedule: 'constant',
      }),
    );
    expect(diverged).toMatchObject({ name: 'GemmaError', code: 'ERR_NON_FINITE' });
    expect(existsSync(to) || existsSync(`${to}.part`)).toBe(false);

    const thrown = new Error('of the callback');
    const onProgress = () => {
      throw thrown;
    };
    expect(await rejection(Gemma.finetune({ ...common, ...options, onProgress }))).toBe(thrown);
    expect(existsSync(to)).toBe(false);

    const { open } = fs;
    const opened = jest.spyOn(fs, 'open').mockImplementation(async (...args) => {
      const handle = await open(...args);
      if (!String(args[0]).endsWith('training-log.jsonl')) return handle;
      handle.appendFile = () =>
        Promise.reject(
          Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC', syscall: 'write' }),
        );
      return handle;
    });
    try {
      const full = await rejection(Gemma.finetune({ ...common, ...options, resume: false }));
      expect(full).toMatchObject({ code: 'ERR_FILE', detail: 'DISK_FULL' });
    } finally {
      opened.mockRestore();
    }
    expect(existsSync(to)).toBe(false);
    await Gemma.finetune({ ...common, ...options, resume: false });
    expect(tensorsOf(to)).toEqual(whole);
  });
});

test('the command tells its result and its errors', async () => {
  const to = output();
  const path = jsonl(task(6));
  const args = [
    'finetune',
    tiny,
    path,
    '--output',
    to,
    '--epochs',
    '2',
    '--rank',
    '2',
    '--seed',
    '1',
    '--targets',
    'q_proj,o_proj',
  ];
  const { code, stdout } = await runNode([cli, ...args]);
  expect(code).toBe(0);
  expect(stdout).toMatch(/2 steps, 2\.0 passes/);
  const config = JSON.parse(readFileSync(join(to, 'adapter_config.json'), 'utf8')) as { target_modules: string[] };
  expect(config.target_modules.sort()).toEqual(['o_proj', 'q_proj']);
  const again = await runNode([cli, ...args, '--json']);
  expect(again.code).toBe(1);
  expect(JSON.parse(again.stdout)).toMatchObject({ error: { code: 'ERR_FILE', detail: 'FILE_EXISTS' } });
  const wrong = await runNode([cli, ...args.slice(0, 5), '--rank', '0']);
  expect(wrong.code).toBe(2);
});
