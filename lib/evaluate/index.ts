// What of evaluation is public. The rest is loaded with the first call: a program that asks a model for text is not to wait for it.
import type { Gemma } from '../gemma.js';
import type { EvaluateOptions, EvaluationModel } from './evaluate.js';
import type { EvaluationResult } from './report.js';
import type { EvaluationTask } from './task.js';

/**
 * Puts tasks to models and says how well each does, with confidence intervals and paired tests against the first: perplexity of texts, multiple
 * choice by log-likelihood, answers judged by scorers, and how much of a corpus a model knows by heart. Models are loaded one after the
 * other; of each, many examples are computed at once. With `output` it goes on where it was ended. See the guide to evaluation.
 *
 * @param models paths, loaded models, or either with a name, options of `load` and adapters
 * @throws TypeError, RangeError; GemmaError `ERR_INVALID_ARGUMENT` (`BAD_LINE`, `BAD_REGEX`: a line of a task, named with its file; `EMPTY`),
 * `ERR_FILE` (`IN_USE`, `NOT_A_BATCH`, `OTHER_INPUT`: the output has results of other examples or settings, `DISK_FULL`); as `Gemma.load`; the
 * signal's reason after an abort. An example that fails alone is counted in `failures`.
 */
export async function evaluate(
  models: readonly (string | URL | Gemma | EvaluationModel)[],
  tasks: readonly EvaluationTask[],
  options: EvaluateOptions = {},
): Promise<EvaluationResult> {
  const { runEvaluation } = require('./evaluate.js') as typeof import('./evaluate.js');
  return runEvaluation(models, tasks, options);
}

/**
 * A result as a table of Markdown, or as text in columns: a row for each metric of each task, a column for each model, with confidence
 * intervals and the probabilities of the paired tests.
 */
export function evaluationTable(result: EvaluationResult, format: 'text' | 'markdown' = 'text'): string {
  return (require('./report.js') as typeof import('./report.js')).tableOf(result, format);
}
