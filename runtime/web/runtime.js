/** webgpu-compile's runtime for browsers: `load` an artifact by its address, then `run` or `generate`. */
import { chooseVariant, requestAdapter, requestDevice } from "./device.js";
import { DeviceLost, RuntimeFailure } from "./errors.js";
import { progressOf } from "./progress.js";
import { createResources } from "./resources.js";
import { decodeManifest } from "./manifest.js";
import { Session } from "./session.js";
import { openSource } from "./source.js";
import { clearCache, openStorage } from "./store.js";

export { DeviceLost, RuntimeFailure, Session, clearCache };

/**
 * @typedef {object} LoadOptions
 * @property {(event: import("./progress.js").Progress) => void} [onProgress]
 * @property {string} [variant] force one of the artifact's variants
 * @property {AbortSignal} [signal] ends the loading
 * @property {boolean} [cache] false to keep nothing in the browser
 * @property {any} [gpu] instead of navigator.gpu
 * @property {typeof globalThis.fetch} [fetch] instead of the browser's
 */

/**
 * Check the artifact at `url` and put it on the GPU.
 * @param {string | URL} url the folder that webgpu-compile wrote
 * @param {LoadOptions} [options]
 * @returns {Promise<Session>}
 */
export async function load(url, options = {}) {
  const { onProgress = () => {}, cache = true } = options;
  let { signal } = options;
  const gpu = options.gpu ?? globalThis.navigator?.gpu;
  const fetcher = options.fetch ?? ((...request) => globalThis.fetch(...request));
  const base = new URL(url, globalThis.location?.href);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  const warn = (/** @type {string} */ message) => onProgress({ status: "warning", message });
  const source = openSource(base, fetcher, cache ? await openStorage(warn) : null, warn, () => signal);
  const [adapter, text] = await Promise.all([requestAdapter(gpu), source.manifest()]);
  const manifest = decodeManifest(text);
  const { variant, reason } = chooseVariant(manifest.variants, adapter, options.variant);
  const make = async (/** @type {any} */ from, report = onProgress) => {
    const device = await requestDevice(from, variant);
    const lost = device.lost.then(({ message }) => Promise.reject(new DeviceLost(message)));
    const progress = progressOf(manifest, report);
    try {
      return await Promise.race([createResources(source, manifest, variant, device, progress), lost]);
    } catch (error) {
      device.destroy();
      signal?.throwIfAborted();
      throw error;
    }
  };
  const resources = await make(adapter);
  signal = undefined; // it was for the loading
  const remake = async () => make(await requestAdapter(gpu), () => {});
  const session = new Session(manifest, variant, reason, resources, remake);
  onProgress({ status: "ready", name: manifest.model.name });
  return session;
}
