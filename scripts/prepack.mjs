// prepack of the packages in packages/ that are compiled: `npm pack` there holds what was just built, and the license.
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildTypeScript, main, root } from './steps.mjs';

await main(async () => {
  await buildTypeScript();
  copyFileSync(join(root, 'LICENSE'), join(process.cwd(), 'LICENSE'));
});
