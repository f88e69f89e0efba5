// The systems that the published package has a binary for, by name: what zig calls it, what Node calls it, and its file.

function target(triple, platform, arch, libc) {
  const file = ['gemma-native', libc, 'node'].filter(Boolean).join('.');
  return { triple, platform, arch, libc, path: `prebuilds/${platform}-${arch}/${file}` };
}

export const targets = {
  'linux-x64': target('x86_64-linux-gnu.2.28', 'linux', 'x64', 'glibc'),
  'linux-arm64': target('aarch64-linux-gnu.2.28', 'linux', 'arm64', 'glibc'),
  'linux-x64-musl': target('x86_64-linux-musl', 'linux', 'x64', 'musl'),
  'linux-arm64-musl': target('aarch64-linux-musl', 'linux', 'arm64', 'musl'),
  'win32-x64': target('x86_64-windows-gnu', 'win32', 'x64'),
  'darwin-x64': target('x86_64-macos.11.0', 'darwin', 'x64'),
  'darwin-arm64': target('aarch64-macos.11.0', 'darwin', 'arm64'),
};

// Packages of their own, installed by whoever has such a GPU (lib/backends.ts). The drivers exist for glibc only.
function gpuTarget(backend) {
  const { path, ...rest } = target('x86_64-linux-gnu.2.28', 'linux', 'x64', 'glibc');
  const folder = `packages/${backend}`;
  return { ...rest, backend, folder, path: `${folder}/${path}` };
}

export const gpuTargets = { 'linux-x64-cuda': gpuTarget('cuda'), 'linux-x64-rocm': gpuTarget('rocm') };

/** The target that this machine is. */
export function hostTarget() {
  const isMusl = process.platform === 'linux' && !process.report.getReport().header.glibcVersionRuntime;
  return `${process.platform}-${process.arch}${isMusl ? '-musl' : ''}`;
}

/** The newest version of glibc that a binary asks for, as [major, minor]. */
export function glibcOf(bytes) {
  const versions = [...bytes.toString('latin1').matchAll(/GLIBC_(\d+)\.(\d+)/g)].map(([, a, b]) => [
    Number(a),
    Number(b),
  ]);
  return versions.sort(([a, b], [c, d]) => a - c || b - d).at(-1) ?? [0, 0];
}
