// Files of texts or of JSON lines: training data, or what models have written.
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { scanText, type PersonalData, type ScanOptions } from './scan.js';

export interface FileFinding extends PersonalData {
  /** from 1 */
  line: number;
  /** Where in a line of JSON, as JSON Pointer (RFC 6901); `start` and `end` are places in that string. Absent in a line of text. */
  path?: string;
}

const MAX_DEPTH = 100;

function* strings(value: unknown, path: string, depth = 0): Generator<{ path: string; text: string }> {
  if (typeof value === 'string') yield { path, text: value };
  if (typeof value !== 'object' || value === null || depth === MAX_DEPTH) return;
  for (const [key, part] of Object.entries(value)) {
    yield* strings(part, `${path}/${key.replaceAll('~', '~0').replaceAll('/', '~1')}`, depth + 1);
  }
}

/**
 * Scans a file line by line. A line that is a JSON object or array counts as its strings, any other as text.
 *
 * @param path of a file of text or JSON lines
 * @throws as `scanText`; errors of the file system
 */
export async function* scanFile(path: string, options: ScanOptions = {}): AsyncGenerator<FileFinding, void, undefined> {
  let line = 0;
  for await (const text of createInterface({ input: createReadStream(path, 'utf8'), crlfDelay: Infinity })) {
    ++line;
    let value: unknown = text;
    try {
      if (/^\s*[[{]/.test(text)) value = JSON.parse(text);
    } catch {
      // text that begins with a bracket
    }
    if (typeof value === 'string') {
      for (const found of scanText(value, options)) yield { ...found, line };
      continue;
    }
    for (const { path: at, text: part } of strings(value, '')) {
      for (const found of scanText(part, options)) yield { ...found, line, path: at };
    }
  }
}
