// The trace of a prompt in words: which lore came in, why, where and at what cost. Pure.

/**
 * @typedef {{
 *   id: string, name: string, cause: string, key: string, source: string, place: string,
 *   message: string, tokens: number, cut: string,
 * }} TraceEntry
 *
 * @typedef {{
 *   room: number, tokens: number, lore_tokens: number, left_out: number, examples: boolean,
 *   breaks: string[], entries: TraceEntry[],
 * }} Trace What `GET /v1/chats/{id}/trace` answers; see docs/personas.md.
 *
 * @typedef {{ name: string, why: string, cost: string }} Line One entry of a lorebook.
 *
 * @typedef {{ facts: string[], came: Line[], cut: Line[] }} Told
 */

const CAUSES = new Map([
  ["constant", "always in"],
  ["forced", "always in"],
  ["recursion", "through another entry"],
  ["sticky", "stays for a while"],
  ["kept", "kept since it matched"],
  ["earlier", "came in earlier"],
]);

const EXCERPT_CHARS = 32;

/** @param {number} count @returns {string} e.g. `1,204` */
function number(count) {
  return count.toLocaleString("en-GB");
}

/** @param {number} count @param {string} noun @returns {string} */
function plural(count, noun) {
  return `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/**
 * @param {Trace} trace
 * @param {{id: string, text: string}[]} messages of the chat, to name places by
 * @returns {Told}
 */
export function tell(trace, messages) {
  const facts = [`${number(trace.tokens)} of ${plural(trace.room, "token")} are taken.`];
  if (trace.left_out) facts.push(`Trimmed: the oldest ${plural(trace.left_out, "message")}.`);
  if (!trace.examples) facts.push("The example dialogue no longer fits.");
  if (trace.breaks.includes("tail")) facts.push("Its end is read anew at every turn.");
  const came = trace.entries.filter((entry) => !entry.cut);
  const cut = trace.entries.filter((entry) => entry.cut);
  return {
    facts,
    came: came.map((entry) => ({
      name: nameOf(entry),
      why: [reason(entry), place(entry, messages)].filter(Boolean).join(", "),
      cost: plural(entry.tokens, "token"),
    })),
    cut: cut.map((entry) => ({
      name: nameOf(entry),
      why: [entry.key && `“${entry.key}”`, entry.cut].filter(Boolean).join(": "),
      cost: entry.tokens ? plural(entry.tokens, "token") : "",
    })),
  };
}

/** @param {TraceEntry} entry @returns {string} */
function nameOf({ name, key, id }) {
  return name || key || `Entry ${id}`;
}

/** @param {TraceEntry} entry @returns {string} */
function reason({ cause, key, source }) {
  const words = CAUSES.get(cause) ?? "";
  const by = key && (cause === "source" ? `by “${key}” in ${source}` : `by “${key}”`);
  return [words, by].filter(Boolean).join(", ");
}

/** @param {TraceEntry} entry @param {{id: string, text: string}[]} messages @returns {string} */
function place(entry, messages) {
  if (entry.place === "scene") return "at the top";
  if (entry.place === "tail") return "at the very end";
  const said = messages.find((message) => message.id === entry.message)?.text;
  return said ? `${entry.place} “${excerpt(said)}”` : "";
}

/** @param {string} text @returns {string} the beginning, on one line */
function excerpt(text) {
  const line = [...text.replace(/\s+/g, " ").trim()];
  if (line.length <= EXCERPT_CHARS) return line.join("");
  return `${line.slice(0, EXCERPT_CHARS - 1).join("").trimEnd()}…`;
}
