// npm run soak: the server in a process of its own, and clients that read, leave, stall, send slowly and ask again. Every answer that was
// finished is compared with the bare API's of this process. Everything runs on the demonstration model, pictures included.
//
//   npm run soak                                   a short run, a quarter of a minute
//   npm run soak -- --minutes 60
//   npm run soak -- --seed 7 --clients 12          other choices; the seed is printed
//
// From time to time all clients are done: then no request may be under way in the server, nothing may wait, and it holds as many files
// and sockets as the first time. Fails on a wrong answer, a place that is not given back, a process that dies, and memory that grows.
import { Buffer } from 'node:buffer';
import { readFileSync } from 'node:fs';
import { request } from 'node:http';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { randomFrom } from './random.mjs';
import { startServer } from './server-process.mjs';
import { SetupError, main, root } from './steps.mjs';

const CONTEXT = 2048;
const GONE_MS = 30_000; // nothing here takes a hundredth of it
const MANY = 24; // of memory, samples in a run

/** What is asked: the body of a request, and the same for the bare API. */
function questions() {
  const picture = readFileSync(join(root, 'models', 'pictures', 'sign.png'));
  const story = Array.from({ length: 60 }, (_, i) => `The star number ${i} is red.`).join(' ');
  const all = [];
  const ask = (content, parts, fields, options) =>
    all.push({
      body: { model: 'soak', messages: [{ role: 'user', content: parts ?? content }], ...fields },
      input: [{ role: 'user', content }],
      options: { ...options, maxOutputTokens: fields.max_tokens, ...(fields.seed && { seed: fields.seed }) },
    });
  for (let seed = 1; seed <= 6; ++seed) {
    const tokens = 5 + 17 * seed;
    ask(`Tell me about ${seed} stars.`, undefined, { seed, max_tokens: tokens }, {});
    ask(
      `${story} What colour has star ${seed}?`,
      undefined,
      { temperature: 0, max_tokens: tokens },
      { temperature: 0 },
    );
    ask(`${seed}: ${story}`, undefined, { seed, stop: ['e'], max_tokens: tokens }, { stopSequences: ['e'] });
  }
  const text = { type: 'text', text: 'What is this?' };
  const url = `data:image/png;base64,${picture.toString('base64')}`;
  ask(
    [{ type: 'image', image: picture }, text],
    [{ type: 'image_url', image_url: { url } }, text],
    { temperature: 0, max_tokens: 12 },
    { temperature: 0 },
  );
  const schema = { type: 'object', properties: { colour: { enum: ['red', 'blue'] } }, required: ['colour'] };
  const format = { type: 'json_schema', json_schema: { name: 'colour', schema } };
  ask('A colour?', undefined, { seed: 3, max_tokens: 60, response_format: format }, { schema });
  return all;
}

const FINISH = { stop: 'stop', length: 'length' };

/** What a whole answer is, and of a stream, joined: its text, how it ended, its tokens. */
function readAnswer(text, isStream) {
  if (!isStream) {
    const { choices, usage } = JSON.parse(text);
    return [choices[0].message.content, choices[0].finish_reason, usage.completion_tokens];
  }
  const lines = text.split('\n').filter((line) => line.startsWith('data: {'));
  const events = lines.map((line) => JSON.parse(line.slice(6)));
  if (!text.endsWith('data: [DONE]\n\n')) throw new SetupError(`a stream has no end:\n${text.slice(-500)}`);
  const content = events.map(({ choices }) => choices[0]?.delta.content ?? '').join('');
  const ended = events.map(({ choices }) => choices[0]?.finish_reason).find((reason) => reason);
  return [content, ended, events.at(-1).usage.completion_tokens];
}

async function soakedServer(clients) {
  const limits = ['--context', String(CONTEXT), '--max-concurrent', String(Math.ceil(clients / 2)), '--max-queue', '3'];
  const server = await startServer('soak=demo', limits);
  const state = async () => {
    const text = await (await fetch(`${server.url}/metrics`, { headers: { connection: 'close' } })).text();
    const value = (name) => Number(new RegExp(`^${name} (.*)$`, 'm').exec(text)?.[1] ?? NaN);
    return {
      busy: value('gemma_requests_in_flight') + value('gemma_requests_waiting'),
      running: value('gemma_engine\\{model="soak",what="running"\\}'),
      handles: value('nodejs_active_resources_total'),
      files: value('process_open_fds'),
      rss: value('process_resident_memory_bytes'),
    };
  };
  return { ...server, state };
}

/** A client: `ask` does one request in a way that it chooses. */
function clientOf(url, all, random, counts) {
  const pick = (items) => items[Math.floor(random() * items.length)];
  const count = (what) => (counts[what] = (counts[what] ?? 0) + 1);

  // How a request goes: `leave` says after how many bytes of the answer the client is gone, -1 while it still sends.
  const send = (body, { slowly = false, stallMs = 0, leave = Infinity, reset = false } = {}) =>
    new Promise((resolve, reject) => {
      const bytes = Buffer.from(JSON.stringify(body));
      const headers = { 'content-type': 'application/json', 'content-length': bytes.length };
      const sent = request(`${url}/v1/chat/completions`, { method: 'POST', agent: false, headers });
      const go = () => {
        if (reset && sent.socket) sent.socket.resetAndDestroy();
        else sent.destroy();
        resolve(undefined);
      };
      sent.on('error', (error) => (leave < Infinity ? resolve(undefined) : reject(error)));
      sent.on('response', (response) => {
        const chunks = [];
        let length = 0;
        response.on('data', (chunk) => {
          chunks.push(chunk);
          length += chunk.length;
          if (length > leave) return go();
          if (stallMs > 0 && chunks.length === 1) {
            response.pause();
            setTimeout(() => response.resume(), stallMs);
          }
        });
        response.on('error', (error) => (leave < Infinity ? resolve(undefined) : reject(error)));
        response.on('end', () =>
          resolve({ status: response.statusCode, text: Buffer.concat(chunks).toString(), headers: response.headers }),
        );
      });
      const write = async () => {
        const pieces = slowly ? 3 + Math.floor(random() * 12) : 1;
        const size = Math.ceil(bytes.length / pieces);
        for (let at = 0; at < bytes.length && !sent.destroyed; at += size) {
          if (at > 0) await sleep(random() * 30);
          if (leave < 0 && at > bytes.length / 2) return go();
          sent.write(bytes.subarray(at, at + size));
        }
        sent.end();
        // A client that leaves before anything came: at any moment of the prompt.
        if (leave === 0) setTimeout(go, random() * 60);
      };
      void write();
    });

  return async function ask() {
    const isStream = random() < 0.8;
    const { body, expected } = pick(all);
    const asked = isStream ? { ...body, stream: true, stream_options: { include_usage: true } } : body;
    const ways = {
      read: {},
      leave: { leave: pick([-1, 0, 0, 1, 1000, 5000]), slowly: random() < 0.2, reset: random() < 0.3 },
      stall: { stallMs: 50 + random() * 1000 },
      slow: { slowly: true },
    };
    const kind = pick(['read', 'read', 'read', 'leave', 'leave', 'stall', 'slow', 'restart']);
    count(kind);
    if (kind === 'restart') await send(asked, { leave: pick([0, 1, 500]) });
    for (;;) {
      const answer = await send(asked, ways[kind]);
      if (!answer) return; // it left
      if (answer.status === 429) {
        count('refused');
        await sleep(20 + random() * 100);
        continue;
      }
      if (answer.status !== 200) throw new SetupError(`status ${answer.status}: ${answer.text.slice(0, 500)}`);
      const found = JSON.stringify(readAnswer(answer.text, isStream));
      if (found !== expected) throw new SetupError(`an answer is ${found}, the bare API's ${expected}`);
      count('equal');
      return;
    }
  };
}

const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;

await main(async () => {
  const { values } = parseArgs({
    options: {
      minutes: { type: 'string', default: '0.25' },
      seed: { type: 'string', default: String(1 + (Date.now() % 1e6)) },
      clients: { type: 'string', default: '12' },
    },
  });
  const [minutes, seed, clients] = [Number(values.minutes), Number(values.seed), Number(values.clients)];
  process.stdout.write(`soak: ${minutes} minutes, ${clients} clients, seed ${seed}\n`);
  const { Gemma } = createRequire(import.meta.url)(join(root, 'dist', 'index.js'));
  const gemma = await Gemma.load('demo', { contextSize: CONTEXT });
  const all = await Promise.all(
    questions().map(async ({ body, input, options }) => {
      const { text, finishReason, usage } = await gemma.generate(input, options);
      return { body, expected: JSON.stringify([text, FINISH[finishReason], usage.outputTokens]) };
    }),
  );
  await gemma.dispose();

  const server = await soakedServer(clients);
  const counts = {};
  const samples = [];
  const random = randomFrom(seed);
  const [begin, duration] = [performance.now(), minutes * 60_000];
  let first;
  let failed = false;
  const died = server.ended.then((code) => {
    if (!failed) throw new SetupError(`the server died (${code})`);
  });
  died.catch(() => {});
  for (let round = 1; performance.now() - begin < duration; ++round) {
    const until = performance.now() + duration / MANY;
    const work = Array.from({ length: clients }, async () => {
      const ask = clientOf(server.url, all, random, counts);
      while (performance.now() < until && !failed) await ask();
    });
    const late = sleep(duration / MANY + GONE_MS, undefined, { ref: false }).then(() => {
      throw new SetupError(`a request did not end within ${GONE_MS} ms`);
    });
    await Promise.race([Promise.all(work), died, late]).catch((error) => {
      failed = true;
      throw error;
    });
    // All are done: everything has been given back, soon.
    if (round === 1) await sleep(500);
    let state = await server.state();
    first ??= state;
    const isQuiet = () =>
      state.busy === 0 && state.running === 0 && state.files <= first.files && state.handles <= first.handles;
    for (const start = performance.now(); !isQuiet(); state = await server.state()) {
      // The first time tells what an idle server has, when it is idle.
      if (round === 1) first = state;
      if (performance.now() - start > GONE_MS) {
        throw new SetupError(`not given back: ${JSON.stringify(state)}; at the beginning ${JSON.stringify(first)}`);
      }
      await sleep(20);
    }
    samples.push(state.rss);
  }
  failed = true; // its end is wanted now
  await server.stop();
  process.stdout.write(`${JSON.stringify(counts)}; files ${first.files}, handles ${first.handles}\n`);
  process.stdout.write(`memory ${samples.map(mebibytes).join(', ')}\n`);
  const peak = (some) => Math.max(...some);
  const [before, after] = [
    peak(samples.slice(samples.length / 4, samples.length / 2)),
    peak(samples.slice(samples.length / 2)),
  ];
  if (minutes >= 1 && after > before * 1.1 + (16 << 20)) {
    throw new SetupError(`memory grew from ${mebibytes(before)} to ${mebibytes(after)}`);
  }
});
