// Embeddings of texts: against sentence-transformers, prompts and tokens included; equal alone and in company; options, ends and errors.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gemma, type EmbeddingTask, type EmbedOptions } from '../../lib/index';
import { derive } from './derived';
import { cli, data, rejection, runNode, tiny, until, withModel } from './helpers';
import { readJson, Tensors } from './reference';

interface Golden {
  prompts: Record<'query' | 'document' | 'STS', string>;
  texts: string[];
  ids: Record<'plain' | 'query' | 'document', number[][]>;
  cut: { text: number; max_seq_length: number; ids: number[] };
}

const golden = readJson<Golden>('embedding.json');
const tensors = new Tensors('embedding.safetensors');
const halves = join(data, 'embedding-f16.gguf');
const modes = ['plain', 'query', 'document'] as const;
const DIM = 64;

const folder = mkdtempSync(join(tmpdir(), 'gemma-embed-'));
afterAll(() => rmSync(folder, { recursive: true }));

const optionsOf = (mode: (typeof modes)[number]): EmbedOptions => (mode === 'plain' ? {} : { task: mode });

function largest(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length || a.length === 0) return NaN;
  return a.reduce((most, x, i) => (Math.abs(x - (b[i] ?? NaN)) <= most ? most : Math.abs(x - (b[i] ?? NaN))), 0);
}

function rowsOf(values: Float32Array, dim = DIM): Float32Array[] {
  return Array.from({ length: values.length / dim }, (_, i) => values.subarray(i * dim, (i + 1) * dim));
}

const dot = (a: Float32Array, b: Float32Array) => a.reduce((sum, x, i) => sum + x * (b[i] ?? NaN), 0);

function leastCosine(a: Float32Array, b: Float32Array): number {
  return Math.min(...rowsOf(a).map((row, i) => dot(row, rowsOf(b)[i] as Float32Array)));
}

describe('sentence-transformers', () => {
  // Its noise is 2e-7; the oracle asks 5e-6 of an engine in float32. What moves embeddings least, 16-bit keys, moves them by 8e-5.
  test.each(['f16', 'f32'] as const)('a file in %s', async (type) => {
    const file = derive(halves, join(folder, `${type}.gguf`), { type });
    await withModel(
      async (gemma) => {
        expect(gemma.info).toMatchObject({ kvCache: 'f32', instructionTuned: false });
        expect(gemma.info.config).toMatchObject({ encoder: true, denseLayers: true, embeddingDim: DIM });
        for (const mode of modes) {
          const { data: got, shape, usage } = await gemma.embed(golden.texts, optionsOf(mode));
          expect(shape).toEqual([golden.texts.length, DIM]);
          expect(usage).toEqual({ inputTokens: golden.ids[mode].flat().length });
          expect(largest(got, tensors.f32(`${mode}.embedding`))).toBeLessThan(5e-6);
        }
        const raw = await gemma.embed(golden.texts, { normalize: false });
        expect(largest(raw.data, tensors.f32('plain.dense_3'))).toBeLessThan(1e-5);
      },
      {},
      file,
    );
  });

  // Cosines to the float model, and to the same file dequantised: 8-bit activations come besides.
  test('a file in Q8_0', async () => {
    const file = derive(halves, join(folder, 'q8_0.gguf'), { type: 'q8_0' });
    await withModel(
      async (gemma) => {
        expect(gemma.info.kvCache).toBe('f16');
        const got: Partial<Record<string, Float32Array>> = {};
        for (const mode of modes) {
          const rows = (got[mode] = (await gemma.embed(golden.texts, optionsOf(mode))).data);
          expect(leastCosine(rows, tensors.f32(`${mode}.embedding`))).toBeGreaterThan(0.999);
          expect(leastCosine(rows, tensors.f32(`q8_0.${mode}.embedding`))).toBeGreaterThan(0.9998);
        }
        // Neighbours in their order, but for those that the reference has within the noise of each other.
        const documents = rowsOf(tensors.f32('document.embedding'));
        for (const [i, query] of rowsOf(tensors.f32('query.embedding')).entries()) {
          const want = documents.map((document) => dot(query, document));
          const found = rowsOf(got.document as Float32Array).map((document) =>
            dot(rowsOf(got.query as Float32Array)[i] as Float32Array, document),
          );
          for (const [a, x] of want.entries()) {
            for (const [b, y] of want.entries()) {
              if (x > y + 0.02) expect(found[a]).toBeGreaterThan(found[b] as number);
            }
          }
        }
      },
      {},
      file,
    );
  });

  test('prompts are text before the text', async () => {
    const prompts: Record<EmbeddingTask, string> = {
      query: golden.prompts.query,
      document: golden.prompts.document,
      'sentence-similarity': golden.prompts.STS,
      'question-answering': 'task: question answering | query: ',
      'fact-checking': 'task: fact checking | query: ',
      classification: 'task: classification | query: ',
      clustering: 'task: clustering | query: ',
      'code-retrieval': 'task: code retrieval | query: ',
      summarization: 'task: summarization | query: ',
    };
    await withModel(
      async (gemma) => {
        for (const [task, prompt] of Object.entries(prompts)) {
          const { data: got } = await gemma.embed('x', { task: task as EmbeddingTask });
          expect(got).toEqual((await gemma.embed(`${prompt}x`)).data);
        }
        const titled = await gemma.embed(['x', 'y'], { task: 'document', title: ['A', 'B'] });
        expect(titled.data).toEqual((await gemma.embed(['title: A | text: x', 'title: B | text: y'])).data);
        const one = await gemma.embed(['x', 'y'], { task: 'document', title: 'A' });
        expect(one.data).toEqual((await gemma.embed(['title: A | text: x', 'title: A | text: y'])).data);
      },
      {},
      halves,
    );
  });

  test('texts that are cut keep the token at their end', async () => {
    await withModel(
      async (gemma) => {
        const text = golden.texts[golden.cut.text] as string;
        const { data: got, usage } = await gemma.embed(text, { truncate: true });
        expect(usage.inputTokens).toBe(golden.cut.ids.length);
        expect(largest(got, tensors.f32('cut.embedding'))).toBeLessThan(5e-6);
        const error = await rejection(gemma.embed(['x', text]));
        expect(error).toMatchObject({ code: 'ERR_CONTEXT_FULL', detail: 'CONTEXT_OVERFLOW' });
        expect((error as Error).message).toMatch(/^texts\[1\] of 63 tokens .* 16 positions.*truncate: true/);
        const long = await rejection(gemma.embed('x'.repeat(1e6)));
        expect(long).toMatchObject({ code: 'ERR_CONTEXT_FULL', detail: 'CONTEXT_OVERFLOW' });
        expect((await gemma.embed('x'.repeat(1e5), { truncate: true })).usage.inputTokens).toBe(16);
      },
      { contextSize: golden.cut.max_seq_length },
      halves,
    );
  });

  test('a file without its dense layers', async () => {
    const file = derive(halves, join(folder, 'nodense.gguf'), { without: /dense_/ });
    const error = await rejection(Gemma.load(file));
    expect(error).toMatchObject({ code: 'ERR_UNSUPPORTED_MODEL', detail: 'NO_DENSE_LAYERS' });
    expect((error as Error).message).toMatch(/--sentence-transformers-dense-modules.*denseLayers/);
    expect((await Gemma.inspect(file)).config).toMatchObject({ encoder: true, denseLayers: false });
    await withModel(
      async (gemma) => {
        const { data: got } = await gemma.embed(golden.texts, { normalize: false });
        expect(largest(got, tensors.f32('plain.pooled'))).toBeLessThan(1e-5);
      },
      { denseLayers: 'optional' },
      file,
    );
    await expect(Gemma.load(file, { denseLayers: 'no' as 'optional' })).rejects.toThrow(RangeError);
  });
});

describe('files that are something else', () => {
  const change = (changes: Parameters<typeof derive>[2]) => derive(halves, join(folder, 'changed.gguf'), changes);
  test.each([
    ['another pooling', { ints: { 'gemma-embedding.pooling_type': 2 } }, 'ERR_UNSUPPORTED_MODEL', undefined],
    ['one dense layer of two', { without: /dense_3/ }, 'ERR_GGUF_INVALID', 'BAD_TENSOR'],
    ['another width', { ints: { 'gemma-embedding.dense_2_feat_out': 95 } }, 'ERR_GGUF_INVALID', 'BAD_TENSOR'],
    ['a huge width', { ints: { 'gemma-embedding.dense_3_feat_out': 1 << 30 } }, 'ERR_GGUF_INVALID', 'BAD_HPARAM'],
    ['tensors without keys', { without: /_feat_/ }, undefined, undefined],
    ['keys without tensors', { without: /^dense_/ }, 'ERR_GGUF_INVALID', 'BAD_TENSOR'],
  ] as const)('%s', async (_, changes, code, detail) => {
    const loaded = Gemma.load(change(changes));
    if (code === undefined) return (await loaded).dispose();
    expect(await rejection(loaded)).toMatchObject({ code, detail });
    return undefined;
  });

  test('damaged weights', async () => {
    const file = change({ type: 'f32', change: (name, values) => name === 'dense_3.weight' && (values[5] = NaN) });
    await withModel(
      async (gemma) => {
        const error = await rejection(gemma.embed(['x', 'y']));
        expect(error).toMatchObject({ code: 'ERR_NON_FINITE', detail: 'NONFINITE' });
      },
      {},
      file,
    );
  });
});

describe('an embedding model', () => {
  let gemma: Gemma;
  beforeAll(async () => (gemma = await Gemma.load(halves, { threads: 2 })));
  afterAll(() => gemma.dispose());

  const many = Array.from({ length: 1000 }, (_, i) => `${i} `.repeat(1 + ((i * 7919) % 90)));

  test('a thousand texts in one call, with others at the same time, are each alone to the bit', async () => {
    const fractions: number[] = [];
    const [all, some] = await Promise.all([
      gemma.embed(many, { onProgress: (fraction) => fractions.push(fraction) }),
      gemma.embed(many.slice(0, 10)),
    ]);
    expect(all.shape).toEqual([1000, DIM]);
    expect(Buffer.from(some.data.buffer)).toEqual(Buffer.from(all.data.buffer, 0, some.data.byteLength));
    for (let i = 0; i < many.length; i += 97) {
      const { data: alone } = await gemma.embed(many[i] as string);
      expect(Buffer.from(alone.buffer)).toEqual(Buffer.from(all.data.buffer, i * DIM * 4, DIM * 4));
    }
    expect(fractions.at(-1)).toBe(1);
    expect(fractions).toEqual(fractions.toSorted((a, b) => a - b));
    expect(gemma.stats()).toMatchObject({ running: 0, waiting: 0, kvPagesInUse: 0, kvBytesResident: 0 });
  });

  test('dimensions', async () => {
    const whole = await gemma.embed('x');
    for (const n of [1, 16, DIM]) {
      const { data: cut, shape } = await gemma.embed('x', { dimensions: n });
      expect(shape).toEqual([1, n]);
      // As the first of the whole, normalised again.
      const length = Math.hypot(...whole.data.subarray(0, n));
      expect(Math.hypot(...cut)).toBeCloseTo(1, 6);
      for (const [i, x] of cut.entries()) expect(x).toBeCloseTo((whole.data[i] ?? NaN) / length, 5);
    }
  });

  test('control strings in a text are text', async () => {
    for (const marker of ['<eos>', '<bos>', '<start_of_turn>']) {
      const { usage } = await gemma.embed(`a${marker}`);
      expect(usage.inputTokens).toBeGreaterThan(4);
    }
    expect((await gemma.embed(['<bos>', '<bos>x<bos>', '']).then(({ shape }) => shape))[0]).toBe(3);
    expect((await gemma.embed('')).usage.inputTokens).toBe(2);
  });

  test.each([
    ['no list', 7, TypeError],
    ['an object', {}, TypeError],
    ['an empty list', [], RangeError],
    ['a huge list', Array.from({ length: 65_537 }, () => 'x'), RangeError],
    ['numbers', ['x', 5], TypeError],
    ['a hole', Array.from({ length: 3 }), TypeError],
  ])('texts: %s', async (_, texts, kind) => {
    const error = await rejection(gemma.embed(texts as string[]));
    expect(error).toBeInstanceOf(kind);
    expect((error as Error).message).toMatch(/^texts/);
  });

  test.each([
    [{ task: 'search' }, RangeError],
    [{ task: 5 }, TypeError],
    [{ title: 'A' }, TypeError],
    [{ title: 'A', task: 'query' }, TypeError],
    [{ title: 5, task: 'document' }, TypeError],
    [{ title: ['A', 'B'], task: 'document' }, RangeError],
    [{ title: [5], task: 'document' }, TypeError],
    [{ dimensions: 0 }, RangeError],
    [{ dimensions: DIM + 1 }, RangeError],
    [{ dimensions: '5' }, TypeError],
    [{ dimensions: 1.5 }, RangeError],
    [{ normalize: 1 }, TypeError],
    [{ truncate: 'yes' }, TypeError],
    [{ onProgress: 1 }, TypeError],
    [{ signal: 1 }, TypeError],
    [{ normalise: true }, TypeError],
  ])('options: %j', async (options, kind) => {
    const error = await rejection(gemma.embed('x', options as EmbedOptions));
    expect(error).toBeInstanceOf(kind);
    expect((error as Error).message).toContain(Object.keys(options)[0] as string);
  });

  test('it writes and scores nothing', async () => {
    const chat = gemma.chat();
    const calls = [
      () => gemma.generate('x'),
      () => gemma.stream('x').result,
      () => gemma.logits('x'),
      () => gemma.score('x', ['y']),
      () => gemma.perplexity('some text'),
      () => chat.send('x'),
    ];
    for (const call of calls) {
      const error = await rejection(call());
      expect(error).toMatchObject({ code: 'ERR_UNSUPPORTED_INPUT', detail: 'EMBEDDING_MODEL' });
    }
    expect(await rejection(gemma.embedImage('x.png'))).toMatchObject({ detail: 'NO_VISION' });
    expect(await gemma.detokenize(await gemma.tokenize('abc'))).toBe('abc');
  });

  test('aborted before, in the middle, after', async () => {
    const reason = new Error('enough');
    expect(await rejection(gemma.embed(many, { signal: AbortSignal.abort(reason) }))).toBe(reason);
    const controller = new AbortController();
    const onProgress = () => controller.abort(reason);
    expect(await rejection(gemma.embed(many, { signal: controller.signal, onProgress }))).toBe(reason);
    await until(() => gemma.stats().running === 0 && gemma.stats().waiting === 0);
    expect(gemma.stats().kvPagesInUse).toBe(0);
    const late = new AbortController();
    await gemma.embed('x', { signal: late.signal });
    late.abort(reason);
  });

  test('what a callback throws is the rejection', async () => {
    const reason = new Error('mine');
    const onProgress = () => {
      throw reason;
    };
    expect(await rejection(gemma.embed(many, { onProgress }))).toBe(reason);
    await until(() => gemma.stats().running === 0 && gemma.stats().waiting === 0);
  });

  test('disposed in the middle', async () => {
    const other = await Gemma.load(halves, { threads: 2 });
    const call = rejection(other.embed(many.concat(many)));
    await until(() => other.stats().steps > 0);
    await other.dispose();
    expect(await call).toMatchObject({ code: 'ERR_DISPOSED' });
    expect(await rejection(other.embed('x'))).toMatchObject({ code: 'ERR_DISPOSED' });
  });

  test('memory: no output matrix, no logits, no screen, no cache of prefixes', async () => {
    const plan = await Gemma.estimate(halves, { prefixCacheBytes: 1 << 30 });
    expect(plan.screenBytes).toBe(0);
    expect(plan.kvBytes).toBeLessThan(2 << 20);
    expect((await Gemma.inspect(halves)).outputBytes).toBe(0);
    const large = await Gemma.estimate(halves, { contextSize: 512 });
    expect(large.scratchBytes).toBeLessThan(plan.scratchBytes); // a text lies in one step
  });
});

describe('a model that writes', () => {
  test('the mean of its rows', async () => {
    await withModel(async (gemma) => {
      expect(gemma.info.config).toMatchObject({ encoder: false, denseLayers: false });
      const [together, answer] = await Promise.all([
        gemma.embed(['Paris', 'a longer text than that']),
        gemma.generate('x', { maxOutputTokens: 8, temperature: 0 }),
      ]);
      expect(together.shape).toEqual([2, gemma.info.config.modelDim]);
      expect(together.usage.inputTokens).toBe(
        (await gemma.tokenize('Paris', { bos: true })).length +
          (await gemma.tokenize('a longer text than that', { bos: true })).length,
      );
      const alone = await gemma.embed('Paris');
      expect(alone.data).toEqual(together.data.slice(0, gemma.info.config.modelDim));
      expect((await gemma.generate('x', { maxOutputTokens: 8, temperature: 0 })).text).toBe(answer.text);
      const error = await rejection(gemma.embed('x', { task: 'query' }));
      expect(error).toMatchObject({ code: 'ERR_UNSUPPORTED_INPUT', detail: 'NO_TASKS' });
    });
  });

  test('refuses an embedding model as its draft', async () => {
    const error = await rejection(Gemma.load(tiny, { draft: halves }));
    expect(error).toMatchObject({ code: 'ERR_UNSUPPORTED_MODEL', detail: 'EMBEDDING_MODEL' });
  });
});

describe('the command line', () => {
  const run = (...args: string[]) => runNode([cli, 'embed', '--model', halves, ...args]);

  test('texts, and a file of them', async () => {
    const texts = golden.texts.slice(0, 3);
    const file = join(folder, 'texts.txt');
    writeFileSync(file, `${texts.join('\n')}\n`);
    const out = join(folder, 'rows.f32');
    const [given, fromFile] = await Promise.all([
      run('--json', '--task', 'query', '--dimensions', '16', ...texts),
      run('--json', '--task', 'query', '--file', file, '--out', out),
    ]);
    const { shape, tokens, embeddings } = JSON.parse(given.stdout) as {
      shape: number[];
      tokens: number;
      embeddings: number[][];
    };
    expect(shape).toEqual([3, 16]);
    expect(tokens).toBe(golden.ids.query.slice(0, 3).flat().length);
    expect(embeddings.map((row) => Math.hypot(...row))).toEqual([1, 1, 1].map((x) => expect.closeTo(x, 5) as number));
    expect(JSON.parse(fromFile.stdout)).toEqual({ shape: [3, DIM], tokens });
    const bytes = readFileSync(out);
    const rows = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
    expect(largest(rows, tensors.f32('query.embedding').subarray(0, 3 * DIM))).toBeLessThan(5e-6);
  });

  test('wrong usage', async () => {
    const file = join(folder, 'some.txt');
    writeFileSync(file, 'x\n');
    for (const args of [[], ['x', '--file', file], ['x', '--task', 'none']]) expect((await run(...args)).code).toBe(2);
    const none = await runNode([cli, 'embed', '--json', '--model', tiny, '--task', 'query', 'x']);
    expect(none.code).toBe(1);
    expect(JSON.parse(none.stdout)).toMatchObject({ error: { code: 'ERR_UNSUPPORTED_INPUT' } });
  });
});
