#!/usr/bin/env bash
# XGrammar 0.2.9 turns a JSON Schema into a grammar. Strings of {"type": "string"} hold no raw control characters, as JSON demands. With
# minLength or maxLength beside it they do, all but the line feed: a tab or U+0001 between the quotes is allowed then, and JSON parsers
# refuse what a model writes under such a schema.
#
# Fails when the output below changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv python >/dev/null
# Without torch and transformers, gigabytes that nothing below uses.
python/bin/pip install --quiet --disable-pip-version-check --no-deps xgrammar==0.2.9 apache-tvm-ffi==0.1.15.post2 2>/dev/null
python/bin/pip install --quiet --disable-pip-version-check numpy pydantic typing-extensions 2>/dev/null

cat > accept.py <<'PY'
import json
import sys
from unittest.mock import MagicMock

import tvm_ffi  # before the stand-ins

sys.modules["torch"] = sys.modules["transformers"] = MagicMock()
import xgrammar
from xgrammar.testing import _is_grammar_accept_string

for limits in ({}, {"maxLength": 3}, {"minLength": 1}):
    grammar = xgrammar.Grammar.from_json_schema(json.dumps({"type": "string", **limits}))
    print(limits or "no limits")
    for text in ('"axb"', '"a\tb"', '"a\x01b"', '"a\nb"'):
        accepted = _is_grammar_accept_string(grammar, text)
        try:
            json.loads(text)
            is_json = True
        except json.JSONDecodeError:
            is_json = False
        print(f"  {text!r}: XGrammar {accepted}, JSON {is_json}")
PY
python/bin/python accept.py 2>/dev/null > seen.txt
cat > expected.txt <<'TXT'
no limits
  '"axb"': XGrammar True, JSON True
  '"a\tb"': XGrammar False, JSON False
  '"a\x01b"': XGrammar False, JSON False
  '"a\nb"': XGrammar False, JSON False
{'maxLength': 3}
  '"axb"': XGrammar True, JSON True
  '"a\tb"': XGrammar True, JSON False
  '"a\x01b"': XGrammar True, JSON False
  '"a\nb"': XGrammar False, JSON False
{'minLength': 1}
  '"axb"': XGrammar True, JSON True
  '"a\tb"': XGrammar True, JSON False
  '"a\x01b"': XGrammar True, JSON False
  '"a\nb"': XGrammar False, JSON False
TXT
cat seen.txt
diff expected.txt seen.txt
