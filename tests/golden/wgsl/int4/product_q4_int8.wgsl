struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
// Rows of int8, even and odd ones of every eight apart; then f32 scales.
@group(0) @binding(1) var<storage, read> x: array<vec4u>;

override X_STRIDE: u32 = 5u;  // vectors per row
override X_SCALES: u32 = 4u;  // where a row's scales begin

fn x_scale(row: u32, chunk: u32) -> f32 {
  return bitcast<f32>(x[row * X_STRIDE + X_SCALES + (chunk >> 2u)][chunk & 3u]);
}

@group(0) @binding(3) var<storage, read> params: array<u32>;

override BLOCKS: u32 = 2u;  // of 32 weights, per row
const CHUNKS_PER_BLOCK = 1u;

// The scale of a block.
fn scale(row: u32, block: u32) -> f32 {
  let i = row * BLOCKS + block;
  return unpack2x16float(params[i >> 1u] >> (16u * (i & 1u))).x;
}

fn zero_point(row: u32, block: u32) -> i32 {
  return 8;  // symmetric
}

override N: u32 = 128u;  // outputs
override ROW_CHUNKS: u32 = 2u;  // of 32 weights
override CHUNKS: u32 = 2u;

@group(0) @binding(2) var<storage, read> weights: array<vec4u>;

// 32 activations as int8, even and odd ones of every eight in separate words, as the nibbles of a word
// of weights come apart.
struct Chunk {
  words0: vec4u,
  words1: vec4u,
  sum: i32,
  scale: f32,
}

fn sum_of(words: vec4u) -> i32 {
  return dot4I8Packed(words.x, 0x01010101u) + dot4I8Packed(words.y, 0x01010101u)
    + dot4I8Packed(words.z, 0x01010101u) + dot4I8Packed(words.w, 0x01010101u);
}

fn load_chunk(x_row: u32, chunk: u32) -> Chunk {
  let words0 = x[x_row * X_STRIDE + 2u * chunk + 0u];
  let words1 = x[x_row * X_STRIDE + 2u * chunk + 1u];
  return Chunk(words0, words1, sum_of(words0) + sum_of(words1), x_scale(x_row, chunk));
}

struct Weights {
  words: vec4u,
  scale: f32,
  zero: i32,
}

fn load_weights(row: u32, chunk: u32) -> Weights {
  let block = chunk / CHUNKS_PER_BLOCK;
  return Weights(weights[row * ROW_CHUNKS + chunk], scale(row, block), zero_point(row, block));
}

// Sixteen weights times sixteen activations.
fn sixteen(weights: vec2u, x: vec4u) -> i32 {
  return dot4I8Packed(weights.x & 0x0f0f0f0fu, x.x) + dot4I8Packed((weights.x >> 4u) & 0x0f0f0f0fu, x.y)
    + dot4I8Packed(weights.y & 0x0f0f0f0fu, x.z) + dot4I8Packed((weights.y >> 4u) & 0x0f0f0f0fu, x.w);
}

// The sum of (q - zero) * x: that of q * x, less zero times the sum of x.
fn weights_dot(w: Weights, x: Chunk) -> f32 {
  let sum = sixteen(w.words.xy, x.words0) + sixteen(w.words.zw, x.words1) - w.zero * x.sum;
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
//   /model/layers.0/attn/qkv_proj/MatMul_Q4
//   /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(16, 1, 1)
fn product_q4_int8(@builtin(global_invocation_id) id: vec3u) {
  if (sequence.stop != 0u || id.y >= sequence.length) {
    return;  // generation has ended, or there is no token in this row
  }
  let row = 4u * id.x;
  if (row >= N) {
    return;
  }
  let sums = products(id.y, vec4u(row, row + 1u, row + 2u, row + 3u));
  let at = id.y * 128u + row;
  y[at] = sums.x;
  y[at + 1u] = sums.y;
  y[at + 2u] = sums.z;
  y[at + 3u] = sums.w;
}

// ONNX nodes:
//   /model/layers.0/attn/o_proj/MatMul_Q4
//   /model/layers.0/post_attention_layernorm/SkipLayerNorm
//   /model/layers.0/mlp/down_proj/MatMul_Q4
//   /model/layers.1/final_norm_layernorm/SkipLayerNorm
@compute @workgroup_size(16, 1, 1)
fn product_q4_int8_2(@builtin(global_invocation_id) id: vec3u) {
  if (sequence.stop != 0u || id.y >= sequence.length) {
    return;  // generation has ended, or there is no token in this row
  }
  let row = 4u * id.x;
  if (row >= N) {
    return;
  }
  let sums = products(id.y, vec4u(row, row + 1u, row + 2u, row + 3u));
  let at = id.y * 64u + row;
  y[at] = sums.x;
  y[at + 1u] = sums.y;
  y[at + 2u] = sums.z;
  y[at + 3u] = sums.w;
}

fn gate(v: f32) -> f32 {
  return v / (1.0 + exp(min(-v, 80.0)));  // exp must not reach infinity
}

// ONNX nodes:
//   /model/layers.0/mlp/gate_proj/MatMul_Q4
//   /model/layers.0/mlp/up_proj/MatMul_Q4
//   /model/layers.0/mlp/act_fn/Sigmoid
//   /model/layers.0/mlp/act_fn/Mul
//   /model/layers.0/mlp/Mul
@compute @workgroup_size(16, 1, 1)
fn product_q4_int8_gated(@builtin(global_invocation_id) id: vec3u) {
  if (sequence.stop != 0u || id.y >= sequence.length) {
    return;  // generation has ended, or there is no token in this row
  }
  let row = 2u * id.x;
  if (row >= N) {
    return;
  }
  let next = row + 1u;
  let sums = products(id.y, vec4u(row, next, row + N, next + N));
  y[id.y * 96u + row] = gate(sums.x) * sums.z;
  y[id.y * 96u + next] = gate(sums.y) * sums.w;
}

fn load_chunk_argmax(chunk: u32) -> Chunk {
  let words0 = x[2u * chunk + 0u];
  let words1 = x[2u * chunk + 1u];
  return Chunk(words0, words1, sum_of(words0) + sum_of(words1), x_scale(0u, chunk));
}

@group(0) @binding(5) var<storage, read_write> partial_values: array<f32>;  // per thread: its greatest output
@group(0) @binding(6) var<storage, read_write> partial_indices: array<u32>;  // and which one that is

const GREATEST = 0x1.fffffep+127f;

// A number for comparisons: NaN, told by its bits, counts as the greatest f32.
fn finite(value: f32) -> f32 {
  let is_nan = (bitcast<u32>(value) & 0x7fffffffu) > 0x7f800000u;
  return select(clamp(value, -GREATEST, GREATEST), GREATEST, is_nan);
}

// The products of a row of x with four rows of W.
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
@compute @workgroup_size(16, 1, 1)
fn product_q4_int8_argmax(@builtin(global_invocation_id) id: vec3u) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let begin = id.x * 4u;
  if (begin >= N) {
    return;
  }
  var value = -GREATEST;
  var index = 0xffffffffu;
  for (var row = begin; row < min(begin + 4u, N); row += 4u) {
    let sums = products_argmax(min(vec4u(row) + vec4u(0u, 1u, 2u, 3u), vec4u(N - 1u)));
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
@compute @workgroup_size(16, 1, 1)
fn product_q4_int8_3(@builtin(global_invocation_id) id: vec3u) {
  if (sequence.stop != 0u || id.y >= sequence.length) {
    return;  // generation has ended, or there is no token in this row
  }
  let row = 4u * id.x;
  if (row >= N) {
    return;
  }
  let sums = products(id.y, min(vec4u(row) + vec4u(0u, 1u, 2u, 3u), vec4u(N - 1u)));
  for (var i = 0u; i < min(4u, N - row); i++) {
    y[id.y * 271u + row + i] = sums[i];
  }
}
