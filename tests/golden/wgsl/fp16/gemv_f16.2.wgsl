// ONNX nodes:
//   /model/layers.0/mlp/down_proj/MatMul
struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;

// Four activations of a row, from 4 * quad on.
fn activation(row: u32, quad: u32) -> vec4<f32> {
  return x[row * 24u + quad];
}

// A workgroup takes 8 rows of W: 32 threads walk together along K of 4 rows.
const THREADS = 64u;
const LANES = 32u;
const PARTS = 8u;  // threads that add up a row's 32 sums
const TILE_ROWS = 8u;
const N = 64u;  // outputs
const ROW_CHUNKS = 12u;  // of 8 weights: what a thread takes at a time
const CHUNKS = 12u;

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

var<workgroup> lane_sums: array<f32, 256>;  // [row][lane]
var<workgroup> part_sums: array<f32, THREADS>;  // [part][row]

// The dot product of x with a row of the tile, once `part_sums` is complete.
fn row_total(row: u32) -> f32 {
  let sum = part_sums[row] + part_sums[8u + row] + part_sums[16u + row] + part_sums[24u + row]
     + part_sums[32u + row] + part_sums[40u + row] + part_sums[48u + row] + part_sums[56u + row];
  return sum;
}

@group(0) @binding(3) var<storage, read_write> y: array<f32>;

fn finish(tile: u32, thread: u32) {
  let row = tile * TILE_ROWS + thread;
  if (thread < TILE_ROWS && row < N) {
    y[row] = row_total(thread);
  }
}

@compute @workgroup_size(64, 1, 1)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let tile = group.x;
  let lane = thread % LANES;
  let first = thread / LANES * 4u;  // of the tile
  let row0 = tile * TILE_ROWS + first;
  let row1 = row0 + 1u;
  let row2 = row0 + 2u;
  let row3 = row0 + 3u;
  var sum0 = 0.0;
  var sum1 = 0.0;
  var sum2 = 0.0;
  var sum3 = 0.0;
  for (var at = lane; at < CHUNKS; at += 32u) {
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
    lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
  workgroupBarrier();
  finish(tile, thread);
}
