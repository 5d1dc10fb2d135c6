// ONNX nodes:
//   /model/layers.0/mlp/down_proj/MatMul_Q4
struct Sequence {
  past_length: u32, length: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
// Rows of int8 values, four to a word, even and odd ones of every eight apart; then f32 scales.
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;

const X_STRIDE = 7u;  // vectors per row
const X_SCALES = 6u;  // where a row's scales begin

fn x_scale(row: u32, chunk: u32) -> f32 {
  return bitcast<f32>(x[row * X_STRIDE + X_SCALES + (chunk >> 2u)][chunk & 3u]);
}

@group(0) @binding(3) var<storage, read> params: array<u32>;

const BLOCKS = 3u;  // of 32 weights, per row
const CHUNKS_PER_BLOCK = 1u;

// The scale of a block.
fn scale(row: u32, block: u32) -> f32 {
  let i = row * BLOCKS + block;
  return unpack2x16float(params[i >> 1u] >> (16u * (i & 1u))).x;
}

const CHUNKS = 3u;  // of 32 values along K, with one scale of x

// The rows of W behind the `quad`-th four columns.
fn weight_rows(quad: u32) -> vec4<u32> {
  return 4u * quad + vec4<u32>(0u, 1u, 2u, 3u);
}

// Sums of int8 products begin at the bits of 1.5 * 2^23: an f32 of that size has steps of 1, so the sum's bits
// are that number plus the sum. A subtraction gives its value, where a conversion takes eight times as long.
const SUM_START = 0x4b400000;
const SUM_OFFSET = 12582912.0;

// Four nibbles of each row, in the low halves of bytes, to signed bytes q - z. No byte carries.
fn centered_rows(nibbles: vec4<u32>, zeros: vec4<u32>) -> vec4<u32> {
  return ((nibbles & vec4<u32>(0x0f0f0f0fu)) + zeros) ^ vec4<u32>(0x80808080u);
}

const ZEROS = vec4<u32>(0x78787878u);  // the zero point 8 as four bytes 0x80 - 8, for each row

fn scales_of(rows: vec4<u32>, block: u32) -> vec4<f32> {
  return vec4<f32>(scale(rows.x, block), scale(rows.y, block), scale(rows.z, block), scale(rows.w, block));
}

// Four int8 of a row of x times the same four of each row of W.
fn dots(x: u32, w: vec4<u32>) -> vec4<i32> {
  return vec4<i32>(dot4I8Packed(x, w.x), dot4I8Packed(x, w.y), dot4I8Packed(x, w.z), dot4I8Packed(x, w.w));
}

// A thread holds four rows of W, of one part of K (2 chunks), and multiplies all rows of x with them. A
// workgroup takes 32 rows of W and 16 parts. A part's sum, and then the sum over the parts, is
// taken in the order of K, as in the GEMM: both give the same bits.
const QUADS = 8u;  // fours of rows of W
const PARTS = 16u;
const BATCH = 4u;  // rows of x between two barriers
const STRIDE = 136u;  // of a row's sums: rows start in different memory banks

@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>;

var<workgroup> sums: array<vec4<f32>, 544>;  // [row of x][part][four rows of W]

// A chunk of four rows of W as int8, in the order of the words of x.
struct Chunk {
  index: u32,
  words0: vec4<u32>,
  words1: vec4<u32>,
  words2: vec4<u32>,
  words3: vec4<u32>,
  words4: vec4<u32>,
  words5: vec4<u32>,
  words6: vec4<u32>,
  words7: vec4<u32>,
  scales: vec4<f32>,
}

fn load_chunk(rows: vec4<u32>, i: u32) -> Chunk {
  let index = min(i, CHUNKS - 1u);
  let block = index / CHUNKS_PER_BLOCK;
  let four = vec4<u32>(4u);
  let a = weights[rows.x * 3u + index];
  let b = weights[rows.y * 3u + index];
  let c = weights[rows.z * 3u + index];
  let d = weights[rows.w * 3u + index];
  let words_x = vec4<u32>(a.x, b.x, c.x, d.x);
  let words_y = vec4<u32>(a.y, b.y, c.y, d.y);
  let words_z = vec4<u32>(a.z, b.z, c.z, d.z);
  let words_w = vec4<u32>(a.w, b.w, c.w, d.w);
  return Chunk(
    index,
    centered_rows(words_x, ZEROS), centered_rows(words_x >> four, ZEROS),
    centered_rows(words_y, ZEROS), centered_rows(words_y >> four, ZEROS),
    centered_rows(words_z, ZEROS), centered_rows(words_z >> four, ZEROS),
    centered_rows(words_w, ZEROS), centered_rows(words_w >> four, ZEROS),
    select(vec4<f32>(), scales_of(rows, block), i < CHUNKS));  // nothing behind the end of K
}

// A chunk of a row of x times those of W, and the product of their scales.
fn products(row: u32, w: Chunk) -> vec4<f32> {
  let at = row * X_STRIDE + 2u * w.index;
  var sum = vec4<i32>(SUM_START);
  let x0 = x[at];
  sum += dots(x0.x, w.words0) + dots(x0.y, w.words1) + dots(x0.z, w.words2) + dots(x0.w, w.words3);
  let x1 = x[at + 1u];
  sum += dots(x1.x, w.words4) + dots(x1.y, w.words5) + dots(x1.z, w.words6) + dots(x1.w, w.words7);
  return bitcast<vec4<f32>>(sum) - SUM_OFFSET;
}

// The sum of a part: a row of x times four rows of W.
fn part_sum(row: u32, w0: Chunk, w1: Chunk) -> vec4<f32> {
  var sum = vec4<f32>();
  sum = fma(x_scale(row, w0.index) * w0.scales, products(row, w0), sum);
  sum = fma(x_scale(row, w1.index) * w1.scales, products(row, w1), sum);
  return sum;
}

@group(0) @binding(4) var<storage, read_write> y: array<f32>;

fn store(row: u32, column: u32, total: vec4<f32>) {
  let at = row * 64u + column;
  y[at] = total.x;
  y[at + 1u] = total.y;
  y[at + 2u] = total.z;
  y[at + 3u] = total.w;
}

@compute @workgroup_size(128, 1, 1)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  let first_quad = group.x * QUADS;
  let quad = thread % QUADS;
  let rows = weight_rows(first_quad + quad);
  let n_rows = sequence.length;
  let chunk = 2u * (thread / QUADS);
  let w0 = load_chunk(rows, chunk);
  let w1 = load_chunk(rows, chunk + 1u);
  for (var first_row = 0u; first_row < n_rows; first_row += BATCH) {
    sums[thread] = part_sum(first_row, w0, w1);
    sums[thread + STRIDE] = part_sum(min(first_row + 1u, n_rows - 1u), w0, w1);
    sums[thread + 2u * STRIDE] = part_sum(min(first_row + 2u, n_rows - 1u), w0, w1);
    sums[thread + 3u * STRIDE] = part_sum(min(first_row + 3u, n_rows - 1u), w0, w1);
    workgroupBarrier();
    let row = first_row + thread / QUADS;
    if (thread < BATCH * QUADS && row < n_rows) {
      var total = vec4<f32>();
      let from_part = thread / QUADS * STRIDE + quad;
      for (var part = 0u; part < PARTS; part += 8u) {
        let from_sum = from_part + part * QUADS;
        total = total + sums[from_sum] + sums[from_sum + 8u] + sums[from_sum + 16u] + sums[from_sum + 24u]
          + sums[from_sum + 32u] + sums[from_sum + 40u] + sums[from_sum + 48u] + sums[from_sum + 56u];
      }
      store(row, 4u * (first_quad + quad), total);
    }
    workgroupBarrier();
  }
}
