/** The model's ports: typed arrays in and out, under ONNX's names and shapes. */
import { RuntimeFailure } from "./errors.js";

/** @import { Port } from "./types.js" */
/** Values with their shape, as in ONNX Runtime. float16 values are given as float32.
 * @typedef {{type: string, dims: number[], data: any}} Tensor */

const f16Tables = new DataView(new ArrayBuffer(4));
/** @param {number} half bits of a float16 */
export function fromHalf(half) {
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  const sign = half & 0x8000 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
}

/** The nearest float16, ties to even. @param {number} value @returns {number} */
export function toHalf(value) {
  f16Tables.setFloat32(0, value);
  const sign = (f16Tables.getUint32(0) >>> 16) & 0x8000;
  const size = Math.abs(value);
  if (!(size < 65520)) return sign | (Number.isNaN(value) ? 0x7e00 : 0x7c00);
  const step = 2 ** Math.max(-24, Math.floor(Math.log2(size || 1e-30)) - 10);
  const rounded = (size / step + 2 ** 52 - 2 ** 52) * step; // ties to even, as doubles of this size round
  if (rounded < 2 ** -14) return sign | (rounded / 2 ** -24);
  const exponent = Math.floor(Math.log2(rounded));
  return sign | ((exponent + 15) << 10) | (rounded / 2 ** (exponent - 10) - 1024);
}

/** @type {Record<string, any>} */
const STORAGE = { f32: Float32Array, f16: Uint16Array, i32: Int32Array, u32: Uint32Array, u8: Uint8Array, i8: Int8Array };
/** @type {Record<string, any>} */
const ONNX = { float32: Float32Array, float16: Float32Array, int64: BigInt64Array, int32: Int32Array, bool: Uint8Array, uint8: Uint8Array, int8: Int8Array };

/** The bytes to upload for `value` (a typed array, array or {data, dims}) at an input port.
 * @param {Port} port @param {any} value @returns {Uint8Array} */
export function toStorage(port, value) {
  const subject = `input '${port.name}'`;
  const dims = value?.dims ?? value?.shape;
  const data = ArrayBuffer.isView(value) || Array.isArray(value) ? value : value?.data;
  const size = port.shape.reduce((/** @type {number} */ n, dim) => n * Number(dim), 1);
  if (data?.length !== size || (dims && dims.join() !== port.shape.join())) {
    const problem = `has ${dims ? `shape [${dims}]` : `${data?.length ?? "no"} values`}, not [${port.shape}]`;
    throw new RuntimeFailure(subject, problem, "compiled shapes are fixed: give this one");
  }
  const floats = port.storage === "f32" || port.storage === "f16";
  const bytes = new Uint8Array(port.nbytes ?? 0);
  const target = new STORAGE[port.storage](bytes.buffer, 0, size);
  for (let i = 0; i < size; i++) {
    const number = Number(data[i]);
    if (typeof data[i] === "object" || (!floats && !Number.isInteger(number))) {
      throw new RuntimeFailure(subject, `has a value that is not ${port.dtype}`, "convert it first");
    }
    target[i] = port.storage === "f16" ? toHalf(number) : number;
    if (!floats && target[i] !== number) {
      throw new RuntimeFailure(subject, `has values beyond ${port.storage}`, "give smaller ones: int64 is 32 bits on the GPU");
    }
  }
  return bytes;
}

/** The tensor that ONNX promises, from the bytes of an output port.
 * @param {Port} port @param {ArrayBuffer} bytes @param {number} offset @param {number[]} dims @returns {Tensor} */
export function fromStorage(port, bytes, offset, dims) {
  const size = dims.reduce((n, dim) => n * dim, 1);
  const raw = new STORAGE[port.storage](bytes, offset, size);
  const wanted = ONNX[port.dtype];
  const type = port.dtype === "float16" ? "float32" : port.dtype;
  if (port.storage === "f16") return { type, dims, data: wanted.from(raw, fromHalf) };
  if (wanted === BigInt64Array) return { type, dims, data: wanted.from(raw, BigInt) };
  return { type, dims, data: wanted.from(raw) };
}
