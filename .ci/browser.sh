#!/usr/bin/env bash
# Sees to it that tests can have Chromium and the JavaScript Socket.IO client: installed, else from apt and npm.
set -euo pipefail
cd "$(dirname "$0")/.."

if browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome); then
    echo "Chromium: $browser"
elif .ci/apt.sh chromium >&2; then
    echo "Chromium: installed just now"
else
    echo "Chromium: MISSING, and the browser tests will say so" >&2
fi

if ! command -v npm >/dev/null; then
    .ci/apt.sh nodejs npm >&2 || true
fi
if [[ ! -f tests/js/package.json ]]; then
    echo "JavaScript client: no tests/js here"
elif command -v npm >/dev/null; then
    if [[ tests/js/node_modules/.package-lock.json -nt tests/js/package-lock.json ]]; then
        echo "JavaScript client: there"
    else
        (cd tests/js && npm ci --no-audit --no-fund --loglevel=error)
        echo "JavaScript client: installed just now"
    fi
else
    echo "JavaScript client: MISSING (no npm), and the browser tests will say so" >&2
fi
