// The examples of a README, run as they stand there: imports become what the test has, a few names what it needs.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { root } from './helpers.js';

/** What an example did. */
export interface Ran {
  /** arguments of console.log, and what was written to the output */
  printed: unknown[];
  /** variables of the example that were asked for */
  values: Record<string, unknown>;
}

type Run = (
  modules: Readonly<Record<string, unknown>>,
  fake: object,
  stdout: object,
) => Promise<Record<string, unknown>>;

/** The examples of a file in a language, in order. */
export function snippets(path: string, language = 'js'): string[] {
  const fences = new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\`$`, 'gms');
  return [...readFileSync(join(root, path), 'utf8').matchAll(fences)].map(([, code = '']) => code);
}

/**
 * @param modules what may be imported, by name
 * @param renamed texts of the example that are replaced by others
 * @param wanted variables to return
 */
export async function runSnippet(
  code: string,
  modules: Readonly<Record<string, unknown>>,
  renamed: Readonly<Record<string, string>>,
  wanted: readonly string[] = [],
): Promise<Ran> {
  let body = code;
  for (const [from, to] of Object.entries(renamed)) body = body.replaceAll(from, to);
  body = body.replace(
    /^import (?:\{(.*?)\}|(\w+)) from '(.*?)';$/gm,
    (_, names: string, whole: string, name: string) => {
      if (!Object.hasOwn(modules, name)) throw new Error(`an example imports ${name}, which its test does not have`);
      const wanted = whole ? ` default: ${whole} ` : names.replaceAll(' as ', ': ');
      return `const {${wanted}} = modules[${JSON.stringify(name)}];`;
    },
  );
  // eslint-disable-next-line @typescript-eslint/no-implied-eval -- the repository's own text
  const run = new Function(
    'modules',
    'console',
    'process',
    `return (async () => {${body}\nreturn { ${wanted.join(', ')} };})();`,
  ) as Run;
  const printed: unknown[] = [];
  const log = (...values: unknown[]) => void printed.push(...values);
  const values = await run(modules, { log }, { stdout: { write: (text: string) => void printed.push(text) } });
  return { printed, values };
}
