// Malformed files of checkpoints and adapters: all cases of the tables beside, and what is no file where one is expected.
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ggufAdapters, peftConfigurations, peftTensors } from './malformed-adapter.js';
import { besides, configurations, shards, weights } from './malformed-checkpoint.js';
import {
  type Case,
  INVALID,
  ADAPTER,
  Maker,
  shardName,
  CONFIG,
  GENERATION,
  TOKENIZER,
  TOKENIZER_CONFIG,
  WEIGHTS,
  PEFT_CONFIG,
  PEFT_TENSORS,
} from './malformed-maker.js';
import { sentencePieces, tokenizers } from './malformed-tokenizer.js';

/** All cases; their files lie in `folder` afterwards. */
export function malformedFiles(): { folder: string; cases: Case[] } {
  const folder = mkdtempSync(join(tmpdir(), 'gemma-malformed-'));
  const maker = new Maker(folder);
  weights(maker);
  shards(maker);
  configurations(maker);
  besides(maker);
  tokenizers(maker);
  sentencePieces(maker);
  peftConfigurations(maker);
  peftTensors(maker);
  ggufAdapters(maker);
  if (process.platform !== 'win32') specialFiles(maker);
  return { folder, cases: maker.cases };
}

/** Folders, pipes and links where files are expected. */
function specialFiles(maker: Maker): void {
  const folder = (path: string) => mkdirSync(path);
  const pipe = (path: string) => execFileSync('mkfifo', [path]);
  const circle = (path: string) => symlinkSync(path, path);
  const nowhere = (path: string) => symlinkSync(`${path}-not-there`, path);
  const zero = (path: string) => symlinkSync('/dev/zero', path);
  const kinds: [string, (path: string) => void][] = [
    ['a folder', folder],
    ['a pipe', pipe],
    ['a link to itself', circle],
    ['a device', zero],
  ];
  for (const name of [CONFIG, GENERATION, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG]) {
    for (const [what, make] of kinds) {
      maker.add(`special files: ${name}`, what, 'model', maker.sound, ['ERR_FILE', undefined, name], (files) => files.set(name, make)); // prettier-ignore
    }
  }
  maker.add('special files: shards', 'a pipe', 'model', maker.sharded, ['ERR_FILE', undefined, shardName(2), 'not a regular file'], (files) => files.set(shardName(2), pipe)); // prettier-ignore
  maker.add('special files: shards', 'a folder', 'model', maker.sharded, ['ERR_FILE', undefined, shardName(2), 'directory'], (files) => files.set(shardName(2), folder)); // prettier-ignore
  maker.add('special files: shards', 'a link to nothing', 'model', maker.sharded, [INVALID, 'MISSING_SHARD', shardName(2)], (files) => files.set(shardName(2), nowhere)); // prettier-ignore
  for (const name of [PEFT_CONFIG, PEFT_TENSORS]) {
    for (const [what, make] of kinds) {
      maker.add(`special files: ${name}`, what, 'adapter', maker.adapter, ['ERR_FILE', undefined, name], (files) => files.set(name, make)); // prettier-ignore
    }
  }
  maker.add('special files: adapter_config.json', 'a link to nothing', 'adapter', maker.adapter, [ADAPTER, 'NO_CONFIG', PEFT_CONFIG], (files) => files.set(PEFT_CONFIG, nowhere)); // prettier-ignore
  // Whoever may read everything sees no difference.
  if (process.getuid?.() !== 0) {
    const locked = (path: string) => writeFileSync(path, 'x', { mode: 0 });
    for (const name of [CONFIG, WEIGHTS, TOKENIZER]) {
      maker.add(`special files: ${name}`, 'one that may not be read', 'model', maker.sound, ['ERR_FILE', undefined, name], (files) => files.set(name, locked)); // prettier-ignore
    }
    maker.add('special files: adapter_config.json', 'one that may not be read', 'adapter', maker.adapter, ['ERR_FILE', undefined, PEFT_CONFIG], (files) => files.set(PEFT_CONFIG, locked)); // prettier-ignore
  }
}
