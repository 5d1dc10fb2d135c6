// y = v / sqrt(mean of v * v + epsilon) * weight, one workgroup per row; v is x, or x + skip.

const N = 64u;  // values of a row
const SIZE = 16u;  // vec4 elements of a row
const THREADS = 32u;
const EPSILON = 9.999999747378752e-06;

@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read> weight: array<vec2u>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4f>;

fn load_weight(i: u32) -> vec4f {
  let pair = weight[i];
  return vec4f(unpack2x16float(pair.x), unpack2x16float(pair.y));
}

fn value(row: u32, i: u32) -> vec4f {
  return x[row * SIZE + i];
}

var<workgroup> slots: array<f32, 32>;

// The sum over the workgroup, for thread 0.
fn workgroup_sum(value: f32, thread: u32) -> f32 {
  workgroupBarrier();  // the slots may still be read from the last call
  slots[thread] = value;
  workgroupBarrier();
  for (var step = 16u; step > 0; step /= 2) {
    if (thread < step) {
      slots[thread] += slots[thread + step];
    }
    workgroupBarrier();
  }
  return slots[0];
}

var<workgroup> factor: f32;

fn set_factor(squares: f32, thread: u32) {
  let total = workgroup_sum(squares, thread);
  if (thread == 0) {
    factor = inverseSqrt(total / f32(N) + EPSILON);
  }
  workgroupBarrier();
}

// ONNX nodes:
//   /model/layers.0/input_layernorm/LayerNorm
@compute @workgroup_size(32)
fn rms_norm(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let row = group.y * groups.x + group.x;
  if (row >= arrayLength(&x) / SIZE) { return; }

  var squares = 0.0;
  for (var i = thread; i < SIZE; i += THREADS) {
    let v0 = value(row, i);
    squares += dot(v0, v0);
  }
  set_factor(squares, thread);

  for (var i = thread; i < SIZE; i += THREADS) {
    y[row * SIZE + i] = value(row, i) * factor * load_weight(i);
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
) {
  let row = group.y * groups.x + group.x;
  if (row >= arrayLength(&x) / SIZE) { return; }

  var squares = 0.0;
  for (var i = thread; i < SIZE; i += THREADS) {
    let v0 = value_skip(row, i);
    sum_out[row * SIZE + i] = v0;
    squares += dot(v0, v0);
  }
  set_factor(squares, thread);

  for (var i = thread; i < SIZE; i += THREADS) {
    y[row * SIZE + i] = value_skip(row, i) * factor * load_weight(i);
  }
}
