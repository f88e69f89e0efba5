// Gemma 3's conversation format, written out so that a whole prompt has the ids that Hugging Face's template gives, with one
// difference on purpose: only the markers made here are control tokens; whatever the messages say stays text.
import { GemmaError } from './errors.js';
import type { Part, Turn } from './messages.js';
import {
  MARKER_BOS,
  MARKER_END_OF_IMAGE,
  MARKER_END_OF_TURN,
  MARKER_IMAGE,
  MARKER_START_OF_IMAGE,
  MARKER_START_OF_TURN,
  type PromptPart,
} from './native.js';
import { strip } from './python-text.js';
import type { Sliced } from './turns.js';

/** How an image or video part is written. */
export type RenderMedia = (part: Part) => readonly PromptPart[];

const IMAGE: readonly PromptPart[] = ['\n\n', MARKER_START_OF_IMAGE, MARKER_IMAGE, MARKER_END_OF_IMAGE, '\n\n'];

/** A picture in a prompt, one MARKER_IMAGE for it and for each of its crops. Wording and blanks are the reference's. */
export function renderImage(nCrops: number): PromptPart[] {
  if (nCrops === 0) return [...IMAGE];
  const crops = Array.from({ length: nCrops }, (_, i) => (i === 0 ? IMAGE : [' ', ...IMAGE]));
  return ['Here is the original image ', ...IMAGE, ' and here are some crops to help you see better ', ...crops.flat()];
}

// Texts that follow each other are joined, some thousand at a time: native code takes each piece on the JavaScript thread.
const MAX_JOINED = 1000;

/** The parts of a prompt, in the making. */
class Parts {
  readonly list: PromptPart[] = [];
  #texts: string[] = [];

  push(part: PromptPart): void {
    if (typeof part === 'string') this.#texts.push(part);
    if (typeof part !== 'string' || this.#texts.length >= MAX_JOINED) this.flush();
    if (typeof part !== 'string') this.list.push(part);
  }

  flush(): void {
    if (this.#texts.length > 0) this.list.push(this.#texts.join(''));
    this.#texts = [];
  }
}

// What the reference's template makes of a message's content: each text without blanks around, nothing in between.
function* renderContent({ content = '' }: Turn, media: RenderMedia, parts: Parts): Sliced<void> {
  if (typeof content === 'string') {
    parts.push(strip(content));
    return;
  }
  for (const part of content) {
    if (part.type === 'text') parts.push(strip(part.text ?? ''));
    else for (const piece of media(part)) parts.push(piece);
    yield;
  }
}

function systemText({ content = '' }: Turn, where: string): string {
  if (typeof content === 'string') return content;
  return content
    .map((part, i) => {
      if (part.type === 'text') return part.text;
      throw new GemmaError('ERR_UNSUPPORTED_INPUT', `${where}.content[${i}]: a system message is text only`);
    })
    .join('');
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
 * The prompt of a conversation, ending where the model's answer begins: behind the last message where that is the
 * assistant's, else in a new turn. With `answer: false` all turns are complete.
 * Calls and results of tools are turns of assistant and user here (tool-turns.ts).
 * Throws GemmaError `ERR_INVALID_ARGUMENT`/`BAD_ROLES` for roles out of order and `ERR_UNSUPPORTED_INPUT` for a system message
 * that is more than text.
 */
export function* renderChat(
  turns: readonly Turn[],
  media: RenderMedia,
  { answer = true }: { answer?: boolean } = {},
): Sliced<PromptPart[]> {
  const parts = new Parts();
  parts.push(MARKER_BOS);
  let system = '';
  let written = 0;
  let open = false;
  for (const [i, turn] of turns.entries()) {
    const where = `messages[${i}]`;
    const { role } = turn;
    if (role === 'system') {
      if (i > 0) throw wrongRoles(where, 'a system message only at the beginning', role);
      system = `${systemText(turn, where)}\n\n`;
      continue;
    }
    const expected = written % 2 === 0 ? 'user' : 'assistant';
    if (role !== expected) throw wrongRoles(where, expected, role);
    parts.push(MARKER_START_OF_TURN);
    parts.push(role === 'user' ? 'user\n' : 'model\n');
    if (written === 0) parts.push(system);
    yield* renderContent(turn, media, parts);
    ++written;
    open = answer && role === 'assistant' && i === turns.length - 1;
    if (open) break;
    parts.push(MARKER_END_OF_TURN);
    parts.push('\n');
    yield;
  }
  if (written === 0) {
    throw new GemmaError(
      'ERR_INVALID_ARGUMENT',
      'messages: expected at least one user message, found none',
      'BAD_ROLES',
    );
  }
  if (answer && !open) {
    parts.push(MARKER_START_OF_TURN);
    parts.push('model\n');
  }
  parts.flush();
  return parts.list;
}
