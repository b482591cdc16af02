#!/usr/bin/env bash
# The worker against Dynamo's own runtime on this machine: it waits for a daemon that comes later, a client of
# Dynamo asks, the daemon answers, and its cache events come out on Dynamo's side. Needs no etcd, no NATS, no GPU;
# installs ai-dynamo-runtime (75 MB).
# Usage: deploy/dynamo/check.sh PATH/TO/nemoserve
set -euo pipefail
nemoserve="$(realpath "$1")"
cd "$(dirname "$0")"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/nemoserve-deploy"
venv="$cache/dynamo-$(sha256sum requirements.txt | head -c 12)"
if [ ! -e "$venv/complete" ]; then
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt
    touch "$venv/complete"
fi
work="$(mktemp -d)"
trap 'kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true; rm -r "$work"' EXIT
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port="$(free_port)"
events="$(free_port)"
export DYN_DISCOVERY_BACKEND=file DYN_FILE_KV="$work/discovery" DYN_EVENT_PLANE=zmq DYN_LOG=error
"$venv/bin/python" worker.py --model ../../server/demo/model --url "http://127.0.0.1:$port" \
    --kv-events "tcp://127.0.0.1:$events" > "$work/worker" 2>&1 &
# The worker is there first, as in a pod where weights take minutes.
for _ in $(seq 300); do
    grep -q /ready "$work/worker" && break
    sleep 0.1
done
grep /ready "$work/worker" || { cat "$work/worker"; exit 1; }
"$nemoserve" serve --listen "127.0.0.1:$port" --block-size 16 --kv-events-endpoint "tcp://127.0.0.1:$events" > "$work/daemon" 2>&1 &
timeout 60 "$venv/bin/python" try.py || { cat "$work/worker" "$work/daemon"; exit 1; }
