struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;  // per row: values, four to a word, then a scale per block

const K = 96u;
const BLOCKS = 3u;  // of 32 values, per row

// Four values of a row from column i on; 0 behind its end.
fn values_at(row: u32, i: u32) -> vec4f {
  if (i >= K) {
    return vec4f();
  }
  return x[(row * K + i) / 4u];
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

// ONNX nodes:
//   /model/layers.0/mlp/down_proj/MatMul_Q4
// One block per thread.
@compute @workgroup_size(64, 1, 1)
fn main(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let i = (group.y * groups.x + group.x) * 64u + thread;
  let row = i / BLOCKS;
  let block = i % BLOCKS;
  if (row >= min(arrayLength(&y) / 28u, sequence.length) || sequence.stop != 0u) {
    return;  // no token in this row, or generation has ended
  }
  var values: array<vec4f, 8>;
  for (var j = 0u; j < 8u; j++) {
    values[j] = values_at(row, block * 32u + 4u * j);
  }
  var largest = abs(values[0]);
  for (var j = 1u; j < 8u; j++) {
    largest = max(largest, abs(values[j]));
  }
  let limit = greatest_of(largest);
  let at = row * 28u + block * 8u;
  for (var j = 0u; j < 8u; j += 2u) {
    let words = int8_octet(values[j], values[j + 1u], 127.0 / max(limit, 1e-30));
    y[at + j] = words.x;
    y[at + j + 1u] = words.y;
  }
  y[row * 28u + 24u + block] = bitcast<u32>(limit / 127.0);
}
