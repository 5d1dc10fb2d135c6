/** The artifact's files over HTTP: checked against the manifest's hashes, resumed when a download breaks off. */
import { COPY, RECOMPILE, RuntimeFailure, fail } from "./errors.js";
import { sha256 } from "./store.js";

/** @import { Shard } from "./types.js" */
/** @import { Storage } from "./store.js" */
/** Where checked blocks go. @typedef {(number: number, bytes: Uint8Array) => Promise<void>} Take */
/** Told of every byte once, when it arrives. @typedef {(nbytes: number, fromNetwork: boolean) => void} Report */

const ATTEMPTS = 4;

/**
 * @param {URL} base @param {typeof fetch} fetcher @param {Storage | null} storage
 * @param {(message: string) => void} warn @param {() => AbortSignal | undefined} [signal] what ends it
 */
export function openSource(base, fetcher, storage, warn, signal = () => undefined) {
  /** What is kept under `key`, right or wrong; null for nothing. @param {string} key */
  async function kept(key) {
    const blob = await storage?.get(key).catch(() => null);
    return blob ? new Uint8Array(await blob.arrayBuffer()) : null;
  }

  /** The bytes that hash to `hash`, if they are kept: not cut short, not damaged. @param {string} hash */
  async function verified(hash) {
    const bytes = await kept(hash);
    return bytes && (await sha256(bytes)) === hash ? bytes : null;
  }

  /** A full disk is a warning, not a failure. @param {string} key @param {Uint8Array} bytes */
  async function keep(key, bytes) {
    try {
      await storage?.put(key, bytes);
    } catch (error) {
      const full = /** @type {any} */ (error)?.name === "QuotaExceededError" ? "is full" : `fails (${error})`;
      warn(`this browser's storage ${full}: what is not kept will be loaded again next time`);
      storage = null;
    }
  }

  /** What `use` makes of a response; asked for again after network errors, while `position` moves on. @template T
   * @param {string} name @param {() => RequestInit} options @param {(response: Response) => Promise<T>} use
   * @param {() => number} [position] @returns {Promise<T>} */
  async function request(name, options, use, position = () => 0) {
    for (let failures = 0, at = position(); ; ) {
      try {
        const response = await fetcher(new URL(name, base), { signal: signal() ?? null, ...options() });
        const { status } = response;
        if (status >= 500 || status === 429) throw new Error(`HTTP ${status}`);
        const missing = status === 404 ? "is missing on the server" : "is refused by the server";
        return response.ok ? await use(response) : fail(name, `${missing} (HTTP ${status})`, COPY);
      } catch (error) {
        signal()?.throwIfAborted();
        if (error instanceof RuntimeFailure) throw error;
        failures = position() > at ? 1 : failures + 1;
        at = position();
        if (failures >= ATTEMPTS) {
          const problem = `cannot be downloaded (${String(error).slice(0, 120)})`;
          fail(name, problem, "check the connection and load again: what has arrived is kept");
        }
        await new Promise((resolve) => setTimeout(resolve, 100 * 4 ** (failures - 1)));
      }
    }
  }

  /** A whole file. @param {string} name @param {RequestCache} cache */
  function download(name, cache) {
    return request(name, () => ({ cache }), async (response) => new Uint8Array(await response.arrayBuffer()));
  }

  /** manifest.json; without a network, the last one seen. */
  async function manifest() {
    const key = `manifest-${await sha256(new TextEncoder().encode(base.href))}`;
    const bytes = await download("manifest.json", "no-cache").catch(async (error) => {
      const offline = error instanceof RuntimeFailure && error.problem.startsWith("cannot be");
      return (offline && (await kept(key))) || Promise.reject(error);
    });
    await keep(key, bytes);
    return new TextDecoder().decode(bytes);
  }

  /** A small file whose SHA-256 is known, and whose name changes with its content. @param {string} name @param {string} hash */
  async function text(name, hash) {
    const bytes = (await verified(hash)) ?? (await checked(name, hash, await download(name, "default")));
    return new TextDecoder().decode(bytes);
  }

  /** Keep what was downloaded, if it is what was compiled.
   * @param {string} name @param {string} hash @param {Uint8Array} bytes */
  async function checked(name, hash, bytes) {
    if ((await sha256(bytes)) !== hash) fail(name, "has other content than was compiled", `${COPY}, or ${RECOMPILE}`);
    await keep(hash, bytes);
    return bytes;
  }

  /** Every block of a shard, checked, in order. @param {Shard} shard @param {Take} take @param {Report} report */
  async function blocks(shard, take, report) {
    const { blocks } = shard;
    for (let i = 0; i < blocks.length; ) {
      signal()?.throwIfAborted();
      const block = await verified(blocks[i]);
      if (block) {
        report(block.length, false);
        await take(i++, block);
        continue;
      }
      const first = i++;
      while (i < blocks.length && !(await storage?.get(blocks[i]).catch(() => null))) i++;
      await fetchBlocks(shard, first, i, take, report);
    }
  }

  /** Blocks `first` to `end`, in one request if nothing breaks. While one is hashed, the next arrives. What is kept
   * in `storage` need not be in the browser's own cache as well: once on the disk is enough.
   * @param {Shard} shard @param {number} first @param {number} end @param {Take} take @param {Report} report */
  async function fetchBlocks({ file, blocks, block_nbytes: size, nbytes }, first, end, take, report) {
    const name = `weights/${file}`;
    const stop = Math.min(end * size, nbytes);
    let at = first * size;
    let block = new Uint8Array(0);
    /** @type {Promise<unknown>} */
    let checking = Promise.resolve();
    const options = () => ({
      cache: /** @type {RequestCache} */ (storage ? "no-store" : "no-cache"),
      headers: at || stop < nbytes ? { range: `bytes=${at}-${stop - 1}` } : {},
    });
    const read = async (/** @type {Response} */ { headers, status, body }) => {
      const total = status === 206 ? headers.get("content-range")?.split("/")[1] : headers.get("content-length");
      if (Number(total) && Number(total) !== nbytes && !headers.get("content-encoding")) {
        fail(name, `has ${total} bytes, not ${nbytes}`, COPY);
      }
      let skip = status === 206 ? 0 : at; // a server without Range sends everything
      const reader = /** @type {ReadableStream<Uint8Array>} */ (body).getReader();
      try {
        while (at < stop) {
          const { done, value } = await reader.read();
          if (done) throw new Error("the connection was closed");
          let chunk = value.subarray(skip, skip + stop - at);
          skip = Math.max(0, skip - value.length);
          report(chunk.length, true);
          while (chunk.length) {
            const within = at % size;
            if (!within) block = new Uint8Array(Math.min(size, nbytes - at));
            const part = chunk.subarray(0, block.length - within);
            block.set(part, within);
            at += part.length;
            chunk = chunk.subarray(part.length);
            if (within + part.length < block.length) continue;
            await checking;
            const [number, bytes] = [Math.ceil(at / size) - 1, block];
            checking = checked(name, blocks[number], bytes).then(() => take(number, bytes));
            checking.catch(() => {}); // awaited below
          }
        }
      } finally {
        await reader.cancel().catch(() => {});
      }
    };
    await request(name, options, read, () => at);
    await checking;
  }

  return { keep, manifest, text, blocks };
}
/** @typedef {ReturnType<typeof openSource>} Source */
