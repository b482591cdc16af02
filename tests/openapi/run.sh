#!/usr/bin/env bash
# Lets schemathesis make requests out of /openapi.json, valid ones and others, and judge the answers:
# no 5xx, nothing undocumented (status, content type, headers, schema of answers and events), nothing
# accepted that the document forbids. For 60 seconds or SECONDS; 300 try all of the boundaries of all
# routes. SEED=$RANDOM makes other requests.
# Usage: tests/openapi/run.sh PATH/TO/nemoserve [SECONDS]
set -euo pipefail
binary="$(realpath "$1")"
cd "$(dirname "$0")"
# shellcheck source=tests/clients/lib.sh
source ../clients/lib.sh

# A small window keeps every generation short, however many tokens a request asks for.
start_server daemon "$binary" serve --max-model-len 96 --listen
python="$(python_with openapi requirements.txt)"

# Not checked: that all requests are accepted which fit their schema. Some parameters need others, and
# a random model is no model; tests/tests/api/openapi.rs does it, one parameter at a time.
cp schemathesis.toml "$work"
cd "$work"
if ! "$(dirname "$python")/schemathesis" run "$url/openapi.json" \
    --checks all --exclude-checks positive_data_acceptance \
    --phases examples,coverage,fuzzing --continue-on-failure --no-shrink \
    --request-timeout 30 --output-sanitize false --warnings off --seed "${SEED:-1}" --max-time "${2:-60}" > schemathesis.log 2>&1; then
    cat schemathesis.log
    exit 1
fi
sed -n '/Selected:/,$p' schemathesis.log
if grep --quiet --ignore-case 'panicked' daemon.log; then
    cat daemon.log
    exit 1
fi
echo "ok     schemathesis finds nothing"
