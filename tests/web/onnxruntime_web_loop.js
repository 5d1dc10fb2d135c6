/**
 * Greedy decoding with onnxruntime-web's WebGPU provider, as fast as its interface allows: the caches stay in
 * GPU buffers that a step reads and appends to, only the logits come back, and the arg-max is taken here.
 */
import * as ort from "./onnxruntime-web/ort.webgpu.min.mjs";

const NAMES = { float32: Float32Array, float16: globalThis.Float16Array };

/** @param {{shape: {layers: number, kvHeads: number, headSize: number, vocabSize: number, capacity: number}}} options */
export async function start({ shape }) {
  ort.env.wasm.wasmPaths = new URL("./onnxruntime-web/", import.meta.url).href;
  const session = await ort.InferenceSession.create("/peer/model/model.onnx", {
    executionProviders: ["webgpu"],
    externalData: [{ path: "model.onnx.data", data: "/peer/model/model.onnx.data" }],
  });
  const device = await ort.env.webgpu.device;
  const dims = [1, shape.kvHeads, shape.capacity, shape.headSize];
  const { type } = session.inputMetadata.find(({ name }) => name === "past_key_values.0.key");
  const nbytes = dims.reduce((a, b) => a * b) * NAMES[type].BYTES_PER_ELEMENT;
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const caches = {};
  const appended = {};
  for (let layer = 0; layer < shape.layers; layer++) {
    for (const kind of ["key", "value"]) {
      const buffer = device.createBuffer({ size: nbytes, usage });
      const tensor = ort.Tensor.fromGpuBuffer(buffer, { dataType: type, dims });
      caches[`past_key_values.${layer}.${kind}`] = tensor;
      appended[`present.${layer}.${kind}`] = tensor; // in place, as onnxruntime-genai shares past and present
    }
  }
  const takesPositions = session.inputNames.includes("position_ids");

  async function step(ids, past) {
    const total = past + ids.length;
    const whole = (n, value) => new ort.Tensor("int64", BigInt64Array.from({ length: n }, value), [1, n]);
    const feeds = { ...caches, input_ids: whole(ids.length, (_, i) => BigInt(ids[i])) };
    feeds.attention_mask = whole(total, () => 1n);
    if (takesPositions) feeds.position_ids = whole(ids.length, (_, i) => BigInt(past + i));
    const { logits } = await session.run(feeds, { logits: null, ...appended });
    const row = logits.data.subarray(logits.data.length - shape.vocabSize);
    let best = 0;
    for (let i = 1; i < row.length; i++) if (row[i] > row[best]) best = i;
    return best;
  }

  return async function* (prompt, n) {
    let token = await step(prompt, 0);
    for (let i = 0; i < n; i++) {
      yield token;
      if (i + 1 < n) token = await step([token], prompt.length + i);
    }
  };
}
