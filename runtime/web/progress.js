/** What `load` tells while it works, in the events of transformers.js. */

/** @import { Manifest, Shard } from "./types.js" */
/** @import { Report } from "./source.js" */

/** What happens: initiate, download, progress, progress_total, done, ready; and warning, for what is worth knowing
 * but stops nothing. Bytes; `remaining` in seconds.
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

/** A function that opens the report on one shard. @param {Manifest} manifest
 * @param {(event: Progress) => void} onProgress @returns {(shard: Shard) => Report} */
export function progressOf({ model: { name }, shards }, onProgress) {
  const whole = shards.reduce((sum, { nbytes }) => sum + nbytes, 0);
  const begun = performance.now();
  let [sum, fetched] = [0, 0];
  return ({ file, nbytes: total }) => {
    let loaded = 0;
    /** @type {Report} */
    const report = (nbytes, fromNetwork) => {
      loaded += nbytes;
      sum += nbytes;
      if (fromNetwork) fetched += nbytes;
      const seconds = (performance.now() - begun) / 1000;
      const remaining = sum && seconds > 0.5 ? (seconds * (whole - sum)) / sum : null;
      const part = (/** @type {number} */ n, /** @type {number} */ of) => ({ loaded: n, total: of, progress: (100 * n) / of });
      onProgress({ status: "progress", name, file, ...part(loaded, total) });
      onProgress({ status: "progress_total", name, fetched, remaining, ...part(sum, whole) });
      if (loaded === total) onProgress({ status: "done", name, file });
    };
    for (const status of ["initiate", "download"]) onProgress({ status, name, file });
    report(0, false);
    return report;
  };
}
