// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul
//   /model/layers.0/attn/qkv_proj/Add
//   /model/layers.0/attn/GroupQueryAttention
struct Sequence {
  past_length: u32,
  length: u32,
  total_length: u32,
  call_length: u32,
  n_tokens: u32,
  limit: u32,
  stop: u32,
  n_stop_tokens: u32,
  stop_tokens: array<u32, 16>,
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

const THREADS = 32u;
const ROWS = 128u;  // of W
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

// A thread's share of the dot product of x with each of 4 rows of W.
fn thread_dots(rows: vec4<u32>, thread: u32) -> vec4<f32> {
  var sum = vec4<f32>();
  for (var chunk = thread; chunk < CHUNKS; chunk += THREADS) {
    let x_chunk = load_chunk(chunk);
    sum.x += row_dot(rows.x, chunk, x_chunk);
    sum.y += row_dot(rows.y, chunk, x_chunk);
    sum.z += row_dot(rows.z, chunk, x_chunk);
    sum.w += row_dot(rows.w, chunk, x_chunk);
  }
  return sum;
}

var<workgroup> slots: array<vec4<f32>, 32>;

// The sum over the workgroup, for thread 0.
fn workgroup_sum(value: vec4<f32>, thread: u32) -> vec4<f32> {
  workgroupBarrier();  // the slots may still be read from the last call
  slots[thread] = value;
  workgroupBarrier();
  for (var step = 16u; step > 0u; step /= 2u) {
    if (thread < step) {
      slots[thread] += slots[thread + step];
    }
    workgroupBarrier();
  }
  return slots[0];
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

// The rows of W that a workgroup takes together: two pairs of neighbours in a head, rotated with each other.
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

@compute @workgroup_size(32, 1, 1)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let rows = qkv_rows(group.x);
  let sums = workgroup_sum(thread_dots(rows, thread), thread);
  if (thread == 0u) {
    let total = sums + vec4<f32>(bias(rows.x), bias(rows.y), bias(rows.z), bias(rows.w));
    append(rows, total);
  }
}
