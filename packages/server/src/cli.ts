// The command `gemma-native-server`: its flags, its log, and signals that end it.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { GemmaError, type KvCacheType, type LoadOptions } from 'gemma-native';
import { pino } from 'pino';
import { defined, integer, signalled } from './flags.js';
import { defaultName, type ModelSpec } from './models.js';
import { createServer, type ServerOptions } from './server.js';

interface Flags {
  model: [name: string | undefined, model: string][];
  mmproj?: string | false;
  adapter?: [name: string, path: string][];
  alias?: [alias: string, name: string][];
  pin?: boolean;
  device?: string;
  gpuLayers?: number;
  threads?: number;
  context?: number;
  kv?: KvCacheType;
  draft?: string;
  host: string;
  port: number;
  apiKey?: string[];
  apiKeyFile?: string;
  allowHost?: string[];
  cors?: string[];
  maxMemory?: number;
  keepAlive?: number;
  maxConcurrent?: number;
  maxQueue?: number;
  maxBody?: number;
  requestTimeout?: number;
  remoteImages?: true | 'private';
  logLevel: string;
}

const EXIT_FAILED = 1;
const EXIT_USAGE = 2;

function number(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value) || value < 0) throw new InvalidArgumentError('Expected a number.');
  return value;
}

function collect(text: string, all: string[] = []): string[] {
  return [...all, text];
}

function pair(text: string): [string, string] | undefined {
  const at = text.indexOf('=');
  return at > 0 && at < text.length - 1 ? [text.slice(0, at), text.slice(at + 1)] : undefined;
}

// NAME=MODEL or MODEL.
function modelFlag(text: string, all: Flags['model'] = []): Flags['model'] {
  return [...all, pair(text) ?? [undefined, text]];
}

function pairFlag(text: string, all: [string, string][] = []): [string, string][] {
  const found = pair(text);
  if (!found) throw new InvalidArgumentError('Expected two names with = between.');
  return [...all, found];
}

function version(): string {
  return (JSON.parse(readFileSync(join(__dirname, '..', 'package.json'), 'utf8')) as { version: string }).version;
}

function program(): Command {
  const command = new Command('gemma-native-server');
  return command
    .description('Serves Gemma 3 over HTTP. See docs/guides/server.md for what each interface takes.')
    .version(version())
    .exitOverride()
    .allowExcessArguments(false)
    .requiredOption(
      '--model <model>',
      'MODEL or NAME=MODEL, as often as wanted: a GGUF file, a folder, demo, hf:org/repo, ollama:model, lmstudio:org/repo',
      modelFlag,
    )
    .option('--mmproj <file>', 'vision encoder of the only model; default: the one beside it or inside of it')
    .option('--no-mmproj', 'without vision encoder')
    .option(
      '--adapter <name=path>',
      'adapter (LoRA) of the only model, which requests name; as often as wanted',
      pairFlag,
    )
    .option('--alias <alias=name>', 'another name for a model; as often as wanted', pairFlag)
    .option('--pin', 'load all models at the start and keep them')
    .option('--draft <file>', 'draft model of the only model')
    .option('--device <name>', 'auto, cpu, cuda, ... (GEMMA_DEVICE)')
    .option('--gpu-layers <n>', 'so many of the last layers on GPUs; default: as memory allows', integer)
    .option('--threads <n>', 'threads that compute (GEMMA_THREADS)', integer)
    .option('--context <n>', 'positions of prompt and answer together', integer)
    .addOption(new Option('--kv <type>', 'type of the key/value cache').choices(['f32', 'f16', 'q8_0']))
    .option('--host <address>', 'where to listen', '127.0.0.1')
    .option('--port <n>', 'port; 0: a free one', integer, 8080)
    .option(
      '--api-key <key>',
      'key that requests must have, as often as wanted; others of this machine can see it',
      collect,
    )
    .option('--api-key-file <file>', 'file with a key on each line; GEMMA_SERVER_API_KEY is one more way')
    .option('--allow-host <name>', 'name under which a server without keys answers; as often as wanted', collect)
    .option('--cors <origin>', 'origin whose pages may ask, or *; as often as wanted', collect)
    .option('--max-memory <gib>', "memory of loaded models; default: four fifths of this machine's", number)
    .option('--keep-alive <seconds>', 'unload a model that nobody has used for so long', number)
    .option('--max-concurrent <n>', 'requests that are computed at the same time', integer)
    .option('--max-queue <n>', 'requests that wait; one more is refused', integer)
    .option('--max-body <mib>', 'size of a request', number)
    .option('--request-timeout <seconds>', 'how long a request may take', number)
    .option(
      '--remote-images [private]',
      "fetch pictures from URLs of clients; private: from this machine's network too",
    )
    .addOption(
      new Option('--log-level <level>', 'how much is logged')
        .choices(['fatal', 'error', 'warn', 'info', 'debug', 'silent'])
        .default('info'),
    )
    .addHelpText('after', '\nQueues: gemma-native-server worker --help, enqueue --help, collect --help');
}

/** Wrong arguments that commander cannot see. */
class UsageError extends Error {}

function keysOf({ apiKey = [], apiKeyFile }: Flags): string[] {
  const { GEMMA_SERVER_API_KEY: fromEnvironment = '' } = process.env;
  const lines = apiKeyFile === undefined ? [] : readFileSync(apiKeyFile, 'utf8').split(/\r?\n/);
  const keys = [...apiKey, ...lines.map((line) => line.trim()), fromEnvironment].filter((key) => key !== '');
  if (apiKeyFile !== undefined && keys.length === 0) throw new UsageError(`--api-key-file: ${apiKeyFile} has no key`);
  return keys;
}

function modelsOf(flags: Flags): ModelSpec[] {
  const { model: models, mmproj, adapter, draft, alias = [], pin = false } = flags;
  const isAlone = models.length === 1;
  // commander sets what --no-mmproj negates
  for (const [flag, value] of Object.entries({ mmproj: mmproj || undefined, adapter, draft })) {
    if (value !== undefined && !isAlone) throw new UsageError(`--${flag}: only with one model; which one is meant?`);
  }
  const { device, gpuLayers, threads, context: contextSize, kv: kvCache } = flags;
  const adapters = adapter && Object.fromEntries(adapter);
  const shared = { device, gpuLayers, threads, contextSize, kvCache, draft, adapters };
  const options: LoadOptions = defined({ ...shared, mmproj });
  const specs = models.map(([name, model]): ModelSpec & { aliases: string[] } => ({
    ...(name !== undefined && { name }),
    model,
    options,
    pinned: pin,
    aliases: [],
  }));
  for (const [other, name] of alias) {
    const found = specs.find((spec) => (spec.name ?? defaultName(spec.model)) === name);
    if (!found) throw new UsageError(`--alias: there is no model ${name}`);
    found.aliases.push(other);
  }
  return specs;
}

function optionsOf(flags: Flags): ServerOptions {
  const { allowHost: allowedHosts, cors: corsOrigins, maxConcurrent, maxQueue, remoteImages } = flags;
  const times = (value: number | undefined, factor: number) => (value === undefined ? undefined : value * factor);
  return {
    models: modelsOf(flags),
    apiKeys: keysOf(flags),
    logger: pino({ level: flags.logLevel }),
    ...defined({
      allowedHosts,
      corsOrigins,
      maxConcurrent,
      maxQueue,
      remoteImages,
      maxMemoryBytes: times(flags.maxMemory, 2 ** 30),
      keepAliveMs: times(flags.keepAlive, 1000),
      maxBodyBytes: times(flags.maxBody, 2 ** 20),
      requestTimeoutMs: times(flags.requestTimeout, 1000),
    }),
  };
}

/** Runs a command line and returns the exit code. */
export async function main(argv: readonly string[]): Promise<number> {
  const command = program();
  try {
    command.parse(argv);
    const flags = command.opts<Flags>();
    const server = await createServer(optionsOf(flags));
    try {
      const url = await server.listen({ host: flags.host, port: flags.port });
      process.stderr.write(`gemma-native-server listens on ${url}\n`);
    } catch (error) {
      await server.close();
      throw error;
    }
    await signalled();
    await server.close(); // when the answers under way have finished
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_USAGE; // commander has said why
    const { cause } = error as { cause?: unknown };
    const told = cause instanceof GemmaError ? cause : (error as Error);
    process.stderr.write(`gemma-native-server: ${told.message}\n`);
    return error instanceof UsageError || error instanceof TypeError ? EXIT_USAGE : EXIT_FAILED;
  }
}
