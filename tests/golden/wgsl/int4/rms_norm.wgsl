enable f16;
enable subgroups;

// y = v / sqrt(mean of v * v + epsilon) * weight, one workgroup per row; v is x, or x + skip.

const N = 64u;  // values of a row
const SIZE = 16u;  // vec4 elements of a row
const THREADS = 32u;
const EPSILON = 9.999999747378752e-06;

@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read> weight: array<vec4h>;
@group(0) @binding(2) var<storage, read_write> y_int8: array<u32>;  // rows of int8 in words of four, then a scale per 32

fn load_weight(i: u32) -> vec4f {
  return vec4f(weight[i]);
}

fn value(row: u32, i: u32) -> vec4f {
  return x[row * SIZE + i];
}

// One slot per subgroup; a subgroup has 4 to 128 lanes.
var<workgroup> slots: array<f32, 8>;

// The sum over the workgroup, for thread 0. Lanes are numbered in order of the thread in a 1-D workgroup.
fn workgroup_sum(value: f32, thread: u32, lane: u32, lanes: u32) -> f32 {
  var total = subgroupAdd(value);
  workgroupBarrier();  // the slots may still be read from the last call
  if (lane == 0) {
    slots[thread / lanes] = total;
  }
  workgroupBarrier();
  if (thread == 0) {
    for (var i = 1u; i < 32 / lanes; i++) {
      total += slots[i];
    }
  }
  return total;
}

var<workgroup> factor: f32;

fn set_factor(squares: f32, thread: u32, lane: u32, lanes: u32) {
  let total = workgroup_sum(squares, thread, lane, lanes);
  if (thread == 0) {
    factor = inverseSqrt(total / f32(N) + EPSILON);
  }
  workgroupBarrier();
}

// Eight values as int8, the even ones and then the odd ones.
fn int8_octet(a: vec4f, b: vec4f, to_int8: f32) -> vec2u {
  let c = vec4i(round(a * to_int8));
  let d = vec4i(round(b * to_int8));
  return vec2u(pack4xI8(vec4i(c.xz, d.xz)), pack4xI8(vec4i(c.yw, d.yw)));
}

fn greatest_of(v: vec4f) -> f32 {
  return max(max(v.x, v.y), max(v.z, v.w));
}

const Y_SCALES = 16u;  // where the scales of a row of y begin
const Y_STRIDE = 20u;

var<workgroup> largest: array<f32, THREADS>;  // of a thread's eight values

// Eight values of a thread, from vec4 i on; 4 threads share the scale of a block.
fn write_int8(row: u32, octet: u32, thread: u32, i: u32, value0: vec4f, value1: vec4f) {
  let a = value0 * factor * load_weight(i);
  let b = value1 * factor * load_weight(i + 1);
  workgroupBarrier();  // the last ones may still be read
  largest[thread] = greatest_of(max(abs(a), abs(b)));
  workgroupBarrier();
  let block = thread / 4 * 4;
  let limit = max(max(max(largest[block], largest[block + 1]), largest[block + 2]), largest[block + 3]);
  if (octet < N / 8) {
    let words = int8_octet(a, b, 127.0 / max(limit, 1e-30));
    let at = row * Y_STRIDE;
    y_int8[at + 2 * octet] = words.x;
    y_int8[at + 2 * octet + 1] = words.y;
    if (thread == block) {
      y_int8[at + Y_SCALES + octet / 4] = bitcast<u32>(limit / 127.0);
    }
  }
}

// ONNX nodes:
//   /model/layers.0/input_layernorm/LayerNorm
@compute @workgroup_size(32)
fn rms_norm(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32,
  @builtin(subgroup_invocation_id) lane: u32,
  @builtin(subgroup_size) lanes: u32,
) {
  let row = group.y * groups.x + group.x;
  if (row >= arrayLength(&x) / SIZE) { return; }

  var squares = 0.0;
  for (var i = 2 * thread; i < SIZE; i += 2 * THREADS) {
    let v0 = value(row, i);
    squares += dot(v0, v0);
    let v1 = value(row, i + 1);
    squares += dot(v1, v1);
  }
  set_factor(squares, thread, lane, lanes);

  for (var first = 0u; first < N / 8; first += THREADS) {
    let octet = first + thread;
    let i = 2 * min(octet, N / 8 - 1);
    write_int8(row, octet, thread, i, value(row, i), value(row, i + 1));
  }
}

@group(0) @binding(3) var<storage, read> skip: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> sum_out: array<vec4f>;

fn value_skip(row: u32, i: u32) -> vec4f {
  let at = row * SIZE + i;
  return x[at] + skip[at];
}

// ONNX nodes:
//   /model/layers.0/post_attention_layernorm/SkipLayerNorm,
//     /model/layers.1/final_norm_layernorm/SkipLayerNorm
@compute @workgroup_size(32)
fn skip_rms_norm(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32,
  @builtin(subgroup_invocation_id) lane: u32,
  @builtin(subgroup_size) lanes: u32,
) {
  let row = group.y * groups.x + group.x;
  if (row >= arrayLength(&x) / SIZE) { return; }

  var squares = 0.0;
  for (var i = 2 * thread; i < SIZE; i += 2 * THREADS) {
    let v0 = value_skip(row, i);
    sum_out[row * SIZE + i] = v0;
    squares += dot(v0, v0);
    let v1 = value_skip(row, i + 1);
    sum_out[row * SIZE + i + 1] = v1;
    squares += dot(v1, v1);
  }
  set_factor(squares, thread, lane, lanes);

  for (var first = 0u; first < N / 8; first += THREADS) {
    let octet = first + thread;
    let i = 2 * min(octet, N / 8 - 1);
    write_int8(row, octet, thread, i, value_skip(row, i), value_skip(row, i + 1));
  }
}

struct Sequence { past_length: u32, length: u32, stop: u32 }

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> x_quantize_main: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;  // per row: values, four to a word, then a scale per block

const K = 96u;
const BLOCKS = 3u;  // of 32 values, per row
const STRIDE = 28u;  // words per row

// Four values of a row from column i on.
fn values_at(row: u32, i: u32) -> vec4f {
  return x_quantize_main[(row * K + i) / 4];
}

// ONNX nodes:
//   /model/layers.0/mlp/down_proj/MatMul_Q4
// One block per thread.
@compute @workgroup_size(64)
fn quantize_main(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = (group.y * groups.x + group.x) * 64 + thread;
  let row = i / BLOCKS;
  let block = i % BLOCKS;
  if (row >= min(arrayLength(&y) / STRIDE, sequence.length) || sequence.stop != 0) {
    return;  // no token in this row, or generation has ended
  }
  var values: array<vec4f, 8>;
  var largest = vec4f();
  for (var j = 0u; j < 8; j++) {
    values[j] = values_at(row, block * 32 + 4 * j);
    largest = max(largest, abs(values[j]));
  }
  let limit = greatest_of(largest);
  let at = row * STRIDE + block * 8;
  for (var j = 0u; j < 8; j += 2) {
    let words = int8_octet(values[j], values[j + 1], 127.0 / max(limit, 1e-30));
    y[at + j] = words.x;
    y[at + j + 1] = words.y;
  }
  y[row * STRIDE + 24 + block] = bitcast<u32>(limit / 127.0);
}
