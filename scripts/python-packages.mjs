// Packages from the Python package index, each list in a folder of its own in .cache: nothing else of the machine's Python changes, and
// everyone has the same versions.
//
//   node scripts/python-packages.mjs NAME==VERSION ...     prints the folder, for PYTHONPATH
import { existsSync, mkdirSync, mkdtempSync, realpathSync, renameSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { main, quietly, root } from './steps.mjs';

/** Installs wheels into a folder, which is there when it is whole; pip's flags may be among them. */
export async function pipInstall(folder, wheels) {
  mkdirSync(dirname(folder), { recursive: true });
  const work = mkdtempSync(`${folder}-`);
  try {
    // In one go: the wheels may share folders, which a second installation to the same target would not merge.
    const quiet = ['--quiet', '--disable-pip-version-check', '--root-user-action', 'ignore'];
    await quietly('python3', ['-m', 'pip', 'install', ...quiet, '--target', work, ...wheels]);
    rmSync(folder, { recursive: true, force: true });
    renameSync(work, folder);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/**
 * The folder with the packages; installs them first where it is not there. It is named after the first of them.
 *
 * @param requirements `name==version` or `name[extra]==version`
 */
export async function pythonPackages(...requirements) {
  const folder = join(root, '.cache', requirements[0].replace(/\[.*\]/, '').replace('==', '-'));
  if (!existsSync(folder)) await pipInstall(folder, requirements);
  return folder;
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  await main(async () => process.stdout.write(`${await pythonPackages(...process.argv.slice(2))}\n`));
}
