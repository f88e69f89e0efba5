// Pictures in prompts, on the tiny model with a vision encoder of its own (test/reference: mm-a).
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Cancellation } from '../../lib/cancellation.js';
import { renderChat, renderImage } from '../../lib/chat-template.js';
import { EmbeddingCache, fileIdentity } from '../../lib/embedding-cache.js';
import { Gemma, type ImageEmbedding, type LoadOptions, type Message } from '../../lib/index.js';
import { copyMessages } from '../../lib/messages.js';
import { encodeParts } from '../../lib/token-text.js';
import { addon, type NativeEncodeParams, type NativeModel } from '../../lib/native.js';
import { ImageEncoder } from '../../lib/vision.js';
import { atOnce, cli, data, realModel, rejection, root, runNode, tiny, withModel } from './helpers.js';
import { distance, greedyAgrees, readJson, Tensors, type Golden, type GoldenCase } from './reference.js';

const model = join(data, 'mm-a-f16.gguf');
const mmproj = join(data, 'mmproj-mm-a-f16.gguf');
const picture = (name: string) => join(data, 'images', name);

interface ImageCase extends GoldenCase {
  text: string;
  expanded_text?: string;
  images?: string[];
  pan_and_scan?: { min_crop: number; max_crops: number; min_ratio: number };
  logits_last?: number;
}
const golden = readJson<Golden>('mm-a.json');
const tensors = new Tensors('mm-a.safetensors');
const cases = (golden.cases as ImageCase[]).filter(({ images }) => images);

function cropsOf({ pan_and_scan: options }: ImageCase) {
  if (!options) return {};
  return { panAndScan: { minCropSize: options.min_crop, maxCrops: options.max_crops, minRatio: options.min_ratio } };
}

/** Largest error of got, relative to the RMS of the reference; NaN stays. */
function relativeError(got: Float32Array, want: Float32Array): number {
  if (got.length !== want.length) return NaN;
  let [squares, errors] = [0, 0];
  want.forEach((value, i) => {
    squares += value * value;
    errors += (value - (got[i] ?? NaN)) ** 2;
  });
  return Math.sqrt(errors / squares);
}

function cosine(a: Float32Array, b: Float32Array): number {
  let [ab, aa, bb] = [0, 0, 0];
  a.forEach((x, i) => {
    const y = b[i] ?? NaN;
    ab += x * y;
    aa += x * x;
    bb += y * y;
  });
  return ab / Math.sqrt(aa * bb);
}

const exact: LoadOptions = { kvCache: 'f32', visionPrecision: 'exact' };

describe('against Hugging Face', () => {
  test.each([
    ['exact', 3e-4, 1e-6],
    ['int8', 0.05, 2e-3],
  ] as const)('logits and greedy ids, %s encoder', async (visionPrecision, nrmse, kl) => {
    await withModel(
      async (gemma) => {
        expect(gemma.info.vision).toMatchObject({ imageSize: 112, tokensPerImage: 16, precision: visionPrecision });
        for (const entry of cases) {
          const options = { images: entry.images?.map(picture) ?? [], ...cropsOf(entry) };
          const { tokens, data: logits } = await gemma.logits(entry.ids, { all: true, ...options });
          expect(tokens).toEqual(entry.ids);
          const last = logits.subarray(-(entry.logits_last ?? tokens.length) * golden.vocab_size);
          const found = distance(tensors.f32(`${entry.name}.logits`), last, golden.vocab_size);
          expect([entry.name, found.nrmse < nrmse, found.kl < kl, found]).toEqual([entry.name, true, true, found]);
          const greedy = { temperature: 0, maxOutputTokens: entry.greedy_ids?.length ?? 1 };
          const result = await gemma.generate(entry.ids, { ...options, ...greedy });
          expect(greedyAgrees(entry, result.tokens, visionPrecision === 'exact' ? 0.05 : 1)).toBe(true);
          expect(result.usage.imageTokens).toBe(entry.ids.filter((id) => id === 448).length);
        }
      },
      { ...exact, visionPrecision },
      model,
    );
  });

  test.each([
    ['exact', 1e-3, 0.999999],
    ['int8', 0.05, 0.999],
  ] as const)('embeddings, %s encoder', async (visionPrecision, error, similarity) => {
    await withModel(
      async (gemma) => {
        for (const entry of cases) {
          const embeddings = await gemma.embedImage(entry.images?.map(picture) ?? [], cropsOf(entry));
          const got = Float32Array.from(embeddings.flatMap(({ data: rows }) => [...rows]));
          const want = tensors.f32(`${entry.name}.image_embeds`);
          expect(relativeError(got, want)).toBeLessThan(error);
          expect(cosine(got, want)).toBeGreaterThan(similarity);
        }
      },
      { visionPrecision },
      model,
    );
  });

  test('Pan & Scan from messages: the reference is met id for id', async () => {
    const entry = cases.find(({ name }) => name === 'img-wide-pas') as ImageCase;
    const [text = ''] = /(?<=<start_of_image>)[^<]+/.exec(entry.text) ?? [];
    const messages: Message[] = [
      {
        role: 'user',
        content: [
          { type: 'image', image: picture('wide.png') },
          { type: 'text', text },
        ],
      },
    ];
    await withModel(
      async (gemma) => {
        const { tokens } = await gemma.logits(messages, { data: false, ...cropsOf(entry) });
        expect(tokens).toEqual(entry.ids);
        expect(await gemma.countTokens(messages, cropsOf(entry))).toBe(entry.ids.length);
        const result = await gemma.generate(messages, { ...cropsOf(entry), temperature: 0, maxOutputTokens: 8 });
        expect(greedyAgrees(entry, result.tokens, 0.05)).toBe(true);
        expect(result.usage).toMatchObject({ inputTokens: entry.ids.length, imageTokens: 64 });
      },
      exact,
      model,
    );
  });
});

describe('token sequences', () => {
  const image = (name = 'small.png') => ({ type: 'image' as const, image: picture(name) });
  const text = (words: string) => ({ type: 'text' as const, text: words });
  const user = (...content: (ReturnType<typeof image> | ReturnType<typeof text>)[]): Message => ({
    role: 'user',
    content,
  });
  const IMG = '\n\n<start_of_image>#<end_of_image>\n\n';

  // Written as the reference's template does, newlines and all, and read with its control strings.
  const layouts: [string, Message[], string][] = [
    ['image, text', [user(image(), text(' What is it? '))], `user\n${IMG}What is it?`],
    ['text, image', [user(text('Look:\n'), image())], `user\nLook:${IMG}`],
    ['image, image', [user(image(), image('odd.png'))], `user\n${IMG}${IMG}`],
    ['text between', [user(image(), text('and'), image(), text('differ?'))], `user\n${IMG}and${IMG}differ?`],
    [
      'several turns',
      [
        { role: 'system', content: 'Be brief.' },
        user(image(), text('one')),
        { role: 'assistant', content: 'Yes.' },
        user(text('two'), image()),
      ],
      `user\nBe brief.\n\n${IMG}one<end_of_turn>\n<start_of_turn>model\nYes.<end_of_turn>\n<start_of_turn>user\ntwo${IMG}`,
    ],
  ];

  test.each(layouts)('%s', async (_, messages, written) => {
    await withModel(
      async (gemma) => {
        const full = `<start_of_turn>${written}<end_of_turn>\n<start_of_turn>model\n`;
        const pieces = full.split('#');
        const expected = [];
        for (const [i, piece] of pieces.entries()) {
          expected.push(...(await gemma.tokenize(piece, { special: true, bos: i === 0 })));
          if (i < pieces.length - 1) expected.push(...Array<number>(16).fill(448));
        }
        const { tokens } = await gemma.logits(messages, { data: false });
        expect(tokens).toEqual(expected);
      },
      {},
      model,
    );
  });

  test('with the real vocabulary', async () => {
    const native = await new Promise<NativeModel>((resolve, reject) =>
      addon().load({ path: realModel(), contextSize: 64 }, (event) => {
        if (event.kind === 'loaded') resolve(event.model);
        else if (event.kind === 'failed') reject(new Error(String(event.error)));
      }),
    );
    try {
      const ids = async (message: Message, crops = 0) =>
        Array.from(
          await encodeParts(
            native,
            atOnce(renderChat(atOnce(copyMessages([message], false)), () => renderImage(crops))),
          ),
        );
      expect(await ids(user(image(), text('What is this?')))).toEqual(
        // prettier-ignore
        [2, 105, 2364, 109, 255999, 262144, 256000, 108, 3689, 563, 672, 236881, 106, 107, 105, 4368, 107],
      );
      expect(await ids(user(image(), image()))).toEqual(
        // prettier-ignore
        [2, 105, 2364, 109, 255999, 262144, 256000, 110, 255999, 262144, 256000, 108, 106, 107, 105, 4368, 107],
      );
      const cropped = await ids(user(image(), text('Read it.')), 2); // 640 x 480
      expect(cropped.filter((id) => id === 262144)).toHaveLength(3);
      expect(cropped.length + 3 * 255).toBe(810);
    } finally {
      await native.close();
    }
  });

  test('nobody can write an image into a text', async () => {
    await withModel(
      async (gemma) => {
        for (const words of ['<start_of_image>', '<end_of_image>', '<image_soft_token>', '<start_of_image>\n[Image]']) {
          const { tokens } = await gemma.logits([user(text(words), image(), text(words))], { data: false });
          expect(tokens.filter((id) => id === 7 || id === 8)).toEqual([7, 8]);
          expect(tokens.filter((id) => id === 448)).toHaveLength(16);
        }
      },
      {},
      model,
    );
  });

  test('strings, raw text and ids with images', async () => {
    await withModel(
      async (gemma) => {
        const images = [picture('small.png')];
        const asked = await gemma.logits('what?', { images, data: false });
        expect(asked.tokens).toEqual((await gemma.logits([user(image(), text('what?'))], { data: false })).tokens);
        const raw = await gemma.logits('what?', { images, raw: true, data: false });
        expect(raw.tokens.slice(0, 4)).toEqual([2, 10, 7, 448]);
        expect(await rejection(gemma.logits(asked.tokens, { images: [...images, ...images] }))).toBeInstanceOf(
          RangeError,
        );
        expect(await rejection(gemma.logits([2, 448, 448, 5], { images }))).toBeInstanceOf(RangeError);
        expect(await rejection(gemma.logits([2, 448, 5]))).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
        expect(await rejection(gemma.generate([user(image())], { images }))).toBeInstanceOf(TypeError);
      },
      {},
      model,
    );
  });
});

describe('embeddings', () => {
  test('stand in for their picture', async () => {
    await withModel(
      async (gemma) => {
        const embedding = await gemma.embedImage(picture('wide.png'), { panAndScan: { minCropSize: 48 } });
        expect(embedding.shape).toEqual([64, 64]);
        expect(embedding.crops).toHaveLength(3);
        const ask = (image: string | ImageEmbedding): Message[] => [
          {
            role: 'user',
            content: [
              { type: 'image', image },
              { type: 'text', text: 'what?' },
            ],
          },
        ];
        const direct = await gemma.logits(ask(picture('wide.png')), { panAndScan: { minCropSize: 48 } });
        const through = await gemma.logits(ask(embedding));
        expect(through.tokens).toEqual(direct.tokens);
        expect(through.data).toEqual(direct.data);
        for (const wrong of [
          { ...embedding, shape: [63, 64] },
          { ...embedding, crops: [] },
          { ...embedding, data: embedding.data.subarray(1) },
          await gemma.embedImage(picture('wide.png'), { pooling: 'mean' }),
        ]) {
          expect(await rejection(gemma.logits(ask(wrong as ImageEmbedding)))).toBeInstanceOf(RangeError);
        }
      },
      {},
      model,
    );
  });

  test('pooling, several at once, progress', async () => {
    await withModel(
      async (gemma) => {
        const names = ['photo.png', 'odd.png', 'photo.png'].map(picture);
        const progress: number[] = [];
        const rows = await gemma.embedImage(names, { onProgress: (fraction) => progress.push(fraction) });
        const means = await gemma.embedImage(names, { pooling: 'mean' });
        expect(progress.at(-1)).toBe(1);
        expect([...progress].sort((a, b) => a - b)).toEqual(progress);
        expect(rows[0]?.data).toEqual(rows[2]?.data);
        expect(cosine(rows[0]?.data as Float32Array, rows[1]?.data as Float32Array)).toBeLessThan(0.999);
        means.forEach(({ data: mean, shape, crops }, i) => {
          expect([shape, crops]).toEqual([[1, 64], []]);
          const all = rows[i]?.data ?? new Float32Array();
          mean.forEach((value, d) => {
            const column = all.filter((_, k) => k % 64 === d);
            expect(Math.abs(value - column.reduce((sum, x) => sum + x, 0) / 16)).toBeLessThan(1e-5);
          });
        });
        expect(await gemma.embedImage([])).toEqual([]);
        expect(await rejection(gemma.embedImage([picture('odd.png'), __filename]))).toMatchObject({
          code: 'ERR_IMAGE',
          message: expect.stringMatching(/^images\[1\]/),
        });
        const stopped = gemma.embedImage(names, {
          onProgress: () => {
            throw new RangeError('stop');
          },
        });
        expect(await rejection(stopped)).toMatchObject({ message: 'stop' });
        expect(await rejection(gemma.embedImage(names, { signal: AbortSignal.abort('no') }))).toBe('no');
      },
      { imageCache: false },
      model,
    );
  });

  test('progress of a prompt', async () => {
    await withModel(
      async (gemma) => {
        const seen: string[] = [];
        await gemma.generate('what?', {
          images: [picture('photo.png')],
          maxOutputTokens: 2,
          onProgress: ({ stage, fraction }) => {
            seen.push(stage);
            expect(fraction >= 0 && fraction <= 1).toBe(true);
          },
        });
        expect([...new Set(seen)]).toEqual(['images', 'prompt']);
      },
      {},
      model,
    );
  });
});

describe('a picture is encoded once', () => {
  /** An encoder whose rows tell the first byte of a square. */
  function fake(cache: EmbeddingCache) {
    const calls: number[] = [];
    const native = {
      encodeImages({ pixels, n }: NativeEncodeParams, onEvent: Parameters<NativeModel['encodeImages']>[1]) {
        calls.push(n);
        const embeddings = Float32Array.from({ length: n * 6 }, (_, i) => pixels[Math.floor(i / 6) * 12] ?? NaN);
        setImmediate(() => onEvent({ kind: 'finish', embeddings }));
        return -1;
      },
    } as unknown as NativeModel;
    const encoder = new ImageEncoder(() => native, 2, 2, 3, cache);
    const embed = async (...first: number[]) => {
      const squares = first.map((value) => ({ pixels: new Uint8Array(12).fill(value), crops: [] }));
      const rows = await encoder.embed(squares.length, (i) => squares[i] as (typeof squares)[0], new Cancellation());
      await cache.flush();
      return rows.map((all) => all.map((square) => square[5]));
    };
    return { calls, embed };
  }

  test('in memory, within a request and between requests', async () => {
    const { calls, embed } = fake(new EmbeddingCache(1000));
    expect(await embed(1, 2, 1, 1, 2)).toEqual([[1], [2], [1], [1], [2]]);
    expect(calls).toEqual([2]);
    expect(await embed(2, 3)).toEqual([[2], [3]]);
    expect(calls).toEqual([2, 1]);
    expect(await Promise.all([embed(9, 8), embed(8, 9), embed(9)])).toEqual([[[9], [8]], [[8], [9]], [[9]]]);
    expect(calls.reduce((sum, n) => sum + n, 0)).toBe(5);
    const before = calls.length;
    await embed(...Array.from({ length: 20 }, (_, i) => 100 + i));
    expect(calls.slice(before)).toEqual([4, 4, 4, 4, 4]);
  });

  test('what was used longest ago makes room', async () => {
    const { calls, embed } = fake(new EmbeddingCache(2 * 24));
    await embed(1);
    await embed(2);
    await embed(1);
    await embed(3); // 2 goes
    expect(calls).toEqual([1, 1, 1]);
    await embed(1, 3);
    expect(calls).toEqual([1, 1, 1]);
    await embed(2);
    expect(calls).toEqual([1, 1, 1, 1]);
    const none = fake(new EmbeddingCache(0));
    await none.embed(1, 1);
    await none.embed(1);
    expect(none.calls).toEqual([1, 1]);
  });

  test('in a folder; a damaged file is a miss', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'gemma-cache-'));
    try {
      const path = join(folder, 'deep', 'er');
      const cache = (identity = 'a') => new EmbeddingCache(1000, { path, identity });
      const first = fake(cache());
      await first.embed(1, 2);
      const [file = '', other = '', ...more] = readdirSync(path);
      expect(more).toEqual([]);
      const second = fake(cache());
      expect(await second.embed(1, 2)).toEqual([[1], [2]]);
      expect(second.calls).toEqual([]);
      const foreign = fake(cache('b'));
      await foreign.embed(1, 2);
      expect(foreign.calls).toEqual([2]);
      const damaged = readFileSync(join(path, file));
      damaged.writeUInt8(damaged.readUInt8(70) ^ 1, 70);
      writeFileSync(join(path, file), damaged);
      truncateSync(join(path, other), 50);
      const third = fake(cache());
      expect(await third.embed(1, 2)).toEqual([[1], [2]]);
      expect(third.calls).toEqual([2]);
      const fourth = fake(cache());
      await fourth.embed(1, 2);
      expect(fourth.calls).toEqual([]);
      const unwritable = fake(new EmbeddingCache(0, { path: join(__filename, 'x'), identity: '' }));
      expect(await unwritable.embed(5)).toEqual([[5]]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  // What others may put into the folder: read and answered at once, and replaced.
  const hostile: [string, (path: string, whole: Buffer) => void][] = [
    ['a pipe', (path) => void execFileSync('mkfifo', [path])],
    ['a link to a device', (path) => symlinkSync('/dev/zero', path)],
    ['a link to itself', (path) => symlinkSync(path, path)],
    [
      'a link to a sound file',
      (path, whole) => {
        writeFileSync(`${path}.x`, whole);
        symlinkSync(`${path}.x`, path);
      },
    ],
    ['a folder', (path) => void mkdirSync(path)],
    ['an empty file', (path) => writeFileSync(path, '')],
    ['a longer file', (path, whole) => writeFileSync(path, Buffer.concat([whole, Buffer.of(0)]))],
    [
      'a file of 2^40 bytes',
      (path) => {
        writeFileSync(path, '');
        truncateSync(path, 2 ** 40);
      },
    ],
    [
      'a file without a head',
      (path, whole) => writeFileSync(path, Buffer.concat([Buffer.alloc(32), whole.subarray(32)])),
    ],
    [
      'values that are not finite',
      (path, whole) => {
        const floats = new Uint8Array(Float32Array.of(1, 2, NaN, 4, 5, Infinity).buffer);
        const sum = createHash('sha256').update(floats).digest();
        writeFileSync(path, Buffer.concat([whole.subarray(0, 32), sum, floats]));
      },
    ],
  ];
  const onUnix = process.platform === 'win32' ? test.skip : test;
  onUnix.each(hostile)('in a folder that others write to: %s', async (what, make) => {
    const path = mkdtempSync(join(tmpdir(), 'gemma-cache-'));
    try {
      const cache = () => new EmbeddingCache(0, { path, identity: 'a' });
      await fake(cache()).embed(7);
      const file = join(path, readdirSync(path)[0] as string);
      const whole = readFileSync(file);
      rmSync(file);
      make(file, whole);
      const second = fake(cache());
      expect(await second.embed(7)).toEqual([[7]]);
      expect(second.calls).toEqual([1]);
      if (what === 'a folder') return; // which is not replaced
      expect(lstatSync(file).isFile()).toBe(true);
      expect(readFileSync(file)).toEqual(whole);
      expect(readdirSync(path).filter((name) => !name.endsWith('.embedding') && !name.endsWith('.x'))).toEqual([]);
      const third = fake(cache());
      expect(await third.embed(7)).toEqual([[7]]);
      expect(third.calls).toEqual([]);
    } finally {
      rmSync(path, { recursive: true });
    }
  });

  test('the answer does not wait for the folder, disposing does', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'gemma-cache-'));
    try {
      const cache = new EmbeddingCache(0, { path: folder, identity: 'a' });
      cache.set('a', Float32Array.of(1));
      expect(readdirSync(folder)).toEqual([]);
      // A disk that is too slow: what waits is bounded.
      for (let i = 0; i < 100; ++i) cache.set(String(i), Float32Array.of(i));
      await cache.flush();
      expect(readdirSync(folder)).toHaveLength(32);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test('in one folder, by several processes at once', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'gemma-cache-'));
    try {
      const script = `
        const { Gemma } = require(${JSON.stringify(root)});
        (async () => {
          const gemma = await Gemma.load(${JSON.stringify(model)}, { imageCache: { folder: ${JSON.stringify(folder)}, maxBytes: 0 } });
          let sum = 0;
          for (let round = 0; round < 2; ++round) {
            for (let i = 0; i < 6; ++i) {
              const image = { data: new Uint8Array(16 * 16 * 3).fill(i * 40), width: 16, height: 16 };
              for (const value of (await gemma.embedImage(image)).data) sum += value;
            }
          }
          await gemma.dispose();
          process.stdout.write(String(sum));
        })();`;
      const exits = await Promise.all(Array.from({ length: 4 }, () => runNode(['-e', script])));
      expect(new Set(exits.map(({ stdout }) => stdout)).size).toBe(1);
      expect(exits.map(({ code }) => code)).toEqual([0, 0, 0, 0]);
      const files = readdirSync(folder);
      expect(files).toHaveLength(6);
      expect(files.every((name) => name.endsWith('.embedding'))).toBe(true);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test('a file that is replaced while it is loaded keeps nothing in the folder', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'gemma-cache-'));
    try {
      const mine = join(folder, 'mmproj.gguf');
      const cache = join(folder, 'cache');
      copyFileSync(mmproj, mine);
      const load: LoadOptions = {
        mmproj: mine,
        mmap: false,
        imageCache: { folder: cache },
        onProgress: (fraction) => {
          if (fraction === 1) writeFileSync(mine, 'another');
        },
      };
      await withModel((gemma) => gemma.embedImage(picture('photo.png')), load, model);
      expect(existsSync(cache)).toBe(false);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test('by the whole library', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'gemma-cache-'));
    try {
      const load: LoadOptions = { imageCache: { folder } };
      const first = await withModel((gemma) => gemma.embedImage(picture('photo.png')), load, model);
      expect(readdirSync(folder)).toHaveLength(1);
      const second = await withModel((gemma) => gemma.embedImage(picture('photo.png')), load, model);
      expect(second).toEqual(first);
      expect(await fileIdentity(mmproj)).not.toBe(await fileIdentity(model));
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test('and read once: the second question finds the keys and values', async () => {
    await withModel(
      async (gemma) => {
        const ask = (text: string) =>
          gemma.generate(text, { images: ['odd.png', 'photo.png'].map(picture), maxOutputTokens: 2 });
        expect((await ask('what?')).usage.cachedInputTokens).toBe(0);
        expect((await ask('who?')).usage.cachedInputTokens).toBeGreaterThan(32);
      },
      {},
      model,
    );
  });
});

describe('which vision encoder', () => {
  let folder: string;
  beforeEach(() => (folder = mkdtempSync(join(tmpdir(), 'gemma-mmproj-'))));
  afterEach(() => rmSync(folder, { recursive: true }));
  const place = (source: string, name: string) => copyFileSync(source, join(folder, name));
  const sees = (options: LoadOptions = {}) =>
    withModel(async (gemma) => gemma.info.vision !== undefined, options, join(folder, 'gemma-3-4b-it-Q4_K_M.gguf'));

  test.each(['mmproj-model-f16.gguf', 'mmproj-F16.gguf', 'mmproj-model-f16-4B.gguf', 'gemma-3-4b-it-mmproj-BF16.gguf'])(
    '%s beside the model is found',
    async (name) => {
      place(model, 'gemma-3-4b-it-Q4_K_M.gguf');
      expect(await sees()).toBe(false);
      place(mmproj, name);
      expect(await sees()).toBe(true);
      expect(await sees({ mmproj: false })).toBe(false);
      expect((await Gemma.inspect(join(folder, 'gemma-3-4b-it-Q4_K_M.gguf'))).vision).toMatchObject({ imageSize: 112 });
    },
  );

  test('one of another model, or a broken one, is not', async () => {
    place(model, 'gemma-3-4b-it-Q4_K_M.gguf');
    place(mmproj, 'mmproj-gemma-3-12b-f16.gguf');
    expect(await sees()).toBe(false);
    writeFileSync(join(folder, 'mmproj-f16.gguf'), readFileSync(mmproj).subarray(0, 5000));
    expect(await sees()).toBe(false);
    const error = withModel(
      (gemma) => gemma.embedImage(picture('odd.png')),
      {},
      join(folder, 'gemma-3-4b-it-Q4_K_M.gguf'),
    );
    expect(await rejection(error)).toMatchObject({
      code: 'ERR_UNSUPPORTED_INPUT',
      detail: 'NO_VISION',
      message: expect.stringContaining('mmproj-f16.gguf'),
    });
    mkdirSync(join(folder, 'apart'));
    place(mmproj, 'apart/x.gguf');
    expect(await sees({ mmproj: join(folder, 'apart', 'x.gguf') })).toBe(true);
    const broken = Gemma.load(join(folder, 'gemma-3-4b-it-Q4_K_M.gguf'), { mmproj: join(folder, 'mmproj-f16.gguf') });
    expect(await rejection(broken)).toMatchObject({ code: 'ERR_GGUF_INVALID', detail: 'TRUNCATED' });
  });

  test('none, for a model of text', async () => {
    await withModel(async (gemma) => {
      expect(gemma.info.vision).toBeUndefined();
      expect(await rejection(gemma.generate('x', { images: [picture('odd.png')] }))).toMatchObject({
        code: 'ERR_UNSUPPORTED_INPUT',
        detail: 'NO_VISION',
      });
    });
    const memory = await Gemma.estimate(model);
    expect(memory.visionBytes).toBeGreaterThan(0);
    const { kvBytes } = await Gemma.estimate(model, { prefixCacheBytes: 0 });
    const prefixCache = memory.kvBytes - kvBytes; // a sixteenth of the machine's memory
    expect(prefixCache).toBeGreaterThan(0);
    expect(prefixCache).toBeLessThanOrEqual(512 << 20);
    expect((await Gemma.estimate(tiny)).kvBytes - (await Gemma.estimate(tiny, { prefixCacheBytes: 0 })).kvBytes).toBe(prefixCache); // prettier-ignore
    expect((await Gemma.estimate(model, { mmproj: false })).visionBytes).toBe(0);
    expect((await Gemma.estimate(tiny)).visionBytes).toBe(0);
  });
});

describe('limits and abort', () => {
  test('more pictures than the context has room for, before any work', async () => {
    await withModel(
      async (gemma) => {
        const images = Array<string>(8).fill(picture('odd.png'));
        expect(await rejection(gemma.generate('x', { images }))).toMatchObject({ code: 'ERR_CONTEXT_FULL' });
      },
      { contextSize: 100 },
      model,
    );
  });

  test('abort and leaving while pictures are encoded', async () => {
    await withModel(
      async (gemma) => {
        for (let i = 0; i < 20; ++i) {
          const controller = new AbortController();
          const result = gemma.generate('x', { images: [picture('photo.png')], signal: controller.signal, seed: i });
          setTimeout(() => controller.abort('enough'), i / 2);
          await result.catch((error: unknown) => expect(error).toBe('enough'));
        }
        const stream = gemma.stream('x', { images: [picture('photo.png')], maxOutputTokens: 3 });
        const reader = stream[Symbol.asyncIterator]();
        void reader.next().catch(() => {});
        await reader.return?.();
        expect(['other', 'length', 'stop']).toContain((await stream.result).finishReason);
        expect((await gemma.generate('x', { maxOutputTokens: 2 })).tokens.length).toBeGreaterThan(0);
      },
      { imageCache: false },
      model,
    );
  });

  test('a callback that throws ends the call with its error', async () => {
    await withModel(
      async (gemma) => {
        const onProgress = () => {
          throw new RangeError('stop');
        };
        const options = { images: [picture('photo.png')], onProgress, maxOutputTokens: 1 };
        expect(await rejection(gemma.generate('x', options))).toMatchObject({ message: 'stop' });
        expect(await rejection(gemma.stream('x', options).result)).toMatchObject({ message: 'stop' });
      },
      {},
      model,
    );
  });

  test('dispose while pictures are encoded', async () => {
    const gemma = await Gemma.load(model);
    const result = rejection(gemma.embedImage(Array<string>(30).fill(picture('photo.png'))));
    await gemma.dispose();
    expect(await result).toMatchObject({ code: 'ERR_DISPOSED' });
  });
});

describe('command line', () => {
  const run = async (...args: string[]) => {
    const { code, stdout, stderr } = await runNode([cli, ...args, '--json']);
    expect(stderr).toBe('');
    return { code, result: JSON.parse(stdout) as Record<string, unknown> };
  };

  test('run, logits, embed-image', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'gemma-cli-'));
    try {
      const images = ['--image', picture('odd.png'), '--image', picture('photo.png')];
      const asked = await run('run', '--model', model, ...images, '--max-tokens', '3', 'Which?');
      expect(asked).toMatchObject({ code: 0, result: { usage: { imageTokens: 32, outputTokens: 3 } } });

      const entry = cases.find(({ name }) => name === 'img-two') as ImageCase;
      const out = join(folder, 'logits.f32');
      const flags = ['--model', model, '--mmproj', mmproj, '--kv', 'f32', '--all', '--out', out];
      const { result } = await run('logits', ...flags, ...images, '--tokens', entry.ids.join(','));
      expect(result).toMatchObject({ tokens: entry.ids, shape: [entry.ids.length, golden.vocab_size] });
      const logits = new Float32Array(new Uint8Array(readFileSync(out)).buffer);
      const { nrmse } = distance(tensors.f32('img-two.logits'), logits, golden.vocab_size);
      expect(nrmse).toBeLessThan(0.05);

      const rows = join(folder, 'rows.f32');
      const embedded = await run(
        'embed-image',
        ...flags.slice(0, 4),
        '--tile',
        '1',
        '--out',
        rows,
        picture('wide.png'),
      );
      expect(embedded.result).toMatchObject({ shape: [64, 64], tokensPerImage: 16 });
      expect(embedded.result.crops).toHaveLength(3);
      expect(readFileSync(rows).length).toBe(64 * 64 * 4);

      const blind = await run('run', '--model', model, '--no-mmproj', ...images, 'Which?');
      expect(blind).toMatchObject({
        code: 1,
        result: { error: { code: 'ERR_UNSUPPORTED_INPUT', detail: 'NO_VISION' } },
      });
      const broken = await run('run', '--model', model, '--image', __filename, 'Which?');
      expect(broken).toMatchObject({ code: 1, result: { error: { code: 'ERR_IMAGE', detail: 'IMAGE_DECODE' } } });
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

test('rows that native code holds are good for one call, and nothing else passes for them', async () => {
  const native = await new Promise<NativeModel>((resolve, reject) => {
    const options = { path: model, mmproj: join(data, 'mmproj-mm-a-f16.gguf') };
    addon().load(options, (event) => {
      if (event.kind === 'loaded') resolve(event.model);
      if (event.kind === 'failed') reject(new Error(String(event.error)));
    });
  });
  try {
    const { config, vision, imageToken } = native.info();
    const n = vision?.tokensPerImage ?? 0;
    const held = native.holdRows(new Float32Array(n * config.modelDim).fill(0.5));
    const tokens = Int32Array.from([2, ...Array<number>(n).fill(imageToken), 5]);
    const evaluate = (embedding: unknown) =>
      new Promise<unknown>((resolve) => {
        const images = [{ first: 1, embedding: embedding as Float32Array }];
        try {
          native.evaluate({ tokens, images, all: false, rows: true, top: 0, next: false }, (event) => {
            if (event.kind === 'finish') resolve(event.error);
          });
        } catch (error) {
          resolve(error);
        }
      });
    expect(await evaluate(held)).toBeUndefined();
    expect(await evaluate(held)).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    for (const other of [{}, native, null, 5, 'x', new Float64Array(4), Object.create(held)]) {
      expect(await evaluate(other)).toMatchObject({ message: expect.stringContaining('embedding') });
    }
    for (const other of [{}, null, 5, new Uint8Array(4)]) {
      expect(() => native.holdRows(other as never)).toThrow();
    }
  } finally {
    await native.close();
  }
});
