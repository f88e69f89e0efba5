// Personal data in a text. Whether something is a telephone number, a card or an account is said by libphonenumber (Google's metadata) and by
// validator (checksums, issuers, lengths of countries); here stands only where in a text such a thing may be.
import { findPhoneNumbersInText, isSupportedCountry } from 'libphonenumber-js/max';
import validator from 'validator';

export const KINDS = ['email', 'phone', 'credit-card', 'iban', 'ip-address'] as const;
export type PersonalDataKind = (typeof KINDS)[number];

export interface PersonalData {
  kind: PersonalDataKind;
  text: string;
  /** in the text that was scanned, in UTF-16 code units; `end` is behind it */
  start: number;
  end: number;
}

export interface ScanOptions {
  /** What is looked for. Default: all kinds. */
  kinds?: readonly PersonalDataKind[];
  /**
   * Countries, by ISO 3166-1's two letters, whose telephone numbers are also found as they are written at home, without +49 or the like.
   * At most 20. Default: none, so only international ones are found.
   */
  countries?: readonly string[];
}

// Every pattern has a bound on what it looks at from one place, so the time is linear in the text.
const CANDIDATES: Record<Exclude<PersonalDataKind, 'phone'>, RegExp> = {
  email: /[^\s<>()[\]{}"',;:|\\/=@]{1,64}@[\p{L}\p{N}.-]{1,253}/gu,
  'credit-card': /(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d-])/g,
  iban: /(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}/g,
  'ip-address': /(?<![\w.:])(?:(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)|(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:]))/gi,
};

const isNone = (address: string): boolean => /^(?:[0:]+|0\.0\.0\.0|127\.0\.0\.1|::1)$/.test(address);

/** The part of a candidate, from its beginning, that is one; '' if none is. */
function confirmed(kind: Exclude<PersonalDataKind, 'phone'>, candidate: string): string {
  switch (kind) {
    case 'email': {
      const found = candidate.replace(/[.-]+$/, '');
      return validator.isEmail(found) ? found : '';
    }
    case 'credit-card':
      return validator.isCreditCard(candidate) ? candidate : '';
    case 'iban': {
      // Words in capitals may follow: the country says how long it is, so at most one length is right.
      for (let end = candidate.length; end >= 15; --end) {
        const found = candidate.slice(0, end);
        if (/[A-Z0-9]$/.test(found) && validator.isIBAN(found)) return found;
      }
      return '';
    }
    case 'ip-address':
      return validator.isIP(candidate) && !isNone(candidate) ? candidate : '';
  }
}

// libphonenumber is given a text in pieces: its time grows faster than the text.
const PIECE = 2000;
const OVERLAP = 64; // no number is longer

function* phones(text: string, countries: readonly string[]): Generator<PersonalData> {
  const seen = new Set<number>();
  for (let from = 0; from < text.length; from += PIECE - OVERLAP) {
    const piece = text.slice(from, from + PIECE);
    if (!/\d{3}/.test(piece.replace(/[\s().-]/g, ''))) continue;
    for (const country of [undefined, ...countries]) {
      const options = { ...(country !== undefined && { defaultCountry: country as 'US' }) };
      for (const { startsAt, endsAt, number } of findPhoneNumbersInText(piece, options)) {
        const start = from + startsAt;
        if (!number.isValid() || seen.has(start)) continue;
        // One that the piece cuts is whole in the next.
        if (endsAt === piece.length && from + PIECE < text.length) continue;
        seen.add(start);
        yield { kind: 'phone', text: piece.slice(startsAt, endsAt), start, end: from + endsAt };
      }
    }
  }
}

/**
 * Finds personal data: email addresses, telephone numbers, payment cards, bank accounts (IBAN) and addresses of computers, each checked by what its
 * standard lets be checked. In the order of the text; where two overlap, the longer one. Names, postal addresses, dates of birth
 * and national identity numbers are not found: that nothing is found proves nothing.
 *
 * @throws TypeError, RangeError
 */
export function scanText(text: string, options: ScanOptions = {}): PersonalData[] {
  if (typeof text !== 'string') throw new TypeError(`text: expected a string, found ${typeof text}`);
  const { kinds = KINDS, countries = [] } = options;
  for (const kind of kinds) {
    if (!KINDS.includes(kind))
      throw new RangeError(`kinds: expected some of ${KINDS.join(', ')}, found ${String(kind)}`);
  }
  if (countries.length > 20) throw new RangeError(`countries: expected at most 20, found ${countries.length}`);
  for (const country of countries) {
    if (!isSupportedCountry(country))
      throw new RangeError(`countries: unknown country ${String(country).slice(0, 20)}`);
  }
  const found: PersonalData[] = [];
  for (const kind of kinds) {
    if (kind === 'phone') {
      found.push(...phones(text, countries));
      continue;
    }
    for (const match of text.matchAll(CANDIDATES[kind])) {
      const part = confirmed(kind, match[0]);
      if (part !== '') found.push({ kind, text: part, start: match.index, end: match.index + part.length });
    }
  }
  const kept: PersonalData[] = [];
  for (const one of found.sort((a, b) => a.start - b.start || b.end - a.end)) {
    const last = kept.at(-1);
    if (!last || one.start >= last.end) kept.push(one);
    else if (one.end - one.start > last.end - last.start) kept[kept.length - 1] = one;
  }
  return kept;
}
