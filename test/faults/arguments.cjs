// Calls every function of the addon with every kind of wrong argument: node arguments.cjs ROOT. lib/ checks what users pass; here
// native code stands alone. Each call must throw, reject or end with an Error, or work. Prints counts as JSON.
'use strict';
const { join } = require('node:path');
const [, , root] = process.argv;
const { GemmaError } = require(root);
const native = require(join(root, 'node_modules', 'node-gyp-build'))(root);
native.init(GemmaError);
const data = (name) => join(root, 'test', 'reference', 'data', name);

function detached(array) {
  globalThis.structuredClone(array, { transfer: [array.buffer] });
  return array;
}
function shrunk(Type) {
  const buffer = new ArrayBuffer(64, { maxByteLength: 128 });
  const array = new Type(buffer, 32, 2);
  buffer.resize(8);
  return array;
}
const revoked = Proxy.revocable({}, {});
revoked.revoke();
const throwing = new Proxy(
  {},
  {
    get() {
      throw new Error('from a trap');
    },
  },
);

// Made anew for each call: a call may use an argument up.
const WRONG = {
  undefined: () => undefined,
  null: () => null,
  true: () => true,
  zero: () => 0,
  minusZero: () => -0,
  one: () => 1,
  minusOne: () => -1,
  fraction: () => 1.5,
  NaN: () => NaN,
  infinity: () => Infinity,
  minusInfinity: () => -Infinity,
  marker: () => 6,
  int31: () => 2 ** 31 - 1,
  minusInt31: () => -(2 ** 31),
  int32: () => 2 ** 32,
  int53: () => 2 ** 53,
  huge: () => 1e300,
  bigint: () => 10n ** 30n,
  empty: () => '',
  text: () => 'unknown',
  nul: () => 'a\0b',
  surrogate: () => '\ud800',
  long: () => 'x'.repeat(100_000),
  symbol: () => Symbol('s'),
  object: () => ({}),
  bare: () => Object.create(null),
  array: () => [],
  mixed: () => [undefined, null, {}, 1e300, 'x', Symbol('s')],
  holes: () => new Array(5),
  sparse: () => new Array(2 ** 32 - 1),
  markers: () => [0, 5, 6],
  negative: () => [-1],
  function: () => () => {},
  thrower: () => () => {
    throw new Error('from a function');
  },
  class: () => class {},
  proxy: () => throwing,
  revoked: () => revoked.proxy,
  date: () => new Date(NaN),
  map: () => new Map(),
  promise: () => Promise.resolve(1),
  native: () => native,
  bytes: () => new Uint8Array(3),
  noBytes: () => new Uint8Array(0),
  clamped: () => new Uint8ClampedArray(12),
  int8: () => new Int8Array(7),
  int16: () => new Int16Array(7),
  int32s: () => new Int32Array([1, 2, 3]),
  badIds: () => new Int32Array([-1, 2 ** 31 - 1]),
  uint32s: () => new Uint32Array(3),
  floats: () => new Float32Array(64),
  nans: () => new Float32Array(64 * 16).fill(NaN),
  doubles: () => new Float64Array([NaN, 1, 1e300, 2, -1, Infinity, 5]),
  bigints: () => new BigInt64Array(2),
  view: () => new DataView(new ArrayBuffer(8)),
  buffer: () => new ArrayBuffer(8),
  shared: () => new SharedArrayBuffer(8),
  sharedBytes: () => new Uint8Array(new SharedArrayBuffer(12)),
  sharedInts: () => new Int32Array(new SharedArrayBuffer(12)),
  detachedBytes: () => detached(new Uint8Array(12)),
  detachedInts: () => detached(new Int32Array(12)),
  detachedFloats: () => detached(new Float32Array(64)),
  detachedDoubles: () => detached(new Float64Array(4)),
  shrunkBytes: () => shrunk(Uint8Array),
  shrunkInts: () => shrunk(Int32Array),
  shrunkFloats: () => shrunk(Float32Array),
  shrunkDoubles: () => shrunk(Float64Array),
};

const outcomes = { threw: 0, rejected: 0, failed: 0, worked: 0 };
const wrong = [];
let running = '';
let since = Date.now();
setInterval(() => {
  if (Date.now() - since > 60_000) process.stdout.write(`never ends: ${running}\n`, () => process.exit(7));
}, 1000).unref();
const alive = setInterval(() => {}, 1000); // a promise that never settles must not end the process unseen
process.on('uncaughtException', (error) => wrong.push(`uncaught: ${error?.stack ?? error}`));

const tokens = () => new Int32Array([2, 20, 21, 22]);
const loadOptions = () => ({
  path: data('mm-a-f16.gguf'),
  mmproj: data('mmproj-mm-a-f16.gguf'),
  device: 'cpu',
  isa: '',
  threads: 1,
  gpuLayers: 0,
  contextSize: 64,
  batchSize: 32,
  kvCache: 'f16',
  mmap: true,
  screenLogits: true,
  prefixCacheBytes: 1000,
  vision: true,
  visionPrecision: 'int8',
  draft: undefined,
});
const generateParams = () => ({
  tokens: tokens(),
  images: [{ first: 1, embedding: new Float32Array(64) }],
  maxOutputTokens: 2,
  overflowIsError: true,
  maxUnread: 0,
  draft: 'auto',
  stopSequences: ['zzz'],
  temperature: 1,
  topK: 10,
  topP: 0.9,
  minP: 0,
  repetitionPenalty: 1.1,
  frequencyPenalty: 0.1,
  presencePenalty: 0.1,
  penaltyWindow: 8,
  logprobs: 1,
  seed: 1,
  logitBias: new Float64Array([5, 1]),
});
const evaluateParams = () => ({
  tokens: tokens(),
  images: [{ first: 1, embedding: new Float32Array(64) }],
  all: true,
  rows: true,
  top: 2,
  next: true,
});
const scoreParams = () => ({
  tokens: tokens(),
  images: [{ first: 1, embedding: new Float32Array(64) }],
  candidates: new Int32Array([5, 6, 7]),
  lengths: new Int32Array([1, 2]),
});
const embedParams = () => ({
  tokens: tokens(),
  lengths: new Int32Array([tokens().length - 1, 1]),
  dimensions: 7,
  normalize: true,
});
const LISTEN = Symbol('the callback of events');

/** Every function with arguments that work: of the addon, then of a model. */
const FUNCTIONS = {
  init: [GemmaError],
  devices: [],
  inspect: () => [{ ...loadOptions(), contexts: [32, 0] }],
  cropBoxes: () => [
    { width: 300, height: 100, panAndScan: { minCropSize: 10, maxCrops: 4, minRatio: 1.2 }, tile: undefined },
  ],
  prepareSquare: () => [
    {
      width: 2,
      height: 2,
      layout: 'rgba',
      alpha: 'white',
      imageSize: 8,
      box: { x: 0, y: 1, width: 2, height: 1 },
      data: new Uint8Array(16),
    },
  ],
  load: () => [loadOptions(), LISTEN],
  cancel: () => [1],
};
const METHODS = {
  info: [],
  stats: [],
  encode: () => [[new Uint8Array(100_000).fill(97), 0, 'text', 1], false, new Int32Array(new SharedArrayBuffer(4))],
  decode: () => [tokens(), false, new Int32Array(new SharedArrayBuffer(4))],
  generate: () => [generateParams(), LISTEN],
  evaluate: () => [evaluateParams(), LISTEN],
  score: () => [scoreParams(), LISTEN],
  embed: () => [embedParams(), LISTEN],
  encodeImages: () => [{ n: 1, pixels: new Uint8Array(112 * 112 * 3) }, LISTEN],
  holdRows: () => [new Float32Array(64)],
  acknowledge: () => [1, 1],
  cancel: () => [1],
};

function checkError(error, what) {
  const known = error instanceof Error || typeof error === 'object';
  if (!known || error.code === 'ERR_INTERNAL') wrong.push(`${what}: ${error?.stack ?? String(error)}`);
}

// Runs one call to its end. this is the addon or a model.
async function attempt(target, name, args, what) {
  running = what;
  since = Date.now();
  try {
    await call(target, name, args, what);
  } finally {
    if (name === 'init') native.init(GemmaError);
  }
}

async function call(target, name, args, what) {
  let ended;
  const operation = new Promise((resolve) => (ended = resolve));
  let result;
  const listener = (event) => {
    if (name === 'generate') target.acknowledge(result, 1);
    if (['finish', 'failed', 'loaded'].includes(event.kind)) ended(event);
  };
  try {
    result = Reflect.apply(
      target[name],
      target,
      args.map((arg) => (arg === LISTEN ? listener : arg)),
    );
  } catch (error) {
    outcomes.threw += 1;
    return checkError(error, what);
  }
  if (result instanceof Promise) {
    return result.then(
      () => void (outcomes.worked += 1),
      (error) => {
        outcomes.rejected += 1;
        checkError(error, what);
      },
    );
  }
  if (typeof result === 'number' && args.includes(LISTEN)) {
    const event = await operation;
    await event.model?.close();
    if (event.error === undefined) {
      outcomes.worked += 1;
    } else {
      outcomes.failed += 1;
      checkError(event.error, what);
    }
    return;
  }
  outcomes.worked += 1;
}

const copy = (args) => (typeof args === 'function' ? args() : [...args]);

// A path to each property of each argument, that of the argument itself included.
function* places(value, path = []) {
  yield path;
  if (value === null || typeof value !== 'object' || ArrayBuffer.isView(value)) return;
  for (const key of Object.keys(value)) yield* places(value[key], [...path, key]);
}
const at = (value, path) => path.reduce((v, key) => v[key], value);

async function sweep(target, functions, prefix) {
  for (const [name, good] of Object.entries(functions)) {
    // As they should be, too many, none, called on something else.
    await attempt(target, name, copy(good), `${prefix}${name}`);
    await attempt(target, name, [...copy(good), ...Array(10).fill({})], `${prefix}${name}, too many`);
    await attempt(target, name, [], `${prefix}${name}, none`);
    for (const self of [undefined, {}, native, 1]) {
      try {
        const result = Reflect.apply(target[name], self, []);
        if (result instanceof Promise) result.catch(() => {});
      } catch (error) {
        checkError(error, `${prefix}${name} of something else`);
      }
    }
    for (const path of places(copy(good))) {
      if (path.length === 0) continue;
      const [last] = path.slice(-1);
      for (const [kind, make] of Object.entries(WRONG)) {
        const what = `${prefix}${name}, ${path.join('.')} is ${kind}`;
        const args = copy(good);
        // Whatever a callback throws is its own, and Node's to report.
        if (args[last] === LISTEN && typeof make() === 'function') continue;
        at(args, path.slice(0, -1))[last] = make();
        await attempt(target, name, args, what);
        if (path.length === 1) continue;
        // Another answer the second time.
        const second = copy(good);
        const owner = at(second, path.slice(0, -1));
        const answers = [owner[last], make()];
        Object.defineProperty(owner, last, {
          enumerable: true,
          get: () => (answers.length > 1 ? answers.shift() : answers[0]),
        });
        await attempt(target, name, second, `${what} the second time`);
      }
      if (path.length === 1) continue;
      // A getter that takes all arrays away, and one that throws.
      const robbed = copy(good);
      const arrays = [...places(robbed)].map((p) => at(robbed, p)).filter((v) => ArrayBuffer.isView(v));
      const owner = at(robbed, path.slice(0, -1));
      const value = owner[last];
      Object.defineProperty(owner, last, {
        enumerable: true,
        get() {
          for (const array of arrays) if (array.byteLength > 0 && array.buffer instanceof ArrayBuffer) detached(array);
          return value;
        },
      });
      await attempt(target, name, robbed, `${prefix}${name}, ${path.join('.')} takes arrays away`);
      const thrown = copy(good);
      Object.defineProperty(at(thrown, path.slice(0, -1)), last, {
        enumerable: true,
        get() {
          throw new Error('from a getter');
        },
      });
      await attempt(target, name, thrown, `${prefix}${name}, ${path.join('.')} throws`);
    }
  }
}

function load(options) {
  return new Promise((resolve, reject) => {
    native.load(options, (event) => {
      if (event.kind === 'loaded') resolve(event.model);
      if (event.kind === 'failed') reject(event.error);
    });
  });
}

(async () => {
  await sweep(native, FUNCTIONS, '');
  native.init(GemmaError);
  const model = await load({ ...loadOptions(), contextSize: 64 });
  await sweep(model, METHODS, 'model.');
  const Model = model.constructor;
  for (const make of [() => new Model(), () => Model(), () => Object.create(Model.prototype)]) {
    for (const name of [...Object.keys(METHODS), 'close']) {
      try {
        await Reflect.apply(Model.prototype[name], make(), [[0], () => {}]);
      } catch (error) {
        checkError(error, `${name} of a model that was not loaded`);
      }
    }
  }
  // Still of use, and its answer is right.
  const finish = await new Promise((resolve) => {
    const params = { ...generateParams(), images: undefined, temperature: 0 };
    model.generate(params, (event) => event.kind === 'finish' && resolve(event));
  });
  if (finish.reason !== 'length' || finish.outputTokens !== 2) wrong.push(`afterwards: ${JSON.stringify(finish)}`);
  await model.close();
  await model.close();
  for (const name of Object.keys(METHODS)) await attempt(model, name, copy(METHODS[name]), `closed ${name}`);
  clearInterval(alive);
  process.stdout.write(`${JSON.stringify({ ...outcomes, wrong: wrong.slice(0, 20) })}\n`);
})();
