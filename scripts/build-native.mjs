// Builds the addon into build/Release with CMake, through cmake-js (which knows where Node's headers are, without a download).
// The one entry for npm scripts and binding.gyp.
//
//   node scripts/build-native.mjs [cpu | cuda | rocm] [--install]
//
// The backend is the argument, else GEMMA_BACKEND, else cpu. GEMMA_CUDA_CHIPS and GEMMA_ROCM_CHIPS choose the chips that kernels
// are compiled for ("75 86", "gfx1100"); --install downloads NVIDIA's compiler where there is none. GEMMA_BUILD_DIR: another folder
// than build/.
import { join } from 'node:path';
import { gpuOptions } from './gpu-toolchain.mjs';
import { SetupError, jobs, main, root, run } from './steps.mjs';

await main(async () => {
  const cmakeJs = join(root, 'node_modules', 'cmake-js', 'bin', 'cmake-js');
  const words = process.argv.slice(2);
  const install = words.includes('--install');
  const named = words.filter((word) => word !== '--install');
  if (named.length > 1) throw new SetupError(`expected one backend, found ${named.join(' ')}`);
  const backend = named[0] || process.env.GEMMA_BACKEND || 'cpu';
  const options = [`GEMMA_BACKEND=${backend}`, ...(await gpuOptions(backend, { install }))];
  const folder = ['--out', process.env.GEMMA_BUILD_DIR || 'build'];
  const quiet = ['--log-level', 'error'];
  await run(process.execPath, [cmakeJs, 'configure', ...folder, ...quiet, ...options.map((option) => `--CD${option}`)]);
  await run(process.execPath, [cmakeJs, 'build', ...folder, ...quiet, '--parallel', jobs, '--target', 'gemma_native']);
});
