// Bytes that come as text: percent-encoded or base64, as in data: URLs. Tens of megabytes take longer than the event loop may be
// held, so they are decoded in slices.
import { nextTurn } from './turns.js';

/** Characters of one slice: less than a millisecond. */
const SLICE = 64 << 10;

const PERCENT = 0x25;
const DIGITS = Int8Array.from({ length: 256 }, (_, byte) => {
  const digit = '0123456789abcdef'.indexOf(String.fromCharCode(byte).toLowerCase());
  return digit;
});

// Where a slice ends that begins at `from`: not within an escape.
function sliceEnd(text: string, from: number): number {
  const end = from + SLICE;
  if (end >= text.length) return text.length;
  if (text.charCodeAt(end - 1) === PERCENT) return end - 1;
  return text.charCodeAt(end - 2) === PERCENT ? end - 2 : end;
}

// In place. An escape that is none stays as it is.
function unescaped(bytes: Buffer): Buffer {
  let n = bytes.indexOf(PERCENT);
  if (n < 0) return bytes;
  for (let i = n; i < bytes.length; ++i) {
    let byte = bytes[i] ?? 0;
    if (byte === PERCENT && i + 2 < bytes.length) {
      const high = DIGITS[bytes[i + 1] ?? 0] ?? -1;
      const low = DIGITS[bytes[i + 2] ?? 0] ?? -1;
      if (high >= 0 && low >= 0) {
        byte = high * 16 + low;
        i += 2;
      }
    }
    bytes[n++] = byte;
  }
  return bytes.subarray(0, n);
}

/** Decoded bytes, `'too many'` or `'malformed'`. */
export type Decoded = Uint8Array | 'too many' | 'malformed';

/** The bytes of percent-encoded text from a position on; never malformed. */
export async function percentDecoded(text: string, from: number, maxBytes: number): Promise<Decoded> {
  await nextTurn(); // the memory may have to be cleared
  const out = new Uint8Array(Math.min(maxBytes, text.length - from));
  let n = 0;
  for (let at = from; at < text.length;) {
    await nextTurn();
    const end = sliceEnd(text, at);
    const bytes = unescaped(Buffer.from(text.slice(at, end), 'latin1'));
    if (n + bytes.length > maxBytes) return 'too many';
    out.set(bytes, n);
    n += bytes.length;
    at = end;
  }
  return out.subarray(0, n);
}

/**
 * The bytes of base64 text from a position on: the usual alphabet or that of URLs, with or without padding, broken into lines or
 * not, also percent-encoded. Any other character makes it malformed.
 */
export async function base64Decoded(text: string, from: number, maxBytes: number): Promise<Decoded> {
  await nextTurn(); // the memory may have to be cleared
  const out = Buffer.from(new ArrayBuffer(Math.min(maxBytes, Math.ceil((text.length - from) * 0.75)) + 3));
  let n = 0;
  let rest = ''; // less than four characters of the slice before
  let ended = false; // by padding
  for (let at = from; at < text.length;) {
    await nextTurn();
    const end = sliceEnd(text, at);
    const slice = text.slice(at, end);
    const plain = slice.includes('%') ? unescaped(Buffer.from(slice, 'latin1')).toString('latin1') : slice;
    const characters = rest + plain.replace(/[\t\n\f\r ]+/g, '');
    if (!/^[A-Za-z0-9+/_-]*={0,2}$/.test(characters) || (ended && characters !== '')) return 'malformed';
    const over = characters.length % 4;
    if (end === text.length && (characters.endsWith('=') ? over !== 0 : over === 1)) return 'malformed';
    const whole = end === text.length ? characters.length : characters.length - over;
    if (n + whole * 0.75 > maxBytes + 3) return 'too many';
    n += out.write(characters.slice(0, whole), n, 'base64');
    rest = characters.slice(whole);
    ended = whole > 0 && characters.charAt(whole - 1) === '=';
    at = end;
  }
  return n > maxBytes ? 'too many' : new Uint8Array(out.buffer, 0, n);
}
