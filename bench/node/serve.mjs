// One server process of an end-to-end measurement: Node's socket.io, with `ws`, and one of its adapters for Redis.
//
//   node serve.mjs redis|sharded|streams URL CHANNEL SIZE [JOURNAL]
//
// Run by the measurements, not by hand: the counterpart of bench/end_to_end_node.py, with the same commands, and, where
// it is given a journal, of bench/faults/node.py.

import { createSocket } from "node:dgram";
import { once } from "node:events";
import { openSync, writeSync } from "node:fs";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { setImmediate as turn, setTimeout as sleep } from "node:timers/promises";
import { createAdapter, createShardedAdapter } from "@socket.io/redis-adapter";
import { createAdapter as createStreamsAdapter } from "@socket.io/redis-streams-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";

const ROOM = "everyone";
const EVENT = "event";
const DIGITS = 9;
const PROBE = 0.005; // seconds
const LIFETIME = 900; // seconds
const [variant, url, channel, size, journal] = process.argv.slice(2);

setTimeout(() => process.exit(1), LIFETIME * 1e3).unref();
const now = () => Number(process.hrtime.bigint()) / 1e9; // seconds of the clock that all processes share

const http = createServer();
const io = new Server(http, { serveClient: false });
const clients = []; // of Redis
const emit = (number) => io.to(ROOM).emit(EVENT, String(number).padStart(DIGITS, "0").padEnd(Number(size), "x"));

let credit = 0; // events that have been received, as the load tells in datagrams
let told = () => {};
let lags = [];
let probe = null;
let stream = null;

const file = journal ? openSync(journal, "a") : null;
const write = (...words) => file === null || writeSync(file, `${words.join(" ")}\n`);
const tell = (what, error) => {
  write("told", `${what}:${error.code ?? error.constructor.name}`, 0);
  console.error(error);
};
if (journal) process.on("unhandledRejection", (error) => tell("unhandled", error)); // which ends a process by itself

async function connected() {
  const client = createClient({ url });
  client.on("error", (error) => tell("error", error));
  await client.connect();
  clients.push(client);
  return client;
}

async function adapter() {
  const pub = await connected();
  if (variant === "streams") {
    const own = journal ? {} : { maxLen: 200_000 }; // nothing is to be lost where speed is measured
    return createStreamsAdapter(pub, { streamName: channel, channelPrefix: channel, ...own });
  }
  const sub = await connected();
  return variant === "sharded"
    ? createShardedAdapter(pub, sub, { channelPrefix: channel })
    : createAdapter(pub, sub, { key: channel });
}

function more(seconds) {
  return new Promise((resolve) => {
    const late = setTimeout(resolve, seconds * 1e3);
    told = () => {
      clearTimeout(late);
      resolve();
    };
  });
}

const verbs = {
  async start() {
    io.adapter(await adapter());
    io.on("connection", (socket) => socket.join(ROOM));
    const datagrams = createSocket("udp4");
    datagrams.on("message", (data) => {
      credit = Number(data);
      told();
    });
    datagrams.bind(0, "127.0.0.1");
    http.listen({ port: 0, host: "127.0.0.1", backlog: 4096 });
    await Promise.all([once(datagrams, "listening"), once(http, "listening")]);
    return { port: http.address().port, credit: datagrams.address().port };
  },
  usage() {
    const { userCPUTime, systemCPUTime } = process.resourceUsage();
    return { cpu: (userCPUTime + systemCPUTime) / 1e6, resident: process.memoryUsage.rss() };
  },
  async burst({ first, seconds, window, limit }) {
    const began = now();
    let number = first;
    let left;
    while (number < first + limit && (left = began + seconds - now()) > 0) {
      if (number - Math.max(first, credit) >= window) {
        await more(left);
        continue;
      }
      emit(number);
      number += 1;
      await turn(); // every emit of an application comes from a handler of its own
    }
    return { began, events: number - first };
  },
  async paced({ first, count, rate }) {
    const began = now();
    const times = [];
    for (let number = 0; number < count; number += 1) {
      await sleep(Math.max(0, (began + number / rate - now()) * 1e3));
      times.push(now());
      emit(first + number);
    }
    return { times };
  },
  probe() {
    io.to(ROOM).emit("probe");
    return {};
  },
  stream({ first, rate }) {
    const began = now();
    let number = first;
    const next = () => {
      const due = first + (now() - began) * rate;
      for (; number <= due; number += 1) {
        write("call", number, now());
        emit(number);
        write("done", number);
      }
      stream = setTimeout(next, 1e3 / rate);
    };
    next();
    return {};
  },
  end() {
    clearTimeout(stream);
    return {};
  },
  async lag({ on }) {
    if (!on) await sleep(2 * PROBE * 1e3); // there is one look at least
    clearTimeout(probe);
    const ordered = lags.sort((a, b) => a - b);
    lags = [];
    if (on) {
      let due = now() + PROBE;
      const look = () => {
        const at = now();
        lags.push(at - due);
        due = at + PROBE;
        probe = setTimeout(look, PROBE * 1e3);
      };
      probe = setTimeout(look, PROBE * 1e3);
    }
    return ordered.length ? { p99: ordered[Math.ceil(0.99 * ordered.length) - 1], max: ordered.at(-1) } : {};
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { do: verb, ...command } = JSON.parse(line);
  let answer;
  try {
    answer = await verbs[verb](command);
  } catch (error) {
    answer = { error: String(error?.stack ?? error) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
if (variant === "streams") await clients[0].del(channel);
process.exit(0);
