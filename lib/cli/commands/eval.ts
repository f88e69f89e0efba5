// gemma-native eval: tasks put to models, side by side in one table.
import { writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, dirname, extname, isAbsolute, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Option } from 'commander';
import {
  evaluate,
  evaluationTable,
  type EvaluateOptions,
  type EvaluationModel,
  type EvaluationProgress,
  type EvaluationTask,
  type ScorerName,
} from '../../index.js';
import { SCORER_NAMES } from '../../evaluate/scorers.js';
import {
  adapterFlag,
  collect,
  imageOptions,
  jsonFrom,
  loadOptionsOf,
  number,
  samplingOptions,
  withImages,
  withModel,
  withSampling,
  type AdapterFlag,
  type DefineCommand,
  type ImageFlags,
  type ModelFlags,
  type SamplingFlags,
} from '../options.js';
import { duration, printJson, printLine, printable, UsageError } from '../output.js';
import { workProgress } from '../work-progress.js';

interface EvalFlags extends Omit<ModelFlags, 'model'>, ImageFlags, SamplingFlags {
  model: string[];
  adapter?: AdapterFlag[];
  output?: string;
  overwrite?: boolean;
  markdown?: string | true;
  scorer?: ScorerName;
  fewShot?: number;
  fewShotSeed?: number;
  system?: string;
  raw?: boolean;
  limit?: number;
  memorization?: boolean;
  samples?: number;
  scan?: boolean;
  remote?: boolean;
  concurrency?: number;
}

const SCAN_PACKAGE = 'gemma-native-privacy';

/** A model alone, and with each adapter. */
function modelsOf({ model, adapter = [], ...flags }: EvalFlags): EvaluationModel[] {
  const load = loadOptionsOf(flags);
  const several = new Set(model.map((path) => basename(path))).size < model.length;
  return model.flatMap((path) => {
    const name = several ? path : basename(path).replace(/\.gguf$/i, '');
    return [
      { name, model: path, load },
      ...adapter.map(({ path: file, scale }) => ({
        name: `${name} + ${basename(file)}${scale === 1 ? '' : `*${scale}`}`,
        model: path,
        load: { ...load, adapters: { adapter: file } },
        adapter: { adapter: scale },
      })),
    ];
  });
}

/** A task's file: JSON lines, or JSON with settings, whose paths are relative to it. */
function taskOf(path: string, flags: EvalFlags): EvaluationTask {
  const reading = imageOptions(flags);
  const generate = {
    ...samplingOptions(flags),
    ...(reading.panAndScan && { panAndScan: true }),
    ...(reading.tile !== undefined && { tile: reading.tile }),
    ...(reading.alpha !== undefined && { alpha: reading.alpha }),
    ...(flags.remote && { allowRemote: true }),
  };
  const { scorer, fewShot, fewShotSeed, system, raw, limit, samples } = flags;
  const own: EvaluationTask | undefined =
    extname(path) === '.json' ? (jsonFrom(path, 'tasks') as EvaluationTask) : undefined;
  const isObject = typeof own === 'object' && (own as unknown) !== null && !Array.isArray(own);
  if (extname(path) === '.json' && !isObject) throw new UsageError(`tasks: expected an object with data in ${path}`);
  const beside = (file: unknown) =>
    typeof file === 'string' && !isAbsolute(file) && !/^file:/i.test(file) ? join(dirname(path), file) : file;
  const examples = own?.fewShot?.examples;
  return {
    name: basename(path, extname(path)),
    ...own,
    data: (own ? beside(own.data) : path) as EvaluationTask['data'],
    ...(own?.fewShot && {
      fewShot: { ...own.fewShot, ...(examples !== undefined && { examples: beside(examples) as string }) },
    }),
    ...(scorer && { scorer }),
    ...(fewShot !== undefined && { fewShot: { n: fewShot, ...(fewShotSeed !== undefined && { seed: fewShotSeed }) } }),
    ...(system !== undefined && { system }),
    ...(raw !== undefined && { raw }),
    ...(limit !== undefined && { limit }),
    ...(flags.memorization && { memorization: samples === undefined ? true : { samples } }),
    generate: { ...own?.generate, ...generate },
  };
}

/** The scan of the package that has one. */
async function scanner(): Promise<NonNullable<EvaluateOptions['scan']>> {
  // From where the command is run, so that a project's own is found beside a global installation.
  for (const from of [join(process.cwd(), 'x.js'), __filename]) {
    let path: string;
    try {
      path = createRequire(from).resolve(SCAN_PACKAGE);
    } catch {
      continue;
    }
    const { scanText } = (await import(pathToFileURL(path).href)) as {
      scanText?: NonNullable<EvaluateOptions['scan']>;
    };
    if (scanText) return scanText;
  }
  throw new UsageError(`--scan: needs the package ${SCAN_PACKAGE}: npm install ${SCAN_PACKAGE}`);
}

function evaluationProgress(silent: boolean) {
  const { update, stop } = workProgress('[{bar}] {value}/{total} {told}');
  const tell = ({ model, done, total, failed, secondsLeft }: EvaluationProgress) => {
    const told = `${printable(model)}${failed > 0 ? `, ${failed} failed` : ''}, ${duration(secondsLeft)} left`;
    update({ value: done, total, bar: () => ({ told }), line: () => `${done}/${total}: ${told}` });
  };
  return { update: silent ? () => {} : tell, stop };
}

async function evaluateTasks(paths: readonly string[], flags: EvalFlags, signal: AbortSignal): Promise<void> {
  if (flags.samples !== undefined && !flags.memorization) throw new UsageError('--samples: needs --memorization');
  if (flags.fewShotSeed !== undefined && flags.fewShot === undefined) {
    throw new UsageError('--few-shot-seed: needs --few-shot');
  }
  const { output, concurrency, markdown } = flags;
  const scan = flags.scan ? await scanner() : undefined;
  const progress = evaluationProgress(!!flags.json);
  try {
    const result = await evaluate(
      modelsOf(flags),
      paths.map((path) => taskOf(path, flags)),
      {
        ...(output !== undefined && { output }),
        ...(flags.overwrite && { overwrite: true }),
        ...(concurrency !== undefined && { concurrency }),
        ...(scan && { scan }),
        onProgress: progress.update,
        signal,
      },
    );
    progress.stop();
    if (typeof markdown === 'string') writeFileSync(markdown, evaluationTable(result, 'markdown'));
    if (flags.json) printJson(result);
    else printLine(printable(evaluationTable(result, markdown === true ? 'markdown' : 'text')).trimEnd());
  } finally {
    progress.stop();
  }
}

export function addEval(command: DefineCommand, signal: AbortSignal): void {
  const summary =
    'how well models do tasks: perplexity, multiple choice, answers, memorisation; side by side in a table';
  const defined = withSampling(withImages(withModel(command('eval <tasks...>', summary), collect)));
  defined
    .option(
      '--adapter <path>',
      'evaluate every model with this adapter as well (PATH or PATH=SCALE); as often as wanted',
      adapterFlag,
    )
    .option('--output <file>', 'results, a JSON line for each example; the same command goes on from it')
    .option('--overwrite', 'begin the output anew')
    .option('--markdown [file]', 'write the table as Markdown, to a file or instead of the text')
    .addOption(new Option('--scorer <name>', 'how answers are judged').choices(SCORER_NAMES))
    .option('--few-shot <n>', 'examples that are shown before each question', number)
    .option('--few-shot-seed <s>', 'draw them, the same ones for the same seed; else the first', number)
    .option('--system <text>', 'an instruction before each question')
    .option('--raw', 'put questions as text to continue, also to an instruction-tuned model')
    .option('--no-raw', 'put questions as user turns, also without a chat template')
    .option('--limit <n>', 'only the first examples of each task', number)
    .option('--memorization', 'how much of the texts a model continues by heart, 50 tokens after 50')
    .option('--samples <n>', 'with --memorization: samples that are drawn (1000)', number)
    .option('--scan', `look for personal data in what models write; needs the package ${SCAN_PACKAGE}`)
    .option('--remote', 'fetch pictures from public http(s) addresses that lines name')
    .option('--concurrency <n>', 'examples that are worked on at once (64)', number)
    .action((tasks: string[], flags: EvalFlags) => evaluateTasks(tasks, flags, signal));
}
