// Pictures from wherever they are to pixels as Hugging Face opens them: upright by their EXIF orientation, colour profiles
// ignored, alpha dropped. Decoding is sharp's (libvips), loaded with the first picture; resizing and crops are native code's,
// which must equal Pillow's. Nothing here computes on the JavaScript thread.
//
// Byte for byte what Pillow decodes for JPEG (CMYK too), PNG, WebP, TIFF and opaque GIF. Different on purpose or by library:
// - 16-bit grey keeps its upper 8 bits; Pillow clips it at 255, which leaves a white picture
// - AVIF with subsampled colour: another interpolation of the colour
// - transparent pixels of a GIF are black; Pillow shows the palette's entry
import { open, stat } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { GemmaError } from './errors.js';
import { addon, type Crop, type NativeCropOptions, type PixelLayout, type PreparedImage } from './native.js';
import { show } from './options.js';
import { fetchBytes } from './remote.js';

/** Pixels without a file around them: rows of `width` pixels of 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) bytes. */
export interface RawImage {
  data: Uint8Array | Uint8ClampedArray;
  width: number;
  height: number;
  /** Default: what the data has for each pixel. */
  channels?: 1 | 2 | 3 | 4;
}

/**
 * A picture: a path; a `file:`, `data:` or (with `allowRemote`) http(s) URL; the bytes of a JPEG, PNG, WebP, GIF (its first
 * frame), AVIF or TIFF file; a Blob of such; raw pixels.
 */
export type ImageInput = string | URL | Uint8Array | ArrayBuffer | Blob | RawImage;

export interface ImageLimits {
  maxBytes: number;
  maxPixels: number;
  allowRemote: boolean | 'private';
  timeoutMs: number;
}

/** Decoded and upright. The data belongs to this library alone. */
export interface Pixels {
  data: Uint8Array;
  width: number;
  height: number;
  layout: PixelLayout;
}

const DECODE_SECONDS = 300; // a picture can be made to take far longer than its size suggests
const MAX_SIDE = 65535; // kMaxImageSide in native/image/image.h
const LAYOUTS: readonly PixelLayout[] = ['grey', 'grey-alpha', 'rgb', 'rgba'];

function tooLarge(name: string, what: string, option: string): GemmaError {
  return new GemmaError('ERR_IMAGE', `${name}: ${what} (option ${option})`, 'IMAGE_LIMIT');
}

function undecodable(name: string, reason: string): GemmaError {
  return new GemmaError('ERR_IMAGE', `${name}: cannot be decoded: ${reason}`, 'IMAGE_DECODE');
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

// A copy that nobody else can change or take away while other threads read it, without holding up the event loop.
async function copyOf(data: Uint8Array | Uint8ClampedArray): Promise<Uint8Array> {
  const step = 8 << 20;
  const copy = new Uint8Array(data.length);
  for (let at = 0; at < data.length; at += step) {
    if (at > 0) await nextTurn();
    copy.set(data.subarray(at, at + step), at);
  }
  return copy;
}

/** A regular file's bytes, `maxBytes` at most. */
async function readFileBytes(path: string, name: string, maxBytes: number): Promise<Uint8Array> {
  try {
    const found = await stat(path); // before opening: to open a pipe is to wait
    if (!found.isFile()) throw new GemmaError('ERR_FILE', `${name}: ${path}: expected a file`);
    if (found.size > maxBytes) throw tooLarge(name, `${found.size} bytes are more than ${maxBytes}`, 'maxImageBytes');
    const file = await open(path);
    try {
      const bytes = new Uint8Array(found.size);
      let n = 0;
      for (;;) {
        const { bytesRead } = await file.read(bytes, n, bytes.length - n);
        n += bytesRead;
        if (bytesRead === 0 || n === bytes.length) return bytes.subarray(0, n);
      }
    } finally {
      await file.close();
    }
  } catch (error) {
    if (error instanceof GemmaError) throw error;
    throw new GemmaError('ERR_FILE', `${name}: ${path}: cannot be read (${reasonOf(error)})`);
  }
}

function dataUrlBytes(url: string, name: string, maxBytes: number): Uint8Array {
  const comma = url.indexOf(',');
  const isBase64 = /;\s*base64\s*$/i.test(url.slice(0, comma));
  if (comma < 0) throw undecodable(name, 'a data: URL without a comma');
  if ((url.length - comma) * (isBase64 ? 0.75 : 1) > 3 * maxBytes) {
    throw tooLarge(name, `more than ${maxBytes} bytes`, 'maxImageBytes');
  }
  const body = url.slice(comma + 1);
  try {
    const bytes = isBase64 ? Buffer.from(decodeURIComponent(body), 'base64') : percentDecoded(body);
    if (bytes.length > maxBytes) throw tooLarge(name, `more than ${maxBytes} bytes`, 'maxImageBytes');
    return bytes;
  } catch (error) {
    if (error instanceof GemmaError) throw error;
    throw undecodable(name, `a data: URL with ${reasonOf(error)}`);
  }
}

function percentDecoded(text: string): Buffer {
  return Buffer.from(
    text.replace(/%([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(parseInt(hex, 16))),
    'latin1',
  );
}

async function encodedBytes(
  image: string | URL | Uint8Array | ArrayBuffer | Blob,
  name: string,
  limits: ImageLimits,
  signal: AbortSignal | undefined,
): Promise<Uint8Array> {
  if (typeof image === 'string' || image instanceof URL) {
    const text = String(image);
    const scheme = image instanceof URL ? image.protocol : /^(?:data|file|https?):/i.exec(text)?.[0].toLowerCase();
    switch (scheme) {
      case undefined:
        if (text === '') throw new TypeError(`${name}: expected a path or a URL, found an empty string`);
        return readFileBytes(text, name, limits.maxBytes);
      case 'data:':
        return dataUrlBytes(text, name, limits.maxBytes);
      case 'file:':
        return readFileBytes(fileURLToPath(text), name, limits.maxBytes);
      case 'http:':
      case 'https:':
        if (limits.allowRemote === false) {
          throw new GemmaError('ERR_IMAGE', `${name}: ${text}: allowRemote is not set`, 'SSRF_BLOCKED');
        }
        return fetchBytes(
          image,
          {
            maxBytes: limits.maxBytes,
            timeoutMs: limits.timeoutMs,
            allowPrivate: limits.allowRemote === 'private',
          },
          signal,
        );
      default:
        throw new TypeError(`${name}: expected a file:, data: or http(s): URL, found ${scheme}`);
    }
  }
  const size = image instanceof Blob ? image.size : image.byteLength;
  if (size > limits.maxBytes) throw tooLarge(name, `${size} bytes are more than ${limits.maxBytes}`, 'maxImageBytes');
  if (image instanceof Blob) return new Uint8Array(await image.arrayBuffer());
  return copyOf(image instanceof ArrayBuffer ? new Uint8Array(image) : image);
}

function checkSize(width: number, height: number, name: string, limits: ImageLimits): void {
  if (!(width >= 1 && height >= 1 && width <= MAX_SIDE && height <= MAX_SIDE)) {
    throw new GemmaError(
      'ERR_IMAGE',
      `${name}: ${width} x ${height} pixels: expected sides from 1 to ${MAX_SIDE}`,
      'IMAGE_LIMIT',
    );
  }
  if (!(width * height <= limits.maxPixels)) {
    throw tooLarge(name, `${width} x ${height} pixels are more than ${limits.maxPixels}`, 'maxImagePixels');
  }
}

// The formats that are handed to sharp, by their first bytes: what else libvips was built to open (SVG, PDF, ...) has no
// business with files of strangers.
function formatOf(bytes: Uint8Array): string | undefined {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, 32)).toString('latin1');
  if (text.startsWith('\xff\xd8\xff')) return 'JPEG';
  if (text.startsWith('\x89PNG\r\n\x1a\n')) return 'PNG';
  if (text.startsWith('GIF87a') || text.startsWith('GIF89a')) return 'GIF';
  if (text.startsWith('RIFF') && text.startsWith('WEBP', 8)) return 'WebP';
  if (/^(?:II[*+]\0|MM\0[*+])/.test(text)) return 'TIFF';
  if (text.startsWith('ftyp', 4) && /avif|avis|mif1|miaf/.test(text)) return 'AVIF';
  return undefined;
}

async function loadSharp() {
  try {
    return (await import('sharp')).default;
  } catch (error) {
    throw new GemmaError(
      'ERR_BACKEND_UNAVAILABLE',
      `images are decoded by the package sharp, which cannot be loaded here: ${reasonOf(error)}`,
      'NO_SHARP',
    );
  }
}

async function decode(bytes: Uint8Array, name: string, limits: ImageLimits): Promise<Pixels> {
  const format = formatOf(bytes);
  if (format === undefined) throw undecodable(name, 'expected JPEG, PNG, WebP, GIF, AVIF or TIFF');
  if (format === 'PNG' && bytes.length >= 24) {
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    checkSize(view.getUint32(16), view.getUint32(20), name, limits); // libpng itself calls some of these sizes errors
  }
  const sharp = await loadSharp();
  // Truncated and damaged files are refused, mere warnings are not; the size is checked before any pixel is decoded.
  const options = { failOn: 'error', limitInputPixels: limits.maxPixels, ignoreIcc: true } as const;
  try {
    const { width, height, space } = await sharp(bytes, { ...options, limitInputPixels: false }).metadata();
    checkSize(width, height, name, limits);
    const upright = sharp(bytes, options).autoOrient();
    const isCmyk = space === 'cmyk';
    const { data, info } = await (
      isCmyk ? upright.pipelineColourspace('cmyk').toColourspace('cmyk') : upright.toColourspace('srgb')
    )
      .raw({ depth: 'uchar' })
      .timeout({ seconds: DECODE_SECONDS })
      .toBuffer({ resolveWithObject: true });
    const layout = isCmyk ? 'cmyk' : LAYOUTS[info.channels - 1];
    const expected = info.width * info.height * info.channels;
    if (!layout || (isCmyk && info.channels !== 4) || data.length !== expected) {
      throw undecodable(name, `${info.channels} channels`);
    }
    return { data, width: info.width, height: info.height, layout };
  } catch (error) {
    throw error instanceof GemmaError ? error : undecodable(name, `${format}, ${reasonOf(error)}`);
  }
}

function isRaw(image: unknown): image is RawImage {
  return typeof image === 'object' && image !== null && 'data' in image && 'width' in image && 'height' in image;
}

async function copyOfRaw(image: RawImage, name: string, limits: ImageLimits): Promise<Pixels> {
  const { data, width, height } = image;
  if (!(data instanceof Uint8Array || data instanceof Uint8ClampedArray)) {
    throw new TypeError(`${name}.data: expected a Uint8Array, found ${show(data)}`);
  }
  if (!Number.isInteger(width) || !Number.isInteger(height)) {
    throw new TypeError(`${name}: expected width and height in pixels, found ${show(width)} and ${show(height)}`);
  }
  checkSize(width, height, name, limits);
  const channels = data.length / (width * height);
  const layout = LAYOUTS[channels - 1];
  const expected = image.channels ?? '1 to 4';
  if (!layout || (image.channels !== undefined && image.channels !== channels)) {
    throw new RangeError(
      `${name}.data: expected ${expected} bytes for each of ${width} x ${height} pixels, found ${data.length} bytes`,
    );
  }
  return { data: await copyOf(data), width, height, layout };
}

/**
 * The pixels of a picture. `name` begins the messages of errors.
 *
 * @throws TypeError for something that is no picture; GemmaError `ERR_FILE`, `ERR_IMAGE` with `IMAGE_LIMIT`, `IMAGE_DECODE`,
 * `IMAGE_FETCH` or `SSRF_BLOCKED`, `ERR_BACKEND_UNAVAILABLE`/`NO_SHARP`
 */
export async function readImage(
  image: ImageInput,
  name: string,
  limits: ImageLimits,
  signal?: AbortSignal,
): Promise<Pixels> {
  if (isRaw(image)) return copyOfRaw(image, name, limits);
  const known =
    typeof image === 'string' ||
    image instanceof URL ||
    image instanceof Uint8Array ||
    image instanceof ArrayBuffer ||
    image instanceof Blob;
  if (!known) {
    throw new TypeError(
      `${name}: expected a path, URL, Uint8Array, ArrayBuffer, Blob or { data, width, height }, found ${show(image)}`,
    );
  }
  return decode(await encodedBytes(image, name, limits, signal), name, limits);
}

/** The squares of a picture that the encoder takes: the whole one first, then its crops. Uses up the pixels. */
export function prepareImage(pixels: Pixels, imageSize: number, crops: NativeCropOptions): Promise<PreparedImage> {
  return addon().prepareImage({ ...pixels, imageSize, ...crops });
}

/** The picture as PNG, shrunk to at most 2000 pixels a side, with a frame around each crop. */
export async function drawCrops(pixels: Pixels, crops: readonly Crop[]): Promise<Uint8Array> {
  const sharp = await loadSharp();
  const { width, height } = pixels;
  const scale = Math.min(1, 2000 / Math.max(width, height));
  const [outWidth, outHeight] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  // The native resize turns every layout into RGB; one square is as wide as it is high, so it is stretched here.
  const square = Math.max(outWidth, outHeight);
  const { pixels: data } = await prepareImage(pixels, square, {});
  const line = Math.max(2, Math.round(square / 250));
  const frames = crops.map((crop) => {
    const [x, y] = [(crop.x / width) * outWidth, (crop.y / height) * outHeight];
    const [w, h] = [(crop.width / width) * outWidth, (crop.height / height) * outHeight];
    const frame = `x="${x + line / 2}" y="${y + line / 2}" width="${Math.max(1, w - line)}" height="${Math.max(1, h - line)}" fill="none"`;
    return (
      `<rect ${frame} stroke="white" stroke-width="${line}"/>` +
      `<rect ${frame} stroke="red" stroke-width="${line}" stroke-dasharray="${line * 4}"/>`
    );
  });
  const overlay = `<svg xmlns="http://www.w3.org/2000/svg" width="${outWidth}" height="${outHeight}">${frames.join('')}</svg>`;
  return sharp(data, { raw: { width: square, height: square, channels: 3 } })
    .resize(outWidth, outHeight, { fit: 'fill' })
    .composite([{ input: Buffer.from(overlay) }])
    .png()
    .toBuffer();
}
