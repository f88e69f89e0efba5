// Gemma 3's conversation format, written out so that a whole prompt has the ids that Hugging Face's template gives, with one
// difference on purpose: only the markers made here are control tokens; whatever the messages say stays text.
import { GemmaError } from './errors.js';
import { MARKER_BOS, MARKER_END_OF_TURN, MARKER_START_OF_TURN, type PromptPart } from './native.js';

export interface TextPart {
  type: 'text';
  text: string;
}
/** Part of the interface; this version answers `ERR_UNSUPPORTED_INPUT`. */
export interface ImagePart {
  type: 'image';
  image: unknown;
}
/** Part of the interface; this version answers `ERR_UNSUPPORTED_INPUT`. */
export interface VideoPart {
  type: 'video';
  video: unknown;
}
export type ContentPart = TextPart | ImagePart | VideoPart;

/** One turn. A system message may come first; then user and assistant take turns, the user first. */
export interface Message {
  role: 'system' | 'user' | 'assistant' | 'tool';
  content: string | readonly ContentPart[];
}

// What Python's str.strip() takes away, which the reference template uses; JavaScript's trim() differs in U+FEFF and
// U+001C..U+001F, U+0085.
const BLANK = '[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]';
const LEADING_BLANKS = new RegExp(`^${BLANK}+`);
const IS_BLANK = new RegExp(BLANK);

/** Exported for tests. */
export function strip(text: string): string {
  let end = text.length;
  while (end > 0 && IS_BLANK.test(text.charAt(end - 1))) --end; // a regular expression would backtrack quadratically
  return text.slice(0, end).replace(LEADING_BLANKS, '');
}

function textsOf(message: Message, where: string): string[] {
  const { content } = message;
  if (typeof content === 'string') return [content];
  if (!Array.isArray(content)) {
    throw new TypeError(`${where}.content: expected a string or an array of parts, found ${describe(content)}`);
  }
  return (content as readonly ContentPart[]).map((part, i) => {
    const type: unknown = (part as ContentPart | null)?.type;
    if (type === 'image' || type === 'video') {
      throw new GemmaError(
        'ERR_UNSUPPORTED_INPUT',
        `${where}.content[${i}]: this version of gemma-native reads text only, found a part of type '${type}'`,
        'NO_VISION',
      );
    }
    if (type !== 'text' || typeof (part as TextPart).text !== 'string') {
      throw new TypeError(`${where}.content[${i}]: expected { type: 'text', text: string }, found ${describe(part)}`);
    }
    return (part as TextPart).text;
  });
}

function describe(value: unknown): string {
  return value === null
    ? 'null'
    : typeof value === 'object'
      ? `an object (${Object.keys(value).join(', ')})`
      : typeof value;
}

function wrongRoles(where: string, expected: string, found: string): GemmaError {
  return new GemmaError(
    'ERR_INVALID_ARGUMENT',
    `${where}: expected ${expected}, found role '${found}'. A conversation is an optional system message, then user and ` +
      'assistant in turns, the user first',
    'BAD_ROLES',
  );
}

/**
 * The prompt of a conversation, ending where the model's answer begins (unless `answer` is false).
 * Throws TypeError for malformed messages, GemmaError `ERR_INVALID_ARGUMENT`/`BAD_ROLES` for roles out of order and
 * `ERR_UNSUPPORTED_INPUT` for parts that are not text.
 */
export function renderChat(messages: readonly Message[], { answer = true }: { answer?: boolean } = {}): PromptPart[] {
  const parts: PromptPart[] = [MARKER_BOS];
  let system = '';
  let turns = 0;
  messages.forEach((message, i) => {
    const where = `messages[${i}]`;
    const role: unknown = (message as Message | null)?.role;
    if (role === 'tool') {
      throw new GemmaError('ERR_UNSUPPORTED_INPUT', `${where}: this version of gemma-native has no tools`, 'NO_TOOLS');
    }
    if (role !== 'system' && role !== 'user' && role !== 'assistant') {
      throw new TypeError(`${where}.role: expected 'system', 'user' or 'assistant', found ${describe(role)}`);
    }
    const texts = textsOf(message, where);
    if (role === 'system') {
      if (i > 0) throw wrongRoles(where, 'a system message only at the beginning', role);
      system = `${texts.join('')}\n\n`;
      return;
    }
    const expected = turns % 2 === 0 ? 'user' : 'assistant';
    if (role !== expected) throw wrongRoles(where, expected, role);
    parts.push(MARKER_START_OF_TURN, role === 'user' ? 'user\n' : 'model\n');
    if (turns === 0) parts.push(system);
    parts.push(texts.map(strip).join(''), MARKER_END_OF_TURN, '\n');
    ++turns;
  });
  if (turns === 0) {
    throw new GemmaError(
      'ERR_INVALID_ARGUMENT',
      'messages: expected at least one user message, found none',
      'BAD_ROLES',
    );
  }
  if (answer) parts.push(MARKER_START_OF_TURN, 'model\n');
  return parts;
}
