/** The variant that the adapter can run, and a device with exactly that variant's limits and features. */
import { fail } from "./errors.js";

/** @import { Variant } from "./types.js" */

const GPU = "this GPU";

/** @param {any} gpu navigator.gpu, or Dawn's in Node */
export async function requestAdapter(gpu) {
  if (!gpu) fail("WebGPU", "is not available here", "use a browser with WebGPU, over https or localhost");
  const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" });
  return adapter ?? fail("WebGPU", "found no GPU", "switch on hardware acceleration, or update the GPU's driver");
}

/** The limits that `variant` needs, named as WebGPU does. @param {Variant} variant @returns {[string, number][]} */
const limitsOf = ({ limits }) =>
  Object.entries(limits).map(([name, value]) => [name.replace(/-(.)/g, (_, letter) => letter.toUpperCase()), value]);

/**
 * The first variant that `adapter` can run, and a sentence saying why. Where a CPU plays the GPU, those made for
 * that come before all but those tuned for it; elsewhere last.
 * @param {Variant[]} variants @param {any} adapter @param {string} [forced]
 * @returns {{variant: Variant, reason: string}}
 */
export function chooseVariant(variants, adapter, forced) {
  const { vendor, device, isFallbackAdapter = false } = adapter.info; // few browsers name the device
  /** @type {string[]} */
  const refused = [];
  const later = (/** @type {Variant} */ { adapter: tuned, software = false }) => !tuned && software !== isFallbackAdapter;
  const order = variants.toSorted((a, b) => Number(later(a)) - Number(later(b)));
  for (const variant of order.filter(({ name }) => name === (forced ?? name))) {
    const { features, adapter: tuned } = variant;
    const lacks = features.filter((feature) => !adapter.features.has(feature));
    const other = tuned && (tuned.vendor !== vendor || (device && tuned.device && tuned.device !== device));
    if (other && forced === undefined) lacks.push(`the adapter ${tuned.device}`);
    for (const [name, value] of limitsOf(variant)) {
      const has = adapter.limits[name] ?? 0;
      if (has < value) lacks.push(`${name} (needs ${value}, has ${has})`);
    }
    if (lacks.length && refused.push(`${variant.name} needs ${lacks.join(", ")}`)) continue;
    const best = variant.software ? "made for GPUs that a CPU plays" : refused.length ? `the best that this adapter runs (${refused.join("; ")})` : "the artifact's first choice";
    return { variant, reason: `${variant.name}: ${forced === undefined ? best : "asked for"}` };
  }
  if (!refused.length) {
    fail(`variant '${forced}'`, "is not in this artifact", `choose from ${variants.map(({ name }) => name)}`);
  }
  const hint = "compile with --variants portable or a smaller --max-length, or use another GPU";
  fail(GPU, `cannot run it: ${refused.join("; ")}`, hint);
}

/** @param {any} adapter @param {Variant} variant @returns {Promise<GPUDevice>} */
export const requestDevice = (adapter, variant) =>
  adapter
    .requestDevice({ requiredFeatures: variant.features, requiredLimits: Object.fromEntries(limitsOf(variant)) })
    .catch((/** @type {Error} */ error) => fail(GPU, `gives no device (${error})`, "close other programs that use it"));
