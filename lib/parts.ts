// From the text of an answer to the parts of a stream. Another kind of part is another member of StreamPart and an assembler that
// finds it in the text (tool-parts.ts finds calls); nothing before or after this file looks at what a part holds.
import type { DeepPartial, PartialJson } from './partial-json.js';
import type { TokenLogprobs } from './result.js';
import type { ToolCall, ToolResult } from './tools.js';

/** A piece of a streamed answer: whole characters, and the tokens that ended with them. */
export interface TextStreamPart<T = unknown> {
  type: 'text';
  text: string;
  tokens: number[];
  /** of each of these tokens, with the option `logprobs` */
  logprobs?: TokenLogprobs[];
  /**
   * With `schema` or `json`: the value that the answer is so far, where this piece has made it grow. Nothing has checked it: strings may
   * be cut off, what comes later is missing. To be read only: what is complete in it is also in the next one.
   */
  object?: DeepPartial<T>;
}

/** A part that is no text: what every reader of a stream may take from it. */
interface NoText {
  text: '';
  /** those that ended with it */
  tokens: number[];
  logprobs?: TokenLogprobs[];
  object?: undefined;
}

/** A call that the model made, whole. */
export interface ToolCallStreamPart extends ToolCall, NoText {
  type: 'tool-call';
}

/** What a tool answered, or that it failed. */
export interface ToolResultStreamPart extends ToolResult, NoText {
  type: 'tool-result';
}

/** The text part before it looked like a call and is none. */
export interface MalformedCallStreamPart extends NoText {
  type: 'malformed-call';
  /** what is wrong with it */
  reason: string;
}

/** What a stream is made of. `text` is that of the answer; parts of other types have none. */
export type StreamPart<T = unknown> =
  TextStreamPart<T> | ToolCallStreamPart | ToolResultStreamPart | MalformedCallStreamPart;

/** Makes parts of an answer that comes piece by piece. */
export interface PartAssembler {
  /**
   * Takes the text that became whole with an event, which may be empty, and the event's token; the last event has none. Returns
   * the parts that are complete now, in order.
   */
  push(text: string, token?: number): StreamPart[];
}

/** Every piece of text is a part. Tokens whose characters are not whole yet go into the part that completes them. */
export class TextAssembler implements PartAssembler {
  #tokens: number[] = [];

  push(text: string, token?: number): StreamPart[] {
    if (token !== undefined) this.#tokens.push(token);
    if (text === '') return [];
    const tokens = this.#tokens;
    this.#tokens = [];
    return [{ type: 'text', text, tokens }];
  }
}

/** Text, with the value that it makes. */
export class ObjectAssembler implements PartAssembler {
  readonly #text = new TextAssembler();
  readonly #json: PartialJson;

  constructor(json: PartialJson) {
    this.#json = json;
  }

  push(text: string, token?: number): StreamPart[] {
    const parts = this.#text.push(text, token);
    const last = parts.at(-1);
    if (!last) return parts;
    this.#json.push(text);
    const found = this.#json.take();
    if (found && last.type === 'text') last.object = found.value;
    return parts;
  }
}

/** The text of an answer, from its parts. */
export function textOf(part: StreamPart): string {
  return part.text;
}
