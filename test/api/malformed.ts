// Malformed files of checkpoints and adapters, made of a sound one: each case changes one thing, and says which error names it. What the
// format's reference refuses is refused (test/reference/README.md); where a reader here is stricter, json.h and hf_vocabulary.h say so.
import { mkdirSync, linkSync, mkdtempSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { execFileSync } from 'node:child_process';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { checkpointOf, file, safetensors, sentencePiece, writeCheckpoint } from './checkpoint.js';
import { data } from './helpers.js';

const adapters = join(data, 'adapters');
/** What folders of models are made of, and what adapters are loaded with. */
export const base = join(adapters, 'text-f16.gguf');

export interface Case {
  group: string;
  name: string;
  /** what it is given to */
  kind: 'model' | 'adapter';
  /** the file or folder */
  path: string;
  code: string;
  detail: string | undefined;
  /** all of them stand in the message: the file, what is wrong, what was expected, what was found */
  words: readonly string[];
}

/** A folder's files by name; a function makes something that is no file. */
type Files = Map<string, Buffer | ((path: string) => void)>;
type Outcome = readonly [code: string, detail: string | undefined, ...words: string[]];
type Words = readonly string[];

const INVALID = 'ERR_SAFETENSORS_INVALID';
const UNSUPPORTED = 'ERR_UNSUPPORTED_MODEL';
const ADAPTER = 'ERR_ADAPTER_INVALID';
const GGUF = 'ERR_GGUF_INVALID';

/** All cases; their files lie in `folder` afterwards. */
export function malformedFiles(): { folder: string; cases: Case[] } {
  const folder = mkdtempSync(join(tmpdir(), 'gemma-malformed-'));
  const maker = new Maker(folder);
  weights(maker);
  shards(maker);
  configurations(maker);
  besides(maker);
  tokenizers(maker);
  sentencePieces(maker);
  peftConfigurations(maker);
  peftTensors(maker);
  ggufAdapters(maker);
  if (process.platform !== 'win32') specialFiles(maker);
  return { folder, cases: maker.cases };
}

class Maker {
  readonly cases: Case[] = [];
  readonly checkpoint = checkpointOf(base, undefined, { layout: 'text' });
  readonly sound: Files;
  readonly sharded: Files;
  readonly adapter: Files;
  readonly #folder: string;
  readonly #soundFolders = new Map<Files, string>();

  constructor(folder: string) {
    this.#folder = folder;
    this.sound = this.#read(writeCheckpoint(join(folder, 'sound'), this.checkpoint), [
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    ]);
    this.sharded = this.#read(writeCheckpoint(join(folder, 'sharded'), this.checkpoint, 3), [
      ...[...this.sound.keys()].filter((name) => name !== 'model.safetensors'),
      'model.safetensors.index.json',
      ...[1, 2, 3].map(shardName),
    ]);
    const adapter = join(folder, 'adapter');
    mkdirSync(adapter);
    for (const name of ['adapter_config.json', 'adapter_model.safetensors']) {
      writeFileSync(join(adapter, name), readFileSync(join(adapters, 'qv-layer0', name)));
    }
    this.adapter = this.#read(adapter, ['adapter_config.json', 'adapter_model.safetensors']);
  }

  #read(folder: string, names: readonly string[]): Files {
    const files: Files = new Map(names.map((name) => [name, readFileSync(join(folder, name))]));
    this.#soundFolders.set(files, folder);
    return files;
  }

  /** A copy of sound files with a change. */
  add(group: string, name: string, kind: Case['kind'], sound: Files, outcome: Outcome, change: (files: Files) => void) {
    const path = join(this.#folder, String(this.cases.length));
    const files: Files = new Map(sound);
    change(files);
    mkdirSync(path);
    const from = this.#soundFolders.get(sound) ?? '';
    for (const [file, content] of files) {
      const to = join(path, file);
      if (typeof content === 'function') content(to);
      else if (content === sound.get(file)) linkSync(join(from, file), to);
      else writeFileSync(to, content);
    }
    this.#push(group, name, kind, path, outcome);
  }

  /** A file alone. */
  addFile(group: string, name: string, kind: Case['kind'], fileName: string, outcome: Outcome, content: Buffer) {
    const path = join(this.#folder, `${this.cases.length}-${fileName}`);
    writeFileSync(path, content);
    this.#push(group, name, kind, path, outcome);
  }

  #push(group: string, name: string, kind: Case['kind'], path: string, [code, detail, ...words]: Outcome) {
    this.cases.push({ group, name, kind, path, code, detail, words });
  }
}

const shardName = (i: number) => `model-0000${i}-of-00003.safetensors`;

function bytesOf(files: Files, name: string): Buffer {
  const content = files.get(name);
  if (!(content instanceof Buffer)) throw new Error(`${name} is no file`);
  return content;
}

/** Puts text in the place of other text, which must be there. */
function replace(text: string, from: string | RegExp, to: string): string {
  const edited = text.replace(from, () => to);
  if (edited === text) throw new Error(`${String(from)} is not there`);
  return edited;
}

function edit(files: Files, name: string, from: string | RegExp, to: string): void {
  files.set(name, Buffer.from(replace(bytesOf(files, name).toString('latin1'), from, to), 'latin1'));
}

function editJson(files: Files, name: string, change: (value: Record<string, unknown>) => void): void {
  const value = JSON.parse(bytesOf(files, name).toString()) as Record<string, unknown>;
  change(value);
  files.set(name, Buffer.from(JSON.stringify(value)));
}

/** The header of a safetensors file as text, and what is behind it. */
function parts(bytes: Buffer): { header: string; rest: Buffer } {
  const end = 8 + Number(bytes.readBigUInt64LE());
  return { header: bytes.toString('latin1', 8, end), rest: bytes.subarray(end) };
}

function editHeader(files: Files, name: string, from: string | RegExp, to: string): void {
  const { header, rest } = parts(bytesOf(files, name));
  files.set(name, file(Buffer.from(replace(header, from, to), 'latin1'), rest));
}

const Q = 'model.layers.0.self_attn.q_proj.weight';
const WEIGHTS = 'model.safetensors';

function weights(maker: Maker): void {
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

function shards(maker: Maker): void {
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

const CONFIG = 'config.json';

function configurations(maker: Maker): void {
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

const GENERATION = 'generation_config.json';
const TOKENIZER_CONFIG = 'tokenizer_config.json';

function besides(maker: Maker): void {
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

const TOKENIZER = 'tokenizer.json';

function tokenizers(maker: Maker): void {
  const V = 'BAD_VOCAB';
  const text = (group: string, name: string, from: string | RegExp, to: string, code: string, detail: string, ...words: string[]) =>
    maker.add(group, name, 'model', maker.sound, [code, detail, TOKENIZER, ...words], (files) => edit(files, TOKENIZER, from, to)); // prettier-ignore
  const all = 'tokenizer.json: JSON';
  const whole = (name: string, make: (bytes: Buffer) => Buffer | string, detail: string, ...words: string[]) =>
    maker.add(all, name, 'model', maker.sound, [INVALID, detail, TOKENIZER, ...words], (files) => files.set(TOKENIZER, Buffer.from(make(bytesOf(files, TOKENIZER)) as Buffer))); // prettier-ignore
  whole('empty', () => '', V, 'the text ends');
  whole('a list', () => '[]', V, 'expected an object');
  whole('no model', () => '{"version":"1.0"}', V, '"model"', 'missing');
  whole('cut in the middle', (bytes) => bytes.subarray(0, bytes.length >> 1), V, 'at byte');
  whole('cut by a byte', (bytes) => bytes.subarray(0, -1), V, 'the text ends');
  whole('text behind', (bytes) => `${bytes}x`, V, 'expected the end');
  whole('a byte order mark', (bytes) => `\ufeff${bytes}`, V, 'byte 0');
  whole('no UTF-8', () => Buffer.from('{"model":{"vocab":{"\xff":0}}}', 'latin1'), V, 'not valid UTF-8');
  whole('nested 10^5 deep', () => `{"x":${'['.repeat(1e5)}`, V, 'more than 32');
  whole('normalizers in each other', () => `{"normalizer":${'{"type":"Sequence","normalizers":['.repeat(1000)}`, V, 'more than 32'); // prettier-ignore
  whole('a key twice', (bytes) => replace(bytes.toString(), '"version":"1.0"', '"version":"1.0","version":"1.0"'), 'DUPLICATE', 'version'); // prettier-ignore

  const model = 'tokenizer.json: model';
  for (const type of ['Unigram', 'WordPiece', 'WordLevel']) {
    text(
      model,
      type,
      '"type":"BPE"',
      `"type":"${type}"`,
      UNSUPPORTED,
      'TOKENIZER',
      `type "${type}"`,
      'SentencePiece BPE',
    );
  }
  text(model, 'a type that is a number', '"type":"BPE"', '"type":1', INVALID, V, 'type', 'expected a string');
  text(model, 'no type', '"type":"BPE",', '', INVALID, V, 'type is missing');
  text(model, 'no byte pieces', '"byte_fallback":true', '"byte_fallback":false', UNSUPPORTED, 'TOKENIZER', 'byte_fallback'); // prettier-ignore
  text(model, 'byte pieces as a string', '"byte_fallback":true', '"byte_fallback":"yes"', INVALID, V, 'byte_fallback', 'true or false'); // prettier-ignore
  text(model, 'whole words first', '"ignore_merges":false', '"ignore_merges":true', UNSUPPORTED, 'TOKENIZER', 'ignore_merges'); // prettier-ignore
  text(model, 'marks of words', '"ignore_merges":false', '"end_of_word_suffix":"</w>"', UNSUPPORTED, 'TOKENIZER', 'marks of words'); // prettier-ignore
  text(model, 'a model that is a list', '"model":{', '"model":[],"x":{', INVALID, V, '"model"', 'an array');
  text(model, 'two models', '"model":{', '"model":{"type":"BPE","byte_fallback":true,"vocab":{}},"model":{', INVALID, 'DUPLICATE|BAD_VOCAB', 'model'); // prettier-ignore
  text(model, 'an unknown token that is a number', '"unk_token":"<unk>"', '"unk_token":3', INVALID, V, 'unk_token', 'expected a string'); // prettier-ignore

  const vocab = 'tokenizer.json: vocabulary';
  text(vocab, 'none', '"vocab":', '"other":', INVALID, V, 'the vocabulary is missing');
  text(vocab, 'a list', '"vocab":{', '"vocab":[],"x":{', INVALID, V, 'vocab', 'expected an object');
  text(vocab, 'an id twice', '"<eos>":1', '"<eos>":2', INVALID, V, 'two pieces have the id 2');
  text(vocab, 'a piece twice', '"<eos>":1', '"<pad>":1', INVALID, 'DUPLICATE', '<pad>');
  text(vocab, 'a negative id', '"<eos>":1', '"<eos>":-1', INVALID, V, '<eos>', 'found -1');
  text(vocab, 'a fraction', '"<eos>":1', '"<eos>":1.5', INVALID, V, '<eos>', 'found 1.5');
  text(vocab, 'an id of 2^32', '"<eos>":1', '"<eos>":4294967297', INVALID, V, '<eos>', 'found 4294967297');
  text(vocab, 'an id that is a string', '"<eos>":1', '"<eos>":"1"', INVALID, V, '<eos>', 'a string');
  text(vocab, 'an empty piece', '"<eos>":1', '"":1', INVALID, V, 'a piece without text');
  text(vocab, 'a piece of 100 KB under the id of an added token', '"<eos>":1', `"${'x'.repeat(1e5)}":1`, INVALID, V, '<eos>', 'the id 1 of "xxx', '..."'); // prettier-ignore
  maker.add(
    vocab,
    'a piece of 100 KB',
    'model',
    maker.sound,
    [INVALID, V, '/', '(100000 bytes)', 'longer than 1024'],
    (files) =>
      editJson(files, TOKENIZER, (value) => {
        const bpe = value.model as { vocab: Record<string, number> };
        const [piece = ''] = Object.keys(bpe.vocab).slice(-1);
        bpe.vocab['x'.repeat(1e5)] = bpe.vocab[piece] as number;
        delete bpe.vocab[piece];
      }),
  );
  maker.add(vocab, 'empty', 'model', maker.sound, [INVALID, V, '/', 'byte'], (files) =>
    editJson(files, TOKENIZER, (value) => {
      (value.model as Record<string, unknown>).vocab = {};
      (value.model as Record<string, unknown>).merges = [];
      value.added_tokens = [];
    }),
  );

  const merges = 'tokenizer.json: merges';
  const merge = (name: string, to: string, ...words: string[]) =>
    text(merges, name, '"merges":[[', `"merges":[${to},[`, INVALID, V, 'merges', ...words);
  merge('of one piece', '["a"]', 'expected two pieces');
  merge('of three pieces', '["a","b","c"]', 'expected two pieces');
  merge('of none', '[]', 'expected two pieces');
  merge('of numbers', '[1,2]', 'expected a string', 'a number');
  merge('a string without a blank', '"ab"', 'a blank between them');
  merge('null', 'null', 'expected', 'null');
  merge('a number', '7', 'expected', 'a number');
  text(merges, 'an object', '"merges":[', '"merges":{},"x":[', INVALID, V, 'merges', 'expected an array');
  text(merges, '65,536 of one', '"merges":[[', `"merges":[${'["<e","os>"],'.repeat(65536)}[`, INVALID, V, 'too many merges'); // prettier-ignore
  maker.add(merges, 'of pairs alone', 'model', maker.sound, [UNSUPPORTED, 'TOKENIZER', TOKENIZER, 'joins less'], (files) =>
    editJson(files, TOKENIZER, (value) => {
      const seen = new Set<string>();
      const bpe = value.model as { merges: string[][] };
      bpe.merges = bpe.merges.filter((pair) => !seen.has(pair.join('')) && seen.add(pair.join('')));
    }),
  ); // prettier-ignore

  const added = 'tokenizer.json: added tokens';
  const token = (name: string, to: string, ...words: string[]) =>
    text(added, name, '"added_tokens":[', `"added_tokens":[${to},`, INVALID, V, ...words);
  token('no id', '{"content":"<x>"}', '<x>', 'no id');
  token('no text', '{"id":5}', 'without text');
  token('an empty text', '{"id":5,"content":""}', 'without text');
  token('a negative id', '{"id":-1,"content":"<x>"}', 'id', 'found -1');
  token('an id beyond the limit', '{"id":4294967296,"content":"<x>"}', 'id', 'found 4294967296');
  token('the id of another piece', '{"id":2,"content":"<x>"}', '<x>', '<bos>', 'the id 2');
  token('no object', '7', 'added_tokens', 'expected an object');
  token('a text that is a number', '{"id":5,"content":5}', 'content', 'expected a string');
  token('special as a number', '{"id":5,"content":"<x>","special":1}', 'special', 'true or false');
  text(added, 'an object', '"added_tokens":[', '"added_tokens":{},"x":[', INVALID, V, 'added_tokens', 'expected an array'); // prettier-ignore
  text(added, 'one that takes its neighbours', '"added_tokens":[', '"added_tokens":[{"id":400,"content":"<x>","lstrip":true},', UNSUPPORTED, 'TOKENIZER', '<x>', 'blanks beside'); // prettier-ignore

  const steps = 'tokenizer.json: normalizer, pre-tokenizer, decoder';
  for (const type of ['NFKC', 'Lowercase', 'Prepend', 'Precompiled']) {
    text(
      steps,
      `normalizer ${type}`,
      '"type":"Replace"',
      `"type":"${type}"`,
      UNSUPPORTED,
      'TOKENIZER',
      'normalizer',
      type,
    );
  }
  text(steps, 'a normalizer of something else', '"pattern":{"String":" "},"content"', '"pattern":{"String":"x"},"content"', UNSUPPORTED, 'TOKENIZER', 'normalizer', '"x"'); // prettier-ignore
  text(steps, 'a normalizer with a regular expression', '"pattern":{"String":" "},"content"', '"pattern":{"Regex":" "},"content"', UNSUPPORTED, 'TOKENIZER', 'normalizer', 'Regex'); // prettier-ignore
  text(steps, 'a normalizer that is a string', '"normalizer":{', '"normalizer":"Replace","x":{', INVALID, V, 'normalizer', 'expected an object'); // prettier-ignore
  text(steps, 'no normalizer', /"normalizer":\{.*?\},"pre_/, '"normalizer":null,"pre_', UNSUPPORTED, 'TOKENIZER', 'U+2581'); // prettier-ignore
  for (const type of ['ByteLevel', 'Metaspace', 'Whitespace', 'BertPreTokenizer']) {
    text(steps, `pre-tokenizer ${type}`, '"type":"Split"', `"type":"${type}"`, UNSUPPORTED, 'TOKENIZER', 'pre-tokenizer', type); // prettier-ignore
  }
  text(steps, 'a pre-tokenizer with a regular expression', /"pattern":\{"String":" "\},"behavior"/, '"pattern":{"Regex":"\\\\d"},"behavior"', UNSUPPORTED, 'TOKENIZER', 'pre-tokenizer', 'Regex'); // prettier-ignore
  for (const decoder of [
    '{"type":"ByteLevel"}',
    '{"type":"WordPiece","prefix":"##"}',
    '{"type":"Metaspace","replacement":"_"}',
    '{"type":"Sequence","decoders":[{"type":"Strip","content":" ","start":1,"stop":0}]}',
    '{"type":"Replace","pattern":{"String":"x"},"content":"y"}',
  ]) {
    text(steps, `decoder ${decoder.slice(0, 60)}`, '"model":{', `"decoder":${decoder},"model":{`, UNSUPPORTED, 'TOKENIZER', 'decoder'); // prettier-ignore
  }
  text(steps, 'a decoder that is a string', '"model":{', '"decoder":"x","model":{', INVALID, V, 'decoder', 'expected an object'); // prettier-ignore
}

/** A number as Protocol Buffers write it. */
function varint(value: number | bigint): Buffer {
  const bytes: number[] = [];
  let left = BigInt(value);
  for (; left > 127n; left >>= 7n) bytes.push(Number(left & 127n) | 128);
  return Buffer.from([...bytes, Number(left)]);
}

function sentencePieces(maker: Maker): void {
  const MODEL = 'tokenizer.model';
  const group = 'tokenizer.model: ';
  const sound = sentencePiece(base);
  const add = (part: string, name: string, content: Buffer, code: string, detail: string, ...words: string[]) =>
    maker.add(group + part, name, 'model', maker.sound, [code, detail, ...words], (files) => {
      files.delete(TOKENIZER);
      files.set(MODEL, content);
    });
  const V = 'BAD_VOCAB';
  const not = 'not a SentencePiece model';
  const whole = (name: string, content: Buffer, ...words: string[]) =>
    add('framing', name, content, INVALID, V, MODEL, ...words);
  whole('empty', Buffer.alloc(0), not, 'parts of it are missing');
  whole('text', Buffer.from('<pad>\n<eos>\n'), not);
  whole('a zip archive', Buffer.from('PK\x03\x04'.repeat(20)), not);
  whole('a gzip file', Buffer.from([0x1f, 0x8b, 8, 0, 0, 0, 0, 0]), not);
  whole('ones', Buffer.alloc(64, 0xff), not, 'more than 64 bits');
  whole('zeros', Buffer.alloc(64), not, 'parts of it are missing');
  whole('cut by a byte', sound.subarray(0, -1), not, 'are left');
  whole('cut in half', sound.subarray(0, sound.length >> 1), not);
  for (const kind of [3, 4, 6, 7]) {
    whole(`a field of kind ${kind}`, Buffer.concat([sound, varint((9 << 3) | kind)]), not, `a field of kind ${kind}`);
  }
  whole('a length of 2^32', Buffer.concat([varint(0x0a), varint(2n ** 32n), sound]), 'a field of 4294967296 bytes');
  whole('a length of 2^64 - 1', Buffer.concat([varint(0x0a), varint(2n ** 64n - 1n), sound]), '18446744073709551615');
  whole('a number of eleven bytes', Buffer.concat([varint(0x48), Buffer.alloc(10, 0x80), varint(1), sound]), 'more than 64 bits'); // prettier-ignore
  whole('a number without an end', Buffer.concat([sound, varint(0x48), Buffer.from([0x80])]), '0 are left');
  whole('a fixed number without an end', Buffer.concat([sound, varint(0x49), Buffer.alloc(7)]), 'a field of 8 bytes', '7 are left'); // prettier-ignore
  whole('a short fixed number without an end', Buffer.concat([sound, varint(0x4d), Buffer.alloc(3)]), 'a field of 4 bytes', '3 are left'); // prettier-ignore

  const message = (field: number, content: Buffer) =>
    Buffer.concat([varint((field << 3) | 2), varint(content.length), content]);
  const number = (field: number, value: number | bigint) => Buffer.concat([varint(field << 3), varint(value)]);
  const float = (field: number, value: number) => {
    const bytes = Buffer.alloc(4);
    bytes.writeFloatLE(value);
    return Buffer.concat([varint((field << 3) | 5), bytes]);
  };
  const piece = (text: string | Buffer, score: number, kind: number | bigint) =>
    message(1, Buffer.concat([message(1, Buffer.from(text as string)), float(2, score), number(3, kind)]));
  const trainer = message(2, Buffer.concat([number(3, 2), number(35, 1)]));
  const normalizer = message(3, Buffer.concat([number(3, 0), number(4, 0), number(5, 1)]));
  const missing = (name: string, content: Buffer) => add('parts', name, content, INVALID, V, MODEL, not, 'missing');
  missing('pieces alone', piece('a', 0, 1));
  missing('no normalizer', Buffer.concat([piece('a', 0, 1), trainer]));
  missing('no trainer', Buffer.concat([piece('a', 0, 1), normalizer]));
  missing('no pieces', Buffer.concat([trainer, normalizer]));
  const settings = (name: string, content: Buffer, ...words: string[]) =>
    add('settings', name, Buffer.concat([sound, content]), UNSUPPORTED, 'TOKENIZER', MODEL, ...words);
  settings('unigram', message(2, Buffer.concat([number(3, 1), number(35, 1)])), 'type 1', 'SentencePiece BPE');
  settings('words', message(2, Buffer.concat([number(3, 3), number(35, 1)])), 'type 3');
  settings('no bytes', message(2, number(3, 2)), 'byte_fallback');
  settings('a blank in front', message(3, Buffer.concat([number(3, 1), number(4, 0)])), 'changes text');
  settings('blanks removed', message(3, Buffer.concat([number(3, 0), number(4, 1)])), 'changes text');
  settings('blanks as they are', message(3, Buffer.concat([number(3, 0), number(4, 0), number(5, 0)])), 'changes text');
  settings('rules', message(3, Buffer.concat([message(2, Buffer.from('x')), number(3, 0), number(4, 0)])), 'changes text'); // prettier-ignore
  const first = (name: string, content: Buffer, ...words: string[]) =>
    add('pieces', name, Buffer.concat([content, sound]), INVALID, V, ...words);
  first('of kind 0', piece('x', 0, 0), MODEL, 'token 0', 'from 1 to 6', 'found 0');
  first('of kind 7', piece('x', 0, 7), MODEL, 'token 0', 'found 7');
  first('of kind 2^64 - 1', piece('x', 0, 2n ** 64n - 1n), MODEL, 'token 0', 'found 18446744073709551615');
  first('a score that is NaN', piece('!zq', NaN, 1), '/', 'token 0', 'score');
  first('no text', piece('', 0, 1), MODEL, 'token 0', 'without text');
  first('no UTF-8', piece(Buffer.from([0xff, 0xfe]), 0, 1), '/', 'token 0', 'UTF-8');
  first('of 100 KB', piece('x'.repeat(1e5), 0, 1), '/', 'token 0 (100000 bytes)');
  first('twice', Buffer.concat([piece('same', 0, 1), piece('same', 0, 1)]), MODEL, 'token 1', '"same"', 'token 0');
  first('a byte that is none', piece('<0xZZ>', 0, 6), '/', 'token 0', 'byte');
  first('a field inside that is cut', message(1, Buffer.from([0x0a, 5, 0x61])), MODEL, not, 'a field of 5 bytes');
}

const PEFT_CONFIG = 'adapter_config.json';
const PEFT_TENSORS = 'adapter_model.safetensors';

function peftConfigurations(maker: Maker): void {
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

function peftTensors(maker: Maker): void {
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

/** A sound adapter of each form, to load beside the malformed. */
export function soundGgufAdapter(): Buffer {
  const { keys, tensors } = ggufAdapter();
  return gguf(keys, tensors);
}

function ggufAdapters(maker: Maker): void {
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

/** Folders, pipes and links where files are expected. */
function specialFiles(maker: Maker): void {
  const folder = (path: string) => mkdirSync(path);
  const pipe = (path: string) => execFileSync('mkfifo', [path]);
  const circle = (path: string) => symlinkSync(path, path);
  const nowhere = (path: string) => symlinkSync(`${path}-not-there`, path);
  const zero = (path: string) => symlinkSync('/dev/zero', path);
  const kinds: [string, (path: string) => void][] = [
    ['a folder', folder],
    ['a pipe', pipe],
    ['a link to itself', circle],
    ['a device', zero],
  ];
  for (const name of [CONFIG, GENERATION, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG]) {
    for (const [what, make] of kinds) {
      maker.add(`special files: ${name}`, what, 'model', maker.sound, ['ERR_FILE', undefined, name], (files) => files.set(name, make)); // prettier-ignore
    }
  }
  maker.add('special files: shards', 'a pipe', 'model', maker.sharded, ['ERR_FILE', undefined, shardName(2), 'not a regular file'], (files) => files.set(shardName(2), pipe)); // prettier-ignore
  maker.add('special files: shards', 'a folder', 'model', maker.sharded, ['ERR_FILE', undefined, shardName(2), 'directory'], (files) => files.set(shardName(2), folder)); // prettier-ignore
  maker.add('special files: shards', 'a link to nothing', 'model', maker.sharded, [INVALID, 'MISSING_SHARD', shardName(2)], (files) => files.set(shardName(2), nowhere)); // prettier-ignore
  for (const name of [PEFT_CONFIG, PEFT_TENSORS]) {
    for (const [what, make] of kinds) {
      maker.add(`special files: ${name}`, what, 'adapter', maker.adapter, ['ERR_FILE', undefined, name], (files) => files.set(name, make)); // prettier-ignore
    }
  }
  maker.add('special files: adapter_config.json', 'a link to nothing', 'adapter', maker.adapter, [ADAPTER, 'NO_CONFIG', PEFT_CONFIG], (files) => files.set(PEFT_CONFIG, nowhere)); // prettier-ignore
  // Whoever may read everything sees no difference.
  if (process.getuid?.() !== 0) {
    const locked = (path: string) => writeFileSync(path, 'x', { mode: 0 });
    for (const name of [CONFIG, WEIGHTS, TOKENIZER]) {
      maker.add(`special files: ${name}`, 'one that may not be read', 'model', maker.sound, ['ERR_FILE', undefined, name], (files) => files.set(name, locked)); // prettier-ignore
    }
    maker.add('special files: adapter_config.json', 'one that may not be read', 'adapter', maker.adapter, ['ERR_FILE', undefined, PEFT_CONFIG], (files) => files.set(PEFT_CONFIG, locked)); // prettier-ignore
  }
}
