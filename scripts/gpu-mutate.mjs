// npm run gpu:mutate: whether the tests of the GPU kernels notice mistakes. Makes each of the mistakes of gpu-mutations.mjs in a copy of
// the source, builds it for one emulated chip, and runs gpu_kernels_test on it, in all orders of threads; what passes there is
// built again for ThreadSanitizer. Fails for a mistake that nobody notices, and for one whose text is no longer in the source.
// Writes benchmarks/gpu-mutations.md.
//
//   npm run gpu:mutate -- tiles      only mistakes with "tiles" in their name; writes nothing
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { mutations } from './gpu-mutations.mjs';
import { SetupError, buildNativeTests, capture, jobs, main, root, say } from './steps.mjs';

const SOURCES = 'backend/gpu';
const TEST = 'gpu_kernels_test';
const WORK = join(root, 'build', 'gpu-mutations');
const TIMEOUT_MS = 3_600_000;

/** The source of the file with the mistake in it. */
function mutated({ name, file, from, to }) {
  const text = readFileSync(join(root, 'native', SOURCES, file), 'utf8');
  const parts = text.split(from);
  if (parts.length !== 2) {
    throw new SetupError(
      `mutation "${name}": expected its text once in native/${SOURCES}/${file}, found it ${parts.length - 1} times:\n${from}\n` +
        'The source has changed: bring scripts/gpu-mutations.mjs up to date.',
    );
  }
  return parts.join(to);
}

/** Runs a program; its output, and what ended it: '' for success. */
async function attempt(command, args, options) {
  const { ok, status, output } = await capture(command, args, {
    timeout: TIMEOUT_MS,
    killSignal: 'SIGKILL',
    ...options,
  });
  // By us or for want of memory: that says nothing about the mistake.
  if (status === 'SIGKILL') throw new SetupError(`${command} was killed; it has ${TIMEOUT_MS / 60_000} minutes`);
  return { output, ended: ok ? '' : status };
}

/** A build of the test whose objects can be replaced one at a time. */
async function openBuild(flavour) {
  const folder = await buildNativeTests(flavour, [TEST]);
  const commands = JSON.parse(readFileSync(join(folder, 'compile_commands.json'), 'utf8'));
  const native = join(root, 'native');
  return {
    /** Compiles the object that has the mistake in it, with the folder overlay before the sources. */
    async compile(overlay, { file, chip }, object) {
      const isHost = file.endsWith('.cpp');
      const source = join(SOURCES, isHost ? file : 'emulator/kernels_emulated.cpp');
      const entry = commands.find(
        (each) => each.file === join(native, source) && (isHost || each.command.includes(`-DGEMMA_EMULATED=${chip} `)),
      );
      if (!entry) throw new SetupError(`${folder}: no compile command of ${source} for ${chip}`);
      // Warnings are not what is looked for, and optimising takes longer than it saves here.
      const command = entry.command
        .replace(`-I${native}`, `-I${overlay} -I${native}`)
        .replace(/ -O\d /, ' -O1 ')
        .replace(/ -Wall /, ' -w ')
        .replace(/ -o \S+/, ` -o ${object}`)
        .replace(/ -c \S+/, ` -c ${isHost ? join(overlay, source) : join(native, source)}`);
      const { output, ended } = await attempt('/bin/sh', ['-c', command], { cwd: entry.directory });
      if (ended) throw new SetupError(`a mutation of ${file} does not compile:\n${output}`);
    },
    /** Links the test; object goes before the library, whose own is then not taken. */
    async link(object, program) {
      const test = join(folder, 'test', 'CMakeFiles', `${TEST}.dir`, 'native', `${TEST}.cpp.o`);
      const flags = flavour ? [`-fsanitize=${flavour}`] : [];
      const args = [test, object, join(folder, 'libgemma_core.a'), '-pthread', ...flags, '-o', program];
      const { output, ended } = await attempt(process.env.CXX ?? 'c++', args);
      if (ended) throw new SetupError(`${program} does not link:\n${output}`);
    },
    program: join(folder, TEST),
  };
}

/** What the test says, in a few words; '' when it passes. */
async function verdict(program, chip) {
  const env = { ...process.env, GEMMA_TEST_CHIPS: chip, TSAN_OPTIONS: 'halt_on_error=1' };
  delete env.GEMMA_EMULATOR_ORDER;
  const { output, ended } = await attempt(program, [], { env });
  if (!ended) return '';
  const race = /WARNING: ThreadSanitizer: (.*?)(?: \(|$)/m.exec(output)?.[1];
  const test = /^FAILED (.*?)[:;,\n]/m.exec(output)?.[1];
  if (!race && !test && !/^SIG/.test(ended)) throw new SetupError(`${program}: ${ended}\n${output}`);
  const order = /, order (\d)/.exec(output)?.[1];
  const how = /EMULATOR|emulated device: ([^,]*)/.exec(output)?.[1];
  return race ?? (test ? `${test}${order > 0 ? `, order ${order}` : ''}${how ? `: ${how}` : ''}` : ended);
}

async function inParallel(items, work) {
  const left = [...items.entries()];
  const worker = async () => {
    for (let next = left.shift(); next; next = left.shift()) await work(next[1], next[0]);
  };
  await Promise.all(Array.from({ length: Number(jobs) }, worker));
}

await main(async () => {
  const words = process.argv.slice(2);
  const wanted = mutations
    .filter(({ name }) => words.every((word) => name.includes(word)))
    .map((mutation) => ({ chip: 'sm_80', ...mutation }));
  if (wanted.length === 0) throw new SetupError(`no mutation is named ${words.join(' ')}`);
  const texts = wanted.map(mutated); // all are there, before anything is built

  rmSync(WORK, { recursive: true, force: true });
  const noticed = new Map();
  for (const flavour of ['', 'thread']) {
    const left = wanted.filter((mutation) => !noticed.has(mutation));
    if (left.length === 0) break;
    const build = await openBuild(flavour);
    const chips = [...new Set(left.map(({ chip }) => chip))];
    say(`The source as it is, on ${chips.join(', ')}`);
    await inParallel(chips, async (chip) => {
      const found = await verdict(build.program, chip);
      if (found) throw new SetupError(`without any mutation ${TEST} fails on ${chip}: ${found}`);
    });
    say(`${left.length} mutations${flavour ? ', for ThreadSanitizer' : ''}`);
    await inParallel(left, async (mutation, number) => {
      const folder = join(WORK, `${flavour || 'plain'}-${number}`);
      const overlay = join(folder, 'native');
      const path = join(overlay, SOURCES, mutation.file);
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, texts[wanted.indexOf(mutation)]);
      const object = join(folder, 'mutated.o');
      const program = join(folder, TEST);
      await build.compile(overlay, mutation, object);
      await build.link(object, program);
      const found = await verdict(program, mutation.chip);
      rmSync(folder, { recursive: true });
      if (found) noticed.set(mutation, found);
      process.stdout.write(`${found ? 'noticed' : 'not noticed'}: ${mutation.name}${found ? ` (${found})` : ''}\n`);
    });
  }

  const missed = wanted.filter((mutation) => !noticed.has(mutation));
  process.stdout.write(`\n${noticed.size} of ${wanted.length} mutations noticed\n`);
  if (words.length === 0) {
    const lines = [
      '# Mistakes in the GPU kernels that the tests notice',
      '',
      `Made by \`npm run gpu:mutate\` without a GPU: ${noticed.size} of ${wanted.length} mutations noticed.`,
      `Each is one wrong line in the source, built for one emulated chip and run through \`test/native/${TEST}.cpp\`,`,
      'where threads run forward (order 0), backward (1) and in random order (2); what passes there runs under ThreadSanitizer.',
      '',
      '| mutation | file | chip | noticed by |',
      '| --- | --- | --- | --- |',
      ...wanted.map(
        (mutation) =>
          `| ${mutation.name} | ${mutation.file} | ${mutation.chip} | ${noticed.get(mutation) ?? '**nobody**'} |`,
      ),
    ];
    writeFileSync(join(root, 'benchmarks', 'gpu-mutations.md'), `${lines.join('\n')}\n`);
  }
  if (missed.length > 0) {
    throw new SetupError(`not noticed:\n${missed.map(({ name, chip }) => `  - ${name} (${chip})`).join('\n')}`);
  }
});
