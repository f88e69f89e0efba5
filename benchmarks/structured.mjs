// What a schema costs: tokens per second of answers under one, of plain answers and, with --peer, of llama.cpp's server under its own
// grammar; the time before an answer under a schema that is new, and under one that is known; several schemas side by side.
//
//   node benchmarks/structured.mjs [model] [--rounds 5] [--tokens 200] [--threads 2] [--peer]
//
// All run in turn within a round. Figures are medians with the lowest and the highest.
import { availableParallelism } from 'node:os';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { main, root } from '../scripts/steps.mjs';
import { startLlamaServer } from './llama-server.mjs';
import { spread } from './samples.mjs';

const PROMPT = 'Describe the people of a small village: names, ages, trades, and what they like.';
const SEQUENCES = 8;

/** Long enough for any number of tokens; `variant` makes another schema of the same form. */
function villageSchema(variant = 0) {
  const text = { type: 'string', minLength: 3, maxLength: 40 + variant };
  const person = {
    type: 'object',
    properties: {
      name: text,
      age: { type: 'integer', minimum: 0, maximum: 120 },
      trade: { enum: ['baker', 'smith', 'farmer', 'teacher', 'doctor', `trade ${variant}`] },
      likes: { type: 'array', items: text, minItems: 2, maxItems: 5 },
      married: { type: 'boolean' },
    },
    required: ['name', 'age', 'trade', 'likes', 'married'],
    additionalProperties: false,
  };
  return {
    type: 'object',
    properties: { village: text, people: { type: 'array', items: person, minItems: 40 } },
    required: ['village', 'people'],
    additionalProperties: false,
  };
}

const say = (name, values, unit, digits) => process.stdout.write(`${name}: ${spread(values, digits)} ${unit}\n`);

await main(async () => {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      rounds: { type: 'string', default: '5' },
      tokens: { type: 'string', default: '200' },
      threads: { type: 'string', default: String(availableParallelism()) },
      peer: { type: 'boolean', default: false },
    },
  });
  const [rounds, tokens, threads] = [values.rounds, values.tokens, values.threads].map(Number);
  const { Gemma } = createRequire(import.meta.url)(join(root, 'dist', 'index.js'));
  const model = positionals[0] ?? Gemma.demoModel;
  const gemma = await Gemma.load(model, { contextSize: 4096, threads, mmproj: false });
  const peer = values.peer
    ? await startLlamaServer(model, ['-c', '4096', '-np', '1', '-t', String(threads)], (text) =>
        process.stderr.write(`${text}\n`),
      )
    : undefined;

  // Guesses from the prompt are left to both or to none: here to none, as the peer has none by default.
  const ours = async (options) => {
    const result = await gemma.generate(PROMPT, { maxOutputTokens: tokens, draft: false, ...options });
    return { rate: result.timings.decodeTokensPerSecond, tokens: result.usage.outputTokens };
  };
  const theirs = async (options) => {
    const body = { messages: [{ role: 'user', content: PROMPT }], max_tokens: tokens, cache_prompt: true, ...options };
    const { timings } = await peer.post('/v1/chat/completions', body);
    return { rate: timings.predicted_per_second, tokens: timings.predicted_n };
  };
  const kinds = {
    greedy: [{ temperature: 0 }, { temperature: 0 }],
    sampled: [
      { temperature: 1, topK: 64, topP: 0.95 },
      { temperature: 1, top_k: 64, top_p: 0.95, min_p: 0 },
    ],
  };
  const schema = villageSchema();
  const responseFormat = { response_format: { type: 'json_schema', json_schema: { schema } } };
  await ours({ temperature: 0 });
  await ours({ temperature: 0, schema });
  for (const [kind, [own, other]] of Object.entries(kinds)) {
    const [plain, guided, against, theirGuided, theirPlain] = [[], [], [], [], []];
    for (let round = 0; round < rounds; ++round) {
      const seeded = { ...own, seed: round + 1 };
      const without = await ours(seeded);
      const under = await ours({ ...seeded, schema });
      plain.push(without.rate);
      guided.push(under.rate / without.rate);
      if (!peer) continue;
      const seed = round + 1;
      const theirsUnder = await theirs({ ...other, seed, ...responseFormat });
      theirPlain.push((await theirs({ ...other, seed })).rate);
      theirGuided.push(theirsUnder.rate);
      against.push(under.rate / theirsUnder.rate);
    }
    say(`${kind}: plain`, plain, 'tokens/s', 1);
    say(`${kind}: under a schema`, guided, 'times plain');
    if (!peer) continue;
    say(`${kind}: llama-server plain`, theirPlain, 'tokens/s', 1);
    say(`${kind}: llama-server under its grammar`, theirGuided, 'tokens/s', 1);
    say(`${kind}: under a schema`, against, "times llama-server's");
  }
  await peer?.stop();

  const together = async (schemas) => {
    const start = performance.now();
    const answers = await Promise.all(
      Array.from({ length: SEQUENCES }, (_, i) =>
        gemma.generate(PROMPT, {
          maxOutputTokens: tokens,
          draft: false,
          seed: i + 1,
          ...(schemas && { schema: villageSchema(i) }),
        }),
      ),
    );
    const count = answers.reduce((sum, { usage }) => sum + usage.outputTokens, 0);
    return (1000 * count) / (performance.now() - start);
  };
  await together(true);
  const side = [];
  for (let round = 0; round < rounds; ++round) {
    const plain = await together(false);
    side.push((await together(true)) / plain);
  }
  say(`${SEQUENCES} sequences, each with a schema of its own`, side, 'times as fast as without');

  const one = async (options) => {
    const start = performance.now();
    await gemma.generate(PROMPT, { maxOutputTokens: 1, ...options });
    return performance.now() - start;
  };
  const [fresh, known] = [[], []];
  for (let round = 0; round < rounds; ++round) {
    const plain = await one({});
    const next = villageSchema(1000 + round);
    fresh.push((await one({ schema: next })) - plain);
    known.push((await one({ schema: next })) - plain);
  }
  say('a new schema', fresh, 'ms more before the first token', 1);
  say('a known schema', known, 'ms more before the first token', 1);
  await gemma.dispose();
});
