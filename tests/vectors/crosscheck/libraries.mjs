// Runs the two npm libraries: one JSON object a line in, {id, card, to} or {id, content, known}; one out.
import { createInterface } from "node:readline";
import { CCardLib } from "@risuai/ccardlib";
import * as utils from "character-card-utils";

const attempt = (work) => {
  try {
    return { ok: work() };
  } catch (error) {
    return { error: String(error?.name ?? error) };
  }
};

const converted = (card, to) => {
  const version = CCardLib.character.check(card);
  if (version === "unknown") throw new Error("unknown");
  return { version, card: CCardLib.character.convert(structuredClone(card), { to }) };
};

const decorated = (content, known) => {
  const called = [];
  const left = CCardLib.decorator.parse(content, (name) => {
    if (!known.includes(name)) return false;
    called.push(name);
  });
  return { called, content: left };
};

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  const found =
    "content" in asked
      ? { ccardlib: attempt(() => decorated(asked.content, asked.known)) }
      : {
          "character-card-utils": attempt(() => utils.parseToV2(structuredClone(asked.card))),
          ccardlib: attempt(() => converted(asked.card, asked.to)),
        };
  console.log(JSON.stringify({ id: asked.id, ...found }));
}
