// The libFuzzer targets of test/fuzz: builds them with clang and runs each for a quarter of a minute, as many side by side as there are
// processors. node scripts/fuzz.mjs [seconds] [target...]; `npm test -- --checks` runs it.
import { availableParallelism } from 'node:os';
import { copyFileSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { SetupError, capture, jobs, main, quietly, root, version } from './steps.mjs';

const compiler = ['clang++-19', 'clang++'].find(version);
const build = join(root, 'build', 'fuzz');
const data = join(root, 'test', 'reference', 'data');
const TARGETS = [
  'grammar',
  'gguf',
  'safetensors',
  'checkpoint',
  'adapter',
  'tokenizer',
  'image',
  'split',
  'mmproj',
  'state',
];
const LARGEST_SEED = 262144; // bytes; libFuzzer reads inputs up to the largest seed

function files(folder, ending) {
  return readdirSync(folder, { withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(ending))
    .map(({ name }) => join(folder, name))
    .filter((path) => statSync(path).size <= LARGEST_SEED);
}

/** A safetensors file of zeros: by their names types and shapes. */
function safetensors(tensors) {
  const header = { __metadata__: { format: 'pt' } };
  let end = 0;
  for (const [name, [dtype, shape]] of Object.entries(tensors)) {
    const begin = end;
    end += shape.reduce((product, n) => product * n, dtype === 'F32' ? 4 : 2);
    header[name] = { dtype, shape, data_offsets: [begin, end] };
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, Buffer.alloc(end)]);
}

/** llama.cpp's form of an adapter, of float32 zeros: by their names shapes, innermost first. */
function ggufAdapter(tensors) {
  const u32 = (value) => Buffer.from(Uint32Array.of(value).buffer);
  const u64 = (value) => Buffer.from(BigUint64Array.of(BigInt(value)).buffer);
  const text = (value) => Buffer.concat([u64(value.length), Buffer.from(value)]);
  const keys = { 'general.architecture': 'gemma3', 'general.type': 'adapter', 'adapter.type': 'lora' };
  const entries = Object.entries(keys).map(([key, value]) => Buffer.concat([text(key), u32(8), text(value)]));
  const infos = Object.entries(tensors).map(([name, dims], i) =>
    Buffer.concat([text(name), u32(2), ...dims.map(u64), u32(0), u64(i * 192)]),
  );
  const head = Buffer.concat([
    Buffer.from('GGUF'),
    u32(3),
    u64(infos.length),
    u64(entries.length),
    ...entries,
    ...infos,
  ]);
  return Buffer.concat([head, Buffer.alloc(-head.length & 31), Buffer.alloc(infos.length * 192)]);
}

// Words that the readers look for, of their sources.
const WORDS = {
  checkpoint: [
    'reader/hf_config.cpp',
    'reader/hf_names.cpp',
    'reader/hf_vocabulary.cpp',
    'reader/safetensors_reader.cpp',
  ],
  adapter: ['reader/peft_adapter.cpp', 'reader/gguf_adapter.cpp', 'model/layer_tensors.cpp'],
  safetensors: ['safetensors/safetensors.cpp'],
};
const GRAMMAR_WORDS = ['$ref', '$defs', 'anyOf', 'allOf', 'oneOf', 'pattern', 'format', 'prefixItems', 'items', 'minItems', 'maxItems', 'minLength', 'maxLength', 'minimum', 'maximum', 'exclusiveMinimum', 'multipleOf', 'const', 'enum', 'type', 'additionalProperties', 'patternProperties', 'unevaluatedProperties', 'minProperties', 'required', 'date-time', 'uuid', 'root ::=', 'TagDispatch(', 'Token(', 'ExcludeToken(', 'triggered_tags', 'tags_with_separator', 'any_text', 'grammar', 'qwen_xml_parameter', 'excludes', 'begin', 'content', 'end', 'stop_after_first', 'at_least_one', '\\\\p{L}', '(?=', '(?!', '(?:', '[^', '{0,}', '\\\\u{']; // prettier-ignore

/** libFuzzer's dictionary for a target; undefined where it has none. */
function writeDictionary(name) {
  const words = new Set(name === 'grammar' ? GRAMMAR_WORDS : []);
  for (const source of WORDS[name] ?? []) {
    for (const [, word] of readFileSync(join(root, 'native', source), 'utf8').matchAll(/"([\x20-\x7e]{2,60}?)"/g)) {
      if (!/["\\ ]/.test(word)) words.add(word);
    }
  }
  if (words.size === 0) return undefined;
  const path = join(build, 'corpus', `${name}.dict`);
  writeFileSync(path, [...words].map((word) => `"${word}"\n`).join(''));
  return path;
}

// What is longer only takes longer.
const MAX_LENGTH = { checkpoint: 8192, adapter: 8192, grammar: 2048 };

function writeSeeds(name, folder) {
  const write = (file, bytes) => writeFileSync(join(folder, file), bytes);
  const models = [...files(data, '.gguf'), ...files(join(data, 'types'), '.gguf')];
  if (name === 'gguf' || name === 'mmproj') {
    models.forEach((path, i) => copyFileSync(path, join(folder, `model-${i}`)));
  } else if (name === 'split') {
    models.forEach((path, i) => write(`one-${i}`, Buffer.concat([Buffer.from([0, 0, 0]), readFileSync(path)])));
    const two = readFileSync(models[0]);
    write('two', Buffer.concat([Buffer.from([1, 128, 0]), two, two]));
  } else if (name === 'state') {
    // Of the shape in state_fuzz.cpp, with the struct in state_file.cpp in front; the target makes the checksums right.
    const state = ({ metadata, tokens, rows, positions }) => {
      const pages = Math.ceil(positions / 32);
      const local = pages - Math.floor(Math.max(0, positions - 39) / 32);
      const header = Buffer.alloc(80);
      header.write('\x8bGNS\r\n\x1a\n', 'latin1');
      header.writeUInt32LE(1, 8);
      header.writeUInt32LE(1, 12);
      [1, 2, metadata, 3 * rows, 7 * local + 5 * pages].forEach((value, i) => header.writeUInt32LE(value, 16 + 8 * i));
      [tokens, rows ? 1 : 0, positions].forEach((value, i) => header.writeUInt32LE(value, 56 + 4 * i));
      const image = Buffer.from(Int32Array.of(2, rows).buffer).subarray(0, rows ? 8 : 0);
      return Buffer.concat([Buffer.of(1), header, Buffer.alloc(metadata + 4 * tokens, 5), image, Buffer.alloc(12 * rows + 7 * local + 5 * pages + 8)]); // prettier-ignore
    };
    write('empty', state({ metadata: 0, tokens: 1, rows: 0, positions: 0 }));
    write('text', state({ metadata: 9, tokens: 70, rows: 0, positions: 64 }));
    write('image', state({ metadata: 0, tokens: 90, rows: 20, positions: 77 }));
  } else if (name === 'safetensors') {
    // The first byte says what the rest is.
    const tensors = { a: ['F32', [2]], b: ['BF16', [2, 1]] };
    write('file', Buffer.concat([Buffer.of(0), safetensors(tensors)]));
    write('json', '\u0001{"a":[1,-2.5e3,true,null,"\\u00e9\\ud83d\\ude00"],"b":{}}');
  } else if (name === 'checkpoint') {
    // Likewise: the order of CheckpointPart in checkpoint_fuzz.cpp.
    const parts = [
      '{"model_type":"gemma3","mm_tokens_per_image":4,"text_config":{"hidden_size":32,"num_hidden_layers":2,"layer_types":["sliding_attention","full_attention"],"rope_scaling":{"rope_type":"linear","factor":8.0}},"vision_config":{"hidden_size":48,"num_attention_heads":2,"image_size":56,"patch_size":14}}',
      '{"bos_token_id":2,"eos_token_id":[1,106],"pad_token_id":0}',
      '{"image_mean":[0.5,0.5,0.5],"image_std":[0.5,0.5,0.5],"resample":2,"size":{"height":56,"width":56},"do_rescale":true}',
      '{"added_tokens":[{"id":0,"content":"<pad>","special":true}],"normalizer":{"type":"Replace","pattern":{"String":" "},"content":"\u2581"},"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"\u2581"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"}]},"model":{"type":"BPE","unk_token":"<unk>","byte_fallback":true,"vocab":{"<pad>":0,"<unk>":1,"a":2,"b":3,"ab":4},"merges":[["a","b"]]}}',
      '{"bos_token":"<bos>","eos_token":{"content":"<eos>"},"added_tokens_decoder":{"3":{"content":"<x>","special":true}}}',
      Buffer.of(
        0x0a,
        8,
        0x0a,
        1,
        0x61,
        0x15,
        0,
        0,
        0x80,
        0xbf,
        0x12,
        5,
        0x18,
        2,
        0x98,
        2,
        1,
        0x1a,
        4,
        0x18,
        0,
        0x20,
        0,
      ),
      'model.language_model.layers.3.mlp.up_proj.weight',
      '{"metadata":{"total_size":1},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}',
      '[{"idx":0,"path":"","type":"sentence_transformers.models.Transformer"},{"idx":1,"path":"1_Pooling","type":"sentence_transformers.models.Pooling"}]',
      '{"word_embedding_dimension":64,"pooling_mode_mean_tokens":true,"pooling_mode":"mean","include_prompt":true}',
      '{"in_features":64,"out_features":96,"bias":false,"activation_function":"torch.nn.modules.linear.Identity"}',
      '{"max_seq_length":2048,"do_lower_case":false,"modality_config":{"text":{}}}',
    ];
    parts.forEach((part, i) => write(`part-${i}`, Buffer.concat([Buffer.of(i), Buffer.from(part)])));
  } else if (name === 'adapter') {
    // Of the model in adapter_fuzz.cpp. The first byte says which form it is; flags and the rank of the configuration follow.
    const peft = (flags, tensors) => Buffer.concat([Buffer.of(1, flags, 2, 0), safetensors(tensors)]);
    const module = (path) => `base_model.model.model.${path}`;
    const q = module('layers.1.self_attn.q_proj.lora_');
    const pair = { [`${q}A.weight`]: ['F32', [2, 16]], [`${q}B.weight`]: ['BF16', [16, 2]] };
    const embedding = module('embed_tokens.lora_embedding_');
    const rows = module('embed_tokens.token_adapter.trainable_tokens_delta');
    write('lora', peft(0, pair));
    write('dora', peft(1, { ...pair, [`${q}magnitude_vector`]: ['F32', [16]] }));
    write('bias', peft(2, { ...pair, [`${q}B.bias`]: ['F16', [16]] }));
    write('saved', peft(4, { ...pair, [module('norm.weight')]: ['F32', [16]] }));
    write('embedding', peft(0, { [`${embedding}A`]: ['F32', [2, 20]], [`${embedding}B`]: ['F32', [16, 2]] }));
    write('rows', peft(8, { ...pair, [rows]: ['F32', [2, 16]] }));
    const tensors = { 'blk.0.ffn_up.weight.lora_a': [16, 2], 'blk.0.ffn_up.weight.lora_b': [2, 24] };
    write('gguf', Buffer.concat([Buffer.of(0), ggufAdapter(tensors)]));
  } else if (name === 'grammar') {
    // The first byte says of which kind, the second which tokens are taken.
    const sources = [
      '{"type":"object","properties":{"a":{"type":"integer","minimum":3},"b":{"enum":["x",1,null]}},"required":["a"],"additionalProperties":false}',
      '(ab|[a-c]+\\d{2,4}|\\w*[^x\\n])?',
      'root ::= "a" rest | [0-9]{1,3}\nrest ::= (root ("," root)*)? "\\u00e9"',
      '{"type":"structural_tag","format":{"type":"triggered_tags","triggers":["<f"],"tags":[{"begin":"<f>","content":{"type":"json_schema","json_schema":{}},"end":"</f>"}]}}',
      '{"anyOf":[{"$ref":"#/$defs/n"}],"$defs":{"n":{"type":"array","items":{"$ref":"#/$defs/n"},"minItems":1,"maxItems":3}}}',
      '',
      'root ::= TagDispatch(("tool", call))\ncall ::= "(" [^)]* ")"',
      '{"type":"structural_tag","format":{"type":"sequence","elements":[{"type":"const_string","value":"x"},{"type":"regex","pattern":"[a-z]+"},{"type":"any_text"}]}}',
    ];
    sources.forEach((source, i) => write(`source-${i}`, Buffer.concat([Buffer.of(i, 7 * i), Buffer.from(source)])));
  } else if (name === 'tokenizer') {
    write('words', 'aca\nacb\nadab\nbd\u2581\nbe\u2581a\ncf<x>\n\nab a <x> b\u2581ab');
  } else {
    // Little-endian, as the struct in image_fuzz.cpp: width, height, least crop, most crops, tiles, layout, mode.
    for (const [i, [width, height, mode]] of [
      [64, 64, 0],
      [200, 40, 1],
      [30, 99, 2],
      [1000, 300, 1],
    ].entries()) {
      const bytes = Buffer.alloc(14);
      [width, height, 8, 4, 2].forEach((value, at) => bytes.writeUInt16LE(value, 2 * at));
      bytes.set([2, mode, 16, 38], 10);
      write(`picture-${i}`, bytes);
    }
  }
}

async function fuzz(name, seconds) {
  const corpus = join(build, 'corpus', name);
  const artifacts = join(build, 'failures', name);
  mkdirSync(corpus, { recursive: true });
  mkdirSync(artifacts, { recursive: true });
  writeSeeds(name, corpus);
  const program = join(build, `${name}_fuzz`);
  const dictionary = writeDictionary(name);
  const own = [
    ...(dictionary ? [`-dict=${dictionary}`] : []),
    ...(MAX_LENGTH[name] ? [`-max_len=${MAX_LENGTH[name]}`] : []),
  ];
  const flags = [...own, `-max_total_time=${seconds}`, '-timeout=20', '-rss_limit_mb=4096', '-print_final_stats=1'];
  const { ok, status, output } = await capture(program, [...flags, `-artifact_prefix=${artifacts}/`, corpus]);
  const count = /number_of_executed_units: (\d+)/.exec(output)?.[1] ?? '0';
  process.stdout.write(`${name}: ${count} inputs, ${ok ? 'passed' : `failed (${status})`}\n`);
  if (ok && Number(count) > 0) return;
  process.stdout.write(`${output.slice(-6000)}\n`);
  const found = readdirSync(artifacts).at(-1);
  return `${name}; reproduce: ${program} ${found ? join(artifacts, found) : corpus}`;
}

/** Builds and runs all targets. Throws when clang or its runtime is missing, and when an input fails, with how to repeat it. */
export async function runFuzzers(seconds = 15, names = TARGETS) {
  if (!compiler) throw new SetupError('clang++ is missing: apt-get install clang-19 libclang-rt-19-dev');
  const options = ['-DGEMMA_FUZZ=ON', '-DGEMMA_TESTS=OFF', '-DGEMMA_ADDON=OFF', '-DGEMMA_SANITIZE=address'];
  const flags = ['-DCMAKE_BUILD_TYPE=None', '-DCMAKE_CXX_FLAGS=-O1', `-DCMAKE_CXX_COMPILER=${compiler}`];
  const generator = version('ninja') ? ['-G', 'Ninja'] : [];
  await quietly('cmake', ['-S', root, '-B', build, ...generator, ...options, ...flags]);
  await quietly('cmake', ['--build', build, '--parallel', jobs, '--target', 'fuzzers']);
  const waiting = [...names];
  const failures = [];
  const worker = async () => {
    for (let name = waiting.shift(); name; name = waiting.shift()) {
      const failure = await fuzz(name, seconds);
      if (failure) failures.push(failure);
    }
  };
  await Promise.all(Array.from({ length: availableParallelism() }, worker));
  if (failures.length > 0) throw new SetupError(`the fuzzers found:\n${failures.join('\n')}`);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [, , seconds, ...names] = process.argv;
  await main(() =>
    runFuzzers(seconds === undefined ? undefined : Number(seconds), names.length > 0 ? names : undefined),
  );
}
