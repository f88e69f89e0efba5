// What one example gave, and what the metrics are.
import type { Measured } from './statistics.js';

/**
 * Names of the field. Of multiple choice, as in lm-evaluation-harness: `acc`, the likeliest choice is right; `acc_norm`, the likeliest by
 * log-probability for each character. Of texts: `perplexity` (for each token), `word_perplexity`, `bits_per_byte`. Of answers: one for each
 * scorer, `json_fields` the part of fields that is right. Of a corpus: `memorized_exact`, `memorized_approximate`. Of all that was written, with
 * `scan`: `personal_data`.
 */
export type MetricName = keyof typeof METRICS;

interface Metric {
  better: 'higher' | 'lower';
  /** right or wrong: Wilson's interval and McNemar's test; else a mean or a ratio, by Student's t */
  isProportion: boolean;
  /** the exponential of the ratio is what is told */
  isExponential: boolean;
}

const metric = (better: Metric['better'], isProportion: boolean, isExponential = false): Metric => ({
  better,
  isProportion,
  isExponential,
});

export const METRICS = {
  acc: metric('higher', true),
  acc_norm: metric('higher', true),
  exact_match: metric('higher', true),
  contains: metric('higher', true),
  regex: metric('higher', true),
  number: metric('higher', true),
  json: metric('higher', true),
  json_fields: metric('higher', false),
  perplexity: metric('lower', false, true),
  word_perplexity: metric('lower', false, true),
  bits_per_byte: metric('lower', false),
  memorized_exact: metric('lower', true),
  memorized_approximate: metric('lower', true),
  personal_data: metric('lower', true),
} as const satisfies Record<string, Metric>;

export const isMetric = (name: string): name is MetricName => Object.hasOwn(METRICS, name);

/** Of one example: its measures by metric; undefined where it failed. */
export interface Outcome {
  id: string;
  scores: ReadonlyMap<MetricName, Measured> | undefined;
}

/** A measure as the output has it: a number, or amount and weight. */
export type WrittenScore = number | readonly [amount: number, weight: number];

/** The scores of a result, as the output has them; undefined: they are none. */
export function scoresFrom(value: unknown): Map<MetricName, Measured> | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const scores = new Map<MetricName, Measured>();
  for (const [name, written] of Object.entries(value as Record<string, unknown>)) {
    const pair: unknown[] = Array.isArray(written) ? written : [written, 1];
    const [amount, weight] = pair;
    if (!isMetric(name) || !Number.isFinite(amount) || !Number.isFinite(weight)) return undefined;
    scores.set(name, { amount: amount as number, weight: weight as number });
  }
  return scores;
}
