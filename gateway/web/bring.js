// Bringing characters: the button, the drop, and what the server says of each file.

import { h } from "./dom.js";

/**
 * @typedef {import("./store.js").Brought} Brought
 * @typedef {{ onBring: (files: File[]) => void, onOpen: (persona: string) => void,
 *   onUndo: (persona: string) => void }} Callbacks
 */

const STATES = {
  added: "is here",
  replaced: "has a new revision",
  unchanged: "was here already",
  refused: "could not be read",
};

/**
 * Listens for files: chosen with the button, or dropped anywhere on the zone.
 * @param {{ zone: HTMLElement, button: HTMLElement, input: HTMLInputElement }} elements
 * @param {(files: File[]) => void} onBring
 */
export function listen({ zone, button, input }, onBring) {
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    const files = [...(input.files ?? [])];
    input.value = ""; // the same file may be chosen again
    if (files.length) onBring(files);
  });
  let depth = 0; // of elements that the pointer entered and did not leave
  /** @param {DragEvent} event */
  const carries = (event) => event.dataTransfer?.types.includes("Files") ?? false;
  /** @param {number} now */
  const enter = (now) => zone.classList.toggle("dropping", (depth = now) > 0);
  zone.addEventListener("dragenter", (event) => carries(event) && enter(depth + 1));
  zone.addEventListener("dragleave", (event) => carries(event) && enter(Math.max(depth - 1, 0)));
  zone.addEventListener("dragover", (event) => carries(event) && event.preventDefault());
  zone.addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    enter(0);
    const files = [...(event.dataTransfer?.files ?? [])];
    if (files.length) onBring(files);
  });
}

/**
 * One file: what became of it, what to do next, and the whole report behind a fold.
 * @param {Brought} line
 * @param {Callbacks} callbacks
 * @returns {HTMLLIElement}
 */
export function broughtRow(line, { onOpen, onUndo }) {
  const { persona, error, state } = line;
  const name = persona?.name ?? line.file;
  const says = h(
    "p",
    { class: "says" },
    h("strong", {}, name),
    ` ${STATES[state]}${error ? `: ${error.message}` : "."} `,
  );
  const row = h("li", { class: `brought ${state}` }, says);
  if (persona) {
    const talk = h("button", { type: "button", click: () => onOpen(persona.id) }, "Start talking");
    row.append(talk);
    if (state === "added") {
      const undo = () => onUndo(persona.id);
      row.append(h("button", { type: "button", class: "quiet", click: undo }, "Undo"));
    }
  }
  const report = reportOf(line);
  if (report) row.append(report);
  return row;
}

/** @param {Brought} line @returns {HTMLElement | null} */
function reportOf({ report, findings, container }) {
  if (!report) return null;
  const groups = [
    ["Used", report.executed],
    ["Kept, without effect", report.preserved],
    ["Repaired", report.repaired],
    ["Dropped", report.dropped],
  ];
  const parts = groups.flatMap(([title, paths]) => {
    const names = /** @type {string[]} */ (paths).map((path) => path.replace(/^data\./, ""));
    return names.length ? [h("dt", {}, String(title)), h("dd", {}, names.join(", "))] : [];
  });
  const noticed = (findings ?? []).map(({ message, where }) =>
    h("dd", {}, where ? `${message} (${where})` : message),
  );
  if (noticed.length) parts.push(h("dt", {}, "Noticed"), ...noticed);
  const words = [`${report.executed.length} fields used`];
  if (report.preserved.length) words.push(`${report.preserved.length} kept`);
  if (report.repaired.length) words.push(`${report.repaired.length} repaired`);
  if (report.dropped.length) words.push(`${report.dropped.length} dropped`);
  return h(
    "details",
    {},
    h("summary", {}, `Import report (${container}): ${words.join(", ")}`),
    h("dl", {}, ...parts),
  );
}
