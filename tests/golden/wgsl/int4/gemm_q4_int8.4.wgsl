// ONNX nodes:
//   /lm_head/MatMul_Q4
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

// The zero point z of a block as four bytes 0x80 - z, which is what `centered` adds.
fn zero_bytes(row: u32, block: u32) -> u32 {
  return 0x78787878u;  // symmetric: z = 8
}

// Four nibbles, spread into the low halves of four bytes, to four signed bytes q - z. No byte carries.
fn centered(nibbles: u32, zeros: u32) -> u32 {
  return ((nibbles & 0x0f0f0f0fu) + zeros) ^ 0x80808080u;
}

const N = 271u;  // outputs

// The rows of W behind the `quad`-th four columns; the last ones repeat instead of running past the end.
fn weight_rows(quad: u32) -> vec4<u32> {
  return min(4u * quad + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(N - 1u));
}

// A workgroup computes 16 rows of y by 64 rows of W, a thread 4 by 4.
// Along K it goes in steps of 64.
const THREADS = 64u;
const STEPS = 1u;
const CHUNKS = 2u;  // of 32 values with one scale of x and one of W
const STEP_CHUNKS = 2u;
const X_QUADS = 4u;  // fours of rows of x in a tile
const W_QUADS = 16u;  // fours of rows of W in a tile
const ROW_WORDS = 8u;  // of eight weights

@group(0) @binding(2) var<storage, read> weights: array<u32>;

// Four int8 values to a word, the even ones of eight and then the odd ones.
var<workgroup> x_tile: array<vec4<u32>, 64>;  // [k / 4][four rows of x]
var<workgroup> w_tile: array<vec4<u32>, 256>;  // [k / 4][four rows of W]
var<workgroup> x_scales: array<vec4<f32>, 8>;
var<workgroup> w_scales: array<vec4<f32>, 32>;

@group(0) @binding(4) var<storage, read_write> y: array<f32>;

fn store(row: u32, column: u32, total: vec4<f32>) {
  let v = total;
  if (row < 16u && column < N) {
    let at = row * 271u + column;
    y[at] = v.x;
    if (column + 1u < N) {
      y[at + 1u] = v.y;
    }
    if (column + 2u < N) {
      y[at + 2u] = v.z;
    }
    if (column + 3u < N) {
      y[at + 3u] = v.w;
    }
  }
}

fn x_rows(first_row: u32, quad: u32) -> vec4<u32> {
  return min(first_row + 4u * quad + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(15u));
}

// The words of four rows of W, each of eight weights.
fn weight_words(rows: vec4<u32>, word: u32) -> vec4<u32> {
  let at = rows * ROW_WORDS + word;
  return vec4<u32>(weights[at.x], weights[at.y], weights[at.z], weights[at.w]);
}

fn centered_rows(nibbles: vec4<u32>, zeros: vec4<u32>) -> vec4<u32> {
  return ((nibbles & vec4<u32>(0x0f0f0f0fu)) + zeros) ^ vec4<u32>(0x80808080u);
}

fn dots(x: u32, w: vec4<u32>) -> vec4<i32> {
  return vec4<i32>(dot4I8Packed(x, w.x), dot4I8Packed(x, w.y), dot4I8Packed(x, w.z), dot4I8Packed(x, w.w));
}

@compute @workgroup_size(64, 1, 1)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let first_row = group.y * 16u;
  if (first_row >= sequence.length) {
    return;  // no token in these rows
  }
  let w_quad = thread % W_QUADS;
  let x_quad = thread / W_QUADS * 1u;
  var sum0 = vec4<f32>();
  var sum1 = vec4<f32>();
  var sum2 = vec4<f32>();
  var sum3 = vec4<f32>();
  for (var step = 0u; step < STEPS; step++) {
    for (var item = thread; item < X_QUADS * 4u; item += THREADS) {
      let quad = item / 4u;
      let part = item % 4u;
      let at = x_rows(first_row, quad) * X_STRIDE + min(4u * step + part, X_SCALES - 1u);
      let a = x[at.x];
      let b = x[at.y];
      let c = x[at.z];
      let d = x[at.w];
      let to = 4u * part * X_QUADS + quad;
      x_tile[to] = vec4<u32>(a.x, b.x, c.x, d.x);
      x_tile[to + X_QUADS] = vec4<u32>(a.y, b.y, c.y, d.y);
      x_tile[to + 2u * X_QUADS] = vec4<u32>(a.z, b.z, c.z, d.z);
      x_tile[to + 3u * X_QUADS] = vec4<u32>(a.w, b.w, c.w, d.w);
    }
    for (var item = thread; item < X_QUADS * STEP_CHUNKS; item += THREADS) {
      let chunk = STEP_CHUNKS * step + item / X_QUADS;
      if (chunk < CHUNKS) {
        let rows = x_rows(first_row, item % X_QUADS);
        x_scales[item] = vec4<f32>(
          x_scale(rows.x, chunk), x_scale(rows.y, chunk), x_scale(rows.z, chunk), x_scale(rows.w, chunk));
      } else {
        x_scales[item] = vec4<f32>();  // behind the rows
      }
    }
    for (var item = thread; item < W_QUADS * 8u; item += THREADS) {
      let quad = item / 8u;
      let part = item % 8u;
      let rows = weight_rows(group.x * W_QUADS + quad);
      let word = min(8u * step + part, ROW_WORDS - 1u);
      let block = word / 4u;
      let words = weight_words(rows, word);
      let zeros = vec4<u32>(zero_bytes(0u, 0u));
      w_tile[2u * part * W_QUADS + quad] = centered_rows(words, zeros);
      w_tile[(2u * part + 1u) * W_QUADS + quad] = centered_rows(words >> vec4<u32>(4u), zeros);
    }
    for (var item = thread; item < W_QUADS * STEP_CHUNKS; item += THREADS) {
      let rows = weight_rows(group.x * W_QUADS + item % W_QUADS);
      let block = min(STEP_CHUNKS * step + item / W_QUADS, CHUNKS - 1u) / CHUNKS_PER_BLOCK;
      w_scales[item] = vec4<f32>(
        scale(rows.x, block), scale(rows.y, block), scale(rows.z, block), scale(rows.w, block));
    }
    workgroupBarrier();
    for (var chunk = 0u; chunk < STEP_CHUNKS; chunk++) {
      var dots0 = vec4<i32>();
      var dots1 = vec4<i32>();
      var dots2 = vec4<i32>();
      var dots3 = vec4<i32>();
      let first = 8u * chunk;
      for (var word = first; word < first + 8u; word++) {
        let w = w_tile[word * W_QUADS + w_quad];
        let x0 = x_tile[word * X_QUADS + x_quad];
        dots0 += dots(x0.x, w);
        dots1 += dots(x0.y, w);
        dots2 += dots(x0.z, w);
        dots3 += dots(x0.w, w);
      }
      let w_scale = w_scales[chunk * W_QUADS + w_quad];
      let x_scale0 = x_scales[chunk * X_QUADS + x_quad];
      sum0 += x_scale0.x * w_scale * vec4<f32>(dots0);
      sum1 += x_scale0.y * w_scale * vec4<f32>(dots1);
      sum2 += x_scale0.z * w_scale * vec4<f32>(dots2);
      sum3 += x_scale0.w * w_scale * vec4<f32>(dots3);
    }
    workgroupBarrier();
  }
  let row = first_row + 4u * x_quad;
  let column = 4u * (group.x * W_QUADS + w_quad);
  store(row + 0u, column, sum0);
  store(row + 1u, column, sum1);
  store(row + 2u, column, sum2);
  store(row + 3u, column, sum3);
}
