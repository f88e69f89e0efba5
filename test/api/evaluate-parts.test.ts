// What an evaluation computes without a model: statistics against scipy and statsmodels, scorers against their sources, what a memorised
// continuation is, and the table.
import { evaluationTable, type EvaluationResult } from '../../lib/index.js';
import { finalAnswer, isSameAnswer } from '../../lib/evaluate/math-answer.js';
import { editDistance, memorized } from '../../lib/evaluate/memorization.js';
import { answerScorer, type ScorerOption } from '../../lib/evaluate/scorers.js';
import { draw, mcnemar, pairedT, ratio, tTail, wilson } from '../../lib/evaluate/statistics.js';
import { seededRandom } from '../../lib/random.js';
import { rejection } from './helpers.js';

function close(found: number | undefined, expected: number, relative = 1e-11): void {
  if (!(Math.abs((found ?? NaN) - expected) <= relative * Math.max(1e-3, Math.abs(expected)))) {
    throw new Error(`expected ${expected}, found ${found}`);
  }
}

describe('statistics', () => {
  // scipy 1.17.1, statsmodels 0.15.0, Python 3.11.

  // proportion_confint(count, n, method='wilson')
  test.each([
    [0, 7, 0, 0.3543304350666875],
    [1, 3, 0.06149194472039626, 0.7923403991979523],
    [7, 7, 0.6456695649333125, 1],
    [13, 50, 0.15871527493552381, 0.39553157264848826],
    [437, 997, 0.4078107124911415, 0.46929269992651296],
    [1, 100000, 1.7652477303783092e-6, 5.664709659040968e-5],
  ])('Wilson interval of %d of %d', (k, n, low, high) => {
    const found = wilson(k, n);
    close(found[0], low);
    close(found[1], high);
  });

  // mcnemar([[5, b], [c, 9]], exact=True).pvalue
  test.each([
    [0, 0, 1],
    [1, 0, 1],
    [5, 1, 0.21875],
    [3, 11, 0.057373046875],
    [40, 61, 0.046044066929342785],
    [700, 810, 0.005014536344358142],
    [3000, 3100, 0.2049495446515585],
  ])('McNemar of %d and %d', (wins, losses, p) => {
    close(mcnemar(wins, losses), p, 1e-10);
    close(mcnemar(losses, wins), p, 1e-10);
  });

  // 2 * scipy.stats.t.sf(t, df)
  test.each([
    [0.1, 1, 0.936548965138893],
    [2, 1, 0.2951672353008665],
    [2.5, 3, 0.08770664700806556],
    [1.96, 996, 0.0502742994159903],
    [12, 4, 0.000276428548502973],
    [3, 1e5, 0.0027004608840647234],
  ])('both tails of t at %d, %d degrees of freedom', (t, freedom, p) => close(tTail(t, freedom), p, 1e-10));

  const amounts = [3.5, 1.25, 7.0, 2.75, 11.0, 0.5, 4.0];
  const others = [3.0, 1.5, 6.0, 2.5, 12.5, 0.25, 4.5];
  const weights = [5, 2, 13, 3, 17, 1, 7];
  const measured = (values: readonly number[], by: readonly number[] = values.map(() => 1)) =>
    values.map((amount, i) => ({ amount, weight: by[i] ?? NaN }));

  // WLS(x / w, ones, weights=w).fit(cov_type='HC1', use_t=True); with weights of 1 also scipy.stats.t.interval
  test('mean and ratio with their intervals', () => {
    for (const [of, value, low, high] of [
      [measured(amounts), 4.2857142857142865, 0.9286904360378667, 7.642738135390706],
      [measured(amounts, weights), 0.625, 0.5384854728819102, 0.7115145271180898],
      [measured(amounts.slice(0, 2), weights), 0.6785714285714286, 0.28960597746404015, 1.067536879678817],
    ] as const) {
      const found = ratio(of);
      close(found.value, value);
      close(found.interval?.[0], low);
      close(found.interval?.[1], high);
    }
  });

  // The same of the differences; with weights of 1 also scipy.stats.ttest_rel
  test('paired t-test of means and of ratios', () => {
    const means = pairedT(measured(amounts), measured(others));
    close(means.difference, -0.035714285714285685);
    close(means.pValue, 0.9108491685195838, 1e-10);
    const ratios = pairedT(measured(amounts, weights), measured(others, weights));
    close(ratios.difference, -0.005208333333333339);
    close(ratios.pValue, 0.9095613498661929, 1e-10);
  });

  test('one example has no interval, equal ones a probability of 1', () => {
    expect(ratio([{ amount: 3, weight: 2 }])).toEqual({ value: 1.5 });
    const same = [{ amount: 1, weight: 1 }, { amount: 2, weight: 1 }]; // prettier-ignore
    expect(pairedT(same, same)).toEqual({ difference: 0, pValue: 1 });
    expect(pairedT(same.slice(1), same.slice(1))).toEqual({ difference: 0 });
    expect(pairedT(same.map(({ amount }) => ({ amount: amount + 1, weight: 1 })), same)).toEqual({ difference: 1, pValue: 0 }); // prettier-ignore
  });

  test('drawing: different ones, all of them where there are no more, the same for the same seed', () => {
    const drawn = draw(40, 100, seededRandom(3));
    expect(new Set(drawn).size).toBe(40);
    expect(drawn.every((i) => Number.isInteger(i) && i >= 0 && i < 100)).toBe(true);
    expect(draw(40, 100, seededRandom(3))).toEqual(drawn);
    expect(draw(40, 100, seededRandom(4))).not.toEqual(drawn);
    expect(draw(9, 7, seededRandom(1)).toSorted((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6]);
    // Each as often as any other, first and last places as well: within five deviations of 3000 draws.
    const counts = new Array<number>(5).fill(0);
    const firsts = new Array<number>(5).fill(0);
    const random = seededRandom(11);
    for (let i = 0; i < 3000; ++i) {
      const two = draw(2, 5, random);
      for (const x of two) counts[x] = (counts[x] ?? 0) + 1;
      firsts[two[0] ?? 0] = (firsts[two[0] ?? 0] ?? 0) + 1;
    }
    for (const count of counts) expect(Math.abs(count - 1200)).toBeLessThan(5 * Math.sqrt(3000 * 0.4 * 0.6));
    for (const count of firsts) expect(Math.abs(count - 600)).toBeLessThan(5 * Math.sqrt(3000 * 0.2 * 0.8));
  });
});

async function score(scorer: ScorerOption, answer: string, expected: unknown): Promise<Record<string, number>> {
  const { check, score: judge } = answerScorer(scorer);
  await check(expected);
  return judge(answer, expected);
}

describe('exact match, contains', () => {
  // torchmetrics 1.9.0, functional.text.squad._normalize_text; but for punctuation the expected side is nothing that it changes.
  test.each([
    ['The  Cat, sat!', 'cat sat'],
    ['an apple a day', 'apple day'],
    ['Theatre', 'theatre'],
    ['U.S.A.', 'usa'],
    ['the-man', 'theman'],
    ["A.I. and the  'a'", 'ai and'],
    ['Ünï the Ä', 'ünï ä'],
    ['über—dash', 'über—dash'],
    ['la the\tthe\nx', 'la x'],
    ['a_b a', 'ab'],
  ])('SQuAD makes %j %j', async (text, normalized) => {
    expect(await score({ type: 'exact', normalize: 'squad' }, text, normalized)).toEqual({ exact_match: 1 });
    expect(await score({ type: 'exact', normalize: 'squad' }, text, `${normalized}x`)).toEqual({ exact_match: 0 });
  });

  test('normalisations', async () => {
    expect(await score('exact', ' Paris\n', 'Paris')).toEqual({ exact_match: 1 });
    expect(await score('exact', 'New  \t York', 'New York')).toEqual({ exact_match: 1 });
    expect(await score('exact', 'paris', 'Paris')).toEqual({ exact_match: 0 });
    expect(await score('exact', 'Rome', ['Paris', 'Rome'])).toEqual({ exact_match: 1 });
    expect(await score('exact', '12', 12)).toEqual({ exact_match: 1 });
    expect(await score({ type: 'exact', normalize: 'none' }, 'Paris ', 'Paris')).toEqual({ exact_match: 0 });
    expect(await score({ type: 'exact', normalize: 'squad' }, 'The Eiffel Tower.', 'eiffel tower')).toEqual({
      exact_match: 1,
    });
    expect(await score('contains', 'It is Paris.', ['Rome', 'Paris'])).toEqual({ contains: 1 });
    expect(await score('contains', 'It is PARIS.', 'Paris')).toEqual({ contains: 0 });
    expect(await score({ type: 'contains', ignoreCase: true }, 'It is PARIS.', 'Paris')).toEqual({ contains: 1 });
  });
});

describe('regular expressions', () => {
  test('find something, anchored or not', async () => {
    expect(await score('regex', 'It is 12 km.', '\\d+ ?(km|m)')).toEqual({ regex: 1 });
    expect(await score('regex', 'It is far.', '\\d+ ?(km|m)')).toEqual({ regex: 0 });
    expect(await score('regex', 'yes, it is', '^yes')).toEqual({ regex: 1 });
    expect(await score('regex', 'oh yes', ['^yes', 'yes$'])).toEqual({ regex: 1 });
  });

  test('no pattern takes long: what backtracks for ever elsewhere', async () => {
    const start = process.cpuUsage();
    expect(await score('regex', 'a'.repeat(20_000), '^(a+)+b$')).toEqual({ regex: 0 });
    expect(await score('regex', 'a'.repeat(5000), '(a|a)*(a|a)*c')).toEqual({ regex: 0 });
    // RegExp would take more than the age of the universe; this is some tenths of a second.
    expect(process.cpuUsage(start).user).toBeLessThan(20e6);
  });

  test('a pattern that is none is refused before anything is asked', async () => {
    for (const bad of ['(', '(?<=a)b', '(a)\\1']) {
      expect(await rejection(score('regex', 'x', bad))).toMatchObject({ code: 'ERR_INVALID_ARGUMENT', detail: 'BAD_REGEX' });
    } // prettier-ignore
  });
});

describe('JSON', () => {
  const wanted = { name: 'Ada', address: { city: 'London', 'a/b': 1 }, tags: ['x', 'y'] };
  test('fields by their keys, or by pointers', async () => {
    expect(await score('json', JSON.stringify({ ...wanted, more: 1 }), wanted)).toEqual({ json: 1, json_fields: 1 });
    expect(await score('json', '```json\n{"name":"Ada","tags":["y","x"]}\n```', wanted)).toEqual({
      json: 0,
      json_fields: 1 / 3,
    });
    const paths = ['/address/city', '/tags/1', '/address/a~1b'];
    const scorer = { type: 'json' as const, paths };
    const answer = 'Here: ```\n{"tags":[0,"y"],"address":{"a/b":1,"city":"Rome"}}\n``` done';
    expect(await score(scorer, answer, wanted)).toEqual({ json: 0, json_fields: 2 / 3 });
    expect(await score('json', '[1,2]', [1, 2])).toEqual({ json: 1, json_fields: 1 });
    expect(await score('json', 'null', null)).toEqual({ json: 1, json_fields: 1 });
  });
  test('what is no JSON is wrong; what objects inherit is nothing', async () => {
    expect(await score('json', '{"name":', wanted)).toEqual({ json: 0, json_fields: 0 });
    expect(await score({ type: 'json', paths: ['/length'] }, '[]', { length: 0 })).toEqual({ json: 0, json_fields: 0 });
    expect(await score({ type: 'json', paths: ['/constructor'] }, '{}', JSON.parse('{"constructor":1}'))).toEqual({
      json: 0,
      json_fields: 0,
    });
    expect(await rejection(score({ type: 'json', paths: ['/none'] }, '{}', wanted))).toBeInstanceOf(RangeError);
    expect(() => answerScorer({ type: 'json', paths: ['name'] })).toThrow(RangeError);
    expect(() => answerScorer({ type: 'json', paths: [] })).toThrow(TypeError);
  });
});

describe('numbers', () => {
  // What is_equiv of MATH's evaluation (lm_eval 0.4.13, tasks.hendrycks_math.utils) and verify of math-verify 0.9.0 say. Ours is true where
  // either is, but for terms that only a computer algebra system finds equal.
  test.each([
    ['\\dfrac{1}{2}', '\\frac12', true, true],
    ['1/2', '\\frac{1}{2}', true, true],
    ['0.5', '\\frac{1}{2}', true, true],
    ['50\\%', '50', true, true],
    ['\\$5', '5', true, true],
    ['3\\text{ cm}', '3', true, true],
    ['x=5', '5', true, true],
    ['\\left(1,2\\right)', '(1,2)', true, true],
    ['\\sqrt3', '\\sqrt{3}', true, true],
    ['.5', '0.5', true, true],
    ['90^\\circ', '90', true, true],
    ['1', '2', false, false],
    ['(1,2)', '(2,1)', false, false],
    ['\\frac{3}{4}', '\\frac{6}{8}', false, true],
    ['10,000', '10000', false, true],
    ['2.0', '2', false, true],
    ['\\frac{a}{b}', '\\tfrac ab', true, false],
    ['-\\frac12', '-0.5', false, true],
    ['1{,}234', '1234', false, true],
    ['\\pi', '\\pi', true, true],
  ])('%s and %s: MATH %s, math-verify %s', (a, b, isEquivalent, isVerified) => {
    expect(isSameAnswer(a, b, 0)).toBe(isEquivalent || isVerified);
  });

  test('terms are not rearranged', () => {
    expect(isSameAnswer('x+1', '1+x', 0)).toBe(false); // is_equiv: false, math-verify: true
  });

  // remove_boxed(last_boxed_only_string(...)) of lm_eval 0.4.13
  test.each([
    ['so \\boxed{\\frac{3}{4}} is it', '\\frac{3}{4}'],
    ['\\boxed{1} and \\boxed{{2}}', '{2}'],
    ['then $\\boxed 7$.', '7'],
    ['\\boxed{\\text{no}} ', '\\text{no}'],
  ])('what is boxed in %s', (solution, expected) => {
    expect(finalAnswer(solution)).toBe(expected);
  });

  test.each([
    ['1,234,567', '1234567'],
    ['1{,}234', '1234'],
    ['$1,234.50$', '1234.5'],
    ['\\frac{3}{4}', '0.75'],
    ['\\dfrac34', '3/4'],
    ['6/8', '\\frac{3}{4}'],
    ['-\\frac{1}{2}', '-0.5'],
    ['\u22125', '-5'],
    ['1\\frac{1}{2}', '1.5'],
    ['1 1/2', '\\frac{3}{2}'],
    ['50%', '0.5'],
    ['50\\%', '50'],
    ['50 percent', '50%'],
    ['1.5e3', '1500'],
    ['2\\times10^{-3}', '0.002'],
    ['12 apples', '12'],
    ['\u20ac5', '5'],
    ['x = 7', '7'],
    ['7.', '7.0'],
    ['.5', '0.50'],
    ['90^\\circ', '90'],
    ['3\\text{ cm}', '3'],
  ])('%s is %s', (found, expected) => {
    expect(isSameAnswer(found, expected, 0)).toBe(true);
    expect(isSameAnswer(expected, found, 0)).toBe(true);
  });

  test.each([
    ['1,23', '123'],
    ['12', '13'],
    ['0.333', '1/3'],
    ['50%', '5'],
    ['50%', '0.5%'],
    ['1/0', '0'],
    ['', '0'],
    ['(1,2)', '12'],
    ['-5', '5'],
    ['1e999', '1e998'],
  ])('%s is not %s', (found, expected) => {
    expect(isSameAnswer(found, expected, 0)).toBe(false);
  });

  test('tolerance is relative', () => {
    expect(isSameAnswer('0.333', '1/3', 0.01)).toBe(true);
    expect(isSameAnswer('0.32', '1/3', 0.01)).toBe(false);
    expect(isSameAnswer('1e-300', '0', 0.5)).toBe(false);
  });

  test.each([
    ['So \\boxed{12} and thus $\\boxed{\\frac{3}{4}}$.', '\\frac{3}{4}'],
    ['\\boxed{x^{2}+{1}} is left', 'x^{2}+{1}'],
    ['48/2 = 24\n#### 1,072', '1,072'],
    ['The answer is $18.', '$18'],
    ['**Answer:** 7 apples, of 10', '7 apples, of 10'],
    ['The answer is 5. No, wait. The final answer is: -6.5 metres per second, I think', '-6.5'],
    ['He has 3 and 4, so 3 + 4 = 7 of them.', '7'],
    ['10-3', '3'],
    ['It costs 1,200.50 euros', '1,200.50'],
    ['I do not know', undefined],
  ])('the final answer of %s', (solution, expected) => {
    const found = finalAnswer(solution);
    if (expected === undefined) expect(found).toBeUndefined();
    else expect(isSameAnswer(found ?? '', expected, 0) || found === expected || expected.startsWith(found ?? '?')).toBe(true);
  }); // prettier-ignore

  test('an expected solution has its own final answer', async () => {
    expect(await score('number', 'The answer is 72.', '48 + 24 = 72\n#### 72')).toEqual({ number: 1 });
    expect(await score('number', 'The answer is 71.', '48 + 24 = 72\n#### 72')).toEqual({ number: 0 });
    expect(await score({ type: 'number', tolerance: 0.1 }, 'about 70', 72)).toEqual({ number: 1 });
  });
});

describe('memorisation', () => {
  // rapidfuzz 3.14.6, distance.Levenshtein.distance
  test.each([
    [[2, 2, 3, 2, 3, 3, 0, 0, 1, 1, 3, 3], [], 12],
    [[3, 0, 3, 0, 1, 3], [1, 1, 2], 5],
    [[3, 1, 1], [2, 2, 2, 3, 3, 3], 5],
    [[2, 1, 3, 1, 0, 3, 0, 3, 2], [0], 8],
    [[0, 0, 2, 3, 1], [3, 3, 2, 1, 2, 1, 1, 1, 0, 3], 8],
    [[], [0], 1],
  ])('edit distance of %j and %j', (a, b, distance) => {
    expect(editDistance(a, b)).toBe(distance);
    expect(editDistance(b, a)).toBe(distance);
  });

  test('exact: all 50; approximate: within 5 edits', () => {
    const suffix = Array.from({ length: 50 }, (_, i) => 100 + i);
    const changed = (n: number) => suffix.map((token, i) => (i % 7 === 0 && i / 7 < n ? 7 : token));
    expect(memorized(suffix, suffix)).toEqual({ exact: true, approximate: true, distance: 0 });
    expect(memorized(changed(5), suffix)).toEqual({ exact: false, approximate: true, distance: 5 });
    expect(memorized(changed(6), suffix)).toEqual({ exact: false, approximate: false, distance: 6 });
    expect(memorized(suffix.slice(2, 48), suffix)).toEqual({ exact: false, approximate: true, distance: 4 });
    expect(memorized([], suffix)).toMatchObject({ exact: false, approximate: false, distance: 50 });
  });
});

test('the table, as text and as Markdown', () => {
  const result: EvaluationResult = {
    models: ['base', 'a|b'],
    tasks: [{ name: 'qa', kind: 'choice', examples: 20 }],
    scores: [
      { model: 'base', task: 'qa', metric: 'acc', value: 0.5, low: 0.3, high: 0.7, n: 20 },
      { model: 'a|b', task: 'qa', metric: 'acc', value: 0.9, low: 0.7, high: 0.97, n: 20 },
      { model: 'base', task: 'text', metric: 'perplexity', value: 12.3456, n: 1 },
    ],
    comparisons: [{ model: 'a|b', baseline: 'base', task: 'qa', metric: 'acc', difference: 0.4, pValue: 0.0078, test: 'mcnemar', n: 20, onlyModel: 8, onlyBaseline: 0 }],
    failures: [{ model: 'base', task: 'qa', failed: 1, message: 'qa.jsonl:3: too long' }],
    examples: 41,
    resumed: 0,
  }; // prettier-ignore
  const text = evaluationTable(result);
  expect(text.split('\n').slice(0, 3)).toEqual([
    `task  metric                        n   ${'base'.padEnd(23)}  a|b`,
    'qa    acc                           20  50.0 % [30.0 %, 70.0 %]  90.0 % [70.0 %, 97.0 %], p = 0.008',
    `text  perplexity (lower is better)  1   ${'12.35'.padEnd(23)}  -`,
  ]);
  expect(text).toContain('base, qa: 1 failed, the first: qa.jsonl:3: too long');
  const markdown = evaluationTable(result, 'markdown').split('\n');
  expect(markdown[0]).toBe('| task | metric | n | base | a\\|b |');
  expect(markdown[1]).toBe('| --- | --- | --- | --- | --- |');
  expect(markdown[2]).toContain('| 50.0 % \\[30.0 %, 70.0 %\\] |');
}); // prettier-ignore
