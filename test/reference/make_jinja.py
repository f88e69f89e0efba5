"""Expressions and statements of chat templates as Jinja2 renders them with the settings of transformers: data/jinja.json.

    pip install jinja2==3.1.6; python make_jinja.py
"""

import json
import pathlib

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

VARIABLES = {
    "text": "  Hello, W\u00f6rld \U0001f600! \ufeff\u001c\n",
    "number": 7,
    "half": 0.5,
    "yes": True,
    "nothing": None,
    "numbers": [3, 1, 2],
    "people": [{"name": "Ada", "age": 36, "tags": ["a"]}, {"name": "bob", "age": None}, {"name": "Eve"}],
    "nested": {"b": [1.5, None, {"c": "<'\">"}], "a": {}, "items": "mine", "\u00e9": []},
    "messages": [
        {"role": "user", "content": " Hi <there> \U0001f642 "},
        {
            "role": "assistant",
            "content": "A\nB\n\nC",
            "tool_calls": [{"function": {"name": "f", "arguments": {"b": 1, "a": [1, 2.5, None, True, "x'y"]}}}],
        },
    ],
    "bos_token": "<bos>",
    "n": None,
    "s": "x,y,,z",
    "t": "Hello World",
    "u": "stra\u00dfe \u00c4\u00d6 \u6f22\u5b57\U0001f642",
    "l": [3, 1, 2],
    "words": ["b", "A", "c", "a"],
    "d": {"b": 1, "A": 2, "a": 0},
    "items": [{"k": "x", "v": 1}, {"k": "y", "v": 2}, {"k": "x", "v": 3}],
    "f": 2.5,
    "z": 0,
    "e": "",
    "el": [],
    "deep": [{"a": {"b": [10, 20]}}],
}

# Ours must be equal, or both must fail.
CASES = r"""
{{ none }}|{{ true }}|{{ false }}|{{ None }}|{{ True }}
{{ 1.0 }} {{ 0.1 + 0.2 }} {{ 10000000000000000.0 }} {{ 0.00001 }} {{ 0.0001 }} {{ 123456.789 }} {{ 1 / 3 }} {{ -0.5 }}
{{ [1, 'a', none, true, 2.0, "it's", 'say "x"', 'a\nb\\'] }} {{ (1, 'b') }} {{ {'a': 1.0, 'b': [none]} }}
{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7 / 2 }} {{ 4 / 2 }} {{ 2 ** 10 }} {{ 7.5 % 2 }}
{{ 1 / 0 }}
{{ 'a' ~ none ~ 1.0 ~ true ~ missing ~ [1] }}
{{ 'a' + 1 }}
{{ 1 == 1.0 }} {{ '1' == 1 }} {{ [1] == [1.0] }} {{ none == false }} {{ 0 == false }} {{ missing == none }} {{ '' == false }}
{{ {'a': [1]} == {'a': [1]} }} {{ (1, 2) == [1, 2] }} {{ 'a' != 'a' }} {{ none != missing }}
{{ 'a' in 'abc' }} {{ 1 not in [2] }} {{ [1] in [[1]] }} {{ 'name' in people[0] }} {{ none in [none] }} {{ 1.0 in [1] }} {{ none in nested }}
{{ not 1 }} {{ 1 and 2 }} {{ 0 or 'a' }} {{ [] and 1 }} {{ {} or 'e' }} {{ 'y' if numbers else 'n' }}{{ 'a' if false }}|
{{ text|length }} {{ text[2] }}{{ text[-3] }}{{ text[15] }} {{ text[:9] }}|{{ text[::-1] }}| {{ text.length }}|{{ numbers.length }}|
{{ text.strip() }}|{{ text|trim }}|{{ text.lstrip() }}|{{ text.rstrip() }}|
{{ 'xyxaxy'.strip('xy') }} {{ 'xxa'.lstrip('x') }} {{ 'axx'.rstrip('x') }} {{ '\n\na\n'.lstrip('\n') }}| {{ '--a--'|trim('-') }}
{{ '  a \u001c b '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a</t>b'.split('</t>')[-1] }} {{ '😀a😀'.split('a') }}
{{ 'hELLO wORLD'|capitalize }} {{ 'hELLO wORLD'|title }} {{ 'hELLO wORLD'.title() }} {{ 'hELLO'.capitalize() }} {{ "it's"|title }}
{{ 'Abc'|upper }} {{ 'ÀB'.lower() }} {{ 'ß'|upper }} {{ 'abc'.startswith('a') }} {{ 'abc'.endswith('c') }}
{{ 'a-b-c'.replace('-', '+') }} {{ 'aaa'.replace('a', 'b', 1) }} {{ 'aaa'|replace('a', 'b', 2) }}
{{ 'a\nb\n\nc'|indent(2) }}|{{ 'a\nb'|indent(2, true) }}|{{ 'a\n\nb'|indent(2, blank=true) }}|
{{ '3.7'|int }} {{ ' 12 '|int }} {{ '3abc'|int }} {{ 'x'|int(5) }} {{ '3.5'|float }} {{ '7'|float }} {{ -3.7|int }} {{ 3|float }} {{ true|int }}
{{ nested|tojson }}
{{ nested|tojson(indent=2) }}
{{ nested|tojson(indent=4, ensure_ascii=true, sort_keys=true) }}
{{ people|tojson(separators=(',', ':')) }}
{{ [1.0, 0.00001, true, none, 'é\u2028"\\', [], {}]|tojson }}
{{ missing|tojson }}
{{ numbers|join(', ') }} {{ [1.0, none, true]|join }} {{ 'abc'|join('-') }}
{{ numbers|sort }} {{ ['b', 'A', 'c']|sort }} {{ ['b', 'A']|sort(case_sensitive=true) }} {{ numbers|sort(reverse=true) }} {{ people[:1]|sort(attribute='age')|length }}
{{ [1, 1, 2, 1.0]|unique|list }} {{ ['a', 'A', 'b']|unique|list }}
{{ numbers|first }} {{ numbers|last }} {{ []|first }}|{{ []|last }}|
{{ numbers|reverse|list }} {{ 'abc'|list }} {{ numbers|length }} {{ nested|length }} {{ numbers|count }}
{{ nested|dictsort }}
{{ {'b': 1, 'a': 2}|items|list }} {{ {'a': 1}.items()|list }} {{ {'a': 1}.keys()|list }} {{ {'a': 1}.values()|list }}
{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}={{ v }};{% endfor %}{% for k, v in {'b': 1, 'a': 2}|dictsort %}{{ k }}={{ v }};{% endfor %}
{{ nested['items'] }} {{ nested.get('b')[0] }} {{ nested.get('x', 5) }} {{ nested.get('x') }} {{ nested.a }}
{{ people|map(attribute='name')|join(',') }} {{ people|map(attribute='age', default=0)|list }}
{{ people|selectattr('name', 'equalto', 'Eve')|list }} {{ people|selectattr('age')|list|length }} {{ people|selectattr('age', 'defined')|list|length }}
{{ people|rejectattr('age')|list|length }} {{ people|selectattr('age', 'undefined')|list|length }} {{ people|rejectattr('age', 'none')|list|length }} {{ people|selectattr('tags', 'iterable')|list|length }}
{{ [1, 2, 3]|select('odd')|list }} {{ [1, none]|reject('none')|list }} {{ [0, 1, '']|select|list }} {{ [1, 2]|select('in', [2])|list }}
{{ x is defined }} {{ x is none }} {{ none is none }} {{ none is defined }} {{ x is undefined }} {{ 'a' is not none }}
{{ 'x' is string }} {{ [] is iterable }} {{ {} is iterable }} {{ {} is mapping }} {{ 'a' is sequence }} {{ {} is sequence }} {{ [] is mapping }}
{{ 1 is number }} {{ true is number }} {{ 1.5 is number }} {{ true is boolean }} {{ 1 is boolean }} {{ 1 is integer }} {{ true is integer }} {{ 1.0 is integer }} {{ 1.0 is float }}
{{ 'a' is lower }} {{ '1' is lower }} {{ 'A' is upper }} {{ 3 is odd }} {{ 3 is even }} {{ true is true }} {{ 1 is true }}
{{ x.y }}
{{ x['y'] is defined }}
{{ people[0].missing }}|{{ people[0].missing is defined }}|{{ people[0]['tags'][0] }}|{{ people[9] is defined }}
{{ (x or 'd') }} {{ x|default('e') }} {{ ''|default('e', true) }} {{ none|default('e') }} {{ nothing|default('e', boolean=true) }}
{% for i in range(5) if i is odd %}{{ loop.index }}{{ loop.last }}{% else %}none{% endfor %}
{% for i in [1, 2, 3] %}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.first }}{{ loop.revindex }}{{ loop.length }};{% endfor %}
{% for i in missing %}x{% else %}empty{% endfor %}{% for c in 'a😀' %}[{{ c }}]{% endfor %}{% for k in nested %}{{ k }},{% endfor %}
{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}
{% set ns = namespace(a=1, found=false) %}{% for i in [1, 2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.found }}
{% set a = 1 %}{% for i in [1] %}{% set a = 2 %}{% endfor %}{{ a }}{% set c, d = 1, 2 %}{{ c }}{{ d }}
{% for i in [1, 2] %}[{{ x }}]{% set x = i %}{{ x }}{% endfor %}{{ x }}
{% for i in [1, 2] if x is undefined %}{{ i }}{% set x = 1 %}{% endfor %}{% for i in [1] %}{% if true %}{% set y = 1 %}{% endif %}{{ y }}{% endfor %}{{ y }}
{% for i in [1, 2, 3] %}a{{ i }}{% if i == 1 %}{% continue %}{% endif %}b{% if i == 2 %}c{% break %}{% endif %}d{% else %}e{% endfor %}
{% for i in [1, 2] %}a{% continue %}{% else %}e{% endfor %}{% for i in [1, 2] %}{% for j in [1, 2] %}{% if j == 2 %}{% break %}{% endif %}{{ i }}{{ j }}{% endfor %},{% endfor %}
{% macro m() %}{% set z = 1 %}{{ z }}{{ i }}{% endmacro %}{% for i in [5] %}{{ m() }}{% endfor %}{{ z }}
{% macro inner() %}[{{ caller is defined }}]{% endmacro %}{% macro outer() %}{{ inner() }}{{ caller() }}{% endmacro %}{% call outer() %}c{% endcall %}
{% set s %}{% set inside = 1 %}{{ inside }}{% endset %}{{ s }}{{ inside }}{% filter upper %}{% set inside = 'b' %}{{ inside }}{% endfilter %}{{ inside }}
{% macro f(a, b=2) %}{{ a }}{{ b }}{{ caller() if caller else '' }}{% endmacro %}{{ f(1) }}{{ f(1, b=none) }}{% call f(3) %}c{% endcall %}
{% set x %}  a {% endset %}[{{ x }}]{% filter upper %}abc{% endfilter %}
{%- if numbers|length > 2 and half < 1 %} a {%- elif yes %} b {%- else %} c {%- endif %}
  {%- if true %}\n  a\n  {%- endif %}\n  b\n
   {% if true %}   \n  x  \n   {% endif %}   \ny\n\n
{#- c -#}  a {{- ' a ' -}}  b
{% generation %}a{% endgeneration %}{{ "a\tb\u00e9\\" }}{{ 'a\x41' }}
{{ range(3)|list }} {{ range(1, 6, 2)|list }} {{ range(3, 0, -1)|list }}
{{ range(100001)|length }}
{{ raise_exception('no ' ~ number) }}
{{ '<b>'|safe }} {{ number|string|length }} {{ half|string }} {{ yes|string }} {{ numbers|string }} {{ nothing|string }}
{{ -3|abs }} {{ -3.5|abs }} {{ 1 if none else 2 }}
{{ 3.14159|round(2) }}
{{ [1, 2, 3, 4]|batch(2)|list }}
{% for i in [1] %}{{ loop.cycle('a', 'b') }}{% endfor %}
{{ '%s %d' % ('a', 3) }}
{{ '{}'.format('a') }}
{{ 'abc'.find('c') }} {{ 'abcabc'.count('b') }} {{ '12'.isdigit() }}
{{ 'a' * 3 }}
{{ [1, 2, 3]|sum }}
{{ people|groupby('name')|list|length }}
{{ '<b>'|escape }}
{{ 'a b c'|wordcount }}
{{ 'abc'|reverse }}
{{ 1 < 2 < 3 }}
{{ 5 is divisibleby 5 }}
{{ {1: 2} }}
{{ 'a\nb'.splitlines() }}
{{ ','.join(['x', 'y']) }}
{{ true + 1 }}
{{ numbers.index(1) }}
{{ 'a' < 'b' }}
{{ 1 }} {{ 1.0 }} {{ true }} {{ none }} {{ l }} {{ d }} {{ f }} {{ 0.0000001 }} {{ (1,2) }} {{ 'a' }}
{{ [none, true, 'it\'s', "q\"", 'both\'"'] }}
{{ '1' == 1 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ [1,2] == [1,2] }} {{ {'a':[1]} == {'a':[1]} }} {{ '' == 0 }} {{ none == false }} {{ undefinedx == none }} {{ undefinedx == undefinedy }}
{{ u | length }} {{ u[0] }} {{ u[-1] }} {{ u[::-1] }} {{ u[2:5] }} {{ u | upper }} {{ u | list }}
{{ s.split(',') }} {{ s.split(',', 1) }} {{ '  a b  c '.split() }} {{ 'a b c'.split(none, 1) }} {{ s.rsplit(',', 1) }} {{ ' a b c '.rsplit(none,1) }} {{ 'a\nb\r\nc'.splitlines() }}
{{ 'xxaxx'.strip('x') }}|{{ 'xxaxx'.lstrip('x') }}|{{ 'xxaxx'.rstrip('x') }}|{{ '\n a \n'.lstrip('\n') }}|{{ 'xyx' | trim('x') }}
{{ 'hELLO wORLD' | capitalize }} {{ 'hELLO wORLD'.capitalize() }} {{ "it's a test-case" | title }} {{ "it's a test-case".title() }}
{{ -7 % 3 }} {{ 7 % -3 }} {{ -7 // 2 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7.5 // 2 }} {{ 1 + true }}
{{ 'ab' * 3 }} {{ [1] * 3 }} {{ 3 * 'ab' }} {{ 'x' ~ 1 ~ none ~ true ~ [1] ~ undefinedx }}
{{ [1] + [2] }} {{ 'a' < 'b' }} {{ [1,2] < [1,3] }} {{ 'Z' < 'a' }}
{{ 1 in l }} {{ 'x' in s }} {{ 'a' in d }} {{ 'q' not in d }} {{ 1.0 in l }} {{ x in undefinedx }} {{ [1] in [[1]] }}
{{ d.items() | list }} {{ d.keys() | list }} {{ d.values() | list }} {{ d | dictsort }} {{ d | dictsort(true) }} {{ d | dictsort(by='value') }} {{ d | dictsort(reverse=true) }} {{ d.get('zz') }} {{ d.get('zz', 5) }}
{{ words | sort }} {{ words | sort(reverse=true) }} {{ words | sort(case_sensitive=true) }} {{ items | sort(attribute='v', reverse=true) }} {{ words | unique | list }} {{ items | map(attribute='k') | unique | list }}
{{ items | selectattr('k', 'equalto', 'x') | list }} {{ items | rejectattr('k', 'eq', 'x') | map(attribute='v') | list }} {{ items | selectattr('v') | list | length }} {{ l | select('odd') | list }} {{ l | reject('gt', 1) | list }} {{ l | map('string') | list }} {{ words | map('upper') | join('+') }} {{ items | map(attribute='q', default='?') | list }}
{{ l | sum }} {{ items | sum(attribute='v') }} {{ l | max }} {{ l | min }} {{ l | first }} {{ l | last }} {{ el | first }} {{ l | reverse | list }} {{ t | reverse }} {{ l | join(', ') }} {{ items | join(',', attribute='k') }}
{{ '42' | int }} {{ '4.9' | int }} {{ 'x' | int(7) }} {{ '0x1A' | int(0, 16) }} {{ 4.9 | int }} {{ '2.5' | float }} {{ 'x' | float }} {{ 3 | float }} {{ -3 | abs }} {{ 2.567 | round(2) }} {{ 2.5 | round }} {{ 2.1 | round(method='ceil') }} {{ 7 | string }} {{ n | string }}
{{ undefinedx | default('D') }} {{ n | default('D') }} {{ n | default('D', true) }} {{ e | d('E', true) }} {{ undefinedx | length }} {{ undefinedx | upper }}
{{ d | tojson }} {{ messages[1].tool_calls | tojson }} {{ d | tojson(indent=2) }} {{ el | tojson(indent=2) }} {{ u | tojson }} {{ u | tojson(ensure_ascii=true) }} {{ d | tojson(separators=(',', ':')) }} {{ d | tojson(sort_keys=true) }} {{ 'a"\n\t\x01' | tojson }}
{{ 'a\nb\n\nc' | indent }} {{ 'a\nb' | indent(2, true) }} {{ 'a\n\nb' | indent(2, blank=true) }}
{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.cycle('o','e') }}{% if loop.previtem is defined %}P{% endif %}{% if loop.nextitem is defined %}N{% endif %}{% endfor %}
{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% if x == 2 %}{% break %}{% endif %}{% endfor %}
{% for x in l if x > 1 %}{{ loop.index }}:{{ x }} {% else %}none{% endfor %} {% for x in [] %}{% else %}empty{% endfor %} {% for c in 'añ🙂' %}{{ c }}-{% endfor %} {% for k in d %}{{ k }}{% endfor %} {% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{% set q = 1 %}{% for x in l %}{% set q = x %}{% if loop.first %}{% set r = 'R' %}{% endif %}{{ q }}{{ r }}{% endfor %}{{ q }}{{ r }}
{% set ns = namespace(a=1, b='x') %}{% for x in l %}{% set ns.a = ns.a + x %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.c }}
{% macro f(a, b=2, c=none) %}[{{ a }}|{{ b }}|{{ c }}|{{ varargs }}|{{ kwargs }}]{% endmacro %}{{ f(1) }}{{ f(1, c=3) }}{{ f(b=5) }}{{ f(1,2,3,4,z=1) }}
{% macro w(x) %}<{{ caller(x) }}>{% endmacro %}{% call(y) w('in') %}body {{ y }}{% endcall %}
{% filter upper %}shout {{ t }}{% endfilter %} {% set blk %}block {{ t }}{% endset %}{{ blk }}
{{ t is string }} {{ l is sequence }} {{ d is mapping }} {{ 1 is number }} {{ 1.0 is float }} {{ 1 is integer }} {{ true is boolean }} {{ true is integer }} {{ none is none }} {{ undefinedx is defined }} {{ t is not none }} {{ l is iterable }} {{ t is iterable }} {{ 4 is even }} {{ 3 is odd }} {{ 6 is divisibleby(3) }} {{ 6 is divisibleby 4 }} {{ 'a' is in ['a'] }} {{ 'b' is eq 'b' }} {{ 3 is gt 2 }} {{ 'ABC' is upper }} {{ 'a' is not in(['b']) }} {{ t is callable }} {{ false is false }}
{{ 'yes' if l else 'no' }} {{ 'yes' if el }}{{ 'a' if z else 'b' if t else 'c' }} {{ not l }} {{ l and t }} {{ el or t }} {{ z or none }}
{{ 'Hi %s, %d' % ('x', 3) }} {{ '%s' % t }} {{ '%.2f' % f }} {{ "%s-%s" | format('a', 'b') }} {{ '{} {}'.format('a', 1) }} {{ '{0}{0}'.format('z') }} {{ '{n}'.format(n=5) }}
{{ t.replace('l', 'L') }} {{ t.replace('l', 'L', 1) }} {{ t | replace('o', '0') }} {{ t | replace('l', 'L', 2) }} {{ 'aaa'.replace('', '-') }}
{{ t.startswith('Hel') }} {{ t.endswith(('x', 'ld')) }} {{ t.find('o') }} {{ t.find('zz') }} {{ u.find('漢') }} {{ t.count('l') }} {{ t.index('W') }} {{ '7'.isdigit() }} {{ 'a1'.isalnum() }} {{ 'A'.isupper() }} {{ t.removeprefix('Hello ') }} {{ t.removesuffix('World') }} {{ '5'.zfill(3) }} {{ 'a'.ljust(3) }}| {{ 'a'.rjust(3) }} {{ t.partition(' ') }} {{ ','.join(['a','b']) }} {{ t.lower() }}
{{ deep[0].a.b[1] }} {{ deep[0]['a']['b'][-1] }} {{ deep[5] is defined }} {{ n.foo is defined }} {{ d.foo is defined }} {{ {'items': 5}['items'] }} {{ {'items': 5}.items is callable }} {{ l[1:] }} {{ l[:-1] }} {{ l[::-1] }} {{ l[::2] }} {{ t[1:4] }} {{ t[:5] }} {{ t[-3:] }}
{{ range(3) | list }} {{ range(1, 4) | list }} {{ range(5, 0, -2) | list }} {{ dict(a=1, b='x') }} {{ l | batch(2) | list }} {{ l | batch(2, 'x') | list }} {{ items | groupby('k') }} {{ t | wordcount }} {{ '<a&"b\'>' | e }}
{{ "a" "b" }} {{ 1 if true }} {{ l | length > 2 }} {{ 1 < 2 }} {{ 3 > 2 > 1 }} {{ 1 < 3 < 2 }} {{ 1 == 1 == 1 }} {{ -l[0] }} {{ +1 }} {{ - 3 }} {{ 2 - -1 }} {{ (1, 'a') | tojson }} {{ [] | join }}
{{ messages[0].content | trim }} {{ messages | map(attribute='content') | map('trim') | list }} {{ messages[-1]['tool_calls'][0]['function']['arguments'] | tojson }} {{ messages | selectattr('role','equalto','user') | first }}
{{ undefinedx.foo }}
{{ undefinedx + 1 }}
{{ 'a' + 1 }}
{{ none + 1 }}
{{ l.append(4) }}
{{ d.update({}) }}
{{ 'x' | nosuch }}
{{ x() }}
{{ 1 < 'a' }}
{{ none | length }}
{{ raise_exception('boom') }}
{{ range(10**9) | list }}
{{ ''.__class__ }}
{{ [].__class__.__mro__ }}
{% set a, b = (1, 2) %}{{ a }}{{ b }}
{% set x = 5 %}{% if true %}{% set x = 6 %}{% endif %}{{ x }}
{% for a, b in [(1,2),(3,4)] %}{{ a }}{{ b }}{% endfor %} {% for a in [[1,2]] %}{{ a[0] }}{% endfor %}
{% for i in range(3) %}{% for j in range(2) %}{{ loop.index }}{{ loop.last }}{% endfor %}{{ loop.index }}{% endfor %}
{{ loop is defined }} {{ bos_token + 'x' }} {{ tools is defined }} {{ t | first }}{{ t | last }} {{ d | length }} {{ d | list }} {{ d | first }}
{% macro rec(n) %}{{ n }}{% if n > 0 %}{{ rec(n - 1) }}{% endif %}{% endmacro %}{{ rec(5) }}
{{ u.upper() }} {{ u.title() }} {{ u | title }} {{ '漢字'.isalpha() }} {{ 'ß' | capitalize }} {{ 'ǆ' | upper }}
{% for x in l -%} {{ x }} {%- if not loop.last %}, {% endif %}{% endfor %}
{{ '%' }}{{ '}}' }}{{ '{{' }}{{ "{%" }}
{{ l | map('int') | sum }} {{ ['1','2'] | map('int') | sum }} {{ [[1,2],[3]] | sum(start=[]) }} {{ items | map(attribute='v') | select('in', [1,3]) | list }}
{{ d['b'] }}{{ d.b }} {{ 'a,b' | replace(',', '\n') }} {{ 'x'|string|length }} {{ true and 1 }} {{ 0 or 'z' }} {{ not 1 in [2] }} {{ 1 not in [2] and 3 }}
""".strip().splitlines()

# Ours may refuse them, and may not render anything else.
UNSUPPORTED = r"""
{{ "'"|safe + '<' }}
{{ (1,) }}
{% raw %}{{ x }}{% endraw %}
{{ 0x10 }}
{{ 123456789012345678901234567890 }} {{ 9007199254740993 }}
{{ {'a': 9007199254740993}|tojson }}
{{ 1_000 }}
{{ 1e3 }}
{{ 1e20 }}
{{ 'a'.swapcase() }}
""".strip().splitlines()


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
environment.filters["tojson"] = dumps
environment.globals["raise_exception"] = raise_exception


def rendered(line, supported):
    template = line.replace("\\n", "\n") if line.startswith((" ", "{%-")) else line
    case = {"template": template, "supported": supported}
    try:
        return case | {"text": environment.from_string(template).render(**VARIABLES)}
    except Exception as error:  # any failure is one
        return case | {"error": str(error)}


cases = [rendered(line, True) for line in CASES] + [rendered(line, False) for line in UNSUPPORTED]
path = pathlib.Path(__file__).parent / "data" / "jinja.json"
path.write_text(json.dumps({"variables": VARIABLES, "cases": cases}, ensure_ascii=True, indent=1) + "\n")
