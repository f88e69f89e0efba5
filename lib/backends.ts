// Which addon computes: the one of this package, or that of an optional package for GPUs. Each addon is whole (the CPU is in all of
// them), they lie side by side in a process, and a model belongs to the one that loaded it.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { GemmaError } from './errors.js';
import { addon, openAddon, type Device, type NativeAddon } from './native.js';
import { reasonOf } from './values.js';

/** Packages with an addon for GPUs, installed beside this one by whoever has such a GPU. */
const GPU_PACKAGES = [
  { name: 'cuda', package: 'gemma-native-cuda' },
  { name: 'rocm', package: 'gemma-native-rocm' },
];

/** What a model can be computed with here, or why not. */
export interface Backend {
  /** `'cpu'`, `'cuda'` or `'rocm'` */
  name: string;
  /** the package it comes from; `'gemma-native'` also for a clone's own build, or one that GEMMA_ADDON names */
  package: string;
  available: boolean;
  /** whether `device: 'auto'` computes with it */
  chosen: boolean;
  /** why it is chosen, or why it is not available */
  reason: string;
}

interface Candidate {
  name: string;
  package: string;
  /** absent: it does not load, for this reason */
  addon?: NativeAddon;
  reason: string;
}

let found: Candidate[] | undefined;
let automatic: Promise<NativeAddon> | undefined;

function versionIn(folder: string): string {
  return (JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as { version: string }).version;
}

function open(kind: { name: string; package: string }): Candidate {
  const version = versionIn(join(__dirname, '..'));
  const install = `npm install ${kind.package}@${version}`;
  const system = `${process.platform}-${process.arch}`;
  if (system !== 'linux-x64') return { ...kind, reason: `there is none for ${system}` };
  let folder: string;
  try {
    folder = dirname(createRequire(__filename).resolve(`${kind.package}/package.json`));
  } catch {
    return { ...kind, reason: `not installed: ${install}` };
  }
  try {
    // The interface between lib/ and the addon is no public one.
    const other = versionIn(folder);
    if (other !== version) return { ...kind, reason: `it has version ${other}, expected ${version}: ${install}` };
    return { ...kind, addon: openAddon(folder), reason: '' };
  } catch (error) {
    return { ...kind, reason: `it does not load: ${reasonOf(error)}` };
  }
}

// GEMMA_ADDON names one addon, and that is the only one then. A build for GPUs in a clone needs no package for the same.
function candidates(): Candidate[] {
  if (found) return found;
  const own = { name: addon().backend, package: 'gemma-native', addon: addon(), reason: '' };
  const packages = process.env.GEMMA_ADDON ? [] : GPU_PACKAGES.filter(({ name }) => name !== own.name);
  return (found = [own, ...packages.map(open)]);
}

interface Listed {
  candidate: Candidate;
  /** all that its addon lists */
  devices: Device[];
  gpus: Device[];
  /** of the GPUs that can be used */
  memoryBytes: number;
}

// Opens every driver, which takes a moment.
async function list(all: readonly Candidate[]): Promise<Listed[]> {
  return Promise.all(
    all.map(async (candidate) => {
      const devices = (await candidate.addon?.devices()) ?? [];
      const gpus = devices.filter(({ name }) => name !== 'cpu' && name.split(':')[0] === candidate.name);
      const usable = gpus.filter(({ available }) => available);
      return { candidate, devices, gpus, memoryBytes: usable.reduce((sum, gpu) => sum + gpu.memoryBytes, 0) };
    }),
  );
}

// Whichever shows the most memory that can be used: that holds the largest model.
function best(all: readonly Listed[]): Listed | undefined {
  const usable = all.filter(({ memoryBytes }) => memoryBytes > 0);
  return usable.sort((a, b) => b.memoryBytes - a.memoryBytes)[0];
}

function gpuCandidates(): Candidate[] {
  return candidates().filter(({ name }) => name !== 'cpu');
}

async function chooseAddon(): Promise<NativeAddon> {
  try {
    return best(await list(gpuCandidates()))?.candidate.addon ?? addon();
  } catch (error) {
    automatic = undefined;
    throw error;
  }
}

/**
 * The addon that a device (as in `LoadOptions`, `'auto'` included) is computed with.
 *
 * @throws GemmaError `ERR_BACKEND_UNAVAILABLE` where the device wants a package that is not installed or does not load
 */
export async function addonFor(device: string): Promise<NativeAddon> {
  if (device === 'cpu') return addon();
  if (device === 'auto') {
    automatic ??= chooseAddon(); // once: what is plugged in does not change
    return automatic;
  }
  const kind = device.split(':')[0];
  const candidate = candidates().find(({ name }) => name === kind);
  if (candidate && !candidate.addon) {
    throw new GemmaError(
      'ERR_BACKEND_UNAVAILABLE',
      `device ${device}: wants the package ${candidate.package}, ${candidate.reason}`,
      'DEVICE',
    );
  }
  return candidate?.addon ?? addon(); // which says what it expected
}

/** The CPU, then the GPUs of this package and of the optional ones. */
export async function allDevices(): Promise<Device[]> {
  const [own, ...others] = await list(candidates());
  return [...(own?.devices ?? []), ...others.flatMap(({ gpus }) => gpus)];
}

/** All backends, with what `device: 'auto'` takes and why. */
export async function allBackends(): Promise<Backend[]> {
  const lists = await list(gpuCandidates());
  const taken = best(lists);
  const several = lists.filter(({ memoryBytes }) => memoryBytes > 0).length > 1;
  const rows = lists.map((one): Backend => {
    const { candidate, gpus, memoryBytes } = one;
    const row = { name: candidate.name, package: candidate.package, available: memoryBytes > 0, chosen: one === taken };
    if (row.chosen)
      return { ...row, reason: several ? 'no other backend has more GPU memory' : 'a GPU that can be used' };
    if (row.available) return { ...row, reason: 'another backend has as much GPU memory, or more' };
    return { ...row, reason: candidate.reason || (gpus[0]?.reason ?? 'it shows no GPU') };
  });
  const reason = taken ? 'where it is asked for, and for what GPUs do not hold' : 'there is no GPU that can be used';
  return [{ name: 'cpu', package: 'gemma-native', available: true, chosen: !taken, reason }, ...rows];
}
