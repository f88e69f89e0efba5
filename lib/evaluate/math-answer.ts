// Final answers of worked solutions, and whether two are the same. Where an answer stands: MATH's \boxed{...} (Hendrycks et al., Measuring
// Mathematical Problem Solving With the MATH Dataset, 2021, math_equivalence.py), GSM8K's "#### 72", "the answer is ...", else the last number. Numbers
// are compared as fractions, exactly; what is no number as text, after what MATH's is_equiv leaves out.

interface Rational {
  numerator: bigint;
  denominator: bigint;
  isPercentage: boolean;
}

const MAX_NUMBER = 400; // characters
const MAX_EXPONENT = 400;

const DECIMAL = String.raw`(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+`;
const EXPONENT = String.raw`(?:[eE]([-+]?\d{1,3})|\\(?:times|cdot)10\^(?:\{([-+]?\d{1,3})\}|(\d)))?`;
const NUMBER = new RegExp(`^(${DECIMAL})${EXPONENT}$`);
const FRACTION = /^(\d*)\\frac(?:\{([^{}]+)\}|(\d))(?:\{([^{}]+)\}|(\d))$/;
const MIXED = /^([-+]?)(\d+)\s+(\d+\/\d+)$/;

/** A number as it may stand in running text. */
const IN_TEXT = new RegExp(
  String.raw`(?:(?<![\d.)}])[-+])?\\?[$£€¥]?(?:\\[dt]?frac(?:\{[^{}]{1,60}\}|\d){2}|(?:${DECIMAL})(?:[eE][-+]?\d{1,3})?(?:\s?/\s?(?:${DECIMAL}))?)(?:\s?\\?%)?`,
  'g',
);

/** Leaves out what says nothing about the value. */
function bare(text: string): string {
  return text
    .replace(/[\u2212\u2013]/g, '-')
    .replace(/\\[!,;: ]|~|\\(?:left|right)(?![a-zA-Z])|\\displaystyle/g, (spacing) => (spacing === '~' ? ' ' : ''))
    .replaceAll('{,}', ',')
    .replace(/\\[dt]frac/g, '\\frac')
    .replace(/\^(?:\{\\circ\}|\\circ)|\\degree|°/g, '')
    .replace(/\\(?:text|mathrm|mbox)\{\s[^{}]*\}/g, '') // units; without a space the text is the answer
    .replace(/\\?[$£€¥]/g, '')
    .replace(/^\s*\\\(|\\\)\s*$/g, '')
    .trim();
}

const powerOfTen = (exponent: number): bigint => 10n ** BigInt(exponent);

function scaled(numerator: bigint, denominator: bigint, exponent: number): [bigint, bigint] {
  return exponent < 0
    ? [numerator, denominator * powerOfTen(-exponent)]
    : [numerator * powerOfTen(exponent), denominator];
}

/** Without a sign: a decimal number, or a fraction of two. */
function magnitude(text: string): [numerator: bigint, denominator: bigint] | undefined {
  const plain = NUMBER.exec(text);
  if (plain) {
    const [, digits = '', ...exponents] = plain;
    const exponent = Number(exponents.find((found) => found !== undefined) ?? 0);
    if (Math.abs(exponent) > MAX_EXPONENT) return undefined;
    const [whole = '', fraction = ''] = digits.replaceAll(',', '').split('.');
    return scaled(BigInt(`0${whole}${fraction}`), 1n, exponent - fraction.length);
  }
  const slash = text.split('/');
  if (slash.length === 2) return quotient(slash[0] ?? '', slash[1] ?? '');
  const [, whole = '', a, b, c, d] = FRACTION.exec(text) ?? [];
  const part = quotient(a ?? b ?? '', c ?? d ?? '');
  return part && [BigInt(`0${whole}`) * part[1] + part[0], part[1]];
}

function quotient(above: string, below: string): [bigint, bigint] | undefined {
  const a = NUMBER.test(above) && magnitude(above);
  const b = NUMBER.test(below) && magnitude(below);
  if (!a || !b || b[0] === 0n) return undefined;
  return [a[0] * b[1], a[1] * b[0]];
}

/** The number that a text is, with a unit behind it where there is one. */
function numberOf(text: string): Rational | undefined {
  if (text.length > MAX_NUMBER) return undefined;
  let left = bare(text).replace(/\.$/, '');
  const equals = left.split('=');
  if (equals.length === 2 && (equals[0] ?? '').trim().length <= 2) left = (equals[1] ?? '').trim(); // "x = 5", as MATH does
  left = left.replace(/(?<=[\d}])\s+[a-zA-Z][a-zA-Z ]*$/, (unit) => (/^\s*percent\s*$/i.test(unit) ? '%' : ''));
  const isPercentage = /\\?%$/.test(left);
  if (isPercentage) left = left.replace(/\s*\\?%$/, '');
  const mixed = MIXED.exec(left);
  if (mixed) left = `${mixed[1]}${mixed[2]}\\frac{${(mixed[3] ?? '').replace('/', '}{')}}`;
  left = left.replace(/\s+/g, '');
  const [, sign = '', rest = ''] = /^([-+]?)(.*)$/s.exec(left) ?? [];
  const found = magnitude(rest);
  return found && { numerator: sign === '-' ? -found[0] : found[0], denominator: found[1], isPercentage };
}

/** The contents of the last \boxed{...} or \fbox{...}, braces in balance; undefined where there is none. */
function lastBoxed(text: string): string | undefined {
  const at = Math.max(text.lastIndexOf('\\boxed'), text.lastIndexOf('\\fbox'));
  if (at < 0) return undefined;
  const begin = at + (text.startsWith('\\boxed', at) ? '\\boxed' : '\\fbox').length;
  if (text[begin] === ' ') return text.slice(begin + 1).split('$')[0];
  let depth = 0;
  for (let i = begin; i < text.length; ++i) {
    if (text[i] === '{') ++depth;
    else if (text[i] === '}' && --depth === 0) return text.slice(begin + 1, i);
  }
  return undefined;
}

const firstNumber = (text: string): string | undefined => new RegExp(IN_TEXT.source).exec(text)?.[0];

// What follows on the same line: all of it if it is a number, or the first number in it.
function stated(rest: string): string {
  const line = (/^[\s:*=]*([^\n]*)/.exec(rest)?.[1] ?? '').replace(/\*+/g, '').trim();
  return numberOf(line) ? line : (firstNumber(line) ?? line.replace(/\.$/, ''));
}

/** The final answer of a solution: of the places that the file's head lists, the first that is there. Undefined: there is no number at all. */
export function finalAnswer(solution: string): string | undefined {
  const boxed = lastBoxed(solution);
  if (boxed !== undefined) return boxed.trim();
  const marked = solution.lastIndexOf('####');
  if (marked >= 0) return stated(solution.slice(marked + 4));
  const said = [...solution.matchAll(/\banswer(?:\s+is\b|\s*:)/gi)].at(-1);
  if (said) return stated(solution.slice(said.index + said[0].length));
  return [...solution.matchAll(IN_TEXT)].at(-1)?.[0];
}

const absolute = (value: bigint): bigint => (value < 0n ? -value : value);

const TOLERANCE_STEPS = 10 ** 15; // in a unit

function isSameNumber(a: Rational, b: Rational, tolerance: number): boolean {
  const steps = BigInt(Math.round(tolerance * TOLERANCE_STEPS));
  // |x - y| <= tolerance |y|, times both denominators.
  const isSame = (x: Rational, y: Rational) =>
    absolute(x.numerator * y.denominator - y.numerator * x.denominator) * BigInt(TOLERANCE_STEPS) <=
    steps * absolute(y.numerator) * x.denominator;
  if (isSame(a, b)) return true;
  // "50 %" is a half, and MATH leaves the sign out: 50.
  const asHundredths = (x: Rational): Rational => ({ ...x, denominator: x.denominator * 100n });
  return (
    a.isPercentage !== b.isPercentage && (a.isPercentage ? isSame(asHundredths(a), b) : isSame(a, asHundredths(b)))
  );
}

/** What MATH's is_equiv compares, but for numbers. */
function comparable(text: string): string {
  let left = bare(text).replaceAll('\\\\', '\\').replace(/\\?%/g, '');
  const equals = left.split('=');
  if (equals.length === 2 && (equals[0] ?? '').trim().length <= 2) left = equals[1] ?? '';
  return left
    .replace(/\s+/g, '')
    .replace(/\\sqrt(\w)/g, '\\sqrt{$1}')
    .replace(/\\frac(\w)(\w)/g, '\\frac{$1}{$2}')
    .replace(/\\frac(\w)\{/g, '\\frac{$1}{')
    .replace(/^(-?\d+)\/(-?\d+)$/, '\\frac{$1}{$2}')
    .replace(/(^|\{)\./g, '$10.')
    .replace(/\.$/, '');
}

/**
 * Whether two answers are the same: numbers by their value (within `tolerance` of the second, relative), with thousands separators,
 * fractions, powers of ten, percentages, currencies and units; else by their text.
 */
export function isSameAnswer(found: string, expected: string, tolerance: number): boolean {
  const a = numberOf(found);
  const b = numberOf(expected);
  if (a && b) return isSameNumber(a, b, tolerance);
  return comparable(found) === comparable(expected);
}
