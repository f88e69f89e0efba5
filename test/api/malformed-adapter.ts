// Malformed adapters: PEFT's folders and llama.cpp's files.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { checkpointOf, safetensors } from './checkpoint.js';
import {
  adapters,
  base,
  type Outcome,
  INVALID,
  ADAPTER,
  GGUF,
  type Maker,
  bytesOf,
  edit,
  editJson,
  parts,
  PEFT_CONFIG,
  PEFT_TENSORS,
} from './malformed-maker.js';

/** Of a sound adapter in PEFT's form. */
export function soundAdapterTensors(): Buffer {
  return readFileSync(join(adapters, 'qv-layer0', 'adapter_model.safetensors'));
}

export function peftConfigurations(maker: Maker): void {
  const C = 'BAD_CONFIG';
  const text = (name: string, content: string | Buffer, detail: string, ...words: string[]) =>
    maker.add('adapter_config.json: JSON', name, 'adapter', maker.adapter, [ADAPTER, detail, PEFT_CONFIG, ...words], (files) => files.set(PEFT_CONFIG, Buffer.from(content as string))); // prettier-ignore
  text('empty', '', C, 'expected JSON');
  text('not closed', '{', C, 'expected JSON');
  text('a list', '[]', C, 'expected an object');
  text('null', 'null', C, 'expected an object');
  text('a string', '"LORA"', C, 'expected an object');
  text('no UTF-8', Buffer.from('{"peft_type":"\xff"}', 'latin1'), C, 'UTF-8');
  text('a byte order mark', '\ufeff{}', C, 'expected JSON');
  text('NaN', '{"peft_type":"LORA","r":2,"lora_alpha":NaN}', C, 'expected JSON');
  text('Infinity', '{"peft_type":"LORA","r":2,"lora_alpha":Infinity}', C, 'expected JSON');
  text('nested', `{"peft_type":"LORA","x":${'['.repeat(4e5)}${']'.repeat(4e5)}}`, 'UNSUPPORTED', 'x');
  text('above 1 MiB', ' '.repeat((1 << 20) + 1), C, 'at most 1 MiB');
  maker.add('adapter_config.json: JSON', 'missing', 'adapter', maker.adapter, [ADAPTER, 'NO_CONFIG', PEFT_CONFIG, 'missing'], (files) => files.delete(PEFT_CONFIG)); // prettier-ignore

  const field = (group: string, key: string, value: unknown, detail: string, ...words: string[]) =>
    maker.add(`adapter_config.json: ${group}`, `${key}: ${JSON.stringify(value)?.slice(0, 60)}`, 'adapter', maker.adapter, [ADAPTER, detail, PEFT_CONFIG, key, ...words], (files) =>
      editJson(files, PEFT_CONFIG, (config) => (config[key] = value)),
    ); // prettier-ignore
  for (const [value, found] of [
    [0, '0'],
    [-1, '-1'],
    [1.5, '1.5'],
    [4097, '4097'],
    [2 ** 53, '9007199254740992'],
    [1e300, '1e+300'],
  ] as const) {
    field('ranks and scales', 'r', value, C, 'rank from 1 to 4096', `found ${found}`);
  }
  for (const value of ['2', null, undefined, true, [2]]) field('ranks and scales', 'r', value, C, 'expected a number');
  for (const value of ['4', null, undefined, false, {}]) {
    field('ranks and scales', 'lora_alpha', value, C, 'expected a number');
  }
  maker.add('adapter_config.json: ranks and scales', 'another rank than the tensors’', 'adapter', maker.adapter, [ADAPTER, 'BAD_RANK', PEFT_TENSORS, 'expected rank 3', 'file has ['], (files) =>
    editJson(files, PEFT_CONFIG, (config) => (config.r = 3)),
  ); // prettier-ignore
  for (const value of ['1e308', '-1e308', '1e999']) {
    maker.add('adapter_config.json: ranks and scales', `lora_alpha: ${value}`, 'adapter', maker.adapter, [ADAPTER, value === '1e999' ? C : 'NONFINITE', 'alpha'], (files) =>
      edit(files, PEFT_CONFIG, '"lora_alpha": 4', `"lora_alpha": ${value}`),
    ); // prettier-ignore
  }
  const P = 'patterns';
  field(P, 'rank_pattern', { '(': 2 }, 'UNSUPPORTED', 'not a pattern');
  field(P, 'rank_pattern', { '[z-a]': 2 }, 'UNSUPPORTED', 'not a pattern');
  field(P, 'rank_pattern', { 'a{2,1}': 2 }, 'UNSUPPORTED', 'not a pattern');
  field(P, 'alpha_pattern', { '(?<=x)q_proj': 2 }, 'UNSUPPORTED', 'not a pattern');
  field(P, 'alpha_pattern', { '(a)\\1': 2 }, 'UNSUPPORTED', 'not a pattern');
  field(P, 'alpha_pattern', { '(((((((((x{999}){999}){999}){999}){999}){999}){999}){999}){999}': 2 }, 'UNSUPPORTED');
  field(P, 'alpha_pattern', { [`${'('.repeat(60_000)}x${')'.repeat(60_000)}`]: 2 }, 'UNSUPPORTED', 'not a pattern');
  field(P, 'rank_pattern', { q_proj: 0 }, C, 'q_proj', 'found 0');
  field(P, 'rank_pattern', { q_proj: 99999 }, C, 'q_proj', 'found 99999');
  field(P, 'alpha_pattern', { q_proj: 'x' }, C, 'q_proj', 'expected a number');
  field(P, 'alpha_pattern', [1], C, 'expected patterns');
  field(P, 'rank_pattern', 'q_proj', C, 'expected patterns');
  field(P, 'rank_pattern', Object.fromEntries(Array.from({ length: 1001 }, (_, i) => [`m${i}`, 1])), C, 'at most 1000', '1001'); // prettier-ignore

  const K = 'kinds of adapters';
  for (const type of [
    'IA3',
    'PREFIX_TUNING',
    'P_TUNING',
    'PROMPT_TUNING',
    'ADALORA',
    'LOHA',
    'LOKR',
    'OFT',
    'BOFT',
    'VERA',
    'XLORA',
    'HRA',
    'LN_TUNING',
    'VBLORA',
    'lora',
    '',
  ]) {
    field(K, 'peft_type', type, 'BAD_KIND', 'expected "LORA"', `found "${type}"`);
  }
  field(K, 'peft_type', undefined, 'BAD_KIND', 'expected "LORA"', 'found undefined');
  field(K, 'peft_type', 7, C, 'expected a string', 'found 7');
  for (const bias of ['all', 'lora_only']) field(K, 'bias', bias, 'UNSUPPORTED', 'expected "none"', bias);
  for (const start of ['pissa', 'pissa_niter_4', 'olora', 'corda', 'loftq', 'lora_ga']) {
    field(K, 'init_lora_weights', start, 'UNSUPPORTED', start, 'changes the base model');
  }
  for (const key of [
    'fan_in_fan_out',
    'use_qalora',
    'use_bdlora',
    'use_something',
    'layer_replication',
    'target_parameters',
    'alora_invocation_tokens',
    'arrow_config',
    'kasa_config',
    'velora_config',
    'monteclora_config',
  ]) {
    field(K, key, key.startsWith('use') || key === 'fan_in_fan_out' ? true : [[1]], 'UNSUPPORTED', 'not supported');
  }
  const T = 'types of values';
  for (const key of ['use_rslora', 'use_dora', 'lora_bias']) field(T, key, 1, C, 'expected true or false', 'found 1');
  field(T, 'modules_to_save', 'lm_head', C, 'expected a list of names');
  field(T, 'modules_to_save', [1], C, 'expected a list of names');
  field(T, 'trainable_token_indices', 'x', C, 'token ids', 'found "x"');
  field(T, 'trainable_token_indices', 7, C, 'token ids', 'found 7');
  field(T, 'trainable_token_indices', [-1], C, 'token ids');
  field(T, 'trainable_token_indices', [2 ** 31], C, 'token ids');
  field(T, 'trainable_token_indices', [1.5], C, 'token ids');
  field(T, 'trainable_token_indices', [3, 3], 'UNSUPPORTED', 'ascending');
  field(T, 'trainable_token_indices', [4, 3], 'UNSUPPORTED', 'ascending');
  field(T, 'trainable_token_indices', { lm_head: [1] }, 'UNSUPPORTED', 'lm_head');
  field(T, 'trainable_token_indices', {}, 'UNSUPPORTED|BAD_CONFIG', 'embed_tokens');
  field(T, 'bias', 0, C, 'expected a string');
  const missing = (key: string, value: unknown, detail: string, ...words: string[]) =>
    maker.add('adapter_config.json: what the tensors lack', `${key}: ${JSON.stringify(value)}`, 'adapter', maker.adapter, [ADAPTER, detail, PEFT_TENSORS, ...words], (files) =>
      editJson(files, PEFT_CONFIG, (config) => (config[key] = value)),
    ); // prettier-ignore
  missing('use_dora', true, 'MISSING_TENSOR', 'lora_magnitude_vector', 'use_dora');
  missing('lora_bias', true, 'MISSING_TENSOR', 'lora_B.bias', 'lora_bias');
  missing('trainable_token_indices', [1, 2], 'MISSING_TENSOR', 'trainable_token_indices');
}

export function peftTensors(maker: Maker): void {
  const bytes = bytesOf(maker.adapter, PEFT_TENSORS);
  const { header, rest } = parts(bytes);
  type Stored = { dtype: string; shape: number[]; data: Buffer };
  const sound = new Map(
    Object.entries(JSON.parse(header) as Record<string, { dtype: string; shape: number[]; data_offsets: number[] }>)
      .filter(([name]) => name !== '__metadata__')
      .map(([name, { dtype, shape, data_offsets }]): [string, Stored] => [name, { dtype, shape, data: rest.subarray(data_offsets[0], data_offsets[1]) }]),
  ); // prettier-ignore
  const add = (group: string, name: string, outcome: Outcome, change: (tensors: Map<string, Stored>) => void) =>
    maker.add(`adapter tensors: ${group}`, name, 'adapter', maker.adapter, outcome, (files) => {
      const tensors = new Map(sound);
      change(tensors);
      files.set(PEFT_TENSORS, safetensors(tensors));
    });
  const a = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight';
  const b = a.replace('lora_A', 'lora_B');
  const of = (name: string) => sound.get(name)!;
  const whole = (name: string, content: Buffer, detail: string, ...words: string[]) =>
    maker.add('adapter tensors: the file', name, 'adapter', maker.adapter, [INVALID, detail, PEFT_TENSORS, ...words], (files) => files.set(PEFT_TENSORS, content)); // prettier-ignore
  whole('empty', Buffer.alloc(0), 'TRUNCATED', 'has 0');
  whole('cut by a byte', bytes.subarray(0, -1), 'TRUNCATED', 'fetch it again');
  whole('cut in the header', bytes.subarray(0, 99), 'TRUNCATED', 'the file 99');
  whole('a GGUF file', readFileSync(join(adapters, 'plain-f16.gguf')), 'BAD_HEADER', 'it is a GGUF file');
  whole('a pickle', Buffer.from('PK\x03\x04'.repeat(9)), 'BAD_HEADER', 'at most');
  whole('bytes at the end', Buffer.concat([bytes, Buffer.alloc(1)]), 'BAD_HEADER', 'belong to no tensor');
  maker.add('adapter tensors: the file', 'missing', 'adapter', maker.adapter, ['ERR_FILE', undefined, PEFT_TENSORS], (files) => files.delete(PEFT_TENSORS)); // prettier-ignore

  add('pairs', 'no tensors', [ADAPTER, 'MISSING_TENSOR', PEFT_TENSORS, 'no tensors'], (tensors) => tensors.clear());
  add('pairs', 'A without B', [ADAPTER, 'MISSING_TENSOR', 'attn_q', 'both halves'], (tensors) => tensors.delete(b));
  add('pairs', 'B without A', [ADAPTER, 'MISSING_TENSOR', 'attn_q', 'both halves'], (tensors) => tensors.delete(a));
  add('pairs', 'two A', [ADAPTER, 'BAD_NAME|MISSING_TENSOR|DUPLICATE', 'q_proj'], (tensors) => {
    tensors.set(a.replace('model.layers', 'language_model.layers'), of(a));
  });
  const shape = (name: string, of_: string, change: (shape: number[]) => number[], ...words: string[]) =>
    add('shapes', name, [ADAPTER, 'BAD_TENSOR|BAD_RANK', PEFT_TENSORS, ...words], (tensors) => {
      const to = change(of(of_).shape);
      const size = to.reduce((product, dim) => product * dim, 4);
      tensors.set(of_, { ...of(of_), shape: to, data: Buffer.alloc(size) });
    });
  shape('A transposed', a, (all) => [...all].reverse(), 'lora_A', 'expected [', 'file has [');
  shape('B transposed', b, (all) => [...all].reverse(), 'lora_B', 'file has [');
  shape('A wider', a, ([r = 0, n = 0]) => [r, n + 1], 'lora_A', 'file has [');
  shape('A of another rank', a, ([r = 0, n = 0]) => [r + 1, n], 'lora_A', 'file has [');
  shape('B longer', b, ([n = 0, r = 0]) => [n + 1, r], 'lora_B', 'file has [');
  shape('B of another rank', b, ([n = 0, r = 0]) => [n, r + 1], 'lora_B', 'expected rank 2');
  shape('a vector', a, ([r = 0, n = 0]) => [r * n], 'lora_A', 'file has [');
  shape('three dimensions', b, (all) => [1, ...all], 'lora_B', 'file has [');
  shape('a scalar', a, () => [], 'lora_A', 'a scalar');
  shape('empty', a, () => [0, 16], 'lora_A', 'empty');
  for (const type of ['I32', 'U32', 'I8', 'BOOL', 'F64', 'F8_E4M3']) {
    add('types', type, [ADAPTER, 'BAD_TENSOR', PEFT_TENSORS, 'lora_A', 'F32, F16 or BF16', type], (tensors) => {
      const width = { F64: 8, I32: 4, U32: 4 }[type] ?? 1;
      const n = of(a).shape.reduce((x, y) => x * y, 1);
      tensors.set(a, { ...of(a), dtype: type, data: Buffer.alloc(n * width) });
    });
  }
  const renamed = (name: string, to: string, outcome: Outcome) =>
    add('names', name, outcome, (tensors) => {
      tensors.set(to, of(a));
      tensors.delete(a);
    });
  const N = 'BAD_NAME';
  renamed('no prefix', a.replace('base_model.', ''), [ADAPTER, N, PEFT_TENSORS, 'begins with base_model.model.']);
  renamed('an unknown part', a.replace('lora_A', 'lora_C'), [ADAPTER, N, PEFT_TENSORS, 'lora_C']);
  renamed('a module that is not there', a.replace('q_proj', 'z_proj'), [ADAPTER, N, PEFT_TENSORS, 'z_proj', 'no module']); // prettier-ignore
  renamed('a layer that is not there', a.replace('layers.0', 'layers.99'), [ADAPTER, 'MISSING_TENSOR|BAD_TENSOR', PEFT_TENSORS, '99|attn_q']); // prettier-ignore
  renamed('a layer too large', a.replace('layers.0', 'layers.99999999999'), [ADAPTER, N, PEFT_TENSORS, 'no module']);
  renamed('a negative layer', a.replace('layers.0', 'layers.-1'), [ADAPTER, N, PEFT_TENSORS, 'no module']);
  renamed('an empty name', '', [ADAPTER, N, PEFT_TENSORS, 'begins with']);
  renamed('control characters', 'base_model.model.\u001b[31m\nx', [
    ADAPTER,
    N,
    PEFT_TENSORS,
    'base_model.model. [31m x',
    'ends in',
  ]);
  renamed('a name of 100 KB', `base_model.model.${'x'.repeat(1e5)}.lora_A.weight`, [ADAPTER, N, PEFT_TENSORS, 'xxx...', 'no module']); // prettier-ignore
  renamed('a whole module that nobody named', 'base_model.model.model.norm.weight', [ADAPTER, N, PEFT_TENSORS, 'modules_to_save']); // prettier-ignore
  add('names', 'rows of tokens that nobody named', [ADAPTER, 'MISSING_TENSOR', PEFT_TENSORS, 'trainable_token_indices'], (tensors) => tensors.set('base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta', { dtype: 'F32', shape: [1, 32], data: Buffer.alloc(128) })); // prettier-ignore
  add('names', 'a vision tower that is not there', [ADAPTER, 'BAD_TENSOR', 'vision', 'mmproj'], (tensors) => {
    for (const name of [a, b]) {
      tensors.set(name.replace('model.model.layers', 'model.vision_tower.encoder.layers'), of(name));
      tensors.delete(name);
    }
  });
  for (const [what, value] of [
    ['NaN', NaN],
    ['infinity', Infinity],
    ['minus infinity', -Infinity],
  ] as const) {
    for (const tensor of [a, b]) {
      add('values', `${what} in ${tensor.slice(-13, -7)}`, [ADAPTER, 'NONFINITE', tensor, 'NaN or infinity'], (tensors) => {
        const spoiled = Buffer.from(of(tensor).data);
        spoiled.writeFloatLE(value, spoiled.length - 4);
        tensors.set(tensor, { ...of(tensor), data: spoiled });
      }); // prettier-ignore
    }
  }
}

type Key = readonly [name: string, type: number, value: Buffer];
interface GgufTensor {
  name: string;
  dims: readonly number[]; // innermost first
  type: number;
  data: Buffer;
  offset?: bigint;
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes;
}
function u64(value: bigint | number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)));
  return bytes;
}
function f32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value);
  return bytes;
}
const counted = (text: string) => Buffer.concat([u64(Buffer.byteLength(text)), Buffer.from(text)]);

/** A GGUF file. */
function gguf(keys: readonly Key[], tensors: readonly GgufTensor[], counts: [bigint, bigint] = [BigInt(tensors.length), BigInt(keys.length)]): Buffer {
  let offset = 0;
  const infos = tensors.map((tensor) => {
    const at = tensor.offset ?? BigInt(offset);
    offset += Math.ceil(tensor.data.length / 32) * 32;
    return Buffer.concat([counted(tensor.name), u32(tensor.dims.length), ...tensor.dims.map(u64), u32(tensor.type), u64(at)]);
  });
  const head = Buffer.concat([
    Buffer.from('GGUF'),
    u32(3),
    u64(counts[0]),
    u64(counts[1]),
    ...keys.flatMap(([name, type, value]) => [counted(name), u32(type), value]),
    ...infos,
  ]);
  const pad = (bytes: Buffer) => Buffer.concat([bytes, Buffer.alloc((32 - (bytes.length % 32)) % 32)]);
  return Buffer.concat([pad(head), ...tensors.map(({ data: bytes }) => pad(bytes))]);
} // prettier-ignore

const STRING = 8;
const FLOAT = 6;

/** The keys and tensors of a sound adapter in llama.cpp's form. */
function ggufAdapter(): { keys: Key[]; tensors: GgufTensor[] } {
  const tensor = (name: string, dims: readonly number[]): GgufTensor => {
    const values = Float32Array.from({ length: dims.reduce((x, y) => x * y, 1) }, (_, i) => (i % 7) / 64);
    return { name, dims, type: 0, data: Buffer.from(values.buffer) };
  };
  const { config } = checkpointOf(base, undefined, { layout: 'text' });
  const width = config.hidden_size as number;
  const rows = (config.num_attention_heads as number) * (config.head_dim as number);
  return {
    keys: [
      ['general.architecture', STRING, counted('gemma3')],
      ['general.type', STRING, counted('adapter')],
      ['adapter.type', STRING, counted('lora')],
      ['adapter.lora.alpha', FLOAT, f32(4)],
    ],
    tensors: [
      tensor('blk.0.attn_q.weight.lora_a', [width, 2]),
      tensor('blk.0.attn_q.weight.lora_b', [2, rows]),
    ],
  };
} // prettier-ignore

export function ggufAdapters(maker: Maker): void {
  const { keys, tensors } = ggufAdapter();
  const add = (group: string, name: string, outcome: Outcome, content: Buffer) =>
    maker.addFile(`adapter GGUF: ${group}`, name, 'adapter', 'adapter.gguf', outcome, content);
  const key = (name: string, of: string, type: number, value: Buffer, outcome: Outcome) =>
    add('metadata', name, outcome, gguf(keys.map((entry) => (entry[0] === of ? [of, type, value] : entry)), tensors)); // prettier-ignore
  const without = (of: string, outcome: Outcome) =>
    add('metadata', `no ${of}`, outcome, gguf(keys.filter(([name]) => name !== of), tensors)); // prettier-ignore
  for (const arch of ['llama', 'gemma2', 'gemma', 'gemma3n', '', 'clip']) {
    key(`architecture "${arch}"`, 'general.architecture', STRING, counted(arch), [ADAPTER, 'BAD_KIND', 'adapter.gguf', 'general.architecture', 'expected "gemma3"', `found "${arch}"`]); // prettier-ignore
  }
  for (const type of ['model', 'mmproj', 'imatrix', '']) {
    key(`type "${type}"`, 'general.type', STRING, counted(type), [ADAPTER, 'BAD_KIND', 'general.type', 'expected "adapter"', `found "${type}"`]); // prettier-ignore
  }
  for (const type of ['dora', 'control_vector', '']) {
    key(`kind "${type}"`, 'adapter.type', STRING, counted(type), [ADAPTER, 'BAD_KIND', 'adapter.type', 'expected "lora"', `found "${type}"`]); // prettier-ignore
  }
  for (const needed of ['general.architecture', 'general.type', 'adapter.type']) {
    without(needed, [ADAPTER, 'BAD_KIND', needed, 'expected', 'found ""']);
    key(`${needed} as a number`, needed, 4, u32(1), [GGUF, 'BAD_TYPE', needed, 'expected a string']);
  }
  key('alpha as a string', 'adapter.lora.alpha', STRING, counted('4'), [GGUF, 'BAD_TYPE', 'adapter.lora.alpha']);
  key('alpha NaN', 'adapter.lora.alpha', FLOAT, f32(NaN), [ADAPTER, 'NONFINITE', 'attn_q', 'scale']);
  key('alpha infinite', 'adapter.lora.alpha', FLOAT, f32(Infinity), [ADAPTER, 'NONFINITE', 'attn_q', 'scale']);
  add('metadata', 'a key twice', [GGUF, 'DUPLICATE', 'adapter.type'], gguf([...keys, keys[2] as Key], tensors));
  add('metadata', 'aLoRA', [ADAPTER, 'UNSUPPORTED', 'aLoRA'], gguf([...keys, ['adapter.alora.invocation_tokens', 9, Buffer.concat([u32(4), u64(1), u32(5)])]], tensors)); // prettier-ignore
  add('metadata', 'a model', [ADAPTER, 'BAD_KIND', 'general.type', 'adapter'], readFileSync(base));

  const whole = gguf(keys, tensors);
  add('the file', 'empty', [GGUF, 'TRUNCATED', 'adapter.gguf'], Buffer.alloc(0));
  add('the file', 'cut in the header', [GGUF, 'TRUNCATED'], whole.subarray(0, 150));
  add('the file', 'cut in the data', [GGUF, 'TRUNCATED', 'fetch it again'], whole.subarray(0, -40));
  add(
    'the file',
    'another magic',
    [GGUF, 'BAD_MAGIC', 'GGUX'],
    Buffer.concat([Buffer.from('GGUX'), whole.subarray(4)]),
  );
  add('the file', 'version 99', [GGUF, 'BAD_VERSION', 'found 99'], Buffer.concat([whole.subarray(0, 4), u32(99), whole.subarray(8)])); // prettier-ignore
  add('the file', '2^60 tensors', [GGUF, 'COUNT_LIMIT', 'tensors'], gguf(keys, tensors, [2n ** 60n, BigInt(keys.length)])); // prettier-ignore
  add('the file', '2^63 keys', [GGUF, 'COUNT_LIMIT', 'metadata'], gguf(keys, tensors, [2n, 2n ** 63n]));
  add('the file', 'no adapter at all', [GGUF, 'BAD_MAGIC'], Buffer.from('{"peft_type":"LORA"}'));

  const [a, b] = tensors as [GgufTensor, GgufTensor];
  const only = (name: string, outcome: Outcome, ...all: GgufTensor[]) => add('tensors', name, outcome, gguf(keys, all));
  const T = 'adapter.gguf';
  only('none', [ADAPTER, 'MISSING_TENSOR', T, 'no tensors']);
  only('A without B', [ADAPTER, 'MISSING_TENSOR', 'attn_q', 'both halves'], a);
  only('B without A', [ADAPTER, 'MISSING_TENSOR', 'attn_q', 'both halves'], b);
  only('A twice', [GGUF, 'DUPLICATE', 'lora_a'], a, a, b);
  only('another ending', [ADAPTER, 'BAD_NAME', T, 'lora_c', '.lora_a or .lora_b'], { ...a, name: 'blk.0.attn_q.weight.lora_c' }, b); // prettier-ignore
  only('an ending alone', [ADAPTER, 'BAD_TENSOR|MISSING_TENSOR', 'lora'], { ...a, name: '.lora_a' }, { ...b, name: '.lora_b' }); // prettier-ignore
  const both = (name: string, of: string, ...words: string[]) =>
    only(name, [ADAPTER, 'BAD_TENSOR', ...words], { ...a, name: `${of}.lora_a` }, { ...b, name: `${of}.lora_b` });
  both('a layer that is not there', 'blk.99.attn_q.weight', 'blk.99', 'no such tensor');
  both('a tensor that is not there', 'blk.0.attn_x.weight', 'attn_x', 'no such tensor');
  both('a norm', 'blk.0.attn_norm.weight', 'attn_norm', 'not supported');
  both('a vision encoder', 'v.blk.0.attn_q.weight', 'vision encoder', 'mmproj');
  both('the embedding in another layout', 'token_embd.weight', 'token_embd', 'expected [', 'file has [');
  only('of another model', [ADAPTER, 'BAD_TENSOR|BAD_RANK', 'lora_', 'expected [', 'file has ['], { ...a, dims: [a.dims[0]! / 2, 4] }, b); // prettier-ignore
  only('A of another rank', [ADAPTER, 'BAD_TENSOR', 'lora_a', 'expected [2', 'file has [1'], { ...a, dims: [a.dims[0]!, 1], data: a.data.subarray(0, a.data.length / 2) }, b); // prettier-ignore
  only('a rank of 5000', [ADAPTER, 'BAD_RANK', 'lora_b', '1 to 4096'], a, { ...b, dims: [5000, 2], data: Buffer.alloc(40000) }); // prettier-ignore
  only('three dimensions', [ADAPTER, 'BAD_TENSOR|BAD_RANK', 'lora_b', 'file has ['], a, { ...b, dims: [...b.dims, 1] });
  only('no dimensions', [GGUF, 'BAD_SHAPE', 'lora_a', 'found 0'], { ...a, dims: [] }, b);
  only('a dimension of 0', [GGUF, 'BAD_SHAPE', 'lora_a', 'is 0'], { ...a, dims: [0, 2] }, b);
  only('a negative dimension', [GGUF, 'BAD_SHAPE', 'lora_a', 'is -1'], { ...a, dims: [-1, 2] }, b);
  only('a product that overflows', [GGUF, 'BAD_SHAPE', 'overflows'], { ...a, dims: [2 ** 40, 2 ** 40] }, b);
  only('an offset past the end', [GGUF, 'BAD_OFFSET', 'lora_a'], { ...a, offset: 2n ** 62n }, b);
  only('an offset that is not aligned', [GGUF, 'BAD_OFFSET', 'lora_a', 'alignment 32'], { ...a, offset: 1n }, b);
  only('one over the other', [GGUF, 'BAD_OFFSET', 'lies inside'], a, { ...b, offset: 0n });
  only('type 4', [GGUF, 'BAD_TENSOR_TYPE', 'lora_a', 'type 4'], { ...a, type: 4 }, b);
  only('type -1', [GGUF, 'BAD_TENSOR_TYPE', 'lora_a'], { ...a, type: -1 }, b);
  only('quantised', [ADAPTER, 'BAD_TENSOR', 'lora_a', 'F32, F16, BF16', 'Q8_0'], { ...a, type: 8, data: Buffer.alloc((a.dims[0]! * 2 * 34) / 32) }, b); // prettier-ignore
  for (const [what, value] of [['NaN', NaN], ['infinity', Infinity]] as const) {
    const spoiled = Buffer.from(b.data);
    spoiled.writeFloatLE(value, 4);
    only(what, [ADAPTER, 'NONFINITE', 'lora_b', 'NaN or infinity'], a, { ...b, data: spoiled });
  } // prettier-ignore
}
