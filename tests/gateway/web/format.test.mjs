// What gateway/web/format.js writes for people.

import assert from "node:assert/strict";
import { test } from "node:test";

import { ago, endMark, initial, speechParts, statsLine } from "../../../gateway/web/format.js";

const STATS = {
  ttft_ms: 421.3,
  tokens_per_s: 18.2,
  prompt_tokens: 412,
  cached_tokens: 388,
  completion_tokens: 60,
  cached_by_tier: { disk: 388 },
  miss: "",
};

test("the stats line names time, pace, prompt and the tier that the cache came from", () => {
  const line = "0.42 s to first token · 18 tokens/s · 412 prompt tokens, 388 cached (disk)";
  assert.equal(statsLine(STATS), line);
});

test("several tiers are told apart and an empty one is not named", () => {
  const stats = { ...STATS, cached_by_tier: { host: 300, disk: 88, device: 0 } };
  assert.match(statsLine(stats), /388 cached \(300 memory, 88 disk\)$/);
});

test("a reply without cache says so", () => {
  const stats = { ...STATS, prompt_tokens: 1, cached_tokens: 0, cached_by_tier: {} };
  assert.match(statsLine(stats), /1 prompt token, none cached$/);
});

test("a reply of one token has no pace", () => {
  assert.doesNotMatch(statsLine({ ...STATS, tokens_per_s: 0 }), /tokens\/s/);
});

test("only a reply that simply ended has no mark", () => {
  const mark = (status, error) => endMark({ status, error });
  assert.equal(mark("complete"), "");
  assert.equal(mark("cancelled"), "Stopped");
  assert.equal(mark("failed", { message: "the engine died" }), "Failed: the engine died");
  assert.match(mark("interrupted"), /^Interrupted/);
  assert.match(mark("length"), /limit/);
});

test("times become words, and a clock that runs behind never says the future", () => {
  const now = 1_700_000_000;
  const words = [0, -50, 59, 60, 3600, 90_000, 3 * 86_400].map((s) => ago(now - s, now));
  const expected = ["just now", "just now", "just now", "1 min ago", "1 h ago", "yesterday"];
  assert.deepEqual(words, [...expected, "3 days ago"]);
  assert.match(ago(now - 30 * 86_400, now), /2023$/);
});

test("the initial of a name is a whole character", () => {
  assert.equal(initial("  mara"), "M");
  assert.equal(initial("🦊 Fox"), "🦊");
  assert.equal(initial(""), "?");
});

test("asterisks that hug words make an action; others stay", () => {
  const actions = (text) => speechParts(text).filter((p) => p.action).map((p) => p.text);
  assert.deepEqual(actions("*nods* Yes. *sits down*"), ["nods", "sits down"]);
  assert.deepEqual(actions("“*soft* voice”"), ["soft"]);
  const others = ["2 * 3 * 4", "**bold**", "*unclosed", "a*b*c", "*over\nlines*", "***", "* item"];
  for (const plain of others) assert.deepEqual(actions(plain), [], plain);
});

test("speech parts lose no character but the asterisks of actions", () => {
  for (const text of ["*a* b *c*", "x", "", "*", "**a** *b*\n*c", "🦊*grins*🦊"]) {
    const back = speechParts(text).map((p) => (p.action ? `*${p.text}*` : p.text));
    assert.equal(back.join(""), text);
  }
});

test("a long line of asterisks is split in no time", () => {
  const began = performance.now();
  speechParts("*a ".repeat(20_000));
  assert.ok(performance.now() - began < 1000);
});
