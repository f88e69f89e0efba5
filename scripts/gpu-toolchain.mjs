// The compilers for GPU kernels: finds what the build of a backend needs, and says what is missing and how to get it. Nothing
// of it is needed where the addon runs: kernels are embedded, drivers are opened at run time.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { homedir } from 'node:os';
import { delimiter, join } from 'node:path';
import { pipInstall } from './python-packages.mjs';
import { SetupError } from './steps.mjs';

// NVIDIA's compiler as it lies in the Python package index, all of one release. 13.0: what it makes runs with driver 580 and
// newer, which is what drivers must offer for any CUDA 13.
const CUDA_VERSION = '13.0.88';
const CUDA_WHEELS = [
  'nvidia-cuda-nvcc==13.0.88',
  'nvidia-cuda-crt==13.0.88',
  'nvidia-nvvm==13.0.88',
  'nvidia-cuda-runtime==13.0.96',
  'nvidia-cuda-cccl==13.0.85',
];
// Disassemblers, for the static report only.
const CUDA_TOOL_WHEELS = ['nvidia-cuda-cuobjdump==13.2.51', 'nvidia-cuda-nvdisasm==13.2.51'];

const DEBIAN_ROCM = 'clang-19 lld-19 rocm-device-libs libamdhip64-dev';

/** Where downloads of this project live, as for the test model. */
function cacheFolder(name) {
  return join(process.env.GEMMA_CACHE || join(homedir(), '.cache', 'gemma-native'), name);
}

function onPath(name) {
  return (process.env.PATH ?? '')
    .split(delimiter)
    .filter(Boolean)
    .map((folder) => join(folder, name))
    .find((path) => existsSync(path));
}

function output(command, args) {
  const { status, stdout } = spawnSync(command, args, { encoding: 'utf8' });
  return status === 0 ? stdout : '';
}

/** nvcc's path. install: get it where there is none. Throws SetupError with what is missing. */
export async function findNvcc({ install = false } = {}) {
  const cached = join(cacheFolder(`cuda-${CUDA_VERSION}`), 'nvidia', 'cu13', 'bin', 'nvcc');
  const candidates = [
    process.env.CUDACXX,
    ...[process.env.CUDA_HOME, process.env.CUDA_PATH].filter(Boolean).map((home) => join(home, 'bin', 'nvcc')),
    cached,
    onPath('nvcc'),
    '/usr/local/cuda/bin/nvcc',
  ].filter(Boolean);
  const found = candidates.find((path) => existsSync(path) && /release \d/.test(output(path, ['--version'])));
  if (found) return found;
  if (install) {
    process.stdout.write(`Getting NVIDIA's compiler ${CUDA_VERSION} (260 MB)\n`);
    await pipInstall(cacheFolder(`cuda-${CUDA_VERSION}`), ['--no-deps', ...CUDA_WHEELS]);
    if (/release \d/.test(output(cached, ['--version']))) return cached;
  }
  throw new SetupError(
    "the CUDA backend needs NVIDIA's compiler nvcc, 12.8 or newer, which is not here. Either\n" +
      '  - npm run build:cuda -- --install    downloads it (260 MB) with pip, for this project alone; or\n' +
      '  - install a CUDA toolkit, and set CUDA_HOME unless nvcc is on the PATH.\n' +
      'The addon that comes out needs no toolkit: where it runs, a driver is enough (580 or newer).',
  );
}

/** Folders of cuobjdump and nvdisasm, which the static report reads; downloaded where there are none. */
export async function findCudaDisassembler() {
  const folder = cacheFolder('cuda-disassembler-13.2.51');
  const bin = join(folder, 'nvidia', 'cu13', 'bin');
  if (!existsSync(join(bin, 'nvdisasm'))) await pipInstall(folder, ['--no-deps', ...CUDA_TOOL_WHEELS]);
  return bin;
}

function bitcodeFolder(roots) {
  for (const root of roots) {
    const direct = [join(root, 'amdgcn', 'bitcode'), join(root, 'lib', 'amdgcn', 'bitcode')];
    const lib = join(root, 'lib');
    const multiarch = existsSync(lib) ? readdirSync(lib).filter((name) => name.endsWith('-linux-gnu')) : [];
    const all = [...direct, ...multiarch.map((name) => join(lib, name, 'amdgcn', 'bitcode'))];
    const found = all.find((folder) => existsSync(join(folder, 'ocml.bc')));
    if (found) return found;
  }
  return undefined;
}

/** { clang, rocmPath, bitcode } for HIP device code. Throws SetupError with what is missing. */
export function findHipCompiler() {
  const roots = [process.env.ROCM_PATH, '/opt/rocm', '/usr'].filter((root) => root && existsSync(root));
  const candidates = [
    process.env.HIP_CLANG,
    ...roots.map((root) => join(root, 'llvm', 'bin', 'clang++')),
    ...[22, 21, 20, 19].map((version) => onPath(`clang++-${version}`)),
    onPath('amdclang++'),
    onPath('clang++'),
  ].filter((path) => path && existsSync(path));
  // Older ones do not know the chips of the last years.
  const clang = candidates.find((path) => Number(/version (\d+)/.exec(output(path, ['--version']))?.[1] ?? 0) >= 19);
  const lld = clang && existsSync(output(clang, ['-print-prog-name=ld.lld']).trim());
  const rocmPath = roots.find((root) => existsSync(join(root, 'include', 'hip', 'hip_runtime.h')));
  const bitcode = bitcodeFolder([...roots, ...(rocmPath ? [rocmPath] : [])]);
  const missing = [];
  if (!clang) missing.push('clang++ 19 or newer');
  else if (!lld) missing.push(`ld.lld of the same version as ${clang}`);
  if (!rocmPath) missing.push('the HIP headers (hip/hip_runtime.h)');
  if (!bitcode) missing.push("AMD's device libraries (ocml.bc)");
  if (missing.length === 0) return { clang, rocmPath, bitcode };
  throw new SetupError(
    `the ROCm backend needs ${missing.join(', ')}, not found here. Either\n` +
      `  - Debian and Ubuntu: apt-get install --no-install-recommends ${DEBIAN_ROCM}; or\n` +
      '  - install ROCm 6.4 or newer, and set ROCM_PATH unless it lies in /opt/rocm (HIP_CLANG names another clang++).\n' +
      'The addon that comes out needs neither: where it runs, libamdhip64 of ROCm 5, 6 or 7 is enough.',
  );
}

/** CMake's options for a GPU backend. Throws SetupError when a compiler is missing. */
export async function gpuOptions(backend, { install = false } = {}) {
  if (backend === 'cpu') return [];
  if (process.platform !== 'linux')
    throw new SetupError(
      `GEMMA_BACKEND=${backend}: GPU backends are built on Linux only so far; use GEMMA_BACKEND=cpu`,
    );
  // Empty: CMakeLists.txt's defaults, whatever an earlier build was told.
  const chips = (name) => `${name}=${(process.env[name] ?? '').trim().replaceAll(/[,;\s]+/g, ';')}`;
  if (backend === 'cuda') return [`GEMMA_NVCC=${await findNvcc({ install })}`, chips('GEMMA_CUDA_CHIPS')];
  if (backend === 'rocm') {
    const { clang, rocmPath, bitcode } = findHipCompiler();
    return [
      `GEMMA_HIP_CLANG=${clang}`,
      `GEMMA_HIP_ROOT=${rocmPath}`,
      `GEMMA_HIP_BITCODE=${bitcode}`,
      chips('GEMMA_ROCM_CHIPS'),
    ];
  }
  throw new SetupError(`GEMMA_BACKEND=${backend}: expected cpu, cuda or rocm`);
}
