struct Sequence { past_length: u32, length: u32, stop: u32 }

@group(0) @binding(0) var<storage, read> sequence: Sequence;
// Rows of int8, even and odd ones of every eight apart; then f32 scales.
@group(0) @binding(1) var<storage, read> x: array<vec4u>;

override X_STRIDE: u32 = 5u;  // vectors per row
override X_SCALES: u32 = 4u;  // where a row's scales begin

fn x_scale(row: u32, chunk: u32) -> f32 {
  return bitcast<f32>(x[row * X_STRIDE + X_SCALES + (chunk >> 2)][chunk & 3]);
}

@group(0) @binding(3) var<storage, read> params: array<u32>;

fn scale(row: u32, block: u32) -> f32 {
  let i = row * CHUNKS + block;
  return unpack2x16float(params[i >> 1] >> (16 * (i & 1))).x;
}

override N: u32 = 128u;  // outputs
override ROW_CHUNKS: u32 = 2u;  // of 32 weights
override CHUNKS: u32 = 2u;

@group(0) @binding(2) var<storage, read> weights: array<vec4u>;

// 32 activations, as the nibbles of a word of weights come apart.
struct Chunk {
  words0: vec4u,
  words1: vec4u,
  sum: i32,
  scale: f32,
}

const ONES = vec2u(0x11111111u);  // sixteen nibbles: a dot product with them is a sum

fn load_chunk(x_row: u32, chunk: u32) -> Chunk {
  let words0 = x[x_row * X_STRIDE + 2 * chunk];
  let words1 = x[x_row * X_STRIDE + 2 * chunk + 1];
  return Chunk(words0, words1, sixteen(ONES, words0) + sixteen(ONES, words1), x_scale(x_row, chunk));
}

struct Weights {
  words: vec4u,
  scale: f32,
}

fn load_weights(row: u32, chunk: u32) -> Weights {
  return Weights(weights[row * ROW_CHUNKS + chunk], scale(row, chunk));
}

// Sixteen weights times sixteen activations.
fn sixteen(weights: vec2u, x: vec4u) -> i32 {
  return dot4I8Packed(weights.x & 0x0f0f0f0fu, x.x) + dot4I8Packed((weights.x >> 4) & 0x0f0f0f0fu, x.y)
    + dot4I8Packed(weights.y & 0x0f0f0f0fu, x.z) + dot4I8Packed((weights.y >> 4) & 0x0f0f0f0fu, x.w);
}

// The sum of (q - 8) * x: that of q * x, less 8 times the sum of x.
fn weights_dot(w: Weights, x: Chunk) -> f32 {
  let sum = sixteen(w.words.xy, x.words0) + sixteen(w.words.zw, x.words1) - 8 * x.sum;
  return w.scale * x.scale * f32(sum);
}

fn row_dot(row: u32, chunk: u32, x: Chunk) -> f32 {
  return weights_dot(load_weights(row, chunk), x);
}

@group(0) @binding(4) var<storage, read_write> y: array<f32>;

// The products of a row of x with four rows of W.
fn products(x_row: u32, rows: vec4u) -> vec4f {
  var sums = vec4f();
  for (var chunk = 0u; chunk < CHUNKS; chunk++) {
    let x_chunk = load_chunk(x_row, chunk);
    sums += vec4f(
      row_dot(rows.x, chunk, x_chunk), row_dot(rows.y, chunk, x_chunk),
      row_dot(rows.z, chunk, x_chunk), row_dot(rows.w, chunk, x_chunk));
  }
  return sums;
}

// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul_Q4, /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(16)
fn product_q4_int8(@builtin(global_invocation_id) id: vec3u) {
  if (sequence.stop != 0 || id.y >= sequence.length) {
    return;  // generation has ended, or there is no token in this row
  }
  let row = 4 * id.x;
  if (row >= N) {
    return;
  }
  let sums = products(id.y, vec4u(row, row + 1, row + 2, row + 3));
  let at = id.y * 128 + row;
  y[at] = sums.x;
  y[at + 1] = sums.y;
  y[at + 2] = sums.z;
  y[at + 3] = sums.w;
}

// ONNX nodes:
//   /model/layers.0/attn/o_proj/MatMul_Q4, /model/layers.0/post_attention_layernorm/SkipLayerNorm,
//     /model/layers.0/mlp/down_proj/MatMul_Q4, /model/layers.1/final_norm_layernorm/SkipLayerNorm
@compute @workgroup_size(16)
fn product_q4_int8_2(@builtin(global_invocation_id) id: vec3u) {
  if (sequence.stop != 0 || id.y >= sequence.length) {
    return;  // generation has ended, or there is no token in this row
  }
  let row = 4 * id.x;
  if (row >= N) {
    return;
  }
  let sums = products(id.y, vec4u(row, row + 1, row + 2, row + 3));
  let at = id.y * 64 + row;
  y[at] = sums.x;
  y[at + 1] = sums.y;
  y[at + 2] = sums.z;
  y[at + 3] = sums.w;
}

fn gate(v: f32) -> f32 {
  return v / (1.0 + exp(min(-v, 80.0)));  // exp must not reach infinity
}

// ONNX nodes:
//   /model/layers.0/mlp/gate_proj/MatMul_Q4, /model/layers.0/mlp/up_proj/MatMul_Q4,
//     /model/layers.0/mlp/act_fn/Sigmoid, /model/layers.0/mlp/act_fn/Mul, /model/layers.0/mlp/Mul
@compute @workgroup_size(16)
fn product_q4_int8_gated(@builtin(global_invocation_id) id: vec3u) {
  if (sequence.stop != 0 || id.y >= sequence.length) {
    return;  // generation has ended, or there is no token in this row
  }
  let row = 2 * id.x;
  if (row >= N) {
    return;
  }
  let next = row + 1;
  let sums = products(id.y, vec4u(row, next, row + N, next + N));
  y[id.y * 96 + row] = gate(sums.x) * sums.z;
  y[id.y * 96 + next] = gate(sums.y) * sums.w;
}

fn x_scale_argmax(chunk: u32) -> f32 {
  return bitcast<f32>(x[X_SCALES + (chunk >> 2)][chunk & 3]);
}

fn load_chunk_argmax(chunk: u32) -> Chunk {
  let words0 = x[2 * chunk];
  let words1 = x[2 * chunk + 1];
  return Chunk(words0, words1, sixteen(ONES, words0) + sixteen(ONES, words1), x_scale_argmax(chunk));
}

@group(0) @binding(5) var<storage, read_write> partial_values: array<f32>;  // per thread: its greatest output
@group(0) @binding(6) var<storage, read_write> partial_indices: array<u32>;  // and which one that is

const GREATEST = 0x1.fffffep+127f;

// A number for comparisons: NaN, told by its bits, counts as the greatest f32.
fn finite(value: f32) -> f32 {
  let is_nan = (bitcast<u32>(value) & 0x7fffffffu) > 0x7f800000u;
  return select(clamp(value, -GREATEST, GREATEST), GREATEST, is_nan);
}

fn products_argmax(rows: vec4u) -> vec4f {
  var sums = vec4f();
  for (var chunk = 0u; chunk < CHUNKS; chunk++) {
    let x_chunk = load_chunk_argmax(chunk);
    sums += vec4f(
      row_dot(rows.x, chunk, x_chunk), row_dot(rows.y, chunk, x_chunk),
      row_dot(rows.z, chunk, x_chunk), row_dot(rows.w, chunk, x_chunk));
  }
  return sums;
}

// ONNX nodes:
//   /lm_head/MatMul_Q4
@compute @workgroup_size(16)
fn product_q4_int8_argmax(@builtin(global_invocation_id) id: vec3u) {
  if (sequence.stop != 0) {
    return;  // generation has ended
  }
  let begin = id.x * 4;
  if (begin >= N) {
    return;
  }
  var value = -GREATEST;
  var index = 0xffffffffu;
  for (var row = begin; row < min(begin + 4, N); row += 4) {
    let sums = products_argmax(min(vec4u(row) + vec4u(0, 1, 2, 3), vec4u(N - 1)));
    for (var i = 0u; i < min(4u, N - row); i++) {
      y[row + i] = sums[i];
      if (index == 0xffffffffu || finite(sums[i]) > value) {
        value = finite(sums[i]);
        index = row + i;
      }
    }
  }
  partial_values[id.x] = value;
  partial_indices[id.x] = index;
}

// ONNX nodes:
//   /lm_head/MatMul_Q4
@compute @workgroup_size(16)
fn product_q4_int8_3(@builtin(global_invocation_id) id: vec3u) {
  if (sequence.stop != 0 || id.y >= sequence.length) {
    return;  // generation has ended, or there is no token in this row
  }
  let row = 4 * id.x;
  if (row >= N) {
    return;
  }
  let sums = products(id.y, min(vec4u(row) + vec4u(0, 1, 2, 3), vec4u(N - 1)));
  for (var i = 0u; i < min(4u, N - row); i++) {
    y[id.y * 271 + row + i] = sums[i];
  }
}
