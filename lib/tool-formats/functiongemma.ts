// FunctionGemma's own format: declarations, calls and responses between control tokens, strings between <escape> tokens. Marks are
// tokens on both sides, so text that only spells one is text: of users, of tools and of the model.
import { GemmaError } from '../errors.js';
import { floatText, strip } from '../python-text.js';
import type { Part } from '../messages.js';
import type { PromptPart } from '../native.js';
import type { CallParser, DeclaredTool, Found, ToolFormat } from './format.js';
import { functionGemmaGrammar } from './functiongemma-grammar.js';
import { plainSchema, sortedEntries } from './functiongemma-schema.js';

export const ESCAPE = '<escape>';
const START_DECLARATION = '<start_function_declaration>';
const END_DECLARATION = '<end_function_declaration>';
const START_CALL = '<start_function_call>';
const END_CALL = '<end_function_call>';
const START_RESPONSE = '<start_function_response>';
const END_RESPONSE = '<end_function_response>';
const START_OF_TURN = '<start_of_turn>';
const END_OF_TURN = '<end_of_turn>';
const BOS = '<bos>';

/** Control tokens that a prompt of this format needs. */
export const MARKERS = [
  START_DECLARATION,
  END_DECLARATION,
  START_CALL,
  END_CALL,
  START_RESPONSE,
  END_RESPONSE,
  ESCAPE,
] as const;

/** A piece of a prompt: text, a control token by its spelling, or what stands for a picture. */
export type Piece = string | { readonly mark: string } | { readonly media: readonly PromptPart[] };

const mark = (spelling: string): Piece => ({ mark: spelling });
const quoted = (text: string): Piece[] => [mark(ESCAPE), text, mark(ESCAPE)];

function commaed(items: readonly Piece[][]): Piece[] {
  return items.flatMap((item, i) => (i === 0 ? item : [',', ...item]));
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function numberText(value: number): string {
  const isWhole = Number.isInteger(value) && Math.abs(value) < 1e21 && !Object.is(value, -0);
  return isWhole ? String(value) : floatText(value);
}

// A key stands bare, as the format has it, but where it could not be told from what is around it.
function keyPieces(key: string): Piece[] {
  return key === '' || /[{}[\]:,<>\0]/.test(key) || key.trim() !== key ? quoted(key) : [key];
}

function valuePieces(value: unknown, quotedKeys = false): Piece[] {
  if (typeof value === 'string') return quoted(value);
  if (typeof value === 'number') return [numberText(value)];
  if (typeof value === 'boolean') return [String(value)];
  if (Array.isArray(value)) return ['[', ...commaed(value.map((item) => valuePieces(item, quotedKeys))), ']'];
  if (!isObject(value)) return ['None'];
  return ['{', ...members(value, quotedKeys), '}'];
}

function members(value: object, quotedKeys = false): Piece[] {
  return commaed(
    sortedEntries(value).map(([key, item]) => [
      ...(quotedKeys ? quoted(key) : keyPieces(key)),
      ':',
      ...valuePieces(item, quotedKeys),
    ]),
  );
}

/** A call between its marks. */
export function callPieces(name: string, input: unknown): Piece[] {
  return ['call:', name, '{', ...members(isObject(input) ? input : {}), '}'];
}

/** A tool's result between its marks. What is no object stands under the key `value`. */
export function responsePieces(name: string, output: unknown): Piece[] {
  const inside = isObject(output) ? members(output) : ['value:', ...valuePieces(output)];
  return ['response:', name, '{', ...inside, '}'];
}

// The template takes properties of these names for words of the schema and leaves them out.
const SHADOWED = ['type', 'description', 'required', 'properties', 'nullable'];

function kindOf(schema: Record<string, unknown>): string {
  const { type } = schema;
  return typeof type === 'string' ? type.toUpperCase() : '';
}

function textOf(value: unknown): string {
  return typeof value === 'string' ? value : '';
}

function names(list: readonly unknown[]): Piece[] {
  return ['[', ...commaed(list.map((name) => quoted(textOf(name)))), ']'];
}

function items(schema: Record<string, unknown>): Piece[] {
  const entries = sortedEntries(schema).filter(([, value]) => value !== null);
  return commaed(
    entries.map(([key, value]) => {
      if (key === 'properties') return ['properties:{', ...(isObject(value) ? fields(value) : []), '}'];
      if (key === 'required' && Array.isArray(value)) return ['required:', ...names(value)];
      if (key === 'type') {
        const upper = Array.isArray(value)
          ? value.map((each) => textOf(each).toUpperCase())
          : textOf(value).toUpperCase();
        return ['type:', ...valuePieces(upper)];
      }
      return [`${key}:`, ...valuePieces(value, true)];
    }),
  );
}

function fields(properties: Record<string, unknown>): Piece[] {
  const shown = sortedEntries(properties).filter(([key]) => !SHADOWED.includes(key));
  return commaed(
    shown.map(([key, value]) => {
      const schema = isObject(value) ? value : {};
      const kind = kindOf(schema);
      const pieces: Piece[] = [key, ':{description:', ...quoted(textOf(schema.description))];
      if (kind === 'STRING' && Array.isArray(schema.enum) && schema.enum.length > 0) {
        pieces.push(',enum:', ...valuePieces(schema.enum, true));
      } else if (kind === 'OBJECT') {
        pieces.push(',properties:{', ...fields(isObject(schema.properties) ? schema.properties : schema), '}');
        if (Array.isArray(schema.required) && schema.required.length > 0) {
          pieces.push(',required:', ...names(schema.required));
        }
      } else if (kind === 'ARRAY' && isObject(schema.items) && Object.keys(schema.items).length > 0) {
        pieces.push(',items:{', ...items(schema.items), '}');
      }
      return [...pieces, ',type:', ...quoted(kind), '}'];
    }),
  );
}

/** A declaration between its marks. `parameters`: JSON Schema, absent where there is none. */
export function declarationPieces(name: string, description: string, parameters: unknown): Piece[] {
  const pieces: Piece[] = ['declaration:', name, '{description:', ...quoted(description)];
  if (isObject(parameters) && Object.keys(parameters).length > 0) {
    pieces.push(',parameters:{');
    const { properties, required } = parameters;
    if (isObject(properties) && Object.keys(properties).length > 0) {
      pieces.push('properties:{', ...fields(properties), '},');
    }
    if (Array.isArray(required) && required.length > 0) pieces.push('required:', ...names(required), ',');
    if (typeof parameters.type === 'string') pieces.push('type:', ...quoted(kindOf(parameters)), '}');
  }
  return [...pieces, '}'];
}

const DEFAULT_SYSTEM = 'You are a model that can do function calling with the following functions';

/** A turn as this format writes it; see messages.ts. */
export interface WrittenTurn {
  readonly role: string;
  readonly content: string | readonly Part[] | undefined;
  readonly calls?: readonly { readonly name: string; readonly input: unknown }[];
  readonly reply?: { readonly name: string; readonly output: unknown };
}

function contentPieces({ content = '' }: WrittenTurn, media: (part: Part) => readonly PromptPart[]): Piece[] {
  if (typeof content === 'string') return [strip(content)];
  return content.map((part): Piece => (part.type === 'text' ? strip(part.text ?? '') : { media: media(part) }));
}

/**
 * A conversation whose tool results all answer calls (tool-turns.ts). It ends where the model's answer begins: behind the results
 * of its calls, behind an answer that was begun, else in a new turn.
 *
 * @throws GemmaError `ERR_INVALID_ARGUMENT`/`BAD_ROLES` for a system message that is not the first
 */
export function conversationPieces(
  turns: readonly WrittenTurn[],
  tools: readonly DeclaredTool[],
  media: (part: Part) => readonly PromptPart[],
): Piece[] {
  const pieces: Piece[] = [mark(BOS)];
  const isSystem = (turn: WrittenTurn | undefined) => turn?.role === 'system' || turn?.role === 'developer';
  const [first] = turns;
  if (tools.length > 0 || isSystem(first)) {
    pieces.push(mark(START_OF_TURN), 'developer\n');
    pieces.push(...(first && isSystem(first) ? contentPieces(first, media) : [DEFAULT_SYSTEM]));
    for (const { name, description, schema } of tools) {
      const declared = declarationPieces(name, description, plainSchema(schema.schema));
      pieces.push(mark(START_DECLARATION), ...declared, mark(END_DECLARATION));
    }
    pieces.push(mark(END_OF_TURN), '\n');
  }
  let answered = false; // the model goes on in the turn of its call
  for (const [i, turn] of turns.entries()) {
    if (isSystem(turn)) {
      if (i === 0) continue;
      throw new GemmaError(
        'ERR_INVALID_ARGUMENT',
        `messages[${i}]: expected a system message only at the beginning, found role '${turn.role}'`,
        'BAD_ROLES',
      );
    }
    if (turn.reply) {
      if (answered) pieces.push(mark(START_RESPONSE)); // the first one's stands behind the calls
      pieces.push(...responsePieces(turn.reply.name, turn.reply.output), mark(END_RESPONSE));
      answered = true;
      continue;
    }
    const isModel = turn.role === 'assistant';
    if (answered && !isModel) pieces.push(mark(END_OF_TURN), '\n');
    if (!answered || !isModel) pieces.push(mark(START_OF_TURN), isModel ? 'model\n' : `${turn.role}\n`);
    answered = false;
    pieces.push(...contentPieces(turn, media));
    for (const { name, input } of turn.calls ?? []) {
      pieces.push(mark(START_CALL), ...callPieces(name, input), mark(END_CALL));
    }
    if (turn.calls) pieces.push(mark(START_RESPONSE));
    else if (isModel && i === turns.length - 1) return pieces;
    else pieces.push(mark(END_OF_TURN), '\n');
  }
  if (!answered) pieces.push(mark(START_OF_TURN), 'model\n');
  return pieces;
}

const MAX_DEPTH = 100;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const BARE = /[^{}[\]:,\0]*/y;

/** A call's text with each string in it replaced by \0, and the strings. */
class ValueReader {
  readonly #text: string;
  readonly #strings: readonly string[];
  #at = 0;
  #nextString = 0;

  constructor(text: string, strings: readonly string[]) {
    this.#text = text;
    this.#strings = strings;
  }

  /** @throws SyntaxError */
  call(): { name: string; input: Record<string, unknown> } {
    const head = /^call:([^{}\s:<>\0]+)\{/.exec(this.#text);
    if (!head) throw new SyntaxError('expected call:NAME{');
    this.#at = head[0].length;
    const input = this.#members(0);
    this.#skip();
    if (this.#at < this.#text.length) throw new SyntaxError('expected its end behind }');
    return { name: head[1] ?? '', input };
  }

  #skip(): void {
    while (/[ \n\r\t]/.test(this.#text.charAt(this.#at))) ++this.#at;
  }

  #take(character: string): boolean {
    this.#skip();
    if (this.#text.charAt(this.#at) !== character) return false;
    ++this.#at;
    return true;
  }

  #expect(characters: string): string {
    this.#skip();
    const found = this.#text.charAt(this.#at++);
    if (found === '' || !characters.includes(found)) throw new SyntaxError(`expected ${[...characters].join(' or ')}`);
    return found;
  }

  #match(pattern: RegExp): string {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text)?.[0] ?? '';
    this.#at += found.length;
    return found;
  }

  // Behind {.
  #members(depth: number): Record<string, unknown> {
    if (depth > MAX_DEPTH) throw new SyntaxError(`expected at most ${MAX_DEPTH} levels`);
    const pairs: [string, unknown][] = [];
    const keys = new Set<string>();
    if (this.#take('}')) return {};
    do {
      const isString = this.#take('\0');
      const key = isString ? (this.#strings[this.#nextString++] ?? '') : this.#match(BARE).trim();
      if (!isString && (key === '' || /[<>]/.test(key))) throw new SyntaxError('expected a key');
      if (keys.has(key)) throw new SyntaxError('a key stands twice');
      keys.add(key);
      this.#expect(':');
      pairs.push([key, this.#value(depth + 1)]);
    } while (this.#expect(',}') === ',');
    return Object.fromEntries(pairs);
  }

  #value(depth: number): unknown {
    if (this.#take('\0')) return this.#strings[this.#nextString++] ?? '';
    if (this.#take('{')) return this.#members(depth);
    if (this.#take('[')) {
      if (depth > MAX_DEPTH) throw new SyntaxError(`expected at most ${MAX_DEPTH} levels`);
      const items: unknown[] = [];
      if (this.#take(']')) return items;
      do items.push(this.#value(depth + 1));
      while (this.#expect(',]') === ',');
      return items;
    }
    const bare = this.#match(BARE).trim();
    if (bare === 'true' || bare === 'false') return bare === 'true';
    if (bare === 'null' || bare === 'None') return null;
    NUMBER.lastIndex = 0;
    if (NUMBER.exec(bare)?.[0] === bare && Number.isFinite(Number(bare))) return Number(bare);
    // Models leave out the marks of a string now and then; whether it is one here, the schema says.
    if (bare === '') throw new SyntaxError('expected a value');
    return bare;
  }
}

class FunctionGemmaParser implements CallParser {
  #inCall = false;
  #written = ''; // the call as it came, for one that is broken
  #text = '';
  #strings: string[] = [];
  #inString = false;
  #string = '';

  push(text: string, marker?: string): Found[] {
    const found: Found[] = [];
    if (!this.#inCall) {
      if (text !== '') found.push({ type: 'text', text });
    } else {
      this.#add(text);
    }
    if (marker === undefined) return found;
    if (marker === START_CALL && !this.#inString) {
      if (this.#inCall) found.push(this.#broken('another call begins in it'));
      this.#begin();
    } else if (this.#inCall && marker === END_CALL && !this.#inString) {
      found.push(this.#call());
    } else if (this.#inCall && marker === ESCAPE) {
      this.#written += ESCAPE;
      if (this.#inString) this.#strings.push(this.#string);
      else this.#text += '\0';
      this.#string = '';
      this.#inString = !this.#inString;
    } else if (this.#inCall) {
      this.#add(marker); // within a string a mark is what it spells
    }
    return found;
  }

  end(): Found[] {
    return this.#inCall ? [this.#broken('the answer ends within it')] : [];
  }

  #begin(): void {
    this.#inCall = true;
    this.#written = '';
    this.#text = '';
    this.#strings = [];
    this.#inString = false;
    this.#string = '';
  }

  #add(text: string): void {
    this.#written += text;
    if (this.#inString) this.#string += text;
    else this.#text += text.replaceAll('\0', '\ufffd'); // stands for a string
  }

  #call(): Found {
    try {
      const call = new ValueReader(this.#text, this.#strings).call();
      this.#inCall = false;
      return { type: 'call', ...call, written: this.#written };
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      return this.#broken(error.message);
    }
  }

  #broken(reason: string): Found {
    this.#inCall = false;
    this.#inString = false;
    return { type: 'broken', text: this.#written, reason };
  }
}

export const functiongemma: ToolFormat = {
  name: 'functiongemma',
  markers: [START_CALL, END_CALL, ESCAPE],
  writeCall: (name, input) =>
    callPieces(name, input)
      .map((piece) => (typeof piece === 'string' ? piece : 'mark' in piece ? piece.mark : ''))
      .join(''),
  structure(tools, force, markerId) {
    const [open, close, escape] = [START_CALL, END_CALL, ESCAPE].map((spelling) => markerId(spelling)) as [
      number,
      number,
      number,
    ];
    const grammar = functionGemmaGrammar(tools, escape);
    const tag = {
      type: 'tag',
      begin: { type: 'token', token: open },
      content: { type: 'grammar', grammar },
      end: { type: 'token', token: close },
    };
    if (force === 'auto') return { type: 'token_triggered_tags', trigger_tokens: [open], tags: [tag] };
    return force === 'one' ? tag : { type: 'plus', content: tag };
  },
  parser: () => new FunctionGemmaParser(),
};
