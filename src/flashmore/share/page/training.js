/** See training: loss curves, and names drawn at checkpoints. */

import { byId, element, svg, table } from "./dom.js";

const WIDTH = 640, HEIGHT = 260, LEFT = 48, RIGHT = 32, BOTTOM = 32;

export function showTraining(models) {
  const trained = models.map((model, place) => ({ ...model, place })).filter(({ metrics }) => metrics.length);
  byId("curves").hidden = !trained.length;
  if (trained.length) byId("curves").replaceChildren(curves(trained), legend(trained));
  byId("losses").replaceChildren(
    table(
      "Losses in nats per character",
      ["Model", "Parameters", "Steps", "Validation loss", "Test loss"],
      models.map(({ title, parameters, steps, val_loss, test_loss }) => [title, parameters.toLocaleString("en"), steps.toLocaleString("en"), loss(val_loss), loss(test_loss)]),
    ),
  );
  byId("samples").replaceChildren(...models.filter(({ samples }) => samples.length).map(replay));
}

const loss = (value) => (value === null ? "–" : value.toFixed(4));

function curves(models) {
  const lines = models.flatMap(({ place, ...model }) => [
    { place, kind: "training", points: model.metrics.map(([step, value]) => [step, value]) },
    { place, kind: "validation", points: model.metrics.filter(([, , value]) => value !== null).map(([step, , value]) => [step, value]) },
  ]);
  const all = lines.flatMap(({ points }) => points);
  const most = Math.max(...all.map(([step]) => step));
  const values = all.map(([, value]) => value).sort((a, b) => a - b);
  const low = Math.floor(values[0] * 10) / 10;
  const high = Math.ceil(values[Math.floor((values.length - 1) * 0.99)] * 10) / 10 + Math.max(0.1, low / 100); // the first steps would flatten the rest
  const x = (step) => LEFT + ((WIDTH - LEFT - RIGHT) * step) / most;
  const y = (value) => 8 + ((HEIGHT - BOTTOM - 8) * (high - Math.min(value, high))) / (high - low);
  const made = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "plot", "aria-label": `Loss against step, from ${low.toFixed(1)} to ${high.toFixed(1)} nats per character; the table below has the final values` });
  const marks = ticks(low, high);
  const digits = Math.max(0, Math.ceil(-Math.log10(marks[1] - marks[0]) - 1e-9)); // enough to tell them apart
  for (const value of marks) {
    made.append(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "rule" }), svg("text", { x: LEFT - 8, y: y(value) + 4, class: "end" }, value.toFixed(digits)));
  }
  for (const step of ticks(0, most)) made.append(svg("text", { x: x(step), y: HEIGHT - 10 }, step.toLocaleString("en")));
  for (const { place, kind, points } of lines) {
    if (points.length === 1) made.append(svg("circle", { cx: x(points[0][0]), cy: y(points[0][1]), r: kind === "training" ? 2 : 4, class: `dot series-${place}` }));
    else made.append(svg("polyline", { points: points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" "), class: `line series-${place} ${kind}` }));
  }
  return made;
}

function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  return Array.from({ length: Math.floor(high / step) - Math.ceil(low / step) + 1 }, (_, place) => (Math.ceil(low / step) + place) * step);
}

const legend = (models) =>
  element("p", { className: "note" }, models.flatMap(({ title, place }) => [element("span", { className: `key series-${place}` }), ` ${title} `]), "– thin: training batches, thick: validation. Nats per character, against the step.");

function replay(model) {
  const shown = element("p", { className: "replayed", attributes: { "aria-live": "polite" } });
  const label = element("span");
  const last = model.samples.length - 1;
  const slider = element("input", { type: "range", min: 0, max: last, value: last, attributes: { "aria-label": `Step of ${model.title}` } });
  const show = () => {
    const [step, texts] = model.samples[slider.value];
    label.textContent = `${model.title} after ${step.toLocaleString("en")} steps`;
    shown.replaceChildren(...texts.flatMap((text, n) => [n ? (model.isText ? "\n" : ", ") : "", element("bdi", {}, text)]));
  };
  slider.addEventListener("input", show);
  show();
  return element("div", { className: "card" }, element("label", {}, label, slider), shown);
}
