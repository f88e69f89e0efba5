// A conversation: turns, and for each the token ids it has in the prompt. A turn is computed as `generate` computes it, on a prompt that
// begins with the ids of all turns before; the model's prefix cache makes that cheap, a conversation has no cache of its own.
import { AsyncLocalStorage } from 'node:async_hooks';
import { adapterUses } from './adapters.js';
import { Cancellation } from './cancellation.js';
import {
  chatOptions,
  restoreChatOptions,
  turnOptions,
  type ChatDefaults,
  type ChatOptions,
  type RestoreChatOptions,
  type TurnByChoices,
  type TurnBySchema,
  type TurnOptions,
  type TurnSettings,
} from './chat-options.js';
import { GemmaError } from './errors.js';
import type { Sink } from './generation.js';
import { joined, keptAnswer } from './kept-tokens.js';
import { messageOf, type ContentPart, type Message, type Turn } from './messages.js';
import { localPath, replaceablePath } from './local-file.js';
import type { ImageEmbedding } from './media.js';
import { MARKER_BOS, type NativeAdapterUse, type NativeImage, type PromptPart } from './native.js';
import type { Asked, Asker, State } from './overflow.js';
import { checkReadable, checkWritable } from './permission.js';
import { strip, stripEnd } from './python-text.js';
import { emptyResult, type GenerateResult } from './result.js';
import { GemmaStream, type StreamSink } from './stream.js';
import type { OutputOf, StandardSchema } from './schema.js';
import type { AskModel, Bound } from './tool-loop.js';
import { decodeTokens, encodeParts } from './token-text.js';
import { inSlices, nextTurn, type Sliced } from './turns.js';
import { reasonOf, show } from './values.js';

// Loaded with the first call that needs them: a program that asks a model for text is not to wait for them.
const lazy = {
  get overflow() {
    return require('./overflow.js') as typeof import('./overflow.js');
  },
  get savedChat() {
    return require('./saved-chat.js') as typeof import('./saved-chat.js');
  },
  get toolLoop() {
    return require('./tool-loop.js') as typeof import('./tool-loop.js');
  },
};

/** What is said in a turn: a text, parts, or messages, such as results of tools. */
export type TurnInput = string | readonly ContentPart[] | Message | readonly Message[];

/** What a turn asks when it is its turn. */
type Ask = (state: State) => Promise<Asked>;

/** A turn under way, for what it calls: tools and callbacks. */
interface OwnTurn {
  readonly of: Conversation;
  readonly above: OwnTurn | undefined;
  isOver: boolean;
}

const ownTurn = new AsyncLocalStorage<OwnTurn>();

const EMPTY: State = { turns: [], kept: [] };

// As many as a chat template takes; more would hold up the event loop.
const MAX_HISTORY = 20_000;

function atOnce(reading: Sliced<Turn[]>): Turn[] {
  for (let n = 0; ; ++n) {
    const { done, value } = reading.next();
    if (done) return value;
    if (n >= MAX_HISTORY) throw new RangeError(`history: expected at most ${MAX_HISTORY} messages and parts`);
  }
}

function messagesOf(input: unknown, images: readonly unknown[]): unknown {
  const isMessage = (value: unknown) => typeof value === 'object' && value !== null && 'role' in value;
  const asked = Array.isArray(input) ? (input as readonly unknown[]) : undefined;
  if (isMessage(input) || (asked && asked.length > 0 && asked.every(isMessage))) {
    if (images.length > 0) {
      throw new TypeError('images: messages have their pictures as parts { type: "image", image }');
    }
    return asked ?? [input];
  }
  if (typeof input !== 'string' && !asked) {
    throw new TypeError(`content: expected a string, parts or messages, found ${show(input)}`);
  }
  return [{ role: 'user', content: input, ...(images.length > 0 && { images }) }];
}

/**
 * A conversation with a model, made by `gemma.chat` or `gemma.restoreChat`. It holds messages and their token ids; its answers are
 * not tokenised again, so each turn's prompt begins with all that the model has read and written before.
 *
 * A turn counts when its answer has ended and, of a stream, its reader has taken all of it. One that fails or is aborted, or whose
 * stream's reader leaves, leaves the conversation as it was. Calls that change it or wait for it (`send`, `stream`, `regenerate`,
 * `append`, `undo`, `save`) happen one after the other in the order in which they were made, a stream's from when it is first read;
 * `messages`, `tokens` and `fork` show what is there now.
 */
export class Conversation {
  readonly #asker: Asker;
  readonly #head: readonly Turn[]; // the system message
  readonly #defaults: ChatDefaults;
  #state: State;
  #last: Promise<void> = Promise.resolve();
  readonly #running = new Set<(reason: unknown) => void>();
  #disposed = false;

  private constructor(asker: Asker, head: readonly Turn[], defaults: ChatDefaults, state: State) {
    this.#asker = asker;
    this.#head = head;
    this.#defaults = defaults;
    this.#state = state;
  }

  /** @internal */
  static begin(asker: Asker, options: ChatOptions): Conversation {
    const { system, history, defaults } = chatOptions(options);
    const turns = atOnce(asker.prompts.read(history, 'history'));
    const nHead = turns.findIndex(({ role }) => role !== 'system' && role !== 'developer');
    const head = turns.splice(0, nHead < 0 ? turns.length : nHead);
    if (system !== undefined) {
      if (head.length > 0) throw new TypeError('system: the history has a system message already');
      head.push({ role: 'system', content: system, fields: {} });
    }
    return new Conversation(asker, head, defaults, { turns, kept: [] });
  }

  /** @internal */
  static async restore(
    asker: Asker,
    file: string | URL,
    options: RestoreChatOptions,
    { tokensPerImage = 0, modelDim }: { tokensPerImage: number | undefined; modelDim: number },
  ): Promise<Conversation> {
    const given = restoreChatOptions(options);
    const path = localPath(file, 'file', { allowLocal: true }, 'ERR_FILE');
    checkReadable(path);
    const { adapter } = given;
    const restore = async (uses: readonly NativeAdapterUse[]) => {
      const { tokens, images, metadata } = await asker.live().restoreState(path, uses);
      return lazy.savedChat.restoredChat(path, metadata, tokens, { images, tokensPerImage, modelDim });
    };
    const saved = await restore(adapter === undefined ? [] : adapterUses('adapter', adapter));
    // Keys and values belong to the adapters that the file names; these were read to learn them.
    if (adapter === undefined && saved.options.adapter !== undefined) {
      const { prompt } = turnOptions(restoreChatOptions(saved.options), {});
      await restore(prompt.adapter);
    }
    try {
      const head = await inSlices(asker.prompts.read(saved.head));
      const turns = await inSlices(asker.prompts.read(saved.turns));
      for (const turn of [...head, ...turns]) seeRestored(turn, tokensPerImage * modelDim);
      const defaults = { ...restoreChatOptions(saved.options), ...given };
      return new Conversation(asker, head, defaults, { turns, kept: saved.kept });
    } catch (error) {
      if (error instanceof GemmaError) throw error;
      throw new GemmaError('ERR_FILE', `${path}: not a saved conversation: ${reasonOf(error)}`, 'CHAT_DAMAGED');
    }
  }

  /** The messages there are, the system message first; new objects each time. Pictures as they were given. */
  get messages(): Message[] {
    this.#checkLive();
    return [...this.#head, ...this.#state.turns].map(messageOf);
  }

  /**
   * Ids of what the model has read and written, up to the end of the last answer. An answer's ids are those it was sampled with; a
   * picture's are the image token. Messages that no answer has followed yet are not among them.
   */
  get tokens(): number[] {
    this.#checkLive();
    return Array.from(joined(this.#state.kept).tokens);
  }

  /**
   * Says something and resolves with the answer. Options hold for this turn alone.
   *
   * @throws as `generate`; `ERR_DISPOSED` also after `dispose()` of the conversation
   */
  send<S extends StandardSchema>(input: TurnInput, options: TurnBySchema<S>): Promise<GenerateResult<OutputOf<S>>>;
  send<const T extends string>(input: TurnInput, options: TurnByChoices<T>): Promise<GenerateResult<T>>;
  send(input: TurnInput, options?: TurnOptions): Promise<GenerateResult>;
  async send(input: TurnInput, options: TurnOptions = {}): Promise<GenerateResult> {
    const settings = turnOptions(this.#defaults, options);
    return this.#run(settings, this.#asking(input, settings), new Cancellation());
  }

  /** As `send`, piece by piece: see `gemma.stream`. */
  stream<S extends StandardSchema>(input: TurnInput, options: TurnBySchema<S>): GemmaStream<OutputOf<S>>;
  stream<const T extends string>(input: TurnInput, options: TurnByChoices<T>): GemmaStream<T>;
  stream(input: TurnInput, options?: TurnOptions): GemmaStream;
  stream(input: TurnInput, options: TurnOptions = {}): GemmaStream {
    const settings = turnOptions(this.#defaults, options);
    return this.#stream(settings, () => this.#asking(input, settings));
  }

  /**
   * Asks the last question again; the new answer takes the place of the old one when it is there. The conversation's `seed` does not
   * hold here, which would give the same answer again: name one in the options, or it is random.
   *
   * @throws as `send`; GemmaError `ERR_INVALID_ARGUMENT` (`NO_QUESTION`) where nothing was asked yet
   */
  async regenerate(options: Omit<TurnOptions, 'replace' | 'images'> = {}): Promise<GenerateResult> {
    const settings = this.#again(options);
    return this.#run(settings, (state) => this.#askAgain(state), new Cancellation());
  }

  /** As `regenerate`, piece by piece. */
  regenerateStream(options: Omit<TurnOptions, 'replace' | 'images'> = {}): GemmaStream {
    return this.#stream(this.#again(options), () => (state) => this.#askAgain(state));
  }

  /** Adds messages without asking the model: what was said elsewhere, or the part of an answer that a user has seen. */
  async append(messages: Message | readonly Message[]): Promise<void> {
    const asked = Array.isArray(messages) ? (messages as readonly Message[]) : [messages as Message];
    const reading = this.#read(asked);
    await this.#inTurn(async () => {
      const turns = await reading;
      this.#checkLive();
      this.#state = { ...this.#state, turns: [...this.#state.turns, ...turns] };
    });
  }

  /** Takes back the last question and all that followed it. Resolves with these messages; with none where nothing was asked. */
  async undo(): Promise<Message[]> {
    return this.#inTurn(async () => {
      const { turns } = this.#state;
      const from = lazy.overflow.lastQuestion(turns);
      this.#state = lazy.overflow.beginning(from, this.#state);
      return turns.slice(from).map(messageOf);
    });
  }

  /** Another conversation that begins as this one is now. Both share what they have in common. */
  fork(): Conversation {
    this.#checkLive();
    return new Conversation(this.#asker, this.#head, this.#defaults, this.#state);
  }

  /**
   * Writes the conversation to a file that `gemma.restoreChat` reads: messages, token ids, options but for functions, tools and schemas,
   * embeddings of pictures, and keys and values as far as the prefix cache has them (`positions`). A file that is there is replaced
   * when all is written; where it is a link, the file that it leads to.
   *
   * @param file path or `file:` URL
   * @throws GemmaError `ERR_FILE`, `ERR_CONTEXT_FULL` (more tokens than the context has room for), `ERR_DISPOSED`
   */
  async save(file: string | URL): Promise<{ bytes: number; positions: number }> {
    const named = localPath(file, 'file', { allowLocal: true }, 'ERR_FILE');
    checkWritable(named);
    return this.#inTurn(async () => {
      const path = await replaceablePath(named);
      checkWritable(path);
      const { prompts } = this.#asker;
      const { turns } = this.#state;
      let { kept } = this.#state;
      let { tokens, firsts } = joined(kept);
      if (turns.slice(kept.at(-1)?.end ?? 0).some(({ content }) => typeof content === 'object')) {
        // Pictures in messages without an answer have their places in the prompt that these would be.
        const { prompt } = turnOptions(this.#defaults, {});
        const layout = await prompts.layOutTurns([...this.#head, ...turns], prompt, { kept });
        await prompts.see(layout, new Cancellation(), () => {});
        ({ tokens, firsts } = layout);
        kept = kept.slice(0, layout.nKept);
      }
      if (tokens.length === 0) tokens = await encodeParts(this.#asker.live(), [MARKER_BOS]); // there is a prompt in any case
      const images: NativeImage[] = [];
      for (const [i, rows] of lazy.savedChat.rowsOf([...this.#head, ...turns]).entries()) {
        await nextTurn();
        images.push({ first: firsts[i] ?? 0, embedding: this.#asker.live().holdRows(rows) });
      }
      const options = this.#defaults as Readonly<Record<string, unknown>>;
      const metadata = await lazy.savedChat.chatText({ options, head: this.#head, turns, kept });
      const { prompt } = turnOptions(this.#defaults, {});
      return this.#asker.live().saveState({ path, tokens, images, metadata, adapters: prompt.adapter });
    });
  }

  /**
   * Ends what is under way (it rejects with `ERR_DISPOSED`) and forgets the messages; later calls are `ERR_DISPOSED`. Resolves when
   * nothing of it runs any more. The model and forks go on. A conversation that is forgotten needs no call.
   */
  async dispose(): Promise<void> {
    this.#disposed = true;
    this.#state = EMPTY;
    for (const stop of this.#running) stop(this.#gone());
    await this.#last;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  #gone(): GemmaError {
    return new GemmaError('ERR_DISPOSED', 'the conversation was disposed');
  }

  #checkLive(): void {
    if (this.#disposed) throw this.#gone();
  }

  // A tool that waited for a turn of its own conversation would wait for ever.
  #checkNotWithin(): void {
    for (let turn = ownTurn.getStore(); turn; turn = turn.above) {
      if (turn.of !== this || turn.isOver) continue;
      throw new GemmaError(
        'ERR_INVALID_ARGUMENT',
        'a tool calls the conversation whose turn it is part of: expected a call after that turn, or another conversation (fork)',
        'OWN_TURN',
      );
    }
  }

  // Has what is called within know whose turn it is.
  async #within<T>(work: () => Promise<T>): Promise<T> {
    const turn: OwnTurn = { of: this, above: ownTurn.getStore(), isOver: false };
    try {
      return await ownTurn.run(turn, work);
    } finally {
      turn.isOver = true;
    }
  }

  // One after the other, in the order of the calls.
  async #inTurn<T>(work: () => Promise<T>): Promise<T> {
    this.#checkNotWithin();
    const before = this.#last;
    let done = () => {};
    this.#last = new Promise((resolve) => (done = resolve));
    await before;
    try {
      this.#checkLive();
      return await work();
    } finally {
      done();
    }
  }

  #stream(settings: TurnSettings, asking: () => Ask): GemmaStream {
    const cancellation = new Cancellation();
    return new GemmaStream(
      (sink) => this.#run(settings, asking(), cancellation, sink),
      cancellation,
      settings.stallTimeoutMs,
    );
  }

  // A turn. What it leaves becomes the conversation's in the same moment in which the promise is resolved.
  #run(settings: TurnSettings, ask: Ask, cancellation: Cancellation, sink?: StreamSink): Promise<GenerateResult> {
    const { signal } = settings.options;
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      const stop = (reason: unknown) => {
        // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- the caller's own reason
        reject(reason);
        cancellation.cancel(reason);
      };
      const onAbort = () => stop(signal?.reason);
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#running.add(stop);
      const turn = async () => {
        cancellation.signal.throwIfAborted();
        const { result, state } = await this.#asker.call(
          () => this.#within(async () => this.#answer(await ask(this.#state), settings, cancellation, sink)),
          cancellation,
        );
        await sink?.taken(); // a reader who leaves has not seen all of it
        const isLeft = cancellation.cancelled;
        if (!isLeft) this.#state = state;
        resolve(isLeft ? { ...result, finishReason: 'other' } : result);
      };
      this.#inTurn(turn)
        .catch((error: unknown) => {
          // Left before there was a result.
          const isLeft = cancellation.cancelled && error instanceof GemmaError && error.detail === 'CANCELLED';
          if (isLeft) resolve(emptyResult(settings.params.seed));
          // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- what was thrown
          else reject(error);
        })
        .finally(() => {
          this.#running.delete(stop);
          signal?.removeEventListener('abort', onAbort);
        });
    });
  }

  #again(options: TurnOptions): TurnSettings {
    const defaults = { ...this.#defaults };
    delete defaults.seed;
    return turnOptions(defaults, options);
  }

  // Messages are read when the call is made, however long it waits for its turn.
  #read(messages: unknown): Promise<Turn[]> {
    const reading = inSlices(this.#asker.prompts.read(messages));
    reading.catch(() => {}); // an error is thrown where the turns are wanted
    return reading;
  }

  #asking(input: TurnInput, { prompt, prefill, replace }: TurnSettings): Ask {
    const reading = this.#read(messagesOf(input, prompt.images));
    return async (state) => {
      const said = await reading;
      if (prefill !== undefined) said.push({ role: 'assistant', content: prefill, fields: {} });
      const base = replace ? lazy.overflow.beginning(lazy.overflow.lastQuestion(state.turns), state) : state;
      const last = said.at(-1);
      if (last?.role !== 'assistant') return { base, said };
      if (typeof last.content !== 'string') {
        throw new TypeError('content: expected a string as the beginning of the answer');
      }
      return { base, said: said.slice(0, -1), begun: last.content };
    };
  }

  async #askAgain(state: State): Promise<Asked> {
    const from = lazy.overflow.lastQuestion(state.turns);
    if (from === state.turns.length) {
      throw new GemmaError('ERR_INVALID_ARGUMENT', 'the conversation has no question to ask again', 'NO_QUESTION');
    }
    return { base: lazy.overflow.beginning(from, state), said: state.turns.slice(from, from + 1) };
  }

  // Asks once, or with tools until no more are called.
  async #answer(
    asked: Asked,
    settings: TurnSettings,
    cancellation: Cancellation,
    sink?: Sink,
  ): Promise<{ result: GenerateResult; state: State }> {
    const { tools } = settings.prompt;
    if (!tools?.tools.length) return this.#answerOnce(asked, settings, {}, cancellation, sink);
    const { prompts } = this.#asker;
    let state = asked.base;
    let dropped: Message[] = [];
    // The messages that a loop adds are the last answer, which is here already but for its calls, and results.
    const add = async (added: readonly Message[]): Promise<Turn[]> => {
      const [answer, ...replies] = await inSlices(prompts.read(added));
      const last = state.turns.at(-1);
      if (answer?.calls && last) {
        state = { ...state, turns: [...state.turns.slice(0, -1), { ...last, calls: answer.calls }] };
      }
      return replies;
    };
    const ask: AskModel = async (added, bound, to) => {
      const next = added.length === 0 ? asked : { said: await add(added), base: state };
      const step = await this.#answerOnce(next, settings, bound, cancellation, to);
      state = step.state;
      dropped = [...dropped, ...(step.result.dropped ?? [])];
      return step.result;
    };
    const before = [...this.#head, ...asked.base.turns, ...asked.said].map(messageOf);
    const result = await lazy.toolLoop.answerWithTools(
      before,
      tools,
      prompts,
      this.#asker.live(),
      ask,
      cancellation,
      sink,
    );
    const { messages = [] } = result;
    const replies = await add(messages.slice(messages.findLastIndex(({ role }) => role === 'assistant')));
    state = { ...state, turns: [...state.turns, ...replies] };
    return { result: { ...result, ...(dropped.length > 0 && { dropped }) }, state };
  }

  async #answerOnce(
    asked: Asked,
    settings: TurnSettings,
    bound: Bound,
    cancellation: Cancellation,
    sink?: Sink,
  ): Promise<{ result: GenerateResult; state: State }> {
    const { params, options } = settings;
    const { prompts } = this.#asker;
    const { onProgress } = options;
    const { signal } = cancellation;
    const onImages = (fraction: number) => onProgress?.({ stage: 'images', fraction });
    const { layout, base, dropped } = await lazy.overflow.withRoom(
      this.#asker,
      this.#head,
      asked,
      settings,
      cancellation,
      onImages,
    );
    signal.throwIfAborted();
    const prompt = await prompts.fill(layout, cancellation, onImages);
    const generated = await this.#asker.generate(prompt, params, options, bound, cancellation, sink);
    const result = { ...generated, ...(dropped.length > 0 && { dropped: dropped.map(messageOf) }) };
    if (cancellation.cancelled) return { result, state: base };
    const written = bound.assembler ? await this.#withCalls(generated, signal) : generated;
    const answer = await keptAnswer(this.#asker.live(), written, prompts.controls(), signal);
    const begun = asked.begun === undefined ? '' : seenBeginning(asked.begun, layout.last.parts);
    const said: Turn = { role: 'assistant', content: begun + generated.text, fields: {} };
    const turns = [...base.turns, ...asked.said, said];
    const turn = { ...layout.last, ...answer, begun, end: turns.length };
    return { result, state: { turns, kept: [...base.kept.slice(0, layout.nKept), turn] } };
  }

  // The answer with all of its text, of which calls are a part here.
  async #withCalls(generated: GenerateResult, signal: AbortSignal): Promise<GenerateResult> {
    const { tokens, stopSequence } = generated;
    const text = await decodeTokens(this.#asker.live(), Int32Array.from(tokens), { special: false, signal });
    const end = stopSequence === undefined ? -1 : text.indexOf(stopSequence);
    return { ...generated, text: end < 0 ? text : text.slice(0, end) };
  }
}

// The beginning of an answer as the model has seen it: templates strip it at both ends, at its end or not at all.
function seenBeginning(begun: string, prompt: readonly PromptPart[]): string {
  const last = prompt.at(-1);
  const isWritten = (text: string) => typeof last === 'string' && last.endsWith(text);
  return [begun, stripEnd(begun)].find(isWritten) ?? strip(begun);
}

// Pictures of a restored message are embeddings, which need not be opened.
function seeRestored({ content }: Turn, squareLength: number): void {
  if (typeof content !== 'object') return;
  for (const part of content) {
    if (part.type !== 'image') continue;
    const { data, crops } = part.image as ImageEmbedding;
    const rows: Float32Array[] = [];
    for (let at = 0; at < data.length; at += squareLength) rows.push(data.subarray(at, at + squareLength));
    part.loaded = { labels: [], pictures: [{ rows, crops }] };
  }
}
