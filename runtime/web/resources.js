/** GPU objects of one variant: buffers with their weights, pipelines, bind groups, prepared programs. */
import { RECOMPILE, RuntimeFailure, fail } from "./errors.js";
import { Recorder, capture, encode } from "./replay.js";
import { sizesOf } from "./sequence.js";

/** @import { Manifest, Shard, Variant } from "./types.js" */
/** @import { Report, Source } from "./source.js" */
/** @import { Prepared } from "./replay.js" */
/** @typedef {{device: GPUDevice, recorder: Recorder, buffers: GPUBuffer[], programs: Variant["programs"], program: (name: string) => Promise<Prepared>, nbytes: number}} Resources */

const FLUSH_NBYTES = 64 << 20;
const STORAGE_AND_COPIES = 0x80 | 0x4 | 0x8;
const INDIRECT = 0x100;

/**
 * Pipelines are compiled while the weights arrive: those of `decode` and of the smallest prompt chunk; other
 * programs when they are first needed. Each is encoded once without being submitted, so that what breaks
 * WebGPU's rules is found there; a lost device is noticed later, when something is read.
 * @param {Source} source @param {Manifest} manifest @param {Variant} variant @param {GPUDevice} device
 * @param {(shard: Shard) => Report} progress
 * @returns {Promise<Resources>}
 */
export async function createResources(source, manifest, variant, device, progress) {
  const { modules, shaders, shards, sequence, ranges } = manifest;
  const { programs, launches } = variant;
  const nbytes = manifest.buffers.reduce((sum, buffer) => sum + buffer.nbytes, 0);
  device.pushErrorScope("validation");
  device.pushErrorScope("out-of-memory");
  const buffers = manifest.buffers.map(({ name: label, nbytes: size, indirect }) =>
    device.createBuffer({ label, size, usage: STORAGE_AND_COPIES | (indirect ? INDIRECT : 0) }));
  if ((await device.popErrorScope()) ?? (await device.popErrorScope())) {
    const problem = `could not be had: the model needs ${(nbytes / 2 ** 30).toFixed(2)} GiB in all`;
    fail("GPU memory", problem, "close other tabs, or compile with a smaller --max-length");
  }
  const module = memo(async (/** @type {string} */ file) => {
    const code = await source.text(`shaders/${file}`, modules[file]);
    return device.createShaderModule({ label: file, code });
  });
  const pipeline = memo(async (/** @type {number} */ index) => {
    const { file, access, entry = "main", constants = {} } = shaders[index];
    const entries = [...access].map((how, binding) => {
      const type = /** @type {GPUBufferBindingType} */ (how === "r" ? "read-only-storage" : "storage");
      return { binding, visibility: 4, buffer: { type } };
    });
    const layout = device.createPipelineLayout({ bindGroupLayouts: [device.createBindGroupLayout({ entries })] });
    const compute = { module: await module(file), entryPoint: entry, constants };
    try {
      return await device.createComputePipelineAsync({ label: file, layout, compute });
    } catch (error) {
      return fail(`shaders/${file}`, "does not compile on this device", "force another variant, or report it", String(error));
    }
  });
  const program = memo(async (/** @type {string} */ name) => {
    try {
      const { steps } = programs[name];
      const pipelines = await Promise.all(steps.map((step) => (Array.isArray(step) ? pipeline(launches[step[0]][0]) : null)));
      device.pushErrorScope("validation");
      const prepared = capture(device, steps, ranges, launches, buffers, pipelines);
      const encoder = device.createCommandEncoder();
      encode(encoder, [prepared]);
      encoder.finish();
      const problem = await device.popErrorScope().catch(() => null);
      if (problem) throw problem;
      return prepared;
    } catch (error) {
      if (error instanceof RuntimeFailure) throw error;
      return fail(`program '${name}'`, "breaks WebGPU's rules", RECOMPILE, /** @type {any} */ (error).message);
    }
  });
  const upload = async () => {
    let waiting = 0;
    for (const shard of shards) {
      const take = async (/** @type {number} */ number, /** @type {any} */ bytes) => {
        const at = number * shard.block_nbytes - shard.data_offset;
        const skip = Math.max(0, -at); // the header
        if (skip < bytes.length) device.queue.writeBuffer(buffers[shard.buffer], at + skip, bytes, skip);
        waiting += bytes.length;
        if (waiting < FLUSH_NBYTES) return;
        waiting = 0;
        await device.queue.onSubmittedWorkDone();
      };
      await source.blocks(shard, take, progress(shard));
    }
  };
  const first = sequence ? ["decode", `prefill_${Math.min(...sizesOf(programs, "prefill"))}`] : ["run"];
  await Promise.all([upload(), ...first.map(program)]);
  return { device, recorder: new Recorder(device), buffers, programs, program, nbytes };
}

/** `make(key)`, once for every key; a failure is not kept. @template {string | number} K @template V
 * @param {(key: K) => Promise<V>} make @returns {(key: K) => Promise<V>} */
function memo(make) {
  /** @type {Partial<Record<K, Promise<V>>>} */
  const made = {};
  return (key) => (made[key] ??= make(key).catch((error) => {
    delete made[key];
    throw error;
  }));
}
