// Checkpoints' folders become GGUF files: the tensors are those of the file that the folder was made of, to the bit, and so are logits.
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gemma, type QuantizeOptions } from '../../lib/index.js';
import { checkpointOf, readGguf, writeCheckpoint, writeSentenceModel, type Gguf } from './checkpoint.js';
import { outputs, TEXT } from './checkpoint-outputs.js';
import { cli, data, root, runNode, withModel } from './helpers.js';

const gguf = join(data, 'mm-a-f16.gguf');
const mmproj = join(data, 'mmproj-mm-a-f16.gguf');
const textGguf = join(data, 'text-a-f16.gguf');
const folder = mkdtempSync(join(tmpdir(), 'gemma-convert-'));
afterAll(() => rmSync(folder, { recursive: true }));

// Keys whose values must be those of the file that llama.cpp's converter wrote. Names and scores of tokens without merges differ.
const DIFFERENT = /^general\.(name|size_label)$|^tokenizer\.ggml\.(scores|token_type|tokens)$|rope\.freq_base_swa$|^tokenizer\.chat_template$|projector\.scale_factor|^general\.sampling/; // prettier-ignore
function expectSame(found: Gguf, expected: Gguf): void {
  expect([...found.tensors.keys()].sort()).toEqual([...expected.tensors.keys()].sort());
  for (const [name, tensor] of expected.tensors) {
    const own = found.tensors.get(name);
    expect({ name, dtype: own?.dtype, shape: own?.shape }).toEqual({ name, dtype: tensor.dtype, shape: tensor.shape });
    expect(own?.data.equals(tensor.data)).toBe(true);
  }
  for (const [key, value] of expected.keys) {
    if (!DIFFERENT.test(key)) expect([key, found.keys.get(key)]).toEqual([key, value]);
  }
}

test.each([
  ['today', 'new', 'F16', 1],
  ['2025', 'old', 'F16', 1],
  ['three files', 'new', 'F16', 3],
  ['float32', 'new', 'F32', 1],
] as const)('a folder with a vision encoder: %s', async (name, layout, dtype, shards) => {
  const from = writeCheckpoint(join(folder, name), checkpointOf(gguf, mmproj, { layout, dtype }), shards);
  const path = join(folder, `${name}.gguf`);
  const result = await Gemma.quantize(from, path, { type: 'f16' });
  const beside = join(folder, `mmproj-${name}.gguf`);
  expect(result.bytes).toBe(statSync(path).size);
  expect(result.mmproj).toMatchObject({ path: beside, bytes: statSync(beside).size });
  expectSame(readGguf(path), readGguf(gguf));
  expectSame(readGguf(beside), readGguf(mmproj));
  const options = { visionPrecision: 'exact' };
  const expected = await outputs(gguf, { mmproj, ...options }, true);
  expect(await outputs(path, options, true)).toEqual(expected);
  expect(await outputs(from, options, true)).toEqual(expected);
});

describe('text alone', () => {
  const from = join(folder, 'text');
  const sound = checkpointOf(textGguf, undefined, { layout: 'text' });
  let n = 0;
  const out = () => join(folder, `text-${n++}.gguf`);
  beforeAll(() => void writeCheckpoint(from, sound));

  test.each(['f32', 'f16', 'bf16', 'q8_0', 'q4_k_m'] as const)('%s: as the file becomes', async (type) => {
    const [ofFolder, ofFile] = [out(), out()];
    const result = await Gemma.quantize(from, ofFolder, { type });
    await Gemma.quantize(textGguf, ofFile, { type });
    expect(result.mmproj).toBeUndefined();
    expect(result.types).toEqual((await Gemma.quantize(textGguf, ofFile, { type, overwrite: true })).types);
    expect(await outputs(ofFolder, {}, false)).toEqual(await outputs(ofFile, {}, false));
    if (type === 'f16') expectSame(readGguf(ofFolder), readGguf(textGguf));
  });

  test('the chat template, defaults of sampling and tokens that end an answer go along', async () => {
    const path = writeCheckpoint(join(folder, 'said'), sound);
    const template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}";
    writeFileSync(join(path, 'chat_template.jinja'), template);
    writeFileSync(
      join(path, 'generation_config.json'),
      JSON.stringify({ eos_token_id: [1, 6, 7], top_k: 64, top_p: 0.95, temperature: null, repetition_penalty: 1.1 }),
    );
    const file = out();
    await Gemma.quantize(path, file, { type: 'f16' });
    const { keys } = readGguf(file);
    expect(Object.fromEntries(keys)).toMatchObject({
      'general.architecture': 'gemma3',
      'general.name': 'said',
      'tokenizer.chat_template': template,
      'tokenizer.ggml.eos_token_id': 1,
      'tokenizer.ggml.eot_token_id': 6,
      'tokenizer.ggml.eos_token_ids': [6, 7],
      'general.sampling.top_k': 64,
      'general.sampling.top_p': Math.fround(0.95),
      'general.sampling.penalty_repeat': Math.fround(1.1),
    });
    expect(keys.has('general.sampling.temp')).toBe(false);
    const [ofFolder, ofFile] = await Promise.all(
      [path, file].map((model) => withModel(async (gemma) => ({ ...gemma.info.chat, n: await gemma.countTokens([{ role: 'user', content: 'x' }]) }), {}, model)), // prettier-ignore
    );
    expect(ofFile).toMatchObject({ template: 'file', n: ofFolder?.n });
  });

  test('pieces and their kinds are those of the file', async () => {
    const file = out();
    await Gemma.quantize(from, file, { type: 'f16' });
    const [found, expected] = [readGguf(file).keys, readGguf(textGguf).keys];
    expect(found.get('tokenizer.ggml.tokens')).toEqual(expected.get('tokenizer.ggml.tokens'));
  });

  test.each<[string, number, object?]>([
    ['query_pre_attn_scalar', 144],
    ['num_hidden_layers', 7, { layer_types: Array.from({ length: 7 }, () => 'full_attention') }],
  ])('what no key can say is refused: %s', async (key, value, more = {}) => {
    const path = writeCheckpoint(join(folder, `odd-${key}`), { ...sound, config: { ...sound.config, [key]: value, ...more } }); // prettier-ignore
    await expect(Gemma.quantize(path, out(), { type: 'f16' })).rejects.toMatchObject({
      code: 'ERR_UNSUPPORTED_MODEL',
      detail: 'NOT_IN_GGUF',
    });
  });

  test('layers in another order, and all windows', async () => {
    for (const types of ['SSFSSFS', 'FSSSSSS', 'SSSSSSS', 'SFSFSFS']) {
      const layers = [...types].map((kind) => (kind === 'S' ? 'sliding_attention' : 'full_attention'));
      const path = writeCheckpoint(join(folder, 'order'), {
        ...sound,
        config: { ...sound.config, layer_types: layers },
      });
      const file = out();
      await Gemma.quantize(path, file, { type: 'f16' });
      const logits = (model: string) => withModel((gemma) => gemma.logits(TEXT.repeat(3), { raw: true }), {}, model);
      expect((await logits(file)).data).toEqual((await logits(path)).data);
    }
  });

  test('what cannot be is refused, and nothing is left in place', async () => {
    const refused = async (options: Partial<QuantizeOptions>, input = from, path = join(folder, 'no.gguf')) => {
      const error: unknown = await Gemma.quantize(input, path, { type: 'f16', ...options }).catch((e: unknown) => e);
      return (error as { detail?: string }).detail;
    };
    expect(await refused({ mmprojOutput: join(folder, 'x.gguf') })).toBe('NO_MMPROJ');
    expect(await refused({ overwrite: true }, from, join(from, 'model.safetensors'))).toBe('SAME_FILE');
    expect(await refused({ overwrite: true }, from, join(from, 'tokenizer.json'))).toBe('SAME_FILE');
    const both = writeCheckpoint(join(folder, 'both'), checkpointOf(gguf, mmproj, { layout: 'new' }));
    expect(await refused({ mmprojOutput: join(folder, 'no.gguf') }, both)).toBe('SAME_FILE');
    expect(await refused({ mmprojOutput: join(folder, 'no.gguf.part') }, both)).toBe('SAME_FILE');
    const part = join(folder, 'input.gguf.part');
    copyFileSync(textGguf, part);
    expect(await refused({}, part, join(folder, 'input.gguf'))).toBe('SAME_FILE');
    expect(readFileSync(part).equals(readFileSync(textGguf))).toBe(true);
    writeFileSync(join(folder, 'mmproj-there.gguf'), 'x');
    expect(await refused({}, both, join(folder, 'there.gguf'))).toBe('FILE_EXISTS');
    expect(existsSync(join(folder, 'there.gguf'))).toBe(false);
    rmSync(join(from, 'tokenizer.json'));
    expect(await refused({})).toBe('NO_TOKENIZER');
    writeCheckpoint(from, sound);
    expect(existsSync(join(folder, 'no.gguf'))).toBe(false);
    await expect(Gemma.quantize(from, out(), { type: 'f16', mmprojType: 'q3' as 'f16' })).rejects.toThrow('mmprojType');
    await expect(Gemma.quantize(from, out(), { type: 'f16', mmprojOutput: true as false })).rejects.toThrow(TypeError);
  });

  test('values that have no place in a type are an error', async () => {
    const tensors = new Map(sound.tensors);
    const name = 'model.layers.1.mlp.up_proj.weight';
    const wide = tensors.get(name)!;
    const values = new Float32Array(wide.data.length / 2).fill(1);
    values[5] = 1e6;
    tensors.set(name, { ...wide, dtype: 'F32', data: Buffer.from(values.buffer) });
    const path = writeCheckpoint(join(folder, 'wide'), { ...sound, tensors });
    await expect(Gemma.quantize(path, out(), { type: 'f16' })).rejects.toMatchObject({ code: 'ERR_NON_FINITE' });
    await Gemma.quantize(path, out(), { type: 'bf16' });
  });
});

describe('an embedding model', () => {
  const embedding = join(data, 'embedding-f16.gguf');
  const identity = { activation: 'Identity', bias: false };
  const usual = { pooling: 'mean', normalize: true, dense: [identity, identity] } as const;
  const vectors = (model: string) => withModel(async (gemma) => (await gemma.embed([TEXT, 'two'])).data, {}, model);

  test('becomes the file that its folder was made of, with its dense layers', async () => {
    const from = writeSentenceModel(join(folder, 'embedding'), embedding, { ...usual, dense: [...usual.dense] });
    const path = join(folder, 'embedding.gguf');
    await Gemma.quantize(from, path, { type: 'f16' });
    expectSame(readGguf(path), readGguf(embedding));
    expect(await vectors(path)).toEqual(await vectors(embedding));
    expect(await vectors(path)).toEqual(await vectors(from));
  });

  test('has the tokens around a text that the tokenizer of the folder puts there', async () => {
    const bare = { ...usual, dense: [...usual.dense], eos: false };
    const from = writeSentenceModel(join(folder, 'without-eos'), embedding, bare);
    const path = join(folder, 'without-eos.gguf');
    await Gemma.quantize(from, path, { type: 'f16' });
    expect(await vectors(path)).toEqual(await vectors(from));
    expect(await vectors(path)).not.toEqual(await vectors(embedding));
  });

  test.each([
    ['other pooling', { ...usual, pooling: 'cls' }],
    ['a bias', { ...usual, dense: [identity, { activation: 'Identity', bias: true }] }],
    ['an activation', { ...usual, dense: [{ activation: 'Tanh', bias: false }, identity] }],
    ['one dense layer', { ...usual, dense: [identity] }],
    ['embeddings of any length', { ...usual, normalize: false }],
  ])('what no key can say is refused: %s', async (name, variant) => {
    const from = writeSentenceModel(join(folder, name), embedding, variant);
    await expect(Gemma.quantize(from, join(folder, 'none.gguf'), { type: 'f16' })).rejects.toMatchObject({
      code: 'ERR_UNSUPPORTED_MODEL',
      detail: 'NOT_IN_GGUF',
    });
  });
});

test('a run that was killed goes on, with both files, to the same bytes', async () => {
  const from = writeCheckpoint(join(folder, 'killed'), checkpointOf(gguf, mmproj, { layout: 'new' }));
  const whole = join(folder, 'whole.gguf');
  await Gemma.quantize(from, whole, { type: 'q8_0' });
  for (const fraction of [0, 0.4, 0.7]) {
    const path = join(folder, `killed-${fraction}.gguf`);
    const script = `
      const { Gemma } = require(${JSON.stringify(root)});
      Gemma.quantize(${JSON.stringify(from)}, ${JSON.stringify(path)}, { type: 'q8_0', threads: 1,
        onProgress: (f) => { if (f >= ${fraction}) process.kill(process.pid, 'SIGKILL'); } });`;
    expect((await runNode(['-e', script])).signal).toBe('SIGKILL');
    await Gemma.quantize(from, path, { type: 'q8_0', overwrite: true });
    for (const [one, other] of [
      [path, whole],
      [join(folder, `mmproj-killed-${fraction}.gguf`), join(folder, 'mmproj-whole.gguf')],
    ] as const) {
      // prettier-ignore
      expect(readFileSync(one).equals(readFileSync(other))).toBe(true);
    }
  }
});

test('the command line', async () => {
  const from = writeCheckpoint(join(folder, 'cli'), checkpointOf(gguf, mmproj, { layout: 'new' }));
  const path = join(folder, 'cli.gguf');
  const sees = join(folder, 'cli-sees.gguf');
  const run = async (...args: string[]) => {
    const { code, stdout } = await runNode([cli, 'quantize', from, path, '--json', '--overwrite', ...args]);
    return { code, ...(JSON.parse(stdout) as { mmproj?: unknown }) };
  };
  const written = await run('--type', 'q8_0', '--mmproj-out', sees, '--mmproj-type', 'bf16');
  expect(written).toMatchObject({ code: 0, path, mmproj: { path: sees } });
  expect((await run('--type', 'f16', '--no-mmproj-out')).mmproj).toBeUndefined();
});

// Bytes as llama-imatrix wrote them until 2025: int32 n, then of each tensor its name, n_calls and sums that are means times n_calls.
test('an importance matrix of the older format weighs like one of today', async () => {
  const today = join(folder, 'today.imatrix');
  await Gemma.importance(textGguf, 'A red circle is on the left of a blue square. '.repeat(40), today, {
    chunkSize: 64,
  });
  const { tensors } = readGguf(today);
  const parts: Buffer[] = [];
  const int = (value: number) => {
    const bytes = Buffer.alloc(4);
    bytes.writeInt32LE(value);
    parts.push(bytes);
  };
  const names = [...tensors.keys()].filter((name) => name.endsWith('.in_sum2'));
  int(names.length);
  for (const key of names) {
    const name = key.slice(0, -'.in_sum2'.length);
    const sums = tensors.get(key)!.data;
    const count = tensors.get(`${name}.counts`)!.data.readFloatLE();
    int(name.length);
    parts.push(Buffer.from(name));
    int(count);
    int(sums.length / 4);
    parts.push(sums);
  }
  int(3); // what follows: the last chunk, and the text's name
  int(4);
  parts.push(Buffer.from('text'));
  const older = join(folder, 'older.dat');
  const bytes = Buffer.concat(parts);
  writeFileSync(older, bytes);
  const files = ['today', 'older', 'without'].map((name) => join(folder, `${name}-weighted.gguf`)) as [string, string, string]; // prettier-ignore
  const options = { type: 'q4_0' } as const;
  await Gemma.quantize(textGguf, files[0], { ...options, importance: today });
  await Gemma.quantize(textGguf, files[1], { ...options, importance: older });
  await Gemma.quantize(textGguf, files[2], options);
  const [first, second, without] = files.map((file) => readFileSync(file)) as [Buffer, Buffer, Buffer];
  expect(second.equals(first)).toBe(true);
  expect(without.equals(first)).toBe(false);
  const detail = async (content: Buffer) => {
    writeFileSync(older, content);
    const failure = Gemma.quantize(textGguf, join(folder, 'no.gguf'), { ...options, importance: older });
    return ((await failure.catch((error: unknown) => error)) as { detail?: string }).detail;
  };
  for (const end of [4, 9, 30, bytes.length - 40])
    expect(await detail(bytes.subarray(0, end))).toBe('IMPORTANCE_DAMAGED');
  expect(await detail(Buffer.alloc(3))).toBe('NOT_AN_IMPORTANCE_MATRIX');
  expect(await detail(Buffer.alloc(64, 0xff))).toBe('NOT_AN_IMPORTANCE_MATRIX');
  const damaged = Buffer.from(bytes);
  damaged.writeFloatLE(-1, 4 + 4 + names[0]!.length - '.in_sum2'.length + 8);
  expect(await detail(damaged)).toBe('IMPORTANCE_DAMAGED');
});
