// The command line: parses, calls the public API, prints.
import { closeSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs';
import { text as readAll } from 'node:stream/consumers';
import { Argument, Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { Gemma, GemmaError, type Input, type LoadOptions, type TokenScore } from '../index.js';
import {
  bytes,
  EXIT_USAGE,
  note,
  printJson,
  printLine,
  promptProgress,
  reportFailure,
  table,
  UsageError,
  withProgress,
} from './output.js';

interface ModelFlags {
  model: string;
  json?: boolean;
  device?: string;
  gpuLayers?: number;
  isa?: string;
  threads?: number;
  context?: number;
  kv?: 'f32' | 'f16' | 'q8_0';
  mmap?: boolean;
  screen?: boolean;
  draft?: string | false;
  mmproj?: string | false;
}

interface ImageFlags {
  image?: string[];
  panAndScan?: boolean;
  tile?: number;
}

/** Pictures named on the command line are the user's own: URLs too. */
function imageOptions({ image, panAndScan, tile }: ImageFlags) {
  return {
    allowRemote: 'private',
    ...(image && { images: image }),
    ...(panAndScan && { panAndScan: true }),
    ...(tile !== undefined && { tile }),
  } as const;
}

function number(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || Number.isNaN(value)) throw new InvalidArgumentError('Expected a number.');
  return value;
}

function collect(text: string, all: string[] = []): string[] {
  return [...all, text];
}

function tokenList(text: string): number[] {
  return text
    .split(/[\s,]+/)
    .filter((item) => item !== '')
    .map(number);
}

function withModel(command: Command): Command {
  return command
    .requiredOption('--model <file>', 'GGUF file, or folder that holds one')
    .option('--device <name>', 'auto, cpu, or as `gemma-native devices` lists them, with commas between (GEMMA_DEVICE)')
    .option('--gpu-layers <n>', 'so many of the last layers on GPUs; default: as memory allows', number)
    .option('--isa <name>', 'force an instruction set: amx_bf16, avx512_vnni, avx_vnni, avx2, ref (GEMMA_ISA)')
    .option('--threads <n>', 'threads that compute (GEMMA_THREADS)', number)
    .option('--context <n>', 'positions of prompt and answer together', number)
    .addOption(new Option('--kv <type>', 'type of the key/value cache').choices(['f32', 'f16', 'q8_0']))
    .option('--no-mmap', 'read the file instead of mapping it')
    .option('--no-screen', 'compute all logits for every token, and save the memory that avoids it')
    .option('--json', 'print one JSON object');
}

function withImages(command: Command): Command {
  return command
    .option('--mmproj <file>', 'vision encoder; default: the one beside the model or inside of it')
    .option('--no-mmproj', 'without vision encoder')
    .option('--pan-and-scan', 'see wide and high pictures in crops as well')
    .addOption(
      new Option('--tile <n>', 'see pictures in tiles as well, so many along the shorter side')
        .argParser(number)
        .conflicts('panAndScan'),
    );
}

/** Loads the model of the flags, works with it, frees it. */
async function using<T>(flags: ModelFlags, signal: AbortSignal, work: (gemma: Gemma) => Promise<T>): Promise<T> {
  const options: LoadOptions = {
    ...(flags.device !== undefined && { device: flags.device }),
    ...(flags.gpuLayers !== undefined && { gpuLayers: flags.gpuLayers }),
    ...(flags.isa !== undefined && { isa: flags.isa }),
    ...(flags.threads !== undefined && { threads: flags.threads }),
    ...(flags.context !== undefined && { contextSize: flags.context }),
    ...(flags.kv !== undefined && { kvCache: flags.kv }),
    ...(flags.mmap === false && { mmap: false }),
    ...(flags.screen === false && { screenLogits: false }),
    ...(flags.draft && { draft: flags.draft }),
    ...(flags.mmproj !== undefined && { mmproj: flags.mmproj }),
    signal,
  };
  const gemma = await withProgress('Loading', !!flags.json, (onProgress) =>
    Gemma.load(flags.model, { ...options, onProgress }),
  );
  try {
    return await work(gemma);
  } finally {
    await gemma.dispose();
  }
}

/** The text of an argument, of --file, or of standard input. */
async function textFrom(argument: string | undefined, file: string | undefined, what: string): Promise<string> {
  if (argument !== undefined && file !== undefined)
    throw new UsageError(`${what}: give it as an argument or with --file, not both`);
  if (file !== undefined) return readFileSync(file, 'utf8');
  if (argument !== undefined) return argument;
  if (process.stdin.isTTY) throw new UsageError(`${what}: missing; give it as an argument or on standard input`);
  return readAll(process.stdin);
}

function speed(tokens: number, ms: number, rate: number): string {
  return `${tokens} tokens in ${(ms / 1000).toFixed(2)} s (${rate.toFixed(1)}/s)`;
}

interface RunFlags extends ModelFlags, ImageFlags {
  video?: string[];
  fps?: number;
  maxFrames?: number;
  raw?: boolean;
  system?: string;
  maxTokens?: number;
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  seed?: number;
  stop?: string[];
  promptLookup?: boolean;
}

/** A prompt with what stands before it: pictures, videos, a system message. */
function inputOf(prompt: string, flags: RunFlags): Input {
  const { system, image = [], video = [], fps, maxFrames } = flags;
  if (system === undefined && video.length === 0) return prompt; // images go in by an option
  const frames = { ...(fps !== undefined && { fps }), ...(maxFrames !== undefined && { maxFrames }) };
  return [
    ...(system === undefined ? [] : [{ role: 'system' as const, content: system }]),
    {
      role: 'user',
      content: [
        ...image.map((path) => ({ type: 'image' as const, image: path })),
        ...video.map((path) => ({ type: 'video' as const, video: path, ...frames })),
        { type: 'text', text: prompt },
      ],
    },
  ];
}

async function run(argument: string | undefined, flags: RunFlags, signal: AbortSignal): Promise<void> {
  if (flags.raw && flags.video) throw new UsageError('--video: raw text has no video');
  if (flags.raw && flags.system !== undefined) throw new UsageError('--system: raw text has no system message');
  const prompt = await textFrom(argument, undefined, 'prompt');
  const input = inputOf(prompt, flags);
  const { images, ...seen } = imageOptions(flags);
  await using(flags, signal, async (gemma) => {
    const progress = promptProgress(!!flags.json);
    const stream = gemma.stream(input, {
      signal,
      ...seen,
      ...(typeof input === 'string' && images && { images }),
      onProgress: progress.update,
      ...(flags.raw && { raw: true }),
      ...(flags.maxTokens !== undefined && { maxOutputTokens: flags.maxTokens }),
      ...(flags.temperature !== undefined && { temperature: flags.temperature }),
      ...(flags.topK !== undefined && { topK: flags.topK }),
      ...(flags.topP !== undefined && { topP: flags.topP }),
      ...(flags.minP !== undefined && { minP: flags.minP }),
      ...(flags.seed !== undefined && { seed: flags.seed }),
      ...(flags.stop && { stopSequences: flags.stop }),
      ...(flags.draft === false && { draft: false }),
      ...(flags.promptLookup && { draft: 'prompt-lookup' }),
    });
    let result;
    try {
      if (!flags.json) {
        for await (const part of stream) {
          progress.stop();
          process.stdout.write(part.text);
        }
        process.stdout.write('\n');
      }
      result = await stream.result;
    } finally {
      progress.stop();
    }
    const { usage, timings } = result;
    const { loadMs } = gemma.info;
    if (flags.json) {
      const { text, finishReason, tokens, seed, stopSequence } = result;
      printJson({ text, finishReason, usage, timings: { loadMs, ...timings }, tokens, seed, stopSequence });
    } else {
      note(
        `\nprompt: ${speed(usage.inputTokens, timings.prefillMs, timings.prefillTokensPerSecond)}, ` +
          `answer: ${speed(usage.outputTokens, timings.decodeMs, timings.decodeTokensPerSecond)}, ` +
          `loaded in ${(loadMs / 1000).toFixed(2)} s; ${gemma.info.device}, ${gemma.info.isa}, ${gemma.info.threads} threads`,
      );
    }
  });
}

interface TokenizeFlags extends ModelFlags {
  special?: boolean;
  bos?: boolean;
  file?: string;
}

async function tokenize(argument: string | undefined, flags: TokenizeFlags, signal: AbortSignal): Promise<void> {
  const text = await textFrom(argument, flags.file, 'text');
  const tokens = await using(flags, signal, (gemma) =>
    gemma.tokenize(text, { special: !!flags.special, bos: !!flags.bos }),
  );
  if (flags.json) printJson({ tokens });
  else printLine(tokens.join(' '));
}

async function detokenize(tokens: number[], flags: ModelFlags, signal: AbortSignal): Promise<void> {
  const text = await using(flags, signal, (gemma) => gemma.detokenize(tokens));
  if (flags.json) printJson({ text });
  else printLine(text);
}

interface LogitsFlags extends ModelFlags, ImageFlags {
  raw?: boolean;
  bos?: boolean;
  all?: boolean;
  out?: string;
  tokens?: number[];
}

async function logits(argument: string | undefined, flags: LogitsFlags, signal: AbortSignal): Promise<void> {
  if (flags.tokens && argument !== undefined) throw new UsageError('give a prompt or --tokens, not both');
  const input = flags.tokens ?? (await textFrom(argument, undefined, 'prompt'));
  await using(flags, signal, async (gemma) => {
    const file = flags.out === undefined ? undefined : openSync(flags.out, 'w');
    try {
      const {
        tokens,
        shape,
        top = [],
      } = await gemma.logits(input, {
        all: !!flags.all,
        top: 5,
        signal,
        ...imageOptions(flags),
        // Literally raw: only what was given, <bos> when asked for.
        ...(flags.raw && { raw: true, bos: !!flags.bos }),
        ...(file === undefined
          ? { data: false }
          : { onRow: (row) => writeFully(file, new Uint8Array(row.buffer, row.byteOffset, row.byteLength)) }),
      });
      if (flags.json) printJson({ tokens, shape, top });
      else await printTop(gemma, tokens, top);
    } finally {
      if (file !== undefined) closeSync(file);
    }
  });
}

interface EmbedImageFlags extends ModelFlags, ImageFlags {
  out?: string;
}

async function embedImage(file: string, flags: EmbedImageFlags, signal: AbortSignal): Promise<void> {
  await using(flags, signal, async (gemma) => {
    const { data, shape, crops } = await withProgress('Encoding', !!flags.json, (onProgress) =>
      gemma.embedImage(file, { ...imageOptions(flags), onProgress, signal }),
    );
    if (flags.out !== undefined)
      writeFileSync(flags.out, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    const tokensPerImage = gemma.info.vision?.tokensPerImage;
    if (flags.json) printJson({ shape, crops, tokensPerImage });
    else printLine(`${shape[0]} tokens of ${shape[1]}: the picture and ${crops.length} crops`);
  });
}

function writeFully(file: number, data: Uint8Array): void {
  for (let done = 0; done < data.length;) done += writeSync(file, data, done);
}

async function printTop(gemma: Gemma, tokens: number[], top: TokenScore[][]): Promise<void> {
  for (const [i, best] of top.entries()) {
    const position = tokens.length - top.length + i;
    const token = tokens[position] ?? 0;
    printLine(`position ${position}, after ${JSON.stringify(await gemma.detokenize([token]))} (${token})`);
    const rows: (string | number)[][] = [];
    for (const entry of best) {
      const text = JSON.stringify(await gemma.detokenize([entry.token]));
      rows.push([
        '  ',
        entry.token,
        text,
        `logit ${entry.logit.toFixed(3)}`,
        `${(Math.exp(entry.logprob) * 100).toFixed(2)} %`,
      ]);
    }
    printLine(table(rows));
  }
}

interface PerplexityFlags extends ModelFlags {
  file: string;
}

async function perplexity(flags: PerplexityFlags, signal: AbortSignal): Promise<void> {
  const text = readFileSync(flags.file, 'utf8');
  const context = flags.context ?? 512;
  const result = await using({ ...flags, context }, signal, (gemma) =>
    withProgress('Scoring', !!flags.json, (onProgress) =>
      gemma.perplexity(text, { contextSize: context, onProgress, signal }),
    ),
  );
  if (flags.json) printJson({ ...result, contextSize: context });
  else printLine(`perplexity ${result.perplexity.toFixed(4)} over ${result.tokens} tokens, chunks of ${context}`);
}

interface InspectFlags {
  json?: boolean;
  kv?: 'f32' | 'f16' | 'q8_0';
}

async function inspect(model: string, flags: InspectFlags): Promise<void> {
  const summary = await Gemma.inspect(model, flags.kv !== undefined ? { kvCache: flags.kv } : {});
  if (flags.json) return printJson(summary);
  const { config, vision } = summary;
  printLine(
    table([
      [
        'model',
        `${config.name || '(no name)'}, ${config.size}, ${summary.instructionTuned ? 'instruction-tuned' : 'pretrained'}`,
      ],
      ['file', `${bytes(summary.fileBytes)}, ${(summary.parameters / 1e6).toFixed(1)} M parameters`],
      ['layers', `${config.layers} (${config.globalLayers} global, the others see ${config.slidingWindow} positions)`],
      ['widths', `model ${config.modelDim}, feed-forward ${config.ffnDim}`],
      ['heads', `${config.heads} of ${config.headDim}, ${config.kvHeads} for keys and values`],
      ['vocabulary', String(config.vocabularySize)],
      ['context', `${config.trainedContext} positions`],
      ...(vision
        ? [
            [
              'vision',
              `${vision.imageSize} pixels a side, ${vision.layers} layers, ${vision.tokensPerImage} tokens a picture`,
            ],
          ]
        : []),
    ]),
  );
  printLine('\ntensor types');
  printLine(
    table(summary.tensorTypes.map(({ type, tensors, bytes: n }) => ['  ', type, tensors, 'tensors', bytes(n)])),
  );
  printLine('\nmemory by context size');
  printLine(
    table(
      summary.memory.map((plan) => [
        '  ',
        plan.contextSize,
        `${bytes(plan.totalBytes)} = weights ${bytes(plan.weightsBytes)} + cache ${bytes(plan.kvBytes)} + work ${bytes(plan.scratchBytes)} + screen ${bytes(plan.screenBytes)}${plan.visionBytes > 0 ? ` + vision ${bytes(plan.visionBytes)}` : ''}`,
      ]),
    ),
  );
}

interface CropsFlags {
  json?: boolean;
  minCropSize?: number;
  maxCrops?: number;
  minRatio?: number;
  tile?: number;
  draw?: string;
}

async function crops(file: string, flags: CropsFlags, signal: AbortSignal): Promise<void> {
  const { minCropSize, maxCrops, minRatio, tile, draw } = flags;
  const panAndScan = {
    ...(minCropSize !== undefined && { minCropSize }),
    ...(maxCrops !== undefined && { maxCrops }),
    ...(minRatio !== undefined && { minRatio }),
  };
  const { png, ...result } = await Gemma.crops(file, {
    signal,
    ...(tile === undefined ? { panAndScan } : { tile }),
    ...(draw !== undefined && { draw: true }),
  });
  if (draw !== undefined && png) writeFileSync(draw, png);
  if (flags.json) return printJson(result);
  printLine(`${result.width} x ${result.height}, ${result.crops.length} crops`);
  printLine(table(result.crops.map(({ x, y, width, height }) => ['  ', `${width} x ${height}`, `at ${x}, ${y}`])));
}

async function devices(flags: { json?: boolean }): Promise<void> {
  const found = await Gemma.devices();
  const backends = [Gemma.backend];
  const wanted = process.env.GEMMA_ISA;
  const isa = wanted || found[0]?.isa || '';
  if (!found[0]?.isas.includes(isa)) {
    const isas = found[0]?.isas.join(', ') ?? '';
    throw new GemmaError('ERR_BACKEND_UNAVAILABLE', `GEMMA_ISA: expected one of ${isas}, found ${isa}`, 'ISA');
  }
  const packages = await Gemma.backends();
  const { name: auto, reason } = packages.find(({ chosen }) => chosen) ?? { name: 'cpu', reason: '' };
  const device = process.env.GEMMA_DEVICE || 'auto';
  if (flags.json) return printJson({ backends, devices: found, isa, device, auto, packages });
  printLine(`backends compiled in: ${backends.join(', ')}`);
  for (const one of found) {
    const size = one.memoryBytes > 0 ? `, ${one.cores} cores, ${bytes(one.memoryBytes)}` : '';
    printLine(`${one.name}: ${one.description}${size}`);
    if (one.name !== 'cpu' && one.isa) printLine(`  chip: ${one.isa}`);
    if (one.name === 'cpu') {
      printLine(`  instruction sets: ${one.isas.join(', ')}; in use: ${wanted ? `${wanted} (GEMMA_ISA)` : one.isa}`);
    }
    if (!one.available) printLine(`  not available: ${one.reason ?? ''}`);
  }
  printLine(device === 'auto' ? `device auto is ${auto}: ${reason}` : `device ${device}: GEMMA_DEVICE asks for it`);
  for (const { name, package: from, available, chosen, reason: why } of packages) {
    if (name === 'cpu' || (chosen && device === 'auto')) continue;
    printLine(`  ${name} (${from}): ${available ? '' : 'not available: '}${why}`);
  }
}

function version(): string {
  return (JSON.parse(readFileSync(`${__dirname}/../../package.json`, 'utf8')) as { version: string }).version;
}

function build(signal: AbortSignal): Command {
  const program = new Command('gemma-native')
    .description('Runs Gemma 3 models.')
    .version(version())
    .exitOverride()
    .configureHelp({ showGlobalOptions: true });
  const command = (definition: string, summary: string) =>
    program.command(definition).description(summary).exitOverride().allowExcessArguments(false);

  withImages(withModel(command('run [prompt]', 'answer or continue a prompt')))
    .option('--raw', 'continue the text, also with an instruction-tuned model')
    .option('--system <text>', 'system message')
    .option('--max-tokens <n>', 'tokens at most', number)
    .option('--temperature <t>', '0: always the likeliest token', number)
    .option('--top-k <k>', 'candidates at most', number)
    .option('--top-p <p>', 'candidates that together have this probability', number)
    .option('--min-p <p>', 'candidates at least this likely, relative to the likeliest', number)
    .option('--seed <s>', 'same seed, same text', number)
    .option('--stop <text...>', 'end before this text')
    .option('--draft <file>', 'smaller model of the same vocabulary that guesses tokens ahead')
    .addOption(new Option('--prompt-lookup', 'guess ahead from the text so far').conflicts('draft'))
    .option('--no-draft', 'guess nothing ahead')
    .option('--image <file>', 'a picture to look at, before the prompt; as often as wanted', collect)
    .option('--video <file>', 'a video to look at; as often as wanted', collect)
    .option('--fps <n>', 'frames of a video per second, instead of evenly spaced ones', number)
    .option('--max-frames <n>', 'frames of a video at most (16)', number)
    .action((prompt: string | undefined, flags: RunFlags) => run(prompt, flags, signal));
  withModel(command('tokenize [text]', 'text to token ids'))
    .option('--special', 'parse control strings such as <start_of_turn>')
    .option('--bos', 'begin with <bos>')
    .option('--file <file>', 'take the text from a file')
    .action((text: string | undefined, flags: TokenizeFlags) => tokenize(text, flags, signal));
  withModel(command('detokenize', 'token ids to text'))
    .addArgument(
      new Argument('<ids...>').argParser((text, ids: number[] = []) => {
        ids.push(...tokenList(text));
        return ids;
      }),
    )
    .action((ids: number[], flags: ModelFlags) => detokenize(ids, flags, signal));
  withImages(withModel(command('logits [prompt]', "the model's scores for the next token")))
    .option('--raw', 'the text as it is, without template and <bos>')
    .option('--bos', 'with --raw: begin with <bos>')
    .option('--tokens <ids>', 'token ids instead of a prompt, separated by commas', tokenList)
    .option('--all', 'for every position, not only the last')
    .option('--out <file>', 'write all scores, float32 little endian')
    .option('--image <file>', 'a picture before the prompt, or for a run of image tokens; as often as wanted', collect)
    .action((prompt: string | undefined, flags: LogitsFlags) => logits(prompt, flags, signal));
  withImages(withModel(command('embed-image <file>', 'what the vision encoder makes of a picture')))
    .option('--out <file>', 'write all rows, float32 little endian')
    .action((file: string, flags: EmbedImageFlags) => embedImage(file, flags, signal));
  withModel(command('perplexity', 'how well the model predicts a text'))
    .requiredOption('--file <file>', 'the text')
    .action((flags: PerplexityFlags) => perplexity(flags, signal));
  command('inspect <model>', 'what a model file holds and how much memory it takes')
    .addOption(new Option('--kv <type>', 'type of the key/value cache').choices(['f32', 'f16', 'q8_0']))
    .option('--json', 'print one JSON object')
    .action((model: string, flags: InspectFlags) => inspect(model, flags));
  command('crops <file>', 'how Pan & Scan, or a grid of tiles, cuts a picture')
    .option('--min-crop-size <pixels>', 'width and height a crop must have', number)
    .option('--max-crops <n>', 'crops at most', number)
    .option('--min-ratio <r>', 'longer side by shorter side from which on a picture is cropped', number)
    .addOption(
      new Option('--tile <n>', 'tiles along the shorter side, instead of Pan & Scan')
        .argParser(number)
        .conflicts(['minCropSize', 'maxCrops', 'minRatio']),
    )
    .option('--draw <file>', 'write the picture with the frames of its crops, as PNG')
    .option('--json', 'print one JSON object')
    .action((file: string, flags: CropsFlags) => crops(file, flags, signal));
  command('devices', 'what this build can compute on')
    .option('--json', 'print one JSON object')
    .action((flags: { json?: boolean }) => devices(flags));
  return program;
}

/** Runs a command line and returns the exit code. */
export async function main(argv: readonly string[]): Promise<number> {
  const interrupt = new AbortController();
  process.once('SIGINT', () => interrupt.abort()); // a second one ends the process
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') interrupt.abort();
    else throw error;
  });
  try {
    await build(interrupt.signal).parseAsync(argv);
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_USAGE; // commander has said why
    return reportFailure(error, argv.includes('--json'));
  }
}
