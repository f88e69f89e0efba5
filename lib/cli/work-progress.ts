// How a command tells of long work.
import { SingleBar } from 'cli-progress';
import { note } from './output.js';

// How often it is told where no bar can be drawn.
const NOTE_MS = 10_000;

interface Done {
  value: number;
  total: number;
  /** what the bar's format names besides */
  bar: () => object;
  /** where no bar can be drawn */
  line: () => string;
  /** a line is worth writing now */
  isNews?: boolean;
}

/** Tells of work on stderr: a bar on a terminal, else a line from time to time. */
export function workProgress(format: string, options: { barsize?: number } = {}) {
  let shown: SingleBar | undefined;
  let last = performance.now();
  const update = ({ value, total, bar, line, isNews = false }: Done): void => {
    if (!process.stderr.isTTY) {
      if (!isNews && performance.now() - last < NOTE_MS) return;
      last = performance.now();
      note(line());
      return;
    }
    const payload = bar();
    if (!shown) {
      shown = new SingleBar({ format, clearOnComplete: true, stream: process.stderr, hideCursor: true, ...options });
      shown.start(total, value, payload);
    }
    shown.setTotal(total);
    shown.update(value, payload);
  };
  return { update, stop: (): void => shown?.stop() };
}
