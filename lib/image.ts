// Pictures from wherever they are to pixels as Hugging Face opens them: upright by their EXIF orientation, colour profiles
// ignored. Decoding is sharp's (libvips), loaded with the first picture; resizing, crops and what becomes of alpha are native code's,
// which must equal Pillow's. Nothing here computes on the JavaScript thread but what has to, and that in slices (turns.ts).
//
// Byte for byte what Pillow decodes for JPEG (CMYK too), PNG, WebP, TIFF and GIF. Different on purpose or by library:
// - 16-bit grey keeps its upper 8 bits; Pillow clips it at 255, which leaves a white picture
// - AVIF: another interpolation of subsampled colour; without subsampling some bytes differ by one
import { open, stat } from 'node:fs/promises';
import type { Sharp } from 'sharp';
import { base64Decoded, percentDecoded, type Decoded } from './encoded-text.js';
import { GemmaError } from './errors.js';
import { FORMAT_BYTES, formatOf, gifBackground, type GifBackground } from './image-formats.js';
import { localPath } from './local-file.js';
import type { Crop, ImageInput, RawImage } from './media.js';
import { addon, type NativeCropOptions, type PixelLayout, type PreparedImage } from './native.js';
import type { ImageLimits } from './media-options.js';
import { fetchBytes } from './remote.js';
import { COPY_SLICE, copyInto, copyOf, nextTurn } from './turns.js';
import { plain, reasonOf, show } from './values.js';

/** Decoded and upright. The data belongs to this library alone. */
export interface Pixels {
  data: Uint8Array;
  width: number;
  height: number;
  layout: PixelLayout;
  /** what transparency becomes, where the layout has some */
  alpha: 'drop' | 'white';
}

const DECODE_SECONDS = 300; // a picture can be made to take far longer than its size suggests
const MAX_PATH = 32767; // of Windows, the longest
const MAX_DATA_URL_HEAD = 1024;
const MIN_BASE64 = 32; // characters; no picture is smaller, and few words look like one
const MAX_SIDE = 65535; // kMaxImageSide in native/image/image.h
const LAYOUTS: readonly PixelLayout[] = ['grey', 'grey-alpha', 'rgb', 'rgba'];

function tooLarge(name: string, what: string, option: string): GemmaError {
  return new GemmaError('ERR_IMAGE', `${name}: ${what} (option ${option})`, 'IMAGE_LIMIT');
}

function undecodable(name: string, reason: string): GemmaError {
  return new GemmaError('ERR_IMAGE', `${name}: cannot be decoded: ${reason}`, 'IMAGE_DECODE');
}

/** A regular file's bytes, `maxBytes` at most. */
async function readFileBytes(path: string, name: string, maxBytes: number): Promise<Uint8Array> {
  const where = `${name}: ${plain(path)}`;
  if (path.length > MAX_PATH) {
    throw new GemmaError(
      'ERR_FILE',
      `${where}: ${path.length} characters are no path; expected a path, a URL, or base64 text of a picture`,
    );
  }
  try {
    const found = await stat(path); // before opening: to open a pipe is to wait
    if (!found.isFile()) throw new GemmaError('ERR_FILE', `${where}: expected a file`);
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
    throw new GemmaError('ERR_FILE', `${where}: cannot be read (${reasonOf(error)})`);
  }
}

function decodedBytes(decoded: Decoded, name: string, maxBytes: number): Uint8Array {
  if (decoded === 'too many') throw tooLarge(name, `more than ${maxBytes} bytes`, 'maxImageBytes');
  if (decoded === 'malformed') throw undecodable(name, 'base64 text with other characters in it');
  return decoded;
}

async function dataUrlBytes(url: string, name: string, maxBytes: number): Promise<Uint8Array> {
  const head = url.slice(0, MAX_DATA_URL_HEAD);
  const comma = head.indexOf(',');
  if (comma < 0) throw undecodable(name, `a data: URL without a comma in its first ${MAX_DATA_URL_HEAD} characters`);
  const isBase64 = /;\s*base64\s*$/i.test(head.slice(0, comma));
  // Each byte may be an escape of three characters.
  if ((url.length - comma) * (isBase64 ? 0.75 : 1) > 3 * maxBytes) {
    throw tooLarge(name, `more than ${maxBytes} bytes`, 'maxImageBytes');
  }
  const decode = isBase64 ? base64Decoded : percentDecoded;
  return decodedBytes(await decode(url, comma + 1, maxBytes), name, maxBytes);
}

// Whether text is base64 of a picture, as clients of other engines pass it, and no path: by its first characters, which decode to
// a signature, and because there is no such file.
async function isBase64Picture(text: string, allowLocal: boolean): Promise<boolean> {
  if (text.length < MIN_BASE64) return false;
  const start = text.slice(0, FORMAT_BYTES).replace(/[\t\n\f\r ]+/g, '');
  if (!/^[A-Za-z0-9+/_-]+={0,2}$/.test(start)) return false;
  const format = formatOf(Buffer.from(start, 'base64'));
  if (!format || (format.advice !== undefined && format.name !== 'HEIC')) return false;
  if (!allowLocal || text.length > MAX_PATH) return true;
  return stat(text).then(
    () => false,
    () => true,
  );
}

async function encodedBytes(
  image: string | URL | Uint8Array | ArrayBuffer | Blob,
  name: string,
  limits: ImageLimits,
  signal: AbortSignal | undefined,
): Promise<Uint8Array> {
  if (typeof image === 'string' || image instanceof URL) {
    const maxBytes = limits.maxImageBytes;
    const text = String(image);
    // Before anything looks at it: a string that was put together is joined then, all at once. No byte takes more characters than
    // an escape in base64 does.
    if (text.length > 4 * maxBytes + MAX_PATH) throw tooLarge(name, `more than ${maxBytes} bytes`, 'maxImageBytes');
    const scheme = image instanceof URL ? image.protocol : /^(?:data|file|https?):/i.exec(text)?.[0].toLowerCase();
    switch (scheme) {
      case undefined:
        if (text === '') throw new TypeError(`${name}: expected a path or a URL, found an empty string`);
        if (await isBase64Picture(text, limits.allowLocal)) {
          return decodedBytes(await base64Decoded(text, 0, maxBytes), name, maxBytes);
        }
        return readFileBytes(localPath(text, name, limits, 'ERR_IMAGE'), name, maxBytes);
      case 'data:':
        return dataUrlBytes(text, name, maxBytes);
      case 'file:':
        return readFileBytes(localPath(image, name, limits, 'ERR_IMAGE'), name, maxBytes);
      case 'http:':
      case 'https:':
        if (limits.allowRemote === false) {
          throw new GemmaError('ERR_IMAGE', `${name}: ${plain(text)}: allowRemote is not set`, 'SSRF_BLOCKED');
        }
        return fetchBytes(
          image,
          {
            maxBytes,
            timeoutMs: limits.remoteTimeoutMs,
            allowPrivate: limits.allowRemote === 'private',
          },
          signal,
        );
      default:
        throw new TypeError(`${name}: expected a file:, data: or http(s): URL, found ${plain(scheme)}`);
    }
  }
  const size = image instanceof Blob ? image.size : image.byteLength;
  const { maxImageBytes } = limits;
  if (size > maxImageBytes) throw tooLarge(name, `${size} bytes are more than ${maxImageBytes}`, 'maxImageBytes');
  if (!(image instanceof Blob)) return copyOf(image instanceof ArrayBuffer ? new Uint8Array(image) : image);
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; at += COPY_SLICE) {
    await nextTurn();
    bytes.set(new Uint8Array(await image.slice(at, at + COPY_SLICE).arrayBuffer()), at);
  }
  return bytes;
}

function checkSize(width: number, height: number, name: string, limits: ImageLimits): void {
  if (!(width >= 1 && height >= 1 && width <= MAX_SIDE && height <= MAX_SIDE)) {
    throw new GemmaError(
      'ERR_IMAGE',
      `${name}: ${width} x ${height} pixels: expected sides from 1 to ${MAX_SIDE}`,
      'IMAGE_LIMIT',
    );
  }
  const { maxImagePixels } = limits;
  if (!(width * height <= maxImagePixels)) {
    throw tooLarge(name, `${width} x ${height} pixels are more than ${maxImagePixels}`, 'maxImagePixels');
  }
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

// Pixels that a GIF does not have are black or transparent to libvips, and of the palette's colour to Pillow.
function fillGif(
  pipeline: Sharp,
  background: GifBackground | undefined,
  width: number,
  height: number,
  alpha: 'drop' | 'white',
): void {
  if (!background) return;
  const { colour, transparent, picture } = background;
  const [right, bottom] = [width - picture.left - picture.width, height - picture.top - picture.height];
  if (transparent) {
    if (alpha === 'drop') pipeline.flatten({ background: colour });
  } else if (right >= 0 && bottom >= 0 && picture.width > 0 && picture.height > 0) {
    const { left, top } = picture;
    pipeline.extract(picture).extend({ left, top, right, bottom, background: colour });
  }
}

async function decode(bytes: Uint8Array, name: string, limits: ImageLimits): Promise<Pixels> {
  const format = formatOf(bytes);
  if (format === undefined) throw undecodable(name, 'expected JPEG, PNG, WebP, GIF, AVIF or TIFF');
  if (format.advice !== undefined) throw undecodable(name, `${format.name} is not supported; ${format.advice}`);
  if (format.name === 'PNG' && bytes.length >= 24) {
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    checkSize(view.getUint32(16), view.getUint32(20), name, limits); // libpng itself calls some of these sizes errors
  }
  const sharp = await loadSharp();
  // Truncated and damaged files are refused, mere warnings are not; the size is checked before any pixel is decoded.
  const options = { failOn: 'error', limitInputPixels: limits.maxImagePixels, ignoreIcc: true } as const;
  try {
    const { width, height, space } = await sharp(bytes, { ...options, limitInputPixels: false }).metadata();
    checkSize(width, height, name, limits);
    const upright = sharp(bytes, options).autoOrient();
    const alpha = limits.alpha ?? 'drop';
    if (format.name === 'GIF') fillGif(upright, gifBackground(bytes), width, height, alpha);
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
    return { data, width: info.width, height: info.height, layout, alpha };
  } catch (error) {
    throw error instanceof GemmaError ? error : undecodable(name, `${format.name}, ${reasonOf(error)}`);
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
  return { data: await copyOf(data), width, height, layout, alpha: limits.alpha ?? 'white' };
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

/** The squares of a picture that the encoder takes: the whole one first, then its crops. */
export async function prepareImage(
  image: Pixels,
  imageSize: number,
  options: NativeCropOptions,
): Promise<PreparedImage> {
  const { width, height } = image;
  const crops = addon().cropBoxes({ width, height, ...options });
  const bytes = imageSize * imageSize * 3;
  const pixels = new Uint8Array((1 + crops.length) * bytes);
  // One at a time: what native code hands over is copied on this thread, and crops may be hundreds.
  for (const [i, box] of [{ x: 0, y: 0, width, height }, ...crops].entries()) {
    await copyInto(pixels, await addon().prepareSquare({ ...image, box, imageSize }), i * bytes);
  }
  return { pixels, crops };
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
