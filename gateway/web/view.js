// From state to page. `render` is given the new state and looks only at what changed.

import { broughtRow, listen } from "./bring.js";
import { Composer } from "./composer.js";
import { avatar, byId, h } from "./dom.js";
import { endMark } from "./format.js";
import { chatRow, emptyCards, personaCard } from "./home.js";
import { MessageList } from "./messages.js";
import { Panel } from "./panel.js";
import { matching, voiceOf } from "./store.js";

/** @typedef {import("./store.js").State} State @typedef {import("./store.js").Chat} Chat */

/**
 * @typedef {{
 *   onOpen: (persona: string) => void, onSend: (text: string) => void, onStop: () => void,
 *   onTyping: () => void, onDeleteChat: (chat: string) => void,
 *   onRetry: () => void, onDismiss: () => void, onName: (name: string) => void,
 *   onVoice: (backend: string) => void, onBring: (files: File[]) => void,
 *   onUndo: (persona: string) => void, onWords: (words: string) => void, onMore: () => void,
 *   onGreeting: (by: number) => void,
 * } & import("./panel.js").Callbacks} Callbacks
 */

export class View {
  /** @type {State | null} */ #state = null;

  /**
   * @param {Callbacks} callbacks
   * @param {string} name what the characters call the reader; empty: not given
   */
  constructor(callbacks, name) {
    this.callbacks = callbacks;
    this.list = new MessageList(byId("log"), byId("messages"), byId("newer"));
    const elements = {
      form: byId("composer"),
      draft: byId("draft"),
      send: byId("send"),
      stop: byId("stop"),
    };
    this.composer = new Composer(/** @type {any} */ (elements), callbacks, sessionStorage);
    this.panel = new Panel(callbacks);
    /** @type {HTMLInputElement} */ const field = byId("name");
    field.value = name;
    field.addEventListener("input", () => callbacks.onName(field.value.trim()));
    /** @type {HTMLSelectElement} */ const voices = byId("voices");
    voices.addEventListener("change", () => callbacks.onVoice(voices.value));
    /** @type {HTMLInputElement} */ const find = byId("find");
    find.addEventListener("input", () => callbacks.onWords(find.value));
    byId("more").addEventListener("click", callbacks.onMore);
    listen({ zone: byId("home"), button: byId("bring"), input: byId("files") }, callbacks.onBring);
    byId("me").addEventListener("submit", (event) => event.preventDefault());
    byId("retry").addEventListener("click", callbacks.onRetry);
    byId("dismiss").addEventListener("click", callbacks.onDismiss);
    byId("greeting-before").addEventListener("click", () => callbacks.onGreeting(-1));
    byId("greeting-after").addEventListener("click", () => callbacks.onGreeting(1));
    document.addEventListener("keydown", (event) => this.#pressed(event));
  }

  render(/** @type {State} */ state) {
    const before = this.#state;
    this.#state = state;
    /** @param {...(keyof State)} keys */
    const changed = (...keys) => keys.some((key) => before?.[key] !== state[key]);

    if (changed("route", "missing", "chat", "personas")) this.#sections(state, before);
    if (changed("personas", "opening", "words", "shown")) this.#personas(state);
    if (changed("brought", "bringing")) this.#brought(state);
    if (changed("chats", "personas")) this.#chats(state);
    if (changed("backends", "chat")) {
      this.#voice(state);
      this.#voices(state);
    }
    if (changed("connection")) this.#connection(state);
    if (changed("problem")) this.#line("problem", state.problem?.message ?? "");
    if (changed("chat", "personas") && state.chat) {
      this.composer.open(state.chat.id, state.chat.persona.name);
      this.list.show(state.chat, picture(state, state.chat.persona.id));
      this.#announce(state.chat, before?.chat ?? null);
    }
    if (changed("chat")) {
      this.#greetings(state.chat, before?.chat ?? null);
      this.panel.show(state.chat);
    }
    if (changed("panel")) this.panel.open(state.panel);
    if (changed("trace", "panel") && state.panel) this.panel.trace(state.trace);
    if (changed("chat", "outgoing")) {
      const { outgoing, chat } = state;
      this.composer.show({
        sending: outgoing.chat === chat?.id && ["sending", "unsure"].includes(outgoing.status),
        live: Boolean(chat?.live),
        stopping: Boolean(chat?.live?.stopping),
      });
      if (outgoing.status === "delivered" && before?.outgoing !== outgoing) {
        this.composer.delivered(outgoing.chat, outgoing.text);
      }
    }
  }

  /** Keys that count wherever the focus is. */
  #pressed(/** @type {KeyboardEvent} */ event) {
    const { chat, panel } = this.#state ?? {};
    if (event.isComposing || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    if (event.key === "Escape" && (chat?.live || panel)) {
      event.preventDefault();
      if (chat?.live) this.callbacks.onStop();
      else this.callbacks.onPanel(false);
    }
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !chat || chat.greetings.length < 2 || writing(event.target)) return;
    event.preventDefault();
    this.callbacks.onGreeting(by);
  }

  /** The greetings to choose from, and where among them the chat is. */
  #greetings(/** @type {Chat | null} */ chat, /** @type {Chat | null} */ before) {
    const { greetings = [], greeting = null } = chat ?? {};
    const many = greetings.length > 1 && greeting !== null;
    const group = byId("greetings");
    const held = group.contains(document.activeElement);
    group.hidden = !many;
    if (!many) {
      if (held) byId("draft").focus(); // a button that goes must not take the focus with it
      return;
    }
    const words = `${greeting + 1} of ${greetings.length}`;
    group.querySelector(".words")?.replaceChildren(words);
    if (before?.id !== chat?.id || before?.greeting === greeting) return;
    byId("announcer").textContent = `Greeting ${words}: ${greetings[greeting]?.text ?? ""}`;
  }

  /** @param {State} state @param {State | null} before */
  #sections(state, before) {
    const home = state.route.chat === null;
    byId("home").hidden = !home;
    byId("missing").hidden = !state.missing;
    byId("chat").hidden = home || state.missing;
    byId("chat").classList.toggle("loading", state.chat === null);
    byId("back").hidden = home;
    if (before?.route !== state.route) {
      // The line about what went wrong stands where the reader looks.
      (home ? byId("notice") : byId("composer")).before(byId("problem"));
    }
    if (home || state.missing) this.composer.close();
    if (before?.chat?.persona !== state.chat?.persona || before?.personas !== state.personas) {
      this.#who(state);
    }
    if (home && before && before.route !== state.route) {
      byId("home").scrollTop = 0;
      byId("home").querySelector("h1")?.focus();
    }
  }

  #who(/** @type {State} */ state) {
    const { chat } = state;
    if (chat) {
      const face = avatar(chat.persona.name, picture(state, chat.persona.id));
      byId("who").replaceChildren(face, h("h1", { class: "name" }, chat.persona.name));
    } else {
      const mark = h("img", { src: "/static/favicon.svg", alt: "", class: "mark" });
      byId("who").replaceChildren(mark, h("span", { class: "wordmark" }, "Greenroom"));
    }
    document.title = chat ? `${chat.persona.name} · Greenroom` : "Greenroom";
  }

  /** The picker of a chat's backend; with one backend there is nothing to pick. */
  #voices(/** @type {State} */ state) {
    const { backends, chat } = state;
    const several = backends.length > 1;
    byId("voice").hidden = !chat || !several;
    byId("log").classList.toggle("voices", several); // then each reply says who spoke it
    if (!chat) return;
    /** @type {HTMLSelectElement} */ const voices = byId("voices");
    const names = backends.map((backend) => backend.name);
    if ([...voices.options].map((option) => option.value).join("\n") !== names.join("\n")) {
      voices.replaceChildren(...names.map((name) => h("option", { value: name })));
    }
    // Only what changed is touched, as the list may be open.
    backends.forEach((backend, i) => {
      const option = voices.options[i];
      const words = voiceWords(backend);
      if (option && option.text !== words) option.text = words;
    });
    voices.value = voiceOf(state)?.name ?? "";
    voices.disabled = Boolean(chat.live);
  }

  #personas(/** @type {State} */ { personas, opening, words, shown }) {
    const found = matching(personas ?? [], words);
    const cards = found
      .slice(0, shown)
      .map((persona) =>
        personaCard(persona, opening === persona.id, () => this.callbacks.onOpen(persona.id)),
      );
    byId("personas").replaceChildren(...(personas ? cards : emptyCards(3)));
    byId("nobody").hidden = personas?.length !== 0;
    byId("unfound").hidden = !personas?.length || found.length > 0;
    byId("find").hidden = !words && (personas?.length ?? 0) < 7;
    byId("more").hidden = found.length <= shown;
    byId("more").textContent = `Show more (${found.length - shown} are left)`;
  }

  /** What became of the files that were brought, and how many are on their way. */
  #brought(/** @type {State} */ { brought, bringing }) {
    const rows = brought.map((line) => broughtRow(line, this.callbacks));
    byId("brought").replaceChildren(...rows);
    byId("brought").hidden = rows.length === 0;
    /** @type {HTMLButtonElement} */ const button = byId("bring");
    button.disabled = bringing !== null;
    const many = bringing && bringing.of > 1 ? ` ${bringing.done} of ${bringing.of}` : "";
    button.textContent = bringing ? `Reading${many}…` : "Bring a character…";
  }

  #chats(/** @type {State} */ state) {
    const now = Date.now() / 1000;
    const rows = (state.chats ?? []).map((chat) =>
      chatRow(chat, picture(state, chat.persona.id), now, () =>
        this.callbacks.onDeleteChat(chat.id),
      ),
    );
    byId("chats").replaceChildren(...rows);
    byId("recent").hidden = rows.length === 0;
  }

  /** The line about whoever speaks here. */
  #voice(/** @type {State} */ state) {
    const backend = voiceOf(state);
    /** @type {HTMLElement} */ const line = byId("backend");
    line.hidden = backend === null;
    if (!backend) return;
    line.dataset.state = backend.state;
    line.title = backend.detail ?? "";
    line.querySelector(".words")?.replaceChildren(backendWords(backend));
    byId("notice").textContent = backend.notice ?? "";
    byId("notice").hidden = !backend.notice;
  }

  #connection(/** @type {State} */ { connection }) {
    const lost = "Connection lost. Reconnecting…";
    let words = "";
    if (connection.name === "waiting") words = lost;
    if (connection.name === "connecting" && connection.attempt > 0) words = lost;
    if (connection.name === "ended") words = connection.message;
    this.#line("banner", words);
    byId("retry").hidden = connection.name === "ended";
  }

  /** Shows one line with its text, or hides it. @param {string} id @param {string} words */
  #line(id, words) {
    const line = byId(id);
    line.querySelector(".words")?.replaceChildren(words);
    line.hidden = words === "";
  }

  /** Reads a finished reply out once. @param {Chat} chat @param {Chat | null} before */
  #announce(chat, before) {
    const spoken = before?.live;
    if (!spoken || chat.live?.turn === spoken.turn) return;
    const message = chat.messages.find((other) => other.id === spoken.message);
    if (!message) return;
    const parts = [`${message.name}: ${message.text}`, endMark(message)];
    byId("announcer").textContent = parts.filter(Boolean).join(" ");
  }
}

/** Whether a key belongs to a field that something is written or chosen in. */
function writing(/** @type {EventTarget | null} */ target) {
  if (target instanceof HTMLTextAreaElement && target.id === "draft") return target.value !== "";
  return target instanceof Element && target.matches("input, textarea, select");
}

/** @param {State} state @param {string} persona @returns {string | null} */
function picture(state, persona) {
  return state.personas?.find((other) => other.id === persona)?.avatar ?? null;
}

/** A choice of the picker. @param {import("./store.js").Backend} backend @returns {string} */
function voiceWords({ name, state }) {
  return state === "starting" || state === "down" ? `${name} (${state})` : name;
}

/** @param {import("./store.js").Backend} backend @returns {string} */
function backendWords({ state, detail, model, name }) {
  if (state === "starting") return detail ? `Starting: ${detail}` : "The model is starting…";
  if (state === "down") return detail ? `Down: ${detail}` : "The model is down";
  if (state === "idle") return "Starts with the next message";
  return model ?? name;
}
