// Documents by their relevance to a query: each is asked about in a prompt of its own, whose beginning all of them share.
import { inParallel, type Cancellation } from './cancellation.js';
import { encodeAnswers, PROMPTS_AT_ONCE, softmax, wholeLogprobs, type Scorer } from './decide.js';
import { GemmaError } from './errors.js';
import type { PromptSettings } from './options.js';
import type { Layout } from './prompt.js';
import { decodeTokens, encodeParts } from './token-text.js';

/** A document with how relevant it is to the query. */
export interface RankedDocument {
  /** of the document in the list that was given */
  index: number;
  /** probability that the model finds it relevant: that of `Yes` against `No`, 0 to 1 */
  score: number;
  document: string;
}

const INSTRUCTION = 'Decide whether a document is relevant to a query: whether it helps to answer it.';

interface Ranking {
  query: string;
  instruction?: string;
  truncate: boolean;
  prompt: PromptSettings;
}

// What is the same for all documents stands first, so that it is computed once.
function rankingText({ query, instruction = INSTRUCTION }: Ranking, document: string, isTurn: boolean): string {
  const asked = 'Is the document relevant to the query? Answer with Yes or No.';
  return `${instruction}\n\nQuery: ${query}\n\nDocument: ${document}\n\n${asked}${isTurn ? '' : '\nAnswer:'}`;
}

async function rankingLayout(
  { prompts, info, live }: Scorer,
  ranking: Ranking,
  document: string,
  i: number,
  isTurn: boolean,
  signal: AbortSignal,
): Promise<Layout> {
  const { contextSize, longestToken } = info;
  // One position is left: rows tell what follows them, and what is asked of the last has one token.
  const room = contextSize - 1;
  const layOut = (text: string) =>
    prompts.layOut(rankingText(ranking, text, isTurn), { ...ranking.prompt, raw: !isTurn }, { signal });
  const tooLong = (found: string) =>
    new GemmaError(
      'ERR_CONTEXT_FULL',
      `documents[${i}]: ${found} do not fit into the context of ${contextSize} positions beside the query; cut it (truncate: true ` +
        'cuts its end off), or load the model with a larger contextSize',
      'CONTEXT_OVERFLOW',
    );
  const { length } = document;
  const most = contextSize * longestToken; // no context holds more characters
  if (length > most && !ranking.truncate) throw tooLong(`${length} characters`);
  const whole = await layOut(length > most ? document.slice(0, most) : document);
  if (whole.tokens.length <= room) return whole;
  if (!ranking.truncate) throw tooLong(`${whole.tokens.length} tokens`);
  const empty = await layOut('');
  if (empty.tokens.length >= room) {
    throw new GemmaError(
      'ERR_CONTEXT_FULL',
      `query: it takes ${empty.tokens.length} tokens with the instruction, and the context has ${contextSize} positions`,
      'CONTEXT_OVERFLOW',
    );
  }
  const tokens = await encodeParts(live(), [document.slice(0, most)], { signal });
  // At its borders the document's tokens may be others beside the words around it, so it may take a few attempts.
  for (let keep = room - empty.tokens.length; keep > 0; keep -= 4) {
    const cut = await decodeTokens(live(), tokens.subarray(0, keep), { special: true, signal });
    const layout = await layOut(cut.replace(/\ufffd+$/, '')); // bytes of a character that was cut
    if (layout.tokens.length <= room) return layout;
  }
  return empty;
}

/** Asks of each document whether it is relevant. Results in the order of the documents. */
export async function relevance(
  scorer: Scorer,
  documents: readonly string[],
  ranking: Ranking,
  cancellation: Cancellation,
  onProgress: (fraction: number) => void = () => {},
): Promise<number[]> {
  const isTurn = scorer.isTurn('', ranking.prompt);
  const candidates = await encodeAnswers(scorer, ['Yes', 'No'], { isTurn, isContinued: !isTurn }, cancellation.signal);
  let done = 0;
  return inParallel(
    documents,
    PROMPTS_AT_ONCE,
    async (document, i, each) => {
      const layout = await rankingLayout(scorer, ranking, document, i, isTurn, each.signal);
      const prompt = await scorer.prompts.fill(layout, each, () => {});
      const [yes = NaN] = softmax(wholeLogprobs(candidates, await scorer.score(prompt, candidates, each)));
      onProgress(++done / documents.length);
      return yes;
    },
    cancellation,
  );
}
