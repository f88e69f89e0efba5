// npm run gpu:golden: the tests of the GPU backend in full on every emulated chip, which CI runs in part: each kernel against the
// CPU's, whole models against transformers' logits, the real 270M. Writes benchmarks/gpu-emulated.md: errors, bounds and times.
//
//   npm run gpu:golden -- sm_80 gfx942      only these chips; writes nothing
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { SetupError, buildNativeTests, capture, fetchModel, main, root, say } from './steps.mjs';

const CHIPS = ['sm_75', 'sm_80', 'gfx906', 'gfx90a', 'gfx942', 'gfx1030', 'gfx1100', 'gfx1201'];
const TESTS = {
  gpu_kernels_test: 'kernels',
  gpu_engine_test: 'models',
  gpu_model_test: 'the 270M',
};

await main(async () => {
  const chips = process.argv.length > 2 ? process.argv.slice(2) : CHIPS;
  const unknown = chips.filter((chip) => !CHIPS.includes(chip));
  if (unknown.length > 0) throw new SetupError(`${unknown.join(', ')}: expected some of ${CHIPS.join(', ')}`);
  const model = await fetchModel();
  const folder = await buildNativeTests('', Object.keys(TESTS));
  const figures = new Map(); // by what was measured, then by chip
  const bounds = new Map();
  const times = [];
  let failed = 0;
  for (const chip of chips) {
    const cells = [];
    for (const [test, name] of Object.entries(TESTS)) {
      const env = { ...process.env, GEMMA_TEST_CHIPS: chip, GEMMA_TEST_MODEL: model, GEMMA_TEST_REPORT: '1' };
      const begin = performance.now();
      const { ok, output } = await capture(join(folder, test), [], { env });
      const seconds = (performance.now() - begin) / 1000;
      const passed = /^(\d+) passed, 0 failed$/m.exec(output)?.[1];
      if (!ok || !passed) {
        failed += 1;
        process.stdout.write(output);
      }
      cells.push(ok && passed ? `${passed} passed, ${seconds.toFixed(0)} s` : '**failed**');
      for (const [, what, value, bound] of output.matchAll(/^figure: \S+ \| (.*) \| (\S+) \| (\S+)$/gm)) {
        figures.set(what, { ...figures.get(what), [chip]: value });
        if (!what.includes("the CPU's")) bounds.set(what, bound); // that one differs from type to type
      }
      say(`${chip}, ${name}: ${cells.at(-1)}`);
    }
    times.push(`| ${chip} | ${cells.join(' | ')} |`);
  }
  if (chips.length === CHIPS.length) {
    const lines = [
      '# The GPU backend on emulated chips',
      '',
      'Made by `npm run gpu:golden` without a GPU: times are those of the emulator, beside whatever else the machine did.',
      'Kernels: each against the scalar CPU kernel or double arithmetic, in three orders of threads. Models: the whole golden suite,',
      'against transformers in float32. The 270M: a sentence with the tokens of the CPU and of transformers.',
      '',
      `| chip | ${Object.values(TESTS).join(' | ')} |`,
      '| --- | --- | --- | --- |',
      ...times,
      '',
      '## Largest errors',
      '',
      'Normalised: RMS of the difference over RMS of the reference about its mean. The bounds are the tests of the CPU’s.',
      '',
      `| what | bound | ${CHIPS.join(' | ')} |`,
      `| --- | ---: | ${CHIPS.map(() => '---:').join(' | ')} |`,
      ...[...figures].map(
        ([what, values]) =>
          `| ${what} | ${bounds.get(what) ?? "1.05 of the CPU's"} | ${CHIPS.map((chip) => values[chip] ?? '-').join(' | ')} |`,
      ),
    ];
    writeFileSync(join(root, 'benchmarks', 'gpu-emulated.md'), `${lines.join('\n')}\n`);
  }
  if (failed > 0) throw new SetupError(`${failed} test programs failed`);
});
