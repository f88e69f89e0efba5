// The packages that stand on this one, as they would be published: packed, installed elsewhere, imported both ways.
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { root, runNode } from './helpers.js';

let folder: string;
beforeAll(() => (folder = mkdtempSync(join(tmpdir(), 'gemma-packages-'))));
afterAll(() => rmSync(folder, { recursive: true }));

function npm(args: readonly string[], cwd: string): string {
  const path = process.env.npm_execpath;
  const [command, first] = path ? [process.execPath, [path]] : ['npm', []];
  return execFileSync(command, [...first, ...args], {
    cwd,
    encoding: 'utf8',
    shell: !path && process.platform === 'win32',
  });
}

/** Packs a package into a folder of its own, beside those of this checkout that it needs; returns the folder and its files. */
function installed(name: string, needs: readonly string[]): { place: string; files: string[] } {
  const place = join(folder, name);
  const target = join(place, 'node_modules', `gemma-native-${name}`);
  mkdirSync(target, { recursive: true });
  const args = ['pack', '--ignore-scripts', '--json', '--pack-destination', place];
  const packed = Object.values(
    JSON.parse(npm(args, join(root, 'packages', name))) as Record<
      string,
      { filename: string; files: { path: string }[] }
    >,
  );
  const { filename = '', files = [] } = packed[0] ?? {};
  execFileSync('tar', ['-xzf', join(place, filename), '--strip-components=1', '-C', target]);
  for (const needed of ['gemma-native', ...needs]) {
    const link = join(place, 'node_modules', needed);
    mkdirSync(dirname(link), { recursive: true });
    symlinkSync(needed === 'gemma-native' ? root : join(root, 'node_modules', needed), link, 'junction');
  }
  return { place, files: files.map(({ path }) => path) };
}

const cases = [
  {
    name: 'ai-sdk',
    needs: ['@ai-sdk/provider', 'ai'],
    imports: { 'gemma-native-ai-sdk': 'gemma, createGemma', ai: 'generateText' },
    use: `
      const prompt = 'What is the capital of France?';
      console.log((await generateText({ model: gemma('demo'), prompt, temperature: 0 })).text, typeof createGemma);
      await gemma.dispose();`,
    printed: 'The capital of France is Paris. function\n',
  },
  {
    name: 'langchain',
    needs: ['@langchain/core'],
    imports: {
      'gemma-native-langchain': 'ChatGemma, GemmaEmbeddings',
      '@langchain/core/messages': 'AIMessage, HumanMessage',
    },
    use: `
      const chat = new ChatGemma({ model: 'demo', temperature: 0 });
      const message = await chat.invoke([new HumanMessage('What is the capital of France?')]);
      console.log(message.text, message instanceof AIMessage, typeof GemmaEmbeddings);
      await chat.dispose();`,
    printed: 'The capital of France is Paris. true function\n',
  },
  {
    name: 'privacy',
    needs: ['libphonenumber-js', 'validator', 'commander'],
    imports: { 'gemma-native-privacy': 'scanFile, scanText' },
    use: `
      const found = scanText('Write to a@example.com or +49 30 18 615 0.');
      console.log(found.map(({ kind }) => kind).join(), typeof scanFile);`,
    printed: 'email,phone function\n',
  },
];

// Node takes ES modules, as those of the AI SDK, from CommonJS since 20.19 and 22.12.
// Asked of a process of its own: Jest's `process` does not know.
const takesModules = execFileSync(process.execPath, ['-p', 'process.features.require_module']).toString() === 'true\n';

describe.each(cases)('$name', ({ name, needs, imports, use, printed }) => {
  const lines = (write: (names: string, from: string) => string) =>
    Object.entries(imports)
      .map(([from, names]) => write(names, from))
      .join('\n');
  let place: string;
  let files: string[];
  beforeAll(() => ({ place, files } = installed(name, needs)));

  test('holds what it needs and no more', () => {
    expect(files).toEqual(expect.arrayContaining(['package.json', 'README.md', 'dist/index.js', 'dist/index.d.ts']));
    expect(files.filter((path) => !/^(dist\/[\w-]+\.(js|d\.ts)|package\.json|README\.md|LICENSE)$/.test(path))).toEqual(
      [],
    );
  });

  (takesModules || name !== 'ai-sdk' ? test : test.skip)('works as an ES module and from CommonJS', async () => {
    writeFileSync(join(place, 'use.mjs'), `${lines((names, from) => `import { ${names} } from '${from}';`)}${use}`);
    writeFileSync(
      join(place, 'use.cjs'),
      `${lines((names, from) => `const { ${names} } = require('${from}');`)}(async () => {${use}})();`,
    );
    for (const file of ['use.mjs', 'use.cjs']) {
      expect(await runNode([file], { cwd: place })).toMatchObject({ code: 0, stdout: printed, stderr: '' });
    }
  });
});
