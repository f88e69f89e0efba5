// gemma-native finetune: a file of examples to an adapter.
import { Option, type Command } from 'commander';
import { Gemma, type FinetuneOptions, type FinetuneProgress, type FinetuneTarget } from '../../index.js';
import { thinned } from '../../finetune/chart.js';
import { TARGETS } from '../../finetune/options.js';
import { number, tokenList, type DefineCommand } from '../options.js';
import { dim, duration, printJson, printLine } from '../output.js';
import { workProgress } from '../work-progress.js';

// What is written otherwise on a command line.
type Written = 'model' | 'data' | 'output' | 'targets' | 'layers' | 'validation' | 'mmproj' | 'onProgress' | 'signal';

interface FinetuneFlags extends Omit<FinetuneOptions, Written> {
  output: string;
  targets?: string;
  layers?: string;
  validation?: string;
  mmproj?: string | false;
  json?: boolean;
}

const CURVE = 24; // characters
const LEVELS = '▁▂▃▄▅▆▇█';

/** A curve of one line. */
function sparkline(points: readonly { step: number; loss: number }[]): string {
  const losses = thinned(points, CURVE).map(({ loss }) => loss);
  const low = Math.min(...losses);
  const range = Math.max(...losses) - low || 1;
  return losses.map((loss) => LEVELS[Math.round(((loss - low) / range) * (LEVELS.length - 1))]).join('');
}

/** A bar with the curve of the loss on a terminal, else a line from time to time. */
function trainingProgress(silent: boolean) {
  const { update, stop } = workProgress('[{bar}] {value}/{total} {curve} {told}', { barsize: 16 });
  const points: { step: number; loss: number }[] = [];
  let validation = '';
  const tell = (progress: FinetuneProgress) => {
    const { step, steps, loss, validationLoss, learningRate, tokensPerSecond, secondsLeft } = progress;
    points.push({ step, loss });
    if (validationLoss !== undefined) validation = `, validation ${validationLoss.toFixed(4)}`;
    const told = `loss ${loss.toFixed(4)}${validation}, ${Math.round(tokensPerSecond)} tokens/s, ${duration(secondsLeft)} left`;
    update({
      value: step,
      total: steps,
      bar: () => ({ curve: dim(sparkline(points)), told }),
      line: () => `step ${step} of ${steps}: ${told}, rate ${learningRate.toExponential(2)}`,
      isNews: validationLoss !== undefined,
    });
  };
  return { update: silent && !process.stderr.isTTY ? () => {} : tell, stop };
}

function optionsOf(model: string, data: string, flags: FinetuneFlags): FinetuneOptions {
  const { targets, layers, validation, json: _, ...others } = flags;
  const share = validation === undefined ? NaN : Number(validation);
  return {
    model,
    data,
    ...others,
    ...(targets !== undefined && { targets: targets.split(',') as FinetuneTarget[] }),
    ...(layers !== undefined && { layers: tokenList(layers) }),
    ...(validation !== undefined && { validation: Number.isNaN(share) ? validation : share }),
  };
}

async function finetune(model: string, data: string, flags: FinetuneFlags, signal: AbortSignal): Promise<void> {
  const progress = trainingProgress(!!flags.json);
  try {
    const result = await Gemma.finetune({ ...optionsOf(model, data, flags), onProgress: progress.update, signal });
    progress.stop();
    if (flags.json) return printJson(result);
    const { path, steps, epochs, loss, validationLoss, bestStep, stoppedEarly, seconds, resumedSteps } = result;
    const before = resumedSteps > 0 ? ` (${resumedSteps} of them before)` : '';
    printLine(`${path}: ${steps} steps${before}, ${epochs.toFixed(1)} passes through the data in ${duration(seconds)}`);
    printLine(`loss ${loss.toFixed(4)} in the last pass`);
    if (validationLoss !== undefined) {
      const early = stoppedEarly ? '; training ended early' : '';
      printLine(`validation loss ${validationLoss.toFixed(4)}, that of step ${bestStep}, which was kept${early}`);
    }
  } finally {
    progress.stop();
  }
}

// Commander sets a default of true for an option that has a form with "no".
function withoutDefaults(flags: FinetuneFlags): FinetuneFlags {
  if ((flags.mmproj as unknown) === true) delete flags.mmproj;
  return flags;
}

export function addFinetune(command: DefineCommand, signal: AbortSignal): void {
  const summary = 'train an adapter on a file of examples (JSON lines); the same command goes on where it was ended';
  const withNumbers = (defined: Command, ...options: readonly (readonly [string, string])[]) =>
    options.reduce((to, [flag, text]) => to.option(flag, text, number), defined);
  const defined = command('finetune <model> <data>', summary)
    .requiredOption('--output <folder>', 'where the adapter goes, as PEFT has it')
    .option('--rslora', 'count the change alpha / sqrt(rank) times')
    .option('--targets <names>', `matrices that are trained, with commas between (${TARGETS.join(',')})`)
    .option('--layers <numbers>', 'layers that are trained, with commas between (all)')
    .option('--adapter <path>', 'go on from this adapter')
    .addOption(new Option('--loss <loss>', 'what is minimised').choices(['next-token', 'distillation', 'dpo']))
    .option('--teacher <model>', 'learn from this model')
    .addOption(new Option('--too-long <what>', 'of longer examples (error)').choices(['error', 'cut', 'skip']))
    .option('--no-packing', 'a row for each example')
    .addOption(
      new Option('--schedule <schedule>', 'of the learning rate (cosine)').choices(['constant', 'cosine', 'linear']),
    )
    .addOption(new Option('--optimizer <optimizer>', '(adamw)').choices(['adamw', 'sgd']))
    .option('--validation <share|file>', 'examples that are set apart: a share of the data, or a file')
    .option('--resume', 'go on from a run that was ended, where there is one (default)')
    .option('--no-resume', 'begin anew')
    .option('--overwrite', 'replace the output')
    .option('--gguf', "also write the adapter as llama.cpp's, adapter.gguf")
    .option('--base-model <name>', "what adapter_config.json calls the model (the model's name)")
    .option('--isa <name>', 'force an instruction set')
    .option('--mmproj <file>', 'vision encoder; default: the one beside the model or inside of it')
    .option('--no-mmproj', 'without vision encoder')
    .option('--json', 'print one JSON object');
  withNumbers(
    defined,
    ['--rank <r>', "of the adapter's matrices (8)"],
    ['--alpha <a>', 'the change counts alpha / rank times (2 * rank)'],
    ['--dropout <share>', "of an adapter's inputs (0)"],
    ['--teacher-top-k <k>', "of a teacher's tokens, the likeliest (64)"],
    ['--temperature <t>', 'of distillation (1)'],
    ['--teacher-share <share>', "how much the teacher counts beside the examples' tokens (1)"],
    ['--beta <b>', 'of dpo (0.1)'],
    ['--epochs <n>', 'passes through the data (3)'],
    ['--steps <n>', 'steps, instead of epochs'],
    ['--batch-size <n>', 'examples of a step (8)'],
    ['--max-length <n>', 'tokens of an example (512)'],
    ['--learning-rate <rate>', 'the highest (2e-4; dpo 2e-5)'],
    ['--warmup <n>', 'steps in which it rises, or their share (0.03)'],
    ['--weight-decay <d>', '(0.01)'],
    ['--clip <norm>', 'of gradients, 0: never (1)'],
    ['--seed <n>', 'the same seed gives the same adapter'],
    ['--evaluate-every <n>', 'steps between evaluations (once in a pass)'],
    ['--patience <n>', 'evaluations without a better one, after which training ends'],
    ['--checkpoint-every <n>', 'steps between checkpoints (50)'],
    ['--threads <n>', 'threads that compute (the cores but one)'],
  ).action((model: string, data: string, flags: FinetuneFlags) =>
    finetune(model, data, withoutDefaults(flags), signal),
  );
}
