// ONNX nodes:
//   /model/layers.0/mlp/down_proj/MatMul_Q4
struct Sequence {
  past_length: u32,
  length: u32,
  total_length: u32,
  call_length: u32,
  n_tokens: u32,
  limit: u32,
  stop: u32,
  n_stop_tokens: u32,
  stop_tokens: array<u32, 16>,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;  // per row: values, four to a word, then a scale per block

const K = 96u;
const BLOCKS = 3u;  // of 32 values, per row

// Four values of a row from column i on; 0 behind its end.
fn values_at(row: u32, i: u32) -> vec4<f32> {
  if (i >= K) {
    return vec4<f32>();
  }
  return x[(row * K + i) / 4u];
}

// A block of 32 values to int8: scale = max|v| / 127. Even and odd values of every eight go to
// separate words, as 4-bit weights come apart.
fn quantize_block(row: u32, block: u32, values: array<vec4<f32>, 8>) {
  var v = values;
  var greatest = vec4<f32>();
  for (var i = 0u; i < 8u; i++) {
    greatest = max(greatest, abs(v[i]));
  }
  let limit = max(max(greatest.x, greatest.y), max(greatest.z, greatest.w));
  let to_int8 = 127.0 / max(limit, 1e-30);
  let at = row * 28u + block * 8u;
  for (var i = 0u; i < 8u; i += 2u) {
    let a = vec4<i32>(round(v[i] * to_int8));
    let b = vec4<i32>(round(v[i + 1u] * to_int8));
    y[at + i] = pack4xI8(vec4<i32>(a.xz, b.xz));
    y[at + i + 1u] = pack4xI8(vec4<i32>(a.yw, b.yw));
  }
  y[row * 28u + 24u + block] = bitcast<u32>(limit / 127.0);
}

// One block per thread.
@compute @workgroup_size(64, 1, 1)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let i = (group.y * 1u + group.x) * 64u + thread;
  let row = i / BLOCKS;
  let block = i % BLOCKS;
  if (row >= min(16u, sequence.length) || sequence.stop != 0u) {
    return;  // no token in this row, or generation has ended
  }
  var values: array<vec4<f32>, 8>;
  for (var j = 0u; j < 8u; j++) {
    values[j] = values_at(row, block * 32u + 4u * j);
  }
  quantize_block(row, block, values);
}
