// gateway/web/wire.js against a socket and a clock of our own.

import assert from "node:assert/strict";
import { test } from "node:test";

import { SUBPROTOCOL, Wire, backoffMs } from "../../../gateway/web/wire.js";

class FakeSocket {
  readyState = 0;
  sent = [];

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.readyState = 3;
  }

  opens() {
    this.readyState = 1;
    this.onopen();
  }

  says(frame) {
    this.onmessage({ data: JSON.stringify(frame) });
  }

  breaks(code = 1006) {
    this.readyState = 3;
    this.onclose({ code });
  }
}

/** A wire on fake sockets; time moves only by `pass`. */
function rig(chance = 0.5) {
  const sockets = [];
  const frames = [];
  const states = [];
  let now = 0;
  let timers = [];
  let ids = 0;
  const wire = new Wire({
    url: "ws://here/v1/ws",
    onFrame: (frame) => frames.push(frame),
    onState: (state) => states.push(state),
    open: (url, protocol) => {
      assert.deepEqual([url, protocol], ["ws://here/v1/ws", SUBPROTOCOL]);
      sockets.push(new FakeSocket());
      return sockets.at(-1);
    },
    timers: {
      set: (run, ms) => {
        const timer = { run, at: now + ms };
        timers.push(timer);
        return timer;
      },
      clear: (timer) => (timers = timers.filter((other) => other !== timer)),
    },
    chance: () => chance,
    newId: () => `r${++ids}`,
  });
  const pass = (ms) => {
    const until = now + ms;
    for (;;) {
      const next = timers.filter((t) => t.at <= until).sort((a, b) => a.at - b.at)[0];
      if (!next) break;
      timers = timers.filter((t) => t !== next);
      now = next.at;
      next.run();
    }
    now = until;
  };
  const welcome = () => {
    const socket = sockets.at(-1);
    socket.opens();
    const limits = { frame_bytes: 1000, text_chars: 100 };
    socket.says({ t: "welcome", d: { heartbeat_ms: 20_000, limits } });
    return socket;
  };
  const open = () => {
    wire.connect();
    return welcome();
  };
  return { wire, sockets, frames, states, pass, welcome, open };
}

const event = (seq, t = "turn.delta") => ({ t, chat: "c", turn: "t", epoch: "e", seq, d: {} });

test("hello is the first frame and welcome opens the wire", () => {
  const { states, open, wire } = rig();
  const socket = open();
  assert.equal(socket.sent[0].t, "hello");
  assert.deepEqual(states.map((s) => s.name), ["connecting", "open"]);
  assert.equal(wire.limits.text_chars, 100);
});

test("an answer settles its request after everyone saw the frame", async () => {
  const { wire, frames, open } = rig();
  const socket = open();
  const asked = wire.request({ t: "turn.create", chat: "c", d: { text: "hi" } });
  const { id } = socket.sent.at(-1);
  socket.says({ t: "turn.accepted", re: id, chat: "c", d: {} });
  assert.equal((await asked).t, "turn.accepted");
  assert.equal(frames.at(-1).t, "turn.accepted");
});

test("a refused request rejects with the wire's code and is not broadcast", async () => {
  const { wire, frames, open } = rig();
  const socket = open();
  const asked = wire.request({ t: "turn.create", chat: "c", d: { text: "" } });
  const d = { code: "empty_text", message: "say something", retryable: false };
  socket.says({ t: "error", re: socket.sent.at(-1).id, d });
  await assert.rejects(asked, { code: "empty_text", message: "say something" });
  assert.equal(frames.length, 0);
});

test("a request that nobody answers ends, too", async () => {
  const { wire, open, pass } = rig();
  const socket = open();
  const asked = wire.request({ t: "chat.open", d: { persona: "mara" } });
  for (let i = 0; i < 7; i++) {
    pass(5_000);
    socket.says({ t: "pong", d: { n: 1 } });
  }
  await assert.rejects(asked, { code: "unanswered" });
});

test("nothing is sent without a connection, and a lost answer is told apart", async () => {
  const { wire, open } = rig();
  await assert.rejects(wire.request({ t: "chat.open" }), { code: "offline" });
  const socket = open();
  const asked = wire.request({ t: "turn.create", chat: "c", d: { text: "hi" } });
  socket.breaks();
  await assert.rejects(asked, { code: "disconnected" });
});

test("a frame over the server's limit is refused here and the socket stays", async () => {
  const { wire, open } = rig();
  const socket = open();
  const before = socket.sent.length;
  const d = { text: "é".repeat(600) };
  await assert.rejects(wire.request({ t: "turn.create", d }), { code: "text_too_long" });
  assert.equal(socket.sent.length, before);
});

test("after a break a followed chat resumes at the last event that was seen", () => {
  const { wire, sockets, open, pass, welcome } = rig();
  const first = open();
  wire.follow("c");
  assert.deepEqual(first.sent.at(-1).d, {});
  first.says(event(7));
  first.breaks();
  pass(250);
  const second = welcome();
  assert.equal(sockets.length, 2);
  const subscribe = second.sent.find((frame) => frame.t === "chat.subscribe");
  assert.deepEqual([subscribe.chat, subscribe.d.after], ["c", { epoch: "e", seq: 7 }]);
});

test("resync asks for a snapshot and an unfollowed chat is let go", () => {
  const { wire, open } = rig();
  const socket = open();
  wire.follow("c", { epoch: "e", seq: 3 });
  assert.deepEqual(socket.sent.at(-1).d.after, { epoch: "e", seq: 3 });
  wire.resync("c");
  assert.deepEqual(socket.sent.at(-1).d, {});
  wire.unfollow("c");
  assert.deepEqual(socket.sent.at(-1), { t: "chat.unsubscribe", chat: "c" });
  const before = socket.sent.length;
  wire.resync("c");
  assert.equal(socket.sent.length, before);
});

test("the error of a subscribe names its chat", () => {
  const { wire, frames, open } = rig();
  const socket = open();
  wire.follow("gone");
  const { id } = socket.sent.at(-1);
  socket.says({ t: "error", re: id, d: { code: "unknown_chat", message: "no" } });
  assert.equal(frames.at(-1).chat, "gone");
});

test("back-off doubles, is jittered over its whole range and is capped", () => {
  assert.deepEqual([0, 1, 2, 20].map((n) => backoffMs(n, 0.999999)), [500, 1000, 2000, 30_000]);
  assert.equal(backoffMs(3, 0.5), 2000);
  assert.equal(backoffMs(9, 0), 100);
});

test("waits grow while connections fail and start over only after one that lasted", () => {
  const { wire, sockets, states, open, pass, welcome } = rig(0.999999);
  wire.connect();
  const delays = () => states.filter((s) => s.name === "waiting").map((s) => s.delayMs);
  for (const wait of [500, 1000, 2000]) {
    sockets.at(-1).breaks();
    assert.equal(delays().at(-1), wait);
    pass(wait);
  }
  welcome().breaks(); // welcomed, but gone at once
  assert.equal(delays().at(-1), 4000);
  pass(4000);
  const lasting = welcome();
  pass(6_000);
  lasting.breaks();
  assert.equal(delays().at(-1), 500);
  assert.equal(open().sent[0].t, "hello");
});

test("a server that says goodbye is not called before its time", () => {
  const { states, open } = rig(0);
  const socket = open();
  socket.says({ t: "goodbye", d: { reason: "draining", after_ms: 3000 } });
  socket.breaks(4009);
  assert.deepEqual(states.at(-1), { name: "waiting", delayMs: 3100 });
});

test("close codes that mean no are believed; the others lead to another try", () => {
  for (const [code, name] of [
    ...[1000, 4001, 4004, 4005].map((c) => [c, "ended"]),
    ...[1001, 1006, 4002, 4006, 4009].map((c) => [c, "waiting"]),
  ]) {
    const { states, open, sockets, pass } = rig();
    open().breaks(code);
    assert.equal(states.at(-1).name, name, String(code));
    pass(60_000);
    assert.equal(sockets.length > 1, name === "waiting", String(code));
  }
});

test("pings go out before the heartbeat and silence after one ends the socket", () => {
  const { states, open, pass } = rig();
  const socket = open();
  pass(19_999);
  assert.equal(socket.sent.at(-1).t, "ping");
  pass(8_000);
  assert.equal(states.at(-1).name === "open", false);
  assert.equal(socket.readyState, 3);
});

test("any frame counts as a sign of life", () => {
  const { states, open, pass } = rig();
  const socket = open();
  pass(18_000);
  socket.says(event(1));
  pass(15_000);
  assert.equal(states.at(-1).name, "open");
});

test("while a reply runs, silence is noticed within 18 seconds", () => {
  const { wire, states, open, pass } = rig(0.999);
  open();
  wire.busy = true;
  pass(18_100);
  assert.notEqual(states.at(-1).name, "open");
});

test("check ends a wait at once, or pings", () => {
  const { wire, sockets, open } = rig();
  const first = open();
  wire.check();
  assert.equal(first.sent.at(-1).t, "ping");
  first.breaks();
  wire.check();
  assert.equal(sockets.length, 2);
});

test("whenOpen waits for the welcome, and not for ever", async () => {
  const { wire, welcome, pass } = rig();
  const never = wire.whenOpen(1000);
  pass(1000);
  await assert.rejects(never, { code: "offline" });
  wire.connect();
  const soon = wire.whenOpen(1000);
  welcome();
  await soon;
  await wire.whenOpen();
});

test("a server that opens but never welcomes is left", () => {
  const { wire, sockets, states, pass } = rig();
  wire.connect();
  sockets[0].opens();
  pass(10_000);
  assert.equal(states.at(-1).name, "waiting");
});
