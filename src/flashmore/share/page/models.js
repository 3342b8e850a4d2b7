/**
 * The models, one position at a time. Shape letters: R sequences, T positions, C channels, V vocabulary.
 *
 * A model leaves `width` numbers at each position of each sequence, its history, from which the next
 * positions are computed: keys and values of a Transformer, the state of an RNN. Activations and sums are
 * float64, so logits differ from PyTorch's float32 only by PyTorch's rounding.
 */

/**
 * y (R, N) = x (R, M) wᵀ + b, with w (N, M) and b (N) or null; y is returned.
 *
 * Four sequences and two outputs at a time: each number that is loaded is used several times.
 */
export function linear(x, rows, weight, bias, y) {
  const N = y.length / rows;
  const M = weight.length / N;
  const tiled = N > 1 ? rows - (rows % 4) : 0;
  for (let r = 0; r < tiled; r += 4) {
    const a = r * M, b = a + M, c = b + M, d = c + M;
    for (let n = 0; n < N; n += 2) {
      const first = Math.min(n, N - 2); // an odd last output is computed with the one before it
      let s0 = 0, s1 = 0, t0 = 0, t1 = 0, u0 = 0, u1 = 0, v0 = 0, v1 = 0;
      for (let m = 0, w = first * M; m < M; m++, w++) {
        const p = weight[w], q = weight[w + M];
        const s = x[a + m], t = x[b + m], u = x[c + m], v = x[d + m];
        s0 += s * p;
        s1 += s * q;
        t0 += t * p;
        t1 += t * q;
        u0 += u * p;
        u1 += u * q;
        v0 += v * p;
        v1 += v * q;
      }
      const e = bias ? bias[first] : 0, f = bias ? bias[first + 1] : 0;
      let to = r * N + first;
      y[to] = s0 + e;
      y[to + 1] = s1 + f;
      to += N;
      y[to] = t0 + e;
      y[to + 1] = t1 + f;
      to += N;
      y[to] = u0 + e;
      y[to + 1] = u1 + f;
      to += N;
      y[to] = v0 + e;
      y[to + 1] = v1 + f;
    }
  }
  for (let r = tiled; r < rows; r++) {
    for (let n = 0; n < N; n++) {
      let sum = bias ? bias[n] : 0;
      for (let m = 0, w = n * M, a = r * M; m < M; m++, w++, a++) sum += x[a] * weight[w];
      y[r * N + n] = sum;
    }
  }
  return y;
}

const floats = (length) => new Float64Array(length);

function layerNorm(x, rows, weight, bias) {
  const C = weight.length;
  const y = floats(x.length);
  for (let r = 0; r < rows; r++) {
    let mean = 0, variance = 0;
    for (let c = 0; c < C; c++) mean += x[r * C + c];
    mean /= C;
    for (let c = 0; c < C; c++) variance += (x[r * C + c] - mean) ** 2;
    const scale = 1 / Math.sqrt(variance / C + 1e-5);
    for (let c = 0; c < C; c++) {
      y[r * C + c] = (x[r * C + c] - mean) * scale * weight[c] + (bias ? bias[c] : 0);
    }
  }
  return y;
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

/** The error function, by its series of positive terms: Abramowitz and Stegun 1964, 7.1.6. */
export function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

const ACTIVATIONS = {
  relu_squared: (x) => (x > 0 ? x * x : 0),
  gelu: (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
};

/** The rows of a table (…, C) at ids: (R, C). */
function embedding(table, ids, C) {
  const x = floats(ids.length * C);
  ids.forEach((id, r) => x.set(table.subarray(id * C, (id + 1) * C), r * C));
  return x;
}

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
  return x;
}

/*
 * Each model maps its config and tensors to {width, step}. `step(ids, time, at, history, traces)` computes the
 * logits (R, V) for ids (R) at position `time`; `at(r, t)` is the place in `history` of position t of sequence
 * r. If given, `trace.heads` receives {q, weights} of each head, with `trace.whole` also {k, v}; the
 * Transformer's only.
 */
const MODELS = {
  bigram: ({ vocab_size: V }, tensors) => ({
    width: 0,
    step: (ids) => embedding(tensors.logits, ids, V),
  }),

  mlp({ vocab_size: V, block_size: N, n_embd: C }, tensors) {
    return {
      width: 1,
      step(ids, time, at, history) {
        const windows = [];
        ids.forEach((id, r) => {
          history[at(r, time)] = id;
          for (let t = time - N + 1; t <= time; t++) windows.push(t < 0 ? V : history[at(r, t)]);
        });
        const x = embedding(tensors["wte.weight"], windows, C);
        const hidden = linear(x, ids.length, tensors["hidden.weight"], tensors["hidden.bias"], floats(ids.length * C));
        return head(tensors, hidden.map(Math.tanh), ids.length, V);
      },
    };
  },

  bow({ vocab_size: V, n_embd: C }, tensors) {
    return {
      width: C,
      step(ids, time, at, history) {
        const rows = ids.length;
        const x = embedding(tensors["wte.weight"], ids, C);
        for (let r = 0; r < rows; r++) {
          const sums = at(r, time);
          for (let c = 0; c < C; c++) {
            const value = x[r * C + c] + tensors["wpe.weight"][time * C + c];
            history[sums + c] = value + (time ? history[at(r, time - 1) + c] : 0);
            x[r * C + c] = value + history[sums + c] / (time + 1);
          }
        }
        const hidden = linear(x, rows, tensors["c_fc.weight"], tensors["c_fc.bias"], floats(rows * C));
        const out = linear(hidden.map(Math.tanh), rows, tensors["c_proj.weight"], tensors["c_proj.bias"], floats(rows * C));
        return head(tensors, add(x, out), rows, V);
      },
    };
  },

  rnn: (config, tensors) =>
    recurrent(config, tensors, 1, (input, state, out, r, C) => {
      for (let c = r * C; c < (r + 1) * C; c++) out[c] = Math.tanh(input[c] + state[c]);
    }),

  gru: (config, tensors) =>
    recurrent(config, tensors, 3, (input, state, out, r, C, previous) => {
      for (let c = 0; c < C; c++) {
        const at = r * 3 * C + c;
        const reset = sigmoid(input[at] + state[at]);
        const update = sigmoid(input[at + C] + state[at + C]);
        const fresh = Math.tanh(input[at + 2 * C] + (config.reset_after ? reset : 1) * state[at + 2 * C]);
        out[r * C + c] = (1 - update) * fresh + update * previous(r, c);
      }
    }),

  lstm: (config, tensors) =>
    recurrent(config, tensors, 4, (input, state, out, r, C, previous, cell) => {
      for (let c = 0; c < C; c++) {
        const at = r * 4 * C + c;
        const gate = (n) => input[at + n * C] + state[at + n * C];
        const kept = sigmoid(gate(1)) * cell.get(r, c) + sigmoid(gate(0)) * Math.tanh(gate(2));
        cell.set(r, c, kept);
        out[r * C + c] = sigmoid(gate(3)) * Math.tanh(kept);
      }
    }),

  wavenet({ vocab_size: V, n_layer: L, n_embd: C }, tensors) {
    const apply = (name, x, rows) => linear(x, rows, tensors[`${name}.weight`], tensors[`${name}.bias`], floats(rows * C));
    const relu = (x) => Math.max(x, 0);
    return {
      width: L * C,
      step(ids, time, at, history) {
        const rows = ids.length;
        const x = embedding(tensors["wte.weight"], ids, C);
        const skips = floats(rows * C);
        for (let layer = 0; layer < L; layer++) {
          const both = floats(rows * 2 * C);
          const before = time - 2 ** layer;
          for (let r = 0; r < rows; r++) {
            const now = x.subarray(r * C, (r + 1) * C);
            history.set(now, at(r, time) + layer * C);
            if (before >= 0) {
              const past = at(r, before) + layer * C;
              both.set(history.subarray(past, past + C), r * 2 * C);
            }
            both.set(now, (2 * r + 1) * C);
          }
          const name = `convolutions.${layer}.taps`;
          const taps = linear(both, rows, tensors[`${name}.weight`], tensors[`${name}.bias`], floats(rows * 2 * C));
          const gated = floats(rows * C);
          for (let r = 0; r < rows; r++) {
            for (let c = 0; c < C; c++) {
              gated[r * C + c] = Math.tanh(taps[r * 2 * C + c]) * sigmoid(taps[(2 * r + 1) * C + c]);
            }
          }
          add(skips, apply(`skips.${layer}`, gated, rows));
          if (layer < L - 1) add(x, apply(`residuals.${layer}`, gated, rows));
        }
        return head(tensors, apply("hidden", skips.map(relu), rows).map(relu), rows, V);
      },
    };
  },

  transformer({ vocab_size: V, block_size, n_layer: L, n_head: H, n_embd: C, activation }, tensors) {
    const activate = ACTIVATIONS[activation];
    const D = C / H;
    const normed = (name, x, rows) => layerNorm(x, rows, tensors[`${name}.weight`], tensors[`${name}.bias`]);
    const apply = (name, x, rows, N) =>
      linear(x, rows, tensors[`${name}.weight`], tensors[`${name}.bias`], floats(rows * N));
    return {
      width: 2 * L * C,
      stride: Math.max(1, Math.floor(block_size / 2)),
      step(ids, time, at, history, trace) {
        const rows = ids.length;
        const x = embedding(tensors["wte.weight"], ids, C);
        for (let r = 0; r < rows; r++) {
          for (let c = 0; c < C; c++) x[r * C + c] += tensors["wpe.weight"][time * C + c];
        }
        const weights = floats(time + 1);
        for (let layer = 0; layer < L; layer++) {
          const block = `blocks.${layer}`;
          const qkv = apply(`${block}.attention.c_attn`, normed(`${block}.ln_1`, x, rows), rows, 3 * C);
          const mixed = floats(rows * C);
          for (let r = 0; r < rows; r++) {
            const q = r * 3 * C;
            history.set(qkv.subarray(q + C, q + 3 * C), at(r, time) + 2 * layer * C); // keys, then values
            for (let h = 0; h < H; h++) {
              const from = 2 * layer * C + h * D;
              attend(qkv, q + h * D, history, (t) => at(r, t) + from, C, D, weights, mixed, r * C + h * D);
              if (trace) {
                const rows = (offset) =>
                  trace.whole && Array.from(weights, (_, t) => history.slice(at(r, t) + from + offset, at(r, t) + from + offset + D));
                trace.heads.push({ q: qkv.slice(q + h * D, q + h * D + D), k: rows(0), v: rows(C), weights: weights.slice() });
              }
            }
          }
          add(x, apply(`${block}.attention.c_proj`, mixed, rows, C));
          const wide = apply(`${block}.mlp.c_fc`, normed(`${block}.ln_2`, x, rows), rows, 4 * C);
          for (let i = 0; i < wide.length; i++) wide[i] = activate(wide[i]);
          add(x, apply(`${block}.mlp.c_proj`, wide, rows, C));
        }
        return head(tensors, normed("ln_f", x, rows), rows, V);
      },
    };
  },
};

/** One query against the keys and values so far: weights (T) and output (D) are filled in. */
function attend(qkv, q, history, place, C, D, weights, out, to) {
  const T = weights.length;
  const scale = 1 / Math.sqrt(D);
  let largest = -Infinity, sum = 0;
  for (let t = 0; t < T; t++) {
    const k = place(t);
    let score = 0;
    for (let d = 0; d < D; d++) score += qkv[q + d] * history[k + d];
    weights[t] = score * scale;
    largest = Math.max(largest, weights[t]);
  }
  for (let t = 0; t < T; t++) sum += weights[t] = Math.exp(weights[t] - largest);
  for (let t = 0; t < T; t++) {
    const weight = (weights[t] /= sum);
    const v = place(t) + C;
    for (let d = 0; d < D; d++) out[to + d] += weight * history[v + d];
  }
}

/** An output layer: logits (R, V). */
function head(tensors, x, rows, V) {
  const weight = tensors["lm_head.weight"] ?? tensors["wte.weight"]; // tied
  return linear(x, rows, weight, tensors["lm_head.bias"], floats(rows * V));
}

/** An RNN, GRU or LSTM of PyTorch, whose `cell` fills in the next state (R, C) from both linear maps. */
function recurrent({ vocab_size: V, n_embd: C, reset_after: resetAfter }, tensors, gates, cell) {
  const isLstm = "start_cell" in tensors;
  return {
    width: isLstm ? 2 * C : C,
    step(ids, time, at, history) {
      const rows = ids.length;
      const before = floats(rows * C);
      const kept = floats(rows * C);
      for (let r = 0; r < rows; r++) {
        const last = time && at(r, time - 1);
        before.set(time ? history.subarray(last, last + C) : tensors.start, r * C);
        if (isLstm) kept.set(time ? history.subarray(last + C, last + 2 * C) : tensors.start_cell, r * C);
      }
      const part = (name, x) =>
        linear(x, rows, tensors[`core.weight_${name}_l0`], tensors[`core.bias_${name}_l0`], floats(rows * gates * C));
      const again = (x) =>
        linear(x, rows, tensors["core.weight_hh_l0"].subarray(2 * C * C), tensors["core.bias_hh_l0"].subarray(2 * C), floats(rows * C));
      const input = part("ih", embedding(tensors["wte.weight"], ids, C));
      const state = part("hh", before);
      if (!resetAfter) {
        // The reset gate is applied to the state before its matrix, not after it.
        const kept = before.map((value, i) => {
          const at = Math.floor(i / C) * 3 * C + (i % C);
          return value * sigmoid(input[at] + state[at]);
        });
        const fresh = again(kept);
        for (let i = 0; i < fresh.length; i++) state[Math.floor(i / C) * 3 * C + 2 * C + (i % C)] = fresh[i];
      }
      const out = floats(rows * C);
      const memory = { get: (r, c) => kept[r * C + c], set: (r, c, value) => (kept[r * C + c] = value) };
      for (let r = 0; r < rows; r++) {
        cell(input, state, out, r, C, (row, c) => before[row * C + c], memory);
        history.set(out.subarray(r * C, (r + 1) * C), at(r, time));
        if (isLstm) history.set(kept.subarray(r * C, (r + 1) * C), at(r, time) + C);
      }
      return head(tensors, out, rows, V);
    },
  };
}

/** Sequences of equal length, extended by one position at a time. */
export class Decoder {
  /** @param model as `build` gives it; starts with one empty sequence */
  constructor(model) {
    this.model = model;
    this.time = 0;
    this.rows = 1;
    this.room = model.context; // positions in the history of each sequence
    this.history = floats(model.context * model.width);
  }

  /**
   * Extends with ids (R); returns logits (R, V).
   * @param {number[]} ids
   * @param {number[]} [parents] the sequences to extend, (R), which may repeat; by default each once
   */
  extend(ids, parents = ids.map((_, r) => r), trace = undefined) {
    const { width } = this.model;
    if (ids.length !== this.rows || this.time === this.room || parents.some((parent, r) => parent !== r)) {
      const room = this.time + 1;
      const history = floats(ids.length * room * width);
      parents.forEach((parent, r) => {
        const start = parent * this.room * width;
        history.set(this.history.subarray(start, start + this.time * width), r * room * width);
      });
      Object.assign(this, { history, room, rows: ids.length });
    }
    const at = (r, t) => (r * this.room + t) * width;
    return this.model.step(ids, this.time++, at, this.history, trace);
  }

  /** The same sequences, to be extended otherwise. */
  copy() {
    return Object.assign(new Decoder(this.model), this, { history: this.history.slice() });
  }
}

/** A model of a config, as `ModelConfig` has it, and its tensors by PyTorch's names. */
export function build(config, tensors) {
  const made = MODELS[config.model](config, tensors);
  return { stride: 1, ...made, config, context: config.block_size, size: config.vocab_size };
}

/** The logits of a whole sequence, one Float64Array (V) per position. */
export function logitsOf(model, ids) {
  const decoder = new Decoder(model);
  return ids.map((id) => decoder.extend([id]));
}
