#!/usr/bin/env bash
# ShieldGemma 2 in transformers 5.24.0: the docstring of forward() says that probabilities[:, 1] is the probability that the image violates
# the policy. It is that of "No": column 0 is "Yes" (violates). Who follows the documentation lets through what the model warns of, and
# stops the rest. Shown with random weights: the columns are compared with the logits of the two tokens.
#
# PYTHON names a Python that has the pinned packages already (torch is large). Fails when the output below changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
if [ -z "${PYTHON:-}" ]; then
  python3 -m venv python >/dev/null
  python/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 pillow==12.0.0 2>/dev/null
  PYTHON=python/bin/python
fi
cat > columns.py <<'PY'
import re
import torch
import transformers
from transformers import Gemma3TextConfig, ShieldGemma2Config, ShieldGemma2ForImageClassification, SiglipVisionConfig

YES, NO = 7, 9
text = Gemma3TextConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                        num_key_value_heads=1, head_dim=8)
vision = SiglipVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
config = ShieldGemma2Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=63, boi_token_index=61,
                            eoi_token_index=62, yes_token_index=YES, no_token_index=NO)
torch.manual_seed(1)
model = ShieldGemma2ForImageClassification(config).eval()
seen = {}
model.model.register_forward_hook(lambda module, inputs, output: seen.update(logits=output.logits[0, -1]))
ids = torch.tensor([[2, 63, 63, 63, 63, 5, 6]])
with torch.no_grad():
    columns = model(input_ids=ids, pixel_values=torch.randn(1, 3, 28, 28), token_type_ids=(ids == 63).long()).probabilities[0]
yes, no = torch.softmax(seen["logits"][[YES, NO]], 0)
assert abs(yes - no) > 1e-3
print("transformers", transformers.__version__)
print("column 0 is", "Yes" if torch.isclose(columns[0], yes) else "No", "| column 1 is", "No" if torch.isclose(columns[1], no) else "Yes")
print("documented:", *re.findall(r"`(violated = [^`]+)`", ShieldGemma2ForImageClassification.forward.__doc__ or ""))
PY
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$PYTHON" columns.py > seen.txt
cat > expected.txt <<'TXT'
transformers 5.24.0
column 0 is Yes | column 1 is No
documented: violated = outputs.probabilities[:, 1]
TXT
diff expected.txt seen.txt && cat seen.txt
