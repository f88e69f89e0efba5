#!/usr/bin/env bash
# In a chat template `{% else %}` of a loop is for a loop without rounds. transformers 4.57.1 allows `{% continue %}` and `{% break %}` in
# templates (an extension of Jinja2 3.1.6), and with them the text of `else` is printed after rounds that took place, when none of them came to its end:
# here after two messages. Python's own `for ... else` knows no such case for `continue`, and with `break` it does the opposite for
# a loop that was left in a later round: there `else` is skipped, here it is printed if all rounds before ended with `continue`.
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

messages = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
cases = {
    "no continue": "{{ m.content }} ",
    "continue in every round": "{{ m.content }} {% continue %}",
    "continue, then break": "{{ m.content }} {% if loop.last %}{% break %}{% endif %}{% continue %}",
    "continue in the first round only": "{{ m.content }} {% if loop.first %}{% continue %}{% endif %}",
}
for name, body in cases.items():
    template = "{% for m in messages %}" + body + "{% else %}(no messages){% endfor %}"
    print(name + ": " + render_jinja_template(conversations=[messages], chat_template=template)[0][0].strip())
PY
python/bin/python render.py 2>/dev/null > seen.txt
cat > expected.txt <<'TXT'
no continue: one two
continue in every round: one two (no messages)
continue, then break: one two (no messages)
continue in the first round only: one two
TXT
cat seen.txt
diff expected.txt seen.txt
