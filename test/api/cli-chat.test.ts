// The command line's conversation: what is typed, a terminal that is none, and whole programs with the lines of a pipe.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { pathToFileURL } from 'node:url';
import { commandOf, findMedia, LineJoiner, plainPath } from '../../lib/cli/chat-input.js';
import { TerminalInput, type ChatInput } from '../../lib/cli/chat-terminal.js';
import { Session } from '../../lib/cli/commands/chat.js';
import type { Message } from '../../lib/index.js';
import { cli, data, rejection, runNode, tiny, until, withModel } from './helpers.js';

let folder: string;
beforeAll(() => (folder = mkdtempSync(join(tmpdir(), 'gemma-chat-'))));
afterAll(() => rmSync(folder, { recursive: true }));

test('commands', () => {
  expect(commandOf('/exit')).toEqual({ name: 'exit', argument: '' });
  expect(commandOf('  /save  my file.json ')).toEqual({ name: 'save', argument: 'my file.json' });
  expect(commandOf('/system a\nb')).toEqual({ name: 'system', argument: 'a\nb' });
  for (const text of ['', 'exit', '/usr/share/a.png', '// a comment', 'what is /exit?', '/']) {
    expect(commandOf(text)).toBeUndefined();
  }
});

test('inputs of several lines', () => {
  const inputs = (lines: string[]) => {
    const joiner = new LineJoiner();
    const whole = lines.map((line) => joiner.push(line)).filter((input) => input !== undefined);
    const rest = joiner.end();
    return rest === undefined ? whole : [...whole, rest];
  };
  expect(inputs(['one', '', 'two'])).toEqual(['one', '', 'two']);
  expect(inputs(['a\\', 'b\\', 'c', 'd'])).toEqual(['a\nb\nc', 'd']);
  expect(inputs(['"""', 'a', '', 'b', '"""', 'c'])).toEqual(['a\n\nb', 'c']);
  expect(inputs(['"""a', 'b\\', 'c""" and more', 'd'])).toEqual(['a\nb\\\nc', 'd']);
  expect(inputs(['"""all of it"""'])).toEqual(['all of it']);
  expect(inputs(['a\\'])).toEqual(['a']);
  expect(inputs(['"""', 'never closed'])).toEqual(['\nnever closed']);
});

test('paths as terminals write them', () => {
  expect(plainPath("'/a b/c.png'")).toBe('/a b/c.png');
  expect(plainPath('"/a b/c.png"')).toBe('/a b/c.png');
  expect(plainPath("'")).toBe("'");
  expect(plainPath('file://nowhere.example/a')).toBe('file://nowhere.example/a');
  expect(plainPath('~/a.png')).not.toContain('~');
  if (process.platform !== 'win32') expect(plainPath('/a\\ b/c\\(1\\).png')).toBe('/a b/c(1).png');
});

test('pictures and videos among the words of a question', () => {
  const [photo, other, film] = ['my photo.PNG', 'b.jpeg', 'c.mp4'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  for (const path of [photo, other, film, join(folder, 'notes.txt')]) writeFileSync(path, '');
  mkdirSync(join(folder, 'folder.png'));
  expect(findMedia(`What is "${photo}" and ${other} ?`)).toEqual({
    text: 'What is and ?',
    media: [
      { type: 'image', path: photo },
      { type: 'image', path: other },
    ],
  });
  expect(findMedia(`Which one?\n${other}, ${film}?`)).toEqual({
    text: 'Which one?\n, ?',
    media: [
      { type: 'image', path: other },
      { type: 'video', path: film },
    ],
  });
  expect(findMedia(`'${photo}' `)).toEqual({ text: '', media: [{ type: 'image', path: photo }] });
  expect(findMedia(`${pathToFileURL(photo).href} ${film}`).media).toEqual([
    { type: 'image', path: photo },
    { type: 'video', path: film },
  ]);
  if (process.platform !== 'win32') {
    expect(findMedia(photo.replaceAll(' ', '\\ ')).media).toEqual([{ type: 'image', path: photo }]);
  }
  for (const text of [
    'no  file   here',
    join(folder, 'none.png'),
    join(folder, 'notes.txt'),
    join(folder, 'folder.png'),
    'it\'s a "quoted word" \\ and \'another',
    'a.png',
  ]) {
    expect(findMedia(text)).toEqual({ text, media: [] });
  }
});

/** What a terminal is to the program, without one. */
class FakeTerminal extends PassThrough {
  readonly isTTY = true;
  isRaw = false;
  setRawMode(raw: boolean) {
    this.isRaw = raw;
    return this;
  }
}

describe('a terminal', () => {
  let keys: FakeTerminal;
  let terminal: TerminalInput;
  let shown: string;
  const end = new AbortController();

  beforeEach(() => {
    keys = new FakeTerminal();
    shown = '';
    const output = new PassThrough();
    output.setEncoding('utf8').on('data', (text: string) => (shown += text));
    const input = keys as unknown as NodeJS.ReadStream;
    terminal = new TerminalInput({ input, output }, ['/exit', '/save', '/system'], end.signal);
  });

  async function typed(...texts: string[]): Promise<string | undefined> {
    const next = terminal.next();
    for (const text of texts) {
      keys.write(text);
      await new Promise((resolve) => setImmediate(resolve));
    }
    return next;
  }

  test('a line, and the lines before by the arrow keys', async () => {
    expect(await typed('first\r')).toBe('first');
    expect(await typed('second\r')).toBe('second');
    expect(await typed('\x1b[A\x1b[A!\r')).toBe('first!');
    expect(keys.isRaw).toBe(false);
  });
  test('an input of several lines, typed and pasted', async () => {
    expect(await typed('a\\\rb\r')).toBe('a\nb');
    expect(shown).toContain('. ');
    expect(await typed('\x1b[200~x\ry\\\r"""z\x1b[201~!\r')).toBe('x\ny\\\n"""z!');
  });
  test('commands are completed', async () => {
    expect(await typed('/e', '\t', '\r')).toBe('/exit');
    mkdirSync(join(folder, 'inside'));
    writeFileSync(join(folder, 'inside', 'saved.json'), '');
    expect(await typed(`/save ${join(folder, 'inside')}/s`, '\t', '\r')).toBe(
      `/save ${join(folder, 'inside', 'saved.json')}`,
    );
    expect(await typed('a/e', '\t', '\r')).toBe('a/e');
  });
  test('Ctrl-C empties the line, twice it leaves; so does Ctrl-D', async () => {
    const next = terminal.next();
    keys.write('wrong\\\rwronger');
    keys.write('\x03');
    keys.write('right\r');
    expect(await next).toBe('right');
    expect(await typed('\x03\x03')).toBeUndefined();
    expect(shown).toContain('Ctrl-C again');
    const again = terminal.next();
    keys.write('\x03');
    keys.write('a');
    keys.write('\x7f');
    keys.write('\x03');
    keys.write('b\r');
    expect(await again).toBe('b');
    expect(await typed('\x04')).toBeUndefined();
  });
  test('while an answer comes: Ctrl-C is heard, and what is typed ahead is the next question', async () => {
    let interrupts = 0;
    const unwatch = terminal.watch(() => ++interrupts);
    expect(keys.isRaw).toBe(true);
    keys.write('\x03');
    await until(() => interrupts === 1);
    keys.write('ahead\r');
    await until(() => keys.readableLength === 0);
    await new Promise((resolve) => setImmediate(resolve));
    unwatch();
    expect(keys.isRaw).toBe(false);
    expect(await terminal.next()).toBe('ahead');
    expect(shown).not.toContain('undefined');
  });
  test('the end of the program ends a question', async () => {
    const next = terminal.next();
    end.abort();
    expect(await next).toBeUndefined();
  });
});

test('Ctrl-C stops the answer: what was written stays, a question without an answer does not', async () => {
  const shown: string[] = [];
  let interrupt = () => {};
  const write = (text: unknown) => {
    shown.push(String(text));
    if (shown.length === 3) interrupt();
    return true;
  };
  const spies = [process.stdout, process.stderr].map((to) => jest.spyOn(to, 'write').mockImplementation(write));
  try {
    await withModel(async (gemma) => {
      const conversation = gemma.chat({ temperature: 0 });
      const lines = ['Hello', 'Again', '/regenerate', '/dance'];
      const seen: Message[][] = [];
      const input: ChatInput = {
        isInteractive: true,
        next: async () => {
          seen.push(conversation.messages);
          return lines.shift();
        },
        watch: (onInterrupt) => {
          shown.length = 0;
          interrupt = onInterrupt;
          if (lines.length === 2) onInterrupt();
          return () => (interrupt = () => {});
        },
        close: () => {},
      };
      await new Session(gemma, input, { model: tiny }, conversation, new AbortController().signal).run();
      const [none, first, second, again, end] = seen;
      expect(none).toEqual([]);
      expect(first).toEqual([
        { role: 'user', content: 'Hello' },
        { role: 'assistant', content: expect.stringMatching(/./) },
      ]);
      expect([second, end]).toEqual([first, first]); // stopped before it began
      expect(again).toEqual(first);
      const whole = await gemma.generate('Hello', { temperature: 0, raw: false, maxOutputTokens: 40 });
      expect(whole.text.startsWith(first?.[1]?.content as string)).toBe(true);
      expect(shown.join('')).toContain('no such command');
    });
  } finally {
    for (const spy of spies) spy.mockRestore();
  }
});

const chat = (lines: string[], args: string[] = []) =>
  runNode([cli, 'chat', '--model', tiny, '--max-tokens', '9', '--seed', '5', ...args], { input: lines.join('\n') });

describe('lines of a pipe', () => {
  const question = (content: string): Message => ({ role: 'user', content });

  test('each is a question, and the conversation is one', async () => {
    const exit = await chat(['Hello', 'And \\', 'now?'], ['--system', 'Be brief.', '--json']);
    expect(exit).toMatchObject({ code: 0, stderr: '' });
    const { turns, messages } = JSON.parse(exit.stdout) as { turns: { text: string }[]; messages: Message[] };
    await withModel(async (gemma) => {
      const options = { maxOutputTokens: 9, seed: 5 };
      const conversation = gemma.chat({ system: 'Be brief.', ...options });
      const [first, second] = [await conversation.send('Hello'), await conversation.send('And \nnow?')];
      expect(turns.map(({ text }) => text)).toEqual([first.text, second.text]);
      expect(messages).toEqual(conversation.messages);
      expect(turns[1]).toMatchObject({ usage: { inputTokens: second.usage.inputTokens } });
    });
  });

  test('answers on stdout, all else on stderr', async () => {
    const exit = await chat(['Hello', '/regenerate', '/undo', '/undo', '/help']);
    const { turns } = JSON.parse((await chat(['Hello'], ['--json'])).stdout) as { turns: { text: string }[] };
    expect(exit.code).toBe(0);
    expect(exit.stdout.startsWith(`${turns[0]?.text}\n`)).toBe(true);
    expect(exit.stderr.match(/\(\d+ tokens, \d+\.\d\/s.*; \d+ of \d+ tokens read in \d+\.\d\d s\)/g)).toHaveLength(2);
    expect(exit.stderr).toContain('took back: Hello\nthere is nothing to take back\n');
    expect(exit.stderr).toContain('/regenerate ');
  });

  test('commands change the conversation', async () => {
    const lines = ['one', 'two', '/undo', '/system Be long.', '/system', 'three', '/regenerate'];
    const all = await chat(lines, ['--json', '--system', 'Be brief.']);
    const { messages, turns } = JSON.parse(all.stdout) as { turns: unknown[]; messages: Message[] };
    expect(messages.map(({ role }) => role)).toEqual(['system', 'user', 'assistant', 'user', 'assistant']);
    expect(messages[0]).toEqual({ role: 'system', content: 'Be long.' });
    expect([messages[1], messages[3]]).toEqual([question('one'), question('three')]);
    expect(turns).toHaveLength(4);
    expect(all.stderr).toContain('Be long.\n');
    const cleared = await chat(['one', '/clear', '/system ""', '/quit', 'never'], ['--json', '--system', 'Be brief.']);
    expect(JSON.parse(cleared.stdout)).toMatchObject({ messages: [] });
  });

  test('a conversation goes on in another process', async () => {
    const file = join(folder, 'my talk');
    const saved = await chat(['one', `/save ${file}`, 'two'], ['--json', '--system', 'Be brief.']);
    expect(saved).toMatchObject({ code: 0, stderr: 'saved\n' });
    const { messages } = JSON.parse(saved.stdout) as { messages: Message[] };
    const exit = await chat(['three', `/load ${file}`, '/undo', `/load ${file}`, 'two'], ['--json', '--load', file]);
    expect(exit.code).toBe(0);
    expect(JSON.parse(exit.stdout)).toMatchObject({ messages });
    expect((await chat(['x'], ['--load', file, '--system', 'y'])).code).toBe(2);
  });

  test('the first failure ends a script', async () => {
    const stderr = jest.spyOn(process.stderr, 'write').mockReturnValue(true);
    try {
      await withModel(async (gemma) => {
        for (const [line, error] of [
          ['/dance', { message: expect.stringContaining('/dance: no such command') }],
          ['/save', { message: expect.stringContaining('expected a file') }],
          ['/image', { message: expect.stringContaining('expected a file') }],
          ['/image none.png', { code: 'ENOENT' }],
          [`/load ${join(folder, 'none')}`, { code: 'ERR_FILE' }],
          ['/regenerate', { code: 'ERR_INVALID_ARGUMENT', detail: 'NO_QUESTION' }],
        ] as const) {
          const lines = [line, 'Hello'];
          const input: ChatInput = {
            isInteractive: false,
            next: () => Promise.resolve(lines.shift()),
            watch: () => () => {},
            close: () => {},
          };
          const session = new Session(gemma, input, { model: tiny }, gemma.chat(), new AbortController().signal);
          expect(await rejection(session.run())).toMatchObject(error);
          expect(lines).toEqual(['Hello']);
        }
      });
    } finally {
      stderr.mockRestore();
    }
    expect(await chat(['/dance', 'Hello'])).toMatchObject({ code: 2, stdout: '' });
    const exit = await chat([`/image ${join(data, 'images', 'photo.png')}`, 'What is this?'], ['--json']);
    expect(exit.code).toBe(1);
    expect(JSON.parse(exit.stdout)).toMatchObject({ error: { code: 'ERR_UNSUPPORTED_INPUT', detail: 'NO_VISION' } });
  });

  test('pictures', async () => {
    const picture = join(data, 'images', 'photo.png');
    const args = ['chat', '--model', join(data, 'mm-a-f16.gguf'), '--max-tokens', '5', '--seed', '1', '--json'];
    const exit = await runNode([cli, ...args], {
      input: `What is ${picture}?\n/image '${picture}'\nWhat is \\\nthis?\n`,
    });
    expect(exit).toMatchObject({ code: 0 });
    const { turns } = JSON.parse(exit.stdout) as { turns: { usage: { imageTokens: number } }[] };
    expect(turns.map(({ usage }) => usage.imageTokens > 0)).toEqual([true, true]);
  });

  test('nothing at all', async () => {
    expect(await chat([])).toMatchObject({ code: 0, stdout: '', stderr: '' });
  });
});
