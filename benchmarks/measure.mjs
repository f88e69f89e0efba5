// One measurement of the built package in a process of its own. Prints one JSON object.
//
//   node benchmarks/measure.mjs '{"task":"decode","model":"F.gguf","prompt":512,"decode":128,"threads":2}'
//
// Tasks and what they take besides model, threads, isa and device:
//   rates      prompt, decode            tokens per second of prefill and decode, 0 leaves one out
//   decodeAt   context, portions, tokens tokens per second of portions of a decode after `context` positions
//   batch      sequences, decode         of one sequence, and of several at once together
//   draft      text, decode, rounds      of plain decode and of decode with prompt lookup, alternately
//   complete   text, context             the first token of an answer, printed as text
//   fill       context                   peak of memory with a full cache (the caller looks at this process)
//   tokenize   file, rounds              bytes per second
//   image      mmproj, file              milliseconds of one image, of five crops, of a first and a second question
import { readFileSync } from 'node:fs';

const { Gemma } = await import('../dist/index.mjs');

const { task, model, threads, isa, device = 'cpu', ...settings } = JSON.parse(process.argv[2]);
// Random prompts make a model repeat itself, and drafting would then measure that.
const greedy = (maxOutputTokens) => ({ temperature: 0, maxOutputTokens, draft: false });
// Tokens before a decode is at its full speed: what makes logits cheap is built during the first ones.
const WARM_UP = 24;

// Without a prefix cache: what is measured is computed.
function load(contextSize) {
  return Gemma.load(model, {
    mmproj: false,
    contextSize,
    device,
    prefixCacheBytes: 0,
    ...(threads && { threads }),
    ...(isa && { isa }),
  });
}

// Ids from the whole vocabulary, so that reading the embedding is not easier than for a text. <bos> in front, as in every prompt.
function ids(count, seed) {
  let state = seed;
  return Array.from({ length: count }, (_, i) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return i === 0 ? 2 : 1000 + (state % 200_000);
  });
}

// When each token came, in milliseconds. The end token would end the measurement early: one prompt after the other until one
// gives enough tokens, which is cheaper than to forbid that token.
async function decodeTimes(gemma, length, tokens, enough = tokens) {
  for (let seed = 3; seed < 20; seed++) {
    const times = [];
    for await (const part of gemma.stream(ids(length, seed), greedy(tokens))) {
      const now = performance.now();
      for (let i = 0; i < part.tokens.length; i++) times.push(now);
    }
    if (times.length >= enough) return times;
  }
  throw new Error('the model ends all its answers early');
}

const tasks = {
  async rates({ prompt, decode }) {
    const gemma = await load(Math.max(prompt, 16) + Math.max(decode, WARM_UP) + 64);
    await decodeTimes(gemma, Math.max(prompt, 16), WARM_UP);
    const result = { isa: gemma.info.isa, threads: gemma.info.threads };
    if (prompt > 0) {
      result.prefill = (await gemma.generate(ids(prompt, 2), greedy(1))).timings.prefillTokensPerSecond;
    }
    for (let seed = 3; decode > 0 && seed < 20; seed++) {
      const { usage, timings } = await gemma.generate(ids(1, seed), greedy(decode + 1));
      result.decode = timings.decodeTokensPerSecond;
      if (usage.outputTokens > decode / 2) break;
    }
    return result;
  },

  async decodeAt({ context, portions, tokens }) {
    const gemma = await load(context + portions * tokens + WARM_UP + 8);
    const times = await decodeTimes(gemma, context, WARM_UP + portions * tokens, WARM_UP + tokens);
    const rates = [];
    for (let at = WARM_UP - 1; at + tokens < times.length; at += tokens)
      rates.push((1000 * tokens) / (times[at + tokens] - times[at]));
    return { rates };
  },

  async batch({ sequences, decode }) {
    const gemma = await load(decode + 64);
    await decodeTimes(gemma, 16, WARM_UP);
    const times = await decodeTimes(gemma, 16, decode, decode / 2);
    const one = (1000 * (times.length - 1)) / (times.at(-1) - times[0]);
    // Of all together: between the last one's first token and the first one's last.
    const all = await Promise.all(
      Array.from({ length: sequences }, async (_, i) => {
        const seen = [];
        for await (const part of gemma.stream(ids(16, 100 + i), greedy(decode))) {
          seen.push({ at: performance.now(), tokens: part.tokens.length });
        }
        return seen;
      }),
    );
    const from = Math.max(...all.map((seen) => seen[0].at));
    const to = Math.min(...all.filter((seen) => seen.length > decode / 4).map((seen) => seen.at(-1).at));
    const between = all.flat().filter(({ at }) => at > from && at <= to);
    const count = between.reduce((sum, { tokens }) => sum + tokens, 0);
    return { one, all: (1000 * count) / (to - from) };
  },

  async draft({ text, decode, rounds }) {
    const gemma = await load(8192);
    const rate = async (options) => {
      const { timings, tokens } = await gemma.generate(text, { raw: true, ...greedy(decode), ...options });
      return { rate: timings.decodeTokensPerSecond, tokens };
    };
    await rate({});
    const plain = [];
    const drafted = [];
    for (let round = 0; round < rounds; round++) {
      const a = await rate({});
      const b = await rate({ draft: 'prompt-lookup' });
      if (a.tokens.join() !== b.tokens.join()) throw new Error('drafting changed the tokens');
      plain.push(a.rate);
      drafted.push(b.rate);
    }
    return { plain, drafted };
  },

  async complete({ text, context }) {
    const gemma = await load(context);
    const result = await gemma.generate(text, { raw: true, ...greedy(1) });
    process.stdout.write(`${result.text || '.'}\n`);
  },

  async fill({ context }) {
    const gemma = await load(context);
    await gemma.generate(ids(context - 8, 1), greedy(8));
    const { contextSize, memory } = gemma.info;
    return { contextSize, plan: memory, kvBytesResident: gemma.stats().kvBytesResident };
  },

  async image({ mmproj, file }) {
    const gemma = await Gemma.load(model, {
      device,
      mmproj,
      contextSize: 2048,
      ...(threads && { threads }),
      ...(isa && { isa }),
    });
    const noise = (width, height) => {
      let state = width;
      const data = new Uint8Array(width * height * 3);
      for (let i = 0; i < data.length; i++) {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        data[i] = state >>> 24;
      }
      return { data, width, height };
    };
    const timed = async (work) => {
      const start = performance.now();
      const result = await work();
      return { ms: performance.now() - start, result };
    };
    await gemma.embedImage(noise(100, 100)); // weights to 8 bits
    const one = await timed(() => gemma.embedImage(file));
    const five = await timed(() => gemma.embedImage(noise(2000, 500), { panAndScan: true }));
    if (five.result.crops.length !== 4) throw new Error(`expected 4 crops, found ${five.result.crops.length}`);
    const picture = noise(300, 200);
    const ask = (text) => {
      const content = [
        { type: 'image', image: picture },
        { type: 'text', text },
      ];
      return timed(() => gemma.generate([{ role: 'user', content }], greedy(1)));
    };
    const first = await ask('What is this?');
    const second = await ask('Which colours does it have?');
    const { isa } = gemma.info;
    return { isa, ms: one.ms, fiveMs: five.ms, firstQuestionMs: first.ms, secondQuestionMs: second.ms };
  },

  async tokenize({ file, rounds }) {
    const text = readFileSync(file, 'utf8');
    const bytes = Buffer.byteLength(text);
    const gemma = await load(512);
    const rates = [];
    let tokens = 0;
    for (let round = 0; round < rounds; round++) {
      const start = performance.now();
      tokens = (await gemma.tokenize(text)).length;
      rates.push((1000 * bytes) / (performance.now() - start));
    }
    return { tokens, rates };
  },
};

const result = await tasks[task](settings);
// What is still loaded ends with the process.
process.stdout.write(result ? `${JSON.stringify(result)}\n` : '', () => process.exit(0));
