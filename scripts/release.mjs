// npm run release: everything a version needs before it is published, then `npm publish` with a statement of provenance.
//
//   npm run release -- --dry-run    all of it but the publishing
//
// Provenance wants a job with an OpenID token (on GitHub: permissions id-token: write) and `repository` in package.json that names
// the place the job runs in. The tests are CI's (.ci/run); here is what only a release needs: the binaries of all systems, and the
// package tried on other versions of Node and with bundlers.
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { targets } from './targets.mjs';
import { main, root, run, say, SetupError } from './steps.mjs';

const isDryRun = process.argv.includes('--dry-run');
const script = (name, ...flags) => run(process.execPath, [join(root, 'scripts', name), ...flags]);
const npm = (...args) => run('npm', args, { shell: process.platform === 'win32' });

await main(async () => {
  const { version, repository } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  if (!isDryRun) {
    const changes = execFileSync('git', ['status', '--porcelain'], { cwd: root, encoding: 'utf8' });
    if (changes !== '') throw new SetupError(`the working tree has changes:\n${changes}`);
    if (!repository) throw new SetupError('package.json: repository is missing; provenance is a statement about it');
    if (!readFileSync(join(root, 'CHANGELOG.md'), 'utf8').includes(`## ${version}`)) {
      throw new SetupError(`CHANGELOG.md: expected a section "## ${version}"`);
    }
  }
  await npm('run', 'build:ts');
  await script('prebuild.mjs', '--all');
  for (const [name, { path }] of Object.entries(targets)) {
    if (!existsSync(join(root, path))) throw new SetupError(`${name}: ${path} is missing`);
  }
  await script('docs.mjs');
  await script('test-package.mjs', '--everywhere');
  await npm('run', 'check:package');
  say(isDryRun ? `${version} could be published` : `Publishing ${version}`);
  await npm('publish', '--ignore-scripts', ...(isDryRun ? ['--dry-run', '--provenance=false'] : []));
});
