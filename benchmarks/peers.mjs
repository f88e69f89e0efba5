// Builds the engines that ours is compared with, and runs their llama-bench.
//
// llama.cpp comes with npm's node-llama-cpp, as a git bundle of the release it is made for; ik_llama.cpp from a checkout or git
// directory that the caller names. Both are built for this very machine and kept in the cache.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, readdir, rename, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { cacheDirectory } from '../scripts/fetch-test-model.mjs';

const CMAKE_OPTIONS = [
  '-DCMAKE_BUILD_TYPE=Release',
  '-DGGML_NATIVE=ON',
  '-DLLAMA_CURL=OFF',
  '-DLLAMA_OPENSSL=OFF',
  '-DLLAMA_BUILD_TESTS=OFF',
  '-DLLAMA_BUILD_SERVER=OFF',
];

/** Runs a program; its output, or an error with the end of what it printed. */
export function run(command, args, options = {}) {
  return new Promise((done, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
    let out = '';
    let errors = '';
    child.stdout.on('data', (chunk) => (out += chunk));
    child.stderr.on('data', (chunk) => (errors += chunk));
    child.on('error', reject);
    child.on('close', (code, signal) => {
      if (code === 0) done(out);
      else
        reject(
          new Error(`${command} ${args.join(' ')} failed (${signal ?? code}):\n${(errors || out).trim().slice(-2000)}`),
        );
    });
  });
}

/** llama-bench of llama.cpp. */
export async function buildLlamaCpp(log) {
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
  return build(source, join(folder, 'llama.cpp-build'), 'llama.cpp', log);
}

/** llama-bench of ik_llama.cpp, from a checkout or a git directory. */
export async function buildIkLlamaCpp(given, log) {
  const folder = join(cacheDirectory(), 'peers');
  let source = resolve(given);
  if (!existsSync(join(source, 'CMakeLists.txt'))) {
    const clone = join(folder, 'ik_llama.cpp');
    if (!existsSync(clone)) {
      await mkdir(folder, { recursive: true });
      await run('git', ['clone', '--quiet', source, clone]);
    }
    source = clone;
  }
  return build(source, join(folder, 'ik_llama.cpp-build'), 'ik_llama.cpp', log);
}

async function build(source, folder, name, log) {
  const program = join(folder, 'bin', process.platform === 'win32' ? 'llama-bench.exe' : 'llama-bench');
  if (existsSync(program)) return program;
  log(`${name}: building (some minutes)`);
  await run('cmake', ['-S', source, '-B', folder, ...CMAKE_OPTIONS]);
  await run('cmake', ['--build', folder, '--target', 'llama-bench', '--config', 'Release', '--parallel', '2']);
  return program;
}

/** Tokens per second of one llama-bench run. It warms up by itself; its decode starts at `context` positions. */
export async function llamaBench(program, kind, { model, prompt, decode, context, threads }) {
  const common = ['-m', model, '-t', String(threads), '-r', '1', '-o', 'json', '-ngl', '0'];
  const results = [];
  const bench = async (...args) => results.push(...JSON.parse(await run(program, [...common, ...args])));
  if (context === 0) {
    await bench('-p', String(prompt), '-n', String(decode));
  } else {
    await bench('-p', String(prompt), '-n', '0');
    if (kind === 'ik_llama.cpp') await bench('-p', '0', '-n', '0', '-gp', `${context},${decode}`);
    else await bench('-p', '0', '-n', String(decode), '-d', String(context));
  }
  const rate = (test) => results.find(test)?.avg_ts;
  return {
    version: results[0]?.build_commit,
    prefillTokensPerSecond: rate((r) => r.n_prompt === prompt && r.n_gen === 0),
    decodeTokensPerSecond: rate((r) => r.n_gen === decode),
  };
}
