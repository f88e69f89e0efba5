import js from '@eslint/js';
import prettier from 'eslint-config-prettier';
import { defineConfig, globalIgnores } from 'eslint/config';
import tseslint from 'typescript-eslint';

export default defineConfig(
  globalIgnores([
    'dist',
    'packages/*/dist',
    'build',
    'prebuilds',
    'node_modules',
    '.cache',
    'test/reference',
    'benchmarks/results',
    'docs/site',
  ]),
  js.configs.recommended,
  {
    files: ['**/*.{ts,mts}'],
    extends: [tseslint.configs.recommendedTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
      '@typescript-eslint/require-await': 'off', // async makes every failure a rejection
    },
  },
  {
    // Modules of the package that are loaded when they are first used.
    files: ['lib/**/*.ts'],
    rules: { '@typescript-eslint/no-require-imports': ['error', { allow: ['^\\.{1,2}/'] }] },
  },
  {
    // expect.any() and its kin are of type any.
    files: ['test/**/*.ts', 'packages/*/test/**/*.ts'],
    rules: {
      '@typescript-eslint/no-unsafe-assignment': 'off',
      '@typescript-eslint/no-unsafe-argument': 'off',
      '@typescript-eslint/unbound-method': 'off',
    },
  },
  {
    files: ['**/*.{js,mjs,cjs}'],
    languageOptions: {
      globals: Object.fromEntries(
        [
          'process',
          'console',
          'Buffer',
          'require',
          'module',
          '__dirname',
          'performance',
          'setInterval',
          'clearInterval',
          'setTimeout',
          'setImmediate',
          'clearTimeout',
          'URL',
          'AbortController',
          'AbortSignal',
          'fetch',
        ].map((name) => [name, 'readonly']),
      ),
    },
  },
  {
    files: ['examples/electron/**'],
    languageOptions: {
      globals: Object.fromEntries(
        ['window', 'document', 'File', 'DataTransfer', 'atob'].map((name) => [name, 'readonly']),
      ),
    },
  },
  {
    files: ['packages/server/page/**'],
    languageOptions: {
      globals: Object.fromEntries(
        [
          ...['document', 'navigator', 'localStorage', 'sessionStorage', 'requestAnimationFrame', 'globalThis'],
          ...['FileReader', 'TextDecoderStream'],
        ].map((name) => [name, 'readonly']),
      ),
    },
  },
  prettier,
);
