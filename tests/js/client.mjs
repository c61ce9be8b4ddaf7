// Two official Socket.IO clients on two nodes: `node client.mjs URL_A URL_B TRANSPORTS`, TRANSPORTS such as
// `websocket` or `polling,websocket`. Says `ok NAME` for everything that works, and ends with code 1 at the first
// thing that does not.
import assert from "node:assert/strict";
import { once } from "node:events";
import { io } from "socket.io-client";

const [urlA, urlB, names] = process.argv.slice(2);
const transports = names.split(",");
const PATIENCE = 5000;
const FLOOD = 200;
const problems = [];

async function open(url, namespace = "/") {
  const socket = io(url + namespace, { transports, reconnection: false, forceNew: true, ackTimeout: PATIENCE, retries: 0 });
  socket.on("connect_error", (error) => problems.push(`connect_error: ${error.message}`));
  socket.on("disconnect", (reason) => {
    if (!["io client disconnect", "io server disconnect"].includes(reason)) problems.push(`disconnect: ${reason}`);
  });
  socket.io.on("error", (error) => problems.push(`error: ${error.message}`));
  await once(socket, "connect");
  return socket;
}

async function next(socket, event) {
  return once(socket, event, { signal: AbortSignal.timeout(PATIENCE) });
}

async function both(a, b, event, send) {
  const heard = Promise.all([next(a, event), next(b, event)]);
  await send();
  return heard;
}

async function join(room, ...sockets) {
  for (const socket of sockets) assert.equal(await socket.emitWithAck("join", room), true);
}

const checks = {
  async "events both ways"(a, b) {
    await join("lobby", a, b);
    for (const [speaker, text] of [[a, "from a, äöü €, 😀"], [b, "from b"]]) {
      const [[heardA], [heardB]] = await both(a, b, "said", () => speaker.emit("say", "lobby", { text, list: [1, 2.5, null, true] }));
      assert.deepEqual(heardA, { text, list: [1, 2.5, null, true] });
      assert.deepEqual(heardB, heardA);
    }
  },

  async "several arguments"(a, b) {
    const heard = next(b, "said");
    a.emit("say", "lobby", "one", 2, { three: [3] });
    assert.deepEqual(await heard, ["one", 2, { three: [3] }]);
  },

  async "binary"(a, b) {
    const picture = Buffer.from(Array.from({ length: 70_000 }, (_, i) => i % 256));
    const heard = next(b, "said");
    a.emit("say", "lobby", { picture, deeper: [{ empty: Buffer.alloc(0) }] }, Buffer.from([0, 255]));
    const [first, second] = await heard;
    assert.ok(picture.equals(first.picture));
    assert.equal(first.deeper[0].empty.length, 0);
    assert.deepEqual([...second], [0, 255]);
  },

  async "ack across nodes"(a, b) {
    b.on("question", (question, answer) => answer({ ...question, answered: true }, Buffer.from([1, 2, 3])));
    const [object, bytes] = await a.emitWithAck("ask", b.id, { number: 42 });
    assert.deepEqual(object, { number: 42, answered: true });
    assert.deepEqual([...bytes], [1, 2, 3]);
  },

  async "namespaces"(a, b) {
    const [chatA, chatB] = [await open(urlA, "/chat"), await open(urlB, "/chat")];
    await join("lobby", chatA, chatB);
    const elsewhere = [];
    const listen = (...said) => elsewhere.push(said);
    a.on("said", listen);
    b.on("said", listen);
    const heard = next(chatB, "said");
    chatA.emit("say", "lobby", "in the chat");
    assert.deepEqual(await heard, ["in the chat"]);
    await both(a, b, "said", () => b.emit("say", "lobby", "not in the chat")); // what came before this is in `elsewhere`
    assert.deepEqual(elsewhere, [["not in the chat"], ["not in the chat"]]);
    a.off("said", listen);
    b.off("said", listen);
    chatA.disconnect();
    chatB.disconnect();
  },

  async "order of text and binary under load"(a, b) {
    // the servers speak, because python-engineio takes at most 16 packets in one POST of a polling client
    const heard = { a: [], b: [] };
    const done = new Promise((resolve, reject) => {
      setTimeout(() => reject(new Error(`heard ${heard.a.length} of a and ${heard.b.length} of b`)), PATIENCE * 2).unref();
      b.on("flooded", (from, number, bytes) => {
        assert.equal(bytes?.readUInt32BE() ?? number, number);
        heard[from].push(number);
        if (heard.a.length + heard.b.length === 2 * FLOOD) resolve();
      });
    });
    await Promise.all([a.emitWithAck("flood", "lobby", "a", FLOOD), b.emitWithAck("flood", "lobby", "b", FLOOD), done]);
    const inOrder = Array.from({ length: FLOOD }, (_, number) => number);
    assert.deepEqual(heard, { a: inOrder, b: inOrder });
  },

  async "disconnect across nodes"(a, b) {
    const gone = next(b, "disconnect");
    assert.equal(await a.emitWithAck("kick", b.id), true);
    assert.equal((await gone)[0], "io server disconnect");
  },
};

const [a, b] = [await open(urlA), await open(urlB)];
for (const [name, check] of Object.entries(checks)) {
  await check(a, b);
  assert.deepEqual(problems, []);
  console.log(`ok ${name}`);
}
assert.equal(a.io.engine.transport.name, transports.at(-1));
console.log(`ok transport ${transports.at(-1)}`);
process.exit(); // python-engineio would leave a long poll of a client that says goodbye waiting
