// Two official Socket.IO clients reach two nodes of the demo through its one address: `node demo.mjs URL TRANSPORTS`.
import assert from "node:assert/strict";
import { once } from "node:events";
import { io } from "socket.io-client";

const [url, names] = process.argv.slice(2);
const transports = names.split(",");

async function open(node) {
  const socket = io(url, { transports, query: { node }, reconnection: false, forceNew: true });
  const [welcome] = await once(socket, "welcome", { signal: AbortSignal.timeout(5000) });
  assert.equal(welcome.node, node);
  return socket;
}

const [one, two] = [await open(1), await open(2)];
for (const socket of [one, two]) assert.equal(await socket.emitWithAck("join", "lobby"), true);
for (const [speaker, listener, node] of [[one, two, 1], [two, one, 2]]) {
  for (let number = 0; number < 20; number += 1) {
    const heard = once(listener, "said", { signal: AbortSignal.timeout(5000) });
    await speaker.emitWithAck("say", { room: "lobby", name: "test", text: `message ${number}` });
    const [said] = await heard;
    assert.deepEqual([said.text, said.node], [`message ${number}`, node]);
  }
}
assert.equal(one.io.engine.transport.name, transports.at(-1));
console.log("ok demo");
process.exit(); // python-engineio would leave a long poll of a client that says goodbye waiting
