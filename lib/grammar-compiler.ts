// Grammars are compiled on threads of Node's pool, of which there are four for everybody. Short work goes on side by side; what takes
// longer is done one after the other, in one thread at a time, so that nobody's large grammar delays another's small one.
import type { NativeGrammar, NativeGrammarSource, NativeModel } from './native.js';

let last: Promise<unknown> = Promise.resolve();

/**
 * Compiles a grammar, or finds it among those that were compiled lately.
 *
 * @throws GemmaError `ERR_INVALID_ARGUMENT` (`BAD_SCHEMA`, `BAD_REGEX`, `BAD_GRAMMAR`, `BAD_STRUCTURAL_TAG`, `GRAMMAR_TOO_LARGE`),
 * `ERR_DISPOSED`; the signal's reason where it is aborted before its turn comes
 */
export async function compileGrammar(
  model: NativeModel,
  source: NativeGrammarSource,
  signal: AbortSignal,
): Promise<NativeGrammar> {
  const quick = await model.compileGrammar(source, true);
  if (quick) return quick;
  const compiling = last.then(() => {
    signal.throwIfAborted();
    return model.compileGrammar(source, false);
  });
  last = compiling.catch(() => {});
  return compiling;
}
