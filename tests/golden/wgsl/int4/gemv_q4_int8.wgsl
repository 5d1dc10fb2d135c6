enable f16;

struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
// Rows of int8 values, four to a word, even and odd ones of every eight apart; then f32 scales.
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;

override X_STRIDE: u32 = 5u;  // vectors per row
override X_SCALES: u32 = 4u;  // where a row's scales begin

fn x_scale(row: u32, chunk: u32) -> f32 {
  return bitcast<f32>(x[row * X_STRIDE + X_SCALES + (chunk >> 2u)][chunk & 3u]);
}

@group(0) @binding(3) var<storage, read> params: array<f16>;

override BLOCKS: u32 = 2u;  // of 32 weights, per row
const CHUNKS_PER_BLOCK = 1u;

// The scale of a block.
fn scale(row: u32, block: u32) -> f32 {
  let i = row * BLOCKS + block;
  return f32(params[i]);
}

fn zero_point(row: u32, block: u32) -> i32 {
  return 8;  // symmetric
}

// A workgroup takes 8 rows of W: 32 threads walk together along K of 4 rows.
override THREADS: u32 = 64u;
override LANES: u32 = 32u;
override PARTS: u32 = 8u;  // threads that add up a row's 32 sums
override TILE_ROWS: u32 = 8u;
override N: u32 = 128u;  // outputs
override ROW_CHUNKS: u32 = 2u;  // of 32 weights: what a thread takes at a time
override CHUNKS: u32 = 2u;

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
    append(rows, total);
  }
}

// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul_Q4
//   /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(64, 1, 1)
fn gemv_q4_int8_rope_append(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
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

var<workgroup> lane_sums_residual: array<f32, 2048>;  // [row][lane]

// The dot product of x with a row of the tile, once `part_sums` is complete.
fn row_total_residual(row: u32) -> f32 {
  let sum = part_sums[row] + part_sums[32u + row] + part_sums[64u + row] + part_sums[96u + row]
     + part_sums[128u + row] + part_sums[160u + row] + part_sums[192u + row] + part_sums[224u + row];
  return sum;
}

@group(0) @binding(5) var<storage, read> residual: array<f32>;
@group(0) @binding(6) var<storage, read> norm_weight: array<f16>;
@group(0) @binding(7) var<storage, read_write> sum_out: array<f32>;
fn load_norm_weight(i: u32) -> f32 {
  return f32(norm_weight[i]);
}

@group(0) @binding(4) var<storage, read_write> y_residual: array<u32>;  // int8 in words of four, then a scale per 32

// Eight values as int8, the even ones in one word and the odd ones in the next, as 4-bit weights come apart.
fn int8_octet(a: vec4<f32>, b: vec4<f32>, to_int8: f32) -> vec2<u32> {
  let c = vec4<i32>(round(a * to_int8));
  let d = vec4<i32>(round(b * to_int8));
  return vec2<u32>(pack4xI8(vec4<i32>(c.xz, d.xz)), pack4xI8(vec4<i32>(c.yw, d.yw)));
}

fn greatest_of(v: vec4<f32>) -> f32 {
  return max(max(v.x, v.y), max(v.z, v.w));
}

var<workgroup> outputs: array<vec4<f32>, 8>;

// A thread packs eight values, with the scale of their block: max|v| / 127.
fn write_int8(tile: u32, thread: u32) {
  if (thread < 4u) {
    let block = thread / 4u;
    let first = block * 8u;
    var largest = abs(outputs[first]);
    largest = max(largest, abs(outputs[first + 1u]));
    largest = max(largest, abs(outputs[first + 2u]));
    largest = max(largest, abs(outputs[first + 3u]));
    largest = max(largest, abs(outputs[first + 4u]));
    largest = max(largest, abs(outputs[first + 5u]));
    largest = max(largest, abs(outputs[first + 6u]));
    largest = max(largest, abs(outputs[first + 7u]));
    let limit = greatest_of(largest);
    let words = int8_octet(outputs[2u * thread], outputs[2u * thread + 1u], 127.0 / max(limit, 1e-30));
    let at = tile * 8u + 2u * thread;
    y_residual[at] = words.x;
    y_residual[at + 1u] = words.y;
    if (2u * thread == first) {
      y_residual[16u + tile * 1u + block] = bitcast<u32>(limit / 127.0);
    }
  }
}

var<workgroup> output_squares: array<vec4<f32>, 8>;
var<private> thread_residual: f32;
var<private> thread_weight: f32;

// What a thread adds in the end is asked for in the beginning.
fn prepare(tile: u32, thread: u32) {
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
    let first = thread * 8u;
    let sum = output_squares[first] + output_squares[first + 1u] + output_squares[first + 2u] + output_squares[first + 3u]
       + output_squares[first + 4u] + output_squares[first + 5u] + output_squares[first + 6u] + output_squares[first + 7u];
    y_residual[20u + tile * 1u + thread] = bitcast<u32>(dot(sum, vec4<f32>(1.0)));
  }
  if (tile == 0u && thread < 2u) {
    y_residual[22u + thread] = 0u;  // readers take four sums at a time
  }
}

// ONNX nodes:
//   /model/layers.0/attn/o_proj/MatMul_Q4
//   /model/layers.0/post_attention_layernorm/SkipLayerNorm
//   /model/layers.0/mlp/down_proj/MatMul_Q4
//   /model/layers.1/final_norm_layernorm/SkipLayerNorm
@compute @workgroup_size(256, 1, 1)
fn gemv_q4_int8_residual(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let tile = group.x;
  let lane = thread % LANES;
  let first = thread / LANES * 8u;  // of the tile
  let row0 = tile * TILE_ROWS + first;
  let row1 = row0 + 1u;
  let row2 = row0 + 2u;
  let row3 = row0 + 3u;
  let row4 = row0 + 4u;
  let row5 = row0 + 5u;
  let row6 = row0 + 6u;
  let row7 = row0 + 7u;
  prepare(tile, thread);
  var sum0 = 0.0;
  var sum1 = 0.0;
  var sum2 = 0.0;
  var sum3 = 0.0;
  var sum4 = 0.0;
  var sum5 = 0.0;
  var sum6 = 0.0;
  var sum7 = 0.0;
  for (var at = lane; at < CHUNKS; at += 64u) {
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
  lane_sums_residual[first * LANES + lane] = sum0;
  lane_sums_residual[(first + 1u) * LANES + lane] = sum1;
  lane_sums_residual[(first + 2u) * LANES + lane] = sum2;
  lane_sums_residual[(first + 3u) * LANES + lane] = sum3;
  lane_sums_residual[(first + 4u) * LANES + lane] = sum4;
  lane_sums_residual[(first + 5u) * LANES + lane] = sum5;
  lane_sums_residual[(first + 6u) * LANES + lane] = sum6;
  lane_sums_residual[(first + 7u) * LANES + lane] = sum7;
  workgroupBarrier();
  let part = thread % PARTS;
  let from_lane = thread / PARTS * LANES + part;
  part_sums[part * TILE_ROWS + thread / PARTS] =
    lane_sums_residual[from_lane] + lane_sums_residual[from_lane + 8u] + lane_sums_residual[from_lane + 16u] + lane_sums_residual[from_lane + 24u]
     + lane_sums_residual[from_lane + 32u] + lane_sums_residual[from_lane + 40u] + lane_sums_residual[from_lane + 48u] + lane_sums_residual[from_lane + 56u];
  workgroupBarrier();
  finish_residual(tile, thread);
}

const TILE_OUTPUTS = 32u;

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
fn row_total_gated(row: u32) -> f32 {
  let sum = part_sums[row] + part_sums[64u + row] + part_sums[128u + row] + part_sums[192u + row];
  return sum * norm_factor;
}

fn gate(v: f32) -> f32 {
  return v / (1.0 + exp(min(-v, 80.0)));  // exp must not reach infinity
}

// The rows of a tile lie as its threads take them: some of the gate, then the same ones of the up projection.
fn output(tile: u32, i: u32) -> f32 {
  let row = i / 4u * 8u + i % 4u;
  return gate(row_total_gated(row)) * row_total_gated(row + 4u);
}

// A thread packs eight values, with the scale of their block: max|v| / 127.
fn write_int8_gated(tile: u32, thread: u32) {
  if (thread < 4u) {
    let block = thread / 4u;
    let first = block * 8u;
    var largest = abs(outputs[first]);
    largest = max(largest, abs(outputs[first + 1u]));
    largest = max(largest, abs(outputs[first + 2u]));
    largest = max(largest, abs(outputs[first + 3u]));
    largest = max(largest, abs(outputs[first + 4u]));
    largest = max(largest, abs(outputs[first + 5u]));
    largest = max(largest, abs(outputs[first + 6u]));
    largest = max(largest, abs(outputs[first + 7u]));
    let limit = greatest_of(largest);
    let words = int8_octet(outputs[2u * thread], outputs[2u * thread + 1u], 127.0 / max(limit, 1e-30));
    let at = tile * 8u + 2u * thread;
    y_residual[at] = words.x;
    y_residual[at + 1u] = words.y;
    if (2u * thread == first) {
      y_residual[24u + tile * 1u + block] = bitcast<u32>(limit / 127.0);
    }
  }
}

fn finish_gated(tile: u32, thread: u32) {
  if (thread < TILE_OUTPUTS) {
    outputs[thread / 4u][thread % 4u] = output(tile, thread);
  }
  workgroupBarrier();
  write_int8_gated(tile, thread);
}

// ONNX nodes:
//   /model/layers.0/mlp/gate_proj/MatMul_Q4
//   /model/layers.0/mlp/up_proj/MatMul_Q4
//   /model/layers.0/mlp/act_fn/Sigmoid
//   /model/layers.0/mlp/act_fn/Mul
//   /model/layers.0/mlp/Mul
@compute @workgroup_size(256, 1, 1)
fn gemv_q4_int8_gated(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
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
  load_squares(thread);
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
  lane_sums_residual[first * LANES + lane] = sum0;
  lane_sums_residual[(first + 1u) * LANES + lane] = sum1;
  lane_sums_residual[(first + 2u) * LANES + lane] = sum2;
  lane_sums_residual[(first + 3u) * LANES + lane] = sum3;
  lane_sums_residual[(first + 4u) * LANES + lane] = sum4;
  lane_sums_residual[(first + 5u) * LANES + lane] = sum5;
  lane_sums_residual[(first + 6u) * LANES + lane] = sum6;
  lane_sums_residual[(first + 7u) * LANES + lane] = sum7;
  workgroupBarrier();
  add_squares(thread);
  let part = thread % PARTS;
  let from_lane = thread / PARTS * LANES + part;
  part_sums[part * TILE_ROWS + thread / PARTS] =
    lane_sums_residual[from_lane] + lane_sums_residual[from_lane + 4u] + lane_sums_residual[from_lane + 8u] + lane_sums_residual[from_lane + 12u]
     + lane_sums_residual[from_lane + 16u] + lane_sums_residual[from_lane + 20u] + lane_sums_residual[from_lane + 24u] + lane_sums_residual[from_lane + 28u];
  workgroupBarrier();
  finish_gated(tile, thread);
}

var<workgroup> lane_sums_argmax: array<f32, 1024>;  // [row][lane]

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
fn gemv_q4_int8_argmax(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
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
  lane_sums_argmax[first * LANES + lane] = sum0;
  lane_sums_argmax[(first + 1u) * LANES + lane] = sum1;
  lane_sums_argmax[(first + 2u) * LANES + lane] = sum2;
  lane_sums_argmax[(first + 3u) * LANES + lane] = sum3;
  workgroupBarrier();
  add_squares(thread);
  let part = thread % PARTS;
  let from_lane = thread / PARTS * LANES + part;
  part_sums[part * TILE_ROWS + thread / PARTS] =
    lane_sums_argmax[from_lane] + lane_sums_argmax[from_lane + 4u] + lane_sums_argmax[from_lane + 8u] + lane_sums_argmax[from_lane + 12u];
  workgroupBarrier();
  finish_argmax(tile, thread);
}

// The dot product of x with a row of the tile, once `part_sums` is complete.
fn row_total_argmax_2(row: u32) -> f32 {
  let sum = part_sums[row] + part_sums[64u + row] + part_sums[128u + row] + part_sums[192u + row];
  return sum;
}

fn finish_argmax_2(tile: u32, thread: u32) {
  let row = tile * TILE_ROWS + thread;
  if (thread < TILE_ROWS) {
    best_values[thread] = -GREATEST;
    best_rows[thread] = 0xffffffffu;
    if (row < N) {
      let value = row_total_argmax_2(thread);
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
fn gemv_q4_int8_argmax_2(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
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
  finish_argmax_2(tile, thread);
}
