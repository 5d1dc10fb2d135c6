/**
 * The manifest's shape: the fields that this runtime reads, with their types and ranges.
 * `runtime/schema.py` documents every field; `check.js` looks at how they fit together.
 */
import { RECOMPILE, RuntimeFailure } from "./errors.js";
import { spellOut } from "./programs.js";

/** @import { Check, Manifest } from "./types.js" */

export const VERSION = 2;
const SAFE = 2 ** 53 - 1;

class Mismatch extends Error {
  path = "";
}

/** @type {(what: string, test: (value: any) => boolean) => Check} */
const is = (what, test) => (value) => {
  if (!test(value)) throw new Mismatch(`is not ${what}`);
};
/** Look at a part; the path to it is only put together when something is wrong.
 * @param {Check} check @param {any} value @param {string | number} key */
function part(check, value, key) {
  try {
    check(value);
  } catch (error) {
    if (error instanceof Mismatch) error.path = `.${String(key).slice(0, 80)}${error.path}`;
    throw error;
  }
}
/** @type {(least: number, most?: number) => Check} */
const whole = (least, most = SAFE) =>
  is(`a whole number from ${least} to ${most}`, (v) => Number.isInteger(v) && v >= least && v <= most);
/** @type {(...values: string[]) => Check} */
const one = (...values) => is(`one of ${values.join(", ")}`, (v) => values.includes(v));
/** @type {(pattern: RegExp, what: string) => Check} */
const text = (pattern, what) => is(what, (v) => typeof v === "string" && pattern.test(v));
const flag = is("true or false", (v) => typeof v === "boolean");
const name = is("a name", (v) => typeof v === "string" && v.length >= 1 && v.length <= 1024);
const fileName = text(/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/, "a file name");
const hash = text(/^[0-9a-f]{64}$/, "a SHA-256");
const [count, positive, ordinal, word] = [whole(0), whole(1), whole(0, 65535), whole(0, 2 ** 32 - 1)];
const isList = is("a list", Array.isArray);
const isRecord = is("an object", (v) => typeof v === "object" && v !== null && !Array.isArray(v));

/** @type {(item: Check, n?: number) => Check} */
const list = (item, n) => (value) => {
  isList(value);
  if (n !== undefined && value.length !== n) throw new Mismatch(`is not a list of ${n}`);
  for (let i = 0; i < value.length; i++) part(item, value[i], i);
};
/** @type {(item: Check, key?: Check) => Check} */
const map = (item, key = name) => (value) => {
  isRecord(value);
  for (const k of Object.keys(value)) {
    key(k);
    part(item, value[k], k);
  }
};
/** Fields whose names end in "?" may be missing. Fields that are not named here are left alone.
 * @type {(fields: Record<string, Check>) => Check} */
const record = (fields) => {
  const entries = Object.entries(fields).map(
    ([field, check]) => /** @type {const} */ ([field.replace("?", ""), check, field.endsWith("?")]),
  );
  return (value) => {
    isRecord(value);
    for (const [key, check, optional] of entries) {
      if (Object.hasOwn(value, key)) part(check, value[key], key);
      else if (!optional) throw new Mismatch(`lacks ${key}`);
    }
  };
};
const storage = one("f32", "f16", "i32", "u32", "u8", "i8");
const port = record({
  name,
  dtype: one("float32", "float16", "int64", "int32", "bool", "uint8", "int8"),
  shape: list(count),
  storage,
  buffer: ordinal,
  nbytes: count,
});
const modelPort = record({ name, shape: list((v) => (typeof v === "string" ? name : count)(v)) });
const dispatch = list(count);
const copy = record({ source: count, target: count });
/** @type {Check} */
const step = (value) => (Array.isArray(value) ? dispatch : copy)(value);
const grid = list(whole(1, 65535), 3);
/** @type {Check} */
const launch = (value) => {
  if (value === null) return;
  list(() => {}, 2)(value);
  part(ordinal, value[0], 0);
  part(Array.isArray(value[1]) ? grid : count, value[1], 1);
};
const program = record({ rows: count, steps: list(step), "inputs?": list(port), "outputs?": list(port) });
const MANIFEST = record({
  producer: name,
  model: record({ name, kind: one("decoder", "graph"), inputs: list(modelPort), outputs: list(modelPort) }),
  "sequence?": record({
    buffer: ordinal,
    tokens: ordinal,
    words: map(ordinal),
    capacity: positive,
    vocab_size: positive,
    max_stop_tokens: positive,
    stop_tokens: list(word),
    driven_by: one("gpu", "host"),
    all_logits: flag,
    ids: name,
    logits: name,
  }),
  buffers: list(
    record({
      name,
      nbytes: positive,
      kind: one("weights", "state", "activation", "input", "output"),
      "indirect?": flag,
    }),
  ),
  shards: list(
    record({
      file: fileName,
      nbytes: positive,
      data_offset: positive,
      buffer: ordinal,
      block_nbytes: positive,
      blocks: list(hash),
    }),
  ),
  shaders: list(
    record({
      file: fileName,
      sha256: hash,
      workgroup: list(positive, 3),
      access: text(/^[rw]+$/, "an access"),
      "features?": list(name),
    }),
  ),
  kernels: list(name),
  ranges: list(list(count, 3)),
  programs: map(program),
  variants: list(
    record({
      name,
      features: list(one("shader-f16", "subgroups")),
      limits: map(count),
      launches: list(launch),
      "programs?": map(program),
      "adapter?": record({ vendor: name, "device?": name }),
    }),
  ),
  "files?": map(hash, fileName),
});

/**
 * The manifest in `source`; its format and version are looked at before its fields.
 * @param {string} source
 * @returns {Manifest}
 */
export function decodeManifest(source) {
  const subject = "manifest.json";
  /** @type {any} */
  let document;
  try {
    document = JSON.parse(source);
  } catch (error) {
    const problem = `is damaged or cut short (${String(error).slice(0, 120)})`;
    throw new RuntimeFailure(subject, problem, "copy the whole folder to the server again");
  }
  if (document?.format !== "webgpu-compile") {
    const problem = "was not written by webgpu-compile";
    throw new RuntimeFailure(subject, problem, "give the folder that webgpu-compile wrote");
  }
  if (document.version !== VERSION) {
    const version = String(document.version).slice(0, 20);
    const problem = `has schema version ${version}, and this runtime reads ${VERSION}`;
    throw new RuntimeFailure(subject, problem, "use the runtime.js that was written with it");
  }
  try {
    MANIFEST(document);
    if (!document.variants.length) throw new Mismatch(": there is no variant");
  } catch (error) {
    if (!(error instanceof Mismatch)) throw error;
    throw new RuntimeFailure(subject, `breaks the schema: ${error.path.slice(1)} ${error.message}`, RECOMPILE);
  }
  document.variants = spellOut(document);
  return document;
}
