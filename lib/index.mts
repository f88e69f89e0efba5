// The ES module entry. It hands on the CommonJS one, so that a program that uses both has one GemmaError and one addon.
export * from './index.js';
export {
  Conversation,
  ERROR_CODES,
  evaluate,
  evaluationTable,
  fitTemperature,
  Gemma,
  GemmaError,
  GemmaStream,
} from './index.js';
