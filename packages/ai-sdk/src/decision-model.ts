// A decision model of the AI SDK (specification v4, experimental there) over `gemma.decide`: probabilities from one pass, nothing is
// generated.
import type {
  Experimental_DecisionModelV4 as DecisionModelV4,
  Experimental_DecisionModelV4Answer as Answer,
  Experimental_DecisionModelV4CallOptions as CallOptions,
  Experimental_DecisionModelV4Input as Input,
  Experimental_DecisionModelV4Question as Question,
  Experimental_DecisionModelV4Result as Result,
  SharedV4Warning,
} from '@ai-sdk/provider';
import type { BooleanDecision, ChoiceDecision, Gemma, Message, QuestionOptions, ScoreDecision } from 'gemma-native';
import { providerError } from './errors.js';
import type { ModelHandle } from './models.js';
import { decisionOptions, decisionSettings, type GemmaDecisionModelOptions } from './options.js';
import { reasoningWarnings } from './language-model.js';
import { contentOf, filePart, text } from './prompt.js';

const written = (input: Input | null | undefined) =>
  input === null || input === undefined ? '' : typeof input === 'string' ? input : JSON.stringify(input);

const lines = (...parts: string[]) => parts.filter((part) => part !== '').join('\n');

type Asked = QuestionOptions & Pick<GemmaDecisionModelOptions, 'answers'>;

async function answer(gemma: Gemma, state: Message[], question: Question, asked: Asked) {
  const { answers, ...options } = asked;
  const instructions = written(question.instructions);
  switch (question.type) {
    case 'boolean': {
      const { true: yes, false: no } = question.criteria ?? {};
      const meaning = (label: string, criterion: Input | null | undefined) =>
        written(criterion) && `${label}: ${written(criterion)}`;
      const said = lines(instructions, meaning('Yes', yes), meaning('No', no));
      const found: BooleanDecision = await gemma.decide(state, { ...options, type: 'boolean', question: said });
      return { answer: { type: 'boolean', probability: found.probabilities.true } satisfies Answer, found };
    }
    case 'choice': {
      const names = Object.keys(question.criteria);
      const [only = ''] = names;
      if (names.length < 2) {
        return { answer: { type: 'choice', choice: only, probabilities: { [only]: 1 } } satisfies Answer };
      }
      const choices = Object.fromEntries(names.map((name) => [name, written(question.criteria[name])]));
      const found: ChoiceDecision = await gemma.decide(state, {
        ...options,
        type: 'choice',
        choices,
        question: instructions || 'Which one fits best?',
        ...(answers && { answers }),
      });
      const { value, probabilities } = found;
      return { answer: { type: 'choice', choice: value, probabilities } satisfies Answer, found };
    }
    case 'score': {
      const levels = question.criteria.map((criterion, i) => written(criterion) || String(i));
      if (levels.length < 2) return { answer: { type: 'score', score: 0, probabilities: { 0: 1 } } satisfies Answer };
      const asks = instructions || 'Which level fits best?';
      const found: ScoreDecision = await gemma.decide(state, { ...options, type: 'score', levels, question: asks });
      const probabilities = Object.fromEntries(
        found.distribution.map(({ value, probability }) => [value, probability]),
      );
      return { answer: { type: 'score', score: found.value, probabilities } satisfies Answer, found };
    }
    case 'box':
      throw new TypeError('questions: Gemma gives no boxes');
  }
}

/** @internal */
export class GemmaDecisionModel implements DecisionModelV4 {
  readonly specificationVersion = 'v4';
  readonly provider = 'gemma';
  readonly modelId: string;
  readonly supportedQuestionTypes = ['boolean', 'choice', 'score'] as const;
  readonly #handle: ModelHandle;
  readonly #settings: GemmaDecisionModelOptions;

  constructor(handle: ModelHandle, settings: GemmaDecisionModelOptions | undefined) {
    this.modelId = handle.modelId;
    this.#handle = handle;
    this.#settings = decisionSettings(settings);
  }

  /** The questions are computed together, and share what was computed of the state. */
  async doDecide({ state, questions, reasoning, abortSignal, providerOptions }: CallOptions): Promise<Result> {
    const { modelId } = this;
    try {
      const warnings: SharedV4Warning[] = reasoningWarnings(reasoning);
      const options: Asked = {
        allowLocal: false,
        ...this.#settings,
        ...decisionOptions(providerOptions),
        ...(abortSignal && { signal: abortSignal }),
      };
      const parts = state.map((part) => {
        if (part.type === 'text') return text(part.text);
        return part.type === 'json' ? text(JSON.stringify(part.value)) : filePart(part);
      });
      const between = parts.flatMap((part, i) => (i > 0 && part.type === 'text' ? [text('\n\n'), part] : [part]));
      const messages: Message[] = [{ role: 'user', content: contentOf(between) }];
      const timestamp = new Date();
      const gemma = await this.#handle.get(abortSignal);
      const found = await Promise.all(
        Object.entries(questions).map(
          async ([id, question]) => [id, await answer(gemma, messages, question, options)] as const,
        ),
      );
      const coverage = Object.fromEntries(found.map(([id, { found }]) => [id, found?.coverage ?? 1]));
      return {
        answers: Object.fromEntries(found.map(([id, { answer }]) => [id, answer])),
        warnings,
        providerMetadata: { gemma: { coverage } },
        response: { timestamp, modelId },
      };
    } catch (error) {
      throw providerError(error, { modelId, input: state }, abortSignal);
    }
  }
}
