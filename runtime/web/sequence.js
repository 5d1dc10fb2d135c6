/** The host's side of a decoder's state: token ids, chunks, and the words written once per call. */
import { RuntimeFailure } from "./errors.js";

/** @import { SequenceState } from "./types.js" */

/** What a replay costs before its first row, in rows (runtime/chunks.py). */
const OVERHEAD_ROWS = 32;

/** What a call says to the GPU; `sampling` are words already.
 * @typedef {{past: number, nTokens: number, limit: number, stopTokens: number[], sampling: Record<string, number>}} Call */

/** The sequence's words and what a call writes to them; those that an artifact lacks are left out.
 * @type {Record<string, (call: Call) => number | number[]>} */
const WORDS = {
  past_length: (call) => call.past,
  length: () => 1,
  total_length: (call) => call.past + 1,
  call_length: (call) => call.nTokens,
  n_tokens: (call) => call.nTokens,
  limit: (call) => call.limit,
  stop: () => 0,
  n_stop_tokens: (call) => call.stopTokens.length,
  stop_tokens: (call) => call.stopTokens,
};

/** The upload of a call: (index of the first word, values) of every run without a gap.
 * @param {SequenceState} state @param {Call} call @returns {[number, Uint32Array][]} */
export function wordsOf(state, call) {
  /** @type {Map<number, number>} */
  const placed = new Map();
  const own = Object.entries(WORDS).map(([name, value]) => /** @type {const} */ ([name, value(call)]));
  for (const [name, value] of [...own, ...Object.entries(call.sampling)]) {
    if (!Object.hasOwn(state.words, name)) continue;
    [value].flat().forEach((word, i) => placed.set(state.words[name] + i, word));
  }
  /** @type {[number, number[]][]} */
  const runs = [];
  for (const index of [...placed.keys()].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    const word = placed.get(index) ?? 0;
    if (last && last[0] + last[1].length === index) last[1].push(word);
    else runs.push([index, [word]]);
  }
  return runs.map(([first, values]) => [first, new Uint32Array(values)]);
}

/** Token ids as numbers, from an array or typed array of any integer type.
 * @param {any} ids @param {number} vocabSize @param {string} [what] @returns {number[]} */
export function tokenIds(ids, vocabSize, what = "the prompt") {
  if (typeof ids === "string" || typeof ids?.[Symbol.iterator] !== "function") {
    throw new RuntimeFailure(what, "is not a list of token ids", "encode it with the model's tokenizer first");
  }
  return Array.from(ids, (value, position) => {
    const token = typeof value === "bigint" ? Number(value) : value;
    if (Number.isInteger(token) && token >= 0 && token < vocabSize) return token;
    const problem = `has '${String(value).slice(0, 40)}' at position ${position}, no token of a vocabulary of ${vocabSize}`;
    throw new RuntimeFailure(what, problem, "use the tokenizer that belongs to this model");
  });
}

/** @param {number} nTokens @param {number} known @param {number} capacity */
export function checkCapacity(nTokens, known, capacity) {
  if (nTokens <= capacity) return;
  const problem = known
    ? `is full: ${known} tokens of history and ${nTokens - known} new ones exceed its ${capacity} positions`
    : `holds ${capacity} positions, and the prompt has ${nTokens} tokens`;
  const hint = "call reset(), give fewer tokens, or compile with a larger --max-length";
  throw new RuntimeFailure("the KV cache", problem, hint);
}

/** Rows of the programs `prefill_N` (or another kind). @param {Record<string, any>} programs @param {string} kind */
export const sizesOf = (programs, kind) =>
  Object.keys(programs)
    .filter((name) => name.startsWith(`${kind}_`))
    .map((name) => Number(name.slice(kind.length + 1)));

/** Sizes of the replays that process `n` rows with the least work, largest first; the last may be partly
 * empty, and one row is left to `decode`. @param {number} n @param {number[]} sizes @returns {number[]} */
export function chooseChunks(n, sizes) {
  if (n === 1) return [1];
  const largest = Math.max(...sizes);
  const full = Math.max(0, Math.floor(n / largest) - 1);
  /** Cheapest way to cover 0, 1, 2, … rows. @type {{cost: number, chunks: number[]}[]} */
  const best = [{ cost: 0, chunks: [] }];
  for (let rows = 1; rows <= n - full * largest; rows++) {
    const options = sizes.map((size) => {
      const { cost, chunks } = best[Math.max(0, rows - size)];
      return { cost: cost + OVERHEAD_ROWS + size, chunks: [...chunks, size] };
    });
    best.push(options.reduce((a, b) => (b.cost < a.cost ? b : a)));
  }
  return [...Array(full).fill(largest), ...best[n - full * largest].chunks.sort((a, b) => b - a)];
}
