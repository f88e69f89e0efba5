// Finds the calls in an answer while it comes, by its format, and looks at each: only what fits its tool's schema is a call.
import { randomInt } from 'node:crypto';
import type { PartAssembler, StreamPart } from './parts.js';
import type { CallParser, Found, ToolFormat } from './tool-formats/format.js';
import type { MalformedCall, PreparedTool, ToolCall } from './tools.js';
import { plain } from './values.js';

const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789';

// Nine letters and digits: what Mistral's templates accept, and others too.
function newId(): string {
  return Array.from({ length: 9 }, () => LETTERS.charAt(randomInt(LETTERS.length))).join('');
}

export class ToolAssembler implements PartAssembler {
  readonly calls: ToolCall[] = [];
  readonly malformed: MalformedCall[] = [];
  readonly #parser: CallParser;
  readonly #markers: ReadonlyMap<number, string>;
  readonly #tools: readonly PreparedTool[];
  #tokens: number[] = [];

  /** @param markers the format's control tokens, by their ids */
  constructor(format: ToolFormat, markers: ReadonlyMap<number, string>, tools: readonly PreparedTool[]) {
    this.#parser = format.parser();
    this.#markers = markers;
    this.#tools = tools;
  }

  push(text: string, token?: number): StreamPart[] {
    const found: Found[] = [];
    if (token === undefined) {
      if (text !== '') found.push(...this.#parser.push(text));
      found.push(...this.#parser.end());
    } else {
      this.#tokens.push(token);
      found.push(...this.#parser.push(text, this.#markers.get(token)));
    }
    return found.flatMap((each) => this.#parts(each));
  }

  #parts(found: Found): StreamPart[] {
    if (found.type === 'text') return [{ type: 'text', text: found.text, tokens: this.#taken() }];
    if (found.type === 'broken') return this.#broken(found.text, found.reason);
    const { name, input, written } = found;
    const tool = this.#tools.find((each) => each.name === name);
    const problems = tool ? tool.schema.validate(input) : ['there is no tool of this name'];
    if (problems.length > 0) {
      return this.#broken(written, `${plain(name, 64)}: ${problems.slice(0, 3).join('; ')}`);
    }
    const call = { id: newId(), name, input };
    this.calls.push(call);
    return [{ type: 'tool-call', ...call, text: '', tokens: this.#taken() }];
  }

  #broken(text: string, reason: string): StreamPart[] {
    this.malformed.push({ text, reason: plain(reason, 400) });
    const parts: StreamPart[] = text === '' ? [] : [{ type: 'text', text, tokens: this.#taken() }];
    return [...parts, { type: 'malformed-call', reason: plain(reason, 400), text: '', tokens: this.#taken() }];
  }

  #taken(): number[] {
    const tokens = this.#tokens;
    this.#tokens = [];
    return tokens;
  }
}
