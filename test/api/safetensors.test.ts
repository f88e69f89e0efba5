// Checkpoints of Hugging Face: a folder computes what the same weights compute as GGUF, to the bit, whatever its layout; and every way
// in which its files can be wrong has its error.
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gemma } from '../../lib/index.js';
import { type Checkpoint, checkpointOf, file, safetensors, sentencePieceModel, writeCheckpoint } from './checkpoint.js';
import { outputs, TEXT } from './checkpoint-outputs.js';
import { data, withModel } from './helpers.js';

const gguf = join(data, 'mm-a-f16.gguf');
const mmproj = join(data, 'mmproj-mm-a-f16.gguf');
const textGguf = join(data, 'text-a-f16.gguf');
const folder = mkdtempSync(join(tmpdir(), 'gemma-checkpoint-'));
afterAll(() => rmSync(folder, { recursive: true }));

describe('a checkpoint computes what its weights as GGUF do, to the bit', () => {
  let ofGguf: Awaited<ReturnType<typeof outputs>>;
  const options = { visionPrecision: 'exact' };
  beforeAll(async () => {
    ofGguf = await outputs(gguf, { mmproj, ...options }, true);
  });

  test.each([
    ['today', 'new', 'F16', 1],
    ['2025', 'old', 'F16', 1],
    ['three files', 'new', 'F16', 3],
    ['float32', 'new', 'F32', 1],
  ] as const)('%s', async (name, layout, dtype, shards) => {
    const path = writeCheckpoint(join(folder, name), checkpointOf(gguf, mmproj, { layout, dtype }), shards);
    expect(await outputs(path, options, true)).toEqual(ofGguf);
    if (name === 'today') expect(await outputs(path, { ...options, mmap: false }, true)).toEqual(ofGguf);
  });

  test('a header that ends anywhere, and a file that is named itself', async () => {
    const checkpoint = checkpointOf(gguf, mmproj, { layout: 'new' });
    const path = writeCheckpoint(join(folder, 'odd'), checkpoint);
    for (const blanks of [1, 2]) {
      writeFileSync(join(path, 'model.safetensors'), safetensors(checkpoint.tensors, blanks));
      expect(await outputs(join(path, 'model.safetensors'), options, true)).toEqual(ofGguf);
    }
  });

  test('text alone', async () => {
    const path = writeCheckpoint(join(folder, 'text'), checkpointOf(textGguf, undefined, { layout: 'text' }));
    expect(await outputs(path, {}, false)).toEqual(await outputs(textGguf, {}, false));
    const [folderSummary, fileSummary] = [await Gemma.inspect(path), await Gemma.inspect(textGguf)];
    const anything = expect.any(String) as string;
    expect(folderSummary.config).toEqual({ ...fileSummary.config, name: anything, size: anything });
    expect(folderSummary).toMatchObject({ architecture: 'gemma3_text', parameters: fileSummary.parameters });
    // Norms are copies, as 1 + w.
    const norms = 4 * (7 * (4 * 64 + 2 * 32) + 64);
    const { weightsBytes } = await Gemma.estimate(textGguf);
    expect(await Gemma.estimate(path)).toMatchObject({ weightsBytes: weightsBytes + norms });
  });
});

test('tokenizer.model in place of tokenizer.json', async () => {
  const path = writeCheckpoint(join(folder, 'sentencepiece'), checkpointOf(textGguf, undefined, { layout: 'text' }));
  const texts = [TEXT, 'a  b\n\n\n\tc', '<h1>\u2581', '\u{1f600}\u0000', ' ', ''];
  const read = (model: string) =>
    withModel(
      async (gemma) => {
        const tokens = await Promise.all(texts.map((text) => gemma.tokenize(text)));
        const back = await Promise.all(tokens.map((ids) => gemma.detokenize(ids)));
        const { endTokens, imageToken, longestToken, textStart, textEnd, config } = gemma.info;
        const { vocabularySize } = config;
        return { tokens, back, endTokens, imageToken, longestToken, textStart, textEnd, vocabularySize };
      },
      {},
      model,
    );
  const ofGguf = await read(textGguf);
  expect(ofGguf.back).toEqual(texts.map((text) => text.replaceAll('\u2581', ' ')));
  rmSync(join(path, 'tokenizer.json'));
  writeFileSync(join(path, 'tokenizer.model'), sentencePieceModel(textGguf));
  expect(await read(path)).toEqual(ofGguf);
  // Pieces behind the rows of the embedding are left out.
  writeFileSync(join(path, 'tokenizer.model'), sentencePieceModel(Gemma.demoModel));
  const { tokens } = await read(path);
  expect(tokens.flat().every((id) => id < ofGguf.vocabularySize)).toBe(true);
});

test('a folder with a checkpoint and a GGUF file is ambiguous', async () => {
  const path = writeCheckpoint(join(folder, 'both'), checkpointOf(textGguf, undefined, { layout: 'text' }));
  copyFileSync(textGguf, join(path, 'model.gguf'));
  await expect(Gemma.inspect(path)).rejects.toMatchObject({ code: 'ERR_FILE', detail: 'AMBIGUOUS_FOLDER' });
});

// Each case changes a sound folder of text alone, and has its error.
describe('what is wrong with a checkpoint', () => {
  const sound = checkpointOf(textGguf, undefined, { layout: 'text' });
  const invalid = (detail: string) => ({ code: 'ERR_SAFETENSORS_INVALID', detail });
  const unsupported = (detail?: string) => ({ code: 'ERR_UNSUPPORTED_MODEL', detail });
  const Q = 'model.layers.0.self_attn.q_proj.weight';
  let n = 0;

  async function check(expected: object, change: (path: string, checkpoint: Checkpoint) => void, shards = 1) {
    const checkpoint = { ...sound, config: structuredClone(sound.config), tensors: new Map(sound.tensors) };
    const path = writeCheckpoint(join(folder, `wrong-${n++}`), checkpoint, shards);
    change(path, checkpoint);
    await expect(Gemma.load(path)).rejects.toMatchObject(expected);
    rmSync(path, { recursive: true });
  }
  const weights = (path: string) => join(path, 'model.safetensors');
  const write = (path: string, { tensors }: Checkpoint) => writeFileSync(weights(path), safetensors(tensors));
  /** The file with its header changed as text. */
  const edit = (path: string, name: string, from: string | RegExp, to: string) => {
    const at = join(path, name);
    const text = readFileSync(at, 'utf8');
    const edited = text.replace(from, to);
    if (edited === text) throw new Error(`${String(from)} is not in ${name}`);
    writeFileSync(at, edited);
  };
  const editHeader = (path: string, from: string | RegExp, to: string) => {
    const bytes = readFileSync(weights(path));
    const end = 8 + Number(bytes.readBigUInt64LE());
    const header = bytes.toString('utf8', 8, end);
    const edited = header.replace(from, to);
    if (edited === header) throw new Error(`${String(from)} is not in the header`);
    writeFileSync(weights(path), file(edited, bytes.subarray(end)));
  };

  test.each([
    ['empty', () => Buffer.alloc(0), 'TRUNCATED'],
    ['seven bytes', () => Buffer.alloc(7), 'TRUNCATED'],
    ['a header longer than the file', () => file('{}', undefined, 99n), 'TRUNCATED'],
    ['a header above the limit', () => file('{}', undefined, 100_000_001n), 'BAD_HEADER'],
    ['a header of 2^64 - 1 bytes', () => file('{}', undefined, 2n ** 64n - 1n), 'BAD_HEADER'],
    ['a header of no bytes', () => file(''), 'BAD_HEADER'],
    ['a GGUF file', () => readFileSync(textGguf), 'BAD_HEADER'],
    ['a Git LFS pointer', () => Buffer.from('version https://git-lfs.github.com/spec/v1\n'), 'BAD_HEADER'],
    ['cut in its data', (bytes: Buffer) => bytes.subarray(0, bytes.length - 1), 'TRUNCATED'],
    ['cut in half', (bytes: Buffer) => bytes.subarray(0, bytes.length >> 1), 'TRUNCATED'],
    ['cut in its header', (bytes: Buffer) => bytes.subarray(0, 100), 'TRUNCATED'],
    ['bytes at the end', (bytes: Buffer) => Buffer.concat([bytes, Buffer.alloc(4)]), 'BAD_HEADER'],
    ['no tensors', () => file('{}'), 'BAD_TENSOR'],
    ['a header that is no object', () => file('[]'), 'BAD_HEADER'],
    ['a header nested 10^5 deep', () => file(`{"a":${'['.repeat(1e5)}`), 'BAD_HEADER'],
    ['a header that is no UTF-8', () => file(Buffer.of(0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d)), 'BAD_HEADER'],
    ['half of a surrogate pair', () => file('{"\\ud800":1}'), 'BAD_HEADER'],
  ] as const)('weights: %s', (_name, change, detail) =>
    check(invalid(detail), (path) => writeFileSync(weights(path), change(readFileSync(weights(path))))),
  );

  test.each([
    ['an unknown type', '"F16"', '"F17"', 'BAD_HEADER'],
    ['a type that is no string', '"dtype":"F16"', '"dtype":1', 'BAD_HEADER'],
    ['no type', '"dtype":"F16",', '', 'BAD_HEADER'],
    ['no shape', /"shape":\[[^\]]*\],/, '', 'BAD_HEADER'],
    ['no offsets', /,"data_offsets":\[[^\]]*\]/, '', 'BAD_HEADER'],
    ['three offsets', /"data_offsets":\[0,/, '"data_offsets":[0,0,', 'BAD_HEADER'],
    ['a negative dimension', /"shape":\[(?=\d+,)/, '"shape":[-1,', 'BAD_HEADER'],
    ['a dimension that is no integer', /"shape":\[(\d+),/, '"shape":[$1.0,', 'BAD_HEADER'],
    ['a shape that does not fit', /"shape":\[(\d+),/, '"shape":[1$1,', 'BAD_SHAPE'],
    ['a shape that overflows', /"shape":\[\d+,/, '"shape":[9223372036854775807,9,', 'BAD_SHAPE'],
    ['a type that does not fit', '"F16"', '"F32"', 'BAD_SHAPE'],
    ['offsets that overlap or leave a hole', /"data_offsets":\[(\d+),(\d+)\]/, '"data_offsets":[1$1,1$2]', 'BAD_SHAPE'],
    ['metadata that is no object', /"__metadata__":\{[^}]*\}/, '"__metadata__":[]', 'BAD_HEADER'],
    ['metadata that is no string', '"format":"pt"', '"format":1', 'BAD_HEADER'],
    ['metadata twice', '"__metadata__"', '"__metadata__":{},"__metadata__"', 'DUPLICATE'],
    ['a type twice', '"dtype":"F16"', '"dtype":"F16","dtype":"F16"', 'DUPLICATE'],
    ['a comma too many', /\}$/, ',}', 'BAD_HEADER'],
    ['text behind', /\}$/, '}x', 'BAD_HEADER'],
  ] as const)('header: %s', (_name, from, to, detail) => check(invalid(detail), (path) => editHeader(path, from, to)));

  test.each([
    ['missing', BAD('missing'), (t: Checkpoint['tensors']) => t.delete(Q)],
    ['of an unknown name', BAD('no such'), (t: Checkpoint['tensors']) => t.set('model.extra.weight', t.get(Q)!)],
    ['of a layer too many', BAD('no such'), (t: Checkpoint['tensors']) => t.set(Q.replace('0', '99'), t.get(Q)!)],
    ['there in two layouts', BAD('twice'), (t: Checkpoint['tensors']) => t.set(`language_model.${Q}`, t.get(Q)!)],
    ['transposed', BAD('expected'), (t: Checkpoint['tensors']) => t.set(Q, { ...t.get(Q)!, shape: [...t.get(Q)!.shape].reverse() })], // prettier-ignore
    ['of three dimensions', BAD('expected'), (t: Checkpoint['tensors']) => t.set(Q, { ...t.get(Q)!, shape: [1, ...t.get(Q)!.shape] })], // prettier-ignore
    ['a scalar', BAD('expected'), (t: Checkpoint['tensors']) => t.set(Q, { ...t.get(Q)!, shape: [], data: Buffer.alloc(2) })], // prettier-ignore
    ['empty', BAD('expected'), (t: Checkpoint['tensors']) => t.set(Q, { ...t.get(Q)!, shape: [0, 9], data: Buffer.alloc(0) })], // prettier-ignore
    ['of integers', unsupported('TENSOR_TYPE'), (t: Checkpoint['tensors']) => t.set(Q, { ...t.get(Q)!, dtype: 'I16' })],
    ['in 8-bit floats', unsupported('TENSOR_TYPE'), (t: Checkpoint['tensors']) => t.set(Q, { ...t.get(Q)!, dtype: 'F8_E4M3', shape: [2, ...t.get(Q)!.shape] })], // prettier-ignore
    ['of a vision encoder without configuration', BAD('vision'), (t: Checkpoint['tensors']) => t.set('model.vision_tower.post_layernorm.bias', t.get(Q)!)], // prettier-ignore
  ] as const)('a tensor: %s', (_name, expected, change) =>
    check(expected, (path, checkpoint) => {
      change(checkpoint.tensors);
      write(path, checkpoint);
    }),
  );
  function BAD(part: string) {
    return { ...invalid('BAD_TENSOR'), message: expect.stringContaining(part) as unknown };
  }

  test.each([
    ['{', 'BAD_HPARAM'],
    ['', 'BAD_HPARAM'],
    ['null', 'BAD_HPARAM'],
    ['{"model_type":"gemma3_text","model_type":"gemma3_text"}', 'DUPLICATE'],
    [`{"model_type":${'['.repeat(1000)}`, 'BAD_HPARAM'],
  ])('config.json: %.40s', (text, detail) =>
    check(invalid(detail), (path) => writeFileSync(join(path, 'config.json'), text)),
  );

  test.each([
    ['hidden_size', 0, invalid('BAD_HPARAM')],
    ['hidden_size', 2 ** 31, invalid('BAD_HPARAM')],
    ['hidden_size', 65, invalid('BAD_TENSOR')],
    ['hidden_size', '64', invalid('BAD_HPARAM')],
    ['hidden_size', undefined, invalid('BAD_TENSOR')],
    ['num_hidden_layers', 513, invalid('BAD_HPARAM')],
    ['num_hidden_layers', 1, invalid('BAD_HPARAM')],
    ['num_attention_heads', 3, invalid('BAD_HPARAM')],
    ['num_key_value_heads', 0, invalid('BAD_HPARAM')],
    ['head_dim', 15, invalid('BAD_HPARAM')],
    ['vocab_size', 449, invalid('BAD_TENSOR')],
    ['vocab_size', 1e9, invalid('BAD_HPARAM')],
    ['sliding_window', 0, invalid('BAD_HPARAM')],
    ['rms_norm_eps', -1, invalid('BAD_HPARAM')],
    ['query_pre_attn_scalar', 0, invalid('BAD_HPARAM')],
    ['max_position_embeddings', 1.5, invalid('BAD_HPARAM')],
    ['layer_types', ['full_attention'], invalid('BAD_HPARAM')],
    ['layer_types', ['chunked_attention'], unsupported()],
    ['rope_parameters', { full_attention: { rope_type: 'yarn' } }, unsupported()],
    ['rope_parameters', { full_attention: { rope_type: 'linear', factor: 0 } }, invalid('BAD_HPARAM')],
    ['tie_word_embeddings', false, invalid('BAD_TENSOR')],
    ['model_type', 'llama', unsupported()],
    ['model_type', undefined, unsupported()],
    ['quantization_config', { quant_method: 'bitsandbytes' }, unsupported('TENSOR_TYPE')],
    ['attention_bias', true, unsupported()],
    ['attn_logit_softcapping', 50, unsupported()],
    ['hidden_activation', 'silu', unsupported()],
    ['eos_token_id', 'x', invalid('BAD_HPARAM')],
    ['vision_config', { image_size: 20, patch_size: 14 }, invalid('BAD_HPARAM')],
    ['vision_config', { hidden_size: 48, num_attention_heads: 5 }, invalid('BAD_HPARAM')],
  ] as const)('config.json: %s %j', (key, value, expected) =>
    check(expected, (path, { config }) =>
      writeFileSync(join(path, 'config.json'), JSON.stringify({ ...config, [key]: value })),
    ),
  );

  test.each([
    ['missing', { code: 'ERR_FILE', detail: 'NO_TOKENIZER' }, (path: string) => rmSync(join(path, 'tokenizer.json'))],
    ['cut', invalid('BAD_VOCAB'), (path: string) => writeFileSync(join(path, 'tokenizer.json'), readFileSync(join(path, 'tokenizer.json')).subarray(0, 5000))], // prettier-ignore
    ['of another kind', unsupported('TOKENIZER'), (path: string) => edit(path, 'tokenizer.json', '"BPE"', '"Unigram"')],
    ['without bytes', unsupported('TOKENIZER'), (path: string) => edit(path, 'tokenizer.json', '"byte_fallback":true', '"byte_fallback":false')], // prettier-ignore
    ['another normalizer', unsupported('TOKENIZER'), (path: string) => edit(path, 'tokenizer.json', '"Replace"', '"NFKC"')], // prettier-ignore
    ['another pre-tokenizer', unsupported('TOKENIZER'), (path: string) => edit(path, 'tokenizer.json', '"Split"', '"ByteLevel"')], // prettier-ignore
    ['no model', invalid('BAD_VOCAB'), (path: string) => edit(path, 'tokenizer.json', '"model":', '"other":')],
    ['no vocabulary', invalid('BAD_VOCAB'), (path: string) => edit(path, 'tokenizer.json', '"vocab":', '"other":')],
    ['an id twice', invalid('BAD_VOCAB'), (path: string) => edit(path, 'tokenizer.json', '"<eos>":1', '"<eos>":2')],
    [
      'an id that is none',
      invalid('BAD_VOCAB'),
      (path: string) => edit(path, 'tokenizer.json', '"<eos>":1', '"<eos>":-1'),
    ],
    ['a piece twice', invalid('DUPLICATE'), (path: string) => edit(path, 'tokenizer.json', '"<eos>":1', '"<pad>":1')],
    ['an added token of another id', invalid('BAD_VOCAB'), (path: string) => edit(path, 'tokenizer.json', '{"id":5,', '{"id":300,')], // prettier-ignore
    ['a merge of one', invalid('BAD_VOCAB'), (path: string) => edit(path, 'tokenizer.json', '"merges":[[', '"merges":[["a"],[')], // prettier-ignore
    ['merges of pairs alone', unsupported('TOKENIZER'), (path: string) => {
        const at = join(path, 'tokenizer.json');
        const tokenizer = JSON.parse(readFileSync(at, 'utf8')) as { model: { merges: [string, string][] } };
        const seen = new Set<string>();
        tokenizer.model.merges = tokenizer.model.merges.filter((pair) => !seen.has(pair.join('')) && seen.add(pair.join(''))); // prettier-ignore
        writeFileSync(at, JSON.stringify(tokenizer));
      }], // prettier-ignore
    ['special ids outside', invalid('BAD_VOCAB'), (path: string) => writeFileSync(join(path, 'generation_config.json'), '{"eos_token_id":[1,99999]}')], // prettier-ignore
    ['its configuration broken', invalid('BAD_VOCAB'), (path: string) => writeFileSync(join(path, 'tokenizer_config.json'), '{"added_tokens_decoder":{"x":{}}}')], // prettier-ignore
    ['tokenizer.model is none', invalid('BAD_VOCAB'), (path: string) => {
        rmSync(join(path, 'tokenizer.json'));
        writeFileSync(join(path, 'tokenizer.model'), Buffer.of(0x0a, 0xff, 0xff, 0xff, 0x7f, 1));
      }], // prettier-ignore
  ] as const)('tokenizer: %s', (_name, expected, change) => check(expected, change));

  test.each([
    ['a missing file', 'MISSING_SHARD', (path: string) => rmSync(join(path, 'model-00002-of-00003.safetensors'))],
    ['a cut file', 'TRUNCATED', (path: string) => writeFileSync(join(path, 'model-00002-of-00003.safetensors'), Buffer.alloc(4))], // prettier-ignore
    ['a tensor in another file', 'BAD_INDEX', (path: string) => edit(path, 'model.safetensors.index.json', /00001-of/, '00002-of')], // prettier-ignore
    ['a tensor that is nowhere', 'BAD_INDEX', (path: string) => edit(path, 'model.safetensors.index.json', '"weight_map":{', '"weight_map":{"x":"model-00001-of-00003.safetensors",')], // prettier-ignore
    ['a path', 'BAD_INDEX', (path: string) => edit(path, 'model.safetensors.index.json', '"model-00001-of', '"../model-00001-of')], // prettier-ignore
    ['no map', 'BAD_INDEX', (path: string) => writeFileSync(join(path, 'model.safetensors.index.json'), '{}')],
    ['a tensor twice', 'DUPLICATE', (path: string) => edit(path, 'model.safetensors.index.json', '"weight_map":{', `"weight_map":{"${Q}":"model-00001-of-00003.safetensors",`)], // prettier-ignore
  ] as const)('shards: %s', (_name, detail, change) => check(invalid(detail), change, 3));

  test('weights: a pickle alone', () =>
    check({ code: 'ERR_FILE', detail: 'AMBIGUOUS_FOLDER' }, (path) => rmSync(weights(path))));
});
