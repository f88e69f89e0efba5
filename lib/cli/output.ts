// What the terminal sees: results on stdout, everything else on stderr.
import { SingleBar } from 'cli-progress';
import { GemmaError, type PromptProgress } from '../index.js';

const EXIT_FAILED = 1;
export const EXIT_USAGE = 2;
const EXIT_INTERRUPTED = 130;

/** Wrong arguments that commander cannot see. */
export class UsageError extends Error {}

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

export function printLine(line = ''): void {
  process.stdout.write(`${line}\n`);
}

export function note(line: string): void {
  process.stderr.write(`${line}\n`);
}

/** Beside what matters: less bright on a terminal. */
export function dim(text: string): string {
  return process.stderr.isTTY && !process.env.NO_COLOR ? `\x1b[2m${text}\x1b[22m` : text;
}

/** Text of a model or a file as it may be shown on a terminal, which takes control characters for orders. */
export function printable(text: string): string {
  // eslint-disable-next-line no-control-regex -- these are meant
  return text.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, '\ufffd');
}

function bar(label: string): SingleBar {
  const format = `${label} [{bar}] {percentage} %`;
  const shown = new SingleBar({ format, clearOnComplete: true, stream: process.stderr, hideCursor: true });
  shown.start(100, 0);
  return shown;
}

/** A bar on the terminal from the first fraction from 0 to 1 on that something reports; silent where nobody watches. */
export async function withProgress<T>(
  label: string,
  silent: boolean,
  work: (onProgress: (fraction: number) => void) => Promise<T>,
): Promise<T> {
  if (silent || !process.stderr.isTTY) return work(() => {});
  let shown: SingleBar | undefined;
  try {
    return await work((fraction) => (shown ??= bar(label)).update(Math.round(fraction * 100)));
  } finally {
    shown?.stop();
  }
}

// A bar for less would only flicker.
const BAR_AFTER_MS = 500;

/** The same for a prompt, a bar for each stage; nothing for the moment that a short text or a picture seen before takes. */
export function promptProgress(silent: boolean): { update: (progress: PromptProgress) => void; stop: () => void } {
  if (silent || !process.stderr.isTTY) return { update: () => {}, stop: () => {} };
  let shown: SingleBar | undefined;
  let stage: string | undefined;
  const start = performance.now();
  const stop = () => {
    shown?.stop();
    shown = undefined;
  };
  const update = (progress: PromptProgress) => {
    if (progress.stage !== stage) stop();
    stage = progress.stage;
    if (!shown && progress.fraction < 1 && performance.now() - start > BAR_AFTER_MS) {
      shown = bar(stage === 'images' ? 'Looking' : 'Reading');
    }
    shown?.update(Math.round(progress.fraction * 100));
  };
  return { update, stop };
}

/** Tells of a failure and returns the exit code. */
export function reportFailure(error: unknown, json: boolean): number {
  let code = 'ERR_INTERNAL';
  let exit = EXIT_FAILED;
  if (error instanceof GemmaError) {
    code = error.code;
  } else if (error instanceof UsageError || error instanceof TypeError || error instanceof RangeError) {
    code = 'ERR_USAGE';
    exit = EXIT_USAGE;
  } else if (error instanceof Error && error.name === 'AbortError') {
    code = 'ERR_ABORTED';
    exit = EXIT_INTERRUPTED;
  } else if (error instanceof Error && 'syscall' in error) {
    code = 'ERR_FILE'; // a file of the command line's own, such as --file or --out
  }
  const message = error instanceof Error ? error.message : String(error);
  const detail = error instanceof GemmaError ? error.detail : undefined;
  if (json) {
    printJson({ error: { code, message, ...(detail !== undefined && { detail }) } });
  } else {
    note(
      exit === EXIT_INTERRUPTED ? 'interrupted' : `gemma-native: ${message} (${code}${detail ? `, ${detail}` : ''})`,
    );
    if (exit === EXIT_FAILED && code === 'ERR_INTERNAL' && error instanceof Error && error.stack) note(error.stack);
  }
  return exit;
}

/** Of seconds: 3:05, 1:02:03. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return '?';
  const s = Math.round(seconds);
  const two = (n: number) => String(n).padStart(2, '0');
  return s < 3600 ? `${Math.floor(s / 60)}:${two(s % 60)}` : `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`; // prettier-ignore
}

export function bytes(n: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    ++unit;
  }
  return `${unit === 0 ? n : n.toFixed(n < 10 ? 2 : n < 100 ? 1 : 0)} ${units[unit]}`;
}

/** Columns of text, numbers to the right. */
export function table(rows: readonly (readonly (string | number)[])[]): string {
  const widths: number[] = [];
  for (const row of rows) row.forEach((cell, i) => (widths[i] = Math.max(widths[i] ?? 0, String(cell).length)));
  return rows
    .map((row) =>
      row
        .map((cell, i) =>
          typeof cell === 'number' ? String(cell).padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0),
        )
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}
