// Embeddings as JSON, a vector at a time: written in one go, thousands of them would hold up everybody else.
import { setImmediate as turn } from 'node:timers/promises';

/** How many numbers are written before others have their turn: about a millisecond. */
const NUMBERS = 16_384;

/** The rows of an array that has them one after the other. */
export function rowsOf({
  data,
  shape: [n, width],
}: {
  data: Float32Array;
  shape: readonly [number, number];
}): Float32Array[] {
  return Array.from({ length: n }, (_, i) => data.subarray(i * width, (i + 1) * width));
}

/**
 * An object with an array of vectors, in pieces.
 *
 * @param before the object's text up to its first vector
 * @param vector the text of a vector, of its numbers as an array of JSON and its place
 * @param after the text behind the last one
 */
export async function* vectorsText(
  vectors: readonly Float32Array[],
  before: string,
  vector: (numbers: string, index: number) => string,
  after: string,
): AsyncGenerator<string, void, undefined> {
  let text = before;
  let pending = 0;
  for (const [i, numbers] of vectors.entries()) {
    text += `${i === 0 ? '' : ','}${vector(JSON.stringify(Array.from(numbers)), i)}`;
    pending += numbers.length;
    if (pending < NUMBERS) continue;
    yield text;
    text = '';
    pending = 0;
    await turn();
  }
  yield text + after;
}
