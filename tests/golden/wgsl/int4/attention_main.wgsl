struct Sequence { past_length: u32, length: u32, stop: u32 }

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> q: array<vec4f>;  // [rows, heads, head_size]
@group(0) @binding(2) var<storage, read> k_cache: array<vec2u>;  // [kv_heads, capacity, head_size], two f16 to a word
@group(0) @binding(3) var<storage, read> v_cache: array<vec2u>;

fn load_key(i: u32) -> vec4f {
  let packed = k_cache[i];
  return vec4f(unpack2x16float(packed.x), unpack2x16float(packed.y));
}

fn load_value(i: u32) -> vec4f {
  let packed = v_cache[i];
  return vec4f(unpack2x16float(packed.x), unpack2x16float(packed.y));
}

@group(0) @binding(4) var<storage, read_write> y: array<vec4f>;  // [rows, heads, head_size]

const HEADS = 2u;
const SERVED = 2u;  // query heads served here, from one read of their KV head
const CAPACITY = 48u;
const FOURS = 8u;  // vec4s in a head
const TILE = 64u;  // keys
const THREADS = 8u;

const LOWEST = -3.0e38;  // below every score, and finite: a difference of two is no NaN

// The key that a query at `position` sees first.
fn first_visible(position: u32) -> u32 {
  return 0u;
}

// A query's score for a key, from their dot product.
fn attention_score(dot_product: f32) -> f32 {
  return dot_product * 0.1767766922712326;
}

// Makes a softmax's mean of the weighted sum of values; `total` is the sum of the weights.
fn softmax_factor(head: u32, maximum: f32, total: f32) -> f32 {
  return 1.0 / max(total, 1.0e-30);
}

var<workgroup> weights: array<f32, 128>;  // [head][key]
var<workgroup> factors: array<f32, SERVED>;  // what the sums of a head are multiplied with

// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul_Q4, /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  let row = group.y;
  if (sequence.stop != 0 || row >= sequence.length) {
    return;  // generation has ended, or there is no token in this row
  }
  let first_head = group.x * SERVED;
  let first_q = (row * HEADS + first_head) * FOURS;
  let cache_row = first_head / 2 * CAPACITY;
  let position = sequence.past_length + row;
  let n_keys = min(position + 1, CAPACITY);

  // Of head `thread`: its greatest score, and the sum of its weights.
  var maximum = LOWEST;
  var total = 0.0;
  // Of vec4 `thread`: the weighted sums of the values.
  var sum_0 = vec4f();
  var sum_1 = vec4f();
  for (var tile = first_visible(position); tile < n_keys; tile += TILE) {
    let length = min(TILE, n_keys - tile);
    let begin = cache_row + tile;
    for (var i = thread; i < length; i += THREADS) {
      var dot_0 = 0.0;
      var dot_1 = 0.0;
      for (var four = 0u; four < FOURS; four++) {
        let key = load_key((begin + i) * FOURS + four);
        dot_0 += dot(key, q[first_q + four]);
        dot_1 += dot(key, q[first_q + 8 + four]);
      }
      weights[i] = attention_score(dot_0);
      weights[64 + i] = attention_score(dot_1);
    }
    workgroupBarrier();
    if (thread < SERVED) {
      var top = maximum;
      for (var i = thread * TILE; i < thread * TILE + length; i++) {
        top = max(top, weights[i]);
      }
      let shrink = exp(maximum - top);
      maximum = top;
      total *= shrink;
      for (var i = thread * TILE; i < thread * TILE + length; i++) {
        let weight = exp(weights[i] - top);
        weights[i] = weight;
        total += weight;
      }
      factors[thread] = shrink;
    }
    workgroupBarrier();
    if (thread < FOURS) {
      sum_0 *= factors[0];
      sum_1 *= factors[1];
      for (var i = 0u; i < length; i++) {
        let value = load_value((begin + i) * FOURS + thread);
        sum_0 += weights[i] * value;
        sum_1 += weights[64 + i] * value;
      }
    }
    workgroupBarrier();
  }
  if (thread < SERVED) {
    factors[thread] = softmax_factor(first_head + thread, maximum, total);
  }
  workgroupBarrier();
  if (thread < FOURS) {
    y[first_q + thread] = sum_0 * factors[0];
    y[first_q + 8 + thread] = sum_1 * factors[1];
  }
}
