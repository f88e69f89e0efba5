// The sources run as CommonJS, as they are published, translated file by file.
const toCommonJs = (syntax) => [
  '@swc/jest',
  { jsc: { target: 'es2022', parser: { syntax } }, module: { type: 'commonjs' } },
];

// Published as ES modules only, or (zod) with files of which CommonJS has no name.
const names = '(?:arktype|@ark|arkregex|ai|@ai-sdk|@workflow|zod)';
const esModules = `[/\\\\]node_modules[/\\\\]${names}[/\\\\]`;

export default {
  testEnvironment: 'node',
  roots: ['<rootDir>/test/api', '<rootDir>/packages'],
  testTimeout: 120_000,
  maxWorkers: 2,
  transform: {
    '^.+\\.ts$': toCommonJs('typescript'),
    [`${esModules}.+\\.js$`]: toCommonJs('ecmascript'),
  },
  transformIgnorePatterns: [`[/\\\\]node_modules[/\\\\](?!${names}[/\\\\])`],
  moduleNameMapper: { '^(\\.{1,2}/.*)\\.js$': '$1', '^gemma-native$': '<rootDir>/lib/index.ts' },
  modulePathIgnorePatterns: ['<rootDir>/packages/.*/dist/'],
};
