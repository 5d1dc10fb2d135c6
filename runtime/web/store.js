/**
 * What was downloaded before: blocks of weights and shaders, each under its SHA-256, so that an interrupted
 * download goes on where it stopped and nothing is believed that does not hash to its name.
 */

/** @param {ArrayBuffer | Uint8Array} bytes @returns {Promise<string>} */
export async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", /** @type {any} */ (bytes)));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const FOLDER = "webgpu-compile";

/** A `get` of what is not there fails. @typedef {{get(key: string): Promise<Blob>, put(key: string, bytes: any): Promise<void>, clear(): Promise<any>}} Storage */

/** The origin-private file system: a file per block, moved to its place when it is closed.
 * @returns {Promise<Storage>} */
async function openFiles() {
  const root = await navigator.storage.getDirectory();
  const folder = await root.getDirectoryHandle(FOLDER, { create: true });
  return {
    get: async (key) => (await folder.getFileHandle(key)).getFile(),
    async put(key, bytes) {
      const stream = await (await folder.getFileHandle(key, { create: true })).createWritable();
      await stream.write(bytes); // one that fails discards what was written
      await stream.close();
    },
    clear: () => root.removeEntry(FOLDER, { recursive: true }),
  };
}

/** The Cache API, where there are no files: Firefox in private windows. @returns {Promise<Storage>} */
async function openCache() {
  const cache = await caches.open(FOLDER);
  return {
    get: async (key) => (await cache.match(`/${FOLDER}/${key}`))?.blob() ?? Promise.reject(new Error("not there")),
    put: (key, bytes) => cache.put(`/${FOLDER}/${key}`, new Response(bytes)),
    clear: () => caches.delete(FOLDER),
  };
}

/** Null where the browser lets the page keep nothing. @param {(problem: string) => void} warn
 * @returns {Promise<Storage | null>} */
export async function openStorage(warn) {
  const storage = await openFiles().catch(openCache).catch(() => null);
  if (!storage) warn("this browser keeps nothing between visits: the weights will be loaded each time");
  return storage;
}

/** Forget everything that was kept for this site. */
export async function clearCache() {
  await (await openStorage(() => {}))?.clear();
}
