// What is found, and what is not: numbers that only look alike.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { scanFile, scanText, type PersonalDataKind } from '../src/index';

const found = (text: string, countries: string[] = []): [PersonalDataKind, string][] =>
  scanText(text, { countries }).map(({ kind, text: part, start, end }) => {
    expect(text.slice(start, end)).toBe(part);
    return [kind, part];
  });

// Numbers that their issuers publish for tests and examples: of cards, of accounts (the registry of IBAN), of telephones (Ofcom's and NANPA's
// for drama do not count as valid, so a ministry's), of networks (RFC 5737, RFC 3849).
test.each([
  ['Write to ada.lovelace+x@example.co.uk.', 'email', 'ada.lovelace+x@example.co.uk'],
  ['<jörg@exämple.de>', 'email', 'jörg@exämple.de'],
  ['card 4242 4242 4242 4242, thanks', 'credit-card', '4242 4242 4242 4242'],
  ['5555-5555-5555-4444', 'credit-card', '5555-5555-5555-4444'],
  ['378282246310005', 'credit-card', '378282246310005'],
  ['IBAN DE89 3704 0044 0532 0130 00 AND MORE', 'iban', 'DE89 3704 0044 0532 0130 00'],
  ['GB29NWBK60161331926819', 'iban', 'GB29NWBK60161331926819'],
  ['Call +49 30 18 615 0 now', 'phone', '+49 30 18 615 0'],
  ['+1 (202) 456-1111', 'phone', '+1 (202) 456-1111'],
  ['from 203.0.113.7:80', 'ip-address', '203.0.113.7'],
  ['[2001:db8::8a2e:370:7334]', 'ip-address', '2001:db8::8a2e:370:7334'],
] as const)('%s', (text, kind, part) => {
  expect(found(text)).toEqual([[kind, part]]);
});

test.each([
  'no@where',
  'a@b@c',
  'price 4242 4242 4242 4243 in all',
  'DE89 3704 0044 0532 0130 01',
  'version 1.2.3.4.5',
  'at 10:20:30 on 2024-05-06',
  '999.1.1.1',
  '127.0.0.1',
  'pi is 3.14159265358979323846',
  '1234567890123456789012345',
  'ISBN 978-3-16-148410-0',
  '',
])('nothing in: %s', (text) => {
  expect(found(text)).toEqual([]);
});

test('telephone numbers as a country writes them', () => {
  const text = 'Ring 030 18 615-0 today.';
  expect(found(text)).toEqual([]);
  expect(found(text, ['DE'])).toEqual([['phone', '030 18 615-0']]);
  expect(found(text, ['US', 'DE'])).toEqual([['phone', '030 18 615-0']]);
  expect(found('Ring (202) 456-1111.', ['US'])).toEqual([['phone', '(202) 456-1111']]);
});

test('all of a long text, also where it is cut into pieces, and in time that grows with it', () => {
  const number = '+49 30 18 615 0';
  for (const at of [1900, 1925, 1936, 1990, 1999, 2001, 3872]) {
    const text = `${'x '.repeat(at / 2)}${number} ${'y '.repeat(2000)}`;
    expect(found(text)).toEqual([['phone', number]]);
  }
  const start = process.cpuUsage();
  for (const part of ['1', '1 ', 'a@', 'A1', ':', '1.', '+1 ', '(', 'DE00', '@'.repeat(9)]) {
    scanText(part.repeat(Math.ceil(20_000 / part.length)), { countries: ['DE'] });
  }
  // Seconds on a slow machine; one that grows with the square would take minutes.
  expect(process.cpuUsage(start).user).toBeLessThan(30e6);
});

test('kinds, and what is refused', () => {
  const text = 'a@example.com, 203.0.113.7';
  expect(scanText(text, { kinds: ['ip-address'] })).toEqual([{ kind: 'ip-address', text: '203.0.113.7', start: 15, end: 26 }]); // prettier-ignore
  expect(() => scanText(text, { kinds: ['name' as 'email'] })).toThrow(RangeError);
  expect(() => scanText(text, { countries: ['XX'] })).toThrow(RangeError);
  expect(() => scanText(7 as unknown as string)).toThrow(TypeError);
});

test('files of text and of JSON lines', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'gemma-privacy-'));
  try {
    const path = join(folder, 'data.jsonl');
    writeFileSync(
      path,
      '{"messages":[{"content":"nothing"},{"content":"to a@example.com"}],"a/b":"203.0.113.7"}\n[broken a@example.com\nplain b@example.com\n',
    );
    const all = [];
    for await (const { line, path: at, kind, text } of scanFile(path)) all.push([line, at, kind, text]);
    expect(all).toEqual([
      [1, '/messages/1/content', 'email', 'a@example.com'],
      [1, '/a~1b', 'ip-address', '203.0.113.7'],
      [2, undefined, 'email', 'a@example.com'],
      [3, undefined, 'email', 'b@example.com'],
    ]);
    const program = join(__dirname, '..', 'dist', 'main.js');
    const run = (...args: string[]) => spawnSync(process.execPath, [program, ...args], { encoding: 'utf8' });
    expect(run('--kind', 'ip-address', path)).toMatchObject({
      status: 1,
      stdout: `${path}:1 "/a~1b": ip-address "203********"\n`,
      stderr: '1 ip-address\n',
    });
    expect(run('--kind', 'iban', path)).toMatchObject({ status: 0, stdout: '', stderr: 'nothing found\n' });
    expect(run('--kind', 'name', path).status).toBe(2);
    expect(run(join(folder, 'none')).status).toBe(2);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
