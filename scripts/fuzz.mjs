// The libFuzzer targets of test/fuzz: builds them with clang and runs each for half a minute, as many side by side as there are
// processors. node scripts/fuzz.mjs [seconds]; `npm test -- --checks` runs it.
import { availableParallelism } from 'node:os';
import { copyFileSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { SetupError, capture, jobs, main, quietly, root, version } from './steps.mjs';

const compiler = ['clang++-19', 'clang++'].find(version);
const build = join(root, 'build', 'fuzz');
const data = join(root, 'test', 'reference', 'data');
const LARGEST_SEED = 262144; // bytes; libFuzzer reads inputs up to the largest seed

function files(folder, ending) {
  return readdirSync(folder, { withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(ending))
    .map(({ name }) => join(folder, name))
    .filter((path) => statSync(path).size <= LARGEST_SEED);
}

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
    const header =
      '{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[8,12]}}';
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(header.length));
    write('file', Buffer.concat([Buffer.of(0), length, Buffer.from(header), Buffer.alloc(12)]));
    write('json', '\u0001{"a":[1,-2.5e3,true,null,"\\u00e9\\ud83d\\ude00"],"b":{}}');
    write(
      'config',
      '\u0002{"model_type":"gemma3","mm_tokens_per_image":4,"text_config":{"hidden_size":32,"num_hidden_layers":2,"layer_types":["sliding_attention","full_attention"],"rope_scaling":{"rope_type":"linear","factor":8.0}},"vision_config":{"hidden_size":48,"num_attention_heads":2,"image_size":56,"patch_size":14}}',
    );
    write(
      'tokenizer',
      '\u0003{"added_tokens":[{"id":0,"content":"<pad>","special":true}],"normalizer":{"type":"Replace","pattern":{"String":" "},"content":"\u2581"},"model":{"type":"BPE","unk_token":"<unk>","byte_fallback":true,"vocab":{"<pad>":0,"<unk>":1,"a":2,"b":3,"ab":4},"merges":[["a","b"]]}}',
    );
    write(
      'proto',
      Buffer.of(
        4,
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
    );
    write('names', '\u0005model.language_model.layers.3.mlp.up_proj.weight');
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
  const flags = [`-max_total_time=${seconds}`, '-timeout=20', '-rss_limit_mb=4096', '-print_final_stats=1'];
  const { ok, status, output } = await capture(program, [...flags, `-artifact_prefix=${artifacts}/`, corpus]);
  const count = /number_of_executed_units: (\d+)/.exec(output)?.[1] ?? '0';
  process.stdout.write(`${name}: ${count} inputs, ${ok ? 'passed' : `failed (${status})`}\n`);
  if (ok && Number(count) > 0) return;
  process.stdout.write(`${output.slice(-6000)}\n`);
  const found = readdirSync(artifacts).at(-1);
  return `${name}; reproduce: ${program} ${found ? join(artifacts, found) : corpus}`;
}

/** Builds and runs all targets. Throws when clang or its runtime is missing, and when an input fails, with how to repeat it. */
export async function runFuzzers(seconds = 30) {
  if (!compiler) throw new SetupError('clang++ is missing: apt-get install clang-19 libclang-rt-19-dev');
  const options = ['-DGEMMA_FUZZ=ON', '-DGEMMA_TESTS=OFF', '-DGEMMA_ADDON=OFF', '-DGEMMA_SANITIZE=address'];
  const flags = ['-DCMAKE_BUILD_TYPE=None', '-DCMAKE_CXX_FLAGS=-O1', `-DCMAKE_CXX_COMPILER=${compiler}`];
  const generator = version('ninja') ? ['-G', 'Ninja'] : [];
  await quietly('cmake', ['-S', root, '-B', build, ...generator, ...options, ...flags]);
  await quietly('cmake', ['--build', build, '--parallel', jobs, '--target', 'fuzzers']);
  const waiting = ['gguf', 'safetensors', 'tokenizer', 'image', 'split', 'mmproj', 'state'];
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

if (process.argv[1] === fileURLToPath(import.meta.url)) await main(() => runFuzzers(Number(process.argv[2] ?? 30)));
