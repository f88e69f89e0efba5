// npm run stress: what a model must survive, with the answers compared. Everything runs on the demonstration model, pictures included.
//
//   npm run stress                                  all kinds, the counts of a short run (a minute or two)
//   npm run stress -- mixed --operations 100000     clients that read, stall, leave, abort and forget, side by side
//   npm run stress -- mixed --minutes 30            the same for a time
//   npm run stress -- aborts --operations 10000     generations that are aborted at any moment
//   npm run stress -- conversations --operations 10000   chats that branch, are edited and aborted, with caches of all sizes
//   npm run stress -- chats --operations 10000           the same with gemma.chat: forks, undo, files, full contexts
//   npm run stress -- adapters --operations 10000        requests with adapters that are loaded and unloaded meanwhile
//   npm run stress -- workers --operations 500      worker threads that are terminated, as many at each stage
//   npm run stress -- exits --operations 200        processes that exit at any moment
//   npm run stress -- --seed 7                      other choices; the seed is printed
//
// Fails on a wrong answer, an operation that does not settle, a process that dies, and memory that grows. Delays of the event loop
// are printed and judged by nobody here: they belong to a quiet machine.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { ReadableStream } from 'node:stream/web';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import { writeRandomAdapter } from './random-adapter.mjs';
import { randomFrom } from './random.mjs';
import { SetupError, main, root } from './steps.mjs';

const SAMPLES = 40; // of memory, in a run
const HANG_MS = 120_000; // no operation here takes a hundredth of it
const PICTURES = ['one.png', 'other.png', 'shapes.png', 'sign.png'].map((name) =>
  join(root, 'models', 'pictures', name),
);
const SHORT_RUN = { mixed: 1500, aborts: 500, conversations: 40, chats: 25, adapters: 300, workers: 6, exits: 26 };

/** What can be asked, each with a function that makes its answer comparable. */
function questions() {
  const ask = (input, options) => ({ kind: 'generate', input, options: { maxOutputTokens: 24, ...options } });
  const see = (text, ...images) => [
    { role: 'user', content: [...images.map((image) => ({ type: 'image', image })), { type: 'text', text }] },
  ];
  const story = Array.from({ length: 150 }, (_, i) => `The star number ${i} is red.`).join(' ');
  return [
    ask('What is the capital of France?', { temperature: 0 }),
    ask('Tell me about stars.', { seed: 11, logprobs: 3 }),
    ask('Tell me about the colours of shapes.', { seed: 13, temperature: 1.3, topK: 0 }),
    ask(`${story} How many stars are there?`, { seed: 17 }),
    ask(
      [
        { role: 'user', content: 'Hello' },
        { role: 'assistant', content: 'Hello!' },
        { role: 'user', content: story },
      ],
      {
        seed: 19,
        stopSequences: ['e r'],
      },
    ),
    ask(see('Describe the picture.', PICTURES[2]), { temperature: 0 }),
    ask(see('What does the sign say?', PICTURES[3]), { temperature: 0, panAndScan: true }),
    ask(see('What is different?', PICTURES[0], PICTURES[1]), { seed: 23 }),
    ask(story, { raw: true, seed: 29, maxOutputTokens: 60 }),
    { kind: 'logits', input: 'The sun is', options: { all: true } },
    { kind: 'logits', input: see('Describe the picture.', PICTURES[0]), options: { top: 5, data: false } },
    { kind: 'score', input: see('Describe the picture.', PICTURES[1]), candidates: ['A red', 'Two', 'a'], options: {} },
    { kind: 'score', input: story, candidates: story.split('. ').slice(0, 40), options: { normalize: 'bytes' } },
    { kind: 'embedImage', input: PICTURES[1], options: {} },
    { kind: 'embedImage', input: [PICTURES[3], PICTURES[0]], options: { panAndScan: true, pooling: 'mean' } },
    { kind: 'tokenize', input: story, options: {} },
    { kind: 'countTokens', input: see(story, PICTURES[2]), options: {} },
  ];
}

function answerTo(gemma, { kind, input, candidates, options }) {
  return kind === 'score' ? gemma.score(input, candidates, options) : gemma[kind](input, options);
}

// Durations and what the caches gave differ from run to run; everything else may not.
function comparable(kind, answer) {
  if (kind === 'generate') {
    const { text, tokens, finishReason, logprobs } = answer;
    return JSON.stringify({ text, tokens, finishReason, logprobs });
  }
  const plain = (value) => (ArrayBuffer.isView(value) ? Buffer.from(value.buffer).toString('base64') : value);
  return JSON.stringify(answer, (_, value) => plain(value));
}

/** Rejects when an operation does not settle. */
async function settles(what, promise) {
  const timer = new AbortController();
  const late = sleep(HANG_MS, undefined, { signal: timer.signal }).then(() => {
    throw new SetupError(`hang: ${what} did not settle in ${HANG_MS / 1000} s`);
  });
  late.catch(() => {}); // stopped when the operation was first
  try {
    return await Promise.race([promise, late]);
  } finally {
    timer.abort();
  }
}

function expectEqual(what, found, expected) {
  if (found !== expected) {
    throw new SetupError(`wrong answer: ${what}\n  alone ${expected.slice(0, 400)}\n  now   ${found.slice(0, 400)}`);
  }
}

function memory() {
  globalThis.gc?.();
  return process.memoryUsage().rss;
}

// Each takes a question and ends in one way; what is returned is compared with the answer alone, undefined is not.
const behaviours = {
  read: ({ gemma, question }) => answerTo(gemma, question),
  slowly: async ({ gemma, question: { input, options }, random }) => {
    const stream = gemma.stream(input, options);
    let text = '';
    for await (const part of stream) {
      text += part.text;
      if (random() < 0.1) await sleep(random() * 5);
    }
    const result = await stream.result;
    expectEqual('the parts of a stream', text, result.text);
    return result;
  },
  stall: async ({ gemma, question: { input, options }, random }) => {
    const stream = gemma.stream(input, options);
    const reader = stream[Symbol.asyncIterator]();
    let part = await reader.next();
    await sleep(random() * 500);
    while (!part.done) part = await reader.next();
    return stream.result;
  },
  leave: async ({ gemma, question: { input, options }, random }) => {
    const reader = gemma.stream(input, options)[Symbol.asyncIterator]();
    const parts = Math.floor(random() * 4);
    for (let i = 0; i < parts; ++i) await reader.next();
    await reader.return();
  },
  leaveEarly: async ({ gemma, question: { input, options }, random }) => {
    const stream = ReadableStream.from(gemma.stream(input, options));
    await sleep(random() * 20);
    await stream.cancel();
  },
  forget: async ({ gemma, question: { input, options } }) => {
    await gemma.stream(input, options)[Symbol.asyncIterator]().next();
  },
  abort: async ({ gemma, question, random }) => {
    const controller = new AbortController();
    const reason = new Error('mine');
    setTimeout(() => controller.abort(reason), random() ** 2 * 200);
    try {
      return await answerTo(gemma, { ...question, options: { ...question.options, signal: controller.signal } });
    } catch (error) {
      if (error !== reason) throw error;
      return undefined;
    }
  },
};
const OF_STREAMS = ['slowly', 'stall', 'leave', 'leaveEarly', 'forget'];

async function mixed({ Gemma, operations, minutes, random }) {
  const gemma = await Gemma.load('demo', { contextSize: 4096 });
  const asked = questions();
  const alone = [];
  for (const question of asked) alone.push(comparable(question.kind, await answerTo(gemma, question)));

  const counts = {};
  const rss = [];
  let done = 0;
  const start = performance.now();
  const progress = () => (minutes === undefined ? done / operations : (performance.now() - start) / (60_000 * minutes));
  const client = async () => {
    for (; progress() < 1; ++done) {
      const at = Math.floor(random() * asked.length);
      const question = asked[at];
      const names = Object.keys(behaviours).filter(
        (name) => question.kind === 'generate' || !OF_STREAMS.includes(name),
      );
      const name = names[Math.floor(random() * names.length)];
      if (name === 'abort' && !['generate', 'logits', 'score', 'embedImage'].includes(question.kind)) continue;
      const what = `${question.kind} ${at}, ${name}`;
      const answer = await settles(what, behaviours[name]({ gemma, question, random }));
      if (answer !== undefined) expectEqual(what, comparable(question.kind, answer), alone[at]);
      counts[name] = (counts[name] ?? 0) + 1;
      if (progress() * SAMPLES > rss.length) rss.push(memory());
    }
  };
  await Promise.all(Array.from({ length: 24 }, client));
  await settles('the end of everything', idle(gemma));
  await settles('dispose', gemma.dispose());

  // The first half warms caches and pools up.
  const peak = (part) => Math.max(...part);
  const [before, after] = [peak(rss.slice(rss.length / 4, rss.length / 2)), peak(rss.slice(rss.length / 2))];
  const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
  if (done >= 10_000 && after > 1.1 * before + (16 << 20)) {
    throw new SetupError(`memory grew from ${mebibytes(before)} to ${mebibytes(after)}`);
  }
  const ways = Object.entries(counts).map(([name, n]) => `${name} ${n}`);
  return `${ways.join(', ')}; at most ${mebibytes(before)} in the second quarter, ${mebibytes(after)} afterwards`;
}

/** Resolves when the engine has nothing to do any more: forgotten streams, too, are given up. */
async function idle(gemma) {
  for (;;) {
    globalThis.gc?.();
    const { running, waiting } = gemma.stats();
    if (running + waiting === 0) return;
    await sleep(20);
  }
}

async function aborts({ Gemma, operations, random }) {
  const gemma = await Gemma.load('demo', { contextSize: 4096 });
  const asked = questions().filter(({ kind }) => kind === 'generate');
  const { input, options } = asked[0];
  const alone = comparable('generate', await gemma.generate(input, options));
  let left = operations;
  let aborted = 0;
  const client = async () => {
    while (left-- > 0) {
      const question = asked[Math.floor(random() * asked.length)];
      const whole = await settles('an aborted generation', behaviours.abort({ gemma, question, random }));
      if (whole === undefined) ++aborted;
    }
  };
  await Promise.all(Array.from({ length: 8 }, client));
  expectEqual('after all aborts', comparable('generate', await gemma.generate(input, options)), alone);
  await settles('dispose', gemma.dispose());
  return `${aborted} of ${operations} were aborted before their end`;
}

// The prefix cache against a model without one. Several conversations at a time begin alike, go on, go back, change their last
// question and ask again; each answer is that of the model without a cache, to the bit of its log-probabilities.
async function conversations({ Gemma, operations, random }) {
  const load = (prefixCacheBytes) => Gemma.load('demo', { contextSize: 4096, prefixCacheBytes });
  const below = (n) => Math.floor(random() * n);
  const plain = await load(0);
  const cached = await Promise.all([256 << 20, 8 << 20, 1 << 20].map(load));
  const systems = ['', 'Be short. ', Array.from({ length: 90 }, (_, i) => `Rule ${i}: say it with stars.`).join(' ')];
  const words = 'what which red blue star circle sign colour small the a is of hello France sun'.split(' ');
  const question = () => {
    const text = Array.from({ length: 1 + below(25) }, () => words[below(words.length)]).join(' ');
    const content = [{ type: 'text', text }];
    if (below(4) === 0) content.unshift({ type: 'image', image: PICTURES[below(PICTURES.length)] });
    return { role: 'user', content };
  };
  let left = operations;
  let turns = 0;
  let aborted = 0;
  const converse = async (gemma) => {
    const system = systems[below(systems.length)];
    let messages = system ? [{ role: 'system', content: system }, question()] : [question()];
    for (let turn = 1 + below(6); turn > 0; --turn, ++turns) {
      const options = {
        seed: below(1000),
        maxOutputTokens: 1 + below(20),
        logprobs: 2,
        draft: below(2) ? 'prompt-lookup' : false,
      };
      const what = `${JSON.stringify(messages).slice(0, 200)} ... with ${JSON.stringify(options)}`;
      if (below(8) === 0) {
        const call = { gemma, question: { kind: 'generate', input: messages, options }, random };
        if ((await settles(what, behaviours.abort(call))) === undefined) ++aborted;
      }
      const [found, alone] = await settles(
        what,
        Promise.all([gemma.generate(messages, options), plain.generate(messages, options)]),
      );
      expectEqual(what, comparable('generate', found), comparable('generate', alone));
      const choice = below(10);
      if (choice < 5) {
        messages = [...messages, { role: 'assistant', content: found.text || 'Yes.' }, question()];
      } else if (choice < 7) {
        messages = [...messages.slice(0, -1), question()];
      } else if (choice < 9 && messages.length > 2) {
        const first = system ? 1 : 0; // a question
        const kept = first + 2 * below((messages.length - first + 1) / 2);
        messages = [...messages.slice(0, kept), question()];
      } // or the same again, with other random numbers
    }
  };
  const client = async (_, i) => {
    while (left-- > 0) await converse(cached[i % cached.length]);
  };
  await Promise.all(Array.from({ length: 9 }, client));
  const known = cached.map((gemma) => {
    const { promptTokens, cachedPromptTokens, prefixBytes } = gemma.stats();
    return `${((100 * cachedPromptTokens) / promptTokens).toFixed(0)} % with ${(prefixBytes / 2 ** 20).toFixed(1)} MiB`;
  });
  for (const gemma of [plain, ...cached]) await settles('dispose', gemma.dispose());
  return `${operations} conversations, ${turns} answers equal, ${aborted} aborted; known of the prompts: ${known.join(', ')}`;
}

// What gemma.chat keeps, against a model without a cache that gets the ids of each prompt. Chats fork, go back, ask again, go to a
// file and back, are aborted and left; whatever failed has changed nothing.
async function chats({ Gemma, operations, random }) {
  const load = (prefixCacheBytes) => Gemma.load('demo', { contextSize: 400, prefixCacheBytes });
  const below = (n) => Math.floor(random() * n);
  const pick = (list) => list[below(list.length)];
  const plain = await load(0);
  const cached = await Promise.all([256 << 20, 1 << 20].map(load));
  const folder = await mkdtemp(join(tmpdir(), 'gemma-stress-'));
  const texts = ['What is the capital of France?', ' a <end_of_turn> ', 'Hi\n\n', '你好 😀', 'x'.repeat(150), ''];
  const summary = ({ dropped }) => [
    { role: 'user', content: `There were ${dropped.length} messages.` },
    { role: 'assistant', content: 'Yes.' },
  ];
  const stateOf = (chat) => JSON.stringify([chat.messages, chat.tokens]);
  const picturesOf = ({ messages }) =>
    messages.flatMap(({ content }) => (Array.isArray(content) ? content : [])).flatMap(({ image = [] }) => image);
  let turns = 0;
  let dropped = 0;
  let unchanged = 0;

  const say = async (chat, options, what) => {
    const own = { ...options };
    for (const name of ['prefill', 'replace', 'images']) delete own[name];
    const answer =
      below(6) === 0 && picturesOf(chat).length === 0 ? chat.regenerate(own) : chat.send(pick(texts), options);
    const result = await settles(what, answer);
    const prompt = chat.tokens.slice(0, result.usage.inputTokens);
    const alone = await plain.generate(prompt, { ...own, images: picturesOf(chat), onOverflow: 'truncate' });
    expectEqual(what, comparable('generate', result), comparable('generate', alone));
    ++turns;
    if (result.dropped) ++dropped;
  };
  const leave = async (chat, options) => {
    const stream = chat.stream(pick(texts), options);
    let n = below(9);
    for await (const { text } of stream) if (text !== '' && n-- === 0) break;
    return (await stream.result).finishReason !== 'other';
  };
  const abort = async (chat, options) => {
    const stop = new AbortController();
    const asked = chat.send(pick(texts), { ...options, signal: stop.signal });
    asked.catch(() => {});
    for (let n = below(40); n > 0; --n) await new Promise(setImmediate);
    stop.abort(new Error('stopped'));
    return asked.then(
      () => true,
      (error) => {
        if (error.message !== 'stopped') throw error;
        return false;
      },
    );
  };

  const converse = async (name) => {
    const onOverflow = pick(['shift', summary, 'truncate', 'error']);
    const open = [pick(cached).chat({ onOverflow, ...(below(2) && { system: 'Be brief.' }) })];
    for (let step = 1 + below(12); step > 0; --step) {
      const i = below(open.length);
      const chat = open[i];
      const options = {
        seed: below(1000),
        maxOutputTokens: 1 + below(30),
        logprobs: 2,
        ...(below(4) === 0 && { stopSequences: ['a', 'ed'] }),
        ...(below(4) === 0 && { prefill: pick(['The ', ' A', 'Yes, ']) }),
        ...(below(4) === 0 && { replace: true }),
        ...(below(5) === 0 && { images: [pick(PICTURES)] }),
      };
      const before = stateOf(chat);
      const what = `chat ${name}, ${chat.messages.length} messages, ${JSON.stringify(options)}`;
      let isChanged = true;
      try {
        const kind = below(12);
        if (kind === 0 && open.length < 4) open.push(chat.fork());
        else if (kind === 1) await settles(what, chat.undo());
        else if (kind === 2) isChanged = await settles(what, leave(chat, { ...options, maxOutputTokens: 99 }));
        else if (kind === 3) isChanged = await settles(what, abort(chat, options));
        else if (kind === 4) {
          const file = join(folder, name);
          await settles(what, chat.save(file));
          open[i] = await settles(what, pick(cached).restoreChat(file));
          expectEqual(what, JSON.stringify(open[i].tokens), JSON.stringify(chat.tokens));
        } else await say(chat, options, what);
      } catch (error) {
        if (!['ERR_CONTEXT_FULL', 'ERR_INVALID_ARGUMENT'].includes(error.code)) throw error;
        isChanged = false; // too long, or nothing to ask again
      }
      if (isChanged) continue;
      expectEqual(`${what}, which failed`, stateOf(chat), before);
      ++unchanged;
    }
  };
  let left = operations;
  const client = async () => {
    while (left-- > 0) await converse(String(left));
  };
  await Promise.all(Array.from({ length: 5 }, client));
  await rm(folder, { recursive: true });
  for (const gemma of [plain, ...cached]) await settles('dispose', gemma.dispose());
  return `${operations} chats, ${turns} answers equal, ${dropped} after a full context, ${unchanged} that failed or were left`;
}

// Requests with adapters while others load and unload these: whoever finds a name gets the answer that its adapter gave alone, to the
// end, also when the name goes meanwhile or is given to another file.
async function adapters({ Gemma, operations, random }) {
  const below = (n) => Math.floor(random() * n);
  const folder = await mkdtemp(join(tmpdir(), 'gemma-stress-'));
  const { config } = await Gemma.inspect('demo');
  const paths = [];
  for (let i = 0; i < 4; ++i) {
    paths.push(join(folder, String(i)));
    await writeRandomAdapter(paths[i], config, { rank: [1, 4, 16, 33][i], seed: i + 1, size: 0.1 });
  }
  const gemma = await Gemma.load('demo', { contextSize: 4096, prefixCacheBytes: 8 << 20 });
  const asked = questions().filter(({ kind }) => ['generate', 'logits', 'score'].includes(kind));
  const names = paths.map((_, i) => `a${i}`);
  const mixes = [undefined, ...names, { a0: 1, a2: -0.5 }, { a3: 0.25, a1: 1, a2: 2 }];
  const calls = mixes.flatMap((adapter) =>
    asked.map((question) => ({ ...question, options: { ...question.options, ...(adapter && { adapter }) } })),
  );
  const chosen = Array.from({ length: 24 }, () => calls[below(calls.length)]);
  const alone = [];
  for (const [i, name] of names.entries()) await gemma.loadAdapter(name, paths[i]);
  for (const call of chosen) alone.push(comparable(call.kind, await answerTo(gemma, call)));
  const before = gemma.adapters;
  let left = operations;
  let equal = 0;
  let aborted = 0;
  let unknown = 0;
  let loads = 0;
  const client = async () => {
    while (left-- > 0) {
      const i = below(chosen.length);
      const call = { gemma, question: chosen[i], random };
      const what = `${chosen[i].kind} with ${JSON.stringify(chosen[i].options)}`;
      try {
        const answer = await settles(what, below(4) === 0 ? behaviours.abort(call) : behaviours.read(call));
        if (answer === undefined) ++aborted;
        else (expectEqual(what, comparable(chosen[i].kind, answer), alone[i]), ++equal);
      } catch (error) {
        if (error.detail !== 'UNKNOWN_ADAPTER') throw error;
        ++unknown;
        ++left;
        await sleep(10);
      }
    }
  };
  const keeper = async (i) => {
    while (left > 0) {
      await settles('unloadAdapter', gemma.unloadAdapter(names[i]));
      if (below(2)) await sleep(below(5));
      for (;;) {
        const stop = new AbortController();
        const loading = gemma.loadAdapter(names[i], paths[i], { signal: stop.signal });
        if (below(3) === 0) setTimeout(() => stop.abort(new Error('mine')), below(4));
        try {
          await settles('loadAdapter', loading);
          break;
        } catch (error) {
          if (error.message !== 'mine') throw error;
        }
      }
      ++loads;
      await sleep(100 + below(400));
    }
  };
  await Promise.all([...Array.from({ length: 8 }, client), ...names.map((_, i) => keeper(i))]);
  expectEqual('what is loaded afterwards', JSON.stringify(gemma.adapters), JSON.stringify(before));
  for (const [i, call] of chosen.entries())
    expectEqual('afterwards', comparable(call.kind, await answerTo(gemma, call)), alone[i]);
  for (const name of names) await gemma.unloadAdapter(name);
  await settles('dispose', gemma.dispose());
  await rm(folder, { recursive: true });
  return `${equal} answers equal, ${aborted} aborted, ${unknown} found no adapter, ${loads} loaded meanwhile`;
}

// Code for a worker or a process: it calls reached() when the stage is reached, and goes on.
const PRELUDE = `
const { Gemma } = require(${JSON.stringify(root)});
const pictures = ${JSON.stringify(PICTURES)};
const ENDLESS = { raw: true, seed: 1, maxOutputTokens: 3000, stopSequences: [] };
const load = () => Gemma.load('demo', { contextSize: 4096 });
const image = [{ role: 'user', content: [{ type: 'image', image: pictures[2] }, { type: 'text', text: 'Describe.' }] }];
`;
const stages = {
  loading: 'reached(); await load();',
  loaded: 'await load(); reached(); setInterval(() => {}, 1000);',
  generating: 'const g = await load(); reached(); await g.generate("x", ENDLESS);',
  streaming: 'const g = await load(); reached(); for await (const part of g.stream("x", ENDLESS));',
  'reading a stream no more':
    'const g = await load(); const r = g.stream("x", ENDLESS)[Symbol.asyncIterator](); await r.next(); reached(); setInterval(() => {}, 1000);',
  tokenizing: 'const g = await load(); reached(); for (;;) await g.tokenize("word ".repeat(1000));',
  'computing logits':
    'const g = await load(); reached(); for (;;) await g.logits("a b c", { all: true, onRow: () => {} });',
  'encoding a picture':
    'const g = await Gemma.load("demo", { imageCache: { maxBytes: 0 } }); reached(); for (;;) await g.embedImage(pictures);',
  'answering about a picture':
    'const g = await load(); reached(); for (;;) await g.generate(image, { maxOutputTokens: 5 });',
  disposing: 'const g = await load(); g.generate("x", ENDLESS).catch(() => {}); reached(); await g.dispose();',
  'loading and disposing':
    'reached(); for (;;) { const g = await load(); g.generate("x", ENDLESS).catch(() => {}); await g.dispose(); }',
  'busy in JavaScript': 'const g = await load(); g.stream("x", ENDLESS).result; reached(); for (;;);',
  'measuring perplexity': 'const g = await load(); reached(); for (;;) await g.perplexity("word ".repeat(300));',
};

async function workers({ Gemma, operations, random }) {
  const gemma = await Gemma.load('demo');
  const ask = async () => comparable('generate', await gemma.generate('Tell me about stars.', { seed: 3 }));
  const alone = await ask();
  for (const [name, body] of Object.entries(stages)) {
    let left = operations;
    const client = async () => {
      while (left-- > 0) {
        const code = `${PRELUDE}const reached = () => require('node:worker_threads').parentPort.postMessage(0);(async () => {${body}})();`;
        const worker = new Worker(code, { eval: true });
        const ended = new Promise((resolve, reject) => worker.on('exit', resolve).on('error', reject));
        worker.on('message', () => setTimeout(() => void worker.terminate(), random() * 10));
        await settles(`a worker that is terminated while ${name}`, ended);
      }
    };
    await Promise.all([client(), client()]);
    expectEqual(`beside workers that are terminated while ${name}`, await ask(), alone);
  }
  await gemma.dispose();
  return `${operations} terminations at each of ${Object.keys(stages).length} stages`;
}

async function exits({ operations, random }) {
  const bodies = Object.entries(stages);
  let left = operations;
  const client = async () => {
    while (left-- > 0) {
      const [name, body] = bodies[left % bodies.length];
      // A worker's process.exit() ends the worker; busy JavaScript would never see the timer, so it exits at once.
      const exit =
        name === 'busy in JavaScript' ? 'process.exit(7)' : `setTimeout(() => process.exit(7), ${random() * 30})`;
      const code = `${PRELUDE}const reached = () => ${exit};(async () => {${body}})();`;
      const child = spawn(process.execPath, ['-e', code], { stdio: ['ignore', 'ignore', 'pipe'] });
      let stderr = '';
      child.stderr.on('data', (chunk) => (stderr += chunk));
      const end = new Promise((resolve) => child.on('close', (status, signal) => resolve(signal ?? status)));
      const how = await settles(`a process that exits while ${name}`, end);
      if (how !== 7)
        throw new SetupError(`a process that exits while ${name} ended with ${how}: ${stderr.slice(0, 2000)}`);
    }
  };
  await Promise.all([client(), client()]);
  return `${operations} exits, each with its own exit code`;
}

const kinds = { mixed, aborts, conversations, chats, adapters, workers, exits };

/** Runs kinds of stress one after another. Rejects at the first fault. */
export async function stress(names, { operations, minutes, seed }) {
  const entry = join(root, 'dist', 'index.js');
  if (!existsSync(entry)) throw new SetupError('build first: npm run build');
  const { Gemma } = createRequire(import.meta.url)(entry);
  for (const name of names) {
    const kind = kinds[name];
    if (!kind) throw new SetupError(`expected ${Object.keys(kinds).join(', ')}, found ${name}`);
    const loop = monitorEventLoopDelay({ resolution: 1 });
    loop.enable();
    const start = performance.now();
    const settings = { operations: operations ?? SHORT_RUN[name], minutes, random: randomFrom(seed) };
    const said = await kind({ Gemma, ...settings });
    loop.disable();
    const ms = (nanoseconds) => (nanoseconds / 1e6).toFixed(1);
    process.stdout.write(
      `${name}: ${said}; ${((performance.now() - start) / 1000).toFixed(0)} s; ` +
        `event loop late by ${ms(loop.percentile(99))} ms (99 %), ${ms(loop.max)} ms at most\n`,
    );
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main(async () => {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: { operations: { type: 'string' }, minutes: { type: 'string' }, seed: { type: 'string' } },
    });
    const seed = Number(values.seed ?? Date.now() % 1e6);
    const [operations, minutes] = [values.operations, values.minutes].map((text) => text && Number(text));
    process.stdout.write(`seed ${seed}\n`);
    await stress(positionals.length > 0 ? positionals : Object.keys(kinds), { operations, minutes, seed });
    process.exit(); // a hang that was reported must not keep the process
  });
}
