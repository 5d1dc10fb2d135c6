struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;

// Four activations of a row, from 4 * quad on.
fn activation(row: u32, quad: u32) -> vec4<f32> {
  return x[row * 16u + quad];
}

// A workgroup takes 64 rows of W: 32 threads walk together along K of 8 rows.
const THREADS = 256u;
const LANES = 32u;
const PARTS = 4u;  // threads that add up a row's 32 sums
const TILE_ROWS = 64u;
const TILE_OUTPUTS = 32u;
const N = 96u;  // outputs
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

var<workgroup> lane_sums: array<f32, 2048>;  // [row][lane]
var<workgroup> part_sums: array<f32, THREADS>;  // [part][row]

// The dot product of x with a row of the tile, once `part_sums` is complete.
fn row_total(row: u32) -> f32 {
  let sum = part_sums[row] + part_sums[64u + row] + part_sums[128u + row] + part_sums[192u + row];
  return sum;
}

fn gate(v: f32) -> f32 {
  return v / (1.0 + exp(min(-v, 80.0)));  // exp must not reach infinity
}

// The rows of a tile lie as its threads take them: some of the gate, then the same ones of the up projection.
fn output(tile: u32, i: u32) -> f32 {
  let row = i / 4u * 8u + i % 4u;
  return gate(row_total(row)) * row_total(row + 4u);
}

@group(0) @binding(3) var<storage, read_write> y: array<f32>;

fn finish(tile: u32, thread: u32) {
  let i = tile * TILE_OUTPUTS + thread;
  if (thread < TILE_OUTPUTS && i < N) {
    y[i] = output(tile, thread);
  }
}

// ONNX nodes:
//   /model/layers.0/mlp/gate_proj/MatMul
//   /model/layers.0/mlp/up_proj/MatMul
//   /model/layers.0/mlp/act_fn/Sigmoid
//   /model/layers.0/mlp/act_fn/Mul
//   /model/layers.0/mlp/Mul
@compute @workgroup_size(256, 1, 1)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let tile = group.x;
  let lane = thread % LANES;
  let first = thread / LANES * 8u;  // of the tile
  let output = tile * TILE_OUTPUTS + first / 2u;  // half of a thread's rows are of the gate, half of the up projection
  let row0 = output;
  let row1 = output + 1u;
  let row2 = output + 2u;
  let row3 = output + 3u;
  let row4 = row0 + N;
  let row5 = row1 + N;
  let row6 = row2 + N;
  let row7 = row3 + N;
  var sum0 = 0.0;
  var sum1 = 0.0;
  var sum2 = 0.0;
  var sum3 = 0.0;
  var sum4 = 0.0;
  var sum5 = 0.0;
  var sum6 = 0.0;
  var sum7 = 0.0;
  for (var at = lane; at < CHUNKS; at += 32u) {
    {
      let chunk = at;
      let x_chunk = load_chunk(chunk);
      sum0 += row_dot(row0, chunk, x_chunk);
      sum1 += row_dot(row1, chunk, x_chunk);
      sum2 += row_dot(row2, chunk, x_chunk);
      sum3 += row_dot(row3, chunk, x_chunk);
      sum4 += row_dot(row4, chunk, x_chunk);
      sum5 += row_dot(row5, chunk, x_chunk);
      sum6 += row_dot(row6, chunk, x_chunk);
      sum7 += row_dot(row7, chunk, x_chunk);
    }
  }
  lane_sums[first * LANES + lane] = sum0;
  lane_sums[(first + 1u) * LANES + lane] = sum1;
  lane_sums[(first + 2u) * LANES + lane] = sum2;
  lane_sums[(first + 3u) * LANES + lane] = sum3;
  lane_sums[(first + 4u) * LANES + lane] = sum4;
  lane_sums[(first + 5u) * LANES + lane] = sum5;
  lane_sums[(first + 6u) * LANES + lane] = sum6;
  lane_sums[(first + 7u) * LANES + lane] = sum7;
  workgroupBarrier();
  let part = thread % PARTS;
  let from_lane = thread / PARTS * LANES + part;
  part_sums[part * TILE_ROWS + thread / PARTS] =
    lane_sums[from_lane] + lane_sums[from_lane + 4u] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 12u]
     + lane_sums[from_lane + 16u] + lane_sums[from_lane + 20u] + lane_sums[from_lane + 24u] + lane_sums[from_lane + 28u];
  workgroupBarrier();
  finish(tile, thread);
}
