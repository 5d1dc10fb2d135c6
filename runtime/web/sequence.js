/** The host's side of a decoder's state: token ids, chunks, and the words written once per call. */
import { RECOMPILE, fail } from "./errors.js";

/** @import { SequenceState } from "./types.js" */

/** What a replay costs before its first row, in rows (runtime/chunks.py). */
const OVERHEAD_ROWS = 32;

/** What a call says to the GPU; `sampling` are words already.
 * @typedef {{past: number, nTokens: number, limit: number, stopTokens: number[], sampling: Record<string, number>}} Call */

/** The `n` words of the sequence's buffer at the beginning of a call.
 * @param {SequenceState} state @param {number} n @param {Call} call @returns {Uint32Array<ArrayBuffer>} */
export function wordsOf(state, n, { past, nTokens, limit, stopTokens, sampling }) {
  const values = {
    past_length: past,
    length: 1,
    total_length: past + 1,
    call_length: nTokens,
    n_tokens: nTokens,
    limit,
    stop: 0,
    n_stop_tokens: stopTokens.length,
    stop_tokens: stopTokens,
    ...sampling,
  };
  const words = new Uint32Array(n);
  for (const [name, value] of Object.entries(values)) {
    words.set([value].flat(), state.words[name] ?? fail("manifest.json", `lacks the word '${name}'`, RECOMPILE));
  }
  return words;
}

/** Token ids as numbers, from an array or typed array of any integer type.
 * @param {any} ids @param {number} vocabSize @param {string} [what] @returns {number[]} */
export function tokenIds(ids, vocabSize, what = "the prompt") {
  if (typeof ids === "string" || typeof ids?.[Symbol.iterator] !== "function") {
    fail(what, "is not a list of token ids", "encode it with the model's tokenizer first");
  }
  return Array.from(ids, (value, position) => {
    const token = Number(value);
    if (Number.isInteger(token) && token >= 0 && token < vocabSize) return token;
    const problem = `has '${String(value).slice(0, 40)}' at position ${position}, no token of a vocabulary of ${vocabSize}`;
    fail(what, problem, "use the tokenizer that belongs to this model");
  });
}

/** Rows of the programs `prefill_N` (or another kind). @param {Record<string, any>} programs @param {string} kind */
export const sizesOf = (programs, kind) =>
  Object.keys(programs).flatMap((name) => new RegExp(`^${kind}_([1-9]\\d{0,8})$`).exec(name)?.slice(1).map(Number) ?? []);

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
