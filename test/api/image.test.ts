import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server, type ServerResponse } from 'node:http';
import { createServer as createTcpServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { deflateSync } from 'node:zlib';
import sharp from 'sharp';
import { Gemma, type ImageInput } from '../../lib/index.js';
import { prepareImage, readImage, type Pixels } from '../../lib/image.js';
import { imageLimits } from '../../lib/media-options.js';
import { isElsewhere } from '../../lib/local-file.js';
import { isPublicAddress } from '../../lib/remote.js';
import { cli, data, rejection, runNode } from './helpers.js';
import { readJson, Tensors } from './reference.js';

const limits = imageLimits({});
const formats = join(data, 'formats');
const photo = join(data, 'images', 'photo.png');

/** What a picture decodes to, as RGB. */
function rgbOf({ data: bytes, layout, width, height, alpha }: Pixels): Uint8Array {
  const channels = { grey: 1, 'grey-alpha': 2, rgb: 3, rgba: 4, cmyk: 4 }[layout];
  const rgb = new Uint8Array(width * height * 3);
  const at = (i: number) => bytes[i] ?? NaN;
  for (let i = 0; i < width * height; ++i) {
    for (let c = 0; c < 3; ++c) {
      const p = i * channels;
      if (layout === 'cmyk') {
        const white = 255 - at(p + 3);
        rgb[i * 3 + c] = Math.max(0, white - Math.floor((at(p + c) * white + 127) / 255));
      } else {
        const value = at(p + (channels < 3 ? 0 : c));
        const opacity = alpha === 'white' && channels % 2 === 0 ? at(p + channels - 1) : 255;
        rgb[i * 3 + c] = Math.round((value * opacity) / 255 + (255 - opacity));
      }
    }
  }
  return rgb;
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

interface FormatCase {
  file: string;
  width: number;
  height: number;
  sha256: string | null;
  /** laid on white */
  white?: string;
  mean?: number[];
}

describe('decoding', () => {
  const cases = readJson<FormatCase[]>('formats/formats.json');

  test.each(cases)('$file: the pixels Hugging Face opens', async (golden) => {
    const pixels = await readImage(join(formats, golden.file), 'image', limits);
    expect(pixels).toMatchObject({ width: golden.width, height: golden.height });
    const rgb = rgbOf(pixels);
    if (golden.sha256 !== null) {
      expect(sha256(rgb)).toBe(golden.sha256);
    } else {
      const sums = [0, 0, 0];
      rgb.forEach((value, i) => (sums[i % 3] = (sums[i % 3] ?? NaN) + value));
      sums.forEach((sum, c) => expect(Math.abs((sum * 3) / rgb.length - (golden.mean?.[c] ?? NaN))).toBeLessThan(1));
    }
  });

  test.each(cases.filter(({ white }) => white !== undefined))('$file on white: as a picture object', async (golden) => {
    const pixels = await readImage(join(formats, golden.file), 'image', imageLimits({ alpha: 'white' }));
    expect(sha256(rgbOf(pixels))).toBe(golden.white);
  });

  test('pictures and crops of images.json, resized: byte for byte', async () => {
    interface Item {
      file: string;
      key: string;
      size: [number, number];
      pan_and_scan: { min_crop: number; max_crops: number; min_ratio: number } | null;
      crop_boxes?: [number, number, number, number][];
    }
    const golden = readJson<{ image_size: number; images: Item[] }>('images.json');
    const tensors = new Tensors('images.safetensors');
    const size = golden.image_size;
    for (const { file, key, size: expected, pan_and_scan: options, crop_boxes: boxes = [] } of golden.images) {
      const pixels = await readImage(join(data, 'images', file), 'image', limits);
      expect([file, pixels.width, pixels.height]).toEqual([file, ...expected]);
      if (tensors.has(`${key}.rgb`)) expect(sha256(rgbOf(pixels))).toBe(sha256(tensors.u8(`${key}.rgb`)));
      const crops = options && {
        panAndScan: { minCropSize: options.min_crop, maxCrops: options.max_crops, minRatio: options.min_ratio },
      };
      const prepared = await prepareImage(pixels, size, crops ?? {});
      expect(prepared.crops.map(({ x, y, width, height }) => [x, y, width, height])).toEqual(boxes);
      const levels = tensors.u8(`${key}.levels`); // [squares, 3, size, size]
      const rows = new Uint8Array(levels.length);
      levels.forEach((level, i) => {
        const [square, channel] = [Math.floor(i / size ** 2 / 3), Math.floor(i / size ** 2) % 3];
        rows[(square * size ** 2 + (i % size ** 2)) * 3 + channel] = level;
      });
      expect(prepared.pixels.length).toBe(rows.length);
      expect([key, sha256(prepared.pixels)]).toEqual([key, sha256(rows)]);
    }
  });
});

describe('where pictures come from', () => {
  const bytes = readFileSync(photo);
  const expected = { width: 150, height: 110, layout: 'rgb' };

  test.each<[string, ImageInput]>([
    ['a path', photo],
    ['a file: URL', pathToFileURL(photo)],
    ['a file: URL as text', pathToFileURL(photo).href],
    ['a data: URL', `data:image/png;base64,${bytes.toString('base64')}`],
    ['a data: URL in percent', `data:,${[...bytes].map((b) => `%${b.toString(16).padStart(2, '0')}`).join('')}`],
    ['a Buffer', bytes],
    ['a Uint8Array', new Uint8Array(bytes)],
    ['an ArrayBuffer', new Uint8Array(bytes).buffer],
    ['a Blob', new Blob([new Uint8Array(bytes)])],
  ])('%s', async (_, image) => {
    const want = await readImage(photo, 'image', limits);
    const pixels = await readImage(image, 'image', limits);
    expect(pixels).toMatchObject(expected);
    expect(sha256(pixels.data)).toBe(sha256(want.data));
  });

  test.each(['420.jpg', 'rgba.png', 'animated.gif', 'lossy.webp', 'lzw.tiff', '420.avif'])(
    'base64 text of %s, as clients of Ollama and OpenAI pass it',
    async (file) => {
      const whole = readFileSync(join(formats, file));
      const want = sha256((await readImage(whole, 'image', limits)).data);
      const base64 = whole.toString('base64');
      const lines = base64.replace(/.{76}/g, '$&\r\n');
      const forUrls = whole.toString('base64url');
      const texts = [base64, lines, forUrls, base64.replace(/=+$/, ''), `data:image/x;base64,${base64}`];
      texts.push(`data:;base64,${encodeURIComponent(base64)}`, `DATA:;charset=utf-8; BASE64 ,${lines}`);
      for (const text of texts) {
        expect(sha256((await readImage(text, 'image', limits)).data)).toBe(want);
        expect(sha256((await readImage(text, 'image', imageLimits({ allowLocal: false }))).data)).toBe(want);
      }
    },
  );

  test('text that is cut anywhere or has other characters in it is no base64', async () => {
    const base64 = bytes.toString('base64');
    const texts = [`${base64.slice(0, 600)}!${base64.slice(600)}`, `${base64}=AAAA`, `data:;base64,${base64}%ZZ`];
    for (const text of [...texts, 'data:;base64,@@@@', 'data:,%', `data:${'x'.repeat(1e6)}`]) {
      const error = (await rejection(readImage(text, 'image', limits))) as Error;
      expect(error).toMatchObject({ code: 'ERR_IMAGE', detail: 'IMAGE_DECODE' });
      expect(error.message.length).toBeLessThan(200);
    }
    for (const text of ['Z'.repeat(4000), 'Z'.repeat(3e6), `${base64.slice(0, 200)}!${base64.slice(200)}`]) {
      const error = (await rejection(readImage(text, 'image', limits))) as Error;
      expect(error).toMatchObject({ code: 'ERR_FILE' });
      expect(error.message.length).toBeLessThan(400);
    }
  });

  test('a file whose name is base64 of a picture is a file', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'gemma-names-'));
    try {
      const dot = Buffer.from('R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7', 'base64');
      const name = dot.toString('base64url').slice(0, 48);
      writeFileSync(join(folder, name), bytes);
      const script = `
        const { Gemma } = require(${JSON.stringify(join(cli, '..', '..', 'index.js'))});
        Promise.all(${JSON.stringify([name, dot.toString('base64')])}.map((image) => Gemma.crops(image))).then((all) =>
          console.log(all.map(({ width, height }) => width + 'x' + height).join()));`;
      const { stdout, stderr } = await runNode(['-e', script], { cwd: folder });
      expect([stdout, stderr]).toEqual(['150x110,1x1\n', '']);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test('files of this machine only when allowed, of other machines never', async () => {
    const local = imageLimits({ allowLocal: false });
    const url = pathToFileURL(photo);
    for (const image of [photo, url, url.href, `FILE:${photo}`, 'none.png', `${'a'.repeat(1e6)}.png`]) {
      const error = await rejection(readImage(image, 'image', local));
      expect(error).toMatchObject({
        code: 'ERR_IMAGE',
        detail: 'LOCAL_BLOCKED',
        message: expect.stringMatching(/allowLocal/),
      });
    }
    await readImage(bytes, 'image', local);
    await readImage(`data:;base64,${bytes.toString('base64')}`, 'image', local);
    for (const image of ['file://host/share/a.png', new URL('file://host/share/a.png'), 'file://127.0.0.1/a.png']) {
      expect(await rejection(readImage(image, 'image', limits))).toMatchObject({ detail: 'LOCAL_BLOCKED' });
    }
    await readImage(url.href.replace('file://', 'file://localhost'), 'image', limits);
    for (const image of ['file:///a%2Fb.png', 'file:', 'file://%00/']) {
      expect(await rejection(readImage(image, 'image', limits))).toBeInstanceOf(Error);
    }
    const elsewhere = [
      '\\\\host\\share\\a.png',
      '//host/share/a.png',
      '\\/host/a',
      '\\\\?\\UNC\\host\\a',
      '\\\\.\\pipe\\a',
    ];
    for (const path of elsewhere) expect([path, isElsewhere(path, 'win32')]).toEqual([path, true]);
    for (const path of ['C:\\a.png', 'a\\\\b.png', '\\a.png', '/a.png', '\\\\?\\C:\\a.png', 'a//b']) {
      expect([path, isElsewhere(path, 'win32')]).toEqual([path, false]);
    }
    for (const path of elsewhere) expect(isElsewhere(path, 'linux')).toBe(false);
  });

  test('raw pixels are copied', async () => {
    const raw = { data: new Uint8ClampedArray(7 * 5 * 4).fill(9), width: 7, height: 5 };
    const pixels = await readImage(raw, 'image', limits);
    raw.data.fill(1);
    expect(pixels).toMatchObject({ width: 7, height: 5, layout: 'rgba' });
    expect(pixels.data.every((value) => value === 9)).toBe(true);
    for (const [channels, layout] of [
      [1, 'grey'],
      [2, 'grey-alpha'],
      [3, 'rgb'],
    ] as const) {
      const image = { data: new Uint8Array(35 * channels), width: 7, height: 5 };
      expect((await readImage(image, 'image', limits)).layout).toBe(layout);
      expect((await readImage({ ...image, channels }, 'image', limits)).layout).toBe(layout);
      expect(await rejection(readImage({ ...image, channels: 4 }, 'image', limits))).toBeInstanceOf(RangeError);
    }
  });

  test('raw pixels with alpha are laid on white, files lose it, unless told otherwise', async () => {
    const data = new Uint8Array([10, 20, 30, 0, 10, 20, 30, 255, 10, 20, 30, 51]);
    const raw = { data, width: 3, height: 1 };
    const seen = async (image: ImageInput, options = {}) => {
      const pixels = await readImage(image, 'image', imageLimits(options));
      const prepared = await prepareImage(pixels, 3, {});
      return [...prepared.pixels.subarray(0, 9)];
    };
    const white = [255, 255, 255, 10, 20, 30, 206, 208, 210];
    const dropped = [10, 20, 30, 10, 20, 30, 10, 20, 30];
    expect(await seen(raw)).toEqual(white);
    expect(await seen(raw, { alpha: 'drop' })).toEqual(dropped);
    const png = await sharp(data, { raw: { width: 3, height: 1, channels: 4 } })
      .png()
      .toBuffer();
    expect(await seen(png)).toEqual(dropped);
    expect(await seen(png, { alpha: 'white' })).toEqual(white);
    const grey = { data: new Uint8Array([10, 0, 10, 255, 10, 51]), width: 3, height: 1 };
    expect(await seen(grey)).toEqual([255, 255, 255, 10, 10, 10, 206, 206, 206]);
    expect(await rejection(Gemma.crops(raw, { alpha: 'black' as never }))).toBeInstanceOf(RangeError);
  });

  test('wrong arguments', async () => {
    for (const image of [5, null, undefined, {}, '', new URL('ftp://a/b'), { data: 'x', width: 1, height: 1 }]) {
      expect(await rejection(Gemma.crops(image as never))).toBeInstanceOf(TypeError);
    }
    const odd = { data: new Uint8Array(11), width: 2, height: 3 };
    expect(await rejection(Gemma.crops(odd))).toBeInstanceOf(RangeError);
    expect(await rejection(Gemma.crops(photo, { tile: 0 }))).toBeInstanceOf(RangeError);
    expect(await rejection(Gemma.crops(photo, { tile: 2, panAndScan: true }))).toBeInstanceOf(TypeError);
    expect(await rejection(Gemma.crops(photo, { panAndScan: { minCrop: 1 } as never }))).toBeInstanceOf(TypeError);
    expect(await rejection(Gemma.crops(photo, { panAndScan: { minRatio: NaN } }))).toBeInstanceOf(RangeError);
    expect(await rejection(Gemma.crops(photo, { allowRemote: 'yes' as never }))).toBeInstanceOf(TypeError);
    expect(await rejection(Gemma.crops(photo, { signal: AbortSignal.abort('stop') }))).toBe('stop');
  });
});

function crc32(bytes: Uint8Array): number {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; ++bit) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

/** A PNG of 1-bit grey, all black; its pixels are there, up to 40 MB. */
function png(width: number, height: number): Buffer {
  const chunk = (type: string, body: Buffer) => {
    const named = Buffer.concat([Buffer.from(type, 'latin1'), body]);
    const out = Buffer.alloc(named.length + 8);
    out.writeUInt32BE(body.length, 0);
    named.copy(out, 4);
    out.writeUInt32BE(crc32(named), named.length + 4);
    return out;
  };
  const head = Buffer.alloc(13);
  head.writeUInt32BE(width, 0);
  head.writeUInt32BE(height, 4);
  head[8] = 1;
  return Buffer.concat([
    Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'),
    chunk('IHDR', head),
    chunk('IDAT', deflateSync(Buffer.alloc(Math.min(40e6, (Math.ceil(width / 8) + 1) * height)))),
    chunk('IEND', Buffer.alloc(0)),
  ]);
}

describe('hostile pictures', () => {
  let folder: string;
  beforeAll(() => (folder = mkdtempSync(join(tmpdir(), 'gemma-images-'))));
  afterAll(() => rmSync(folder, { recursive: true }));

  test('sizes (attacks 24)', async () => {
    expect(await Gemma.crops(png(700, 100))).toMatchObject({ width: 700, height: 100 });
    const bomb = png(17_000, 17_000);
    expect(bomb.length).toBeLessThan(1 << 20);
    for (const image of [bomb, png(1, 100_000), png(100_000, 1), png(0, 0), png(2 ** 31, 2 ** 31 - 1)]) {
      expect(await rejection(Gemma.crops(image))).toMatchObject({ code: 'ERR_IMAGE', detail: 'IMAGE_LIMIT' });
    }
    const image = readFileSync(photo);
    for (const options of [{ maxImagePixels: 150 * 110 - 1 }, { maxImageBytes: image.length - 1 }]) {
      for (const input of [photo, image, new Blob([new Uint8Array(image)])]) {
        expect(await rejection(Gemma.crops(input, options))).toMatchObject({
          code: 'ERR_IMAGE',
          detail: 'IMAGE_LIMIT',
        });
      }
    }
    await Gemma.crops(photo, { maxImagePixels: 150 * 110, maxImageBytes: image.length });
    const raw = { data: new Uint8Array(0), width: 0, height: 0 };
    expect(await rejection(Gemma.crops(raw))).toMatchObject({ code: 'ERR_IMAGE', detail: 'IMAGE_LIMIT' });
    const long = `data:;base64,${image.toString('base64')}`;
    expect(await rejection(Gemma.crops(long, { maxImageBytes: 100 }))).toMatchObject({ detail: 'IMAGE_LIMIT' });
    expect(await rejection(Gemma.crops(photo, { tile: 200 }))).toMatchObject({ detail: 'IMAGE_LIMIT' });
  });

  test('broken files (attacks 25)', async () => {
    const jpeg = readFileSync(join(formats, '420.jpg'));
    const webp = Buffer.from(readFileSync(join(formats, 'lossy.webp')));
    webp.fill(0xff, 60, 400);
    const gif = Buffer.from(readFileSync(join(formats, 'animated.gif')));
    gif.writeUInt16LE(0, 6); // the screen's width
    const text = join(folder, 'text.png');
    writeFileSync(text, 'this is no picture');
    const svg = Buffer.from('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>');
    for (const image of [jpeg.subarray(0, jpeg.length / 2), webp, text, svg, Buffer.alloc(0), 'data:,', 'data:x']) {
      expect(await rejection(Gemma.crops(image))).toMatchObject({ code: 'ERR_IMAGE', detail: 'IMAGE_DECODE' });
    }
    await Gemma.crops(gif).catch((error: unknown) => expect(error).toMatchObject({ code: 'ERR_IMAGE' }));
  });

  test.each([
    '420.jpg',
    'progressive.jpg',
    'rgba.png',
    'palette.png',
    'lossy.webp',
    'rgba.webp',
    'lzw.tiff',
    '420.avif',
  ])('%s, cut: no picture', async (file) => {
    const whole = readFileSync(join(formats, file));
    for (const share of [0.3, 0.6, 0.9]) {
      const cut = whole.subarray(0, Math.floor(whole.length * share));
      expect(await rejection(Gemma.crops(cut))).toMatchObject({ code: 'ERR_IMAGE', detail: 'IMAGE_DECODE' });
    }
  });

  test.each(['420.jpg', 'rgba.png', 'lossy.webp', 'animated.gif', 'lzw.tiff', '420.avif'])(
    '%s, cut and damaged anywhere: a picture or an ERR_IMAGE',
    async (file) => {
      const whole = readFileSync(join(formats, file));
      for (let i = 0; i < 64; ++i) {
        const at = Math.floor((i * whole.length) / 64);
        const damaged = Buffer.from(whole);
        for (let k = 0; k < 4; ++k) {
          const place = (at + k * 37) % whole.length;
          damaged[place] = (damaged[place] ?? 0) ^ (1 << ((i + k) % 8));
        }
        for (const image of [whole.subarray(0, at), damaged]) {
          await Gemma.crops(image).catch((error: unknown) => expect(error).toMatchObject({ code: 'ERR_IMAGE' }));
        }
      }
    },
  );

  test.each<[string, string, RegExp]>([
    ['\0\0\0\x24ftypheic\0\0\0\0mif1MiHEmiafheic', 'HEIC', /convert it to JPEG/],
    ['\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf', 'HEIC', /convert it to JPEG/],
    ['\0\0\0\x18ftypmif1\0\0\0\0mif1miaf', 'HEIF', /convert it to JPEG/],
    ['\0\0\0\x0cJXL \r\n\x87\n', 'JPEG XL', /convert it/],
    ['\xff\x0a\xfa\x1f\x01', 'JPEG XL', /convert it/],
    ['\0\0\0\x0cjP  \r\n\x87\n', 'JPEG 2000', /convert it/],
    ['BM\x46\0\0\0\0\0\0\0\x36\0\0\0', 'BMP', /convert it/],
    ['\0\0\x01\0\x01\0\x10\x10', 'ICO', /convert it/],
    ['8BPS\0\x01', 'PSD', /convert it/],
    ['%PDF-1.7\n', 'PDF', /render its pages/],
    ['<?xml version="1.0"?>\n<!-- a -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', 'SVG', /render it/],
    ['\n<!DOCTYPE html><html><head>', 'an HTML page', /name the picture itself/],
    ['P6 1 1 255\nabc', 'PNM', /convert it/],
    ['v/1\x01', 'OpenEXR', /convert it/],
    ['II*\0\x10\0\0\0CR', 'a camera raw file', /convert it/],
    ['\0\0\0\x18ftypisom\0\0\x02\0isomiso2', 'a video', /type: 'video'/],
    ['\x1aE\xdf\xa3', 'a video', /type: 'video'/],
  ])('%j: %s is named, and what to do', async (start, name, advice) => {
    const bytes = Buffer.concat([Buffer.from(start, 'latin1'), Buffer.alloc(400, 7)]);
    const error = (await rejection(Gemma.crops(bytes))) as Error;
    expect(error).toMatchObject({ code: 'ERR_IMAGE', detail: 'IMAGE_DECODE' });
    expect(error.message).toMatch(advice);
    expect(error.message).toContain(`: ${name} is not supported`);
    if (name === 'HEIC')
      expect(await rejection(Gemma.crops(bytes.toString('base64')))).toMatchObject({ message: error.message });
  });

  test('what the decoder says of a broken file is one short line', async () => {
    for (const file of ['420.jpg', 'rgba.png', 'lossy.webp', '420.avif', 'lzw.tiff', 'animated.gif']) {
      const whole = readFileSync(join(formats, file));
      const error = (await rejection(Gemma.crops(whole.subarray(0, whole.length / 4)))) as Error;
      expect(error.message).not.toMatch(/\n/);
      expect(error.message.length).toBeLessThan(500);
    }
  });

  test('files that are none', async () => {
    for (const path of [join(folder, 'none.png'), folder, '/dev/zero', 'http', pathToFileURL(folder)]) {
      expect(await rejection(Gemma.crops(path))).toMatchObject({ code: 'ERR_FILE' });
    }
  });
});

describe('http (attacks 32)', () => {
  const bytes = readFileSync(photo);
  const answers: Record<string, (response: ServerResponse) => void> = {
    '/a.png': (response) => response.end(bytes),
    '/away': (response) => response.writeHead(302, { location: '/a.png' }).end(),
    '/file': (response) => response.writeHead(302, { location: pathToFileURL(photo).href }).end(),
    '/slash': (response) => response.writeHead(302, { location: '/\\other/a.png' }).end(),
    '/loop': (response) => response.writeHead(302, { location: '/loop' }).end(),
    '/error': (response) => response.writeHead(500).end(),
    '/slow': (response) => response.write(bytes.subarray(0, 10)),
    '/text': (response) => response.end('no picture'),
    '/storm': (response) => {
      const more = () => {
        while (!response.destroyed && response.socket?.write('HTTP/1.1 103 Early Hints\r\n\r\n'.repeat(1000)));
      };
      response.socket?.on('drain', more);
      more();
    },
    '/interim': (response) => {
      for (let i = 0; i < 3; ++i) response.socket?.write('HTTP/1.1 102 Processing\r\n\r\n');
      response.end(bytes);
    },
    '/headers': (response) => {
      const more = () => response.socket?.write('x-more: yes\r\n');
      response.socket?.write('HTTP/1.1 200 OK\r\n');
      const timer = setInterval(more, 20);
      response.socket?.on('close', () => clearInterval(timer));
    },
    '/wide': (response) => {
      response.socket?.write(`HTTP/1.1 200 OK\r\nx: ${'y'.repeat(1 << 20)}`);
    },
    '/trickle': (response) => {
      const timer = setInterval(() => response.write('x'), 20);
      response.on('close', () => clearInterval(timer));
    },
    '/unfinished': (response) => {
      response.writeHead(200, { 'content-length': bytes.length }).write(bytes.subarray(0, 100));
      setTimeout(() => response.socket?.destroy(), 50);
    },
    '/upgrade': (response) =>
      response.socket?.write('HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n'),
    '/silent': () => {},
    '/gone': (response) => response.socket?.destroy(),
    '/none-of-http': (response) => response.socket?.write('220 smtp.example.com ESMTP\r\n'),
    '/slow-loop': (response) => setTimeout(() => response.writeHead(302, { location: '/slow-loop' }).end(), 100),
    '/chunks': (response) => {
      const more = () => {
        while (!response.destroyed && response.write('x'));
      };
      response.on('drain', more);
      more();
    },
    '/endless': (response) => {
      const more = () => {
        while (!response.destroyed && response.write(Buffer.alloc(65536)));
      };
      response.on('drain', more);
      more();
    },
  };
  let server: Server;
  let origin: string;
  beforeAll(async () => {
    server = createServer((request, response) => {
      const answer = answers[request.url ?? ''];
      if (answer) answer(response);
      else response.writeHead(404).end();
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  afterAll(() => {
    server.closeAllConnections();
    server.close();
  });

  test('only when allowed, and only from public addresses', async () => {
    const port = new URL(origin).port;
    const blocked = { code: 'ERR_IMAGE', detail: 'SSRF_BLOCKED' };
    expect(await rejection(Gemma.crops(`${origin}/a.png`))).toMatchObject(blocked);
    const inside = ['127.0.0.1', 'localhost', '2130706433', '0x7f.1', '[::1]', '[::ffff:127.0.0.1]', '169.254.169.254'];
    for (const host of inside) {
      const image = `http://${host}:${port}/a.png`;
      expect(await rejection(Gemma.crops(image, { allowRemote: true }))).toMatchObject(blocked);
    }
    const slashes = `http:\\\\127.0.0.1:${port}\\a.png`;
    for (const image of [`http://example.com\\@127.0.0.1:${port}/a.png`, `http://127.0.0.1:${port}\\a.png`]) {
      expect(await rejection(Gemma.crops(image, { allowRemote: true }))).toMatchObject(blocked);
    }
    expect(await rejection(Gemma.crops(slashes, { allowRemote: true }))).toMatchObject(blocked);
  });

  test('from anywhere', async () => {
    const options = { allowRemote: 'private', remoteTimeoutMs: 60_000 } as const;
    const get = (path: string, more = {}) => Gemma.crops(`${origin}${path}`, { ...options, ...more });
    expect(await get('/a.png')).toMatchObject({ width: 150, height: 110 });
    expect(await Gemma.crops(new URL(`${origin}/away`), options)).toMatchObject({ width: 150, height: 110 });
    for (const path of ['/file', '/slash'])
      expect(await rejection(get(path))).toMatchObject({ detail: 'SSRF_BLOCKED' });
    for (const path of ['/loop', '/error', '/none']) {
      expect(await rejection(get(path))).toMatchObject({ code: 'ERR_IMAGE', detail: 'IMAGE_FETCH' });
    }
    expect(await rejection(get('/slow', { remoteTimeoutMs: 300 }))).toMatchObject({ detail: 'IMAGE_FETCH' });
    expect(await rejection(get('/endless', { maxImageBytes: 1 << 20 }))).toMatchObject({ detail: 'IMAGE_LIMIT' });
    expect(await rejection(get('/text'))).toMatchObject({ detail: 'IMAGE_DECODE' });
    expect(await rejection(get('/slow', { signal: AbortSignal.timeout(100) }))).toMatchObject({ name: 'TimeoutError' });
  });

  // The deadline of the test is far beyond the limit of the call: what hangs fails, what is late does not.
  test.each([
    ...['/upgrade', '/silent', '/headers', '/wide', '/trickle', '/slow', '/unfinished', '/gone', '/none-of-http'],
    ...['/storm', '/slow-loop'],
  ])('%s ends at the time limit at the latest', async (path) => {
    const options = { allowRemote: 'private', remoteTimeoutMs: 400 } as const;
    const error = (await rejection(Gemma.crops(`${origin}${path}`, options))) as Error;
    expect(error).toMatchObject({ code: 'ERR_IMAGE', detail: 'IMAGE_FETCH' });
    expect(error.message).toContain(`${origin}${path}`);
    expect(error.message.length).toBeLessThan(300);
  });

  test('a server that takes the connection and says nothing, one that is not there, TLS without an answer', async () => {
    const options = { allowRemote: 'private', remoteTimeoutMs: 400 } as const;
    const mute = createTcpServer(() => {});
    await new Promise<void>((resolve) => mute.listen(0, '127.0.0.1', resolve));
    const port = (mute.address() as AddressInfo).port;
    try {
      for (const url of [`http://127.0.0.1:${port}/`, `https://127.0.0.1:${port}/`, 'http://127.0.0.1:1/']) {
        expect(await rejection(Gemma.crops(url, options))).toMatchObject({ detail: 'IMAGE_FETCH' });
      }
    } finally {
      mute.close();
    }
  });

  test('interim answers before the one that counts are no harm, floods of small chunks end at the limit', async () => {
    const options = { allowRemote: 'private', remoteTimeoutMs: 60_000 } as const;
    expect(await Gemma.crops(`${origin}/interim`, options)).toMatchObject({ width: 150 });
    const flood = await rejection(Gemma.crops(`${origin}/chunks`, options));
    expect(flood).toMatchObject({ detail: 'IMAGE_FETCH', message: expect.stringContaining('chunks') });
    expect(await rejection(Gemma.crops(`${origin}/chunks`, { ...options, maxImageBytes: 1000 }))).toMatchObject({
      detail: 'IMAGE_LIMIT',
    });
  });

  test('which addresses are public', () => {
    for (const address of ['8.8.8.8', '1.1.1.1', '172.32.0.1', '100.128.0.1', '2606:4700::1111', '2a00::1']) {
      expect([address, isPublicAddress(address)]).toEqual([address, true]);
    }
    for (const address of [
      ...['0.0.0.0', '10.1.2.3', '100.64.0.1', '127.0.0.1', '127.255.1.1', '169.254.169.254', '172.16.0.1'],
      ...['172.31.255.255', '192.168.1.1', '198.18.0.1', '224.0.0.1', '255.255.255.255', '::', '::1', 'fe80::1'],
      ...['fc00::1', 'fd12::1', 'ff02::1', '::ffff:8.8.8.8', '64:ff9b::808:808', '2002:7f00:1::', '2001::1'],
      ...['2001:db8::1', 'localhost', ''],
    ]) {
      expect([address, isPublicAddress(address)]).toEqual([address, false]);
    }
  });
});

describe('crops', () => {
  const page = { data: new Uint8Array(700 * 300), width: 700, height: 300 };

  test('Pan & Scan, options, tiles', async () => {
    const sizes = async (options = {}) =>
      (await Gemma.crops(page, options)).crops.map(({ width, height }) => `${width}x${height}`);
    expect(await sizes()).toEqual(['350x300', '350x300']);
    expect(await sizes({ panAndScan: { minCropSize: 100, minRatio: 2.4 } })).toEqual([]);
    expect(await sizes({ panAndScan: { minCropSize: 200, maxCrops: 8 } })).toEqual(['350x300', '350x300']);
    expect(await sizes({ panAndScan: false })).toEqual([]);
    expect((await sizes({ tile: 2 })).length).toBe(10);
  });

  test('on the command line', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'gemma-crops-'));
    try {
      const out = join(folder, 'frames.png');
      const wide = join(data, 'images', 'wide.png');
      const flags = ['--min-crop-size', '64', '--draw', out];
      const { code, stdout } = await runNode([cli, 'crops', '--json', ...flags, wide]);
      expect(code).toBe(0);
      expect(JSON.parse(stdout)).toEqual({
        width: 330,
        height: 96,
        crops: [0, 110, 220].map((x) => ({ x, y: 0, width: 110, height: 96 })),
      });
      const drawn = await readImage(out, 'image', limits);
      expect(drawn).toMatchObject({ width: 330, height: 96 });
      const [plain, framed] = [rgbOf(await readImage(wide, 'image', limits)), rgbOf(drawn)];
      const changed = new Set(Array.from(plain, (value, i) => (value === framed[i] ? -1 : Math.floor(i / 3) % 330)));
      expect([0, 109, 110, 219, 220, 329].every((x) => changed.has(x))).toBe(true);

      const tiles = await runNode([cli, 'crops', '--json', '--tile', '1', wide]);
      expect((JSON.parse(tiles.stdout) as { crops: unknown[] }).crops.length).toBe(3);
      const both = await runNode([cli, 'crops', '--json', '--tile', '1', '--max-crops', '2', wide]);
      expect(both.code).toBe(2);
      const broken = await runNode([cli, 'crops', '--json', __filename]);
      expect([broken.code, JSON.parse(broken.stdout)]).toEqual([
        1,
        { error: { code: 'ERR_IMAGE', detail: 'IMAGE_DECODE', message: expect.stringContaining('JPEG') } },
      ]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});
