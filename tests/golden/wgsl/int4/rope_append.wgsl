struct Sequence { past_length: u32, length: u32 }

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> qkv: array<vec2f>;  // [rows, heads of q, k and v, head_size]
@group(0) @binding(2) var<storage, read_write> q: array<vec2f>;  // [rows, heads, head_size]
@group(0) @binding(3) var<storage, read_write> k_cache: array<u32>;  // [kv_heads, capacity, head_size], two f16 to a word
@group(0) @binding(4) var<storage, read_write> v_cache: array<u32>;
@group(0) @binding(5) var<storage, read> rope: array<u32>;

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

const N_HEADS = 4u;  // of q, k and v
const FIRST_KV = 2u;  // the first head of k
const KV_HEADS = 1u;
const CAPACITY = 48u;
const HEAD_SIZE = 32u;
const FOURS = 8u;

// A pair turned by an angle, given as (cos, sin).
fn rotate(pair: vec2f, angle: vec2f) -> vec2f {
  return vec2f(pair.x * angle.x - pair.y * angle.y, pair.y * angle.x + pair.x * angle.y);
}

// Two neighbours of a head, from `i` on, which is even.
fn pair_at(row: u32, head: u32, i: u32) -> vec2f {
  return qkv[((row * N_HEADS + head) * HEAD_SIZE + i) / 2];
}

// The same two to where they belong.
fn put(row: u32, head: u32, i: u32, pair: vec2f) {
  if (head < FIRST_KV) {
    q[((row * FIRST_KV + head) * HEAD_SIZE + i) / 2] = pair;
    return;
  }
  let position = sequence.past_length + row;
  if (position >= CAPACITY) {
    return;  // the cache is full
  }
  let kv_head = head - FIRST_KV;
  let to = ((kv_head % KV_HEADS * CAPACITY + position) * HEAD_SIZE + i) / 2;
  if (kv_head < KV_HEADS) {
    k_cache[to] = pack2x16float(pair);
  } else {
    v_cache[to] = pack2x16float(pair);
  }
}

// ONNX nodes:
//   /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let row = id.y;
  let head = id.x / FOURS;
  let four = id.x % FOURS;
  if (head >= N_HEADS || row >= sequence.length) {
    return;
  }
  let rotated = head < FIRST_KV + KV_HEADS;
  // Four values: two neighbours, and their partners in the other half of what is rotated.
  let i = select(4u, 2u, rotated) * four;
  let j = i + select(2u, ROPE_WIDTH, rotated);
  var low = pair_at(row, head, i);
  var high = pair_at(row, head, j);
  if (rotated) {
    let position = sequence.past_length + row;
    let a = rotate(vec2f(low.x, high.x), rope_angle(position, i));
    let b = rotate(vec2f(low.y, high.y), rope_angle(position, i + 1));
    low = vec2f(a.x, b.x);
    high = vec2f(a.y, b.y);
  }
  put(row, head, i, low);
  put(row, head, j, high);
}
