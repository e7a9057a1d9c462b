// gateway/web/store.js: events in, state out.

import assert from "node:assert/strict";
import { test } from "node:test";

import { INITIAL, matching, reduce, voiceOf } from "../../../gateway/web/store.js";

const CHAT = "c1";
const GREETING = said("m0", "assistant", "Good evening.");
const ACCEPTED = event("turn.accepted", {
  user_message: said("m1", "user", "Hello"),
  reply_id: "m2",
});

function said(id, role, text, status = "complete") {
  const name = role === "user" ? "You" : "Mara";
  return { id, role, name, text, turn: null, status, stats: null, error: null };
}

function event(t, d, turn = "t1") {
  return { t, chat: CHAT, turn, epoch: "e", seq: 1, d };
}

function delta(off, text) {
  return event("turn.delta", { off, text });
}

const GIVEN = {
  user: "You",
  about: "",
  note: null,
  backend: "",
  greetings: [],
  greeting: null,
};

function snapshot(messages, live = null, given = {}) {
  const d = { persona: { id: "mara", name: "Mara" }, ...GIVEN, ...given, messages, live };
  return { t: "chat.snapshot", chat: CHAT, epoch: "e", seq: 1, d };
}

function after(...events) {
  return [{ t: "page.route", chat: CHAT }, snapshot([GREETING]), ...events].reduce(reduce, INITIAL);
}

const sending = { t: "page.sending", chat: CHAT, text: "Hello" };

test("deltas grow the live reply and the end makes it a message", () => {
  const speaking = after(ACCEPTED, delta(0, "Come"), delta(4, " in."));
  assert.equal(speaking.chat.live.text, "Come in.");
  assert.deepEqual(speaking.chat.messages.map((m) => m.id), ["m0", "m1"]);
  const message = said("m2", "assistant", "Come in.");
  const done = reduce(speaking, event("turn.done", { message }));
  assert.equal(done.chat.live, null);
  assert.equal(done.chat.messages.at(-1).text, "Come in.");
});

test("every event may come twice, and nothing changes", () => {
  const events = [
    ACCEPTED,
    event("turn.started", { backend: "scripted", model: "scripted" }),
    delta(0, "Come"),
    delta(4, " in."),
    event("turn.done", { reason: "complete", message: said("m2", "assistant", "Come in.") }),
  ];
  const once = after(...events);
  assert.deepEqual(after(...events.flatMap((e) => [e, e])), once);
  assert.deepEqual(events.reduce(reduce, once), once); // a replay after the end
});

test("offsets count UTF-16 units, so a delta after an emoji lands behind it", () => {
  const state = after(ACCEPTED, delta(0, "🦊"), delta(2, "!"), delta(0, "🦊!"), delta(2, "!?"));
  assert.equal(state.chat.live.text, "🦊!?");
  assert.equal(state.chat.gap, false);
});

test("a delta that starts behind the known text is a gap, which a snapshot heals", () => {
  const gap = after(ACCEPTED, delta(0, "Come"), delta(9, "lost"));
  assert.equal(gap.chat.gap, true);
  assert.equal(gap.chat.live.text, "Come");
  const live = { turn: "t1", message: "m2", text: "Come in, lost", off: 13 };
  const healed = reduce(gap, snapshot([GREETING, said("m1", "user", "Hello")], live));
  assert.equal(healed.chat.gap, false);
  assert.equal(healed.chat.live.text, "Come in, lost");
});

test("a failed turn keeps the partial text and the reason", () => {
  const error = { code: "crashed", message: "the engine died" };
  const message = { ...said("m2", "assistant", "Come", "failed"), error };
  const state = after(ACCEPTED, delta(0, "Come"), event("turn.failed", { error, message }));
  assert.deepEqual(state.chat.messages.at(-1), message);
  assert.equal(state.chat.live, null);
});

test("the chosen backend speaks, and the default where none is chosen or it is gone", () => {
  const backends = [
    { name: "local", default: true },
    { name: "remote", default: false },
  ];
  assert.equal(voiceOf(INITIAL), null);
  const unchosen = after({ t: "page.backends", backends });
  assert.equal(voiceOf(unchosen).name, "local");
  const chosen = reduce(unchosen, event("chat.updated", { ...GIVEN, backend: "remote" }));
  assert.equal(voiceOf(chosen).name, "remote");
  const gone = reduce(chosen, { t: "page.backends", backends: backends.slice(0, 1) });
  assert.equal(voiceOf(gone).name, "local");
});

test("another greeting takes the place of the first, until something is said", () => {
  const greetings = [GREETING, said("n0", "assistant", "You again?")];
  const fresh = after(snapshot([GREETING], null, { greetings, greeting: 0 }));
  const chosen = event("chat.updated", { ...GIVEN, about: "a miller", greetings, greeting: 1 });
  const state = reduce(fresh, chosen);
  assert.deepEqual(state.chat.messages, [greetings[1]]);
  assert.deepEqual([state.chat.greeting, state.chat.about], [1, "a miller"]);
  const begun = reduce(state, ACCEPTED);
  assert.deepEqual([begun.chat.greetings, begun.chat.greeting], [[], null]);
  assert.deepEqual(reduce(begun, chosen).chat.messages, begun.chat.messages);
});

test("a note of another page changes what is given and nothing that was said", () => {
  const note = { text: "Be dry.", depth: 4, role: "system" };
  const before = after(ACCEPTED, delta(0, "Come"));
  const state = reduce(before, event("chat.updated", { ...GIVEN, user: "Ann", note }));
  assert.deepEqual([state.chat.user, state.chat.note], ["Ann", note]);
  assert.equal(state.chat.live, before.chat.live);
  assert.equal(state.chat.messages, before.chat.messages);
});

test("the panel opens in a chat only and closes with it; a trace belongs to its chat", () => {
  const open = { t: "page.panel", open: true };
  assert.equal(reduce(INITIAL, open).panel, false);
  const state = reduce(after(), open);
  assert.equal(state.panel, true);
  assert.equal(reduce(state, { t: "page.trace", chat: "c9", trace: "x" }), state);
  assert.equal(reduce(state, { t: "page.trace", chat: CHAT, trace: "x" }).trace, "x");
  for (const end of [event("chat.deleted", {}), { t: "page.route", chat: null }]) {
    assert.equal(reduce(state, end).panel, false);
  }
});

test("the end of another turn does not end the live one", () => {
  const other = event("turn.done", { message: said("m9", "assistant", "x") }, "t9");
  assert.equal(after(ACCEPTED, other).chat.live.turn, "t1");
});

test("events of other chats and of types to come change nothing", () => {
  const state = after(ACCEPTED);
  assert.equal(reduce(state, { ...delta(0, "x"), chat: "other" }), state);
  assert.equal(reduce(state, event("turn.sparkle", {})), state);
});

test("a message whose answer was lost is delivered when the snapshot has it", () => {
  const unsure = after(sending, { t: "page.unsure" });
  const arrived = reduce(unsure, snapshot([GREETING, said("m1", "user", "Hello")]));
  assert.equal(arrived.outgoing.status, "delivered");
  assert.equal(arrived.problem, null);
});

test("a message whose answer was lost is refused when the snapshot lacks it", () => {
  const unsure = after(sending, { t: "page.unsure" });
  const lost = reduce(unsure, snapshot([GREETING]));
  assert.equal(lost.outgoing.status, "refused");
  assert.match(lost.problem.message, /still in the box/);
});

test("an older message of the same words is not taken for the lost one", () => {
  const old = said("m1", "user", "Hello");
  const state = [snapshot([GREETING, old]), sending, { t: "page.unsure" }].reduce(reduce, after());
  assert.equal(reduce(state, snapshot([GREETING, old])).outgoing.status, "refused");
});

test("a refusal keeps the words for the reader and shows one line", () => {
  const problem = { code: "turn_in_progress", message: "busy" };
  const state = after(sending, { t: "page.refused", problem });
  assert.deepEqual([state.outgoing.status, state.problem], ["refused", problem]);
  assert.equal(reduce(state, sending).problem, null);
});

test("Stop that comes after the end is no error; an unknown chat is", () => {
  const error = (code) => ({ t: "error", chat: CHAT, d: { code, message: code } });
  const state = after();
  assert.equal(reduce(state, error("turn_over")), state);
  assert.equal(reduce(state, error("unknown_chat")).missing, true);
  assert.equal(reduce(state, error("rate_limited")).problem.code, "rate_limited");
});

test("another address starts empty and the same one changes nothing", () => {
  const state = after(ACCEPTED);
  assert.equal(reduce(state, { t: "page.route", chat: CHAT }), state);
  const home = reduce(state, { t: "page.route", chat: null });
  assert.deepEqual([home.chat, home.missing, home.problem], [null, false, null]);
});

test("home never shows the list of chats of an earlier visit", () => {
  const old = reduce(INITIAL, { t: "page.chats", chats: [{ id: CHAT }] });
  const back = [CHAT, null].reduce((s, chat) => reduce(s, { t: "page.route", chat }), old);
  assert.equal(back.chats, null);
});

test("no event changes the state it was given", () => {
  const freeze = (value) => {
    if (value && typeof value === "object") Object.values(Object.freeze(value)).forEach(freeze);
    return value;
  };
  const events = [ACCEPTED, delta(0, "a"), { t: "page.stopping" }, delta(1, "b")];
  const last = events.reduce((state, e) => reduce(freeze(state), freeze(e)), freeze(after()));
  assert.equal(last.chat.live.stopping, true);
});

test("what was brought is listed, the newest first, until the reader goes on", () => {
  const line = (id, state) => ({ file: `${id}.json`, state, persona: { id } });
  const events = [
    { t: "page.bringing", bringing: { done: 0, of: 2 } },
    { t: "page.brought", lines: [line("a", "added")] },
    { t: "page.brought", lines: [line("b", "added"), { file: "c", state: "refused" }] },
    { t: "page.bringing", bringing: null },
  ];
  const state = events.reduce(reduce, INITIAL);
  assert.deepEqual(state.brought.map((each) => each.file), ["b.json", "c", "a.json"]);
  assert.equal(state.bringing, null);
  const undone = reduce(state, { t: "page.undone", persona: "b" });
  assert.deepEqual(undone.brought.map((each) => each.file), ["c", "a.json"]);
  assert.deepEqual(reduce(state, { t: "page.route", chat: CHAT }).brought, []);
});

test("a failed file does not lose what went wrong when the rest is done", () => {
  const problem = { code: "internal", message: "no" };
  const failed = reduce(INITIAL, { t: "page.problem", problem });
  assert.equal(reduce(failed, { t: "page.bringing", bringing: null }).problem, problem);
  assert.equal(reduce(failed, { t: "page.bringing", bringing: { done: 0, of: 1 } }).problem, null);
});

test("characters are found by all words in name, line, tags or creator", () => {
  const persona = (name, ...tags) => ({ name, tags, tagline: "Talks.", creator: "Me" });
  const all = [persona("Ada", "Clocks"), persona("Bea", "sea", "clocks")];
  const found = (words) => matching(all, words).map((each) => each.name);
  assert.deepEqual(found(""), ["Ada", "Bea"]);
  assert.deepEqual(found("  CLOCKS sea "), ["Bea"]);
  assert.deepEqual(found("me talks ada"), ["Ada"]);
  assert.deepEqual(found("none"), []);
  const more = reduce(reduce(INITIAL, { t: "page.more" }), { t: "page.more" });
  assert.equal(more.shown, 3 * INITIAL.shown);
  assert.equal(reduce(more, { t: "page.words", words: "x" }).shown, INITIAL.shown);
});
