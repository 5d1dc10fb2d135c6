/** Programs as a variant runs them: what the manifest says once, spelled out step by step. */
import { RECOMPILE, RuntimeFailure } from "./errors.js";

/** @import { Variant } from "./types.js" */

/** The variants of a manifest as it is in the file. @param {any} manifest @returns {Variant[]} */
export function spellOut({ kernels, ranges, programs, variants }) {
  const range = (/** @type {number} */ i) => ranges[i] ?? missing(`range ${i}`);
  return variants.map((/** @type {any} */ { launches, programs: own, ...variant }) => {
    const step = (/** @type {any} */ step) => {
      if (!Array.isArray(step)) {
        const [source, source_offset, nbytes] = range(step.source);
        const [target, target_offset] = range(step.target);
        return { step: "copy", source, source_offset, target, target_offset, nbytes };
      }
      const [kernel, ...bound] = step;
      const [shader, grid] = launches[kernel] ?? missing(`kernel ${kernel} of variant '${variant.name}'`);
      const where = Array.isArray(grid) ? { grid } : { indirect: range(grid) };
      return { step: "dispatch", kernel: kernels[kernel], shader, bindings: bound.map(range), ...where };
    };
    const all = Object.entries({ ...programs, ...own });
    const spelled = all.map(([name, program]) => [name, { ...program, steps: program.steps.map(step) }]);
    return { ...variant, programs: Object.fromEntries(spelled) };
  });
}

/** @param {string} what @returns {never} */
function missing(what) {
  throw new RuntimeFailure("manifest.json", `is inconsistent: ${what} does not exist`, RECOMPILE);
}
