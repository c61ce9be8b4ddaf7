#!/usr/bin/env bash
# Installs the Debian packages named, or says why it cannot.
set -euo pipefail

if [[ $(id -u) != 0 ]]; then
    echo "not root" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "no apt-get" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "$@"
