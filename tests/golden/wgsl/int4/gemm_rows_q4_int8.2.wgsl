struct Sequence { past_length: u32, length: u32 }

@group(0) @binding(0) var<storage, read> sequence: Sequence;
// Rows of int8, even and odd ones of every eight apart; then f32 scales.
@group(0) @binding(1) var<storage, read> x: array<vec4u>;

fn x_scale(row: u32, chunk: u32) -> f32 {
  return bitcast<f32>(x[row * X_STRIDE + X_SCALES + (chunk >> 2)][chunk & 3]);
}

@group(0) @binding(3) var<storage, read> params: array<u32>;

fn scale(row: u32, block: u32) -> f32 {
  let i = row * CHUNKS + block;
  return unpack2x16float(params[i >> 1] >> (16 * (i & 1))).x;
}

// The layer's size follows from the grid and the bindings: a pipeline is for all of them.
var<private> N: u32;  // outputs
var<private> CHUNKS: u32;  // of 32 values along K, with one scale of x
var<private> X_SCALES: u32;  // where a row's scales begin
var<private> X_STRIDE: u32;  // vectors per row
override TILE_OUTPUTS: u32 = 32u;

fn set_shape(n_tiles: u32, n_chunks: u32) {
  N = n_tiles * TILE_OUTPUTS;
  CHUNKS = n_chunks;
  X_SCALES = n_chunks * 2;
  X_STRIDE = X_SCALES + (n_chunks + 3) / 4;
}

override GATED: u32 = 0u;  // 1: gate and up projection; 0: one layer

// The rows of W behind the `quad`-th four columns; if gated two of the gate, two of the up projection.
fn weight_rows(quad: u32) -> vec4u {
  let gates = 2 * quad + vec2u(0, 1);
  return select(4 * quad + vec4u(0, 1, 2, 3), vec4u(gates, gates + vec2u(N)), GATED == 1);
}

// Sums begin at the bits of 1.5 * 2^23, an f32 with steps of 1: a subtraction gives their value, eight times as
// fast as a conversion.
const SUM_START = 0x4b400000;
const SUM_OFFSET = 12582912.0;

// Four nibbles of each row, in the low halves of bytes, to signed bytes q - z. No byte carries.
fn centered_rows(nibbles: vec4u, zeros: vec4u) -> vec4u {
  return ((nibbles & vec4u(0x0f0f0f0fu)) + zeros) ^ vec4u(0x80808080u);
}

const ZEROS = vec4u(0x78787878u);  // the zero point 8 as four bytes 0x80 - 8, for each row

fn scales_of(rows: vec4u, block: u32) -> vec4f {
  return vec4f(scale(rows.x, block), scale(rows.y, block), scale(rows.z, block), scale(rows.w, block));
}

// Four int8 of a row of x times the same four of each row of W.
fn dots(x: u32, w: vec4u) -> vec4i {
  return vec4i(dot4I8Packed(x, w.x), dot4I8Packed(x, w.y), dot4I8Packed(x, w.z), dot4I8Packed(x, w.w));
}

// A thread multiplies all rows of x with four rows of W, in one part of K (2 chunks).
// Sums are taken in the order of K, as in the GEMM: both give the same bits.
const QUADS = 8u;  // fours of rows of W
const PARTS = 16u;
const BATCH = 4u;  // rows of x between two barriers
const STRIDE = 136u;  // of a row's sums: rows start in different memory banks

@group(0) @binding(2) var<storage, read> weights: array<vec4u>;

const SUMS = 544u;
var<workgroup> sums: array<vec4f, SUMS>;  // [row of x][part][four rows of W]
const TOTALS = 128u;
var<workgroup> totals: array<vec4f, TOTALS>;  // [row of x][four rows of W]

// A chunk of four rows of W as int8, in the order of the words of x.
struct Chunk {
  index: u32,
  words0: vec4u,
  words1: vec4u,
  words2: vec4u,
  words3: vec4u,
  words4: vec4u,
  words5: vec4u,
  words6: vec4u,
  words7: vec4u,
  scales: vec4f,
}

fn load_chunk(rows: vec4u, i: u32) -> Chunk {
  let index = min(i, CHUNKS - 1);
  let four = vec4u(4);
  let a = weights[rows.x * CHUNKS + index];
  let b = weights[rows.y * CHUNKS + index];
  let c = weights[rows.z * CHUNKS + index];
  let d = weights[rows.w * CHUNKS + index];
  let words_x = vec4u(a.x, b.x, c.x, d.x);
  let words_y = vec4u(a.y, b.y, c.y, d.y);
  let words_z = vec4u(a.z, b.z, c.z, d.z);
  let words_w = vec4u(a.w, b.w, c.w, d.w);
  return Chunk(
    index,
    centered_rows(words_x, ZEROS), centered_rows(words_x >> four, ZEROS),
    centered_rows(words_y, ZEROS), centered_rows(words_y >> four, ZEROS),
    centered_rows(words_z, ZEROS), centered_rows(words_z >> four, ZEROS),
    centered_rows(words_w, ZEROS), centered_rows(words_w >> four, ZEROS),
    select(vec4f(), scales_of(rows, index), i < CHUNKS));  // nothing behind the end of K
}

// A chunk of a row of x times those of W, and the product of their scales.
fn products(row: u32, w: Chunk) -> vec4f {
  let at = row * X_STRIDE + 2 * w.index;
  var sum = vec4i(SUM_START);
  let x0 = x[at];
  sum += dots(x0.x, w.words0) + dots(x0.y, w.words1) + dots(x0.z, w.words2) + dots(x0.w, w.words3);
  let x1 = x[at + 1];
  sum += dots(x1.x, w.words4) + dots(x1.y, w.words5) + dots(x1.z, w.words6) + dots(x1.w, w.words7);
  return bitcast<vec4f>(sum) - SUM_OFFSET;
}

// The sum of a part: a row of x times four rows of W.
fn part_sum(row: u32, w0: Chunk, w1: Chunk) -> vec4f {
  var sum = vec4f();
  sum = fma(x_scale(row, w0.index) * w0.scales, products(row, w0), sum);
  sum = fma(x_scale(row, w1.index) * w1.scales, products(row, w1), sum);
  return sum;
}

@group(0) @binding(4) var<storage, read_write> y: array<vec2f>;

fn gate(v: f32) -> f32 {
  return v / (1.0 + exp(min(-v, 80.0)));  // exp must not reach infinity
}

fn store(row: u32, column: u32, total: vec4f) {
  if (row >= sequence.length) {
    return;
  }
  if (GATED == 1) {
    y[(row * N + column / 2) / 2] = vec2f(gate(total.x) * total.z, gate(total.y) * total.w);
  } else {
    let at = (row * N + column) / 2;
    y[at] = total.xy;
    y[at + 1] = total.zw;
  }
}

// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul_Q4, /model/layers.0/attn/o_proj/MatMul_Q4,
//     /model/layers.0/mlp/gate_proj/MatMul_Q4, /model/layers.0/mlp/up_proj/MatMul_Q4,
//     /model/layers.0/mlp/act_fn/Sigmoid, /model/layers.0/mlp/act_fn/Mul, /model/layers.0/mlp/Mul
@compute @workgroup_size(128)
fn gemm_rows_q4_int8(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let n_parts = arrayLength(&weights) / (groups.x * 8 * QUADS);
  set_shape(groups.x, n_parts * 2);
  let first_quad = group.x * QUADS;
  let quad = thread % QUADS;
  let rows = weight_rows(first_quad + quad);
  let n_rows = sequence.length;
  for (var first_part = 0u; first_part < n_parts; first_part += PARTS) {
    let chunk = 2 * (first_part + thread / QUADS);
    let w0 = load_chunk(rows, chunk);
    let w1 = load_chunk(rows, chunk + 1);
    for (var first_row = 0u; first_row < n_rows; first_row += BATCH) {
      sums[thread] = part_sum(first_row, w0, w1);
      sums[thread + STRIDE] = part_sum(min(first_row + 1, n_rows - 1), w0, w1);
      sums[thread + 2 * STRIDE] = part_sum(min(first_row + 2, n_rows - 1), w0, w1);
      sums[thread + 3 * STRIDE] = part_sum(min(first_row + 3, n_rows - 1), w0, w1);
      workgroupBarrier();
      let row = first_row + thread / QUADS;
      if (thread < BATCH * QUADS && row < n_rows) {
        var total = vec4f();
        if (first_part > 0) {
          total = totals[row * QUADS + quad];
        }
        let from_part = thread / QUADS * STRIDE + quad;
        for (var part = 0u; part < PARTS; part += 8) {
          let from_sum = from_part + part * QUADS;
          total = total + sums[from_sum] + sums[from_sum + QUADS] + sums[from_sum + 2 * QUADS]
            + sums[from_sum + 3 * QUADS] + sums[from_sum + 4 * QUADS] + sums[from_sum + 5 * QUADS]
            + sums[from_sum + 6 * QUADS] + sums[from_sum + 7 * QUADS];
        }
        totals[row * QUADS + quad] = total;
        if (first_part + PARTS >= n_parts) {
          store(row, 4 * (first_quad + quad), total);
        }
      }
      workgroupBarrier();
    }
  }
}

const X_STRIDE_2 = 7u;  // vectors per row
const X_SCALES_2 = 6u;  // where a row's scales begin

fn x_scale_2(row: u32, chunk: u32) -> f32 {
  return bitcast<f32>(x[row * X_STRIDE_2 + X_SCALES_2 + (chunk >> 2)][chunk & 3]);
}

fn scale_2(row: u32, block: u32) -> f32 {
  let i = row * CHUNKS_2 + block;
  return unpack2x16float(params[i >> 1] >> (16 * (i & 1))).x;
}

const CHUNKS_2 = 3u;  // of 32 values along K, with one scale of x

// The rows of W behind the `quad`-th four columns.
fn weight_rows_2(quad: u32) -> vec4u {
  return 4 * quad + vec4u(0, 1, 2, 3);
}

fn scales_of_2(rows: vec4u, block: u32) -> vec4f {
  return vec4f(scale_2(rows.x, block), scale_2(rows.y, block), scale_2(rows.z, block), scale_2(rows.w, block));
}

fn load_chunk_2(rows: vec4u, i: u32) -> Chunk {
  let index = min(i, CHUNKS_2 - 1);
  let four = vec4u(4);
  let a = weights[rows.x * 3 + index];
  let b = weights[rows.y * 3 + index];
  let c = weights[rows.z * 3 + index];
  let d = weights[rows.w * 3 + index];
  let words_x = vec4u(a.x, b.x, c.x, d.x);
  let words_y = vec4u(a.y, b.y, c.y, d.y);
  let words_z = vec4u(a.z, b.z, c.z, d.z);
  let words_w = vec4u(a.w, b.w, c.w, d.w);
  return Chunk(
    index,
    centered_rows(words_x, ZEROS), centered_rows(words_x >> four, ZEROS),
    centered_rows(words_y, ZEROS), centered_rows(words_y >> four, ZEROS),
    centered_rows(words_z, ZEROS), centered_rows(words_z >> four, ZEROS),
    centered_rows(words_w, ZEROS), centered_rows(words_w >> four, ZEROS),
    select(vec4f(), scales_of_2(rows, index), i < CHUNKS_2));  // nothing behind the end of K
}

fn products_2(row: u32, w: Chunk) -> vec4f {
  let at = row * X_STRIDE_2 + 2 * w.index;
  var sum = vec4i(SUM_START);
  let x0 = x[at];
  sum += dots(x0.x, w.words0) + dots(x0.y, w.words1) + dots(x0.z, w.words2) + dots(x0.w, w.words3);
  let x1 = x[at + 1];
  sum += dots(x1.x, w.words4) + dots(x1.y, w.words5) + dots(x1.z, w.words6) + dots(x1.w, w.words7);
  return bitcast<vec4f>(sum) - SUM_OFFSET;
}

fn part_sum_2(row: u32, w0: Chunk, w1: Chunk) -> vec4f {
  var sum = vec4f();
  sum = fma(x_scale_2(row, w0.index) * w0.scales, products_2(row, w0), sum);
  sum = fma(x_scale_2(row, w1.index) * w1.scales, products_2(row, w1), sum);
  return sum;
}

@group(0) @binding(4) var<storage, read_write> y_2: array<f32>;

fn store_2(row: u32, column: u32, total: vec4f) {
  if (row >= sequence.length) {
    return;
  }
  let at = row * 64 + column;
  y_2[at] = total.x;
  y_2[at + 1] = total.y;
  y_2[at + 2] = total.z;
  y_2[at + 3] = total.w;
}

// ONNX nodes:
//   /model/layers.0/mlp/down_proj/MatMul_Q4
@compute @workgroup_size(128)
fn gemm_rows_q4_int8_2(
  @builtin(workgroup_id) group: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let first_quad = group.x * QUADS;
  let quad = thread % QUADS;
  let rows = weight_rows_2(first_quad + quad);
  let n_rows = sequence.length;
  let chunk = 2 * (thread / QUADS);
  let w0 = load_chunk_2(rows, chunk);
  let w1 = load_chunk_2(rows, chunk + 1);
  for (var first_row = 0u; first_row < n_rows; first_row += BATCH) {
    sums[thread] = part_sum_2(first_row, w0, w1);
    sums[thread + STRIDE] = part_sum_2(min(first_row + 1, n_rows - 1), w0, w1);
    sums[thread + 2 * STRIDE] = part_sum_2(min(first_row + 2, n_rows - 1), w0, w1);
    sums[thread + 3 * STRIDE] = part_sum_2(min(first_row + 3, n_rows - 1), w0, w1);
    workgroupBarrier();
    let row = first_row + thread / QUADS;
    if (thread < BATCH * QUADS && row < n_rows) {
      var total = vec4f();
      let from_part = thread / QUADS * STRIDE + quad;
      for (var part = 0u; part < PARTS; part += 8) {
        let from_sum = from_part + part * QUADS;
        total = total + sums[from_sum] + sums[from_sum + QUADS] + sums[from_sum + 2 * QUADS]
          + sums[from_sum + 3 * QUADS] + sums[from_sum + 4 * QUADS] + sums[from_sum + 5 * QUADS]
          + sums[from_sum + 6 * QUADS] + sums[from_sum + 7 * QUADS];
      }
      store_2(row, 4 * (first_quad + quad), total);
    }
    workgroupBarrier();
  }
}

const X_STRIDE_3 = 5u;  // vectors per row
const X_SCALES_3 = 4u;  // where a row's scales begin

fn x_scale_3(row: u32, chunk: u32) -> f32 {
  return bitcast<f32>(x[row * X_STRIDE_3 + X_SCALES_3 + (chunk >> 2)][chunk & 3]);
}

fn scale_3(row: u32, block: u32) -> f32 {
  let i = row * CHUNKS_3 + block;
  return unpack2x16float(params[i >> 1] >> (16 * (i & 1))).x;
}

const N_3 = 271u;  // outputs
const CHUNKS_3 = 2u;  // of 32 values along K, with one scale of x

// The rows of W behind the `quad`-th four columns; the last ones repeat instead of running past the end.
fn weight_rows_3(quad: u32) -> vec4u {
  return min(4 * quad + vec4u(0, 1, 2, 3), vec4u(N_3 - 1));
}

fn scales_of_3(rows: vec4u, block: u32) -> vec4f {
  return vec4f(scale_3(rows.x, block), scale_3(rows.y, block), scale_3(rows.z, block), scale_3(rows.w, block));
}

fn load_chunk_3(rows: vec4u, i: u32) -> Chunk {
  let index = min(i, CHUNKS_3 - 1);
  let four = vec4u(4);
  let a = weights[rows.x * 2 + index];
  let b = weights[rows.y * 2 + index];
  let c = weights[rows.z * 2 + index];
  let d = weights[rows.w * 2 + index];
  let words_x = vec4u(a.x, b.x, c.x, d.x);
  let words_y = vec4u(a.y, b.y, c.y, d.y);
  let words_z = vec4u(a.z, b.z, c.z, d.z);
  let words_w = vec4u(a.w, b.w, c.w, d.w);
  return Chunk(
    index,
    centered_rows(words_x, ZEROS), centered_rows(words_x >> four, ZEROS),
    centered_rows(words_y, ZEROS), centered_rows(words_y >> four, ZEROS),
    centered_rows(words_z, ZEROS), centered_rows(words_z >> four, ZEROS),
    centered_rows(words_w, ZEROS), centered_rows(words_w >> four, ZEROS),
    select(vec4f(), scales_of_3(rows, index), i < CHUNKS_3));  // nothing behind the end of K
}

fn products_3(row: u32, w: Chunk) -> vec4f {
  let at = row * X_STRIDE_3 + 2 * w.index;
  var sum = vec4i(SUM_START);
  let x0 = x[at];
  sum += dots(x0.x, w.words0) + dots(x0.y, w.words1) + dots(x0.z, w.words2) + dots(x0.w, w.words3);
  let x1 = x[at + 1];
  sum += dots(x1.x, w.words4) + dots(x1.y, w.words5) + dots(x1.z, w.words6) + dots(x1.w, w.words7);
  return bitcast<vec4f>(sum) - SUM_OFFSET;
}

fn part_sum_3(row: u32, w0: Chunk, w1: Chunk) -> vec4f {
  var sum = vec4f();
  sum = fma(x_scale_3(row, w0.index) * w0.scales, products_3(row, w0), sum);
  sum = fma(x_scale_3(row, w1.index) * w1.scales, products_3(row, w1), sum);
  return sum;
}

fn store_3(row: u32, column: u32, total: vec4f) {
  if (row >= sequence.length) {
    return;
  }
  let at = row * 271 + column;
  if (column < N_3) {
    y_2[at] = total.x;
  }
  if (column + 1 < N_3) {
    y_2[at + 1] = total.y;
  }
  if (column + 2 < N_3) {
    y_2[at + 2] = total.z;
  }
  if (column + 3 < N_3) {
    y_2[at + 3] = total.w;
  }
}

// ONNX nodes:
//   /lm_head/MatMul_Q4
@compute @workgroup_size(128)
fn gemm_rows_q4_int8_3(
  @builtin(workgroup_id) group: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let first_quad = group.x * QUADS;
  let quad = thread % QUADS;
  let rows = weight_rows_3(first_quad + quad);
  let n_rows = sequence.length;
  let chunk = 2 * (thread / QUADS);
  let w0 = load_chunk_3(rows, chunk);
  let w1 = load_chunk_3(rows, chunk + 1);
  for (var first_row = 0u; first_row < n_rows; first_row += BATCH) {
    sums[thread] = part_sum_3(first_row, w0, w1);
    sums[thread + STRIDE] = part_sum_3(min(first_row + 1, n_rows - 1), w0, w1);
    sums[thread + 2 * STRIDE] = part_sum_3(min(first_row + 2, n_rows - 1), w0, w1);
    sums[thread + 3 * STRIDE] = part_sum_3(min(first_row + 3, n_rows - 1), w0, w1);
    workgroupBarrier();
    let row = first_row + thread / QUADS;
    if (thread < BATCH * QUADS && row < n_rows) {
      var total = vec4f();
      let from_part = thread / QUADS * STRIDE + quad;
      for (var part = 0u; part < PARTS; part += 8) {
        let from_sum = from_part + part * QUADS;
        total = total + sums[from_sum] + sums[from_sum + QUADS] + sums[from_sum + 2 * QUADS]
          + sums[from_sum + 3 * QUADS] + sums[from_sum + 4 * QUADS] + sums[from_sum + 5 * QUADS]
          + sums[from_sum + 6 * QUADS] + sums[from_sum + 7 * QUADS];
      }
      store_3(row, 4 * (first_quad + quad), total);
    }
    workgroupBarrier();
  }
}
