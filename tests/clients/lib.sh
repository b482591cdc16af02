# shellcheck shell=bash
# What the scripts that drive third-party programs share. Source it; it makes `work`, a folder that
# goes away with the script, and ends what it started.

work="$(mktemp -d)"
# Packages are installed outside the clone and kept.
packages="${NEMOSERVE_CLIENTS:-${XDG_CACHE_HOME:-$HOME/.cache}/nemoserve-clients}"
started=()
trap 'status=$?; for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; done; rm -rf "$work"; exit $status' EXIT

# python_with NAME REQUIREMENTS: prints the Python of a virtual environment that has them.
python_with() {
    local venv="$packages/$1"
    if ! sha256sum --check --status "$venv/requirements.sha256" 2>/dev/null; then
        rm -rf "$venv"
        python3 -m venv "$venv" &&
            "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$2" >&2 || return 1
        sha256sum "$(realpath "$2")" > "$venv/requirements.sha256"
    fi
    echo "$venv/bin/python"
}

# node_with NAME FOLDER: prints a node_modules that has what FOLDER/package-lock.json names. Not
# `npm ci`: it refuses a lock that leaves other platforms' binaries out.
node_with() {
    local installed="$packages/$1"
    if ! cmp --silent "$2/package-lock.json" "$installed/done"; then
        rm -rf "$installed"
        mkdir -p "$installed"
        cp "$2/package.json" "$2/package-lock.json" "$2/.npmrc" "$installed"
        npm install --prefix "$installed" --no-save --no-audit --no-fund --loglevel=error >&2 || return 1
        cp "$2/package-lock.json" "$installed/done"
    fi
    echo "$installed/node_modules"
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# start_server NAME COMMAND...: appends a free address to the command, runs it in the background with
# its output in $work/NAME.log, waits until it is ready and sets `url`.
start_server() {
    local name="$1" address
    shift
    address="127.0.0.1:$(free_port)"
    "$@" "$address" > "$work/$name.log" 2>&1 &
    local pid=$!
    started+=("$pid")
    url="http://$address"
    for _ in $(seq 200); do
        if curl --silent --fail --output /dev/null "$url/ready"; then return 0; fi
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    cat "$work/$name.log" >&2
    return 1
}
