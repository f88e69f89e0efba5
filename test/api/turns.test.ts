// What grows with its input does not hold up the event loop: it is done in slices with turns of the loop in between, which are
// counted here (time is not: it depends on the machine), or it has a limit, or it is refused before it is done.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { base64Decoded, percentDecoded } from '../../lib/encoded-text.js';
import { prepareImage, readImage } from '../../lib/image.js';
import { Gemma, type ImageInput, type Message } from '../../lib/index.js';
import { imageLimits } from '../../lib/media-options.js';
import { ByteCollector, copyOf } from '../../lib/turns.js';
import { embeddingOf, rowsOfEmbedding } from '../../lib/vision.js';
import { data, rejection, withModel } from './helpers.js';

const limits = imageLimits({});
const model = join(data, 'mm-a-f16.gguf');

/** How many turns of the event loop some work took. */
async function turnsOf(work: () => Promise<unknown>): Promise<number> {
  let turns = 0;
  let running = true;
  const next = () => {
    ++turns;
    if (running) setImmediate(next);
  };
  setImmediate(next);
  await work();
  running = false;
  return turns;
}

describe('slices', () => {
  const pixels = 8 << 20;
  const raw = () => ({ data: new Uint8Array(pixels), width: 4096, height: 2048 });
  const picture = readFileSync(join(data, 'images', 'photo.png'));
  const padded = Buffer.concat([picture, Buffer.alloc(8 << 20)]); // bytes behind the end of a PNG are no matter

  test.each<[string, number, () => Promise<unknown>]>([
    ['percent-encoded text', 48, () => percentDecoded('%41'.repeat(1 << 20), 0, 1 << 30)],
    ['base64 text', 64, () => base64Decoded('QUFB'.repeat(1 << 20), 0, 1 << 30)],
    ['base64 text in percent', 48, () => base64Decoded('%41'.repeat(1 << 20), 0, 1 << 30)],
    ['copies', 32, () => copyOf(new Uint8Array(8 << 20))],
    ['pieces', 32, () => collected(8 << 20).all()],
    ['raw pixels', 32, () => readImage(raw(), 'image', limits)],
    ['bytes', 32, () => readImage(padded, 'image', limits)],
    ['a Blob', 32, () => readImage(new Blob([new Uint8Array(padded)]), 'image', limits)],
    ['a data: URL', 170, () => readImage(`data:;base64,${padded.toString('base64')}`, 'image', limits)],
    ['base64 without a URL', 170, () => readImage(padded.toString('base64'), 'image', limits)],
    ['squares', 36, async () => prepareImage(await readImage(raw(), 'image', limits), 512, { tile: 3 })],
    ['embeddings', 20, () => rowsOfEmbedding(embedding(), 'image', 256, 2560)],
    ['their rows', 20, () => embeddingOf([embedding().data], 2560, [], 'none')],
    ['their mean', 16, () => embeddingOf(Array<Float32Array>(16).fill(new Float32Array(25600)), 2560, [], 'mean')],
  ])('%s: at least %d turns', async (_, turns, work) => {
    expect(await turnsOf(work)).toBeGreaterThanOrEqual(turns);
  });

  const collected = (bytes: number) => {
    const collector = new ByteCollector();
    for (let at = 0; at < bytes; at += 65536) collector.add(new Uint8Array(65536));
    return collector;
  };
  const embedding = () => ({
    data: new Float32Array(2 * 256 * 2560),
    shape: [512, 2560] as [number, number],
    crops: [{ x: 0, y: 0, width: 1, height: 1 }],
  });

  test('of many calls at once one goes on in each turn', async () => {
    const text = '%41'.repeat(1 << 18); // 12 slices
    const calls = () => Promise.all(Array.from({ length: 20 }, () => percentDecoded(text, 0, 1 << 30)));
    expect(await turnsOf(calls)).toBeGreaterThanOrEqual(20 * 12);
  });
});

describe('what text decodes to', () => {
  const bytes = Buffer.from(Array.from({ length: 300_000 }, (_, i) => (i * 2654435761) >>> 24));
  const base64 = bytes.toString('base64');
  // Every place of a slice's end, with regard to escapes, groups of four and lines.
  test.each([0, 1, 2, 3, 4, 5, 6])('slices that end anywhere, %d', async (shift) => {
    const before = 'x'.repeat(shift);
    const percent = before + [...bytes.subarray(0, 100_000)].map((b) => `%${b.toString(16).padStart(2, '0')}`).join('');
    const decoded = (await percentDecoded(percent, shift, 1e6)) as Uint8Array;
    expect(bytes.subarray(0, 100_000).equals(decoded)).toBe(true);
    for (const text of [
      base64,
      base64.replace(/.{61}/g, '$&\n'),
      base64.replace(/(.)(.)/g, (_, a: string, b: string) => `${a}%${b.charCodeAt(0).toString(16)}`),
    ]) {
      expect(bytes.equals((await base64Decoded(before + text, shift, 1e6)) as Uint8Array)).toBe(true);
    }
    for (const n of [0, 1, 2, 3]) {
      const part = bytes.subarray(0, 49_152 + n + shift);
      for (const text of [part.toString('base64'), part.toString('base64url')]) {
        expect(Buffer.from((await base64Decoded(text, 0, 1e6)) as Uint8Array).equals(part)).toBe(true);
      }
    }
  });

  test('pieces of any size', async () => {
    for (const step of [1, 7, 65_536, 262_144, 262_145, 300_000]) {
      const collector = new ByteCollector();
      const all = bytes.subarray(0, step === 1 ? 1000 : bytes.length);
      for (let at = 0; at < all.length; at += step) collector.add(all.subarray(at, at + step));
      expect(Buffer.from(await collector.all()).equals(all)).toBe(true);
    }
    expect(await new ByteCollector().all()).toHaveLength(0);
  });

  test('limits and other characters', async () => {
    expect(await base64Decoded(base64, 0, bytes.length)).toHaveLength(bytes.length);
    expect(await base64Decoded(base64, 0, bytes.length - 1)).toBe('too many');
    expect(await base64Decoded(base64, 0, 10)).toBe('too many');
    expect(await percentDecoded('abc%41', 0, 4)).toHaveLength(4);
    expect(await percentDecoded('abc%41', 0, 3)).toBe('too many');
    expect(Buffer.from((await percentDecoded('%4%zz%%41%', 0, 100)) as Uint8Array).toString()).toBe('%4%zz%A%');
    for (const text of ['AA=A', 'A===', '=', 'AAAA=', 'AA==AA==', 'AAA\u0141', 'AA A!', 'AAAA%', `${base64}A=B`]) {
      expect([text.slice(-9), await base64Decoded(text, 0, 1e6)]).toEqual([text.slice(-9), 'malformed']);
    }
    expect(await base64Decoded('', 0, 10)).toHaveLength(0);
  });
});

test('text that is too long for any picture is refused before it is looked at', async () => {
  const maxImageBytes = 1000;
  const longest = 4 * maxImageBytes + 32767;
  for (const start of ['', 'data:', 'data:,', 'http://a/', 'file:///']) {
    const call = Gemma.crops(start.padEnd(longest + 1, 'x'), { maxImageBytes, allowRemote: true });
    expect(await rejection(call)).toMatchObject({ code: 'ERR_IMAGE', detail: 'IMAGE_LIMIT' });
  }
});

test('arrays of options have limits', async () => {
  await withModel(async (gemma) => {
    const bias = Object.fromEntries(Array.from({ length: 20_000 }, (_, i) => [i, 1]));
    for (const options of [
      { stopSequences: Array<string>(257).fill('x') },
      { stopSequences: ['x'.repeat(1001)] },
      { logitBias: bias },
    ]) {
      expect(await rejection(gemma.generate('x', options))).toBeInstanceOf(RangeError);
    }
    const most = { stopSequences: Array<string>(256).fill('\u0001'.repeat(1000)) };
    await gemma.generate('x', { ...most, maxOutputTokens: 1 });
  });
  expect(await rejection(Gemma.inspect(model, { contexts: Array<number>(257).fill(64) }))).toBeInstanceOf(RangeError);
});

test('pictures that cannot fit into the context are refused before any is opened', async () => {
  await withModel(
    async (gemma) => {
      const images = Array<ImageInput>(1e5).fill('none.png');
      const full = { code: 'ERR_CONTEXT_FULL' };
      expect(await rejection(gemma.generate('x', { images }))).toMatchObject(full);
      expect(await rejection(gemma.generate('x', { images, raw: true }))).toMatchObject(full);
      expect(await rejection(gemma.logits([2, 3], { images }))).toMatchObject(full);
      const parts = images.slice(0, 1000).map((image) => ({ type: 'image' as const, image }));
      const messages: Message[] = [{ role: 'user', content: parts }];
      expect(await rejection(gemma.generate(messages))).toMatchObject(full);
      const videos: Message[] = [{ role: 'user', content: parts.map(() => ({ type: 'video', video: 'none.mp4' })) }];
      expect(await rejection(gemma.generate(videos))).toMatchObject(full);
    },
    { contextSize: 512 },
    model,
  );
});
