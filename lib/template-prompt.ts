// From messages to the pieces of a prompt by a chat template of a model's own. The template decides where control tokens stand;
// what users typed must not become one, wherever the template puts it. So a random word, the nonce, is put into users' text
// where a control token could begin, and taken out again when the control tokens of the rendered text have been found.
import { randomInt } from 'node:crypto';
import { TemplateError, type Template } from './jinja.js';
import { stripEnd } from './python-text.js';

/** What a template is rendered with: plain data. */
export interface TemplateRequest {
  messages: readonly TemplateMessage[];
  /** in the form of OpenAI's API; null: none. Their texts are guarded as users' are. */
  tools?: readonly unknown[] | null;
  /** `bos_token` and such; of these no text is a user's */
  variables: Readonly<Record<string, unknown>>;
  /** the last message is the beginning of the answer */
  continues: boolean;
}

export interface TemplateMessage {
  role: string;
  content?: unknown;
  [field: string]: unknown;
}

// Letters of a script without cases, so that no filter of a template changes them, and that no JSON escapes.
const FIRST_LETTER = 0x3400;
const LETTERS = 0x4db0 - FIRST_LETTER;

function randomWord(): string {
  return String.fromCharCode(...Array.from({ length: 8 }, () => FIRST_LETTER + randomInt(LETTERS)));
}

function escaped(word: string): string {
  return Array.from(word, (letter) => `\\u${letter.charCodeAt(0).toString(16)}`).join('');
}

/** The control tokens of a vocabulary, by their texts. */
export class ControlTexts {
  readonly #texts: readonly string[];
  readonly #numbers = new Map<string, number>();
  readonly #lengths = new Map<string, number[]>(); // by the first unit, longest first

  constructor(texts: readonly string[]) {
    this.#texts = texts;
    for (const [i, text] of texts.entries()) {
      if (text === '' || this.#numbers.has(text)) continue;
      this.#numbers.set(text, i);
      const lengths = this.#lengths.get(text.charAt(0)) ?? [];
      if (!lengths.includes(text.length)) lengths.push(text.length);
      this.#lengths.set(text.charAt(0), lengths);
    }
    for (const lengths of this.#lengths.values()) lengths.sort((a, b) => b - a);
  }

  /** Whether a control text may begin in a text. */
  mayBegin(text: string): boolean {
    for (let i = 0; i < text.length; ++i) if (this.#lengths.has(text.charAt(i))) return true;
    return false;
  }

  /** The number of the longest control text that begins there; -1: none. */
  find(text: string, at: number): number {
    for (const length of this.#lengths.get(text.charAt(at)) ?? []) {
      const found = this.#numbers.get(text.slice(at, at + length));
      if (found !== undefined) return found;
    }
    return -1;
  }

  /**
   * The text with the nonce behind the first character of each control text in it, and of a beginning of one at its end, which the
   * text after it might complete. `everywhere`: of whatever could begin one, which also withstands templates that cut and join.
   */
  guard(text: string, nonce: string, everywhere: boolean): string {
    const end = stripEnd(text).length;
    let out = '';
    let from = 0;
    for (let i = 0; i < text.length; ++i) {
      if (!this.#lengths.has(text.charAt(i))) continue;
      const tail = text.slice(i, end);
      const isGuarded =
        everywhere ||
        this.find(text, i) >= 0 ||
        (tail.length < 1024 && this.#texts.some((control) => tail !== '' && control.startsWith(tail)));
      if (!isGuarded) continue;
      const next = i + ((text.codePointAt(i) ?? 0) > 0xffff ? 2 : 1);
      out += text.slice(from, next) + nonce;
      from = next;
    }
    return out + text.slice(from);
  }

  /** Plain texts, and numbers of control texts, in order. */
  split(text: string): (string | number)[] {
    const pieces: (string | number)[] = [];
    let from = 0;
    for (let i = 0; i < text.length; ++i) {
      const found = this.find(text, i);
      if (found < 0) continue;
      if (i > from) pieces.push(text.slice(from, i));
      pieces.push(found);
      i += (this.#texts[found]?.length ?? 1) - 1;
      from = i + 1;
    }
    if (from < text.length) pieces.push(text.slice(from));
    return pieces;
  }
}

// The same data with other texts.
function withTexts(data: unknown, change: (text: string) => string): unknown {
  if (typeof data === 'string') return change(data);
  if (Array.isArray(data)) return data.map((item) => withTexts(item, change));
  if (typeof data !== 'object' || data === null) return data;
  return Object.fromEntries(Object.entries(data).map(([key, value]) => [change(key), withTexts(value, change)]));
}

// transformers' way: the last message gets a tag at its end, and what is rendered is cut there. A blank behind the tag tells
// whether the template keeps blanks at the end of a message.
function tagged(messages: readonly TemplateMessage[], tag: string): TemplateMessage[] {
  const last = messages.at(-1);
  if (!last) return [...messages];
  let { content } = last;
  if (Array.isArray(content)) {
    const parts = [...(content as readonly { text?: unknown }[])];
    const at = parts.findLastIndex((part) => typeof part.text === 'string');
    if (at >= 0) parts[at] = { ...parts[at], text: `${String(parts[at]?.text)}${tag} ` };
    else parts.push({ type: 'text', text: `${tag} ` } as { text: string });
    content = parts;
  } else {
    content = `${String(content)}${tag} `;
  }
  return [...messages.slice(0, -1), { ...last, content }];
}

function cut(text: string, tag: string): string {
  const at = text.lastIndexOf(tag);
  if (at < 0) {
    throw new TemplateError('error', "it leaves out the assistant's last message, which the answer was to continue");
  }
  const head = text.slice(0, at);
  return text.charAt(at + tag.length) === ' ' ? head : stripEnd(head);
}

/**
 * Renders messages. Returns plain texts, none of which holds a control token, and numbers of control texts.
 *
 * @throws TemplateError
 */
export function renderPrompt(
  template: Template,
  { messages, tools = null, variables, continues }: TemplateRequest,
  controls: ControlTexts,
): (string | number)[] {
  const nonce = randomWord();
  const tag = randomWord();
  const render = (everywhere: boolean) => {
    const guard = (text: string) => controls.guard(text, nonce, everywhere);
    const guarded = withTexts(messages, guard) as TemplateMessage[];
    const text = template.render({
      tools: withTexts(tools, guard),
      ...variables,
      messages: continues ? tagged(guarded, tag) : guarded,
    });
    return continues ? cut(text, tag) : text;
  };
  const withoutNonce = (text: string) => text.replaceAll(nonce, '').replaceAll(escaped(nonce), '');
  let text = render(false);
  // Guarding everything is safer, but may lead a template astray that looks for words such as </think> in messages.
  let typesControls = false;
  withTexts([messages, tools], (typed) => {
    typesControls ||= controls.mayBegin(typed);
    return typed;
  });
  if (typesControls) {
    const safer = attempt(() => render(true));
    if (safer !== undefined && withoutNonce(safer) === withoutNonce(text)) text = safer;
  }
  return controls.split(text).map((piece) => (typeof piece === 'string' ? withoutNonce(piece) : piece));
}

function attempt(render: () => string): string | undefined {
  try {
    return render();
  } catch (error) {
    if (error instanceof TemplateError) return undefined;
    throw error;
  }
}
