enable f16;

struct Sequence { past_length: u32, length: u32, stop: u32 }

@group(0) @binding(0) var<storage, read> sequence: Sequence;
// Rows of int8, even and odd ones of every eight apart; then f32 scales.
@group(0) @binding(1) var<storage, read> x: array<vec4u>;

override X_SCALES: u32 = 4u;  // where a row's scales begin

override CHUNK_SCALES: u32 = 1u;

// The scales of the two halves of a chunk, which may be one.
fn x_scales(chunk: u32) -> vec2f {
  if (CHUNK_SCALES == 1) {
    return vec2f(bitcast<f32>(x[X_SCALES + (chunk >> 2)][chunk & 3]));
  }
  let scales = bitcast<vec4f>(x[X_SCALES + (chunk >> 1)]);
  return select(scales.xy, scales.zw, (chunk & 1) == 1);
}

@group(0) @binding(3) var<storage, read> params: array<f16>;

fn scale(row: u32, block: u32) -> f32 {
  let i = row * CHUNKS + block;
  return f32(params[i]);
}

// LANES threads walk together along K of four rows of W.
override LANES: u32 = 32u;
override PART_SUMS: u32 = 32u;
override TILE_ROWS: u32 = 16u;
override LANE_SUMS: u32 = 512u;
override N: u32 = 128u;  // outputs
override ROW_CHUNKS: u32 = 2u;  // of 32 weights: what a thread takes at a time
override CHUNKS: u32 = 2u;

@group(0) @binding(2) var<storage, read> weights: array<vec4u>;

// 32 activations, as the nibbles of a word of weights come apart, and a scale for each half.
struct Chunk {
  words0: vec4u,
  words1: vec4u,
  sum0: i32,
  sum1: i32,
  scales: vec2f,
}

const ONES = vec2u(0x11111111u);  // sixteen nibbles: a dot product with them is a sum

fn load_chunk(chunk: u32) -> Chunk {
  let words0 = x[2 * chunk];
  let words1 = x[2 * chunk + 1];
  return Chunk(words0, words1, sixteen(ONES, words0), sixteen(ONES, words1), x_scales(chunk));
}

struct Weights {
  words: vec4u,
  scale: f32,
}

fn load_weights(row: u32, chunk: u32) -> Weights {
  return Weights(weights[row * ROW_CHUNKS + chunk], scale(row, chunk));
}

// Sixteen weights times sixteen activations.
fn sixteen(weights: vec2u, x: vec4u) -> i32 {
  return dot4I8Packed(weights.x & 0x0f0f0f0fu, x.x) + dot4I8Packed((weights.x >> 4) & 0x0f0f0f0fu, x.y)
    + dot4I8Packed(weights.y & 0x0f0f0f0fu, x.z) + dot4I8Packed((weights.y >> 4) & 0x0f0f0f0fu, x.w);
}

// The sum of (q - 8) * x: that of q * x, less 8 times the sum of x.
fn weights_dot(w: Weights, x: Chunk) -> f32 {
  let first = sixteen(w.words.xy, x.words0) - 8 * x.sum0;
  let second = sixteen(w.words.zw, x.words1) - 8 * x.sum1;
  return w.scale * (x.scales.x * f32(first) + x.scales.y * f32(second));
}

// A chunk of each of four rows.
struct Four {
  x: Weights,
  y: Weights,
  z: Weights,
  w: Weights,
}

fn load_four(rows: vec4u, chunk: u32) -> Four {
  return Four(
    load_weights(rows.x, chunk), load_weights(rows.y, chunk),
    load_weights(rows.z, chunk), load_weights(rows.w, chunk));
}

fn four_dots(four: Four, chunk: u32) -> vec4f {
  let x = load_chunk(chunk);
  return vec4f(weights_dot(four.x, x), weights_dot(four.y, x), weights_dot(four.z, x), weights_dot(four.w, x));
}

// A thread's part of the dot products of x with four rows.
fn products(rows: vec4u, lane: u32) -> vec4f {
  var sums = vec4f();
  if (CHUNKS <= LANES) {
    if (lane < CHUNKS) {
      sums = four_dots(load_four(rows, lane), lane);
    }
    return sums;
  }
  // The next weights come while these are multiplied.
  var next = load_four(rows, lane);
  for (var chunk = lane; chunk < CHUNKS; chunk += LANES) {
    let four = next;
    next = load_four(rows, min(chunk + LANES, CHUNKS - 1));
    sums += four_dots(four, chunk);
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
  if (DEFERRED == 1 && thread < SLOTS) {
    var sum = vec4f();
    for (var i = thread; i < SQUARES; i += SLOTS) {
      sum += bitcast<vec4f>(x[X_SQUARES + i]);
    }
    squares[thread] = dot(sum, vec4f(1.0));
  }
}

// A sum, and then eight of `squares`.
fn plus_squares(sum: f32, i: u32) -> f32 {
  return sum + squares[i] + squares[i + 1] + squares[i + 2] + squares[i + 3]
    + squares[i + 4] + squares[i + 5] + squares[i + 6] + squares[i + 7];
}

fn add_squares(thread: u32) {
  if (thread == 0) {
    var factor = 1.0;
    if (DEFERRED == 1) {
      let sum = plus_squares(plus_squares(plus_squares(plus_squares(0.0, 0u), 8u), 16u), 24u);
      factor = inverseSqrt(sum / f32(K) + EPSILON);
    }
    norm_factor = factor;
  }
}

// A row of the tile: the first of a thread's four.
fn first_row(thread: u32) -> u32 {
  return thread / LANES * 4;
}

// Multiplies x with four rows of W from each thread, and adds up for `row_total`.
fn multiply(rows: vec4u, thread: u32) {
  let lane = thread % LANES;
  let sums = products(rows, lane);
  let to = first_row(thread) * LANES + lane;
  lane_sums[to] = sums.x;
  lane_sums[to + LANES] = sums.y;
  lane_sums[to + 2 * LANES] = sums.z;
  lane_sums[to + 3 * LANES] = sums.w;
  workgroupBarrier();
  add_squares(thread);
  let parts = LANES / 4;  // of a row, in a thread each
  let from_lane = thread / parts * LANES + thread % parts;
  part_sums[thread / 4][thread % 4] = lane_sums[from_lane] + lane_sums[from_lane + parts]
    + lane_sums[from_lane + 2 * parts] + lane_sums[from_lane + 3 * parts];
  workgroupBarrier();
}

// The dot product of x with a row of the tile.
fn row_total(row: u32) -> f32 {
  let at = row * (LANES / 16);
  var sum = part_sums[at];
  if (LANES > 16) {
    sum += part_sums[at + 1];
  }
  if (LANES > 32) {
    sum = sum + part_sums[at + 2] + part_sums[at + 3];
  }
  return dot(sum, vec4f(1.0)) * norm_factor;
}

@group(0) @binding(4) var<storage, read_write> y: array<f32>;  // q
@group(0) @binding(5) var<storage, read_write> k_cache: array<u32>;  // [kv_heads, capacity, head_size]
@group(0) @binding(6) var<storage, read_write> v_cache: array<u32>;

const HEADS = 2u;
const KV_HEADS = 1u;
const HEAD_SIZE = 32u;
const HEAD_QUADS = 8u;  // fours of outputs
const CAPACITY = 48u;
@group(0) @binding(7) var<storage, read> rope: array<u32>;

const ROPE_ROWS = 48u;  // rows of cosines, then as many of sines
const ROPE_WIDTH = 16u;

fn rope_value(row: u32, i: u32) -> f32 {
  let at = row * ROPE_WIDTH + i;
  return unpack2x16float(rope[at >> 1] >> (16 * (at & 1))).x;
}

fn rope_angle(position: u32, i: u32) -> vec2f {
  let row = min(position, ROPE_ROWS - 1);
  return vec2f(rope_value(row, i), rope_value(ROPE_ROWS + row, i));
}

// Whether four outputs are rotated: not those of v, nor behind rotary_dim.
fn rotates(quad: u32) -> bool {
  return quad / HEAD_QUADS < HEADS + KV_HEADS;
}

// Four rows of W that end in one thread: two pairs of neighbours in a head, rotated with each other.
fn qkv_rows(quad: u32) -> vec4u {
  if (rotates(quad)) {
    let i = quad / HEAD_QUADS * HEAD_SIZE + 2 * (quad % HEAD_QUADS);
    return vec4u(i, i + 1, i + ROPE_WIDTH, i + ROPE_WIDTH + 1);
  }
  return 4 * quad + vec4u(0, 1, 2, 3);
}

var<private> angles: vec4f;  // cosine and sine of the thread's two pairs

// Loads what `finish` needs.
fn prepare(tile: u32, thread: u32) {
  let quad = tile * (TILE_ROWS / 4) + thread;
  if (thread < TILE_ROWS / 4 && rotates(quad)) {
    let pair = 2 * (quad % HEAD_QUADS);
    angles = vec4f(rope_angle(sequence.past_length, pair), rope_angle(sequence.past_length, pair + 1));
  }
}

fn finish(tile: u32, thread: u32) {
  let quad = tile * (TILE_ROWS / 4) + thread;
  if (thread >= TILE_ROWS / 4 || quad >= N / 4) {
    return;
  }
  let rows = qkv_rows(quad);
  let i = 4 * thread;
  var v = vec4f(row_total(i), row_total(i + 1), row_total(i + 2), row_total(i + 3));
  if (rotates(quad)) {
    let a = angles;
    v = vec4f(
      v.x * a.x - v.z * a.y, v.y * a.z - v.w * a.w,
      v.z * a.x + v.x * a.y, v.w * a.z + v.y * a.w);
  }
  let head = quad / HEAD_QUADS;
  if (head < HEADS) {
    y[rows.x] = v.x;
    y[rows.y] = v.y;
    y[rows.z] = v.z;
    y[rows.w] = v.w;
    return;
  }
  let position = sequence.past_length;
  if (position >= CAPACITY) {
    return;  // the cache is full
  }
  let kv_head = (head - HEADS) % KV_HEADS;
  let to = (kv_head * CAPACITY + position) * HEAD_SIZE + rows.x % HEAD_SIZE;
  let gap = rows.z - rows.x;
  let low = pack2x16float(v.xy);
  let high = pack2x16float(v.zw);
  if (head < HEADS + KV_HEADS) {
    k_cache[to / 2] = low;
    k_cache[(to + gap) / 2] = high;
  } else {
    v_cache[to / 2] = low;
    v_cache[(to + gap) / 2] = high;
  }
}

// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul_Q4, /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(128)
fn gemv_q4_int8_rope_append(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0) {
    return;  // generation has ended
  }
  let tile = group.x;
  load_squares(thread);
  prepare(tile, thread);
  multiply(qkv_rows(min((tile * TILE_ROWS + first_row(thread)) / 4, N / 4 - 1)), thread);
  finish(tile, thread);
}

@group(0) @binding(5) var<storage, read> residual: array<f32>;
@group(0) @binding(6) var<storage, read> norm_weight: array<f16>;
@group(0) @binding(7) var<storage, read_write> sum_out: array<f32>;
fn load_norm_weight(i: u32) -> f32 {
  return f32(norm_weight[i]);
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

// A thread packs eight values, with the scale of the block: max|v| / 127.
fn write_int8(tile: u32, thread: u32) {
  if (thread < 2) {
    let largest = max(max(max(abs(outputs[0]), abs(outputs[1])), abs(outputs[2])), abs(outputs[3]));
    let limit = greatest_of(largest);
    let words = int8_octet(outputs[2 * thread], outputs[2 * thread + 1], 127.0 / max(limit, 1e-30));
    let at = tile * 4 + 2 * thread;
    y_residual[at] = words.x;
    y_residual[at + 1] = words.y;
    if (thread == 0) {
      y_residual[Y_SCALES + tile] = bitcast<u32>(limit / 127.0);
    }
  }
}

const Y_SQUARES = 20u;  // where sums of squares begin
var<workgroup> output_squares: array<vec4f, 4>;
var<private> thread_residual: f32;
var<private> thread_weight: f32;

fn prepare_residual(tile: u32, thread: u32) {
  if (thread < TILE_ROWS) {
    thread_residual = residual[tile * TILE_ROWS + thread];
    thread_weight = load_norm_weight(tile * TILE_ROWS + thread);
  }
}

fn finish_residual(tile: u32, thread: u32) {
  if (thread < TILE_ROWS) {
    let row = tile * TILE_ROWS + thread;
    let value = thread_residual + row_total(thread);
    sum_out[row] = value;
    outputs[thread / 4][thread % 4] = value * thread_weight;
    output_squares[thread / 4][thread % 4] = value * value;
  }
  workgroupBarrier();
  write_int8(tile, thread);
  if (thread == 0) {
    let sum = output_squares[0] + output_squares[1] + output_squares[2] + output_squares[3];
    y_residual[Y_SQUARES + tile] = bitcast<u32>(dot(sum, vec4f(1.0)));
  }
}

// ONNX nodes:
//   /model/layers.0/attn/o_proj/MatMul_Q4, /model/layers.0/post_attention_layernorm/SkipLayerNorm,
//     /model/layers.0/mlp/down_proj/MatMul_Q4, /model/layers.1/final_norm_layernorm/SkipLayerNorm
@compute @workgroup_size(256)
fn gemv_q4_int8_residual(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0) {
    return;  // generation has ended
  }
  let tile = group.x;
  load_squares(thread);
  prepare_residual(tile, thread);
  multiply(tile * TILE_ROWS + first_row(thread) + vec4u(0, 1, 2, 3), thread);
  finish_residual(tile, thread);
}

const TILE_OUTPUTS = 16u;

fn gate(v: f32) -> f32 {
  return v / (1.0 + exp(min(-v, 80.0)));  // exp must not reach infinity
}

// A thread's rows of W are two of the gate, then the same ones of the up projection.
fn output(tile: u32, i: u32) -> f32 {
  let row = i / 2 * 4 + i % 2;
  return gate(row_total(row)) * row_total(row + 2);
}

fn finish_gated(tile: u32, thread: u32) {
  if (thread < TILE_OUTPUTS) {
    outputs[thread / 4][thread % 4] = output(tile, thread);
  }
  workgroupBarrier();
  write_int8(tile, thread);
}

// ONNX nodes:
//   /model/layers.0/mlp/gate_proj/MatMul_Q4, /model/layers.0/mlp/up_proj/MatMul_Q4,
//     /model/layers.0/mlp/act_fn/Sigmoid, /model/layers.0/mlp/act_fn/Mul, /model/layers.0/mlp/Mul
@compute @workgroup_size(128)
fn gemv_q4_int8_gated(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0) {
    return;  // generation has ended
  }
  let tile = group.x;
  load_squares(thread);
  let output = tile * TILE_OUTPUTS + first_row(thread) / 2 + vec2u(0, 1);
  multiply(vec4u(output, output + N), thread);
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
      let value = row_total(thread);
      y[row] = value;
      best_values[thread] = finite(value);
      best_rows[thread] = row;
    }
  }
  for (var half = TILE_ROWS / 2; half > 0; half /= 2) {
    workgroupBarrier();
    if (thread < half) {
      let other = thread + half;
      let value = best_values[other];
      let best = best_values[thread];
      // Of equal ones the first.
      if (value > best || (value == best && best_rows[other] < best_rows[thread])) {
        best_values[thread] = value;
        best_rows[thread] = best_rows[other];
      }
    }
  }
  if (thread == 0) {
    partial_values[tile] = best_values[0];
    partial_indices[tile] = best_rows[0];
  }
}

// ONNX nodes:
//   /lm_head/MatMul_Q4
@compute @workgroup_size(256)
fn gemv_q4_int8_argmax(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0) {
    return;  // generation has ended
  }
  let tile = group.x;
  load_squares(thread);
  multiply(min(tile * TILE_ROWS + first_row(thread) + vec4u(0, 1, 2, 3), vec4u(N - 1)), thread);
  finish_argmax(tile, thread);
}
