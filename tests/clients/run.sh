#!/usr/bin/env bash
# Starts the daemon with its demo model on a free port and runs the SDK checks against it.
# Usage: tests/clients/run.sh PATH/TO/nemoserve
set -euo pipefail
binary="$(realpath "$1")"
cd "$(dirname "$0")"
work="$(mktemp -d)"
trap 'kill "${daemon:-}" 2>/dev/null || true; wait "${daemon:-}" 2>/dev/null || true; rm -rf "$work"' EXIT

venv="${NEMOSERVE_CLIENTS_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/nemoserve-clients}"
stamp="$venv/requirements.sha256"
if ! sha256sum --check --status "$stamp" 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement requirements.txt
    sha256sum "$PWD/requirements.txt" > "$stamp"
fi

port="$("$venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
"$binary" serve --listen "127.0.0.1:$port" > "$work/daemon.log" 2>&1 &
daemon=$!
for _ in $(seq 100); do
    if curl --silent --fail --output /dev/null "http://127.0.0.1:$port/ready"; then break; fi
    kill -0 "$daemon" || { cat "$work/daemon.log"; exit 1; }
    sleep 0.1
done

# The README's own curl: a stream whose text reads as the plain answer does.
question='"model": "nvidia/nemotron-3-super-120b-a12b", "temperature": 0,
  "messages": [{"role": "user", "content": "What is the capital of France?"}]'
curl --silent --show-error --no-buffer "http://127.0.0.1:$port/v1/chat/completions" \
    -d "{$question, \"stream\": true}" > "$work/stream"
curl --silent --show-error "http://127.0.0.1:$port/v1/chat/completions" -d "{$question}" > "$work/answer"
sed -n '1,5p' "$work/stream"
"$venv/bin/python" - "$work" <<'PYTHON'
import json, pathlib, sys

work = pathlib.Path(sys.argv[1])
lines = work.joinpath("stream").read_text().split("\n\n")
assert lines[-2:] == ["data: [DONE]", ""], lines[-2:]
deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-2]]
message = json.loads(work.joinpath("answer").read_text())["choices"][0]["message"]
for field in ("reasoning_content", "content"):
    assert "".join(delta.get(field) or "" for delta in deltas) == (message.get(field) or ""), field
print(f"ok     curl: {message['content']!r}, streamed and whole")
PYTHON

if ! "$venv/bin/python" openai_python.py "http://127.0.0.1:$port"; then
    cat "$work/daemon.log"
    exit 1
fi
