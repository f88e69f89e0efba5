// Which template a model is asked with, what ends its answers, and what reaches a template of its own. The files are the
// demonstration model with other metadata.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { Gemma, type LoadOptions, type Message } from '../../lib/index.js';
import { stored, writeModel, type Changes } from './gguf.js';
import { cli, data, realModel, rejection, root, runNode, withModel } from './helpers.js';

const { templates } = JSON.parse(gunzipSync(readFileSync(join(data, 'chat.json.gz'))).toString('utf8')) as {
  templates: Record<'chatml' | 'translate' | 'nosystem' | 'gemma3', string>;
};
const picture = join(root, 'models', 'pictures', 'shapes.png');
const question = 'What is the capital of France?';
const answer = 'The capital of France is Paris.';

let folder: string;
let n = 0;
beforeAll(() => (folder = mkdtempSync(join(tmpdir(), 'gemma-chat-'))));
afterAll(() => rmSync(folder, { recursive: true }));

function model(changes: Changes): string {
  const place = join(folder, String(++n));
  mkdirSync(place);
  return writeModel(join(place, 'model.gguf'), changes);
}

const TEMPLATE = 'tokenizer.chat_template';
const NAME = 'general.name';
const bare = { [TEMPLATE]: undefined, [NAME]: undefined };
const names = { 1022: ['<|im_start|>', 3], 1023: ['<|im_end|>', 3] } as const;
const chatml: Changes = { keys: { [TEMPLATE]: stored.string(templates.chatml) }, tokens: names };

function load(path: string, options: LoadOptions = {}): Promise<Gemma> {
  return Gemma.load(path, { mmproj: false, ...options });
}

/** The prompt of messages as the model sees it. */
async function promptOf(gemma: Gemma, input: string | Message[]): Promise<string> {
  const { tokens } = await gemma.logits(input, { data: false });
  return gemma.detokenize(tokens);
}

describe('whether a string is a turn', () => {
  const cases: [string, Record<string, Buffer | undefined>, 'gemma' | 'file' | 'none', RegExp][] = [
    [
      'a template, whatever the name',
      { [NAME]: stored.string('Gemma 3 4b PT-BR chat') },
      'gemma',
      /file's chat template is Gemma 3's/,
    ],
    ['tuned from -pt', { [NAME]: stored.string('My chat model, tuned from gemma-3-4b-pt') }, 'gemma', /template/],
    ['neither template nor name', bare, 'none', /neither/],
    [
      'a name that only says IT',
      { ...bare, [NAME]: stored.string('Gemma 3 4b base, IT/EN corpus') },
      'none',
      /neither/,
    ],
    ['Google’s names', { ...bare, [NAME]: stored.string('Gemma 3 4b It') }, 'gemma', /name is "Gemma 3 4b It"/],
    ['and with dashes', { ...bare, [NAME]: stored.string('gemma-3-27b-it-qat-q4_0-gguf') }, 'gemma', /name/],
    ['Google’s pretrained', { ...bare, [NAME]: stored.string('Gemma 3 4b Pt') }, 'none', /neither/],
    [
      'base name and tune',
      { ...bare, 'general.basename': stored.string('gemma-3'), 'general.finetune': stored.string('it') },
      'gemma',
      /calls itself gemma-3, tuned "it"/,
    ],
    [
      'another template',
      { [TEMPLATE]: stored.string(templates.nosystem) },
      'file',
      /file's chat template is not Gemma 3's/,
    ],
  ];
  test.each(cases)('%s', async (_, keys, template, reason) => {
    const path = model({ keys });
    const gemma = await load(path);
    try {
      expect(gemma.info.chat).toMatchObject({ template, reason: expect.stringMatching(reason) as string });
      expect(gemma.info.instructionTuned).toBe(template !== 'none');
      const { chat, instructionTuned } = await Gemma.inspect(path, { mmproj: false });
      expect({ chat, instructionTuned }).toEqual({
        chat: gemma.info.chat,
        instructionTuned: gemma.info.instructionTuned,
      });
      const isTurn = (await promptOf(gemma, question)).includes('<start_of_turn>');
      expect(isTurn).toBe(template !== 'none');
      const turn = await gemma.generate(question, { raw: false, temperature: 0, maxOutputTokens: 14 });
      expect(turn.text).toBe(answer);
      const raw = await gemma.countTokens(question, { raw: true });
      expect(raw).toBe((await gemma.tokenize(question, { bos: true })).length);
    } finally {
      await gemma.dispose();
    }
  });

  test('the command line says it', async () => {
    const path = model({ keys: bare });
    expect((await runNode([cli, 'inspect', path])).stdout).toMatch(/chat template +none: neither/);
    const json = JSON.parse((await runNode([cli, 'inspect', path, '--json'])).stdout) as object;
    expect(json).toMatchObject({ chat: { template: 'none' }, instructionTuned: false });
    const exit = await runNode([
      cli,
      'run',
      '--model',
      path,
      '--no-raw',
      '--temperature',
      '0',
      '--max-tokens',
      '14',
      question,
    ]);
    expect(exit.stdout).toBe(`${answer}\n`);
    expect(exit.stderr).toContain('chat template: none');
    const answered = await runNode([cli, 'run', '--model', path, '--no-raw', '--json', question]);
    expect(JSON.parse(answered.stdout)).toMatchObject({ chat: { template: 'none' } });
  });
});

describe('where a template is', () => {
  const said = { role: 'user' as const, content: 'Hi' };
  const turn = '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n';
  const expected = `<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n${turn}`;

  test('in the file, beside it, in the options', async () => {
    const inside = model(chatml);
    const none = () => model({ keys: bare, tokens: names });
    const beside = none();
    writeFileSync(join(beside, '..', 'chat_template.jinja'), templates.chatml);
    const config = none();
    writeFileSync(join(config, '..', 'tokenizer_config.json'), JSON.stringify({ chat_template: templates.chatml }));
    const list = none();
    const named = [
      { name: 'tool_use', template: 'x' },
      { name: 'default', template: templates.chatml },
    ];
    writeFileSync(join(list, '..', 'tokenizer_config.json'), JSON.stringify({ chat_template: named }));
    for (const [path, reason] of [
      [inside, "the file's"],
      [beside, 'chat_template.jinja'],
      [config, 'tokenizer_config.json'],
      [list, 'tokenizer_config.json'],
    ] as const) {
      const gemma = await load(path);
      expect(gemma.info.chat).toMatchObject({ template: 'file', reason: expect.stringContaining(reason) as string });
      expect(await promptOf(gemma, [said])).toBe(expected);
      expect(await promptOf(gemma, 'Hi')).toBe(expected);
      expect(await gemma.countTokens([said])).toBe((await gemma.logits([said], { data: false })).tokens.length);
      await gemma.dispose();
    }
    const given = await load(inside, { chatTemplate: templates.gemma3 });
    expect(given.info.chat).toMatchObject({ template: 'gemma', reason: expect.stringContaining('option') as string });
    expect(await promptOf(given, [said])).toBe('<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n');
    await given.dispose();
    const own = await load(none(), { chatTemplate: '{{ bos_token }}{{ messages[0].content }}{{ eos_token }}' });
    expect(own.info.chat.template).toBe('option');
    expect(await promptOf(own, 'a <eos>')).toBe('<bos>a <eos><eos>');
    expect((await own.logits('a <eos>', { data: false })).tokens.filter((id) => id === 1)).toHaveLength(1);
    await own.dispose();
  });

  test('beside the file, what cannot be read', async () => {
    const path = model({ keys: bare });
    writeFileSync(join(path, '..', 'tokenizer_config.json'), '{');
    expect(await rejection(load(path))).toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringContaining('not valid JSON') as string,
    });
    writeFileSync(join(path, '..', 'chat_template.jinja'), ' '.repeat((1 << 20) + 1));
    expect(await rejection(load(path))).toMatchObject({ code: 'ERR_FILE', detail: 'TEMPLATE_LIMIT' });
  });

  test('too large for a template', async () => {
    const path = model({ keys: { [TEMPLATE]: stored.string(' '.repeat((1 << 20) + 1)) } });
    expect(await rejection(load(path))).toMatchObject({ code: 'ERR_GGUF_INVALID', detail: 'TEMPLATE_LIMIT' });
    expect(await rejection(load(path, { chatTemplate: 5 as unknown as string }))).toBeInstanceOf(TypeError);
    expect(await rejection(load(path, { chatTemplate: ' '.repeat((1 << 20) + 1) }))).toBeInstanceOf(RangeError);
  });
});

describe('a template of the model’s own', () => {
  test('gets fields of parts, refuses in its own words, is continued', async () => {
    const gemma = await load(model({ keys: { [TEMPLATE]: stored.string(templates.translate) } }));
    const part = { type: 'text' as const, text: ' Oui ', source_lang_code: 'fr', target_lang_code: 'de_AT' };
    const user = { role: 'user' as const, content: [part] };
    const prompt =
      '<bos><start_of_turn>user\nYou translate from French (fr) to German (de-AT).\nGive only the German translation of the following French text:\n\n\nOui<end_of_turn>\n<start_of_turn>model\n';
    expect(await promptOf(gemma, [user])).toBe(prompt);
    expect(await promptOf(gemma, [user, { role: 'assistant', content: 'J' }])).toBe(`${prompt}J`);
    const refused = { ...user, content: [{ ...part, source_lang_code: 'xx' }] };
    expect(await rejection(gemma.generate([refused]))).toMatchObject({
      code: 'ERR_CHAT_TEMPLATE',
      detail: 'TEMPLATE_REFUSED',
      message: expect.stringContaining('Unsupported language: xx') as string,
    });
    expect(await rejection(gemma.generate('Oui'))).toMatchObject({ code: 'ERR_CHAT_TEMPLATE' });
    await gemma.dispose();
    expect(await rejection(gemma.generate([user]))).toMatchObject({ code: 'ERR_DISPOSED' });
  });

  test('typed control tokens stay text, in ids too', async () => {
    const gemma = await load(model(chatml));
    const controls = new Set([1022, 1023, 2, 105, 106]);
    const counted = async (content: string) =>
      (await gemma.logits([{ role: 'user', content }], { data: false })).tokens.filter((id) => controls.has(id)).length;
    const usual = await counted('Hi');
    for (const text of [
      '<|im_end|>',
      '<|im_start|>system',
      '<bos>',
      '<end_of_turn>',
      '<|im_',
      '[multimodal]<unused5>',
    ]) {
      expect(await counted(text)).toBe(usual);
      expect(await promptOf(gemma, text)).toContain(text);
    }
    await gemma.dispose();
  });

  test('pictures go where it writes <start_of_image>', async () => {
    const mmproj = join(root, 'models', 'mmproj-demo.gguf');
    const shown =
      "{% for p in messages[-1].content %}{{ '<start_of_image>' if p.type == 'image' else p.text | trim }}{% endfor %}";
    const chatTemplate = `{{ bos_token }}<start_of_turn>user\n${shown}<end_of_turn>\n<start_of_turn>{{ 'model\\n' }}`;
    const input: Message[] = [
      {
        role: 'user',
        content: [
          { type: 'image', image: picture },
          { type: 'text', text: 'Describe <start_of_image>.' },
        ],
      },
    ];
    const own = await Gemma.load('demo', { mmproj, chatTemplate });
    const usual = await Gemma.load('demo', { mmproj });
    try {
      expect(own.info.chat.template).toBe('option');
      for (const options of [{}, { panAndScan: { minRatio: 1, minCropSize: 16, maxCrops: 4 } }]) {
        const [a, b] = await Promise.all(
          [own, usual].map((gemma) => gemma.logits(input, { data: false, top: 3, ...options })),
        );
        expect(a).toEqual(b);
      }
      expect(
        (await own.generate('x', { images: [picture, picture], maxOutputTokens: 1 })).usage.imageTokens,
      ).toBeGreaterThan(0);
    } finally {
      await Promise.all([own.dispose(), usual.dispose()]);
    }
    const blind = await Gemma.load('demo', { mmproj, chatTemplate: '{{ messages[0].content[-1].text }}' });
    expect(await rejection(blind.generate(input))).toMatchObject({
      code: 'ERR_CHAT_TEMPLATE',
      detail: 'TEMPLATE_PICTURES',
    });
    await blind.dispose();
  });

  test('more than it can be given', async () => {
    const gemma = await load(model(chatml));
    const parts = Array.from({ length: 20_001 }, () => ({ type: 'text' as const, text: '' }));
    expect(await rejection(gemma.countTokens([{ role: 'user', content: parts }]))).toMatchObject({
      code: 'ERR_CHAT_TEMPLATE',
      detail: 'TEMPLATE_LIMIT',
    });
    const long = 'x'.repeat(gemma.info.contextSize * 1024 + 1);
    expect(await rejection(gemma.countTokens(long))).toMatchObject({ code: 'ERR_CONTEXT_FULL' });
    await gemma.dispose();
  });

  test('a hostile one is stopped, and the model goes on', async () => {
    const chatTemplate = '{% for a in range(1000) %}'.repeat(3) + 'x' + '{% endfor %}'.repeat(3);
    const gemma = await load(Gemma.demoModel, { chatTemplate });
    expect(await rejection(gemma.generate('Hi'))).toMatchObject({
      code: 'ERR_CHAT_TEMPLATE',
      detail: 'TEMPLATE_LIMIT',
    });
    expect((await gemma.generate('Hi', { raw: true, maxOutputTokens: 2 })).usage.outputTokens).toBeGreaterThan(0);
    await gemma.dispose();
  });

  test('needs --allow-worker under the permission model, and says so', async () => {
    const script = `const { Gemma } = require(${JSON.stringify(join(root, 'dist', 'index.js'))});
      (async () => { const g = await Gemma.load('demo', { mmproj: false, chatTemplate: 'x' });
      await g.generate('Hi').catch((e) => console.log(e.code, e.detail, e.message)); await g.dispose(); })();`;
    const flag = process.allowedNodeEnvironmentFlags.has('--permission') ? '--permission' : '--experimental-permission';
    const addons = process.allowedNodeEnvironmentFlags.has('--allow-addons') ? ['--allow-addons'] : [];
    const exit = await runNode([flag, ...addons, '--allow-fs-read=*', '-e', script]);
    expect(exit.stdout).toMatch(/^ERR_CHAT_TEMPLATE TEMPLATE_THREAD .*--allow-worker/);
  });
});

describe('what ends an answer', () => {
  const ends: [string, Changes][] = [
    ['eos_token_id', { ...chatml, keys: { ...chatml.keys, 'tokenizer.ggml.eos_token_id': stored.int(900) } }],
    ['eot_token_id', { keys: { 'tokenizer.ggml.eot_token_id': stored.int(900) } }],
    ['eom_token_id', { keys: { 'tokenizer.ggml.eom_token_id': stored.int(900) } }],
    ['eos_token_ids', { keys: { 'tokenizer.ggml.eos_token_ids': stored.ints([1, 900]) } }],
    ...['<|im_end|>', '<|eot_id|>', '<|end|>', '<|endoftext|>', '<start_function_response>'].map(
      (name): [string, Changes] => [`${name} by its name`, { tokens: { 900: [name, 3] } }],
    ),
    ['whatever its type', { tokens: { 900: ['<|im_end|>', 4] } }],
  ];
  test.each(ends)('%s', async (_, changes) => {
    const gemma = await load(model(changes));
    expect(gemma.info.endTokens).toContain(900);
    const { tokens, finishReason, text } = await gemma.generate('x', {
      raw: true,
      maxOutputTokens: 8,
      logitBias: { 900: 1e6 },
    });
    expect({ tokens, finishReason, text }).toEqual({ tokens: [900], finishReason: 'stop', text: '' });
    await gemma.dispose();
  });

  test('an id past the vocabulary, in a list', async () => {
    for (const key of ['eot_token_id', 'eos_token_ids']) {
      const value = key === 'eot_token_id' ? stored.int(1 << 20) : stored.ints([1, 1 << 20]);
      expect(await rejection(load(model({ keys: { [`tokenizer.ggml.${key}`]: value } })))).toMatchObject({
        code: 'ERR_GGUF_INVALID',
        detail: 'BAD_VOCAB',
        message: expect.stringContaining(key) as string,
      });
    }
    const none = await load(model({ keys: { 'tokenizer.ggml.eos_token_ids': stored.ints([-1]) } }));
    expect(none.info.endTokens).toEqual([1, 6]);
    await none.dispose();
  });

  test('stopTokens, by id and by text', async () => {
    const gemma = await load('demo');
    const options = { temperature: 0, maxOutputTokens: 20 };
    const [whole] = await Promise.all([gemma.generate(question, options)]);
    const third = whole.tokens[2] as number;
    const spelled = await gemma.detokenize([third]);
    for (const stop of [third, spelled]) {
      const { text, tokens, finishReason } = await gemma.generate(question, { ...options, stopTokens: [stop] });
      expect({ tokens, finishReason }).toEqual({ tokens: whole.tokens.slice(0, 3), finishReason: 'stop' });
      expect(text).toBe(await gemma.detokenize(whole.tokens.slice(0, 2)));
    }
    expect(await rejection(gemma.generate('x', { stopTokens: ['no such token'] }))).toBeInstanceOf(RangeError);
    expect(await rejection(gemma.generate('x', { stopTokens: [1 << 20] }))).toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
    });
    await gemma.dispose();
  });
});

test('no typed text of the vocabulary becomes a control or reserved token', async () => {
  await withModel(
    async (gemma) => {
      const { vocabularySize } = gemma.info.config;
      expect(vocabularySize).toBe(262144);
      const isReserved = (id: number) => id <= 106 || id === 255999 || id === 256000 || (id > 256000 && id < 262144);
      const typed: string[] = [];
      for (let id = 0; id < vocabularySize; ++id) if (isReserved(id)) typed.push(await gemma.detokenize([id]));
      const message = (content: string) => gemma.logits([{ role: 'user', content }], { data: false });
      const frame = (await message('')).tokens.filter(isReserved);
      for (const text of ['[multimodal]', '<unused5>', '<pad>', typed.slice(0, 400).join('')]) {
        const { tokens } = await message(text);
        expect(tokens.filter(isReserved)).toEqual(frame);
        expect(await gemma.detokenize(tokens)).toContain(text);
      }
      // Each on its own, a hundred at a time.
      for (let i = 0; i < typed.length; i += 100) {
        const ids = await gemma.tokenize(typed.slice(i, i + 100).join(' x '));
        expect(ids.filter(isReserved)).toEqual([]);
      }
      // What Gemma's tokenizer takes for words of its own stays so, as in transformers: newlines, blanks, tags.
      expect(await gemma.tokenize('\n\n<table>\t\t</b>')).toEqual([108, 168, 255969, 209]);
    },
    { contextSize: 8192 },
    realModel(),
  );
});
