// npm run gpu:report: writes build/gpu-report/gpu-static.md, which shows what the compilers generate from the kernels for every
// chip. Needs both compilers (npm run build:cuda and build:rocm say how to install them) and no GPU. Fails if a hot kernel spills
// registers or keeps values on the stack, or if a compiler warns.
//
// An inner loop is a backward branch without another one inside. The report gives the longest of each kernel.
import { mkdirSync, readFileSync, statSync, existsSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { findCudaDisassembler, findHipCompiler, findNvcc } from './gpu-toolchain.mjs';
import { fetchTestModel } from './fetch-test-model.mjs';
import { SetupError, capture, jobs, main, root, say } from './steps.mjs';

const SOURCE = join(root, 'native', 'backend', 'gpu', 'kernels.cu');
const folder = join(root, 'build', 'gpu-report');

// Kernels in which decode or prefill spends its time.
const HOT = /linear|attention|norm|elementwise|quantize|store|embed|rope|top/;

async function output(command, args) {
  const { ok, status, output } = await capture(command, args);
  if (!ok) throw new SetupError(`${[command, ...args].join(' ')} failed (${status})\n${output}`);
  return output;
}

/** The default chips of cmake/GpuImages.cmake. */
function defaultChips(name) {
  const text = readFileSync(join(root, 'cmake', 'GpuImages.cmake'), 'utf8');
  return new RegExp(`set\\(default_${name}_chips ([^)]*)\\)`).exec(text)[1].split(' ');
}

/**
 * The longest inner loop among instructions [{ address, text, target? }], target being that of a branch; undefined where there is
 * no loop.
 */
export function innerLoop(instructions) {
  const index = new Map(instructions.map(({ address }, i) => [address, i]));
  const loops = [];
  instructions.forEach(({ target }, end) => {
    const begin = index.get(target);
    if (begin !== undefined && begin < end) loops.push({ begin, end });
  });
  const inner = loops.filter(
    (loop) => !loops.some((other) => other !== loop && other.begin >= loop.begin && other.end < loop.end),
  );
  inner.sort((a, b) => b.end - b.begin - (a.end - a.begin));
  return inner[0] && instructions.slice(inner[0].begin, inner[0].end + 1).map(({ text }) => text);
}

function counted(loop, kinds) {
  if (!loop) return '-';
  const parts = Object.entries(kinds)
    .map(([name, pattern]) => [name, loop.filter((text) => pattern.test(text)).length])
    .filter(([, n]) => n > 0)
    .map(([name, n]) => `${n} ${name}`);
  return `${loop.length}${parts.length > 0 ? ` (${parts.join(', ')})` : ''}`;
}

const NVIDIA_KINDS = {
  matrix: /\b[IHQ]MMA\b|\bIMMA|\bHMMA/,
  dot: /\bIDP/,
  FMA: /\bFFMA/,
  'load global': /\bLDG\b|\bLDG\./,
  'async copy': /\bLDGSTS/,
  'load shared': /\bLDS/,
  shuffle: /\bSHFL/,
  barrier: /\bBAR\b|\bBAR\./,
  stack: /\bLDL|\bSTL/,
};

async function nvidia(nvcc, tools, chip) {
  const cubin = join(folder, `sm_${chip}.cubin`);
  const flags = [
    '-x',
    'cu',
    '-std=c++17',
    '-O3',
    '-fmad=false',
    '-cubin',
    `-arch=sm_${chip}`,
    '--expt-relaxed-constexpr',
  ];
  const log = await output(nvcc, [
    ...flags,
    '-Werror',
    'all-warnings',
    '-Xptxas',
    '-v',
    '-I',
    join(root, 'native'),
    '-o',
    cubin,
    SOURCE,
  ]);
  const kernels = new Map();
  let name;
  for (const line of log.split('\n')) {
    name = /Compiling entry function '(\w+)'/.exec(line)?.[1] ?? name;
    const spills = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    const used = /Used (\d+) registers/.exec(line);
    if (spills && name) kernels.set(name, { stack: Number(spills[1]), spills: Number(spills[2]) + Number(spills[3]) });
    if (used && kernels.has(name)) {
      Object.assign(kernels.get(name), {
        registers: Number(used[1]),
        shared: Number(/(\d+) bytes smem/.exec(line)?.[1] ?? 0),
      });
    }
  }
  const sass = await output(join(tools, 'cuobjdump'), ['-sass', cubin]);
  for (const part of sass.split('Function : ').slice(1)) {
    const kernel = kernels.get(/^\w+/.exec(part)[0]);
    const instructions = [...part.matchAll(/\/\*([0-9a-f]{4,5})\*\/\s+(.*?);/g)].map(([, address, text]) => {
      const target = /\bBRA\b.*0x([0-9a-f]+)/.exec(text)?.[1];
      return { address: parseInt(address, 16), text, ...(target && { target: parseInt(target, 16) }) };
    });
    if (kernel) kernel.loop = counted(innerLoop(instructions), NVIDIA_KINDS);
  }
  return kernels;
}

const AMD_KINDS = {
  matrix: /v_mfma|v_wmma/,
  dot: /v_dot/,
  FMA: /v_fma|v_pk_fma|v_fmac/,
  'load global': /global_load|flat_load|buffer_load/,
  'load shared': /ds_(read|load)/,
  permute: /ds_bpermute|ds_swizzle|v_permlane|_dpp/,
  barrier: /s_barrier/,
  stack: /scratch_/,
};

async function amd({ clang, rocmPath }, chip) {
  const object = join(folder, `${chip}.co`);
  const bitcode = ['rocm-all', 'rocm']
    .map((name) => join(root, 'build', name, 'gpu', 'bitcode'))
    .find((path) => existsSync(join(path, `oclc_isa_version_${chip.slice(3)}.bc`)));
  if (!bitcode)
    throw new SetupError(
      `no device library for ${chip} yet: run npm run build:rocm first, with GEMMA_BUILD_DIR=build/rocm`,
    );
  const log = await output(clang, [
    '-x',
    'hip',
    '-std=c++17',
    '-O3',
    '-ffp-contract=off',
    `--offload-arch=${chip}`,
    '--cuda-device-only',
    '--no-gpu-bundle-output',
    '-mcode-object-version=4',
    `--rocm-path=${rocmPath}`,
    `--rocm-device-lib-path=${bitcode}`,
    '-D__HIP_PLATFORM_AMD__=1',
    '-Wall',
    '-Wextra',
    '-Werror',
    '-I',
    join(root, 'native'),
    '-o',
    object,
    SOURCE,
  ]);
  if (log.trim()) throw new SetupError(`${chip}: ${log}`);
  const bin = dirname((await output(clang, ['-print-prog-name=ld.lld'])).trim());
  const kernels = new Map();
  const notes = await output(join(bin, 'llvm-readelf'), ['--notes', object]);
  for (const part of notes.split(/\n\s+- \.(?:agpr_count|args):/).slice(1)) {
    const number = (key) => Number(new RegExp(`\\.${key}:\\s+(\\d+)`).exec(part)?.[1] ?? 0);
    const name = /\.name:\s+(gemma_\w+)/.exec(part)?.[1];
    if (name)
      kernels.set(name, {
        registers: number('vgpr_count'),
        spills: number('vgpr_spill_count') + number('sgpr_spill_count'),
        shared: number('group_segment_fixed_size'),
        stack: number('private_segment_fixed_size'),
      });
  }
  const listing = await output(join(bin, 'llvm-objdump'), ['-d', object]);
  for (const part of listing.split(/\n(?=[0-9a-f]{16} <)/).slice(1)) {
    const [, start, name] = /^([0-9a-f]{16}) <(\w+)>/.exec(part) ?? [];
    const kernel = kernels.get(name);
    if (!kernel) continue;
    const instructions = [...part.matchAll(/^\t(\S.*?)\s*\/\/ ([0-9A-F]{12}):.*$/gm)].map(([line, text, address]) => {
      const offset = /s_c?branch\S*.*<\w+\+0x([0-9a-f]+)>/.exec(line)?.[1];
      return {
        address: parseInt(address, 16),
        text,
        ...(offset && { target: parseInt(start, 16) + parseInt(offset, 16) }),
      };
    });
    kernel.loop = counted(innerLoop(instructions), AMD_KINDS);
  }
  return kernels;
}

function tables(results) {
  const lines = [];
  for (const [chip, kernels] of results) {
    lines.push(
      `### ${chip}`,
      '',
      '| kernel | registers | spills | stack bytes | shared bytes | inner loop: instructions |',
      '| --- | ---: | ---: | ---: | ---: | --- |',
    );
    for (const [name, { registers, spills, stack, shared, loop = '-' }] of kernels) {
      lines.push(`| ${name.replace(/^gemma_/, '')} | ${registers} | ${spills} | ${stack} | ${shared} | ${loop} |`);
    }
    lines.push('');
  }
  return lines;
}

function summary(results) {
  const lines = [
    '| chip | kernels | most registers | spills | most stack bytes | most shared bytes |',
    '| --- | ---: | ---: | ---: | ---: | ---: |',
  ];
  for (const [chip, kernels] of results) {
    const all = [...kernels.values()];
    const most = (key) => Math.max(...all.map((kernel) => kernel[key]));
    lines.push(
      `| ${chip} | ${all.length} | ${most('registers')} | ${all.reduce((sum, { spills }) => sum + spills, 0)} | ${most('stack')} | ${most('shared')} |`,
    );
  }
  return lines;
}

function sizes() {
  const lines = [];
  for (const backend of ['cuda', 'rocm']) {
    const path = join(root, 'build', `${backend}-all`, 'Release', 'gemma_native.node');
    if (existsSync(path)) lines.push(`| ${backend} | ${(statSync(path).size / 1e6).toFixed(1)} MB |`);
  }
  return lines;
}

async function traffic() {
  const build = join(root, 'build', 'tests');
  await output('cmake', [
    '-S',
    root,
    '-B',
    build,
    '-DGEMMA_TESTS=ON',
    '-DGEMMA_ADDON=OFF',
    '-DCMAKE_BUILD_TYPE=Release',
  ]);
  await output('cmake', ['--build', build, '--parallel', jobs, '--target', 'gpu_traffic_tool']);
  const model = await fetchTestModel();
  return (await output(join(build, 'gpu_traffic_tool'), [model, '200', 'sm_80', 'gfx90a', 'gfx1100']))
    .trim()
    .split('\n');
}

await main(async () => {
  mkdirSync(folder, { recursive: true });
  const nvcc = await findNvcc({ install: true });
  const tools = await findCudaDisassembler();
  const hip = findHipCompiler();
  const results = new Map();
  for (const chip of defaultChips('cuda')) {
    say(`sm_${chip}`);
    results.set(`sm_${chip}`, await nvidia(nvcc, tools, chip));
  }
  for (const chip of defaultChips('rocm')) {
    say(chip);
    results.set(chip, await amd(hip, chip));
  }
  const spilled = [...results].flatMap(([chip, kernels]) =>
    [...kernels]
      .filter(([name, { spills, stack }]) => spills + stack > 0 && HOT.test(name))
      .map(([name]) => `${name} on ${chip}`),
  );
  const version = /release [\d.]+, V([\d.]+)/.exec(await output(nvcc, ['--version']))?.[1];
  const clang = (await output(hip.clang, ['--version'])).split('\n')[0];
  const size = sizes();
  const bytes = await traffic();
  const text = [
    '# GPU kernels, as the compilers see them',
    '',
    'Made by `npm run gpu:report` without a GPU: nothing here is a measured time.',
    `nvcc ${version}; ${clang}; all warnings are errors.`,
    '',
    ...summary(results),
    '',
    ...(size.length > 0
      ? ['The addon with the kernels of all these chips:', '', '| build | size |', '| --- | ---: |', ...size, '']
      : []),
    ...(bytes.length > 0
      ? [
          '## Bytes read from device memory per decoded token',
          '',
          'Gemma 3 270M, Q4_K_M; counted by the emulator, in sectors of 32 bytes, each once for a launch. Weights: every matrix once.',
          'Launches: of kernels, for the token.',
          '',
          ...bytes,
          '',
        ]
      : []),
    '## Kernels',
    '',
    'Registers are per thread; shared memory is per block of 128 threads. The inner loop is the longest loop without a loop in it.',
    '',
    ...tables(results),
  ];
  const report = join(folder, 'gpu-static.md');
  writeFileSync(report, `${text.join('\n').trim()}\n`);
  say(`Wrote ${report}`);
  if (spilled.length > 0)
    throw new SetupError(`registers are spilled, or values lie on the stack: ${spilled.join(', ')}`);
});
