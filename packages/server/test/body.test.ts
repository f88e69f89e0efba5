// Bodies that are parsed in pieces, beside JSON.parse.
import { parseJson } from '../src/body.js';
import { seededRandom } from '../../../lib/random.js';
import { rejection } from '../../../test/api/helpers.js';

const PIECES = [
  'a',
  'b',
  'c',
  '/',
  '\\\\',
  '\\"',
  '\\n',
  '\\u0041',
  '\\ud83d',
  '\\ude00',
  'é',
  '€',
  '😀',
  ',',
  ']',
  '}',
  '\u2028',
];
const ATOMS = ['0', '-1.5e3', 'true', 'false', 'null', '""', '[]', '{}', '[ ]', '123456789012345678901234567890'];
const KEYS = ['a', 'b', '1', '0', '__proto__', 'constructor', '', 'a long name that is a piece of its own', 'toString'];

function jsonText(random: () => number, depth: number): string {
  const pick = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)] as T;
  const blank = () => (random() < 0.2 ? pick([' ', '\n', '\t ', '\r\n']) : '');
  const several = (make: () => string) => Array.from({ length: Math.floor(random() * 5) }, make).join(',');
  const text = (n: number) => `"${Array.from({ length: Math.floor(random() * n) }, () => pick(PIECES)).join('')}"`;
  const plain = () => `"${'QUJD'.repeat(Math.floor(random() * 30))}"`; // as base64
  const value = (): string => {
    const kind = depth > 0 ? random() : random() * 0.5;
    if (kind < 0.25) return pick(ATOMS);
    if (kind < 0.3) return plain();
    if (kind < 0.5) return text(random() < 0.3 ? 80 : 6);
    if (kind < 0.75) return `[${several(() => blank() + jsonText(random, depth - 1))}${blank()}]`;
    const name = () => (random() < 0.2 ? text(60) : JSON.stringify(pick(KEYS)));
    return `{${several(() => `${blank()}${name()}${blank()}:${jsonText(random, depth - 1)}`)}${blank()}}`;
  };
  return blank() + value() + blank();
}

// With where a key of prototypes went, which toEqual does not see.
function shape(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return value.map(shape);
  return [
    Object.getPrototypeOf(value) === Object.prototype,
    Object.entries(value).map(([key, item]) => [key, shape(item)]),
  ];
}

function expected(json: string): unknown {
  try {
    return [shape(JSON.parse(json))];
  } catch {
    return 'no JSON';
  }
}

async function found(json: string, piece?: number): Promise<unknown> {
  try {
    return [shape(await parseJson(Buffer.from(json), piece))];
  } catch (error) {
    expect(error).toMatchObject({ status: 400, code: 'invalid_json' });
    return 'no JSON';
  }
}

describe('bodies in pieces', () => {
  test('are what JSON.parse makes of them', async () => {
    const random = seededRandom(5);
    let longest = 0;
    for (let i = 0; i < 3000; ++i) {
      const json = jsonText(random, 5);
      longest = Math.max(longest, json.length);
      expect([json, await found(json, 16 + (i % 31))]).toEqual([json, expected(json)]);
    }
    expect(longest).toBeGreaterThan(1000);
  });

  test('are refused where JSON.parse refuses them', async () => {
    const random = seededRandom(7);
    const noise = [',', ':', '"', '[', ']', '{', '}', '\\', '0', ' ', '\n', 'n', '-', '\u0001'];
    let refused = 0;
    for (let i = 0; i < 6000; ++i) {
      const json = jsonText(random, 4);
      const at = Math.floor(random() * (json.length + 1));
      const put = noise[Math.floor(random() * noise.length)] as string;
      const removed = Math.floor(random() * 3);
      const changed = json.slice(0, at) + (random() < 0.6 ? put : '') + json.slice(at + removed);
      if (changed === '' || Buffer.from(changed).toString() !== changed) continue; // half of a character
      const right = expected(changed);
      refused += right === 'no JSON' ? 1 : 0;
      expect([changed, await found(changed, 16 + (i % 31))]).toEqual([changed, right]);
    }
    expect(refused).toBeGreaterThan(1000);
  });

  test('may be large: pictures, many texts, many numbers', async () => {
    const picture = 'QUJD'.repeat(3e6);
    const texts = Array.from({ length: 2000 }, (_, i) => `${i}: "é"\n`.repeat(200));
    for (const value of [{ messages: [{ content: picture }, { content: picture }] }, texts, Array(4e5).fill(17)]) {
      expect(await parseJson(Buffer.from(JSON.stringify(value)))).toEqual(value);
    }
  });

  test('let others have their turns', async () => {
    let turns = 0;
    const counting = setInterval(() => ++turns, 0);
    try {
      const bodies = Array.from({ length: 4 }, () => Buffer.from(JSON.stringify({ x: 'A'.repeat(8 << 20) })));
      await Promise.all(bodies.map((body) => parseJson(body)));
    } finally {
      clearInterval(counting);
    }
    expect(turns).toBeGreaterThan(0);
  });

  test('have names of a bounded length', async () => {
    const named = (length: number) => parseJson(Buffer.from(JSON.stringify({ ['x'.repeat(length)]: 1 })));
    expect(Object.keys((await named(1 << 20)) as object)).toHaveLength(1);
    expect(await rejection(named(3 << 20))).toMatchObject({ code: 'invalid_json' });
  });
});
