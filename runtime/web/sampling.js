/** A call's options, checked; and how the next token is chosen, as the words that the GPU reads: the same words
 * as runtime/sampling.py makes, with reciprocals in float64 that are rounded once. */
import { fail } from "./errors.js";

/** As in transformers: temperature 0 is greedy.
 * @typedef {{temperature?: number, topK?: number, topP?: number, minP?: number, repetitionPenalty?: number, seed?: number | bigint}} SamplingOptions */

const [LEAST, MOST] = [2 ** -126, (2 - 2 ** -23) * 2 ** 127];
const MOST_WORD = 2 ** 32 - 1;
/** The bits of a positive number as f32, kept normal and finite. @param {number} value */
const f32 = (value) => new Uint32Array(Float32Array.of(Math.min(Math.max(value, LEAST), MOST)).buffer)[0];

/** @type {(least: number) => [(value: any) => boolean, string]} */
const whole = (least) => [(value) => Number.isSafeInteger(value) && value >= least, `a whole number from ${least}`];
/** @type {(least: number, most: number) => (value: any) => boolean} */
const within = (least, most) => (value) => typeof value === "number" && value >= least && value <= most;
/** What each option must be. @type {Record<string, [(value: any) => boolean, string]>} */
const RULES = {
  maxNewTokens: whole(0),
  tokensPerSubmit: whole(1),
  temperature: [within(0, Number.MAX_VALUE), "0 (greedy) or more"],
  topK: whole(0),
  topP: [within(Number.MIN_VALUE, 1), "more than 0 and at most 1 (no limit)"],
  minP: [within(0, 1), "a number from 0 (no limit) to 1"],
  repetitionPenalty: [within(Number.MIN_VALUE, Number.MAX_VALUE), "more than 0; 1 is no penalty"],
  seed: [
    (value) => whole(0)[0](value) || (typeof value === "bigint" && value === BigInt.asUintN(64, value)),
    "a whole number from 0, or a BigInt below 2^64",
  ],
};

/** Refuse numbers that cannot be used. @param {Record<string, any>} options */
export function checkOptions(options) {
  for (const [name, [good, hint]] of Object.entries(RULES)) {
    const value = options[name];
    if (value !== undefined && !good(value)) fail(name, `is ${String(value).slice(0, 40)}`, `give ${hint}`);
  }
}

/** Without a temperature it is 1 if topK, topP or minP is given, else 0; without a seed there is a random one.
 * @param {SamplingOptions} options @returns {{seed: bigint, sampling: Record<string, number>}} */
export function samplingWords(options) {
  const filter = options.topK ?? options.topP ?? options.minP;
  const { topK = 0, topP = 1, minP = 0, repetitionPenalty = 1, temperature = filter === undefined ? 0 : 1 } = options;
  const greedy = temperature === 0;
  const share = topP * 2 ** 32 + 2 ** 52 - 2 ** 52; // rounded, halves to the even neighbour
  const seed = BigInt(options.seed ?? crypto.getRandomValues(new Uint32Array(1))[0]);
  const sampling = {
    sampling: !greedy ? 1 : repetitionPenalty === 1 ? 0 : 2,
    seed_low: Number(seed & 0xffffffffn),
    seed_high: Number(seed >> 32n),
    inverse_temperature: f32(greedy ? MOST : (2 ** 26 * 1.4426950408889634) / temperature),
    top_k: greedy ? 1 : Math.min(topK, MOST_WORD),
    top_p: greedy || topP === 1 ? 0 : Math.min(Math.max(share, 1), MOST_WORD),
    min_p: Math.max(Math.ceil(minP * 2 ** 31), 1),
    repetition_penalty: f32(repetitionPenalty),
    inverse_repetition_penalty: f32(1 / repetitionPenalty),
  };
  return { seed, sampling };
}
