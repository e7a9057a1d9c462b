// The page's state, as one pure function of the events that led to it. Frames of the wire and the
// page's own events (`page.*`) go in; a new state comes out; the old one is never changed.

/**
 * @typedef {import("./wire.js").Frame} Frame
 * @typedef {import("./wire.js").Connection} Connection
 *
 * @typedef {{ code: string, message: string }} Problem One clear line for the reader.
 *
 * @typedef {{
 *   ttft_ms: number, tokens_per_s: number, prompt_tokens: number, cached_tokens: number,
 *   completion_tokens: number, cached_by_tier: Record<string, number>, miss: string,
 *   backend?: string, restore_ms?: number, saved_ms?: number, differs_at?: number | null,
 * }} Stats `backend` spoke it; missing in what was stored before that was noted.
 *
 * @typedef {{
 *   id: string, role: "user" | "assistant", name: string, text: string, turn: string | null,
 *   status: "complete" | "length" | "cancelled" | "failed" | "interrupted",
 *   stats: Stats | null, error: Problem | null,
 * }} Message
 *
 * @typedef {{ turn: string, message: string, text: string, stopping: boolean }} Live
 *   The reply that is being spoken now.
 *
 * @typedef {{ text: string, depth: number, role?: string }} Note An author's note.
 *
 * @typedef {{
 *   id: string, persona: {id: string, name: string}, user: string, about: string,
 *   note: Note | null, backend: string, greetings: Message[], greeting: number | null,
 *   messages: Message[], live: Live | null, gap: boolean,
 * }} Chat `backend`: the chosen one, empty for the server's default; `greetings`: first messages
 *   to choose from, none once more was said; `gap`: a delta was missed; only a snapshot helps.
 *
 * @typedef {{
 *   name: string, state: "idle" | "starting" | "ready" | "down", detail: string,
 *   model: string | null, notice: string, default: boolean,
 * }} Backend
 *
 * @typedef {{
 *   id: string, revision: string, name: string, tagline: string, greeting: string,
 *   tags: string[], creator: string, avatar: string | null, own: boolean,
 * }} Persona
 *
 * @typedef {{
 *   file: string, state: "added" | "replaced" | "unchanged" | "refused", persona?: Persona,
 *   error?: Problem, container?: string, findings?: {message: string, where: string}[],
 *   report?: Record<"executed" | "preserved" | "repaired" | "dropped", string[]>,
 * }} Brought What became of a file of a character.
 *
 * @typedef {{
 *   id: string, persona: {id: string, name: string}, user: string, preview: string,
 *   updated: number,
 * }} ChatSummary
 *
 * @typedef {{
 *   status: "idle" | "sending" | "unsure" | "delivered" | "refused",
 *   chat: string, text: string, after: string | null,
 * }} Outgoing What became of the message that was sent last. `unsure`: the connection broke
 *   before the answer; `after` is the message it would follow.
 *
 * @typedef {{
 *   route: {chat: string | null}, connection: Connection,
 *   backends: Backend[], personas: Persona[] | null, chats: ChatSummary[] | null,
 *   chat: Chat | null, missing: boolean, opening: string | null,
 *   outgoing: Outgoing, problem: Problem | null,
 *   panel: boolean, trace: import("./trace.js").Trace | string | null,
 *   words: string, shown: number, brought: Brought[], bringing: {done: number, of: number} | null,
 * }} State `words` are looked for, `shown` characters at most are on the page, `brought` and
 *   `bringing` are files that were read and that are on their way; `missing`: the route names a chat that is not there; `opening`: the persona whose
 *   chat is being started; `panel`: it is open; `trace`: of the last prompt, or why there is none.
 *
 * @typedef {{ t: string } & Record<string, any>} PageEvent
 */

/** @type {Outgoing} */
const NOTHING_SENT = { status: "idle", chat: "", text: "", after: null };

/** @type {State} */
export const INITIAL = {
  route: { chat: null },
  connection: { name: "connecting", attempt: 0 },
  backends: [],
  personas: null,
  chats: null,
  chat: null,
  missing: false,
  opening: null,
  outgoing: NOTHING_SENT,
  problem: null,
  panel: false,
  trace: null,
  words: "",
  shown: 48,
  brought: [],
  bringing: null,
};

const LOST_ON_THE_WAY = {
  code: "disconnected",
  message: "The connection broke before your message arrived. It is still in the box below.",
};

/**
 * @param {State} state
 * @param {Frame | PageEvent} event
 * @returns {State} the same object when nothing changed
 */
export function reduce(state, event) {
  return event.t.startsWith("page.")
    ? reducePage(state, /** @type {PageEvent} */ (event))
    : reduceFrame(state, /** @type {Frame} */ (event));
}

/** @param {State} state @param {PageEvent} event @returns {State} */
function reducePage(state, event) {
  switch (event.t) {
    case "page.route": {
      if (event.chat === state.route.chat) return state;
      const route = { chat: event.chat };
      // The list of chats is read anew at home: an old one would change under the hand.
      const cleared = {
        ...{ chat: null, chats: null, missing: false, opening: null, problem: null },
        ...{ panel: false, trace: null },
      };
      if (event.chat !== null) return { ...state, ...cleared, route, brought: [] };
      return { ...state, ...cleared, route };
    }
    case "page.connection":
      return { ...state, connection: event.connection };
    case "page.backends":
      return { ...state, backends: event.backends };
    case "page.personas":
      return { ...state, personas: event.personas };
    case "page.panel":
      return { ...state, panel: event.open && state.chat !== null };
    case "page.trace":
      return event.chat === state.chat?.id ? { ...state, trace: event.trace } : state;
    case "page.words":
      return { ...state, words: event.words, shown: INITIAL.shown };
    case "page.more":
      return { ...state, shown: state.shown + INITIAL.shown };
    case "page.bringing":
      return { ...state, bringing: event.bringing, problem: event.bringing ? null : state.problem };
    case "page.brought":
      return { ...state, brought: [...event.lines, ...state.brought] };
    case "page.undone": {
      const brought = state.brought.filter((line) => line.persona?.id !== event.persona);
      return { ...state, brought };
    }
    case "page.chats":
      return { ...state, chats: event.chats };
    case "page.opening":
      return { ...state, opening: event.persona, problem: null };
    case "page.problem":
      return { ...state, opening: null, problem: event.problem };
    case "page.sending": {
      const after = state.chat?.messages.at(-1)?.id ?? null;
      const { chat, text } = event;
      return { ...state, problem: null, outgoing: { status: "sending", chat, text, after } };
    }
    case "page.delivered":
      return settle(state, "delivered", null);
    case "page.unsure":
      return { ...state, outgoing: { ...state.outgoing, status: "unsure" } };
    case "page.refused":
      return settle(state, "refused", event.problem);
    case "page.stopping": {
      const { chat } = state;
      if (!chat?.live) return state;
      return { ...state, chat: { ...chat, live: { ...chat.live, stopping: true } } };
    }
    default:
      throw new Error(`unknown page event: ${event.t}`);
  }
}

/**
 * @param {State} state
 * @param {"delivered" | "refused"} status
 * @param {Problem | null} problem
 * @returns {State}
 */
function settle(state, status, problem) {
  if (state.outgoing.status !== "sending" && state.outgoing.status !== "unsure") return state;
  return { ...state, outgoing: { ...state.outgoing, status }, problem };
}

/** @param {State} state @param {Frame} frame @returns {State} */
function reduceFrame(state, frame) {
  const d = frame.d ?? {};
  if (frame.t === "error") return reduceError(state, frame);
  if (frame.chat === undefined || frame.chat !== state.route.chat) return state;
  if (frame.t === "chat.snapshot") {
    const chat = fromSnapshot(frame.chat, d);
    const shown = { ...state, chat, missing: false };
    const { status, chat: sentTo } = state.outgoing;
    return status === "unsure" && sentTo === chat.id ? resolveUnsure(shown, chat) : shown;
  }
  if (frame.t === "chat.deleted") return { ...state, chat: null, panel: false, missing: true };
  if (!state.chat) return state; // the snapshot that is on its way says it all
  const chat = reduceChat(state.chat, frame);
  return chat === state.chat ? state : { ...state, chat };
}

/** @param {State} state @param {Frame} frame @returns {State} */
function reduceError(state, frame) {
  const { code = "internal", message = "Something went wrong." } = frame.d ?? {};
  if (code === "turn_over") return state; // Stop came after the end: what was wanted, happened
  if (frame.chat !== undefined && frame.chat !== state.route.chat) return state;
  if (code === "unknown_chat") return { ...state, chat: null, panel: false, missing: true };
  return { ...state, problem: { code, message } };
}

/** @param {string} id @param {Record<string, any>} d @returns {Chat} */
function fromSnapshot(id, d) {
  /** @type {Live | null} */
  const live = d.live
    ? { turn: d.live.turn, message: d.live.message, text: d.live.text, stopping: false }
    : null;
  const messages = d.messages.filter((/** @type {Message} */ m) => m.id !== live?.message);
  const { persona, user, about, note, backend, greetings, greeting } = d;
  const given = { user, about, note, backend, greetings, greeting };
  return { id, persona, ...given, messages, live, gap: false };
}

/** Did the message whose answer was lost reach the server? @returns {State} */
function resolveUnsure(/** @type {State} */ state, /** @type {Chat} */ chat) {
  const { text, after } = state.outgoing;
  const at = chat.messages.findIndex((message) => message.id === after);
  const arrived = chat.messages
    .slice(at + 1)
    .some((message) => message.role === "user" && message.text.trim() === text.trim());
  return settle(state, arrived ? "delivered" : "refused", arrived ? null : LOST_ON_THE_WAY);
}

/**
 * The characters that all the words are in: in name, tags or line.
 * @param {Persona[]} personas @param {string} words
 */
export function matching(personas, words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  return personas.filter(({ name, tagline, tags, creator }) => {
    const text = [name, tagline, creator, ...tags].join("\n").toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
}

/**
 * Who speaks in the open chat: its choice while that is offered, else the server's default.
 * @param {Pick<State, "backends" | "chat">} state
 * @returns {Backend | null} null: not known yet
 */
export function voiceOf({ backends, chat }) {
  const chosen = backends.find((backend) => backend.name === chat?.backend);
  return chosen ?? backends.find((backend) => backend.default) ?? null;
}

/**
 * One event of a chat. Applying an event twice is harmless.
 * @param {Chat} chat
 * @param {Frame} frame
 * @returns {Chat}
 */
export function reduceChat(chat, frame) {
  const d = frame.d ?? {};
  const turn = frame.turn ?? "";
  switch (frame.t) {
    case "chat.updated":
      return updated(chat, d);
    case "turn.accepted": {
      const messages = withMessage(chat.messages, d.user_message);
      const known = chat.live?.turn === turn || messages.some((m) => m.id === d.reply_id);
      const live = known ? chat.live : { turn, message: d.reply_id, text: "", stopping: false };
      return { ...chat, greetings: [], greeting: null, messages, live };
    }
    case "turn.delta":
      return chat.live?.turn === turn ? withDelta(chat, chat.live, d.off, d.text) : chat;
    case "turn.done":
    case "turn.cancelled":
    case "turn.failed":
      return ended(chat, turn, d.message);
    default:
      return chat; // an event of a newer server
  }
}

/** @param {Chat} chat @param {Record<string, any>} d @returns {Chat} */
function updated(chat, { user, about, note, backend, greetings, greeting }) {
  const given = { ...chat, user, about, note, backend };
  const begun = chat.live !== null || chat.messages.length > 1; // then this is heard once more
  if (begun || greetings.length === 0) return given;
  return { ...given, greetings, greeting, messages: [greetings[greeting]] };
}

/**
 * @param {Chat} chat @param {Live} live
 * @param {number} off UTF-16 units before this text, which is what `length` counts
 * @param {string} text
 * @returns {Chat}
 */
function withDelta(chat, live, off, text) {
  const have = live.text.length;
  if (off > have) return chat.gap ? chat : { ...chat, gap: true };
  const fresh = text.slice(have - off);
  return fresh ? { ...chat, live: { ...live, text: live.text + fresh } } : chat;
}

/** @param {Chat} chat @param {string} turn @param {Message} message @returns {Chat} */
function ended(chat, turn, message) {
  const live = chat.live?.turn === turn ? null : chat.live;
  return { ...chat, live, messages: withMessage(chat.messages, message) };
}

/** @param {Message[]} messages @param {Message} message @returns {Message[]} */
function withMessage(messages, message) {
  const at = messages.findIndex((other) => other.id === message.id);
  return at < 0 ? [...messages, message] : messages.with(at, message);
}
