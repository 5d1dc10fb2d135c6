/**
 * What a manifest looks like, and how its fields fit together as far as this runtime depends on it.
 * `runtime/schema.py` documents every field. The steps of programs are checked by WebGPU itself, every number of
 * them, when a program is encoded for the first time and before anything is submitted (resources.js).
 */
import { COPY, RECOMPILE, fail } from "./errors.js";
import { sizesOf } from "./sequence.js";

/** @import { Manifest } from "./types.js" */

const VERSION = 3;
const FILE = "manifest.json";
const PORT = { name: "", dtype: "", shape: [0], storage: "", buffer: 0, nbytes: 0 };
const PROGRAMS = { "*": { steps: [], "inputs?": [PORT], "outputs?": [PORT] } };
/** Every item of a list is like the one here, "*" is any name, "?" marks what may be missing, numbers are whole. */
const EXAMPLE = {
  model: { name: "", outputs: [{ name: "" }] },
  "sequence?": {
    buffer: 0,
    tokens: 0,
    words: { "*": 0 },
    capacity: 0,
    vocab_size: 0,
    max_stop_tokens: 0,
    stop_tokens: [0],
    driven_by: "",
    ids: "",
    logits: "",
  },
  buffers: [{ name: "", nbytes: 0, kind: "", "indirect?": true }],
  shards: [{ file: "", nbytes: 0, data_offset: 0, buffer: 0, block_nbytes: 0, blocks: [""] }],
  modules: { "*": "" },
  shaders: [{ file: "", access: "", "entry?": "", "constants?": {} }],
  ranges: [[0]],
  programs: PROGRAMS,
  variants: [
    {
      name: "",
      features: [""],
      limits: { "*": 0 },
      "adapter?": { vendor: "", "device?": "" },
      "software?": true,
      launches: [],
      "programs?": PROGRAMS,
    },
  ],
};

const damaged = (/** @type {string} */ problem) => fail(FILE, problem, RECOMPILE);

/** @param {any} value */
function kindOf(value) {
  if (Array.isArray(value)) return "list";
  if (Number.isSafeInteger(value) && value >= 0) return "whole number";
  return value === null ? "null" : typeof value;
}

/** @param {any} value @param {any} example @param {string} path */
function checkLike(value, example, path) {
  const kind = kindOf(example);
  const where = `breaks the schema: ${path.slice(1, 200)}`;
  if (kindOf(value) !== kind) damaged(`${where} is no ${kind}`);
  if (kind !== "list" && kind !== "object") return;
  const any = kind === "list" ? example[0] : example["*"];
  for (const key of Object.keys(any === undefined ? example : value)) {
    const name = key.replace("?", "");
    if (Object.hasOwn(value, name)) checkLike(value[name], any ?? example[key], `${path}.${name}`);
    else if (name === key) damaged(`${where} lacks ${name}`);
  }
}

/** The manifest in `source`; its format and version are looked at before its fields.
 * @param {string} source @returns {Manifest} */
export function decodeManifest(source) {
  /** @type {any} */
  let document;
  try {
    document = JSON.parse(source);
  } catch {}
  if (document?.format !== "webgpu-compile") {
    fail(FILE, "is cut short, or was not written by webgpu-compile", COPY);
  }
  if (document.version !== VERSION) {
    const problem = `has schema version ${document.version}, and this runtime reads ${VERSION}`;
    fail(FILE, problem, "use the runtime.js that was written with it");
  }
  checkLike(document, EXAMPLE, "");
  for (const variant of document.variants) variant.programs = { ...document.programs, ...variant.programs };
  checkFit(document);
  return document;
}

/** @param {Manifest} manifest */
function checkFit({ sequence, buffers, shards, variants }) {
  const check = (/** @type {unknown} */ good, /** @type {string} */ problem) => {
    if (!good) damaged(`is inconsistent: ${problem}`);
  };
  const filled = new Set(shards.map(({ buffer }) => buffer));
  check(filled.size === buffers.filter(({ kind }) => kind === "weights").length, "shards and weight buffers do not match");
  for (const { file, nbytes, data_offset, buffer, block_nbytes, blocks } of shards) {
    const good = blocks.length === Math.ceil(nbytes / block_nbytes) && nbytes - data_offset === buffers[buffer]?.nbytes;
    check(good, `shard '${file}' and its buffer or blocks differ in size`);
  }
  if (sequence?.driven_by === "host") {
    fail(FILE, "is driven by the host, for comparison in Python only", "compile without --sequence-length host");
  }
  for (const { name, programs } of variants) {
    for (const needed of sequence ? ["decode", "decode_sampled"] : ["run"]) {
      check(Object.hasOwn(programs, needed), `variant '${name}' lacks '${needed}'`);
    }
    check(!sequence || sizesOf(programs, "prefill").length, `variant '${name}' lacks 'prefill_N'`);
  }
  if (!sequence) return;
  const { words, buffer, max_stop_tokens } = sequence;
  const last = Math.max(...Object.values(words), words.stop_tokens + max_stop_tokens - 1);
  check(4 * last < buffers[buffer]?.nbytes, "the sequence buffer is too small for its words");
}
