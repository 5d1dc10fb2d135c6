/**
 * Generation: the GPU feeds itself, the host encodes ahead and reads tokens now and then.
 *
 *   host   encode A,B | read A, encode C | read B, encode D | ...
 *   GPU               A                  B                  C
 *
 * A batch is N decode steps in one submission, with one copy of the sequence's words and of its tokens.
 */
import { join, readPort } from "./ports.js";
import { chooseChunks, sizesOf, wordsOf } from "./sequence.js";

/** @import { SequenceState } from "./types.js" */
/** @import { Prepared } from "./replay.js" */
/** @import { Resources } from "./resources.js" */
/** @import { Tensor } from "./ports.js" */
/** @import { Call } from "./sequence.js" */
/** The tokens so far; `past` of them are in the KV cache for certain. @typedef {{tokens: number[], past: number}} History */
/** @typedef {{limit: number, stopTokens: number[], tokensPerSubmit: number, sampling: Record<string, number>, signal?: AbortSignal | undefined}} Request */

const IN_FLIGHT = 2;

/** Upload what a call begins with, the tokens that are not in the cache and the words; the replays that feed them.
 * @param {Resources} resources @param {SequenceState} state @param {number[]} tokens @param {Omit<Call, "nTokens">} call
 * @param {string} kind of the programs for several rows @param {string} one the program for one row */
async function begin({ device, buffers, programs, program }, state, tokens, call, kind, one) {
  const chunks = chooseChunks(tokens.length - call.past, sizesOf(programs, kind));
  const feed = await Promise.all(
    chunks.map(async (rows) => {
      const name = rows === 1 ? one : `${kind}_${rows}`;
      return { rows, outputs: programs[name].outputs, program: await program(name) };
    }),
  );
  device.queue.writeBuffer(buffers[state.tokens], 4 * call.past, new Int32Array(tokens.slice(call.past)));
  device.queue.writeBuffer(buffers[state.buffer], 0, wordsOf(state, buffers[state.buffer].size / 4, { ...call, nTokens: tokens.length }));
  return feed;
}

/**
 * Tokens of `request`, whose prompt is already in `history`; returns why it ended. A stop token is not given.
 * @param {Resources} resources @param {SequenceState} state @param {History} history @param {Request} request
 * @returns {AsyncGenerator<number, "stop" | "length">}
 */
export async function* replayTokens(resources, state, history, request) {
  const { recorder, buffers, program } = resources;
  const nWords = 1 + Math.max(state.words.n_tokens, state.words.stop);
  /** @type {{first: number, bytes: Promise<ArrayBuffer>}[]} */
  const waiting = [];
  const submit = (/** @type {Prepared[]} */ work, /** @type {number} */ first) => {
    const words = /** @type {const} */ ([buffers[state.buffer], 0, 4 * nWords]);
    const bytes = recorder.read(work, [words, [buffers[state.tokens], 4 * first, 4 * work.length]]);
    bytes.catch(() => {});
    waiting.push({ first, bytes });
  };
  const name = request.sampling.sampling ? "decode_sampled" : "decode";
  const decode = await program(name);
  const known = history.tokens.length;
  const feed = await begin(resources, state, history.tokens, { ...request, past: history.past }, "prefill", name);
  const last = /** @type {typeof feed[0]} */ (feed.pop());
  for (const { program } of feed) recorder.submit([program]);
  submit([last.program], known);
  history.past = known;
  let encoded = known + 1;
  const encodeAhead = () => {
    while (waiting.length < IN_FLIGHT && encoded < request.limit) {
      const n = Math.min(request.tokensPerSubmit, request.limit - encoded);
      submit(Array(n).fill(decode), encoded);
      encoded += n;
    }
  };
  try {
    encodeAhead();
    for (let batch = waiting.shift(); batch; batch = waiting.shift()) {
      const bytes = await batch.bytes;
      const words = new Uint32Array(bytes, 0, nWords);
      const [nTokens, stop] = [words[state.words.n_tokens], words[state.words.stop]];
      if (!stop) encodeAhead();
      const tokens = [...new Int32Array(bytes, 4 * nWords)].slice(0, Math.max(0, nTokens - batch.first));
      for (const token of tokens) {
        request.signal?.throwIfAborted();
        history.tokens.push(token);
        history.past = history.tokens.length - 1;
        yield token;
      }
      if (stop === 1) history.past = nTokens; // the stop token came from the last one's logits
      if (stop) return stop === 1 ? "stop" : "length";
    }
    return "length";
  } finally {
    await Promise.allSettled(waiting.map(({ bytes }) => bytes)); // the GPU may have run ahead
  }
}

/** Feed `tokens`, of which `known` were fed before; logits of every new row, or of the last where the model gives
 * no others or `all` is false. After the loss of a device more than the new ones are fed.
 * @param {Resources} resources @param {SequenceState} state @param {number[]} tokens @param {number} past
 * @param {number} known @param {boolean} all @returns {Promise<Tensor>} */
export async function replayLogits(resources, state, tokens, past, known, all) {
  const kind = all && sizesOf(resources.programs, "logits").length ? "logits" : "prefill";
  const call = { past, limit: state.capacity + 1, stopTokens: [], sampling: {} };
  const feed = await begin(resources, state, tokens, call, kind, "decode");
  const parts = [];
  for (const [i, { rows, outputs, program }] of feed.entries()) {
    const n = kind === "logits" ? Math.min(rows, tokens.length - past) : 1;
    past += rows;
    if (kind === "prefill" && i < feed.length - 1) resources.recorder.submit([program]);
    else parts.push(await readPort(resources, [program], outputs, state.logits, [1, n, state.vocab_size]));
  }
  const n = kind === "logits" ? tokens.length - known : 1;
  return join(parts.map(({ data }) => data.subarray(-n * state.vocab_size)), parts[0].type, [1, n, state.vocab_size]);
}
