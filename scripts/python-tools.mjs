// Tools from the Python package index, each pinned and in a folder of its own, so that everyone has the same. Nothing of them is
// needed where the addon runs.
import { delimiter, join } from 'node:path';
import { pythonPackages } from './python-packages.mjs';

const CLANG_FORMAT = '23.1.5';
const CLANG_TIDY = '23.1.4';
const ZIG = '0.17.1';

async function clangTool(name, version) {
  const folder = await pythonPackages(`${name}==${version}`);
  const env = { ...process.env, PYTHONPATH: [folder, process.env.PYTHONPATH].filter(Boolean).join(delimiter) };
  return { bin: join(folder, 'bin'), env };
}

/** { bin, env }: the folder of its programs, and the environment they run in. */
export const clangFormatTool = () => clangTool('clang-format', CLANG_FORMAT);
export const clangTidyTool = () => clangTool('clang-tidy', CLANG_TIDY);

/** The path of zig, a C++ compiler that brings what it needs for every target. */
export async function zig() {
  return join(await pythonPackages(`ziglang==${ZIG}`), 'ziglang', process.platform === 'win32' ? 'zig.exe' : 'zig');
}
