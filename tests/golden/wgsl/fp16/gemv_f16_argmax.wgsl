struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;

// Four activations of a row, from 4 * quad on.
fn activation(row: u32, quad: u32) -> vec4<f32> {
  return x[row * 16u + quad];
}

// A workgroup takes 64 rows of W: 16 threads walk together along K of 4 rows.
const THREADS = 256u;
const LANES = 16u;
const PARTS = 4u;  // threads that add up a row's 16 sums
const TILE_ROWS = 64u;
const N = 271u;  // outputs
const ROW_CHUNKS = 8u;  // of 8 weights: what a thread takes at a time
const CHUNKS = 8u;

@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>;  // eight f16 each, read without the f16 feature

struct Chunk {
  x0: vec4<f32>,
  x1: vec4<f32>,
}

fn load_chunk(chunk: u32) -> Chunk {
  return Chunk(activation(0u, 2u * chunk), activation(0u, 2u * chunk + 1u));
}

fn row_dot(row: u32, chunk: u32, x: Chunk) -> f32 {
  let words = weights[row * ROW_CHUNKS + chunk];
  return dot(vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y)), x.x0)
       + dot(vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w)), x.x1);
}

var<workgroup> lane_sums: array<f32, 1024>;  // [row][lane]
var<workgroup> part_sums: array<f32, THREADS>;  // [part][row]

// The dot product of x with a row of the tile, once `part_sums` is complete.
fn row_total(row: u32) -> f32 {
  let sum = part_sums[row] + part_sums[64u + row] + part_sums[128u + row] + part_sums[192u + row];
  return sum;
}

@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read_write> partial_values: array<f32>;  // per tile: its greatest output
@group(0) @binding(5) var<storage, read_write> partial_indices: array<u32>;  // and which one that is

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

// ONNX nodes:
//   /lm_head/MatMul
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
  let part = thread % PARTS;
  let from_lane = thread / PARTS * LANES + part;
  part_sums[part * TILE_ROWS + thread / PARTS] =
    lane_sums[from_lane] + lane_sums[from_lane + 4u] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 12u];
  workgroupBarrier();
  finish(tile, thread);
}
