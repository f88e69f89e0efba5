// From outcomes to a table: each model's score of each task with its interval, and how the others compare with the first.
import { METRICS, type MetricName, type Outcome } from './outcome.js';
import { mcnemar, pairedT, ratio, wilson, type Measured } from './statistics.js';
import type { EvaluationKind } from './task.js';

/** A score of one model. */
export interface EvaluationScore {
  model: string;
  task: string;
  metric: MetricName;
  /** The proportion, mean or ratio. */
  value: number;
  /** Ends of its 95 % confidence interval: Wilson's of a proportion, else by Student's t. Absent where one example tells nothing. */
  low?: number;
  high?: number;
  /** Examples it is over. */
  n: number;
}

/** A model beside the first one, over the examples that both have answered. */
export interface EvaluationComparison {
  model: string;
  /** the first one's name */
  baseline: string;
  task: string;
  metric: MetricName;
  /** The model's score less the first one's; of perplexities the ratio of the two. */
  difference: number;
  /** The two-sided probability of a difference as large if there is none: McNemar's exact test of right and wrong, else the paired t-test. */
  pValue?: number;
  test: 'mcnemar' | 'paired-t';
  /** Pairs. */
  n: number;
  /** Of McNemar's test: examples that only this model has (right), and that only the first one has. */
  onlyModel?: number;
  onlyBaseline?: number;
}

export interface EvaluationResult {
  models: string[];
  tasks: { name: string; kind: EvaluationKind; examples: number }[];
  scores: EvaluationScore[];
  /** Of each model but the first. Many comparisons find a difference by chance: these probabilities are of each alone. */
  comparisons: EvaluationComparison[];
  /** Examples whose call failed; they are in no score. */
  failures: { model: string; task: string; failed: number; message: string }[];
  /** Examples with a result, all models together; of these, what earlier runs had done. */
  examples: number;
  resumed: number;
  /** With `output`. */
  path?: string;
}

/** Outcomes of a model, task by task. */
export type Outcomes = readonly (readonly Outcome[])[];

const measuresOf = (outcomes: readonly Outcome[], metric: MetricName): Map<string, Measured> =>
  new Map(
    outcomes.flatMap(({ id, scores }) => {
      const found = scores?.get(metric);
      return found ? [[id, found] as const] : [];
    }),
  );

function scoreOf(metric: MetricName, measured: readonly Measured[]): Pick<EvaluationScore, 'value' | 'low' | 'high'> {
  const { isProportion, isExponential } = METRICS[metric];
  if (isProportion) {
    const count = measured.reduce((sum, { amount }) => sum + amount, 0);
    const [low, high] = wilson(count, measured.length);
    return { value: count / measured.length, low, high };
  }
  const { value, interval } = ratio(measured);
  const shown = isExponential ? Math.exp : (x: number) => x;
  return { value: shown(value), ...(interval && { low: shown(interval[0]), high: shown(interval[1]) }) };
}

function comparisonOf(
  metric: MetricName,
  mine: ReadonlyMap<string, Measured>,
  first: ReadonlyMap<string, Measured>,
): Omit<EvaluationComparison, 'model' | 'baseline' | 'task'> | undefined {
  const pairs = [...mine].flatMap(([id, measured]) => {
    const other = first.get(id);
    return other ? [[measured, other] as const] : [];
  });
  const n = pairs.length;
  if (n === 0) return undefined;
  const { isProportion, isExponential } = METRICS[metric];
  if (isProportion) {
    const onlyModel = pairs.filter(([a, b]) => a.amount > b.amount).length;
    const onlyBaseline = pairs.filter(([a, b]) => a.amount < b.amount).length;
    const pValue = mcnemar(onlyModel, onlyBaseline);
    return { metric, difference: (onlyModel - onlyBaseline) / n, pValue, test: 'mcnemar', n, onlyModel, onlyBaseline };
  }
  // Of other tokens a perplexity is another measure.
  if (metric === 'perplexity' && pairs.some(([a, b]) => a.weight !== b.weight)) return undefined;
  const { difference, pValue } = pairedT(
    pairs.map(([a]) => a),
    pairs.map(([, b]) => b),
  );
  return {
    metric,
    difference: isExponential ? Math.exp(difference) : difference,
    ...(pValue !== undefined && { pValue }),
    test: 'paired-t',
    n,
  };
}

/** Scores and comparisons of all models, task by task. */
export function summarize(
  models: readonly string[],
  tasks: readonly string[],
  outcomes: readonly Outcomes[],
): Pick<EvaluationResult, 'scores' | 'comparisons'> {
  const scores: EvaluationScore[] = [];
  const comparisons: EvaluationComparison[] = [];
  for (const [t, task] of tasks.entries()) {
    for (const metric of Object.keys(METRICS) as MetricName[]) {
      const all = models.map((_, m) => measuresOf(outcomes[m]?.[t] ?? [], metric));
      for (const [m, model] of models.entries()) {
        const measured = [...(all[m]?.values() ?? [])];
        if (measured.length === 0) continue;
        scores.push({ model, task, metric, ...scoreOf(metric, measured), n: measured.length });
        const compared = m > 0 && all[0] && comparisonOf(metric, all[m] ?? new Map<string, Measured>(), all[0]);
        if (compared) comparisons.push({ model, baseline: models[0] ?? '', task, ...compared });
      }
    }
  }
  return { scores, comparisons };
}

const digits = (metric: MetricName, value: number): string => {
  if (METRICS[metric].isProportion || metric === 'json_fields') return `${(100 * value).toFixed(1)} %`;
  return value.toFixed(value < 10 ? 3 : value < 1000 ? 2 : 0);
};

const probability = (p: number): string => (p < 0.001 ? '< 0.001' : p.toFixed(3));

/** The cells of the table: a header, then a row for each metric of each task. */
function rowsOf({ models, scores, comparisons }: EvaluationResult): string[][] {
  const rows: string[][] = [['task', 'metric', 'n', ...models]];
  const keys = new Map(scores.map((score) => [`${score.task}\n${score.metric}`, score]));
  for (const { task, metric } of keys.values()) {
    const isOf = (of: { task: string; metric: MetricName }) => of.task === task && of.metric === metric;
    const mine = scores.filter(isOf);
    const counts = [...new Set(mine.map(({ n }) => n))];
    const arrow = METRICS[metric].better === 'higher' ? '' : ' (lower is better)';
    const cells = models.map((model) => {
      const score = mine.find((of) => of.model === model);
      if (!score) return '-';
      const { value, low, high, n } = score;
      const interval =
        low === undefined || high === undefined ? '' : ` [${digits(metric, low)}, ${digits(metric, high)}]`;
      const pValue = comparisons.find((of) => isOf(of) && of.model === model)?.pValue;
      const test = pValue === undefined ? '' : `, p ${pValue < 0.001 ? '' : '= '}${probability(pValue)}`;
      return `${digits(metric, value)}${interval}${test}${counts.length > 1 ? `, n = ${n}` : ''}`;
    });
    rows.push([task, `${metric}${arrow}`, counts.join('/'), ...cells]);
  }
  return rows;
}

const COLUMN_LEGEND =
  '95 % confidence intervals in brackets; p: that a difference from the first model as large comes by chance.';

/** See `evaluationTable` in index.ts. */
export function tableOf(result: EvaluationResult, format: 'text' | 'markdown' = 'text'): string {
  const rows = rowsOf(result);
  const failures = result.failures.map(
    ({ model, task, failed, message }) => `${model}, ${task}: ${failed} failed, the first: ${message}`,
  );
  if (format === 'markdown') {
    const cell = (text: string) => text.replace(/[|\\`*_<>[\]]/g, '\\$&').replace(/\s+/g, ' ');
    const [header = [], ...body] = rows.map((row) => `| ${row.map(cell).join(' | ')} |`);
    const line = `|${rows[0]?.map(() => ' --- |').join('') ?? ''}`;
    return [String(header), line, ...body, '', COLUMN_LEGEND, ...failures.map((text) => `\n${cell(text)}`), ''].join(
      '\n',
    );
  }
  const widths = (rows[0] ?? []).map((_, i) => Math.max(...rows.map((row) => row[i]?.length ?? 0)));
  const lines = rows.map((row) => row.map((text, i) => text.padEnd(widths[i] ?? 0)).join('  ').trimEnd()); // prettier-ignore
  return [...lines, '', COLUMN_LEGEND, ...failures, ''].join('\n');
}
