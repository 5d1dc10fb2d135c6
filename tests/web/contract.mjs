// The runtime's contract without a browser: Dawn's null backend checks every shader, layout and call, and
// computes nothing. Run by tests/test_web.py with the artifact's folder and what Python says in a JSON file.
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { test } from "node:test";
import { webcrypto } from "node:crypto";

globalThis.crypto ??= webcrypto;
const { folder, modules, expected, npm } = JSON.parse(readFileSync(process.env.CONTRACT, "utf8"));
const { create, globals } = await import(createRequire(path.join(npm, "x.js")).resolve("webgpu"));
Object.assign(globalThis, globals);
globalThis.Float16Array ??= Uint16Array; // before Node 24; what is computed here means nothing anyway
const gpu = create(["backend=null"]);
const module = (name) => import(path.join(modules, name));
const { load } = await module("runtime.js");
const { sha256 } = await module("store.js");

const bytesOf = (name) => readFileSync(path.join(folder, name));
const clone = () => JSON.parse(bytesOf("manifest.json"));

/** A server: files of the artifact; `edit` may replace what it answers. */
function server(edit = {}) {
  const log = [];
  const fetch = async (url, { headers = {} } = {}) => {
    const name = decodeURIComponent(new URL(url).pathname).slice(1);
    const range = /bytes=(\d+)-(\d+)/.exec(headers.range ?? "");
    log.push({ name, range: headers.range });
    const answer = edit[name]?.(headers);
    if (answer instanceof Response || answer instanceof Promise) return answer;
    if (!answer && !existsSync(path.join(folder, name))) return new Response("", { status: 404 });
    const data = answer ?? bytesOf(name);
    if (!range) return new Response(data, { headers: { "content-length": data.length } });
    const [from, to] = [Number(range[1]), Number(range[2]) + 1];
    const part = data.subarray(from, to);
    return new Response(part, { status: 206, headers: { "content-range": `bytes ${from}-${to - 1}/${data.length}` } });
  };
  return { fetch, log };
}
const loadFrom = (edit, options = {}) => load("http://x/", { gpu, cache: false, fetch: server(edit).fetch, ...options });
const manifestWith = (change) => {
  const manifest = clone();
  change(manifest);
  return { "manifest.json": () => Buffer.from(JSON.stringify(manifest)) };
};
const shard = clone().shards[0];
const weights = `weights/${shard.file}`;

test("loads, with progress as transformers.js has it", async () => {
  const events = [];
  const session = await loadFrom({}, { onProgress: (event) => events.push(event) });
  const kinds = [...new Set(events.map(({ status }) => status))];
  assert.deepEqual(kinds.sort(), ["done", "download", "initiate", "progress", "progress_total", "ready"]);
  const totals = events.filter(({ status }) => status === "progress_total").map(({ progress }) => progress);
  assert.ok(totals.length >= 2 && totals[0] === 0 && totals.at(-1) === 100);
  assert.deepEqual(totals, [...totals].sort((a, b) => a - b));
  assert.match(session.variantReason, /^portable: /);
  await session.destroy();
  await session.destroy();
  assert.throws(() => session.generate([1]), /is destroyed/);
});

test("every program encodes without a word from Dawn", async () => {
  const session = await loadFrom();
  const lengths = [1, 16, 17, expected.capacity - 40];
  for (const length of lengths) {
    await session.reset();
    const { logits } = await session.run({ input_ids: Array(length).fill(1) });
    assert.deepEqual(logits.dims, [1, length, expected.vocab_size]);
    assert.equal(logits.data.length, length * expected.vocab_size);
  }
  const present = clone().model.outputs.find(({ name }) => name.startsWith("present"));
  const got = (await session.run({ input_ids: new BigInt64Array([3n]) }, [present.name]))[present.name];
  assert.equal(got.dims[2], lengths.at(-1) + 1);
  await session.destroy();
});

test("software GPUs get the variant that was made for them", async () => {
  const { chooseVariant } = await module("device.js");
  const variants = [{ name: "portable" }, { name: "software", software: true }];
  for (const variant of variants) Object.assign(variant, { features: [], limits: {}, programs: {} });
  const adapter = (isFallbackAdapter) => ({ info: { isFallbackAdapter }, features: new Set(), limits: gpuLimits });
  const { limits: gpuLimits } = await gpu.requestAdapter();
  assert.equal(chooseVariant(variants, adapter(true)).reason, "software: made for GPUs that a CPU plays");
  assert.equal(chooseVariant(variants, adapter(false)).variant.name, "portable");
  assert.equal(chooseVariant(variants, adapter(undefined)).variant.name, "portable");
  assert.equal(chooseVariant(variants, adapter(true), "portable").reason, "portable: asked for");
  assert.equal(chooseVariant(variants.slice(1), adapter(false)).variant.name, "software");
});

test("words, chunks and sampling are Python's", async () => {
  const { wordsOf, chooseChunks } = await module("sequence.js");
  const { samplingWords } = await module("sampling.js");
  for (const [n, sizes, chunks] of expected.chunks) assert.deepEqual(chooseChunks(n, sizes), chunks, `${n}`);
  for (const [options, words] of expected.sampling) {
    assert.deepEqual(samplingWords(options).sampling, words, JSON.stringify(options));
  }
  const state = clone().sequence;
  const call = { past: 3, nTokens: 9, limit: 20, stopTokens: [5, 6], sampling: { top_k: 7 } };
  const placed = wordsOf(state, 64, call);
  const at = (name) => placed[state.words[name]];
  assert.deepEqual([at("past_length"), at("length"), at("total_length"), at("call_length")], [3, 1, 4, 9]);
  assert.deepEqual([at("n_tokens"), at("limit"), at("stop"), at("n_stop_tokens")], [9, 20, 0, 2]);
  assert.deepEqual([placed[state.words.stop_tokens], placed[state.words.stop_tokens + 1]], [5, 6]);
  assert.deepEqual([at("top_k"), at("sampling")], [7, 0]);
});

test("refuses what cannot be used, in a sentence", async () => {
  const session = await loadFrom();
  const refuse = (call, pattern) => assert.throws(call, (error) => error.name === "RuntimeFailure" && pattern.test(error.message));
  refuse(() => session.generate([]), /the prompt: is empty/);
  refuse(() => session.generate("text"), /is not a list of token ids/);
  refuse(() => session.generate([1, expected.vocab_size]), /at position 1, no token/);
  refuse(() => session.generate([1], { maxNewTokens: -1 }), /maxNewTokens: is -1/);
  refuse(() => session.generate([1], { tokensPerSubmit: 0.5 }), /tokensPerSubmit: is 0.5/);
  refuse(() => session.generate([1], { temperature: -1 }), /temperature: is -1/);
  refuse(() => session.generate(Array(expected.capacity + 1).fill(1)), /the KV cache: holds \d+ positions: 0 tokens of history and \d+ new ones are too many; call reset/);
  await assert.rejects(session.run({ ids: [1] }), /input 'ids': cannot be given/);
  await assert.rejects(session.run({ input_ids: [1] }, ["y"]), /output 'y': is not the model's; choose from /);
  await assert.rejects(session.run({ input_ids: [1], attention_mask: [1] }), /cannot be given; leave it out/);
  await assert.rejects(session.run({ input_ids: [] }), /is empty/);
  assert.deepEqual(session.tokens, []);
  const controller = new AbortController();
  controller.abort();
  await assert.rejects(session.generate([1], { signal: controller.signal }).next(), { name: "AbortError" });
  await session.destroy();
});

const damage = [
  ["another format", (m) => (m.format = "onnx"), /was not written by webgpu-compile/],
  ["a newer schema", (m) => (m.version = 4), /has schema version 4, and this runtime reads 3/],
  ["a wrong type", (m) => (m.buffers[0].nbytes = "4"), /breaks the schema: buffers.0.nbytes is no whole number/],
  ["a size that is no size", (m) => (m.buffers[0].nbytes = -4), /breaks the schema: buffers.0.nbytes is no whole number/],
  ["a missing field", (m) => delete m.model.name, /model lacks name/],
  ["a binding out of range", (m) => (m.ranges[m.programs.decode.steps[0][1]][2] = 2 ** 40), /program 'decode': breaks WebGPU's rules; compile the model again/],
  ["a shader that is not there", (m) => (m.variants[0].launches[0][0] = 9999), /program '.*': breaks WebGPU's rules/],
  ["a range that is not there", (m) => (m.programs.decode.steps[0][1] = 9999), /program 'decode': breaks WebGPU's rules/],
  ["a kernel that is not there", (m) => (m.programs.decode.steps[0][0] = 9999), /program 'decode': breaks WebGPU's rules/],
  ["a kernel that the variant does not run", (m) => (m.variants[0].launches[0] = null), /program '.*': breaks WebGPU's rules/],
  ["a grid beyond every limit", (m) => (m.variants[0].launches[0][1] = [2 ** 20, 1, 1]), /breaks WebGPU's rules/],
  ["a shard of another size", (m) => (m.shards[0].nbytes += 4), /and its buffer or blocks differ in size/],
  ["a word outside the buffer", (m) => (m.sequence.words.stop = 60000), /too small for its words/],
  ["no decode program", (m) => delete m.programs.decode, /lacks 'decode'/],
  ["a limit that nobody has", (m) => (m.variants[0].limits["max-buffer-size"] = 2 ** 50), /needs maxBufferSize \(needs/],
  ["a feature that nobody has", (m) => (m.variants[0].features = ["subgroups", "shader-f16"]), null],
];
for (const [what, change, pattern] of damage) {
  test(`a manifest with ${what}`, async () => {
    const loading = loadFrom(manifestWith(change));
    if (pattern) await assert.rejects(loading, (error) => error.name === "RuntimeFailure" && pattern.test(error.message));
    else await loading.then((session) => session.destroy(), (error) => assert.match(error.message, /cannot run it/));
  });
}

test("the second variant is taken when the first cannot run, and says why", async () => {
  const edit = manifestWith((m) => {
    m.variants.unshift({ ...m.variants[0], name: "huge", limits: { "max-buffer-size": 2 ** 50 } });
  });
  const session = await loadFrom(edit);
  assert.equal(session.variant, "portable");
  assert.match(session.variantReason, /the best that this adapter runs \(huge needs maxBufferSize/);
  await session.destroy();
  await assert.rejects(loadFrom(edit, { variant: "huge" }), /cannot run it: huge needs maxBufferSize/);
  await assert.rejects(loadFrom({}, { variant: "x" }), /variant 'x': is not in this artifact; choose from portable/);
});

test("a variant tuned for one adapter is for that one, unless it is forced", async () => {
  const edit = manifestWith((m) => {
    const adapter = { vendor: "nvidia", device: "NVIDIA H200" };
    m.variants.unshift({ ...m.variants[0], name: "tuned", adapter });
  });
  const named = (info) => ({
    requestAdapter: async () =>
      new Proxy(await gpu.requestAdapter(), {
        get: (adapter, key) => {
          const value = key === "info" ? info : adapter[key];
          return typeof value === "function" ? value.bind(adapter) : value;
        },
      }),
  });
  const chosen = async (info, options = {}) => {
    const session = await loadFrom(edit, { gpu: named(info), ...options });
    await session.destroy();
    return [session.variant, session.variantReason];
  };
  assert.equal((await chosen({ vendor: "nvidia", device: "" }))[0], "tuned");
  assert.equal((await chosen({ vendor: "nvidia", device: "NVIDIA H200" }))[0], "tuned");
  const [variant, reason] = await chosen({ vendor: "nvidia", device: "NVIDIA L4" });
  assert.equal(variant, "portable");
  assert.equal(reason, "portable: the best that this adapter runs (tuned needs the adapter NVIDIA H200)");
  assert.equal((await chosen({ vendor: "apple", device: "" }))[0], "portable");
  assert.equal((await chosen({ vendor: "apple", device: "" }, { variant: "tuned" }))[0], "tuned");
});

test("what a server can do wrong", async () => {
  const gone = () => new Response("", { status: 404 });
  await assert.rejects(loadFrom({ "manifest.json": gone }), /manifest.json: is missing on the server \(HTTP 404\)/);
  await assert.rejects(loadFrom({ "manifest.json": () => Buffer.from("<html>") }), /manifest.json: is cut short, or was not written by webgpu-compile; copy the whole folder/);
  await assert.rejects(loadFrom({ [weights]: gone }), /is missing on the server/);
  await assert.rejects(loadFrom({ [weights]: () => Buffer.from("<html>") }), /has 6 bytes, not/);
  const flipped = Buffer.from(bytesOf(weights));
  flipped[flipped.length - 9] ^= 1;
  await assert.rejects(loadFrom({ [weights]: () => flipped }), /has other content than was compiled/);
  const file = `shaders/${clone().shaders[0].file}`;
  await assert.rejects(loadFrom({ [file]: () => Buffer.from("fn main() {}") }), /has other content than was compiled/);
  const offline = () => Promise.reject(new TypeError("Failed to fetch"));
  await assert.rejects(loadFrom({ "manifest.json": offline }), /cannot be downloaded .* check the connection/);
});

/** A stream that breaks after `n` bytes. */
function broken(data, n) {
  let begun = false;
  return new ReadableStream({
    pull(controller) {
      if (begun) controller.error(new Error("connection reset"));
      else controller.enqueue(new Uint8Array(data.subarray(0, n)));
      begun = true;
    },
  }, { highWaterMark: 0 });
}

test("a broken download goes on where it stopped", async () => {
  const data = bytesOf(weights);
  let times = 0;
  const { fetch, log } = server({ [weights]: (headers) => (times++ || headers.range ? undefined : new Response(broken(data, data.length - 5000))) });
  const session = await load("http://x/", { gpu, cache: false, fetch });
  const asked = log.filter(({ name }) => name === weights);
  assert.deepEqual(asked.map(({ range }) => range), [undefined, `bytes=${data.length - 5000}-${data.length - 1}`]);
  await session.destroy();
});

test("blocks that were kept are not fetched; damaged ones are", async () => {
  const kept = new Map();
  const backend = {
    get: async (key) => new Blob([kept.get(key) ?? assert.fail("not there")]),
    put: async (key, bytes) => void kept.set(key, bytes.slice()),
    clear: async () => kept.clear(),
  };
  const { openSource } = await module("source.js");
  const read = async () => {
    const { fetch, log } = server();
    const source = openSource(new URL("http://x/"), fetch, backend);
    const parts = [];
    await source.blocks(shard, async (number, bytes) => void parts.push(Buffer.from(bytes)), () => {});
    assert.ok(Buffer.concat(parts).equals(bytesOf(weights)));
    return log.map(({ range }) => range);
  };
  const { blocks, block_nbytes: size, nbytes } = shard;
  assert.deepEqual(await read(), [undefined]);
  assert.deepEqual(await read(), []);
  kept.get(blocks[0])[9] ^= 1;
  const range = `bytes=0-${Math.min(size, nbytes) - 1}`;
  assert.deepEqual(await read(), [nbytes <= size ? undefined : range]);
  kept.set(blocks.at(-1), kept.get(blocks.at(-1)).slice(1));
  assert.equal((await read()).length, 1);
  assert.equal(await sha256(kept.get(blocks.at(-1))), blocks.at(-1));
});

test("a full disk is a warning", async () => {
  const warnings = [];
  const full = async () => {
    throw Object.assign(new Error("full"), { name: "QuotaExceededError" });
  };
  const { openSource } = await module("source.js");
  const source = openSource(null, null, { get: full, put: full, clear: full }, (text) => warnings.push(text));
  await source.keep("key", new Uint8Array(4));
  await source.keep("key", new Uint8Array(4));
  assert.equal(warnings.length, 1);
  assert.match(warnings[0], /this browser's storage is full: what is not kept will be loaded again/);
});

test("without a network the manifest last seen is taken, and nothing that was never there", async () => {
  const kept = new Map();
  const storage = { get: async (key) => new Blob([kept.get(key) ?? assert.fail()]), put: async (key, bytes) => void kept.set(key, bytes) };
  const { openSource } = await module("source.js");
  const base = new URL("http://x/");
  const text = await openSource(base, server().fetch, storage).manifest();
  assert.deepEqual(JSON.parse(text), clone());
  const offline = () => Promise.reject(new TypeError("Failed to fetch"));
  assert.equal(await openSource(base, offline, storage).manifest(), text);
  await assert.rejects(openSource(new URL("http://y/"), offline, storage).manifest(), /cannot be downloaded/);
  const gone = openSource(base, async () => new Response("", { status: 404 }), storage);
  await assert.rejects(gone.manifest(), /is missing on the server/, "a server that answers is believed");
});

test("the sequence can be taken back", async () => {
  const session = await loadFrom();
  await session.run({ input_ids: [1, 2, 3, 4] });
  await session.rewind(2);
  assert.deepEqual(session.tokens, [1, 2]);
  await session.run({ input_ids: [5] });
  assert.deepEqual(session.tokens, [1, 2, 5]);
  await session.destroy();
});

test("the replay loop itself takes nothing", async () => {
  const { encode } = await module("replay.js");
  const pass = { setPipeline() {}, setBindGroup() {}, dispatchWorkgroups() {}, end() {} };
  const dispatches = Array.from({ length: 100 }, () => ({ pipeline: pass, group: pass, grid: [1, 2, 3], indirect: null }));
  const work = Array(100).fill([{ pass: dispatches }]);
  const rounds = Array.from({ length: 20 }, () => {
    const began = performance.now();
    encode({ beginComputePass: () => pass }, work);
    return (1e3 * (performance.now() - began)) / 10_000;
  });
  assert.ok(Math.min(...rounds) < 0.5, `${Math.min(...rounds)} µs a dispatch`);
});

test("the device may be lost between calls", async () => {
  const session = await loadFrom();
  await session.run({ input_ids: [1, 2] });
  const { device } = session;
  device.destroy();
  const { logits } = await session.run({ input_ids: [3] });
  assert.deepEqual(logits.dims, [1, 1, expected.vocab_size]);
  assert.notEqual(session.device, device);
  assert.deepEqual(session.tokens, [1, 2, 3]);
  await session.destroy();
});
