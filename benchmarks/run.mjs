#!/usr/bin/env node
// Speed of the built package, and of its peers beside it. `npm run bench -- --help`
//
// What is compared runs alternately, ours, peer, ours, peer, because a machine's speed drifts; a ratio is taken within each
// round. The machine's peaks are measured before and after each round (native/peaks.cpp), and where a figure has a natural peak
// it is also given as a fraction of it: prefill of the rate of the multiply-adds that ours computes with, decode of the read
// bandwidth.
import { existsSync } from 'node:fs';
import { mkdir, rename, writeFile } from 'node:fs/promises';
import { availableParallelism, loadavg, release, totalmem } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { cacheDirectory, fetchTestModel } from '../scripts/fetch-test-model.mjs';
import { chart } from './chart.mjs';
import { GROUPS, measureGroups } from './groups.mjs';
import { buildIkLlamaCpp, buildLlamaCpp, run } from './peers.mjs';
import { processorName } from './processor.mjs';
import { markdown, spread, summarise } from './report.mjs';

const HERE = dirname(fileURLToPath(import.meta.url));
const ROOT = dirname(HERE);
const RANDOM_MODELS = { '1b': ['1b', 'qat'], '4b': ['4b', 'q4_0'], '4b-k': ['4b', 'q4_k_m'] };

const USAGE = `usage: npm run bench -- [options]

  --only LIST        groups of figures, separated by commas. Default: all but kernels
                     ${[...Object.keys(GROUPS), 'kernels'].join(', ')}
  --models LIST      270m (the real one), 1b, 4b, 4b-k (random weights: Q4_0 like Google's QAT files, Q4_0, Q4_K_M), or files.
                     Default: those each group is about
  --rounds N         Default: 3
  --threads N        Default: all cores
  --isa NAME         instruction set for ours; avx2 and avx_vnni also for the peers, which are then built for it
  --device NAME      where ours computes: cuda:0, rocm:0, ... as \`gemma-native devices\` lists them. Default: cpu
  --peak-gbps N      the GPU's memory bandwidth by its data sheet, for the fraction reached, where it is not known here
  --peak-tops N      likewise its 8-bit rate with dense matrices
  --peers            also llama.cpp (built on first use, some minutes) and ik_llama.cpp where its source is at hand
  --ik-source DIR    a checkout or git directory of ik_llama.cpp, for the first time
  --before DIR       also this package as another checkout has built it, in prefill and decode: for a change, its commit before
  --out DIR          where results go. Default: benchmarks/results; "none": nowhere
`;

const log = (line) => process.stderr.write(`${line}\n`);

function options() {
  const { values } = parseArgs({
    options: {
      only: { type: 'string' },
      models: { type: 'string' },
      rounds: { type: 'string', default: '3' },
      threads: { type: 'string', default: String(availableParallelism()) },
      isa: { type: 'string' },
      device: { type: 'string', default: 'cpu' },
      'peak-gbps': { type: 'string' },
      'peak-tops': { type: 'string' },
      peers: { type: 'boolean', default: false },
      'ik-source': { type: 'string' },
      before: { type: 'string' },
      out: { type: 'string', default: join(HERE, 'results') },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  const count = (name) => {
    const n = Number(values[name]);
    if (!Number.isInteger(n) || n < 1) {
      throw new RangeError(`--${name}: expected an integer of at least 1, found ${values[name]}`);
    }
    return n;
  };
  const groups = values.only?.split(',') ?? Object.keys(GROUPS);
  const unknown = groups.find((name) => name !== 'kernels' && !GROUPS[name]);
  if (unknown !== undefined) throw new RangeError(`--only: there is no group ${unknown}`);
  return { ...values, groups, threads: count('threads'), rounds: count('rounds') };
}

/** A model by its short name, or a file: `{ short?, file }`. Files of random weights are written on first use. */
async function findModel(name) {
  if (name === '270m') return { short: name, file: await fetchTestModel(log) };
  if (!RANDOM_MODELS[name]) {
    if (!existsSync(name)) throw new Error(`--models: ${name} is neither 270m, 1b, 4b, 4b-k nor a file`);
    return { file: resolve(name) };
  }
  const [size, style] = RANDOM_MODELS[name];
  const vocabulary = ['--style', style, '--vocab-from', await fetchTestModel(log)];
  return {
    short: name,
    file: await randomModel(`gemma-3-${size}-random-${style}.gguf`, ['--size', size, ...vocabulary]),
  };
}

/** The vision encoder of the 4B in random weights. */
const findVision = () => randomModel('mmproj-gemma-3-4b-random-f16.gguf', ['--size', '4b', '--mmproj']);

async function randomModel(name, args) {
  const file = join(cacheDirectory(), name);
  if (!existsSync(file)) {
    log(`${name}: writing random weights`);
    const script = join(ROOT, 'test', 'reference', 'random_gguf.py');
    // .part first, so that an interrupted write leaves no file that looks whole
    await run(process.env.PYTHON ?? 'python3', [script, ...args, '--out', `${file}.part`]).catch((error) => {
      throw new Error(`random_gguf.py needs Python 3 with numpy (set PYTHON to name another one)\n${error.message}`);
    });
    await rename(`${file}.part`, file);
  }
  return file;
}

// Memory bandwidth by data sheet, GB/s: the roof of decode.
const GPU_BANDWIDTH = [
  [/H200/, 4800],
  [/H100.*(HBM3|SXM)/, 3350],
  [/RTX 4090/, 1008],
  [/MI300X/, 5300],
  [/7900 XTX/, 960],
];

/** The device of that name, with its peaks as far as they are known or given. */
async function findGpu(settings) {
  const { Gemma } = await import('../dist/index.mjs');
  const devices = await Gemma.devices();
  const gpu = devices.find(({ name }) => name === settings.device);
  if (!gpu?.available) {
    const reasons = devices.map(({ name, reason }) => `${name}${reason ? ` (${reason})` : ''}`).join(', ');
    throw new Error(`--device ${settings.device}: not here; this build and machine have ${reasons}`);
  }
  const bandwidth = Number(
    settings['peak-gbps'] ?? GPU_BANDWIDTH.find(([name]) => name.test(gpu.description))?.[1] ?? 0,
  );
  const tops = Number(settings['peak-tops'] ?? 0);
  if (!bandwidth) log(`${gpu.description}: bandwidth not known here (--peak-gbps), so no fractions of it`);
  return { ...gpu, peaks: { readGBps: bandwidth, int8Gops: tops * 1000 } };
}

/** Paths of the native programs. */
async function buildPrograms() {
  const build = join(ROOT, 'build', 'bench');
  const targets = ['peaks', 'kernels'];
  await run('cmake', ['-S', ROOT, '-B', build, '-DGEMMA_ADDON=OFF', '-DGEMMA_BENCH=ON', '-DCMAKE_BUILD_TYPE=Release']);
  await run('cmake', ['--build', build, '--target', ...targets, '--config', 'Release', '--parallel', '2']);
  return Object.fromEntries(
    targets.map((name) => {
      const found = [name, join('Release', `${name}.exe`), `${name}.exe`].map((f) => join(build, f)).find(existsSync);
      if (!found) throw new Error(`no program ${name} in ${build}`);
      return [name, found];
    }),
  );
}

async function main() {
  const settings = options();
  if (settings.help) {
    process.stdout.write(USAGE);
    return;
  }
  if (!existsSync(join(ROOT, 'dist', 'index.mjs'))) throw new Error('the package is not built: npm run build');
  const { groups, threads, rounds, isa } = settings;
  const before = settings.before && resolve(settings.before);
  if (before && !existsSync(join(before, 'dist', 'index.mjs'))) throw new Error(`--before: ${before} is not built`);
  const usual = Object.keys(GROUPS).flatMap((name) => (groups.includes(name) ? GROUPS[name].models : []));
  const models = [];
  for (const name of settings.models?.split(',') ?? new Set(usual)) models.push(await findModel(name));

  const programs = await buildPrograms();
  const peers = [];
  if (settings.peers || settings['ik-source']) {
    peers.push(await buildLlamaCpp(log, isa));
    const ik = await buildIkLlamaCpp(settings['ik-source'], log, isa);
    if (ik) peers.push(ik);
    else log('ik_llama.cpp: no source here (--ik-source), so it is left out');
  }

  const gpu = settings.device === 'cpu' ? undefined : await findGpu(settings);
  const peakArguments = ['--threads', String(threads), '--ms', '20', ...(isa ? ['--isa', isa] : [])];
  const measurePeaks = async () => (gpu ? gpu.peaks : JSON.parse(await run(programs.peaks, peakArguments)));
  const [loadBefore] = loadavg();
  const bench = { before, peers, rounds, threads, isa, device: settings.device, log, measurePeaks, findVision };
  const measured = await measureGroups(bench, groups, models);
  let kernels;
  if (groups.includes('kernels')) {
    log('Kernels');
    const peaksBefore = await measurePeaks();
    const out = await run(programs.kernels, [
      '--threads',
      String(threads),
      '--ms',
      '40',
      ...(isa ? ['--isa', isa] : []),
    ]);
    const after = await measurePeaks();
    const best = (key) => Math.max(peaksBefore[key] ?? 0, after[key] ?? 0);
    kernels = {
      peaks: { readGBps: best('readGBps') },
      rows: out
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line)),
    };
  }

  const allPeaks = [...measured.flatMap(({ peaks }) => peaks), ...(kernels ? [kernels.peaks] : [])];
  const peaks = Object.fromEntries(
    ['readGBps', 'int8Gops', 'bf16Gops', 'f32Gops']
      .map((key) => [key, allPeaks.map((p) => p[key]).filter((value) => value > 0)])
      .filter(([, values]) => values.length > 0)
      .map(([key, values]) => [key, spread(values)]),
  );
  const isas = Object.fromEntries(
    ['int8', 'bf16', 'f32']
      .map((kind) => [kind, allPeaks.map((p) => p[`${kind}Isa`]).find(Boolean)])
      .filter(([, name]) => name),
  );
  const report = {
    date: new Date().toISOString().slice(0, 10),
    // without the folders of this machine
    command: ['npm run bench --', ...process.argv.slice(2)].join(' ').replace(/[^\s,=]*\//g, ''),
    machine: {
      cpu: processorName(),
      cores: availableParallelism(),
      memoryBytes: totalmem(),
      system: `${process.platform} ${release()}`,
      node: process.version,
      loadBefore,
      loadAfter: loadavg()[0],
    },
    threads,
    rounds,
    ...(isa && { isa }),
    ...(gpu && { device: { name: settings.device, description: gpu.description, chip: gpu.isa } }),
    peers: peers.map(({ name, version, isa: held }) => ({ name, version, ...(held && { isa: held }) })),
    peaks,
    peakIsas: isas,
    figures: measured.map(summarise),
    ...(kernels && { kernels }),
  };
  const text = markdown(report);
  process.stdout.write(`${text}\n`);
  if (settings.out !== 'none') {
    const slug = (gpu?.description ?? report.machine.cpu)
      .toLowerCase()
      .replace(/[^a-z0-9]+/g, '-')
      .replace(/^-|-$/g, '');
    const part = settings.only ? `-${groups.join('-')}` : '';
    const file = join(settings.out, `${report.date}-${slug}${part}`);
    await mkdir(settings.out, { recursive: true });
    await writeFile(`${file}.json`, `${JSON.stringify(report, null, 1)}\n`);
    await writeFile(`${file}.md`, text);
    log(`written: ${file}.json, ${file}.md`);
    // The picture of the README is of all groups; pictures of some: benchmarks/chart.mjs.
    const picture = settings.only || settings.models ? undefined : chart([report]);
    if (picture) {
      await writeFile(join(settings.out, 'comparison.svg'), picture);
      log(`written: ${join(settings.out, 'comparison.svg')}`);
    }
  }
}

try {
  await main();
} catch (error) {
  log(error.message);
  process.exitCode = 1;
}
