// Finds calls that are written as text: one reader says what stands at a place, the search for places and what may be given out
// already are the same for all formats.
import type { CallParser, Found } from './format.js';

/** A call as it was read. */
export interface ReadCall {
  readonly name: string;
  readonly input: unknown;
}

/** What stands at a place where a call may begin. */
export type Reading =
  | { readonly is: 'nothing' }
  /** the text ends before it is decided; `isCall`: that it is a call is known, so at the end of the output it is a broken one */
  | { readonly is: 'more'; readonly isCall: boolean }
  | { readonly is: 'calls'; readonly end: number; readonly calls: readonly ReadCall[] }
  | { readonly is: 'broken'; readonly end: number; readonly reason: string };

export const NOTHING: Reading = { is: 'nothing' };

/** @param ended no more text comes: what can be read without its end mark is read */
export type CallReader = (text: string, at: number, ended: boolean) => Reading;

// A fence of Markdown that may stand round calls goes with them.
const FENCE = /```[a-z_]*[ \t]*\n?[ \t]*$/;
const FENCE_BEGUN = /`{1,3}[a-z_]{0,20}[ \t]{0,4}\n?[ \t]{0,4}$/;
const BLANK = /^\s*$/;
const CLOSED = /^\s*`{0,3}\s*$/;

export class TextCallParser implements CallParser {
  readonly #first: string;
  readonly #closers: readonly string[];
  readonly #read: CallReader;
  #text = ''; // not given out yet
  #waits = false; // for a character that may close the call in it
  #afterCall = false; // nothing given out since the last call
  #fenced = false;

  /**
   * @param first the characters with which calls begin
   * @param closers the characters without which a call that has begun cannot end
   */
  constructor(first: string, closers: string, read: CallReader) {
    this.#first = first;
    this.#closers = [...closers];
    this.#read = read;
  }

  push(text: string, marker = ''): Found[] {
    const added = text + marker;
    this.#text += added;
    // A long call is read again only when it may have ended.
    if (added === '' || (this.#waits && !this.#closers.some((closer) => added.includes(closer)))) return [];
    return this.#scan(false);
  }

  end(): Found[] {
    return this.#scan(true);
  }

  #scan(ended: boolean): Found[] {
    const found: Found[] = [];
    this.#waits = false;
    let at = 0;
    while (at < this.#text.length) {
      const reading = this.#first.includes(this.#text.charAt(at)) ? this.#read(this.#text, at, ended) : NOTHING;
      if (reading.is === 'calls') {
        this.#give(found, at, 'call');
        const text = this.#cut(reading.end - at);
        reading.calls.forEach((call, i) => found.push({ type: 'call', ...call, written: i === 0 ? text : '' }));
        this.#afterCall = true;
        at = 0;
      } else if (reading.is === 'broken' || (reading.is === 'more' && reading.isCall && ended)) {
        this.#give(found, at, 'end');
        const [end, reason] =
          reading.is === 'broken'
            ? [reading.end - at, reading.reason]
            : [this.#text.length, 'the answer ends within it'];
        found.push({ type: 'broken', text: this.#cut(end), reason });
        at = 0;
      } else if (reading.is === 'more' && !ended) {
        this.#give(found, at, 'more');
        this.#waits = reading.isCall;
        return found;
      } else {
        ++at;
      }
    }
    this.#give(found, at, ended ? 'end' : 'more');
    return found;
  }

  #cut(length: number): string {
    const front = this.#text.slice(0, length);
    this.#text = this.#text.slice(length);
    return front;
  }

  // Gives out the text before a place. What only separates calls is dropped: blanks and fences behind one call where another or
  // the end follows, and a fence before the first.
  #give(found: Found[], to: number, next: 'call' | 'end' | 'more'): void {
    let text = this.#text.slice(0, to);
    if (this.#afterCall) {
      if ((this.#fenced ? CLOSED : BLANK).test(text)) {
        if (next !== 'more') this.#cut(to);
        return;
      }
      if (this.#fenced) text = text.replace(/^\s*```\n?/, '');
      this.#afterCall = false;
      this.#fenced = false;
    }
    let held = 0;
    if (next === 'call') {
      const fence = FENCE.exec(text);
      if (fence) text = text.slice(0, fence.index);
      this.#fenced = fence !== null;
    } else if (next === 'more') {
      held = FENCE_BEGUN.exec(text)?.[0].length ?? 0;
      text = text.slice(0, text.length - held);
    }
    this.#cut(to - held);
    if (text !== '') found.push({ type: 'text', text });
  }
}
