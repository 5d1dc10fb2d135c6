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

/** @typedef {{size(key: string): Promise<number>, get(key: string): Promise<ArrayBuffer>, put(key: string, bytes: Uint8Array): Promise<void>, clear(): Promise<any>}} Backend */

/** The origin-private file system: a file per block, written beside its place and moved there when closed.
 * @returns {Promise<Backend>} */
async function openFiles() {
  if (!("createWritable" in FileSystemFileHandle.prototype)) throw new Error("no createWritable");
  const root = await navigator.storage.getDirectory();
  const folder = await root.getDirectoryHandle(FOLDER, { create: true });
  /** @param {string} key */
  const open = async (key) => (await folder.getFileHandle(key)).getFile();
  return {
    size: async (key) => (await open(key)).size,
    get: async (key) => (await open(key)).arrayBuffer(),
    async put(key, bytes) {
      const stream = await (await folder.getFileHandle(key, { create: true })).createWritable();
      try {
        await stream.write(/** @type {any} */ (bytes));
        await stream.close();
      } catch (error) {
        await stream.abort().catch(() => {});
        await folder.removeEntry(key).catch(() => {});
        throw error;
      }
    },
    clear: () => root.removeEntry(FOLDER, { recursive: true }),
  };
}

/** The Cache API, where files cannot be written. @returns {Promise<Backend>} */
async function openCache() {
  const cache = await caches.open(FOLDER);
  /** @param {string} key */
  const get = async (key) => {
    const found = await cache.match(`/${FOLDER}/${key}`);
    if (!found) throw new Error("not there");
    return found;
  };
  return {
    size: async (key) => Number((await get(key)).headers.get("content-length")),
    get: async (key) => (await get(key)).arrayBuffer(),
    put: (key, bytes) => {
      const headers = { "content-length": String(bytes.length) };
      return cache.put(`/${FOLDER}/${key}`, new Response(/** @type {any} */ (bytes), { headers }));
    },
    clear: () => caches.delete(FOLDER),
  };
}

export class Store {
  /** @param {Backend | null} backend @param {(problem: string) => void} [warn] */
  constructor(backend, warn = () => {}) {
    this.backend = backend;
    this.warn = warn;
  }

  /** @param {(problem: string) => void} warn */
  static async open(warn) {
    const backend = await openFiles().catch(openCache).catch(() => null);
    if (!backend) warn("this browser keeps nothing between visits: the weights will be loaded each time");
    return new Store(backend, warn);
  }

  /** Whether `key` seems to be there with `nbytes`; `get` has the last word.
   * @param {string} key @param {number} nbytes */
  async has(key, nbytes) {
    return (await this.backend?.size(key).catch(() => -1)) === nbytes;
  }

  /** The bytes whose SHA-256 is `key`, or null: missing, cut short or damaged. @param {string} key */
  async get(key) {
    const bytes = await this.backend?.get(key).catch(() => null);
    return bytes && (await sha256(bytes)) === key ? new Uint8Array(bytes) : null;
  }

  /** Keep `bytes`; a full disk is a warning, not a failure. @param {string} key @param {Uint8Array} bytes */
  async put(key, bytes) {
    try {
      await this.backend?.put(key, bytes);
    } catch (error) {
      const full = /** @type {any} */ (error)?.name === "QuotaExceededError";
      const what = full ? "the browser's storage is full" : `the browser cannot store it (${error})`;
      this.warn(`${what}: what does not fit will be loaded again next time`);
      this.backend = null;
    }
  }
}

/** Forget everything that was kept for this site. */
export async function clearCache() {
  const store = await Store.open(() => {});
  await store.backend?.clear();
}
