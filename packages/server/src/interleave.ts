// Several streams as one, and many pieces of work a few at a time.
import { setMaxListeners } from 'node:events';

/** Items of several iterables, as they come. Leaving it leaves all of them. */
export function interleaved<T>(sources: readonly AsyncIterable<T>[]): AsyncIterable<T> {
  const [only] = sources;
  return only && sources.length === 1 ? only : asTheyCome(sources);
}

async function* asTheyCome<T>(sources: readonly AsyncIterable<T>[]): AsyncGenerator<T, void, undefined> {
  const readers = sources.map((source) => source[Symbol.asyncIterator]());
  const waiting = new Map(readers.map((reader) => [reader, pull(reader)]));
  try {
    while (waiting.size > 0) {
      const { reader, result } = await Promise.race(waiting.values());
      if (result.done) {
        waiting.delete(reader);
      } else {
        waiting.set(reader, pull(reader));
        yield result.value;
      }
    }
  } finally {
    for (const pending of waiting.values()) pending.catch(() => {}); // of those that are left nobody hears
    await Promise.allSettled(readers.map(async (reader) => reader.return?.()));
  }
}

async function pull<T>(reader: AsyncIterator<T>): Promise<{ reader: AsyncIterator<T>; result: IteratorResult<T> }> {
  return { reader, result: await reader.next() };
}

/** Results in the order of the items, worked on so many at a time. The first failure counts; those under way have the signal of it. */
export async function pooled<T, R>(
  items: readonly T[],
  most: number,
  signal: AbortSignal,
  work: (item: T, index: number, signal: AbortSignal) => Promise<R>,
): Promise<R[]> {
  const controller = new AbortController();
  setMaxListeners(0, controller.signal);
  const onAbort = () => controller.abort(signal.reason);
  signal.addEventListener('abort', onAbort, { once: true });
  const results: R[] = [];
  let next = 0;
  const worker = async () => {
    while (next < items.length) {
      signal.throwIfAborted();
      controller.signal.throwIfAborted();
      const i = next++;
      results[i] = await work(items[i] as T, i, controller.signal);
    }
  };
  try {
    await Promise.all(Array.from({ length: Math.min(most, items.length) }, worker));
    return results;
  } catch (error) {
    controller.abort(error);
    throw error;
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}
