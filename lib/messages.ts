// The messages of a conversation: their types, and the one place where what callers pass is read. Each field is read once, so
// that what was checked is what is used.
import type { ImageEmbedding, ImageInput } from './media.js';
import type { ToolCall } from './tools.js';
import type { Sliced } from './turns.js';
import { opaqueName, plain, show } from './values.js';
import type { Picture } from './vision.js';

/** Fields of parts and messages that a chat template of the model's own may want, such as `source_lang_code`. Plain data. */
interface TemplateFields {
  readonly [field: string]: unknown;
}

export interface TextPart extends TemplateFields {
  type: 'text';
  text: string;
}
/** A picture, or what `embedImage` made of one. */
export interface ImagePart extends TemplateFields {
  type: 'image';
  image: ImageInput | ImageEmbedding;
}
/** A video: its frames as pictures, each after its time. Needs the program ffmpeg. */
export interface VideoPart extends TemplateFields {
  type: 'video';
  /** path or `file:` URL */
  video: string | URL;
  /** Frames per second, instead of `maxFrames` evenly spaced ones. */
  fps?: number;
  /** Default 16, or with `fps` as many as the context has room for. */
  maxFrames?: number;
}
export type ContentPart = TextPart | ImagePart | VideoPart;

/**
 * One turn. In Gemma 3's format a system message may come first; then user and assistant take turns, the user first. Where the
 * last message is the assistant's, the answer continues it. A model with a chat template of its own may know other roles and
 * further fields.
 */
export interface TurnMessage extends TemplateFields {
  role: 'system' | 'user' | 'assistant' | 'developer';
  content: string | readonly ContentPart[];
  /** Pictures that stand before the content. */
  images?: readonly (ImageInput | ImageEmbedding)[];
  /** Of the assistant: the calls that it made, behind its text. Each wants its result in a message of role `tool` next. */
  toolCalls?: readonly ToolCall[];
}

/** The result of a call. */
export interface ToolMessage extends TemplateFields {
  role: 'tool';
  /** the `id` of the call */
  toolCallId?: string;
  /** what the tool returned, plain data; `{ error: message }` where it failed */
  content: unknown;
}

export type Message = TurnMessage | ToolMessage;

/** A picture, or the frames of a video with the label before each. */
export interface Loaded {
  pictures: readonly Picture[];
  labels: readonly string[];
}

/** A part as it was read: known fields checked, others copied as plain data. */
export interface Part {
  readonly type: string;
  readonly text?: string;
  readonly image?: ImageInput | ImageEmbedding;
  readonly video?: string | URL;
  readonly fps?: number;
  readonly maxFrames?: number;
  /** of a picture or video: its place, for messages of errors */
  readonly name?: string;
  /** of a picture or video that a prompt has had: what the encoder made of it */
  loaded?: Loaded;
  /** of a template's own; for Gemma's format none */
  readonly fields: Readonly<Record<string, unknown>>;
}

/** Whether a part of this type is a picture or a video. */
export function isMedia(type: string): boolean {
  return type === 'image' || type === 'video';
}

/** A message as it was read; `images` are parts of the content. */
export interface Turn {
  readonly role: string;
  /** undefined: not a string and not parts, but plain data for a template, in `fields.content` */
  readonly content: string | readonly Part[] | undefined;
  readonly fields: Readonly<Record<string, unknown>>;
  /** of the assistant */
  readonly calls?: readonly ToolCall[];
  /** of a tool: which call it answers; `name` is filled in by tool-turns.ts */
  readonly reply?: { readonly id: string; readonly name: string; readonly output: unknown };
}

const MESSAGE_KEYS = ['role', 'content', 'images', 'toolCalls', 'toolCallId'];
const PART_KEYS: Readonly<Record<string, readonly string[]>> = {
  text: ['type', 'text'],
  image: ['type', 'image'],
  video: ['type', 'video', 'fps', 'maxFrames'],
};

const ALL_PART_KEYS = [...new Set(Object.values(PART_KEYS).flat())];

const PICTURES = "put pictures into the content, { type: 'image', image }, or into images";
const CALLS = "toolCalls of the assistant's message is meant, [{ id, name, input }]";
const REPLY = "a message { role: 'tool', toolCallId, content } is meant";

// What was probably meant by keys that other libraries have.
const MESSAGE_HINTS: Readonly<Record<string, string>> = {
  tool_calls: CALLS,
  tool_call_id: 'toolCallId is meant',
  function_call: CALLS,
  toolInvocations: CALLS,
  image: PICTURES,
  image_data: PICTURES,
  image_url: PICTURES,
  attachments: PICTURES,
  experimental_attachments: PICTURES,
  files: PICTURES,
  media: PICTURES,
  video: "put videos into the content, { type: 'video', video }",
  videos: "put videos into the content, { type: 'video', video }",
  text: 'content is meant',
  message: 'content is meant',
  parts: 'content is meant',
  author: 'role is meant',
  from: 'role is meant',
  sender: 'role is meant',
};
const PART_HINTS: Readonly<Record<string, string>> = {
  content: 'text is meant',
  value: 'text is meant',
  image_url: 'image is meant, with a path, a URL or bytes',
  url: 'image is meant, with a path, a URL or bytes',
  source: 'image is meant, with a path, a URL or bytes',
  data: 'image is meant, with a path, a URL or bytes',
  path: 'image is meant, with a path, a URL or bytes',
  max_frames: 'maxFrames is meant',
};
const TYPE_HINTS: Readonly<Record<string, string>> = {
  image_url: "{ type: 'image', image } is meant, with a path, a URL or bytes",
  input_image: "{ type: 'image', image } is meant, with a path, a URL or bytes",
  file: "{ type: 'image', image } is meant, with a path, a URL or bytes",
  input_text: "{ type: 'text', text } is meant",
  output_text: "{ type: 'text', text } is meant",
  video_url: "{ type: 'video', video } is meant, with a path",
  'tool-call': CALLS,
  'tool-result': REPLY,
};
const ROLE_HINTS: Readonly<Record<string, string>> = {
  developer: "; 'system' is meant",
  model: "; 'assistant' is meant",
  bot: "; 'assistant' is meant",
  ai: "; 'assistant' is meant",
  human: "; 'user' is meant",
};

// How many letters differ, up to a few: enough to tell a misspelt name.
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; ++i) {
    const next = [i];
    for (let k = 1; k <= b.length; ++k) {
      const replaced = (row[k - 1] ?? 0) + (a[i - 1] === b[k - 1] ? 0 : 1);
      next.push(Math.min(replaced, (row[k] ?? 0) + 1, (next[k - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}

function unknownKey(
  where: string,
  key: string,
  keys: readonly string[],
  hints: Readonly<Record<string, string>>,
): never {
  const name = key.length > 40 ? `${key.slice(0, 40)}...` : key;
  const close =
    key.length > 20 ? undefined : keys.find((known) => distance(key.toLowerCase(), known.toLowerCase()) <= 2);
  const hint = Object.hasOwn(hints, key) ? hints[key] : close && `${close} is meant`;
  throw new TypeError(`${where}.${name}: no such key; ${hint ? `${hint}. ` : ''}There are ${keys.join(', ')}`);
}

/** A value as messages about wrong messages show it. */
function describe(value: unknown): string {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
    ? `an object (${plain(Object.keys(value).slice(0, 10).join(', '))})`
    : show(value);
}

const MAX_DEPTH = 100;

/** How much of plain data may still be copied. */
interface Budget {
  values: number;
  characters: number;
}

const UNLIMITED: Budget = { values: Infinity, characters: Infinity };

// Plain data, copied; anything else is refused: it could neither reach a template nor mean anything to it.
function copyData(value: unknown, where: string, budget = UNLIMITED, depth = 0): unknown {
  if (depth > MAX_DEPTH) throw new RangeError(`${where}: expected at most ${MAX_DEPTH} levels of nesting`);
  const take = (text: string) => {
    budget.characters -= text.length;
    if (--budget.values < 0 || budget.characters < 0) throw new RangeError(`${where}: expected less data`);
  };
  if (typeof value === 'string') take(value);
  if (value === null || ['string', 'number', 'boolean'].includes(typeof value)) return value;
  take('');
  if (Array.isArray(value)) {
    return Array.from(value as readonly unknown[], (item, i) => copyData(item, `${where}[${i}]`, budget, depth + 1));
  }
  if (typeof value !== 'object' || ArrayBuffer.isView(value)) {
    throw new TypeError(`${where}: expected plain data (as in JSON), found ${describe(value)}`);
  }
  const opaque = opaqueName(value);
  if (opaque !== undefined) throw new TypeError(`${where}: expected plain data (as in JSON), found ${opaque}`);
  const copy: [string, unknown][] = [];
  for (const [key, item] of Object.entries(value)) {
    take(key);
    if (item !== undefined) copy.push([key, copyData(item, `${where}.${key}`, budget, depth + 1)]);
  }
  return Object.fromEntries(copy);
}

/**
 * A copy of plain data, as in JSON.
 *
 * @throws TypeError for anything else, RangeError for more values or characters than are allowed
 */
export function plainData(value: unknown, where: string, values: number, characters: number): unknown {
  return copyData(value, where, { values, characters });
}

function fieldsOf(
  entries: ReadonlyMap<string, unknown>,
  where: string,
  keys: readonly string[],
  hints: Readonly<Record<string, string>>,
  free: boolean,
): Record<string, unknown> {
  const fields: [string, unknown][] = [];
  for (const [key, value] of entries) {
    if (keys.includes(key) || value === undefined) continue;
    if (!free) unknownKey(where, key, keys, hints);
    fields.push([key, copyData(value, `${where}.${key}`)]);
  }
  return Object.fromEntries(fields);
}

// Own fields, and those of the known ones that a class has.
function entriesOf(value: unknown, where: string, known: readonly string[], expected: string): Map<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new TypeError(`${where}: expected ${expected}, found ${describe(value)}`);
  }
  const entries = new Map<string, unknown>(Object.entries(value));
  for (const key of known) if (!entries.has(key)) entries.set(key, (value as Record<string, unknown>)[key]);
  return entries;
}

// The usual part, which there may be a million of.
function isPlainText(value: unknown): value is { type: unknown; text: unknown } {
  if (typeof value !== 'object' || value === null) return false;
  return Object.hasOwn(value, 'type') && Object.hasOwn(value, 'text') && Object.keys(value).length === 2;
}

function copyPart(value: unknown, where: string, free: boolean): Part {
  if (isPlainText(value)) {
    const { type, text } = value;
    if (type === 'text' && typeof text === 'string') return { type, text, fields: {} };
    value = { type, text }; // read once
  }
  const forms = "{ type: 'text', text: string }, { type: 'image', image } or { type: 'video', video }";
  const entries = entriesOf(value, where, ALL_PART_KEYS, forms);
  const type = entries.get('type');
  const keys = typeof type === 'string' && Object.hasOwn(PART_KEYS, type) ? PART_KEYS[type] : undefined;
  if (typeof type !== 'string' || (!keys && !free)) {
    const hint = typeof type === 'string' && Object.hasOwn(TYPE_HINTS, type) ? `; ${TYPE_HINTS[type]}` : '';
    throw new TypeError(`${where}.type: expected 'text', 'image' or 'video', found ${describe(type)}${hint}`);
  }
  const fields = fieldsOf(entries, where, keys ?? ['type'], PART_HINTS, free);
  const text = entries.get('text');
  if (type === 'text' && typeof text !== 'string') {
    throw new TypeError(`${where}.text: expected a string, found ${describe(text)}`);
  }
  const shows = isMedia(type);
  if (shows && entries.get(type) === undefined) {
    throw new TypeError(`${where}.${type}: expected ${type === 'image' ? 'a picture' : 'a path'}, found undefined`);
  }
  const values = Object.fromEntries(keys?.map((key) => [key, entries.get(key)]) ?? []);
  return { ...values, type, fields, ...(shows && { name: `${where}.${type}` }) };
}

const MAX_CALLS = 128;
const MAX_ID = 256;
// Of the data of all calls and results of a conversation, which is copied at once.
const MAX_VALUES = 20_000;
const MAX_CHARACTERS = 1 << 20;

function idOf(value: unknown, where: string): string {
  if (typeof value !== 'string' || value === '') {
    throw new TypeError(`${where}: expected the id of a call, found ${describe(value)}`);
  }
  if (value.length > MAX_ID)
    throw new RangeError(`${where}: expected at most ${MAX_ID} characters, found ${value.length}`);
  return value;
}

function copyCall(value: unknown, where: string, budget: Budget): ToolCall {
  const keys = ['id', 'name', 'input'];
  const entries = entriesOf(value, where, keys, 'a call { id, name, input }');
  for (const key of entries.keys()) {
    if (!keys.includes(key))
      unknownKey(where, key, keys, {
        arguments: 'input is meant',
        args: 'input is meant',
        toolCallId: 'id is meant',
        toolName: 'name is meant',
      });
  }
  const name = entries.get('name');
  if (typeof name !== 'string' || !/^[A-Za-z0-9_.-]{1,64}$/.test(name)) {
    throw new TypeError(`${where}.name: expected the name of a tool, found ${describe(name)}`);
  }
  const input = copyData(entries.get('input'), `${where}.input`, budget);
  if (typeof input !== 'object' || input === null || Array.isArray(input)) {
    throw new TypeError(`${where}.input: expected an object of arguments, found ${describe(input)}`);
  }
  return { id: idOf(entries.get('id'), `${where}.id`), name, input };
}

// The calls of an assistant's message, and which call a tool's message answers.
function toolFields(
  entries: ReadonlyMap<string, unknown>,
  role: string,
  where: string,
  free: boolean,
  budget: Budget,
): Pick<Turn, 'calls' | 'reply'> {
  const calls = entries.get('toolCalls');
  const id = entries.get('toolCallId');
  if (calls !== undefined && role !== 'assistant') {
    throw new TypeError(`${where}.toolCalls: only an assistant's message has calls`);
  }
  if (id !== undefined && role !== 'tool') throw new TypeError(`${where}.toolCallId: ${REPLY}`);
  if (role === 'tool' && (id !== undefined || !free)) {
    const output = copyData(entries.get('content'), `${where}.content`, budget);
    return { reply: { id: idOf(id, `${where}.toolCallId`), name: '', output } };
  }
  if (calls === undefined) return {};
  if (!Array.isArray(calls)) {
    throw new TypeError(`${where}.toolCalls: expected an array of calls { id, name, input }, found ${describe(calls)}`);
  }
  if (calls.length > MAX_CALLS) {
    throw new RangeError(`${where}.toolCalls: expected at most ${MAX_CALLS}, found ${calls.length}`);
  }
  if (calls.length === 0) return {};
  return { calls: calls.map((call: unknown, k) => copyCall(call, `${where}.toolCalls[${k}]`, budget)) };
}

/**
 * Reads messages. Yields after each part.
 *
 * @param name what errors call the messages
 * @param free whether other roles, keys and types of parts are for a template to judge; Gemma's format has none
 * @throws TypeError that names the place
 */
export function* copyMessages(messages: unknown, free: boolean, name = 'messages'): Sliced<Turn[]> {
  if (!Array.isArray(messages)) throw new TypeError(`${name}: expected an array, found ${describe(messages)}`);
  const turns: Turn[] = [];
  const budget = { values: MAX_VALUES, characters: MAX_CHARACTERS };
  for (let i = 0; i < messages.length; ++i) {
    const where = `${name}[${i}]`;
    const entries = entriesOf((messages as readonly unknown[])[i], where, MESSAGE_KEYS, 'a message { role, content }');
    const fields = fieldsOf(entries, where, MESSAGE_KEYS, MESSAGE_HINTS, free);
    const role = entries.get('role');
    const known = role === 'system' || role === 'user' || role === 'assistant' || role === 'tool';
    if (typeof role !== 'string' || (!known && !free)) {
      const hint = typeof role === 'string' && Object.hasOwn(ROLE_HINTS, role) ? ROLE_HINTS[role] : '';
      throw new TypeError(
        `${where}.role: expected 'system', 'user', 'assistant' or 'tool', found ${describe(role)}${hint}`,
      );
    }
    const called = toolFields(entries, role, where, free, budget);
    if (called.reply) {
      turns.push({ role, content: undefined, fields, ...called });
      yield;
      continue;
    }
    const parts: Part[] = [];
    const images = entries.get('images') ?? [];
    if (!Array.isArray(images)) {
      throw new TypeError(`${where}.images: expected an array of pictures, found ${describe(images)}`);
    }
    for (let k = 0; k < images.length; ++k) {
      const image = (images as readonly unknown[])[k];
      if (image === undefined) throw new TypeError(`${where}.images[${k}]: expected a picture, found undefined`);
      parts.push({ type: 'image', image: image as ImageInput, name: `${where}.images[${k}]`, fields: {} });
      yield;
    }
    const content = entries.get('content');
    if (typeof content === 'string') {
      turns.push({
        role,
        content: parts.length > 0 ? [...parts, { type: 'text', text: content, fields: {} }] : content,
        fields,
        ...called,
      });
    } else if (Array.isArray(content)) {
      for (let k = 0; k < content.length; ++k) {
        parts.push(copyPart((content as readonly unknown[])[k], `${where}.content[${k}]`, free));
        yield;
      }
      turns.push({ role, content: parts, fields, ...called });
    } else if (called.calls && (content === undefined || content === null)) {
      turns.push({ role, content: parts.length > 0 ? parts : '', fields, ...called });
    } else {
      const isData =
        content === null || typeof content === 'object' || (content === undefined && 'tool_calls' in fields);
      if (!free || !isData || parts.length > 0) {
        throw new TypeError(`${where}.content: expected a string or an array of parts, found ${describe(content)}`);
      }
      if (content !== undefined) fields.content = copyData(content, `${where}.content`);
      turns.push({ role, content: undefined, fields });
    }
    yield;
  }
  return turns;
}

function partOf({ type, text, image, video, fps, maxFrames, fields }: Part): ContentPart {
  const own = { type, text, image, video, fps, maxFrames };
  const given = Object.fromEntries(Object.entries(own).filter(([, value]) => value !== undefined));
  return { ...structuredClone(fields), ...given } as unknown as ContentPart;
}

/** A message as a caller may pass it again: new objects, but for pictures. */
export function messageOf({ role, content, fields, calls, reply }: Turn): Message {
  const parts = typeof content === 'object' ? content.map(partOf) : content;
  return {
    role,
    ...(parts !== undefined && { content: parts }),
    ...structuredClone({
      ...(calls && { toolCalls: calls }),
      ...(reply && { toolCallId: reply.id, content: reply.output }),
      ...fields,
    }),
  } as Message;
}
