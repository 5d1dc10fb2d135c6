enable f16;
enable subgroups;

// y = x / sqrt(mean of squares + epsilon) * weight: one workgroup per row.

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
  let at = row * SIZE + i;
  return x[at];
}

// One slot per subgroup; a subgroup has 4 to 128 lanes.
var<workgroup> slots: array<f32, 8>;

// The sum over the workgroup, for thread 0. Lanes are numbered in order of the thread in a 1-D workgroup.
fn workgroup_sum(value: f32, thread: u32, lane: u32, lanes: u32) -> f32 {
  var total = subgroupAdd(value);
  workgroupBarrier();  // the slots may still be read from the last call
  if (lane == 0u) {
    slots[thread / lanes] = total;
  }
  workgroupBarrier();
  if (thread == 0u) {
    for (var i = 1u; i < 32u / lanes; i++) {
      total += slots[i];
    }
  }
  return total;
}

var<workgroup> factor: f32;

fn set_factor(squares: f32, thread: u32, lane: u32, lanes: u32) {
  let total = workgroup_sum(squares, thread, lane, lanes);
  if (thread == 0u) {
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

// Eight values of a thread, a and b; 4 threads share the scale of a block.
fn write_int8(row: u32, octet: u32, thread: u32, a: vec4f, b: vec4f) {
  workgroupBarrier();  // the last ones may still be read
  largest[thread] = greatest_of(max(abs(a), abs(b)));
  workgroupBarrier();
  let block = thread / 4u * 4u;
  var limit = largest[block];
  limit = max(limit, largest[block + 1u]);
  limit = max(limit, largest[block + 2u]);
  limit = max(limit, largest[block + 3u]);
  if (octet < N / 8u) {
    let words = int8_octet(a, b, 127.0 / max(limit, 1e-30));
    let at = row * Y_STRIDE;
    y_int8[at + 2u * octet] = words.x;
    y_int8[at + 2u * octet + 1u] = words.y;
    if (thread == block) {
      y_int8[at + Y_SCALES + octet / 4u] = bitcast<u32>(limit / 127.0);
    }
  }
}

// ONNX nodes:
//   /model/layers.0/input_layernorm/LayerNorm
@compute @workgroup_size(32, 1, 1)
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
  for (var i = 2u * thread; i < SIZE; i += 2u * THREADS) {
    let v0 = value(row, i);
    squares += dot(v0, v0);
    let v1 = value(row, i + 1u);
    squares += dot(v1, v1);
  }
  set_factor(squares, thread, lane, lanes);

  for (var first = 0u; first < N / 8u; first += THREADS) {
    let octet = first + thread;
    var a = vec4f();
    var b = vec4f();
    if (octet < N / 8u) {
      a = value(row, 2u * octet) * factor * load_weight(2u * octet);
      b = value(row, 2u * octet + 1u) * factor * load_weight(2u * octet + 1u);
    }
    write_int8(row, octet, thread, a, b);
  }
}

// y = (x + skip) / sqrt(mean of squares + epsilon) * weight: one workgroup per row.

@group(0) @binding(3) var<storage, read> skip: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> sum_out: array<vec4f>;

fn value_skip(row: u32, i: u32) -> vec4f {
  let at = row * SIZE + i;
  return x[at] + skip[at];
}

// ONNX nodes:
//   /model/layers.0/post_attention_layernorm/SkipLayerNorm
//   /model/layers.1/final_norm_layernorm/SkipLayerNorm
@compute @workgroup_size(32, 1, 1)
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
  for (var i = 2u * thread; i < SIZE; i += 2u * THREADS) {
    let v0 = value_skip(row, i);
    sum_out[row * SIZE + i] = v0;
    squares += dot(v0, v0);
    let v1 = value_skip(row, i + 1u);
    sum_out[row * SIZE + i + 1u] = v1;
    squares += dot(v1, v1);
  }
  set_factor(squares, thread, lane, lanes);

  for (var first = 0u; first < N / 8u; first += THREADS) {
    let octet = first + thread;
    var a = vec4f();
    var b = vec4f();
    if (octet < N / 8u) {
      a = value_skip(row, 2u * octet) * factor * load_weight(2u * octet);
      b = value_skip(row, 2u * octet + 1u) * factor * load_weight(2u * octet + 1u);
    }
    write_int8(row, octet, thread, a, b);
  }
}
