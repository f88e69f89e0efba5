// What the files in deploy/ name exists: flags of the commands, metrics, paths.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createServer } from '../src/index.js';
import { createWorker } from '../src/worker.js';
import { root, tiny, withModel } from '../../../test/api/helpers.js';

const folder = join(root, 'packages', 'server');
const files = readdirSync(join(folder, 'deploy'), { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile())
  .map((entry) => ({ name: entry.name, text: readFileSync(join(entry.parentPath, entry.name), 'utf8') }));
const text = files.map((file) => file.text).join('\n');

test('every metric of the dashboard and of the scaling is one that is told', async () => {
  const named = new Set(text.match(/\b(?:gemma|nodejs|process)_[a-z0-9_]+/g));
  named.delete('gemma_native');
  const server = await createServer({ models: [{ name: 'tiny', model: tiny }] });
  const told = await server.context.metrics.registry.metrics();
  await server.close();
  expect(named.size).toBeGreaterThan(8);
  for (const name of named)
    expect([name, told.includes(`# TYPE ${name.replace(/_bucket$/, '')} `)]).toEqual([name, true]);
});

test('every flag is one of the commands', () => {
  const known = ['cli.ts', 'queue-cli.ts'].map((name) => readFileSync(join(folder, 'src', name), 'utf8')).join('\n');
  // Lines that start the server or a worker, and lists of arguments.
  const lines = text
    .split('\n')
    .filter((line) => /^\s*(?:args|command|ENTRYPOINT|CMD):? ?\[/.test(line) && !/prometheus|redis-server/.test(line));
  const flags = lines.flatMap((line) => line.match(/--[a-z][a-z-]*/g) ?? []);
  expect(flags.length).toBeGreaterThan(5);
  for (const flag of new Set(flags))
    expect([flag, known.includes(`'${flag} `) || known.includes(`'${flag}'`)]).toEqual([flag, true]);
});

test('the dashboard is JSON, and the paths of probes are answered', async () => {
  const [dashboard] = files.filter(({ name }) => name === 'dashboard.json');
  expect((JSON.parse(dashboard!.text) as { panels: unknown[] }).panels.length).toBeGreaterThan(5);
  const paths = new Set([...text.matchAll(/path: (\/[a-z]+)\b/g)].map(([, path]) => path!));
  paths.delete('/var');
  expect([...paths].sort()).toEqual(['/health', '/ready']);
  const server = await createServer({ models: [{ name: 'tiny', model: tiny }] });
  const url = await server.listen({ port: 0 });
  for (const path of paths) expect([path, (await fetch(url + path)).status]).toEqual([path, 200]);
  await server.close();
});

test('a worker without a queue says what is wrong', async () => {
  await withModel(async (gemma) => {
    for (const redis of ['nowhere', 'http://127.0.0.1:1']) {
      await expect(createWorker({ gemma, queue: 'q', redis })).rejects.toThrow(/^redis: expected redis/);
    }
  });
});
