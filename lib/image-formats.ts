// What a file is, by its first bytes: only formats known here are handed to sharp (what else libvips was built to open has no
// business with files of strangers), and whoever brings another one is told which it is.

/** Bytes that tell a format. */
export const FORMAT_BYTES = 512;

export interface Format {
  name: string;
  /** undefined: it is decoded */
  advice?: string;
}

const TO_JPEG = 'convert it to JPEG or PNG first';
const FOR_HEIC =
  'convert it to JPEG first, for example with `sips -s format jpeg IN --out OUT` on macOS, `magick IN OUT` (ImageMagick) or ' +
  'the npm package heic-convert';

// Signatures at the beginning of a file, in bytes as Latin-1 text.
/* eslint-disable no-control-regex -- these bytes are meant */
const SIGNATURES: readonly [RegExp, string, string?][] = [
  [/^\xff\xd8\xff/, 'JPEG'],
  [/^\x89PNG\r\n\x1a\n/, 'PNG'],
  [/^GIF8[79]a/, 'GIF'],
  [/^RIFF[^]{4}WEBP/, 'WebP'],
  [/^(?:II\*\0[^]{4}CR|II(?:RO|RS|U\0))/, 'a camera raw file', TO_JPEG],
  [/^(?:II[*+]\0|MM\0[*+])/, 'TIFF'],
  [/^(?:\xff\x0a|\0\0\0\x0cJXL )/, 'JPEG XL', TO_JPEG],
  [/^(?:\0\0\0\x0cjP {2}|\xff\x4f\xff\x51)/, 'JPEG 2000', TO_JPEG],
  [/^FUJIFILM/, 'a camera raw file', TO_JPEG],
  [/^8BPS/, 'PSD', TO_JPEG],
  [/^%PDF-/, 'PDF', 'render its pages to PNG first, for example with pdftoppm -png'],
  [/^\0\0\x01\0[^]{2}/, 'ICO', TO_JPEG],
  [/^\0\0\x02\0[^]{2}/, 'CUR', TO_JPEG],
  [/^BM[^]{4}\0\0\0\0/, 'BMP', TO_JPEG],
  [/^P[1-7][\s#]/, 'PNM', TO_JPEG],
  [/^v\/1\x01/, 'OpenEXR', TO_JPEG],
  [/^#\?(?:RADIANCE|RGBE)/, 'Radiance HDR', TO_JPEG],
  [/^qoif/, 'QOI', TO_JPEG],
  [/^(?:\x1aE\xdf\xa3|RIFF[^]{4}AVI |\0\0\x01\xba|FLV\x01)/, 'a video', "use a part { type: 'video', video: path }"],
];
/* eslint-enable no-control-regex */

function ofMarkup(text: string): Format | undefined {
  const markup = text.replace(/^(?:\xef\xbb\xbf)?\s*/, '').toLowerCase();
  if (!markup.startsWith('<')) return undefined;
  if (markup.includes('<svg')) return { name: 'SVG', advice: 'render it to PNG first' };
  if (!/<(?:!doctype html|html|head|body)\b/.test(markup)) return undefined;
  return { name: 'an HTML page', advice: 'name the picture itself, not the page it is on' };
}

// The boxes of ISO media files begin with their brands: the major one, then those they are compatible with.
function ofBrands(text: string): Format | undefined {
  if (!text.startsWith('ftyp', 4)) return undefined;
  const length = text.charCodeAt(2) * 256 + text.charCodeAt(3);
  const brands = [text.slice(8, 12), ...(text.slice(16, length).match(/[^]{4}/g) ?? [])];
  if (brands.some((brand) => /^avi[fs]$/.test(brand))) return { name: 'AVIF' };
  if (brands.some((brand) => /^(?:hei[cxms]|hev[cxms])$/.test(brand))) return { name: 'HEIC', advice: FOR_HEIC };
  if (brands.some((brand) => /^(?:mif1|mif2|msf1|miaf)$/.test(brand))) return { name: 'HEIF', advice: FOR_HEIC };
  if (brands.includes('crx ')) return { name: 'a camera raw file', advice: TO_JPEG };
  return { name: 'a video', advice: "use a part { type: 'video', video: path }" };
}

/** What begins with these bytes; undefined when it is nothing known. */
export function formatOf(bytes: Uint8Array): Format | undefined {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, FORMAT_BYTES)).toString('latin1');
  const found = SIGNATURES.find(([signature]) => signature.test(text));
  if (!found) return ofBrands(text) ?? ofMarkup(text);
  const [, name, advice] = found;
  return { name, ...(advice !== undefined && { advice }) };
}

/** What shows where a GIF's first picture has no pixel, and where that picture lies on its canvas. */
export interface GifBackground {
  colour: { r: number; g: number; b: number };
  /** the picture has an index for transparent pixels, and the colour is that index's */
  transparent: boolean;
  picture: { left: number; top: number; width: number; height: number };
}

/**
 * As Pillow decides it: the palette's entry of the transparent index, else its first entry, which then is opaque. Undefined where
 * these cannot be found near the beginning.
 */
export function gifBackground(bytes: Uint8Array): GifBackground | undefined {
  const byte = (at: number) => bytes[at] ?? 0;
  const short = (at: number) => byte(at) + 256 * byte(at + 1);
  const tableBytes = (flags: number) => (flags & 0x80 ? 3 << ((flags & 7) + 1) : 0);
  const ofAll = tableBytes(byte(10));
  let at = 13 + ofAll;
  let transparent: number | undefined;
  const end = Math.min(bytes.length, 1 << 20);
  while (at < end && byte(at) === 0x21) {
    // An extension: a label, then blocks that begin with their lengths, up to an empty one.
    if (byte(at + 1) === 0xf9) transparent = byte(at + 3) & 1 ? byte(at + 6) : undefined;
    for (at += 2; at < end && byte(at) > 0; at += 1 + byte(at));
    ++at;
  }
  if (at >= end || byte(at) !== 0x2c) return undefined;
  const ofPicture = tableBytes(byte(at + 9));
  const [table, length] = ofPicture > 0 ? [at + 10, ofPicture] : [13, ofAll];
  if (length === 0) return undefined;
  // An index past the palette is black.
  const channel = (c: number) => (3 * (transparent ?? 0) < length ? byte(table + 3 * (transparent ?? 0) + c) : 0);
  return {
    colour: { r: channel(0), g: channel(1), b: channel(2) },
    transparent: transparent !== undefined,
    picture: { left: short(at + 1), top: short(at + 3), width: short(at + 5), height: short(at + 7) },
  };
}
