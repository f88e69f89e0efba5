// Hugging Face checkpoints as folders, made at test time of GGUF files: the same weights under the names, and the same vocabulary and
// configuration in the form, that transformers writes.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

interface Stored {
  dtype: string;
  shape: number[];
  data: Buffer;
}

const DTYPES: Readonly<Record<number, string>> = { 0: 'F32', 1: 'F16', 30: 'BF16' };

export interface Gguf {
  keys: Map<string, unknown>;
  tensors: Map<string, Stored>;
}

/** A file of F32 and F16 tensors, of which others count as F16. */
export function readGguf(path: string): Gguf {
  const bytes = readFileSync(path);
  let at = 8;
  const u32 = () => bytes.readUInt32LE((at += 4) - 4);
  const u64 = () => Number(bytes.readBigUInt64LE((at += 8) - 8));
  const text = () => {
    const length = u64();
    return bytes.toString('utf8', at, (at += length));
  };
  const value = (type: number): unknown => {
    if (type === 9) {
      const of = u32();
      return Array.from({ length: u64() }, () => value(of));
    }
    if (type === 4) return u32();
    if (type === 5) return bytes.readInt32LE((at += 4) - 4);
    if (type === 6) return bytes.readFloatLE((at += 4) - 4);
    if (type === 7) return bytes.readUInt8(at++) !== 0;
    if (type === 8) return text();
    throw new Error(`a value of type ${type} in ${path}`);
  };
  const nTensors = u64();
  const nKeys = u64();
  const keys = new Map(Array.from({ length: nKeys }, () => [text(), value(u32())] as const));
  const infos = Array.from({ length: nTensors }, () => ({
    name: text(),
    shape: Array.from({ length: u32() }, u64).reverse(),
    type: u32(),
    offset: u64(),
  }));
  const start = Math.ceil(at / 32) * 32;
  const tensors = new Map(
    infos.map(({ name, shape, type, offset }) => {
      const n = shape.reduce((a, b) => a * b, 1);
      const begin = start + offset;
      return [name, { dtype: DTYPES[type]!, shape, data: bytes.subarray(begin, begin + n * (type === 0 ? 4 : 2)) }]; // prettier-ignore
    }),
  );
  return { keys, tensors };
}

const LAYER: Readonly<Record<string, string>> = {
  attn_norm: 'input_layernorm',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  attn_q_norm: 'self_attn.q_norm',
  attn_k_norm: 'self_attn.k_norm',
  post_attention_norm: 'post_attention_layernorm',
  ffn_norm: 'pre_feedforward_layernorm',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
  post_ffw_norm: 'post_feedforward_layernorm',
};
const VISION_LAYER: Readonly<Record<string, string>> = {
  ln1: 'layer_norm1',
  ln2: 'layer_norm2',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_out: 'self_attn.out_proj',
  ffn_up: 'mlp.fc1',
  ffn_down: 'mlp.fc2',
};
const OTHERS: Readonly<Record<string, string>> = {
  'token_embd.weight': 'embed_tokens.weight',
  'output_norm.weight': 'norm.weight',
  'v.patch_embd.weight': 'embeddings.patch_embedding.weight',
  'v.patch_embd.bias': 'embeddings.patch_embedding.bias',
  'v.position_embd.weight': 'embeddings.position_embedding.weight',
  'v.post_ln.weight': 'post_layernorm.weight',
  'v.post_ln.bias': 'post_layernorm.bias',
  'mm.soft_emb_norm.weight': 'mm_soft_emb_norm.weight',
  'mm.input_projection.weight': 'mm_input_projection_weight',
};

export type Layout = 'text' | 'new' | 'old';

const PREFIXES: Readonly<Record<Layout, { text: string; vision: string; projector: string }>> = {
  text: { text: 'model.', vision: '', projector: '' },
  new: { text: 'model.language_model.', vision: 'model.vision_tower.', projector: 'model.multi_modal_projector.' },
  old: { text: 'language_model.model.', vision: 'vision_tower.vision_model.', projector: 'multi_modal_projector.' },
};

function hfName(name: string, layout: Layout): string {
  const prefix = PREFIXES[layout];
  const [, vision, layer, field = '', kind] = /^(v\.)?blk\.(\d+)\.(\w+)\.(weight|bias)$/.exec(name) ?? [];
  if (layer !== undefined) {
    return vision
      ? `${prefix.vision}encoder.layers.${layer}.${VISION_LAYER[field]}.${kind}`
      : `${prefix.text}layers.${layer}.${LAYER[field]}.${kind}`;
  }
  return (
    (name.startsWith('v.') ? prefix.vision : name.startsWith('mm.') ? prefix.projector : prefix.text) + OTHERS[name]
  );
}

const isNorm = (name: string) => !name.startsWith('v.') && name.endsWith('norm.weight');

function floats(data: Buffer): Float32Array {
  return new Float32Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.length));
}

/** A safetensors file of these tensors, in their order. `blanks`: so many are put before the header. */
export function safetensors(tensors: ReadonlyMap<string, Stored>, blanks = 0): Buffer {
  let end = 0;
  const header = Object.fromEntries(
    [...tensors].map(([name, { dtype, shape, data }]) => [name, { dtype, shape, data_offsets: [end, (end += data.length)] }]), // prettier-ignore
  );
  return file(' '.repeat(blanks) + JSON.stringify({ __metadata__: { format: 'pt' }, ...header }), Buffer.concat([...tensors.values()].map(({ data }) => data))); // prettier-ignore
}

/** A file of this header and these data; `length`: what it says of the header. */
export function file(header: string | Buffer, data: Buffer = Buffer.alloc(0), length?: bigint): Buffer {
  const text = Buffer.from(header);
  const first = Buffer.alloc(8);
  first.writeBigUInt64LE(length ?? BigInt(text.length));
  return Buffer.concat([first, text, data]);
}

/** How SentencePiece spells the pieces of a GGUF file. */
function spelledPieces(keys: Gguf['keys']): string[] {
  const types = keys.get('tokenizer.ggml.token_type') as number[];
  const pieces = keys.get('tokenizer.ggml.tokens') as string[];
  return pieces.map((piece, id) => (types[id] === 4 ? piece.replaceAll(' ', '\u2581') : piece));
}

/** tokenizer.model: the vocabulary of a GGUF file as SentencePiece's message (sentencepiece_model.proto). */
export function sentencePieceModel(path: string): Buffer {
  const { keys } = readGguf(path);
  const scores = keys.get('tokenizer.ggml.scores') as number[];
  const types = keys.get('tokenizer.ggml.token_type') as number[];
  const varint = (value: number): Buffer => {
    const bytes: number[] = [];
    for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
    return Buffer.of(...bytes, value);
  };
  const number = (field: number, value: number) => Buffer.concat([varint(field * 8), varint(value)]);
  const message = (field: number, ...parts: Buffer[]) => {
    const bytes = Buffer.concat(parts);
    return Buffer.concat([varint(field * 8 + 2), varint(bytes.length), bytes]);
  };
  const float = (field: number, value: number) =>
    Buffer.concat([varint(field * 8 + 5), Buffer.from(Float32Array.of(value).buffer)]);
  const pieces = spelledPieces(keys);
  const unknown = pieces.indexOf('<unk>'); // of a type of its own, without which SentencePiece takes no model
  const typed = types.with(unknown, 2);
  return Buffer.concat([
    ...pieces.map((piece, id) => message(1, message(1, Buffer.from(piece)), float(2, scores[id]!), number(3, typed[id]!))), // prettier-ignore
    // input, model_type (BPE), vocab_size, character_coverage, byte_fallback, ids of unknown, bos, eos and padding
    message(2, message(1, Buffer.from('text')), number(3, 2), number(4, pieces.length), float(10, 1), number(35, 1), number(40, unknown), number(41, 2), number(42, 1), number(43, 0)), // prettier-ignore
    // name, charsmap, add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces
    message(3, message(1, Buffer.from('identity')), message(2), number(3, 0), number(4, 0), number(5, 1)),
  ]);
}

/** tokenizer.json as transformers makes it of SentencePiece's model: all ways to make a piece of two, in the order of its score. */
function tokenizerJson(keys: Gguf['keys']): unknown {
  const scores = keys.get('tokenizer.ggml.scores') as number[];
  const types = keys.get('tokenizer.ggml.token_type') as number[];
  const spelled = spelledPieces(keys);
  const ids = new Map(spelled.map((piece, id) => [piece, id]));
  const merges = spelled
    .map((piece, id) => ({ piece, id }))
    .filter(({ id }) => types[id] === 1)
    .sort((a, b) => scores[b.id]! - scores[a.id]!)
    .flatMap(({ piece }) => {
      const letters = [...piece];
      return letters.slice(1).map((_, i) => [letters.slice(0, i + 1).join(''), letters.slice(i + 1).join('')]);
    })
    .filter(([left, right]) => ids.has(left!) && ids.has(right!));
  const added = spelled.flatMap((content, id) =>
    types[id] === 3 || types[id] === 4 || types[id] === 2
      ? [{ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: types[id] !== 4 }]
      : [],
  );
  return {
    version: '1.0',
    added_tokens: added,
    normalizer: { type: 'Replace', pattern: { String: ' ' }, content: '\u2581' },
    pre_tokenizer: { type: 'Split', pattern: { String: ' ' }, behavior: 'MergedWithPrevious', invert: false },
    model: { type: 'BPE', unk_token: '<unk>', fuse_unk: true, byte_fallback: true, ignore_merges: false, vocab: Object.fromEntries(ids), merges }, // prettier-ignore
  };
}

function configuration(text: Gguf, vision: Gguf | undefined, layout: Layout): Record<string, unknown> {
  const key = (name: string) => text.keys.get(`${text.keys.get('general.architecture') as string}.${name}`) as number;
  const seen = (name: string) => vision?.keys.get(`clip.vision.${name}`) as number;
  const rope = key('rope.scaling.factor') ?? 1;
  const head = key('attention.key_length');
  const shape = {
    model_type: 'gemma3_text',
    hidden_size: key('embedding_length'),
    num_hidden_layers: key('block_count'),
    intermediate_size: key('feed_forward_length'),
    num_attention_heads: key('attention.head_count'),
    num_key_value_heads: key('attention.head_count_kv'),
    head_dim: head,
    vocab_size: text.tensors.get('token_embd.weight')!.shape[0],
    max_position_embeddings: key('context_length'),
    sliding_window: key('attention.sliding_window'),
    query_pre_attn_scalar: head,
    rms_norm_eps: 1e-6,
    bos_token_id: 2,
    eos_token_id: [1, 6],
    pad_token_id: 0,
  };
  const today = {
    ...shape,
    layer_types: Array.from({ length: shape.num_hidden_layers }, (_, i) => (i % 6 === 5 ? 'full_attention' : 'sliding_attention')), // prettier-ignore
    rope_parameters: {
      full_attention: { rope_theta: key('rope.freq_base'), rope_type: rope === 1 ? 'default' : 'linear', factor: rope },
      sliding_attention: { rope_theta: key('rope.freq_base_swa') ?? 1e4, rope_type: 'default' },
    },
    final_logit_softcapping: null,
    attn_logit_softcapping: null,
  };
  const of2025 = {
    ...shape,
    sliding_window_pattern: 6,
    rope_theta: key('rope.freq_base'),
    rope_local_base_freq: key('rope.freq_base_swa') ?? 1e4,
    rope_scaling: rope === 1 ? null : { rope_type: 'linear', factor: rope },
  };
  if (layout === 'text') return today;
  const side = seen('image_size') / seen('patch_size') / ((seen('projector.scale_factor') as number | undefined) ?? 4);
  return {
    model_type: 'gemma3',
    mm_tokens_per_image: side * side,
    text_config: layout === 'old' ? of2025 : today,
    vision_config: {
      model_type: 'siglip_vision_model',
      hidden_size: seen('embedding_length'),
      intermediate_size: seen('feed_forward_length'),
      num_hidden_layers: seen('block_count'),
      num_attention_heads: seen('attention.head_count'),
      image_size: seen('image_size'),
      patch_size: seen('patch_size'),
      layer_norm_eps: 1e-6,
    },
  };
}

export interface Checkpoint {
  config: Record<string, unknown>;
  tensors: Map<string, Stored>;
  tokenizer: unknown;
}

type Dtype = 'F16' | 'F32' | 'BF16';

/** A tensor of 16-bit floats in 32 bits, or in BF16, which they must fit. */
function converted({ dtype, shape, data }: Stored, to: Dtype): Stored {
  if (dtype !== 'F16' || to === 'F16') return { dtype, shape, data };
  const halves = new Uint16Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.length));
  const values = Float32Array.from(halves, toFloat);
  if (to === 'F32') return { dtype: to, shape, data: Buffer.from(values.buffer) };
  const bits = new Uint32Array(values.buffer);
  if (bits.some((word) => (word & 0xffff) !== 0)) throw new Error('a value that BF16 does not hold');
  return { dtype: to, shape, data: Buffer.from(Uint16Array.from(bits, (word) => word >>> 16).buffer) };
}

/** What a folder of these weights holds. `dtype` F32: every 16-bit float is written in 32 bits. */
export function checkpointOf(
  model: string,
  mmproj: string | undefined,
  { layout, dtype = 'F16' }: { layout: Layout; dtype?: Dtype },
): Checkpoint {
  const text = readGguf(model);
  const vision = mmproj === undefined ? undefined : readGguf(mmproj);
  const tensors = new Map<string, Stored>();
  for (const [name, stored] of [...text.tensors, ...(vision?.tensors ?? [])]) {
    if (name.startsWith('dense_')) continue; // in folders of their own
    const data = isNorm(name) ? Buffer.from(floats(stored.data).map((value) => value - 1).buffer) : stored.data;
    tensors.set(hfName(name, layout), converted({ ...stored, data }, dtype));
  }
  return { config: configuration(text, vision, layout), tensors, tokenizer: tokenizerJson(text.keys) };
}

function toFloat(half: number): number {
  const exponent = (half >> 10) & 31;
  const mantissa = half & 1023;
  const sign = half & 0x8000 ? -1 : 1;
  return sign * (exponent === 0 ? mantissa * 2 ** -24 : (1 + mantissa / 1024) * 2 ** (exponent - 15));
}

/** Writes the folder. `shards`: in so many files, neighbours in different ones. */
export function writeCheckpoint(folder: string, { config, tensors, tokenizer }: Checkpoint, shards = 1): string {
  mkdirSync(folder, { recursive: true });
  const json = (name: string, value: unknown) => writeFileSync(join(folder, name), JSON.stringify(value));
  json('config.json', config);
  json('tokenizer.json', tokenizer);
  json('tokenizer_config.json', { bos_token: '<bos>', eos_token: { content: '<eos>' }, pad_token: '<pad>' });
  json('generation_config.json', { eos_token_id: [1, 6] });
  if (shards === 1) {
    writeFileSync(join(folder, 'model.safetensors'), safetensors(tensors));
    return folder;
  }
  const index: Record<string, string> = {};
  for (let i = 0; i < shards; ++i) {
    const name = `model-0000${i + 1}-of-0000${shards}.safetensors`;
    const part = new Map([...tensors].filter((_, at) => at % shards === i));
    for (const key of part.keys()) index[key] = name;
    writeFileSync(join(folder, name), safetensors(part));
  }
  json('model.safetensors.index.json', { metadata: { total_size: 1 }, weight_map: index });
  return folder;
}

export interface DenseVariant {
  activation: string;
  bias: boolean;
}

/** How a folder of sentence-transformers is made (test/reference/make_sentence.py makes the same). */
export interface SentenceVariant {
  pooling: string;
  normalize: boolean;
  dense?: readonly DenseVariant[];
  /** a decoder */
  causal?: boolean;
  /** texts end with <eos>: true unless said */
  eos?: boolean;
  /** in the form of version 6 */
  new?: boolean;
  /** config_sentence_transformers.json */
  prompts?: unknown;
  /** sentence_bert_config.json */
  length?: unknown;
}

const FLAGS: Readonly<Record<string, string>> = { cls: 'cls_token', max: 'max_tokens', mean: 'mean_tokens', weightedmean: 'weightedmean_tokens' }; // prettier-ignore

/** [rows, columns] by a formula. */
export function pattern(rows: number, columns: number, [a, b, c, m, scale]: readonly number[]): Float32Array {
  return Float32Array.from({ length: rows * columns }, (_, at) => {
    const [i, j] = [Math.floor(at / columns), at % columns];
    return (((i * a! + j * b! + c!) % m!) - Math.floor(m! / 2)) / scale!;
  });
}

/** Writes a folder of sentence-transformers with the weights of a GGUF file of EmbeddingGemma's structure. */
export function writeSentenceModel(
  folder: string,
  gguf: string,
  variant: SentenceVariant,
  { dtype = 'F16', shards = 1 }: { dtype?: Dtype; shards?: number } = {},
): string {
  const { pooling, normalize, dense = [], causal = false, eos = true, prompts, length } = variant;
  const checkpoint = checkpointOf(gguf, undefined, { layout: 'text', dtype });
  checkpoint.config.use_bidirectional_attention = !causal;
  checkpoint.config.eos_token_id = 1;
  const special = (id: string) => ({ SpecialToken: { id, type_id: 0 } });
  const single = [special('<bos>'), { Sequence: { id: 'A', type_id: 0 } }, ...(eos ? [special('<eos>')] : [])];
  checkpoint.tokenizer = {
    ...(checkpoint.tokenizer as object),
    post_processor: { type: 'TemplateProcessing', single },
  };
  writeCheckpoint(folder, checkpoint, shards);
  const json = (name: string, value: unknown) => {
    mkdirSync(dirname(join(folder, name)), { recursive: true });
    writeFileSync(join(folder, name), JSON.stringify(value));
  };
  const { tensors } = readGguf(gguf);
  const width = tensors.get('output_norm.weight')!.shape[0]!;
  json(
    '1_Pooling/config.json',
    variant.new
      ? { embedding_dimension: width, pooling_mode: pooling, include_prompt: true }
      : { word_embedding_dimension: width, [`pooling_mode_${FLAGS[pooling] ?? pooling}`]: true, include_prompt: true },
  );
  const [first, second] = ['dense_2', 'dense_3'].map((name) => converted(tensors.get(`${name}.weight`)!, dtype));
  const bytes = first!.data.length / (first!.shape[0]! * first!.shape[1]!);
  const third = { ...first!, shape: [32, width], data: first!.data.subarray(0, 32 * width * bytes) };
  const weights = [first!, second!, third];
  const modules = [
    ['Transformer', ''],
    ['Pooling', '1_Pooling'],
  ];
  for (const [i, { activation, bias }] of dense.entries()) {
    const name = `${modules.length}_Dense`;
    const { shape } = weights[i]!;
    const [out = 0, into = 0] = shape;
    json(`${name}/config.json`, {
      in_features: into,
      out_features: out,
      bias,
      activation_function: `torch.nn.modules.${activation === 'Identity' ? 'linear' : 'activation'}.${activation}`,
    });
    const stored = new Map([['linear.weight', weights[i]!]]);
    if (bias) {
      const data = Buffer.from(pattern(1, out, [0, 37, 0, 65, 64]).buffer as ArrayBuffer);
      stored.set('linear.bias', { dtype: 'F32', shape: [out], data });
    }
    writeFileSync(join(folder, name, 'model.safetensors'), safetensors(stored));
    modules.push(['Dense', name]);
  }
  if (normalize) modules.push(['Normalize', `${modules.length}_Normalize`]);
  const packages: Readonly<Record<string, string>> = variant.new
    ? { Transformer: 'base.modules.transformer', Pooling: 'sentence_transformer.modules.pooling', Dense: 'base.modules.dense', Normalize: 'base.modules.normalize' } // prettier-ignore
    : {};
  json(
    'modules.json',
    modules.map(([kind = '', path], idx) => {
      const type = `sentence_transformers.${packages[kind] ?? 'models'}.${kind}`;
      return { idx, name: String(idx), path, type };
    }),
  );
  if (prompts !== undefined) json('config_sentence_transformers.json', prompts);
  json('sentence_bert_config.json', length ?? { max_seq_length: 2048, do_lower_case: false });
  return folder;
}

/** tokenizer.model, SentencePiece's own file, of a GGUF file's vocabulary. */
export function sentencePiece(model: string): Buffer {
  const { keys } = readGguf(model);
  const pieces = keys.get('tokenizer.ggml.tokens') as string[];
  const scores = keys.get('tokenizer.ggml.scores') as number[];
  const types = keys.get('tokenizer.ggml.token_type') as number[];
  const varint = (value: number): number[] => (value < 128 ? [value] : [(value & 127) | 128, ...varint(value >>> 7)]);
  const message = (field: number, content: Buffer) =>
    Buffer.concat([Buffer.from([(field << 3) | 2, ...varint(content.length)]), content]);
  const number = (field: number, value: number) => Buffer.from([...varint(field << 3), ...varint(value)]);
  const entries = pieces.map((piece, id) => {
    const score = Buffer.alloc(5, (2 << 3) | 5);
    score.writeFloatLE(scores[id]!, 1);
    const text = types[id] === 4 ? piece.replaceAll(' ', '\u2581') : piece;
    return message(1, Buffer.concat([message(1, Buffer.from(text)), score, number(3, types[id]!)]));
  });
  const trainer = message(2, Buffer.concat([number(3, 2), number(35, 1)])); // BPE, pieces for bytes
  const normalizer = message(3, Buffer.concat([number(3, 0), number(4, 0), number(5, 1)])); // blanks as U+2581, nothing else
  return Buffer.concat([...entries, trainer, normalizer]);
}
