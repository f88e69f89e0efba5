// Whatever is passed where, the message that comes back is short and on one line, and still names what it is about.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gemma, GemmaError } from '../../lib/index.js';
import { plain, shorten } from '../../lib/values.js';
import { cli, data, runNode, tiny } from './helpers.js';

const MAX_BYTES = 1024;

/** Long, and hostile to logs. */
const texts = {
  ascii: 'x'.repeat(1e6),
  wide: '漢\u{1f600}'.repeat(3e5),
  lines: 'a\nb\r\u001b[31m\u2028'.repeat(1e5),
  base64: Buffer.alloc(3e5, 0x5a).toString('base64'),
};

let folder: string;
let gemma: Gemma;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'gemma-messages-'));
  gemma = await Gemma.load(join(data, 'mm-a-f16.gguf'), { contextSize: 512 });
});
afterAll(async () => {
  await gemma.dispose();
  rmSync(folder, { recursive: true });
});

async function expectShort(name: string, call: () => unknown): Promise<void> {
  let error: unknown;
  try {
    await call();
  } catch (thrown) {
    error = thrown;
  }
  const { message } = error as Error;
  expect([name, typeof message]).toEqual([name, 'string']);
  expect([name, Buffer.byteLength(message) <= MAX_BYTES, message.slice(0, 100)]).toEqual([
    name,
    true,
    message.slice(0, 100),
  ]);
  // eslint-disable-next-line no-control-regex -- these are what must not stand there
  expect([name, /[\r\n\u001b\u2028]/.test(message), message.length > 10]).toEqual([name, false, true]);
}

const ask = (messages: unknown) => gemma.generate(messages as never, { maxOutputTokens: 1 });
const part = (value: unknown) => ask([{ role: 'user', content: [value] }]);

const places: Record<string, (text: string) => unknown> = {
  'load: a path': (text) => Gemma.load(text),
  'load: a folder': (text) => Gemma.load(`/${text}/`),
  'load: a URL': (text) => Gemma.load(`file:///${encodeURIComponent(text)}`),
  'load: another protocol': (text) => Gemma.load(new URL(`${text.slice(0, 1) === 'x' ? text : 'y'}:a`)),
  'load: mmproj': (text) => Gemma.load(tiny, { mmproj: text }),
  'load: draft': (text) => Gemma.load(tiny, { draft: text }),
  'load: device': (text) => Gemma.load(tiny, { device: text }),
  'load: isa': (text) => Gemma.load(tiny, { isa: text }),
  'load: kvCache': (text) => Gemma.load(tiny, { kvCache: text as never }),
  'load: threads': (text) => Gemma.load(tiny, { threads: text as never }),
  'load: an unknown option': (text) => Gemma.load(tiny, { [text]: 1 }),
  'load: an unknown option of imageCache': (text) => Gemma.load(tiny, { imageCache: { [text]: 1 } }),
  'inspect: a path': (text) => Gemma.inspect(text),
  'estimate: a path': (text) => Gemma.estimate(text),
  'generate: an unknown option': (text) => gemma.generate('x', { [text]: 1 }),
  'generate: an unknown option of panAndScan': (text) => gemma.generate('x', { panAndScan: { [text]: 1 } as never }),
  'generate: a token id of logitBias': (text) => gemma.generate('x', { logitBias: { [text]: 1 } }),
  'generate: a stop sequence': (text) => gemma.generate('x', { stopSequences: [text] }),
  'a role': (text) => ask([{ role: text, content: 'x' }]),
  'the type of a part': (text) => part({ type: text }),
  'a key of a part': (text) => part({ [text]: 1 }),
  'content that is none': (text) => ask([{ role: 'user', content: { [text]: 1 } }]),
  'a picture: a path': (text) => part({ type: 'image', image: text }),
  'a picture: a path with a slash': (text) => part({ type: 'image', image: `/${text}.png` }),
  'a picture: a file: URL': (text) => part({ type: 'image', image: `file:///${encodeURIComponent(text)}` }),
  'a picture: a data: URL': (text) => part({ type: 'image', image: `data:image/png;base64,${text}` }),
  'a picture: a data: URL without a comma': (text) => part({ type: 'image', image: `data:${text}` }),
  'a picture: an http: URL': (text) => part({ type: 'image', image: `http://127.0.0.1/${text}` }),
  'a picture: a host': (text) => gemma.embedImage(`http://${encodeURIComponent(text)}/`, { allowRemote: true }),
  'a picture: a URL to fetch': (text) =>
    gemma.embedImage(`http://127.0.0.1:1/${encodeURIComponent(text)}`, { allowRemote: 'private' }),
  'a picture: a backslash': (text) => gemma.embedImage(`http://a\\${text}`, { allowRemote: true }),
  'a picture: base64': (text) => part({ type: 'image', image: `iVBORw0KGgo${text}` }),
  'a picture: not allowed': (text) => gemma.embedImage(text, { allowLocal: false }),
  'a picture: text as bytes': (text) => gemma.embedImage(Buffer.from(text)),
  'a picture: the shape of an embedding': (text) =>
    part({ type: 'image', image: { data: new Float32Array(1), shape: [text, text], crops: [] } }),
  'a picture: sizes': (text) =>
    part({ type: 'image', image: { data: new Uint8Array(1), width: text, height: 1 } as never }),
  'a video: a path': (text) => part({ type: 'video', video: text }),
  'a video: a file: URL': (text) => part({ type: 'video', video: `file:///${encodeURIComponent(text)}` }),
  'a video: frames': (text) => part({ type: 'video', video: tiny, fps: text }),
};

describe.each(Object.keys(texts) as (keyof typeof texts)[])('%s', (kind) => {
  test.each(Object.keys(places))('%s', (place) => expectShort(place, () => places[place]?.(texts[kind])));
});

test('every option with a text in its place', async () => {
  const options = [
    'images',
    'raw',
    'bos',
    'maxImageBytes',
    'maxImagePixels',
    'allowRemote',
    'remoteTimeoutMs',
    'alpha',
  ];
  options.push('allowLocal', 'panAndScan', 'tile', 'maxVideoSeconds', 'maxVideoBytes', 'videoTimeoutMs', 'draft');
  options.push('maxOutputTokens', 'temperature', 'topK', 'topP', 'minP', 'repetitionPenalty', 'frequencyPenalty');
  options.push('presencePenalty', 'penaltyWindow', 'seed', 'logitBias', 'stopSequences', 'logprobs', 'onOverflow');
  options.push('onProgress', 'signal', 'schema', 'tools');
  for (const option of options) {
    await expectShort(option, () => gemma.generate('x', { [option]: texts.ascii }));
    await expectShort(option, () => gemma.generate('x', { [option]: 10n ** 5000n }));
  }
});

test('what a server says', async () => {
  const server = createServer((request, response) => {
    if (request.url === '/status') response.writeHead(500, 'x'.repeat(10_000)).end();
    else response.writeHead(302, { location: `ftp://${'y'.repeat(10_000)}` }).end();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  try {
    for (const path of ['/status', '/redirect', `/${'z'.repeat(10_000)}`]) {
      await expectShort(path.slice(0, 20), () => Gemma.crops(`${origin}${path}`, { allowRemote: 'private' }));
    }
  } finally {
    server.close();
  }
});

test('a folder of many files', async () => {
  for (let i = 0; i < 500; ++i) writeFileSync(join(folder, `model-with-a-long-name-${i}.gguf`), '');
  await expectShort('folder', () => Gemma.load(folder));
});

test('the command line', async () => {
  const long = 'x'.repeat(100_000);
  for (const args of [
    [long],
    ['run', `--${long}`],
    ['run', '--model', long, 'x'],
    ['run', '--model', tiny, '--max-tokens', long, 'x'],
    ['run', '--model', tiny, '--kv', long, 'x'],
    ['run', '--model', tiny, 'x', long],
    ['crops', long],
  ]) {
    const { code, stderr } = await runNode([cli, ...args]);
    expect([args[0]?.slice(0, 10), code === 1 || code === 2, Buffer.byteLength(stderr) < MAX_BYTES + 100]).toEqual([
      args[0]?.slice(0, 10),
      true,
      true,
    ]);
  }
});

test('beginning and end of what is cut stay', () => {
  expect(shorten('short', 10)).toBe('short');
  expect(shorten(`${'a'.repeat(50)}${'b'.repeat(50)}`, 11)).toBe('aaaa...bbbb');
  for (const text of ['漢'.repeat(100), '\u{1f600}'.repeat(100), `é${'\u{1f600}é'.repeat(99)}`]) {
    for (let max = 10; max < 40; ++max) {
      const short = shorten(text, max);
      expect(Buffer.byteLength(short)).toBeLessThanOrEqual(max);
      expect(Buffer.from(short).toString()).toBe(short);
    }
  }
  expect(plain('a\r\n\u001bb')).toBe('a b');
  const { message } = new GemmaError('ERR_FILE', `${'a'.repeat(5000)}: what to do`);
  expect(message).toMatch(/^a.*\.\.\.a*: what to do$/);
});
