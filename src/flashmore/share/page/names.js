/** Make names: names or text from every model of the page, side by side. */

import { byId, element, state, visible } from "./dom.js";
import { continuation, draws } from "./sample.js";

const DRAWS_PER_NAME = 100, FEWEST_DRAWS = 20000;
/** Most milliseconds of work before the page may answer. */
const SLICE = 40;
const LABELS = { new: "new", train: "in the training data", validation: "held out (validation)", test: "held out (test)" };

const counted = (count, thing) => `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;

/** Which part of the data has an item: "train", "validation", "test", "new", or "" if the page has no data. */
export function noveltyIn(list) {
  if (!list) return () => "";
  const parts = new Map();
  for (const part of ["test", "validation", "train"]) for (const item of list[part]) parts.set(item, part);
  return (text) => parts.get(text) ?? "new";
}

/** Names as `flashmore generate` gives them, and how many draws they took. */
export function* names(model, options) {
  const spaces = new Set(model.spaces);
  const seen = new Set();
  const found = [];
  const most = Math.max(DRAWS_PER_NAME * options.count, FEWEST_DRAWS);
  let drawn = 0;
  for (const { ids, ended, logProb } of draws(model.network, options.prefix, options)) {
    drawn++;
    const text = model.alphabet.decode(ids);
    const usual = ended && ids.length && !spaces.has(ids[0]) && !spaces.has(ids.at(-1)) && text === text.normalize("NFC");
    if (usual) {
      const novelty = model.novelty(text);
      const wanted = !options.newOnly || !novelty || novelty === "new";
      if (!seen.has(text) && wanted) found.push({ text, novelty, logProb });
      seen.add(text);
    }
    if (found.length === options.count || drawn === most) break;
    yield { found, drawn };
  }
  yield { found, drawn };
}

/** Reads the form; {options, problems}. */
function read(form, models) {
  const number = (name) => (form[name].value === "" ? null : Number(form[name].value));
  const options = {
    text: form.prefix.value,
    temperature: number("temperature") ?? 1,
    topK: number("topk"),
    topP: number("topp"),
    seed: form.seed.value || "0",
    count: number("count") ?? 20,
    newOnly: form.fresh?.checked ?? false,
  };
  const problems = [...form.elements].filter((field) => field.validationMessage).map((field) => `${field.labels[0]?.firstChild.textContent.trim()}: ${field.validationMessage}`);
  if (!/^\d{1,18}$/.test(options.seed)) problems.push("Seed: a whole number of at most 18 digits.");
  for (const model of models) {
    const { ids, unknown } = model.alphabet.encode(model.isText ? options.text : options.text.trimStart());
    if (unknown.length) problems.push(`${model.title} has never seen ${unknown.map((each) => `“${visible(each)}”`).join(", ")}. Its characters: ${model.alphabet.characters.slice(0, 200).map(visible).join(" ")}`);
    else if (!model.isText && ids.length >= model.network.context) problems.push(`A name of ${model.title} has at most ${model.network.context - 1} characters.`);
  }
  return { options, problems };
}

export function showNames(models) {
  const form = byId("options");
  const columns = models.map((model, place) => column(model, place));
  byId("made").append(...columns.map((each) => each.card));
  const fields = ["prefix", "temperature", "topk", "topp", "seed", "count"];
  const before = state.read();
  for (const name of fields) if (name in before) form[name].value = before[name];
  if (form.fresh) form.fresh.checked = before.new === "1";
  const hidden = form.querySelector("details"); // open if something in it is chosen already
  hidden.open = [...hidden.querySelectorAll("input")].some((field) => (field.type === "checkbox" ? field.checked : field.value !== field.defaultValue));

  let run = 0;
  async function make() {
    const mine = ++run;
    const { options, problems } = read(form, models);
    byId("problems").replaceChildren(...problems.map((text) => element("p", {}, text)));
    if (problems.length) return;
    state.write({
      ...Object.fromEntries(fields.map((name) => [name, form[name].value === form[name].defaultValue ? "" : form[name].value])),
      new: options.newOnly ? "1" : "",
    });
    byId("status").textContent = "";
    for (const { model, fill } of columns) {
      const prefix = model.alphabet.encode(model.isText ? options.text : options.text.trimStart()).ids;
      const steps = model.isText ? texts(model, { ...options, prefix }) : names(model, { ...options, prefix });
      let last, start = true, began = performance.now();
      for (const each of steps) {
        last = each;
        if (start ? !model.isText && !last.found.length : performance.now() - began < SLICE) continue;
        fill(last, options, { start, done: false });
        start = false;
        await new Promise((resume) => setTimeout(resume));
        if (mine !== run) return;
        began = performance.now();
      }
      fill(last, options, { start, done: true });
    }
    byId("status").textContent = columns.map(({ told }) => told()).join(" ");
  }

  form.addEventListener("input", make);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    form.seed.value = String((BigInt(/^\d{1,18}$/.test(form.seed.value) ? form.seed.value : 0) + 1n) % 10n ** 18n);
    make();
  });
  const all = () => columns.map(({ text }) => text()).join("\n");
  byId("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(all());
      byId("status").textContent = "Copied.";
    } catch {
      byId("status").textContent = "The browser does not allow copying here: use Download.";
    }
  });
  byId("download").addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([`${all()}\n`], { type: "text/plain" }));
    element("a", { href: url, download: models[0].isText ? "text.txt" : "names.txt" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  });
  return make();
}

/** The text so far, after each character. */
export function* texts(model, options) {
  const begun = options.prefix.length ? options.prefix : model.alphabet.begin;
  let text = model.alphabet.decode(options.prefix), length = 0;
  for (const id of continuation(model.network, begun, options)) {
    text += model.alphabet.at(id);
    yield { text };
    if (++length === options.count) return;
  }
}

function column(model, place) {
  const list = model.isText ? element("pre", { tabIndex: 0, attributes: { "aria-label": `Text of ${model.title}` } }) : element("ol", { className: "names" });
  const note = element("p", { className: "note" });
  const command = element("code");
  const card = element("section", { className: `card series-${place}` }, element("h3", {}, model.title), note, list, element("p", { className: "note" }, "The same in a terminal: ", command));
  let current = { found: [] };
  let shown = 0; // of these names
  return {
    card,
    model,
    text: () => (model.isText ? current.text : current.found.map(({ text }) => text).join("\n")),
    told: () => (model.isText ? `${model.title}: done.` : `${model.title}: ${counted(current.found.length, "name")}.`),
    /** Shows what was found so far; `start` begins another list. */
    fill(last, options, { start, done }) {
      current = last;
      if (start) shown = 0;
      command.textContent = commandFor(model, options);
      if (model.isText) {
        list.textContent = last.text;
        note.textContent = done ? "" : "…";
        return;
      }
      if (!shown) list.replaceChildren();
      list.append(
        ...last.found.slice(shown).map(({ text, novelty, logProb }) =>
          element(
            "li",
            { className: novelty },
            element("span", { className: "name", attributes: { dir: "auto" } }, text),
            novelty ? element("span", { className: "novelty", title: LABELS[novelty] }, novelty) : "",
            element("span", { className: "number", title: "natural logarithm of the probability of the whole name" }, logProb.toFixed(2)),
          ),
        ),
      );
      if (last.found.length) performance.mark("first name");
      shown = last.found.length;
      const short = done && last.found.length < options.count ? " No more were found." : "";
      const origin = ["new", "train", "validation", "test"].map((part) => [part, last.found.filter(({ novelty }) => novelty === part).length]);
      const unlabelled = options.newOnly && model.list === null ? " The page does not have its data, so known names are not left out." : "";
      const labels = model.list !== null ? `: ${origin.filter(([, count]) => count).map(([part, count]) => `${count} ${LABELS[part]}`).join(", ")}` : "";
      note.textContent = `${counted(last.found.length, "name")} from ${counted(last.drawn, "draw")}${labels}.${short}${unlabelled}`;
    },
  };
}

function commandFor(model, { text, temperature, topK, topP, seed, count, newOnly }) {
  const quoted = (word) => (/^[\w.,/-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
  const options = [
    [`--prefix=${quoted(text)}`, text],
    [`--temperature ${temperature}`, temperature !== 1],
    [`--top-k ${topK}`, topK !== null],
    [`--top-p ${topP}`, topP !== null],
    [`--${model.isText ? "length" : "count"} ${count}`, true],
    ["--new-only", newOnly && model.list !== null],
    [`--seed ${seed}`, true],
  ];
  return ["flashmore generate", quoted(model.run), ...options.filter(([, given]) => given).map(([option]) => option)].join(" ");
}
