// Folders of sentence-transformers: what they embed is what sentence-transformers embeds (test/reference/make_sentence.py), and what the same
// weights embed as GGUF, to the bit; adapters; and every way in which the files of such a folder can be wrong has its error.
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gemma } from '../../lib/index';
import { pattern, safetensors, type SentenceVariant, writeSentenceModel } from './checkpoint';
import { derive } from './derived';
import { data, rejection, withModel } from './helpers';
import { readJson, Tensors } from './reference';

interface Variant extends SentenceVariant {
  name: string;
  task?: string;
  adapter?: boolean;
}

const golden = readJson<{ texts: number[]; variants: Variant[] }>('sentence.json');
const embedding = readJson<{ texts: string[]; prompts: Record<string, string>; cut: { text: number } }>(
  'embedding.json',
);
const ofGolden = new Tensors('sentence.safetensors');
const texts = golden.texts.map((i) => embedding.texts[i] as string);
const gguf = join(data, 'embedding-f16.gguf');
const DIM = 64;
const LAYERS = 6;

const folder = mkdtempSync(join(tmpdir(), 'gemma-sentence-'));
afterAll(() => rmSync(folder, { recursive: true }));

const IDENTITY = { activation: 'Identity', bias: false };
/** As EmbeddingGemma is published. */
const published: SentenceVariant = {
  pooling: 'mean',
  normalize: true,
  dense: [IDENTITY, IDENTITY],
  prompts: { prompts: embedding.prompts, default_prompt_name: null, similarity_fn_name: 'cosine' },
};
let n = 0;
const written = (variant: SentenceVariant = published, options = {}) =>
  writeSentenceModel(join(folder, `${n++}`), gguf, variant, options);

function largest(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length || a.length === 0) return NaN;
  return a.reduce((most, x, i) => (Math.abs(x - (b[i] ?? NaN)) <= most ? most : Math.abs(x - (b[i] ?? NaN))), 0);
}

function leastCosine(a: Float32Array, b: Float32Array, rows: number): number {
  const dim = a.length / rows;
  const cosines = Array.from({ length: rows }, (_, i) => {
    const [x, y] = [a, b].map((all) => all.subarray(i * dim, (i + 1) * dim)) as [Float32Array, Float32Array];
    return x.reduce((sum, value, at) => sum + value * (y[at] ?? NaN), 0) / (Math.hypot(...x) * Math.hypot(...y));
  });
  return Math.min(...cosines);
}

/** An adapter of the formulas that make_sentence.py has: what it adds to each matrix, by the names of GGUF's tensors, is 2 B A. */
const TARGETS = [
  ['self_attn', 'q_proj', 'attn_q', 64, 32],
  ['self_attn', 'v_proj', 'attn_v', 64, 16],
  ['mlp', 'down_proj', 'ffn_down', 32, 64],
] as const;

function writeAdapter(to: string, extra: Record<string, Float32Array> = {}): Map<string, Float32Array> {
  const tensors: Parameters<typeof safetensors>[0] & Map<string, unknown> = new Map();
  const added = new Map<string, Float32Array>();
  const store = (name: string, shape: number[], values: Float32Array) =>
    tensors.set(`base_model.model.${name}`, { dtype: 'F32', shape, data: Buffer.from(values.buffer as ArrayBuffer) });
  for (let layer = 0; layer < LAYERS; ++layer) {
    for (const [t, [part, module, tensor, into, out]] of TARGETS.entries()) {
      const a = pattern(4, into, [31, 17, 7 * layer + t, 13, 64]);
      const b = pattern(out, 4, [19, 5, layer + t, 11, 32]);
      store(`layers.${layer}.${part}.${module}.lora_A.weight`, [4, into], a);
      store(`layers.${layer}.${part}.${module}.lora_B.weight`, [out, 4], b);
      const delta = Float32Array.from({ length: out * into }, (_, at) => {
        const [i, j] = [Math.floor(at / into), at % into];
        return 2 * [0, 1, 2, 3].reduce((sum, r) => sum + b[i * 4 + r]! * a[r * into + j]!, 0);
      });
      added.set(`blk.${layer}.${tensor}.weight`, delta);
    }
  }
  for (const [name, values] of Object.entries(extra)) store(`${name}.weight`, [values.length], values);
  mkdirSync(to);
  writeFileSync(join(to, 'adapter_model.safetensors'), safetensors(tensors));
  const saved = Object.keys(extra);
  const config = {
    peft_type: 'LORA',
    r: 4,
    lora_alpha: 8,
    bias: 'none',
    ...(saved.length > 0 && { modules_to_save: saved }),
  };
  writeFileSync(join(to, 'adapter_config.json'), JSON.stringify(config));
  return added;
}

describe('sentence-transformers', () => {
  // Float32 in another order: rows of the last layer are some units large.
  test.each(golden.variants)('$name', async ({ name, task, adapter, ...variant }) => {
    const lora = join(folder, 'golden-adapter');
    if (adapter) writeAdapter(lora);
    await withModel(
      async (gemma) => {
        const { pooling, normalize, causal = false } = variant;
        expect(gemma.info.config).toMatchObject({ pooling, normalizedEmbeddings: normalize, encoder: !causal });
        const options = { truncate: true, ...(task !== undefined && { task }), ...(adapter && { adapter: 'lora' }) };
        const { data: got } = await gemma.embed(texts, options);
        const want = ofGolden.f32(name);
        const size = want.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
        expect(largest(got, want)).toBeLessThan(5e-6 * Math.max(1, size));
        expect(leastCosine(got, want, texts.length)).toBeGreaterThan(0.99999);
      },
      { kvCache: 'f32', ...(adapter && { adapters: { lora } }) }, // a decoder keeps halves unless it is told
      written(variant),
    );
  });

  test('EmbeddingGemma as it is published, in every type and in shards, is its GGUF to the bit', async () => {
    const tensors = new Tensors('embedding.safetensors');
    const all = async (model: string) =>
      withModel(
        async (gemma) => {
          const rows = [];
          for (const task of [undefined, 'query', 'document']) {
            const { data: got } = await gemma.embed(embedding.texts, task === undefined ? {} : { task });
            expect(largest(got, tensors.f32(`${task ?? 'plain'}.embedding`))).toBeLessThan(5e-6);
            rows.push(Buffer.from(got.buffer).toString('base64'));
          }
          return rows;
        },
        {},
        model,
      );
    const want = await all(gguf);
    for (const dtype of ['F16', 'F32', 'BF16'] as const) expect(await all(written(published, { dtype }))).toEqual(want);
    expect(await all(written(published, { shards: 3 }))).toEqual(want);
    const path = written();
    expect(await all(join(path, 'config.json'))).toEqual(want);
    const [ofFolder, ofFile] = [await Gemma.inspect(path), await Gemma.inspect(gguf)];
    const anything = expect.any(String) as string;
    expect(ofFolder.config).toEqual({ ...ofFile.config, name: anything, size: anything });
    expect(ofFolder).toMatchObject({ architecture: 'gemma3_text', parameters: ofFile.parameters, outputBytes: 0 });
  });

  test('a text that is read in parts has the same embedding, whatever the pooling', async () => {
    const text = 'x '.repeat(90);
    for (const { pooling } of golden.variants.slice(0, 5)) {
      const path = written({ pooling, normalize: true, causal: true });
      const of = (batchSize: number) =>
        withModel(async (gemma) => (await gemma.embed([text, 'y', text])).data, { batchSize }, path);
      expect(await of(7)).toEqual(await of(512));
      rmSync(path, { recursive: true });
    }
  });

  test('in 8 bits, made while it is loaded', async () => {
    await withModel(
      async (gemma) => {
        const { data: got } = await gemma.embed(embedding.texts);
        const want = new Tensors('embedding.safetensors').f32('plain.embedding');
        expect(leastCosine(got, want, embedding.texts.length)).toBeGreaterThan(0.999);
        expect(got).not.toEqual(want);
      },
      { quantize: 'q8_0' },
      written(),
    );
  });

  test('a length of its own', async () => {
    const text = embedding.texts[embedding.cut.text] as string;
    const path = written({ ...published, length: { max_seq_length: 16 } });
    await withModel(
      async (gemma) => {
        expect(gemma.info).toMatchObject({ contextSize: 16, config: { trainedContext: 16 } });
        const want = new Tensors('embedding.safetensors').f32('cut.embedding');
        expect(largest((await gemma.embed(text, { truncate: true })).data, want)).toBeLessThan(5e-6);
        expect(await rejection(gemma.embed(text))).toMatchObject({
          code: 'ERR_CONTEXT_FULL',
          detail: 'CONTEXT_OVERFLOW',
        });
      },
      {},
      path,
    );
    expect(await rejection(Gemma.load(path, { contextSize: 17 }))).toMatchObject({ detail: 'CONTEXT_SIZE' });
    // Version 6 leaves it to the tokenizer.
    writeFileSync(join(path, 'sentence_bert_config.json'), JSON.stringify({ transformer_task: 'feature-extraction', modality_config: { text: { method: 'forward' } } })); // prettier-ignore
    writeFileSync(join(path, 'tokenizer_config.json'), JSON.stringify({ bos_token: '<bos>', eos_token: '<eos>', model_max_length: 40 })); // prettier-ignore
    expect((await Gemma.inspect(path)).config.trainedContext).toBe(40);
    writeFileSync(join(path, 'tokenizer_config.json'), `{"bos_token":"<bos>","model_max_length":${10n ** 30n}}`);
    expect((await Gemma.inspect(path)).config.trainedContext).toBe(2048);
  });

  test('the tokens around a text: the configuration counts before the tokenizer', async () => {
    const path = written();
    const count = () => withModel(async (gemma) => (await gemma.embed('')).usage.inputTokens, {}, path);
    expect(await count()).toBe(2);
    const configure = (fields: object) =>
      writeFileSync(
        join(path, 'tokenizer_config.json'),
        JSON.stringify({ bos_token: '<bos>', eos_token: '<eos>', ...fields }),
      );
    configure({ add_bos_token: true, add_eos_token: false });
    expect(await count()).toBe(1);
    configure({ add_bos_token: false, add_eos_token: true });
    expect(await rejection(Gemma.load(path))).toMatchObject({ code: 'ERR_UNSUPPORTED_MODEL', detail: 'TOKENIZER' });
  });
});

describe('prompts', () => {
  test('names of the folder, built-in ones, a text of the call', async () => {
    const prompts = { prompts: { query: 'find: ', STS: 'like: ', plain: null, __proto__x: 'y' } };
    await withModel(
      async (gemma) => {
        const { prompts: known } = gemma.info;
        expect(known).toMatchObject({
          query: 'find: ',
          STS: 'like: ',
          plain: '',
          clustering: 'task: clustering | query: ',
        });
        expect(gemma.info.defaultPrompt).toBeUndefined();
        for (const [task, prompt] of Object.entries(known)) {
          const want = await gemma.embed(`${prompt}x`);
          expect((await gemma.embed('x', { task })).data).toEqual(want.data);
          expect((await gemma.embed('x', { prompt })).data).toEqual(want.data);
        }
        expect((await gemma.embed('x', { task: 'document', title: 'A' })).data).toEqual(
          (await gemma.embed('title: A | text: x')).data,
        );
        const wrong = await rejection(gemma.embed('x', { task: 'constructor' }));
        expect(wrong).toBeInstanceOf(RangeError);
        expect((wrong as Error).message).toMatch(/^task: expected one of .*STS.*, found/);
        expect(await rejection(gemma.embed('x', { task: 'STS', prompt: 'y' }))).toBeInstanceOf(TypeError);
        expect(await rejection(gemma.embed('x', { prompt: 5 as unknown as string }))).toBeInstanceOf(TypeError);
      },
      {},
      written({ ...published, prompts }),
    );
  });

  test('a default, and how to leave it out', async () => {
    const prompts = { prompts: { document: 'passage: ' }, default_prompt_name: 'document' };
    await withModel(
      async (gemma) => {
        expect(gemma.info).toMatchObject({ defaultPrompt: 'document' });
        const bare = (await gemma.embed('x', { prompt: '' })).data;
        expect((await gemma.embed('x')).data).toEqual((await gemma.embed('passage: x', { prompt: '' })).data);
        expect((await gemma.embed('x')).data).not.toEqual(bare);
        const titled = await rejection(gemma.embed('x', { task: 'document', title: 'A' }));
        expect(titled).toBeInstanceOf(TypeError);
        expect((titled as Error).message).toMatch(/no place for one/);
      },
      {},
      written({ ...published, prompts }),
    );
  });

  test.each([
    ['no JSON', '{', 'BAD_PROMPTS'],
    ['a list', '[]', 'BAD_PROMPTS'],
    ['a list of prompts', '{"prompts":["x"]}', 'BAD_PROMPTS'],
    ['a prompt that is no text', '{"prompts":{"query":5}}', 'BAD_PROMPTS'],
    ['a prompt that is long', JSON.stringify({ prompts: { query: 'x'.repeat(10_001) } }), 'BAD_PROMPTS'],
    ['many', JSON.stringify({ prompts: Object.fromEntries(Array.from({ length: 1001 }, (_, i) => [i, 'x'])) }), 'BAD_PROMPTS'], // prettier-ignore
    ['a default that is none of them', '{"prompts":{},"default_prompt_name":"toString"}', 'BAD_PROMPTS'],
    ['another kind of model', '{"model_type":"SparseEncoder"}', 'SENTENCE_MODULE'],
    ['a huge file', `"${'x'.repeat(1 << 20)}"`, 'FILE_TOO_LARGE'],
  ])('wrong: %s', async (_, text, detail) => {
    const path = written({ pooling: 'mean', normalize: true });
    writeFileSync(join(path, 'config_sentence_transformers.json'), text);
    expect(await rejection(Gemma.load(path))).toMatchObject({ detail });
  });
});

describe('a folder without its dense layers', () => {
  test('none of them, and no modules.json', async () => {
    const means = new Tensors('embedding.safetensors').f32('plain.pooled');
    for (const [without, hint] of [
      [['2_Dense', '3_Dense'], /lacks 2_Dense, 3_Dense.*fetch/],
      [['modules.json', '1_Pooling', '2_Dense', '3_Dense'], /no modules\.json.*fetch all/],
    ] as const) {
      const path = written();
      for (const name of without) rmSync(join(path, name), { recursive: true });
      const error = await rejection(Gemma.load(path));
      expect(error).toMatchObject({ code: 'ERR_UNSUPPORTED_MODEL', detail: 'NO_DENSE_LAYERS' });
      expect((error as Error).message).toMatch(hint);
      expect((error as Error).message).toMatch(/denseLayers: 'optional'/);
      expect((await Gemma.inspect(path)).config).toMatchObject({ encoder: true, denseLayers: false });
      await withModel(
        async (gemma) => {
          const { data: got } = await gemma.embed(embedding.texts, { normalize: false });
          expect(largest(got, means)).toBeLessThan(1e-5);
        },
        { denseLayers: 'optional' },
        path,
      );
    }
  });

  test('a model that has none is whole', async () => {
    await withModel(
      async (gemma) => expect(gemma.info.config.denseLayers).toBe(false),
      {},
      written({ pooling: 'mean', normalize: true }),
    );
  });

  test.each([
    ['one of two', '3_Dense'],
    ['weights', '3_Dense/model.safetensors'],
    ['a configuration', '2_Dense/config.json'],
    ['the pooling', '1_Pooling'],
  ])('%s', async (_, name) => {
    const path = written();
    rmSync(join(path, name), { recursive: true });
    const error = await rejection(Gemma.load(path, { denseLayers: 'optional' }));
    expect(error).toMatchObject({ code: 'ERR_FILE', detail: 'MISSING_MODULE' });
    expect((error as Error).message).toContain(name);
  });

  test('weights that are a program', async () => {
    const path = written();
    renameSync(join(path, '2_Dense', 'model.safetensors'), join(path, '2_Dense', 'pytorch_model.bin'));
    const error = await rejection(Gemma.load(path));
    expect(error).toMatchObject({ code: 'ERR_FILE', detail: 'MISSING_MODULE' });
    expect((error as Error).message).toMatch(/pytorch_model\.bin.*save_pretrained/);
  });
});

describe('what is wrong with modules', () => {
  const invalid = (detail: string) => ({ code: 'ERR_SAFETENSORS_INVALID', detail });
  const refused = { code: 'ERR_UNSUPPORTED_MODEL', detail: 'SENTENCE_MODULE' };
  const part = (type: string, path: string) => ({ type: `sentence_transformers.models.${type}`, path });
  const sound = [part('Transformer', ''), part('Pooling', '1_Pooling'), part('Dense', '2_Dense')];

  test.each<[string, unknown, object, RegExp]>([
    ['no JSON', '[', invalid('BAD_MODULES'), /modules\.json/],
    ['an object', {}, invalid('BAD_MODULES'), /array/],
    ['nothing', [], refused, /Pooling/],
    ['numbers', [1], invalid('BAD_MODULES'), /object/],
    ['a module without a path', [{ type: 'sentence_transformers.models.Transformer' }], invalid('BAD_MODULES'), /path/],
    ['a path that is no text', [{ ...part('Transformer', ''), path: 5 }], invalid('BAD_MODULES'), /path/],
    ...[
      '../2_Dense',
      '/etc',
      'C:\\x',
      '2_Dense/../..',
      '.',
      '..',
      '2_Dense/',
      '2_Dense\\x',
      './2_Dense',
      '2_\u0000',
      '\u0665_Dense',
      'x',
      '2_',
      '99999_x',
      `2_${'x'.repeat(65)}`,
    ].map(
      // prettier-ignore
      (path): [string, unknown, object, RegExp] => [
        `the path ${JSON.stringify(path)}`,
        [...sound.slice(0, 2), part('Dense', path)],
        invalid('BAD_MODULES'),
        /expected the name of a folder/,
      ],
    ),
    ['thousands', Array.from({ length: 5000 }, () => sound[2]), invalid('BAD_MODULES'), /more than 64/],
    ['many dense layers', [...sound, ...Array.from({ length: 20 }, () => sound[2])], refused, /more than 16 dense/],
    ['a program', [{ type: 'custom_st.Transformer', path: '' }], refused, /custom_st.*program/],
    ['another first module', [part('CLIPModel', ''), ...sound.slice(1)], refused, /CLIPModel/],
    ['no pooling', [sound[0], sound[2]], refused, /Dense/],
    ['two poolings', [...sound.slice(0, 2), sound[1]], refused, /Pooling/],
    [
      'what comes after Normalize',
      [...sound.slice(0, 2), part('Normalize', '2_Normalize'), sound[2]],
      refused,
      /Dense/,
    ],
    ['LayerNorm', [...sound, part('LayerNorm', '3_LayerNorm')], refused, /LayerNorm/],
    ['the model in a folder', [part('Transformer', '0_Transformer'), ...sound.slice(1)], refused, /0_Transformer/],
    [
      'a dense layer in the root',
      [...sound.slice(0, 2), part('Dense', '')],
      invalid('BAD_MODULES'),
      /folder of its own/,
    ],
    ['a dense layer of another width twice', [...sound, sound[2]], invalid('BAD_HPARAM'), /expected 96/],
    ['arguments', [{ ...sound[0], kwargs: ['task'] }, ...sound.slice(1)], refused, /kwargs/],
    ['a key twice', '[{"type":"sentence_transformers.models.Transformer","path":"","path":""}]', invalid('DUPLICATE'), /path/], // prettier-ignore
    ['deep nesting', '['.repeat(1e5), invalid('BAD_MODULES'), /modules\.json/],
    ['a huge file', `"${'x'.repeat(1 << 20)}"`, { code: 'ERR_FILE', detail: 'FILE_TOO_LARGE' }, /modules\.json/],
  ])('%s', async (_, modules, expected, message) => {
    const path = written({ ...published, dense: [IDENTITY] });
    writeFileSync(join(path, 'modules.json'), typeof modules === 'string' ? modules : JSON.stringify(modules));
    const error = await rejection(Gemma.load(path));
    expect(error).toMatchObject(expected);
    expect((error as Error).message).toMatch(message);
    rmSync(path, { recursive: true });
  });

  test.each<[string, string, unknown, object, RegExp]>([
    ['several poolings', '1_Pooling/config.json', { pooling_mode: ['mean', 'max'] }, refused, /several/],
    ['several poolings of old', '1_Pooling/config.json', { pooling_mode_mean_tokens: true, pooling_mode_max_tokens: true }, refused, /several/], // prettier-ignore
    ['an unknown pooling', '1_Pooling/config.json', { pooling_mode: 'attention' }, refused, /"attention"/],
    ['a pooling without the prompt', '1_Pooling/config.json', { include_prompt: false }, refused, /include_prompt/],
    [
      'a pooling of another width',
      '1_Pooling/config.json',
      { word_embedding_dimension: 63 },
      invalid('BAD_HPARAM'),
      /64.*63/,
    ],
    ['a pooling that is a list', '1_Pooling/config.json', [], invalid('BAD_HPARAM'), /1_Pooling/],
    ['an activation', '2_Dense/config.json', { in_features: 64, out_features: 96, activation_function: 'os.system' }, refused, /os\.system/], // prettier-ignore
    ['an activation of torch', '2_Dense/config.json', { in_features: 64, out_features: 96, activation_function: 'torch.nn.modules.activation.Mish' }, refused, /Mish/], // prettier-ignore
    ['another input', '2_Dense/config.json', { in_features: 64, out_features: 96, module_input_name: 'token_embeddings' }, refused, /token_embeddings/], // prettier-ignore
    [
      'a residual',
      '2_Dense/config.json',
      { in_features: 64, out_features: 96, use_residual: true },
      refused,
      /use_residual/,
    ],
    ['no width', '2_Dense/config.json', { in_features: 64 }, invalid('BAD_HPARAM'), /out_features/],
    [
      'a huge width',
      '2_Dense/config.json',
      { in_features: 64, out_features: 2 ** 40 },
      invalid('BAD_HPARAM'),
      /out_features/,
    ],
    ['another width', '2_Dense/config.json', { in_features: 64, out_features: 95, bias: false }, invalid('BAD_TENSOR'), /\[95, 64\].*\[96, 64\]/], // prettier-ignore
    [
      'a bias that is not there',
      '2_Dense/config.json',
      { in_features: 64, out_features: 96 },
      invalid('BAD_TENSOR'),
      /linear\.bias/,
    ],
    ['lower case', 'sentence_bert_config.json', { do_lower_case: true }, refused, /do_lower_case/],
    ['no length', 'sentence_bert_config.json', { max_seq_length: 0 }, invalid('BAD_HPARAM'), /max_seq_length/],
    ['another task', 'sentence_bert_config.json', { transformer_task: 'fill-mask' }, refused, /fill-mask/],
    ['no texts', 'sentence_bert_config.json', { modality_config: { message: {} } }, refused, /modality_config/],
    ['another preparation', 'sentence_bert_config.json', { processing_kwargs: { text: { padding: true } } }, refused, /processing_kwargs/], // prettier-ignore
  ])('%s', async (_, file, content, expected, message) => {
    const path = written({ ...published, dense: [IDENTITY] });
    writeFileSync(join(path, file), JSON.stringify(content));
    const error = await rejection(Gemma.load(path));
    expect(error).toMatchObject(expected);
    expect((error as Error).message).toMatch(message);
    rmSync(path, { recursive: true });
  });

  test('weights', async () => {
    const path = written({ ...published, dense: [IDENTITY] });
    const file = join(path, '2_Dense', 'model.safetensors');
    const whole = readFileSync(file);
    const zeros = (dtype: string, bytes: number) => ({ dtype, shape: [96, 64], data: Buffer.alloc(96 * 64 * bytes) });
    const cases: [Buffer, object][] = [
      [whole.subarray(0, whole.length - 1), invalid('TRUNCATED')],
      [Buffer.alloc(0), invalid('TRUNCATED')],
      [safetensors(new Map([['linear.bias', zeros('F32', 4)]])), invalid('BAD_TENSOR')],
      [safetensors(new Map([['linear.weight', zeros('F32', 4)], ['more', zeros('F32', 4)]])), invalid('BAD_TENSOR')], // prettier-ignore
      [safetensors(new Map([['linear.weight', zeros('F64', 8)]])), { code: 'ERR_UNSUPPORTED_MODEL', detail: 'TENSOR_TYPE' }], // prettier-ignore
    ];
    for (const [bytes, expected] of cases) {
      writeFileSync(file, bytes);
      const error = await rejection(Gemma.load(path));
      expect(error).toMatchObject(expected);
      expect((error as Error).message).toContain('2_Dense');
    }
  });

  test('links that go in a circle, folders for files, files for folders', async () => {
    const circle = written({ ...published, dense: [IDENTITY] });
    rmSync(join(circle, '2_Dense'), { recursive: true });
    symlinkSync('2_Dense', join(circle, '2_Dense'));
    expect(await rejection(Gemma.load(circle))).toMatchObject({ code: 'ERR_FILE' });
    const up = written({ ...published, dense: [IDENTITY] });
    rmSync(join(up, '2_Dense', 'model.safetensors'));
    symlinkSync('..', join(up, '2_Dense', 'model.safetensors'));
    expect(await rejection(Gemma.load(up))).toMatchObject({ code: 'ERR_FILE' });
    const flat = written({ ...published, dense: [IDENTITY] });
    rmSync(join(flat, '2_Dense'), { recursive: true });
    copyFileSync(join(flat, 'config.json'), join(flat, '2_Dense'));
    expect(await rejection(Gemma.load(flat))).toMatchObject({ code: 'ERR_FILE' });
    const odd = written();
    mkdirSync(join(odd, 'config_sentence_transformers.json.d'));
    rmSync(join(odd, 'config_sentence_transformers.json'));
    renameSync(join(odd, 'config_sentence_transformers.json.d'), join(odd, 'config_sentence_transformers.json'));
    expect(await rejection(Gemma.load(odd))).toMatchObject({ code: 'ERR_FILE' });
  });

  test('a length that the model has no positions for', async () => {
    const path = written({ ...published, length: { max_seq_length: 1 << 20 } });
    expect((await Gemma.inspect(path)).config.trainedContext).toBe(2048);
  });
});

describe('adapters', () => {
  const rows = async (model: string, adapter?: string, options = {}) =>
    withModel(
      async (gemma) => (await gemma.embed(embedding.texts, adapter === undefined ? {} : { adapter: 'lora' })).data,
      { kvCache: 'f32', ...(adapter !== undefined && { adapters: { lora: adapter } }), ...options },
      model,
    );

  test('an adapter is what weights with it merged are, its norm included', async () => {
    const norm = pattern(1, DIM, [0, 29, 0, 17, 16]);
    const lora = join(folder, 'with-norm');
    const added = writeAdapter(lora, { norm });
    const merged = derive(gguf, join(folder, 'merged.gguf'), {
      type: 'f32',
      change: (name, values) => {
        added.get(name)?.forEach((x, i) => (values[i]! += x));
        if (name === 'output_norm.weight') norm.forEach((x, i) => (values[i] = 1 + x));
      },
    });
    const want = await rows(merged);
    expect(largest(await rows(gguf, lora), want)).toBeLessThan(5e-6);
    expect(largest(await rows(written(), lora), want)).toBeLessThan(5e-6);
    expect(largest(await rows(gguf, lora, { batchSize: 1 }), want)).toBeLessThan(5e-6);
    expect(largest(await rows(gguf), want)).toBeGreaterThan(0.01);
  });

  test('company: calls with different adapters are each alone, to the bit; what is unloaded stays for them', async () => {
    const lora = join(folder, 'company');
    writeAdapter(lora);
    await withModel(
      async (gemma) => {
        const uses = [undefined, 'a', { a: 0.5 }, { a: 1, b: -0.5 }, {}] as const;
        const many = Array.from({ length: 100 }, (_, i) => `${i} `.repeat(1 + (i % 40)));
        const ask = async (adapter: (typeof uses)[number]) =>
          Buffer.from((await gemma.embed(many, adapter === undefined ? {} : { adapter })).data.buffer).toString(
            'base64',
          );
        const alone = [];
        for (const use of uses) alone.push(await ask(use));
        expect(new Set(alone).size).toBe(uses.length - 1);
        const together = uses.map(ask);
        while (gemma.stats().running === 0) await new Promise(setImmediate);
        await gemma.unloadAdapter('b');
        expect(await Promise.all(together)).toEqual(alone);
        expect(await rejection(gemma.embed('x', { adapter: 'b' }))).toMatchObject({ detail: 'UNKNOWN_ADAPTER' });
        expect(await rejection(gemma.embed('x', { adapter: 5 as unknown as string }))).toBeInstanceOf(TypeError);
        expect(gemma.stats()).toMatchObject({ running: 0, waiting: 0, kvPagesInUse: 0 });
      },
      { adapters: { a: lora, b: lora }, threads: 2 },
      written(),
    );
  });
});
