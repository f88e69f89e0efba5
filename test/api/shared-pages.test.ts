// Processes with one model share its pages: what Linux says of their memory.
import { join } from 'node:path';
import { root, runNode } from './helpers.js';

const onLinux = process.platform === 'linux' ? test : test.skip;

interface Step {
  processes: number;
  fileRss: number;
  filePss: number;
}

onLinux('a second process adds nothing to the memory of a model', async () => {
  const { code, stdout } = await runNode([join(root, 'scripts', 'shared-pages.mjs'), '--json']);
  expect(code).toBe(0);
  const [one, two] = (JSON.parse(stdout) as { steps: [Step, Step] }).steps;
  expect(one.fileRss).toBeGreaterThan(0);
  expect(two.fileRss).toBeGreaterThan(1.5 * one.fileRss); // both have its pages,
  expect(two.filePss).toBeLessThan(1.2 * one.fileRss); // and they are the same ones
});
