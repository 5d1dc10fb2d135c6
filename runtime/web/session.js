/** A loaded artifact: `run` and `generate` on top of the captured graph. */
import { STORAGE_NBYTES } from "./check.js";
import { DeviceLost, RuntimeFailure } from "./errors.js";
import { begin, replayTokens } from "./generate.js";
import { fromStorage, toStorage } from "./ports.js";
import { checkSampling } from "./sampling.js";
import { checkCapacity, chooseChunks, sizesOf, tokenIds } from "./sequence.js";

/** @import { Manifest, ModelPort, Port, SequenceState, Variant } from "./types.js" */
/** @import { Resources } from "./resources.js" */
/** @import { History, Request } from "./generate.js" */
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

/** A call of `generate`, checked.
 * @typedef {{state: SequenceState, prompt: number[], maxNewTokens: number, stopTokens: number[], tokensPerSubmit: number, signal: AbortSignal | undefined, sampling: import("./sampling.js").Sampling}} Asked */

const TOKENS_PER_SUBMIT = 8;
const RECOVERIES = 3;

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
  #programs;

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
    this.#programs = variant.programs;
    this.#resources = resources;
    this.#remake = remake;
  }

  get adapterInfo() {
    return this.#alive().device.adapterInfo;
  }

  /** The GPUDevice in use; another one after a loss. */
  get device() {
    return this.#alive().device;
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
      const names = this.#checkNames(inputs, outputs);
      if (!this.manifest.sequence) return this.#recovering(() => this.#runGraph(inputs, names));
      return this.#runDecoder(this.manifest.sequence, inputs, names);
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
    const request = this.#request(ids, options); // what cannot be used is said at once
    const iterator = this.#generate(this.#active, request);
    this.#active = iterator;
    return iterator;
  }

  /** Forget the sequence. The memory of the KV cache stays. */
  async reset() {
    await this.#endActive();
    this.#history = { tokens: [], past: 0 };
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
    throw new RuntimeFailure("the session", "is destroyed", "load the artifact again");
  }

  async #endActive() {
    this.#alive();
    const active = this.#active;
    this.#active = null;
    await active?.return();
  }

  /** Do `work`; when the device is lost, make everything again and start over. @template T
   * @param {() => Promise<T>} work @returns {Promise<T>} */
  async #recovering(work) {
    try {
      return await work();
    } catch (error) {
      await this.#recover(error);
      return work();
    }
  }

  /** @param {unknown} error what is thrown on, unless it is the loss of the device */
  async #recover(error) {
    if (!(error instanceof DeviceLost)) throw error;
    this.#alive();
    const resources = await this.#remake();
    if (!this.#resources) resources.device.destroy();
    this.#alive();
    this.#resources = resources;
    this.#history.past = 0;
  }

  /** @param {Iterable<any>} ids @param {GenerateOptions} options @returns {Asked} */
  #request(ids, options) {
    this.#alive();
    const state = this.manifest.sequence;
    if (!state) throw new RuntimeFailure("generate", "needs a language model", "use run() for this model");
    const prompt = tokenIds(ids, state.vocab_size);
    const { maxNewTokens = Infinity, tokensPerSubmit = TOKENS_PER_SUBMIT, signal } = options;
    if (maxNewTokens !== Infinity) checkWhole("maxNewTokens", maxNewTokens, 0);
    checkWhole("tokensPerSubmit", tokensPerSubmit, 1);
    const stopTokens = [...new Set(tokenIds(options.stopTokens ?? state.stop_tokens, state.vocab_size, "stopTokens"))];
    if (stopTokens.length > state.max_stop_tokens) {
      const problem = `has ${stopTokens.length} tokens`;
      throw new RuntimeFailure("stopTokens", problem, `give ${state.max_stop_tokens} at most`);
    }
    const sampling = checkSampling(options, state.words);
    const request = { state, prompt, maxNewTokens, stopTokens, tokensPerSubmit, signal, sampling };
    this.#limit(request);
    return request;
  }

  /** How many tokens there are at the end. @param {{state: SequenceState, prompt: number[], maxNewTokens: number}} request */
  #limit({ state, prompt, maxNewTokens }) {
    const known = this.#history.tokens.length;
    const nTokens = known + prompt.length;
    if (!nTokens) throw new RuntimeFailure("the prompt", "is empty", "give at least one token");
    checkCapacity(nTokens, known, state.capacity);
    const [wanted, most] = [nTokens + maxNewTokens, state.capacity + 1];
    return { limit: Math.min(wanted, most), full: wanted > most };
  }

  /** @param {AsyncGenerator<number, void> | null} previous
   * @param {Asked} asked @returns {AsyncGenerator<number, void>} */
  async *#generate(previous, asked) {
    await previous?.return();
    await this.#running;
    const { state, prompt, signal, sampling } = asked;
    const { limit, full } = this.#limit(asked); // the one before may have gone on meanwhile
    const history = this.#history;
    /** @type {Request} */
    const request = { ...asked, nTokens: 0, limit, sampling: sampling.words };
    this.finishReason = null;
    this.seed = sampling.seed;
    signal?.throwIfAborted();
    for (const token of prompt) history.tokens.push(token);
    for (let failures = 0, at = 0; ; ) {
      request.nTokens = history.tokens.length;
      if (request.nTokens === request.limit) break;
      history.past = Math.max(0, Math.min(history.past, request.nTokens - 1)); // something to sample from
      try {
        const reason = yield* replayTokens(this.#alive(), state, history, request, sizesOf(this.#programs, "prefill"));
        this.finishReason = reason;
        break;
      } catch (error) {
        failures = history.tokens.length > at ? 1 : failures + 1;
        at = history.tokens.length;
        if (failures > RECOVERIES) throw error;
        await this.#recover(error);
      }
    }
    this.finishReason ??= "length";
    if (this.finishReason === "length" && full) this.finishReason = "capacity";
  }

  /** The outputs wanted; refuses names that are not the model's.
   * @param {Record<string, any>} inputs @param {string[]} [outputs] */
  #checkNames(inputs, outputs) {
    const { model, sequence } = this.manifest;
    /** @type {(side: string, ports: ModelPort[], names: string[]) => void} */
    const check = (side, ports, names) => {
      const has = ports.map(({ name }) => name);
      const odd = names.find((name) => !has.includes(name));
      if (odd === undefined) return;
      throw new RuntimeFailure(`${side} '${odd}'`, "is not the model's", `choose from ${has.slice(0, 6).join(", ")}`);
    };
    check("input", model.inputs, Object.keys(inputs));
    const names = outputs ?? (sequence ? [sequence.logits] : model.outputs.map(({ name }) => name));
    check("output", model.outputs, names);
    return names;
  }

  /** @param {Record<string, any>} inputs @param {string[]} names */
  async #runGraph(inputs, names) {
    const { recorder, buffers, program, device } = this.#alive();
    const prepared = await program("run");
    const { inputs: ports = [], outputs = [] } = this.#programs.run;
    const uploads = ports.map((port) => {
      if (!Object.hasOwn(inputs, port.name)) {
        throw new RuntimeFailure(`input '${port.name}'`, "is missing", "give every input of the model");
      }
      return /** @type {const} */ ([port, toStorage(port, inputs[port.name])]);
    });
    const buffer = (/** @type {Port} */ port) => /** @type {GPUBuffer} */ (buffers.get(port.buffer));
    for (const [port, bytes] of uploads) device.queue.writeBuffer(buffer(port), 0, /** @type {any} */ (bytes));
    const wanted = names.map((name) => /** @type {Port} */ (outputs.find((port) => port.name === name)));
    const bytes = await recorder.read(
      [prepared],
      wanted.map((port) => [buffer(port), 0, port.nbytes]),
    );
    let at = 0;
    const tensors = wanted.map((port) => {
      at += port.nbytes;
      return [port.name, fromStorage(port, bytes, at - (port.nbytes), port.shape)];
    });
    return Object.fromEntries(tensors);
  }

  /** @param {SequenceState} state @param {Record<string, any>} inputs @param {string[]} names */
  async #runDecoder(state, inputs, names) {
    const history = this.#history;
    for (const name of Object.keys(inputs)) {
      if (name === state.ids) continue;
      const hint = "leave it out: the session keeps the KV cache, mask and positions of its sequence";
      throw new RuntimeFailure(`input '${name}'`, "cannot be given", hint);
    }
    const [given, subject] = [inputs[state.ids], `input '${state.ids}'`];
    const ids = tokenIds(given?.data ?? given ?? [], state.vocab_size, subject);
    if (!ids.length) throw new RuntimeFailure(subject, "is empty", "give at least one token");
    const tokens = [...history.tokens, ...ids];
    checkCapacity(tokens.length, history.tokens.length, state.capacity);
    const kind = names.includes(state.logits) && state.all_logits ? "logits" : "prefill";
    const logits = await this.#recovering(() => this.#logits(state, tokens, kind));
    history.tokens = tokens;
    history.past = tokens.length;
    /** @type {Record<string, Tensor>} */
    const result = {};
    for (const name of names) result[name] = name === state.logits ? logits : await this.#present(name);
    return result;
  }

  /** Feed `tokens`; logits of every new row (kind "logits") or of the last one.
   * @param {SequenceState} state @param {number[]} tokens @param {"logits" | "prefill"} kind
   * @returns {Promise<Tensor>} */
  async #logits(state, tokens, kind) {
    const resources = this.#alive();
    let { past } = this.#history;
    const firstRow = kind === "logits" ? this.#history.tokens.length : tokens.length - 1;
    const call = { past, nTokens: tokens.length, limit: state.capacity + 1, stopTokens: [], sampling: {} };
    const chunks = chooseChunks(tokens.length - past, sizesOf(this.#programs, kind));
    const names = chunks.map((rows) => (rows === 1 ? "decode" : `${kind}_${rows}`));
    const programs = await Promise.all(names.map(resources.program));
    begin(resources, state, tokens, call);
    const parts = [];
    for (const [i, rows] of chunks.entries()) {
      const [name, program] = [names[i], programs[i]];
      const end = past + Math.min(rows, tokens.length - past);
      const from = Math.max(firstRow, past);
      if (from >= end) resources.recorder.submit([program]);
      else {
        const port = /** @type {Port} */ (this.#programs[name].outputs?.find((p) => p.name === state.logits));
        const row = state.vocab_size * STORAGE_NBYTES[port.storage];
        const [n, skip] = [end - from, kind === "logits" ? from - past : 0];
        const start = Math.floor((skip * row) / 4) * 4;
        const stop = Math.ceil(((skip + n) * row) / 4) * 4;
        const buffer = /** @type {GPUBuffer} */ (resources.buffers.get(port.buffer));
        const bytes = await resources.recorder.read([program], [[buffer, start, stop - start]]);
        parts.push(fromStorage(port, bytes, skip * row - start, [1, n, state.vocab_size]));
      }
      past = end;
    }
    if (parts.length === 1) return parts[0];
    const data = new Float32Array((tokens.length - firstRow) * state.vocab_size);
    parts.reduce((at, part) => (data.set(part.data, at), at + part.data.length), 0);
    return { type: "float32", dims: [1, tokens.length - firstRow, state.vocab_size], data };
  }

  /** The valid part [1, kv_heads, total, head_size] of a cache [1, kv_heads, capacity, head_size].
   * @param {string} name @returns {Promise<Tensor>} */
  async #present(name) {
    const { recorder, buffers } = this.#alive();
    const port = this.#programs.decode.outputs?.find((each) => each.name === name);
    if (!port) throw new RuntimeFailure(`output '${name}'`, "cannot be read", "ask for the logits");
    const buffer = /** @type {GPUBuffer} */ (buffers.get(port.buffer));
    const [, heads, capacity, size] = port.shape;
    const whole = fromStorage(port, await recorder.read([], [[buffer, 0, port.nbytes]]), 0, [1, heads, capacity, size]);
    const total = this.#history.tokens.length;
    const data = new whole.data.constructor(heads * total * size);
    for (let head = 0; head < heads; head++) {
      const from = head * capacity * size;
      data.set(whole.data.subarray(from, from + total * size), head * total * size);
    }
    return { type: whole.type, dims: [1, heads, total, size], data };
  }
}

/** @param {string} name @param {any} value @param {number} least */
function checkWhole(name, value, least) {
  if (Number.isInteger(value) && value >= least) return;
  throw new RuntimeFailure(name, `is ${String(value).slice(0, 40)}`, `give a whole number from ${least}`);
}
