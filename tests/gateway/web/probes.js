// Injected into every page under test before its own scripts: looks at what a person looks at.

const probes = { violations: [] };

addEventListener("securitypolicyviolation", (event) =>
  probes.violations.push(`${event.violatedDirective} ${event.blockedURI}`),
);

/** Resolves when the next reply is over: how its text grew, how often nodes in it were replaced,
 * and what aria-busy said meanwhile. */
probes.watchReply = () =>
  new Promise((resolve) => {
    const seen = { lengths: [], nodes: 0, busy: [] };
    const log = document.querySelector("#log");
    let begun = false;
    const observer = new MutationObserver((records) => {
      const live = document.querySelector(".message.live .text");
      if (begun && !live) {
        observer.disconnect();
        resolve(seen);
      }
      if (!live) return;
      begun = true;
      const inside = records.filter((r) => r.type === "childList" && live.contains(r.target));
      seen.nodes += inside.length;
      const length = live.textContent.length;
      if (length !== (seen.lengths.at(-1) ?? 0)) seen.lengths.push(length);
      seen.busy.push(log.getAttribute("aria-busy"));
    });
    const all = { subtree: true, childList: true, characterData: true, attributes: true };
    observer.observe(log, all);
  });

/** Visible text with less contrast than WCAG 2.2 AA asks of small text (1.4.3: 4.5 to 1). */
probes.poorContrast = () => {
  const parse = (color) => color.match(/[\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = (color) => {
    const [r, g, b] = color.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    const color = parse(getComputedStyle(element).backgroundColor);
    return color.length === 3 || color[3] === 1 ? color : background(element.parentElement);
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const { data, parentElement: element } = walker.currentNode;
    if (!data.trim() || !element.checkVisibility()) continue;
    if (element.closest(":disabled, .unseen, noscript")) continue;
    const front = luminance(parse(getComputedStyle(element).color));
    const back = luminance(background(element));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)}: ${data.slice(0, 40)}`);
  }
  return poor;
};

probes.controls = () =>
  [...document.querySelectorAll("button, a, input, textarea")].filter((e) => e.checkVisibility());

/** Controls under the 24 pixels of WCAG 2.2 AA (2.5.8). */
probes.smallTargets = () =>
  probes
    .controls()
    .filter((e) => Math.min(e.getBoundingClientRect().width, e.getBoundingClientRect().height) < 24)
    .map((e) => e.outerHTML.slice(0, 80));

/** Controls that a screen reader could not name. */
probes.unnamedControls = () =>
  probes
    .controls()
    .filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length))
    .map((e) => e.outerHTML.slice(0, 80));

window.probes = probes;
