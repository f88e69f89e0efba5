// What several commands have in common: the options that load a model, those of pictures, and the parsers of values.
import { readFileSync } from 'node:fs';
import { text as readAll } from 'node:stream/consumers';
import { InvalidArgumentError, Option, type Command } from 'commander';
import { Gemma, type GenerateOptions, type KvCacheType, type LoadOptions, type Quantization } from '../index.js';
import { QUANTIZATIONS } from '../quantize.js';
import { pullProgress } from './download-progress.js';
import { UsageError, withProgress } from './output.js';

/** Begins a command: its name with arguments, and what `--help` says of it. */
export type DefineCommand = (definition: string, summary: string) => Command;

export interface ModelFlags {
  model: string;
  json?: boolean;
  device?: string;
  gpuLayers?: number;
  isa?: string;
  threads?: number;
  context?: number;
  kv?: KvCacheType;
  mmap?: boolean;
  screen?: boolean;
  quantize?: Quantization;
  draft?: string | false;
  mmproj?: string | false;
  denseLayers?: 'required' | 'optional';
  adapter?: AdapterFlag[];
}

/** An adapter's path and how much of it is added. */
export interface AdapterFlag {
  path: string;
  scale: number;
}

export interface ImageFlags {
  image?: string[];
  panAndScan?: boolean;
  tile?: number;
  alpha?: 'drop' | 'white';
}

export interface SamplingFlags {
  maxTokens?: number;
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  seed?: number;
  stop?: string[];
  draft?: string | false;
  promptLookup?: boolean;
}

export function number(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || Number.isNaN(value)) throw new InvalidArgumentError('Expected a number.');
  return value;
}

export function collect(text: string, all: string[] = []): string[] {
  return [...all, text];
}

// PATH or PATH=SCALE.
export function adapterFlag(text: string, all: AdapterFlag[] = []): AdapterFlag[] {
  const at = text.lastIndexOf('=');
  return [...all, at < 0 ? { path: text, scale: 1 } : { path: text.slice(0, at), scale: number(text.slice(at + 1)) }];
}

export function withAdapters(command: Command): Command {
  return command.option(
    '--adapter <path>',
    "adapter (LoRA), a folder of PEFT's or a GGUF file; PATH=SCALE adds so much of it; as often as wanted",
    adapterFlag,
  );
}

const adapterName = (i: number) => String(i + 1);

/** The adapters of the flags, for a call. */
export function adapterOptions({ adapter }: ModelFlags): { adapter?: Record<string, number> } {
  if (!adapter) return {};
  return { adapter: Object.fromEntries(adapter.map(({ scale }, i) => [adapterName(i), scale])) };
}

export function tokenList(text: string): number[] {
  return text
    .split(/[\s,]+/)
    .filter((item) => item !== '')
    .map(number);
}

export function kvOption(): Option {
  return new Option('--kv <type>', 'type of the key/value cache').choices(['f32', 'f16', 'q8_0']);
}

export function quantizeOption(): Option {
  return new Option('--quantize <type>', 'quantise weights of floats while they are loaded').choices(QUANTIZATIONS);
}

/** @param several how values of several models are collected, where the command takes them */
export function withModel(command: Command, several?: typeof collect): Command {
  const what = 'GGUF file, or folder that holds one; hf:org/repo, ollama:model, lmstudio:org/repo';
  const withFile = several
    ? command.requiredOption('--model <file>', `${what}; as often as wanted`, several)
    : command.requiredOption('--model <file>', what);
  return withFile
    .option('--device <name>', 'auto, cpu, or as `gemma-native devices` lists them, with commas between (GEMMA_DEVICE)')
    .option('--gpu-layers <n>', 'so many of the last layers on GPUs; default: as memory allows', number)
    .option('--isa <name>', 'force an instruction set: amx_bf16, avx512_vnni, avx_vnni, avx2, ref (GEMMA_ISA)')
    .option('--threads <n>', 'threads that compute (GEMMA_THREADS)', number)
    .option('--context <n>', 'positions of prompt and answer together', number)
    .addOption(kvOption())
    .addOption(quantizeOption())
    .option('--no-mmap', 'read the file instead of mapping it')
    .option('--no-screen', 'compute all logits for every token, and save the memory that avoids it')
    .option('--json', 'print one JSON object');
}

export function withVision(command: Command): Command {
  return command
    .option('--mmproj <file>', 'vision encoder; default: the one beside the model or inside of it')
    .option('--no-mmproj', 'without vision encoder');
}

export function withAlpha(command: Command): Command {
  return command.addOption(
    new Option('--alpha <how>', 'what transparency becomes: the colours below it, or white').choices(['drop', 'white']),
  );
}

export function withImages(command: Command): Command {
  return withAlpha(
    withVision(command)
      .option('--pan-and-scan', 'see wide and high pictures in crops as well')
      .addOption(
        new Option('--tile <n>', 'see pictures in tiles as well, so many along the shorter side')
          .argParser(number)
          .conflicts('panAndScan'),
      ),
  );
}

export function withSampling(command: Command): Command {
  return command
    .option('--max-tokens <n>', 'tokens at most', number)
    .option('--temperature <t>', '0: always the likeliest token', number)
    .option('--top-k <k>', 'candidates at most', number)
    .option('--top-p <p>', 'candidates that together have this probability', number)
    .option('--min-p <p>', 'candidates at least this likely, relative to the likeliest', number)
    .option('--seed <s>', 'same seed, same text', number)
    .option('--stop <text>', 'end before this text; as often as wanted', collect)
    .option('--draft <file>', 'smaller model of the same vocabulary that guesses tokens ahead')
    .addOption(new Option('--prompt-lookup', 'guess ahead from the text so far').conflicts('draft'))
    .option('--no-draft', 'guess nothing ahead');
}

export function samplingOptions(flags: SamplingFlags): GenerateOptions {
  return {
    ...(flags.maxTokens !== undefined && { maxOutputTokens: flags.maxTokens }),
    ...(flags.temperature !== undefined && { temperature: flags.temperature }),
    ...(flags.topK !== undefined && { topK: flags.topK }),
    ...(flags.topP !== undefined && { topP: flags.topP }),
    ...(flags.minP !== undefined && { minP: flags.minP }),
    ...(flags.seed !== undefined && { seed: flags.seed }),
    ...(flags.stop && { stopSequences: flags.stop }),
    ...(flags.draft === false && { draft: false }),
    ...(flags.promptLookup && { draft: 'prompt-lookup' }),
  };
}

/** Pictures named on the command line are the user's own: URLs too. */
export function imageOptions({ image, panAndScan, tile, alpha }: ImageFlags) {
  return {
    allowRemote: 'private',
    ...(image && { images: image }),
    ...(panAndScan && { panAndScan: true }),
    ...(tile !== undefined && { tile }),
    ...(alpha !== undefined && { alpha }),
  } as const;
}

/** The options of `Gemma.load` that flags give, but for adapters. */
export function loadOptionsOf(flags: Omit<ModelFlags, 'model' | 'adapter'>): LoadOptions {
  return {
    ...(flags.device !== undefined && { device: flags.device }),
    ...(flags.gpuLayers !== undefined && { gpuLayers: flags.gpuLayers }),
    ...(flags.isa !== undefined && { isa: flags.isa }),
    ...(flags.threads !== undefined && { threads: flags.threads }),
    ...(flags.context !== undefined && { contextSize: flags.context }),
    ...(flags.kv !== undefined && { kvCache: flags.kv }),
    ...(flags.mmap === false && { mmap: false }),
    ...(flags.screen === false && { screenLogits: false }),
    ...(flags.quantize && { quantize: flags.quantize }),
    ...(flags.draft && { draft: flags.draft }),
    ...(flags.denseLayers && { denseLayers: flags.denseLayers }),
    ...(flags.mmproj !== undefined && { mmproj: flags.mmproj }),
  };
}

/** Loads the model of the flags, works with it, frees it. */
export async function using<T>(flags: ModelFlags, signal: AbortSignal, work: (gemma: Gemma) => Promise<T>): Promise<T> {
  const options: LoadOptions = {
    ...loadOptionsOf(flags),
    ...(flags.adapter && { adapters: Object.fromEntries(flags.adapter.map(({ path }, i) => [adapterName(i), path])) }),
    signal,
  };
  const downloading = pullProgress(!!flags.json);
  let gemma: Gemma;
  try {
    gemma = await withProgress('Loading', !!flags.json, (onProgress) =>
      Gemma.load(flags.model, { ...options, onProgress, hub: { onProgress: downloading.update } }),
    );
  } finally {
    downloading.stop();
  }
  try {
    return await work(gemma);
  } finally {
    await gemma.dispose();
  }
}

/** NAME=TEXT as it is given to a flag. */
export function pairOf(flag: string, text: string): [name: string, text: string] {
  const at = text.indexOf('=');
  if (at < 1) throw new UsageError(`${flag}: expected NAME=TEXT, found ${JSON.stringify(text.slice(0, 60))}`);
  return [text.slice(0, at), text.slice(at + 1)];
}

/** Texts that are given as arguments, or one in each line of a file. */
export function candidatesOf(what: string, given: readonly string[], file: string | undefined): readonly string[] {
  if (file === undefined) return given;
  if (given.length > 0) throw new UsageError(`${what}: give them as arguments or with --file, not both`);
  return readFileSync(file, 'utf8')
    .split(/\r?\n/)
    .filter((line) => line !== '');
}

/** What a file of JSON says; flag: what names the file. */
export function jsonFrom(file: string, flag: string): unknown {
  const text = readFileSync(file, 'utf8');
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new UsageError(`${flag}: expected JSON in ${file}: ${(error as Error).message}`);
  }
}

/** The text of an argument, of --file, or of standard input. */
export async function textFrom(argument: string | undefined, file: string | undefined, what: string): Promise<string> {
  if (argument !== undefined && file !== undefined)
    throw new UsageError(`${what}: give it as an argument or with --file, not both`);
  if (file !== undefined) return readFileSync(file, 'utf8');
  if (argument !== undefined) return argument;
  if (process.stdin.isTTY) throw new UsageError(`${what}: missing; give it as an argument or on standard input`);
  return readAll(process.stdin);
}
