// The protocol client of docs/wire.md, subprotocol persona.v1.json. No DOM: sockets, timers and
// chance come in from outside, so that tests drive it with fakes.

/**
 * @typedef {{
 *   t: string, id?: string, re?: string, chat?: string, turn?: string,
 *   epoch?: string, seq?: number, d?: Record<string, any>,
 * }} Frame One object of the wire.
 *
 * @typedef {{ epoch: string, seq: number }} Position How much of a chat's events was seen.
 *
 * @typedef {{ name: "connecting", attempt: number }
 *   | { name: "open" }
 *   | { name: "waiting", delayMs: number }
 *   | { name: "ended", message: string }} Connection
 *
 * @typedef {{ frame_bytes: number, text_chars: number }} Limits
 *
 * @typedef {{
 *   set: (run: () => void, ms: number) => unknown,
 *   clear: (timer: any) => void,
 * }} Timers
 *
 * @typedef {{
 *   readyState: number, send: (text: string) => void, close: (code?: number) => void,
 *   onopen: any, onmessage: any, onclose: any,
 * }} Socket The part of WebSocket that is used here.
 */

export const SUBPROTOCOL = "persona.v1.json";

const BACKOFF_BASE_MS = 500;
const BACKOFF_CAP_MS = 30_000;
const BACKOFF_FLOOR_MS = 100;
const WELCOME_WITHIN_MS = 10_000;
const PONG_WITHIN_MS = 8_000;
const ANSWER_WITHIN_MS = 30_000;
const SETTLED_AFTER_MS = 5_000;
const BUSY_PING_MS = 10_000;

/** Close codes after which the same page would only be refused again. */
const FINAL = new Map([
  [1000, "The server ended the connection."],
  [4001, "The server did not understand this page. Reload to get the current one."],
  [4004, "The server does not accept this page's address."],
  [4005, "The server speaks a newer protocol. Reload to get the current page."],
]);

/** A request that did not succeed: the wire's `Error`, or one of our own codes:
 * `offline` (never sent), `disconnected` (sent, answer lost), `unanswered`. */
export class WireError extends Error {
  /** @param {{code: string, message: string, retryable?: boolean, detail?: any}} error */
  constructor({ code, message, retryable = false, detail = null }) {
    super(message);
    this.name = "WireError";
    this.code = code;
    this.retryable = retryable;
    this.detail = detail;
  }
}

/**
 * Exponential back-off with full jitter, so that a crowd of pages does not return in step.
 * @param {number} attempt 0 for the first retry
 * @param {number} chance in [0, 1)
 * @returns {number} milliseconds
 */
export function backoffMs(attempt, chance) {
  const ceiling = Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** attempt);
  return Math.max(BACKOFF_FLOOR_MS, Math.round(ceiling * chance));
}

/** Without crypto.randomUUID, which plain-http addresses of a home network do not have. */
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @type {Timers} */
const realTimers = {
  set: (run, ms) => setTimeout(run, ms),
  clear: (timer) => clearTimeout(timer),
};

/**
 * Keeps one socket open for as long as the page lives. Chats that are followed are subscribed
 * again after each reconnect, from the position seen last.
 */
export class Wire {
  /** @type {Socket | null} */ #socket = null;
  /** @type {Connection} */ #state = { name: "connecting", attempt: 0 };
  /** @type {Map<string, {settle: (frame: Frame) => void, fail: (error: WireError) => void}>} */
  #pending = new Map();
  /** @type {Map<string, string>} request id of a subscribe to its chat */ #subscribing = new Map();
  /** @type {Map<string, Position | null>} */ #followed = new Map();
  /** @type {Set<() => void>} */ #openWaiters = new Set();
  #attempt = 0;
  #pings = 0;
  #busy = false;
  #heartbeatMs = 20_000;
  #pauseMs = 0;
  /** @type {Map<string, unknown>} one timer a purpose */ #timers = new Map();

  /**
   * @param {{
   *   url: string,
   *   onFrame: (frame: Frame) => void,
   *   onState: (state: Connection) => void,
   *   open?: (url: string, protocol: string) => Socket,
   *   timers?: Timers, chance?: () => number, newId?: () => string,
   * }} options
   */
  constructor({ url, onFrame, onState, open, timers, chance, newId }) {
    this.url = url;
    this.onFrame = onFrame;
    this.onState = onState;
    this.open = open ?? ((to, protocol) => new WebSocket(to, protocol));
    this.clock = timers ?? realTimers;
    this.chance = chance ?? Math.random;
    this.newId = newId ?? randomId;
    /** @type {Limits | null} what the server allows; null before the first welcome */
    this.limits = null;
  }

  /** Connects now; also ends a wait for the next attempt early. */
  connect() {
    if (this.#socket) return;
    this.#stop("retry");
    this.#become({ name: "connecting", attempt: this.#attempt });
    const socket = this.open(this.url, SUBPROTOCOL);
    this.#socket = socket;
    socket.onopen = () => this.send({ t: "hello", d: { client: "page" } });
    socket.onmessage = (/** @type {{data: string}} */ event) => this.#receive(event.data);
    socket.onclose = (/** @type {{code: number}} */ event) => this.#lost(event.code);
    this.#start("welcome", WELCOME_WITHIN_MS, () => this.#abandon());
  }

  /** Resolves when a connection is open; rejects with `offline` after `ms`. */
  whenOpen(ms = 5_000) {
    if (this.#state.name === "open") return Promise.resolve();
    return /** @type {Promise<void>} */ (
      new Promise((resolve, reject) => {
        const timer = this.clock.set(() => {
          this.#openWaiters.delete(opened);
          reject(offline());
        }, ms);
        const opened = () => {
          this.clock.clear(timer);
          resolve();
        };
        this.#openWaiters.add(opened);
      })
    );
  }

  /** Sends a frame that has no answer of its own; false when there is no socket to send on. */
  send(/** @type {Frame} */ frame) {
    if (this.#socket?.readyState !== 1) return false;
    this.#socket.send(JSON.stringify(frame));
    return true;
  }

  /**
   * Sends a request and resolves with its answer, which `onFrame` has then already seen.
   * Rejects with `WireError`.
   * @param {Omit<Frame, "id">} frame
   * @returns {Promise<Frame>}
   */
  request(frame) {
    const id = this.newId();
    const asked = { ...frame, id };
    const bytes = new TextEncoder().encode(JSON.stringify(asked)).length;
    if (this.limits && bytes > this.limits.frame_bytes) {
      // The server would close the socket for good (4001) instead of answering.
      const message = "This message is too long to be sent.";
      return Promise.reject(new WireError({ code: "text_too_long", message }));
    }
    if (this.#state.name !== "open" || !this.send(asked)) return Promise.reject(offline());
    return new Promise((resolve, reject) => {
      const timer = this.clock.set(() => {
        this.#pending.delete(id);
        reject(new WireError({ code: "unanswered", message: "The server did not answer." }));
      }, ANSWER_WITHIN_MS);
      const over = () => {
        this.clock.clear(timer);
        this.#pending.delete(id);
      };
      this.#pending.set(id, {
        settle: (answer) => (over(), resolve(answer)),
        fail: (error) => (over(), reject(error)),
      });
    });
  }

  /** Wants a chat's events from now on, over every reconnect. */
  follow(/** @type {string} */ chat, /** @type {Position | null} */ seen = null) {
    if (!this.#followed.has(chat) || seen) this.#followed.set(chat, seen);
    if (this.#state.name === "open") this.#subscribe(chat);
  }

  unfollow(/** @type {string} */ chat) {
    if (this.#followed.delete(chat)) this.send({ t: "chat.unsubscribe", chat });
  }

  /** Drops what was seen of a followed chat, so that the server answers with a snapshot. */
  resync(/** @type {string} */ chat) {
    if (!this.#followed.has(chat)) return;
    this.#followed.set(chat, null);
    if (this.#state.name === "open") this.#subscribe(chat);
  }

  /** Finds out now whether the connection still lives: after sleep, a network change, a return. */
  check() {
    if (this.#state.name === "waiting") this.connect();
    if (this.#state.name === "open" && !this.#timers.has("pong")) this.#ping();
  }

  /** While a reply runs, silence is noticed sooner. */
  set busy(/** @type {boolean} */ busy) {
    if (busy === this.#busy) return;
    this.#busy = busy;
    if (this.#state.name === "open") this.#beat();
  }

  #receive(/** @type {string} */ text) {
    this.#stop("pong"); // any frame proves that the connection lives
    const frame = /** @type {Frame} */ (JSON.parse(text));
    if (frame.t === "pong") return;
    if (frame.t === "welcome") return this.#welcomed(frame.d ?? {});
    if (frame.t === "goodbye") {
      this.#pauseMs = frame.d?.after_ms ?? 0;
      return;
    }
    const { chat, epoch, seq } = frame;
    if (chat && epoch !== undefined && seq !== undefined && this.#followed.has(chat)) {
      this.#followed.set(chat, { epoch, seq });
    }
    const asked = frame.re === undefined ? undefined : this.#pending.get(frame.re);
    if (frame.t === "error") return this.#refused(frame, asked);
    this.onFrame(frame);
    asked?.settle(frame);
  }

  /**
   * @param {Frame} frame
   * @param {{fail: (error: WireError) => void} | undefined} asked
   */
  #refused(frame, asked) {
    const error = frame.d ?? {};
    if (asked) {
      const { code = "internal", message = "The server refused." } = error;
      return asked.fail(new WireError({ ...error, code, message }));
    }
    const chat = frame.chat ?? this.#subscribing.get(frame.re ?? "");
    this.onFrame(chat === undefined ? frame : { ...frame, chat });
  }

  #welcomed(/** @type {Record<string, any>} */ welcome) {
    this.#stop("welcome");
    this.limits = welcome.limits ?? null;
    this.#heartbeatMs = welcome.heartbeat_ms ?? this.#heartbeatMs;
    this.#become({ name: "open" });
    // Only a connection that lasts ends the growth of the back-off.
    this.#start("settled", SETTLED_AFTER_MS, () => (this.#attempt = 0));
    for (const chat of this.#followed.keys()) this.#subscribe(chat);
    for (const opened of this.#openWaiters) opened();
    this.#openWaiters.clear();
    this.#beat();
  }

  #subscribe(/** @type {string} */ chat) {
    const id = this.newId();
    const after = this.#followed.get(chat);
    this.#subscribing.set(id, chat);
    this.send({ t: "chat.subscribe", id, chat, d: after ? { after } : {} });
  }

  #beat() {
    const every = this.#busy ? Math.min(BUSY_PING_MS, this.#heartbeatMs) : this.#heartbeatMs;
    this.#start("beat", every * (0.75 + 0.25 * this.chance()), () => {
      this.#ping();
      this.#beat();
    });
  }

  #ping() {
    this.send({ t: "ping", d: { n: ++this.#pings } });
    this.#start("pong", PONG_WITHIN_MS, () => this.#abandon());
  }

  /** Gives up a socket that does not answer; its own close event could take minutes. */
  #abandon() {
    const socket = this.#socket;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    this.#lost(1006);
  }

  #lost(/** @type {number} */ code) {
    this.#socket = null;
    for (const name of ["welcome", "settled", "beat", "pong"]) this.#stop(name);
    this.#subscribing.clear();
    const error = { code: "disconnected", message: "The connection broke.", retryable: true };
    const final = FINAL.get(code);
    if (final) {
      this.#become({ name: "ended", message: final });
    } else {
      const delayMs = this.#pauseMs + backoffMs(this.#attempt++, this.chance());
      this.#pauseMs = 0;
      this.#become({ name: "waiting", delayMs });
      this.#start("retry", delayMs, () => this.connect());
    }
    for (const asked of [...this.#pending.values()]) asked.fail(new WireError(error));
  }

  #become(/** @type {Connection} */ state) {
    this.#state = state;
    this.onState(state);
  }

  /** @param {string} name @param {number} ms @param {() => void} run */
  #start(name, ms, run) {
    this.#stop(name);
    const fire = () => {
      this.#timers.delete(name);
      run();
    };
    this.#timers.set(name, this.clock.set(fire, ms));
  }

  #stop(/** @type {string} */ name) {
    if (this.#timers.has(name)) this.clock.clear(this.#timers.get(name));
    this.#timers.delete(name);
  }
}

function offline() {
  const message = "Not connected to the server.";
  return new WireError({ code: "offline", message, retryable: true });
}
