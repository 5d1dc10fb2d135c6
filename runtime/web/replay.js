/** The captured graph: programs as prepared arrays, re-encoded by a loop that does nothing else. */
import { DeviceLost } from "./errors.js";

/** @typedef {{source: GPUBuffer, sourceOffset: number, target: GPUBuffer, targetOffset: number, nbytes: number}} CopyCall */
/** @typedef {{pipelines: (GPUComputePipeline | null)[], groups: GPUBindGroup[], grids: number[], indirect: (GPUBuffer | null)[]}} Pass */
/** @typedef {(Pass | CopyCall)[]} Prepared */

/** Append a dispatch to a program; adjacent ones share a pass, and a pipeline is set when it changes.
 * @param {Prepared} program @param {GPUComputePipeline} pipeline @param {GPUBindGroup} group
 * @param {number[]} grid [x, y, z], or [offset, 0, 0] in `indirect` @param {GPUBuffer | null} indirect */
export function addDispatch(program, pipeline, group, grid, indirect) {
  let pass = program.at(-1);
  if (!pass || !("groups" in pass)) program.push((pass = { pipelines: [], groups: [], grids: [], indirect: [] }));
  pass.pipelines.push(pass.pipelines.findLast(Boolean) === pipeline ? null : pipeline);
  pass.groups.push(group);
  pass.grids.push(...grid);
  pass.indirect.push(indirect);
}

/** The hot loop. @param {GPUCommandEncoder} encoder @param {Iterable<Prepared>} work */
export function encode(encoder, work) {
  for (const program of work) {
    for (const part of program) {
      if ("source" in part) {
        encoder.copyBufferToBuffer(part.source, part.sourceOffset, part.target, part.targetOffset, part.nbytes);
        continue;
      }
      const { pipelines, groups, grids, indirect } = part;
      const pass = encoder.beginComputePass();
      for (let i = 0, g = 0; i < groups.length; i++, g += 3) {
        const pipeline = pipelines[i];
        if (pipeline !== null) pass.setPipeline(pipeline);
        pass.setBindGroup(0, groups[i]);
        const buffer = indirect[i];
        if (buffer === null) pass.dispatchWorkgroups(grids[g], grids[g + 1], grids[g + 2]);
        else pass.dispatchWorkgroupsIndirect(buffer, grids[g]);
      }
      pass.end();
    }
  }
}

/** Submits programs, and reads small ranges back through mappable buffers that are used again. */
export class Recorder {
  /** @param {GPUDevice} device */
  constructor(device) {
    this.device = device;
    this.error = "";
    /** @type {GPUBuffer[]} */
    this.idle = [];
    device.onuncapturederror = ({ error }) => (this.error ||= error.message);
  }

  /** @param {Prepared[]} work */
  submit(work) {
    const encoder = this.device.createCommandEncoder();
    encode(encoder, work);
    this.device.queue.submit([encoder.finish()]);
  }

  /** Submit `work` and copies of `ranges` ([buffer, offset, nbytes], multiples of 4); their bytes together.
   * @param {Prepared[]} work @param {[GPUBuffer, number, number][]} ranges @returns {Promise<ArrayBuffer>} */
  read(work, ranges) {
    const nbytes = ranges.reduce((sum, range) => sum + range[2], 0);
    const found = this.idle.findIndex((buffer) => buffer.size >= nbytes && buffer.size <= 4 * nbytes + 4096);
    const staging =
      found >= 0
        ? this.idle.splice(found, 1)[0]
        : this.device.createBuffer({ size: Math.ceil(nbytes / 256) * 256, usage: 0x1 | 0x8 }); // MAP_READ, COPY_DST
    let at = 0;
    const copies = ranges.map(([source, sourceOffset, size]) => {
      at += size;
      return { source, sourceOffset, target: staging, targetOffset: at - size, nbytes: size };
    });
    this.submit([...work, copies]);
    return this.map(staging, nbytes);
  }

  /** @param {GPUBuffer} staging @param {number} nbytes */
  async map(staging, nbytes) {
    try {
      await staging.mapAsync(1, 0, nbytes);
    } catch (error) {
      throw new DeviceLost(this.error || String(error));
    }
    const bytes = staging.getMappedRange(0, nbytes).slice(0);
    staging.unmap();
    this.idle.push(staging);
    if (this.idle.length > 4) this.idle.shift()?.destroy();
    return bytes;
  }
}
