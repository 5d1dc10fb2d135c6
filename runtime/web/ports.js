/** The model's ports: typed arrays in and out, under ONNX's names and shapes. */
import { fail } from "./errors.js";

/** @import { Port } from "./types.js" */
/** @import { Prepared } from "./replay.js" */
/** @import { Resources } from "./resources.js" */
/** Values with their shape, as in ONNX Runtime. float16 values are given as float32.
 * @typedef {{type: string, dims: number[], data: any}} Tensor */

/** Float16Array is younger than WebGPU, but as old as the browsers that have both.
 * @type {Record<string, any>} */
const STORAGE = {
  f32: Float32Array,
  f16: /** @type {any} */ (globalThis).Float16Array,
  i32: Int32Array,
  u32: Uint32Array,
  u8: Uint8Array,
  i8: Int8Array,
};
/** @type {Record<string, any>} */
const ONNX = {
  float32: Float32Array,
  float16: Float32Array,
  int64: BigInt64Array,
  int32: Int32Array,
  bool: Uint8Array,
  uint8: Uint8Array,
  int8: Int8Array,
};

/** @param {string} storage */
const arrayOf = (storage) => STORAGE[storage] ?? fail(storage, "cannot be read or written here", "use a newer browser");

/** @param {number[]} shape */
const product = (shape) => shape.reduce((n, dim) => n * dim, 1);

/** The bytes to upload for `value` (a typed array, array or {data, dims}) at an input port.
 * @param {Port} port @param {any} value @returns {Uint8Array<ArrayBuffer>} */
export function toStorage(port, value) {
  const subject = `input '${port.name}'`;
  const dims = value?.dims ?? value?.shape;
  const data = value?.data ?? value;
  const size = product(port.shape);
  if (data?.length !== size || (dims && dims.join() !== port.shape.join())) {
    const has = dims ? `shape [${dims}]` : `${data?.length ?? "no"} values`;
    fail(subject, `has ${has}, not [${port.shape}]`, "compiled shapes are fixed: give this one");
  }
  const bytes = new Uint8Array(port.nbytes);
  const target = new (arrayOf(port.storage))(bytes.buffer, 0, size);
  for (let i = 0; i < size; i++) {
    const number = (target[i] = Number(data[i]));
    if (!port.storage.startsWith("f") && target[i] !== number) {
      fail(subject, `has a value that is not ${port.storage}`, "convert it first; int64 is 32 bits on the GPU");
    }
  }
  return bytes;
}

/** The output `name`, or its first values as `dims`, once `work` is done.
 * @param {Resources} resources @param {Prepared[]} work @param {Port[] | undefined} ports @param {string} name
 * @param {any[]} [dims] @returns {Promise<Tensor>} */
export async function readPort({ recorder, buffers }, work, ports, name, dims) {
  const hint = `choose from ${ports?.slice(0, 6).map((port) => port.name)}`;
  const port = ports?.find((port) => port.name === name) ?? fail(`output '${name}'`, "is not the model's", hint);
  dims ??= port.shape;
  const Storage = arrayOf(port.storage);
  const size = product(dims);
  const nbytes = Math.ceil((size * Storage.BYTES_PER_ELEMENT) / 4) * 4;
  const raw = new Storage(await recorder.read(work, [[buffers[port.buffer], 0, nbytes]]), 0, size);
  const Wanted = ONNX[port.dtype];
  const data = Wanted.from(raw, Wanted === BigInt64Array ? BigInt : undefined);
  return { type: port.dtype === "float16" ? "float32" : port.dtype, dims, data };
}

/** Parts one after the other. @param {any[]} parts typed arrays @param {string} type @param {number[]} dims
 * @returns {Tensor} */
export function join(parts, type, dims) {
  const data = new parts[0].constructor(product(dims));
  parts.reduce((at, part) => (data.set(part, at), at + part.length), 0);
  return { type, dims, data };
}
