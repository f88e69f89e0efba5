// Checks that are no tests: style, types, the package. `npm test -- --checks` runs them after the tests.
import { readdirSync, statSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { runFuzzers } from './fuzz.mjs';
import { pythonPackages } from './python-packages.mjs';
import { jobs, root, run } from './steps.mjs';

const CLANG_FORMAT = '23.1.5';
const CLANG_TIDY = '23.1.4';

function node(...args) {
  return run(process.execPath, args);
}

function package_(name) {
  return join(root, 'node_modules', ...name.split('/'));
}

function nativeFiles(extensions, folders) {
  const files = [];
  const walk = (folder) => {
    for (const name of readdirSync(folder)) {
      const path = join(folder, name);
      if (statSync(path).isDirectory()) walk(path);
      else if (extensions.some((extension) => name.endsWith(extension))) files.push(path);
    }
  };
  folders.forEach((folder) => walk(join(root, folder)));
  return files;
}

// Pinned, so that everyone formats alike.
async function clangTool(name, version) {
  const folder = await pythonPackages(`${name}==${version}`);
  const env = { ...process.env, PYTHONPATH: [folder, process.env.PYTHONPATH].filter(Boolean).join(delimiter) };
  return { bin: join(folder, 'bin'), env };
}

/** Runs clang-format over all C++ files. */
export async function clangFormat(...flags) {
  const { bin, env } = await clangTool('clang-format', CLANG_FORMAT);
  await run(
    join(bin, 'clang-format'),
    [...flags, ...nativeFiles(['.h', '.cpp'], ['native', 'test/native', 'test/fuzz', 'benchmarks'])],
    { env },
  );
}

export const checks = [
  { name: 'Types', work: () => node(package_('typescript/bin/tsc'), '--noEmit') },
  { name: 'ESLint', work: () => node(package_('eslint/bin/eslint.js'), '.') },
  { name: 'Prettier', work: () => node(package_('prettier/bin/prettier.cjs'), '--check', '.') },
  { name: 'clang-format', work: () => clangFormat('--dry-run', '--Werror') },
  {
    name: 'clang-tidy',
    work: async () => {
      const { bin, env } = await clangTool('clang-tidy', CLANG_TIDY);
      const runner = join(bin, 'run-clang-tidy.py');
      // They may have used another compiler's warnings.
      const flags = ['-clang-tidy-binary', join(bin, 'clang-tidy'), '-extra-arg=-Wno-unknown-warning-option'];
      const tidy = (build, files) =>
        run('python3', [runner, ...flags, '-p', build, '-j', jobs, '-quiet', files], { env });
      // The addon's build has the compile commands of everything in the CPU's package, that of the tests those of the GPUs' host
      // code, whichever the vendor. Of the kernels there are eight: their compilers' warnings are errors.
      await tidy(join(root, 'build'), '/native/');
      await tidy(join(root, 'build', 'tests'), '/native/backend/gpu/([a-z_]+|emulator/(emulat|context)[a-z_]+)\\.cpp$');
    },
  },
  { name: 'Fuzzers, a quarter of a minute each', work: () => runFuzzers() },
  {
    name: 'Stress, a short run',
    work: () => node('--expose-gc', join(root, 'scripts', 'stress.mjs')),
  },
  { name: 'Soak of the server, a quarter of a minute', work: () => node(join(root, 'scripts', 'soak.mjs')) },
  { name: 'Documentation', work: () => node(join(root, 'scripts', 'docs.mjs')) },
  { name: 'Prebuilt binary of this system', work: () => node(join(root, 'scripts', 'prebuild.mjs')) },
  {
    name: 'Package, installed from its archive, on every Node and with bundlers',
    work: () => node(join(root, 'scripts', 'test-package.mjs'), '--everywhere'),
  },
  {
    name: 'Packages (publint, are the types wrong)',
    work: async () => {
      for (const folder of ['.', 'packages/server', 'packages/ai-sdk', 'packages/langchain', 'packages/privacy']) {
        await node(package_('publint/src/cli.js'), folder, '--strict');
        await node(package_('@arethetypeswrong/cli/dist/index.js'), '--pack', folder);
      }
    },
  },
];
