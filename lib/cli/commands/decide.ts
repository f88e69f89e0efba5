// gemma-native decide: a question about a text or pictures, with a probability for each answer.
import type { ChoiceQuestion, Decision, Question } from '../../index.js';
import {
  adapterOptions,
  collect,
  imageOptions,
  number,
  pairOf,
  using,
  withAdapters,
  withImages,
  withModel,
  type DefineCommand,
  type ImageFlags,
  type ModelFlags,
} from '../options.js';
import { printJson, printLine, table, UsageError } from '../output.js';

interface DecideFlags extends ModelFlags, ImageFlags {
  raw?: boolean;
  question?: string;
  verbatim?: boolean;
  choice?: string[];
  letters?: boolean;
  min?: number;
  max?: number;
  level?: string[];
  calibrate?: boolean;
  temperature?: number;
}

// Of all kinds one: choices, a scale, or yes and no.
function kindOf({ choice, letters, min, max, level }: DecideFlags): Question {
  const isScale = min !== undefined || max !== undefined || level !== undefined;
  if (choice && isScale) throw new UsageError('--choice: a question has choices or a scale, not both');
  if (letters && !choice) throw new UsageError('--letters: needs --choice');
  if (choice) {
    const choices: ChoiceQuestion['choices'] = Object.fromEntries(
      choice.map((text) => (text.includes('=') ? pairOf('--choice', text) : [text, ''])),
    );
    return { type: 'choice', choices, ...(letters && { answers: 'letters' }) };
  }
  if (!isScale) return { type: 'boolean' };
  return {
    type: 'score',
    ...(min !== undefined && { min }),
    ...(max !== undefined && { max }),
    ...(level && { levels: level }),
  };
}

const percent = (p: number) => `${(p * 100).toFixed(2).padStart(6)} %`;

function rowsOf(decision: Decision): string[][] {
  if ('distribution' in decision) {
    return decision.distribution.map(({ value, level, probability }) => [
      percent(probability),
      String(value),
      ...(level === undefined ? [] : [level]),
    ]);
  }
  return Object.entries(decision.probabilities as Record<string, number>)
    .toSorted(([, a], [, b]) => b - a)
    .map(([name, probability]) => [percent(probability), name]);
}

async function decide(input: string, flags: DecideFlags, signal: AbortSignal): Promise<void> {
  const { raw, question, verbatim, calibrate, temperature } = flags;
  const kind = kindOf(flags);
  await using(flags, signal, async (gemma) => {
    const decision = await gemma.decide(input, {
      ...kind,
      ...imageOptions(flags),
      ...adapterOptions(flags),
      ...(raw !== undefined && { raw }),
      ...(question !== undefined && { question }),
      ...(verbatim && { verbatim }),
      ...(calibrate && { calibrate }),
      ...(temperature !== undefined && { temperature }),
      signal,
    });
    if (flags.json) {
      printJson(decision);
      return;
    }
    const { value, coverage } = decision;
    printLine(typeof value === 'number' ? value.toFixed(3) : String(value));
    printLine(table(rowsOf(decision)));
    printLine(`The model gives one of these answers with a probability of ${percent(coverage).trim()}.`);
  });
}

export function addDecide(command: DefineCommand, signal: AbortSignal): void {
  withAdapters(
    withImages(
      withModel(command('decide <input>', 'answer yes or no, with a choice or with a number, with probabilities')),
    ),
  )
    .option('--question <text>', 'what is asked about the input; default: the input asks it')
    .option('--verbatim', 'put nothing behind the input, which says all of it')
    .option('--choice <name>', 'what there is to choose from, NAME or NAME=DESCRIPTION; as often as wanted', collect)
    .option('--letters', 'choices are answered by letters')
    .option('--min <n>', 'lowest number of a scale', number)
    .option('--max <n>', 'highest number of a scale', number)
    .option('--level <text>', 'what the next number of a scale means; as often as wanted', collect)
    .option('--calibrate', 'divide by how likely each answer is to inputs without content')
    .option('--temperature <t>', 'above 1 less sure, below 1 surer', number)
    .option('--raw', 'the input is text to continue, also with an instruction-tuned model')
    .option('--no-raw', 'the input is a turn of a conversation, also without a chat template')
    .option('--image <file>', 'a picture before the input; as often as wanted', collect)
    .action((input: string, flags: DecideFlags) => decide(input, flags, signal));
}
