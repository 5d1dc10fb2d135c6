/**
 * Generation: the GPU feeds itself, the host encodes ahead and reads tokens now and then.
 *
 *   host   encode A,B | read A, encode C | read B, encode D | ...
 *   GPU               A                  B                  C
 *
 * A batch is N decode steps in one submission, with one copy of the sequence's words and of its tokens.
 */
import { RuntimeFailure } from "./errors.js";
import { chooseChunks, wordsOf } from "./sequence.js";

/** @import { SequenceState } from "./types.js" */
/** @import { Resources } from "./resources.js" */
/** The tokens so far; `past` of them are in the KV cache for certain. @typedef {{tokens: number[], past: number}} History */
/** @typedef {{nTokens: number, limit: number, stopTokens: number[], tokensPerSubmit: number, sampling: Record<string, number>, signal?: AbortSignal | undefined}} Request */

const IN_FLIGHT = 2;

/** Upload the tokens that are not in the cache, and the words of a call.
 * @param {Resources} resources @param {SequenceState} state @param {number[]} tokens
 * @param {import("./sequence.js").Call} call */
export function begin({ device, buffers }, state, tokens, call) {
  const [words, ids] = [state.buffer, state.tokens].map((i) => /** @type {GPUBuffer} */ (buffers.get(i)));
  if (call.past < tokens.length) {
    device.queue.writeBuffer(ids, 4 * call.past, new Int32Array(tokens.slice(call.past)));
  }
  for (const [first, values] of wordsOf(state, call)) {
    device.queue.writeBuffer(words, 4 * first, /** @type {any} */ (values));
  }
}

/**
 * Tokens of `request`, whose prompt is already in `history`; returns why it ended. A stop token is not given.
 * @param {Resources} resources @param {SequenceState} state @param {History} history @param {Request} request
 * @param {number[]} sizes rows of the prompt's programs
 * @returns {AsyncGenerator<number, "stop" | "length">}
 */
export async function* replayTokens(resources, state, history, request, sizes) {
  const { recorder } = resources;
  const nWords = 1 + Math.max(state.words.n_tokens, state.words.stop);
  const [words, ids] = [state.buffer, state.tokens].map((i) => /** @type {GPUBuffer} */ (resources.buffers.get(i)));
  /** @type {{first: number, n: number, bytes: Promise<ArrayBuffer>}[]} */
  const waiting = [];
  const submit = (/** @type {import("./replay.js").Prepared[]} */ work, /** @type {number} */ first, n = 1) => {
    const bytes = recorder.read(work, [[words, 0, 4 * nWords], [ids, 4 * first, 4 * n]]);
    bytes.catch(() => {}); // it is awaited in its turn
    waiting.push({ first, n, bytes });
  };
  const known = request.nTokens;
  const chunks = chooseChunks(known - history.past, sizes);
  const step = request.sampling.sampling ? "decode_sampled" : "decode";
  const names = chunks.map((rows) => (rows === 1 ? step : `prefill_${rows}`));
  const prompt = await Promise.all(names.map(resources.program));
  const decode = await resources.program(step);
  begin(resources, state, history.tokens, { ...request, past: history.past });
  for (const program of prompt.slice(0, -1)) recorder.submit([program]);
  submit(prompt.slice(-1), known);
  history.past = known;
  let encoded = known + 1;
  const encodeAhead = () => {
    while (waiting.length < IN_FLIGHT && encoded < request.limit) {
      const n = Math.min(request.tokensPerSubmit, request.limit - encoded);
      submit(Array(n).fill(decode), encoded, n);
      encoded += n;
    }
  };
  try {
    encodeAhead();
    for (let batch = waiting.shift(); batch; batch = waiting.shift()) {
      const bytes = await batch.bytes;
      const { nTokens, stop, tokens } = readBatch(state, batch, bytes, nWords);
      if (!stop) encodeAhead();
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

/** What the GPU says is checked before it is believed.
 * @param {SequenceState} state @param {{first: number, n: number}} batch @param {ArrayBuffer} bytes
 * @param {number} nWords */
function readBatch(state, { first, n }, bytes, nWords) {
  const words = new Uint32Array(bytes, 0, nWords);
  const [nTokens, stop] = [words[state.words.n_tokens], words[state.words.stop]];
  const tokens = [...new Int32Array(bytes, 4 * nWords, n)].slice(0, Math.max(0, nTokens - first));
  if (nTokens > first + n || (!stop && tokens.length < n)) {
    throw new RuntimeFailure("the GPU", "lost count of its tokens", "compile the model again and report it");
  }
  if (tokens.some((token) => token < 0 || token >= state.vocab_size)) {
    throw new RuntimeFailure("the GPU", "sampled a token outside the vocabulary", "report it with the model");
  }
  return { nTokens, stop, tokens };
}
