// One server process of an end-to-end measurement: Node's socket.io with one of its adapters for Redis.
//
// Run by the measurements, not by hand. The commands on stdin are those of bench/end_to_end_node.py.

import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { setImmediate as yieldLoop, setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { createAdapter, createShardedAdapter } from "@socket.io/redis-adapter";
import { createAdapter as createStreamsAdapter } from "@socket.io/redis-streams-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";

const ROOM = "everyone";
const EVENT = "event";
const DIGITS = 9;
const PROBE = 0.005;

const { values: options } = parseArgs({
  options: {
    kind: { type: "string" },
    url: { type: "string" },
    channel: { type: "string" },
    size: { type: "string", default: "200" },
  },
});
const size = Number(options.size);
const lifetime = setTimeout(() => process.exit(1), 600_000);
lifetime.unref();

const monotonic = () => Number(process.hrtime.bigint()) / 1e9;
const answer = (message) => process.stdout.write(JSON.stringify(message) + "\n");
const quantile = (ordered, share) =>
  ordered.length ? ordered[Math.min(ordered.length - 1, Math.floor(share * ordered.length))] : null;

async function connected() {
  const client = createClient({ url: options.url });
  client.on("error", (error) => console.error(String(error)));
  await client.connect();
  return client;
}

async function adapter() {
  switch (options.kind) {
    case "node-redis":
      return createAdapter(await connected(), await connected(), { key: options.channel });
    case "node-redis-sharded":
      return createShardedAdapter(await connected(), await connected(), { channelPrefix: options.channel });
    case "node-redis-streams":
      return createStreamsAdapter(await connected(), { streamName: options.channel });
    default:
      throw new Error(`No contestant is called ${options.kind}.`);
  }
}

const http = createServer();
const io = new Server(http, { adapter: await adapter() });
io.on("connection", (socket) => socket.join(ROOM));
const emit = (number) => io.to(ROOM).emit(EVENT, String(number).padStart(DIGITS, "0").padEnd(size, "x"));

let credit = 0;
let credited = () => {};
let lags = [];
let probe = null;

async function burst({ first, seconds, window, limit }) {
  const began = monotonic();
  let number = first;
  credit = Math.max(credit, first);
  while (number < first + limit) {
    const left = began + seconds - monotonic();
    if (left <= 0) break;
    if (number - credit >= window) {
      const over = new AbortController();
      const told = new Promise((resolve) => (credited = resolve));
      const late = sleep(left * 1000, "late", { signal: over.signal }).catch(() => {});
      const which = await Promise.race([told, late]);
      over.abort();
      if (which === "late") break;
      continue;
    }
    emit(number);
    number += 1;
    await yieldLoop();
  }
  return { began, events: number - first };
}

async function paced({ first, count, rate }) {
  const began = monotonic();
  const times = [];
  for (let number = 0; number < count; number += 1) {
    const wait = began + number / rate - monotonic();
    await sleep(Math.max(0, wait * 1000));
    times.push(monotonic());
    emit(first + number);
  }
  return { times };
}

function lag({ on }) {
  if (probe) clearTimeout(probe);
  probe = null;
  const ordered = lags.sort((a, b) => a - b);
  lags = [];
  if (on) {
    let due = monotonic() + PROBE;
    const look = () => {
      const now = monotonic();
      lags.push(now - due);
      due = now + PROBE;
      probe = setTimeout(look, PROBE * 1000);
    };
    probe = setTimeout(look, PROBE * 1000);
  }
  return { p50: quantile(ordered, 0.5), p99: quantile(ordered, 0.99), max: quantile(ordered, 1) };
}

const verbs = {
  usage: () => {
    const { user, system } = process.cpuUsage();
    return { cpu: (user + system) / 1e6, resident: process.memoryUsage.rss() };
  },
  credit: ({ events }) => {
    credit = events;
    credited();
  },
  burst,
  paced,
  lag,
};

const commands = createInterface({ input: process.stdin });
commands.on("line", async (line) => {
  const { do: verb, ...command } = JSON.parse(line);
  try {
    const found = await verbs[verb](command);
    if (found !== undefined) answer(found);
  } catch (error) {
    answer({ error: String(error) });
  }
});
commands.on("close", () => process.exit(0));
http.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () =>
  answer({ port: http.address().port, pid: process.pid }),
);
