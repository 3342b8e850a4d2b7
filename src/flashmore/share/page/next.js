/** See the next character: the probabilities at every position of a typed name. */

import { byId, element, percent, visible } from "./dom.js";
import { logitsOf } from "./models.js";
import { EOS, logSoftmax } from "./sample.js";

const SHOWN = 6;
/** Most positions shown; a long text's last ones. */
export const MOST = 32;

/** Shows each model's probabilities after every character of `text`, which all of them know. */
export function showNext(models, text) {
  const results = models.map((model) => {
    const { ids } = model.alphabet.encode(text);
    const sequence = model.isText ? ids : [EOS, ...ids];
    return { model, sequence, shares: logitsOf(model.network, sequence).map((row) => logSoftmax(row).map(Math.exp)) };
  });
  const longest = Math.max(...results.map(({ sequence }) => sequence.length));
  const first = Math.max(0, longest - MOST);
  const characters = [...text];
  const shift = models[0].isText ? 1 : 0;
  byId("next").replaceChildren(
    ...Array.from({ length: longest - first }, (_, place) => {
      const position = first + place;
      const known = characters.slice(0, position + shift);
      const actual = characters[position + shift];
      const after = known.length ? `after “${first ? "…" : ""}${known.slice(-MOST).join("")}”` : "at the start";
      return element(
        "li",
        { className: "card" },
        element("h3", {}, after),
        ...results.map(({ model, shares }, series) => bars(model, series, shares[position], actual, after, models.length > 1)),
      );
    }),
  );
}

function bars(model, place, shares, actual, after, titled) {
  const order = Array.from(shares.keys()).sort((a, b) => shares[b] - shares[a] || a - b).slice(0, SHOWN);
  const id = actual === undefined ? (model.isText ? -1 : EOS) : model.alphabet.ids.get(actual);
  if (id >= 0 && !order.includes(id)) order.push(id);
  return element(
    "table",
    { className: `bars series-${place}` },
    element("caption", { className: titled ? "" : "hidden" }, titled ? model.title : `Probabilities ${after}`),
    element(
      "tbody",
      {},
      order.map((each) =>
        element(
          "tr",
          { className: each === id ? "actual" : "" },
          element("th", { scope: "row" }, visible(model.alphabet.at(each)), each === id ? element("span", { className: "hidden" }, " (typed)") : ""),
          element("td", {}, element("span", { className: "bar", style: { "--share": shares[each] } })),
          element("td", { className: "number" }, percent(shares[each])),
        ),
      ),
    ),
  );
}
