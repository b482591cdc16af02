#!/usr/bin/env bash
# Checks the files of this folder with the tools of those who will read them. Every check either runs
# or is named as not run. Needs Python; takes promtool and systemd-analyze from Debian's packages
# where the machine has none. With a daemon's binary as argument the unit's and the manifest's flags,
# and the metrics that the example scrapes, are checked against it too.
# Usage: deploy/check.sh [PATH/TO/nemoserve]
set -euo pipefail
cd "$(dirname "$0")"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/nemoserve-deploy"
mkdir -p "$cache"

say() { printf '%-8s %s\n' "$1" "$2"; }

# The tool from a Debian package, unpacked beside the system rather than installed into it.
debian_tool() { # PACKAGE PATH_IN_PACKAGE
    local root="$cache/$1"
    if [ ! -x "$root/$2" ]; then
        (
            cd "$(mktemp -d)"
            apt-get download "$1" >/dev/null 2>&1 || { apt-get update >/dev/null && apt-get download "$1" >/dev/null; }
            dpkg -x ./*.deb "$root"
        )
    fi
    echo "$root/$2"
}

venv="$cache/venv"
if ! sha256sum --check --status "$venv/requirements.sha256" 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement requirements.txt
    sha256sum "$PWD/requirements.txt" > "$venv/requirements.sha256"
fi

"$venv/bin/hadolint" Dockerfile
say ok "Dockerfile: hadolint"
say "NOT RUN" "Dockerfile: building the images takes a container engine and base images"

for version in 1.30 1.34; do
    "$venv/bin/kubernetes-validate" --strict --kubernetes-version "$version" kubernetes.yaml >/dev/null
    say ok "kubernetes.yaml: schemas of Kubernetes $version"
done
say "NOT RUN" "kubernetes.yaml: applying it takes a cluster"

promtool="$(command -v promtool || debian_tool prometheus usr/bin/promtool)"
"$promtool" check config --syntax-only prometheus.yml >/dev/null
say ok "prometheus.yml: promtool"

analyze="$(command -v systemd-analyze || debian_tool systemd usr/bin/systemd-analyze)"
# The unit names where the binary will be installed; any executable serves for the check.
unit="$(mktemp -d)/nemoserve.service"
sed 's|^ExecStart=/usr/local/bin/nemoserve|ExecStart=/bin/true|' nemoserve.service > "$unit"
problems="$("$analyze" verify --man=no "$unit" 2>&1 || true)"
if printf '%s' "$problems" | grep -F nemoserve.service; then exit 1; fi
say ok "nemoserve.service: systemd-analyze verify"
say "NOT RUN" "nemoserve.service: starting it takes a machine that systemd runs"

if [ $# -eq 0 ]; then
    say "NOT RUN" "flags and metrics: no binary was given"
    exit 0
fi
binary="$(realpath "$1")"

# Every flag that the files use is one that the daemon has.
help="$("$binary" serve --help)"
flags="$(grep -ohE '(^|[ "])--[a-z][a-z-]+' nemoserve.service kubernetes.yaml Dockerfile \
    | grep -oE '\-\-[a-z-]+' | sort -u | grep -vxE -e '--(target|release|locked|bin|features|from|system|uid|home-dir|now)')"
for flag in $flags; do
    grep -qE -e "$flag( |$)" <<< "$help" || { say FAILED "$flag is no flag of nemoserve serve"; exit 1; }
done
say ok "flags: $(echo $flags)"

port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
log="$(mktemp)"
"$binary" serve --listen "127.0.0.1:$port" > "$log" 2>&1 &
daemon=$!
trap 'kill "$daemon" 2>/dev/null || true' EXIT
for _ in $(seq 100); do
    if curl --silent --fail --output /dev/null "http://127.0.0.1:$port/ready"; then break; fi
    kill -0 "$daemon" || { cat "$log"; exit 1; }
    sleep 0.1
done
# Lint warnings about vLLM's names are about names that are not ours to choose.
curl --silent --fail "http://127.0.0.1:$port/metrics" | grep -v 'vllm:' | "$promtool" check metrics
say ok "/metrics: promtool"
kill -TERM "$daemon"
wait "$daemon"
say ok "SIGTERM: drained, exit 0"
