// Models of Gemma 3's architecture under other names: tiny ones with the metadata, tokens and templates of each (the guide on
// relatives lists them). ShieldGemma 2 is in image-safety.test.ts, EmbeddingGemma has tests of its own. And those that are another
// architecture: the message says which.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { Gemma, type GenerateOptions, type LoadOptions, type Message, type Tools } from '../../lib/index.js';
import { checkpointOf, writeCheckpoint } from './checkpoint.js';
import { stored, writeModel, type Changes } from './gguf.js';
import { data, FUNCTION_MARKS, rejection, tiny } from './helpers.js';

interface ChatCase {
  name: string;
  messages: Record<string, unknown>[];
  tools?: { function: { name: string; description: string; parameters: object } }[];
  prompt?: string;
  error?: string;
}

const { templates, cases } = JSON.parse(gunzipSync(readFileSync(join(data, 'chat.json.gz'))).toString('utf8')) as {
  templates: Record<'functiongemma' | 'gemma3' | 'translate', string>;
  cases: ChatCase[];
};
const golden = (name: string) => cases.find((entry) => entry.name === name) as ChatCase;

const photo = join(data, 'images', 'photo.png');
const demoEncoder = Gemma.demoModel.replace(/[^\\/]+$/, 'mmproj-demo.gguf');

let folder: string;
const loaded: Gemma[] = [];
beforeAll(() => (folder = mkdtempSync(join(tmpdir(), 'gemma-relatives-'))));
afterAll(async () => {
  for (const gemma of loaded) await gemma.dispose();
  rmSync(folder, { recursive: true });
});

/** A model of a relative's name and template. */
async function relative(
  name: string,
  template: string,
  options: LoadOptions = {},
  { tokens, base }: Pick<Changes, 'tokens'> & { base?: string } = {},
): Promise<Gemma> {
  const keys = { 'general.name': stored.string(name), 'tokenizer.chat_template': stored.string(template) };
  const path = writeModel(join(folder, `${name}.gguf`), { keys, ...(tokens && { tokens }) }, base);
  const gemma = await Gemma.load(path, options);
  loaded.push(gemma);
  return gemma;
}

async function promptOf(
  gemma: Gemma,
  input: string | readonly unknown[],
  options: GenerateOptions = {},
): Promise<string> {
  const { tools } = options;
  const { tokens } = await gemma.logits(input as Message[], { data: false, ...(tools && { tools }) });
  return gemma.detokenize(tokens);
}

describe('FunctionGemma', () => {
  const tokens = Object.fromEntries(FUNCTION_MARKS.map((mark, i) => [1010 + i, [mark, 3] as const]));
  let gemma: Gemma;
  beforeAll(async () => {
    gemma = await relative('Functiongemma 270m It', templates.functiongemma, { mmproj: false }, { tokens });
  });

  test.each(['functiongemma.declare-one', 'functiongemma.no-tools'])('the prompt of %s', async (name) => {
    const { messages, tools: declared = [], prompt } = golden(name);
    const tools: Tools = Object.fromEntries(
      declared.map(({ function: { name: tool, description, parameters } }) => [
        tool,
        { description, inputSchema: parameters },
      ]),
    );
    expect(await promptOf(gemma, messages, declared.length > 0 ? { tools } : {})).toBe(prompt);
  });

  test('a call, its result and the answer; the response’s mark ends an answer', async () => {
    expect(gemma.info.chat).toMatchObject({ template: 'file', toolFormat: 'functiongemma' });
    expect(gemma.info.endTokens).toContain(1010 + FUNCTION_MARKS.indexOf('<start_function_response>'));
    const given: unknown[] = [];
    const result = await gemma.generate('The light!', {
      tools: {
        set_light: {
          description: 'Switches a light',
          inputSchema: {
            type: 'object',
            properties: { on: { type: 'boolean', description: 'on or off' } },
            required: ['on'],
            additionalProperties: false,
          },
          execute: (input) => {
            given.push(input);
            return { done: true };
          },
        },
      },
      toolChoice: { tool: 'set_light' },
      maxSteps: 2,
      maxOutputTokens: 200,
      seed: 3,
    });
    expect(given).toEqual([{ on: expect.any(Boolean) }]);
    expect(result.steps?.[0]?.toolCalls).toMatchObject([{ name: 'set_light', input: given[0] }]);
  });
});

describe('TranslateGemma', () => {
  let gemma: Gemma;
  beforeAll(async () => (gemma = await relative('Translategemma 4b It', templates.translate, { mmproj: demoEncoder })));

  test.each(['translate.text', 'translate.turns'])('the prompt of %s', async (name) => {
    const { messages, prompt } = golden(name);
    expect(await promptOf(gemma, messages)).toBe(prompt);
  });

  test('the text in a picture', async () => {
    const fields = { source_lang_code: 'pt-BR', target_lang_code: 'ar' };
    const prompt = await promptOf(gemma, [{ role: 'user', content: [{ type: 'image', image: photo, ...fields }] }]);
    const [before = '', after = ''] = (golden('translate.image').prompt ?? '').split('<start_of_image>');
    const turn = `${after.slice(0, after.indexOf('<start_of_turn>'))}<start_of_turn>model\n`;
    expect(prompt.replaceAll('<image_soft_token>', '')).toBe(`${before}\n\n<start_of_image><end_of_image>\n\n${turn}`);
    const { text } = await gemma.generate([{ role: 'user', content: [{ type: 'image', image: photo, ...fields }] }], {
      maxOutputTokens: 4,
    });
    expect(typeof text).toBe('string');
  });

  test.each(['translate.unknown-language', 'translate.text-content'])('what the template refuses: %s', async (name) => {
    const { messages, error } = golden(name);
    expect(await rejection(gemma.generate(messages as unknown as Message[]))).toMatchObject({
      code: 'ERR_CHAT_TEMPLATE',
      detail: 'TEMPLATE_REFUSED',
      message: expect.stringContaining(error ?? ''),
    });
  });

  test('a string has no languages', async () => {
    expect(await rejection(gemma.generate('Guten Tag'))).toMatchObject({ detail: 'TEMPLATE_REFUSED' });
  });
});

describe('MedGemma', () => {
  const system = { role: 'system', content: 'You are a radiologist.' };

  test('4B: a picture and text, in Gemma 3’s own format', async () => {
    const base = join(data, 'mm-a-f16.gguf');
    const mmproj = join(data, 'mmproj-mm-a-f16.gguf');
    const medical = await relative('Medgemma 4b It', templates.gemma3, { mmproj }, { base });
    const plain = await Gemma.load(base, { mmproj });
    loaded.push(plain);
    expect(medical.info).toMatchObject({ chat: { template: 'gemma' }, instructionTuned: true });
    const messages = [
      system,
      {
        role: 'user',
        content: [
          { type: 'image', image: photo },
          { type: 'text', text: 'Describe.' },
        ],
      },
    ];
    const [a, b] = await Promise.all(
      [medical, plain].map((gemma) => gemma.logits(messages as Message[], { data: true })),
    );
    expect(a?.tokens).toEqual(b?.tokens);
    expect(a?.data).toEqual(b?.data); // the same weights, the same logits
    const texts = (a?.tokens ?? []).filter((id) => id < 448); // rows of pictures have an id past the vocabulary
    expect(await medical.detokenize(texts)).toMatch(
      /^<bos><start_of_turn>user\nYou are a radiologist\.\n\n\n\n<start_of_image><end_of_image>\n\nDescribe\.<end_of_turn>\n<start_of_turn>model\n$/,
    );
    const answer = { type: 'boolean', question: 'Is it an X-ray?', images: [photo] } as const;
    expect(await medical.decide('', answer)).toHaveProperty('value');
  });

  test('27B: text only, with the query scale of 62 layers', async () => {
    const base = join(data, 'text-27b-f16.gguf');
    const medical = await relative('Medgemma 27b Text It', templates.gemma3, {}, { base });
    expect(medical.info).toMatchObject({ config: { layers: 62 }, chat: { template: 'gemma' } });
    const prompt = await promptOf(medical, [system, { role: 'user', content: 'Does it hurt?' }]);
    expect(prompt).toContain('<start_of_turn>user\nYou are a radiologist.\n\nDoes it hurt?<end_of_turn>');
    const refused = medical.generate([{ role: 'user', content: [{ type: 'image', image: photo }] }]);
    expect(await rejection(refused)).toMatchObject({ code: 'ERR_UNSUPPORTED_INPUT', detail: 'NO_VISION' });
  });
});

describe('other architectures', () => {
  test.each([
    ['gemma2', 'Gemma 2'],
    ['gemma3n', 'Gemma 3n'],
    ['gemma4', 'Gemma 4'],
    ['paligemma', 'PaliGemma'],
    ['t5gemma', 'T5Gemma'],
  ])('%s', async (architecture, family) => {
    const path = join(folder, `${architecture}.gguf`);
    writeModel(path, { keys: { 'general.architecture': stored.string(architecture) } }, tiny);
    await named(path, architecture, family);
  });

  // What their published configurations say that Gemma 3's do not.
  test.each([
    ['gemma', 'Gemma 1 or CodeGemma', { hidden_act: 'gelu', attention_bias: true }],
    ['gemma2', 'Gemma 2', { attn_logit_softcapping: 50, final_logit_softcapping: 30 }],
    [
      'gemma3n',
      'Gemma 3n',
      { text_config: { intermediate_size: [16384, 16384], activation_sparsity_pattern: [0.95] } },
    ],
    ['gemma4', 'Gemma 4', { text_config: { layer_types: ['linear_attention'] } }],
    ['paligemma', 'PaliGemma', { vision_config: { projection_dim: 2048, hidden_act: 'gelu' } }],
    ['t5gemma', 'T5Gemma', { encoder: { hidden_size: 2304 }, vocab_size: -1 }],
  ])('the checkpoint of %s', async (type, family, fields) => {
    const path = join(folder, `checkpoint-${type}`);
    const checkpoint = checkpointOf(tiny, undefined, { layout: 'text' });
    writeCheckpoint(path, { ...checkpoint, config: { ...checkpoint.config, ...fields, model_type: type } });
    await named(path, type, family);
  });

  async function named(path: string, architecture: string, family: string) {
    for (const open of [() => Gemma.load(path), () => Gemma.inspect(path)]) {
      expect(await rejection(open())).toMatchObject({
        code: 'ERR_UNSUPPORTED_MODEL',
        message: expect.stringContaining(`"${architecture}": this is ${family}, another architecture than Gemma 3`),
      });
    }
  }
});
