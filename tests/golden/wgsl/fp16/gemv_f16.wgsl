struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;

// Four activations of a row, from 4 * quad on.
fn activation(row: u32, quad: u32) -> vec4<f32> {
  return x[row * 16u + quad];
}

@group(0) @binding(3) var<storage, read> params: array<u32>;

fn bias(row: u32) -> f32 {
  return unpack2x16float(params[0u + (row >> 1u)] >> (16u * (row & 1u))).x;
}

// A workgroup takes 8 rows of W: 32 threads walk together along K of 4 rows.
override THREADS: u32 = 64u;
override LANES: u32 = 32u;
override PARTS: u32 = 8u;  // threads that add up a row's 32 sums
override TILE_ROWS: u32 = 8u;
override N: u32 = 128u;  // outputs
override ROW_CHUNKS: u32 = 8u;  // of 8 weights: what a thread takes at a time
override CHUNKS: u32 = 8u;

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

@group(0) @binding(4) var<storage, read_write> y: array<f32>;  // q
@group(0) @binding(5) var<storage, read_write> k_cache: array<u32>;  // [kv_heads, capacity, head_size]
@group(0) @binding(6) var<storage, read_write> v_cache: array<u32>;

const HEADS = 2u;
const KV_HEADS = 1u;
const HEAD_SIZE = 32u;
const CAPACITY = 48u;
@group(0) @binding(7) var<storage, read> rope: array<u32>;

const ROPE_ROWS = 48u;  // rows of cosines, then as many of sines
const ROPE_WIDTH = 16u;

fn rope_value(row: u32, i: u32) -> f32 {
  let at = row * ROPE_WIDTH + i;
  return unpack2x16float(rope[at >> 1u] >> (16u * (at & 1u))).x;
}

fn rope_angle(position: u32, i: u32) -> vec2<f32> {
  let row = min(position, ROPE_ROWS - 1u);
  return vec2<f32>(rope_value(row, i), rope_value(ROPE_ROWS + row, i));
}

// Whether four outputs, the `quarter`-th of a head, are rotated: not those of v, nor behind rotary_dim.
fn rotates(head: u32, quarter: u32) -> bool {
  return head < HEADS + KV_HEADS && quarter < 8u;
}

// Four rows of W that end in one thread: two pairs of neighbours in a head, rotated with each other.
fn qkv_rows(tile: u32) -> vec4<u32> {
  let head = tile / 8u;
  let quarter = tile % 8u;
  if (rotates(head, quarter)) {
    let i = head * HEAD_SIZE + 2u * quarter;
    return vec4<u32>(i, i + 1u, i + ROPE_WIDTH, i + ROPE_WIDTH + 1u);
  }
  return vec4<u32>(4u * tile) + vec4<u32>(0u, 1u, 2u, 3u);
}

fn append(rows: vec4<u32>, value: vec4<f32>) {
  let head = rows.x / HEAD_SIZE;
  let i = rows.x % HEAD_SIZE;  // within the head
  let position = sequence.past_length;
  var v = value;
  if (rows.z == rows.x + ROPE_WIDTH && rotates(head, i / 2u)) {
    let a = rope_angle(position, i);
    let b = rope_angle(position, i + 1u);
    v = vec4<f32>(
      value.x * a.x - value.z * a.y, value.y * b.x - value.w * b.y,
      value.z * a.x + value.x * a.y, value.w * b.x + value.y * b.y);
  }
  if (head < HEADS) {
    y[rows.x] = v.x;
    y[rows.y] = v.y;
    y[rows.z] = v.z;
    y[rows.w] = v.w;
    return;
  }
  if (position >= CAPACITY) {
    return;  // the cache is full
  }
  let kv_head = (head - HEADS) % KV_HEADS;
  let to = (kv_head * CAPACITY + position) * HEAD_SIZE + i;
  let gap = rows.z - rows.x;
  let low = pack2x16float(v.xy);
  let high = pack2x16float(v.zw);
  if (head < HEADS + KV_HEADS) {
    k_cache[to / 2u] = low;
    k_cache[(to + gap) / 2u] = high;
  } else {
    v_cache[to / 2u] = low;
    v_cache[(to + gap) / 2u] = high;
  }
}

fn finish(tile: u32, thread: u32) {
  let quad = tile * (TILE_ROWS / 4u) + thread;
  if (thread < TILE_ROWS / 4u && quad < N / 4u) {
    let rows = qkv_rows(quad);
    let i = 4u * thread;
    let total = vec4<f32>(row_total(i), row_total(i + 1u), row_total(i + 2u), row_total(i + 3u));
    append(rows, total + vec4<f32>(bias(rows.x), bias(rows.y), bias(rows.z), bias(rows.w)));
  }
}

// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul
//   /model/layers.0/attn/qkv_proj/Add
//   /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(64, 1, 1)
fn gemv_f16_rope_append(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let tile = group.x;
  let lane = thread % LANES;
  let first = thread / LANES * 4u;  // of the tile
  let rows0 = qkv_rows(min((tile * TILE_ROWS + first) / 4u + 0u, N / 4u - 1u));
  let row0 = rows0.x;
  let row1 = rows0.y;
  let row2 = rows0.z;
  let row3 = rows0.w;
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

@group(0) @binding(3) var<storage, read_write> y_gemv_f16: array<f32>;

fn finish_gemv_f16(tile: u32, thread: u32) {
  let row = tile * TILE_ROWS + thread;
  if (thread < TILE_ROWS && row < N) {
    y_gemv_f16[row] = row_total(thread);
  }
}

// ONNX nodes:
//   /model/layers.0/attn/o_proj/MatMul
@compute @workgroup_size(64, 1, 1)
fn gemv_f16(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
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
  finish_gemv_f16(tile, thread);
}

const TILE_OUTPUTS = 32u;

var<workgroup> lane_sums_gated: array<f32, 2048>;  // [row][lane]

// The dot product of x with a row of the tile, once `part_sums` is complete.
fn row_total_gated(row: u32) -> f32 {
  let sum = part_sums[row] + part_sums[64u + row] + part_sums[128u + row] + part_sums[192u + row];
  return sum;
}

fn gate(v: f32) -> f32 {
  return v / (1.0 + exp(min(-v, 80.0)));  // exp must not reach infinity
}

// The rows of a tile lie as its threads take them: some of the gate, then the same ones of the up projection.
fn output(tile: u32, i: u32) -> f32 {
  let row = i / 4u * 8u + i % 4u;
  return gate(row_total_gated(row)) * row_total_gated(row + 4u);
}

fn finish_gated(tile: u32, thread: u32) {
  let i = tile * TILE_OUTPUTS + thread;
  if (thread < TILE_OUTPUTS && i < N) {
    y_gemv_f16[i] = output(tile, thread);
  }
}

// ONNX nodes:
//   /model/layers.0/mlp/gate_proj/MatMul
//   /model/layers.0/mlp/up_proj/MatMul
//   /model/layers.0/mlp/act_fn/Sigmoid
//   /model/layers.0/mlp/act_fn/Mul
//   /model/layers.0/mlp/Mul
@compute @workgroup_size(256, 1, 1)
fn gemv_f16_gated(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
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
  lane_sums_gated[first * LANES + lane] = sum0;
  lane_sums_gated[(first + 1u) * LANES + lane] = sum1;
  lane_sums_gated[(first + 2u) * LANES + lane] = sum2;
  lane_sums_gated[(first + 3u) * LANES + lane] = sum3;
  lane_sums_gated[(first + 4u) * LANES + lane] = sum4;
  lane_sums_gated[(first + 5u) * LANES + lane] = sum5;
  lane_sums_gated[(first + 6u) * LANES + lane] = sum6;
  lane_sums_gated[(first + 7u) * LANES + lane] = sum7;
  workgroupBarrier();
  let part = thread % PARTS;
  let from_lane = thread / PARTS * LANES + part;
  part_sums[part * TILE_ROWS + thread / PARTS] =
    lane_sums_gated[from_lane] + lane_sums_gated[from_lane + 4u] + lane_sums_gated[from_lane + 8u] + lane_sums_gated[from_lane + 12u]
     + lane_sums_gated[from_lane + 16u] + lane_sums_gated[from_lane + 20u] + lane_sums_gated[from_lane + 24u] + lane_sums_gated[from_lane + 28u];
  workgroupBarrier();
  finish_gated(tile, thread);
}

// Four activations of a row, from 4 * quad on.
fn activation_2(row: u32, quad: u32) -> vec4<f32> {
  return x[row * 24u + quad];
}

fn load_chunk_2(chunk: u32) -> Chunk {
  return Chunk(activation_2(0u, 2u * chunk), activation_2(0u, 2u * chunk + 1u));
}

// ONNX nodes:
//   /model/layers.0/mlp/down_proj/MatMul
@compute @workgroup_size(64, 1, 1)
fn gemv_f16_2(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
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
      let x_chunk = load_chunk_2(chunk);
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
  finish_gemv_f16(tile, thread);
}

var<workgroup> lane_sums_argmax: array<f32, 1024>;  // [row][lane]

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

fn finish_argmax(tile: u32, thread: u32) {
  let row = tile * TILE_ROWS + thread;
  if (thread < TILE_ROWS) {
    best_values[thread] = -GREATEST;
    best_rows[thread] = 0xffffffffu;
    if (row < N) {
      let value = row_total_gated(thread);
      y_gemv_f16[row] = value;
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
fn gemv_f16_argmax(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
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
  lane_sums_argmax[first * LANES + lane] = sum0;
  lane_sums_argmax[(first + 1u) * LANES + lane] = sum1;
  lane_sums_argmax[(first + 2u) * LANES + lane] = sum2;
  lane_sums_argmax[(first + 3u) * LANES + lane] = sum3;
  workgroupBarrier();
  let part = thread % PARTS;
  let from_lane = thread / PARTS * LANES + part;
  part_sums[part * TILE_ROWS + thread / PARTS] =
    lane_sums_argmax[from_lane] + lane_sums_argmax[from_lane + 4u] + lane_sums_argmax[from_lane + 8u] + lane_sums_argmax[from_lane + 12u];
  workgroupBarrier();
  finish_argmax(tile, thread);
}
