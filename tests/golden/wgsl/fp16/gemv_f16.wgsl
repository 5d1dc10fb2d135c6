struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;

// Four activations of a row, from 4 * quad on.
fn activation(row: u32, quad: u32) -> vec4f {
  return x[row * 16u + quad];
}

@group(0) @binding(3) var<storage, read> params: array<u32>;

fn bias(row: u32) -> f32 {
  return unpack2x16float(params[0u + (row >> 1u)] >> (16u * (row & 1u))).x;
}

// LANES threads walk together along K of four rows of W.
override LANES: u32 = 32u;
override PARTS: u32 = 8u;  // threads that add up a row's sums
override QUADS: u32 = 2u;  // vectors of what those have
override PART_SUMS: u32 = 32u;
override TILE_ROWS: u32 = 16u;
override LANE_SUMS: u32 = 512u;
override N: u32 = 128u;  // outputs
override ROW_CHUNKS: u32 = 8u;  // of 8 weights: what a thread takes at a time
override CHUNKS: u32 = 8u;

@group(0) @binding(2) var<storage, read> weights: array<vec4u>;  // eight f16 each, read without the f16 feature

alias Weights = vec4u;

struct Chunk {
  x0: vec4f,
  x1: vec4f,
}

fn load_chunk(chunk: u32) -> Chunk {
  return Chunk(activation(0u, 2u * chunk), activation(0u, 2u * chunk + 1u));
}

fn load_weights(row: u32, chunk: u32) -> Weights {
  return weights[row * ROW_CHUNKS + chunk];
}

fn weights_dot(w: Weights, x: Chunk) -> f32 {
  return dot(vec4f(unpack2x16float(w.x), unpack2x16float(w.y)), x.x0)
       + dot(vec4f(unpack2x16float(w.z), unpack2x16float(w.w)), x.x1);
}

fn row_dot(row: u32, chunk: u32, x: Chunk) -> f32 {
  return weights_dot(load_weights(row, chunk), x);
}

// A thread's part of the dot products of x with four rows.
fn products(rows: vec4u, lane: u32) -> vec4f {
  var sums = vec4f();
  if (CHUNKS <= LANES) {
    if (lane < CHUNKS) {
      let x_chunk = load_chunk(lane);
      sums = vec4f(
        row_dot(rows.x, lane, x_chunk), row_dot(rows.y, lane, x_chunk),
        row_dot(rows.z, lane, x_chunk), row_dot(rows.w, lane, x_chunk));
    }
    return sums;
  }
  // The next weights come while these are multiplied.
  var next0 = load_weights(rows.x, lane);
  var next1 = load_weights(rows.y, lane);
  var next2 = load_weights(rows.z, lane);
  var next3 = load_weights(rows.w, lane);
  for (var chunk = lane; chunk < CHUNKS; chunk += LANES) {
    let weights0 = next0;
    let weights1 = next1;
    let weights2 = next2;
    let weights3 = next3;
    let next_chunk = min(chunk + LANES, CHUNKS - 1u);
    next0 = load_weights(rows.x, next_chunk);
    next1 = load_weights(rows.y, next_chunk);
    next2 = load_weights(rows.z, next_chunk);
    next3 = load_weights(rows.w, next_chunk);
    let x_chunk = load_chunk(chunk);
    sums += vec4f(
      weights_dot(weights0, x_chunk), weights_dot(weights1, x_chunk),
      weights_dot(weights2, x_chunk), weights_dot(weights3, x_chunk));
  }
  return sums;
}

var<workgroup> lane_sums: array<f32, LANE_SUMS>;  // [row][lane]
var<workgroup> part_sums: array<vec4f, PART_SUMS>;  // [row][part]

// Adds up what the threads have of four rows from `first` on, for `row_total`.
fn add_up(first: u32, lane: u32, thread: u32, sums: vec4f) {
  let to = first * LANES + lane;
  lane_sums[to] = sums.x;
  lane_sums[to + LANES] = sums.y;
  lane_sums[to + 2u * LANES] = sums.z;
  lane_sums[to + 3u * LANES] = sums.w;
  workgroupBarrier();
  let from_lane = thread / PARTS * LANES + thread % PARTS;
  part_sums[thread / 4u][thread % 4u] = lane_sums[from_lane] + lane_sums[from_lane + PARTS]
    + lane_sums[from_lane + 2u * PARTS] + lane_sums[from_lane + 3u * PARTS];
  workgroupBarrier();
}

// The dot product of x with a row of the tile.
fn row_total(row: u32) -> f32 {
  let at = row * QUADS;
  let sum = dot(part_sums[at] + part_sums[at + 1u], vec4f(1.0));
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

fn rope_angle(position: u32, i: u32) -> vec2f {
  let row = min(position, ROPE_ROWS - 1u);
  return vec2f(rope_value(row, i), rope_value(ROPE_ROWS + row, i));
}

// Whether four outputs are rotated: not those of v, nor behind rotary_dim.
fn rotates(head: u32, quarter: u32) -> bool {
  return head < HEADS + KV_HEADS && quarter < 8u;
}

// Four rows of W that end in one thread: two pairs of neighbours in a head, rotated with each other.
fn qkv_rows(tile: u32) -> vec4u {
  let head = tile / 8u;
  let quarter = tile % 8u;
  if (rotates(head, quarter)) {
    let i = head * HEAD_SIZE + 2u * quarter;
    return vec4u(i, i + 1u, i + ROPE_WIDTH, i + ROPE_WIDTH + 1u);
  }
  return vec4u(4u * tile) + vec4u(0u, 1u, 2u, 3u);
}

var<private> angles: array<vec2f, 2>;  // of the thread's two pairs

// Loads what the end needs.
fn prepare(tile: u32, thread: u32) {
  let quad = tile * (TILE_ROWS / 4u) + thread;
  if (thread < TILE_ROWS / 4u && rotates(4u * quad / HEAD_SIZE, quad % 8u)) {
    let pair = 2u * (quad % 8u);
    angles[0] = rope_angle(sequence.past_length, pair);
    angles[1] = rope_angle(sequence.past_length, pair + 1u);
  }
}

fn append(rows: vec4u, value: vec4f) {
  let head = rows.x / HEAD_SIZE;
  let i = rows.x % HEAD_SIZE;  // within the head
  let position = sequence.past_length;
  var v = value;
  if (rows.z == rows.x + ROPE_WIDTH && rotates(head, i / 2u)) {
    let a = angles[0];
    let b = angles[1];
    v = vec4f(
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
    let total = vec4f(row_total(i), row_total(i + 1u), row_total(i + 2u), row_total(i + 3u));
    append(rows, total + vec4f(bias(rows.x), bias(rows.y), bias(rows.z), bias(rows.w)));
  }
}

// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul
//   /model/layers.0/attn/qkv_proj/Add
//   /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(128, 1, 1)
fn gemv_f16_rope_append(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let tile = group.x;
  let lane = thread % LANES;
  let first = thread / LANES * 4u;  // of the tile
  prepare(tile, thread);
  let rows = qkv_rows(min((tile * TILE_ROWS + first) / 4u, N / 4u - 1u));
  add_up(first, lane, thread, products(rows, lane));
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
@compute @workgroup_size(128, 1, 1)
fn gemv_f16(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let tile = group.x;
  let lane = thread % LANES;
  let first = thread / LANES * 4u;  // of the tile
  let rows = vec4u(tile * TILE_ROWS + first) + vec4u(0u, 1u, 2u, 3u);
  add_up(first, lane, thread, products(rows, lane));
  finish_gemv_f16(tile, thread);
}

const TILE_OUTPUTS = 16u;

// The dot product of x with a row of the tile.
fn row_total_gated(row: u32) -> f32 {
  let at = row * QUADS;
  let sum = dot(part_sums[at], vec4f(1.0));
  return sum;
}

fn gate(v: f32) -> f32 {
  return v / (1.0 + exp(min(-v, 80.0)));  // exp must not reach infinity
}

// A thread's rows are two of the gate, then the same ones of the up projection.
fn output(tile: u32, i: u32) -> f32 {
  let row = i / 2u * 4u + i % 2u;
  return gate(row_total_gated(row)) * row_total_gated(row + 2u);
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
@compute @workgroup_size(128, 1, 1)
fn gemv_f16_gated(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let tile = group.x;
  let lane = thread % LANES;
  let first = thread / LANES * 4u;  // of the tile
  // Half of a thread's rows are of the gate, half of the up projection.
  let output = vec2u(tile * TILE_OUTPUTS + first / 2u) + vec2u(0u, 1u);
  let rows = vec4u(output, output + N);
  add_up(first, lane, thread, products(rows, lane));
  finish_gated(tile, thread);
}

// Four activations of a row, from 4 * quad on.
fn activation_2(row: u32, quad: u32) -> vec4f {
  return x[row * 24u + quad];
}

fn load_chunk_2(chunk: u32) -> Chunk {
  return Chunk(activation_2(0u, 2u * chunk), activation_2(0u, 2u * chunk + 1u));
}

// A thread's part of the dot products of x with four rows.
fn products_2(rows: vec4u, lane: u32) -> vec4f {
  var sums = vec4f();
  if (CHUNKS <= LANES) {
    if (lane < CHUNKS) {
      let x_chunk = load_chunk_2(lane);
      sums = vec4f(
        row_dot(rows.x, lane, x_chunk), row_dot(rows.y, lane, x_chunk),
        row_dot(rows.z, lane, x_chunk), row_dot(rows.w, lane, x_chunk));
    }
    return sums;
  }
  // The next weights come while these are multiplied.
  var next0 = load_weights(rows.x, lane);
  var next1 = load_weights(rows.y, lane);
  var next2 = load_weights(rows.z, lane);
  var next3 = load_weights(rows.w, lane);
  for (var chunk = lane; chunk < CHUNKS; chunk += LANES) {
    let weights0 = next0;
    let weights1 = next1;
    let weights2 = next2;
    let weights3 = next3;
    let next_chunk = min(chunk + LANES, CHUNKS - 1u);
    next0 = load_weights(rows.x, next_chunk);
    next1 = load_weights(rows.y, next_chunk);
    next2 = load_weights(rows.z, next_chunk);
    next3 = load_weights(rows.w, next_chunk);
    let x_chunk = load_chunk_2(chunk);
    sums += vec4f(
      weights_dot(weights0, x_chunk), weights_dot(weights1, x_chunk),
      weights_dot(weights2, x_chunk), weights_dot(weights3, x_chunk));
  }
  return sums;
}

// ONNX nodes:
//   /model/layers.0/mlp/down_proj/MatMul
@compute @workgroup_size(128, 1, 1)
fn gemv_f16_2(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let tile = group.x;
  let lane = thread % LANES;
  let first = thread / LANES * 4u;  // of the tile
  let rows = vec4u(tile * TILE_ROWS + first) + vec4u(0u, 1u, 2u, 3u);
  add_up(first, lane, thread, products_2(rows, lane));
  finish_gemv_f16(tile, thread);
}

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
fn gemv_f16_argmax(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let tile = group.x;
  let lane = thread % LANES;
  let first = thread / LANES * 4u;  // of the tile
  let rows = min(vec4u(tile * TILE_ROWS + first) + vec4u(0u, 1u, 2u, 3u), vec4u(N - 1u));
  add_up(first, lane, thread, products(rows, lane));
  finish_argmax(tile, thread);
}
