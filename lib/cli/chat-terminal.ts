// Where a chat's input comes from: a terminal with an editable line, or lines of a pipe.
import { readdirSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import { LineJoiner } from './chat-input.js';

export interface ChatInput {
  /** somebody types */
  readonly isInteractive: boolean;
  /** The next question or command; undefined at the end. */
  next(): Promise<string | undefined>;
  /** Calls `onInterrupt` for each Ctrl-C until the function that it returns is called. */
  watch(onInterrupt: () => void): () => void;
  close(): void;
}

/** Lines of a pipe or a file. */
export class PipedInput implements ChatInput {
  readonly isInteractive = false;
  readonly #interface: Interface;
  readonly #lines: AsyncIterator<string>;
  readonly #joiner = new LineJoiner();

  constructor(input: NodeJS.ReadableStream, signal: AbortSignal) {
    this.#interface = createInterface({ input, crlfDelay: Infinity });
    this.#lines = this.#interface[Symbol.asyncIterator]();
    signal.addEventListener('abort', () => this.close(), { once: true });
  }

  async next(): Promise<string | undefined> {
    for (;;) {
      const line = await this.#lines.next();
      if (line.done) return this.#joiner.end();
      const input = this.#joiner.push(line.value);
      if (input !== undefined) return input;
    }
  }

  watch(): () => void {
    return () => {}; // Ctrl-C is a signal, and ends the program
  }

  close(): void {
    this.#interface.close();
  }
}

const PASTE_ON = '\x1b[?2004h';
const PASTE_OFF = '\x1b[?2004l';
const MAX_HISTORY = 1000;
const CTRL_C = 3;

/** A terminal. Each question has an interface of its own, so that the keys between belong to who waits for Ctrl-C. */
export class TerminalInput implements ChatInput {
  readonly isInteractive = true;
  readonly #commands: readonly string[];
  readonly #input: NodeJS.ReadStream;
  readonly #output: NodeJS.WritableStream;
  readonly #signal: AbortSignal;
  #history: string[] = [];

  constructor(
    { input, output }: { input: NodeJS.ReadStream; output: NodeJS.WritableStream },
    commands: readonly string[],
    signal: AbortSignal,
  ) {
    this.#input = input;
    this.#output = output;
    this.#commands = commands;
    this.#signal = signal;
  }

  next(): Promise<string | undefined> {
    const joiner = new LineJoiner();
    const input = this.#input;
    let isPasting = false;
    let isLeaving = false; // Ctrl-C on an empty line, once
    const line = createInterface({
      input,
      output: this.#output,
      terminal: true,
      history: this.#history,
      historySize: MAX_HISTORY,
      removeHistoryDuplicates: true,
      completer: (text: string) => complete(text, this.#commands),
    });
    const prompt = () => {
      line.setPrompt(joiner.isOpen ? '. ' : '> ');
      line.prompt();
    };
    const onKey = (_text: string | undefined, key: { name?: string; ctrl?: boolean }) => {
      if (!(key.ctrl && key.name === 'c')) isLeaving = false;
      if (key.name === 'paste-start') isPasting = true;
      if (key.name === 'paste-end') isPasting = false;
    };
    this.#output.write(PASTE_ON);
    return new Promise<string | undefined>((resolve) => {
      let result: string | undefined;
      const onAbort = () => line.close();
      line.on('history', (history) => (this.#history = history));
      line.on('line', (text) => {
        if (isPasting) {
          joiner.add(text);
        } else {
          result = joiner.push(text);
          if (result !== undefined) return line.close();
        }
        prompt();
      });
      line.on('SIGINT', () => {
        const isEmpty = line.line === '' && !joiner.isOpen;
        if (isEmpty && isLeaving) return line.close();
        joiner.clear();
        line.write(null, { ctrl: true, name: 'e' });
        line.write(null, { ctrl: true, name: 'u' });
        this.#output.write('\n');
        if (isEmpty) this.#output.write('Ctrl-C again, Ctrl-D or /exit leaves.\n');
        isLeaving = isEmpty;
        prompt();
      });
      line.on('close', () => {
        input.off('keypress', onKey);
        this.#signal.removeEventListener('abort', onAbort);
        this.#output.write(PASTE_OFF);
        if (result === undefined) this.#output.write('\n');
        resolve(result);
      });
      this.#signal.addEventListener('abort', onAbort, { once: true });
      input.prependListener('keypress', onKey);
      prompt();
    });
  }

  watch(onInterrupt: () => void): () => void {
    const input = this.#input;
    const typed: Buffer[] = []; // ahead, for the next question
    const onData = (data: Buffer) => {
      if (data.includes(CTRL_C)) onInterrupt();
      else typed.push(data);
    };
    input.setRawMode(true); // no echo into the answer, and Ctrl-C is a key
    input.on('data', onData);
    input.resume();
    return () => {
      input.off('data', onData);
      input.pause();
      input.setRawMode(false);
      if (typed.length > 0) input.unshift(Buffer.concat(typed));
    };
  }

  close(): void {
    this.#input.pause();
  }
}

// Commands by their beginnings, and files behind those that take one.
function complete(text: string, commands: readonly string[]): [string[], string] {
  if (/^\/\S*$/.test(text)) return [commands.filter((name) => name.startsWith(text)), text];
  const [, path] = /^\/(?:image|save|load)\s+(.*)$/s.exec(text) ?? [];
  if (path === undefined) return [[], text];
  const folder = path.endsWith('/') || path === '' ? path : join(dirname(path), '/');
  const begun = path.endsWith('/') || path === '' ? '' : basename(path);
  const shown = folder === './' && !path.startsWith('./') ? '' : folder;
  try {
    const entries = readdirSync(folder || '.', { withFileTypes: true });
    const found = entries
      .filter(({ name }) => name.startsWith(begun) && (begun !== '' || !name.startsWith('.')))
      .map((entry) => `${shown}${entry.name}${entry.isDirectory() ? '/' : ''}`);
    return [found, path];
  } catch {
    return [[], path];
  }
}
