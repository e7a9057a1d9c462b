// Words and numbers for people. Pure.

/** @typedef {import("./store.js").Stats} Stats @typedef {import("./store.js").Message} Message */

/** What the store's tiers are called on the page; a tier not named here keeps its own name. */
const TIERS = new Map([
  ["device", "GPU"],
  ["host", "memory"],
]);

const DAY = 86_400;

/** @param {number} ms @returns {string} e.g. `0.42 s` */
function seconds(ms) {
  const s = ms / 1000;
  return `${s.toFixed(s < 10 ? 2 : 1)} s`;
}

/** @param {number} value @returns {string} */
function rate(value) {
  return value < 10 ? value.toFixed(1) : String(Math.round(value));
}

/** @param {number} count @param {string} noun @returns {string} */
function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/**
 * The quiet line under a reply, e.g.
 * `0.42 s to first token · 18 tokens/s · 412 prompt tokens, 388 cached (disk)`.
 * @param {Stats} stats
 * @returns {string}
 */
export function statsLine(stats) {
  const parts = [];
  if (stats.ttft_ms !== null) parts.push(`${seconds(stats.ttft_ms)} to first token`);
  if (stats.tokens_per_s) parts.push(`${rate(stats.tokens_per_s)} tokens/s`);
  parts.push(`${plural(stats.prompt_tokens, "prompt token")}, ${cached(stats)}`);
  return parts.join(" · ");
}

/**
 * The end of that line where there are several backends, e.g. ` · local`.
 * @param {Stats} stats
 * @returns {string}
 */
export function spokenBy({ backend }) {
  return backend ? ` · ${backend}` : "";
}

/** @param {Stats} stats @returns {string} */
function cached(stats) {
  if (!stats.cached_tokens) return "none cached";
  const tiers = Object.entries(stats.cached_by_tier ?? {}).filter(([, tokens]) => tokens > 0);
  const name = (/** @type {string} */ tier) => TIERS.get(tier) ?? tier;
  const [only] = tiers;
  const from =
    tiers.length === 1 && only
      ? name(only[0])
      : tiers.map(([tier, tokens]) => `${tokens} ${name(tier)}`).join(", ");
  return `${stats.cached_tokens} cached${from ? ` (${from})` : ""}`;
}

/**
 * How a reply ended, when it did not simply end.
 * @param {Message} message
 * @returns {string}
 */
export function endMark(message) {
  switch (message.status) {
    case "cancelled":
      return "Stopped";
    case "failed":
      return message.error ? `Failed: ${message.error.message}` : "Failed";
    case "interrupted":
      return "Interrupted: the server stopped in the middle of this reply";
    case "length":
      return "Ended at the length limit";
    default:
      return "";
  }
}

/**
 * @param {number} then Unix seconds
 * @param {number} now Unix seconds
 * @returns {string} e.g. `just now`, `5 min ago`, `yesterday`, `12 Mar 2026`
 */
export function ago(then, now) {
  const passed = Math.max(0, now - then);
  if (passed < 60) return "just now";
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  if (passed < DAY) return `${Math.floor(passed / 3600)} h ago`;
  if (passed < 2 * DAY) return "yesterday";
  if (passed < 7 * DAY) return `${Math.floor(passed / DAY)} days ago`;
  const options = /** @type {const} */ ({ day: "numeric", month: "short", year: "numeric" });
  return new Intl.DateTimeFormat("en-GB", options).format(new Date(then * 1000));
}

/** @param {string} name @returns {string} the letter shown where there is no picture */
export function initial(name) {
  return ([...name.trim()][0] ?? "?").toUpperCase();
}

/**
 * Splits a finished message into plain text and `*actions*`. An asterisk opens an action when it
 * hugs the word after it and closes it when it hugs the word before; `2 * 3`, `**bold**` and an
 * unclosed `*` stay as they are.
 * @param {string} text
 * @returns {{action: boolean, text: string}[]} joined with the asterisks back, this is `text`
 */
export function speechParts(text) {
  const pattern = /(?<![\w*])\*(?![\s*])([^*\n]*[^*\s])\*(?![\w*])/gu;
  const parts = [];
  let at = 0;
  for (const match of text.matchAll(pattern)) {
    if (match.index > at) parts.push({ action: false, text: text.slice(at, match.index) });
    parts.push({ action: true, text: match[1] ?? "" });
    at = match.index + match[0].length;
  }
  if (at < text.length) parts.push({ action: false, text: text.slice(at) });
  return parts;
}
