// The sources run as CommonJS, as they are published, translated file by file.
const toCommonJs = (syntax) => [
  '@swc/jest',
  { jsc: { target: 'es2022', parser: { syntax } }, module: { type: 'commonjs' } },
];

export default {
  testEnvironment: 'node',
  roots: ['<rootDir>/test/api', '<rootDir>/packages'],
  testTimeout: 120_000,
  maxWorkers: 2,
  transform: {
    '^.+\\.ts$': toCommonJs('typescript'),
    '[/\\\\](?:arktype|@ark|arkregex)[/\\\\].+\\.js$': toCommonJs('ecmascript'), // published as ES modules only
  },
  transformIgnorePatterns: ['[/\\\\]node_modules[/\\\\](?!(?:arktype|@ark|arkregex)[/\\\\])'],
  moduleNameMapper: { '^(\\.{1,2}/.*)\\.js$': '$1', '^gemma-native$': '<rootDir>/lib/index.ts' },
  modulePathIgnorePatterns: ['<rootDir>/packages/.*/dist/'],
};
