// One measurement of the built package in a process of its own: load, one warm-up, prefill, decode. Prints one JSON object.
//
//   node benchmarks/measure.mjs '{"model":"F.gguf","prompt":512,"decode":128,"context":0,"threads":2}'
//
// "fill": N then evaluates a prompt of N tokens, to see the memory a full cache takes.
import { readFileSync } from 'node:fs';

const { Gemma } = await import('../dist/index.mjs');

const { model, prompt, decode, context = 0, fill = 0, threads, isa } = JSON.parse(process.argv[2]);
const contextSize = Math.max(prompt, context, fill) + decode + 64;
const gemma = await Gemma.load(model, {
  contextSize,
  ...(threads && { threads }),
  ...(isa && { isa }),
});
const loadMemory = memory();

// Ids from the whole vocabulary, so that reading the embedding is not easier than for a text. <bos> in front, as in every prompt.
function ids(count, seed) {
  let state = seed;
  return Array.from({ length: count }, (_, i) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return i === 0 ? 2 : 1000 + (state % 200_000);
  });
}
const greedy = (maxOutputTokens) => ({ temperature: 0, maxOutputTokens });

await gemma.generate(ids(prompt, 1), greedy(8));

const first = await gemma.generate(ids(prompt, 2), greedy(1));
// The end token would end the measurement early; asking again with another prompt is cheaper than to forbid it.
let second;
for (let seed = 3; seed < 20; seed++) {
  second = await gemma.generate(ids(context + 1, seed), greedy(decode + 1));
  if (second.usage.outputTokens > decode / 2) break;
}

const memoryAfterRun = memory();
if (fill > 0) await gemma.generate(ids(fill, 1), greedy(1));

const { isa: usedIsa, threads: usedThreads, memory: plan } = gemma.info;
const result = {
  loadMs: gemma.info.loadMs,
  isa: usedIsa,
  threads: usedThreads,
  prefillTokensPerSecond: first.timings.prefillTokensPerSecond,
  decodeTokensPerSecond: second.timings.decodeTokensPerSecond,
  decodedTokens: second.usage.outputTokens - 1,
  memoryAfterLoad: loadMemory,
  memoryAfterRun,
  ...(fill > 0 && { memoryFilled: memory() }),
  plan,
};
await gemma.dispose();
process.stdout.write(`${JSON.stringify(result)}\n`);

/** Bytes: resident in all, of them mapped from files (the weights), and private. The parts are known on Linux only. */
function memory() {
  const resident = process.memoryUsage.rss();
  try {
    const status = readFileSync('/proc/self/status', 'utf8');
    const field = (name) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1]) * 1024;
    return { resident, mapped: field('RssFile'), private: field('RssAnon') };
  } catch {
    return { resident };
  }
}
