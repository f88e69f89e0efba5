// Builds addons for other systems too, and lays them out as the published package carries them: prebuilds/<system>-<processor>/,
// where node-gyp-build finds the one that fits.
//
//   npm run prebuilds                                this machine's
//   npm run prebuilds -- linux-x64-musl win32-x64    these
//   npm run prebuilds -- --all                       every one of the main package
//   npm run prebuilds -- --gpus                      those of the packages for GPUs (packages/), whose compilers build:cuda and
//                                                    build:rocm know
//
// The compiler is zig's C++ compiler from the Python package ziglang: it brings what it needs for every target, and the binaries
// for Linux run with glibc 2.28 (2018) and newer whatever this machine has. Runs on Linux and macOS.
import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { basename, join, relative } from 'node:path';
import { gpuOptions } from './gpu-toolchain.mjs';
import { zig } from './python-tools.mjs';
import { glibcOf, gpuTargets, hostTarget, targets as cpuTargets } from './targets.mjs';
import { jobs, main, quietly, root, say, SetupError, version } from './steps.mjs';

const targets = { ...cpuTargets, ...gpuTargets };
const MAX_GLIBC = [2, 28];

async function build(name, compiler) {
  const { triple, backend } = targets[name];
  const gpu = backend ? [`GEMMA_BACKEND=${backend}`, ...(await gpuOptions(backend))] : [];
  say(`Building ${name}`);
  const folder = join(root, 'build', 'cross', name);
  const ninja = version('ninja') ? ['-G', 'Ninja'] : [];
  await quietly('cmake', [
    '-S',
    root,
    '-B',
    folder,
    ...ninja,
    `-DCMAKE_TOOLCHAIN_FILE=${join(root, 'cmake', 'toolchains', 'zig.cmake')}`,
    `-DZIG=${compiler}`,
    `-DZIG_TARGET=${triple}`,
    '-DCMAKE_BUILD_TYPE=Release',
    ...gpu.map((option) => `-D${option}`),
  ]);
  await quietly('cmake', ['--build', folder, '--parallel', jobs, '--target', 'gemma_native']);
  return join(folder, 'gemma_native.node');
}

// Asks the resolver that runs at the user's, which takes the system and processor from its environment.
function resolve({ platform, arch, libc, folder = '.' }) {
  const script = `process.stdout.write(require('node-gyp-build').resolve(${JSON.stringify(join(root, folder))}))`;
  const env = {
    ...process.env,
    PREBUILDS_ONLY: '1',
    npm_config_platform: platform,
    npm_config_arch: arch,
    LIBC: libc ?? '',
  };
  return execFileSync(process.execPath, ['-e', script], { cwd: root, env, encoding: 'utf8' });
}

await main(async () => {
  const wanted = process.argv.slice(2);
  const named = wanted.flatMap((word) => {
    if (word === '--all') return Object.keys(cpuTargets);
    return word === '--gpus' ? Object.keys(gpuTargets) : [word];
  });
  const names = named.length > 0 ? named : [hostTarget()];
  for (const name of names) {
    if (!targets[name]) {
      throw new SetupError(
        `${name}: no such target; expected --all, --gpus or some of ${Object.keys(targets).join(', ')}`,
      );
    }
  }
  const compiler = await zig();
  if (wanted.includes('--all')) rmSync(join(root, 'prebuilds'), { recursive: true, force: true });
  for (const name of names) {
    const target = targets[name];
    const built = await build(name, compiler);
    const path = join(root, target.path);
    mkdirSync(join(path, '..'), { recursive: true });
    copyFileSync(built, path);
    for (const text of target.folder ? ['LICENSE', 'NOTICE'] : []) {
      copyFileSync(join(root, text), join(root, target.folder, text));
    }

    const found = resolve(target);
    if (found !== path) throw new SetupError(`${name}: node-gyp-build takes ${found}, expected ${path}`);
    const bytes = readFileSync(path);
    if (bytes.includes(root)) throw new SetupError(`${name}: ${relative(root, path)} names the folder it was built in`);
    if (target.libc === 'glibc') {
      const [major, minor] = glibcOf(bytes);
      if (major > MAX_GLIBC[0] || minor > MAX_GLIBC[1]) {
        throw new SetupError(
          `${basename(path)}: needs glibc ${major}.${minor}, expected ${MAX_GLIBC.join('.')} at most`,
        );
      }
    }
    process.stdout.write(`${relative(root, path)}: ${(statSync(path).size / 1e6).toFixed(1)} MB\n`);
  }
});
