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

@group(0) @binding(3) var<storage, read> params: array<u32>;

const BLOCKS = 2u;  // of 32 weights, per row
const CHUNKS_PER_BLOCK = 1u;

// The scale of a block.
fn scale(row: u32, block: u32) -> f32 {
  let i = row * BLOCKS + block;
  return unpack2x16float(params[i >> 1u] >> (16u * (i & 1u))).x;
}

fn zero_point(row: u32, block: u32) -> i32 {
  return 8;  // symmetric
}

// A workgroup takes 8 rows of W: 32 threads walk together along K of 4 rows.
const THREADS = 64u;
const LANES = 32u;
const PARTS = 8u;  // threads that add up a row's 32 sums
const TILE_ROWS = 8u;
const N = 128u;  // outputs
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
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
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
