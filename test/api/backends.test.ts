// Which addon computes: the package's own, or that of an optional package for GPUs, installed beside it as npm would. Drivers that
// are none stand in for real ones, as in gpu.test.ts.
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Backend } from '../../lib/index.js';
import { root, runNode, tiny } from './helpers.js';

const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string };
const onLinux = process.platform === 'linux' && process.arch === 'x64';
const names = ['cuda', 'rocm'] as const;
const addons = { cuda: gpuBuild('cuda'), rocm: gpuBuild('rocm') };
const areBuilt = Object.values(addons).every((path) => existsSync(path));
const RUN = ['run', '--model', tiny, '--raw', '--max-tokens', '4', '--temperature', '0', '--json'];

function gpuBuild(backend: string): string {
  return join(root, 'build', backend, 'Release', 'gemma_native.node');
}

let folder: string;
let modules: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'gemma-backends-'));
  modules = join(folder, 'node_modules');
  cpSync(join(root, 'dist'), join(modules, 'gemma-native', 'dist'), { recursive: true });
  install('gemma-native', version, join(root, 'build', 'Release', 'gemma_native.node'));
  writeFileSync(join(folder, 'libcuda.so.1'), 'not a library');
  for (const n of [5, 6, 7]) writeFileSync(join(folder, `libamdhip64.so.${n}`), 'not a library');
});
afterEach(() => rmSync(folder, { recursive: true }));

function install(name: string, wanted: string, addon: string): void {
  const prebuilds = join(modules, name, 'prebuilds', `${process.platform}-${process.arch}`);
  mkdirSync(prebuilds, { recursive: true });
  symlinkSync(addon, join(prebuilds, 'gemma-native.node'));
  writeFileSync(join(modules, name, 'package.json'), JSON.stringify({ name, version: wanted }));
}

// The dependencies are this checkout's; no driver of this machine is found, unless the environment says otherwise.
function command(args: string[], env: Record<string, string> = {}) {
  const cli = join(modules, 'gemma-native', 'dist', 'cli', 'main.js');
  const environment = { NODE_PATH: join(root, 'node_modules'), LD_LIBRARY_PATH: folder, ...env };
  return runNode(args[0] === '-e' ? args : [cli, ...args], { cwd: folder, env: environment });
}

async function json(args: string[], env?: Record<string, string>): Promise<Record<string, unknown>> {
  return JSON.parse((await command(args, env)).stdout) as Record<string, unknown>;
}

async function packages(env?: Record<string, string>): Promise<Backend[]> {
  return (await json(['devices', '--json'], env)).packages as Backend[];
}

test('the packages for GPUs are of this version', () => {
  for (const name of names) {
    const path = join(root, 'packages', name, 'package.json');
    expect(JSON.parse(readFileSync(path, 'utf8'))).toMatchObject({
      name: `gemma-native-${name}`,
      version,
      peerDependencies: { 'gemma-native': version },
    });
  }
});

test('alone, the package computes on the CPU and says why', async () => {
  const [cpu, ...gpus] = await packages();
  expect(cpu).toMatchObject({ name: 'cpu', package: 'gemma-native', available: true, chosen: true });
  expect(gpus).toMatchObject(
    names.map((name) => ({
      name,
      package: `gemma-native-${name}`,
      available: false,
      chosen: false,
      reason: expect.stringContaining(onLinux ? `npm install gemma-native-${name}@${version}` : 'there is none for'),
    })),
  );
  for (const name of names) {
    const { code, stdout } = await command([...RUN, '--device', `${name}:0`, '--', 'Hi']);
    expect(code).toBe(1);
    expect(JSON.parse(stdout)).toMatchObject({
      error: { code: 'ERR_BACKEND_UNAVAILABLE', message: expect.stringContaining(`gemma-native-${name}`) },
    });
  }
});

(onLinux ? describe : describe.skip)('installed beside it', () => {
  test('a package of another version, or one that does not load, is told and not used', async () => {
    install('gemma-native-cuda', '999.0.0', addons.cuda);
    install('gemma-native-rocm', version, join(folder, 'libcuda.so.1'));
    const [cpu, cuda, rocm] = await packages();
    expect(cpu).toMatchObject({ chosen: true });
    expect(cuda).toMatchObject({ available: false, reason: expect.stringContaining(`expected ${version}`) });
    expect(rocm).toMatchObject({ available: false, reason: expect.stringContaining('it does not load') });
    expect((await json([...RUN, '--', 'Hi'])).tokens).toHaveLength(4);
  });

  test('GEMMA_ADDON names the only one', async () => {
    const only = { GEMMA_ADDON: join(root, 'build', 'Release', 'gemma_native.node') };
    expect(await packages(only)).toMatchObject([{ name: 'cpu', chosen: true }]);
  });

  // Where it must hold, gpu.test.ts fails for builds that are missing.
  (areBuilt ? describe : describe.skip)('with builds for GPUs', () => {
    const fakes = join(root, 'build', 'tests', 'fake-drivers');
    const drivers = { LD_LIBRARY_PATH: fakes, FAKE_GPU_BYTES: String(1 << 30) };
    beforeEach(() => {
      for (const name of names) install(`gemma-native-${name}`, version, addons[name]);
    });

    test('no driver: the CPU, and the reason of each', async () => {
      const [cpu, ...gpus] = await packages();
      expect(cpu).toMatchObject({ chosen: true, reason: 'there is no GPU that can be used' });
      for (const gpu of gpus) expect(gpu).toMatchObject({ available: false, chosen: false });
      expect((await json([...RUN, '--', 'Hi'])).tokens).toHaveLength(4);
    });

    test('auto takes what works, and of two the one with more memory', async () => {
      // CUDA: a chip for which the build has no kernels
      const rocm = { ...drivers, FAKE_CUDA_CHIP: 'sm_61', FAKE_ROCM_CHIP: 'gfx1100' };
      expect(await packages(rocm)).toMatchObject([
        { name: 'cpu', chosen: false },
        { name: 'cuda', available: false, reason: expect.stringContaining('this build has no kernels') },
        { name: 'rocm', available: true, chosen: true },
      ]);
      const both = { ...drivers, FAKE_CUDA_CHIP: 'sm_80', FAKE_ROCM_CHIP: 'gfx1100' };
      expect(await packages(both)).toMatchObject([{ name: 'cpu' }, { name: 'cuda', chosen: true }, { chosen: false }]);
      const more = { ...both, FAKE_ROCM_BYTES: String(2 ** 31) };
      expect(await packages(more)).toMatchObject([{ name: 'cpu' }, { chosen: false }, { name: 'rocm', chosen: true }]);
      const shown = (await command(['devices'], more)).stdout;
      expect(shown).toContain('device auto is rocm: no other backend has more GPU memory');
      expect(((await json(['devices', '--json'], more)).devices as { name: string }[]).map(({ name }) => name)).toEqual(
        ['cpu', 'cuda:0', 'cuda:1', 'rocm:0', 'rocm:1'],
      );
    });

    test('options and GEMMA_DEVICE override, and models of all three live side by side', async () => {
      const both = { ...drivers, FAKE_CUDA_CHIP: 'sm_80', FAKE_ROCM_CHIP: 'gfx1100' };
      const script = `const { Gemma, GemmaError } = require('gemma-native/dist/index.js');
        (async () => {
          const models = [];
          for (const device of [undefined, 'rocm:1', 'cpu']) models.push(await Gemma.load(process.env.MODEL, { device }));
          const aborted = await models[2].generate('Hi', { signal: AbortSignal.abort(new Error('no')) }).catch((e) => e.message);
          const { tokens } = await models[2].generate('Hi', { maxOutputTokens: 3, temperature: 0 });
          const error = await Gemma.load('none').catch((e) => e instanceof GemmaError);
          console.log(JSON.stringify([...models.map((m) => m.info.device), aborted, tokens.length > 0, error]));
          for (const model of models) await model.dispose();
        })();`;
      const run = async (env: Record<string, string>) => {
        const result = await command(['-e', script], { MODEL: tiny, ...both, ...env });
        expect(result).toMatchObject({ code: 0, stderr: '' });
        return JSON.parse(result.stdout) as unknown[];
      };
      expect(await run({})).toEqual(['cuda:0', 'rocm:1', 'cpu', 'no', true, true]);
      expect((await run({ GEMMA_DEVICE: 'rocm' }))[0]).toMatch(/^rocm:0/);
      expect((await run({ GEMMA_DEVICE: 'cpu' }))[0]).toBe('cpu');
    });
  });
});
