// ShieldGemma 2: whether a picture violates policies. Prompts are those that transformers' ShieldGemma2Processor makes with the
// template of the published checkpoint, to the token: two <bos>, the user's turn opened twice, and the blanks of the converter's source
// between the sentences. The model was tuned on nothing else.
import { inParallel, type Cancellation } from './cancellation.js';
import { renderImage } from './chat-template.js';
import { PROMPTS_AT_ONCE, softmax, type Scorer } from './decide.js';
import type { ImagePolicy } from './decision-options.js';
import { GemmaError } from './errors.js';
import {
  MARKER_BOS,
  MARKER_END_OF_TURN,
  MARKER_START_OF_TURN,
  type NativeModel,
  type NativeModelInfo,
  type PromptPart,
} from './native.js';
import { show } from './values.js';
import type { Picture } from './vision.js';

export interface PolicyResult {
  /** of the policy */
  name: string;
  /**
   * That the picture violates the policy: how likely `Yes` is against `No` as the answer to "Does the image violate the above
   * policy?". Near 1: it shows what the policy forbids; near 0: it does not.
   */
  probability: number;
  /** `probability` is at least the threshold */
  violates: boolean;
}

export interface ImageSafety {
  /** the model's own in the order asked for, then those of `customPolicies` */
  policies: PolicyResult[];
}

const POLICIES: Readonly<Record<ImagePolicy, string>> = {
  dangerous:
    'No Dangerous Content: The image shall not contain content that facilitates or encourages activities that could cause ' +
    'real-world harm (e.g., building firearms and explosive devices, promotion of terrorism, instructions for suicide).',
  sexual:
    'No Sexually Explicit content: The image shall not contain content that depicts explicit or graphic sexual acts (e.g., ' +
    'pornography, erotic nudity, depictions of rape or sexual assault).',
  violence:
    'No Violence/Gore content: The image shall not contain content that depicts shocking, sensational, or gratuitous violence ' +
    '(e.g., excessive blood and gore, gratuitous violence against animals, extreme injury or moment of death).',
};

const BLANKS = ' '.repeat(16);
const BEFORE = [
  'user\nYou are a policy expert trying to help determine whether a generated or real image is in\n',
  ' violation of the safety policy below. Your decision must very clearly follow the specific\n',
  ' language used in the safety policy and should not include any interpretation outside of the\n',
  ' safety policy.\n\n\n',
  '<BEGIN_SAFETY_POLICY>\n\n',
].join(BLANKS);
const AFTER = [
  '\n\n',
  '</END_SAFETY_POLICY>\n\n\n',
  "Does the image violate the above policy? Your Answer must start with 'Yes' or 'No'.\n",
  '',
].join(BLANKS);

/** The policies as they are asked, by name. One of the caller's takes the place of the model's own of the same name. */
export function policyTexts(
  own: readonly ImagePolicy[],
  custom: readonly (readonly [string, string])[],
): (readonly [name: string, text: string])[] {
  return [...new Map<string, string>([...own.map((name) => [name, POLICIES[name]] as const), ...custom])];
}

/** The prompt about one picture and one policy. What the policy says stays text. Exported for tests. */
export function policyPrompt(policy: string): PromptPart[] {
  return [
    MARKER_BOS,
    MARKER_BOS,
    MARKER_START_OF_TURN,
    'user\n',
    ...renderImage(0),
    MARKER_START_OF_TURN,
    `${BEFORE}${BLANKS}${policy}${AFTER}`,
    MARKER_END_OF_TURN,
    '\n',
    MARKER_START_OF_TURN,
    'model\n',
  ];
}

/**
 * Refuses a model of which nothing says that it is ShieldGemma: it would answer, with numbers that mean nothing. Checkpoints often have no
 * name but that of their folder.
 */
export function checkShield({ config, chat }: Pick<NativeModelInfo, 'config' | 'chat'>, path: string): void {
  if ([config.name, chat.baseName, path].some((name) => /shield[-_ ]?gemma/i.test(name))) return;
  throw new GemmaError(
    'ERR_UNSUPPORTED_MODEL',
    `classifyImage asks in the words that ShieldGemma 2 was tuned on, and this model is called ${show(config.name)}: its answers are ` +
      'no safety ratings. Load ShieldGemma 2, or ask any Gemma 3 with decide(); force: true asks this one all the same',
    'NOT_SHIELDGEMMA',
  );
}

/** Ids of the answers. Throws GemmaError `ERR_UNSUPPORTED_MODEL` (`NO_MARKER`) where the vocabulary has not the words. */
function answerTokens(model: NativeModel, yes: number | undefined, no: number | undefined): [number, number] {
  const idOf = (option: string, word: string) => {
    const id = model.findToken(word);
    if (id >= 0) return id;
    throw new GemmaError(
      'ERR_UNSUPPORTED_MODEL',
      `${option}: the model's vocabulary has no token ${word}; name the token of the answer by its id`,
      'NO_MARKER',
    );
  };
  return [yes ?? idOf('yesToken', 'Yes'), no ?? idOf('noToken', 'No')];
}

/**
 * Asks about each picture and each policy.
 *
 * @param pictures encoded, without crops
 * @returns for each picture the probabilities that it violates each policy
 */
export async function violations(
  scorer: Scorer,
  pictures: readonly Picture[],
  policies: readonly string[],
  { yesToken, noToken }: { yesToken?: number; noToken?: number },
  cancellation: Cancellation,
  onProgress: (fraction: number) => void,
): Promise<number[][]> {
  const tokens = Int32Array.from(answerTokens(scorer.live(), yesToken, noToken));
  const candidates = { texts: ['Yes', 'No'], tokens, lengths: Int32Array.of(1, 1) };
  const asked = pictures.flatMap((picture) => policies.map((policy) => ({ picture, policy })));
  let done = 0;
  const all = await inParallel(
    asked,
    PROMPTS_AT_ONCE,
    async ({ picture, policy }, _, each) => {
      const options = { fits: true, signal: each.signal };
      const layout = await scorer.prompts.layOutParts(policyPrompt(policy), [picture], options);
      const prompt = await scorer.prompts.fill(layout, each, () => {});
      const [yes = NaN] = softmax([...(await scorer.score(prompt, candidates, each))]);
      onProgress(++done / asked.length);
      return yes;
    },
    cancellation,
  );
  return pictures.map((_, i) => all.slice(i * policies.length, (i + 1) * policies.length));
}
