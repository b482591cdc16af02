"""Whether the stream that curl printed says what its plain answer says. Usage: curl_stream.py FOLDER"""

import json
import pathlib
import sys

folder = pathlib.Path(sys.argv[1])
lines = folder.joinpath("stream").read_text().split("\n\n")
assert lines[-2:] == ["data: [DONE]", ""], lines[-2:]
deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-2]]
message = json.loads(folder.joinpath("answer").read_text())["choices"][0]["message"]
for field in ("reasoning_content", "content"):
    assert "".join(delta.get(field) or "" for delta in deltas) == (message.get(field) or ""), field
print(f"ok     curl: {message['content']!r}, streamed and whole")
