/** The variant that the adapter can run, and a device with exactly that variant's limits and features. */
import { RuntimeFailure } from "./errors.js";
import { camelCase, granted, lacking } from "./limits.js";

/** @import { Variant } from "./types.js" */

/** @param {any} gpu navigator.gpu, or Dawn's in Node */
export async function requestAdapter(gpu) {
  const hint = "use a browser with WebGPU (Chrome, Edge, Safari 26, Firefox) over https or localhost";
  if (!gpu) throw new RuntimeFailure("WebGPU", "is not available here", hint);
  const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" });
  if (adapter) return adapter;
  throw new RuntimeFailure("WebGPU", "found no GPU", "switch on hardware acceleration, or update the GPU's driver");
}

/** The name of an adapter, for people. @param {any} gpu @returns {string} */
export function describe(gpu) {
  const { vendor, architecture, device, description } = gpu.info ?? gpu.adapterInfo ?? {};
  return description || [vendor, architecture, device].filter(Boolean).join(" ") || "without a name";
}

/** Whether `variant` was tuned for another adapter. @param {Variant} variant @param {any} gpu */
function isForOther({ adapter }, gpu) {
  const { vendor, device } = gpu.info ?? gpu.adapterInfo ?? {}; // few browsers name the device
  return adapter && (adapter.vendor !== vendor || (device && adapter.device && adapter.device !== device));
}

/**
 * The first variant that `gpu` (an adapter or a device) can run, and a sentence saying why.
 * @param {Variant[]} variants @param {any} gpu @param {string} [forced]
 * @returns {{variant: Variant, reason: string}}
 */
export function chooseVariant(variants, gpu, forced) {
  const names = variants.map(({ name }) => name).join(", ");
  if (forced !== undefined && !variants.some(({ name }) => name === forced)) {
    throw new RuntimeFailure(`variant '${forced}'`, "is not in this artifact", `choose from ${names}`);
  }
  /** @type {string[]} */
  const refused = [];
  for (const variant of variants) {
    if (forced !== undefined && variant.name !== forced) continue;
    const other = forced === undefined && isForOther(variant, gpu);
    const lacks = other ? `the adapter ${variant.adapter?.device}` : lacking(variant, gpu);
    if (lacks) {
      refused.push(`${variant.name} needs ${lacks}`);
      continue;
    }
    let reason = refused.length
      ? `the best that this adapter runs (${refused.join("; ")})`
      : "the artifact's first choice";
    if (forced !== undefined) reason = "asked for";
    return { variant, reason: `${variant.name}: ${reason}` };
  }
  const hint = "compile with --variants portable or a smaller --max-length, or use another GPU";
  throw new RuntimeFailure(`adapter ${describe(gpu)}`, `cannot run it: ${refused.join("; ")}`, hint);
}

/** @param {any} adapter @param {Variant} variant @returns {Promise<GPUDevice>} */
export async function requestDevice(adapter, variant) {
  /** @type {Record<string, number>} */
  const requiredLimits = {};
  for (const [name, value] of Object.entries(granted(variant))) {
    const has = adapter.limits[camelCase(name)];
    if (has !== undefined) requiredLimits[camelCase(name)] = Math.min(value, has);
  }
  try {
    return await adapter.requestDevice({ requiredFeatures: variant.features, requiredLimits });
  } catch (error) {
    const problem = `gives no device (${String(error).slice(0, 200)})`;
    throw new RuntimeFailure(`adapter ${describe(adapter)}`, problem, "close other programs that use the GPU");
  }
}
