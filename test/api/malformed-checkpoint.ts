// Malformed checkpoints: weights, their index, and the configurations beside them. What the format's reference refuses is refused;
// where a reader here is stricter, json.h says so.
import { readFileSync } from 'node:fs';
import { file, safetensors } from './checkpoint.js';
import {
  base,
  type Files,
  type Outcome,
  type Words,
  INVALID,
  UNSUPPORTED,
  type Maker,
  bytesOf,
  replace,
  edit,
  editJson,
  parts,
  editHeader,
  shardName,
  CONFIG,
  GENERATION,
  TOKENIZER_CONFIG,
  WEIGHTS,
} from './malformed-maker.js';

const Q = 'model.layers.0.self_attn.q_proj.weight';

export function weights(maker: Maker): void {
  const { checkpoint } = maker;
  const whole = (group: string, name: string, outcome: Words & { 0: string }, make: (bytes: Buffer) => Buffer) => {
    const [detail, ...words] = outcome;
    maker.add(group, name, 'model', maker.sound, [INVALID, detail, WEIGHTS, ...words], (files) =>
      files.set(WEIGHTS, make(bytesOf(files, WEIGHTS))),
    );
  };
  const length = 'safetensors: length of the header';
  whole(length, 'an empty file', ['TRUNCATED', '8 bytes', 'has 0'], () => Buffer.alloc(0));
  whole(length, 'seven bytes', ['TRUNCATED', '8 bytes', 'has 7'], () => Buffer.alloc(7));
  whole(length, 'zeros', ['BAD_HEADER', 'the text ends'], () => Buffer.alloc(64));
  whole(length, 'longer than the file', ['TRUNCATED', '99 bytes', 'the file 10'], () => file('{}', undefined, 99n));
  whole(length, 'longer by one', ['TRUNCATED', '3 bytes', 'the file 10'], () => file('{}', undefined, 3n));
  whole(length, 'at the limit', ['TRUNCATED', '100000000 bytes'], () => file('{}', undefined, 100_000_000n));
  for (const n of [100_000_001n, 2n ** 31n, 2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n]) {
    whole(length, `${n} bytes`, ['BAD_HEADER', String(n), 'at most 100000000'], () => file('{}', undefined, n));
  }
  whole(length, 'of none', ['BAD_HEADER', 'the text ends'], () => file(''));
  whole(length, 'a GGUF file', ['BAD_HEADER', 'it is a GGUF file'], () => readFileSync(base));
  whole(length, 'a Git LFS pointer', ['BAD_HEADER', 'Git LFS pointer'], () =>
    Buffer.from('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n'),
  );
  whole(length, 'a zip archive', ['BAD_HEADER', 'at most 100000000'], () => Buffer.from('PK\x03\x04'.repeat(9)));
  whole(length, 'cut in the header', ['TRUNCATED', 'the file 100'], (bytes) => bytes.subarray(0, 100));
  whole(length, 'cut by a byte', ['TRUNCATED', 'fetch it again'], (bytes) => bytes.subarray(0, -1));
  whole(length, 'cut in half', ['TRUNCATED', 'fetch it again'], (bytes) => bytes.subarray(0, bytes.length >> 1));
  whole(length, 'bytes at the end', ['BAD_HEADER', 'belong to no tensor'], (bytes) =>
    Buffer.concat([bytes, Buffer.alloc(4)]),
  );

  const json = 'safetensors: JSON of the header';
  const asHeader = (name: string, text: string | Buffer, ...words: string[]) =>
    whole(json, name, ['BAD_HEADER', ...words], () => file(text));
  asHeader('a list', '[]', 'expected an object', 'found an array');
  asHeader('a string', '"x"', 'expected an object', 'found a string');
  asHeader('a number', '1', 'expected an object', 'found a number');
  asHeader('null', 'null', 'expected an object', 'found null');
  asHeader('blanks', '        ', 'the text ends');
  asHeader('not closed', '{"a":', '"a"', 'the text ends');
  asHeader('nested 10^5 deep', `{"a":{"x":${'['.repeat(1e5)}`, 'more than 64');
  asHeader('objects 10^5 deep', '{"a":'.repeat(1e5), '"a"', 'more than 64');
  asHeader('no UTF-8', Buffer.from('{"\xff":1}', 'latin1'), 'not valid UTF-8', 'byte 2');
  asHeader('an overlong form', Buffer.from('{"\xc0\xaf":1}', 'latin1'), 'not valid UTF-8');
  asHeader('half of a surrogate pair', '{"\\ud800":1}', 'surrogate');
  asHeader('an escape that is none', '{"\\x":1}', 'no such escape');
  asHeader('a control character', '{"\n":1}', 'control character');
  asHeader('a zero byte', '{"a\0":1}', 'control character');
  asHeader('a byte order mark', '\ufeff{}', 'byte 0');
  asHeader('a comment', '{/* x */}', 'expected a key');
  asHeader('single quotes', "{'a':1}", 'expected a key');
  asHeader('a key without a value', '{"a"}', 'expected a colon');
  asHeader('a key that is a number', '{1:{}}', 'expected a key');
  asHeader('a string without an end', '{"a', 'without an end');
  asHeader('a tensor that is no object', '{"a":[1]}', '"a"', 'expected an object', 'found an array');
  whole(json, 'a comma too many', ['BAD_HEADER', 'expected a key'], (bytes) => {
    const { header, rest } = parts(bytes);
    return file(replace(header, /\}$/, ',}'), rest);
  });
  whole(json, 'text behind', ['BAD_HEADER', 'expected the end'], (bytes) => {
    const { header, rest } = parts(bytes);
    return file(`${header}x`, rest);
  });
  whole(json, 'zeros behind', ['BAD_HEADER', 'expected the end'], (bytes) => {
    const { header, rest } = parts(bytes);
    return file(`${header}\0\0`, rest);
  });

  const header = (group: string, name: string, from: string | RegExp, to: string, detail: string, ...words: string[]) =>
    maker.add(group, name, 'model', maker.sound, [INVALID, detail, WEIGHTS, ...words], (files) =>
      editHeader(files, WEIGHTS, from, to),
    );
  const twice = 'safetensors: duplicates';
  const first = /"([^"]+)":\{"dtype":"(\w+)","shape":\[[\d,]+\],"data_offsets":\[\d+,\d+\]\}/.exec(
    parts(bytesOf(maker.sound, WEIGHTS)).header,
  );
  const [entry = '', firstName = ''] = first ?? [];
  header(twice, 'a tensor', entry, `${entry},${entry}`, 'DUPLICATE', firstName, 'comes twice');
  header(twice, 'a tensor, once with escapes', entry, `${entry},${entry.replace('"m', '"\\u006d')}`, 'DUPLICATE', firstName); // prettier-ignore
  header(twice, 'metadata', '"__metadata__"', '"__metadata__":{},"__metadata__"', 'DUPLICATE', '__metadata__');
  header(twice, 'a key of metadata', '"format":"pt"', '"format":"pt","format":"pt"', 'DUPLICATE', 'format');
  header(twice, 'a type', '"dtype":"F16"', '"dtype":"F16","dtype":"F16"', 'DUPLICATE', 'dtype');
  header(twice, 'a shape', /"shape":\[/, '"shape":[1],"shape":[', 'DUPLICATE', 'shape');
  header(twice, 'offsets', /"data_offsets":\[/, '"data_offsets":[0,1],"data_offsets":[', 'DUPLICATE', 'data_offsets');

  const offsets = 'safetensors: offsets';
  const first16 = /"data_offsets":\[0,(\d+)\]/;
  const end = Number(first16.exec(parts(bytesOf(maker.sound, WEIGHTS)).header)?.[1]);
  const offset = (name: string, to: string, detail: string, ...words: string[]) =>
    header(offsets, name, first16, `"data_offsets":${to}`, detail, ...words);
  offset('a hole at the beginning', `[2,${end + 2}]`, 'BAD_HEADER', 'begin at', 'there is a hole');
  offset('over the next', `[4,${end + 4}]`, 'BAD_HEADER', 'they overlap|there is a hole');
  offset('beyond the file', `[${2 ** 40},${2 ** 40 + end}]`, 'BAD_HEADER', 'there is a hole');
  offset('the end before the beginning', `[${end},0]`, 'BAD_HEADER', 'end at 0', `before ${end}`);
  offset('negative', `[-2,${end - 2}]`, 'BAD_HEADER', 'data_offsets', 'integer from 0', 'found -2');
  offset('a fraction', `[0.5,${end}]`, 'BAD_HEADER', 'data_offsets', 'found 0.5');
  offset('a whole number as a fraction', `[0,${end}.0]`, 'BAD_HEADER', 'data_offsets', `found ${end}.0`);
  offset('with an exponent', '[0,1e2]', 'BAD_HEADER', 'data_offsets', 'found 1e2');
  offset('2^53 + 1', `[9007199254740993,${9007199254740993n + BigInt(end)}]`, 'BAD_HEADER', 'there is a hole');
  offset('2^63', '[0,9223372036854775808]', 'BAD_HEADER', 'found 9223372036854775808');
  offset('2^64 + the right one', `[0,${2n ** 64n + BigInt(end)}]`, 'BAD_HEADER', 'expected an integer');
  offset('a number of 400 digits', `[0,${'9'.repeat(400)}]`, 'BAD_HEADER', 'expected an integer');
  offset('as strings', `["0","${end}"]`, 'BAD_HEADER', 'expected an integer', 'found a string');
  offset('null', '[null,null]', 'BAD_HEADER', 'found null');
  offset('one', '[0]', 'BAD_HEADER', 'expected 2 offsets', 'found 1');
  offset('three', `[0,${end},${end}]`, 'BAD_HEADER', 'expected 2 offsets', 'found 3');
  offset('none', '[]', 'BAD_HEADER', 'expected 2 offsets', 'found 0');
  offset('no list', `{"0":${end}}`, 'BAD_HEADER', 'expected an array', 'found an object');
  offset('more bytes than the shape', `[0,${end + 2}]`, 'BAD_SHAPE', String(end), String(end + 2));
  offset('fewer bytes than the shape', `[0,${end - 2}]`, 'BAD_SHAPE', String(end), String(end - 2));
  header(offsets, 'missing', /,"data_offsets":\[[^\]]*\]/, '', 'BAD_HEADER', 'data_offsets is missing');
  whole(offsets, 'two tensors in the same bytes', ['BAD_HEADER', 'they overlap'], () => {
    const entryOf = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}';
    return file(`{"a":${entryOf},"b":${entryOf}}`, Buffer.alloc(4));
  });
  whole(offsets, 'a hole between two', ['BAD_HEADER', '"b"', 'begin at 5', 'ends at 4', 'hole'], () => {
    const entryOf = (from: number) => `{"dtype":"F32","shape":[1],"data_offsets":[${from},${from + 4}]}`;
    return file(`{"b":${entryOf(5)},"a":${entryOf(0)}}`, Buffer.alloc(9));
  });

  const types = 'safetensors: types of tensors';
  for (const type of ['F17', 'f16', 'float16', '', 'Q4_K', 'F'.repeat(1e5)]) {
    header(types, `"${type.slice(0, 9)}"`, '"dtype":"F16"', `"dtype":"${type}"`, 'BAD_HEADER', 'dtype', 'there is no type'); // prettier-ignore
  }
  header(types, 'a number', '"dtype":"F16"', '"dtype":1', 'BAD_HEADER', 'dtype', 'expected a string', 'a number');
  header(types, 'null', '"dtype":"F16"', '"dtype":null', 'BAD_HEADER', 'dtype', 'expected a string', 'null');
  header(types, 'missing', '"dtype":"F16",', '', 'BAD_HEADER', 'dtype is missing');
  header(types, 'one that is wider', '"dtype":"F16"', '"dtype":"F32"', 'BAD_SHAPE', 'in type F32 takes');
  header(types, 'one that is narrower', '"dtype":"F16"', '"dtype":"U8"', 'BAD_SHAPE', 'in type U8 takes');
  const typed = (type: string, shape: (rows: number[]) => number[]) =>
    maker.add(types, type, 'model', maker.sound, [UNSUPPORTED, 'TENSOR_TYPE', 'safetensors|/', Q, type, 'F32, F16 or BF16'], (files) => {
      const tensors = new Map(checkpoint.tensors);
      const q = tensors.get(Q)!;
      tensors.set(Q, { ...q, dtype: type, shape: shape(q.shape) });
      files.set(WEIGHTS, safetensors(tensors));
    }); // prettier-ignore
  for (const type of ['I16', 'U16']) typed(type, (shape) => shape);
  for (const type of ['F8_E4M3', 'F8_E5M2', 'I8', 'BOOL']) typed(type, (shape) => [2, ...shape]);
  typed('F4', (shape) => [4, ...shape]);
  typed('F64', ([rows = 0, columns = 0]) => [rows, columns / 4]);

  const shapes = 'safetensors: shapes';
  const shape = (name: string, to: string, detail: string, ...words: string[]) =>
    header(shapes, name, /"shape":\[\d+,\d+\]/, `"shape":${to}`, detail, ...words);
  shape('negative', '[-1,2]', 'BAD_HEADER', 'shape', 'found -1');
  shape('a fraction', '[2.0,2]', 'BAD_HEADER', 'shape', 'found 2.0');
  shape('2^63', '[9223372036854775808]', 'BAD_HEADER', 'shape', 'found 9223372036854775808');
  shape('a string', '["2",2]', 'BAD_HEADER', 'shape', 'found a string');
  shape('a number', '4', 'BAD_HEADER', 'shape', 'expected an array', 'a number');
  shape('nested', '[[2],2]', 'BAD_HEADER', 'shape', 'found an array');
  shape('null', 'null', 'BAD_HEADER', 'shape', 'found null');
  shape('a product of 2^64', '[4294967296,4294967296]', 'BAD_SHAPE', 'overflows');
  shape('a product that is right modulo 2^64', '[4294967296,4294967296,0,1]', 'BAD_SHAPE', 'overflows');
  shape('bits that overflow', '[4611686018427387904]', 'BAD_SHAPE', 'overflows');
  shape('one row more', '[9999999,1]', 'BAD_SHAPE', '[9999999, 1]', 'takes 19999998 bytes');
  shape('empty', '[0]', 'BAD_SHAPE', 'takes 0 bytes');
  header(shapes, 'missing', /"shape":\[[^\]]*\],/, '', 'BAD_HEADER', 'shape is missing');
  const shaped = (name: string, change: (shape: number[]) => number[]) =>
    maker.add(shapes, name, 'model', maker.sound, [INVALID, 'BAD_TENSOR', '/', Q, 'expected [', 'file has ['], (files) => {
      const tensors = new Map(checkpoint.tensors);
      const q = tensors.get(Q)!;
      tensors.set(Q, { ...q, shape: change(q.shape) });
      files.set(WEIGHTS, safetensors(tensors));
    }); // prettier-ignore
  shaped('transposed', (all) => [...all].reverse());
  shaped('flat', ([rows = 0, columns = 0]) => [rows * columns]);
  shaped('of three dimensions', (all) => [1, ...all]);
  shaped('of a thousand dimensions', (all) => [...all, ...Array.from({ length: 1000 }, () => 1)]);
  shaped('halved and doubled', ([rows = 0, columns = 0]) => [rows / 2, columns * 2]);

  const metadata = 'safetensors: metadata';
  const meta = /"__metadata__":\{[^}]*\}/;
  header(metadata, 'a list', meta, '"__metadata__":[]', 'BAD_HEADER', '__metadata__', 'found an array');
  header(metadata, 'a string', meta, '"__metadata__":"pt"', 'BAD_HEADER', '__metadata__', 'found a string');
  header(metadata, 'a number in it', '"format":"pt"', '"format":1', 'BAD_HEADER', 'format', 'expected a string');
  header(metadata, 'null in it', '"format":"pt"', '"format":null', 'BAD_HEADER', 'format', 'found null');
  header(metadata, 'an object in it', '"format":"pt"', '"format":{}', 'BAD_HEADER', 'format', 'found an object');

  const names = 'safetensors: which tensors there are';
  const named = (name: string, words: Words, change: (tensors: typeof checkpoint.tensors) => void) =>
    maker.add(names, name, 'model', maker.sound, [INVALID, 'BAD_TENSOR', '/', ...words], (files) => {
      const tensors = new Map(checkpoint.tensors);
      change(tensors);
      files.set(WEIGHTS, safetensors(tensors));
    });
  named('none', ['missing', 'embed_tokens'], (tensors) => tensors.clear());
  named('one is missing', ['self_attn.q_proj', 'missing'], (tensors) => tensors.delete(Q));
  named('a norm is missing', ['norm.weight', 'missing'], (tensors) => tensors.delete('model.norm.weight'));
  const renamed = (name: string, to: string, words: Words) =>
    named(name, words, (tensors) => {
      tensors.set(to, tensors.get(Q)!);
      tensors.delete(Q);
    });
  renamed('of an unknown name', 'model.extra.weight', ['model.extra.weight', 'no such tensor']);
  renamed('an empty name', '', ['""', 'no such tensor']);
  renamed('a layer too many', Q.replace('0', '99'), ['no such|missing']);
  renamed('a layer with a leading zero', Q.replace('0', '00'), ['layers.00', 'no such tensor']);
  renamed('a negative layer', Q.replace('0', '-1'), ['layers.-1', 'no such tensor']);
  renamed('a layer of 2^32', Q.replace('0', '4294967296'), ['layers.4294967296', 'no such tensor']);
  renamed('control characters in a name', 'model.\u001b[31m\nx', ['\\x1b', '\\x0a', 'no such tensor']);
  renamed('a name of 100 KB', `model.${'x'.repeat(1e5)}`, ['model.xxx', '...', 'no such tensor']);
  named('in two layouts', ['twice', Q], (tensors) => tensors.set(`language_model.${Q}`, tensors.get(Q)!));
  named('a vision encoder without its configuration', ['vision'], (tensors) =>
    tensors.set('model.vision_tower.post_layernorm.bias', tensors.get(Q)!),
  );
  named('many that are unknown', ['no such tensor'], (tensors) => {
    for (let i = 0; i < 20_000; ++i) tensors.set(`t${i}`, { dtype: 'F16', shape: [0], data: Buffer.alloc(0) });
  });
}

export function shards(maker: Maker): void {
  const group = 'shards';
  const INDEX = 'model.safetensors.index.json';
  const add = (name: string, outcome: Outcome, change: (files: Files) => void) =>
    maker.add(group, name, 'model', maker.sharded, outcome, change);
  const index = (name: string, text: string, detail: string, ...words: string[]) =>
    add(name, [INVALID, detail, INDEX, ...words], (files) => files.set(INDEX, Buffer.from(text)));
  index('an empty index', '', 'BAD_INDEX', 'the text ends');
  index('an index that is a list', '[]', 'BAD_INDEX', 'expected an object');
  index('no map', '{"metadata":{"total_size":1}}', 'BAD_INDEX', 'weight_map', 'missing');
  index('an empty map', '{"weight_map":{}}', 'BAD_INDEX', 'names no file');
  index('a map that is a list', '{"weight_map":[]}', 'BAD_INDEX', 'weight_map', 'found an array');
  index('a file that is a number', '{"weight_map":{"a":1}}', 'BAD_INDEX', '"a"', 'found a number');
  index('nested 10^5 deep', `{"weight_map":${'{"a":'.repeat(1e5)}`, 'BAD_INDEX', 'expected a string|more than');
  index('two maps', '{"weight_map":{},"weight_map":{}}', 'DUPLICATE', 'weight_map');
  for (const [what, name] of [
    ['a path upwards', '../sound/model.safetensors'],
    ['an absolute path', '/etc/model.safetensors'],
    ['a folder', 'x/model.safetensors'],
    ['a path of Windows', '..\\sound\\model.safetensors'],
    ['a drive', 'C:model.safetensors'],
    ['a zero byte', 'model.safetensors\\u0000.safetensors'],
    ['a hidden file', '.safetensors'],
    ['another kind of file', 'pytorch_model.bin'],
    ['an empty name', ''],
    ['the index itself', INDEX],
  ] as const) {
    const text = name.includes('u0000') ? name : JSON.stringify(name).slice(1, -1);
    index(what, `{"weight_map":{"a":"${text}"}}`, 'BAD_INDEX', 'expected the name of a .safetensors file');
  }
  add(
    'a file that is not there',
    [INVALID, 'MISSING_SHARD', 'none.safetensors', 'missing', '1 of the model'],
    (files) => files.set(INDEX, Buffer.from('{"weight_map":{"a":"none.safetensors"}}')),
  );
  const many = Object.fromEntries(Array.from({ length: 1025 }, (_, i) => [`t${i}`, `m${i}.safetensors`]));
  index('1025 files', JSON.stringify({ weight_map: many }), 'BAD_INDEX', 'more than 1024');
  add('a missing file', [INVALID, 'MISSING_SHARD', shardName(2), 'missing', 'fetch it again'], (files) =>
    files.delete(shardName(2)),
  );
  add('a cut file', [INVALID, 'TRUNCATED', shardName(2)], (files) =>
    files.set(shardName(2), bytesOf(files, shardName(2)).subarray(0, -9)),
  );
  add('an empty file', [INVALID, 'TRUNCATED', shardName(3), 'has 0'], (files) =>
    files.set(shardName(3), Buffer.alloc(0)),
  );
  add('two files in each other’s place', [INVALID, 'BAD_INDEX', 'the index says'], (files) => {
    const one = bytesOf(files, shardName(1));
    files.set(shardName(1), bytesOf(files, shardName(2)));
    files.set(shardName(2), one);
  });
  add('a file of another model’s', [INVALID, 'BAD_INDEX', shardName(1), 'the index says'], (files) =>
    files.set(shardName(1), bytesOf(maker.sound, WEIGHTS)),
  );
  add('a tensor in another file', [INVALID, 'BAD_INDEX', 'is in this file', shardName(2)], (files) =>
    edit(files, INDEX, shardName(1), shardName(2)),
  );
  add('a tensor that is nowhere', [INVALID, 'BAD_INDEX', INDEX, '"x"', 'it is not'], (files) =>
    edit(files, INDEX, '"weight_map":{', `"weight_map":{"x":"${shardName(1)}",`),
  );
  add('a tensor twice', [INVALID, 'DUPLICATE', INDEX, Q], (files) =>
    edit(files, INDEX, '"weight_map":{', `"weight_map":{"${Q}":"${shardName(1)}",`),
  );
  add('a tensor in two files', [INVALID, 'BAD_INDEX', 'the index says'], (files) => {
    files.set(shardName(3), safetensors(new Map(maker.checkpoint.tensors)));
  });
}

export function configurations(maker: Maker): void {
  const add = (group: string, name: string, outcome: Outcome, change: (files: Files) => void) =>
    maker.add(group, name, 'model', maker.sound, outcome, change);
  const text = (name: string, content: string | Buffer, detail: string, ...words: string[]) =>
    add('config.json: JSON', name, [INVALID, detail, CONFIG, ...words], (files) => files.set(CONFIG, Buffer.from(content))); // prettier-ignore
  const P = 'BAD_HPARAM';
  text('empty', '', P, 'the text ends');
  text('not closed', '{', P, 'expected a key|the end');
  text('null', 'null', P, 'expected an object', 'found null');
  text('a list', '[{}]', P, 'expected an object', 'found an array');
  text('a key twice', '{"model_type":"gemma3_text","model_type":"gemma3_text"}', 'DUPLICATE', 'model_type', 'twice');
  text('nested 10^5 deep', `{"x":${'['.repeat(1e5)}`, P, '[0]', 'more than 32');
  text('no UTF-8', Buffer.from('{"x":"\xff"}', 'latin1'), P, '"x"', 'not valid UTF-8');
  text('UTF-16', Buffer.from('\ufeff{"model_type":"gemma3_text"}', 'utf16le'), P, 'byte 0');
  text('a byte order mark', '\ufeff{}', P, 'byte 0');
  text('NaN', '{"rms_norm_eps":NaN}', P, 'rms_norm_eps', 'expected a value', '"N"');
  text('Infinity', '{"rope_theta":Infinity}', P, 'rope_theta', 'expected a value', '"I"');
  text('-Infinity', '{"rope_theta":-Infinity}', P, 'rope_theta', 'expected a digit');
  text('1e999', '{"rope_theta":1e999}', P, 'rope_theta', 'found 1e999');
  text('a leading zero', '{"hidden_size":064}', P, 'hidden_size', 'leading zero');
  text('a hexadecimal number', '{"hidden_size":0x40}', P, 'hidden_size');
  text('text behind', '{} {}', P, 'expected the end');
  text('YAML', 'model_type: gemma3_text\n', P, 'expected');
  text('a million values', `{"x":[${'1,'.repeat(1 << 20)}1]}`, P, '"x"', 'values are not accepted');
  add('config.json: JSON', 'above 4 MiB', ['ERR_FILE', 'FILE_TOO_LARGE', CONFIG, '4194304', '4194305'], (files) =>
    files.set(CONFIG, Buffer.alloc(4194305, ' ')),
  );

  // Of every field a value of each wrong type.
  const field = (group: string, key: string, value: unknown, outcome: Outcome) =>
    add(group, `${key}: ${JSON.stringify(value)?.slice(0, 60)}`, outcome, (files) =>
      editJson(files, CONFIG, (config) => (config[key] = value)),
    );
  const wrong = 'config.json: types of values';
  const integers = ['hidden_size', 'num_hidden_layers', 'intermediate_size', 'num_attention_heads', 'num_key_value_heads', 'head_dim', 'vocab_size', 'max_position_embeddings', 'sliding_window', 'sliding_window_pattern']; // prettier-ignore
  for (const key of integers) {
    for (const [value, found] of [
      ['64', 'a string'],
      [true, 'true or false'],
      [[64], 'an array'],
      [{}, 'an object'],
    ] as const) {
      field(wrong, key, value, [INVALID, P, CONFIG, key, 'expected an integer', `found ${found}`]);
    }
    field(wrong, key, 1.5, [INVALID, P, CONFIG, key, 'integer from', 'found 1.5']);
  }
  const numbers = ['query_pre_attn_scalar', 'rms_norm_eps', 'final_logit_softcapping', 'rope_theta', 'rope_local_base_freq', 'attn_logit_softcapping']; // prettier-ignore
  for (const key of numbers) {
    field(wrong, key, '1', [INVALID, P, CONFIG, key, 'expected a number', 'found a string']);
    field(wrong, key, [1], [INVALID, P, CONFIG, key, 'expected a number', 'found an array']);
  }
  for (const key of ['tie_word_embeddings', 'attention_bias', 'use_bidirectional_attention']) {
    field(wrong, key, 'false', [INVALID, P, CONFIG, key, 'expected true or false', 'found a string']);
    field(wrong, key, 0, [INVALID, P, CONFIG, key, 'expected true or false', 'found a number']);
  }
  for (const key of ['bos_token_id', 'pad_token_id', 'eos_token_id']) {
    field(wrong, key, '2', [INVALID, P, CONFIG, key, 'expected an integer', 'found a string']);
    field(wrong, key, 2.5, [INVALID, P, CONFIG, key, 'integer', 'found 2.5']);
  }
  for (const key of ['model_type', 'hidden_activation']) {
    field(wrong, key, 3, [INVALID, P, CONFIG, key, 'expected a string', 'found a number']);
  }
  for (const key of ['rope_parameters', 'rope_scaling', 'text_config', 'vision_config', 'quantization_config']) {
    field(wrong, key, 'x', [INVALID, P, CONFIG, key, 'expected an object', 'found a string']);
    field(wrong, key, [], [INVALID, P, CONFIG, key, 'expected an object', 'found an array']);
  }
  field(wrong, 'layer_types', 'full_attention', [INVALID, P, CONFIG, 'layer_types', 'expected an array']);
  field(wrong, 'layer_types', [1], [INVALID, P, CONFIG, 'layer_types', 'expected a string', 'found a number']);

  const extreme = 'config.json: extreme values';
  for (const key of integers) {
    field(extreme, key, 0, [INVALID, P, CONFIG, key, 'integer from', 'found 0']);
    field(extreme, key, -1, [INVALID, P, CONFIG, key, 'integer from', 'found -1']);
    field(extreme, key, 2 ** 31, [INVALID, P, CONFIG, key, 'integer from', 'found 2147483648']);
    field(extreme, key, 2 ** 53, [INVALID, P, CONFIG, key, 'integer from', 'found 9007199254740992']);
  }
  for (const key of ['query_pre_attn_scalar', 'rms_norm_eps', 'rope_theta', 'rope_local_base_freq']) {
    field(extreme, key, -1, [INVALID, P, CONFIG, key, 'expected', 'found -1']);
    field(extreme, key, 1e300, [INVALID, P, CONFIG, key, 'expected', 'found 1e+300']);
  }
  field(extreme, 'final_logit_softcapping', -1, [INVALID, P, CONFIG, 'final_logit_softcapping', 'found -1']);
  field(
    extreme,
    'eos_token_id',
    Array.from({ length: 1025 }, () => 1),
    [INVALID, P, CONFIG, 'eos_token_id', '1024'],
  );
  field(extreme, 'layer_types', Array.from({ length: 513 }, () => 'full_attention'), [INVALID, P, CONFIG, 'layer_types']); // prettier-ignore
  for (const [key, value, found] of [
    ['eos_token_id', [1, 99999], '99999'],
    ['pad_token_id', -2, '-2'],
    ['bos_token_id', 2 ** 40, '1099511627776'],
  ] as const) {
    add(extreme, `${key}: ${found} and nothing else`, [INVALID, 'BAD_VOCAB', '/', key, 'expected 0 to', `found ${found}`], (files) => {
      editJson(files, CONFIG, (config) => (config[key] = value));
      files.delete(GENERATION);
      files.delete(TOKENIZER_CONFIG);
    }); // prettier-ignore
  }

  const against = 'config.json: contradictions';
  const n = maker.checkpoint.config.num_hidden_layers as number;
  const full = (count: number) => Array.from({ length: count }, () => 'full_attention');
  field(against, 'layer_types', full(1), [INVALID, P, CONFIG, 'layer_types', `each of ${n}`, 'found 1']);
  field(against, 'layer_types', full(n + 1), [INVALID, P, CONFIG, 'layer_types', `found ${n + 1}`]);
  field(against, 'num_hidden_layers', n + 1, [INVALID, P, CONFIG, 'layer_types', `each of ${n + 1}`, `found ${n}`]);
  field(against, 'num_attention_heads', 3, [INVALID, P, CONFIG, 'num_key_value_heads', 'divisor of the 3']);
  field(against, 'head_dim', 15, [INVALID, P, CONFIG, 'head_dim', 'even number', 'found 15']);
  for (const [key, value] of [
    ['hidden_size', 65],
    ['intermediate_size', 7],
    ['vocab_size', 7777],
    ['head_dim', 4],
  ] as const) {
    field(against, key, value, [INVALID, 'BAD_TENSOR', '/', 'expected', 'file has']);
  }
  field(against, 'hidden_size', undefined, [INVALID, 'BAD_TENSOR', '/', 'expected [', '2304', 'file has']);
  field(against, 'tie_word_embeddings', false, [INVALID, 'BAD_TENSOR', '/', 'lm_head', 'missing']);
  field(against, 'rope_parameters', { full_attention: { rope_type: 'linear', factor: 0 } }, [INVALID, P, CONFIG, 'factor', 'found 0']); // prettier-ignore
  field(against, 'rope_parameters', { full_attention: { rope_theta: 0 } }, [INVALID, P, CONFIG, 'rope_theta', 'found 0']); // prettier-ignore
  field(against, 'rope_parameters', { full_attention: { rope_theta: '1e6' } }, [INVALID, P, CONFIG, 'rope_theta', 'a string']); // prettier-ignore
  field(against, 'rope_parameters', { full_attention: { rope_type: 'linear' } }, [INVALID, P, CONFIG, 'full_attention', 'factor', 'missing']); // prettier-ignore
  field(against, 'rope_scaling', { type: 'linear', factor: null }, [INVALID, P, CONFIG, 'rope_scaling', 'factor', 'missing']); // prettier-ignore
  field(against, 'vision_config', { image_size: 20, patch_size: 14 }, [INVALID, P, CONFIG, 'image_size', 'multiple of the patch size 14', 'found 20']); // prettier-ignore
  field(against, 'vision_config', { patch_size: 0 }, [INVALID, P, CONFIG, 'patch_size', 'found 0']);
  field(against, 'vision_config', { patch_size: 2, image_size: 8192 }, [INVALID, P, CONFIG, 'image_size', 'patches']);
  field(against, 'vision_config', { num_channels: 4 }, [INVALID, P, CONFIG, 'num_channels', 'found 4']);
  field(against, 'vision_config', { image_size: 896, patch_size: 14, layer_norm_eps: 0 }, [INVALID, P, CONFIG, 'layer_norm_eps', 'found 0']); // prettier-ignore
  add(
    against,
    'heads of the vision encoder',
    [INVALID, P, CONFIG, 'num_attention_heads', 'divisor of the width 48', 'found 5'],
    (files) =>
      editJson(
        files,
        CONFIG,
        (config) =>
      Object.assign(config, { mm_tokens_per_image: 1, vision_config: { image_size: 28, patch_size: 14, hidden_size: 48, num_attention_heads: 5 } }), // prettier-ignore
      ),
  );
  add(against, 'mm_tokens_per_image', [INVALID, P, CONFIG, 'mm_tokens_per_image', 'found 7'], (files) =>
    editJson(files, CONFIG, (config) =>
      Object.assign(config, { mm_tokens_per_image: 7, vision_config: { image_size: 28, patch_size: 14 } }),
    ),
  );

  const kinds = 'config.json: other models';
  for (const type of [
    'llama',
    'gemma',
    'gemma2',
    'gemma3n',
    'gemma4',
    'paligemma',
    't5gemma',
    'recurrent_gemma',
    '',
    'GEMMA3',
    'x\ny',
  ]) {
    field(kinds, 'model_type', type, [UNSUPPORTED, undefined, CONFIG, 'model_type', type === '' ? 'no model_type' : type.slice(0, 1), 'gemma3_text']); // prettier-ignore
  }
  field(kinds, 'model_type', undefined, [UNSUPPORTED, undefined, CONFIG, 'model_type', 'names no']);
  field(kinds, 'model_type', null, [UNSUPPORTED, undefined, CONFIG, 'model_type', 'names no']);
  for (const type of ['yarn', 'dynamic', 'llama3', 'longrope', 'proportional']) {
    field(kinds, 'rope_parameters', { full_attention: { rope_type: type, factor: 2 } }, [UNSUPPORTED, undefined, CONFIG, 'RoPE', type]); // prettier-ignore
  }
  field(kinds, 'layer_types', ['chunked_attention'], [UNSUPPORTED, undefined, CONFIG, 'chunked_attention']);
  for (const method of ['bitsandbytes', 'gptq', 'awq', 'fp8', 'compressed-tensors']) {
    field(kinds, 'quantization_config', { quant_method: method }, [UNSUPPORTED, 'TENSOR_TYPE', CONFIG, 'quantised', method]); // prettier-ignore
  }
  field(kinds, 'quantization_config', {}, [UNSUPPORTED, 'TENSOR_TYPE', CONFIG, 'quantised']);
  field(kinds, 'attention_bias', true, [UNSUPPORTED, undefined, CONFIG, 'attention_bias']);
  field(kinds, 'attn_logit_softcapping', 50, [UNSUPPORTED, undefined, CONFIG, 'attn_logit_softcapping']);
  field(kinds, 'hidden_activation', 'silu', [UNSUPPORTED, undefined, CONFIG, 'activation', 'silu']);
  field(kinds, 'vision_config', { model_type: 'clip_vision_model' }, [UNSUPPORTED, undefined, CONFIG, 'clip']);
  field(kinds, 'vision_config', { hidden_act: 'quick_gelu' }, [UNSUPPORTED, undefined, CONFIG, 'quick_gelu']);
}

export function besides(maker: Maker): void {
  const set = (group: string, file_: string, name: string, content: string | Buffer, outcome: Outcome) =>
    maker.add(group, name, 'model', maker.sound, outcome, (files) => files.set(file_, Buffer.from(content)));
  const generation = (name: string, content: string, detail: string, ...words: string[]) =>
    set('generation_config.json', GENERATION, name, content, [INVALID, detail, ...words]);
  const P = 'BAD_HPARAM';
  generation('empty', '', P, GENERATION, 'the text ends');
  generation('a list', '[]', P, GENERATION, 'expected an object');
  generation('a key twice', '{"eos_token_id":1,"eos_token_id":1}', 'DUPLICATE', GENERATION, 'eos_token_id');
  generation('an id that is a string', '{"eos_token_id":"1"}', P, GENERATION, 'eos_token_id', 'a string');
  generation('an id in a list in a list', '{"eos_token_id":[[1]]}', P, GENERATION, 'eos_token_id', 'an array');
  generation('an id outside of the vocabulary', '{"eos_token_id":[1,99999]}', 'BAD_VOCAB', 'eos_token_id', '99999');
  generation('a negative id', '{"eos_token_id":[-5]}', 'BAD_VOCAB', 'eos_token_id', 'found -5');
  generation('an id of 2^63', '{"bos_token_id":9223372036854775808}', P, GENERATION, 'bos_token_id');
  generation('a fraction', '{"pad_token_id":0.5}', P, GENERATION, 'pad_token_id', 'found 0.5');
  generation('nested', `{"x":${'{"x":'.repeat(99)}`, P, GENERATION, 'more than 32');
  generation('2000 ids', `{"eos_token_id":[${'1,'.repeat(2000)}1]}`, P, GENERATION, 'more than 1024');

  const tokenizer = (name: string, content: string | Buffer, detail: string, ...words: string[]) =>
    set('tokenizer_config.json', TOKENIZER_CONFIG, name, content, [INVALID, detail, TOKENIZER_CONFIG, ...words]);
  const V = 'BAD_VOCAB';
  tokenizer('empty', '', V, 'the text ends');
  tokenizer('a list', '[]', V, 'expected an object');
  tokenizer('no UTF-8', Buffer.from('{"bos_token":"\xff"}', 'latin1'), V, 'bos_token', 'UTF-8');
  tokenizer('a token that is a number', '{"bos_token":2}', V, 'bos_token', 'expected an object', 'a number');
  tokenizer('a token without text', '{"bos_token":{"content":2}}', V, 'content', 'expected a string');
  tokenizer('an added id that is a word', '{"added_tokens_decoder":{"x":{"content":"a"}}}', V, 'added_tokens_decoder');
  tokenizer('an added id that is negative', '{"added_tokens_decoder":{"-1":{"content":"a"}}}', V, 'added_tokens_decoder', '-1'); // prettier-ignore
  tokenizer('an added id that is empty', '{"added_tokens_decoder":{"":{"content":"a"}}}', V, 'added_tokens_decoder');
  tokenizer('an added id with text behind', '{"added_tokens_decoder":{"2 x":{"content":"a"}}}', V, 'added_tokens_decoder'); // prettier-ignore
  tokenizer('an added id beyond the limit', '{"added_tokens_decoder":{"99999999999":{"content":"a"}}}', V, 'added_tokens_decoder', '99999999999'); // prettier-ignore
  tokenizer('an added token without text', '{"added_tokens_decoder":{"2":{}}}', V, 'without text');
  tokenizer('an added token of another spelling', '{"added_tokens_decoder":{"2":{"content":"<other>"}}}', V, '<other>', '<bos>', '2'); // prettier-ignore
  tokenizer('added tokens as a list', '{"added_tokens_decoder":[]}', V, 'added_tokens_decoder', 'an array');
  tokenizer('a template twice', '{"chat_template":"","chat_template":""}', 'DUPLICATE', 'chat_template');

  const template = (name: string, content: string, outcome: Outcome) =>
    set('chat templates', TOKENIZER_CONFIG, name, content, outcome);
  template('a number', '{"chat_template":5}', [
    'ERR_FILE',
    'BAD_TEMPLATE',
    TOKENIZER_CONFIG,
    'chat_template',
    'found 5',
  ]);
  template('a list of numbers', '{"chat_template":[1,2]}', ['ERR_FILE', 'BAD_TEMPLATE', TOKENIZER_CONFIG, 'chat_template']); // prettier-ignore
  template('of 2 MiB', JSON.stringify({ chat_template: 'x'.repeat(5 << 20) }), ['ERR_FILE', 'TEMPLATE_LIMIT', TOKENIZER_CONFIG, 'at most']); // prettier-ignore
  set('chat templates', 'chat_template.jinja', 'of 2 MiB beside', 'x'.repeat(2 << 20), ['ERR_FILE', 'TEMPLATE_LIMIT', 'chat_template.jinja', 'at most']); // prettier-ignore

  const pictures = (name: string, content: string, detail: string | undefined, ...words: string[]) =>
    maker.add('preprocessor_config.json', name, 'model', maker.sound, [detail === undefined ? UNSUPPORTED : INVALID, detail, 'preprocessor_config.json', ...words], (files) => {
      editJson(files, CONFIG, (config) => Object.assign(config, { mm_tokens_per_image: 4, vision_config: { image_size: 28, patch_size: 14 } })); // prettier-ignore
      files.set('preprocessor_config.json', Buffer.from(content));
    }); // prettier-ignore
  pictures('empty', '', P, 'the text ends');
  pictures('a list', '[]', P, 'expected an object');
  pictures('two means', '{"image_mean":[0.5,0.5]}', P, 'image_mean', 'expected 3 values', 'found 2');
  pictures('four means', '{"image_mean":[0.5,0.5,0.5,0.5]}', P, 'image_mean', 'expected 3 values');
  pictures('a mean that is a string', '{"image_mean":["x",0,0]}', P, 'image_mean', 'a string');
  pictures('a deviation of 0', '{"image_std":[0,0.5,0.5]}', P, 'image_std', 'found 0');
  pictures('a negative deviation', '{"image_std":[-1,0.5,0.5]}', P, 'image_std', 'found -1');
  pictures('another size', '{"size":{"height":30,"width":28}}', P, 'height', 'found 30');
  pictures('another filter', '{"resample":3}', undefined, 'filter 3');
  pictures('without scaling', '{"do_rescale":false}', undefined, 'do_rescale');
  pictures('nested', `{"x":${'['.repeat(99)}`, P, 'more than 32');
}
