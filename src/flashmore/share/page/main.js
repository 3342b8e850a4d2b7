/** The page: unpack what it carries, show its parts, and check itself. */

import { AttentionView } from "./attention.js";
import { check } from "./check.js";
import { byId, element, state, visible } from "./dom.js";
import { build } from "./models.js";
import { noveltyIn, showNames } from "./names.js";
import { MOST, showNext } from "./next.js";
import { unpack } from "./payload.js";
import { Alphabet } from "./text.js";
import { showTraining } from "./training.js";

const NEEDED = ["DecompressionStream", "BigInt", "TextDecoder"];

/** Milliseconds without typing before what was typed is computed. */
const PAUSE = 120;

async function main() {
  const lacking = NEEDED.filter((name) => !(name in globalThis));
  if (lacking.length) throw new Error(`This browser is too old: it lacks ${lacking.join(", ")}. Any browser released since 2023 will do.`);
  let page;
  try {
    page = await unpack(byId("payload").textContent);
  } catch {
    throw new Error("This file is damaged, so its model cannot be read. Please download or copy it again.");
  }
  const models = page.models.map((model) => ({
    ...model,
    isText: model.kind === "text",
    network: build(model.config, model.tensors),
    alphabet: new Alphabet(model.characters, model.kind === "text"),
    novelty: noveltyIn(page.lists[model.list]),
  }));
  document.documentElement.classList.add("ready");
  showNames(models);
  const before = state.read();
  const input = byId("typed");
  if ("name" in before) input.value = before.name;
  const isText = models[0].isText;
  const isKnown = (character) => models.every(({ alphabet }) => alphabet.ids.has(character));
  const first = isText ? models[0].alphabet.characters.find(isKnown) : ""; // what is shown without a text
  const attending = first === undefined ? [] : models.filter(({ attends }) => attends);
  byId("attention").hidden = byId("to-attention").hidden = !attending.length;
  const place = (name) => Math.max(0, Number.parseInt(before[name] ?? 0, 10) || 0);
  const view =
    attending.length &&
    new AttentionView(attending, { model: place("model"), layer: place("layer"), head: place("head"), row: "row" in before ? place("row") : MOST }, (values) => state.write(values));
  const show = () => {
    const most = Math.min(...models.map(({ network }) => network.context - (isText ? 0 : 1)));
    const characters = [...input.value.normalize("NFC")];
    const known = characters.filter(isKnown);
    const notes = first === undefined ? ["The models have no character in common, so nothing is shown here."] : [];
    if (known.length < characters.length) {
      const unknown = [...new Set(characters)].filter((each) => !known.includes(each));
      notes.push(`Left out, because a model has never seen them: ${unknown.map((each) => `“${visible(each)}”`).join(", ")}.`);
    }
    if (known.length > most) notes.push(`Only ${isText ? "the last" : "the first"} ${most} characters fit into the model's context.`);
    if (Math.min(known.length, most) + (isText ? 0 : 1) > MOST) notes.push(`Only the last ${MOST} positions are shown, and their attention to earlier ones is not.`);
    const text = (isText ? known.slice(-most) : known.slice(0, most)).join("") || (first ?? "");
    byId("typed-problems").textContent = notes.join(" ");
    showNext(models, text);
    if (view) view.show(text);
  };
  let waiting;
  input.addEventListener("input", () => {
    state.write({ name: input.value });
    clearTimeout(waiting);
    waiting = setTimeout(show, PAUSE);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => view && view.redraw());
  show();
  showTraining(models);
  for (const link of document.querySelectorAll("[data-jump]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault(); // the address keeps the options
      const target = byId(link.hash.slice(1));
      target.scrollIntoView();
      target.focus({ preventScroll: true });
    });
  }
  await new Promise((resume) => setTimeout(resume)); // the page is drawn first
  const { difference, same, names } = check(models, page.references);
  const fine = difference <= 1e-3 && same === names;
  byId("checked").replaceChildren(
    element("strong", {}, fine ? "Checked. " : "This page differs from PyTorch. "),
    `In this browser, logits differ from PyTorch's by at most ${difference.toExponential(1)}, and ${same} of ${names} ${isText ? "characters" : "names"} drawn with the same seed are the same.`,
  );
  byId("checked").className = fine ? "fine" : "notice";
  document.documentElement.dataset.checked = fine ? "yes" : "no";
}

main().catch((error) => {
  document.documentElement.dataset.checked = "failed";
  document.documentElement.classList.add("failed");
  byId("failure").textContent = error.message;
  byId("failure").hidden = false;
});
