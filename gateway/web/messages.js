// The message list of one chat. A reply that is being spoken only ever grows: new text is
// appended to its text node, and the node is touched again once, when the reply is over.

import { avatar, h } from "./dom.js";
import { endMark, speechParts, spokenBy, statsLine } from "./format.js";

/**
 * @typedef {import("./store.js").Chat} Chat
 * @typedef {import("./store.js").Message} Message
 */

/** How many messages of a long chat are in the page until more are asked for. */
const WINDOW = 80;

/** Within so many pixels of the end the reader counts as being at the end. */
const NEAR_END = 48;

export class MessageList {
  /** @type {Chat | null} */ #chat = null;
  /** @type {string | null} */ #picture = null;
  /** @type {Map<string, Entry>} by message id */ #entries = new Map();
  #from = 0;
  #following = true;

  /**
   * @param {HTMLElement} log the scrolling box
   * @param {HTMLElement} list what the messages go into
   * @param {HTMLElement} newer the button that leads to the end
   */
  constructor(log, list, newer) {
    this.log = log;
    this.list = list;
    this.newer = newer;
    this.earlier = h("button", { type: "button", class: "earlier", hidden: true });
    this.earlier.addEventListener("click", () => this.#showEarlier());
    log.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    newer.addEventListener("click", () => this.toEnd());
    // A keyboard that opens or a growing composer must not push the end out of sight.
    new ResizeObserver(() => this.#following && this.toEnd()).observe(log);
  }

  /**
   * Shows `chat`; `picture` is the persona's.
   * @param {Chat} chat
   * @param {string | null} picture
   */
  show(chat, picture) {
    const before = this.#chat;
    const other = before?.id !== chat.id || picture !== this.#picture;
    if (!other && before === chat) return;
    if (other) this.#clear();
    const said = !other && chat.messages.at(-1)?.role === "user";
    if (said && chat.messages.length > (before?.messages.length ?? 0)) this.#following = true;
    this.#chat = chat;
    this.#picture = picture;
    if (other) this.#from = Math.max(0, chat.messages.length - WINDOW);
    this.#update(chat);
    this.log.setAttribute("aria-busy", String(chat.live !== null));
    if (this.#following) this.toEnd();
    else if (!other) this.newer.hidden = false;
  }

  toEnd() {
    this.#following = true;
    this.newer.hidden = true;
    this.log.scrollTop = this.log.scrollHeight;
  }

  #clear() {
    this.#entries.clear();
    this.list.replaceChildren(this.earlier);
    this.#following = true;
    this.newer.hidden = true;
  }

  #update(/** @type {Chat} */ chat) {
    const { live, messages } = chat;
    const shown = messages.slice(this.#from);
    const wanted = new Set(shown.map((message) => message.id));
    if (live) wanted.add(live.message);
    for (const [id, entry] of this.#entries) {
      if (wanted.has(id)) continue;
      entry.root.remove();
      this.#entries.delete(id);
    }
    /** @type {Element} */ let last = this.earlier;
    for (const message of shown) {
      const entry = this.#entry(message.id, message.role, message.name, last);
      entry.finish(message);
      last = entry.root;
    }
    if (live) this.#entry(live.message, "assistant", speaker(chat), last).grow(live.text);
    this.earlier.hidden = this.#from === 0;
    this.earlier.textContent = `Show ${Math.min(WINDOW, this.#from)} earlier messages`;
  }

  /**
   * The entry of that id, made behind `last` when it is new.
   * @param {string} id @param {"user" | "assistant"} role @param {string} name
   * @param {Element} last
   */
  #entry(id, role, name, last) {
    let entry = this.#entries.get(id);
    if (!entry) {
      entry = new Entry(role, name, this.#picture);
      this.#entries.set(id, entry);
      last.after(entry.root);
    }
    return entry;
  }

  #showEarlier() {
    const { scrollHeight, scrollTop } = this.log;
    this.#from = Math.max(0, this.#from - WINDOW);
    if (this.#chat) this.#update(this.#chat);
    this.log.scrollTop = scrollTop + this.log.scrollHeight - scrollHeight;
  }

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.log;
    this.#following = scrollHeight - scrollTop - clientHeight < NEAR_END;
    if (this.#following) this.newer.hidden = true;
  }
}

/** One message in the page. */
class Entry {
  #length = 0;
  /** @type {Message | null} */ #finished = null;

  /**
   * @param {"user" | "assistant"} role
   * @param {string} name
   * @param {string | null} picture
   */
  constructor(role, name, picture) {
    this.text = h("div", { class: "text" });
    this.said = document.createTextNode("");
    this.text.append(this.said);
    this.under = h("div", { class: "under", hidden: true });
    const body = h("div", { class: "body" }, this.text, this.under);
    this.root = h("article", { class: `message ${role}`, "aria-label": name });
    if (role === "assistant") {
      const byline = h("p", { class: "byline", "aria-hidden": "true" }, name);
      body.prepend(byline);
      this.root.append(avatar(name, picture));
    }
    this.root.append(body);
  }

  /** Appends what is new of the text so far. */
  grow(/** @type {string} */ text) {
    this.root.classList.add("live");
    this.root.classList.toggle("waiting", text === "");
    this.said.appendData(text.slice(this.#length));
    this.#length = text.length;
  }

  /** Shows a message that will not change any more. */
  finish(/** @type {Message} */ message) {
    const shown = this.#finished;
    if (shown === message) return;
    if (shown?.text === message.text && shown.status === message.status) return;
    this.#finished = message;
    this.root.classList.remove("live", "waiting");
    this.root.dataset.status = message.status;
    this.text.replaceChildren(...speech(message));
    this.#showEnd(message);
  }

  #showEnd(/** @type {Message} */ message) {
    const mark = endMark(message);
    const parts = [];
    if (mark) parts.push(h("p", { class: "mark" }, mark));
    if (message.stats) {
      const spoke = h("span", { class: "spoke" }, spokenBy(message.stats));
      parts.push(h("p", { class: "stats" }, statsLine(message.stats), spoke));
    }
    this.under.replaceChildren(...parts);
    this.under.hidden = parts.length === 0;
  }
}

/** Whom replies are signed by: a nickname, where the persona has one. */
function speaker(/** @type {Chat} */ { messages, persona }) {
  return messages.findLast((message) => message.role === "assistant")?.name ?? persona.name;
}

/** @returns {(Node | string)[]} */
function speech(/** @type {Message} */ message) {
  if (message.role === "user") return [message.text];
  return speechParts(message.text).map(({ action, text }) => (action ? h("em", {}, text) : text));
}
