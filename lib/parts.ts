// From the text of an answer to the parts of a stream. Another kind of part is another member of StreamPart and an assembler that
// finds it in the text (tool-parts.ts finds calls); nothing before or after this file looks at what a part holds.
import type { MalformedCall, ToolCall, ToolResult } from './tools.js';

/** A piece of a streamed answer: whole characters, and the tokens that ended with them. */
export interface TextStreamPart {
  type: 'text';
  text: string;
  tokens: number[];
}

/** A call that the model made, whole. */
export interface ToolCallStreamPart extends ToolCall {
  type: 'tool-call';
  /** `''`: no part of the answer's text */
  text: '';
  tokens: number[];
}

/** What a tool answered, or that it failed. */
export interface ToolResultStreamPart extends ToolResult {
  type: 'tool-result';
  text: '';
  tokens: number[];
}

/** The text part before it looked like a call and is none. */
export interface MalformedCallStreamPart extends Omit<MalformedCall, 'text'> {
  type: 'malformed-call';
  text: '';
  tokens: number[];
}

/** What a stream is made of. `text` is that of the answer; parts of other types have none. */
export type StreamPart = TextStreamPart | ToolCallStreamPart | ToolResultStreamPart | MalformedCallStreamPart;

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

/** The text of an answer, from its parts. */
export function textOf(part: StreamPart): string {
  return part.text;
}
