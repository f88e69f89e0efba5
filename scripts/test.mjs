// npm test: sets everything up and runs all tests.
//
//   npm test                   native tests, the same under sanitizers and on emulated arm64 processors, TypeScript tests
//   npm test -- --quick        without sanitizers and emulation
//   npm test -- --checks       also lint, format, types, package (what .ci/run does)
//
// Ends with one line, "N passed, N failed", over all of them.
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { checks } from './checks.mjs';
import { fetchTestModel } from './fetch-test-model.mjs';
import { clangFormatTool, clangTidyTool, zig } from './python-tools.mjs';
import {
  beside,
  buildArm64Tests,
  buildGpuAddons,
  buildNative,
  buildNativeTests,
  buildTypeScript,
  capture,
  checkTools,
  install,
  jobs,
  main,
  missingForArm64,
  printDurations,
  root,
  run,
  say,
  showDurations,
} from './steps.mjs';

const arguments_ = process.argv.slice(2);
const total = { passed: 0, failed: 0 };
const programs = []; // { name, seconds } of every native test program, in every build

function count(passed, failed) {
  total.passed += passed;
  total.failed += failed;
}

// Every program prints "N passed, N failed"; one that died before that counts as one failure.
async function runNativeTests(folder, name, environment, only) {
  say(`Running the native tests (${name})`);
  const { ok, output } = await capture(
    'ctest',
    [
      '--test-dir',
      folder,
      '--verbose',
      '--parallel',
      jobs,
      '--timeout',
      '1200',
      ...(only ? ['--tests-regex', `^(${only.join('|')})$`] : []),
    ],
    { env: { ...process.env, ...environment } },
  );
  // "1/19 Test #7: base ....... Passed 1.23 sec": with stars before "Failed"
  for (const [, program, time] of output.matchAll(/^\s*\d+\/\d+ Test\s+#\d+: (\S+) .*?([\d.]+) sec/gm)) {
    programs.push({ name: `${program} (${name})`, seconds: Number(time) });
    process.stdout.write(`${time.padStart(8)} s  ${program}\n`);
  }
  let passed = 0;
  let failed = 0;
  for (const [, p, f] of output.matchAll(/^\d+: (\d+) passed, (\d+) failed$/gm)) {
    passed += Number(p);
    failed += Number(f);
  }
  if (!ok && failed === 0) failed = 1;
  if (!ok) process.stdout.write(output);
  process.stdout.write(`${passed} passed, ${failed} failed\n`);
  count(passed, failed);
}

function printSlowest() {
  const slowest = programs.toSorted((a, b) => b.seconds - a.seconds).slice(0, 5);
  if (slowest.length === 0) return;
  process.stdout.write('\n== The slowest native test programs\n');
  for (const { name, seconds } of slowest) process.stdout.write(`${seconds.toFixed(1).padStart(7)} s  ${name}\n`);
}

// All tests run where all sets of kernels do, except those of what surrounds the kernels (drafting, scheduler, prefixes, grammars, embeddings),
// of whole images and of the memory of models of published sizes, which emulated take longer than all others together. The other
// processors must choose the best set that they have, and must find no instruction in it that they lack: for that the tests of its
// files are enough.
const arm64Except = ['draft', 'scheduler', 'prefix', 'state', 'grammar', 'memory', 'out_of_memory', 'embed', 'images', 'vision']; // prettier-ignore
const arm64Processors = [
  { cpu: 'max', isa: 'neon_i8mm' },
  { cpu: 'neoverse-n1', isa: 'neon_dotprod', only: ['gemm', 'vector', 'full_attention'] },
  { cpu: 'cortex-a72', isa: 'ref', only: ['gemm', 'vector'] },
];

async function runArm64Tests() {
  if (process.arch === 'arm64') return; // the native tests were these
  const missing = missingForArm64();
  if (missing) {
    // Where everything must hold, a missing tool is a failure.
    const required = arguments_.includes('--checks');
    say(`Native tests on emulated arm64 processors: ${required ? 'failed' : 'not run'}, missing: ${missing}`);
    if (required) count(0, 1);
    return;
  }
  const folder = await buildArm64Tests(arm64Except);
  for (const { cpu, isa, only } of arm64Processors) {
    const environment = { QEMU_CPU: cpu, GEMMA_TEST_BEST_ISA: isa };
    await runNativeTests(folder, `arm64, ${cpu}: ${isa}`, environment, only);
  }
}

async function runJest() {
  say('Running the TypeScript tests');
  const report = join(root, 'build', 'jest.json');
  rmSync(report, { force: true });
  const jest = join(root, 'node_modules', 'jest', 'bin', 'jest.js');
  const failure = await run(process.execPath, [jest, '--json', '--outputFile', report]).then(
    () => undefined,
    (error) => error,
  );
  try {
    const { numPassedTests, numFailedTests, numRuntimeErrorTestSuites } = JSON.parse(readFileSync(report, 'utf8'));
    count(numPassedTests, numFailedTests + numRuntimeErrorTestSuites);
    if (failure && numFailedTests + numRuntimeErrorTestSuites === 0) count(0, 1);
  } catch {
    count(0, 1); // it died before it could write its report
  }
}

async function runCheck({ name, work }) {
  const failure = await work().then(
    () => undefined,
    (error) => error,
  );
  process.stdout.write(failure ? `failed: ${name}: ${failure.message}\n` : `passed: ${name}\n`);
  count(failure ? 0 : 1, failure ? 1 : 0);
}

async function runChecks() {
  for (const check of checks.filter(({ oneCore }) => !oneCore)) {
    say(check.name);
    await runCheck(check);
  }
  say('Checks that use one core each, side by side');
  const waiting = checks.filter(({ oneCore }) => oneCore);
  const worker = async () => {
    for (let check = waiting.shift(); check; check = waiting.shift()) await beside(check.name, () => runCheck(check));
  };
  await Promise.all(Array.from({ length: Number(jobs) }, worker));
}

// Beside the first builds, which leave the network idle. Where one fails, the step that needs it tries again, and says why.
async function getTools() {
  const { findNvcc } = await import('./gpu-toolchain.mjs');
  await beside('Getting compilers and linters', async () => {
    await zig();
    await Promise.all([clangFormatTool(), clangTidyTool()]);
    await findNvcc({ install: true });
  });
}

await main(async () => {
  // Where everything must hold, what is missing is a failure.
  const required = arguments_.includes('--checks');
  showDurations();
  checkTools();
  await install();
  const model = beside('Getting Gemma 3 270M (253 MB the first time)', fetchTestModel);
  const tools = required ? getTools().catch(() => undefined) : undefined;
  model.catch(() => undefined); // told where it is needed
  await buildNative();
  await buildTypeScript();
  // The tests of both kinds find the model by this variable.
  process.env.GEMMA_TEST_MODEL = await model;

  await runNativeTests(await buildNativeTests(''), 'optimised', {});
  if (!arguments_.includes('--quick') && process.platform === 'linux') {
    // Instrumented, one emulated chip of each kind of matrix instruction is enough for the kernels, and for whole models one that has
    // none, whose emulation would take most of the time of all these tests; likewise whole models run on the best instruction set alone.
    const address = {
      GEMMA_TEST_MODEL_ISAS: 'best',
      GEMMA_TEST_THREADS: '1', // races are the other sanitizer's
      GEMMA_TEST_REFUSE_EVERY: '7',
      GEMMA_TEST_CHIPS: 'sm_80 gfx90a gfx1100',
      GEMMA_TEST_MODEL_CHIPS: 'gfx1030',
      ASAN_OPTIONS: 'detect_leaks=1:strict_string_checks=1',
      UBSAN_OPTIONS: 'print_stacktrace=1',
    };
    await runNativeTests(await buildNativeTests('address'), 'AddressSanitizer, UndefinedBehaviorSanitizer', address);
    // Only what has threads: the emulated GPU's are among them, here in random order on one chip of each family.
    const thread = {
      GEMMA_TEST_MODEL_ISAS: 'best',
      GEMMA_TEST_CHIPS: 'sm_80 gfx90a gfx1100',
      GEMMA_EMULATOR_ORDER: '2',
      TSAN_OPTIONS: 'halt_on_error=1',
    };
    const threaded = ['base', 'engine', 'scheduler', 'prefix', 'images', 'gpu_kernels'];
    const built = await buildNativeTests('thread', threaded.map((name) => `${name}_test`)); // prettier-ignore
    await runNativeTests(built, 'ThreadSanitizer', thread, threaded);
  }
  if (!arguments_.includes('--quick')) await runArm64Tests();
  await tools;
  if (!arguments_.includes('--quick')) {
    if (required) process.env.GEMMA_TEST_GPU_BUILDS = '1'; // the tests look for what was built
    for (const reason of await buildGpuAddons({ required })) say(`GPU builds not tested: ${reason}`);
  }
  await runJest();
  if (required) await runChecks();
  printDurations();
  printSlowest();
  process.stdout.write(`\n${total.passed} passed, ${total.failed} failed\n`);
  if (total.failed > 0) process.exitCode = 1;
});
