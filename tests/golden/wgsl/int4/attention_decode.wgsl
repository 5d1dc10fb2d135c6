enable f16;

struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;  // [heads, head_size]
@group(0) @binding(2) var<storage, read> k_cache: array<vec4<f16>>;  // [kv_heads, capacity, head_size]
@group(0) @binding(3) var<storage, read> v_cache: array<vec4<f16>>;

fn load_key(i: u32) -> vec4<f32> {
  return vec4<f32>(k_cache[i]);
}

fn load_value(i: u32) -> vec4<f32> {
  return vec4<f32>(v_cache[i]);
}

@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;  // [heads, head_size]

const CAPACITY = 48u;
const FOURS = 8u;  // vec4s in a head
const SERVED = 2u;  // query heads served here, from one read of their KV head
const SPLIT = 64u;  // positions per workgroup
const PARTS = 2u;  // threads that share the dot products of a position
const SEGMENTS = 16u;  // threads that share the softmax of a head
const SLICES = 16u;  // groups of threads that share the sum over positions, a thread per vec4
const THREADS = 128u;

const LOWEST = -3.0e38;  // below every score, and finite: a difference of two is no NaN

// The key that a query at `position` sees first.
fn first_visible(position: u32) -> u32 {
  return 0u;
}

// A query's score for a key, from their dot product.
fn attention_score(dot_product: f32) -> f32 {
  return dot_product * 0.1767766922712326;
}

// What turns the sum of exp(score - maximum) · value into a softmax's mean; `total` is the sum of the weights.
fn softmax_factor(head: u32, maximum: f32, total: f32) -> f32 {
  return 1.0 / max(total, 1.0e-30);
}

var<workgroup> q_heads: array<vec4<f32>, 16>;
var<workgroup> weights: array<f32, 256>;  // [part][head][position]
var<workgroup> maxima: array<f32, 32>;
var<workgroup> totals: array<f32, 32>;
var<workgroup> slice_sums: array<vec4<f32>, 256>;  // [head][slice][vec4]

fn maximum_of(head: u32) -> f32 {
  var maximum = maxima[head * SEGMENTS];
  maximum = max(maximum, maxima[head * SEGMENTS + 1u]);
  maximum = max(maximum, maxima[head * SEGMENTS + 2u]);
  maximum = max(maximum, maxima[head * SEGMENTS + 3u]);
  maximum = max(maximum, maxima[head * SEGMENTS + 4u]);
  maximum = max(maximum, maxima[head * SEGMENTS + 5u]);
  maximum = max(maximum, maxima[head * SEGMENTS + 6u]);
  maximum = max(maximum, maxima[head * SEGMENTS + 7u]);
  maximum = max(maximum, maxima[head * SEGMENTS + 8u]);
  maximum = max(maximum, maxima[head * SEGMENTS + 9u]);
  maximum = max(maximum, maxima[head * SEGMENTS + 10u]);
  maximum = max(maximum, maxima[head * SEGMENTS + 11u]);
  maximum = max(maximum, maxima[head * SEGMENTS + 12u]);
  maximum = max(maximum, maxima[head * SEGMENTS + 13u]);
  maximum = max(maximum, maxima[head * SEGMENTS + 14u]);
  maximum = max(maximum, maxima[head * SEGMENTS + 15u]);
  return maximum;
}

fn total_of(head: u32) -> f32 {
  return totals[head * SEGMENTS] + totals[head * SEGMENTS + 1u] + totals[head * SEGMENTS + 2u] + totals[head * SEGMENTS + 3u]
    + totals[head * SEGMENTS + 4u] + totals[head * SEGMENTS + 5u] + totals[head * SEGMENTS + 6u] + totals[head * SEGMENTS + 7u]
    + totals[head * SEGMENTS + 8u] + totals[head * SEGMENTS + 9u] + totals[head * SEGMENTS + 10u] + totals[head * SEGMENTS + 11u]
    + totals[head * SEGMENTS + 12u] + totals[head * SEGMENTS + 13u] + totals[head * SEGMENTS + 14u] + totals[head * SEGMENTS + 15u];
}

// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul_Q4
//   /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(128, 1, 1)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;
  }
  let n_keys = min(sequence.total_length, CAPACITY);
  let first = first_visible(max(n_keys, 1u) - 1u);
  let begin = (first / SPLIT + group.y) * SPLIT;
  if (begin >= n_keys) {
    return;  // the grid is for a full cache
  }
  let from_position = max(first, begin) - begin;
  let to_position = min(n_keys - begin, SPLIT);
  let first_head = group.x * SERVED;
  let cache_row = first_head / 2u * CAPACITY + begin;

  // All that is read of the cache is asked for at once, before anything waits. Behind the last position it
  // is that position again, with weight 0.
  let position = thread / PARTS;
  let part = thread % PARTS;
  let key_row = (cache_row + min(position, to_position - 1u)) * FOURS;
  let key_0 = load_key(key_row + part + 0u);
  let key_1 = load_key(key_row + part + 2u);
  let key_2 = load_key(key_row + part + 4u);
  let key_3 = load_key(key_row + part + 6u);
  let slice = thread / FOURS;
  let four = thread % FOURS;
  let value_0 = load_value((cache_row + min(slice + 0u, to_position - 1u)) * FOURS + four);
  let value_1 = load_value((cache_row + min(slice + 16u, to_position - 1u)) * FOURS + four);
  let value_2 = load_value((cache_row + min(slice + 32u, to_position - 1u)) * FOURS + four);
  let value_3 = load_value((cache_row + min(slice + 48u, to_position - 1u)) * FOURS + four);
  for (var i = thread; i < SERVED * FOURS; i += THREADS) {
    q_heads[i] = q[first_head * FOURS + i];
  }
  workgroupBarrier();

  // Dot products: each key is read once, for all the heads.
  if (position < SPLIT) {
    var dot_0 = 0.0;
    var dot_1 = 0.0;
    dot_0 += dot(key_0, q_heads[0u + part]);
    dot_1 += dot(key_0, q_heads[8u + part]);
    dot_0 += dot(key_1, q_heads[2u + part]);
    dot_1 += dot(key_1, q_heads[10u + part]);
    dot_0 += dot(key_2, q_heads[4u + part]);
    dot_1 += dot(key_2, q_heads[12u + part]);
    dot_0 += dot(key_3, q_heads[6u + part]);
    dot_1 += dot(key_3, q_heads[14u + part]);
    let to = part * SERVED * SPLIT + position;
    weights[to + 0u] = dot_0;
    weights[to + 64u] = dot_1;
  }
  workgroupBarrier();

  // Softmax weights, relative to the greatest score of these positions.
  let head = thread / SEGMENTS;
  let segment = thread % SEGMENTS;
  if (head < SERVED) {
    var maximum = LOWEST;
    for (var i = from_position + segment; i < to_position; i += SEGMENTS) {
      let at = head * SPLIT + i;
      var dot_product = weights[at];
      dot_product += weights[128u + at];
      let score = attention_score(dot_product);
      weights[at] = score;
      maximum = max(maximum, score);
    }
    maxima[thread] = maximum;
  }
  workgroupBarrier();
  if (head < SERVED) {
    let maximum = maximum_of(head);
    var total = 0.0;
    for (var i = segment; i < SPLIT; i += SEGMENTS) {
      let visible = i >= from_position && i < to_position;
      let weight = select(0.0, exp(weights[head * SPLIT + i] - maximum), visible);
      weights[head * SPLIT + i] = weight;
      total += weight;
    }
    totals[thread] = total;
  }
  workgroupBarrier();

  // Weighted sums: each value is read once, for all the heads.
  var sum_0 = vec4<f32>();
  var sum_1 = vec4<f32>();
  sum_0 += weights[0u + slice] * value_0;
  sum_1 += weights[64u + slice] * value_0;
  sum_0 += weights[16u + slice] * value_1;
  sum_1 += weights[80u + slice] * value_1;
  sum_0 += weights[32u + slice] * value_2;
  sum_1 += weights[96u + slice] * value_2;
  sum_0 += weights[48u + slice] * value_3;
  sum_1 += weights[112u + slice] * value_3;

  if (slice < SLICES) {
    slice_sums[0u + thread] = sum_0;
    slice_sums[128u + thread] = sum_1;
  }
  workgroupBarrier();
  for (var i = thread; i < 2u * FOURS; i += THREADS) {
    let served_head = 0u + i / FOURS;
    var sum = vec4<f32>();
    for (var j = 0u; j < SLICES; j++) {
      sum += slice_sums[(i / FOURS * SLICES + j) * FOURS + i % FOURS];
    }
    let factor = softmax_factor(first_head + served_head, maximum_of(served_head), total_of(served_head));
    y[(first_head + served_head) * FOURS + i % FOURS] = sum * factor;
  }
}
