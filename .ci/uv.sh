#!/usr/bin/env bash
# Prints the path of uv: the installed one, else one in .venv-uv, made with the Python given as first argument.
set -euo pipefail
cd "$(dirname "$0")/.."

if uv=$(command -v uv); then
    echo "$uv"
    exit
fi
own=.venv-uv
if [[ ! -x $own/bin/uv ]]; then
    python=${1:-python3}
    if ! "$python" -m venv "$own" >&2; then # Debian keeps ensurepip in a package of its own
        rm -rf "$own"
        if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
            echo "uv is not installed and $python cannot make a virtual environment: install uv, or python3-venv" >&2
            exit 1
        fi
        apt-get update -qq >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >&2
        "$python" -m venv "$own" >&2
    fi
    "$own/bin/python" -m pip install --quiet uv >&2
fi
echo "$PWD/$own/bin/uv"
