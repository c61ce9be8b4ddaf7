#!/usr/bin/env bash
# Runs the suite in environments of their own: `oldest` (lowest direct dependencies) or `all` (each Python found).
set -euo pipefail
cd "$(dirname "$0")/.."

uv=$(.ci/uv.sh)
export UV_PYTHON_DOWNLOADS=never
export ROOMCAST_TEST_REQUIRE=1
for directory in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin; do # pyenv's shims hide what is not selected
    if [[ -d $directory ]]; then PATH=$PATH:$directory; fi
done

suite() { # environment, Python, resolution
    local environment=.venv-$1 python=$2 resolution=$3
    "$uv" venv --quiet --clear --python "$python" "$environment"
    VIRTUAL_ENV=$environment "$uv" pip install --quiet --resolution "$resolution" --group test \
        --editable ".[all,demo]"
    "$environment/bin/python" --version
    "$environment/bin/python" -m pytest -q -n "${PROCESSES:-4}" -p no:cacheprovider
}

find_python() { "$uv" python find --no-project "$1" 2>/dev/null; }

case ${1:-} in
oldest)
    python=$(find_python 3.11) || { echo "Python 3.11 is not installed" >&2; exit 1; }
    suite oldest "$python" lowest-direct
    ;;
all)
    failed=()
    for version in 3.11 3.12 3.13; do
        if python=$(find_python "$version"); then
            suite "$version" "$python" highest || failed+=("$version")
        else
            echo "Python $version: NOT FOUND, not tested" >&2
        fi
    done
    if ((${#failed[@]})); then
        echo "failed on Python ${failed[*]}" >&2
        exit 1
    fi
    ;;
*)
    echo "usage: $0 oldest|all" >&2
    exit 2
    ;;
esac
