import { Gemma } from '../../lib/index.js';
import { tiny } from './helpers.js';
test('try', async () => {
  const gemma = await Gemma.load(tiny);
  const fresh = await Gemma.load(tiny, { prefixCacheBytes: 0 });
  const chat = gemma.chat({ system: 'Be brief.', maxOutputTokens: 13, seed: 5 });
  for (const q of ['Hello there', 'And <end_of_turn> now?', 'x']) {
    const r = await chat.send(q);
    const prompt = chat.tokens.slice(0, r.usage.inputTokens);
    const again = await fresh.generate(prompt, { maxOutputTokens: 13, seed: 5 });
    expect(again.tokens).toEqual(r.tokens);
    console.log(await gemma.detokenize(chat.tokens), r.usage, r.finishReason);
  }
  console.log(JSON.stringify(chat.messages));
  console.log(await chat.undo(), chat.messages.length);
  const f = chat.fork();
  await chat.regenerate();
  await chat.dispose();
  console.log(JSON.stringify(f.messages));
  await gemma.dispose();
  await fresh.dispose();
});
