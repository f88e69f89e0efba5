// Addons built for CUDA and for ROCm, on machines without a GPU: they load, say why they compute on the CPU, and do so. Drivers
// that are none stand in for real ones (test/native/gpu/fake_driver.cpp). scripts/test.mjs builds them where it finds the
// compilers, and in CI always.
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { root, runNode, tiny } from './helpers.js';

const cli = join(root, 'dist', 'cli', 'main.js');
const fakes = join(root, 'build', 'tests', 'fake-drivers');

const all = [
  { backend: 'cuda', library: 'libcuda.so.1', chip: 'sm_80', reason: "NVIDIA's driver is not installed" },
  { backend: 'rocm', library: 'libamdhip64.so.6', chip: 'gfx1100', reason: '' },
].map((build) => ({ ...build, addon: join(root, 'build', build.backend, 'Release', 'gemma_native.node') }));
const built = all.filter(({ addon }) => existsSync(addon));

test('GPU builds are there where they must be', () => {
  if (process.env.GEMMA_TEST_GPU_BUILDS) expect(built.map(({ backend }) => backend)).toEqual(['cuda', 'rocm']);
});

const RUN = ['run', '--model', tiny, '--raw', '--max-tokens', '4', '--temperature', '0', '--json', '--', 'Hi'];

// On a machine without their compilers (npm run build:cuda and build:rocm say what is missing) these are skipped by name.
const each = built.length > 0 ? describe.each(built) : describe.skip.each(all);
each('the addon for $backend', ({ backend, library, chip, addon, reason }) => {
  let nowhere: string; // a folder in which the driver's library is none
  beforeAll(() => {
    nowhere = mkdtempSync(join(tmpdir(), 'gemma-driver-'));
    writeFileSync(join(nowhere, library), 'not a library');
    if (backend === 'rocm') for (const n of [5, 7]) writeFileSync(join(nowhere, `libamdhip64.so.${n}`), 'no library');
  });
  afterAll(() => rmSync(nowhere, { recursive: true }));

  const command = async (args: string[], env: Record<string, string> = {}) => {
    const result = await runNode([cli, ...args], { env: { GEMMA_ADDON: addon, LD_LIBRARY_PATH: nowhere, ...env } });
    return { ...result, json: (result.stdout ? JSON.parse(result.stdout) : {}) as Record<string, unknown> };
  };
  const fake = (more: Record<string, string> = {}) => ({
    LD_LIBRARY_PATH: fakes,
    FAKE_GPU_CHIP: chip,
    FAKE_GPU_BYTES: String(1 << 30),
    ...more,
  });

  test('says why there is no GPU, and answers on the CPU as the build for the CPU does', async () => {
    const { json } = await command(['devices', '--json']);
    expect(json).toMatchObject({
      backends: [backend],
      devices: [
        { name: 'cpu', available: true },
        { name: backend, available: false, reason: expect.stringContaining(reason) as string },
      ],
    });
    const { json: text } = await command(RUN);
    const plain = await runNode([cli, ...RUN]);
    expect(text.tokens).toEqual((JSON.parse(plain.stdout) as { tokens: number[] }).tokens);
  });

  test('refuses a device that is not there', async () => {
    for (const device of [backend, `${backend}:0`, `${backend}:x`, 'abacus']) {
      const { code, json } = await command([...RUN.slice(0, -2), '--device', device, '--', 'Hi']);
      expect(code).toBe(1);
      expect(json).toMatchObject({ error: { code: 'ERR_BACKEND_UNAVAILABLE' } });
    }
  });

  test('lists the devices of a driver, and those that its kernels do not fit', async () => {
    expect((await command(['devices', '--json'], fake())).json.devices).toMatchObject([
      { name: 'cpu' },
      { name: `${backend}:0`, description: 'Fake GPU 0', isa: chip, available: true, memoryBytes: 1 << 30 },
      { name: `${backend}:1`, description: 'Fake GPU 1', available: true },
    ]);
    const old = fake({ FAKE_GPU_CHIP: backend === 'cuda' ? 'sm_61' : 'gfx803' });
    expect((await command(['devices', '--json'], old)).json.devices).toMatchObject([
      { name: 'cpu' },
      { available: false, reason: expect.stringContaining('this build has no kernels') as string },
      { available: false },
    ]);
    expect((await command(RUN, old)).json.tokens).toHaveLength(4); // auto: the CPU
  });

  test('too little memory and a lost device are errors, at whatever call', async () => {
    const on = (device: string) => [...RUN.slice(0, -2), '--device', device, '--', 'Hi'];
    expect((await command(on(`${backend}:0`), fake({ FAKE_GPU_BYTES: '100000' }))).json).toMatchObject({
      error: { code: expect.stringMatching(/ERR_OUT_OF_MEMORY|ERR_BACKEND_UNAVAILABLE/) as string },
    });
    for (const call of [0, 3, 20, 60, 120, 200, 400]) {
      const { code, json } = await command(on(`${backend}:1`), fake({ FAKE_GPU_LOST_AT: String(call) }));
      expect(code).toBe(1);
      expect(json).toMatchObject({ error: { code: 'ERR_BACKEND_UNAVAILABLE' } });
    }
  });
});
