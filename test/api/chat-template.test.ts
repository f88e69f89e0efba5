import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { runInNewContext } from 'node:vm';
import { gunzipSync } from 'node:zlib';
import { renderChat, type RenderMedia } from '../../lib/chat-template.js';
import { copyMessages } from '../../lib/messages.js';
import { strip } from '../../lib/python-text.js';
import { Gemma, GemmaError, type ImagePart, type Message, type TurnMessage } from '../../lib/index.js';
import { MARKER_BOS, MARKER_END_OF_TURN, MARKER_START_OF_TURN } from '../../lib/native.js';
import { atOnce, data, realModel, rejection } from './helpers.js';

interface ChatCase {
  messages: TurnMessage[];
  add_generation_prompt: boolean;
  text?: string;
  ids?: number[];
  error?: boolean;
}

// Renderings by Hugging Face's template.
const golden = (
  JSON.parse(gunzipSync(readFileSync(join(data, 'tokenizer.json.gz'))).toString('utf8')) as { chat: ChatCase[] }
).chat;

function parts(messages: unknown, media: RenderMedia, answer = true): readonly (string | number)[] {
  return atOnce(renderChat(atOnce(copyMessages(messages, false)), media, { answer }));
}

// The reference's pictures are places without a picture.
function withPictures(messages: readonly TurnMessage[]): unknown[] {
  return messages.map(({ content, ...message }) => ({
    ...message,
    content:
      typeof content === 'string'
        ? content
        : content.map((part) => (part.type === 'image' ? ({ ...part, image: 'x.png' } satisfies ImagePart) : part)),
  }));
}

function written(messages: TurnMessage[], answer: boolean): string {
  const markers: Record<number, string> = {
    [MARKER_BOS]: '<bos>',
    [MARKER_START_OF_TURN]: '<start_of_turn>',
    [MARKER_END_OF_TURN]: '<end_of_turn>',
  };
  return parts(withPictures(messages), () => ['<start_of_image>'], answer)
    .map((part) => (typeof part === 'string' ? part : markers[part]))
    .join('');
}

const hasImage = ({ messages }: ChatCase) =>
  messages.some(({ content }) => typeof content !== 'string' && content.some((part) => part.type === 'image'));

describe('golden renderings', () => {
  test('are there', () => expect(golden.length).toBeGreaterThanOrEqual(16));

  test.each(golden.map((entry) => [JSON.stringify(entry.messages).slice(0, 90), entry] as const))('%s', (_, entry) => {
    if (entry.error) {
      expect(() => parts(withPictures(entry.messages), () => [])).toThrow(
        expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', detail: 'BAD_ROLES' }),
      );
    } else {
      expect(written(entry.messages, entry.add_generation_prompt)).toBe(entry.text);
    }
  });
});

describe('ids by the real tokenizer', () => {
  let gemma: Gemma;
  beforeAll(async () => (gemma = await Gemma.load(realModel(), { contextSize: 512 })));
  afterAll(() => gemma.dispose());

  const usable = golden.filter((entry) => !entry.error && !hasImage(entry) && entry.add_generation_prompt);
  test.each(usable.map((entry) => [JSON.stringify(entry.messages).slice(0, 90), entry] as const))(
    '%s',
    async (_, entry) => {
      const { tokens } = await gemma.logits(entry.messages, { data: false });
      if (entry.text?.includes('injected')) {
        // Where the reference turns user text into control tokens, ours stays text.
        expect(tokens.filter((id) => id === 105)).toHaveLength(2);
        expect(tokens.filter((id) => id === 106)).toHaveLength(1);
      } else {
        expect(tokens).toEqual(entry.ids);
      }
    },
  );

  test('newlines of template and text merge', async () => {
    const { tokens } = await gemma.logits(
      [
        { role: 'system', content: '\nBe brief.\n' },
        { role: 'user', content: 'Hi' },
      ],
      { data: false },
    );
    expect(tokens).toEqual([2, 105, 2364, 108, 3912, 8652, 236761, 109, 10979, 106, 107, 105, 4368, 107]);
  });

  test('user text never yields a control or image token', async () => {
    const special = [
      '<bos>',
      '<eos>',
      '<pad>',
      '<unk>',
      '<mask>',
      '<start_of_turn>',
      '<end_of_turn>',
      '<start_of_image>',
      '<end_of_image>',
      '<image_soft_token>',
      '<unused7>',
    ];
    const control = new Set([0, 1, 2, 3, 4, 105, 106, 255999, 256000, 262144]);
    for (const text of [...special, special.join(''), special.join('\n')]) {
      const ids = await gemma.tokenize(text);
      expect(ids.filter((id) => control.has(id) || (id >= 6 && id <= 104) || id >= 256001)).toEqual([]);
      expect(await gemma.detokenize(ids)).toBe(text);
      const prompt = (await gemma.logits([{ role: 'user', content: text }], { data: false })).tokens;
      expect(prompt.filter((id) => control.has(id))).toEqual([2, 105, 106, 105]);
    }
  });

  test('a template without turns', async () => {
    expect(await rejection(gemma.generate([] as Message[]))).toBeInstanceOf(GemmaError);
  });
});

describe('messages', () => {
  test('system text in parts, user text in parts', () => {
    expect(
      written(
        [
          {
            role: 'system',
            content: [
              { type: 'text', text: ' Be' },
              { type: 'text', text: ' brief. ' },
            ],
          },
          {
            role: 'user',
            content: [
              { type: 'text', text: ' a ' },
              { type: 'text', text: ' b ' },
            ],
          },
        ],
        true,
      ),
    ).toBe('<bos><start_of_turn>user\n Be brief. \n\nab<end_of_turn>\n<start_of_turn>model\n');
  });

  const wrong: [string, unknown, Partial<GemmaError>][] = [
    ['nothing', [], { detail: 'BAD_ROLES' }],
    ['system only', [{ role: 'system', content: 'x' }], { detail: 'BAD_ROLES' }],
    [
      'two users',
      [
        { role: 'user', content: 'a' },
        { role: 'user', content: 'b' },
      ],
      { detail: 'BAD_ROLES' },
    ],
    [
      'late system',
      [
        { role: 'user', content: 'a' },
        { role: 'system', content: 'b' },
      ],
      { detail: 'BAD_ROLES' },
    ],
    ['unknown role', [{ role: 'robot', content: 'a' }], { name: 'TypeError' }],
    ['no content', [{ role: 'user' }], { name: 'TypeError' }],
    ['number as content', [{ role: 'user', content: 5 }], { name: 'TypeError' }],
    ['part without text', [{ role: 'user', content: [{ type: 'text' }] }], { name: 'TypeError' }],
    ['unknown part', [{ role: 'user', content: [{ type: 'smell' }] }], { name: 'TypeError' }],
    ['null', [null], { name: 'TypeError' }],
    [
      'a picture for the system',
      [{ role: 'system', content: [{ type: 'image', image: 'x.png' }] }],
      { code: 'ERR_UNSUPPORTED_INPUT' },
    ],
  ];
  test.each(wrong)('%s', (_, messages, error) => {
    expect(() => parts(messages, () => [])).toThrow(expect.objectContaining(error));
  });

  test('blanks are those of the reference', () => {
    expect(strip(' \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u2003\u3000x\u2028 ')).toBe('x');
    expect(strip('\ufeffx\u200b')).toBe('\ufeffx\u200b');
    expect(strip(' '.repeat(10))).toBe('');
    expect(strip(' '.repeat(10) + 'x' + ' '.repeat(10))).toBe('x');
  });

  test('many blanks in the middle cost no more than their number', () => {
    // A regular expression for the blanks at the end would try each of them as the first one: hours for these, where a loop
    // takes milliseconds. No machine is slow or fast enough to mistake one for the other.
    const text = `x${' '.repeat(5_000_000)}x`;
    const bound = { timeout: 60_000 };
    expect(runInNewContext('strip(text).length', { strip, text }, bound)).toBe(text.length);
  });
});
