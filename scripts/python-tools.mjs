// Tools from the Python package index, each pinned and in a folder of its own, so that everyone has the same. Nothing of them is
// needed where the addon runs.
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { root, run } from './steps.mjs';

const CLANG_FORMAT = '23.1.5';
const CLANG_TIDY = '23.1.4';
const ZIG = '0.17.1';

/** Installs wheels into a folder, which is there when it is whole; pip's flags may be among them. */
export async function pipInstall(folder, wheels) {
  const work = `${folder}.partial`;
  rmSync(work, { recursive: true, force: true });
  mkdirSync(dirname(folder), { recursive: true });
  // In one go: the wheels may share folders, which a second installation to the same target would not merge.
  const quiet = ['--quiet', '--disable-pip-version-check', '--root-user-action', 'ignore'];
  await run('python3', ['-m', 'pip', 'install', ...quiet, '--target', work, ...wheels]);
  rmSync(folder, { recursive: true, force: true });
  renameSync(work, folder);
}

async function tool(name, version) {
  const folder = join(root, '.cache', `${name}-${version}`);
  if (!existsSync(folder)) {
    process.stdout.write(`Getting ${name} ${version}\n`);
    await pipInstall(folder, [`${name}==${version}`]);
  }
  return folder;
}

async function clangTool(name, version) {
  const folder = await tool(name, version);
  const env = { ...process.env, PYTHONPATH: [folder, process.env.PYTHONPATH].filter(Boolean).join(delimiter) };
  return { bin: join(folder, 'bin'), env };
}

/** { bin, env }: the folder of its programs, and the environment they run in. */
export const clangFormatTool = () => clangTool('clang-format', CLANG_FORMAT);
export const clangTidyTool = () => clangTool('clang-tidy', CLANG_TIDY);

/** The path of zig, a C++ compiler that brings what it needs for every target. */
export async function zig() {
  return join(await tool('ziglang', ZIG), 'ziglang', process.platform === 'win32' ? 'zig.exe' : 'zig');
}
