// Building elements. Data only ever becomes text nodes and attribute values, never markup.

import { initial } from "./format.js";

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, string | boolean | EventListener>} [attributes] `true` sets an empty
 *   attribute, `false` none; a function is a listener for the event of that name
 * @param {...(Node | string)} children strings become text nodes
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** @template {HTMLElement} T @param {string} id @returns {T} */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no #${id}`);
  return /** @type {T} */ (/** @type {unknown} */ (element));
}

/**
 * A round picture, or the first letter of the name where there is no picture. Decorative: the
 * name always stands beside it.
 * @param {string} name
 * @param {string | null | undefined} picture a path on this server
 * @returns {HTMLElement}
 */
export function avatar(name, picture) {
  const frame = h("span", { class: "avatar", "aria-hidden": "true" }, initial(name));
  if (picture) {
    const image = h("img", { src: picture, alt: "", load: () => frame.replaceChildren(image) });
  }
  return frame;
}
