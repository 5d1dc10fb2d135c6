// ONNX nodes:
//   /model/layers.1/final_norm_layernorm/SkipLayerNorm
// y = (x + skip) / sqrt(mean of squares + epsilon) * weight: one workgroup per row.

const ROWS = 1u;
const SIZE = 16u;  // vec4 elements of a row
const THREADS = 32u;
const HALF = 16u;  // half of THREADS, rounded up to a power of two

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weight: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> skip: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

fn load_weight(i: u32) -> vec4<f32> {
  let pair = weight[i];
  return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
}

fn value(row: u32, i: u32) -> vec4<f32> {
  let at = row * SIZE + i;
  return x[at] + skip[at];
}

var<workgroup> partial: array<f32, THREADS>;

@compute @workgroup_size(32, 1, 1)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
  let row = group.y * groups.x + group.x;
  if (row >= ROWS) { return; }

  var squares = 0.0;
  for (var i = thread; i < SIZE; i += THREADS) {
    let v = value(row, i);
    squares += dot(v, v);
  }
  partial[thread] = squares;
  workgroupBarrier();
  for (var half = HALF; half > 0u; half >>= 1u) {
    if (thread < half && thread + half < THREADS) { partial[thread] += partial[thread + half]; }
    workgroupBarrier();
  }
  let scale = inverseSqrt(partial[0] / 64.0 + 9.999999747378752e-06);

  for (var i = thread; i < SIZE; i += THREADS) {
    y[row * SIZE + i] = value(row, i) * scale * load_weight(i);
  }
}
