// gateway/web/trace.js: a trace in words.

import assert from "node:assert/strict";
import { test } from "node:test";

import { tell } from "../../../gateway/web/trace.js";

const NOTHING = {
  ...{ room: 3896, tokens: 1204, lore_tokens: 0, left_out: 0 },
  ...{ examples: true, breaks: [], entries: [] },
};
const ENTRY = {
  ...{ id: "0.3", name: "The flood", cause: "key", key: "flood", source: "m1" },
  ...{ place: "before", message: "m1", tokens: 34, cut: "" },
};
const MESSAGES = [{ id: "m1", text: "Tell me of the flood,\nand of all that came before it." }];

function told(...entries) {
  return tell({ ...NOTHING, entries }, MESSAGES);
}

test("tokens are told, and what no longer fits", () => {
  assert.deepEqual(told(), { facts: ["1,204 of 3,896 tokens are taken."], came: [], cut: [] });
  const full = { ...NOTHING, left_out: 1, examples: false, breaks: ["tail", "trim"] };
  assert.deepEqual(tell(full, []).facts.slice(1), [
    "Trimmed: the oldest 1 message.",
    "The example dialogue no longer fits.",
    "Its end is read anew at every turn.",
  ]);
});

test("an entry says by which key it came in, where it stands and what it costs", () => {
  const [line] = told(ENTRY).came;
  assert.deepEqual(line, {
    name: "The flood",
    why: "by “flood”, before “Tell me of the flood, and of al…”",
    cost: "34 tokens",
  });
});

test("every cause and place has words", () => {
  const why = (entry) => told({ ...ENTRY, ...entry }).came[0].why;
  assert.equal(why({ cause: "constant", key: "", place: "scene" }), "always in, at the top");
  assert.equal(why({ cause: "constant", key: "", place: "tail" }), "always in, at the very end");
  assert.equal(
    why({ cause: "recursion", source: "0.1", place: "scene" }),
    "through another entry, by “flood”, at the top",
  );
  const field = { cause: "source", source: "scenario", place: "scene" };
  assert.equal(why(field), "by “flood” in scenario, at the top");
  assert.equal(why({ cause: "earlier", key: "", message: "gone" }), "came in earlier");
});

test("what was cut says why, also without a name", () => {
  const cut = { ...ENTRY, name: "", cut: "34 tokens, and 20 of 64 are left", place: "" };
  assert.deepEqual(told(cut).cut, [
    { name: "flood", why: "“flood”: 34 tokens, and 20 of 64 are left", cost: "34 tokens" },
  ]);
  assert.deepEqual(told({ ...cut, key: "", tokens: 0, cut: "its chance was missed" }).cut, [
    { name: "Entry 0.3", why: "its chance was missed", cost: "" },
  ]);
});
