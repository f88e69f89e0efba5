// Text to token ids and back. Native code does it on another thread; what JavaScript has to do for it (strings to bytes, arrays to
// typed ones, and the way back) it does in slices, however long the text is.
import { GemmaError } from './errors.js';
import type { NativeModel, NativeModelInfo, PromptPart } from './native.js';
import { Pace } from './turns.js';
import { integer, show } from './values.js';

// Pieces of about this many characters, bytes or ids are converted at once, in a fraction of a millisecond.
const PIECE = 1 << 16;
// So many parts are handed to native code in one call, where they are taken one by one.
const PARTS_PER_CALL = 1024;

/**
 * Refuses a prompt that cannot fit into the context, because no token stands for more than so many bytes of text, and a character
 * of a string has at least one.
 *
 * @throws GemmaError `ERR_CONTEXT_FULL`
 */
function checkLength(parts: readonly PromptPart[], { contextSize, longestToken }: NativeModelInfo): void {
  let characters = 0;
  let markers = 0;
  for (const part of parts) {
    if (typeof part === 'string') characters += part.length;
    else ++markers;
  }
  const least = Math.ceil(characters / longestToken) + markers;
  if (least <= contextSize) return;
  throw new GemmaError(
    'ERR_CONTEXT_FULL',
    `the prompt of ${characters} characters has at least ${least} tokens, more than the context of ${contextSize} has room for: ` +
      'shorten it or load with a larger contextSize',
    'CONTEXT_OVERFLOW',
  );
}

/** Calls native work with the array by which it is stopped when the signal is aborted. */
export async function stoppable<T>(
  signal: AbortSignal | undefined,
  work: (stop: Int32Array) => Promise<T>,
): Promise<T> {
  signal?.throwIfAborted();
  const stop = new Int32Array(1);
  const onAbort = () => (stop[0] = 1);
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    return await work(stop);
  } finally {
    signal?.removeEventListener('abort', onAbort);
    signal?.throwIfAborted();
  }
}

/** The end of the piece of a text that begins at `start`; no character is cut. */
function endOfPiece(text: string, start: number): number {
  const end = start + PIECE;
  const last = text.charCodeAt(end - 1);
  return last >= 0xd800 && last < 0xdc00 ? end + 1 : end;
}

/**
 * The ids of a prompt's parts. With `fits` only those of a prompt that may fit into its model's context.
 *
 * @throws GemmaError `ERR_CONTEXT_FULL` for one that cannot, without looking at the text; the signal's reason
 */
export async function encodeParts(
  model: NativeModel,
  parts: readonly PromptPart[],
  options: { special?: boolean; fits?: NativeModelInfo; signal?: AbortSignal | undefined } = {},
): Promise<Int32Array> {
  const { special = false, fits, signal } = options;
  if (fits) checkLength(parts, fits);
  const pace = new Pace(signal);
  const results: Int32Array[] = [];
  let ready: (PromptPart | Uint8Array)[] = [];
  let text = ''; // of parts that are short
  const flushText = () => {
    if (text !== '') ready.push(text);
    text = '';
  };
  const encode = async () => {
    flushText();
    const sent = ready;
    ready = [];
    results.push(await stoppable(signal, (stop) => model.encode(sent, special, stop)));
  };
  for (const part of parts) {
    if (typeof part !== 'string') {
      flushText();
      // What stands on two sides of a marker is encoded apart in any case.
      if (ready.length >= PARTS_PER_CALL) await encode();
      ready.push(part);
    } else if (text.length + part.length <= PIECE) {
      text += part;
    } else {
      flushText();
      for (let start = 0; start < part.length;) {
        const end = endOfPiece(part, start);
        ready.push(Buffer.from(part.slice(start, end)));
        start = end;
        if (pace.due) await pace.turn();
      }
    }
    if (pace.due) await pace.turn();
  }
  await encode();
  if (results.length === 1) return results[0] as Int32Array;
  const ids = new Int32Array(results.reduce((sum, result) => sum + result.length, 0));
  let n = 0;
  for (const result of results) {
    ids.set(result, n);
    n += result.length;
    if (pace.due) await pace.turn();
  }
  return ids;
}

/** The text of ids. Throws GemmaError `ERR_INVALID_ARGUMENT` for an id past the vocabulary, and the signal's reason. */
export async function decodeTokens(
  model: NativeModel,
  ids: Int32Array,
  { special, signal }: { special: boolean; signal?: AbortSignal | undefined },
): Promise<string> {
  const utf8 = await stoppable(signal, (stop) => model.decode(ids, special, stop));
  const bytes = Buffer.from(utf8.buffer, utf8.byteOffset, utf8.byteLength);
  const pace = new Pace(signal);
  let text = '';
  for (let start = 0; start < bytes.length;) {
    let end = Math.min(bytes.length, start + PIECE);
    while (end < bytes.length && ((bytes[end] ?? 0) & 0xc0) === 0x80) ++end; // within a character
    text += bytes.toString('utf8', start, end);
    start = end;
    if (pace.due) await pace.turn();
  }
  return text;
}

/**
 * Token ids as native code takes them. Whether they exist in the vocabulary is checked there.
 *
 * @throws TypeError, RangeError; the signal's reason
 */
export async function tokenIds(name: string, ids: unknown, signal?: AbortSignal): Promise<Int32Array> {
  if (!Array.isArray(ids)) throw new TypeError(`${name}: expected an array of token ids, found ${show(ids)}`);
  const { length } = ids;
  const result = new Int32Array(length);
  const pace = new Pace(signal);
  for (let start = 0; start < length; start += PIECE) {
    const end = Math.min(length, start + PIECE);
    for (let i = start; i < end; ++i) {
      const id = ids[i] as number;
      result[i] = id;
      if (result[i] !== id || id < 0) integer(`${name}[${i}]`, id, 0); // throws; names are not made for nothing
    }
    if (pace.due) await pace.turn();
  }
  return result;
}

/** A typed array's ids in an array. Throws the signal's reason. */
export async function plainIds(ids: Int32Array, signal?: AbortSignal): Promise<number[]> {
  const result: number[] = [];
  const pace = new Pace(signal);
  for (let start = 0; start < ids.length; start += PIECE) {
    const end = Math.min(ids.length, start + PIECE);
    for (let i = start; i < end; ++i) result.push(ids[i] as number);
    if (pace.due) await pace.turn();
  }
  return result;
}
