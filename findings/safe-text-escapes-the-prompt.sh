#!/usr/bin/env bash
# transformers 4.57.1 renders chat templates with Jinja2 3.1.6 and without autoescape. All the same, where a template adds to a text that it
# marked `|safe`, the message is HTML-escaped: the model reads `a &lt; b &amp;&amp; c`. `|safe` gives a text of a class whose `+`
# escapes what it is not told is safe, autoescape or not. Public templates for function calls do this to the descriptions of
# functions. Without `|safe` the same template gives the message as it is.
#
# Fails when the output below changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv python >/dev/null
python/bin/pip install --quiet --disable-pip-version-check transformers==4.57.1 jinja2==3.1.6 2>/dev/null

cat > render.py <<'PY'
from transformers.utils.chat_template_utils import render_jinja_template

message = {"role": "user", "content": "a < b && c"}
for start in ("'<|user|>'|safe", "'<|user|>'"):
    template = "{% for m in messages %}{{ " + start + " + m.content }}{% endfor %}"
    print(render_jinja_template(conversations=[[message]], chat_template=template)[0][0])
PY
python/bin/python render.py 2>/dev/null > seen.txt
cat > expected.txt <<'TXT'
<|user|>a &lt; b &amp;&amp; c
<|user|>a < b && c
TXT
cat seen.txt
diff expected.txt seen.txt
