// gemma-native chat: a conversation in the terminal, or with the lines of a pipe.
import { statSync } from 'node:fs';
import type { ContentPart, Conversation, Gemma, GemmaStream, GenerateResult, Message } from '../../index.js';
import { commandOf, findMedia, plainPath, type ChatCommand, type Media } from '../chat-input.js';
import { PipedInput, TerminalInput, type ChatInput } from '../chat-terminal.js';
import {
  adapterOptions,
  imageOptions,
  samplingOptions,
  using,
  withAdapters,
  withImages,
  withModel,
  withSampling,
  type DefineCommand,
  type ImageFlags,
  type ModelFlags,
  type SamplingFlags,
} from '../options.js';
import { dim, note, printable, printJson, promptProgress, reportFailure, UsageError } from '../output.js';

interface ChatFlags extends ModelFlags, ImageFlags, SamplingFlags {
  system?: string;
  load?: string;
  draft?: string | false;
}

const HELP: readonly (readonly [string, string])[] = [
  ['/image FILE...', 'pictures or videos for the next question; paths in a question do the same'],
  ['/regenerate', 'another answer to the last question'],
  ['/undo', 'take back the last question and its answer'],
  ['/system [TEXT]', 'show or change the system message; "" removes it'],
  ['/clear', 'begin again, with the same system message'],
  ['/save FILE', 'write the conversation to a file'],
  ['/load FILE', 'go on with a conversation from a file'],
  ['/help', 'this list'],
  ['/exit', 'leave (Ctrl-D)'],
];

function names(media: readonly Media[]): string {
  return media.map(({ type, path }) => `${type} ${path}`).join(', ');
}

function textOf({ role, content }: Message): string {
  if (typeof content === 'string') return content;
  if (role === 'tool') return JSON.stringify(content);
  return content.map((part) => (part.type === 'text' ? part.text : `[${part.type}]`)).join(' ');
}

function beginningOf(text: string): string {
  const line = text.replace(/\s+/g, ' ');
  return line.length > 60 ? `${line.slice(0, 60)}...` : line;
}

/** A conversation and its input. */
export class Session {
  readonly #gemma: Gemma;
  readonly #input: ChatInput;
  readonly #json: boolean;
  readonly #defaults: ReturnType<typeof defaultsOf>;
  readonly #signal: AbortSignal;
  #chat: Conversation;
  #media: Media[] = []; // for the next question
  readonly #turns: Pick<GenerateResult, 'text' | 'finishReason' | 'usage' | 'timings'>[] = [];

  constructor(gemma: Gemma, input: ChatInput, flags: ChatFlags, chat: Conversation, signal: AbortSignal) {
    this.#gemma = gemma;
    this.#input = input;
    this.#json = !!flags.json;
    this.#defaults = defaultsOf(flags);
    this.#chat = chat;
    this.#signal = signal;
  }

  /** Until the input ends. Somebody who types goes on after a failure; a script does not. */
  async run(): Promise<void> {
    for (;;) {
      const line = await this.#input.next();
      this.#signal.throwIfAborted();
      if (line === undefined) break;
      try {
        if (!(await this.#take(line))) break;
      } catch (error) {
        if (!this.#input.isInteractive || this.#signal.aborted) throw error;
        reportFailure(error, false);
      }
    }
    if (this.#json) {
      printJson({ turns: this.#turns, messages: this.#chat.messages, chat: this.#gemma.info.chat });
    }
  }

  // False: the end.
  async #take(line: string): Promise<boolean> {
    const command = commandOf(line);
    if (command) return this.#command(command);
    const { text, media } = findMedia(line);
    if (media.length > 0) this.#attach(media, text === '');
    if (text === '') return true;
    const content: ContentPart[] = [
      ...this.#media.map(({ type, path }): ContentPart =>
        type === 'image' ? { type, image: path } : { type, video: path },
      ),
      { type: 'text', text },
    ];
    const hasMedia = this.#media.length > 0;
    this.#media = [];
    const said: Message = { role: 'user', content: hasMedia ? content : text };
    const answer = await this.#answer((options) => this.#chat.stream(said, options));
    if (answer.isStopped && answer.text !== '') {
      await this.#chat.append([said, { role: 'assistant', content: answer.text }]); // what was seen is part of it
    }
    return true;
  }

  async #command({ name, argument }: ChatCommand): Promise<boolean> {
    switch (name) {
      case 'exit':
      case 'quit':
      case 'bye':
        return false;
      case 'help':
      case '?':
        for (const [usage, what] of HELP) note(`${usage.padEnd(16)} ${what}`);
        return true;
      case 'image':
        return this.#attachNamed(argument);
      case 'regenerate': {
        const { isStopped } = await this.#answer((options) => this.#chat.regenerateStream(options));
        if (isStopped) note('the answer before stays');
        return true;
      }
      case 'undo': {
        const [question] = await this.#chat.undo();
        note(question ? `took back: ${beginningOf(printable(textOf(question)))}` : 'there is nothing to take back');
        return true;
      }
      case 'system':
        return this.#system(argument);
      case 'clear':
        this.#begin(this.#head(), []);
        note('a new conversation');
        return true;
      case 'save':
        await this.#chat.save(fileOf(name, argument));
        note('saved');
        return true;
      case 'load': {
        this.#chat = await this.#gemma.restoreChat(fileOf(name, argument), this.#defaults);
        this.#media = [];
        this.recap();
        return true;
      }
      default:
        throw new UsageError(`/${name}: no such command; /help lists them`);
    }
  }

  /** Tells what there is. */
  recap(): void {
    const { messages } = this.#chat;
    note(`a conversation of ${messages.length} messages`);
    for (const message of messages.slice(-2)) note(`${message.role}: ${beginningOf(printable(textOf(message)))}`);
  }

  #attachNamed(argument: string): boolean {
    if (argument === '') throw new UsageError('/image: expected a file');
    const { text, media } = findMedia(argument);
    if (text !== '') {
      const path = plainPath(text); // a URL, or a file of another name than pictures have
      if (!/^https?:/.test(path)) statSync(path);
      media.push({ type: 'image', path });
    }
    this.#attach(media, true);
    return true;
  }

  #attach(media: readonly Media[], isForNext: boolean): void {
    this.#media.push(...media);
    if (!this.#json) note(`${isForNext ? 'for the next question' : 'with'}: ${printable(names(media))}`);
  }

  #head(): string | undefined {
    const [first] = this.#chat.messages;
    return first?.role === 'system' ? textOf(first) : undefined;
  }

  #system(argument: string): boolean {
    const system = argument === '""' ? '' : argument;
    if (argument === '') {
      note(printable(this.#head() ?? 'there is no system message'));
      return true;
    }
    const rest = this.#chat.messages.filter(({ role }) => role !== 'system');
    this.#begin(system === '' ? undefined : system, rest);
    note(system === '' ? 'no system message any more' : 'the system message is another one now');
    return true;
  }

  #begin(system: string | undefined, history: Message[]): void {
    this.#chat = this.#gemma.chat({ ...this.#defaults, ...(system !== undefined && { system }), history });
    this.#media = [];
  }

  // Shows an answer as it comes. Ctrl-C stops it and not the program.
  async #answer(
    ask: (options: Pick<Parameters<Conversation['stream']>[1] & object, 'signal' | 'onProgress'>) => GemmaStream,
  ): Promise<{ text: string; isStopped: boolean }> {
    const stopped = new AbortController();
    const progress = promptProgress(this.#json);
    const unwatch = this.#input.watch(() => stopped.abort());
    let text = '';
    try {
      const stream = ask({
        signal: AbortSignal.any([this.#signal, stopped.signal]),
        onProgress: progress.update,
      });
      for await (const part of stream) {
        progress.stop();
        text += part.text;
        if (!this.#json) process.stdout.write(process.stdout.isTTY ? printable(part.text) : part.text);
      }
      const result = await stream.result;
      const { finishReason, usage, timings } = result;
      this.#turns.push({ text: result.text, finishReason, usage, timings });
      if (!this.#json) this.#tell(result);
      return { text, isStopped: false };
    } catch (error) {
      if (text !== '' && !this.#json) process.stdout.write('\n');
      if (!stopped.signal.aborted || this.#signal.aborted) throw error;
      note(dim('(stopped)'));
      return { text, isStopped: true };
    } finally {
      progress.stop();
      unwatch();
    }
  }

  #tell({ finishReason, usage, timings, dropped = [] }: GenerateResult): void {
    process.stdout.write('\n');
    const { inputTokens, cachedInputTokens, outputTokens } = usage;
    const ends = finishReason === 'length' ? ', cut off at the limit' : '';
    const read = `${inputTokens - cachedInputTokens} of ${inputTokens} tokens read in ${(timings.prefillMs / 1000).toFixed(2)} s`;
    note(dim(`(${outputTokens} tokens, ${timings.decodeTokensPerSecond.toFixed(1)}/s${ends}; ${read})`));
    if (dropped.length > 0) {
      note(`the context is full: the oldest ${dropped.length} messages are no longer part of the conversation`);
    }
  }
}

function fileOf(name: string, argument: string): string {
  if (argument === '') throw new UsageError(`/${name}: expected a file`);
  return plainPath(argument);
}

function defaultsOf(flags: ChatFlags) {
  return { onOverflow: 'shift', ...samplingOptions(flags), ...imageOptions(flags), ...adapterOptions(flags) } as const;
}

async function chat(flags: ChatFlags, signal: AbortSignal): Promise<void> {
  const { stdin, stdout, stderr } = process;
  const output = stdout.isTTY ? stdout : stderr;
  if (flags.load !== undefined && flags.system !== undefined) {
    throw new UsageError('--system: a conversation from a file has its own; /system changes it');
  }
  await using(flags, signal, async (gemma) => {
    const defaults = defaultsOf(flags);
    const { load, system } = flags;
    const conversation =
      load === undefined
        ? gemma.chat({ ...defaults, ...(system !== undefined && { system }) })
        : await gemma.restoreChat(load, defaults);
    const input =
      stdin.isTTY && output.isTTY && !flags.json
        ? new TerminalInput(
            { input: stdin, output },
            HELP.map(([usage]) => usage.replace(/ .*/, '')),
            signal,
          )
        : new PipedInput(stdin, signal);
    if (input.isInteractive) {
      const { config, device, isa, contextSize, chat: template } = gemma.info;
      note(
        `${printable(config.name)} (${device}, ${isa}, context of ${contextSize}). /help lists commands, Ctrl-C stops an answer.`,
      );
      if (template.template === 'none')
        note('This model has no chat template: it may not have been trained to answer.');
    }
    try {
      const session = new Session(gemma, input, flags, conversation, signal);
      if (load !== undefined && !flags.json) session.recap();
      await session.run();
    } finally {
      input.close();
    }
  });
}

export function addChat(command: DefineCommand, signal: AbortSignal): void {
  withAdapters(
    withSampling(
      withImages(withModel(command('chat', 'talk with a model; a question in each line where nobody types'))),
    ),
  )
    .option('--system <text>', 'system message')
    .option('--load <file>', 'go on with a conversation that /save has written')
    .action((flags: ChatFlags) => chat(flags, signal));
}
