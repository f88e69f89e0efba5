// The commands of queues: `worker` computes, `enqueue` puts a file's lines in, `collect` writes results to a file.
import { createReadStream, existsSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import { Command, CommanderError, Option } from 'commander';
import { Gemma, GemmaError, type KvCacheType } from 'gemma-native';
import { defined, integer, signalled } from './flags.js';
import { checkJob, Producer, type QueuedJob, type QueueOptions } from './queue.js';
import { createWorker } from './worker.js';

export const QUEUE_COMMANDS = ['worker', 'enqueue', 'collect'];

interface WorkerFlags extends QueueOptions {
  model: string;
  mmproj?: string;
  device?: string;
  threads?: number;
  context?: number;
  kv?: KvCacheType;
  concurrency?: number;
  lock?: number;
  maxDeaths?: number;
  remoteImages?: true;
  localImages?: true;
  metricsHost: string;
  metricsPort?: number;
}

async function work(flags: WorkerFlags): Promise<void> {
  const { queue, redis, concurrency, lock, maxDeaths, metricsHost: host, metricsPort: port } = flags;
  const { mmproj, device, threads, context: contextSize, kv: kvCache } = flags;
  const gemma = await Gemma.load(flags.model, defined({ mmproj, device, threads, contextSize, kvCache }));
  const images = { allowRemote: flags.remoteImages ?? false, allowLocal: flags.localImages ?? false };
  const times = defined({ concurrency, lockMs: lock === undefined ? undefined : lock * 1000, maxDeaths });
  const worker = await createWorker({ gemma, queue, redis, images, ...times });
  const http = createServer((request, response) => {
    if (request.url === '/health') response.end('{"status":"ok"}');
    else if (request.url !== '/metrics') response.writeHead(404).end();
    else {
      worker.metrics.metrics().then(
        (text) => response.writeHead(200, { 'content-type': worker.metrics.contentType }).end(text),
        () => response.writeHead(500).end(),
      );
    }
  });
  if (port !== undefined) await new Promise<void>((done) => http.listen(port, host, done));
  process.stderr.write(`works on the queue ${queue}\n`);
  await signalled();
  await worker.close();
  http.close();
  await gemma.dispose();
}

// A line that is no job ends it, with the number of the line.
async function* jobsOf(path: string): AsyncGenerator<QueuedJob> {
  let n = 0;
  for await (const line of createInterface({ input: createReadStream(path), crlfDelay: Infinity })) {
    ++n;
    if (line.trim() === '') continue;
    try {
      yield checkJob(JSON.parse(line));
    } catch (error) {
      throw new TypeError(`${path}, line ${n}: ${(error as Error).message}`, { cause: error });
    }
  }
}

async function enqueue(path: string, options: QueueOptions & { maxWaiting?: number }): Promise<void> {
  const producer = await Producer.connect(options);
  try {
    process.stderr.write(`${await producer.add(jobsOf(path))} jobs given\n`);
  } finally {
    await producer.close();
  }
}

// Ids that a file of results has, and where its last whole line ends: a process that died may have left a piece of one.
async function written(path: string): Promise<{ ids: Set<string>; end: number }> {
  const ids = new Set<string>();
  let end = 0;
  if (!existsSync(path)) return { ids, end };
  let rest = Buffer.alloc(0);
  for await (const chunk of createReadStream(path)) {
    rest = Buffer.concat([rest, chunk as Buffer]);
    for (let at = rest.indexOf(10); at >= 0; at = rest.indexOf(10)) {
      ids.add((JSON.parse(rest.toString('utf8', 0, at)) as { id: string }).id);
      end += at + 1;
      rest = rest.subarray(at + 1);
    }
  }
  return { ids, end };
}

async function collect(path: string, { follow, ...options }: QueueOptions & { follow?: true }): Promise<void> {
  const { ids, end } = await written(path);
  const file = await open(path, 'a');
  const producer = await Producer.connect(options);
  const controller = new AbortController();
  void signalled().then(() => controller.abort(new Error('interrupted')));
  try {
    await file.truncate(end);
    const { signal } = controller;
    // What was written before the process died is still in the queue: it is taken out of it and not written again.
    for await (const result of producer.results({ follow: follow === true, signal })) {
      if (ids.has(result.id)) continue;
      await file.write(`${JSON.stringify(result)}\n`);
      await file.datasync(); // before the queue forgets it
      ids.add(result.id);
    }
  } catch (error) {
    if (!controller.signal.aborted) throw error;
  } finally {
    await file.close();
    await producer.close();
  }
  process.stderr.write(`${ids.size} results in ${path}\n`);
}

function program(): Command {
  const command = new Command('gemma-native-server').exitOverride();
  const queueCommand = (name: string, description: string) =>
    command
      .command(name)
      .exitOverride()
      .description(description)
      .requiredOption('--queue <name>', 'the queue')
      .requiredOption('--redis <url>', 'redis://[:password@]host[:port][/database]');
  queueCommand('worker', 'Computes the jobs of a queue, until SIGINT or SIGTERM.')
    .requiredOption('--model <model>', 'GGUF file, folder, demo, hf:org/repo, ollama:model, lmstudio:org/repo')
    .option('--mmproj <file>', 'vision encoder')
    .option('--device <name>', 'auto, cpu, cuda, ... (GEMMA_DEVICE)')
    .option('--threads <n>', 'threads that compute (GEMMA_THREADS)', integer)
    .option('--context <n>', 'positions of prompt and answer together', integer)
    .addOption(new Option('--kv <type>', 'type of the key/value cache').choices(['f32', 'f16', 'q8_0']))
    .option('--concurrency <n>', 'jobs that are computed at the same time; default 16', integer)
    .option('--lock <seconds>', 'a job whose worker is silent for so long goes to another one; default 30', integer)
    .option('--max-deaths <n>', 'a job that takes down so many workers is set aside; default 5', integer)
    .option('--remote-images', 'fetch pictures that jobs name by http(s) URLs')
    .option('--local-images', 'read pictures that jobs name by paths of this machine')
    .option('--metrics-port <n>', '/metrics and /health on this port', integer)
    .option('--metrics-host <address>', 'where', '127.0.0.1')
    .action((flags: WorkerFlags) => work(flags));
  queueCommand(
    'enqueue',
    'Puts the lines of a JSONL file into a queue: {"id", "prompt" | "messages" | "embed" | "embedImage", "options"}.',
  )
    .argument('<file>')
    .option('--max-waiting <n>', 'wait while so many are in the queue; default 10000', integer)
    .action((file: string, flags: QueueOptions & { maxWaiting?: number }) => enqueue(file, flags));
  queueCommand('collect', 'Writes results to a JSONL file, a line each, until nothing is in the queue.')
    .argument('<file>')
    .option('--follow', 'go on until SIGINT')
    .action((file: string, flags: QueueOptions & { follow?: true }) => collect(file, flags));
  return command;
}

/** Runs a command line and returns the exit code. */
export async function queueMain(argv: readonly string[]): Promise<number> {
  try {
    await program().parseAsync(argv);
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2; // commander has said why
    process.stderr.write(`gemma-native-server: ${(error as Error).message}\n`);
    return error instanceof TypeError && !(error instanceof GemmaError) ? 2 : 1;
  }
}
