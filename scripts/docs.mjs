// npm run docs: the guides and the API's reference as a site in docs/site, then every link that stays within it, or within the
// repository's own pages, is followed: the file must be there, and the place in it.
import { existsSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { main, root, run, SetupError } from './steps.mjs';

/** The repository's own pages outside docs/guides. */
const PAGES = [
  'README.md',
  'ARCHITECTURE.md',
  'CONTRIBUTING.md',
  'SECURITY.md',
  'CHANGELOG.md',
  'docs/README.md',
  'examples/README.md',
  'examples/electron/README.md',
  'examples/mcp/README.md',
  'packages/ai-sdk/README.md',
  'packages/langchain/README.md',
  'packages/privacy/README.md',
  'training/README.md',
];

function filesBelow(folder, extension) {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith(extension))
    .map((name) => join(folder, name));
}

// GitHub's anchors of headings.
function anchorsOfMarkdown(text) {
  return [...text.matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  );
}

function anchorsOf(file) {
  const text = readFileSync(file, 'utf8');
  return file.endsWith('.md') ? anchorsOfMarkdown(text) : [...text.matchAll(/\sid="([^"]+)"/g)].map(([, id]) => id);
}

function linksOf(file) {
  const text = readFileSync(file, 'utf8');
  const links = file.endsWith('.md')
    ? text.replace(/```[\s\S]*?```/g, '').matchAll(/\]\(([^)\s]+)\)/g)
    : text.matchAll(/\s(?:href|src)="([^"]+)"/g);
  return [...links].map(([, link]) => link.replaceAll('&amp;', '&'));
}

function brokenLinks(file) {
  return linksOf(file).filter((link) => {
    if (/^[a-z][a-z+.-]*:/i.test(link)) return false; // of others
    const [path, anchor] = link.split('#').map(decodeURIComponent);
    const target = path ? resolve(dirname(file), path) : file;
    if (!existsSync(target)) return true;
    return Boolean(anchor) && statSync(target).isFile() && !anchorsOf(target).includes(anchor);
  });
}

await main(async () => {
  const site = join(root, 'docs', 'site');
  rmSync(site, { recursive: true, force: true });
  await run(process.execPath, [join(root, 'node_modules', 'typedoc', 'bin', 'typedoc'), '--logLevel', 'Warn']);
  const pages = [
    ...filesBelow(site, '.html'),
    ...filesBelow(join(root, 'docs', 'guides'), '.md'),
    ...PAGES.map((name) => join(root, name)),
  ];
  const broken = pages.flatMap((page) => brokenLinks(page).map((link) => `${relative(root, page)}: ${link}`));
  if (broken.length > 0) throw new SetupError(`broken links:\n${broken.map((line) => `  ${line}`).join('\n')}`);
  process.stdout.write(`${pages.length} pages, all links lead somewhere\n`);
});
