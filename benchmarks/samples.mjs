// Texts that nobody has seen, and how figures are told.

export const WORDS =
  'river stone yellow seven market under bright engine paper window colour garden letter quiet number second'.split(
    ' ',
  );

/** So many words, of each seed others. Most are one token, with the space before it. */
export function textOf(words, seed) {
  let state = seed * 2654435761;
  return Array.from({ length: words }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return WORDS[state >>> 28];
  }).join(' ');
}

/** The median, with the lowest and the highest. */
export function spread(values, digits = 2) {
  const sorted = values.toSorted((a, b) => a - b);
  const shown = [sorted[sorted.length >> 1], sorted[0], sorted.at(-1)].map((value) => value.toFixed(digits));
  return `${shown[0]} (${shown[1]} to ${shown[2]})`;
}
