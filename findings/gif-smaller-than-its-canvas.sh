#!/usr/bin/env bash
# A GIF whose first frame is smaller than its canvas, with nothing transparent in it. What surrounds the frame has three colours: the file
# names a background entry of the palette (here entry 1, green); Pillow 12.0.0 fills with entry 0 (red) whatever the file names; sharp 0.34.4
# (libvips) gives black pixels, and no alpha channel that would tell. So a vision model that was measured with Pillow sees another
# picture when sharp decodes the file.
#
# Fails when the output below changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv python >/dev/null
python/bin/pip install --quiet --disable-pip-version-check pillow==12.0.0 2>/dev/null
echo '{ "private": true }' > package.json
npm install --silent --no-audit --no-fund sharp@0.34.4 >/dev/null
cat > make.py <<'PY'
from PIL import Image

# 4 x 4, background entry 1 of the palette (green), one frame of 2 x 2 blue pixels (entry 2) at 1, 1, nothing transparent.
palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255])
codes = [4, 2, 4, 2, 4, 2, 4, 2, 5]  # clear the table before each pixel: all codes have 3 bits
bits = sum(code << (3 * i) for i, code in enumerate(codes))
data = bits.to_bytes(4, "little")
gif = b"GIF89a" + bytes([4, 0, 4, 0, 0b10000001, 1, 0]) + palette
gif += b"," + bytes([1, 0, 1, 0, 2, 0, 2, 0, 0, 2, len(data)]) + data + b"\0;"
open("small.gif", "wb").write(gif)
picture = Image.open("small.gif").convert("RGB")
print("Pillow", *picture.getpixel((0, 0)), "|", *picture.getpixel((1, 1)))
PY
cat > read.cjs <<'JS'
require('sharp')('small.gif').raw().toBuffer({ resolveWithObject: true }).then(({ data, info }) => {
  const at = (x, y) => [...data.subarray((y * info.width + x) * info.channels, (y * info.width + x + 1) * info.channels)].join(' ');
  console.log('sharp', at(0, 0), '|', at(1, 1), '|', info.channels, 'channels,', info.width, 'x', info.height);
});
JS
python/bin/python make.py > seen.txt
node read.cjs >> seen.txt
cat > expected.txt <<'TXT'
Pillow 255 0 0 | 0 0 255
sharp 0 0 0 | 0 0 255 | 3 channels, 4 x 4
TXT
cat seen.txt
diff expected.txt seen.txt
