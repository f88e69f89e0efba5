// npm run format: brings all files into the form that the checks ask for.
import { join } from 'node:path';
import { clangFormat } from './checks.mjs';
import { main, root, run } from './steps.mjs';

await main(async () => {
  await run(process.execPath, [
    join(root, 'node_modules', 'prettier', 'bin', 'prettier.cjs'),
    '--write',
    '--log-level',
    'warn',
    '.',
  ]);
  await clangFormat('-i');
});
