// ARCHITECTURE.md's table of folders says who may include whom. This test reads the table and holds every include and every import
// against it, so that the document cannot drift from the code.
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { root, type Source, sources } from './helpers.js';

/** For each folder of native/ the folders, or single headers, that it may include besides itself. */
function allowedIncludes(document: string): Map<string, string[]> {
  const allowed = new Map<string, string[]>();
  for (const [, folder, column] of document.matchAll(/^\| `native\/(\w+)\/` \|[^\n]*\| ([^|\n]*) \|$/gm)) {
    const words = column!.split(',').map((word) => word.trim().replaceAll('`', ''));
    allowed.set(
      folder!,
      words.flatMap((word) => {
        if (word === 'the standard library') return [];
        return word === 'all above' ? [...allowed.keys()] : [word];
      }),
    );
  }
  return allowed;
}

/** The includes of our own headers that the table does not allow, as "file -> header". */
function violations(files: readonly Source[], allowed: ReadonlyMap<string, readonly string[]>): string[] {
  return files.flatMap(({ path, text }) => {
    const folder = path.split('/')[1]!;
    const mine = allowed.get(folder);
    if (!mine) return [`${path}: native/${folder}/ is not in the table`];
    return [...text.matchAll(/^\s*#\s*include\s*"([^"]+)"/gm)]
      .map((match) => match[1]!)
      .filter((header) => {
        const [other, ...rest] = header.split('/');
        // Paths start at native/, so that everybody sees whose header it is.
        if (rest.length === 0) return !mine.includes(other!);
        return other !== folder && !mine.includes(other!) && !mine.includes(rest.join('/'));
      })
      .map((header) => `${path} -> ${header}`);
  });
}

const architecture = readFileSync(join(root, 'ARCHITECTURE.md'), 'utf8');
const native = sources('native', /\.(?:h|cpp|cu)$/);
const allowed = allowedIncludes(architecture);

test('the table names the folders of native/ and nothing else', () => {
  expect([...allowed.keys()].toSorted()).toEqual([...new Set(native.map(({ path }) => path.split('/')[1]))].toSorted());
  expect(allowed.get('base')).toEqual([]);
  for (const [folder, others] of allowed) {
    for (const other of others) {
      if (!other.endsWith('.h'))
        expect([folder, [...allowed.keys()]]).toEqual([folder, expect.arrayContaining([other])]);
    }
  }
});

test('what the table forbids is found', () => {
  const table = allowedIncludes('| `native/a/` | x | the standard library |\n| `native/b/` | x | `c.h`, a |\n');
  const file = (path: string, header: string): Source => ({ path, text: `#pragma once\n#include "${header}"\n` });
  expect(violations([file('native/a/x.h', 'b/y.h')], table)).toEqual(['native/a/x.h -> b/y.h']);
  expect(violations([file('native/a/x.h', 'y.h')], table)).toEqual(['native/a/x.h -> y.h']);
  expect(violations([file('native/c/x.h', 'a/y.h')], table)).toHaveLength(1);
  expect(violations([file('native/b/x.h', 'a/y.h'), file('native/b/x.h', 'c/c.h')], table)).toEqual([]);
});

test('every include of native/ is allowed', () => {
  expect(violations(native, allowed)).toEqual([]);
});

// In code for another system no compiler here would see them.
test('no merge has left its marks', () => {
  const marks = /^(?:<{7} |={7}$|>{7} )/m;
  expect(marks.test('a\n<<<<<<< HEAD\nb')).toBe(true);
  expect(native.filter(({ text }) => marks.test(text)).map(({ path }) => path)).toEqual([]);
});

test('backends do not include each other', () => {
  const inBackend = native.filter(({ path }) => path.startsWith('native/backend/'));
  const shared = inBackend.map(({ path }) => path.split('/').slice(2)).filter((names) => names.length === 1);
  const others = ['base', 'quant', ...shared.flat()];
  expect(others).toContain('backend.h');
  const table = new Map([
    ['cpu', others],
    ['gpu', others],
  ]);
  const files = inBackend
    .filter(({ path }) => path.split('/').length > 3)
    .map(({ path, text }) => ({ path: path.replace('backend/', ''), text: text.replaceAll('"backend/', '"') }));
  expect(files.length).toBeGreaterThan(20);
  expect(violations(files, table)).toEqual([]);
});

test('only the binding knows Node-API, and only native.ts loads an addon', () => {
  const napi = native.filter(({ text }) => /#\s*include\s*[<"](?:napi|node_api|uv|v8)\.h/.test(text));
  expect(napi.length).toBeGreaterThan(0);
  expect(napi.filter(({ path }) => !path.startsWith('native/binding/'))).toEqual([]);
  const loaders = sources('lib', /\.m?ts$/).filter(({ text }) => /from 'node-gyp-build'|\bas NativeAddon\b/.test(text));
  expect(loaders.map(({ path }) => path)).toEqual(['lib/native.ts']);
});

test('the library does not know its command line, and its files do not import each other in circles', () => {
  const lib = sources('lib', /\.m?ts$/);
  // Imports of types leave nothing behind, so they make no circles.
  const imports = new Map(
    lib.map(({ path, text }) => [
      path,
      // Those that are loaded later (require) count as well.
      [...text.matchAll(/(?:^(?:import|export)\s+(?!type\b)[^;]*?from |\brequire\()'(\.[^']+)'/gm)].map((match) =>
        join(dirname(path), match[1]!)
          .replaceAll('\\', '/')
          .replace(/\.m?js$/, (end) => end.replace('js', 'ts')),
      ),
    ]),
  );
  expect([...imports.values()].flat().filter((path) => !imports.has(path))).toEqual([]);
  const above = [...imports].filter(([path]) => !path.startsWith('lib/cli/'));
  expect(above.filter(([, others]) => others.some((other) => other.startsWith('lib/cli/')))).toEqual([]);
  // Whatever imports nothing that is left is taken away; a circle stays.
  const left = new Map(imports);
  for (let size = -1; size !== left.size;) {
    size = left.size;
    for (const [path, others] of left) if (!others.some((other) => left.has(other))) left.delete(path);
  }
  expect([...left.keys()]).toEqual([]);
});
