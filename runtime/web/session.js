/** A loaded artifact: `run` and `generate` on top of the captured graph. */
import { DeviceLost, fail } from "./errors.js";
import { replayLogits, replayTokens } from "./generate.js";
import { join, readPort, toStorage } from "./ports.js";
import { checkOptions, samplingWords } from "./sampling.js";
import { tokenIds } from "./sequence.js";

/** @import { Manifest, SequenceState, Variant } from "./types.js" */
/** @import { Resources } from "./resources.js" */
/** @import { History } from "./generate.js" */
/** @import { Tensor } from "./ports.js" */
/**
 * @typedef {object} OwnOptions
 * @property {number} [maxNewTokens] undefined for as many as fit
 * @property {Iterable<number>} [stopTokens] undefined for the model's own
 * @property {number} [tokensPerSubmit] tokens computed per submission and read together
 * @property {AbortSignal} [signal] aborting makes the iterator throw its reason
 */
/** The rest as in transformers: temperature (0 is greedy), topK, topP, minP, repetitionPenalty, seed.
 * @typedef {OwnOptions & import("./sampling.js").SamplingOptions} GenerateOptions */

const TOKENS_PER_SUBMIT = 8;

/** Made by `load`. A language model keeps its sequence between calls: `run` and `generate` append to it. */
export class Session {
  /** @type {Resources | null} */
  #resources;
  #remake;
  /** @type {History} */
  #history = { tokens: [], past: 0 };
  /** @type {AsyncGenerator<number, void> | null} */
  #active = null;
  /** @type {Promise<unknown>} */
  #running = Promise.resolve();

  /**
   * @param {Manifest} manifest @param {Variant} variant @param {string} reason @param {Resources} resources
   * @param {() => Promise<Resources>} remake makes the resources again after the device was lost
   */
  constructor(manifest, variant, reason, resources, remake) {
    this.manifest = manifest;
    this.variant = variant.name;
    this.variantReason = reason;
    /** Why the last generation ended: stop, length, capacity; null while it runs or when it was left.
     * @type {"stop" | "length" | "capacity" | null} */
    this.finishReason = null;
    /** The seed of the last generation, given or not. @type {bigint | null} */
    this.seed = null;
    /** Bytes of all buffers on the GPU. */
    this.gpuBytes = resources.nbytes;
    this.#resources = resources;
    this.#remake = remake;
  }

  /** The GPUDevice in use; another one after a loss. */
  get device() {
    return this.#alive().device;
  }

  get adapterInfo() {
    return this.device.adapterInfo;
  }

  /** Positions in the KV cache; null for a model without a sequence. */
  get capacity() {
    return this.manifest.sequence?.capacity ?? null;
  }

  /** The history: every token given or generated since the last reset. */
  get tokens() {
    return [...this.#history.tokens];
  }

  /**
   * Run the model once. A language model needs its token ids only: it continues the sequence of earlier calls.
   * Its logits are [1, S, V], or [1, 1, V] where the exporter kept the last position only.
   * @param {Record<string, any>} inputs typed arrays, arrays or {data, dims} by the model's input names
   * @param {string[]} [outputs] undefined for all but the KV cache
   * @returns {Promise<Record<string, Tensor>>}
   */
  run(inputs, outputs) {
    const done = this.#running.then(async () => {
      await this.#endActive();
      const { model, sequence } = this.manifest;
      const names = outputs ?? (sequence ? [sequence.logits] : model.outputs.map(({ name }) => name));
      const work = () => (sequence ? this.#runDecoder(sequence, inputs, names) : this.#runGraph(inputs, names));
      return work().catch((error) => this.#recover(error).then(work));
    });
    this.#running = done.catch(() => {});
    return done;
  }

  /**
   * Append `ids` to the sequence and generate. Leaving the iterator early is fine: the sequence is what it gave.
   * @param {Iterable<number | bigint>} [ids] token ids; empty to go on from where the sequence ends
   * @param {GenerateOptions} [options]
   * @returns {AsyncGenerator<number, void>}
   */
  generate(ids = [], options = {}) {
    this.#alive();
    const state = this.manifest.sequence;
    if (!state) fail("generate", "needs a language model", "use run() for this model");
    const prompt = tokenIds(ids, state.vocab_size);
    const stopTokens = tokenIds(new Set(options.stopTokens ?? state.stop_tokens), state.vocab_size, "stopTokens");
    if (stopTokens.length > state.max_stop_tokens) {
      fail("stopTokens", `has ${stopTokens.length} tokens`, `give ${state.max_stop_tokens} at most`);
    }
    checkOptions(options);
    this.#known(state, prompt);
    return (this.#active = this.#generate(this.#active, state, prompt, stopTokens, options));
  }

  /** Forget what is behind the first `nTokens` of the sequence; their KV cache is used again.
   * @param {number} nTokens */
  async rewind(nTokens) {
    await this.#endActive();
    const { tokens, past } = this.#history;
    this.#history = { tokens: tokens.slice(0, nTokens), past: Math.min(past, nTokens) };
  }

  /** Forget the sequence. The memory of the KV cache stays. */
  reset() {
    return this.rewind(0);
  }

  /** Give the GPU's memory back. The session cannot be used afterwards. */
  async destroy() {
    if (!this.#resources) return;
    const { device } = this.#resources;
    const ended = this.#endActive();
    this.#resources = null;
    await ended;
    device.destroy();
  }

  #alive() {
    if (this.#resources) return this.#resources;
    fail("the session", "is destroyed", "load the artifact again");
  }

  async #endActive() {
    this.#alive();
    const active = this.#active;
    this.#active = null;
    await active?.return();
  }

  /** @param {unknown} error what is thrown on, unless it is the loss of the device: then all is made again */
  async #recover(error) {
    if (!(error instanceof DeviceLost)) throw error;
    this.#alive();
    const resources = await this.#remake();
    if (!this.#resources) resources.device.destroy();
    this.#alive();
    this.#resources = resources;
    this.#history.past = 0;
  }

  /** Number of tokens when `prompt` is added. @param {SequenceState} state @param {number[]} prompt */
  #known({ capacity }, prompt) {
    const known = this.#history.tokens.length;
    const n = known + prompt.length;
    if (!n) fail("the prompt", "is empty", "give at least one token");
    if (n <= capacity) return n;
    const problem = `holds ${capacity} positions: ${known} tokens of history and ${prompt.length} new ones are too many`;
    fail("the KV cache", problem, "call reset(), give fewer tokens, or compile with a larger --max-length");
  }

  /** @param {AsyncGenerator<number, void> | null} previous @param {SequenceState} state @param {number[]} prompt
   * @param {number[]} stopTokens @param {GenerateOptions} options @returns {AsyncGenerator<number, void>} */
  async *#generate(previous, state, prompt, stopTokens, options) {
    await previous?.return();
    await this.#running;
    const { maxNewTokens = Infinity, tokensPerSubmit = TOKENS_PER_SUBMIT, signal } = options;
    const wanted = this.#known(state, prompt) + maxNewTokens; // the one before may have gone on meanwhile
    const limit = Math.min(wanted, state.capacity + 1);
    const { seed, sampling } = samplingWords(options);
    const history = this.#history;
    const request = { limit, stopTokens, tokensPerSubmit, sampling, signal };
    this.finishReason = null;
    this.seed = seed;
    signal?.throwIfAborted();
    for (const token of prompt) history.tokens.push(token);
    /** @type {"stop" | "length"} */
    let reason = "length";
    for (let lost = -1; history.tokens.length < limit; ) {
      history.past = Math.min(history.past, history.tokens.length - 1); // something to sample from
      try {
        reason = yield* replayTokens(this.#alive(), state, history, request);
        break;
      } catch (error) {
        if (lost === history.tokens.length) throw error; // twice in one place
        lost = history.tokens.length;
        await this.#recover(error);
      }
    }
    this.finishReason = reason === "length" && wanted > limit ? "capacity" : reason;
  }

  /** @param {Record<string, any>} inputs @param {string[]} names */
  async #runGraph(inputs, names) {
    const resources = this.#alive();
    const { buffers, program, device, programs } = resources;
    const prepared = await program("run");
    const { inputs: ports = [], outputs } = programs.run;
    for (const port of ports) {
      const value = inputs[port.name] ?? fail(`input '${port.name}'`, "is missing", "give every input of the model");
      device.queue.writeBuffer(buffers[port.buffer], 0, toStorage(port, value));
    }
    return named(names, (name, i) => readPort(resources, i ? [] : [prepared], outputs, name));
  }

  /** @param {SequenceState} state @param {Record<string, any>} inputs @param {string[]} names */
  async #runDecoder(state, inputs, names) {
    const resources = this.#alive();
    const history = this.#history;
    const odd = Object.keys(inputs).find((name) => name !== state.ids);
    if (odd !== undefined) fail(`input '${odd}'`, "cannot be given", "leave it out: the session keeps the sequence itself");
    const [given, subject] = [inputs[state.ids], `input '${state.ids}'`];
    const ids = tokenIds(given?.data ?? given, state.vocab_size, subject);
    if (!ids.length) fail(subject, "is empty", "give at least one token");
    this.#known(state, ids);
    const tokens = [...history.tokens, ...ids];
    const all = names.includes(state.logits);
    const logits = await replayLogits(resources, state, tokens, history.past, history.tokens.length, all);
    const read = (/** @type {string} */ name) => (name === state.logits ? logits : present(resources, name, tokens.length));
    const results = await named(names, read);
    [history.tokens, history.past] = [tokens, tokens.length];
    return results;
  }
}

/** @param {string[]} names @param {(name: string, i: number) => Tensor | Promise<Tensor>} read
 * @returns {Promise<Record<string, Tensor>>} */
async function named(names, read) {
  return Object.fromEntries(await Promise.all(names.map(async (name, i) => [name, await read(name, i)])));
}

/** The valid part [1, kv_heads, total, head_size] of a cache [1, kv_heads, capacity, head_size].
 * @param {Resources} resources @param {string} name @param {number} total @returns {Promise<Tensor>} */
async function present(resources, name, total) {
  const { type, dims, data } = await readPort(resources, [], resources.programs.decode.outputs, name);
  const [, heads, capacity, size] = dims;
  const parts = Array.from({ length: heads }, (_, i) => data.subarray(i * capacity * size, (i * capacity + total) * size));
  return join(parts, type, [1, heads, total, size]);
}
