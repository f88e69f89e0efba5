// Shows that processes with one model share its pages: loads it in as many processes as are wanted, has each answer something, and prints
// what Linux says of their memory (/proc/PID/smaps and smaps_rollup).
//
//   node scripts/shared-pages.mjs [MODEL] [--processes N] [--json]
//
// Rss counts a page in every process that has it; Pss divides it among those, so the sum of Pss is the memory that is in use.
import { fork } from 'node:child_process';
import { realpathSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const own = fileURLToPath(import.meta.url);

/** Sums of the fields of smaps, in bytes: of all memory, and of the mappings of one file. */
async function memoryOf(pid, file) {
  const fields = (text) => {
    const of = (name) =>
      [...text.matchAll(new RegExp(`^${name}: +(\\d+) kB$`, 'gm'))].reduce((sum, [, kb]) => sum + 1024 * Number(kb), 0);
    return { rss: of('Rss'), pss: of('Pss') };
  };
  const [all, each] = await Promise.all(
    ['smaps_rollup', 'smaps'].map((name) => readFile(`/proc/${pid}/${name}`, 'utf8')),
  );
  const mappings = each.split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m);
  return { all: fields(all), file: fields(mappings.filter((text) => text.split('\n', 1)[0].endsWith(file)).join('')) };
}

async function child(model) {
  const { Gemma } = createRequire(own)(join(root, 'dist', 'index.js'));
  const gemma = await Gemma.load(model);
  await gemma.generate('Hello', { raw: true, maxOutputTokens: 8, seed: 1 });
  process.send('ready');
  process.once('message', async () => {
    await gemma.dispose();
    process.disconnect();
  });
}

async function main(words) {
  const option = (name) => {
    const at = words.indexOf(name);
    return at < 0 ? undefined : words.splice(at, name === '--json' ? 1 : 2).at(-1);
  };
  const json = option('--json') !== undefined;
  const n = Number(option('--processes') ?? 2);
  if (process.platform !== 'linux') throw new Error('this reads /proc, which only Linux has');
  const model = realpathSync(words[0] ?? join(root, 'models', 'demo.gguf'));
  const children = [];
  const steps = [];
  try {
    for (let i = 0; i < n; ++i) {
      const process = fork(own, ['--child', model]);
      children.push(process);
      await new Promise((resolve, reject) => {
        process.once('message', resolve).once('exit', (code) => reject(new Error(`a process ended with ${code}`)));
      });
      const memory = await Promise.all(children.map(({ pid }) => memoryOf(pid, model)));
      const sum = (part, field) => memory.reduce((all, one) => all + one[part][field], 0);
      steps.push({
        processes: i + 1,
        fileRss: sum('file', 'rss'),
        filePss: sum('file', 'pss'),
        allRss: sum('all', 'rss'),
        allPss: sum('all', 'pss'),
      });
    }
  } finally {
    for (const one of children) if (one.connected) one.send('end');
  }
  if (json) return console.log(JSON.stringify({ model, steps }));
  const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`.padStart(14);
  console.log(`${model}\n\nprocesses  model: sum of Rss      sum of Pss   all: sum of Rss      sum of Pss`);
  for (const { processes, fileRss, filePss, allRss, allPss } of steps) {
    console.log(
      `${String(processes).padStart(9)}      ${mib(fileRss)}  ${mib(filePss)}      ${mib(allRss)}  ${mib(allPss)}`,
    );
  }
}

if (process.argv[2] === '--child') await child(process.argv[3]);
else await main(process.argv.slice(2));
