// Chat templates as Python's Jinja2 renders them (test/reference/make_jinja.py): equal, or refused.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Template, TemplateError } from '../../lib/jinja.js';
import { floatText, quoted, strip, stripEnd, stripStart } from '../../lib/python-text.js';
import { data } from './helpers.js';

interface Golden {
  variables: Record<string, unknown>;
  cases: { template: string; supported: boolean; text?: string; error?: string }[];
}

const { variables, cases } = JSON.parse(readFileSync(join(data, 'jinja.json'), 'utf8')) as Golden;

function render(template: string, values: Record<string, unknown>): string {
  return new Template(template).render(values);
}

function attempt(template: string): { text: string } | { error: string } {
  try {
    return { text: render(template, variables) };
  } catch (error) {
    return { error: (error as Error).message };
  }
}

test.each(cases.filter(({ supported }) => supported))('$template', ({ template, text }) => {
  if (text === undefined) expect(() => render(template, variables)).toThrow();
  else expect(attempt(template)).toEqual({ text });
});

test.each(cases.filter(({ supported }) => !supported))('refused: $template', ({ template, text }) => {
  const found = attempt(template);
  if ('text' in found) expect(found.text).toBe(text);
});

test.each([
  ["{{ raise_exception('Roles must alternate') }}", 'raised', 'Roles must alternate'],
  ['{% if %}', 'syntax', /./],
  ["{{ 'a'|unknown }}", 'error', 'unknown'],
  ['{% break %}', 'error', /./],
  ['{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', 'limit', 'deep'],
  [`{{ ${'('.repeat(100_000)}1${')'.repeat(100_000)} }}`, 'limit', 'deep'],
])('%.60s: %s', (template, kind, message) => {
  const error = expect.objectContaining({ kind, message: expect.stringMatching(message) }) as TemplateError;
  expect(() => render(template, {})).toThrow(error);
});

test('dates are in English', () => {
  expect(render("{{ strftime_now('%d %b %Y %H:%M:%S %B %A %% %y %I %p %a %m') }}", {})).toMatch(
    /^\d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [A-Z][a-z]+ [A-Z][a-z]+day % \d\d \d\d [AP]M [A-Z][a-z]{2} \d\d$/,
  );
  expect(() => render("{{ strftime_now('%Q') }}", {})).toThrow('%Q');
});

test('names of JavaScript are no names of a template', () => {
  for (const name of ['constructor', '__proto__', 'toString', 'hasOwnProperty']) {
    expect(attempt(`{{ 'a'.${name} }}|{{ [].${name} }}|{{ {}.${name} }}|{{ ${name} }}`)).toEqual({ text: '|||' });
    expect(attempt(`{{ 'a'|${name} }}`)).toHaveProperty('error');
    expect(attempt(`{{ 'a' is ${name} }}`)).toHaveProperty('error');
  }
});

describe("Python's text functions", () => {
  test('strip', () => {
    expect(strip('😀a😀', '😀')).toBe('a');
    expect([stripStart('aab', 'a'), stripEnd('baa', 'a')]).toEqual(['b', 'b']);
  });

  test('repr', () => {
    expect(quoted('a\u200b\u{e0001}\x7f\u2028"')).toBe(`'a\\u200b\\U000e0001\\x7f\\u2028"'`);
    expect([1e16, 1e15, 1e-4, 1e-5, 5e-324, -0, 1.7e308, 0.1, -2.5e-7].map(floatText)).toEqual([
      '1e+16',
      '1000000000000000.0',
      '0.0001',
      '1e-05',
      '5e-324',
      '-0.0',
      '1.7e+308',
      '0.1',
      '-2.5e-07',
    ]);
  });
});
