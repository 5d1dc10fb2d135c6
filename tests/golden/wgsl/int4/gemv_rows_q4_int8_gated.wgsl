// ONNX nodes:
//   /model/layers.0/mlp/gate_proj/MatMul_Q4
//   /model/layers.0/mlp/up_proj/MatMul_Q4
//   /model/layers.0/mlp/act_fn/Sigmoid
//   /model/layers.0/mlp/act_fn/Mul
//   /model/layers.0/mlp/Mul
enable f16;

struct Sequence {
  past_length: u32, length: u32,
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

// The zero point z of a block as four bytes 0x80 - z, which is what `centered` adds.
fn zero_bytes(row: u32, block: u32) -> u32 {
  return (0x80u - u32(zero_point(row, block))) * 0x01010101u;
}

// Four nibbles, spread into the low halves of four bytes, to four signed bytes q - z. No byte carries.
fn centered(nibbles: u32, zeros: u32) -> u32 {
  return ((nibbles & 0x0f0f0f0fu) + zeros) ^ 0x80808080u;
}

// A workgroup takes 16 rows of W: 32 threads walk together along K of 4 rows, with all rows of x.
const LANES = 32u;
const PARTS = 8u;  // threads that add up a row's 32 sums
const TILE_ROWS = 16u;
const TILE_OUTPUTS = 8u;
const N = 96u;  // outputs
const ROW_CHUNKS = 2u;  // of 32 weights: what a thread takes at a time
const CHUNKS = 2u;

@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>;

// A chunk of a row of W as int8, in the order of x's words.
struct Chunk {
  words0: vec4<u32>,
  words1: vec4<u32>,
  scale: f32,
}

fn weight_chunk(row: u32, chunk: u32) -> Chunk {
  let words = weights[row * ROW_CHUNKS + chunk];
  let block = chunk / CHUNKS_PER_BLOCK;
  let zeros = zero_bytes(row, block);
  return Chunk(
    vec4<u32>(
      centered(words.x, zeros), centered(words.x >> 4u, zeros),
      centered(words.y, zeros), centered(words.y >> 4u, zeros)),
    vec4<u32>(
      centered(words.z, zeros), centered(words.z >> 4u, zeros),
      centered(words.w, zeros), centered(words.w >> 4u, zeros)),
    scale(row, block));
}

fn chunk_dot(w: Chunk, x: Chunk) -> f32 {
  var sum = 0;
  sum += dot4I8Packed(w.words0.x, x.words0.x);
  sum += dot4I8Packed(w.words0.y, x.words0.y);
  sum += dot4I8Packed(w.words0.z, x.words0.z);
  sum += dot4I8Packed(w.words0.w, x.words0.w);
  sum += dot4I8Packed(w.words1.x, x.words1.x);
  sum += dot4I8Packed(w.words1.y, x.words1.y);
  sum += dot4I8Packed(w.words1.z, x.words1.z);
  sum += dot4I8Packed(w.words1.w, x.words1.w);
  return w.scale * x.scale * f32(sum);
}

var<workgroup> lane_sums: array<f32, 512>;  // [row][lane]
var<workgroup> part_sums: array<f32, 128>;  // [part][row]

// The dot product of a row of x with a row of the tile, once `part_sums` is complete.
fn row_total(row: u32) -> f32 {
  return part_sums[row] + part_sums[16u + row] + part_sums[32u + row] + part_sums[48u + row]
     + part_sums[64u + row] + part_sums[80u + row] + part_sums[96u + row] + part_sums[112u + row];
}

fn gate(v: f32) -> f32 {
  return v / (1.0 + exp(min(-v, 80.0)));  // exp must not reach infinity
}

// The rows of a tile lie as its threads take them: some of the gate, then the same ones of the up projection.
fn output(tile: u32, i: u32) -> f32 {
  let row = i / 2u * 4u + i % 2u;
  return gate(row_total(row)) * row_total(row + 2u);
}

@group(0) @binding(4) var<storage, read_write> y: array<f32>;

fn finish(tile: u32, thread: u32, x_row: u32) {
  let i = tile * TILE_OUTPUTS + thread;
  if (thread < TILE_OUTPUTS && i < N) {
    y[x_row * 96u + i] = output(tile, thread);
  }
}

@compute @workgroup_size(128, 1, 1)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let tile = group.x;
  let lane = thread % LANES;
  let first = thread / LANES * 4u;  // of the tile
  let output = tile * TILE_OUTPUTS + first / 2u;  // half of a thread's rows are of the gate, half of the up projection
  let row0 = min(output + 0u, N - 1u);
  let row1 = min(output + 1u, N - 1u);
  let row2 = row0 + N;
  let row3 = row1 + N;
  var sum0_0 = 0.0;
  var sum0_1 = 0.0;
  var sum0_2 = 0.0;
  var sum0_3 = 0.0;
  var sum1_0 = 0.0;
  var sum1_1 = 0.0;
  var sum1_2 = 0.0;
  var sum1_3 = 0.0;
  var sum2_0 = 0.0;
  var sum2_1 = 0.0;
  var sum2_2 = 0.0;
  var sum2_3 = 0.0;
  var sum3_0 = 0.0;
  var sum3_1 = 0.0;
  var sum3_2 = 0.0;
  var sum3_3 = 0.0;
  var sum4_0 = 0.0;
  var sum4_1 = 0.0;
  var sum4_2 = 0.0;
  var sum4_3 = 0.0;
  var sum5_0 = 0.0;
  var sum5_1 = 0.0;
  var sum5_2 = 0.0;
  var sum5_3 = 0.0;
  var sum6_0 = 0.0;
  var sum6_1 = 0.0;
  var sum6_2 = 0.0;
  var sum6_3 = 0.0;
  var sum7_0 = 0.0;
  var sum7_1 = 0.0;
  var sum7_2 = 0.0;
  var sum7_3 = 0.0;
  var sum8_0 = 0.0;
  var sum8_1 = 0.0;
  var sum8_2 = 0.0;
  var sum8_3 = 0.0;
  var sum9_0 = 0.0;
  var sum9_1 = 0.0;
  var sum9_2 = 0.0;
  var sum9_3 = 0.0;
  var sum10_0 = 0.0;
  var sum10_1 = 0.0;
  var sum10_2 = 0.0;
  var sum10_3 = 0.0;
  var sum11_0 = 0.0;
  var sum11_1 = 0.0;
  var sum11_2 = 0.0;
  var sum11_3 = 0.0;
  var sum12_0 = 0.0;
  var sum12_1 = 0.0;
  var sum12_2 = 0.0;
  var sum12_3 = 0.0;
  var sum13_0 = 0.0;
  var sum13_1 = 0.0;
  var sum13_2 = 0.0;
  var sum13_3 = 0.0;
  var sum14_0 = 0.0;
  var sum14_1 = 0.0;
  var sum14_2 = 0.0;
  var sum14_3 = 0.0;
  var sum15_0 = 0.0;
  var sum15_1 = 0.0;
  var sum15_2 = 0.0;
  var sum15_3 = 0.0;
  for (var chunk = lane; chunk < CHUNKS; chunk += LANES) {
    let w0 = weight_chunk(row0, chunk);
    let w1 = weight_chunk(row1, chunk);
    let w2 = weight_chunk(row2, chunk);
    let w3 = weight_chunk(row3, chunk);
    {
      let at = 2u * chunk;
      let x_chunk = Chunk(x[at], x[at + 1u], x_scale(0u, chunk));
      sum0_0 += chunk_dot(w0, x_chunk);
      sum0_1 += chunk_dot(w1, x_chunk);
      sum0_2 += chunk_dot(w2, x_chunk);
      sum0_3 += chunk_dot(w3, x_chunk);
    }
    {
      let at = 1u * X_STRIDE + 2u * chunk;
      let x_chunk = Chunk(x[at], x[at + 1u], x_scale(1u, chunk));
      sum1_0 += chunk_dot(w0, x_chunk);
      sum1_1 += chunk_dot(w1, x_chunk);
      sum1_2 += chunk_dot(w2, x_chunk);
      sum1_3 += chunk_dot(w3, x_chunk);
    }
    {
      let at = 2u * X_STRIDE + 2u * chunk;
      let x_chunk = Chunk(x[at], x[at + 1u], x_scale(2u, chunk));
      sum2_0 += chunk_dot(w0, x_chunk);
      sum2_1 += chunk_dot(w1, x_chunk);
      sum2_2 += chunk_dot(w2, x_chunk);
      sum2_3 += chunk_dot(w3, x_chunk);
    }
    {
      let at = 3u * X_STRIDE + 2u * chunk;
      let x_chunk = Chunk(x[at], x[at + 1u], x_scale(3u, chunk));
      sum3_0 += chunk_dot(w0, x_chunk);
      sum3_1 += chunk_dot(w1, x_chunk);
      sum3_2 += chunk_dot(w2, x_chunk);
      sum3_3 += chunk_dot(w3, x_chunk);
    }
    {
      let at = 4u * X_STRIDE + 2u * chunk;
      let x_chunk = Chunk(x[at], x[at + 1u], x_scale(4u, chunk));
      sum4_0 += chunk_dot(w0, x_chunk);
      sum4_1 += chunk_dot(w1, x_chunk);
      sum4_2 += chunk_dot(w2, x_chunk);
      sum4_3 += chunk_dot(w3, x_chunk);
    }
    {
      let at = 5u * X_STRIDE + 2u * chunk;
      let x_chunk = Chunk(x[at], x[at + 1u], x_scale(5u, chunk));
      sum5_0 += chunk_dot(w0, x_chunk);
      sum5_1 += chunk_dot(w1, x_chunk);
      sum5_2 += chunk_dot(w2, x_chunk);
      sum5_3 += chunk_dot(w3, x_chunk);
    }
    {
      let at = 6u * X_STRIDE + 2u * chunk;
      let x_chunk = Chunk(x[at], x[at + 1u], x_scale(6u, chunk));
      sum6_0 += chunk_dot(w0, x_chunk);
      sum6_1 += chunk_dot(w1, x_chunk);
      sum6_2 += chunk_dot(w2, x_chunk);
      sum6_3 += chunk_dot(w3, x_chunk);
    }
    {
      let at = 7u * X_STRIDE + 2u * chunk;
      let x_chunk = Chunk(x[at], x[at + 1u], x_scale(7u, chunk));
      sum7_0 += chunk_dot(w0, x_chunk);
      sum7_1 += chunk_dot(w1, x_chunk);
      sum7_2 += chunk_dot(w2, x_chunk);
      sum7_3 += chunk_dot(w3, x_chunk);
    }
    {
      let at = 8u * X_STRIDE + 2u * chunk;
      let x_chunk = Chunk(x[at], x[at + 1u], x_scale(8u, chunk));
      sum8_0 += chunk_dot(w0, x_chunk);
      sum8_1 += chunk_dot(w1, x_chunk);
      sum8_2 += chunk_dot(w2, x_chunk);
      sum8_3 += chunk_dot(w3, x_chunk);
    }
    {
      let at = 9u * X_STRIDE + 2u * chunk;
      let x_chunk = Chunk(x[at], x[at + 1u], x_scale(9u, chunk));
      sum9_0 += chunk_dot(w0, x_chunk);
      sum9_1 += chunk_dot(w1, x_chunk);
      sum9_2 += chunk_dot(w2, x_chunk);
      sum9_3 += chunk_dot(w3, x_chunk);
    }
    {
      let at = 10u * X_STRIDE + 2u * chunk;
      let x_chunk = Chunk(x[at], x[at + 1u], x_scale(10u, chunk));
      sum10_0 += chunk_dot(w0, x_chunk);
      sum10_1 += chunk_dot(w1, x_chunk);
      sum10_2 += chunk_dot(w2, x_chunk);
      sum10_3 += chunk_dot(w3, x_chunk);
    }
    {
      let at = 11u * X_STRIDE + 2u * chunk;
      let x_chunk = Chunk(x[at], x[at + 1u], x_scale(11u, chunk));
      sum11_0 += chunk_dot(w0, x_chunk);
      sum11_1 += chunk_dot(w1, x_chunk);
      sum11_2 += chunk_dot(w2, x_chunk);
      sum11_3 += chunk_dot(w3, x_chunk);
    }
    {
      let at = 12u * X_STRIDE + 2u * chunk;
      let x_chunk = Chunk(x[at], x[at + 1u], x_scale(12u, chunk));
      sum12_0 += chunk_dot(w0, x_chunk);
      sum12_1 += chunk_dot(w1, x_chunk);
      sum12_2 += chunk_dot(w2, x_chunk);
      sum12_3 += chunk_dot(w3, x_chunk);
    }
    {
      let at = 13u * X_STRIDE + 2u * chunk;
      let x_chunk = Chunk(x[at], x[at + 1u], x_scale(13u, chunk));
      sum13_0 += chunk_dot(w0, x_chunk);
      sum13_1 += chunk_dot(w1, x_chunk);
      sum13_2 += chunk_dot(w2, x_chunk);
      sum13_3 += chunk_dot(w3, x_chunk);
    }
    {
      let at = 14u * X_STRIDE + 2u * chunk;
      let x_chunk = Chunk(x[at], x[at + 1u], x_scale(14u, chunk));
      sum14_0 += chunk_dot(w0, x_chunk);
      sum14_1 += chunk_dot(w1, x_chunk);
      sum14_2 += chunk_dot(w2, x_chunk);
      sum14_3 += chunk_dot(w3, x_chunk);
    }
    {
      let at = 15u * X_STRIDE + 2u * chunk;
      let x_chunk = Chunk(x[at], x[at + 1u], x_scale(15u, chunk));
      sum15_0 += chunk_dot(w0, x_chunk);
      sum15_1 += chunk_dot(w1, x_chunk);
      sum15_2 += chunk_dot(w2, x_chunk);
      sum15_3 += chunk_dot(w3, x_chunk);
    }
  }
  let part = thread % PARTS;
  let from_lane = thread / PARTS * LANES + part;
  if (0u < sequence.length) {
    lane_sums[first * LANES + lane] = sum0_0;
    lane_sums[(first + 1u) * LANES + lane] = sum0_1;
    lane_sums[(first + 2u) * LANES + lane] = sum0_2;
    lane_sums[(first + 3u) * LANES + lane] = sum0_3;
    workgroupBarrier();
    part_sums[part * TILE_ROWS + thread / PARTS] =
      lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
    workgroupBarrier();
    finish(tile, thread, 0u);
  }
  if (1u < sequence.length) {
    lane_sums[first * LANES + lane] = sum1_0;
    lane_sums[(first + 1u) * LANES + lane] = sum1_1;
    lane_sums[(first + 2u) * LANES + lane] = sum1_2;
    lane_sums[(first + 3u) * LANES + lane] = sum1_3;
    workgroupBarrier();
    part_sums[part * TILE_ROWS + thread / PARTS] =
      lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
    workgroupBarrier();
    finish(tile, thread, 1u);
  }
  if (2u < sequence.length) {
    lane_sums[first * LANES + lane] = sum2_0;
    lane_sums[(first + 1u) * LANES + lane] = sum2_1;
    lane_sums[(first + 2u) * LANES + lane] = sum2_2;
    lane_sums[(first + 3u) * LANES + lane] = sum2_3;
    workgroupBarrier();
    part_sums[part * TILE_ROWS + thread / PARTS] =
      lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
    workgroupBarrier();
    finish(tile, thread, 2u);
  }
  if (3u < sequence.length) {
    lane_sums[first * LANES + lane] = sum3_0;
    lane_sums[(first + 1u) * LANES + lane] = sum3_1;
    lane_sums[(first + 2u) * LANES + lane] = sum3_2;
    lane_sums[(first + 3u) * LANES + lane] = sum3_3;
    workgroupBarrier();
    part_sums[part * TILE_ROWS + thread / PARTS] =
      lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
    workgroupBarrier();
    finish(tile, thread, 3u);
  }
  if (4u < sequence.length) {
    lane_sums[first * LANES + lane] = sum4_0;
    lane_sums[(first + 1u) * LANES + lane] = sum4_1;
    lane_sums[(first + 2u) * LANES + lane] = sum4_2;
    lane_sums[(first + 3u) * LANES + lane] = sum4_3;
    workgroupBarrier();
    part_sums[part * TILE_ROWS + thread / PARTS] =
      lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
    workgroupBarrier();
    finish(tile, thread, 4u);
  }
  if (5u < sequence.length) {
    lane_sums[first * LANES + lane] = sum5_0;
    lane_sums[(first + 1u) * LANES + lane] = sum5_1;
    lane_sums[(first + 2u) * LANES + lane] = sum5_2;
    lane_sums[(first + 3u) * LANES + lane] = sum5_3;
    workgroupBarrier();
    part_sums[part * TILE_ROWS + thread / PARTS] =
      lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
    workgroupBarrier();
    finish(tile, thread, 5u);
  }
  if (6u < sequence.length) {
    lane_sums[first * LANES + lane] = sum6_0;
    lane_sums[(first + 1u) * LANES + lane] = sum6_1;
    lane_sums[(first + 2u) * LANES + lane] = sum6_2;
    lane_sums[(first + 3u) * LANES + lane] = sum6_3;
    workgroupBarrier();
    part_sums[part * TILE_ROWS + thread / PARTS] =
      lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
    workgroupBarrier();
    finish(tile, thread, 6u);
  }
  if (7u < sequence.length) {
    lane_sums[first * LANES + lane] = sum7_0;
    lane_sums[(first + 1u) * LANES + lane] = sum7_1;
    lane_sums[(first + 2u) * LANES + lane] = sum7_2;
    lane_sums[(first + 3u) * LANES + lane] = sum7_3;
    workgroupBarrier();
    part_sums[part * TILE_ROWS + thread / PARTS] =
      lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
    workgroupBarrier();
    finish(tile, thread, 7u);
  }
  if (8u < sequence.length) {
    lane_sums[first * LANES + lane] = sum8_0;
    lane_sums[(first + 1u) * LANES + lane] = sum8_1;
    lane_sums[(first + 2u) * LANES + lane] = sum8_2;
    lane_sums[(first + 3u) * LANES + lane] = sum8_3;
    workgroupBarrier();
    part_sums[part * TILE_ROWS + thread / PARTS] =
      lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
    workgroupBarrier();
    finish(tile, thread, 8u);
  }
  if (9u < sequence.length) {
    lane_sums[first * LANES + lane] = sum9_0;
    lane_sums[(first + 1u) * LANES + lane] = sum9_1;
    lane_sums[(first + 2u) * LANES + lane] = sum9_2;
    lane_sums[(first + 3u) * LANES + lane] = sum9_3;
    workgroupBarrier();
    part_sums[part * TILE_ROWS + thread / PARTS] =
      lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
    workgroupBarrier();
    finish(tile, thread, 9u);
  }
  if (10u < sequence.length) {
    lane_sums[first * LANES + lane] = sum10_0;
    lane_sums[(first + 1u) * LANES + lane] = sum10_1;
    lane_sums[(first + 2u) * LANES + lane] = sum10_2;
    lane_sums[(first + 3u) * LANES + lane] = sum10_3;
    workgroupBarrier();
    part_sums[part * TILE_ROWS + thread / PARTS] =
      lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
    workgroupBarrier();
    finish(tile, thread, 10u);
  }
  if (11u < sequence.length) {
    lane_sums[first * LANES + lane] = sum11_0;
    lane_sums[(first + 1u) * LANES + lane] = sum11_1;
    lane_sums[(first + 2u) * LANES + lane] = sum11_2;
    lane_sums[(first + 3u) * LANES + lane] = sum11_3;
    workgroupBarrier();
    part_sums[part * TILE_ROWS + thread / PARTS] =
      lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
    workgroupBarrier();
    finish(tile, thread, 11u);
  }
  if (12u < sequence.length) {
    lane_sums[first * LANES + lane] = sum12_0;
    lane_sums[(first + 1u) * LANES + lane] = sum12_1;
    lane_sums[(first + 2u) * LANES + lane] = sum12_2;
    lane_sums[(first + 3u) * LANES + lane] = sum12_3;
    workgroupBarrier();
    part_sums[part * TILE_ROWS + thread / PARTS] =
      lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
    workgroupBarrier();
    finish(tile, thread, 12u);
  }
  if (13u < sequence.length) {
    lane_sums[first * LANES + lane] = sum13_0;
    lane_sums[(first + 1u) * LANES + lane] = sum13_1;
    lane_sums[(first + 2u) * LANES + lane] = sum13_2;
    lane_sums[(first + 3u) * LANES + lane] = sum13_3;
    workgroupBarrier();
    part_sums[part * TILE_ROWS + thread / PARTS] =
      lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
    workgroupBarrier();
    finish(tile, thread, 13u);
  }
  if (14u < sequence.length) {
    lane_sums[first * LANES + lane] = sum14_0;
    lane_sums[(first + 1u) * LANES + lane] = sum14_1;
    lane_sums[(first + 2u) * LANES + lane] = sum14_2;
    lane_sums[(first + 3u) * LANES + lane] = sum14_3;
    workgroupBarrier();
    part_sums[part * TILE_ROWS + thread / PARTS] =
      lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
    workgroupBarrier();
    finish(tile, thread, 14u);
  }
  if (15u < sequence.length) {
    lane_sums[first * LANES + lane] = sum15_0;
    lane_sums[(first + 1u) * LANES + lane] = sum15_1;
    lane_sums[(first + 2u) * LANES + lane] = sum15_2;
    lane_sums[(first + 3u) * LANES + lane] = sum15_3;
    workgroupBarrier();
    part_sums[part * TILE_ROWS + thread / PARTS] =
      lane_sums[from_lane] + lane_sums[from_lane + 8u] + lane_sums[from_lane + 16u] + lane_sums[from_lane + 24u];
    workgroupBarrier();
    finish(tile, thread, 15u);
  }
}
