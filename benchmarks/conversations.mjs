// What the prefix cache saves: time to the first token of turns that begin like earlier ones, and prompt tokens of users who share a
// system prompt.
//
//   node benchmarks/conversations.mjs [model] [--rounds 5] [--tokens 2000] [--threads 2] [--peer]
//
// Each round has a text of its own, so that nothing is known of it. With --peer, llama.cpp's server answers the same messages in turn.
// Figures are medians with the lowest and the highest.
import { availableParallelism } from 'node:os';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { main, root } from '../scripts/steps.mjs';
import { startLlamaServer } from './llama-server.mjs';
import { spread, textOf } from './samples.mjs';

/** Milliseconds from the call to the first text, the answer, and what was counted. */
async function ask(gemma, messages) {
  const start = performance.now();
  let first;
  const stream = gemma.stream(messages, { temperature: 0, maxOutputTokens: 24 });
  for await (const part of stream) {
    if (part.text !== '') first ??= performance.now() - start;
  }
  const { text, usage } = await stream.result;
  return { ms: first ?? performance.now() - start, text, usage };
}

/** The same of llama.cpp's server. */
async function askPeer(peer, messages) {
  const start = performance.now();
  let first;
  let text = '';
  for await (const { choices } of peer.stream('/v1/chat/completions', { messages, temperature: 0, max_tokens: 24 })) {
    const piece = choices?.[0]?.delta?.content ?? '';
    if (piece !== '') first ??= performance.now() - start;
    text += piece;
  }
  return { ms: first ?? performance.now() - start, text };
}

await main(async () => {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      rounds: { type: 'string', default: '5' },
      tokens: { type: 'string', default: '2000' },
      threads: { type: 'string', default: String(availableParallelism()) },
      peer: { type: 'boolean', default: false },
    },
  });
  const threads = Number(values.threads);
  const { Gemma } = createRequire(import.meta.url)(join(root, 'dist', 'index.js'));
  const model = positionals[0] ?? Gemma.demoModel;
  const gemma = await Gemma.load(model, { contextSize: 4096, threads });
  const peer = values.peer
    ? await startLlamaServer(model, ['-c', '4096', '-np', '1', '-t', values.threads], (text) =>
        process.stderr.write(`${text}\n`),
      )
    : undefined;
  const words = Math.round(Number(values.tokens) * 0.97);
  const user = (content) => ({ role: 'user', content });
  const turns = { 'next turn': [], 'last question edited': [], 'answer again': [] };
  const times = [];
  const against = { 'first turn': [], 'next turn': [], 'last question edited': [], 'answer again': [] };
  const computed = [];
  await ask(gemma, [user('Hello')]); // what the first call sets up
  for (let round = 0; round < Number(values.rounds); ++round) {
    const first = [user(`${textOf(words, 2 * round + 1)}\n\nWhat is this text about?`)];
    const turn = await ask(gemma, first);
    times.push(turn.ms);
    const heard = [...first, { role: 'assistant', content: turn.text || 'Words.' }];
    if (peer) against['first turn'].push(turn.ms / (await askPeer(peer, first)).ms);
    const measure = async (name, messages) => {
      const { ms } = await ask(gemma, messages);
      turns[name].push((100 * ms) / turn.ms);
      if (peer) against[name].push(ms / (await askPeer(peer, messages)).ms);
    };
    await measure('next turn', [...heard, user('Which colours does it name?')]);
    await measure('last question edited', [...heard, user('How many numbers does it name?')]);
    await measure('answer again', [...heard, user('How many numbers does it name?')]);

    const system = { role: 'system', content: textOf(Math.round(words * 0.75), 2 * round + 2) };
    const before = gemma.stats();
    const together = Array.from({ length: 16 }, (_, i) =>
      ask(gemma, [system, user(`Question ${i}: ${textOf(9, i)}?`)]),
    );
    const usages = (await Promise.all(together)).map(({ usage }) => usage);
    const after = gemma.stats();
    const shared = await gemma.countTokens([system, user('Question')]);
    const distinct = shared + usages.reduce((sum, { inputTokens }) => sum + inputTokens - shared, 0);
    const read = after.promptTokens - before.promptTokens - after.cachedPromptTokens + before.cachedPromptTokens;
    computed.push(read / distinct);
  }
  process.stdout.write(`first turn: ${spread(times, 1)} ms to the first token\n`);
  for (const [name, percents] of Object.entries(turns))
    process.stdout.write(`${name}: ${spread(percents, 1)} % of it\n`);
  process.stdout.write(`16 users, one system prompt: computed ${spread(computed, 3)} times the distinct tokens\n`);
  for (const [name, ratios] of Object.entries(against)) {
    if (peer) process.stdout.write(`${name}: ${spread(ratios, 3)} of llama-server's time\n`);
  }
  await peer?.stop();
  await gemma.dispose();
});
