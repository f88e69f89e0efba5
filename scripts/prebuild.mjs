// Puts the addon for this machine into prebuilds/, where the published package finds it.
import { join } from 'node:path';
import { buildNative, main, root, run } from './steps.mjs';

await main(async () => {
  const prebuildify = join(root, 'node_modules', 'prebuildify', 'bin.js');
  const env = { ...process.env, PREBUILD_NODE_GYP: join(root, 'scripts', 'gyp-shim.cjs') };
  await run(process.execPath, [prebuildify, '-t', '20.0.0', '--napi', '--strip', '--tag-libc'], { env });
  await buildNative(); // prebuildify moves the file away
});
