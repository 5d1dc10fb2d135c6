/** How the manifest's fields fit together: every index, range and rule of use, before the GPU sees any. */
import { RECOMPILE, RuntimeFailure } from "./errors.js";
import { DEFAULTS, buffersOf, granted } from "./limits.js";

/** @import { Manifest, Port, Variant } from "./types.js" */

const ALIGNMENT = 256;
/** Bytes of one element on the GPU. @type {Record<string, number>} */
export const STORAGE_NBYTES = { f32: 4, f16: 2, i32: 4, u32: 4, u8: 1, i8: 1 };
const NEEDED_WORDS = [
  ...["past_length", "length", "total_length", "call_length", "n_tokens"],
  ...["limit", "stop", "n_stop_tokens", "stop_tokens"],
];

class Inconsistency extends Error {}

/** @param {unknown} condition @param {string} message */
function require(condition, message) {
  if (!condition) throw new Inconsistency(message);
}

/** @param {number[]} shape */
const product = (shape) => shape.reduce((/** @type {number} */ n, dim) => n * Number(dim), 1);

/** @param {string} what @param {string[]} names */
const unique = (what, names) =>
  require(new Set(names).size === names.length, `two ${what} have the same name`);

/** Refuse a decoded manifest that is not consistent. @param {Manifest} manifest */
export function checkManifest(manifest) {
  try {
    for (const what of /** @type {const} */ (["buffers", "variants"])) {
      unique(what, manifest[what].map(({ name }) => name));
    }
    unique("shards", manifest.shards.map(({ file }) => file.toLowerCase()));
    unique("shaders", manifest.shaders.map(({ file }) => file.toLowerCase()));
    for (const { name, nbytes } of manifest.buffers) {
      require(nbytes % 4 === 0, `the size of buffer '${name}' is not a multiple of 4`);
    }
    checkShards(manifest);
    checkSequence(manifest);
    for (const variant of manifest.variants) checkVariant(manifest, variant);
  } catch (error) {
    if (!(error instanceof Inconsistency)) throw error;
    throw new RuntimeFailure("manifest.json", `is inconsistent: ${error.message}`, RECOMPILE);
  }
}

/** Shards and weight buffers are the same bytes. @param {Manifest} manifest */
function checkShards({ shards, buffers }) {
  const filled = new Set();
  for (const shard of shards) {
    const [name, buffer, block] = [`shard '${shard.file}'`, buffers[shard.buffer], shard.block_nbytes];
    require(buffer?.kind === "weights", `${name} fills no buffer for weights`);
    require(!filled.has(shard.buffer), `two shards fill buffer '${buffer.name}'`);
    filled.add(shard.buffer);
    require(shard.data_offset % ALIGNMENT === 0, `the data of ${name} is not aligned`);
    require(shard.nbytes - shard.data_offset === buffer.nbytes, `${name} and its buffer differ in size`);
    require(block >= 4096 && block <= 2 ** 26 && block % 4 === 0, `${name} has blocks of ${block} bytes`);
    const n = Math.ceil(shard.nbytes / block);
    require(shard.blocks.length === n, `${name} has too many or too few hashes`);
  }
  buffers.forEach(({ kind, name }, i) =>
    require(kind !== "weights" || filled.has(i), `no shard fills buffer '${name}'`),
  );
}

/** @param {Manifest} manifest */
function checkSequence({ model, sequence, buffers }) {
  require((model.kind === "decoder") === Boolean(sequence), "a decoder has a sequence, and nothing else has");
  if (!sequence) return;
  require(model.inputs.some(({ name }) => name === sequence.ids), `the model has no input '${sequence.ids}'`);
  require(model.outputs.some(({ name }) => name === sequence.logits), `the model has no output '${sequence.logits}'`);
  const [words, tokens] = [buffers[sequence.buffer], buffers[sequence.tokens]];
  require(words?.kind === "state" && tokens?.kind === "state", "the sequence's buffers are not state");
  require(words !== tokens, "the sequence's words and tokens share a buffer");
  require(tokens.nbytes >= 4 * (sequence.capacity + 1), "the token buffer is too small");
  /** @type {number[]} */
  const taken = [];
  for (const [name, index] of Object.entries(sequence.words)) {
    const n = name === "stop_tokens" ? sequence.max_stop_tokens : 1;
    require(4 * (index + n) <= words.nbytes, "the sequence buffer is too small for its words");
    for (let i = 0; i < n; i++) taken.push(index + i);
  }
  require(new Set(taken).size === taken.length, "two words of the sequence are the same");
  for (const name of NEEDED_WORDS.slice(0, sequence.driven_by === "gpu" ? undefined : 5)) {
    require(Object.hasOwn(sequence.words, name), `the sequence lacks the word '${name}'`);
  }
  require(sequence.stop_tokens.length <= sequence.max_stop_tokens, "there are too many stop tokens");
  require(Math.max(sequence.capacity, sequence.vocab_size) < 2 ** 31, "the sequence does not fit 32 bits");
}

/** @param {Manifest} manifest @param {Variant} variant */
function checkVariant(manifest, variant) {
  const where = `variant '${variant.name}'`;
  for (const name of Object.keys(variant.limits)) {
    require(Object.hasOwn(DEFAULTS, name), `${where} asks for the unknown limit '${name}'`);
  }
  const limits = granted(variant);
  for (const index of buffersOf(manifest, variant)) {
    const buffer = manifest.buffers[index];
    require(buffer, `${where} uses a buffer that does not exist`);
    const fits = buffer.nbytes <= limits["max-buffer-size"];
    require(fits, `buffer '${buffer.name}' is larger than ${where} asks for`);
  }
  checkPrograms(manifest, variant, where);
  for (const [name, program] of Object.entries(variant.programs)) {
    checkPorts(manifest, [...(program.inputs ?? []), ...(program.outputs ?? [])]);
    require(program.steps.length, `program '${name}' of ${where} has no steps`);
    program.steps.forEach((step, number) => {
      const problem = stepProblem(manifest, step);
      require(!problem, `program '${name}' of ${where}, step ${number}: ${problem}`);
    });
  }
}

/** A decoder has `decode` and some `prefill_N`, a graph has `run`; and they have what callers read.
 * @param {Manifest} manifest @param {Variant} variant @param {string} where */
function checkPrograms({ model, sequence }, { programs }, where) {
  if (!sequence) {
    require(Object.keys(programs).join() === "run", `${where} does not have the one program 'run'`);
    for (const side of /** @type {const} */ (["inputs", "outputs"])) {
      const [has, wanted] = [programs.run[side] ?? [], model[side]].map((ports) =>
        JSON.stringify(ports.map(({ name }) => name).sort()),
      );
      require(has === wanted, `${where}: 'run' has not the model's ports`);
    }
    return;
  }
  const kinds = new Set();
  for (const [name, { rows, outputs = [] }] of Object.entries(programs)) {
    const kind = name.split("_")[0];
    const known = ["prefill", "logits"].includes(kind) && name === `${kind}_${rows}`;
    require(known || ["decode", "decode_sampled"].includes(name), `${where} has the unknown program '${name}'`);
    require(kind === "decode" ? rows === 1 : rows >= 1, `'${name}' has no rows`);
    kinds.add(kind);
    const shape = [1, kind === "logits" ? rows : 1, sequence.vocab_size].join();
    const found = outputs.filter((port) => port.name === sequence.logits).map((port) => port.shape.join());
    require(found.length === 1 && found[0] === shape, `'${name}' does not give logits [${shape}]`);
  }
  require(Object.hasOwn(programs, "decode") && kinds.has("prefill"), `${where} lacks 'decode' or 'prefill_N'`);
  const samples = Object.hasOwn(sequence.words, "sampling");
  require(samples === Object.hasOwn(programs, "decode_sampled"), `${where}: 'decode_sampled' and the words disagree`);
  require(kinds.has("logits") === sequence.all_logits, `${where}: 'logits_N' and all_logits disagree`);
}

/** @param {Manifest} manifest @param {Port[]} ports */
function checkPorts({ buffers }, ports) {
  for (const { name, buffer: index, nbytes, shape, storage } of ports) {
    const size = product(shape) * STORAGE_NBYTES[storage];
    require(size <= nbytes && nbytes <= size + ALIGNMENT, `the shape of port '${name}' does not give its size`);
    const buffer = buffers[index];
    require(buffer && buffer.kind !== "weights", `port '${name}' has no buffer`);
    require(nbytes % 4 === 0 && nbytes <= buffer.nbytes, `port '${name}' does not fit its buffer`);
  }
}

/** Ranges inside their buffers; WebGPU's own rules are checked by encoding every program once at load.
 * @param {Manifest} manifest @param {any} step */
function stepProblem({ buffers, shaders }, step) {
  /** @type {number[][]} */
  let ranges;
  let written;
  if (step.step === "copy") {
    const { source, source_offset, target, target_offset, nbytes } = step;
    ranges = [[source, source_offset, nbytes], [target, target_offset, nbytes]];
    written = [target];
  } else {
    const access = shaders[step.shader]?.access ?? "";
    if (step.bindings.length !== access.length || !access.length) return "does not bind what its shader has";
    ranges = step.bindings;
    written = ranges.filter((_, i) => access[i] === "w").map(([index]) => index);
    if (step.indirect && !buffers[step.indirect[0]]?.indirect) return "takes its grid from the wrong buffer";
    if (step.indirect) ranges = [...ranges, step.indirect];
  }
  for (const [index, offset, nbytes] of ranges) {
    if (!(offset + nbytes <= buffers[index]?.nbytes)) return "uses a range outside of its buffer";
    if (offset % 4 || nbytes % 4) return "uses an unaligned range";
  }
  return written.some((index) => buffers[index].kind === "weights") ? "writes weights" : "";
}
