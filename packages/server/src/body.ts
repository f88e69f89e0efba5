// Bodies of requests: JSON, within limits of bytes, of nesting and of values, and read in chunks that are worth a call each. What is
// large is parsed in pieces, between which the event loop turns: a body with pictures would hold it up for a tenth of a second.
import { isAscii, isUtf8 } from 'node:buffer';
import type { IncomingMessage } from 'node:http';
import { setImmediate as immediate } from 'node:timers/promises';
import type { FastifyRequest } from 'fastify';
import { HttpError } from './errors.js';

const MAX_DEPTH = 100;
const MAX_VALUES = 500_000;
/** characters of a body that stand in no string: numbers, brackets, white space */
const MAX_OUTSIDE = 4 << 20;
/** bytes of a name: it cannot be parsed in pieces */
const MAX_NAME = 2 << 20;
const MAX_TINY_CHUNKS = 4096;
const TINY_CHUNK = 64; // bytes, on average

const SLICE_MS = 3;
/** bytes that JSON.parse gets at once: less than a millisecond's */
const PIECE = 128 << 10;

let last: Promise<unknown> = Promise.resolve();

/** Does work that can pause wherever it yields: at once where it is short, else a slice in a turn, of one body in each. */
async function inTurns<T>(work: Generator<void, T, undefined>): Promise<T> {
  let since = performance.now();
  for (;;) {
    const { done, value } = work.next();
    if (done) return value;
    if (performance.now() - since < SLICE_MS) continue;
    await (last = last.then(() => immediate()));
    since = performance.now();
  }
}

function invalid(message: string): HttpError {
  return new HttpError(400, 'invalid_json', message);
}

function noJson(reason: string): HttpError {
  return invalid(`the body is no JSON: ${reason}`);
}

function parseText(json: string): unknown {
  try {
    return JSON.parse(json) as unknown;
  } catch (error) {
    throw noJson((error as Error).message.slice(0, 200));
  }
}

type Members = Record<string, unknown>;

/** A list or an object that is not at its end. */
interface Open {
  readonly isObject: boolean;
  readonly start: number;
  /** where what was not parsed yet begins */
  from: number;
  /** where the last member begins, behind a comma */
  member: number;
  /** undefined while nothing of it was parsed: then it is parsed with what it stands in */
  value: unknown[] | Members | undefined;
  /** its last member was parsed by itself: a comma or the end comes next */
  isBehind: boolean;
}

const [QUOTE, BACKSLASH, COMMA, LETTER_U] = [0x22, 0x5c, 0x2c, 0x75];

/** Parses JSON in pieces: lists and objects of more than `piece` bytes by their members, longer strings by their parts. */
class PieceParser {
  readonly #bytes: Buffer;
  readonly #piece: number;
  readonly #open: Open[] = [];

  constructor(bytes: Buffer, piece: number) {
    this.#bytes = bytes;
    this.#piece = piece;
    this.#open.push(this.#begun(0, false)); // as if the body stood in a list
  }

  *parse(): Generator<void, unknown, undefined> {
    const bytes = this.#bytes;
    let values = 0;
    let outside = 0;
    for (let i = 0; i < bytes.length; ++i) {
      if (++outside > MAX_OUTSIDE) {
        throw invalid(`the body: expected at most ${MAX_OUTSIDE} characters outside of strings`);
      }
      switch (bytes[i]) {
        case QUOTE: {
          const end = this.#endOfString(i);
          if (end - i > this.#piece) yield* this.#longString(i, end);
          i = end;
          break;
        }
        case 0x5b: // [
        case 0x7b: // {
          this.#open.push(this.#begun(i + 1, bytes[i] === 0x7b));
          if (this.#open.length > MAX_DEPTH + 1) {
            throw invalid(`the body: expected at most ${MAX_DEPTH} levels of nesting`);
          }
          break;
        case 0x5d: // ]
        case 0x7d: // }
          if (this.#close(i, bytes[i] === 0x7d)) yield;
          break;
        case COMMA:
          if (++values > MAX_VALUES) throw invalid(`the body: expected at most ${MAX_VALUES} values`);
          if (this.#comma(i)) yield;
          break;
      }
    }
    const [root, ...others] = this.#open as [Open, ...Open[]];
    if (!root.value) return parseText(this.#text(0, bytes.length));
    if (others.length > 0) throw noJson('it has no end');
    this.#expectBlank(root.from, bytes.length);
    return (root.value as unknown[])[0];
  }

  #begun(start: number, isObject: boolean): Open {
    return { isObject, start, from: start, member: start, value: undefined, isBehind: false };
  }

  #text(from: number, to: number): string {
    return this.#bytes.toString('utf8', from, to);
  }

  #isBlank(from: number, to: number): boolean {
    return /^[ \t\n\r]*$/.test(this.#text(from, to));
  }

  #expectBlank(from: number, to: number): void {
    if (!this.#isBlank(from, to)) throw noJson('a comma is missing');
  }

  // Whether a character stands behind a backslash that is none itself. Of text that begins at `from`.
  #isEscaped(at: number, from: number): boolean {
    let backslashes = 0;
    while (at - backslashes > from && this.#bytes[at - 1 - backslashes] === BACKSLASH) ++backslashes;
    return backslashes % 2 === 1;
  }

  #endOfString(start: number): number {
    let end = start;
    do {
      end = this.#bytes.indexOf(QUOTE, end + 1);
      if (end < 0) throw noJson('a string has no end');
    } while (this.#isEscaped(end, start + 1));
    return end;
  }

  // Parses members, and puts them into what they are of. There is one at least.
  #take(open: Open, from: number, to: number): void {
    if (this.#isBlank(from, to)) throw noJson('a member is missing');
    const text = this.#text(from, to);
    if (open.isObject) {
      const value = open.value as Members;
      for (const [key, member] of Object.entries(parseText(`{${text}}`) as Members)) put(value, key, member);
    } else {
      const value = open.value as unknown[];
      for (const item of parseText(`[${text}]`) as unknown[]) value.push(item);
    }
  }

  // From now on it is parsed in pieces, and so is what it stands in.
  #split(depth: number): Open {
    const open = this.#open[depth] as Open;
    if (open.value) return open;
    open.value = open.isObject ? {} : [];
    if (depth > 0) this.#add(depth - 1, open.start - 1, open.value);
    return open;
  }

  // Puts a member that was parsed by itself behind those before it, which are parsed now. It starts at `start`.
  #add(depth: number, start: number, member: unknown): void {
    const open = this.#split(depth);
    if (open.isBehind) throw noJson('a comma is missing');
    if (open.member > open.from) this.#take(open, open.from, open.member - 1);
    const name = this.#text(open.member, start);
    if (open.isObject) {
      const [key] = Object.keys(parseText(`{${name}null}`) as Members) as [string];
      put(open.value as Members, key, member);
    } else {
      parseText(`[${name}null]`);
      (open.value as unknown[]).push(member);
    }
    open.isBehind = true;
  }

  *#longString(start: number, end: number): Generator<void, void, undefined> {
    const depth = this.#open.length - 1;
    const open = this.#open[depth] as Open;
    if (open.isObject && !open.isBehind && this.#isBlank(open.member, start)) {
      if (end - start > MAX_NAME) throw invalid(`the body: expected names of at most ${MAX_NAME} bytes`);
      return; // it is parsed with what belongs to it
    }
    const text = (yield* this.#isPlain(start + 1, end))
      ? this.#bytes.toString('latin1', start + 1, end)
      : yield* this.#textInParts(start + 1, end);
    this.#add(depth, start, text);
    open.from = end + 1;
    yield;
  }

  // Whether a string stands for itself: printable ASCII without escapes, as base64 is.
  *#isPlain(start: number, end: number): Generator<void, boolean, undefined> {
    for (let from = start; from < end; from += this.#piece) {
      const part = this.#bytes.subarray(from, Math.min(from + this.#piece, end));
      if (!isAscii(part) || part.includes(BACKSLASH)) return false;
      // A loop: with a function for each byte it takes ten times as long.
      for (let i = 0; i < part.length; ++i) if ((part[i] as number) < 0x20) return false;
      yield;
    }
    return true;
  }

  *#textInParts(start: number, end: number): Generator<void, string, undefined> {
    const parts: string[] = [];
    for (let at = start; at < end;) {
      const to = at + this.#piece < end ? this.#cut(at, at + this.#piece) : end;
      parts.push(parseText(`"${this.#text(at, to)}"`) as string);
      at = to;
      yield;
    }
    return parts.join('');
  }

  // Where a string can be cut: in no character, and in no escape.
  #cut(from: number, to: number): number {
    const bytes = this.#bytes;
    while (((bytes[to] as number) & 0xc0) === 0x80) --to;
    if (this.#isEscaped(to, from)) return to - 1;
    for (let at = to - 1; at > Math.max(from, to - 5); --at) {
      if (bytes[at] === LETTER_U && this.#isEscaped(at, from)) return at - 1;
    }
    return to;
  }

  // True where something was parsed.
  #comma(at: number): boolean {
    const depth = this.#open.length - 1;
    if (depth === 0) throw noJson('there is more behind its end');
    const open = this.#open[depth] as Open;
    const isPiece = !open.isBehind && at - open.from > this.#piece;
    if (open.isBehind) {
      this.#expectBlank(open.from, at);
      open.isBehind = false;
      open.from = at + 1;
    } else if (isPiece) {
      this.#split(depth);
      this.#take(open, open.from, at);
      open.from = at + 1;
    }
    open.member = at + 1;
    return isPiece;
  }

  #close(at: number, isObject: boolean): boolean {
    const open = this.#open.pop() as Open;
    const outer = this.#open.at(-1);
    if (!outer || open.isObject !== isObject) throw noJson('its brackets do not fit');
    if (!open.value) return false;
    if (open.isBehind) this.#expectBlank(open.from, at);
    else this.#take(open, open.from, at);
    outer.from = at + 1;
    return true;
  }
}

function put(object: Members, key: string, value: unknown): void {
  if (key === '__proto__') {
    Object.defineProperty(object, key, { value, writable: true, enumerable: true, configurable: true });
  } else {
    object[key] = value;
  }
}

/**
 * JSON text to its value, as JSON.parse has it.
 *
 * @param piece bytes that are parsed at once, at least 16
 * @throws HttpError 400
 */
export async function parseJson(bytes: Buffer, piece = PIECE): Promise<unknown> {
  if (bytes.length === 0) throw invalid('the body is empty; expected JSON');
  if (!isUtf8(bytes)) throw invalid('the body is no UTF-8');
  return inTurns(new PieceParser(bytes, piece).parse());
}

function* joined(chunks: readonly Buffer[], length: number): Generator<void, Buffer, undefined> {
  const [first] = chunks;
  if (first && chunks.length === 1) return first;
  const bytes = Buffer.allocUnsafe(length);
  let at = 0;
  for (const chunk of chunks) {
    at += chunk.copy(bytes, at);
    yield;
  }
  return bytes;
}

/**
 * Reads a body.
 *
 * @throws HttpError 413 for more than `maxBytes`, 400 for a flood of tiny chunks or one that was cut off
 */
export function readBody(request: FastifyRequest, payload: IncomingMessage, maxBytes: number): Promise<Buffer> {
  const tooLarge = () => {
    // What is still to come is not read: the connection ends with the answer.
    const headers = { connection: 'close' };
    return new HttpError(413, 'body_too_large', `the body: expected at most ${maxBytes} bytes`, { headers });
  };
  if (Number(request.headers['content-length']) > maxBytes) return Promise.reject(tooLarge());
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let length = 0;
    const fail = (error: HttpError) => {
      payload.pause();
      payload.off('data', onData);
      reject(error);
    };
    const onData = (chunk: Buffer) => {
      length += chunk.length;
      if (length > maxBytes) return fail(tooLarge());
      chunks.push(chunk);
      // Each chunk is a call, so a flood of tiny ones would hold up the event loop.
      if (chunks.length > MAX_TINY_CHUNKS && length < chunks.length * TINY_CHUNK) {
        const message = `the body: more than ${MAX_TINY_CHUNKS} chunks of less than ${TINY_CHUNK} bytes`;
        fail(new HttpError(400, 'tiny_chunks', message, { headers: { connection: 'close' } }));
      }
    };
    payload
      .on('data', onData)
      .on('end', () => resolve(inTurns(joined(chunks, length))))
      .on('error', () => fail(new HttpError(400, 'cut_off', 'the body was cut off')))
      .on('close', () => reject(new HttpError(400, 'cut_off', 'the body was cut off')));
  });
}
