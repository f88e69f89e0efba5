// npm run release: everything a version needs before it is published, then `npm publish` with a statement of provenance: first the
// packages for GPUs, then this one, which names them as optional peers, then those that stand on it.
//
//   npm run release -- --dry-run    all of it but the publishing
//   npm run release -- --no-gpus    without the packages for GPUs
//
// Provenance wants a job with an OpenID token (on GitHub: permissions id-token: write) and `repository` in package.json that names
// the place the job runs in; npm fills in `bugs` and `homepage` from it, and shows the README's pictures. Whoever publishes sets it:
// this source names no account. The tests are CI's (.ci/run); here is what only a release needs: the binaries of all systems, and
// the package tried on other versions of Node and with bundlers.
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gpuTargets, targets } from './targets.mjs';
import { main, root, run, say, SetupError } from './steps.mjs';

const isDryRun = process.argv.includes('--dry-run');
const gpus = process.argv.includes('--no-gpus') ? {} : gpuTargets;
const script = (name, ...flags) => run(process.execPath, [join(root, 'scripts', name), ...flags]);
const npm = (...args) => run('npm', args, { shell: process.platform === 'win32' });
const manifest = (folder) => JSON.parse(readFileSync(join(root, folder, 'package.json'), 'utf8'));

const { workspaces } = manifest('.');

/** What a person has to do before this can be published. */
function missing() {
  const { version, repository } = manifest('.');
  const found = [];
  const changes = execFileSync('git', ['status', '--porcelain'], { cwd: root, encoding: 'utf8' });
  if (changes !== '') found.push(`the working tree has changes:\n${changes.trimEnd()}`);
  const folders = ['.', ...Object.values(gpus).map(({ folder }) => folder), ...workspaces];
  for (const folder of folders) {
    const { name, repository: named, version: other } = manifest(folder);
    if (!named)
      found.push(`${join(folder, 'package.json')}: repository is missing; provenance is a statement about it`);
    else if (JSON.stringify(named.url ?? named) !== JSON.stringify(repository?.url ?? repository))
      found.push(`${join(folder, 'package.json')}: expected the repository of package.json`);
    if (other !== version) found.push(`${name}: expected version ${version}, found ${other}`);
  }
  if (!readFileSync(join(root, 'CHANGELOG.md'), 'utf8').includes(`## ${version}`)) {
    found.push(`CHANGELOG.md: expected a section "## ${version}"`);
  }
  return found;
}

await main(async () => {
  const { version } = manifest('.');
  const todo = missing();
  if (todo.length > 0 && !isDryRun) throw new SetupError(todo.join('\n'));
  await npm('run', 'build:ts');
  for (const folder of workspaces)
    await run(process.execPath, [join(root, 'scripts', 'prepack.mjs')], { cwd: join(root, folder) });
  await script('prebuild.mjs', '--all', ...(Object.keys(gpus).length > 0 ? ['--gpus'] : []));
  for (const [name, { path }] of Object.entries({ ...targets, ...gpus })) {
    if (!existsSync(join(root, path))) throw new SetupError(`${name}: ${path} is missing`);
  }
  await script('docs.mjs');
  await script('test-package.mjs', '--everywhere');
  await npm('run', 'check:package');
  say(isDryRun ? `${version}, as it would be published` : `Publishing ${version}`);
  const flags = ['--ignore-scripts', ...(isDryRun ? ['--dry-run', '--provenance=false'] : [])];
  for (const { folder } of Object.values(gpus)) await npm('publish', `./${folder}`, ...flags);
  await npm('publish', ...flags);
  for (const folder of workspaces) await npm('publish', `./${folder}`, ...flags);
  if (todo.length > 0) say(`Before it can be published:\n  - ${todo.join('\n  - ')}`);
});
