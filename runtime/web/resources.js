/** GPU objects of one variant: buffers with their weights, pipelines, bind groups, prepared programs. */
import { RECOMPILE, RuntimeFailure } from "./errors.js";
import { buffersOf, shadersOf } from "./limits.js";
import { Recorder, addDispatch, encode } from "./replay.js";
import { sizesOf } from "./sequence.js";

/** @import { Manifest, Program, ShaderInfo, Variant } from "./types.js" */
/** @import { Source } from "./source.js" */
/** @import { Prepared } from "./replay.js" */
/** @typedef {{device: GPUDevice, recorder: Recorder, buffers: Map<number, GPUBuffer>, program: (name: string) => Promise<Prepared>, nbytes: number}} Resources */

const FLUSH_NBYTES = 64 << 20;
const STORAGE_AND_COPIES = 0x80 | 0x4 | 0x8;
const INDIRECT = 0x100;

/**
 * Pipelines are compiled while the weights arrive: those of `decode` and of the smallest prompt chunk; other
 * programs when they are first needed. Each is encoded once without being submitted, so that what breaks
 * WebGPU's rules is found there.
 * @param {Source} source @param {Manifest} manifest @param {Variant} variant @param {GPUDevice} device
 * @param {(file: string, loaded: number, fetched: number, done: boolean) => void} progress
 * @returns {Promise<Resources>}
 */
export async function createResources(source, manifest, variant, device, progress) {
  const recorder = new Recorder(device);
  const { buffers, nbytes } = await createBuffers(manifest, variant, device);
  /** @type {Map<string, {group: GPUBindGroupLayout, layout: GPUPipelineLayout}>} */
  const layouts = new Map();
  for (const { access } of manifest.shaders) {
    const entries = [...access].map((how, binding) => {
      const type = /** @type {GPUBufferBindingType} */ (how === "r" ? "read-only-storage" : "storage");
      return { binding, visibility: 4, buffer: { type } };
    });
    if (layouts.has(access)) continue;
    const group = device.createBindGroupLayout({ entries });
    layouts.set(access, { group, layout: device.createPipelineLayout({ bindGroupLayouts: [group] }) });
  }
  const layoutOf = (/** @type {number} */ shader) => {
    return /** @type {NonNullable<ReturnType<typeof layouts.get>>} */ (layouts.get(manifest.shaders[shader].access));
  };
  /** @type {Map<number, Promise<GPUComputePipeline>>} */
  const pipelines = new Map();
  const compile = (/** @type {number} */ index) => {
    const { file, sha256: hash } = manifest.shaders[index];
    const compiled = async () =>
      createPipeline(device, file, await source.text(`shaders/${file}`, hash), layoutOf(index).layout);
    return once(pipelines, index, compiled);
  };
  const groups = new Map();
  const make = async (/** @type {string} */ name) => {
    const program = variant.programs[name];
    /** @type {Map<number, GPUComputePipeline>} */
    const ready = new Map();
    await Promise.all(Array.from(shadersOf(program), async (index) => ready.set(index, await compile(index))));
    device.pushErrorScope("validation");
    const prepared = prepare(program, buffers, ready, groups, (shader, entries) =>
      device.createBindGroup({ layout: layoutOf(shader).group, entries }),
    );
    const encoder = device.createCommandEncoder();
    encode(encoder, [prepared]);
    encoder.finish();
    const error = await device.popErrorScope().catch(() => null); // a lost device is noticed at the next map
    if (error) throw new RuntimeFailure(`program '${name}'`, "breaks WebGPU's rules", RECOMPILE, error.message);
    return prepared;
  };
  /** @type {Map<string, Promise<Prepared>>} */
  const programs = new Map();
  const program = (/** @type {string} */ name) => once(programs, name, () => make(name));
  const first = Math.min(...sizesOf(variant.programs, "prefill"));
  const needed = manifest.sequence ? ["decode", `prefill_${first}`] : ["run"];
  await Promise.all([uploadWeights(source, manifest, device, buffers, progress), ...needed.map(program)]);
  return { device, recorder, buffers, program, nbytes };
}

/** What `make` promised for `key`; a failure is not kept. @template K, V
 * @param {Map<K, Promise<V>>} made @param {K} key @param {() => Promise<V>} make @returns {Promise<V>} */
function once(made, key, make) {
  let promise = made.get(key);
  if (!promise) {
    made.set(key, (promise = make()));
    promise.catch(() => made.delete(key));
  }
  return promise;
}

/** @param {Manifest} manifest @param {Variant} variant @param {GPUDevice} device */
async function createBuffers(manifest, variant, device) {
  /** @type {Map<number, GPUBuffer>} */
  const buffers = new Map();
  let nbytes = 0;
  device.pushErrorScope("out-of-memory");
  for (const index of buffersOf(manifest, variant)) {
    const { name, nbytes: size, indirect } = manifest.buffers[index];
    const usage = STORAGE_AND_COPIES | (indirect ? INDIRECT : 0);
    buffers.set(index, device.createBuffer({ label: name, size, usage }));
    nbytes += size;
  }
  if (await device.popErrorScope()) {
    const problem = `could not be had: the model needs ${(nbytes / 2 ** 30).toFixed(2)} GiB in all`;
    throw new RuntimeFailure("GPU memory", problem, "close other tabs, or compile with a smaller --max-length");
  }
  return { buffers, nbytes };
}

/** @param {Source} source @param {Manifest} manifest @param {GPUDevice} device
 * @param {Map<number, GPUBuffer>} buffers
 * @param {(file: string, loaded: number, fetched: number, done: boolean) => void} progress */
async function uploadWeights(source, manifest, device, buffers, progress) {
  let waiting = 0;
  for (const shard of manifest.shards) {
    const buffer = buffers.get(shard.buffer);
    if (!buffer) continue;
    let [loaded, fetched] = [0, 0];
    progress(shard.file, 0, 0, false);
    await source.blocks(
      shard,
      async (number, bytes, fromNetwork) => {
        const start = number * shard.block_nbytes;
        const skip = Math.max(0, shard.data_offset - start); // the header
        if (skip < bytes.length) {
          device.queue.writeBuffer(buffer, start + skip - shard.data_offset, /** @type {any} */ (bytes), skip);
        }
        if (!fromNetwork) progress(shard.file, (loaded += bytes.length), fetched, false);
        waiting += bytes.length;
        if (waiting < FLUSH_NBYTES) return;
        waiting = 0;
        await device.queue.onSubmittedWorkDone();
      },
      (n) => progress(shard.file, (loaded += n), (fetched += n), false),
    );
    progress(shard.file, shard.nbytes, fetched, true);
  }
}

/** @param {GPUDevice} device @param {string} file @param {string} code @param {GPUPipelineLayout} layout */
async function createPipeline(device, file, code, layout) {
  const module = device.createShaderModule({ label: file, code });
  try {
    return await device.createComputePipelineAsync({ label: file, layout, compute: { module, entryPoint: "main" } });
  } catch (error) {
    const { messages } = await module.getCompilationInfo();
    const first = messages.find(({ type }) => type === "error");
    const problem = `does not compile on this device: ${first?.message ?? error}`;
    const lines = code.split("\n").map((line, i) => `${i + 1 === first?.lineNum ? ">" : " "} ${i + 1} | ${line}`);
    const detail = first ? lines.slice(Math.max(0, first.lineNum - 3), first.lineNum + 2).join("\n") : "";
    throw new RuntimeFailure(`shaders/${file}`, problem, "force another variant, or report it", detail);
  }
}

/** @param {Program} program @param {Map<number, GPUBuffer>} buffers
 * @param {Map<number, GPUComputePipeline>} pipelines @param {Map<string, GPUBindGroup>} groups
 * @param {(shader: number, entries: GPUBindGroupEntry[]) => GPUBindGroup} bind @returns {Prepared} */
function prepare(program, buffers, pipelines, groups, bind) {
  /** @type {Prepared} */
  const prepared = [];
  const buffer = (/** @type {number} */ index) => /** @type {GPUBuffer} */ (buffers.get(index));
  for (const step of program.steps) {
    if (step.step === "copy") {
      const [source, target] = [buffer(step.source), buffer(step.target)];
      const { source_offset: sourceOffset, target_offset: targetOffset, nbytes } = step;
      prepared.push({ source, sourceOffset, target, targetOffset, nbytes });
      continue;
    }
    const key = `${step.shader}:${step.bindings}`;
    let group = groups.get(key);
    if (!group) {
      const entries = step.bindings.map((/** @type {number[]} */ [index, offset, size], /** @type {number} */ binding) => {
        return { binding, resource: { buffer: buffer(index), offset, size } };
      });
      groups.set(key, (group = bind(step.shader, entries)));
    }
    const grid = step.grid ?? [step.indirect[1], 0, 0];
    const pipeline = /** @type {GPUComputePipeline} */ (pipelines.get(step.shader));
    addDispatch(prepared, pipeline, group, grid, step.indirect ? buffer(step.indirect[0]) : null);
  }
  return prepared;
}
