// Builds the addon into build/Release with CMake, through cmake-js (which knows where Node's headers are, without a download).
// The one entry for npm scripts and binding.gyp. GEMMA_BACKEND=cpu|cuda|rocm chooses the backend.
import { join } from 'node:path';
import { jobs, main, root, run } from './steps.mjs';

await main(async () => {
  const cmakeJs = join(root, 'node_modules', 'cmake-js', 'bin', 'cmake-js');
  const backend = process.env.GEMMA_BACKEND || 'cpu';
  await run(process.execPath, [cmakeJs, 'configure', '--log-level', 'error', `--CDGEMMA_BACKEND=${backend}`]);
  await run(process.execPath, [
    cmakeJs,
    'build',
    '--log-level',
    'error',
    '--parallel',
    jobs,
    '--target',
    'gemma_native',
  ]);
});
