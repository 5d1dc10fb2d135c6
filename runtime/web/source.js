/** The artifact's files over HTTP: checked against the manifest's hashes, resumed when a download breaks off. */
import { RECOMPILE, RuntimeFailure } from "./errors.js";
import { sha256 } from "./store.js";

/** @import { Shard } from "./types.js" */
/** @import { Store } from "./store.js" */

const ATTEMPTS = 4;
const COPY = "copy the whole folder that webgpu-compile wrote to the server";

export class Source {
  /**
   * @param {URL} base @param {Store} store @param {typeof fetch} fetcher @param {AbortSignal} [signal]
   */
  constructor(base, store, fetcher, signal) {
    this.base = base;
    this.store = store;
    this.fetcher = fetcher;
    this.signal = signal;
  }

  /** @param {string} name @param {RequestInit} [options] @returns {Promise<Response>} */
  async request(name, options = {}) {
    const { fetcher, signal } = this;
    const response = await fetcher(new URL(name, this.base), { ...options, signal: signal ?? null });
    if (response.ok) return response;
    if (response.status >= 500 || response.status === 429) throw new Error(`HTTP ${response.status}`);
    const missing = response.status === 404 ? "is missing on the server" : "is refused by the server";
    throw new RuntimeFailure(name, `${missing} (HTTP ${response.status})`, COPY);
  }

  /** Run `attempt` again after network errors; it goes on where it was. @template T
   * @param {string} name @param {() => Promise<T>} attempt @param {() => number} [position]
   * @returns {Promise<T>} */
  async retry(name, attempt, position = () => 0) {
    let at = position();
    for (let failures = 0; ; ) {
      try {
        return await attempt();
      } catch (error) {
        this.signal?.throwIfAborted();
        if (error instanceof RuntimeFailure) throw error;
        failures = position() > at ? 1 : failures + 1;
        at = position();
        if (failures >= ATTEMPTS) {
          const problem = `cannot be downloaded (${String(error).slice(0, 120)})`;
          throw new RuntimeFailure(name, problem, "check the connection and load again: what has arrived is kept");
        }
        await new Promise((resolve) => setTimeout(resolve, 100 * 4 ** (failures - 1)));
      }
    }
  }

  /** manifest.json; without a network, the last one seen. */
  async manifest() {
    const name = "manifest.json";
    const key = `manifest-${await sha256(new TextEncoder().encode(this.base.href))}`;
    try {
      const response = await this.retry(name, () => this.request(name, { cache: "no-cache" }));
      const bytes = new Uint8Array(await response.arrayBuffer());
      await this.store.put(key, bytes);
      return new TextDecoder().decode(bytes);
    } catch (error) {
      const kept = await this.store.backend?.get(key).catch(() => null);
      if (!kept || !(error instanceof RuntimeFailure) || !error.problem.startsWith("cannot be")) throw error;
      return new TextDecoder().decode(kept);
    }
  }

  /** A small file whose SHA-256 is known. @param {string} name @param {string} hash */
  async text(name, hash) {
    let bytes = await this.store.get(hash);
    for (const cache of /** @type {const} */ (["default", "reload"])) {
      if (bytes) break;
      const read = async () => new Uint8Array(await (await this.request(name, { cache })).arrayBuffer());
      const data = await this.retry(name, read);
      if ((await sha256(data)) === hash) await this.store.put(hash, (bytes = data));
    }
    if (!bytes) throw changed(name);
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  }

  /**
   * Every block of a shard, in order, checked: `take(block number, bytes, from the network?)`.
   * @param {Shard} shard
   * @param {(number: number, bytes: Uint8Array, fetched: boolean) => Promise<void>} take
   * @param {(nbytes: number) => void} received
   */
  async blocks(shard, take, received) {
    const { blocks, block_nbytes, nbytes } = shard;
    const size = (/** @type {number} */ i) => Math.min(block_nbytes, nbytes - i * block_nbytes);
    for (let i = 0; i < blocks.length; ) {
      this.signal?.throwIfAborted();
      const kept = (await this.store.has(blocks[i], size(i))) ? await this.store.get(blocks[i]) : null;
      if (kept) {
        await take(i++, kept, false);
        continue;
      }
      let end = i + 1;
      while (end < blocks.length && !(await this.store.has(blocks[end], size(end)))) end++;
      await this.fetchBlocks(shard, i, end, take, received);
      i = end;
    }
  }

  /** Blocks `first` to `end`, in one request if nothing breaks. While one is hashed, the next arrives.
   * @param {Shard} shard @param {number} first @param {number} end
   * @param {(number: number, bytes: Uint8Array, fetched: boolean) => Promise<void>} take
   * @param {(nbytes: number) => void} received */
  async fetchBlocks(shard, first, end, take, received) {
    const [name, block] = [`weights/${shard.file}`, shard.block_nbytes];
    const stop = Math.min(end * block, shard.nbytes);
    let at = first * block;
    let data = new Uint8Array(0);
    let checking = Promise.resolve();
    const finish = async (/** @type {number} */ number, /** @type {Uint8Array} */ bytes, /** @type {boolean} */ again) => {
      if ((await sha256(bytes)) === shard.blocks[number]) {
        await take(number, bytes, true);
        await this.store.put(shard.blocks[number], bytes);
      } else if (again) {
        throw changed(name);
      } else {
        // Perhaps an old copy between here and the server: ask for this block once more, past every cache.
        const [from, to] = [number * block, number * block + bytes.length];
        const fill = async () => {
          let filled = from;
          for await (const chunk of this.range(name, shard, from, to, "reload")) {
            bytes.set(chunk, filled - from);
            filled += chunk.length;
          }
        };
        await this.retry(name, fill);
        await finish(number, bytes, true);
      }
    };
    const read = async () => {
      const cache = this.store.backend ? "no-store" : "default"; // once on the disk is enough
      for await (let chunk of this.range(name, shard, at, stop, cache)) {
        received(chunk.length);
        while (chunk.length) {
          const number = Math.floor(at / block);
          const within = at - number * block;
          if (!within) data = new Uint8Array(Math.min(block, shard.nbytes - at));
          const part = chunk.subarray(0, data.length - within);
          data.set(part, within);
          at += part.length;
          chunk = chunk.subarray(part.length);
          if (within + part.length < data.length) continue;
          await checking;
          checking = finish(number, data, false);
          checking.catch(() => {}); // awaited below, or before the next block
        }
      }
    };
    await this.retry(name, read, () => at);
    await checking;
  }

  /** Bytes `at` to `stop` of a shard as they arrive; throws when the connection ends before.
   * @param {string} name @param {Shard} shard @param {number} at @param {number} stop
   * @param {RequestCache} cache @returns {AsyncGenerator<Uint8Array>} */
  async *range(name, shard, at, stop, cache) {
    const whole = at === 0 && stop === shard.nbytes;
    const response = await this.request(name, whole ? { cache } : { cache, headers: { range: `bytes=${at}-${stop - 1}` } });
    const total = response.headers.get("content-range")?.split("/")[1] ?? response.headers.get("content-length");
    const encoded = response.headers.get("content-encoding");
    if (!encoded && total && total !== "*" && Number(total) !== shard.nbytes) {
      throw new RuntimeFailure(name, `has ${total} bytes, not ${shard.nbytes}`, COPY);
    }
    let skip = response.status === 206 ? 0 : at; // a server without Range sends everything
    const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
    try {
      while (at < stop) {
        const { done, value } = await reader.read();
        if (done) throw new Error("the connection was closed");
        if (skip >= value.length) {
          skip -= value.length;
          continue;
        }
        const part = value.subarray(skip, skip + stop - at);
        skip = 0;
        at += part.length;
        yield part;
      }
    } finally {
      await reader.cancel().catch(() => {});
    }
  }
}

/** @param {string} name */
const changed = (name) => new RuntimeFailure(name, "has other content than was compiled", `${COPY}, or ${RECOMPILE}`);
