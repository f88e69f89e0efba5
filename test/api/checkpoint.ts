// Hugging Face checkpoints as folders, made at test time of GGUF files: the same weights under the names, and the same vocabulary and
// configuration in the form, that transformers writes.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

interface Stored {
  dtype: string;
  shape: number[];
  data: Buffer;
}

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
      return [name, { dtype: type === 0 ? 'F32' : 'F16', shape, data: bytes.subarray(begin, begin + n * (type === 0 ? 4 : 2)) }]; // prettier-ignore
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

/** tokenizer.json as transformers makes it of SentencePiece's model: all ways to make a piece of two, in the order of its score. */
function tokenizerJson(keys: Gguf['keys']): unknown {
  const pieces = (keys.get('tokenizer.ggml.tokens') as string[]).map((piece) => piece);
  const scores = keys.get('tokenizer.ggml.scores') as number[];
  const types = keys.get('tokenizer.ggml.token_type') as number[];
  const spelled = pieces.map((piece, id) => (types[id] === 4 ? piece.replaceAll(' ', '\u2581') : piece));
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
  const key = (name: string) => text.keys.get(`gemma3.${name}`) as number;
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

/** What a folder of these weights holds. `dtype` F32: every 16-bit float is written in 32 bits. */
export function checkpointOf(
  model: string,
  mmproj: string | undefined,
  { layout, dtype = 'F16' }: { layout: Layout; dtype?: 'F16' | 'F32' },
): Checkpoint {
  const text = readGguf(model);
  const vision = mmproj === undefined ? undefined : readGguf(mmproj);
  const tensors = new Map<string, Stored>();
  for (const [name, stored] of [...text.tensors, ...(vision?.tensors ?? [])]) {
    let { dtype: type, data } = stored;
    if (isNorm(name)) data = Buffer.from(floats(data).map((value) => value - 1).buffer);
    else if (type === 'F16' && dtype === 'F32') {
      const halves = new Uint16Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.length));
      data = Buffer.from(Float32Array.from(halves, toFloat).buffer);
      type = 'F32';
    }
    tensors.set(hfName(name, layout), { dtype: type, shape: stored.shape, data });
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
