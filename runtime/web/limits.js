/** WebGPU limits and features: what a variant needs, what an adapter has, and which buffers are used. */

/** @import { Manifest, Program, Variant } from "./types.js" */

/** The limits that concern compute, with what every implementation has (specification, section 3.6.2).
 * @type {Readonly<Record<string, number>>} */
export const DEFAULTS = Object.freeze({
  "max-storage-buffers-per-shader-stage": 8,
  "max-storage-buffer-binding-size": 2 ** 27,
  "max-buffer-size": 2 ** 28,
  "max-compute-workgroup-storage-size": 16384,
  "max-compute-invocations-per-workgroup": 256,
  "max-compute-workgroup-size-x": 256,
  "max-compute-workgroup-size-y": 256,
  "max-compute-workgroup-size-z": 64,
  "max-compute-workgroups-per-dimension": 65535,
});

/** The manifest's max-buffer-size is WebGPU's maxBufferSize. @type {(name: string) => string} */
export const camelCase = (name) => name.replace(/-(.)/g, (_, letter) => letter.toUpperCase());

/** The limits of a device made for `variant`: the defaults, raised where the variant says so.
 * @param {Variant} variant @returns {Record<string, number>} */
export function granted(variant) {
  return Object.fromEntries(
    Object.entries(DEFAULTS).map(([name, value]) => [name, Math.max(value, variant.limits[name] ?? 0)]),
  );
}

/** What `variant` needs and `gpu` (an adapter or a device) does not have, as text; empty if it can run.
 * @param {Variant} variant @param {{features: ReadonlySet<string>, limits: any}} gpu */
export function lacking(variant, gpu) {
  const lacks = variant.features.filter((feature) => !gpu.features.has(feature));
  for (const [name, value] of Object.entries({ ...DEFAULTS, ...variant.limits })) {
    const has = gpu.limits[camelCase(name)] ?? 0;
    if (has < value) lacks.push(`${camelCase(name)} (needs ${value}, has ${has})`);
  }
  return lacks.join(", ");
}

/** Indices of the buffers that the programs of `variant` touch, or that the caller reads and writes.
 * @param {Manifest} manifest @param {Variant} variant @returns {Set<number>} */
export function buffersOf(manifest, variant) {
  const { sequence } = manifest;
  const used = new Set(sequence ? [sequence.buffer, sequence.tokens] : []);
  for (const program of Object.values(variant.programs)) {
    for (const { buffer } of [...(program.inputs ?? []), ...(program.outputs ?? [])]) used.add(buffer);
    for (const step of program.steps) {
      if (step.step === "copy") used.add(step.source).add(step.target);
      else {
        for (const [buffer] of step.bindings) used.add(buffer);
        if (step.indirect) used.add(step.indirect[0]);
      }
    }
  }
  return used;
}

/** Indices of the shaders that a program runs. @param {Program} program @returns {Set<number>} */
export const shadersOf = ({ steps }) =>
  new Set(steps.filter(({ step }) => step === "dispatch").map(({ shader }) => shader));
