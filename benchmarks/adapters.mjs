// What adapters cost, with random weights of PEFT's layout on all linear layers: decode and a prompt with an adapter against the model
// itself, and eight requests with eight adapters against eight with one.
//
//   node benchmarks/adapters.mjs [--model F.gguf] [--rank 16] [--type f32] [--rounds 7] [--threads 2] [--decode 64] [--isa NAME]
//
// What is compared takes turns in one process, in another order in each round; ratios are of the same round: median (lowest to highest).
// A decode's time is the median of the times between its tokens, because others on the machine disturb some of them and so the mean.
import { mkdtemp, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { loadavg, tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { parseArgs } from 'node:util';
import { fetchTestModel } from '../scripts/fetch-test-model.mjs';
import { writeRandomAdapter } from '../scripts/random-adapter.mjs';
import { main, root } from '../scripts/steps.mjs';
import { spread } from './samples.mjs';

const N_ADAPTERS = 8;
const PROMPT_TOKENS = 512;
// Tokens before a decode is at its full speed: what makes logits cheap is built during the first ones.
const WARM_UP = 24;
// The ends of a turn and of a text would end a measurement.
const NO_END = { 1: -100, 106: -100 };
const log = (line) => process.stderr.write(`${line}\n`);

// Ids from the whole vocabulary, <bos> in front.
function ids(count, seed) {
  let state = seed;
  return Array.from({ length: count }, (_, i) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return i === 0 ? 2 : 1000 + (state % 200_000);
  });
}

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

await main(async () => {
  const { values } = parseArgs({
    options: {
      model: { type: 'string' },
      rank: { type: 'string', default: '16' },
      type: { type: 'string', default: 'f32' },
      rounds: { type: 'string', default: '7' },
      threads: { type: 'string', default: '2' },
      decode: { type: 'string', default: '64' },
      isa: { type: 'string' },
    },
  });
  const model = values.model ?? (await fetchTestModel(log));
  const rank = Number(values.rank);
  const { Gemma } = createRequire(import.meta.url)(join(root, 'dist', 'index.js'));
  const folder = await mkdtemp(join(tmpdir(), 'gemma-adapters-'));
  try {
    const { config } = await Gemma.inspect(model);
    const adapters = {};
    for (let i = 0; i < N_ADAPTERS; ++i) {
      adapters[`a${i}`] = join(folder, `a${i}`);
      // B is small, so that the model goes on to write about as it did.
      await writeRandomAdapter(adapters[`a${i}`], config, { rank, type: values.type, seed: i + 1, size: 1e-3 });
    }
    const gemma = await Gemma.load(model, {
      contextSize: 1024,
      prefixCacheBytes: 0,
      mmproj: false,
      threads: Number(values.threads),
      ...(values.isa && { isa: values.isa }),
      adapters,
    });
    const names = Object.keys(adapters);
    const options = (adapter) => ({
      temperature: 0,
      draft: false,
      logitBias: NO_END,
      ...(adapter && { adapter }),
    });
    // Milliseconds between the tokens of requests that run together, one for each of `of`.
    const decode = async (of) => {
      const all = await Promise.all(
        of.map(async (adapter, i) => {
          const times = [];
          const stream = gemma.stream(ids(16, 100 + i), {
            ...options(adapter),
            maxOutputTokens: WARM_UP + Number(values.decode),
          });
          for await (const { tokens } of stream) times.push(...tokens.map(() => performance.now()));
          return times.slice(WARM_UP).map((time, j) => time - times[WARM_UP + j - 1]);
        }),
      );
      return median(all.flat());
    };
    const prompt = async (adapter) => {
      const { timings } = await gemma.generate(ids(PROMPT_TOKENS, 7), { ...options(adapter), maxOutputTokens: 1 });
      return (1000 * PROMPT_TOKENS) / timings.prefillTokensPerSecond;
    };
    const eight = (pick) => decode(names.map(pick));
    const measured = {
      plain: () => decode([undefined]),
      adapted: () => decode(['a0']),
      plainPrompt: () => prompt(undefined),
      adaptedPrompt: () => prompt('a0'),
      eightPlain: () => eight(() => undefined),
      eightWithOne: () => eight(() => 'a0'),
      eightWithEight: () => eight((name) => name),
    };
    const found = Object.fromEntries(Object.keys(measured).map((name) => [name, []]));
    const order = Object.entries(measured);
    for (const [, once] of order) await once();
    for (let round = 0; round < Number(values.rounds); ++round) {
      for (const [name, once] of round % 2 === 0 ? order : order.toReversed()) found[name].push(await once());
      log(`round ${round + 1}: ${order.map(([name]) => `${name} ${found[name].at(-1).toFixed(2)} ms`).join(', ')}`);
    }
    const ratio = (a, b) => spread(found[a].map((value, i) => value / found[b][i]));
    const line = (text) => process.stdout.write(`${text}\n`);
    const { isa, threads } = gemma.info;
    line(
      `${basename(model)}, rank ${rank} (${values.type}, ${(gemma.adapters[0].bytes / 2 ** 20).toFixed(1)} MiB in memory), ` +
        `${threads} threads, ${isa}, load ${loadavg()[0].toFixed(1)}`,
    );
    line(`  decode: ${ratio('adapted', 'plain')} of the time without, ${spread(found.plain)} ms for a token`);
    line(`  prompt of ${PROMPT_TOKENS}: ${ratio('adaptedPrompt', 'plainPrompt')} of the time without`);
    line(`  eight requests with one adapter: ${ratio('eightWithOne', 'eightPlain')} of the time without`);
    line(`  eight adapters: ${ratio('eightWithOne', 'eightWithEight')} times the tokens per second of one`);
    await gemma.dispose();
  } finally {
    await rm(folder, { recursive: true });
  }
});
