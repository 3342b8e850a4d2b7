/** It checks itself: the page's numbers against those that PyTorch wrote into it. */

import { logitsOf } from "./models.js";
import { continuation } from "./sample.js";
import { names } from "./names.js";

/** The largest difference of logits, and how many of the reference names came out the same. */
export function check(models, references) {
  const found = { difference: 0, same: 0, names: 0 };
  for (const { model: place, ids, logits, drawn, seed } of references) {
    const model = models[place];
    const V = model.network.size;
    logitsOf(model.network, ids.slice(0, logits.length / V)).forEach((row, position) =>
      row.forEach((value, id) => (found.difference = Math.max(found.difference, Math.abs(value - logits[position * V + id])))),
    );
    const again = drawnAgain(model, drawn, seed);
    found.names += drawn.length;
    found.same += drawn.filter((text, n) => text === again[n]).length;
  }
  return found;
}

function drawnAgain(model, drawn, seed) {
  if (model.isText) {
    const ids = continuation(model.network, model.alphabet.begin, { seed });
    return Array.from(drawn, () => model.alphabet.at(ids.next().value));
  }
  let last;
  for (last of names(model, { seed, count: drawn.length, prefix: [] }));
  return last.found.map(({ text }) => text);
}
