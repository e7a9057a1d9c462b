// The panel "This chat": who the reader is, the author's note, and what the last prompt held.

import { byId, h } from "./dom.js";
import { tell } from "./trace.js";

/**
 * @typedef {import("./store.js").Chat} Chat
 * @typedef {import("./store.js").Note} Note
 * @typedef {{ user?: string, about?: string, note?: Note }} Given What `chat.set` takes.
 * @typedef {{ onPanel: (open: boolean) => void, onGive: (given: Given) => Promise<boolean> }}
 *   Callbacks `onGive` resolves with whether the server took it.
 */

/** Where a note stands unless the reader says otherwise. */
const DEPTH = 4;

/** How many entries of each kind are listed. */
const LISTED = 60;

export class Panel {
  /** @type {Chat | null} */ #chat = null;
  #open = false;

  constructor(/** @type {Callbacks} */ callbacks) {
    this.callbacks = callbacks;
    /** @type {HTMLButtonElement} */ this.toggle = byId("more-about");
    this.panel = byId("panel");
    /** @type {HTMLButtonElement} */ this.save = byId("given-save");
    this.state = byId("given-state");
    /** @type {Record<"user" | "about" | "note" | "depth", HTMLInputElement>} */
    this.fields = {
      user: byId("given-user"),
      about: byId("given-about"),
      note: byId("given-note"),
      depth: byId("given-depth"),
    };
    // Over a small screen the panel lies on the conversation, which then is out of reach.
    this.small = matchMedia("(max-width: 60rem)");
    this.small.addEventListener("change", () => this.#place());
    this.toggle.addEventListener("click", () => callbacks.onPanel(!this.#open));
    byId("panel-close").addEventListener("click", () => callbacks.onPanel(false));
    this.panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing) return;
      event.preventDefault();
      event.stopPropagation();
      callbacks.onPanel(false);
    });
    const form = byId("given");
    form.addEventListener("input", () => this.#changed());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
  }

  /** Shows what the chat has; a field that the reader is changing keeps what was typed. */
  show(/** @type {Chat | null} */ chat) {
    const before = this.#chat;
    this.#chat = chat;
    this.toggle.hidden = chat === null;
    if (!chat || chat === before) return;
    const other = before?.id !== chat.id;
    const was = before && !other ? values(before) : null;
    const now = values(chat);
    for (const key of /** @type {(keyof typeof now)[]} */ (Object.keys(now))) {
      const field = this.fields[key];
      if (!was || field.value === was[key]) field.value = now[key];
    }
    const begun = chat.messages.length > 1;
    byId("trace-title").textContent = begun ? "What the last prompt held" : "What a prompt holds now";
    this.#enable();
  }

  /** Opens or closes; the focus goes along. */
  open(/** @type {boolean} */ open) {
    if (open === this.#open) return;
    const inside = this.panel.contains(document.activeElement);
    this.#open = open;
    this.panel.hidden = !open;
    this.toggle.setAttribute("aria-expanded", String(open));
    this.#place();
    this.state.textContent = "";
    if (open) byId("panel-title").focus();
    else if (inside && !this.toggle.hidden) this.toggle.focus();
  }

  /**
   * Shows what the last prompt held.
   * @param {import("./trace.js").Trace | string | null} trace a text says why there is none
   */
  trace(trace) {
    const body = byId("trace-body");
    if (trace === null || typeof trace === "string") {
      body.replaceChildren(h("p", { class: "hint" }, trace ?? "Looking…"));
      return;
    }
    const { facts, came, cut } = tell(trace, this.#chat?.messages ?? []);
    const nothing = h("p", { class: "hint" }, "No lore came in.");
    body.replaceChildren(
      h("p", { class: "facts" }, facts.join(" ")),
      ...(came.length ? entries("Lore that came in", came) : [nothing]),
      ...(cut.length ? entries("Left out", cut) : []),
    );
  }

  #place() {
    byId("talk").toggleAttribute("inert", this.#open && this.small.matches);
  }

  #changed() {
    this.state.textContent = "";
    this.#enable();
  }

  #enable() {
    this.save.disabled = Object.keys(this.#given()).length === 0;
  }

  /** What the fields say and the chat does not. @returns {Given} */
  #given() {
    if (!this.#chat) return {};
    const { user, about, note, depth } = this.fields;
    const was = values(this.#chat);
    /** @type {Given} */ const given = {};
    if (user.value.trim() !== was.user) given.user = user.value.trim();
    if (about.value.trim() !== was.about) given.about = about.value.trim();
    const text = note.value.trim();
    if (text !== was.note || (text && depth.value !== was.depth)) {
      const { role } = this.#chat.note ?? {};
      given.note = { text, depth: Number(depth.value), ...(role && { role }) };
    }
    return given;
  }

  async #submit() {
    const given = this.#given();
    if (this.save.disabled || Object.keys(given).length === 0) return;
    this.save.disabled = true;
    this.state.textContent = "Saving…";
    const taken = await this.callbacks.onGive(given);
    this.state.textContent = taken ? "Saved. It counts from your next message." : "Not saved.";
    this.#enable();
  }
}

/** What the fields show of a chat. */
function values(/** @type {Chat} */ { user, about, note }) {
  return { user, about, note: note?.text ?? "", depth: String(note?.depth ?? DEPTH) };
}

/** @param {string} title @param {import("./trace.js").Line[]} lines @returns {HTMLElement[]} */
function entries(title, lines) {
  const rows = lines.slice(0, LISTED).map(({ name, why, cost }) => {
    const head = h("span", { class: "name" }, name);
    return h("li", {}, head, h("span", { class: "cost" }, cost), h("span", { class: "why" }, why));
  });
  const left = lines.length - rows.length;
  if (left > 0) rows.push(h("li", { class: "why" }, `and ${left} more`));
  return [h("h4", {}, title), h("ul", { class: "entries" }, ...rows)];
}
