/** See attention: what each head of a Transformer reads, and how a fused kernel computes it. */

import { byId, element, percent, svg, table, visible } from "./dom.js";
import { Decoder } from "./models.js";
import { MOST } from "./next.js";
import { EOS } from "./sample.js";

/** Keys of a tile in the example of the fused kernel. */
const TILE = 4;
/** Queries and keys of a tile in real kernels. */
const REAL_TILE = 64;

/**
 * The attention of every layer and head: [layer][head] of {q, weights}, from the position `first` on, and {k, v}
 * of all positions.
 */
export function attentionOf(model, ids, first = 0) {
  const decoder = new Decoder(model);
  const traces = ids.map((id, position) => {
    const trace = { heads: [], whole: position === ids.length - 1 };
    decoder.extend([id], undefined, position < first ? undefined : trace);
    return trace.heads;
  });
  const { n_layer: L, n_head: H } = model.config;
  return Array.from({ length: L }, (_, layer) =>
    Array.from({ length: H }, (_, head) => {
      const rows = traces.slice(first).map((heads) => heads[layer * H + head]);
      const { k, v } = rows.at(-1);
      return { q: rows.map(({ q }) => q), k, v, weights: rows.map(({ weights }) => weights) };
    }),
  );
}

/**
 * One query as a fused kernel computes it: tile by tile, with a running maximum and sum, and without keeping
 * the weights (Milakov and Gimelshein 2018; Dao et al. 2022, "FlashAttention").
 * @returns {{steps: {keys: number[], largest: number, sum: number}[], output: Float64Array}}
 */
export function fused(q, keys, values, tile = TILE) {
  const scale = 1 / Math.sqrt(q.length);
  const output = new Float64Array(q.length);
  const steps = [];
  let largest = -Infinity, sum = 0;
  for (let first = 0; first < keys.length; first += tile) {
    const part = keys.slice(first, first + tile);
    const scores = part.map((k) => scale * k.reduce((total, value, d) => total + value * q[d], 0));
    const most = Math.max(largest, ...scores);
    const correction = Math.exp(largest - most);
    sum *= correction;
    for (let d = 0; d < output.length; d++) output[d] *= correction;
    scores.forEach((score, n) => {
      const weight = Math.exp(score - most);
      sum += weight;
      for (let d = 0; d < output.length; d++) output[d] += weight * values[first + n][d];
    });
    largest = most;
    steps.push({ keys: part.map((_, n) => first + n), largest, sum });
  }
  return { steps, output: output.map((value) => value / sum) };
}

/** The view: `show(text)` draws it for another name, `select` for another head or query. */
export class AttentionView {
  constructor(models, selected, changed) {
    this.models = models;
    this.changed = changed;
    this.layer = selected.layer;
    this.head = selected.head;
    this.row = selected.row;
    this.model = models[selected.model] ?? models[0];
    const choice = byId("attending");
    choice.append(...models.map((model, place) => element("option", { value: place, selected: model === this.model }, model.title)));
    choice.closest("label").hidden = models.length < 2;
    choice.addEventListener("change", () => {
      this.model = models[choice.value];
      this.show(this.text);
      this.changed({ model: choice.value });
    });
    byId("matrix").addEventListener("keydown", (event) => {
      const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!step) return;
      event.preventDefault(); // the page does not scroll meanwhile
      this.pick(Math.max(0, Math.min(this.row + step, this.labels.length - 1)));
    });
    const length = byId("length");
    length.addEventListener("input", () => this.tiles(2 ** length.value));
    this.tiles(2 ** length.value);
  }

  show(text) {
    this.text = text;
    const { alphabet, isText, network } = this.model;
    const { ids } = alphabet.encode(text);
    const sequence = isText ? ids : [EOS, ...ids];
    const first = Math.max(0, sequence.length - MOST);
    this.heads = attentionOf(network, sequence, first);
    this.first = first;
    this.labels = sequence.slice(first).map((id, place) => (!isText && first + place === 0 ? "▸" : visible(alphabet.at(id))));
    this.layer = Math.min(this.layer, this.heads.length - 1);
    this.head = Math.min(this.head, this.heads[0].length - 1);
    byId("heads").replaceChildren(...this.heads.map((layer, l) => element("div", { className: "layer" }, element("span", { className: "note" }, `Layer ${l + 1}`), layer.map((_, h) => this.thumbnail(l, h)))));
    this.select({}, false);
  }

  /** What is drawn on canvases, in the colours of now. */
  redraw() {
    this.show(this.text);
    this.tiles(2 ** byId("length").value);
  }

  /** Selects a layer, head or query row; those not given stay. A user's choice is kept in the address. */
  select({ layer = this.layer, head = this.head, row = this.row }, chosen = true) {
    Object.assign(this, { layer, head, row: Math.max(0, Math.min(row, this.labels.length - 1)) });
    for (const button of byId("heads").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.value === `${layer},${head}`));
    }
    const { n_layer: L, n_head: H } = this.model.config;
    byId("head-title").textContent = `Layer ${layer + 1} of ${L}, head ${head + 1} of ${H}`;
    byId("matrix").replaceChildren(this.matrix());
    this.showRow();
    if (chosen) this.changed({ layer, head, row: this.row, model: this.models.indexOf(this.model) });
  }

  thumbnail(layer, head) {
    const { weights } = this.heads[layer][head];
    const first = this.first;
    const T = weights.length, cell = 6;
    const canvas = element("canvas", { width: T * cell, height: T * cell, attributes: { "aria-hidden": "true" } });
    const context = canvas.getContext("2d");
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--weight");
    weights.forEach((row, i) =>
      row.slice(first).forEach((weight, j) => {
        context.globalAlpha = weight;
        context.fillRect(j * cell, i * cell, cell - 1, cell - 1);
      }),
    );
    return element(
      "button",
      { type: "button", value: `${layer},${head}`, onclick: () => this.select({ layer, head }), attributes: { "aria-label": `Layer ${layer + 1}, head ${head + 1}`, "aria-pressed": "false" } },
      canvas,
    );
  }

  /** The weights of a head as a table: a row per query; arrow keys choose one. */
  matrix() {
    const { weights } = this.heads[this.layer][this.head];
    const first = this.first;
    const made = element(
      "table",
      { className: "matrix" },
      element("caption", { className: "hidden" }, "Attention weights: a row for each query, a column for each key"),
      element("thead", {}, element("tr", {}, element("td"), this.labels.map((label) => element("th", { scope: "col" }, label)))),
      element(
        "tbody",
        {},
        this.labels.map((label, i) =>
          element(
            "tr",
            { className: i === this.row ? "selected" : "", onmouseenter: () => this.pick(i), onclick: () => this.pick(i) },
            element("th", { scope: "row" }, label),
            this.labels.map((_, j) =>
              j > i
                ? element("td", { className: "never" })
                : element("td", { title: `${label} attends to ${this.labels[j]}: ${percent(weights[i][first + j])}`, style: { "--share": weights[i][first + j] } }, element("span", { className: "hidden" }, percent(weights[i][first + j]))),
            ),
          ),
        ),
      ),
    );
    return made;
  }

  pick(row) {
    if (row === this.row) return;
    byId("matrix").querySelectorAll("tbody tr").forEach((each, place) => each.classList.toggle("selected", place === row));
    this.row = row;
    this.showRow();
    this.changed({ row });
  }

  showRow() {
    const { q, k, v, weights } = this.heads[this.layer][this.head];
    const first = this.first;
    const query = q[this.row], row = weights[this.row];
    const label = this.labels[this.row];
    byId("row-title").textContent = `What “${label}” attends to, at position ${first + this.row}`;
    byId("arcs").replaceChildren(this.arcs(row.slice(first)));
    const D = query.length, scale = 1 / Math.sqrt(D);
    const shown = this.labels.map((key, j) => {
      const at = first + j;
      if (j > this.row) return [key, "not computed", "−∞", "0 %"];
      const score = k[at].reduce((sum, value, d) => sum + value * query[d], 0);
      return [key, score.toFixed(3), (score * scale).toFixed(3), percent(row[at])];
    });
    byId("steps").replaceChildren(table(`D = ${D}`, ["Key", "1. Score q·k", "2. Scaled by 1/√D, masked", "3. Softmax"], shown));
    const mixed = new Float64Array(D);
    row.forEach((weight, t) => v[t].forEach((value, d) => (mixed[d] += weight * value)));
    const { steps, output } = fused(query, k.slice(0, row.length), v.slice(0, row.length));
    const numbers = (values) => Array.from(values.slice(0, 4), (value) => value.toFixed(4)).join(", ") + (D > 4 ? ", …" : "");
    const difference = output.reduce((most, value, d) => Math.max(most, Math.abs(value - mixed[d])), 0);
    byId("mix").textContent = `4. Mix: the weighted sum of the values is (${numbers(mixed)}).`;
    byId("fused").replaceChildren(
      table(
        `Tiles of ${TILE} keys`,
        ["Keys", "Largest score so far", "Sum of exponentials"],
        steps.map(({ keys, largest, sum }) => [keys.length > 1 ? `${keys[0]} to ${keys.at(-1)}` : `${keys[0]}`, largest.toFixed(3), sum.toFixed(3)]),
      ),
      element("p", {}, `Result: (${numbers(output)}). Largest difference from the four steps: ${difference.toExponential(1)}.`),
    );
  }

  arcs(row) {
    const count = this.labels.length, height = 120;
    const gap = Math.max(28, 10 * Math.max(...this.labels.map((label) => label.length)));
    const made = svg("svg", { viewBox: `0 0 ${count * gap} ${height}`, width: count * gap, height, role: "img", "aria-label": `Lines from the query to each key: ${Array.from(row, (weight, j) => `${this.labels[j]} ${percent(weight)}`).join(", ")}` });
    const x = (place) => (place + 0.5) * gap;
    row.forEach((weight, j) => made.append(svg("line", { x1: x(this.row), y1: 24, x2: x(j), y2: height - 24, class: "arc", "stroke-width": (1 + 7 * weight).toFixed(2), "stroke-opacity": Math.max(0.05, weight).toFixed(3) })));
    this.labels.forEach((label, j) => {
      made.append(svg("text", { x: x(j), y: height - 6, class: j > this.row ? "faint" : "" }, label));
      if (j === this.row) made.append(svg("text", { x: x(j), y: 16 }, label));
    });
    return made;
  }

  /** Which tiles a fused causal kernel computes at length T. */
  tiles(T) {
    const tile = Math.min(REAL_TILE, T), count = T / tile;
    const computed = (count * (count + 1)) / 2, all = count * count;
    const canvas = byId("tiles"), size = 256;
    const context = canvas.getContext("2d");
    const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
    context.clearRect(0, 0, size, size);
    for (let i = 0; i < count; i++) {
      for (let j = 0; j < count; j++) {
        context.fillStyle = color(j < i ? "--weight" : j === i ? "--partial" : "--raised");
        const step = size / count, border = count > 32 ? 0 : 1;
        context.fillRect(j * step, i * step, step - border, step - border);
      }
    }
    const kib = (numbers) => ((4 * numbers) / 1024).toLocaleString("en", { maximumFractionDigits: 1 });
    byId("length-shown").textContent = `T = ${T.toLocaleString("en")}`;
    byId("tiles-told").textContent =
      `${count} × ${count} tiles of ${tile} × ${tile}: ${computed.toLocaleString("en")} of ${all.toLocaleString("en")} are computed, ` +
      `${(all - computed).toLocaleString("en")} never are (${percent(1 - computed / all)}). ` +
      `By hand, the weights of one head take ${kib(T * T)} KiB in float32; the kernel keeps one tile of ${kib(tile * tile)} KiB at a time.`;
  }
}
