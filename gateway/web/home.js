// The first view: the characters as cards, and the chats of before.

import { avatar, h } from "./dom.js";
import { ago } from "./format.js";

/**
 * @typedef {import("./store.js").Persona} Persona
 * @typedef {import("./store.js").ChatSummary} ChatSummary
 */

/**
 * A card is one big button.
 * @param {Persona} persona
 * @param {boolean} opening a chat with this persona is being started
 * @param {() => void} onOpen
 * @returns {HTMLLIElement}
 */
export function personaCard(persona, opening, onOpen) {
  const tags = persona.tags.map((tag) => h("span", { class: "tag" }, tag));
  const button = h(
    "button",
    { type: "button", class: "card", disabled: opening, click: onOpen },
    avatar(persona.name, persona.avatar),
    h("span", { class: "name" }, persona.name),
    h("span", { class: "tagline" }, persona.tagline),
    h("span", { class: "tags" }, ...tags),
    h("span", { class: "go", "aria-hidden": "true" }, opening ? "Opening…" : "Start talking →"),
  );
  button.dataset.persona = persona.id;
  return h("li", {}, button);
}

/**
 * @param {ChatSummary} chat
 * @param {string | null} picture the persona's
 * @param {number} now Unix seconds
 * @param {() => void} onDelete
 * @returns {HTMLLIElement}
 */
export function chatRow(chat, picture, now, onDelete) {
  const when = new Date(chat.updated * 1000).toISOString();
  return h(
    "li",
    {},
    h(
      "a",
      { class: "row", href: `#/chat/${encodeURIComponent(chat.id)}` },
      avatar(chat.persona.name, picture),
      h("span", { class: "name" }, chat.persona.name),
      h("time", { datetime: when }, ago(chat.updated, now)),
      h("span", { class: "preview" }, chat.preview),
    ),
    h(
      "button",
      {
        type: "button",
        class: "delete",
        title: "Delete this chat",
        "aria-label": `Delete the chat with ${chat.persona.name}`,
        click: onDelete,
      },
      "×",
    ),
  );
}

/** @returns {HTMLLIElement[]} cards without words, while the list is on its way */
export function emptyCards(/** @type {number} */ count) {
  return Array.from({ length: count }, () =>
    h("li", { "aria-hidden": "true" }, h("div", { class: "card empty" })),
  );
}
