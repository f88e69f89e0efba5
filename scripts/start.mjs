// npm start: from a fresh clone to a Gemma that continues your text in the terminal.
//
//   npm start
//   npm start -- "The best thing about the sea is"
import { join } from 'node:path';
import { buildNative, buildTypeScript, checkTools, fetchModel, install, main, root, run, say } from './steps.mjs';

const DEFAULT_PROMPT = 'The best thing about living by the sea is';

await main(async () => {
  const prompt = process.argv.slice(2).join(' ') || DEFAULT_PROMPT;
  checkTools();
  await install();
  await buildNative();
  await buildTypeScript();
  const model = await fetchModel();
  say('Gemma 3 270M continues the text (it is the pretrained model: it continues, it does not answer)');
  process.stdout.write(`\n${prompt}`);
  const flags = ['--model', model, '--raw', '--max-tokens', '120', '--temperature', '0.7'];
  await run(process.execPath, [join(root, 'dist', 'cli', 'main.js'), 'run', ...flags, '--', prompt], {
    stdio: 'inherit',
  });
});
