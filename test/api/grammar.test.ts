// Grammars at the border to native code: what compileGrammar() takes and refuses, and answers that are bound. What masks allow, and the
// engine under them, is tested natively (test/native/grammar_test.cpp); the public options in structured.test.ts.
import { compileGrammar, MAX_WAIT_MS } from '../../lib/grammar-compiler.js';
import { GemmaError } from '../../lib/index.js';
import {
  addon,
  type NativeGenerateEvent,
  type NativeGenerateParams,
  type NativeGrammarSource,
  type NativeModel,
} from '../../lib/native.js';
import { rejection, tiny } from './helpers.js';

type Finish = Extract<NativeGenerateEvent, { kind: 'finish' }>;

let model: NativeModel;
let tokens: Int32Array;

function open(): Promise<NativeModel> {
  return new Promise((resolve, reject) => {
    addon().load({ path: tiny }, (event) => {
      if (event.kind === 'loaded') resolve(event.model);
      if (event.kind === 'failed') reject(new Error('not loaded', { cause: event.error }));
    });
  });
}

function generate(params: object): Promise<Finish & { all: string; tokens: number[] }> {
  return new Promise((resolve) => {
    let all = '';
    const made: number[] = [];
    const wanted = {
      tokens,
      temperature: 0,
      maxOutputTokens: 60,
      maxUnread: 0,
      stopTokens: new Int32Array(0),
      ...params,
    };
    model.generate(wanted as unknown as NativeGenerateParams, (event) => {
      if (event.kind === 'token') made.push(event.token);
      if (event.kind !== 'prefill') all += event.text;
      if (event.kind === 'finish') resolve({ ...event, all, tokens: made });
    });
  });
}

beforeAll(async () => {
  model = await open();
  tokens = await model.encode([0, 'hello there'], false, new Int32Array(1));
});
afterAll(() => model.close());

test('an answer is a text of its grammar, and says whether it is whole', async () => {
  const sources: [NativeGrammarSource, RegExp][] = [
    [{ kind: 'regex', text: '(yes|no)( and (yes|no)){2}' }, /^(yes|no)( and (yes|no)){2}$/],
    [{ kind: 'ebnf', text: 'answer ::= "a"{3} | "b"', root: 'answer' }, /^(aaa|b)$/],
    [{ kind: 'jsonSchema', text: '{"enum":["on","off",3]}' }, /^("on"|"off"|3)$/],
  ];
  for (const [source, form] of sources) {
    const grammar = await model.compileGrammar(source, false);
    expect(grammar.bytes).toBeGreaterThan(0);
    for (const seed of [1, 2, 3]) {
      const { all, reason, grammarComplete } = await generate({ grammar, temperature: 2, seed, topK: 0 });
      expect([reason, grammarComplete]).toEqual(['stop', true]);
      expect(all).toMatch(form);
    }
    const cut = await generate({ grammar, maxOutputTokens: 1 });
    expect([cut.reason, cut.tokens.length]).toEqual(['length', 1]);
  }
  expect((await generate({})).grammarComplete).toBeUndefined();
});

test('a source is compiled once', async () => {
  const source: NativeGrammarSource = { kind: 'regex', text: 'once[0-9]' };
  const [first, second] = await Promise.all([
    model.compileGrammar(source, true),
    model.compileGrammar({ ...source }, true),
  ]);
  expect([first?.compileMs, second?.compileMs].filter((ms) => ms === 0)).toHaveLength(1);
  expect((await model.compileGrammar(source, false)).compileMs).toBe(0);
});

test('a small grammar does not wait for large ones', async () => {
  const large = (i: number) => {
    const properties = Array.from({ length: 1200 }, (_, j) => [`property${i}_${j}`, { type: 'string' }]);
    return JSON.stringify({ type: 'object', properties: Object.fromEntries(properties), additionalProperties: false });
  };
  expect(await model.compileGrammar({ kind: 'jsonSchema', text: large(0) }, true)).toBeNull();
  const ended: string[] = [];
  const controller = new AbortController();
  const asked = (name: string, source: NativeGrammarSource) =>
    compileGrammar(model, source, controller.signal).then(
      () => ended.push(name),
      () => ended.push('refused'),
    );
  const all = Array.from({ length: 10 }, (_, i) => asked('large', { kind: 'jsonSchema', text: large(i + 1) }));
  await asked('small', { kind: 'regex', text: 'small[0-9]+' });
  expect(ended.filter((name) => name === 'large').length).toBeLessThan(5);
  controller.abort();
  await Promise.all(all);
  expect(ended).toHaveLength(11);
});

describe('large grammars take turns', () => {
  const none = new AbortController().signal;
  const source = (text: string): NativeGrammarSource => ({ kind: 'regex', text });
  const turns = async () => {
    for (let i = 0; i < 30; ++i) await Promise.resolve();
  };

  /** A model whose grammars are all large, compiled or refused when the test says so. */
  function busyModel() {
    const running: { text: string; end: (failure?: Error) => void }[] = [];
    const compile = ({ text }: NativeGrammarSource, quickly: boolean) =>
      quickly
        ? Promise.resolve(null)
        : new Promise<unknown>((resolve, reject) =>
            running.push({ text, end: (failure) => (failure ? reject(failure) : resolve({ text })) }),
          );
    return { running, fake: { compileGrammar: compile } as unknown as NativeModel };
  }

  beforeEach(() => jest.useFakeTimers({ doNotFake: ['nextTick', 'queueMicrotask'] }));
  afterEach(() => jest.useRealTimers());

  test('one is compiled at a time, in the order they came', async () => {
    const { running, fake } = busyModel();
    const all = ['a', 'b', 'c'].map((text) => compileGrammar(fake, source(text), none));
    const failed = rejection(all[0] as Promise<unknown>);
    for (const text of ['a', 'b', 'c']) {
      await turns();
      expect(running.map((one) => one.text)).toEqual([text]);
      running.shift()?.end(text === 'a' ? new Error('too large') : undefined);
    }
    expect(await failed).toMatchObject({ message: 'too large' });
    expect(await Promise.all(all.slice(1))).toEqual([{ text: 'b' }, { text: 'c' }]);
    expect(jest.getTimerCount()).toBe(0);
  });

  test('who waits too long is refused, and those before go on alone', async () => {
    const { running, fake } = busyModel();
    const first = compileGrammar(fake, source('first'), none);
    const others = Array.from({ length: 9 }, () => rejection(compileGrammar(fake, source('other'), none)));
    await turns();
    jest.advanceTimersByTime(MAX_WAIT_MS - 1);
    const late = compileGrammar(fake, source('late'), none);
    await turns();
    jest.advanceTimersByTime(1);
    for (const error of await Promise.all(others)) {
      expect(error).toBeInstanceOf(GemmaError);
      expect(error).toMatchObject({ code: 'ERR_QUEUE_FULL', detail: 'GRAMMARS' });
    }
    await turns();
    expect(running.map((one) => one.text)).toEqual(['first']);
    running.shift()?.end();
    await turns();
    expect(running.map((one) => one.text)).toEqual(['late']);
    running.shift()?.end();
    expect(await Promise.all([first, late])).toEqual([{ text: 'first' }, { text: 'late' }]);
    expect(jest.getTimerCount()).toBe(0);
  });

  test('an abort ends the waiting at once', async () => {
    const { running, fake } = busyModel();
    const controller = new AbortController();
    const first = compileGrammar(fake, source('first'), none);
    const second = rejection(compileGrammar(fake, source('second'), controller.signal));
    const third = compileGrammar(fake, source('third'), none);
    await turns();
    controller.abort(new Error('left'));
    expect(await second).toMatchObject({ message: 'left' });
    running.shift()?.end();
    await turns();
    expect(running.map((one) => one.text)).toEqual(['third']);
    running.shift()?.end();
    await Promise.all([first, third]);
    const gone = rejection(compileGrammar(fake, source('gone'), controller.signal));
    expect(await gone).toMatchObject({ message: 'left' });
    expect(jest.getTimerCount()).toBe(0);
  });
});

test('what is no grammar is refused', async () => {
  const compile = (source: unknown) =>
    rejection((async () => model.compileGrammar(source as NativeGrammarSource, false))());
  for (const [source, detail] of [
    [{ kind: 'regex', text: '(' }, 'BAD_REGEX'],
    [{ kind: 'jsonSchema', text: '{' }, 'BAD_SCHEMA'],
    [{ kind: 'jsonSchema', text: 'false' }, 'BAD_SCHEMA'],
    [{ kind: 'ebnf', text: 'root ::= none' }, 'BAD_GRAMMAR'],
    [{ kind: 'structuralTag', text: '[]' }, 'BAD_STRUCTURAL_TAG'],
    [{ kind: 'regex', text: 'a'.repeat(2 ** 20 + 1) }, 'GRAMMAR_TOO_LARGE'],
    [{ kind: 'jsonSchema', text: '['.repeat(300) }, 'GRAMMAR_TOO_LARGE'],
  ] as const) {
    const error = await compile(source);
    expect(error).toBeInstanceOf(GemmaError);
    expect(error).toMatchObject({ code: 'ERR_INVALID_ARGUMENT', detail });
  }
  for (const source of [undefined, {}, { kind: 'xml', text: '' }, { kind: 'regex' }, { kind: 'regex', text: 1 }]) {
    expect(await compile(source)).toMatchObject({ name: 'TypeError' }); // of the addon's own realm
  }
  for (const grammar of [
    null,
    {},
    1,
    await model.compileGrammar({ kind: 'json', text: '' }, false).then((g) => ({ ...g })),
  ]) {
    expect(() => model.generate({ tokens, grammar } as unknown as NativeGenerateParams, () => undefined)).toThrow(
      /^grammar: expected/,
    );
  }
});

test('a grammar of another model, and of one that was closed', async () => {
  const other = await open();
  const grammar = await other.compileGrammar({ kind: 'json', text: '' }, false);
  const compiling = other.compileGrammar({ kind: 'regex', text: '[a-z]{100}' }, false).then(
    () => 'compiled',
    (error: unknown) => (error as GemmaError).code,
  );
  await other.close();
  expect(['compiled', 'ERR_DISPOSED']).toContain(await compiling);
  expect(() => model.generate({ tokens, grammar } as unknown as NativeGenerateParams, () => undefined)).toThrow(
    expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', detail: 'OTHER_MODEL' }) as Error,
  );
});
