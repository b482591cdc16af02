#!/usr/bin/env bash
# The way that README.md describes, gone here with the real programs: its five commands as they stand
# there; then two daemons with the demo model, a Prometheus that scrapes them and evaluates the alerts,
# an Envoy before them, and a load while one of the two is restarted. Prints what it does and what comes
# back; fails where that is not what the README promises. Takes about half a minute.
# Usage: deploy/stranger.sh PATH/TO/nemoserve
set -euo pipefail
nemoserve="$(realpath "$1")"
cd "$(dirname "$0")"
. ./tools.sh
work="$(mktemp -d)"
five=
trap 'kill $(jobs -p) 2>/dev/null || true; [ -z "$five" ] || kill -- "-$five" 2>/dev/null || true; wait 2>/dev/null || true; rm -r "$work"' EXIT

step() { printf '\n# %s\n' "$1"; }
show() { printf '$ %s\n' "$*"; "$@"; }
fail() { printf 'FAILED: %s\n' "$1"; tail -n 20 "$work"/*.log; exit 1; }
get() { curl --silent --fail --max-time 5 "$@"; }
# QUERY: the value of what Prometheus finds, if anything.
ask() {
    get "http://$watch/api/v1/query" --data-urlencode "query=$1" --get \
        | python3 -c 'import json, sys; r = json.load(sys.stdin)["data"]["result"]; print(*(s["value"][1] for s in r))'
}
is() { [ "$(ask "$1" 2>/dev/null)" = "$2" ]; }

first="127.0.0.1:$(free_port)"
second="127.0.0.1:$(free_port)"
watch="127.0.0.1:$(free_port)"
front="127.0.0.1:$(free_port)"

start() { # ADDRESS NAME
    "$nemoserve" serve --listen "$1" --log-format json --drain-seconds 10 > "$work/$2.log" 2>&1 &
}

step "The five commands of README.md, read from there, beside a Prometheus that holds port 9090"
commands="$(awk '/in five commands/ {on = 1; next} on && /^    / {print substr($0, 5); next} on && NF {exit}' README.md)"
[ "$(wc -l <<< "$commands")" = 5 ] || fail "README.md has no five commands: $commands"
# A clone where the build is done and a machine where nothing is installed: two of the commands are stood
# in for, and none is changed.
mkdir -p "$work/clone/target/release" "$work/bin"
ln -s "$PWD" "$work/clone/deploy"
ln -s "$nemoserve" "$work/clone/target/release/nemoserve"
cat > "$work/bin/cargo" <<'CARGO'
#!/bin/sh
[ "$*" = "build --release" ] && echo "(built before: cargo $*)"
CARGO
# What the package does where systemd runs: it starts its own.
cat > "$work/bin/apt-get" <<APT
#!/bin/sh
[ "\$*" = "install -y prometheus" ] && echo "(there already: apt-get \$*)"
echo > "$work/empty.yml"
"$prometheus" --config.file="$work/empty.yml" --storage.tsdb.path="$work/debian" --web.listen-address=127.0.0.1:9090 >&2 &
until curl -sf -o /dev/null http://127.0.0.1:9090/-/ready; do sleep 0.1; done
APT
ln -s "$prometheus" "$work/bin/prometheus"
chmod +x "$work/bin/cargo" "$work/bin/apt-get"
# Ports of its own, where that is allowed: what else runs here is not in the way, nor is this in its.
apart=(unshare --map-root-user --net)
if ! "${apart[@]}" ip link set lo up 2>/dev/null; then
    apart=(env)
    for port in 8000 9090 19090; do
        ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || fail "port $port is taken here"
    done
fi
sed 's/^/$ /' <<< "$commands"
# A session of its own, all of which can be ended; standard output has what the commands answer.
(
    cd "$work/clone"
    PATH="$work/bin:$PATH" exec setsid "${apart[@]}" timeout 120 bash -ec "ip link set lo up 2>/dev/null || true
$commands
kill \$(jobs -p)
wait || true"
) > "$work/answers" 2> "$work/readme.log" &
five=$!
code=0
wait "$five" || code=$?
kill -- "-$five" 2>/dev/null || true
five=
cat "$work/answers"
[ "$code" = 0 ] || fail "the five commands: exit $code"
grep -q '"job":"nemoserve"' "$work/answers" || fail "the last command found nothing"

step "Two replicas"
start "$first" first
one=$!
start "$second" second
for address in "$first" "$second"; do
    wait_for 30 get --output "$work/ready" "http://$address/ready" || fail "$address never got ready"
    echo "http://$address/ready: $(cat "$work/ready")"
done

step "Prometheus, with prometheus.yml and alerts.yaml; faster than there, and the alerts' patience shorter"
sed -E "s/(_interval): 15s/\1: 1s/; s|127.0.0.1:8000|$first\n          - $second|" prometheus.yml > "$work/prometheus.yml"
sed -E 's/for: [0-9]+[sm]/for: 2s/' alerts.yaml > "$work/alerts.yaml"
"$prometheus" --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" \
    --web.listen-address="$watch" > "$work/prometheus.log" 2>&1 &
wait_for 20 is 'count(up{job="nemoserve"} == 1)' 2 || fail "they are not scraped"
echo "count(up{job=\"nemoserve\"} == 1): $(ask 'count(up{job="nemoserve"} == 1)')"
get "http://$watch/api/v1/rules" | python3 -c '
import json, sys
rules = [rule for group in json.load(sys.stdin)["data"]["groups"] for rule in group["rules"]]
bad = [rule["name"] for rule in rules if rule["health"] == "err"]
assert not bad, bad
print(len(rules), "alerts are loaded")'

step "Envoy before them, with proxies/envoy.yaml"
sed "s/port_value: 8080/port_value: ${front#*:}/; s/port_value: 8001/port_value: ${first#*:}/; s/port_value: 8002/port_value: ${second#*:}/" \
    proxies/envoy.yaml > "$work/envoy.yaml"
"$venv/bin/envoy" --config-path "$work/envoy.yaml" --log-level warn --use-dynamic-base-id --concurrency 1 \
    > "$work/envoy.log" 2>&1 &
wait_for 20 get --output /dev/null "http://$front/ready" || fail "nobody is reached through it"
show get "http://$front/v1/chat/completions" -d '{"model": "nemoserve-demo", "max_tokens": 12, "temperature": 0,
  "messages": [{"role": "user", "content": "What is the capital of Peru?"}]}'
echo

step "A load through it; one replica is told to stop in the middle, as when it is replaced"
"$nemoserve" bench --json serve --url "http://$front" --rate 30 --requests 240 --input-len 16..200 --output-len 8..24 > "$work/load.json" 2> "$work/load.log" &
load=$!
served() { [ "$(ask "sum(nemoserve_choices_finished_total{instance=\"$first\"})" 2>/dev/null || echo 0)" -gt 10 ] 2>/dev/null; }
wait_for 20 served || fail "the first replica serves nobody"
kill -TERM "$one"
code=0
wait "$one" || code=$?
echo "the first replica drained: exit $code"
[ "$code" = 0 ] || fail "SIGTERM: exit $code"
wait "$load" || fail "the load failed: $(cat "$work/load.log")"
python3 - "$work/load.json" <<'PYTHON'
import json, sys
row = json.load(open(sys.argv[1]))["rows"][0]
print(row["requests"], "answered,", row["failed"], "failed")
assert row["failed"] == 0 and row["requests"] == 240, row
PYTHON

step "Its alert fires, and only that one's"
down='ALERTS{alertname="NemoserveDown", alertstate="firing"}'
wait_for 20 is "count($down)" 1 || fail "nobody was told"
get "http://$watch/api/v1/alerts" | python3 -c '
import json, sys
for alert in json.load(sys.stdin)["data"]["alerts"]:
    print(alert["state"], alert["labels"]["alertname"], alert["labels"]["instance"], "-", alert["annotations"]["summary"])'

step "The replica comes back: the alert ends, and it is sent requests again"
start "$first" again
wait_for 30 is "count($down) or vector(0)" 0 || fail "the alert stays"
wait_for 20 is 'count(up{job="nemoserve"} == 1)' 2 || fail "it is not scraped again"
# Envoy finds out by its own looks at /ready.
sent() {
    "$nemoserve" bench --json serve --url "http://$front" --streams 4 --requests 40 --input-len 16 --output-len 4 > "$work/load.json" \
        || fail "the second load failed"
    get "http://$first/metrics" | grep -q 'requests_total{route="/v1/completions",status="200"} [1-9]'
}
wait_for 20 sent || fail "the replica that came back was sent nothing"
echo "it answers: $(get "http://$first/metrics" | grep 'requests_total{route="/v1/completions",status="200"}')"

step "What the dashboard asks"
"$venv/bin/python" grafana/check.py ask "http://$watch"

printf '\nstranger: the way is passable\n'
