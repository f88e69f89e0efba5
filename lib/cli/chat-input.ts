// What is typed into a chat: commands, questions of several lines, and files among the words of a question.
import { statSync } from 'node:fs';
import { homedir } from 'node:os';
import { extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export interface Media {
  type: 'image' | 'video';
  path: string;
}

export interface ChatCommand {
  name: string;
  argument: string;
}

const IMAGES = new Set(['.png', '.jpg', '.jpeg', '.webp', '.gif', '.avif', '.tif', '.tiff', '.svg']);
const VIDEOS = new Set(['.mp4', '.mov', '.webm', '.mkv', '.avi', '.m4v']);

/** `/name argument`; undefined for everything else, a path among it. `//...` is text that begins with a slash. */
export function commandOf(line: string): ChatCommand | undefined {
  const [, name, argument = ''] = /^\/([a-z?]+)(?:\s+(.*))?$/s.exec(line.trim()) ?? [];
  return name === undefined ? undefined : { name, argument: argument.trim() };
}

/** Lines to inputs: one that ends with a backslash goes on in the next, and so does what begins with `"""`, up to the next `"""`. */
export class LineJoiner {
  #lines: string[] = [];
  #isQuoted = false;

  /** the next line belongs to the one before */
  get isOpen(): boolean {
    return this.#lines.length > 0;
  }

  clear(): void {
    this.#lines = [];
    this.#isQuoted = false;
  }

  /** A line of an input that goes on whatever it ends with, as pasted text does. */
  add(line: string): void {
    this.#lines.push(line);
  }

  /** Takes a line; returns the input when it is whole. */
  push(line: string): string | undefined {
    let rest = line;
    if (!this.isOpen && line.trimStart().startsWith('"""')) {
      this.#isQuoted = true;
      rest = line.trimStart().slice(3);
    }
    if (this.#isQuoted) {
      const end = rest.indexOf('"""');
      this.#lines.push(end < 0 ? rest : rest.slice(0, end));
      return end < 0 ? undefined : this.#take().replace(/^\n/, '').replace(/\n$/, '');
    }
    const goesOn = line.endsWith('\\');
    this.#lines.push(goesOn ? line.slice(0, -1) : line);
    return goesOn ? undefined : this.#take();
  }

  /** What there is, at the end of the input. */
  end(): string | undefined {
    return this.isOpen ? this.#take() : undefined;
  }

  #take(): string {
    const text = this.#lines.join('\n');
    this.clear();
    return text;
  }
}

/** A path as a terminal writes it when a file is dragged there, or as it is typed: quoted, with backslashes, a file URL, with `~`. */
export function plainPath(written: string): string {
  const quoted = /^(['"])(.*)\1$/s.exec(written);
  const path = quoted ? (quoted[2] ?? '') : process.platform === 'win32' ? written : written.replace(/\\(.)/gs, '$1');
  if (path.startsWith('file://')) {
    try {
      return fileURLToPath(path);
    } catch {
      return path;
    }
  }
  return /^~[/\\]/.test(path) ? join(homedir(), path.slice(2)) : path;
}

function isFile(path: string): boolean {
  try {
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

function kindOf(path: string): Media['type'] | undefined {
  const end = extname(path).toLowerCase();
  return IMAGES.has(end) ? 'image' : VIDEOS.has(end) ? 'video' : undefined;
}

// A word, or several with quotes around them or backslashes between.
const WORDS = /(?:'[^'\n]+'|"[^"\n]+"|(?:\\.|[^\s\\])+)/gs;

/** Takes the pictures and videos out of a question: words that are paths of files there are, and end as such files do. */
export function findMedia(question: string): { text: string; media: Media[] } {
  const media: Media[] = [];
  const text = question.replace(WORDS, (word) => {
    const [, written = word, mark = ''] = /^(.*?)([?!.,;:]*)$/s.exec(word) ?? [];
    const path = plainPath(written);
    const type = kindOf(path);
    if (type === undefined || !isFile(path)) return word;
    media.push({ type, path });
    return mark;
  });
  return { text: media.length > 0 ? text.replace(/ {2,}/g, ' ').trim() : question.trim(), media };
}
