#!/usr/bin/env bash
# Coding agents as published, against the real front end over a model that follows script.json: each
# must finish an edit in a fresh repository. No host but the package registries is needed: aider's and
# OpenCode's own look-ups of prices and models fail here, and they go on.
# Usage: tests/agents/run.sh PATH/TO/scripted_server
set -euo pipefail
scripted="$(realpath "$1")"
cd "$(dirname "$0")"
source ../clients/lib.sh
here="$PWD"

python="$(python_with aider requirements.txt)"
aider="${python%/*}/aider"
modules="$(node_with opencode opencode)"
opencode="$modules/.bin/opencode"
task="Make greet take a name."
# Nothing of the person's own set-up takes part.
export HOME="$work/home" XDG_CONFIG_HOME="$work/home/.config" XDG_DATA_HOME="$work/home/.local/share"
export XDG_CACHE_HOME="$work/home/.cache" XDG_STATE_HOME="$work/home/.local/state"
export GIT_CONFIG_GLOBAL="$work/home/.gitconfig" GIT_CONFIG_NOSYSTEM=1
mkdir -p "$HOME"
git config --global user.name "A Tester"
git config --global user.email tester@example.com
git config --global init.defaultBranch main

# prepare NAME: a fresh repository with a file to edit, and a server that knows its path.
prepare() {
    project="$work/$1"
    mkdir "$project"
    printf 'def greet():\n    return "Hello!"\n' > "$project/greeting.py"
    git -C "$project" init --quiet
    git -C "$project" add .
    git -C "$project" commit --quiet --message start
    sed "s#@PROJECT@#$project#g" "$here/script.json" > "$work/$1.json"
    SCRIPT_VERBOSE=1 start_server "$1-server" "$scripted" "$work/$1.json"
}

# expect NAME TEXT WHAT: the edited file has this line, and still runs.
expect() {
    if ! grep --quiet --fixed-strings "$2" "$work/$1/greeting.py" || ! python3 "$work/$1/greeting.py"; then
        echo "FAILED $3"
        cat "$work/$1.out" "$work/$1-server.log"
        exit 1
    fi
    echo "ok     $3"
}

prepare aider
(cd "$project" && OPENAI_API_BASE="$url/v1" OPENAI_API_KEY=unused timeout 120 "$aider" \
    --model openai/nvidia/nemotron-3-super-120b-a12b --edit-format diff --message "$task" \
    --yes-always --no-check-update --analytics-disable --no-show-model-warnings \
    --no-show-release-notes --no-pretty --no-fancy-input greeting.py) > "$work/aider.out" 2>&1 </dev/null || true
expect aider 'def greet(name):' "$("$aider" --version 2>/dev/null): an edit by blocks"
if [ "$(git -C "$project" log -1 --format=%s)" != "feat: greet by name" ]; then
    echo "FAILED aider: the commit"
    git -C "$project" log
    exit 1
fi
echo "ok     aider: its commit, with the model's message"

prepare opencode
sed "s#@URL@#$url#g" opencode/opencode.json > "$project/opencode.json"
(cd "$project" && OPENCODE_DISABLE_AUTOUPDATE=1 OPENCODE_DISABLE_MODELS_FETCH=1 \
    OPENCODE_DISABLE_LSP_DOWNLOAD=1 timeout 120 "$opencode" run "$task") > "$work/opencode.out" 2>&1 </dev/null || true
expect opencode 'def greet(name):' "opencode $("$opencode" --version): two calls at once, an edit by tool, a command"
if ! grep --quiet --fixed-strings '`greet` takes a name now, and a run prints it.' "$work/opencode.out"; then
    echo "FAILED opencode: the last answer"
    cat "$work/opencode.out" "$work/opencode-server.log"
    exit 1
fi
echo "ok     opencode: the answer after its tools"
