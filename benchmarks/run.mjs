#!/usr/bin/env node
// Speed of the built package, and of its peers beside it. `npm run bench -- --help`
//
// What is compared runs alternately, ours, peer, ours, peer, because a machine's speed drifts; a ratio is taken within each
// round. Before each round the model file is read once, so that nobody pays for a cold page cache. The machine's peaks are
// measured before and after in the same way (native/peaks.cpp), and every figure is also given as a fraction of its peak:
// prefill of the 8-bit multiply-add rate, decode of the read bandwidth.
import { createReadStream, existsSync } from 'node:fs';
import { mkdir, rename, writeFile } from 'node:fs/promises';
import { availableParallelism, cpus, loadavg, release, totalmem } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { cacheDirectory, fetchTestModel } from '../scripts/fetch-test-model.mjs';
import { buildIkLlamaCpp, buildLlamaCpp, llamaBench, run } from './peers.mjs';

const HERE = dirname(fileURLToPath(import.meta.url));
const ROOT = dirname(HERE);

const USAGE = `usage: npm run bench -- [options]

  --models LIST           270m (the real one), 1b, 4b (random weights), or files; separated by commas. Default: 270m
  --threads N             default: all cores
  --runs N                rounds; the table shows medians. Default: 3
  --prompt N              tokens of the prefill. Default: 512
  --decode N              tokens generated. Default: 128
  --decode-context N      positions in the cache before the decode. Default: 0
  --fill N                also: memory when a cache of N positions is full
  --isa NAME              instruction set for ours
  --peers                 also llama.cpp (built on first use) and, with --ik-source, ik_llama.cpp
  --ik-source DIR         a checkout or git directory of ik_llama.cpp
  --llama-bench FILE      a llama-bench of llama.cpp that is built already
  --ik-bench FILE         a llama-bench of ik_llama.cpp that is built already
  --out DIR               where results go. Default: benchmarks/results; "none": nowhere
`;

const log = (line) => process.stderr.write(`${line}\n`);

function options() {
  const { values } = parseArgs({
    options: {
      models: { type: 'string', default: '270m' },
      threads: { type: 'string', default: String(availableParallelism()) },
      runs: { type: 'string', default: '3' },
      prompt: { type: 'string', default: '512' },
      decode: { type: 'string', default: '128' },
      'decode-context': { type: 'string', default: '0' },
      fill: { type: 'string', default: '0' },
      isa: { type: 'string' },
      peers: { type: 'boolean', default: false },
      'ik-source': { type: 'string' },
      'llama-bench': { type: 'string' },
      'ik-bench': { type: 'string' },
      out: { type: 'string', default: join(HERE, 'results') },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  const number = (name, least) => {
    const n = Number(values[name]);
    if (!Number.isInteger(n) || n < least)
      throw new RangeError(`--${name}: expected an integer from ${least}, found ${values[name]}`);
    return n;
  };
  return {
    ...values,
    threads: number('threads', 1),
    runs: number('runs', 1),
    prompt: number('prompt', 2),
    decode: number('decode', 2),
    context: number('decode-context', 0),
    fill: number('fill', 0),
  };
}

/** Path of a model by its short name; files of random weights are written on first use. */
async function modelFile(name) {
  if (name === '270m') return fetchTestModel(log);
  const style = { '1b': 'qat', '4b': 'q4_0' }[name];
  if (!style) {
    if (!existsSync(name)) throw new Error(`--models: ${name} is neither 270m, 1b, 4b nor a file`);
    return resolve(name);
  }
  const file = join(cacheDirectory(), `gemma-3-${name}-random-${style}.gguf`);
  if (!existsSync(file)) {
    log(`${basename(file)}: writing random weights`);
    const vocabulary = await fetchTestModel(log);
    const script = join(ROOT, 'test', 'reference', 'random_gguf.py');
    // .part first, so that an interrupted write leaves no file that looks whole
    const args = ['--size', name, '--style', style, '--vocab-from', vocabulary, '--out', `${file}.part`];
    await run(process.env.PYTHON ?? 'python3', [script, ...args]).catch((error) => {
      throw new Error(`random_gguf.py needs Python 3 with numpy (set PYTHON to name another one)\n${error.message}`);
    });
    await rename(`${file}.part`, file);
  }
  return file;
}

async function buildPeaks() {
  const build = join(ROOT, 'build', 'bench');
  await run('cmake', ['-S', ROOT, '-B', build, '-DGEMMA_ADDON=OFF', '-DGEMMA_BENCH=ON', '-DCMAKE_BUILD_TYPE=Release']);
  await run('cmake', ['--build', build, '--target', 'peaks', '--config', 'Release']);
  const found = [join(build, 'peaks'), join(build, 'Release', 'peaks.exe'), join(build, 'peaks.exe')].find(existsSync);
  if (!found) throw new Error(`no peaks program in ${build}`);
  return found;
}

function readOnce(file) {
  return new Promise((done, reject) => {
    createReadStream(file, { highWaterMark: 1 << 22 })
      .on('error', reject)
      .on('end', done)
      .resume();
  });
}

async function ours(settings) {
  return JSON.parse(await run(process.execPath, [join(HERE, 'measure.mjs'), JSON.stringify(settings)]));
}

const bestOf = (a, b) =>
  Object.fromEntries(
    Object.entries(b).map(([key, value]) => [key, typeof value === 'number' ? Math.max(value, a[key] ?? 0) : value]),
  );

const sorted = (values) => [...values].sort((a, b) => a - b);
const median = (values) => {
  const s = sorted(values);
  const middle = s.length >> 1;
  return s.length % 2 ? s[middle] : (s[middle - 1] + s[middle]) / 2;
};
const spread = (values) => ({ min: Math.min(...values), median: median(values), max: Math.max(...values) });
const KINDS = ['prefill', 'decode'];

/** All rounds of one model: `{ engine: [run, ...] }`, our runs with load time and memory. */
async function measure(model, engines, settings) {
  const runs = Object.fromEntries(engines.map(({ name }) => [name, []]));
  for (let round = 0; round < settings.runs; round++) {
    await readOnce(model);
    for (const { name, once } of engines) {
      const result = await once(model);
      log(
        `  ${name.padEnd(14)} prefill ${result.prefillTokensPerSecond.toFixed(1).padStart(8)} t/s   ` +
          `decode ${result.decodeTokensPerSecond.toFixed(1).padStart(7)} t/s`,
      );
      runs[name].push(result);
    }
  }
  return runs;
}

/** What a model needs per token: bytes read by one decode step, multiply-adds (two operations each) of one prefill position. */
async function costs(model) {
  const { Gemma } = await import('../dist/index.mjs');
  const { config, parameters, memory } = await Gemma.inspect(model, { contexts: [512] });
  return {
    decodeBytes: memory[0].weightsBytes,
    // logits are computed for the last position only, so the embedding is no part of the prefill
    prefillOps: 2 * (parameters - config.vocabularySize * config.modelDim),
  };
}

function summarise(model, runs, cost, peaks) {
  const engines = {};
  for (const [name, results] of Object.entries(runs)) {
    const prefill = spread(results.map((r) => r.prefillTokensPerSecond));
    const decode = spread(results.map((r) => r.decodeTokensPerSecond));
    engines[name] = {
      prefill,
      decode,
      prefillOfPeak: peaks.int8Gops ? (prefill.median * cost.prefillOps) / (peaks.int8Gops * 1e9) : undefined,
      decodeOfPeak: peaks.readGBps ? (decode.median * cost.decodeBytes) / (peaks.readGBps * 1e9) : undefined,
    };
  }
  const ratios = {};
  for (const name of Object.keys(runs).filter((n) => n !== 'gemma-native')) {
    ratios[name] = Object.fromEntries(
      KINDS.map((kind) => [
        kind,
        spread(
          runs['gemma-native'].map((r, i) => r[`${kind}TokensPerSecond`] / runs[name][i][`${kind}TokensPerSecond`]),
        ),
      ]),
    );
  }
  const ours = runs['gemma-native'];
  return {
    model: basename(model),
    cost,
    engines,
    ratios,
    loadMs: spread(ours.map((r) => r.loadMs)),
    memoryAfterLoad: ours.at(-1).memoryAfterLoad,
    memoryAfterRun: ours.at(-1).memoryAfterRun,
    runs,
  };
}

const percent = (x) => (x === undefined ? '-' : `${(100 * x).toFixed(0)} %`);
const megabytes = (bytes) => (bytes === undefined ? '-' : `${(bytes / 1e6).toFixed(0)} MB`);

function table(report) {
  const { machine, peaks, settings, models } = report;
  const lines = [
    `# ${report.date}, ${machine.cpu}`,
    '',
    `${machine.cores} cores, ${megabytes(machine.memoryBytes)}, ${machine.system}, Node ${machine.node}; load average ` +
      `${machine.loadBefore.toFixed(2)} before and ${machine.loadAfter.toFixed(2)} after.`,
    `Command: \`${report.command}\``,
    `${settings.threads} threads, prefill of ${settings.prompt} tokens, ${settings.decode} decoded after ${settings.context} positions, ` +
      `${settings.runs} rounds, medians.`,
    `Peaks: read ${peaks.readGBps} GB/s; ${peaks.int8Isa ?? 'int8'} ${peaks.int8Gops ?? '-'} GOP/s, bf16 ${peaks.bf16Gops ?? '-'}, ` +
      `f32 ${peaks.f32Gops ?? '-'} GFLOP/s.`,
    '',
  ];
  for (const m of models) {
    lines.push(
      `## ${m.model}`,
      '',
      '| engine | prefill t/s | of int8 peak | decode t/s | of bandwidth |',
      '| --- | ---: | ---: | ---: | ---: |',
    );
    for (const [name, e] of Object.entries(m.engines)) {
      lines.push(
        `| ${name} | ${e.prefill.median.toFixed(1)} | ${percent(e.prefillOfPeak)} | ${e.decode.median.toFixed(1)} | ${percent(e.decodeOfPeak)} |`,
      );
    }
    lines.push('');
    if (Object.keys(m.ratios).length > 0) {
      lines.push('| ours / peer, per round | min | median | max |', '| --- | ---: | ---: | ---: |');
      for (const [name, kinds] of Object.entries(m.ratios)) {
        for (const kind of KINDS) {
          const r = kinds[kind];
          lines.push(`| ${kind}, ${name} | ${r.min.toFixed(2)} | ${r.median.toFixed(2)} | ${r.max.toFixed(2)} |`);
        }
      }
      lines.push('');
    }
    const [slow, fast] = sorted([m.peaksBefore.int8Gops ?? 0, m.peaksAfter.int8Gops ?? 0]);
    if (fast > 1.15 * slow) {
      lines.push(
        `The machine changed meanwhile: int8 peak ${m.peaksBefore.int8Gops} before, ${m.peaksAfter.int8Gops} GOP/s after.`,
        '',
      );
    }
    const after = m.memoryAfterRun;
    lines.push(
      `Load to ready ${m.loadMs.median.toFixed(0)} ms (${m.loadMs.min.toFixed(0)} to ${m.loadMs.max.toFixed(0)}). Resident after load ` +
        `${megabytes(m.memoryAfterLoad.resident)}, after the runs ${megabytes(after.resident)} (${megabytes(after.mapped)} mapped from ` +
        `files, ${megabytes(after.private)} private); weights in the file ${megabytes(m.cost.decodeBytes)}.`,
      '',
    );
    if (m.filled) {
      const { plan, memoryFilled } = m.filled;
      const planned = plan.weightsBytes + plan.kvBytes;
      lines.push(
        `With ${settings.fill} positions in the cache: resident ${megabytes(memoryFilled.resident)}, weights and cache by arithmetic ` +
          `${megabytes(planned)} (ratio ${(memoryFilled.resident / planned).toFixed(2)}).`,
        '',
      );
    }
  }
  return lines.join('\n');
}

async function main() {
  const settings = options();
  if (settings.help) {
    process.stdout.write(USAGE);
    return;
  }
  if (!existsSync(join(ROOT, 'dist', 'index.mjs'))) throw new Error('the package is not built: npm run build');
  const models = [];
  for (const name of settings.models.split(',')) models.push(await modelFile(name));
  const peaksProgram = await buildPeaks();
  const measurePeaks = async () =>
    JSON.parse(await run(peaksProgram, ['--threads', String(settings.threads), '--ms', '40']));

  const { prompt, decode, context, threads, isa } = settings;
  const engines = [{ name: 'gemma-native', once: (model) => ours({ model, prompt, decode, context, threads, isa }) }];
  if (settings.peers || settings['llama-bench'] || settings['ik-bench']) {
    const add = (name, program) =>
      engines.push({ name, once: (model) => llamaBench(program, name, { model, prompt, decode, context, threads }) });
    if (settings.peers || settings['llama-bench'])
      add('llama.cpp', settings['llama-bench'] ?? (await buildLlamaCpp(log)));
    if (settings['ik-bench']) add('ik_llama.cpp', settings['ik-bench']);
    else if (settings['ik-source']) add('ik_llama.cpp', await buildIkLlamaCpp(settings['ik-source'], log));
  }

  const [loadBefore] = loadavg();
  let peaks = {};
  const results = [];
  for (const model of models) {
    log(basename(model));
    const before = await measurePeaks();
    const runs = await measure(model, engines, settings);
    const after = await measurePeaks();
    const modelPeaks = bestOf(before, after);
    const filled =
      settings.fill > 0 ? await ours({ model, prompt: 8, decode: 2, fill: settings.fill, threads, isa }) : undefined;
    results.push({
      ...summarise(model, runs, await costs(model), modelPeaks),
      peaks: modelPeaks,
      peaksBefore: before,
      peaksAfter: after,
      ...(filled && { filled }),
    });
    peaks = bestOf(peaks, modelPeaks);
  }
  const [cpu] = cpus();
  const report = {
    date: new Date().toISOString().slice(0, 10),
    // without the folders of this machine
    command: ['npm run bench --', ...process.argv.slice(2)].join(' ').replace(/[^\s,=]*\//g, ''),
    machine: {
      cpu: cpu?.model.trim() ?? process.arch,
      cores: availableParallelism(),
      memoryBytes: totalmem(),
      system: `${process.platform} ${release()}`,
      node: process.version,
      loadBefore,
      loadAfter: loadavg()[0],
    },
    settings: { threads, prompt, decode, context, fill: settings.fill, runs: settings.runs, ...(isa && { isa }) },
    peaks,
    models: results,
  };
  const text = table(report);
  process.stdout.write(`${text}\n`);
  if (settings.out !== 'none') {
    const slug = report.machine.cpu
      .toLowerCase()
      .replace(/[^a-z0-9]+/g, '-')
      .replace(/^-|-$/g, '');
    const file = join(settings.out, `${report.date}-${slug}`);
    await mkdir(settings.out, { recursive: true });
    await writeFile(`${file}.json`, `${JSON.stringify(report, null, 1)}\n`);
    await writeFile(`${file}.md`, text);
    log(`written: ${file}.json, ${file}.md`);
  }
}

try {
  await main();
} catch (error) {
  log(error.message);
  process.exitCode = 1;
}
