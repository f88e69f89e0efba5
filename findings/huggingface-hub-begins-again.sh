#!/usr/bin/env bash
# A download of Python's huggingface_hub whose process is killed. Version 0.36.0 goes on from the part that is there (HASH.incomplete, asked
# for with Range). Version 2.4.0 gives the part a name of that process (HASH.1a2b3c4d.incomplete): the next one asks for the file from its
# first byte, and the part of the killed one stays on the disk beside the whole file. So a downloader that shares the cache resumes what 0.36
# left, is not resumed by 2.4, and parts of any name may lie there that nobody will finish.
#
# Fails when the output below changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for version in 0.36.0 2.4.0; do
  python3 -m venv "hub-$version" >/dev/null
  "hub-$version/bin/pip" install --quiet --disable-pip-version-check "huggingface_hub==$version" 2>/dev/null
done
cat > try.py <<'PY'
import glob, hashlib, os, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY = bytes(48 << 20)
HASH = hashlib.sha256(BODY).hexdigest()
ranges = []


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.head(200, len(BODY))

    def head(self, status, length):
        self.send_response(status)
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", f'"{HASH}"')
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def do_GET(self):
        asked = self.headers.get("Range")
        ranges.append("from byte " + (asked or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        start = int((asked or "bytes=0-")[6:].split("-")[0])
        self.head(206 if asked else 200, len(BODY) - start)
        end = len(BODY) if len(ranges) > 1 else 36 << 20  # the first time it stops there
        try:
            self.wfile.write(BODY[start:end])
            if end < len(BODY):
                time.sleep(600)
        except OSError:
            pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
cache = sys.argv[2]
env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_CACHE": cache, "HF_HUB_DISABLE_XET": "1",
       "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
program = [f"hub-{sys.argv[1]}/bin/python", "-c", "import huggingface_hub as h; h.hf_hub_download('org/model', 'model.gguf')"]
parts = lambda: glob.glob(f"{cache}/models--org--model/blobs/*.incomplete")
first = subprocess.Popen(program, env=env, stderr=subprocess.DEVNULL)
while sum(map(os.path.getsize, parts())) < 30 << 20:  # it writes 10 MB at a time
    time.sleep(0.05)
first.kill()
first.wait()
subprocess.run(program, env=env, check=True, stderr=subprocess.DEVNULL)
print("huggingface_hub", sys.argv[1], "| asked for the file", ", then ".join(ranges), "| parts left:", len(parts()))
PY
for version in 0.36.0 2.4.0; do "hub-$version/bin/python" try.py "$version" "$work/cache-$version"; done > seen.txt
cat > expected.txt <<'TXT'
huggingface_hub 0.36.0 | asked for the file from byte 0, then from byte 31457280 | parts left: 0
huggingface_hub 2.4.0 | asked for the file from byte 0, then from byte 0 | parts left: 1
TXT
cat seen.txt
diff expected.txt seen.txt
