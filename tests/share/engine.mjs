/** Runs the page's own modules on a page's payload: `node engine.mjs MODULES PAGE < questions.json`. */

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [, , folder, path] = process.argv;
const load = (name) => import(pathToFileURL(`${folder}/${name}.js`));
const { build, logitsOf, erf } = await load("models");
const { attentionOf, fused } = await load("attention");
const { filtered, logSoftmax, pick, continuation } = await load("sample");
const { names, noveltyIn, texts } = await load("names");
const { Random } = await load("random");
const { Alphabet } = await load("text");
const { unpack } = await load("payload");

const text = path === "-" ? null : readFileSync(path, "utf-8");
const page = text && (await unpack(/id="payload">([^<]*)</.exec(text)[1]));
const models = (page?.models ?? []).map((model) => ({
  ...model,
  isText: model.kind === "text",
  network: build(model.config, model.tensors),
  alphabet: new Alphabet(model.characters, model.kind === "text"),
  novelty: noveltyIn(page.lists[model.list]),
}));

const ANSWERS = {
  page: () => ({ ...page, models: page.models.map(({ tensors, ...rest }) => rest), references: [] }),
  logits: ({ model, ids }) => logitsOf(models[model].network, ids).map((row) => [...row]),
  attention: ({ model, ids }) =>
    attentionOf(models[model].network, ids).map((layer) => layer.map(({ weights }) => weights.map((row) => [...row]))),
  fused: ({ q, k, v, tile }) => [...fused(Float64Array.from(q), k.map((row) => Float64Array.from(row)), v.map((row) => Float64Array.from(row)), tile).output],
  names: ({ model, prefix, ...options }) => {
    let last;
    for (last of names(models[model], { ...options, prefix: models[model].alphabet.encode(prefix).ids }));
    return last;
  },
  text: ({ model, ids, count, ...options }) => {
    const drawn = continuation(models[model].network, ids, options);
    return Array.from({ length: count }, () => models[model].alphabet.at(drawn.next().value)).join("");
  },
  lookups: ({ model, count }) => {
    let lookups = 0;
    const { alphabet, ...rest } = models[model];
    const counted = Object.create(alphabet, { at: { value: (id) => (lookups++, alphabet.at(id)) } });
    for (const _ of texts({ ...rest, alphabet: counted }, { prefix: [], count, seed: "1" }));
    return lookups;
  },
  random: ({ seed, count }) => {
    const random = new Random(BigInt(seed));
    return Array.from({ length: count }, () => random.next());
  },
  filtered: ({ logits, ...options }) => [...filtered(logSoftmax(Float64Array.from(logits)), options)],
  pick: ({ probabilities, number }) => pick(Float64Array.from(probabilities), number),
  erf: ({ x }) => x.map(erf),
  seconds: ({ model, count }) => {
    const began = performance.now();
    let last;
    for (last of names(models[model], { seed: "1", count, prefix: [] }));
    return (performance.now() - began) / 1000;
  },
};

const questions = JSON.parse(readFileSync(0, "utf-8"));
process.stdout.write(JSON.stringify(questions.map(({ ask, ...rest }) => ANSWERS[ask](rest))));
