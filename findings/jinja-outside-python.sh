#!/usr/bin/env bash
# Chat templates are written for Python's Jinja2 as transformers sets it up. Seen with @huggingface/jinja 0.5.11 and minijinja-js
# 2.11.0 (Jinja in JavaScript) against Jinja2 3.1.6: valid templates render without any error to other text. So a prompt can be
# wrong with nobody told. @huggingface/jinja: a string equals the number it spells, a character outside the BMP has length 2, the
# remainder of a negative number is negative, strip() ignores its argument, capitalize leaves the rest of the
# word as it is, none prints nothing, lists and truth values print as JSON, and tojson writes 1.0 as 1. minijinja-js: tojson sorts the keys of
# an object, leaves out the blanks after commas and colons, and escapes < > & '. Both agree with Jinja2 in the control case.
#
# Output seen is the table below; the script fails when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv python >/dev/null
python/bin/pip install --quiet --disable-pip-version-check jinja2==3.1.6 2>/dev/null
echo '{ "private": true }' > package.json
npm install --silent --no-audit --no-fund @huggingface/jinja@0.5.11 minijinja-js@2.11.0 >/dev/null

cat > cases.json <<'JSON'
[
  "{% for i in range(2) %}{{ loop.index }}{{ 'x' if loop.last else ',' }}{% endfor %}",
  "{{ 'same' if '1' == 1 else 'different' }}",
  "{{ '😀'|length }}",
  "{{ -7 % 3 }}",
  "{{ 'xxaxx'.strip('x') }}",
  "{{ 'hELLO'|capitalize }}",
  "[{{ none }}]",
  "{{ true }} {{ ['a', none] }}",
  "{{ {'b': 1.0, 'a': '<'}|tojson }}"
]
JSON

cat > render.py <<'PY'
import json
from jinja2.sandbox import ImmutableSandboxedEnvironment

# The settings that transformers renders chat templates with.
env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
env.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
print(json.dumps([env.from_string(case).render() for case in json.load(open("cases.json"))]))
PY

cat > render.cjs <<'JS'
const { readFileSync } = require('node:fs');
const { Template } = require('@huggingface/jinja');
const { Environment } = require('minijinja-js');
const mini = new Environment();
mini.trimBlocks = mini.lstripBlocks = true;
mini.enablePyCompat();
const python = JSON.parse(readFileSync(0, 'utf8'));
JSON.parse(readFileSync('cases.json', 'utf8')).forEach((text, i) => {
  console.log([python[i], new Template(text).render({}), mini.renderStr(text, {})].join(' | '));
});
JS

python/bin/python render.py | node render.cjs > seen.txt
cat > expected.txt <<'TXT'
1,2x | 1,2x | 1,2x
different | same | different
1 | 2 | 1
2 | -1 | 2
a | xxaxx | a
Hello | HELLO | Hello
[None] | [] | [none]
True ['a', None] | true ["a", null] | true ["a", none]
{"b": 1.0, "a": "<"} | {"b": 1, "a": "<"} | {"a":"\u003c","b":1.0}
TXT
echo 'Jinja2 | @huggingface/jinja | minijinja-js'
cat seen.txt
diff expected.txt seen.txt
