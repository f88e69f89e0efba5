// The requests of EleutherAI's lm-evaluation-harness (0.4.13, `local-completions`), as `npm run lm-eval -- --record` has recorded them of a small
// task, and what it makes of the answers (lm_eval/models/openai_completions.py, parse_logprobs): log-likelihoods are those of
// `gemma.score`. The harness itself is too large to be installed for each run of the tests.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Gemma, type CandidateScore } from 'gemma-native';
import { realModel } from '../../../test/api/helpers.js';
import { post, start, type Running } from './helpers.js';

const folder = join(__dirname, 'lm-eval');
const lines = <T>(name: string) =>
  readFileSync(join(folder, name), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as T);
const questions = lines<{ question: string; choices: string[]; answer: number }>('questions.jsonl');
const requests = lines<{ prompt: number[][] } & Record<string, unknown>>('requests.jsonl');

interface Choice {
  index: number;
  logprobs: { token_logprobs: number[]; top_logprobs: Record<string, number>[] };
}

// For each prompt, as JSON: how long its context is, and what gemma.score says of the rest.
const expected = new Map<string, { context: number; score: CandidateScore }>();

let gemma: Gemma;
let running: Running;
beforeAll(async () => {
  gemma = await Gemma.load(realModel(), { contextSize: 512 });
  running = await start({ models: [{ name: 'gemma', model: gemma }] });
  for (const { question, choices } of questions) {
    const text = `Question: ${question}\nAnswer:`;
    const context = await gemma.tokenize(text, { bos: true });
    const whole = await Promise.all(choices.map((choice) => gemma.tokenize(`${text} ${choice}`, { bos: true })));
    const scores = await gemma.score(
      context,
      whole.map((ids) => ids.slice(context.length)),
    );
    whole.forEach((ids, i) => expected.set(JSON.stringify(ids), { context: context.length, score: scores[i]! }));
  }
});
afterAll(async () => {
  await running?.server.close();
  await gemma?.dispose();
});

async function asked(bodies: readonly object[]): Promise<Choice[]> {
  const answers = await Promise.all(bodies.map((body) => post(`${running.url}/v1/completions`, body)));
  expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200]));
  return answers.flatMap(({ body }) => (body.choices as Choice[]).toSorted((a, b) => a.index - b.index));
}

function check(prompts: readonly number[][], choices: readonly Choice[]) {
  expect(choices).toHaveLength(prompts.length);
  choices.forEach(({ logprobs }, i) => {
    const { context, score } = expected.get(JSON.stringify(prompts[i]))!;
    const own = logprobs.token_logprobs.slice(context, -1);
    const top = logprobs.top_logprobs.slice(context, -1);
    expect(own).toEqual(score.tokenLogprobs.map(Math.fround));
    expect(own.every((logprob, k) => logprob === Math.max(...Object.values(top[k]!)))).toBe(score.greedy);
  });
}

test('its prompts are the ids of gemma-native’s tokenizer: one for each choice', () => {
  const prompts = requests.flatMap(({ prompt }) => prompt.map((ids) => JSON.stringify(ids)));
  expect(prompts.toSorted()).toEqual([...expected.keys()].toSorted());
  expect(prompts.length).toBe(questions.reduce((sum, { choices }) => sum + choices.length, 0));
});

// Each row's log-probabilities are of 262,144 tokens, so not all of them.
test('one by one', async () => {
  const some = requests.filter((_, i) => i % 4 === 0);
  check(
    some.flatMap(({ prompt }) => prompt),
    await asked(some),
  );
});

test('in batches of texts and of ids', async () => {
  const prompts = requests.slice(-10).flatMap(({ prompt }) => prompt);
  const batches = [prompts.slice(0, 7), prompts.slice(7)];
  check(prompts, await asked(batches.map((prompt) => ({ ...requests[0], prompt }))));
  // The harness decodes ids where a server is to take texts (`tokenized_requests=False`): `<bos>` is one of them then.
  const texts = await Promise.all(batches[0]!.map((ids) => gemma.detokenize(ids, { special: true })));
  expect(texts[0]).toMatch(/^<bos>Question: /);
  check(batches[0]!, await asked([{ ...requests[0], prompt: texts }]));
});
