#!/usr/bin/env bash
# Python's client of OpenAI, 3.57.0: a message of chat.completions.parse() that is put into the next request goes over the wire with what
# the client has read of it: `parsed` (null too) in the message, and `parsed_arguments` in each call. No description of the interface has these
# members, so a server that refuses unknown ones refuses the ordinary loop over tools: "append the message, append the result, ask again".
# What responses.parse() gives goes back without them (`__api_exclude__`).
#
# Fails when the output below changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv python >/dev/null
python/bin/pip install --quiet --disable-pip-version-check openai==3.57.0 2>/dev/null

cat > try.py <<'PY'
import json, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import openai
from pydantic import BaseModel

bodies = []
call = {"name": "add", "arguments": '{"a": 1}'}
message = {"role": "assistant", "content": None, "tool_calls": [{"id": "x", "type": "function", "function": call}]}
ANSWERS = {
    "/v1/chat/completions": {
        "id": "c", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
    },
    "/v1/responses": {
        "id": "r", "object": "response", "created_at": 1, "model": "m", "status": "completed", "tools": [],
        "tool_choice": "auto", "parallel_tool_calls": True,
        "output": [{"type": "function_call", "id": "f", "call_id": "x", "status": "completed", **call}],
    },
}

class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        text = json.dumps(ANSWERS[self.path]).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass

class add(BaseModel):
    a: int

server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none")
asked = [{"role": "user", "content": "?"}]

tools = [openai.pydantic_function_tool(add)]
first = client.chat.completions.parse(model="m", messages=asked, tools=tools).choices[0].message
client.chat.completions.create(model="m", messages=[*asked, first])
sent = bodies[-1]["messages"][1]
print("chat.completions, message:", *sorted(sent))
print("chat.completions, function:", *sorted(sent["tool_calls"][0]["function"]))

response = client.responses.parse(model="m", input=asked, tools=[openai.pydantic_function_tool(add)["function"] | {"type": "function"}])
client.responses.create(model="m", input=[*asked, *response.output])
print("responses, call:", *sorted(bodies[-1]["input"][1]))
PY
python/bin/python try.py > seen.txt
cat seen.txt
diff - seen.txt <<'TXT'
chat.completions, message: content parsed role tool_calls
chat.completions, function: arguments name parsed_arguments
responses, call: arguments call_id id name status type
TXT
