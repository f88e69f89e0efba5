// Confidence intervals and paired tests of evaluations, in double precision. Sources: Wilson (1927) for proportions, McNemar (1947) in its
// exact form; means and ratios by Student's t, ratios linearised (Cochran, Sampling Techniques, 3rd ed., section 6.4).

/** Lower and upper end. */
export type Interval = readonly [low: number, high: number];

const CONFIDENCE = 0.95;

// Marsaglia, Evaluating the Normal Distribution (2004): a series that is exact to double precision where |x| is below 7.
function normalCdf(x: number): number {
  if (Math.abs(x) > 7) return x > 0 ? 1 : 0;
  let sum = x;
  for (let term = x, i = 3, last = NaN; sum !== last; i += 2) {
    last = sum;
    term *= (x * x) / i;
    sum += term;
  }
  return 0.5 + (sum * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI);
}

/** Where a growing function reaches a value. */
function inverse(cdf: (x: number) => number, value: number): number {
  let low = -1;
  let high = 1;
  while (cdf(low) > value) low *= 2;
  while (cdf(high) < value) high *= 2;
  for (;;) {
    const middle = (low + high) / 2;
    if (middle <= low || middle >= high) return middle;
    if (cdf(middle) < value) low = middle;
    else high = middle;
  }
}

// Lanczos' approximation, g = 7, 9 coefficients: a relative error below 1e-14 for positive x.
const LANCZOS = [
  0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059,
  12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7,
];

function logGamma(x: number): number {
  const t = x + 6.5;
  const series = LANCZOS.reduce((sum, c, i) => (i === 0 ? c : sum + c / (x - 1 + i)), 0);
  return 0.5 * Math.log(2 * Math.PI) + (x - 0.5) * Math.log(t) - t + Math.log(series);
}

// The regularised incomplete beta function by its continued fraction (Lentz's method).
function incompleteBeta(x: number, a: number, b: number): number {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(1 - x, b, a);
  const tiny = 1e-300;
  const away = (value: number) => (Math.abs(value) < tiny ? tiny : value);
  let c = 1;
  let d = 1 / away(1 - ((a + b) * x) / (a + 1));
  let fraction = d;
  for (let m = 1; m <= 100_000; ++m) {
    const even = (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / away(1 + even * d);
    c = away(1 + even / c);
    fraction *= d * c;
    const odd = (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / away(1 + odd * d);
    c = away(1 + odd / c);
    fraction *= d * c;
    if (Math.abs(d * c - 1) < 1e-16) break;
  }
  const front = logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log1p(-x);
  return (Math.exp(front) / a) * fraction;
}

/** P(|T| > |t|) of Student's t with so many degrees of freedom. */
export function tTail(t: number, freedom: number): number {
  return incompleteBeta(freedom / (freedom + t * t), freedom / 2, 0.5);
}

const quantiles = new Map<number, number>(); // of t by degrees of freedom, 0: the normal distribution's

/** Beyond which, on both sides, 1 - CONFIDENCE of a distribution lies. */
function quantile(freedom: number): number {
  let known = quantiles.get(freedom);
  if (known === undefined) {
    const cdf = (x: number) => (freedom === 0 ? normalCdf(x) : x < 0 ? 0 : 1 - tTail(x, freedom) / 2);
    quantiles.set(freedom, (known = inverse(cdf, (1 + CONFIDENCE) / 2)));
  }
  return known;
}

/** Wilson's score interval of a proportion, 95 %: `count` of `n`, n above 0. */
export function wilson(count: number, n: number): Interval {
  const z = quantile(0);
  const p = count / n;
  const middle = (p + (z * z) / (2 * n)) / (1 + (z * z) / n);
  const half = (z * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n))) / (1 + (z * z) / n);
  return [count === 0 ? 0 : middle - half, count === n ? 1 : middle + half];
}

/**
 * McNemar's test in its exact form: the two-sided probability that so many of the pairs of which one was right are so unevenly shared out
 * if both are equally likely to be right.
 *
 * @param wins pairs of which only the first was right
 * @param losses pairs of which only the second was
 */
export function mcnemar(wins: number, losses: number): number {
  const n = wins + losses;
  // Terms of the binomial distribution, each from the one before: times a power of two that a double holds.
  const scale = Math.min(n, 1000);
  let logTerm = (scale - n) * Math.LN2;
  let tail = Math.exp(logTerm) * 2 ** -scale;
  let term = tail;
  for (let i = 1; i <= Math.min(wins, losses); ++i) {
    const factor = (n - i + 1) / i;
    logTerm += Math.log(factor);
    term = n === scale ? term * factor : Math.exp(logTerm - scale * Math.LN2);
    tail += term;
  }
  return Math.min(1, 2 * tail);
}

/** What was counted or measured of one example, and how much of it there was: 1 for a mean, tokens or bytes for a rate. */
export interface Measured {
  amount: number;
  weight: number;
}

/** The sum of amounts for each unit of weight, and how far each example is from that, for each unit of the mean weight. */
function ratioOf(measured: readonly Measured[]): { ratio: number; deviations: number[] } {
  const amount = measured.reduce((sum, { amount }) => sum + amount, 0);
  const weight = measured.reduce((sum, { weight }) => sum + weight, 0);
  const ratio = amount / weight;
  const meanWeight = weight / measured.length;
  return { ratio, deviations: measured.map((of) => (of.amount - ratio * of.weight) / meanWeight) };
}

function standardError(deviations: readonly number[]): number {
  const n = deviations.length;
  return Math.sqrt(deviations.reduce((sum, d) => sum + d * d, 0) / (n - 1) / n);
}

/** A ratio of sums, of weights of 1 the mean, with its interval, 95 %, by Student's t; undefined of a single example. */
export function ratio(measured: readonly Measured[]): { value: number; interval?: Interval } {
  const { ratio: value, deviations } = ratioOf(measured);
  const n = measured.length;
  if (n < 2) return { value };
  const half = quantile(n - 1) * standardError(deviations);
  return { value, interval: [value - half, value + half] };
}

/** Two ratios over the same examples: how much larger the first is, and the two-sided probability of that by the paired t-test. */
export function pairedT(
  first: readonly Measured[],
  second: readonly Measured[],
): { difference: number; pValue?: number } {
  const a = ratioOf(first);
  const b = ratioOf(second);
  const difference = a.ratio - b.ratio;
  const n = first.length;
  if (n < 2) return { difference };
  const error = standardError(a.deviations.map((deviation, i) => deviation - (b.deviations[i] ?? NaN)));
  if (error === 0) return { difference, pValue: difference === 0 ? 1 : 0 };
  return { difference, pValue: tTail(difference / error, n - 1) };
}

/** So many different ones of the integers from 0 to below n, in random order; all of them where there are no more (Floyd's method). */
export function draw(count: number, n: number, random: () => number): number[] {
  const chosen = new Set<number>();
  for (let i = Math.max(0, n - count); i < n; ++i) {
    const at = Math.floor(random() * (i + 1));
    chosen.add(chosen.has(at) ? i : at);
  }
  const list = [...chosen];
  for (let i = list.length - 1; i > 0; --i) {
    const j = Math.floor(random() * (i + 1));
    [list[i], list[j]] = [list[j] as number, list[i] as number];
  }
  return list;
}
