/** Sampling as in flashmore's generation/draw.py, number by number. */

import { Decoder } from "./models.js";
import { Random } from "./random.js";

export const EOS = 0;
/** Most draws computed together, and most numbers of their history. */
const BATCH = 256, HISTORY = 2 ** 22;

/** Natural logarithms of the probabilities: log_softmax over logits[start, start + size). */
export function logSoftmax(logits, start = 0, size = logits.length) {
  const row = logits.slice(start, start + size);
  const largest = row.reduce((most, value) => Math.max(most, value), -Infinity);
  let sum = 0;
  for (const value of row) sum += Math.exp(value - largest);
  const log = largest + Math.log(sum);
  return row.map((value) => value - log);
}

/** Probabilities after temperature, top-k (null: off) and top-p (null: off) of log-probabilities (V). */
export function filtered(scores, { temperature = 1, topK = null, topP = null }) {
  if (temperature === 1 && topK === null && topP === null) return scores.map(Math.exp);
  const largest = scores.reduce((most, value) => Math.max(most, value), -Infinity);
  const kept = scores.map((value) => (value - largest) / temperature);
  if (topK !== null && topK < kept.length) {
    const smallest = kept.slice().sort()[kept.length - topK];
    kept.forEach((value, id) => value < smallest && (kept[id] = -Infinity));
  }
  if (topP !== null && topP < 1) {
    const order = Array.from(kept.keys()).sort((a, b) => kept[b] - kept[a] || a - b);
    const all = softmax(kept);
    let sum = 0;
    for (const id of order) {
      if (sum >= topP) kept[id] = -Infinity;
      sum += all[id];
    }
  }
  return softmax(kept);
}

const softmax = (values) => logSoftmax(values).map(Math.exp);

/** Inverse transform sampling: the id whose part of [0, 1) has the number in it. */
export function pick(probabilities, number) {
  let total = 0;
  for (const probability of probabilities) total += probability;
  const wanted = number * total;
  let sum = 0, last = 0;
  for (let id = 0; id < probabilities.length; id++) {
    sum += probabilities[id];
    if (probabilities[id] > 0) last = id;
    if (sum > wanted) return id;
  }
  return last;
}

/**
 * Draws without end, in order: {ids, ended, logProb}, `ids` with the prefix and without EOS.
 *
 * Each draw has its own random numbers, one for each position after the prefix, and draws that are equal so
 * far are computed together; neither depends on the sizes of the batches.
 */
export function* draws(model, prefix, options) {
  const random = new Random(BigInt(options.seed));
  const start = new Decoder(model);
  let logits = start.extend([EOS]);
  const known = [];
  for (const id of prefix) {
    known.push(logSoftmax(logits)[id]);
    logits = start.extend([id]);
  }
  const beginning = known.reduce((sum, value) => sum + value, 0);
  const most = Math.max(1, Math.min(BATCH, Math.floor(HISTORY / (model.context * (model.width + 1)))));
  // The first draw alone, so that it is there at once; then more and more together, which takes less time each.
  for (let batch = 1; ; batch = Math.min(most, 4 * batch)) {
    const numbers = Array.from({ length: batch }, () =>
      Float64Array.from({ length: model.context - prefix.length }, () => random.next()),
    );
    yield* together(model, start, logits, prefix, numbers, beginning, options);
  }
}

function together(model, start, first, prefix, numbers, beginning, options) {
  const found = numbers.map(() => ({ ids: [...prefix], ended: false, logProb: beginning }));
  const decoder = start.copy();
  let logits = first;
  let going = found.map((draw, n) => ({ draw, numbers: numbers[n], row: 0 }));
  for (let position = 0; going.length; position++) {
    const scores = Array.from({ length: logits.length / model.size }, (_, row) =>
      logSoftmax(logits, row * model.size, model.size),
    );
    const probabilities = scores.map((row) => filtered(row, options));
    const next = new Map(); // from parent and id to the row of their sequence
    const parents = [], ids = [];
    going = going.filter((one) => {
      const id = pick(probabilities[one.row], one.numbers[position]);
      one.draw.logProb += scores[one.row][id];
      one.draw.ended = id === EOS;
      if (one.draw.ended) return false;
      one.draw.ids.push(id);
      if (position + 1 === one.numbers.length) return false;
      const key = one.row * model.size + id;
      if (!next.has(key)) {
        next.set(key, ids.length);
        parents.push(one.row);
        ids.push(id);
      }
      one.row = next.get(key);
      return true;
    });
    if (going.length) logits = decoder.extend(ids, parents);
  }
  return found[Symbol.iterator]();
}

/**
 * Ids that continue a text, one by one without end, as generation/text.py does by default: once the context
 * is full, the window moves by the model's stride.
 * @param {number[]} ids the text so far, at least one id
 */
export function* continuation(model, ids, options) {
  const random = new Random(BigInt(options.seed));
  const window = ids.slice(-model.context);
  let decoder = new Decoder(model);
  let logits;
  for (const id of window) logits = decoder.extend([id]);
  for (;;) {
    const id = pick(filtered(logSoftmax(logits), options), random.next());
    yield id;
    window.push(id);
    if (window.length <= model.context) {
      logits = decoder.extend([id]);
    } else {
      window.splice(0, model.stride);
      decoder = new Decoder(model);
      for (const each of window) logits = decoder.extend([each]);
    }
  }
}
