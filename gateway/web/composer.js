// The box one types into. What was typed leaves it only when the server has it on disk; until
// then it survives errors, lost connections and reloads.

/**
 * @param {Storage} storage
 * @param {string} chat
 * @param {string} text empty: nothing is kept
 */
function keepDraft(storage, chat, text) {
  if (text) storage.setItem(`draft:${chat}`, text);
  else storage.removeItem(`draft:${chat}`);
}

export class Composer {
  /** @type {string | null} */ #chat = null;
  #sending = false;
  #live = false;

  /**
   * @param {{
   *   form: HTMLFormElement, draft: HTMLTextAreaElement,
   *   send: HTMLButtonElement, stop: HTMLButtonElement,
   * }} elements
   * @param {{onSend: (text: string) => void, onStop: () => void, onTyping: () => void}} callbacks
   * @param {Storage} storage
   */
  constructor({ form, draft, send, stop }, { onSend, onStop, onTyping }, storage) {
    this.draft = draft;
    this.send = send;
    this.stop = stop;
    this.onSend = onSend;
    this.storage = storage;
    draft.addEventListener("input", () => {
      this.#changed();
      onTyping();
    });
    draft.addEventListener("keydown", (event) => {
      // While an input method composes a character, Enter only picks it.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#submit();
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    stop.addEventListener("click", () => {
      onStop();
      draft.focus();
    });
  }

  /** Switches to a chat and brings back what was typed there and not sent. */
  open(/** @type {string} */ chat, /** @type {string} */ name) {
    if (chat === this.#chat) return;
    this.#chat = chat;
    this.draft.placeholder = `Say something to ${name}`;
    this.draft.value = this.storage.getItem(`draft:${chat}`) ?? "";
    this.#changed();
    // On a touch screen, focus would open the keyboard over the conversation.
    if (matchMedia("(pointer: fine)").matches) this.draft.focus();
  }

  close() {
    this.#chat = null;
  }

  /** @param {{sending: boolean, live: boolean, stopping: boolean}} state */
  show({ sending, live, stopping }) {
    const held = document.activeElement === this.stop && !live;
    this.#sending = sending;
    this.#live = live;
    this.stop.hidden = !live;
    this.stop.disabled = stopping;
    this.stop.textContent = stopping ? "Stopping…" : "Stop";
    this.send.hidden = live;
    this.#enable();
    if (held) this.draft.focus(); // a button that goes must not take the focus with it
  }

  /** The server has `text`: takes it out of the box, and leaves what was typed behind it. */
  delivered(/** @type {string} */ chat, /** @type {string} */ text) {
    const typed = this.storage.getItem(`draft:${chat}`) ?? "";
    const rest = typed.startsWith(text) ? typed.slice(text.length).trimStart() : typed;
    keepDraft(this.storage, chat, rest);
    if (chat !== this.#chat) return;
    this.draft.value = rest;
    this.#changed();
  }

  #submit() {
    if (this.#sending || this.#live || !this.draft.value.trim()) return;
    this.onSend(this.draft.value);
  }

  #changed() {
    if (this.#chat !== null) keepDraft(this.storage, this.#chat, this.draft.value);
    if (!CSS.supports("field-sizing", "content")) {
      const lines = this.draft.value.split("\n").length;
      this.draft.rows = Math.min(8, lines);
    }
    this.#enable();
  }

  #enable() {
    this.send.disabled = this.#sending || !this.draft.value.trim();
  }
}
