// The package as a stranger gets it: packed, installed into an empty folder with neither a compiler nor CMake nor Python to be
// found, and used in the ways the README shows.
//
//   node scripts/test-package.mjs                  this Node
//   node scripts/test-package.mjs --everywhere     also Node 20, 22 and 24, and the bundlers, from the package registry
//
// Wants dist/ and this machine's prebuild (npm run build:ts, npm run prebuilds). Ends with "N passed, N failed".
import { execFileSync, spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { gpuTargets, hostTarget, targets } from './targets.mjs';
import { main, root, SetupError } from './steps.mjs';

const MAX_UNPACKED = 25e6;
const MAX_MODELS = 12e6;
const NODE_VERSIONS = ['20', '22', '24'];
const BUNDLERS = ['esbuild@0.25', 'webpack@5', 'webpack-cli@6', 'vite@6'];

let passed = 0;
let failed = 0;

function check(name, work) {
  const start = Date.now();
  try {
    const note = work();
    ++passed;
    process.stdout.write(`  passed ${name}${note ? `: ${note}` : ''} (${Date.now() - start} ms)\n`);
  } catch (error) {
    ++failed;
    process.stdout.write(`  FAILED ${name}: ${error.message}\n`);
  }
}

function expect(condition, message) {
  if (!condition) throw new Error(message);
}

const folder = mkdtempSync(join(tmpdir(), 'gemma-package-'));
const app = join(folder, 'app');
const bin = join(folder, 'bin');

// Everything that is on the PATH.
function makePath() {
  mkdirSync(bin);
  const npm =
    process.env.npm_execpath ??
    execFileSync('npm', ['root', '-g'], { encoding: 'utf8' }).trim() + '/npm/bin/npm-cli.js';
  symlinkSync(process.execPath, join(bin, 'node'));
  for (const [name, file] of [
    ['npm', npm],
    ['npx', join(dirname(npm), 'npx-cli.js')],
  ]) {
    writeFileSync(join(bin, name), `#!/bin/sh\nexec "${process.execPath}" "${file}" "$@"\n`, { mode: 0o755 });
  }
  symlinkSync('/bin/sh', join(bin, 'sh'));
}

// npm tells its scripts about itself in the environment: none of that reaches the stranger's folder.
const environment = Object.fromEntries(
  Object.entries({ ...process.env, PATH: bin }).filter(
    ([name]) => !/^(npm_|GEMMA_|INIT_CWD$|NODE_PATH$|NODE_OPTIONS$)/i.test(name),
  ),
);

function run(command, args, options = {}) {
  const result = spawnSync(join(bin, command), args, {
    cwd: app,
    env: environment,
    encoding: 'utf8',
    timeout: 300_000,
    ...options,
  });
  if (result.error) throw result.error;
  if (result.status !== 0)
    throw new Error(`${command} ${args.join(' ')}: exit ${result.status}\n${result.stdout}${result.stderr}`);
  return result.stdout;
}

function pack() {
  const prebuild = join(root, targets[hostTarget()].path);
  if (!existsSync(prebuild)) throw new SetupError(`${prebuild} is missing: npm run prebuilds`);
  mkdirSync(app);
  return packOf(root);
}

/** What `npm pack` says of a package, which lies in the folder of this test then. */
function packOf(cwd) {
  const flags = ['--ignore-scripts', '--json', '--pack-destination', folder];
  const output = execFileSync(join(bin, 'npm'), ['pack', ...flags], { cwd, encoding: 'utf8' });
  const [entry] = Object.values(JSON.parse(output));
  return { ...entry, names: entry.files.map(({ path }) => path) };
}

function checkContents({ files, unpackedSize, size }) {
  const allowed =
    /^(dist\/.*\.(js|mjs|d\.ts|d\.mts)|prebuilds\/[\w-]+\/gemma-native(\.glibc|\.musl)?\.node|models\/([\w.-]+\.gguf|demo-tools\/adapter_(config\.json|model\.safetensors)|pictures\/\w+\.png)|package\.json|README\.md|CHANGELOG\.md|LICENSE|NOTICE)$/;
  const strangers = files.map(({ path }) => path).filter((path) => !allowed.test(path));
  expect(strangers.length === 0, `unexpected files: ${strangers.join(', ')}`);
  for (const needed of [
    'dist/index.js',
    'dist/index.mjs',
    'dist/index.d.ts',
    'dist/index.d.mts',
    'dist/cli/main.js',
    'LICENSE',
    'NOTICE',
    'README.md',
    'CHANGELOG.md',
    targets[hostTarget()].path,
  ]) {
    expect(
      files.some(({ path }) => path === needed),
      `${needed} is missing`,
    );
  }
  const models = files.filter(({ path }) => path.startsWith('models/')).reduce((sum, file) => sum + file.size, 0);
  expect(unpackedSize <= MAX_UNPACKED, `${unpackedSize} bytes unpacked, expected at most ${MAX_UNPACKED}`);
  expect(models <= MAX_MODELS, `${models} bytes of models, expected at most ${MAX_MODELS}`);
  return `${files.length} files, ${(size / 1e6).toFixed(1)} MB, unpacked ${(unpackedSize / 1e6).toFixed(1)} MB`;
}

// The first JavaScript example of the README, with the files that it names beside it: the demonstration model in the place of
// Gemma, and the picture that it describes. The example samples; a model of random weights would now and then end the answer
// with its first token, this one says the same each time.
function readmeExample() {
  const [, code] = /```js\n([\s\S]*?)```/.exec(readFileSync(join(root, 'README.md'), 'utf8')) ?? [];
  const [model] = /[\w.-]+\.gguf/.exec(code) ?? [];
  const [picture] = /[\w.-]+\.(jpg|png)/.exec(code) ?? [];
  expect(code?.includes('Gemma.load(') && model && picture, 'no example with a model and a picture found');
  cpSync(join(root, 'models', 'demo.gguf'), join(app, model));
  cpSync(join(root, 'models', 'mmproj-demo.gguf'), join(app, 'mmproj-f16.gguf'));
  cpSync(join(root, 'models', 'pictures', 'shapes.png'), join(app, picture));
  const required = code.replace(/^import (\{.*?\}) from '([^']+)';.*$/gm, "const $1 = require('$2');");
  return { model, picture, module: code, common: `(async () => {\n${required}})();\n` };
}

function expectAnswer(text) {
  expect(/red circle/.test(text), `expected an answer about a red circle, found ${JSON.stringify(text)}`);
}

// What the guide on the permission model says: the program's own files, and those of the packages.
function permissionFlags(node = process.execPath) {
  const flag = execFileSync(node, ['-p', "process.allowedNodeEnvironmentFlags.has('--permission')"], {
    encoding: 'utf8',
  });
  const permission = flag.trim() === 'true' ? '--permission' : '--experimental-permission';
  return [permission, '--allow-addons', `--allow-fs-read=${realpathSync(app)}/`];
}

await main(async () => {
  if (process.platform === 'win32') throw new SetupError('this test wants a POSIX shell');
  try {
    makePath();
    const entry = pack();
    check('contents', () => checkContents(entry));

    check('npm install', () => {
      writeFileSync(join(app, 'package.json'), '{ "private": true }');
      for (const tool of ['cc', 'c++', 'gcc', 'g++', 'clang', 'cmake', 'make', 'ninja', 'python3']) {
        expect(!existsSync(join(bin, tool)), `${tool} is on the PATH`);
      }
      run('npm', ['install', '--no-audit', '--no-fund', join(folder, entry.filename)]);
    });
    let example;
    check('README: first example', () => {
      example = readmeExample();
      writeFileSync(join(app, 'example.mjs'), example.module);
      expectAnswer(run('node', ['example.mjs']));
    });
    check('README: first example, CommonJS', () => {
      writeFileSync(join(app, 'example.cjs'), example.common);
      expectAnswer(run('node', ['example.cjs']));
    });
    check("Node's permission model", () => expectAnswer(run('node', [...permissionFlags(), 'example.mjs'])));
    const flags = ['--model', example.model, '--image', example.picture, '--max-tokens', '8', '--json'];
    check('npx gemma-native run --image', () => {
      const output = run('npx', ['gemma-native', 'run', ...flags, 'What is in this picture?']);
      const { text, usage } = JSON.parse(output);
      expectAnswer(text);
      expect(usage.imageTokens > 0 && usage.outputTokens === 8, output);
    });
    check('npx gemma-native devices', () => {
      const { backends, devices } = JSON.parse(run('npx', ['gemma-native', 'devices', '--json']));
      expect(JSON.stringify([backends, devices]).includes('cpu'), 'no CPU');
    });
    check('in a worker thread', () => {
      const worker =
        "new (require('node:worker_threads').Worker)('./example.cjs').on('exit', (code) => (process.exitCode = code))";
      expectAnswer(run('node', ['-e', worker]));
    });
    check('a chat template of its own', () => {
      const script =
        "const { Gemma } = require('gemma-native'); Gemma.load('demo', { mmproj: false, chatTemplate: '{{ messages[0].role }}' })" +
        ".then(async (gemma) => console.log(gemma.info.chat.template, await gemma.detokenize((await gemma.logits('x', { data: false })).tokens)))";
      const said = run('node', ['-e', script]);
      expect(said === 'option user\n', said);
    });
    check('no binary: the message says what to do', () => {
      const prebuilds = join(app, 'node_modules', 'gemma-native', 'prebuilds');
      const hidden = `${prebuilds}-hidden`;
      cpSync(prebuilds, hidden, { recursive: true });
      rmSync(prebuilds, { recursive: true });
      const script =
        "import('gemma-native').then(({ Gemma }) => Gemma.devices()).catch((e) => console.log(e.code, e.detail, e.message))";
      const said = run('node', ['-e', script]);
      cpSync(hidden, prebuilds, { recursive: true });
      rmSync(hidden, { recursive: true });
      expect(
        said.startsWith('ERR_BACKEND_UNAVAILABLE NO_BINARY') && said.includes(`${process.platform}-${process.arch}`),
        said,
      );
    });
    for (const [module, moduleResolution] of [
      ['Node16', 'Node16'],
      ['ESNext', 'Bundler'],
    ]) {
      check(`TypeScript, moduleResolution ${moduleResolution}`, () => {
        const types = `import { Gemma, GemmaError, type GenerateResult } from 'gemma-native';
          export async function ask(path: string): Promise<GenerateResult> {
            await using gemma = await Gemma.load(path);
            try { return await gemma.generate('x', { images: [path], panAndScan: true }); }
            catch (error) { if (error instanceof GemmaError) console.log(error.code); throw error; }
          }`;
        for (const name of ['types.mts', 'types.cts']) writeFileSync(join(app, name), types);
        const files = moduleResolution === 'Bundler' ? ['types.mts'] : ['types.mts', 'types.cts'];
        // As a stranger: the package's types must do without those of others.
        const compilerOptions = { strict: true, noEmit: true, target: 'ES2022', types: [], module, moduleResolution };
        compilerOptions.lib = ['ES2023', 'ESNext.Disposable', 'DOM'];
        writeFileSync(join(app, 'tsconfig.json'), JSON.stringify({ compilerOptions, files }));
        run('node', [join(root, 'node_modules', 'typescript', 'bin', 'tsc')]);
      });
    }

    // With their binaries, where these were built; beside the package, as npm install lays them.
    for (const { backend, folder: at, path } of Object.values(gpuTargets)) {
      if (hostTarget() !== 'linux-x64' || !existsSync(join(root, path))) continue;
      check(`package for ${backend}`, () => {
        const files = packOf(join(root, at));
        const wanted = ['LICENSE', 'NOTICE', 'README.md', 'package.json', path.slice(at.length + 1)];
        expect(files.names.sort().join() === wanted.sort().join(), `it holds ${files.names.join(', ')}`);
        run('npm', ['install', '--no-audit', '--no-fund', '--no-save', join(folder, files.filename)]);
        const { packages } = JSON.parse(run('npx', ['gemma-native', 'devices', '--json']));
        const found = packages.find(({ name }) => name === backend);
        expect(found && !/npm install|does not load/.test(found.reason), JSON.stringify(found));
        return `${(files.size / 1e6).toFixed(1)} MB, unpacked ${(files.unpackedSize / 1e6).toFixed(1)} MB; ${found.reason}`;
      });
    }

    if (process.argv.includes('--everywhere')) {
      for (const version of NODE_VERSIONS) {
        check(`Node ${version}`, () => {
          const at = join(folder, `node-${version}`);
          mkdirSync(at);
          const name = `node-${process.platform}-${process.arch}`;
          run('npm', ['install', '--no-audit', '--no-fund', '--prefix', at, `${name}@${version}`]);
          const node = join(at, 'node_modules', name, 'bin', 'node');
          for (const args of [['example.mjs'], ['example.cjs'], [...permissionFlags(node), 'example.mjs']]) {
            expectAnswer(execFileSync(node, args, { cwd: app, env: environment, encoding: 'utf8' }));
          }
          return execFileSync(node, ['--version'], { encoding: 'utf8' }).trim();
        });
      }
      check(
        'bundlers: install',
        () => void run('npm', ['install', '--no-audit', '--no-fund', '--no-save', ...BUNDLERS]),
      );
      const bundled = (file) => {
        expectAnswer(run('node', [file]));
        expect(statSync(join(app, file)).size < 20_000, `${file}: not external`);
      };
      check('esbuild, external', () => {
        const options = { entryPoints: ['example.mjs'], bundle: true, platform: 'node', format: 'esm' };
        Object.assign(options, { external: ['gemma-native'], outfile: 'out/esbuild.mjs' });
        run('node', ['-e', `require('esbuild').buildSync(${JSON.stringify(options)})`]);
        bundled('out/esbuild.mjs');
      });
      check('webpack, external', () => {
        writeFileSync(
          join(app, 'webpack.config.cjs'),
          `module.exports = { mode: 'production', target: 'node', entry: './example.cjs', externals: { 'gemma-native': 'commonjs gemma-native' },
            output: { path: __dirname + '/out', filename: 'webpack.cjs' } };`,
        );
        run('node', ['node_modules/webpack-cli/bin/cli.js', '--config', 'webpack.config.cjs']);
        bundled('out/webpack.cjs');
      });
      check('Vite, external', () => {
        writeFileSync(
          join(app, 'vite.config.mjs'),
          `export default { build: { ssr: 'example.mjs', outDir: 'out-vite', target: 'node20' }, ssr: { external: ['gemma-native'] } };`,
        );
        run('node', ['node_modules/vite/bin/vite.js', 'build']);
        bundled(existsSync(join(app, 'out-vite', 'example.mjs')) ? 'out-vite/example.mjs' : 'out-vite/example.js');
      });
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  process.stdout.write(`\n${passed} passed, ${failed} failed\n`);
  if (failed > 0) process.exitCode = 1;
});
