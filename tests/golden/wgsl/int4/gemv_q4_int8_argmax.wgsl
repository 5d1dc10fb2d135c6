// ONNX nodes:
//   /lm_head/MatMul_Q4
enable f16;

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

@group(0) @binding(3) var<storage, read> params: array<f16>;

const BLOCKS = 2u;  // of 32 weights, per row
const CHUNKS_PER_BLOCK = 1u;

// The scale of a block.
fn scale(row: u32, block: u32) -> f32 {
  let i = row * BLOCKS + block;
  return f32(params[i]);
}

fn zero_point(row: u32, block: u32) -> i32 {
  return 8;  // symmetric
}

// A workgroup takes 64 rows of W: 16 threads walk together along K of 4 rows.
const THREADS = 256u;
const LANES = 16u;
const PARTS = 4u;  // threads that add up a row's 16 sums
const TILE_ROWS = 64u;
const N = 271u;  // outputs
const ROW_CHUNKS = 2u;  // of 32 weights: what a thread takes at a time
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

fn load_chunk(chunk: u32) -> Chunk {
  let words0 = x[2u * chunk + 0u];
  let words1 = x[2u * chunk + 1u];
  return Chunk(words0, words1, sum_of(words0) + sum_of(words1), x_scale(0u, chunk));
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

var<workgroup> lane_sums: array<f32, 1024>;  // [row][lane]
var<workgroup> part_sums: array<f32, THREADS>;  // [part][row]
// x lacks its RMSNorm's factor, which is the same for the whole row: it is applied to the dot products.
var<workgroup> squares: array<f32, 1>;
var<workgroup> norm_factor: f32;

fn load_squares(thread: u32) {
  if (thread < 1u) {
    squares[thread] = dot(bitcast<vec4<f32>>(x[5u + thread]), vec4<f32>(1.0));
  }
}

fn add_squares(thread: u32) {
  if (thread == 0u) {
    let sum = squares[0];
    norm_factor = inverseSqrt(sum / 64.0 + 9.999999747378752e-06);
  }
}

// The dot product of x with a row of the tile, once `part_sums` is complete.
fn row_total(row: u32) -> f32 {
  let sum = part_sums[row] + part_sums[64u + row] + part_sums[128u + row] + part_sums[192u + row];
  return sum * norm_factor;
}

@group(0) @binding(4) var<storage, read_write> y: array<f32>;
@group(0) @binding(5) var<storage, read_write> partial_values: array<f32>;  // per tile: its greatest output
@group(0) @binding(6) var<storage, read_write> partial_indices: array<u32>;  // and which one that is

const GREATEST = 0x1.fffffep+127f;

// A number for comparisons: NaN, told by its bits, counts as the greatest f32.
fn finite(value: f32) -> f32 {
  let is_nan = (bitcast<u32>(value) & 0x7fffffffu) > 0x7f800000u;
  return select(clamp(value, -GREATEST, GREATEST), GREATEST, is_nan);
}

var<workgroup> best_values: array<f32, 64>;
var<workgroup> best_rows: array<u32, 64>;

fn finish(tile: u32, thread: u32) {
  let row = tile * TILE_ROWS + thread;
  if (thread < TILE_ROWS) {
    best_values[thread] = -GREATEST;
    best_rows[thread] = 0xffffffffu;
    if (row < N) {
      let value = row_total(thread);
      y[row] = value;
      best_values[thread] = finite(value);
      best_rows[thread] = row;
    }
  }
  for (var half = TILE_ROWS / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (thread < half) {
      let other = thread + half;
      // Of equal ones the first.
      if (best_values[other] > best_values[thread] ||
          (best_values[other] == best_values[thread] && best_rows[other] < best_rows[thread])) {
        best_values[thread] = best_values[other];
        best_rows[thread] = best_rows[other];
      }
    }
  }
  if (thread == 0u) {
    partial_values[tile] = best_values[0];
    partial_indices[tile] = best_rows[0];
  }
}

@compute @workgroup_size(256, 1, 1)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let tile = group.x;
  let lane = thread % LANES;
  let first = thread / LANES * 4u;  // of the tile
  let row0 = min(tile * TILE_ROWS + first, N - 1u);
  let row1 = min(row0 + 1u, N - 1u);
  let row2 = min(row0 + 2u, N - 1u);
  let row3 = min(row0 + 3u, N - 1u);
  load_squares(thread);
  var sum0 = 0.0;
  var sum1 = 0.0;
  var sum2 = 0.0;
  var sum3 = 0.0;
  for (var at = lane; at < CHUNKS; at += 16u) {
    {
      let chunk = at;
      let x_chunk = load_chunk(chunk);
      sum0 += row_dot(row0, chunk, x_chunk);
      sum1 += row_dot(row1, chunk, x_chunk);
      sum2 += row_dot(row2, chunk, x_chunk);
      sum3 += row_dot(row3, chunk, x_chunk);
    }
  }
  lane_sums[first * LANES + lane] = sum0;
  lane_sums[(first + 1u) * LANES + lane] = sum1;
  lane_sums[(first + 2u) * LANES + lane] = sum2;
  lane_sums[(first + 3u) * LANES + lane] = sum3;
  workgroupBarrier();
  add_squares(thread);
  let part = thread % PARTS;
  let from_lane = thread / PARTS * LANES + part;
  part_sums[part * TILE_ROWS + thread / PARTS] =
    lane_sums[from_lane] + lane_sums[from_lane + 4u] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 12u];
  workgroupBarrier();
  finish(tile, thread);
}
