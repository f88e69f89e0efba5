// What `npm start` and `npm test` have in common: each brings the checkout into shape by itself, says what it does, and skips
// what is done already. Node's own modules only: this runs before anything is installed.
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = join(dirname(fileURLToPath(import.meta.url)), '..');
export const jobs = String(availableParallelism());

/** Ends the script with a message instead of a stack. */
export class SetupError extends Error {}

const steps = []; // { name, start, end }: milliseconds since this script began
let current; // the step of `say`
let durationsShown = false;

/** From now on every step prints its duration when it ends: of use to whoever waits for the tests, not to `npm start`. */
export function showDurations() {
  durationsShown = true;
  // Durations, and the instruction sets that are tested, depend on the processor.
  process.stdout.write(`${availableParallelism()} threads, ${cpus()[0]?.model ?? 'unknown processor'}\n`);
}

function beginStep(name) {
  const step = { name, start: performance.now() };
  steps.push(step);
  return step;
}

function endStep(step) {
  if (!step || step.end !== undefined) return;
  step.end = performance.now();
  if (durationsShown) process.stdout.write(`-- ${seconds(step.end - step.start)} s: ${step.name}\n`);
}

function seconds(milliseconds) {
  return (milliseconds / 1000).toFixed(1);
}

/** Ends the step before and begins another. */
export function say(text) {
  endStep(current);
  process.stdout.write(`\n== ${text}\n`);
  current = beginStep(text);
}

/** Runs work beside the step that is under way, as a step of its own that prints nothing when it begins. */
export async function beside(name, work) {
  const step = beginStep(name);
  try {
    return await work();
  } finally {
    endStep(step);
  }
}

/** Ends the last step and prints how many seconds each step took, and all of them together. */
export function printDurations() {
  endStep(current);
  const rows = steps.map(({ name, start, end }) => [seconds(end - start), name]);
  rows.push([seconds(performance.now()), 'all steps']);
  const width = Math.max(...rows.map(([time]) => time.length));
  process.stdout.write(`\n== Seconds\n${rows.map(([time, name]) => `${time.padStart(width)}  ${name}\n`).join('')}`);
}

/** Runs a program with its output on the terminal; rejects when it fails. */
export function run(command, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'], ...options });
    child.on('error', reject);
    child.on('close', (code, signal) => {
      if (code === 0) resolve();
      else reject(new SetupError(`${[command, ...args].join(' ')} failed (${signal ?? `exit ${code}`})`));
    });
  });
}

/** Runs a program and returns everything it printed; it is printed here only when the program fails. */
export function capture(command, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'], ...options });
    let output = '';
    child.stdout.on('data', (chunk) => (output += chunk));
    child.stderr.on('data', (chunk) => (output += chunk));
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ ok: code === 0, status: signal ?? `exit ${code}`, output }));
  });
}

/** Runs a program whose output matters only when it fails; rejects then. */
export async function quietly(command, args, options) {
  const { ok, status, output } = await capture(command, args, options);
  if (ok) return;
  process.stdout.write(output);
  throw new SetupError(`${[command, ...args].join(' ')} failed (${status})`);
}

export function version(command) {
  const { status, stdout } = spawnSync(command, ['--version'], { encoding: 'utf8' });
  return status === 0 ? stdout : undefined;
}

function atLeast(text, wanted) {
  const found = /(\d+)\.(\d+)/.exec(text)?.slice(1).map(Number) ?? [0, 0];
  return found[0] > wanted[0] || (found[0] === wanted[0] && found[1] >= wanted[1]);
}

/** Throws with a list of what is missing and how to get it. */
export function checkTools() {
  const missing = [];
  if (!atLeast(process.versions.node, [20, 12])) {
    missing.push(
      `Node.js 20.12 or newer; this is ${process.versions.node}. Get it from your package manager or nodejs.org`,
    );
  }
  if (!atLeast(version('cmake') ?? '', [3, 21])) {
    missing.push(
      'CMake 3.21 or newer: apt-get install cmake, brew install cmake, winget install Kitware.CMake or pip install cmake',
    );
  }
  const compilers = [process.env.CXX, 'c++', 'g++', 'clang++'].filter(Boolean);
  if (process.platform !== 'win32' && !compilers.some(version)) {
    missing.push('a C++20 compiler (GCC 11, Clang 14 or newer): apt-get install g++, or xcode-select --install');
  }
  if (process.platform !== 'win32' && !['ninja', 'make'].some(version)) {
    missing.push('make or ninja: apt-get install make');
  }
  if (missing.length > 0)
    throw new SetupError(`something is missing:\n${missing.map((line) => `  - ${line}`).join('\n')}`);
}

function npm(args) {
  // Through the npm that started this script where there is one; on Windows npm is no program that can be spawned.
  const { npm_execpath: path } = process.env;
  return path ? run(process.execPath, [path, ...args]) : run('npm', args, { shell: process.platform === 'win32' });
}

export async function install() {
  const lock = readFileSync(join(root, 'package-lock.json'));
  const digest = createHash('sha256').update(lock).digest('hex');
  const stamp = join(root, 'node_modules', '.gemma-installed');
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === digest) return;
  say('Installing npm packages');
  await npm(['ci', '--ignore-scripts', '--no-audit', '--no-fund']);
  writeFileSync(stamp, digest);
}

export async function buildNative() {
  say('Building the addon (the first time takes a minute or two)');
  await quietly(process.execPath, [join(root, 'scripts', 'build-native.mjs')]);
}

// Chips that tests compile kernels for: one of each vendor's families of instructions is enough to link and load.
const testChips = { cuda: '75 80', rocm: 'gfx90a gfx1100' };

/**
 * Builds the addons for CUDA and ROCm into build/cuda and build/rocm, each where its compiler is. required: get NVIDIA's
 * compiler where it is missing, and fail for what is missing still. Returns what was not built, and why.
 */
export async function buildGpuAddons({ required }) {
  if (process.platform !== 'linux') return ['GPU backends are built on Linux only'];
  const { gpuOptions } = await import('./gpu-toolchain.mjs');
  const missing = [];
  for (const backend of ['cuda', 'rocm']) {
    try {
      await gpuOptions(backend, { install: required });
    } catch (error) {
      if (required || !(error instanceof SetupError)) throw error;
      missing.push(error.message);
      continue;
    }
    say(`Building the addon for ${backend} (kernels for ${testChips[backend]})`);
    const chips = { [`GEMMA_${backend.toUpperCase()}_CHIPS`]: testChips[backend] };
    const env = { ...process.env, ...chips, GEMMA_BUILD_DIR: join('build', backend) };
    await quietly(process.execPath, [join(root, 'scripts', 'build-native.mjs'), backend], { env });
  }
  return missing;
}

function newest(path) {
  if (!existsSync(path)) return 0;
  const stats = statSync(path);
  if (!stats.isDirectory()) return stats.mtimeMs;
  return Math.max(0, ...readdirSync(path).map((name) => newest(join(path, name))));
}

/** Compiles the main package, and those in packages/ that stand on it. */
export async function buildTypeScript() {
  const { workspaces } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  for (const folder of ['.', ...workspaces]) {
    const config = join(folder, folder === '.' ? 'tsconfig.build.json' : 'tsconfig.json');
    const sources = [
      join(folder, folder === '.' ? 'lib' : 'src'),
      'lib',
      'package.json',
      'tsconfig.build.json',
      config,
    ];
    const built = join(root, folder, 'dist', 'index.js');
    if (newest(built) > Math.max(...sources.map((name) => newest(join(root, name))))) continue;
    say(`Compiling TypeScript${folder === '.' ? '' : ` (${folder})`}`);
    await run(process.execPath, [join(root, 'node_modules', 'typescript', 'bin', 'tsc'), '-p', config]);
  }
}

export async function fetchModel() {
  const { fetchTestModel } = await import('./fetch-test-model.mjs');
  say('Looking for Gemma 3 270M (downloads 253 MB the first time)');
  return fetchTestModel();
}

async function configureAndBuild(folder, options, targets = []) {
  mkdirSync(folder, { recursive: true });
  const generator = version('ninja') ? ['-G', 'Ninja'] : [];
  await quietly('cmake', ['-S', root, '-B', folder, ...generator, ...options, '-DGEMMA_TESTS=ON', '-DGEMMA_ADDON=OFF']);
  const only = targets.flatMap((target) => ['--target', target]);
  await quietly('cmake', ['--build', folder, '--parallel', jobs, ...only]);
  return folder;
}

/**
 * Configures and builds the native tests, all or those named (instrumented without the tools); flavour: '', 'address' or
 * 'thread'. Returns the build folder.
 */
export async function buildNativeTests(flavour, targets = flavour ? ['native_tests'] : []) {
  say(`Building the native tests${flavour ? ` for the ${flavour} sanitizer` : ''}`);
  // Sanitized builds keep the asserts and skip what only costs compile time.
  // The programs of benchmarks are built with the tests, so that a change cannot break them unseen.
  const type = flavour
    ? ['-DCMAKE_BUILD_TYPE=None', `-DCMAKE_CXX_FLAGS=${flavour === 'address' ? '-Og' : '-O1'}`]
    : ['-DCMAKE_BUILD_TYPE=Release', '-DGEMMA_BENCH=ON'];
  const folder = join(root, 'build', flavour ? `tests-${flavour}` : 'tests');
  return configureAndBuild(folder, [...type, `-DGEMMA_SANITIZE=${flavour}`], targets);
}

const arm64Compiler = 'aarch64-linux-gnu-g++';
const arm64Emulators = ['qemu-aarch64', 'qemu-aarch64-static'];

/** What is missing here for the native tests on an emulated arm64 processor, and how to get it; '' when nothing is. */
export function missingForArm64() {
  const missing = [];
  if (process.platform !== 'linux') missing.push('Linux, whose programs are emulated');
  if (!version(arm64Compiler)) missing.push(`${arm64Compiler} (apt-get install g++-aarch64-linux-gnu)`);
  if (!arm64Emulators.some(version)) missing.push(`${arm64Emulators[0]} (apt-get install qemu-user)`);
  return missing.join(', ');
}

/** Configures and builds the native tests for arm64, except those named; ctest runs them in the emulator. Returns the build folder. */
export async function buildArm64Tests(except) {
  say('Building the native tests for arm64');
  const emulator = arm64Emulators.find(version);
  const options = [
    '-DCMAKE_BUILD_TYPE=Release',
    `-DGEMMA_TESTS_EXCEPT=${except.join(';')}`,
    '-DCMAKE_SYSTEM_NAME=Linux',
    '-DCMAKE_SYSTEM_PROCESSOR=aarch64',
    `-DCMAKE_CXX_COMPILER=${arm64Compiler}`,
    `-DCMAKE_CROSSCOMPILING_EMULATOR=${emulator};-L;/usr/aarch64-linux-gnu`,
  ];
  return configureAndBuild(join(root, 'build', 'tests-arm64'), options, ['native_tests']);
}

/** Runs a script's main function; a SetupError is told in one line. */
export async function main(work) {
  try {
    await work();
  } catch (error) {
    process.stderr.write(`\n${error instanceof SetupError ? error.message : error.stack}\n`);
    process.exitCode = 1;
  }
}
