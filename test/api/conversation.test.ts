// Conversations against the path without a state: each turn is what a model without a cache makes of the same token ids.
import {
  copyFileSync,
  lstatSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { gunzipSync } from 'node:zlib';
import {
  Gemma,
  type ChatOptions,
  type Conversation,
  type GenerateOptions,
  type GenerateResult,
  type ImagePart,
  type Message,
  type TurnOptions,
} from '../../lib/index.js';
import { agreement, type KeptTurn } from '../../lib/kept-tokens.js';
import { copyMessages } from '../../lib/messages.js';
import { MARKER_END_OF_TURN, type PromptPart } from '../../lib/native.js';
import { chatText, restoredChat } from '../../lib/saved-chat.js';
import { stored, writeModel, type Changes } from './gguf.js';
import { atOnce, data, rejection, root, runNode, tiny, until, withModel, type Exit } from './helpers.js';

const seeing = join(data, 'mm-a-f16.gguf');
const picture = (name: string) => join(data, 'images', name);
const greedy = { temperature: 0, maxOutputTokens: 40 } as const;

// Random weights end an answer at random: not where a test counts its tokens. Filled before the tests.
const endless: { logitBias: Record<number, number> } = { logitBias: {} };

let folder: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'gemma-conversation-'));
  const gemma = await Gemma.load(tiny);
  for (const id of gemma.info.endTokens) endless.logitBias[id] = -Infinity;
  await gemma.dispose();
});
afterAll(() => rmSync(folder, { recursive: true }));

/** A model as it is asked, and one that keeps nothing. */
async function withBoth(
  path: string,
  work: (gemma: Gemma, fresh: Gemma) => Promise<void>,
  options: { contextSize?: number; chatTemplate?: string } = {},
): Promise<void> {
  const gemma = await Gemma.load(path, options);
  const fresh = await Gemma.load(path, { ...options, prefixCacheBytes: 0 });
  try {
    await work(gemma, fresh);
  } finally {
    await gemma.dispose();
    await fresh.dispose();
  }
}

/** The ids of the prompt of the last answer. */
function promptOf(chat: Conversation, { usage }: GenerateResult): number[] {
  return chat.tokens.slice(0, usage.inputTokens);
}

/** Asks, and compares with the other model. */
async function ask(
  fresh: Gemma,
  chat: Conversation,
  said: Parameters<Conversation['send']>[0],
  options: TurnOptions,
  images: GenerateOptions['images'] = [],
): Promise<GenerateResult> {
  const result = await chat.send(said, options);
  const own = Object.entries(options).filter(([name]) => name !== 'prefill' && name !== 'replace');
  const expected = await fresh.generate(promptOf(chat, result), {
    ...Object.fromEntries(own),
    images,
    onOverflow: 'truncate',
  });
  expect(result.tokens).toEqual(expected.tokens);
  expect(result.text).toBe(expected.text);
  return result;
}

async function textOf(gemma: Gemma, chat: Conversation): Promise<string> {
  return gemma.detokenize(chat.tokens);
}

async function idsOf(gemma: Gemma, messages: Message[]): Promise<number[]> {
  return (await gemma.logits(messages, { data: false })).tokens;
}

describe('turns', () => {
  test('each goes on where the last one ended, with the ids it had', async () => {
    await withBoth(tiny, async (gemma, fresh) => {
      const options = { ...endless, maxOutputTokens: 13 };
      const chat = gemma.chat({ system: ' Be brief. ', ...options });
      const first = await ask(fresh, chat, 'Hello', { ...options, seed: 5 });
      const before = chat.tokens;
      expect(promptOf(chat, first)).toEqual(
        await idsOf(gemma, [
          { role: 'system', content: ' Be brief. ' },
          { role: 'user', content: 'Hello' },
        ]),
      );
      expect(before.slice(first.usage.inputTokens)).toEqual(first.tokens); // ended by maxOutputTokens
      const second = await ask(fresh, chat, 'And <end_of_turn> now?', { ...options, seed: 6 });
      expect(promptOf(chat, second).slice(0, before.length)).toEqual(before);
      expect(await gemma.detokenize(promptOf(chat, second).slice(before.length))).toBe(
        '<end_of_turn>\n<start_of_turn>user\nAnd <end_of_turn> now?<end_of_turn>\n<start_of_turn>model\n',
      );
      expect(chat.messages).toEqual([
        { role: 'system', content: ' Be brief. ' },
        { role: 'user', content: 'Hello' },
        { role: 'assistant', content: first.text },
        { role: 'user', content: 'And <end_of_turn> now?' },
        { role: 'assistant', content: second.text },
      ]);
      // The text alone has other ids: what was sampled is not how it would be cut.
      expect((await idsOf(gemma, chat.messages.slice(0, 4))).length).not.toBe(second.usage.inputTokens);
    });
  });

  test('answers that end by themselves, at a stop sequence, or with a prefill', async () => {
    await withBoth('demo', async (gemma, fresh) => {
      const chat = gemma.chat(greedy);
      const question = 'What is the capital of France?';
      const { text, tokens, finishReason } = await ask(fresh, chat, question, greedy);
      expect([text, finishReason]).toEqual(['The capital of France is Paris.', 'stop']);
      expect(gemma.info.endTokens).toContain(tokens.at(-1));
      expect(chat.tokens).toEqual([
        ...(await idsOf(gemma, [{ role: 'user', content: question }])),
        ...tokens.slice(0, -1),
      ]);

      const stopped = await ask(fresh, chat, question, { ...greedy, replace: true, stopSequences: ['ance is'] });
      expect(stopped.text).toBe('The capital of Fr');
      expect((await textOf(gemma, chat)).endsWith('model\nThe capital of Fr')).toBe(true);
      await ask(fresh, chat, question, greedy);
      expect(await textOf(gemma, chat)).toContain('The capital of Fr<end_of_turn>\n<start_of_turn>user\nWhat');

      const begun = await ask(fresh, chat, question, { ...greedy, replace: true, prefill: ' The capital of \n' });
      expect(begun.text).toBe(' France is Paris.');
      expect(chat.messages.at(-1)).toEqual({ role: 'assistant', content: `The capital of${begun.text}` });
      const messages: Message[] = [
        { role: 'user', content: question },
        { role: 'assistant', content: 'The capital of France is' },
      ];
      expect((await ask(fresh, chat, messages, greedy)).text).toBe(' Paris.');
      expect(chat.messages).toHaveLength(6);
      expect((await textOf(gemma, chat)).split('<start_of_turn>model\nThe capital of France is Paris.')).toHaveLength(
        3,
      );
      expect(await rejection(chat.send([{ role: 'assistant', content: [] }]))).toBeInstanceOf(TypeError);
    });
  });

  test('streams, and what their readers see', async () => {
    await withBoth(tiny, async (gemma, fresh) => {
      const chat = gemma.chat({ maxOutputTokens: 17, seed: 3 });
      const stream = chat.stream([{ type: 'text', text: 'Tell me' }]);
      let text = '';
      for await (const part of stream) text += part.text;
      const result = await stream.result;
      expect(text).toBe(result.text);
      expect(chat.messages.at(-1)).toEqual({ role: 'assistant', content: text });
      const { tokens } = await fresh.generate(promptOf(chat, result), { maxOutputTokens: 17, seed: 3 });
      expect(result.tokens).toEqual(tokens);
      const again = chat.regenerateStream({ seed: 4 });
      expect((await again.result).seed).toBe(4);
      expect(chat.messages).toHaveLength(2);
      expect(() => chat.stream('x', { maxOutputTokens: 0 })).toThrow(RangeError);
    });
  });

  test('with answers of a given form', async () => {
    await withBoth(tiny, async (gemma, fresh) => {
      const chat = gemma.chat({ maxOutputTokens: 40, seed: 1 });
      const choices = ['yes', 'no'] as const;
      const { object, tokens } = await ask(fresh, chat, 'Well?', { choices, seed: 1, maxOutputTokens: 40 });
      const typed: 'yes' | 'no' | undefined = (await chat.send('Well?', { choices })).object;
      expect(choices).toContain(object);
      expect(chat.messages.at(-1)).toEqual({ role: 'assistant', content: typed });
      const ids = chat.tokens;
      await ask(fresh, chat, 'And now?', { seed: 2, maxOutputTokens: 5 });
      expect(chat.tokens.slice(0, ids.length)).toEqual(ids);
      expect(ids.join(' ')).toContain(tokens.slice(0, -1).join(' '));
      const stream = chat.stream('An object?', { schema: { type: 'boolean' } });
      expect(typeof (await stream.result).object).toBe('boolean');
    });
  });

  test('a history, and messages said elsewhere', async () => {
    await withBoth(tiny, async (gemma, fresh) => {
      const history: Message[] = [
        { role: 'system', content: 'S' },
        { role: 'user', content: 'One' },
        { role: 'assistant', content: 'Two' },
      ];
      const chat = gemma.chat({ history });
      history.pop();
      await chat.append([
        { role: 'user', content: 'Three' },
        { role: 'assistant', content: 'Fo' },
      ]);
      expect(chat.tokens).toEqual([]);
      const result = await ask(fresh, chat, 'Five', { seed: 1, maxOutputTokens: 5 });
      expect(promptOf(chat, result)).toEqual(await idsOf(gemma, chat.messages.slice(0, -1)));
      expect(await chat.undo()).toEqual(
        chat.messages.length === 5
          ? [
              { role: 'user', content: 'Five' },
              { role: 'assistant', content: result.text },
            ]
          : [],
      );
      expect(await chat.undo()).toHaveLength(2);
      expect(await chat.undo()).toHaveLength(2);
      expect(await chat.undo()).toEqual([]);
      expect(chat.messages).toEqual([{ role: 'system', content: 'S' }]);
      expect(await rejection(chat.regenerate())).toMatchObject({ code: 'ERR_INVALID_ARGUMENT', detail: 'NO_QUESTION' });
    });
  });
});

describe('branches', () => {
  test('undo, another question, another answer, forks', async () => {
    await withBoth(tiny, async (gemma, fresh) => {
      const options = { maxOutputTokens: 11, seed: 2 };
      const chat = gemma.chat(options);
      await ask(fresh, chat, 'One', options);
      const [one, ids] = [chat.messages, chat.tokens];
      const second = await ask(fresh, chat, 'Two', options);
      const fork = chat.fork();
      // Other words in place of the last question.
      await ask(fresh, chat, 'Three', { ...options, replace: true });
      expect(chat.messages.slice(0, 2)).toEqual(one);
      expect(chat.messages).toHaveLength(4);
      expect(chat.tokens.slice(0, ids.length)).toEqual(ids);
      expect(fork.messages.slice(2)).toEqual([
        { role: 'user', content: 'Two' },
        { role: 'assistant', content: second.text },
      ]);
      // The same question again: another seed, another answer, the same prompt.
      const prompt = promptOf(fork, second);
      const again = await fork.regenerate({ seed: 9 });
      expect(promptOf(fork, again)).toEqual(prompt);
      expect(again.tokens).toEqual((await fresh.generate(prompt, { ...options, seed: 9 })).tokens);
      expect(await fork.regenerate()).not.toMatchObject({ seed: 2 });
      expect(await fork.undo()).toHaveLength(2);
      expect(fork.messages).toEqual(one);
      expect(fork.tokens).toEqual(ids);
      expect(chat.messages[2]).toEqual({ role: 'user', content: 'Three' });
    });
  });

  test('random ones', async () => {
    let random = 20261129;
    const below = (n: number) => {
      random = (Math.imul(random, 1103515245) + 12345) >>> 0;
      return (random >>> 8) % n;
    };
    await withBoth(
      tiny,
      async (gemma, fresh) => {
        const texts = ['a', 'Hello there', 'no\n\n', '<end_of_turn>', 'ümläut 你好', 'x'.repeat(97)];
        let turns = 0;
        for (let n = 0; n < 12; ++n) {
          const options: ChatOptions = { onOverflow: 'shift', ...(below(2) === 0 && { system: 'S' }) };
          const chats = [gemma.chat(options)];
          for (let step = 0; step < 14; ++step) {
            const chat = chats[below(chats.length)] as Conversation;
            const own: TurnOptions = { maxOutputTokens: 1 + below(23), seed: below(1000) };
            const text = texts[below(texts.length)] as string;
            const before = { messages: chat.messages, tokens: chat.tokens };
            const action = below(8);
            if (action === 0 && chats.length < 4) chats.push(chat.fork());
            else if (action === 1) await chat.undo();
            else if (action === 2) {
              const signal = AbortSignal.abort(new Error('too early'));
              expect(await rejection(chat.send(text, { ...own, signal }))).toMatchObject({ message: 'too early' });
              expect({ messages: chat.messages, tokens: chat.tokens }).toEqual(before);
            } else if (action === 3) {
              const stream = chat.stream(text, { ...own, ...endless, maxOutputTokens: 100 });
              for await (const part of stream) if (part.text !== '') break;
              await stream.result;
              expect({ messages: chat.messages, tokens: chat.tokens }).toEqual(before);
            } else {
              const replace = action === 4;
              const result = await ask(fresh, chat, text, { ...own, replace, ...(action === 5 && { prefill: 'ab ' }) });
              ++turns;
              expect(result.usage.inputTokens + (own.maxOutputTokens ?? 0)).toBeLessThanOrEqual(384);
              const { messages } = chat;
              expect(messages.at(-2)).toEqual({ role: 'user', content: text });
              const shown = await textOf(gemma, chat);
              expect(shown.split('<start_of_turn>user\n').length).toBeGreaterThanOrEqual(messages.length >> 1);
            }
          }
        }
        expect(turns).toBeGreaterThan(50);
      },
      { contextSize: 384 },
    );
  });
});

describe('what does not become part of a conversation', () => {
  const long: TurnOptions = { maxOutputTokens: 100, seed: 1, ...endless };

  async function expectUnchanged(chat: Conversation, work: () => Promise<void>): Promise<void> {
    const before = { messages: chat.messages, tokens: chat.tokens };
    await work();
    expect({ messages: chat.messages, tokens: chat.tokens }).toEqual(before);
  }

  test('a turn that is aborted, fails or is left', async () => {
    await withBoth(tiny, async (gemma, fresh) => {
      const chat = gemma.chat(long);
      await ask(fresh, chat, 'One', { ...long, maxOutputTokens: 3 });
      await expectUnchanged(chat, async () => {
        const abort = new AbortController();
        const reading = async () => {
          for await (const { text } of chat.stream('Two', { signal: abort.signal }))
            abort.abort(new Error(text && 'enough'));
        };
        expect(await rejection(reading())).toMatchObject({ message: 'enough' });
      });
      await expectUnchanged(chat, async () => {
        for await (const { text } of chat.stream('Two')) if (text !== '') break;
      });
      await expectUnchanged(chat, async () => {
        // The engine is done, the reader is not.
        const reader = chat.stream('Two', { maxOutputTokens: 5 })[Symbol.asyncIterator]();
        await reader.next();
        await until(() => gemma.stats().running === 0);
        await reader.return();
        const stalled = chat.stream('Two', { maxOutputTokens: 5, stallTimeoutMs: 1 });
        await stalled[Symbol.asyncIterator]().next();
        await chat.append([]);
      });
      await expectUnchanged(chat, async () => {
        const onProgress = () => {
          throw new Error('a callback');
        };
        expect(await rejection(chat.send('Two', { onProgress }))).toMatchObject({ message: 'a callback' });
      });
      await expectUnchanged(chat, async () => {
        expect(await rejection(chat.send('Two', { images: ['x.png'] }))).toMatchObject({
          code: 'ERR_UNSUPPORTED_INPUT',
        });
      });
      await expectUnchanged(chat, async () => {
        expect(await rejection(chat.regenerate({ maxOutputTokens: 1e6 }))).toMatchObject({ code: 'ERR_CONTEXT_FULL' });
        expect(await rejection(chat.append([{ role: 'user', contents: 'x' } as never]))).toBeInstanceOf(TypeError);
        expect(await rejection(chat.send(5 as never))).toBeInstanceOf(TypeError);
        expect(await rejection(chat.send([{ role: 'user', content: 'x' }], { images: ['x'] }))).toBeInstanceOf(
          TypeError,
        );
      });
      await ask(fresh, chat, 'Two', { ...long, maxOutputTokens: 3 });
      expect(chat.messages).toHaveLength(4);
    });
  });

  test('two at once happen one after the other', async () => {
    await withBoth(tiny, async (gemma, fresh) => {
      const chat = gemma.chat({ maxOutputTokens: 7 });
      const abort = new AbortController();
      const first = chat.send('One', { seed: 1 });
      const aborted = rejection(chat.send('Two', { seed: 2, signal: abort.signal }));
      const said = { role: 'user' as const, content: 'Three' };
      const third = chat.send(said, { seed: 3 });
      said.content = 'changed'; // too late
      const undone = chat.undo();
      const fourth = chat.send('Four', { seed: 4 });
      abort.abort(new Error('not that'));
      expect(await aborted).toMatchObject({ message: 'not that' });
      const [a, b] = [await first, await third];
      expect(await undone).toEqual([
        { role: 'user', content: 'Three' },
        { role: 'assistant', content: b.text },
      ]);
      const result = await fourth;
      expect(chat.messages.map(({ content }) => content)).toEqual(['One', a.text, 'Four', result.text]);
      const { tokens } = await fresh.generate(promptOf(chat, result), { maxOutputTokens: 7, seed: 4 });
      expect(result.tokens).toEqual(tokens);
      // A stream waits for its turn from when it is read.
      const stream = chat.stream('Five');
      await chat.send('Six');
      await stream.result;
      expect(chat.messages.map(({ content }) => content).filter((_, i) => i % 2 === 0)).toEqual([
        'One',
        'Four',
        'Six',
        'Five',
      ]);
    });
  });

  test('disposal', async () => {
    const gemma = await Gemma.load(tiny);
    const chat = gemma.chat({ maxOutputTokens: 2000, ...endless });
    const fork = chat.fork();
    const running = rejection(chat.send('One'));
    const waiting = rejection(chat.send('Two'));
    await until(() => gemma.stats().running > 0);
    await chat.dispose();
    for (const error of [await running, await waiting, await rejection(chat.send('x')), await rejection(chat.undo())]) {
      expect(error).toMatchObject({ code: 'ERR_DISPOSED' });
    }
    expect(() => chat.messages).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
    await fork.send('One', { maxOutputTokens: 3 });
    await gemma.dispose();
    expect(await rejection(fork.send('Two'))).toMatchObject({ code: 'ERR_DISPOSED' });
    expect(fork.messages).toHaveLength(2);
  });

  test('options that are wrong', async () => {
    const gemma = await Gemma.load(tiny);
    const wrong: [unknown, RegExp][] = [
      [{ sytem: 'x' }, /sytem: no such option; there are .*history/],
      [{ raw: true }, /raw: no such option/],
      [{ images: [] }, /images: no such option/],
      [{ system: 5 }, /system: expected a string/],
      [{ history: 'x' }, /history: expected an array/],
      [{ history: [{ role: 'user' }] }, /history\[0\]\.content/],
      [{ history: [{ role: 'system', content: 'x' }], system: 'y' }, /system: the history has/],
      [{ topK: -1 }, /topK/],
      [{ onOverflow: 'drop' }, /onOverflow: expected one of error, truncate, shift/],
      [
        { history: [{ role: 'user', content: Array.from({ length: 20_001 }, () => ({ type: 'text', text: '' })) }] },
        /at most 20000/,
      ],
    ];
    for (const [options, message] of wrong) expect(() => gemma.chat(options as ChatOptions)).toThrow(message);
    const chat = gemma.chat({ topK: 3 });
    expect(await rejection(chat.send('x', { prefill: 5 as never }))).toBeInstanceOf(TypeError);
    expect(await rejection(chat.send('x', { bos: false } as never))).toMatchObject({
      message: expect.stringMatching(/bos/),
    });
    expect((await chat.send('x', { ...endless, maxOutputTokens: 2, topK: undefined as never })).tokens).toHaveLength(2);
    await gemma.dispose();
  });
});

describe('a full context', () => {
  const options = { maxOutputTokens: 20, seed: 3, ...endless } as const;

  async function filled(chat: Conversation, n: number): Promise<void> {
    for (let i = 0; i < n; ++i) await chat.send(`Question ${i} ${'y'.repeat(20)}`, { ...options, seed: i });
  }

  test('is an error, or ends the answer', async () => {
    await withBoth(
      tiny,
      async (gemma, fresh) => {
        const long = { ...options, maxOutputTokens: 70 };
        const chat = gemma.chat(long);
        let error: unknown;
        while (error === undefined) {
          const asked = chat.send('Question', long);
          error = await asked.then(
            () => undefined,
            (reason: unknown) => reason,
          );
        }
        expect(error).toMatchObject({ code: 'ERR_CONTEXT_FULL' });
        const { usage, finishReason } = await ask(fresh, chat, 'Question', { ...long, onOverflow: 'truncate' });
        expect(finishReason).toBe('length');
        expect(usage.inputTokens + usage.outputTokens).toBe(256);
      },
      { contextSize: 256 },
    );
  });

  test('drops the oldest turns, whole', async () => {
    await withBoth(
      tiny,
      async (gemma, fresh) => {
        const chat = gemma.chat({ ...options, system: 'Stay.', onOverflow: 'shift' });
        const answers: GenerateResult[] = [];
        const all: Message[] = [];
        let dropped: Message[] = [];
        let shifts = 0;
        for (let i = 0; i < 20; ++i) {
          const said = `Question ${i} ${'y'.repeat(20)}`;
          const result = await ask(fresh, chat, said, { ...options, seed: i });
          answers.push(result);
          all.push({ role: 'user', content: said }, { role: 'assistant', content: result.text });
          dropped = [...dropped, ...(result.dropped ?? [])];
          if (result.dropped) {
            ++shifts;
            expect(result.usage.inputTokens).toBeLessThanOrEqual((320 - 20) * 0.75);
          }
          expect(chat.messages[0]).toEqual({ role: 'system', content: 'Stay.' });
          expect([...dropped, ...chat.messages.slice(1)]).toEqual(all);
          expect(dropped.length % 2).toBe(0);
        }
        expect(shifts).toBeGreaterThan(2);
        expect(shifts).toBeLessThan(10);
        // The answers that are left have the ids they were sampled with.
        const text = chat.tokens.join(' ');
        const left = answers.slice(dropped.length / 2);
        expect(left.length).toBeGreaterThan(1);
        for (const { tokens } of left) expect(text).toContain(tokens.join(' '));
        expect((await textOf(gemma, chat)).startsWith('<bos><start_of_turn>user\nStay.\n\nQuestion ')).toBe(true);
        const before = chat.messages;
        expect(await rejection(chat.send('z'.repeat(700)))).toMatchObject({ code: 'ERR_CONTEXT_FULL' });
        expect(chat.messages).toEqual(before);
        // What was dropped with a turn that failed is there again.
        const signal = AbortSignal.timeout(1e6);
        const onProgress = () => {
          throw new Error('a callback');
        };
        await rejection(chat.send('z'.repeat(150), { signal, onProgress }));
        expect(chat.messages).toEqual(before);
      },
      { contextSize: 320 },
    );
  });

  test('is summarised', async () => {
    await withBoth(
      tiny,
      async (gemma, fresh) => {
        const seen: { dropped: Message[]; tokens: number; contextSize: number }[] = [];
        const chat = gemma.chat({
          ...options,
          onOverflow: async ({ dropped, tokens, contextSize }) => {
            seen.push({ dropped, tokens, contextSize });
            const { text } = await gemma.generate([...dropped, { role: 'user', content: 'Sum up' }], {
              maxOutputTokens: 5,
              onOverflow: 'truncate',
            });
            return [
              { role: 'user', content: `Before: ${text}` },
              { role: 'assistant', content: 'Yes.' },
            ];
          },
        });
        let result: GenerateResult;
        let before: Message[];
        do {
          before = chat.messages;
          result = await ask(fresh, chat, `Question ${'y'.repeat(20)}`, options);
        } while (!result.dropped);
        expect(seen).toEqual([{ dropped: result.dropped, tokens: expect.any(Number), contextSize: 320 }]);
        expect(seen[0]?.tokens).toBeGreaterThan(300);
        expect(result.dropped).toEqual(before.slice(0, result.dropped.length));
        expect(chat.messages[1]).toEqual({ role: 'assistant', content: 'Yes.' });
        expect(chat.messages.slice(2, -2)).toEqual(before.slice(result.dropped.length));
        expect(await textOf(gemma, chat)).toMatch(/^<bos><start_of_turn>user\nBefore: [^]*model\nYes\.<end_of_turn>/);

        await filled(chat, 2);
        const failing = chat.fork();
        const thrown = new Error('no summary');
        const fill = async (onOverflow: ChatOptions['onOverflow']) => {
          for (;;) await failing.send('y'.repeat(60), { ...options, onOverflow: onOverflow as never });
        };
        const fail = async () => {
          throw thrown;
        };
        expect(await rejection(fill(fail))).toBe(thrown);
        const kept = failing.messages;
        expect(await rejection(fill((() => 'text') as never))).toMatchObject({
          message: expect.stringMatching(/^onOverflow: expected an array/),
        });
        expect(await rejection(fill(() => [{ role: 'user', content: 'x'.repeat(400) }]))).toMatchObject({
          code: expect.any(String),
        });
        const abort = new AbortController();
        const never = () => {
          abort.abort(new Error('no more'));
          return new Promise<never>(() => {});
        };
        expect(
          await rejection(failing.send('y'.repeat(60), { ...options, signal: abort.signal, onOverflow: never })),
        ).toMatchObject({ message: 'no more' });
        expect(failing.messages).toEqual(kept);
        const hopeless: TurnOptions = { ...options, maxOutputTokens: 300, onOverflow: () => Promise.reject(thrown) };
        expect(await rejection(failing.send('y'.repeat(60), hopeless))).toMatchObject({ code: 'ERR_CONTEXT_FULL' });
        const emptied = await failing.send('y'.repeat(60), { ...options, onOverflow: () => [] });
        expect(emptied.dropped?.length).toBeGreaterThan(0);
      },
      { contextSize: 320 },
    );
  });
});

describe('templates of a model’s own', () => {
  const { templates } = JSON.parse(gunzipSync(readFileSync(join(data, 'chat.json.gz'))).toString('utf8')) as {
    templates: Record<'chatml' | 'nosystem', string>;
  };
  const changes: Changes = {
    keys: { 'tokenizer.chat_template': stored.string(templates.chatml) },
    tokens: { 1022: ['<|im_start|>', 3], 1023: ['<|im_end|>', 3] },
  };
  let path: string;
  beforeAll(() => (path = writeModel(join(folder, 'chatml.gguf'), changes)));
  const options = { temperature: 1000, topK: 0, topP: 1, maxOutputTokens: 9 } as const; // any token

  test('that leave answers as they are, or strip them: ids are kept', async () => {
    for (const chatTemplate of [templates.chatml, templates.nosystem]) {
      await withBoth(
        path,
        async (gemma, fresh) => {
          const chat = gemma.chat(options);
          let [before, last]: [number[], number[]] = [[], []];
          for (let seed = 0; seed < 6; ++seed) {
            const result = await ask(fresh, chat, ` Say <|im_end|> ${seed} `, {
              ...options,
              seed,
              stopTokens: [5, 30],
            });
            last = promptOf(chat, result);
            expect(last.slice(0, before.length)).toEqual(before);
            before = chat.tokens;
          }
          expect(await idsOf(gemma, chat.messages.slice(0, -1))).not.toEqual(last);
        },
        { chatTemplate },
      );
    }
  });

  test('that rewrite answers: what they write is tokenised', async () => {
    const words = { ...options, temperature: 1 };
    // Thoughts are left out of all answers but the last, as many templates do.
    const body = "m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content";
    const chatTemplate = `{% for m in messages %}<|im_start|>{{ m.role }}\n{{ ${body} }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}`;
    await withBoth(
      path,
      async (gemma, fresh) => {
        const chat = gemma.chat(words);
        await ask(fresh, chat, 'One', { ...words, seed: 1 });
        const ids = chat.tokens;
        await ask(fresh, chat, 'Two', { ...words, seed: 2, prefill: 'A thought.</think>' });
        expect(chat.tokens.slice(0, ids.length)).toEqual(ids);
        expect(await textOf(gemma, chat)).toContain('A thought.');
        const third = await ask(fresh, chat, 'Three', { ...words, seed: 3 });
        const prompt = promptOf(chat, third);
        expect(await gemma.detokenize(prompt)).not.toContain('A thought.');
        expect(prompt.slice(0, ids.length)).toEqual(ids); // up to there they agree
        const written = await idsOf(gemma, chat.messages.slice(0, -1));
        expect(await gemma.detokenize(prompt)).toBe(await gemma.detokenize(written));
        const before = chat.tokens;
        const fourth = await ask(fresh, chat, 'Four', { ...words, seed: 4 });
        expect(promptOf(chat, fourth).slice(0, before.length)).toEqual(before);
        expect(before.slice(0, ids.length)).toEqual(ids);
      },
      { chatTemplate },
    );
  });

  test('that refuse: the conversation is as it was', async () => {
    const gemma = await Gemma.load(path, { chatTemplate: templates.nosystem });
    const chat = gemma.chat({ system: 'x' });
    expect(await rejection(chat.send('y'))).toMatchObject({ code: 'ERR_CHAT_TEMPLATE', detail: 'TEMPLATE_REFUSED' });
    expect(chat.messages).toEqual([{ role: 'system', content: 'x' }]);
    await gemma.dispose();
  });
});

test('which ids are taken', () => {
  const turn = (parts: PromptPart[], text: string, answer?: PromptPart[]): KeptTurn => ({
    parts,
    ids: new Int32Array(),
    firsts: [],
    answerIds: new Int32Array(),
    text,
    ...(answer && { answer }),
  });
  const turns = [turn([2, 'user\nHi'], ' Yes \n'), turn([1, '\nagain', -8], 'No', [-9, 'No'])];
  const cases: [PromptPart[], number, PromptPart[]][] = [
    [[2, 'user\nHi Yes \n', 1, '\nagain', -8, -9, 'No', 1], 2, [1]],
    [[2, 'user\n', 'H', '', 'i Yes', 1, '\nag', 'ain', -8, 'No', 'thing'], 2, ['thing']],
    [[2, 'user\nHiYes', 1, '\nagain', 8], 1, [1, '\nagain', 8]],
    [[2, 'user\nHi Yes', 3], 1, [3]],
    [[2, 'user\nHi Ye'], 0, [2, 'user\nHi Ye']],
    [[2, 'user\nHa Yes'], 0, [2, 'user\nHa Yes']],
    [[-2, 'user\nHi Yes'], 0, [-2, 'user\nHi Yes']],
    [[], 0, []],
  ];
  for (const [parts, n, rest] of cases) expect(agreement(parts, turns)).toEqual({ n, rest });
  expect(agreement([MARKER_END_OF_TURN], [])).toEqual({ n: 0, rest: [MARKER_END_OF_TURN] });
});

describe('pictures', () => {
  const options = { maxOutputTokens: 8, seed: 7 } as const;

  test('are opened once, and stay what they were', async () => {
    await withBoth(seeing, async (gemma, fresh) => {
      const mine = join(folder, 'mine.png');
      copyFileSync(picture('wide.png'), mine);
      const chat = gemma.chat({ ...options, panAndScan: true });
      const shown = { ...options, panAndScan: true, images: [mine] };
      await ask(fresh, chat, 'What?', shown, [await gemma.embedImage(mine, { panAndScan: true })]);
      const embedding = await gemma.embedImage(mine, { panAndScan: true });
      rmSync(mine);
      await ask(fresh, chat, 'Who?', { ...options, panAndScan: false }, [embedding]);
      const odd = picture('odd.png');
      const both: Message = {
        role: 'user',
        content: [
          { type: 'text', text: 'And' },
          { type: 'image', image: odd },
        ],
      };
      const third = await ask(fresh, chat, both, { ...options, panAndScan: false }, [embedding, odd]);
      expect(third.usage.imageTokens).toBe(embedding.shape[0] + (await gemma.embedImage(odd)).shape[0]);
      expect(chat.messages[0]).toEqual({
        role: 'user',
        content: [
          { type: 'image', image: mine },
          { type: 'text', text: 'What?' },
        ],
      });
      // Another picture in the same place.
      const photo = picture('photo.png');
      await ask(fresh, chat, 'And', { ...options, replace: true, images: [photo], panAndScan: false }, [
        embedding,
        photo,
      ]);
      await chat.undo();
      await ask(fresh, chat, 'And', { ...options, images: [odd], panAndScan: false }, [embedding, odd]);
    });
  });

  test('go whole', async () => {
    const { tokensPerImage } = (await Gemma.inspect(seeing)).vision ?? { tokensPerImage: 0 };
    await withBoth(
      seeing,
      async (gemma, fresh) => {
        const names = ['odd.png', 'photo.png', 'wide.png'].map(picture);
        const chat = gemma.chat({ ...options, onOverflow: 'shift' });
        const left: string[] = [];
        let shifted = false;
        for (let i = 0; i < 12; ++i) {
          const image = names[i % 3] as string;
          const copy = join(folder, `${i}.png`);
          copyFileSync(image, copy);
          const result = await chat.send('What?', { ...options, images: [copy] });
          rmSync(copy);
          left.push(image);
          left.splice(0, (result.dropped?.length ?? 0) / 2);
          shifted ||= result.dropped !== undefined;
          expect(result.usage.imageTokens).toBe(left.length * tokensPerImage);
          const expected = await fresh.generate(promptOf(chat, result), { ...options, images: left });
          expect(result.tokens).toEqual(expected.tokens);
        }
        expect(shifted).toBe(true);
      },
      { contextSize: 6 * (tokensPerImage + 40) },
    );
  });
});

describe('saved and restored', () => {
  const options = { ...endless, maxOutputTokens: 9 } as const;
  const file = (name: string) => join(folder, name);

  /** Does the same with both, and compares. */
  async function expectAlike(a: Conversation, b: Conversation): Promise<void> {
    expect(b.tokens).toEqual(a.tokens);
    for (const seed of [1, 2]) {
      const results = [await a.send('More', { seed }), await b.send('More', { seed })];
      expect(results[1]?.tokens).toEqual(results[0]?.tokens);
      expect(b.tokens).toEqual(a.tokens);
    }
    await a.undo();
    await b.undo();
    expect((await b.fork().regenerate({ seed: 3 })).tokens).toEqual((await a.fork().regenerate({ seed: 3 })).tokens);
    expect(b.tokens).toEqual(a.tokens);
  }

  /** The text in a saved state, behind the header. */
  function metadataOf(path: string): string {
    const bytes = readFileSync(path);
    return bytes.toString('utf8', 80, 80 + Number(bytes.readBigUInt64LE(32)));
  }

  test('by the same model and by another load of it', async () => {
    await withBoth(tiny, async (gemma, fresh) => {
      const chat = gemma.chat({ ...options, logitBias: { ...endless.logitBias, 7: 1.5 }, system: 'S\n"', topK: 7 });
      await chat.send('One <bos>', { prefill: 'Tw' });
      await chat.send('Two ümläut 你好', { stopSequences: ['e'] });
      const { bytes, positions } = await chat.save(file('a'));
      expect([bytes, positions > 32]).toEqual([statSync(file('a')).size, true]);
      await withModel(async (another) => {
        const restored = await another.restoreChat(file('a'));
        const { usage } = await restored.send('Next', { seed: 1 });
        expect(usage.cachedInputTokens).toBe(positions);
      });
      for (const model of [gemma, fresh]) {
        const restored = await model.restoreChat(pathToFileURL(file('a')));
        expect(restored.messages).toEqual(chat.messages);
        await expectAlike(chat.fork(), restored);
      }
      const other = await gemma.restoreChat(file('a'), { topK: 1, onOverflow: 'shift' });
      const { tokens } = await other.send('x');
      const greedy = await fresh.generate(other.tokens.slice(0, -tokens.length), {
        ...options,
        temperature: 0,
        logitBias: { ...endless.logitBias, 7: 1.5 },
      });
      expect(tokens).toEqual(greedy.tokens);
      // Over the old one.
      await other.save(file('a'));
      expect((await gemma.restoreChat(file('a'))).messages).toEqual(other.messages);
    });
  });

  const onUnix = process.platform === 'win32' ? test.skip : test;
  onUnix('to the end of a link, and not in the place of a device', async () => {
    await withBoth(tiny, async (gemma) => {
      const chat = gemma.chat(options);
      await chat.send('One');
      symlinkSync('target', file('link'));
      writeFileSync(file('target'), '');
      await chat.save(file('link'));
      expect([lstatSync(file('link')).isSymbolicLink(), statSync(file('target')).size > 0]).toEqual([true, true]);
      expect((await gemma.restoreChat(file('link'))).tokens).toEqual(chat.tokens);
      symlinkSync('/dev/null', file('device'));
      expect(await rejection(chat.save(file('device')))).toMatchObject({ code: 'ERR_FILE' });
      expect([lstatSync(file('device')).isSymbolicLink(), statSync('/dev/null').isFile()]).toEqual([true, false]);
      for (const path of [undefined, null, '', 5]) {
        expect(await rejection(chat.save(path as string))).toMatchObject({ name: 'TypeError' });
        expect(await rejection(gemma.restoreChat(path as string))).toMatchObject({ name: 'TypeError' });
      }
    });
  });

  test('when the process that saved it is killed', async () => {
    const code = `
      const { Gemma } = require(${JSON.stringify(join(root, 'dist', 'index.js'))});
      const [model, path, kill] = process.argv.slice(1);
      (async () => {
        const gemma = await Gemma.load(model);
        const chat = kill ? gemma.chat({ maxOutputTokens: 4, seed: 1 }) : await gemma.restoreChat(path);
        if (kill) await chat.send('A question of some length, so that there is something to keep. And another one.');
        if (kill) await chat.save(path);
        const { tokens, logprobs, usage } = await chat.fork().send('Next', { logprobs: 7 });
        const line = JSON.stringify({ tokens, logprobs }) + ' ' + usage.cachedInputTokens + '\\n';
        process.stdout.write(line, () => kill && process.kill(process.pid, 'SIGKILL'));
        if (!kill) await gemma.dispose();
      })();`;
    const saved = await runNode(['-e', code, tiny, file('killed'), 'kill']);
    const restored = await runNode(['-e', code, tiny, file('killed')]);
    expect(saved.code).not.toBe(0);
    expect(restored).toMatchObject({ code: 0, stderr: '', stdout: expect.stringMatching(/ [1-9]\d*\n$/) });
    const computed = ({ stdout }: Exit) => stdout.slice(0, stdout.lastIndexOf(' '));
    expect(computed(restored)).toBe(computed(saved));
  });

  test('without an answer, and empty', async () => {
    await withBoth(tiny, async (gemma) => {
      const empty = gemma.chat({ ...options, system: 'S' });
      await empty.save(file('empty'));
      const restored = await gemma.restoreChat(file('empty'));
      expect(restored.messages).toEqual([{ role: 'system', content: 'S' }]);
      await expectAlike(empty, restored);
      await empty.append({ role: 'user', content: 'Unanswered' });
      await empty.save(file('open'));
      const open = await gemma.restoreChat(file('open'));
      expect(open.messages).toEqual(empty.messages);
      expect((await open.regenerate({ seed: 5 })).tokens).toEqual((await empty.regenerate({ seed: 5 })).tokens);
    });
  });

  test('with messages that no model would answer', async () => {
    await withBoth(tiny, async (gemma) => {
      const chat = gemma.chat(options);
      await chat.send('One', { seed: 1 });
      await chat.append([
        { role: 'assistant', content: 'Two' },
        { role: 'user', content: [{ type: 'text', text: 'Three' }] },
      ]);
      await chat.append({ role: 'assistant', content: 'Four' });
      expect(await rejection(chat.send('Five'))).toMatchObject({ detail: 'BAD_ROLES' });
      await chat.undo();
      await chat.save(file('odd'));
      const restored = await gemma.restoreChat(file('odd'));
      expect(restored.messages).toEqual(chat.messages);
      expect(restored.tokens).toEqual(chat.tokens);
      for (const one of [chat, restored]) await one.undo();
      await expectAlike(chat, restored);
    });
  });

  test('with pictures, whose files are gone', async () => {
    await withBoth(seeing, async (gemma, fresh) => {
      const mine = [file('1.png'), file('2.png')];
      copyFileSync(picture('wide.png'), mine[0] as string);
      copyFileSync(picture('odd.png'), mine[1] as string);
      const chat = gemma.chat(options);
      await chat.send('What?', { images: [mine[0] as string], panAndScan: true });
      await chat.send('Why?');
      await chat.append({ role: 'user', content: [{ type: 'image', image: mine[1] as string }] });
      await chat.save(file('p'));
      for (const path of mine) rmSync(path);
      const restored = await fresh.restoreChat(file('p'));
      const [shown] = restored.messages[0]?.content as ImagePart[];
      expect(shown?.image).toEqual(await gemma.embedImage(picture('wide.png'), { panAndScan: true }));
      for (const one of [chat, restored]) await one.regenerate({ seed: 4 });
      await expectAlike(chat, restored);
      // The embedding is a picture like others.
      const again = await fresh.generate([restored.messages[0] as Message], { ...options, seed: 2 });
      const wanted = { images: [picture('wide.png')], panAndScan: true };
      expect(again.tokens).toEqual((await fresh.generate('What?', { ...options, ...wanted, seed: 2 })).tokens);
    });
  });

  test('what is no saved conversation', async () => {
    const gemma = await Gemma.load(tiny);
    const chat = gemma.chat(options);
    await chat.send('One', { seed: 1 });
    await chat.send('Two', { seed: 2 });
    const saved = { images: [], tokensPerImage: 0, modelDim: 64 };
    const tokens = Int32Array.from(chat.tokens);
    await chat.save(file('d'));
    const text = metadataOf(file('d'));
    const restored = await restoredChat('x', text, tokens, saved);
    expect(restored).toMatchObject({ options, head: [], turns: chat.messages });
    const turns = atOnce(copyMessages(chat.messages, false));
    expect(
      await chatText({ ...restored, options: { ...options, logitBias: endless.logitBias }, turns, head: [] }),
    ).toBe(text);

    const failures: [(text: string) => string, string][] = [
      [() => '', 'CHAT_DAMAGED'],
      [() => 'null', 'CHAT_DAMAGED'],
      [() => '[]', 'CHAT_DAMAGED'],
      [(whole) => whole.slice(0, -1), 'CHAT_DAMAGED'],
      [(whole) => `${whole}\n{}`, 'CHAT_DAMAGED'],
      [(whole) => whole.replace('"chat":1', '"chat":2'), 'CHAT_VERSION'],
      [(whole) => whole.replace('"kept":2', '"kept":3'), 'CHAT_DAMAGED'],
      [(whole) => whole.replace('"turns":4', '"turns":1e300'), 'CHAT_DAMAGED'],
      [(whole) => whole.replace('"turns":4', '"turns":-1'), 'CHAT_DAMAGED'],
      [(whole) => whole.replace(/"answerIds":\d+/, '"answerIds":1000000'), 'CHAT_DAMAGED'],
      [(whole) => whole.replace(/"ids":\d+/, '"ids":0.5'), 'CHAT_DAMAGED'],
      [(whole) => whole.replace('"end":2', '"end":3'), 'CHAT_DAMAGED'],
      [(whole) => whole.replace('"end":4', '"end":2'), 'CHAT_DAMAGED'],
      [(whole) => whole.replace('"firsts":[]', '"firsts":[5,4]'), 'CHAT_DAMAGED'],
      [(whole) => whole.replace('"parts":[', '"parts":[{},'), 'CHAT_DAMAGED'],
      [
        (whole) => whole.replace('"content":"One"', '"content":[{"type":"image","crops":[],"fields":{}}]'),
        'CHAT_DAMAGED',
      ],
      [(whole) => whole.replace('"content":"One"', '"content":[5]'), 'CHAT_DAMAGED'],
    ];
    for (const [change, detail] of failures) {
      const changed = change(text);
      expect(changed).not.toBe(text);
      expect(await rejection(restoredChat('x', changed, tokens, saved))).toMatchObject({ code: 'ERR_FILE', detail });
    }
    await gemma.dispose();
  });
});
