// Constants that stand on both sides of the border between TypeScript and C++, or twice below native/, are equal. They are found by
// name in whatever file they stand in; one that has another name now is an error of this test.
import * as native from '../../lib/native.js';
import { sources } from './helpers.js';

const texts = (folder: string, name: RegExp): string[] => sources(folder, name).map(({ text }) => text);
const cpp = texts('native', /\.(?:h|hpp|cpp|cc|cu|hip)$/);
const typescript = texts('lib', /\.ts$/);

/** The first group of each match in any of the sources, as a number. */
function definitions(files: readonly string[], pattern: RegExp): number[] {
  return files.flatMap((text) => [...text.matchAll(pattern)].map((match) => Number(match[1]?.replace(/['_]/g, ''))));
}

function inCpp(name: string, files = cpp): number[] {
  return definitions(
    files,
    new RegExp(`\\bconst(?:expr)?\\s+[\\w:]+\\s+${name}\\s*(?:=|\\{)\\s*([\\d']+)\\s*\\}?\\s*;`, 'g'),
  );
}

function inTypescript(name: string): number[] {
  return definitions(typescript, new RegExp(`\\bconst\\s+${name}(?::\\s*number)?\\s*=\\s*([\\d_]+)\\s*;`, 'g'));
}

/** The number that documentation in lib/ names: all texts that match. */
function documented(pattern: RegExp): number[] {
  return definitions(typescript, pattern);
}

/** There is at least one on each side, and all are the same. */
function expectEqual(...sides: number[][]): void {
  for (const side of sides) expect(side.length).toBeGreaterThan(0);
  expect([...new Set(sides.flat())]).toHaveLength(1);
}

test('what is found is what stands there', () => {
  const files = ["inline constexpr int kOne = 65535;\nconstexpr size_t kTwo{1'000};\nstatic_assert(kOne == 7);"];
  expect(inCpp('kTwo', files)).toEqual([1000]);
  expect(inCpp('kOne', files)).toEqual([65535]);
  expect(inCpp('kThree', files)).toEqual([]);
  expect(() => expectEqual([1], [])).toThrow();
  expect(() => expectEqual([1], [2])).toThrow();
  expect(() => expectEqual([1], [NaN])).toThrow();
});

test('pixels of a side', () => expectEqual(inTypescript('MAX_SIDE'), inCpp('kMaxImageSide')));

test('crops of a picture', () => {
  expectEqual(
    inTypescript('MAX_CROPS'),
    inCpp('kMaxCrops'),
    documented(/Instead of Pan & Scan:[^/]*?At most (\d+) tiles/g),
  );
});

test('the default context', () => {
  expectEqual(inCpp('kDefaultContext'), documented(/Default: the model's, at most (\d+)/g));
});

test('the default batch', () => {
  expectEqual(inCpp('kDefaultBatch'), documented(/Rows of a batch, 1 or more\. Default: (\d+)/g));
});

test('candidates of a call, and their tokens', () => {
  expectEqual(inTypescript('MAX_CANDIDATES'), inCpp('kMaxCandidates'), documented(/token ids, 1 to (\d+), together/g));
  expectEqual(
    inTypescript('MAX_CANDIDATE_TOKENS'),
    inCpp('kMaxCandidateTokens'),
    documented(/together at most (\d+) tokens/g),
  );
});

test('requests that are computed together', () => expectEqual(inTypescript('MAX_RUNNING'), inCpp('kMaxRunning')));

test('positions of a page, in the cache and in kernels for GPUs', () => {
  expectEqual(inCpp('kPagePositions'));
  expectEqual(inCpp('kPage'), inCpp('kPagePositions'));
});

describe('markers of a prompt', () => {
  const names = Object.keys(native).filter((name) => name.startsWith('MARKER_'));
  const enums = cpp.flatMap((text) =>
    [...text.matchAll(/\benum class Marker\b[^{]*\{([^}]*)\}/g)].map(([, body]) => body ?? ''),
  );

  test('C++ has one list of them', () => {
    expect(enums).toHaveLength(1);
    const values = [...(enums[0] ?? '').matchAll(/\bk\w+\s*=\s*(\d+)/g)].map(([, value]) => Number(value));
    expect(values.sort()).toEqual([0, 1, 2, 3, 4, 5]);
    expect(names).toHaveLength(values.length);
  });

  test.each(names)('%s', (name) => {
    const words = name.slice('MARKER_'.length).toLowerCase().split('_');
    const inEnum = `k${words.map((word) => word.charAt(0).toUpperCase() + word.slice(1)).join('')}`;
    const value = new RegExp(`\\b${inEnum}\\s*=\\s*(\\d+)`).exec(enums[0] ?? '')?.[1];
    expect(Number(value)).toBe(native[name as keyof typeof native]);
  });
});
