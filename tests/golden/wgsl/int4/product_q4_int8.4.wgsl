// ONNX nodes:
//   /lm_head/MatMul_Q4
struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
// Rows of int8 values, four to a word, even and odd ones of every eight apart; then f32 scales.
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;

const X_STRIDE = 5u;  // vectors per row
const X_SCALES = 4u;  // where a row's scales begin

fn x_scale(row: u32, chunk: u32) -> f32 {
  return bitcast<f32>(x[row * X_STRIDE + X_SCALES + (chunk >> 2u)][chunk & 3u]);
}

@group(0) @binding(3) var<storage, read> params: array<u32>;

const BLOCKS = 2u;  // of 32 weights, per row
const CHUNKS_PER_BLOCK = 1u;

// The scale of a block.
fn scale(row: u32, block: u32) -> f32 {
  let i = row * BLOCKS + block;
  return unpack2x16float(params[i >> 1u] >> (16u * (i & 1u))).x;
}

fn zero_point(row: u32, block: u32) -> i32 {
  return 8;  // symmetric
}

const N = 271u;  // outputs
const ROW_CHUNKS = 2u;  // of 32 weights
const CHUNKS = 2u;

@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>;

// 32 activations as int8 with one scale, even and odd ones of every eight in separate words, as the
// nibbles of a word of weights come apart.
struct Chunk {
  words0: vec4<u32>,
  words1: vec4<u32>,
  sum: i32,
  scale: f32,
}

fn sum_of(words: vec4<u32>) -> i32 {
  return dot4I8Packed(words.x, 0x01010101u) + dot4I8Packed(words.y, 0x01010101u)
    + dot4I8Packed(words.z, 0x01010101u) + dot4I8Packed(words.w, 0x01010101u);
}

fn load_chunk(x_row: u32, chunk: u32) -> Chunk {
  let words0 = x[x_row * X_STRIDE + 2u * chunk + 0u];
  let words1 = x[x_row * X_STRIDE + 2u * chunk + 1u];
  return Chunk(words0, words1, sum_of(words0) + sum_of(words1), x_scale(x_row, chunk));
}

// The sum of (q - zero) * x is that of q * x, less zero times the sum of x: nibbles need no centring.
fn row_dot(row: u32, chunk: u32, x: Chunk) -> f32 {
  let words = weights[row * ROW_CHUNKS + chunk];
  let block = chunk / CHUNKS_PER_BLOCK;
  var sum = -zero_point(row, block) * x.sum;
  sum += dot4I8Packed(words.x & 0x0f0f0f0fu, x.words0.x);
  sum += dot4I8Packed((words.x >> 4u) & 0x0f0f0f0fu, x.words0.y);
  sum += dot4I8Packed(words.y & 0x0f0f0f0fu, x.words0.z);
  sum += dot4I8Packed((words.y >> 4u) & 0x0f0f0f0fu, x.words0.w);
  sum += dot4I8Packed(words.z & 0x0f0f0f0fu, x.words1.x);
  sum += dot4I8Packed((words.z >> 4u) & 0x0f0f0f0fu, x.words1.y);
  sum += dot4I8Packed(words.w & 0x0f0f0f0fu, x.words1.z);
  sum += dot4I8Packed((words.w >> 4u) & 0x0f0f0f0fu, x.words1.w);
  return scale(row, block) * x.scale * f32(sum);
}

@group(0) @binding(4) var<storage, read_write> y: array<f32>;

// The products of a row of x with four rows of W.
fn products(x_row: u32, rows: vec4<u32>) -> vec4<f32> {
  var sums = vec4<f32>();
  for (var chunk = 0u; chunk < CHUNKS; chunk++) {
    let x_chunk = load_chunk(x_row, chunk);
    sums += vec4<f32>(
      row_dot(rows.x, chunk, x_chunk), row_dot(rows.y, chunk, x_chunk),
      row_dot(rows.z, chunk, x_chunk), row_dot(rows.w, chunk, x_chunk));
  }
  return sums;
}

@compute @workgroup_size(16, 1, 1)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (sequence.stop != 0u || id.y >= sequence.length) {
    return;  // generation has ended, or there is no token in this row
  }
  let row = 4u * id.x;
  if (row >= N) {
    return;
  }
  let sums = products(id.y, min(vec4<u32>(row) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(N - 1u)));
  for (var i = 0u; i < min(4u, N - row); i++) {
    y[id.y * 271u + row + i] = sums[i];
  }
}
