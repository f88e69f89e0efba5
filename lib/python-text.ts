// Python's text functions, which chat templates are written for.

// What str.strip() takes away; JavaScript's trim() differs in U+FEFF and U+001C..U+001F, U+0085.
const BLANK = '\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000';
const IS_BLANK = new RegExp(`[${BLANK}]`);
export const WORD = new RegExp(`[^${BLANK}]+`, 'g');

const isBlank = (character: string) => IS_BLANK.test(character);

/** str.lstrip(): without the characters at the start that are blank, or one of `characters`. */
export function stripStart(text: string, characters?: string): string {
  const goes = characters === undefined ? isBlank : oneOf(characters);
  let begin = 0;
  for (const character of text) {
    if (!goes(character)) break;
    begin += character.length;
  }
  return text.slice(begin);
}

/** str.rstrip(): without the characters at the end that are blank, or one of `characters`. */
export function stripEnd(text: string, characters?: string): string {
  const goes = characters === undefined ? isBlank : oneOf(characters);
  let end = text.length; // a regular expression would backtrack quadratically
  while (end > 0) {
    const isPair = end > 1 && (text.codePointAt(end - 2) ?? 0) > 0xffff;
    const character = text.slice(isPair ? end - 2 : end - 1, end);
    if (!goes(character)) break;
    end -= character.length;
  }
  return text.slice(0, end);
}

/** str.strip() */
export function strip(text: string, characters?: string): string {
  return stripEnd(stripStart(text, characters), characters);
}

function oneOf(characters: string): (character: string) => boolean {
  const set = new Set(characters);
  return (character) => set.has(character);
}

/** repr() of a str. */
export function quoted(text: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const escaped = text.replace(/[\\'"]|(?! )[\p{C}\p{Z}]/gu, (character) => {
    if (character === '"' || character === "'") return character === quote ? `\\${character}` : character;
    const named = { '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t' }[character];
    if (named !== undefined) return named;
    const code = character.codePointAt(0) ?? 0;
    const hex = code.toString(16);
    if (code < 0x100) return `\\x${hex.padStart(2, '0')}`;
    return code < 0x10000 ? `\\u${hex.padStart(4, '0')}` : `\\U${hex.padStart(8, '0')}`;
  });
  return quote + escaped + quote;
}

/** repr() of a float: the shortest digits, as JavaScript's, but an exponent from 1e16 and below 1e-4. */
export function floatText(value: number): string {
  if (Number.isNaN(value)) return 'nan';
  if (!Number.isFinite(value)) return value > 0 ? 'inf' : '-inf';
  if (value === 0) return Object.is(value, -0) ? '-0.0' : '0.0';
  const [digits = '', exponent = '0'] = value.toExponential().split('e');
  const power = Number(exponent);
  if (power < -4 || power >= 16) return `${digits}e${power < 0 ? '-' : '+'}${String(Math.abs(power)).padStart(2, '0')}`;
  if (power >= 0) return Number.isInteger(value) ? `${value}.0` : String(value);
  const sign = value < 0 ? '-' : '';
  return `${sign}0.${'0'.repeat(-power - 1)}${digits.replace(/[-.]/g, '')}`;
}
