// The page of one client. What people typed only ever becomes the text of an element (`element`, below).
"use strict";

const EVERYONE = ""; // the "room" of messages that went to every client of every node
const STALE = 3000; // milliseconds without a word from a node, which speaks every second
const KEPT = 200; // messages of a room
const $ = (id) => document.getElementById(id);

const wanted = new URLSearchParams(location.search).get("node");
const socket = io({ transports: ["websocket", "polling"], query: wanted ? { node: wanted } : {} });
const nodes = new Map(); // number -> its card, and what it said last: { clients, healthy, heard }
const rooms = new Map([[EVERYONE, room()], ["lobby", room()]]);
let current = "lobby";
let here = null; // the number of this tab's node

function room() {
  return { lines: [], unread: 0 };
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children); // strings become text nodes, never markup
  return made;
}

function coloured(made, node) {
  made.style.setProperty("--hue", (node * 137 + 100) % 360);
  return made;
}

// Nodes

function card(number) {
  const dot = element("span", { className: "dot", role: "img" });
  const [count, words] = [element("strong"), element("span")];
  const link = element("a", { href: `/?node=${number}`, target: "_blank", rel: "noopener" },
    element("b", {}, `Node ${number}`), dot, element("span", { className: "clients" }, count, words));
  link.title = `Open a tab on node ${number}`;
  link.dataset.node = number;
  const after = [...nodes].filter(([other]) => other > number).sort(([a], [b]) => a - b)[0]?.[1].link.parentElement;
  $("nodes").insertBefore(element("li", {}, coloured(link, number)), after ?? null);
  return { link, dot, count, words };
}

// Cards are changed in place, because one that is replaced under the pointer loses the click.
function showNodes() {
  for (const [number, { link, dot, count, words, clients, healthy, heard }] of nodes) {
    const well = healthy && Date.now() - heard < STALE;
    link.dataset.state = well ? "on" : "off";
    dot.ariaLabel = dot.title = well ? "healthy" : "not heard";
    count.textContent = clients;
    words.textContent = (clients === 1 ? "client" : "clients") + (number === here ? " · this tab" : "");
    link.classList.toggle("here", number === here);
  }
}

function showStatus(on, text) {
  $("status").dataset.state = on ? "on" : "off";
  $("status-text").textContent = text;
}

// Rooms

function title(name) {
  return name === EVERYONE ? "Everyone" : name;
}

function showRooms() {
  $("rooms").replaceChildren(...[...rooms].map(([name, { unread }]) => {
    const open = element("button", { type: "button", className: "open", onclick: () => enter(name) }, title(name));
    open.setAttribute("aria-current", name === current);
    if (unread) open.append(" ", element("span", { className: "unread" }, `${unread} new`));
    if (name === EVERYONE) return element("li", {}, open);
    const leave = element("button", { type: "button", className: "leave", onclick: () => leaveRoom(name) }, "×");
    leave.ariaLabel = leave.title = `Leave ${name}`;
    return element("li", {}, open, leave);
  }));
}

function enter(name) {
  current = name;
  rooms.get(name).unread = 0;
  $("log-title").textContent = name === EVERYONE ? "Everyone: all clients of all nodes" : name;
  $("log").replaceChildren(...rooms.get(name).lines);
  $("log").scrollTop = $("log").scrollHeight;
  showRooms();
}

async function joinRoom(name) {
  if (!rooms.has(name)) rooms.set(name, room());
  enter(name);
  await socket.emitWithAck("join", name);
  note(name, `You joined ${name}.`);
}

function leaveRoom(name) {
  socket.emit("leave", name);
  rooms.delete(name);
  enter(EVERYONE);
  $("rooms").querySelector("button").focus();
}

function add(name, line) {
  const { lines } = rooms.get(name);
  lines.push(line);
  if (lines.length > KEPT) lines.shift().remove();
  if (name === current) {
    $("log").append(line);
    $("log").scrollTop = $("log").scrollHeight;
  } else {
    rooms.get(name).unread += 1;
    showRooms();
  }
}

function note(name, text) {
  if (rooms.has(name)) add(name, element("p", { className: "note" }, text));
}

// Messages

function message({ text, name, node, sid }) {
  const time = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const from = element("span", { className: "from" }, `from node ${node}`);
  const meta = element("div", { className: "meta" }, element("b", {}, name || "?"), from, element("span", {}, time));
  if (sid !== socket.id) {
    const wave = element("button", { type: "button", onclick: () => waveAt(sid, name) }, "Wave");
    wave.ariaLabel = `Wave at ${name}`;
    meta.append(wave);
  }
  return coloured(element("div", { className: "message" }, meta, element("p", {}, text)), node);
}

async function waveAt(sid, name) {
  const began = performance.now();
  const answer = await socket.emitWithAck("wave", sid);
  const took = (performance.now() - began).toFixed(1);
  note(current, answer ? `${name} answered your wave from node ${answer.node}, after ${took} ms.` : `${name} is gone.`);
}

socket.on("welcome", async ({ node }) => {
  here = node;
  showStatus(true, `This tab is on node ${node}`);
  showNodes();
  document.title = `Node ${node} · roomcast demo`;
  for (const name of rooms.keys()) if (name !== EVERYONE) await socket.emitWithAck("join", name);
  document.body.dataset.ready = "true";
});
socket.on("count", ({ node, clients, healthy }) => {
  if (!nodes.has(node)) nodes.set(node, card(node));
  Object.assign(nodes.get(node), { clients, healthy, heard: Date.now() });
  showNodes();
});
socket.on("said", (said) => {
  if (rooms.has(said.room ?? EVERYONE)) add(said.room ?? EVERYONE, message(said));
});
socket.on("waved", ({ node }, answer) => {
  note(current, `Somebody on node ${node} waves at you.`);
  answer({ node: here });
});
socket.on("disconnect", () => {
  here = null;
  showStatus(false, "Connection lost, trying again…");
  showNodes();
});
socket.on("connect_error", () => showStatus(false, "Not connected, trying again…"));
setInterval(showNodes, 1000);

$("join").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("room").value.trim();
  if (name) joinRoom(name);
  $("room").value = "";
});
$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text) socket.emit("say", { text, name: $("name").value, room: current === EVERYONE ? null : current });
  $("text").value = "";
});
$("name").value = sessionStorage.getItem("name") ?? ["Ada", "Alan", "Barbara", "Edsger", "Grace", "Leslie"][Math.floor(Math.random() * 6)];
$("name").addEventListener("change", () => sessionStorage.setItem("name", $("name").value));
enter(current);
