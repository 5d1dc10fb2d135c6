struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
// Rows of int8, even and odd ones of every eight apart; then f32 scales.
@group(0) @binding(1) var<storage, read> x: array<vec4u>;

override X_STRIDE: u32 = 5u;  // vectors per row
override X_SCALES: u32 = 4u;  // where a row's scales begin

override CHUNK_SCALES: u32 = 1u;

// The scales of the two halves of a chunk, which may be one.
fn x_scales(row: u32, chunk: u32) -> vec2f {
  if (CHUNK_SCALES == 1u) {
    return vec2f(bitcast<f32>(x[row * X_STRIDE + X_SCALES + (chunk >> 2u)][chunk & 3u]));
  }
  let scales = bitcast<vec4f>(x[row * X_STRIDE + X_SCALES + (chunk >> 1u)]);
  return select(scales.xy, scales.zw, (chunk & 1u) == 1u);
}

@group(0) @binding(3) var<storage, read> params: array<u32>;

override BLOCKS: u32 = 2u;  // of 32 weights, per row
const CHUNKS_PER_BLOCK = 1u;

// The scale of a block.
fn scale(row: u32, block: u32) -> f32 {
  let i = row * BLOCKS + block;
  return unpack2x16float(params[i >> 1u] >> (16u * (i & 1u))).x;
}

fn zero_point(row: u32, block: u32) -> i32 {
  return 8;  // symmetric
}

// LANES threads walk together along K of four rows of W.
override LANES: u32 = 32u;
override PARTS: u32 = 8u;  // threads that add up a row's sums
override QUADS: u32 = 2u;  // vectors of what those have
override PART_SUMS: u32 = 32u;
override TILE_ROWS: u32 = 16u;
override LANE_SUMS: u32 = 512u;
override N: u32 = 128u;  // outputs
override ROW_CHUNKS: u32 = 2u;  // of 32 weights: what a thread takes at a time
override CHUNKS: u32 = 2u;

@group(0) @binding(2) var<storage, read> weights: array<vec4u>;

// 32 activations as int8, even and odd ones of every eight in separate words, as the nibbles of a word
// of weights come apart, and a scale for each half.
struct Chunk {
  words0: vec4u,
  words1: vec4u,
  sum0: i32,
  sum1: i32,
  scales: vec2f,
}

fn sum_of(words: vec4u) -> i32 {
  return dot4I8Packed(words.x, 0x01010101u) + dot4I8Packed(words.y, 0x01010101u)
    + dot4I8Packed(words.z, 0x01010101u) + dot4I8Packed(words.w, 0x01010101u);
}

fn load_chunk(chunk: u32) -> Chunk {
  let words0 = x[2u * chunk + 0u];
  let words1 = x[2u * chunk + 1u];
  return Chunk(words0, words1, sum_of(words0), sum_of(words1), x_scales(0u, chunk));
}

struct Weights {
  words: vec4u,
  scale: f32,
  zero: i32,
}

fn load_weights(row: u32, chunk: u32) -> Weights {
  let block = chunk / CHUNKS_PER_BLOCK;
  return Weights(weights[row * ROW_CHUNKS + chunk], scale(row, block), zero_point(row, block));
}

// Sixteen weights times sixteen activations.
fn sixteen(weights: vec2u, x: vec4u) -> i32 {
  return dot4I8Packed(weights.x & 0x0f0f0f0fu, x.x) + dot4I8Packed((weights.x >> 4u) & 0x0f0f0f0fu, x.y)
    + dot4I8Packed(weights.y & 0x0f0f0f0fu, x.z) + dot4I8Packed((weights.y >> 4u) & 0x0f0f0f0fu, x.w);
}

// The sum of (q - zero) * x: that of q * x, less zero times the sum of x.
fn weights_dot(w: Weights, x: Chunk) -> f32 {
  let first = sixteen(w.words.xy, x.words0) - w.zero * x.sum0;
  let second = sixteen(w.words.zw, x.words1) - w.zero * x.sum1;
  return w.scale * (x.scales.x * f32(first) + x.scales.y * f32(second));
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
// x may lack its RMSNorm's factor, one for the row: it goes to the dot products.
override DEFERRED: u32 = 0u;  // whether it does
override EPSILON: f32 = 1.0;
override X_SQUARES: u32 = 0u;  // where sums of squares of x begin, in vectors
override SQUARES: u32 = 1u;
const SLOTS = 32u;
override K: u32 = 64u;
var<workgroup> squares: array<f32, SLOTS>;
var<workgroup> norm_factor: f32;

fn load_squares(thread: u32) {
  if (DEFERRED == 1u && thread < SLOTS) {
    var sum = vec4f();
    for (var i = thread; i < SQUARES; i += SLOTS) {
      sum += bitcast<vec4f>(x[X_SQUARES + i]);
    }
    squares[thread] = dot(sum, vec4f(1.0));
  }
}

fn add_squares(thread: u32) {
  if (thread == 0u) {
    var factor = 1.0;
    if (DEFERRED == 1u) {
      let sum = squares[0] + squares[1] + squares[2] + squares[3] + squares[4] + squares[5]
        + squares[6] + squares[7] + squares[8] + squares[9] + squares[10] + squares[11]
        + squares[12] + squares[13] + squares[14] + squares[15] + squares[16] + squares[17]
        + squares[18] + squares[19] + squares[20] + squares[21] + squares[22] + squares[23]
        + squares[24] + squares[25] + squares[26] + squares[27] + squares[28] + squares[29]
        + squares[30] + squares[31];
      factor = inverseSqrt(sum / f32(K) + EPSILON);
    }
    norm_factor = factor;
  }
}

// Adds up what the threads have of four rows from `first` on, for `row_total`.
fn add_up(first: u32, lane: u32, thread: u32, sums: vec4f) {
  let to = first * LANES + lane;
  lane_sums[to] = sums.x;
  lane_sums[to + LANES] = sums.y;
  lane_sums[to + 2u * LANES] = sums.z;
  lane_sums[to + 3u * LANES] = sums.w;
  workgroupBarrier();
  add_squares(thread);
  let from_lane = thread / PARTS * LANES + thread % PARTS;
  part_sums[thread / 4u][thread % 4u] = lane_sums[from_lane] + lane_sums[from_lane + PARTS]
    + lane_sums[from_lane + 2u * PARTS] + lane_sums[from_lane + 3u * PARTS];
  workgroupBarrier();
}

// The dot product of x with a row of the tile.
fn row_total(row: u32) -> f32 {
  let at = row * QUADS;
  let sum = dot(part_sums[at] + part_sums[at + 1u], vec4f(1.0));
  return sum * norm_factor;
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
    append(rows, total);
  }
}

// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul_Q4
//   /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(128, 1, 1)
fn gemv_q4_int8_rope_append(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let tile = group.x;
  let lane = thread % LANES;
  let first = thread / LANES * 4u;  // of the tile
  load_squares(thread);
  prepare(tile, thread);
  let rows = qkv_rows(min((tile * TILE_ROWS + first) / 4u, N / 4u - 1u));
  add_up(first, lane, thread, products(rows, lane));
  finish(tile, thread);
}

// The dot product of x with a row of the tile.
fn row_total_residual(row: u32) -> f32 {
  let at = row * QUADS;
  let sum = dot(part_sums[at] + part_sums[at + 1u] + part_sums[at + 2u] + part_sums[at + 3u], vec4f(1.0));
  return sum * norm_factor;
}

@group(0) @binding(5) var<storage, read> residual: array<f32>;
@group(0) @binding(6) var<storage, read> norm_weight: array<u32>;
@group(0) @binding(7) var<storage, read_write> sum_out: array<f32>;
fn load_norm_weight(i: u32) -> f32 {
  return unpack2x16float(norm_weight[i >> 1u])[i & 1u];
}

@group(0) @binding(4) var<storage, read_write> y_residual: array<u32>;  // int8 in words of four, then a scale per 16
override Y_SCALES: u32 = 16u;  // where scales begin

// Eight values as int8, the even ones and then the odd ones.
fn int8_octet(a: vec4f, b: vec4f, to_int8: f32) -> vec2u {
  let c = vec4i(round(a * to_int8));
  let d = vec4i(round(b * to_int8));
  return vec2u(pack4xI8(vec4i(c.xz, d.xz)), pack4xI8(vec4i(c.yw, d.yw)));
}

fn greatest_of(v: vec4f) -> f32 {
  return max(max(v.x, v.y), max(v.z, v.w));
}

var<workgroup> outputs: array<vec4f, 4>;

// A thread packs eight values, with the scale of their block: max|v| / 127.
fn write_int8(tile: u32, thread: u32) {
  if (thread < 2u) {
    let block = thread / 2u;
    let first = block * 4u;
    let limit = greatest_of(max(max(max(abs(outputs[first]), abs(outputs[first + 1u])), abs(outputs[first + 2u])), abs(outputs[first + 3u])));
    let words = int8_octet(outputs[2u * thread], outputs[2u * thread + 1u], 127.0 / max(limit, 1e-30));
    let at = tile * 4u + 2u * thread;
    y_residual[at] = words.x;
    y_residual[at + 1u] = words.y;
    if (2u * thread == first) {
      y_residual[Y_SCALES + tile * 1u + block] = bitcast<u32>(limit / 127.0);
    }
  }
}

const Y_SQUARES = 20u;  // where sums of squares begin
const Y_PADDING = 0u;
var<workgroup> output_squares: array<vec4f, 4>;
var<private> thread_residual: f32;
var<private> thread_weight: f32;

// Loads what the end needs.
fn prepare_residual(tile: u32, thread: u32) {
  if (thread < TILE_ROWS) {
    thread_residual = residual[tile * TILE_ROWS + thread];
    thread_weight = load_norm_weight(tile * TILE_ROWS + thread);
  }
}

fn finish_residual(tile: u32, thread: u32) {
  if (thread < TILE_ROWS) {
    let row = tile * TILE_ROWS + thread;
    let value = thread_residual + row_total_residual(thread);
    sum_out[row] = value;
    outputs[thread / 4u][thread % 4u] = value * thread_weight;
    output_squares[thread / 4u][thread % 4u] = value * value;
  }
  workgroupBarrier();
  write_int8(tile, thread);
  if (thread < 1u) {
    let first = thread * 4u;
    let sum = output_squares[first] + output_squares[first + 1u] + output_squares[first + 2u] + output_squares[first + 3u];
    y_residual[Y_SQUARES + tile * 1u + thread] = bitcast<u32>(dot(sum, vec4f(1.0)));
  }
  if (tile == 0u && thread < Y_PADDING) {
    y_residual[Y_SQUARES + N / 16u + thread] = 0u;  // readers take four sums at a time
  }
}

// ONNX nodes:
//   /model/layers.0/attn/o_proj/MatMul_Q4
//   /model/layers.0/post_attention_layernorm/SkipLayerNorm
//   /model/layers.0/mlp/down_proj/MatMul_Q4
//   /model/layers.1/final_norm_layernorm/SkipLayerNorm
@compute @workgroup_size(256, 1, 1)
fn gemv_q4_int8_residual(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let tile = group.x;
  let lane = thread % LANES;
  let first = thread / LANES * 4u;  // of the tile
  load_squares(thread);
  prepare_residual(tile, thread);
  let rows = vec4u(tile * TILE_ROWS + first) + vec4u(0u, 1u, 2u, 3u);
  add_up(first, lane, thread, products(rows, lane));
  finish_residual(tile, thread);
}

const TILE_OUTPUTS = 16u;

// The dot product of x with a row of the tile.
fn row_total_gated(row: u32) -> f32 {
  let at = row * QUADS;
  let sum = dot(part_sums[at], vec4f(1.0));
  return sum * norm_factor;
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
  if (thread < TILE_OUTPUTS) {
    outputs[thread / 4u][thread % 4u] = output(tile, thread);
  }
  workgroupBarrier();
  write_int8(tile, thread);
}

// ONNX nodes:
//   /model/layers.0/mlp/gate_proj/MatMul_Q4
//   /model/layers.0/mlp/up_proj/MatMul_Q4
//   /model/layers.0/mlp/act_fn/Sigmoid
//   /model/layers.0/mlp/act_fn/Mul
//   /model/layers.0/mlp/Mul
@compute @workgroup_size(128, 1, 1)
fn gemv_q4_int8_gated(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let tile = group.x;
  let lane = thread % LANES;
  let first = thread / LANES * 4u;  // of the tile
  load_squares(thread);
  // Half of a thread's rows are of the gate, half of the up projection.
  let output = vec2u(tile * TILE_OUTPUTS + first / 2u) + vec2u(0u, 1u);
  let rows = vec4u(output, output + N);
  add_up(first, lane, thread, products(rows, lane));
  finish_gated(tile, thread);
}

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

fn finish_argmax(tile: u32, thread: u32) {
  let row = tile * TILE_ROWS + thread;
  if (thread < TILE_ROWS) {
    best_values[thread] = -GREATEST;
    best_rows[thread] = 0xffffffffu;
    if (row < N) {
      let value = row_total_gated(thread);
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
//   /lm_head/MatMul_Q4
@compute @workgroup_size(256, 1, 1)
fn gemv_q4_int8_argmax(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let tile = group.x;
  let lane = thread % LANES;
  let first = thread / LANES * 4u;  // of the tile
  load_squares(thread);
  let rows = min(vec4u(tile * TILE_ROWS + first) + vec4u(0u, 1u, 2u, 3u), vec4u(N - 1u));
  add_up(first, lane, thread, products(rows, lane));
  finish_argmax(tile, thread);
}
