// Packages from the Python package index, each list in a folder of its own in .cache: nothing else of the machine's Python changes, and
// everyone has the same versions.
//
//   node scripts/python-packages.mjs NAME==VERSION ...     prints the folder, for PYTHONPATH
import { existsSync, mkdirSync, mkdtempSync, realpathSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { main, quietly, root } from './steps.mjs';

/**
 * The folder with the packages; installs them first where it is not there. It is named after the first of them.
 *
 * @param requirements `name==version` or `name[extra]==version`
 */
export async function pythonPackages(...requirements) {
  const cache = join(root, '.cache');
  const folder = join(cache, requirements[0].replace(/\[.*\]/, '').replace('==', '-'));
  if (existsSync(folder)) return folder;
  // What breaks off leaves no folder of that name.
  mkdirSync(cache, { recursive: true });
  const work = mkdtempSync(join(cache, 'pip-'));
  try {
    const quiet = ['--quiet', '--disable-pip-version-check'];
    await quietly('python3', ['-m', 'pip', 'install', ...quiet, '--target', work, ...requirements]);
    if (!existsSync(folder)) renameSync(work, folder);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return folder;
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  await main(async () => process.stdout.write(`${await pythonPackages(...process.argv.slice(2))}\n`));
}
