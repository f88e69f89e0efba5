// Lines of a file as they come, of which one is held at a time: what batch.ts reads, and what it has written before.
import type { FileHandle } from 'node:fs/promises';
import { ByteCollector } from './turns.js';
import { plain } from './values.js';

const READ_BYTES = 256 << 10;
const NEWLINE = 0x0a;

/** A line without its newline. */
export interface Line {
  /** from 1 */
  number: number;
  /** undefined: it is longer than is allowed, and was not kept */
  bytes: Uint8Array | undefined;
  /** its bytes in the file, newline included */
  size: number;
  /** false for the last one of a file that ends without a newline */
  ended: boolean;
}

/** Reads a file from its beginning. Bytes behind the last newline are a line, nothing behind it is none. */
export async function* readLines(file: FileHandle, maxBytes: number): AsyncGenerator<Line, void, undefined> {
  const block = Buffer.allocUnsafe(READ_BYTES);
  let begun = new ByteCollector(); // of a line that goes on in the next block
  let size = 0; // of it, also where it is too long to be kept
  let number = 0;
  const line = async (rest: Uint8Array, ended: boolean): Promise<Line> => {
    const isWhole = size + rest.length <= maxBytes;
    // A copy: the block is read into again while the line is worked on.
    const bytes = !isWhole ? undefined : begun.length === 0 ? new Uint8Array(rest) : await joined(begun, rest);
    const whole = { number: ++number, bytes, size: size + rest.length + Number(ended), ended };
    if (size > 0) begun = new ByteCollector();
    size = 0;
    return whole;
  };
  for (let position = 0; ;) {
    const { bytesRead } = await file.read(block, 0, block.length, position);
    if (bytesRead === 0) break;
    position += bytesRead;
    const read = block.subarray(0, bytesRead);
    let from = 0;
    for (let end = read.indexOf(NEWLINE); end >= 0; end = read.indexOf(NEWLINE, from)) {
      yield await line(read.subarray(from, end), true);
      from = end + 1;
    }
    const rest = read.subarray(from);
    size += rest.length;
    if (size <= maxBytes) begun.add(rest);
    else if (begun.length > 0) begun = new ByteCollector();
  }
  if (size > 0) yield await line(new Uint8Array(), false);
}

async function joined(begun: ByteCollector, rest: Uint8Array): Promise<Uint8Array> {
  begun.add(rest);
  return begun.all();
}

const UTF8 = new TextDecoder('utf-8', { fatal: true });

/**
 * The JSON of a line.
 *
 * @throws TypeError, RangeError
 */
export function parseLine({ bytes, size }: Line, maxLineBytes: number): unknown {
  if (!bytes)
    throw new RangeError(`expected a line of at most ${maxLineBytes} bytes (option maxLineBytes), found ${size}`);
  let text: string;
  try {
    text = UTF8.decode(bytes); // takes a byte order mark away, which the first line may have
  } catch {
    throw new TypeError('expected UTF-8');
  }
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new TypeError(`expected JSON: ${plain((error as Error).message)}`, { cause: error });
  }
}

const MAX_BLANK = 100; // bytes
/** Of a line of nothing but blanks. */
export const isBlank = ({ bytes }: Line): boolean =>
  bytes !== undefined &&
  bytes.length <= MAX_BLANK &&
  bytes.every((byte) => byte === 0x20 || byte === 0x09 || byte === 0x0d);
