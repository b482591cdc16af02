#!/usr/bin/env bash
# Starts the daemon with its demo model on free ports and drives its page in a headless Chromium:
# once without a key, once with one, once without the page.
# Usage: tests/playground/run.sh PATH/TO/nemoserve [SCREENSHOT.png]
# CHROMIUM names another browser. Without any, CI installs Debian's; elsewhere this says NOT RUN.
set -euo pipefail
binary="$(realpath "$1")"
screenshot="${2:+$(realpath "$2")}"
cd "$(dirname "$0")"
work="$(mktemp -d)"
trap 'kill "${daemon:-}" 2>/dev/null || true; wait "${daemon:-}" 2>/dev/null || true; rm -rf "$work"' EXIT

browser() { command -v "${CHROMIUM:-chromium}" || command -v chromium-browser || command -v google-chrome; }
if ! browser > /dev/null && [ -n "${CI:-}" ]; then
    apt-get update -qq
    apt-get install -qq --yes --no-install-recommends chromium fonts-dejavu-core > "$work/apt.log" || { cat "$work/apt.log"; exit 1; }
fi
if ! browser > /dev/null || ! command -v npm > /dev/null; then
    [ -z "${CI:-}" ] || { echo "the playground's checks need Chromium and npm"; exit 1; }
    echo "NOT RUN: no Chromium or no npm here"
    exit 0
fi

modules="${NEMOSERVE_PLAYGROUND_MODULES:-${XDG_CACHE_HOME:-$HOME/.cache}/nemoserve-playground}"
mkdir -p "$modules"
cp package.json package-lock.json "$modules"
# An exact lock file, no scripts: the browser is the system's.
(cd "$modules" && npm ci --silent --no-audit --no-fund --ignore-scripts)
cp check.mjs "$modules"

start() {
    "$binary" serve --listen 127.0.0.1:0 "$@" > "$work/daemon.log" 2>&1 &
    daemon=$!
    for _ in $(seq 100); do
        # The daemon chose the port: nobody else can be there.
        base="$(grep --only-matching --max-count 1 'http://127.0.0.1:[0-9]*' "$work/daemon.log" || true)"
        if [ -n "$base" ] && curl --silent --fail --output /dev/null "$base/ready"; then return; fi
        kill -0 "$daemon" || { cat "$work/daemon.log"; exit 1; }
        sleep 0.1
    done
    echo "the daemon does not get ready"; cat "$work/daemon.log"; exit 1
}
stop() { kill "$daemon"; wait "$daemon"; }
check() { timeout 300 node "$modules/check.mjs" "$(browser)" "$base" "$@"; }

start
check ${screenshot:+"$screenshot"}
stop

export NEMOSERVE_API_KEY=sk-playground-check
start
check
stop
unset NEMOSERVE_API_KEY

start --no-playground
for path in / /playground/app.js; do
    status="$(curl --silent --output /dev/null --write-out '%{http_code}' "$base$path")"
    [ "$status" = 404 ] || { echo "FAILED --no-playground: $path is $status"; exit 1; }
done
echo "ok     --no-playground: no page"
stop
