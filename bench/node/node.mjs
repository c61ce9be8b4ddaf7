// A node of Node's socket.io whose clients have no transport: the counterpart of bench/node_process.py.
//
//   node --expose-gc node.mjs memory|redis|sharded|streams URL CHANNEL SERVERS
//
// Its clients are real engine.io Sockets, on a transport that never becomes writable: what is emitted to them waits in
// their write buffers, as it waits in the queue of a python-engineio socket that nobody reads. Emits in flight are
// counted at the Redis client, because socket.io's emit returns nothing to await.

import { createInterface } from "node:readline";
import { EventEmitter } from "node:events";
import { Server } from "socket.io";
import { Server as Engine, Socket as EngineSocket } from "engine.io";
import { createAdapter, createShardedAdapter } from "@socket.io/redis-adapter";
import { createAdapter as createStreamsAdapter } from "@socket.io/redis-streams-adapter";
import { createClient } from "redis";

const BURST = 200; // events between two turns of the loop, as in bench/node_process.py
const OUTSTANDING = 1000; // commands to Redis in a burst that may wait for their answer
const [variant, url, channel, servers] = process.argv.slice(2);

const now = () => Number(process.hrtime.bigint()) / 1e9; // seconds of the clock that all processes share
const turn = () => new Promise((resolve) => setImmediate(resolve));
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1e3));
const cpu = () => {
  const used = process.resourceUsage();
  return (used.userCPUTime + used.systemCPUTime) / 1e6;
};

class IdleTransport extends EventEmitter {
  constructor() {
    super();
    this.name = "websocket";
    this.writable = false;
    this.readyState = "open";
    this.supportsFraming = true;
    this.handlesUpgrades = true;
  }
  send() {}
  discard() {}
  close(done) {
    this.readyState = "closed";
    if (done) done();
  }
}

const nodes = []; // of each server: io, its clients as engine.io has them and as socket.io has them, Redis clients
let outstanding = 0;

function counted(client, command) {
  const original = client[command].bind(client);
  client[command] = (...args) => {
    outstanding++;
    const promise = original(...args);
    const done = () => {
      outstanding--;
    };
    promise.then(done, done);
    return promise;
  };
}

async function startServer() {
  const io = new Server({ serveClient: false });
  io.bind(new Engine({ pingInterval: 3_600_000 })); // no request ever reaches it: clients come by io.onconnection
  const node = { io, sockets: [], members: [], probe: null, pub: null, sub: null };
  if (variant !== "memory") {
    node.pub = createClient({ url });
    node.pub.on("error", (error) => console.error(error));
    await node.pub.connect();
    if (variant === "streams") {
      counted(node.pub, "xAdd");
      io.adapter(createStreamsAdapter(node.pub, { streamName: channel, channelPrefix: channel, maxLen: 200_000 }));
    } else {
      node.sub = node.pub.duplicate();
      node.sub.on("error", (error) => console.error(error));
      await node.sub.connect();
      counted(node.pub, variant === "sharded" ? "sPublish" : "publish");
      io.adapter(
        variant === "sharded"
          ? createShardedAdapter(node.pub, node.sub, { channelPrefix: channel })
          : createAdapter(node.pub, node.sub, { key: channel }),
      );
    }
  }
  nodes.push(node);
}

let clients = 0;

// A client that is connected, and in a room unless that is null; `keep` says whether it counts.
function connectClient(node, room = null, keep = true) {
  const request = { url: "/", headers: {}, connection: { remoteAddress: "127.0.0.1" }, _query: {} };
  const transport = new IdleTransport();
  const conn = new EngineSocket(`client${clients++}`.padEnd(20, "x"), node.io.engine, transport, request, 4);
  return new Promise((resolve) => {
    node.io.of("/").once("connection", (socket) => {
      if (room !== null) socket.join(room);
      if (keep) {
        node.sockets.push(conn);
        node.members.push(socket);
      }
      drain(conn);
      resolve({ socket, conn });
    });
    node.io.onconnection(conn);
    transport.emit("packet", { type: "message", data: "0" });
  });
}

function drain(conn) {
  const count = conn.writeBuffer.length;
  if (count) {
    conn.writeBuffer.length = 0;
    conn.packetsFn.length = 0;
  }
  return count;
}

function drainAll() {
  let count = 0;
  for (const node of nodes) for (const conn of node.sockets) count += drain(conn);
  return count;
}

// Redis has heard of all rooms that were joined: `join` returns nothing to await, and what is asked later is answered later.
async function barrier(node) {
  if (variant === "sharded") await node.sub.sSubscribe(`${channel}-barrier${barriers++}`, () => {});
}

let barriers = 0;

const name = (target, number) => (target.count ? `${target.prefix}${number % target.count}` : target.room);

async function quiet() {
  while (outstanding > 0) await turn();
}

async function emit({ events, size, target, in_flight, per_second }) {
  const { io } = nodes[0];
  const payload = "x".repeat(size);
  const limit = in_flight > 1 ? in_flight : OUTSTANDING;
  const stamps = [];
  const used = cpu();
  const began = now();
  for (let number = 0; number < events; number++) {
    if (per_second) {
      const due = began + number / per_second;
      while (now() < due) await sleep(Math.max(0, due - now()));
      stamps.push(now());
    }
    io.to(name(target, number)).emit("event", payload);
    if (number % BURST === 0) await turn();
    while (outstanding >= limit) await turn();
  }
  await quiet();
  return { began, ended: now(), cpu: cpu() - used, stamps };
}

let watched = 0; // the CPU of this process when `watch` was asked for
let stamps = []; // of the packets to the last client of the first server, since then

// Begin to count CPU, and, with `stamp`, to note when each packet to the last client is written.
async function watch({ stamp }) {
  const conn = nodes[0].sockets.at(-1);
  if (stamp) {
    stamps = [];
    conn.sendPacket = () => {
      stamps.push(now());
      stamped();
    };
  }
  watched = cpu();
  return {};
}

let stamped = () => {};

async function count({ deliveries, within }) {
  const deadline = now() + within;
  let got = 0;
  while (got < deliveries && now() < deadline) {
    await sleep(0.002);
    got += drainAll();
  }
  return { ended: now(), cpu: cpu() - watched, got };
}

// Wait for packets to the last client since `watch`, without looking at the clock meanwhile.
function arrivals({ packets, within }) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      stamped = () => {};
      resolve({ ended: now(), cpu: cpu() - watched, got: stamps.length, stamps });
    };
    const timer = setTimeout(end, within * 1e3);
    stamped = () => {
      if (stamps.length === packets) end();
    };
    stamped();
  });
}

function heap() {
  for (let pass = 0; pass < 3; pass++) global.gc();
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

const verbs = {
  async start() {
    for (let number = 0; number < Number(servers); number++) await startServer();
    return {};
  },
  async clients({ count, room }) {
    for (const node of nodes) {
      for (let number = 0; number < count; number++) await connectClient(node, room);
      await barrier(node);
    }
    return {};
  },
  // `count` rooms, each joined by one client, in turn; returns once Redis has heard of all of them.
  async rooms({ count, prefix }) {
    for (const node of nodes) {
      for (let number = 0; number < count; number++) {
        node.members[number % node.members.length].join(`${prefix}${number}`);
        if (number % 1000 === 0) await turn();
      }
      await barrier(node);
    }
    return {};
  },
  // One client of each server that does not count, for `probed`.
  async probe({ room }) {
    for (const node of nodes) node.probe = (await connectClient(node, room, false)).conn;
    return {};
  },
  // How many servers have heard nothing for their probe yet, after a moment.
  async probed({ within }) {
    const deadline = now() + within;
    const deaf = () => nodes.filter((node) => node.probe.writeBuffer.length === 0).length;
    while (deaf() && now() < deadline) await sleep(0.002);
    return { deaf: deaf() };
  },
  async usage() {
    return { cpu: cpu(), time: now(), resident: process.memoryUsage().rss };
  },
  async forget() {
    return { packets: drainAll() };
  },
  emit,
  watch,
  count,
  arrivals,
  async disconnect({ times, shared, own }) {
    const [node] = nodes;
    const cost = [];
    for (let number = 0; number < times; number++) {
      const { socket, conn } = await connectClient(node, shared, false);
      socket.join(`${own}${number}`);
      const began = now();
      node.io.of("/").adapter.delAll(socket.id);
      const done = now();
      conn.onClose("transport close");
      cost.push({ rooms: (done - began) * 1e6, all: (now() - began) * 1e6 });
      await turn();
    }
    return { rooms: cost.map((one) => one.rooms), all: cost.map((one) => one.all) };
  },
  async memory_of_memberships({ rooms, members }) {
    const [node] = nodes;
    const sockets = [];
    for (let number = 0; number < members; number++) sockets.push((await connectClient(node)).socket);
    const names = Array.from({ length: rooms }, (_, number) => `room-${String(number).padStart(8, "0")}`);
    drainAll();
    const before = heap();
    for (const room of names) for (const socket of sockets) socket.join(room);
    await turn();
    await barrier(node);
    return { bytes: (heap() - before) / (rooms * members) };
  },
  async memory_of_clients({ count }) {
    const before = heap();
    await verbs.clients({ count });
    drainAll();
    return { bytes: (heap() - before) / count };
  },
  // One client joins `times` rooms, 64 at a time, then leaves them; `fresh` rooms are new to this node.
  async churn({ times, prefix, fresh }) {
    const [node] = nodes;
    const { socket } = await connectClient(node);
    if (!fresh) {
      const { socket: holder } = await connectClient(node);
      for (let number = 0; number < times; number++) holder.join(`${prefix}${number}`);
      await barrier(node);
    }
    const costs = {};
    for (const verb of ["join", "leave"]) {
      const used = cpu();
      const began = now();
      for (let number = 0; number < times; number++) {
        socket[verb](`${prefix}${number}`);
        if (number % 64 === 63) await turn();
      }
      // what was sent to Redis is answered before this is
      await barrier(node);
      costs[verb] = { cpu: ((cpu() - used) / times) * 1e6, wall: ((now() - began) / times) * 1e6 };
    }
    return costs;
  },
};

async function stop() {
  for (const node of nodes) {
    const { adapter } = node.io.of("/");
    if (variant === "streams") await node.pub.del(channel);
    adapter.close();
    for (const client of [node.pub, node.sub]) if (client?.isOpen) client.destroy();
  }
  process.exit(0);
}

const lines = createInterface({ input: process.stdin });
for await (const line of lines) {
  const { do: verb, ...args } = JSON.parse(line);
  let answer;
  try {
    answer = await verbs[verb](args);
  } catch (error) {
    answer = { error: String(error?.stack ?? error) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
await stop();
