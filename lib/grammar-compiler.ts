// Grammars are compiled on threads of Node's pool, of which there are four for everybody. Short work goes on side by side; what takes
// longer is done one after the other, in one thread at a time, so that nobody's large grammar delays another's small one. Whoever waits
// too long for his turn is told so: ten grammars that are refused after a second each would otherwise be refused in ten.
import { GemmaError } from './errors.js';
import type { NativeGrammar, NativeGrammarSource, NativeModel } from './native.js';

/** How long a large grammar waits for those before it. Each of them takes a second of a processor's time at most. */
export const MAX_WAIT_MS = 2000;

let last: Promise<unknown> = Promise.resolve(); // resolves when those that came before are done; never rejects

/** Resolves when those before are done. */
function turnAfter(before: Promise<unknown>, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const leave = (error: Error) => {
      clearTimeout(timer);
      signal.removeEventListener('abort', abort);
      reject(error);
    };
    const abort = () => leave(signal.reason as Error);
    const timer = setTimeout(() => {
      leave(
        new GemmaError(
          'ERR_QUEUE_FULL',
          `the grammar takes long to compile, and others that do are before it: waited ${MAX_WAIT_MS / 1000} s for them. Try again later, or with fewer or simpler parts`,
          'GRAMMARS',
        ),
      );
    }, MAX_WAIT_MS);
    signal.addEventListener('abort', abort);
    void before.then(() => {
      clearTimeout(timer);
      signal.removeEventListener('abort', abort);
      resolve();
    });
  });
}

/**
 * Compiles a grammar, or finds it among those that were compiled lately.
 *
 * @throws GemmaError `ERR_INVALID_ARGUMENT` (`BAD_SCHEMA`, `BAD_REGEX`, `BAD_GRAMMAR`, `BAD_STRUCTURAL_TAG`, `GRAMMAR_TOO_LARGE`),
 * `ERR_QUEUE_FULL` (`GRAMMARS`: other large grammars are compiled first, and it takes long), `ERR_DISPOSED`; the signal's reason where it
 * is aborted before its turn comes
 */
export async function compileGrammar(
  model: NativeModel,
  source: NativeGrammarSource,
  signal: AbortSignal,
): Promise<NativeGrammar> {
  const quick = await model.compileGrammar(source, true);
  if (quick) return quick;
  signal.throwIfAborted();
  const before = last;
  const compiling = turnAfter(before, signal).then(() => model.compileGrammar(source, false));
  // Who left the queue is not waited for, but those before him are.
  last = Promise.allSettled([before, compiling]);
  return compiling;
}
