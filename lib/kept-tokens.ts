// The token ids of a conversation's turns. What a model wrote is not always how its tokenizer would cut the same text, so an answer
// is never tokenised again: the next prompt is the last one, the answer's own ids, and what is new. Templates may rewrite earlier
// turns (leave out thoughts, change blanks), so each prompt is written whole, and the ids are taken as far as its text agrees.
import type { NativeModel, PromptPart } from './native.js';
import { strip, stripEnd } from './python-text.js';
import type { GenerateResult } from './result.js';
import { decodeTokens, encodeParts } from './token-text.js';

/** A part of a prompt and its ids. */
export interface PromptPiece {
  readonly parts: readonly PromptPart[];
  /** of the parts; a square of a picture has as many as it has rows */
  readonly ids: Int32Array;
  /** for each square where its first row is in `ids` */
  readonly firsts: readonly number[];
}

/** An answer: its ids, without a token that only ended it, and how it may stand in a later prompt. */
export interface KeptAnswer {
  readonly answerIds: Int32Array;
  /** what the caller got of it */
  readonly text: string;
  /** where there are control tokens in it: its texts and these */
  readonly answer?: readonly PromptPart[];
}

/** What a turn added: its prompt behind the answer before, and its answer. */
export interface KeptTurn extends PromptPiece, KeptAnswer {}

/** Reads the parts of a prompt from the front. */
class Reader {
  readonly #parts: readonly PromptPart[];
  #next = 0;
  #at = 0; // in the text that is next

  constructor(parts: readonly PromptPart[]) {
    this.#parts = parts;
  }

  /** Goes on behind these parts if they come next, cut into texts however they are; else stays. */
  take(parts: readonly PromptPart[]): boolean {
    const before = [this.#next, this.#at] as const;
    if (parts.every((part) => (typeof part === 'string' ? this.#takeText(part) : this.#takeMarker(part)))) return true;
    [this.#next, this.#at] = before;
    return false;
  }

  rest(): PromptPart[] {
    this.#skipEmpty();
    const [first, ...others] = this.#parts.slice(this.#next);
    if (first === undefined) return [];
    return typeof first === 'string' ? [first.slice(this.#at), ...others] : [first, ...others];
  }

  #skipEmpty(): void {
    for (;;) {
      const part = this.#parts[this.#next];
      if (typeof part !== 'string' || this.#at < part.length) return;
      ++this.#next;
      this.#at = 0;
    }
  }

  #takeMarker(marker: number): boolean {
    this.#skipEmpty();
    if (this.#parts[this.#next] !== marker) return false;
    ++this.#next;
    return true;
  }

  #takeText(text: string): boolean {
    for (let from = 0; from < text.length;) {
      this.#skipEmpty();
      const part = this.#parts[this.#next];
      if (typeof part !== 'string') return false;
      const n = Math.min(part.length - this.#at, text.length - from);
      if (!part.startsWith(text.slice(from, from + n), this.#at)) return false;
      this.#at += n;
      from += n;
    }
    return true;
  }
}

// Templates strip messages, or do not; what they strip stays in the ids.
function takeAnswer(reader: Reader, { answer, text }: KeptAnswer): boolean {
  if (answer && reader.take(answer)) return true;
  return [text, stripEnd(text), strip(text)].some((form) => reader.take([form]));
}

/**
 * How many of the turns a prompt begins with, whole, and the parts that come after them. An answer agrees where the prompt has
 * its text and control tokens, or its visible text alone, blanks at its ends aside.
 */
export function agreement(
  parts: readonly PromptPart[],
  turns: readonly KeptTurn[],
): { n: number; rest: readonly PromptPart[] } {
  if (turns.length === 0) return { n: 0, rest: parts };
  const reader = new Reader(parts);
  let n = 0;
  let rest = parts;
  for (const turn of turns) {
    if (!reader.take(turn.parts) || !takeAnswer(reader, turn)) break;
    ++n;
    rest = reader.rest();
  }
  return { n, rest };
}

/** The ids of turns and of what comes after them, and for each square the position of its first row. */
export function joined(
  turns: readonly KeptTurn[],
  last?: PromptPiece,
): { tokens: Int32Array; firsts: readonly number[] } {
  if (turns.length === 0 && last) return { tokens: last.ids, firsts: last.firsts };
  const pieces: { ids: Int32Array; firsts: readonly number[] }[] = [];
  for (const turn of turns) pieces.push(turn, { ids: turn.answerIds, firsts: [] });
  if (last) pieces.push(last);
  const tokens = new Int32Array(pieces.reduce((sum, { ids }) => sum + ids.length, 0));
  const firsts: number[] = [];
  let n = 0;
  for (const piece of pieces) {
    tokens.set(piece.ids, n);
    for (const first of piece.firsts) firsts.push(n + first);
    n += piece.ids.length;
  }
  return { tokens, firsts };
}

// Ids that spell a text which ends before the tokens do, at a stop sequence: as many as spell its beginning, and those of the rest.
async function idsOf(model: NativeModel, all: Int32Array, text: string, signal: AbortSignal): Promise<Int32Array> {
  const spelt = (n: number) => decodeTokens(model, all.slice(0, n), { special: false, signal });
  // A character that is not whole yet is written as U+FFFD; without these, what more ids spell begins with what fewer do.
  let [least, most] = [0, all.length];
  while (least < most) {
    const n = Math.ceil((least + most) / 2);
    if (text.startsWith((await spelt(n)).replace(/\ufffd+$/, ''))) least = n;
    else most = n - 1;
  }
  while (!text.startsWith(await spelt(least))) --least; // no ids spell no text
  const rest = await encodeParts(model, [text.slice((await spelt(least)).length)], { signal });
  const ids = new Int32Array(least + rest.length);
  ids.set(all.subarray(0, least));
  ids.set(rest, least);
  return ids;
}

/**
 * What is kept of an answer.
 *
 * @param controls ids of control tokens, which show in no text
 * @throws the signal's reason
 */
export async function keptAnswer(
  model: NativeModel,
  { tokens, text, finishReason, stopSequence }: GenerateResult,
  controls: ReadonlySet<number>,
  signal: AbortSignal,
): Promise<KeptAnswer> {
  if (stopSequence !== undefined) {
    return { text, answerIds: await idsOf(model, Int32Array.from(tokens), text, signal) };
  }
  const answerIds = Int32Array.from(finishReason === 'length' ? tokens : tokens.slice(0, -1));
  if (!answerIds.some((id) => controls.has(id))) return { answerIds, text };
  const answer: PromptPart[] = [];
  let from = 0;
  const addText = async (to: number) => {
    if (to > from) answer.push(await decodeTokens(model, answerIds.slice(from, to), { special: false, signal }));
    from = to + 1;
  };
  for (let i = 0; i < answerIds.length; ++i) {
    const id = answerIds[i] ?? 0;
    if (!controls.has(id)) continue;
    await addText(i);
    answer.push(-1 - id);
  }
  await addText(answerIds.length);
  return { answerIds, text, answer };
}
