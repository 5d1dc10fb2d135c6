/** The captured graph: programs as prepared arrays, re-encoded by a loop that does nothing else. */
import { DeviceLost, RECOMPILE, fail } from "./errors.js";

/** A null pipeline is the one before it; where the grid is `indirect` it begins with the offset.
 * @typedef {{pipeline: GPUComputePipeline | null, group: GPUBindGroup, grid: number[], indirect: GPUBuffer | null}} DispatchCall */
/** Dispatches of one pass, or the arguments of a copy.
 * @typedef {({pass: DispatchCall[]} | {copy: [GPUBuffer, number, GPUBuffer, number, number]})[]} Prepared */

/** Steps of the manifest  =>  passes of adjacent dispatches, and copies.
 * @param {GPUDevice} device @param {any[]} steps @param {number[][]} ranges @param {any[]} launches
 * @param {GPUBuffer[]} buffers @param {(GPUComputePipeline | null)[]} pipelines of each step @returns {Prepared} */
export function capture(device, steps, ranges, launches, buffers, pipelines) {
  /** @type {Prepared} */
  const prepared = [];
  /** @type {DispatchCall[]} */
  let pass = [];
  let last = null;
  for (const [i, step] of steps.entries()) {
    const pipeline = pipelines[i];
    if (!pipeline) {
      const [[source, from, nbytes], [target, to]] = [ranges[step.source], ranges[step.target]];
      prepared.push({ copy: [buffers[source], from, buffers[target], to, nbytes] });
      last = null;
      continue;
    }
    const [kernel, ...bound] = step;
    const grid = launches[kernel][1];
    const entries = bound.map((/** @type {number} */ index, /** @type {number} */ binding) => {
      const [buffer, offset, size] = ranges[index];
      return { binding, resource: { buffer: buffers[buffer], offset, size } };
    });
    const [memory, start] = ranges[grid] ?? [];
    if (last === null) prepared.push({ pass: (pass = []) });
    pass.push({
      pipeline: pipeline === last ? null : pipeline,
      group: device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries }),
      grid: start === undefined ? grid : [start],
      indirect: memory === undefined ? null : buffers[memory],
    });
    last = pipeline;
  }
  return prepared;
}

/** The hot loop. @param {GPUCommandEncoder} encoder @param {Iterable<Prepared>} work */
export function encode(encoder, work) {
  /** @type {GPUComputePassEncoder | undefined | void} one for all dispatches between copies */
  let pass;
  for (const program of work) {
    for (const part of program) {
      if ("copy" in part) {
        pass = pass?.end();
        encoder.copyBufferToBuffer(...part.copy);
        continue;
      }
      pass ??= encoder.beginComputePass();
      for (const { pipeline, group, grid, indirect } of part.pass) {
        if (pipeline !== null) pass.setPipeline(pipeline);
        pass.setBindGroup(0, group);
        if (indirect === null) pass.dispatchWorkgroups(grid[0], grid[1], grid[2]);
        else pass.dispatchWorkgroupsIndirect(indirect, grid[0]);
      }
    }
  }
  pass?.end();
}

const MAP_READ = 0x1;
const COPY_TARGET = 0x8;

/** Submits programs, and reads small ranges back. */
export class Recorder {
  /** @param {GPUDevice} device */
  constructor(device) {
    this.device = device;
    this.error = "";
    device.onuncapturederror = ({ error }) => (this.error ||= error.message);
  }

  /** @param {Prepared[]} work */
  submit(work) {
    const encoder = this.device.createCommandEncoder();
    encode(encoder, work);
    this.device.queue.submit([encoder.finish()]);
  }

  /** Submit `work` and copies of `ranges` ([buffer, offset, nbytes], multiples of 4); their bytes together.
   * @param {Prepared[]} work @param {(readonly [GPUBuffer, number, number])[]} ranges @returns {Promise<ArrayBuffer>} */
  async read(work, ranges) {
    const size = ranges.reduce((sum, range) => sum + range[2], 0);
    const staging = this.device.createBuffer({ size, usage: MAP_READ | COPY_TARGET });
    let at = 0;
    /** @type {Prepared} */
    const copies = [];
    for (const [source, offset, nbytes] of ranges) {
      copies.push({ copy: [source, offset, staging, at, nbytes] });
      at += nbytes;
    }
    this.submit([...work, copies]);
    try {
      await staging.mapAsync(MAP_READ);
    } catch (error) {
      throw new DeviceLost(this.error || String(error));
    }
    const bytes = staging.getMappedRange().slice(0);
    staging.destroy();
    if (this.error) fail("the GPU", `reports an error: ${this.error}`, RECOMPILE);
    return bytes;
  }
}
