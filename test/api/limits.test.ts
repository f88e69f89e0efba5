// Every limit that callers can set takes effect, in every call that has it, and no other one takes its place.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Gemma, type GenerateOptions, type ImageInput, type Message, type VideoPart } from '../../lib/index.js';
import { EmbeddingCache } from '../../lib/embedding-cache.js';
import { CROP, IMAGE, VIDEO } from '../../lib/media-options.js';
import { data, rejection, tiny, withModel } from './helpers.js';

const photo = join(data, 'images', 'photo.png'); // 150 x 110
const photoBytes = statSync(photo).size;
let folder: string;
let video: string; // 100 frames of 62 x 46 in 10 seconds
let gemma: Gemma;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'gemma-limits-'));
  video = join(folder, 'clip.mkv');
  const source = 'testsrc=s=62x46:r=10:d=10';
  const { stderr, error } = spawnSync('ffmpeg', ['-y', '-f', 'lavfi', '-i', source, '-c:v', 'ffv1', video]);
  if (error || !statSync(video).size) throw new Error(`ffmpeg is needed: ${String(error ?? stderr)}`);
  gemma = await Gemma.load(join(data, 'mm-a-f16.gguf'), { contextSize: 2048 });
});
afterAll(async () => {
  await gemma.dispose();
  rmSync(folder, { recursive: true });
});

const watch = (options: GenerateOptions, part: Partial<VideoPart> = {}) => {
  const messages: Message[] = [{ role: 'user', content: [{ type: 'video', video, ...part }] }];
  return gemma.generate(messages, { maxOutputTokens: 1, ...options });
};
const framesOf = async (...args: Parameters<typeof watch>) => (await watch(...args)).usage.imageTokens / 16;

/** The calls that take a picture. */
const calls: Record<string, (image: ImageInput, options: object) => Promise<unknown>> = {
  generate: (image, options) => gemma.generate('x', { images: [image], maxOutputTokens: 1, ...options }),
  'generate with messages': (image, options) =>
    gemma.generate([{ role: 'user', content: [{ type: 'image', image }] }], { maxOutputTokens: 1, ...options }),
  stream: (image, options) => gemma.stream('x', { images: [image], maxOutputTokens: 1, ...options }).result,
  countTokens: (image, options) => gemma.countTokens('x', { images: [image], ...options }),
  logits: (image, options) => gemma.logits('x', { images: [image], data: false, ...options }),
  embedImage: (image, options) => gemma.embedImage(image, options),
  crops: (image, options) => Gemma.crops(image, options),
};

async function refused(image: ImageInput, options: object, expected: { detail: string; message: string }) {
  for (const [name, call] of Object.entries(calls)) {
    const error = (await rejection(call(image, options))) as Error & { detail?: string };
    expect([name, error.detail, error.message]).toEqual([
      name,
      expected.detail,
      expect.stringContaining(expected.message),
    ]);
  }
}

const encoded = readFileSync(photo);
const inputs: ImageInput[] = [
  photo,
  encoded,
  new Blob([new Uint8Array(encoded)]),
  encoded.toString('base64'),
  `data:image/png;base64,${encoded.toString('base64')}`,
];
const cropsOf = async (options: object) => {
  const page = { data: new Uint8Array(1200 * 300), width: 1200, height: 300 };
  return (await Gemma.crops(page, options)).crops.length;
};

const cases: Record<string, () => Promise<void>> = {
  async maxImageBytes() {
    for (const image of inputs) {
      await refused(image, { maxImageBytes: photoBytes - 1 }, { detail: 'IMAGE_LIMIT', message: 'maxImageBytes' });
      await Gemma.crops(image, { maxImageBytes: photoBytes });
    }
    await watch({ maxImageBytes: 1 }); // is for pictures
  },
  async maxImagePixels() {
    for (const image of [...inputs, { data: new Uint8Array(150 * 110), width: 150, height: 110 }]) {
      await refused(image, { maxImagePixels: 150 * 110 - 1 }, { detail: 'IMAGE_LIMIT', message: 'maxImagePixels' });
      await Gemma.crops(image, { maxImagePixels: 150 * 110 });
    }
    expect(await rejection(watch({ maxImagePixels: 62 * 46 - 1 }))).toMatchObject({ detail: 'VIDEO_LIMIT' });
    await watch({ maxImagePixels: 62 * 46 });
  },
  async allowRemote() {
    const url = 'http://127.0.0.1:1/a.png';
    await refused(url, {}, { detail: 'SSRF_BLOCKED', message: 'allowRemote' });
    await refused(url, { allowRemote: true }, { detail: 'SSRF_BLOCKED', message: 'not a public address' });
    await refused(url, { allowRemote: 'private' }, { detail: 'IMAGE_FETCH', message: 'cannot be fetched' });
  },
  async remoteTimeoutMs() {
    const mute = createServer(() => {});
    await new Promise<void>((resolve) => mute.listen(0, '127.0.0.1', resolve));
    const url = `http://127.0.0.1:${(mute.address() as AddressInfo).port}/`;
    const options = { allowRemote: 'private', remoteTimeoutMs: 50 };
    await refused(url, options, { detail: 'IMAGE_FETCH', message: 'remoteTimeoutMs' });
    mute.closeAllConnections();
    mute.close();
    await watch({ remoteTimeoutMs: 1 }); // is for pictures
  },
  async allowLocal() {
    await refused(photo, { allowLocal: false }, { detail: 'LOCAL_BLOCKED', message: 'allowLocal' });
    await refused(encoded, { allowLocal: true, maxImageBytes: 1 }, { detail: 'IMAGE_LIMIT', message: 'maxImageBytes' });
    const error = await rejection(watch({ allowLocal: false }));
    expect(error).toMatchObject({ code: 'ERR_VIDEO', detail: 'LOCAL_BLOCKED' });
    for (const url of ['file://host/share/a.mp4', new URL('file://host/share/a.mp4')]) {
      expect(await rejection(watch({}, { video: url }))).toMatchObject({ code: 'ERR_VIDEO', detail: 'LOCAL_BLOCKED' });
    }
  },
  async alpha() {
    const image = { data: new Uint8Array(64 * 64 * 4), width: 64, height: 64 }; // transparent black
    const [white, drop, plain] = await Promise.all(
      ([{}, { alpha: 'drop' }, { alpha: 'white' }] as const).map(async (options) =>
        Array.from((await gemma.embedImage(image, options)).data),
      ),
    );
    expect(white).toEqual(plain);
    expect(white).not.toEqual(drop);
  },
  async panAndScan() {
    expect(await cropsOf({ panAndScan: { minCropSize: 50 } })).toBe(4);
    expect(await cropsOf({ panAndScan: { minCropSize: 301 } })).toBe(0);
    expect(await cropsOf({ panAndScan: { minCropSize: 50, maxCrops: 3 } })).toBe(3);
    expect(await cropsOf({ panAndScan: { minCropSize: 50, minRatio: 4.1 } })).toBe(0);
    expect(await cropsOf({ panAndScan: false })).toBe(0);
  },
  async tile() {
    expect(await cropsOf({ tile: 1 })).toBe(4);
    expect(await cropsOf({ tile: 2 })).toBe(16);
  },
  async maxVideoSeconds() {
    expect(await rejection(watch({ maxVideoSeconds: 9.9 }))).toMatchObject({
      code: 'ERR_VIDEO',
      detail: 'VIDEO_LIMIT',
    });
    await watch({ maxVideoSeconds: 10 });
  },
  async maxVideoBytes() {
    const { size } = statSync(video);
    const error = await rejection(watch({ maxVideoBytes: size - 1 }));
    expect(error).toMatchObject({ detail: 'VIDEO_LIMIT', message: expect.stringContaining('maxVideoBytes') });
    await watch({ maxVideoBytes: size });
  },
  async videoTimeoutMs() {
    const error = await rejection(watch({ videoTimeoutMs: 1 }));
    expect(error).toMatchObject({ detail: 'VIDEO_LIMIT', message: expect.stringContaining('videoTimeoutMs') });
    await watch({ videoTimeoutMs: 600_000 });
  },
};

test('there is a case for each option of pictures and videos, and no name is used twice', () => {
  const names = [IMAGE, CROP, VIDEO].flatMap((table) => Object.keys(table));
  expect(Object.keys(cases).toSorted()).toEqual(names.toSorted());
  expect(new Set(names).size).toBe(names.length);
});

test.each(Object.keys(cases))('%s', (name) => cases[name]?.());

test('maxFrames and fps of a video', async () => {
  expect(await framesOf({})).toBe(16);
  expect(await framesOf({}, { maxFrames: 3 })).toBe(3);
  expect(await framesOf({}, { fps: 0.5 })).toBe(5);
  expect(await framesOf({}, { fps: 100, maxFrames: 7 })).toBe(7);
});

test('limits of a model: contextSize, batchSize, threads, imageCache.maxBytes, prefixCacheBytes', async () => {
  await withModel(
    async (small) => {
      expect(small.info).toMatchObject({ contextSize: 64, threads: 1 });
      expect(await rejection(small.generate('word '.repeat(100)))).toMatchObject({ code: 'ERR_CONTEXT_FULL' });
      const { usage } = await small.generate('x', { raw: true, onOverflow: 'truncate', logitBias: { 1: -Infinity } });
      expect(usage.inputTokens + usage.outputTokens).toBeLessThanOrEqual(64);
    },
    { contextSize: 64, threads: 1 },
  );
  const scratch = async (batchSize: number) => (await Gemma.estimate(tiny, { batchSize })).scratchBytes;
  expect(await scratch(16)).toBeLessThan(await scratch(512));
  const cache = new EmbeddingCache(8);
  for (const [key, length] of [['a', 1], ['b', 1], ['c', 1], ['d', 3]] as const) cache.set(key, new Float32Array(length)); // prettier-ignore
  const kept = await Promise.all(['a', 'b', 'c', 'd'].map(async (key) => (await cache.get(key, 1)) !== undefined));
  expect(kept).toEqual([false, true, true, false]);
  for (const prefixCacheBytes of [0, 64 << 20]) {
    const options = { contextSize: 512, prefixCacheBytes, imageCache: { maxBytes: 0 } };
    await withModel(
      async (model) => {
        const ask = () => model.generate('What?', { images: [photo], maxOutputTokens: 1, temperature: 0 });
        await ask();
        expect((await ask()).usage.cachedInputTokens > 0).toBe(prefixCacheBytes > 0);
      },
      options,
      join(data, 'mm-a-f16.gguf'),
    );
  }
});

test('limits of an answer: maxOutputTokens, logprobs', async () => {
  await withModel(async (model) => {
    for (const maxOutputTokens of [1, 7]) {
      const { usage, finishReason, logprobs } = await model.generate('x', {
        maxOutputTokens,
        logprobs: maxOutputTokens,
        logitBias: { 1: -Infinity, 106: -Infinity },
      });
      expect(usage.outputTokens).toBeLessThanOrEqual(maxOutputTokens);
      if (finishReason === 'length') expect(usage.outputTokens).toBe(maxOutputTokens);
      expect(logprobs?.every(({ top }) => top?.length === maxOutputTokens)).toBe(true);
    }
  });
});
