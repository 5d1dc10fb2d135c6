/** webgpu-compile's runtime for browsers: `load` an artifact by its address, then `run` or `generate`. */
import { checkManifest } from "./check.js";
import { chooseVariant, requestAdapter, requestDevice } from "./device.js";
import { DeviceLost, RuntimeFailure } from "./errors.js";
import { buffersOf } from "./limits.js";
import { createResources } from "./resources.js";
import { decodeManifest } from "./schema.js";
import { Session } from "./session.js";
import { Source } from "./source.js";
import { Store, clearCache } from "./store.js";

export { DeviceLost, RuntimeFailure, Session, clearCache };

/** What happens, shaped as transformers.js does: initiate, download, progress, progress_total, done, ready; and
 * warning, for what is worth knowing but stops nothing. Bytes; `remaining` in seconds.
 * @typedef {object} Progress
 * @property {string} status
 * @property {string} [name] the model's
 * @property {string} [file]
 * @property {number} [loaded]
 * @property {number} [total]
 * @property {number} [progress] 0 to 100
 * @property {number} [fetched] bytes that came over the network, not from the cache
 * @property {number | null} [remaining]
 * @property {string} [message]
 */
/**
 * @typedef {object} LoadOptions
 * @property {(event: Progress) => void} [onProgress]
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
  const { onProgress = () => {}, signal, cache = true } = options;
  const gpu = options.gpu ?? globalThis.navigator?.gpu;
  const fetcher = options.fetch ?? globalThis.fetch.bind(globalThis);
  const base = new URL(url, globalThis.location?.href);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  const warn = (/** @type {string} */ message) => onProgress({ status: "warning", message });
  const store = cache ? await Store.open(warn) : new Store(null);
  const source = new Source(base, store, fetcher, signal);
  const [adapter, manifest] = await Promise.all([
    requestAdapter(gpu),
    source.manifest().then((text) => {
      const decoded = decodeManifest(text);
      checkManifest(decoded);
      return decoded;
    }),
  ]);
  if (manifest.sequence?.driven_by === "host") {
    const problem = "is driven by the host, a form for comparison only";
    throw new RuntimeFailure("the artifact", problem, "compile it without --sequence-length host");
  }
  const { variant, reason } = chooseVariant(manifest.variants, adapter, options.variant);
  const make = async (/** @type {any} */ from, /** @type {Source} */ files, report = onProgress) => {
    const device = await requestDevice(from, variant);
    const lost = device.lost.then(({ message }) => {
      throw new DeviceLost(message || "no reason given");
    });
    lost.catch(() => {});
    try {
      const made = createResources(files, manifest, variant, device, progressOf(manifest, variant, report));
      return await Promise.race([made, lost]);
    } catch (error) {
      device.destroy();
      files.signal?.throwIfAborted();
      throw error;
    }
  };
  const resources = await make(adapter, source);
  source.signal = undefined; // it was for the loading
  const session = new Session(manifest, variant, reason, resources, async () =>
    make(await requestAdapter(gpu), new Source(base, store, fetcher), () => {}),
  );
  onProgress({ status: "ready", name: manifest.model.name });
  return session;
}

/** Bytes of each shard  =>  events. @param {import("./types.js").Manifest} manifest
 * @param {import("./types.js").Variant} variant @param {(event: Progress) => void} onProgress */
function progressOf(manifest, variant, onProgress) {
  const { name } = manifest.model;
  const used = buffersOf(manifest, variant);
  const shards = manifest.shards.filter(({ buffer }) => used.has(buffer));
  const total = shards.reduce((sum, { nbytes }) => sum + nbytes, 0);
  /** @type {Map<string, {loaded: number, fetched: number}>} */
  const files = new Map();
  const begun = performance.now();
  return (/** @type {string} */ file, /** @type {number} */ loaded, /** @type {number} */ fetched, /** @type {boolean} */ done) => {
    const nbytes = shards.find((shard) => shard.file === file)?.nbytes ?? 0;
    if (!files.has(file)) {
      onProgress({ status: "initiate", name, file });
      onProgress({ status: "download", name, file });
    }
    loaded = Math.min(loaded, nbytes);
    files.set(file, { loaded, fetched });
    onProgress({ status: "progress", name, file, loaded, total: nbytes, progress: (100 * loaded) / nbytes });
    const sum = { loaded: 0, fetched: 0 };
    for (const each of files.values()) {
      sum.loaded += each.loaded;
      sum.fetched += each.fetched;
    }
    const seconds = (performance.now() - begun) / 1000;
    const remaining = sum.loaded && seconds > 0.5 ? (seconds * (total - sum.loaded)) / sum.loaded : null;
    onProgress({ status: "progress_total", name, ...sum, total, progress: (100 * sum.loaded) / total, remaining });
    if (done) onProgress({ status: "done", name, file });
  };
}
