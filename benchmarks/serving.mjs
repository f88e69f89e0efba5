// What a server of this package does beside llama.cpp's: clients that share a system prompt, all at once.
//
//   node benchmarks/serving.mjs [model] [--rounds 5] [--clients 16] [--system 500] [--answer 64] [--threads 2] [--peer]
//     [--profile FOLDER]: writes the server's CPU profile there
//
// Each round has a system prompt of its own. In turn the server, the bare API in this process and, with --peer, llama.cpp's server (as
// many places as clients, its cache for all of them together, its other defaults) answer the same messages; a different one begins each
// round. Figures are ratios within a round: medians with the lowest and the highest.
import { Buffer } from 'node:buffer';
import { readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { availableParallelism } from 'node:os';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { startServer } from '../scripts/server-process.mjs';
import { main, root } from '../scripts/steps.mjs';
import { startLlamaServer } from './llama-server.mjs';
import { spread, textOf } from './samples.mjs';

// What the first thread of a process has computed so far, in microseconds: its JavaScript. Only Linux tells.
function threadTime(pid) {
  try {
    return Number(readFileSync(`/proc/${pid}/task/${pid}/schedstat`, 'utf8').split(' ', 1)[0]) / 1000;
  } catch {
    return NaN;
  }
}

/**
 * Of one answer over HTTP: milliseconds to the first text, and tokens. Bytes are looked at as little as can be: a client's own work is
 * no cost of the server's, and here it has the same cores.
 */
function askServer(server, messages, maxTokens) {
  const start = performance.now();
  const body = JSON.stringify({
    model: 'bench',
    messages,
    temperature: 0,
    max_tokens: maxTokens,
    stream: true,
    stream_options: { include_usage: true },
  });
  const { hostname, port, host } = new URL(server.url);
  return new Promise((resolve, reject) => {
    const chunks = [];
    let first;
    const socket = connect(Number(port), hostname);
    socket.on('data', (chunk) => {
      chunks.push(chunk);
      if (first === undefined && /"content":"[^"]/.test(chunk.latin1Slice())) first = performance.now() - start;
    });
    socket.on('error', reject);
    socket.on('close', () => {
      const text = Buffer.concat(chunks).toString();
      const [, tokens] = /"completion_tokens":(\d+)/.exec(text) ?? [];
      if (tokens === undefined) return reject(new Error(`an answer has no count of tokens:\n${text.slice(0, 500)}`));
      resolve({ first: first ?? performance.now() - start, tokens: Number(tokens) });
    });
    const head = `POST /v1/chat/completions HTTP/1.1\r\nhost: ${host}\r\nconnection: close\r\ncontent-type: application/json\r\n`;
    socket.write(`${head}content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`);
  });
}

async function askBare(gemma, messages, maxTokens) {
  const start = performance.now();
  let first;
  const stream = gemma.stream(messages, { temperature: 0, maxOutputTokens: maxTokens });
  for await (const { text } of stream) if (text !== '') first ??= performance.now() - start;
  const { usage } = await stream.result;
  return { first: first ?? performance.now() - start, tokens: usage.outputTokens };
}

await main(async () => {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      rounds: { type: 'string', default: '5' },
      clients: { type: 'string', default: '16' },
      system: { type: 'string', default: '500' },
      answer: { type: 'string', default: '64' },
      threads: { type: 'string', default: String(availableParallelism()) },
      peer: { type: 'boolean', default: false },
      profile: { type: 'string' },
    },
  });
  const [clients, maxTokens] = [Number(values.clients), Number(values.answer)];
  const { Gemma } = createRequire(import.meta.url)(join(root, 'dist', 'index.js'));
  const model = positionals[0] ?? Gemma.demoModel;
  const gemma = await Gemma.load(model, { contextSize: 2048, threads: Number(values.threads) });
  const profiling =
    values.profile === undefined ? [] : ['--cpu-prof', `--cpu-prof-dir=${values.profile}`, '--cpu-prof-interval=200'];
  const server = await startServer(`bench=${model}`, ['--context', '2048', '--threads', values.threads], {
    nodeFlags: profiling,
  });
  const askers = {
    server: (messages) => askServer(server, messages, maxTokens),
    bare: (messages) => askBare(gemma, messages, maxTokens),
  };
  const log = (text) => process.stderr.write(`${text}\n`);
  const places = ['-c', String(2048 * clients), '-np', String(clients), '-t', values.threads];
  const peer = values.peer ? await startLlamaServer(model, places, log) : undefined;
  if (peer) askers.peer = (messages) => askServer(peer, messages, maxTokens);

  const user = (content) => ({ role: 'user', content });
  const pids = [process.pid, server.pid];
  const found = Object.fromEntries(Object.keys(askers).map((name) => [name, []]));
  // A server is measured as it is after its first requests: before, its JavaScript is not compiled.
  for (const ask of Object.values(askers)) {
    for (let i = 0; i < 4; ++i) {
      await Promise.all(Array.from({ length: clients }, (_, k) => ask([user(`${textOf(50, clients * i + k)}?`)])));
    }
  }
  for (let round = 0; round < Number(values.rounds); ++round) {
    const system = { role: 'system', content: textOf(Math.round(Number(values.system) * 0.97), round + 1) };
    const names = Object.keys(askers);
    for (const name of names.map((_, i) => names[(i + round) % names.length])) {
      const start = performance.now();
      const questions = Array.from({ length: clients }, (_, i) => [system, user(`${textOf(9, 100 * round + i)}?`)]);
      const before = pids.map(threadTime);
      const answers = await Promise.all(questions.map(askers[name]));
      const [own, served] = pids.map((pid, i) => threadTime(pid) - before[i]);
      const seconds = (performance.now() - start) / 1000;
      const firsts = answers.map(({ first }) => first).toSorted((a, b) => a - b);
      const tokens = answers.reduce((sum, answer) => sum + answer.tokens, 0);
      const first = firsts[Math.ceil(0.95 * clients) - 1];
      found[name].push({ rate: tokens / seconds, first, tokens, own: own / tokens, served: served / tokens });
    }
  }
  const of = (name, what) => found[name].map((round) => round[what]);
  const ratios = (a, b, what) => of(a, what).map((value, i) => value / of(b, what)[i]);
  for (const name of Object.keys(askers)) {
    const [rate, first] = [spread(of(name, 'rate'), 1), spread(of(name, 'first'), 0)];
    process.stdout.write(
      `${name}: ${rate} tokens/s, 95 % of first tokens within ${first} ms, ${of(name, 'tokens')[0]} tokens\n`,
    );
  }
  process.stdout.write(`server / bare API: tokens/s ${spread(ratios('server', 'bare', 'rate'), 3)}\n`);
  const js = [spread(of('server', 'served'), 0), spread(of('bare', 'own'), 0), spread(of('server', 'own'), 0)];
  process.stdout.write(`JavaScript, microseconds a token: server ${js[0]}, bare API ${js[1]}, clients ${js[2]}\n`);
  if (peer) {
    process.stdout.write(`server / llama-server: tokens/s ${spread(ratios('server', 'peer', 'rate'))}, `);
    process.stdout.write(`first token ${spread(ratios('server', 'peer', 'first'))}\n`);
  }
  await peer?.stop();
  await server.stop();
  await gemma.dispose();
});
