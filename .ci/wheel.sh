#!/usr/bin/env bash
# Builds the wheel and imports it, from outside the checkout, in environments that hold nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=$(.ci/uv.sh)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$uv" build --quiet --wheel --out-dir "$place"
wheel=$(echo "$place"/roomcast-*.whl)
cp tests/wheel_check.py "$place"

check() { # extras, mode
    "$uv" venv --quiet --clear --python .venv/bin/python "$place/env"
    VIRTUAL_ENV=$place/env "$uv" pip install --quiet "$wheel$1"
    (cd "$place" && env -u PYTHONPATH env/bin/python -I -W error wheel_check.py "$2")
}

check "" bare
check "[all]" all
check "[all,demo]" demo
