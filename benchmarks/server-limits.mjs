// What a server costs beside its answers: how soon work stops when a client leaves, what an idle connection holds, and how long a large
// body holds up the event loop.
//
//   node benchmarks/server-limits.mjs [model] [--only leave,idle,bodies] [--rounds 20] [--connections 1000] [--package FOLDER]
//
// --package: another build of the project, whose server is measured. Figures are medians with the lowest and the highest.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { connect } from 'node:net';
import { join, resolve } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs, TextEncoder } from 'node:util';
import { Worker } from 'node:worker_threads';
import { startServer } from '../scripts/server-process.mjs';
import { main, root } from '../scripts/steps.mjs';
import { spread, textOf } from './samples.mjs';

const say = (text) => process.stdout.write(`${text}\n`);

/** A connection with one request on it. */
function post(url, path, body, connection = 'close') {
  const { hostname, port, host } = new URL(url);
  const json = JSON.stringify(body);
  const socket = connect(Number(port), hostname);
  socket.on('error', () => {});
  const head = `POST ${path} HTTP/1.1\r\nhost: ${host}\r\nconnection: ${connection}\r\ncontent-type: application/json\r\n`;
  socket.write(`${head}content-length: ${Buffer.byteLength(json)}\r\n\r\n${json}`);
  return socket;
}

const first = (socket) => new Promise((done) => socket.once('data', done));

async function until(holds) {
  while (!holds()) await sleep(1);
}

/** From the moment in which a client leaves until the engine has nothing of its request any more. */
async function leaving({ Gemma, createServer }, model, rounds) {
  const gemma = await Gemma.load(model, { contextSize: 4096, prefixCacheBytes: 0 });
  const server = await createServer({ models: [{ name: 'bench', model: gemma }] });
  const url = await server.listen({ port: 0 });
  const ends = Object.fromEntries(gemma.info.endTokens.map((id) => [id, -100]));
  const ask = (content) =>
    post(url, '/v1/chat/completions', {
      model: 'bench',
      messages: [{ role: 'user', content }],
      logit_bias: ends,
      stream: true,
    });
  let closed = 0; // when the server last saw a client leave
  server.app.server.on('connection', (socket) => socket.on('close', () => (closed = performance.now())));
  const isRead = async (socket) => void (await first(socket));
  for (const company of [0, 8]) {
    const others = Array.from({ length: company }, (_, i) => ask(textOf(20, i)));
    await Promise.all(others.map(isRead));
    for (const [phase, words] of [
      ['prompt', 3000],
      ['answer', 20],
    ]) {
      const [times, seen] = [[], []];
      for (let round = 0; round < rounds; ++round) {
        const socket = ask(textOf(words, 1000 * company + round));
        if (phase === 'answer') await isRead(socket);
        else await until(() => gemma.stats().running > company);
        await sleep(10 + 11 * round); // another moment each time
        if (gemma.stats().running <= company) throw new Error('the request had ended before its client left');
        const start = performance.now();
        socket.destroy();
        await until(() => gemma.stats().running <= company);
        times.push(performance.now() - start);
        seen.push(closed - start);
      }
      say(
        `left while the ${phase} is computed, beside ${company} others: stopped after ${spread(times, 1)} ms, ` +
          `seen after ${spread(seen, 1)} ms`,
      );
    }
    for (const socket of others) socket.destroy();
    await until(() => gemma.stats().running === 0);
  }
  await server.close();
  await gemma.dispose();
}

/** Memory of the server's process for each connection on which nothing happens. */
async function idle(folder, model, connections) {
  const limits = ['--max-concurrent', '1', '--max-queue', String(2 * connections), '--context', '2048'];
  const server = await startServer(`bench=${model}`, limits, { folder });
  const { url, pid } = server;
  const status = () => readFileSync(`/proc/${pid}/status`, 'utf8');
  const memory = () => Number(/^RssAnon:\s+(\d+)/m.exec(status())[1]) * 1024;
  const body = (tokens, seed) => ({
    model: 'bench',
    messages: [{ role: 'user', content: textOf(20, seed) }],
    max_tokens: tokens,
    stream: true,
  });
  const metric = async (name) => {
    const text = await (await fetch(`${url}/metrics`)).text();
    return Number(new RegExp(`^${name} (.*)$`, 'm').exec(text)[1]);
  };
  const each = (before) => `${((memory() - before) / connections / 1024).toFixed(1)} KiB`;
  const opened = [];
  for (let i = 0; i < 50; ++i) await first(post(url, '/v1/chat/completions', body(1, i))); // what the first calls set up
  await sleep(1000);
  const before = memory();
  for (let i = 0; i < connections; ++i) {
    const socket = connect(Number(new URL(url).port), '127.0.0.1');
    socket.on('error', () => {});
    await new Promise((done) => socket.once('connect', done));
    opened.push(socket);
  }
  await sleep(1000);
  say(`${connections} connections without a request: ${each(before)} each`);
  for (const socket of opened.splice(0)) socket.destroy();
  await sleep(1000);
  const again = memory();
  const busy = post(url, '/v1/chat/completions', body(2000, 0));
  await first(busy);
  const hold = setInterval(() => {}, 1000);
  for (let i = 0; i < connections; ++i) opened.push(post(url, '/v1/chat/completions', body(16, i)));
  for (let waiting = 0; waiting < connections - 1; waiting = await metric('gemma_requests_waiting')) await sleep(50);
  say(`${connections} streams that wait for their turn: ${each(again)} each`);
  clearInterval(hold);
  for (const socket of [busy, ...opened]) socket.destroy();
  await server.stop();
}

// Sends bodies from a thread of its own: making one takes as long as reading it.
const SENDER = `
const { parentPort, workerData } = require('node:worker_threads');
const { request } = require('node:http');
const { url, path, body } = workerData;
const sent = request(url + path, { method: 'POST', headers: { 'content-type': 'application/json' } }, (response) => {
  let text = '';
  response.on('data', (chunk) => (text += chunk));
  response.on('end', () => parentPort.postMessage({ status: response.statusCode, text }));
});
sent.end(body);
`;

/** How long the event loop is held up while a large body is read, and looked at. */
async function bodies({ Gemma, createServer }, folder, rounds) {
  const sharp = createRequire(join(folder, 'package.json'))('sharp');
  const gemma = await Gemma.load(Gemma.demoModel, { contextSize: 2048 });
  const server = await createServer({ models: [{ name: 'bench', model: gemma }] });
  const url = await server.listen({ port: 0 });
  const pixels = Buffer.from(Array.from({ length: 3 * 1024 }, () => 256 * Math.random()));
  const noise = Buffer.alloc(3 * 2500 * 2500).map((_, i) => pixels[i % pixels.length] ^ ((i * 2654435761) >>> 13));
  const png = await sharp(noise, { raw: { width: 2500, height: 2500, channels: 3 } })
    .png({ compressionLevel: 0 })
    .toBuffer();
  const seen = (picture) => ({
    model: 'bench',
    messages: [
      {
        role: 'user',
        content: [
          { type: 'image_url', image_url: { url: `data:image/png;base64,${picture.toString('base64')}` } },
          { type: 'text', text: 'What is this?' },
        ],
      },
    ],
    max_tokens: 1,
  });
  const texts = Array.from({ length: 2000 }, (_, i) => `${textOf(1200, i)}\n"${i}"`);
  const cases = [
    ['a picture', '/v1/chat/completions', seen(png)],
    ['2,000 texts, of no model', '/v1/embeddings', { model: 'none', input: texts }],
    ['400,000 numbers, of no model', '/v1/completions', { model: 'none', prompt: Array(400_000).fill(1234) }],
  ];
  for (const [name, path, body] of cases) {
    const json = JSON.stringify(body);
    const [delays, times] = [[], []];
    let status;
    for (let round = 0; round < rounds; ++round) {
      const bytes = new TextEncoder().encode(json);
      const worker = new Worker(SENDER, {
        eval: true,
        workerData: { url, path, body: bytes },
        transferList: [bytes.buffer],
      });
      await new Promise((done) => worker.once('online', done));
      const monitor = monitorEventLoopDelay({ resolution: 1 });
      monitor.enable();
      const start = performance.now();
      const answer = await new Promise((done) => worker.once('message', done));
      times.push(performance.now() - start);
      monitor.disable();
      ({ status } = answer);
      delays.push(monitor.max / 1e6 - 1);
      await worker.terminate();
    }
    const size = `${(Buffer.byteLength(json) / 2 ** 20).toFixed(1)} MiB`;
    say(
      `${name} (${size}, status ${status}): held up for ${spread(delays, 1)} ms at most, answered in ${spread(times, 0)} ms`,
    );
  }
  await server.close();
  await gemma.dispose();
}

await main(async () => {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      only: { type: 'string', default: 'leave,idle,bodies' },
      rounds: { type: 'string', default: '20' },
      connections: { type: 'string', default: '1000' },
      package: { type: 'string', default: root },
    },
  });
  const folder = resolve(values.package);
  const require = createRequire(join(folder, 'package.json'));
  const { Gemma } = require(join(folder, 'dist', 'index.js'));
  const { createServer } = require(join(folder, 'packages', 'server', 'dist', 'index.js'));
  const model = positionals[0] ?? Gemma.demoModel;
  const [only, rounds] = [values.only.split(','), Number(values.rounds)];
  if (only.includes('leave')) await leaving({ Gemma, createServer }, model, rounds);
  if (only.includes('idle')) await idle(folder, model, Number(values.connections));
  if (only.includes('bodies')) await bodies({ Gemma, createServer }, folder, rounds);
});
