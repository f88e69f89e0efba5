// What callers pass as messages: read once, named where it is wrong, and of any size.
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { Gemma, type Message } from '../../lib/index.js';
import { copyMessages } from '../../lib/messages.js';
import { atOnce, rejection, withModel } from './helpers.js';

const copy = (messages: unknown, free = false) => atOnce(copyMessages(messages, free));
const user = (fields: object) => [{ role: 'user', content: 'Hi', ...fields }];
const part = (fields: object) => [{ role: 'user', content: [fields] }];

describe('in the format of Gemma 3', () => {
  const wrong: [string, unknown, string][] = [
    ['no array', 'x', 'messages: expected an array, found "x"'],
    ['null', [null], 'messages[0]: expected a message { role, content }, found null'],
    ['an array', [[]], 'messages[0]: expected a message { role, content }, found an array'],
    [
      'no role',
      [{ content: 'x' }],
      "messages[0].role: expected 'system', 'user', 'assistant' or 'tool', found undefined",
    ],
    ['another role', [{ role: 'robot', content: 'x' }], 'found "robot"'],
    ['developer', [{ role: 'developer', content: 'x' }], `found "developer"; 'system' is meant`],
    ['model', [{ role: 'model', content: 'x' }], `found "model"; 'assistant' is meant`],
    ['no content', [{ role: 'user' }], 'messages[0].content: expected a string or an array of parts, found undefined'],
    ['null as content', [{ role: 'assistant', content: null }], 'messages[0].content: expected a string'],
    [
      'tool calls',
      user({ tool_calls: [] }),
      "messages[0].tool_calls: no such key; toolCalls of the assistant's message is meant",
    ],
    [
      'image data',
      user({ image_data: [] }),
      "messages[0].image_data: no such key; put pictures into the content, { type: 'image', image }",
    ],
    [
      'attachments',
      user({ experimental_attachments: [] }),
      'messages[0].experimental_attachments: no such key; put pictures',
    ],
    [
      'contents',
      user({ contents: 'x' }),
      'messages[0].contents: no such key; content is meant. There are role, content, images',
    ],
    ['a misspelt key', user({ Image: [] }), 'messages[0].Image: no such key; images is meant'],
    ['a strange key', user({ quux: 1 }), 'messages[0].quux: no such key; There are role, content, images'],
    ['a very long key', user({ ['k'.repeat(5000)]: 1 }), `messages[0].${'k'.repeat(40)}...: no such key`],
    ['__proto__', [JSON.parse('{"role":"user","content":"x","__proto__":1}')], 'messages[0].__proto__: no such key'],
    [
      'images that are none',
      user({ images: 'x.png' }),
      'messages[0].images: expected an array of pictures, found "x.png"',
    ],
    [
      'a picture that is none',
      user({ images: [undefined] }),
      'messages[0].images[0]: expected a picture, found undefined',
    ],
    ['a part that is text', [{ role: 'user', content: ['x'] }], 'messages[0].content[0]: expected { type:'],
    [
      'no type',
      part({ text: 'x' }),
      "messages[0].content[0].type: expected 'text', 'image' or 'video', found undefined",
    ],
    [
      'image_url',
      part({ type: 'image_url', image_url: { url: 'x' } }),
      'found "image_url"; { type: \'image\', image } is meant',
    ],
    ['no text', part({ type: 'text' }), 'messages[0].content[0].text: expected a string, found undefined'],
    [
      'text elsewhere',
      part({ type: 'text', content: 'x' }),
      'messages[0].content[0].content: no such key; text is meant',
    ],
    ['a URL elsewhere', part({ type: 'image', url: 'x' }), 'messages[0].content[0].url: no such key; image is meant'],
    [
      'a field too many',
      part({ type: 'text', text: 'x', source_lang_code: 'de' }),
      'messages[0].content[0].source_lang_code: no such key',
    ],
    ['no picture', part({ type: 'image' }), 'messages[0].content[0].image: expected a picture, found undefined'],
    [
      'frames',
      part({ type: 'video', video: 'x', max_frames: 2 }),
      'content[0].max_frames: no such key; maxFrames is meant',
    ],
  ];
  test.each(wrong)('%s', (_, messages, message) => {
    const call = () => copy(messages);
    expect(call).toThrow(TypeError);
    expect(call).toThrow(message);
  });

  test('fields that are undefined count as missing', () => {
    expect(copy(user({ images: undefined, name: undefined }))).toEqual([{ role: 'user', content: 'Hi', fields: {} }]);
  });

  test('pictures of a message stand before its content', () => {
    const [turn] = copy(user({ images: ['a.png', 'b.png'] }));
    expect(turn?.content).toMatchObject([
      { type: 'image', image: 'a.png', name: 'messages[0].images[0]' },
      { type: 'image', image: 'b.png', name: 'messages[0].images[1]' },
      { type: 'text', text: 'Hi' },
    ]);
  });

  test('messages may be of a class', () => {
    class Turn {
      get role() {
        return 'user';
      }
      content = 'Hi';
    }
    expect(copy([new Turn()])).toEqual([{ role: 'user', content: 'Hi', fields: {} }]);
  });
});

test('every field is read once: what was checked is what is used', async () => {
  const shifty = (first: unknown, then: unknown) => {
    let reads = 0;
    return { enumerable: true, get: () => (++reads === 1 ? first : then) };
  };
  const message = () =>
    Object.defineProperties({} as Message, {
      role: shifty('user', 7),
      content: shifty([Object.defineProperties({}, { type: shifty('text', 'image'), text: shifty('Hi', 7) })], null),
    });
  await withModel(async (gemma) => {
    const plain = await gemma.countTokens([{ role: 'user', content: 'Hi' }]);
    expect(await gemma.countTokens([message()])).toBe(plain);
    const options = Object.defineProperty({}, 'bos', shifty(true, 'x'));
    expect(await gemma.countTokens([message()], options)).toBe(plain);
  });
});

describe('for a template of the model’s own', () => {
  test('other roles, keys and parts are copied as plain data', () => {
    const data = { a: [1, null, { b: 'x' }] };
    const messages = [
      { role: 'developer', content: 'x', name: 'n' },
      { role: 'assistant', content: null, tool_calls: [data] },
      { role: 'assistant', tool_calls: [data] },
      { role: 'tool', content: { name: 'f', response: data } },
      {
        role: 'user',
        content: [
          { type: 'text', text: 'x', source_lang_code: 'de' },
          { type: 'audio', data },
        ],
      },
    ];
    const copied = copy(messages, true);
    expect(copied).toMatchObject([
      { role: 'developer', content: 'x', fields: { name: 'n' } },
      { role: 'assistant', fields: { content: null, tool_calls: [data] } },
      { role: 'assistant', fields: { tool_calls: [data] } },
      { role: 'tool', fields: { content: { name: 'f', response: data } } },
      {
        content: [
          { text: 'x', fields: { source_lang_code: 'de' } },
          { type: 'audio', fields: { data } },
        ],
      },
    ]);
    expect(copied[1]?.fields.tool_calls).not.toBe(messages[1]?.tool_calls);
  });

  test('what is no plain data is refused', () => {
    const circle: { self?: unknown } = {};
    circle.self = circle;
    expect(() => copy(user({ extra: circle }), true)).toThrow(RangeError);
    for (const value of [() => 1, Symbol('x'), 1n, new Uint8Array(4)]) {
      expect(() => copy(user({ extra: { deep: value } }), true)).toThrow('messages[0].extra.deep: expected plain data');
    }
    expect(() => copy(user({ content: undefined }), true)).toThrow('messages[0].content');
    expect(() => copy(user({ content: 5 }), true)).toThrow('messages[0].content');
  });
});

test('a million parts are a prompt like any other, and leave the thread to others', async () => {
  const parts = Array.from({ length: 1_000_000 }, () => ({ type: 'text' as const, text: ' ' }));
  await withModel(async (gemma) => {
    const empty = await gemma.countTokens([{ role: 'user', content: '' }]);
    const delays = monitorEventLoopDelay({ resolution: 1 });
    delays.enable();
    let turns = 0;
    const timer = setInterval(() => ++turns, 1);
    expect(await gemma.countTokens([{ role: 'user', content: parts }])).toBe(empty);
    clearInterval(timer);
    delays.disable();
    expect(turns).toBeGreaterThan(50);
  });
});

test('a hundred thousand messages or parts are refused by the context, not by the stack', async () => {
  await withModel(async (gemma) => {
    const turns = Array.from({ length: 100_001 }, (_, i) => ({
      role: i % 2 === 0 ? ('user' as const) : ('assistant' as const),
      content: 'a',
    }));
    expect(await rejection(gemma.generate(turns))).toMatchObject({ code: 'ERR_CONTEXT_FULL' });
    const parts = Array.from({ length: 100_000 }, () => ({ type: 'text' as const, text: 'a ' }));
    expect(await rejection(gemma.generate([{ role: 'user', content: parts }]))).toMatchObject({
      code: 'ERR_CONTEXT_FULL',
    });
  });
});

test('an answer that was begun is continued', async () => {
  const gemma = await Gemma.load('demo');
  try {
    const question = { role: 'user' as const, content: 'What is the capital of France?' };
    const options = { temperature: 0, maxOutputTokens: 12 };
    const whole = await gemma.generate([question], options);
    expect(whole.text).toBe('The capital of France is Paris.');
    for (const begun of ['The capital of', 'The capital of ', [{ type: 'text' as const, text: 'The capital of' }]]) {
      const rest = await gemma.generate([question, { role: 'assistant', content: begun }], options);
      expect(rest.text).toBe(' France is Paris.');
    }
    const { tokens } = await gemma.logits([question, { role: 'assistant', content: 'The' }], { data: false });
    expect(await gemma.detokenize(tokens)).toMatch(/<end_of_turn>\n<start_of_turn>model\nThe$/);
    const nothing = await gemma.countTokens([question, { role: 'assistant', content: '' }]);
    expect(nothing).toBe(await gemma.countTokens([question]));
  } finally {
    await gemma.dispose();
  }
});
