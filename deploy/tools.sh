# Sourced by check.sh and stranger.sh, in this folder: the tools of those who will read its files.
cache="${XDG_CACHE_HOME:-$HOME/.cache}/nemoserve-deploy"
mkdir -p "$cache"

say() { printf '%-8s %s\n' "$1" "$2"; }

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# SECONDS COMMAND...: until it succeeds; fails when the time is up.
wait_for() {
    local end=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$end" ] || return 1
        sleep 0.1
    done
}

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

# One for each list of requirements.
venv="$cache/venv-$(sha256sum requirements.txt | head -c 12)"
if [ ! -e "$venv/complete" ]; then
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt
    touch "$venv/complete"
fi
promtool="$(command -v promtool || debian_tool prometheus usr/bin/promtool)"
prometheus="$(command -v prometheus || debian_tool prometheus usr/bin/prometheus)"
analyze="$(command -v systemd-analyze || debian_tool systemd usr/bin/systemd-analyze)"
