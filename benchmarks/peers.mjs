// Builds the engines that ours is compared with, and runs their tools.
//
// llama.cpp comes with npm's node-llama-cpp, as a git bundle of the release it is made for; ik_llama.cpp from a checkout or git
// directory that the caller names. Both are built for this very machine, or for the instruction set that ours is held to, each in
// a folder of its own in the cache. All run with the defaults of their tools but for the number of threads.
import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, readdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { cacheDirectory } from '../scripts/fetch-test-model.mjs';

const HERE = dirname(fileURLToPath(import.meta.url));
const CMAKE_OPTIONS = [
  '-DCMAKE_BUILD_TYPE=Release',
  '-DLLAMA_CURL=OFF',
  '-DLLAMA_OPENSSL=OFF',
  '-DLLAMA_BUILD_TESTS=OFF',
];
// Instruction sets that peers can be held to, by our names. ik_llama.cpp has AVX-VNNI by another name, and once by default.
const AVX2 = ['NATIVE=OFF', ...['SSE42', 'AVX', 'AVX2', 'FMA', 'F16C', 'BMI2'].map((name) => `${name}=ON`)];
const ISA_OPTIONS = {
  avx2: [...AVX2, 'AVX_VNNI=OFF', 'AVXVNNI=OFF'],
  avx_vnni: [...AVX2, 'AVX_VNNI=ON', 'AVXVNNI=ON'],
};
const SUFFIX = process.platform === 'win32' ? '.exe' : '';

/**
 * Runs a program. Resolves with `{ out, errors, firstMs, peakBytes }`: what it printed, when the first byte of that came (after
 * the start, milliseconds), the most memory it had resident (Linux; looked at every few milliseconds). An error has the end of what
 * it printed.
 */
export function observe(command, args, options = {}) {
  return new Promise((done, reject) => {
    const start = performance.now();
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
    let out = '';
    let errors = '';
    let firstMs;
    let peakBytes;
    const look = setInterval(() => {
      try {
        const kilobytes = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'))?.[1];
        if (kilobytes) peakBytes = Number(kilobytes) * 1024;
      } catch {
        // not Linux, or it has just ended
      }
    }, 10);
    child.stdout.on('data', (chunk) => {
      firstMs ??= performance.now() - start;
      out += chunk;
    });
    child.stderr.on('data', (chunk) => (errors += chunk));
    child.on('error', (error) => {
      clearInterval(look);
      reject(error);
    });
    child.on('close', (code, signal) => {
      clearInterval(look);
      if (code === 0) return done({ out, errors, firstMs: firstMs ?? performance.now() - start, peakBytes });
      const said = (errors || out).trim().slice(-2000);
      reject(new Error(`${command} ${args.join(' ')} failed (${signal ?? code}):\n${said}`));
    });
  });
}

/** Runs a program; what it printed. */
export async function run(command, args, options) {
  return (await observe(command, args, options)).out;
}

// Where a peer is built for an instruction set of ours, and with which options: for others than those above, for this machine.
function buildFor(name, isa) {
  const options = (ISA_OPTIONS[isa] ?? ['NATIVE=ON']).map((option) => `-DGGML_${option}`);
  return { build: join(cacheDirectory(), 'peers', `${name}-build${ISA_OPTIONS[isa] ? `-${isa}` : ''}`), options };
}

/** llama.cpp, held to an instruction set of ours where it can be (avx2, avx_vnni): the paths of its tools. */
export async function buildLlamaCpp(log, isa) {
  const folder = join(cacheDirectory(), 'peers');
  const source = join(folder, 'llama.cpp');
  if (!existsSync(source)) {
    log('llama.cpp: getting its source from the npm package node-llama-cpp');
    const work = join(folder, 'npm');
    await rm(work, { recursive: true, force: true });
    await mkdir(work, { recursive: true });
    await run('npm', ['pack', '--silent', 'node-llama-cpp'], { cwd: work });
    const archive = (await readdir(work)).find((name) => name.endsWith('.tgz'));
    await run('tar', ['-xzf', archive, 'package/llama/gitRelease.bundle'], { cwd: work });
    // Cloned under another name first: a folder named llama.cpp is a whole one.
    await run('git', ['clone', '--quiet', 'package/llama/gitRelease.bundle', 'source'], { cwd: work });
    await rename(join(work, 'source'), source);
    await rm(work, { recursive: true });
  }
  const { build, options } = buildFor('llama.cpp', isa);
  if (process.platform !== 'win32') {
    options.push(`-DCMAKE_CXX_FLAGS=-include ${join(HERE, 'native', 'tile_intrinsics.h')}`);
  }
  const targets = ['llama-bench', 'llama-batched-bench', 'llama-completion', 'llama-mtmd-cli', 'llama-server'];
  const tools = await buildTools(source, build, targets, log, options);
  return { name: 'llama.cpp', isa: ISA_OPTIONS[isa] && isa, tools: { ...tools, own: await buildOwn(source, build) } };
}

/** Likewise ik_llama.cpp from a checkout, a git directory or the cache. Undefined where there is none. */
export async function buildIkLlamaCpp(given, log, isa) {
  const folder = join(cacheDirectory(), 'peers');
  const clone = join(folder, 'ik_llama.cpp');
  let source = given ? resolve(given) : clone;
  if (!existsSync(join(source, 'CMakeLists.txt'))) {
    if (!given) return undefined;
    if (!existsSync(clone)) {
      await mkdir(folder, { recursive: true });
      await run('git', ['clone', '--quiet', source, clone]);
    }
    source = clone;
  }
  const { build, options } = buildFor('ik_llama.cpp', isa);
  const tools = await buildTools(source, build, ['llama-bench'], log, options);
  return { name: 'ik_llama.cpp', isa: ISA_OPTIONS[isa] && isa, tools };
}

async function buildTools(source, build, targets, log, options) {
  const tools = Object.fromEntries(targets.map((target) => [target, join(build, 'bin', target + SUFFIX)]));
  if (!Object.values(tools).every(existsSync)) {
    log(`${source.split(/[\\/]/).at(-1)}: building (some minutes)`);
    await run('cmake', ['-S', source, '-B', build, ...CMAKE_OPTIONS, ...options]);
    await run('cmake', ['--build', build, '--target', ...targets, '--config', 'Release', '--parallel', '2']);
  }
  return tools;
}

// Our own program over llama.cpp's libraries.
async function buildOwn(source, build) {
  const program = join(build, 'bin', `peer_llama${SUFFIX}`);
  const code = join(HERE, 'native', 'peer_llama.cpp');
  const old = await stat(program).catch(() => undefined);
  if (!old || old.mtimeMs < (await stat(code)).mtimeMs) {
    const include = ['include', 'ggml/include'].flatMap((path) => ['-I', join(source, path)]);
    const libraries = [
      '-L',
      join(build, 'bin'),
      `-Wl,-rpath,${join(build, 'bin')}`,
      '-lllama',
      '-lggml',
      '-lggml-base',
    ];
    await run(process.env.CXX ?? 'c++', ['-O2', '-std=c++17', code, ...include, ...libraries, '-o', program]);
  }
  return program;
}

/**
 * Tokens per second of one llama-bench run: prefill of `prompt` tokens, `decode` tokens from an empty cache; 0 leaves one out.
 * It warms up by itself; for big models, where that would double the time, a prompt of 16 tokens before does it.
 */
export async function llamaBench({ name, tools }, { model, prompt, decode, threads, big }) {
  const tests = ['-p', prompt > 0 && big ? `16,${prompt}` : String(prompt), '-n', String(decode)];
  const warmUp = prompt > 0 && big ? (name === 'ik_llama.cpp' ? ['-w', '0'] : ['--no-warmup']) : [];
  const args = ['-m', model, '-t', String(threads), '-r', '1', '-o', 'json', ...tests, ...warmUp];
  const results = JSON.parse(await run(tools['llama-bench'], args));
  const rate = (test) => results.find(test)?.avg_ts;
  return {
    version: results[0]?.build_commit,
    prefill: rate((r) => r.n_prompt === prompt && r.n_gen === 0),
    decode: rate((r) => r.n_gen === decode && r.n_prompt === 0),
  };
}

/** Tokens per second of one sequence, and of `sequences` at once together, each `decode` tokens after 16 of its own. */
export async function batchedBench({ tools }, { model, sequences, decode, threads }) {
  const args = ['-m', model, '-t', String(threads), '-c', String(sequences * (decode + 16) + 256)];
  const shape = ['-npp', '16', '-ntg', String(decode), '-npl', `1,${sequences}`, '--output-format', 'jsonl'];
  const out = await run(tools['llama-batched-bench'], [...args, ...shape]);
  const rows = out
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line));
  const rate = (n) => rows.find((row) => row.pl === n)?.speed_tg;
  return { one: rate(1), all: rate(sequences) };
}

/** Tokens per second of some portions of a decode that begins after `context` positions. */
export async function decodeAt({ tools }, { model, context, portions, tokens, threads }) {
  const args = ['decode', model, threads, context, portions, tokens].map(String);
  return JSON.parse(await run(tools.own, args)).seconds.map((seconds) => tokens / seconds);
}

/** Seconds for the texts of a file, token ids in each line, and the first embeddings. */
export async function embedTexts({ tools }, { model, ids, threads }) {
  const { rows, seconds } = JSON.parse(await run(tools.own, ['embed', model, String(threads), ids]));
  return { rows, seconds: seconds[0] };
}

/** From the start of the process to the first token of its output, and its peak of resident memory. No warm-up run. */
export async function complete({ tools }, { model, text, file, context, threads }) {
  const prompt = file ? ['-f', file] : ['-p', text];
  const rest = ['-n', '1', '--temp', '0', '-no-cnv', '--no-display-prompt', '--no-warmup'];
  return observe(tools['llama-completion'], [
    '-m',
    model,
    '-t',
    String(threads),
    '-c',
    String(context),
    ...prompt,
    ...rest,
  ]);
}

/** Milliseconds that the encoder takes for an image, without loading. */
export async function encodeImage({ tools }, { model, mmproj, image, threads }) {
  const files = ['-m', model, '--mmproj', mmproj, '--image', image, '-p', 'What is this?', '-n', '1', '-c', '1024'];
  const { out, errors } = await observe(tools['llama-mtmd-cli'], [...files, '-t', String(threads), '--no-warmup']);
  const ms = /image slice encoded in (\d+) ms/.exec(out + errors)?.[1];
  if (!ms) throw new Error(`llama-mtmd-cli says nothing of the image:\n${errors.slice(-2000)}`);
  return { ms: Number(ms) };
}

/** Bytes of text per second, of each round. */
export async function tokenizeRates({ tools }, { model, file, bytes, rounds }) {
  const { tokens, seconds } = JSON.parse(await run(tools.own, ['tokenize', model, file, String(rounds)]));
  return { tokens, rates: seconds.map((s) => bytes / s) };
}
