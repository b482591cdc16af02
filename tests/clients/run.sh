#!/usr/bin/env bash
# Runs third-party clients against the daemon with its demo model, and against the same front end over
# a model that follows script.json. A line per check; exit 1 if one fails.
# Usage: tests/clients/run.sh PATH/TO/nemoserve PATH/TO/scripted_server
set -euo pipefail
binary="$(realpath "$1")"
scripted="$(realpath "$2")"
cd "$(dirname "$0")"
source lib.sh

start_server daemon "$binary" serve --listen
demo_url="$url"
start_server scripted "$scripted" script.json
scripted_url="$url"
failed=()
run() { # NAME COMMAND...
    local name="$1"
    shift
    if ! "$@" "$demo_url" "$scripted_url"; then failed+=("$name"); fi
}

# The README's own curl: a stream whose text reads as the plain answer does.
question='"model": "nvidia/nemotron-3-super-120b-a12b", "temperature": 0,
  "messages": [{"role": "user", "content": "What is the capital of France?"}]'
curl --silent --show-error --no-buffer "$demo_url/v1/chat/completions" \
    -d "{$question, \"stream\": true}" > "$work/stream"
curl --silent --show-error "$demo_url/v1/chat/completions" -d "{$question}" > "$work/answer"
sed -n '1,5p' "$work/stream"
run curl python3 curl_stream.py "$work"

sdk="$(python_with sdk requirements-sdk.txt)"
run openai-python "$sdk" openai_python.py
run openai-responses "$sdk" openai_responses.py
run anthropic-python "$sdk" anthropic_python.py
langchain="$(python_with langchain requirements-langchain.txt)"
run langchain "$langchain" langchain_client.py
litellm="$(python_with litellm requirements-litellm.txt)"
run litellm "$litellm" litellm_client.py

# A module finds its packages beside itself.
cp node/*.mjs "$work"
modules="$(node_with node node)"
ln -s "$modules" "$work/node_modules"
run openai-node node "$work/openai.mjs"
run ai-sdk node "$work/ai_sdk.mjs"

if [ "${#failed[@]}" -gt 0 ]; then
    cat "$work/daemon.log"
    echo "failed: ${failed[*]}"
    exit 1
fi
