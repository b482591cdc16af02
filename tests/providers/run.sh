#!/usr/bin/env bash
# Runs the shape of every published sample of the four providers against the daemon's demo model, with
# only host and key replaced: a line per check, exit 1 if one fails.
# Usage: tests/providers/run.sh PATH/TO/nemoserve
set -euo pipefail
binary="$(realpath "$1")"
cd "$(dirname "$0")"
source ../clients/lib.sh

key="sk-providers"
# NVIDIA's samples ask for 16384 tokens, more than the demo's own window.
serve=("$binary" serve --api-key "$key" --max-model-len 32768)
start_server plain "${serve[@]}" --listen
plain="$url"
start_server nvidia "${serve[@]}" --defaults nvidia --listen
nvidia="$url"
failed=()
run() { # NAME COMMAND...
    local name="$1"
    shift
    if ! "$@"; then failed+=("$name"); fi
}

run curl bash curl.sh "$plain" "$nvidia" "$key"
python="$(python_with sdk ../clients/requirements-sdk.txt)"
run python "$python" samples.py "$plain" "$nvidia" "$key"

# A module finds its packages beside itself.
cp node/*.mjs "$work"
modules="$(node_with providers node)"
ln -s "$modules" "$work/node_modules"
run worker node "$work/worker.mjs" "$plain" "$key"
run openrouter node "$work/openrouter.mjs" "$plain" "$key"

if [ "${#failed[@]}" -gt 0 ]; then
    tail -n 20 "$work/plain.log" "$work/nvidia.log"
    echo "failed: ${failed[*]}"
    exit 1
fi
