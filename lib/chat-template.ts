// Gemma 3's conversation format, written out so that a whole prompt has the ids that Hugging Face's template gives, with one
// difference on purpose: only the markers made here are control tokens; whatever the messages say stays text.
import { GemmaError } from './errors.js';
import type { ImageInput } from './image.js';
import {
  MARKER_BOS,
  MARKER_END_OF_IMAGE,
  MARKER_END_OF_TURN,
  MARKER_IMAGE,
  MARKER_START_OF_IMAGE,
  MARKER_START_OF_TURN,
  type PromptPart,
} from './native.js';
import type { ImageEmbedding } from './vision.js';

export interface TextPart {
  type: 'text';
  text: string;
}
/** A picture, or what `embedImage` made of one. */
export interface ImagePart {
  type: 'image';
  image: ImageInput | ImageEmbedding;
}
/** A video: its frames as pictures, each after its time. Needs the program ffmpeg. */
export interface VideoPart {
  type: 'video';
  /** path or `file:` URL */
  video: string | URL;
  /** Frames per second, instead of `maxFrames` evenly spaced ones. */
  fps?: number;
  /** Default 16, or with `fps` as many as the context has room for. */
  maxFrames?: number;
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

/** How an image or video part is written; `where` names it in messages. */
export type RenderMedia = (part: ImagePart | VideoPart, where: string) => readonly PromptPart[];

const IMAGE: readonly PromptPart[] = ['\n\n', MARKER_START_OF_IMAGE, MARKER_IMAGE, MARKER_END_OF_IMAGE, '\n\n'];

/** A picture in a prompt, one MARKER_IMAGE for it and for each of its crops. Wording and blanks are the reference's. */
export function renderImage(nCrops: number): PromptPart[] {
  if (nCrops === 0) return [...IMAGE];
  const crops = Array.from({ length: nCrops }, (_, i) => (i === 0 ? IMAGE : [' ', ...IMAGE]));
  return ['Here is the original image ', ...IMAGE, ' and here are some crops to help you see better ', ...crops.flat()];
}

// What the reference's template makes of a message's content: each text without blanks around, nothing in between.
function renderContent(message: Message, where: string, media: RenderMedia): PromptPart[] {
  const { content } = message;
  if (typeof content === 'string') return [strip(content)];
  return partsOf(content, where).flatMap((part, i): readonly PromptPart[] =>
    part.type === 'text' ? [strip(part.text)] : media(part, `${where}.content[${i}]`),
  );
}

function systemText(message: Message, where: string): string {
  const { content } = message;
  if (typeof content === 'string') return content;
  return partsOf(content, where)
    .map((part, i) => {
      if (part.type === 'text') return part.text;
      throw new GemmaError('ERR_UNSUPPORTED_INPUT', `${where}.content[${i}]: a system message is text only`);
    })
    .join('');
}

function partsOf(content: unknown, where: string): readonly ContentPart[] {
  if (!Array.isArray(content)) {
    throw new TypeError(`${where}.content: expected a string or an array of parts, found ${describe(content)}`);
  }
  (content as readonly (ContentPart | null | undefined)[]).forEach((part, i) => {
    const type: unknown = part?.type;
    const known = type === 'text' ? typeof (part as TextPart).text === 'string' : type === 'image' || type === 'video';
    if (!known) {
      throw new TypeError(
        `${where}.content[${i}]: expected { type: 'text', text: string }, { type: 'image', image } or ` +
          `{ type: 'video', video }, found ${describe(part)}`,
      );
    }
  });
  return content as readonly ContentPart[];
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
 * `ERR_UNSUPPORTED_INPUT` for tools and for a system message that is more than text.
 */
export function renderChat(
  messages: readonly Message[],
  media: RenderMedia,
  { answer = true }: { answer?: boolean } = {},
): PromptPart[] {
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
    if (role === 'system') {
      if (i > 0) throw wrongRoles(where, 'a system message only at the beginning', role);
      system = `${systemText(message, where)}\n\n`;
      return;
    }
    const expected = turns % 2 === 0 ? 'user' : 'assistant';
    if (role !== expected) throw wrongRoles(where, expected, role);
    parts.push(MARKER_START_OF_TURN, role === 'user' ? 'user\n' : 'model\n');
    if (turns === 0) parts.push(system);
    parts.push(...renderContent(message, where, media), MARKER_END_OF_TURN, '\n');
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
