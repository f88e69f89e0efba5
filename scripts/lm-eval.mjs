// npm run lm-eval: EleutherAI's lm-evaluation-harness against the server, as any other server is evaluated with it (`local-completions`), on
// a small task without network. What it finds must be what `gemma.score` says.
//
//   npm run lm-eval                       Gemma 3 270M; installs the harness into .cache the first time (900 MB on disk)
//   npm run lm-eval -- MODEL.gguf         another model, or `demo`
//   npm run lm-eval -- --record           also writes the requests that packages/server/test/evaluation.test.ts sends
//
// The task is in packages/server/test/lm-eval.
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pythonPackages } from './python-packages.mjs';
import { buildNative, buildTypeScript, fetchModel, main, quietly, root, say, SetupError } from './steps.mjs';

const PACKAGES = ['lm-eval[api]==0.4.13', 'transformers==5.24.0', 'gguf==0.19.0'];
const TASK = join(root, 'packages', 'server', 'test', 'lm-eval');
// A sum of float32 values against one of doubles: half a unit in the last place of each of at most 30 values below 32.
const TOLERANCE = 30 * 2 ** -20;

const arguments_ = process.argv.slice(2);
const recording = arguments_.includes('--record');
const [given] = arguments_.filter((argument) => !argument.startsWith('--'));

/** Runs the harness; returns its samples in the order of the questions, and its results. */
async function evaluate({ folder, packages, url, flags, options }) {
  const output = mkdtempSync(join(folder, 'out-'));
  const model = [
    ...['model=gemma', `base_url=${url}/v1/completions`, `tokenizer=${join(folder, 'tokenizer')}`],
    ...flags,
  ];
  const args = ['-m', 'lm_eval', '--model', 'local-completions', '--model_args', model.join()];
  const task = ['--tasks', 'questions', '--include_path', '.', '--output_path', output, '--log_samples', ...options];
  const own = { HF_HOME: join(folder, 'hf'), HF_HUB_OFFLINE: '1', HF_DATASETS_OFFLINE: '1' };
  const env = { ...process.env, ...own, PYTHONPATH: packages };
  await quietly('python3', [...args, ...task], { cwd: TASK, env });
  const files = readdirSync(output, { recursive: true }).map((name) => join(output, name));
  const [samples] = files.filter((name) => /samples_questions.*\.jsonl$/.test(name));
  const [results] = files.filter((name) => /results_.*\.json$/.test(name));
  return {
    samples: readFileSync(samples, 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line))
      .sort((a, b) => a.doc_id - b.doc_id),
    results: JSON.parse(readFileSync(results, 'utf8')).results.questions,
  };
}

const best = (values) => values.indexOf(Math.max(...values));

/** What `gemma.score` says of the questions, as the harness splits their texts. */
async function scored(gemma, questions) {
  const all = [];
  for (const { question, choices } of questions) {
    const text = `Question: ${question}\nAnswer:`;
    const context = await gemma.tokenize(text, { bos: true });
    const candidates = [];
    for (const choice of choices) {
      const whole = await gemma.tokenize(`${text} ${choice}`, { bos: true });
      candidates.push(whole.slice(context.length));
    }
    all.push(await gemma.score(context, candidates));
  }
  return all;
}

/** Throws where the harness found anything else. Returns figures. */
function compare(name, { samples, results }, expected, questions) {
  const figures = { questions: samples.length, choices: 0, largest: 0, acc: 0, acc_norm: 0 };
  const fail = (what) => {
    throw new SetupError(`${name}: ${what}`);
  };
  if (samples.length !== questions.length) fail(`${samples.length} samples of ${questions.length} questions`);
  samples.forEach(({ filtered_resps: found }, i) => {
    const { choices, answer } = questions[i];
    const own = expected[i];
    if (found.length !== choices.length) fail(`question ${i}: ${found.length} answers of ${choices.length}`);
    found.forEach(([logprob, greedy], k) => {
      const error = Math.abs(Number(logprob) - own[k].logprob);
      if (!(error <= TOLERANCE)) fail(`question ${i}, choice ${k}: ${logprob}, expected ${own[k].logprob}`);
      if (String(greedy).toLowerCase() !== String(own[k].greedy)) fail(`question ${i}, choice ${k}: greedy ${greedy}`);
      figures.largest = Math.max(figures.largest, error);
      figures.choices += 1;
    });
    const logprobs = own.map(({ logprob }) => logprob);
    figures.acc += best(logprobs) === answer;
    figures.acc_norm += best(logprobs.map((logprob, k) => logprob / choices[k].length)) === answer;
  });
  for (const metric of ['acc', 'acc_norm']) {
    figures[metric] /= questions.length;
    if (!(Math.abs(figures[metric] - results[`${metric},none`]) < 1e-9))
      fail(`${metric} ${results[`${metric},none`]}, expected ${figures[metric]}`);
  }
  return figures;
}

await main(async () => {
  await buildNative();
  await buildTypeScript();
  const model = given ?? (await fetchModel());
  say(`Looking for ${PACKAGES[0]} (installs it the first time)`);
  const packages = await pythonPackages(...PACKAGES);
  const require = createRequire(import.meta.url);
  const { Gemma } = require('../dist/index.js');
  const { createServer } = require('../packages/server/dist/index.js');
  const questions = readFileSync(join(TASK, 'questions.jsonl'), 'utf8').trim().split('\n').map(JSON.parse);
  const folder = mkdtempSync(join(tmpdir(), 'gemma-lm-eval-'));
  const gemma = await Gemma.load(model);
  const server = await createServer({ models: [{ name: 'gemma', model: gemma }] });
  try {
    say('Writing the vocabulary for the harness');
    const path = model === 'demo' ? join(root, 'models', 'demo.gguf') : model;
    await quietly('python3', [join(TASK, 'tokenizer.py'), path, join(folder, 'tokenizer')], {
      env: { ...process.env, PYTHONPATH: packages },
    });
    const bodies = [];
    server.app.addHook('preHandler', async ({ body }) => void (body && bodies.push(body)));
    const url = await server.listen({ port: 0 });
    const expected = await scored(gemma, questions);
    const forms = {
      'token ids, one by one': { flags: ['add_bos_token=True'], options: [] },
      'token ids, in batches, several at once': {
        flags: ['add_bos_token=True', 'num_concurrent=3'],
        options: ['--batch_size', '5'],
      },
      texts: { flags: ['add_bos_token=True', 'tokenized_requests=False'], options: [] },
    };
    for (const [name, { flags, options }] of Object.entries(forms)) {
      say(name);
      bodies.length = 0;
      const found = await evaluate({ folder, packages, url, flags, options });
      const { largest, ...figures } = compare(name, found, expected, questions);
      process.stdout.write(`${bodies.length} requests; ${JSON.stringify(figures)}\n`);
      process.stdout.write(`largest difference of a log-likelihood from gemma.score: ${largest.toExponential(2)}\n`);
      if (recording && name === 'token ids, one by one') {
        const lines = bodies.map((body) => JSON.stringify(body));
        writeFileSync(join(TASK, 'requests.jsonl'), `${lines.join('\n')}\n`);
      }
    }
  } finally {
    await server.close();
    await gemma.dispose();
    rmSync(folder, { recursive: true, force: true });
  }
});
