// Official Socket.IO clients that lose their connections and come back by themselves: `node returning.mjs URL CLIENTS`,
// CLIENTS being JSON such as {"ada": {"namespace": "/", "transports": ["websocket"], "auth": {"room": "red"}}}.
// Says what happens to each, a line of JSON each time; bytes are shown as {"hex": "..."}. An event `drop` makes a client
// close its connection as if the network had.
import { io } from "socket.io-client";

const [url, wanted] = process.argv.slice(2);
const TIMES = { reconnectionDelay: 50, reconnectionDelayMax: 100, randomizationFactor: 0 };

function shown(value) {
  if (Buffer.isBuffer(value)) return { hex: value.toString("hex") };
  if (Array.isArray(value)) return value.map(shown);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, shown(item)]));
}

for (const [client, { namespace, transports, auth }] of Object.entries(JSON.parse(wanted))) {
  const say = (happening) => console.log(JSON.stringify({ client, ...happening }));
  const socket = io(url + namespace, { transports, auth, forceNew: true, ...TIMES });
  socket.on("connect", () => say({ connected: socket.id, recovered: Boolean(socket.recovered) }));
  socket.on("disconnect", (reason) => say({ lost: reason }));
  socket.onAny((...event) => say({ heard: shown(event) }));
  // not at once: the client would keep what came in the same piece for its next connection, and ask for it again
  socket.on("drop", () => setTimeout(() => socket.io.engine.close()));
}
