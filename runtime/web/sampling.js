/** How the next token is chosen: the caller's numbers, checked, as the words that the GPU reads. The same words
 * as runtime/sampling.py makes: reciprocals in float64, rounded once. */
import { RuntimeFailure } from "./errors.js";

/** @typedef {{temperature?: number, topK?: number, topP?: number, minP?: number, repetitionPenalty?: number, seed?: number | bigint}} SamplingOptions */
/** @typedef {{seed: bigint, words: Record<string, number>}} Sampling */

const [LEAST, MOST] = [2 ** -126, (2 - 2 ** -23) * 2 ** 127];
const scratch = new DataView(new ArrayBuffer(4));

/** The bits of a positive number as f32, kept normal and finite. @param {number} value */
const f32 = (value) => {
  scratch.setFloat32(0, Math.min(Math.max(value, LEAST), MOST));
  return scratch.getUint32(0);
};
/** @param {number} value below 2^52; halves go to the even neighbour */
const round = (value) => value + 2 ** 52 - 2 ** 52;

/** Without a temperature it is 1 if topK, topP or minP is given, else 0; without a seed there is a random one.
 * @param {SamplingOptions} options @param {Record<string, number>} has the words of the artifact
 * @returns {Sampling} */
export function checkSampling(options, has) {
  const { topK = 0, topP = 1, minP = 0, repetitionPenalty = 1 } = options;
  const filtered = [options.topK, options.topP, options.minP].some((value) => value !== undefined);
  const temperature = options.temperature ?? (filtered ? 1 : 0);
  const seed = options.seed ?? crypto.getRandomValues(new Uint32Array(1))[0];
  const finite = Number.isFinite;
  /** @type {[string, any, boolean, string][]} */
  const rules = [
    ["temperature", temperature, finite(temperature) && temperature >= 0, "0 (greedy) or more"],
    ["topK", topK, Number.isSafeInteger(topK) && topK >= 0, "0 (no limit) or a whole number"],
    ["topP", topP, finite(topP) && topP > 0 && topP <= 1, "more than 0 and at most 1 (no limit)"],
    ["minP", minP, finite(minP) && minP >= 0 && minP <= 1, "a number from 0 (no limit) to 1"],
    ["repetitionPenalty", repetitionPenalty, finite(repetitionPenalty) && repetitionPenalty > 0, "more than 0; 1 is no penalty"],
    [
      "seed",
      seed,
      typeof seed === "bigint" ? seed >= 0n && seed < 1n << 64n : Number.isSafeInteger(seed) && seed >= 0,
      "a whole number from 0; from 2^53 to 2^64 - 1 as a BigInt",
    ],
  ];
  for (const [name, value, good, hint] of rules) {
    if (!good) throw new RuntimeFailure(name, `is ${String(value).slice(0, 40)}`, `give ${hint}`);
  }
  const greedy = temperature === 0;
  const mode = greedy ? (repetitionPenalty === 1 ? 0 : 2) : 1;
  if (mode && !Object.hasOwn(has, "sampling")) {
    const hint = "compile the model again, or generate greedily";
    throw new RuntimeFailure("generate", "cannot sample with this artifact", hint);
  }
  const most = 2 ** 32 - 1;
  const key = BigInt(seed);
  return {
    seed: key,
    words: {
      sampling: mode,
      seed_low: Number(key & 0xffffffffn),
      seed_high: Number(key >> 32n),
      inverse_temperature: f32(greedy ? MOST : (2 ** 26 * 1.4426950408889634) / temperature),
      top_k: greedy ? 1 : Math.min(topK, most),
      top_p: greedy || topP === 1 ? 0 : Math.min(Math.max(round(topP * 2 ** 32), 1), most),
      min_p: Math.max(Math.ceil(minP * 2 ** 31), 1),
      repetition_penalty: f32(repetitionPenalty),
      inverse_repetition_penalty: f32(1 / repetitionPenalty),
    },
  };
}
