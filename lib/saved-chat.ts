// A conversation as text, to be saved beside its keys and values: a line of JSON for each message and each turn, so that long ones
// are written and read in slices. Pictures are their embeddings, which native code saves. What is read was written by anybody.
import { GemmaError } from './errors.js';
import type { KeptTurn } from './kept-tokens.js';
import type { Crop, ImageEmbedding } from './media.js';
import { isMedia, type Part, type Turn } from './messages.js';
import type { PromptPart, SavedImage } from './native.js';
import type { Kept } from './overflow.js';
import { reasonOf, show } from './values.js';
import { copyInto, Pace } from './turns.js';

const VERSION = 1;
const MAX_CHARACTERS = 16 << 20; // kMaxStateMetadata; the text of the longest context is a fraction of it

/** A conversation in the form that is saved. */
export interface SavedChat {
  options: Readonly<Record<string, unknown>>;
  /** the system message */
  head: readonly Turn[];
  turns: readonly Turn[];
  kept: readonly Kept[];
}

// Options that are functions, or may hold some. Nor are regular expressions saved that are objects.
const NOT_SAVED = ['signal', 'onProgress', 'tools', 'toolChoice', 'schema'];

// JSON has no infinity, which bans a token.
function savedOptions(options: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const saved = Object.entries(options).filter(
    ([name, value]) => !NOT_SAVED.includes(name) && typeof value !== 'function' && !(value instanceof RegExp),
  );
  return Object.fromEntries(
    saved.map(([name, value]) => [name, name === 'logitBias' ? Object.entries(value as object).map(String) : value]),
  );
}

function restoredOptions(options: Record<string, unknown>): Record<string, unknown> {
  const { logitBias, ...others } = options;
  if (!Array.isArray(logitBias)) return others;
  const biases = logitBias.map((bias) => String(bias).split(','));
  return { ...others, logitBias: Object.fromEntries(biases.map(([id, bias]) => [id, Number(bias)])) };
}

// A video is its frames from now on, each with its time before it.
function savedParts(part: Part): Record<string, unknown>[] {
  const { type, text, loaded, fields } = part;
  if (!isMedia(type)) return [{ ...(text !== undefined && { text }), type, fields }];
  return (loaded?.pictures ?? []).flatMap(({ crops }, i) => [
    ...(loaded?.labels ?? []).slice(i, i + 1).map((label) => ({ type: 'text', text: label, fields: {} })),
    { type: 'image', crops, fields },
  ]);
}

function savedTurn({ role, content, fields, calls, reply }: Turn): Record<string, unknown> {
  return { role, content: typeof content === 'object' ? content.flatMap(savedParts) : content, fields, calls, reply };
}

function savedKept({ parts, ids, firsts, answerIds, text, answer, begun, end }: Kept): Record<string, unknown> {
  return { parts, ids: ids.length, firsts, answerIds: answerIds.length, text, answer, begun, end };
}

/** The rows of all pictures of a conversation, in the order of its messages. */
export function rowsOf(turns: readonly Turn[]): Float32Array[] {
  const parts = turns.flatMap(({ content }) => (typeof content === 'object' ? content : []));
  return parts.flatMap(({ loaded }) =>
    (loaded?.pictures ?? []).flatMap((picture) => ('rows' in picture ? picture.rows : [])),
  );
}

/** @throws GemmaError `ERR_INVALID_ARGUMENT` (`STATE_METADATA`) for more than 16 MiB */
export async function chatText({ options, head, turns, kept }: SavedChat): Promise<string> {
  const header = {
    chat: VERSION,
    options: savedOptions(options),
    head: head.length,
    turns: turns.length,
    kept: kept.length,
  };
  const lines: string[] = [JSON.stringify(header)];
  const pace = new Pace();
  let characters = 0;
  for (const entry of [...head.map(savedTurn), ...turns.map(savedTurn), ...kept.map(savedKept)]) {
    const line = JSON.stringify(entry);
    lines.push(line);
    characters += line.length;
    if (pace.due) await pace.turn();
  }
  if (characters > MAX_CHARACTERS) {
    throw new GemmaError(
      'ERR_INVALID_ARGUMENT',
      `the conversation: expected messages of at most ${MAX_CHARACTERS} characters to save, found ${characters}`,
      'STATE_METADATA',
    );
  }
  return lines.join('\n');
}

/** What is wrong with the text of a saved conversation. */
class Damage extends Error {}

function expectThat(condition: boolean, what: string): asserts condition {
  if (!condition) throw new Damage(what);
}

function count(value: unknown, what: string, most: number): number {
  const isCount = typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= most;
  expectThat(isCount, `${what}: expected an integer from 0 to ${most}, found ${show(value)}`);
  return value;
}

function object(value: unknown, what: string): Record<string, unknown> {
  expectThat(
    typeof value === 'object' && value !== null && !Array.isArray(value),
    `${what}: expected an object, found ${show(value)}`,
  );
  return value as Record<string, unknown>;
}

function array(value: unknown, what: string): readonly unknown[] {
  expectThat(Array.isArray(value), `${what}: expected an array, found ${show(value)}`);
  return value as readonly unknown[];
}

function string(value: unknown, what: string): string {
  expectThat(typeof value === 'string', `${what}: expected a string, found ${show(value)}`);
  return value;
}

function promptParts(value: unknown, what: string): PromptPart[] {
  return array(value, what).map((part) => {
    const isPart = typeof part === 'string' || (Number.isInteger(part) && Math.abs(part as number) < 2 ** 31);
    expectThat(isPart, `${what}: expected texts and markers, found ${show(part)}`);
    return part as PromptPart;
  });
}

/** What a model's pictures are, and those that were saved. */
export interface SavedPictures {
  images: readonly SavedImage[];
  tokensPerImage: number;
  modelDim: number;
}

/** Gives out the rows of pictures in order. */
class Pictures {
  readonly #saved: SavedPictures;
  #next = 0;

  constructor(saved: SavedPictures) {
    this.#saved = saved;
  }

  async take(crops: unknown, what: string): Promise<ImageEmbedding> {
    const { images, tokensPerImage, modelDim } = this.#saved;
    const cuts = array(crops, what).map((cut): Crop => {
      const { x, y, width, height } = object(cut, what);
      const [a, b, c, d] = [x, y, width, height].map((side) => count(side, what, 2 ** 31 - 1));
      return { x: a ?? 0, y: b ?? 0, width: c ?? 0, height: d ?? 0 };
    });
    const squares = images.slice(this.#next, this.#next + 1 + cuts.length);
    this.#next += squares.length;
    expectThat(squares.length === 1 + cuts.length, `${what}: expected ${1 + cuts.length} embeddings`);
    const size = tokensPerImage * modelDim;
    const data = new Float32Array(squares.length * size);
    for (const [i, { embedding }] of squares.entries()) {
      const rows = await embedding;
      expectThat(rows.length === size, `${what}: expected an embedding of ${size} values, found ${rows.length}`);
      await copyInto(data, rows, i * size);
    }
    return { data, shape: [squares.length * tokensPerImage, modelDim], crops: cuts };
  }

  get isUsedUp(): boolean {
    return this.#next === this.#saved.images.length;
  }
}

async function restoredPart(part: unknown, pictures: Pictures): Promise<Record<string, unknown>> {
  const { type, text, crops, fields } = object(part, 'a part');
  const own = { ...object(fields, 'fields'), type };
  if (type === 'image') return { ...own, image: await pictures.take(crops, 'a picture') };
  return { ...own, ...(text !== undefined && { text }) };
}

async function restoredMessage(line: unknown, pictures: Pictures): Promise<Record<string, unknown>> {
  const { role, content, fields, calls, reply } = object(line, 'a message');
  const own = { ...object(fields, 'fields'), role, ...(calls !== undefined && { toolCalls: calls }) };
  if (reply !== undefined) {
    const { id, output } = object(reply, 'a result');
    return { ...own, toolCallId: id, content: output };
  }
  if (!Array.isArray(content)) return { ...own, ...(content !== undefined && { content }) };
  const parts: unknown[] = [];
  for (const part of content) parts.push(await restoredPart(part, pictures));
  return { ...own, content: parts };
}

function restoredKept(
  line: unknown,
  tokens: Int32Array,
  from: number,
  before: number,
  turns: readonly { role?: unknown }[],
): Kept {
  const found = object(line, 'a turn');
  const n = count(found.ids, 'ids', tokens.length - from);
  const nAnswer = count(found.answerIds, 'answerIds', tokens.length - from - n);
  const end = count(found.end, 'end', turns.length);
  expectThat(end > before && turns[end - 1]?.role === 'assistant', 'a turn does not end with an answer');
  let least = 0;
  const firsts = array(found.firsts, 'firsts').map((first) => {
    const place = count(first, 'firsts', n - 1);
    expectThat(place >= least, 'firsts: expected them in order');
    least = place + 1;
    return place;
  });
  const kept: KeptTurn = {
    parts: promptParts(found.parts, 'parts'),
    ids: tokens.slice(from, from + n),
    firsts,
    answerIds: tokens.slice(from + n, from + n + nAnswer),
    text: string(found.text, 'text'),
    ...(found.answer !== undefined && { answer: promptParts(found.answer, 'answer') }),
  };
  return { ...kept, begun: string(found.begun, 'begun'), end };
}

/** A conversation as it was saved; its messages have not been read yet. */
export interface RestoredChat {
  options: Record<string, unknown>;
  head: Record<string, unknown>[];
  turns: Record<string, unknown>[];
  kept: Kept[];
}

/**
 * Reads what `chatText` wrote.
 *
 * @param name of the file, for messages
 * @throws GemmaError `ERR_FILE`: `CHAT_VERSION` for a conversation of another version, `CHAT_DAMAGED` for what is none
 */
export async function restoredChat(
  name: string,
  text: string,
  tokens: Int32Array,
  saved: SavedPictures,
): Promise<RestoredChat> {
  const pace = new Pace();
  let at = 0;
  const next = async (): Promise<unknown> => {
    expectThat(at <= text.length, 'it ends too early');
    const end = text.indexOf('\n', at);
    const line = text.slice(at, end < 0 ? text.length : end);
    at = end < 0 ? text.length + 1 : end + 1;
    if (pace.due) await pace.turn();
    return JSON.parse(line);
  };
  try {
    const header = object(await next(), 'the header');
    if (header.chat !== VERSION) {
      throw new GemmaError(
        'ERR_FILE',
        `${name}: expected a conversation of version ${VERSION}, found ${show(header.chat)}`,
        'CHAT_VERSION',
      );
    }
    const lines = (what: 'head' | 'turns' | 'kept') => count(header[what], what, text.length);
    const pictures = new Pictures(saved);
    const head: Record<string, unknown>[] = [];
    const turns: Record<string, unknown>[] = [];
    const kept: Kept[] = [];
    for (let i = lines('head'); i > 0; --i) head.push(await restoredMessage(await next(), pictures));
    for (let i = lines('turns'); i > 0; --i) turns.push(await restoredMessage(await next(), pictures));
    let from = 0;
    for (let i = lines('kept'); i > 0; --i) {
      const turn = restoredKept(await next(), tokens, from, kept.at(-1)?.end ?? 0, turns);
      from += turn.ids.length + turn.answerIds.length;
      kept.push(turn);
    }
    expectThat(at > text.length && pictures.isUsedUp, 'there is more than it tells of');
    const options = restoredOptions(object(header.options, 'options'));
    return { options, head, turns, kept };
  } catch (error) {
    if (error instanceof GemmaError) throw error;
    throw new GemmaError('ERR_FILE', `${name}: not a saved conversation: ${reasonOf(error)}`, 'CHAT_DAMAGED');
  }
}
