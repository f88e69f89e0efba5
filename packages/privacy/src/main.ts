#!/usr/bin/env node
// gemma-native-privacy: where there is personal data in files.
import { Command, CommanderError } from 'commander';
import { scanFile } from './file.js';
import type { PersonalDataKind, ScanOptions } from './scan.js';

const EXIT_FOUND = 1;
const EXIT_FAILED = 2;

// Of what is found enough is shown to find it again.
const masked = (text: string): string => `${text.slice(0, 3)}${'*'.repeat(Math.max(0, Math.min(8, text.length - 3)))}`;

interface Flags {
  country?: string[];
  kind?: PersonalDataKind[];
  json?: boolean;
  show?: boolean;
}

async function scan(files: readonly string[], { country, kind, json, show }: Flags): Promise<number> {
  const options: ScanOptions = { ...(country && { countries: country }), ...(kind && { kinds: kind }) };
  const counts: Record<string, number> = {};
  for (const file of files) {
    for await (const { line, path, kind: of, text, start } of scanFile(file, options)) {
      counts[of] = (counts[of] ?? 0) + 1;
      const shown = show ? text : masked(text);
      if (json) process.stdout.write(`${JSON.stringify({ file, line, path, kind: of, start, text: shown })}\n`);
      else
        process.stdout.write(
          `${file}:${line}${path ? ` ${JSON.stringify(path)}` : ''}: ${of} ${JSON.stringify(shown)}\n`,
        );
    }
  }
  const all = Object.entries(counts).map(([of, n]) => `${n} ${of}`);
  process.stderr.write(`${all.length > 0 ? all.join(', ') : 'nothing found'}\n`);
  return all.length > 0 ? EXIT_FOUND : 0;
}

const collect = (text: string, list: string[] = []): string[] => [...list, text];

async function main(): Promise<number> {
  let exit = 0;
  const program = new Command('gemma-native-privacy')
    .description(
      'Finds personal data in files of text or JSON lines. Exit code: 0 nothing found, 1 something, 2 an error.',
    )
    .argument('<files...>')
    .option(
      '--country <code>',
      'also telephone numbers as they are written in this country (DE, US); as often as wanted',
      collect,
    )
    .option('--kind <kind>', 'only this kind: email, phone, credit-card, iban, ip-address; as often as wanted', collect)
    .option('--show', 'print what was found whole, instead of its beginning')
    .option('--json', 'print a JSON object in each line')
    .exitOverride()
    .action(async (files: string[], flags: Flags) => {
      exit = await scan(files, flags);
    });
  try {
    await program.parseAsync(process.argv);
    return exit;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_FAILED;
    process.stderr.write(`gemma-native-privacy: ${error instanceof Error ? error.message : String(error)}\n`);
    return EXIT_FAILED;
  }
}

void main().then((code) => (process.exitCode = code));
