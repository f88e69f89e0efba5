#!/usr/bin/env bash
# XGrammar 0.2.9 has two readers of regular expressions: one for expressions of ASCII characters in a schema's `pattern`, one for all
# others. The first reads "a(-b+)?" wrongly: it accepts "ab". The question mark behind a group that ends with a repetition makes what
# stands before the repetition optional, as if the group could begin in it. "a(-b+|)" says the same and is read right, as is
# "a(-b+c)?", where the group does not end with the repetition, and the same expression through Grammar.from_regex.
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
import re
import sys
from unittest.mock import MagicMock

import tvm_ffi  # before the stand-ins

sys.modules["torch"] = sys.modules["transformers"] = MagicMock()
import xgrammar
from xgrammar.testing import _is_grammar_accept_string

texts = ("a", "ab", "a-b", "a-bb")
for pattern in ("a(-b+)?", "a(-b+|)", "a(-b+c)?"):
    schema = xgrammar.Grammar.from_json_schema(json.dumps({"type": "string", "pattern": pattern}))
    regex = xgrammar.Grammar.from_regex(pattern)
    print(pattern)
    print("  pattern:   ", *(t for t in texts if _is_grammar_accept_string(schema, f'"{t}"')))
    print("  from_regex:", *(t for t in texts if _is_grammar_accept_string(regex, t)))
    print("  Python:    ", *(t for t in texts if re.fullmatch(pattern, t)))
PY
python/bin/python accept.py 2>/dev/null > seen.txt
cat > expected.txt <<'TXT'
a(-b+)?
  pattern:    a ab a-b a-bb
  from_regex: a a-b a-bb
  Python:     a a-b a-bb
a(-b+|)
  pattern:    a a-b a-bb
  from_regex: a a-b a-bb
  Python:     a a-b a-bb
a(-b+c)?
  pattern:    a
  from_regex: a
  Python:     a
TXT
cat seen.txt
diff expected.txt seen.txt
