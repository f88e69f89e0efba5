// The page in a real browser, with the real preload.cjs and the real model-process.mjs; only what Electron lays between them is
// stood in for. Drops a picture, asks, waits for the answer, stops one, and takes pictures of the window.
//
// In a clone, node_modules/ here must hold gemma-native (a link to ../../..) and playwright-core; elsewhere npm install does that.
//
//   node test/page.mjs --model=/path/to/model.gguf [--out=folder] [--picture=file] [--question=text] [--dark] [--height=860]
//
// The browser: $CHROMIUM, or chromium on the PATH (apt-get install chromium).
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { basename, dirname, extname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { MessageChannel, Worker } from 'node:worker_threads';
import { chromium } from 'playwright-core';

const here = dirname(fileURLToPath(import.meta.url));
const { values: flags } = parseArgs({
  options: {
    model: { type: 'string' },
    picture: { type: 'string' },
    question: { type: 'string', default: 'Describe this picture.' },
    out: { type: 'string', default: 'screenshots' },
    dark: { type: 'boolean', default: false },
    height: { type: 'string', default: '860' },
  },
});
assert(flags.model && flags.picture, 'usage: node test/page.mjs --model=M.gguf --picture=F [--out=FOLDER]');

const worker = new Worker(new URL('utility-process.mjs', import.meta.url), {
  workerData: { model: resolve(flags.model) },
});
const { port1, port2 } = new MessageChannel();

// In the place of the scheme app:.
const TYPES = { '.html': 'text/html', '.css': 'text/css', '.js': 'text/javascript' };
const server = createServer(({ url }, response) => {
  const file = join(here, '..', 'page', basename(url));
  response.writeHead(200, { 'content-type': TYPES[extname(file)] }).end(readFileSync(file));
});
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
  args: ['--no-sandbox'],
});
try {
  const context = await browser.newContext({
    viewport: { width: 920, height: Number(flags.height) },
    deviceScaleFactor: 2,
    colorScheme: flags.dark ? 'dark' : 'light',
  });
  const page = await context.newPage();
  const faults = [];
  page.on('pageerror', (error) => faults.push(error.message));
  page.on('console', (message) => message.type() === 'error' && faults.push(message.text()));

  // The channel: messages of the page go to the worker's port and back. Bytes travel as base64.
  await page.exposeFunction('toModel', (text) =>
    port2.postMessage(
      JSON.parse(text, (_, value) => (value?.base64 ? new Uint8Array(Buffer.from(value.base64, 'base64')) : value)),
    ),
  );
  port2.on('message', (message) => void page.evaluate((data) => window.fromModel(data), message).catch(() => {}));
  await page.addInitScript(`{
    const base64 = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(''));
    const port = {
      postMessage: (message) =>
        window.toModel(JSON.stringify(message, (_, value) => (value instanceof Uint8Array ? { base64: base64(value) } : value))),
      close() {},
    };
    window.fromModel = (data) => port.onmessage({ data });
    const electron = {
      contextBridge: { exposeInMainWorld: (name, value) => (window[name] = value) },
      ipcRenderer: {
        on: (channel, listener) => channel === 'model-channel' && listener({ ports: [port] }),
        send() {},
      },
    };
    ((require) => { ${readFileSync(join(here, '..', 'preload.cjs'), 'utf8')} })(() => electron);
  }`);
  await page.goto(`http://127.0.0.1:${server.address().port}/index.html`);
  worker.postMessage(port1, [port1]); // as the main process does when the page has loaded
  mkdirSync(flags.out, { recursive: true });
  const screenshot = (name) => page.screenshot({ path: join(flags.out, `${name}.png`) });

  await page.waitForFunction(() => document.getElementById('model-state').textContent.includes('threads'), null, {
    timeout: 120_000,
  });
  await screenshot('1-welcome');

  // a picture dropped as a user would
  const type = `image/${extname(flags.picture).slice(1).replace('jpg', 'jpeg')}`;
  const transfer = await page.evaluateHandle(
    ({ bytes, name, type }) => {
      const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name, { type }));
      return data;
    },
    { bytes: readFileSync(flags.picture).toString('base64'), name: basename(flags.picture), type },
  );
  await page.dispatchEvent('body', 'dragenter', { dataTransfer: transfer });
  assert(await page.evaluate(() => document.body.classList.contains('dropping')));
  await page.dispatchEvent('body', 'drop', { dataTransfer: transfer });
  await page.waitForSelector('.thumb img');
  await page.fill('#question', flags.question);
  await screenshot('2-question');
  await page.click('#send');
  await page.waitForSelector('.answer.busy');
  await page.waitForSelector('.answer:not(.busy)', { timeout: 300_000 });
  const answer = await page.textContent('.answer .text');
  const facts = await page.textContent('.answer footer');
  await page.waitForTimeout(200);
  await screenshot('3-answer');
  assert.equal(await page.locator('.answer.failed').count(), 0, answer);
  assert.match(facts, /tokens/);

  // a second question, stopped with the button
  await page.fill('#question', 'Tell a long story about it.');
  await page.press('#question', 'Enter');
  // The button says Stop now, unless a small model was faster.
  await page.evaluate(() => document.querySelector('.answer.busy') && document.getElementById('send').click());
  await page.waitForFunction(() => !document.querySelector('.answer.busy'), null, { timeout: 120_000 });
  await screenshot('4-stopped');
  assert.deepEqual(faults, []);
  process.stdout.write(`${JSON.stringify({ answer, facts })}\n`);
} finally {
  await browser.close();
  server.close();
  await worker.terminate();
}
