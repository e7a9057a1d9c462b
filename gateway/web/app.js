// Wiring: address, socket, state and page. The address `#/chat/<id>` names the chat, so that a
// reload or a bookmark comes back to it.

import * as api from "./api.js";
import { INITIAL, reduce, voiceOf } from "./store.js";
import { View } from "./view.js";
import { Wire, WireError } from "./wire.js";

/** @typedef {import("./store.js").State} State */

const STARTING_POLL_MS = 1_500;
const READY_POLL_MS = 30_000;
const FILES_AT_ONCE = 10;
const TYPING_EVERY_MS = 5_000;

/** @type {State} */
let state = INITIAL;
let drawing = false;
let typedAt = -Infinity;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let backendsTimer;

const view = new View(
  {
    onOpen,
    onSend,
    onStop,
    onTyping,
    onDeleteChat,
    onName,
    onVoice,
    onGreeting,
    onGive,
    onPanel,
    onBring,
    onUndo,
    onWords: (words) => dispatch({ t: "page.words", words }),
    onMore: () => dispatch({ t: "page.more" }),
    onRetry: () => wire.check(),
    onDismiss: () => fail(null),
  },
  localStorage.getItem("name") ?? "",
);

const wire = new Wire({
  url: `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/ws`,
  onFrame: dispatch,
  onState: (connection) => {
    dispatch({ t: "page.connection", connection });
    if (connection.name === "open") refresh();
  },
});

/** @param {Parameters<typeof reduce>[1]} event */
function dispatch(event) {
  const before = state;
  state = reduce(state, event);
  if (state.chat?.gap && !before.chat?.gap) wire.resync(state.chat.id);
  wire.busy = Boolean(state.chat?.live);
  if (event.t === "turn.failed" || voiceOf(state)?.name !== voiceOf(before)?.name) pollBackends();
  if (event.t === "turn.accepted" && voiceOf(state)?.state !== "ready") pollBackends();
  const spoken = before.chat?.live && !state.chat?.live;
  if (state.panel && (!before.panel || spoken)) loadTrace();
  if (state !== before) draw();
}

/** At most one redraw a frame, however many deltas came; a hidden page still redraws. */
function draw() {
  if (drawing) return;
  drawing = true;
  const now = () => {
    drawing = false;
    view.render(state);
  };
  if (document.hidden) setTimeout(now);
  else requestAnimationFrame(now);
}

/** @param {unknown} error null: the line goes away */
function fail(error) {
  dispatch({ t: "page.problem", problem: error === null ? null : problemOf(error) });
}

/** @param {unknown} error @returns {import("./store.js").Problem} */
function problemOf(error) {
  if (!(error instanceof WireError)) {
    return { code: "internal", message: error instanceof Error ? error.message : String(error) };
  }
  const kept = {
    offline: "Not connected right now. Your message is still in the box below.",
    turn_in_progress: "A reply is still being spoken. Wait for it, or stop it, then send again.",
  };
  const message = kept[/** @type {keyof typeof kept} */ (error.code)] ?? error.message;
  return { code: error.code, message };
}

function followRoute() {
  const match = /^#\/chat\/([^/]+)$/.exec(location.hash);
  const chat = match?.[1] ? decodeURIComponent(match[1]) : null;
  const before = state.route.chat;
  dispatch({ t: "page.route", chat });
  if (before !== null && before !== chat) wire.unfollow(before);
  if (chat === null) {
    loadChats();
    if (state.personas !== null) loadPersonas(); // files may have come and gone
  } else if (before !== chat) wire.follow(chat);
}

/** Starts a chat with a persona. @param {string} persona */
async function onOpen(persona) {
  if (state.opening) return;
  dispatch({ t: "page.opening", persona });
  const user = localStorage.getItem("name");
  try {
    await wire.whenOpen();
    const d = user ? { persona, user } : { persona };
    const answer = await wire.request({ t: "chat.open", d });
    const { chat = "", epoch = "", seq = 0 } = answer;
    dispatch({ t: "page.route", chat });
    dispatch(answer);
    wire.follow(chat, { epoch, seq });
    location.hash = `#/chat/${encodeURIComponent(chat)}`;
  } catch (error) {
    const gone = error instanceof WireError && error.code === "offline";
    fail(gone ? new Error("Not connected to the server. Try again in a moment.") : error);
  }
}

/** @param {string} text */
async function onSend(text) {
  const { chat } = state;
  if (!chat || chat.live) return;
  dispatch({ t: "page.sending", chat: chat.id, text });
  const limit = wire.limits?.text_chars ?? Infinity;
  const length = [...text].length; // the server counts characters, not UTF-16 units
  if (length > limit) {
    const message = `Your message has ${length} characters; at most ${limit} can be sent.`;
    dispatch({ t: "page.refused", problem: { code: "text_too_long", message } });
    return;
  }
  try {
    await wire.request({ t: "turn.create", chat: chat.id, d: { text } });
    dispatch({ t: "page.delivered" });
  } catch (error) {
    if (error instanceof WireError && error.code === "disconnected") {
      // Only a snapshot can tell whether the message arrived.
      wire.resync(chat.id);
      dispatch({ t: "page.unsure" });
    } else {
      dispatch({ t: "page.refused", problem: problemOf(error) });
    }
  }
}

/** Lets the server get the chat's cache near; at most every five seconds. */
function onTyping() {
  const { chat } = state;
  const now = performance.now();
  if (!chat || chat.live || now - typedAt < TYPING_EVERY_MS) return;
  typedAt = now;
  wire.send({ t: "chat.typing", chat: chat.id });
}

/** Deletes a chat for good. @param {string} chat */
async function onDeleteChat(chat) {
  if (!confirm("Delete this chat? What was said in it cannot be brought back.")) return;
  try {
    await api.deleteChat(chat);
  } catch (error) {
    fail(error);
  }
  loadChats();
}

function onStop() {
  const { chat } = state;
  if (!chat?.live || chat.live.stopping) return;
  const sent = wire.send({ t: "turn.cancel", chat: chat.id, turn: chat.live.turn });
  if (sent) dispatch({ t: "page.stopping" });
  else fail(new Error("Not connected right now, so the reply cannot be stopped."));
}

/** Chooses who speaks in this chat from now on. @param {string} backend */
async function onVoice(backend) {
  const { chat } = state;
  if (!chat) return;
  try {
    await wire.request({ t: "chat.use", chat: chat.id, d: { backend } });
  } catch (error) {
    fail(error);
  }
  pollBackends(); // whether it was taken or refused, the picker shows what the chat has now
}

/** Goes to the greeting before or after the chosen one, around. @param {number} by */
async function onGreeting(by) {
  const { id, greetings, greeting } = state.chat ?? { greetings: [], greeting: null };
  if (id === undefined || greeting === null || greetings.length < 2) return;
  const next = (greeting + by + greetings.length) % greetings.length;
  try {
    await wire.request({ t: "chat.set", chat: id, d: { greeting: next } });
  } catch (error) {
    fail(error);
  }
}

/**
 * Says who the reader is, or how the author wants it to go on.
 * @param {import("./panel.js").Given} given
 * @returns {Promise<boolean>} whether the server took it
 */
async function onGive(given) {
  const { chat } = state;
  if (!chat) return false;
  try {
    await wire.request({ t: "chat.set", chat: chat.id, d: given });
    fail(null);
    return true;
  } catch (error) {
    const gone = error instanceof WireError && error.code === "offline";
    fail(gone ? new Error("Not connected right now, so nothing was saved.") : error);
    return false;
  }
}

/** @param {boolean} open */
function onPanel(open) {
  dispatch({ t: "page.panel", open });
}

/** What the last prompt held; it is worked out anew, so the panel waits for it. */
async function loadTrace() {
  const chat = state.chat?.id;
  if (chat === undefined) return;
  const why = (/** @type {Error} */ error) => error.message;
  dispatch({ t: "page.trace", chat, trace: await api.getTrace(chat).catch(why) });
}

/** Brings files of characters, a few at a time. @param {File[]} files */
async function onBring(files) {
  if (state.bringing) return;
  try {
    for (let done = 0; done < files.length; done += FILES_AT_ONCE) {
      dispatch({ t: "page.bringing", bringing: { done, of: files.length } });
      const lines = await api.bringPersonas(files.slice(done, done + FILES_AT_ONCE));
      dispatch({ t: "page.brought", lines });
    }
  } catch (error) {
    const lost = error instanceof TypeError; // what fetch throws when nobody answers
    fail(lost ? new Error("The server did not take the file. Is it running?") : error);
  }
  dispatch({ t: "page.bringing", bringing: null });
  loadPersonas();
}

/** Takes away a character that was just brought. @param {string} persona */
async function onUndo(persona) {
  try {
    await api.removePersona(persona);
    dispatch({ t: "page.undone", persona });
  } catch (error) {
    fail(error);
  }
  loadPersonas();
}

/** @param {string} name empty: the characters say "You" */
function onName(name) {
  if (name) localStorage.setItem("name", name);
  else localStorage.removeItem("name");
}

/** What may have changed while the server was away. */
function refresh() {
  if (state.personas === null) loadPersonas();
  if (state.route.chat === null) loadChats();
  pollBackends();
}

/** A failed read needs no line of its own: the banner says that the server is away, and
 * `refresh` reads again once it is back. */
async function loadPersonas() {
  const personas = await api.getPersonas().catch(() => null);
  if (personas) dispatch({ t: "page.personas", personas });
}

async function loadChats() {
  const chats = await api.getChats().catch(() => null);
  if (chats) dispatch({ t: "page.chats", chats });
}

async function pollBackends() {
  clearTimeout(backendsTimer);
  const backends = await api.getBackends().catch(() => null);
  if (!backends) return;
  dispatch({ t: "page.backends", backends });
  const settled = ["ready", "idle"].includes(voiceOf(state)?.state ?? "");
  clearTimeout(backendsTimer);
  backendsTimer = setTimeout(pollBackends, settled ? READY_POLL_MS : STARTING_POLL_MS);
}

addEventListener("hashchange", followRoute);
addEventListener("online", () => wire.check());
addEventListener("pageshow", (event) => event.persisted && wire.check());
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  wire.check();
  view.render(state);
});

view.render(state);
followRoute();
loadPersonas();
wire.connect();
