// ONNX nodes:
//   /model/layers.0/attn/GroupQueryAttention
struct Sequence {
  past_length: u32, length: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;  // [rows, heads, head_size]
@group(0) @binding(2) var<storage, read> k_cache: array<vec2<u32>>;  // [kv_heads, capacity, head_size], two f16 to a word
@group(0) @binding(3) var<storage, read> v_cache: array<vec2<u32>>;

fn load_key(i: u32) -> vec4<f32> {
  let packed = k_cache[i];
  return vec4<f32>(unpack2x16float(packed.x), unpack2x16float(packed.y));
}

fn load_value(i: u32) -> vec4<f32> {
  let packed = v_cache[i];
  return vec4<f32>(unpack2x16float(packed.x), unpack2x16float(packed.y));
}

@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;  // [rows, heads, head_size]

const ROWS = 16u;
const HEADS = 2u;
const GROUP = 2u;  // query heads of a KV head
const CAPACITY = 48u;
const FOURS = 8u;  // vec4s in a head
const TILE_PAIRS = 32u;
const TILE_KEYS = 32u;
const STAGE = 8u;  // vec4s of a head staged at a time
const STRIDE = 9u;  // one more: rows start in different memory banks
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

var<workgroup> q_tile: array<vec4<f32>, 288>;
var<workgroup> k_tile: array<vec4<f32>, 288>;
var<workgroup> weights: array<f32, 1024>;  // [key][pair]
var<workgroup> quarters: array<f32, 128>;  // [quarter of the keys][pair]
var<workgroup> factors: array<f32, 32>;  // [pair]: what the sums are multiplied with

@compute @workgroup_size(128, 1, 1)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let kv_head = group.x;
  let first_pair = group.y * TILE_PAIRS;
  let first_row = first_pair / GROUP;
  let last_row = min(first_pair + TILE_PAIRS - 1u, ROWS * GROUP - 1u) / GROUP;
  let past = sequence.past_length;
  let length = min(sequence.length, ROWS);
  // Keys that some row of the tile sees.
  let n_keys = select(0u, min(past + min(last_row + 1u, length), CAPACITY), first_row < length);
  let first_key = first_visible(past + first_row) / TILE_KEYS * TILE_KEYS;

  // Scores: pairs 4 * thread_pair + 0..3, keys thread_key and thread_key + 16.
  let thread_pair = thread % 8u;
  let thread_key = thread / 8u;
  // Softmax: one pair, a quarter of the keys.
  let pair = thread % TILE_PAIRS;
  let quarter = thread / TILE_PAIRS;
  let row = (first_pair + pair) / GROUP;
  let position = past + row;
  let sees_from = first_visible(position);
  let sees_to = select(0u, position + 1u, row < length);
  var maximum = LOWEST;
  var total = 0.0;  // of this quarter
  // Sums: pairs 4 * (thread / 16) + 0..3, vec4s thread % 16 + 16 * column.
  let sum_pair = thread / 16u;
  let sum_four = thread % 16u;
  var sum_0_0 = vec4<f32>();
  var sum_1_0 = vec4<f32>();
  var sum_2_0 = vec4<f32>();
  var sum_3_0 = vec4<f32>();

  for (var tile = first_key; tile < n_keys; tile += TILE_KEYS) {
    var scores_0 = vec4<f32>();
    var scores_1 = vec4<f32>();
    for (var stage = 0u; stage < FOURS; stage += STAGE) {
      workgroupBarrier();
      for (var i = thread; i < TILE_PAIRS * STAGE; i += THREADS) {
        let staged = first_pair + i / STAGE;
        let four = stage + i % STAGE;
        var value = vec4<f32>();
        if (four < FOURS && staged < ROWS * GROUP) {
          value = q[((staged / GROUP) * HEADS + kv_head * GROUP + staged % GROUP) * FOURS + four];
        }
        q_tile[i / STAGE * STRIDE + i % STAGE] = value;
      }
      for (var i = thread; i < TILE_KEYS * STAGE; i += THREADS) {
        let key = tile + i / STAGE;
        let four = stage + i % STAGE;
        var value = vec4<f32>();
        if (four < FOURS && key < n_keys) {
          value = load_key((kv_head * CAPACITY + key) * FOURS + four);
        }
        k_tile[i / STAGE * STRIDE + i % STAGE] = value;
      }
      workgroupBarrier();
      {
        let k_0 = k_tile[thread_key * STRIDE + 0u];
        let k_1 = k_tile[(thread_key + 16u) * STRIDE + 0u];
        let q_0 = q_tile[(4u * thread_pair + 0u) * STRIDE + 0u];
        let q_1 = q_tile[(4u * thread_pair + 1u) * STRIDE + 0u];
        let q_2 = q_tile[(4u * thread_pair + 2u) * STRIDE + 0u];
        let q_3 = q_tile[(4u * thread_pair + 3u) * STRIDE + 0u];
        scores_0 += vec4<f32>(dot(q_0, k_0), dot(q_1, k_0), dot(q_2, k_0), dot(q_3, k_0));
        scores_1 += vec4<f32>(dot(q_0, k_1), dot(q_1, k_1), dot(q_2, k_1), dot(q_3, k_1));
      }
      {
        let k_0 = k_tile[thread_key * STRIDE + 1u];
        let k_1 = k_tile[(thread_key + 16u) * STRIDE + 1u];
        let q_0 = q_tile[(4u * thread_pair + 0u) * STRIDE + 1u];
        let q_1 = q_tile[(4u * thread_pair + 1u) * STRIDE + 1u];
        let q_2 = q_tile[(4u * thread_pair + 2u) * STRIDE + 1u];
        let q_3 = q_tile[(4u * thread_pair + 3u) * STRIDE + 1u];
        scores_0 += vec4<f32>(dot(q_0, k_0), dot(q_1, k_0), dot(q_2, k_0), dot(q_3, k_0));
        scores_1 += vec4<f32>(dot(q_0, k_1), dot(q_1, k_1), dot(q_2, k_1), dot(q_3, k_1));
      }
      {
        let k_0 = k_tile[thread_key * STRIDE + 2u];
        let k_1 = k_tile[(thread_key + 16u) * STRIDE + 2u];
        let q_0 = q_tile[(4u * thread_pair + 0u) * STRIDE + 2u];
        let q_1 = q_tile[(4u * thread_pair + 1u) * STRIDE + 2u];
        let q_2 = q_tile[(4u * thread_pair + 2u) * STRIDE + 2u];
        let q_3 = q_tile[(4u * thread_pair + 3u) * STRIDE + 2u];
        scores_0 += vec4<f32>(dot(q_0, k_0), dot(q_1, k_0), dot(q_2, k_0), dot(q_3, k_0));
        scores_1 += vec4<f32>(dot(q_0, k_1), dot(q_1, k_1), dot(q_2, k_1), dot(q_3, k_1));
      }
      {
        let k_0 = k_tile[thread_key * STRIDE + 3u];
        let k_1 = k_tile[(thread_key + 16u) * STRIDE + 3u];
        let q_0 = q_tile[(4u * thread_pair + 0u) * STRIDE + 3u];
        let q_1 = q_tile[(4u * thread_pair + 1u) * STRIDE + 3u];
        let q_2 = q_tile[(4u * thread_pair + 2u) * STRIDE + 3u];
        let q_3 = q_tile[(4u * thread_pair + 3u) * STRIDE + 3u];
        scores_0 += vec4<f32>(dot(q_0, k_0), dot(q_1, k_0), dot(q_2, k_0), dot(q_3, k_0));
        scores_1 += vec4<f32>(dot(q_0, k_1), dot(q_1, k_1), dot(q_2, k_1), dot(q_3, k_1));
      }
      {
        let k_0 = k_tile[thread_key * STRIDE + 4u];
        let k_1 = k_tile[(thread_key + 16u) * STRIDE + 4u];
        let q_0 = q_tile[(4u * thread_pair + 0u) * STRIDE + 4u];
        let q_1 = q_tile[(4u * thread_pair + 1u) * STRIDE + 4u];
        let q_2 = q_tile[(4u * thread_pair + 2u) * STRIDE + 4u];
        let q_3 = q_tile[(4u * thread_pair + 3u) * STRIDE + 4u];
        scores_0 += vec4<f32>(dot(q_0, k_0), dot(q_1, k_0), dot(q_2, k_0), dot(q_3, k_0));
        scores_1 += vec4<f32>(dot(q_0, k_1), dot(q_1, k_1), dot(q_2, k_1), dot(q_3, k_1));
      }
      {
        let k_0 = k_tile[thread_key * STRIDE + 5u];
        let k_1 = k_tile[(thread_key + 16u) * STRIDE + 5u];
        let q_0 = q_tile[(4u * thread_pair + 0u) * STRIDE + 5u];
        let q_1 = q_tile[(4u * thread_pair + 1u) * STRIDE + 5u];
        let q_2 = q_tile[(4u * thread_pair + 2u) * STRIDE + 5u];
        let q_3 = q_tile[(4u * thread_pair + 3u) * STRIDE + 5u];
        scores_0 += vec4<f32>(dot(q_0, k_0), dot(q_1, k_0), dot(q_2, k_0), dot(q_3, k_0));
        scores_1 += vec4<f32>(dot(q_0, k_1), dot(q_1, k_1), dot(q_2, k_1), dot(q_3, k_1));
      }
      {
        let k_0 = k_tile[thread_key * STRIDE + 6u];
        let k_1 = k_tile[(thread_key + 16u) * STRIDE + 6u];
        let q_0 = q_tile[(4u * thread_pair + 0u) * STRIDE + 6u];
        let q_1 = q_tile[(4u * thread_pair + 1u) * STRIDE + 6u];
        let q_2 = q_tile[(4u * thread_pair + 2u) * STRIDE + 6u];
        let q_3 = q_tile[(4u * thread_pair + 3u) * STRIDE + 6u];
        scores_0 += vec4<f32>(dot(q_0, k_0), dot(q_1, k_0), dot(q_2, k_0), dot(q_3, k_0));
        scores_1 += vec4<f32>(dot(q_0, k_1), dot(q_1, k_1), dot(q_2, k_1), dot(q_3, k_1));
      }
      {
        let k_0 = k_tile[thread_key * STRIDE + 7u];
        let k_1 = k_tile[(thread_key + 16u) * STRIDE + 7u];
        let q_0 = q_tile[(4u * thread_pair + 0u) * STRIDE + 7u];
        let q_1 = q_tile[(4u * thread_pair + 1u) * STRIDE + 7u];
        let q_2 = q_tile[(4u * thread_pair + 2u) * STRIDE + 7u];
        let q_3 = q_tile[(4u * thread_pair + 3u) * STRIDE + 7u];
        scores_0 += vec4<f32>(dot(q_0, k_0), dot(q_1, k_0), dot(q_2, k_0), dot(q_3, k_0));
        scores_1 += vec4<f32>(dot(q_0, k_1), dot(q_1, k_1), dot(q_2, k_1), dot(q_3, k_1));
      }
    }
    let to = thread_key * TILE_PAIRS + 4u * thread_pair;
    weights[to + 0u] = attention_score(scores_0[0]);
    weights[to + 16u * TILE_PAIRS + 0u] = attention_score(scores_1[0]);
    weights[to + 1u] = attention_score(scores_0[1]);
    weights[to + 16u * TILE_PAIRS + 1u] = attention_score(scores_1[1]);
    weights[to + 2u] = attention_score(scores_0[2]);
    weights[to + 16u * TILE_PAIRS + 2u] = attention_score(scores_1[2]);
    weights[to + 3u] = attention_score(scores_0[3]);
    weights[to + 16u * TILE_PAIRS + 3u] = attention_score(scores_1[3]);
    workgroupBarrier();

    // Of the quarter's keys, those that the pair sees.
    let key = tile + quarter * 8u;
    var quarter_maximum = LOWEST;
    let score_0 = weights[(quarter * 8u + 0u) * TILE_PAIRS + pair];
    let sees_0 = key + 0u >= sees_from && key + 0u < sees_to;
    quarter_maximum = max(quarter_maximum, select(LOWEST, score_0, sees_0));
    let score_1 = weights[(quarter * 8u + 1u) * TILE_PAIRS + pair];
    let sees_1 = key + 1u >= sees_from && key + 1u < sees_to;
    quarter_maximum = max(quarter_maximum, select(LOWEST, score_1, sees_1));
    let score_2 = weights[(quarter * 8u + 2u) * TILE_PAIRS + pair];
    let sees_2 = key + 2u >= sees_from && key + 2u < sees_to;
    quarter_maximum = max(quarter_maximum, select(LOWEST, score_2, sees_2));
    let score_3 = weights[(quarter * 8u + 3u) * TILE_PAIRS + pair];
    let sees_3 = key + 3u >= sees_from && key + 3u < sees_to;
    quarter_maximum = max(quarter_maximum, select(LOWEST, score_3, sees_3));
    let score_4 = weights[(quarter * 8u + 4u) * TILE_PAIRS + pair];
    let sees_4 = key + 4u >= sees_from && key + 4u < sees_to;
    quarter_maximum = max(quarter_maximum, select(LOWEST, score_4, sees_4));
    let score_5 = weights[(quarter * 8u + 5u) * TILE_PAIRS + pair];
    let sees_5 = key + 5u >= sees_from && key + 5u < sees_to;
    quarter_maximum = max(quarter_maximum, select(LOWEST, score_5, sees_5));
    let score_6 = weights[(quarter * 8u + 6u) * TILE_PAIRS + pair];
    let sees_6 = key + 6u >= sees_from && key + 6u < sees_to;
    quarter_maximum = max(quarter_maximum, select(LOWEST, score_6, sees_6));
    let score_7 = weights[(quarter * 8u + 7u) * TILE_PAIRS + pair];
    let sees_7 = key + 7u >= sees_from && key + 7u < sees_to;
    quarter_maximum = max(quarter_maximum, select(LOWEST, score_7, sees_7));
    quarters[thread] = quarter_maximum;
    workgroupBarrier();
    let top = max(
      maximum,
      max(
        max(quarters[pair], quarters[TILE_PAIRS + pair]),
        max(quarters[2u * TILE_PAIRS + pair], quarters[3u * TILE_PAIRS + pair])));
    let shrink = exp(maximum - top);
    maximum = top;
    total *= shrink;
    // The score of a key that is not seen may be anything, so it is replaced, not multiplied away.
    let weight_0 = select(0.0, exp(score_0 - top), sees_0);
    weights[(quarter * 8u + 0u) * TILE_PAIRS + pair] = weight_0;
    total += weight_0;
    let weight_1 = select(0.0, exp(score_1 - top), sees_1);
    weights[(quarter * 8u + 1u) * TILE_PAIRS + pair] = weight_1;
    total += weight_1;
    let weight_2 = select(0.0, exp(score_2 - top), sees_2);
    weights[(quarter * 8u + 2u) * TILE_PAIRS + pair] = weight_2;
    total += weight_2;
    let weight_3 = select(0.0, exp(score_3 - top), sees_3);
    weights[(quarter * 8u + 3u) * TILE_PAIRS + pair] = weight_3;
    total += weight_3;
    let weight_4 = select(0.0, exp(score_4 - top), sees_4);
    weights[(quarter * 8u + 4u) * TILE_PAIRS + pair] = weight_4;
    total += weight_4;
    let weight_5 = select(0.0, exp(score_5 - top), sees_5);
    weights[(quarter * 8u + 5u) * TILE_PAIRS + pair] = weight_5;
    total += weight_5;
    let weight_6 = select(0.0, exp(score_6 - top), sees_6);
    weights[(quarter * 8u + 6u) * TILE_PAIRS + pair] = weight_6;
    total += weight_6;
    let weight_7 = select(0.0, exp(score_7 - top), sees_7);
    weights[(quarter * 8u + 7u) * TILE_PAIRS + pair] = weight_7;
    total += weight_7;
    if (quarter == 0u) {
      factors[pair] = shrink;
    }
    workgroupBarrier();

    let shrink_0 = factors[4u * sum_pair + 0u];
    sum_0_0 *= shrink_0;
    let shrink_1 = factors[4u * sum_pair + 1u];
    sum_1_0 *= shrink_1;
    let shrink_2 = factors[4u * sum_pair + 2u];
    sum_2_0 *= shrink_2;
    let shrink_3 = factors[4u * sum_pair + 3u];
    sum_3_0 *= shrink_3;
    // Keys behind the last one have weight 0, and are read as the last one.
    for (var first = 0u; first < TILE_KEYS; first += 8u) {
      {
        let of_key = (first + 0u) * TILE_PAIRS + 4u * sum_pair;
        let at = (kv_head * CAPACITY + min(tile + first + 0u, n_keys - 1u)) * FOURS + sum_four;
        let weight_0 = weights[of_key + 0u];
        let weight_1 = weights[of_key + 1u];
        let weight_2 = weights[of_key + 2u];
        let weight_3 = weights[of_key + 3u];
        let value_0 = load_value(min(at + 0u, 383u));
        sum_0_0 += weight_0 * value_0;
        sum_1_0 += weight_1 * value_0;
        sum_2_0 += weight_2 * value_0;
        sum_3_0 += weight_3 * value_0;
      }
      {
        let of_key = (first + 1u) * TILE_PAIRS + 4u * sum_pair;
        let at = (kv_head * CAPACITY + min(tile + first + 1u, n_keys - 1u)) * FOURS + sum_four;
        let weight_0 = weights[of_key + 0u];
        let weight_1 = weights[of_key + 1u];
        let weight_2 = weights[of_key + 2u];
        let weight_3 = weights[of_key + 3u];
        let value_0 = load_value(min(at + 0u, 383u));
        sum_0_0 += weight_0 * value_0;
        sum_1_0 += weight_1 * value_0;
        sum_2_0 += weight_2 * value_0;
        sum_3_0 += weight_3 * value_0;
      }
      {
        let of_key = (first + 2u) * TILE_PAIRS + 4u * sum_pair;
        let at = (kv_head * CAPACITY + min(tile + first + 2u, n_keys - 1u)) * FOURS + sum_four;
        let weight_0 = weights[of_key + 0u];
        let weight_1 = weights[of_key + 1u];
        let weight_2 = weights[of_key + 2u];
        let weight_3 = weights[of_key + 3u];
        let value_0 = load_value(min(at + 0u, 383u));
        sum_0_0 += weight_0 * value_0;
        sum_1_0 += weight_1 * value_0;
        sum_2_0 += weight_2 * value_0;
        sum_3_0 += weight_3 * value_0;
      }
      {
        let of_key = (first + 3u) * TILE_PAIRS + 4u * sum_pair;
        let at = (kv_head * CAPACITY + min(tile + first + 3u, n_keys - 1u)) * FOURS + sum_four;
        let weight_0 = weights[of_key + 0u];
        let weight_1 = weights[of_key + 1u];
        let weight_2 = weights[of_key + 2u];
        let weight_3 = weights[of_key + 3u];
        let value_0 = load_value(min(at + 0u, 383u));
        sum_0_0 += weight_0 * value_0;
        sum_1_0 += weight_1 * value_0;
        sum_2_0 += weight_2 * value_0;
        sum_3_0 += weight_3 * value_0;
      }
      {
        let of_key = (first + 4u) * TILE_PAIRS + 4u * sum_pair;
        let at = (kv_head * CAPACITY + min(tile + first + 4u, n_keys - 1u)) * FOURS + sum_four;
        let weight_0 = weights[of_key + 0u];
        let weight_1 = weights[of_key + 1u];
        let weight_2 = weights[of_key + 2u];
        let weight_3 = weights[of_key + 3u];
        let value_0 = load_value(min(at + 0u, 383u));
        sum_0_0 += weight_0 * value_0;
        sum_1_0 += weight_1 * value_0;
        sum_2_0 += weight_2 * value_0;
        sum_3_0 += weight_3 * value_0;
      }
      {
        let of_key = (first + 5u) * TILE_PAIRS + 4u * sum_pair;
        let at = (kv_head * CAPACITY + min(tile + first + 5u, n_keys - 1u)) * FOURS + sum_four;
        let weight_0 = weights[of_key + 0u];
        let weight_1 = weights[of_key + 1u];
        let weight_2 = weights[of_key + 2u];
        let weight_3 = weights[of_key + 3u];
        let value_0 = load_value(min(at + 0u, 383u));
        sum_0_0 += weight_0 * value_0;
        sum_1_0 += weight_1 * value_0;
        sum_2_0 += weight_2 * value_0;
        sum_3_0 += weight_3 * value_0;
      }
      {
        let of_key = (first + 6u) * TILE_PAIRS + 4u * sum_pair;
        let at = (kv_head * CAPACITY + min(tile + first + 6u, n_keys - 1u)) * FOURS + sum_four;
        let weight_0 = weights[of_key + 0u];
        let weight_1 = weights[of_key + 1u];
        let weight_2 = weights[of_key + 2u];
        let weight_3 = weights[of_key + 3u];
        let value_0 = load_value(min(at + 0u, 383u));
        sum_0_0 += weight_0 * value_0;
        sum_1_0 += weight_1 * value_0;
        sum_2_0 += weight_2 * value_0;
        sum_3_0 += weight_3 * value_0;
      }
      {
        let of_key = (first + 7u) * TILE_PAIRS + 4u * sum_pair;
        let at = (kv_head * CAPACITY + min(tile + first + 7u, n_keys - 1u)) * FOURS + sum_four;
        let weight_0 = weights[of_key + 0u];
        let weight_1 = weights[of_key + 1u];
        let weight_2 = weights[of_key + 2u];
        let weight_3 = weights[of_key + 3u];
        let value_0 = load_value(min(at + 0u, 383u));
        sum_0_0 += weight_0 * value_0;
        sum_1_0 += weight_1 * value_0;
        sum_2_0 += weight_2 * value_0;
        sum_3_0 += weight_3 * value_0;
      }
    }
  }

  // The totals of a pair's quarters are merged, then the sums are divided by the whole.
  workgroupBarrier();
  quarters[thread] = total;
  workgroupBarrier();
  if (quarter == 0u) {
    let whole = quarters[pair] + quarters[TILE_PAIRS + pair]
      + quarters[2u * TILE_PAIRS + pair] + quarters[3u * TILE_PAIRS + pair];
    let head = kv_head * GROUP + (first_pair + pair) % GROUP;
    factors[pair] = softmax_factor(head, maximum, whole);
  }
  workgroupBarrier();
  {
    let out_pair = first_pair + 4u * sum_pair + 0u;
    let factor = factors[4u * sum_pair + 0u];
    let at = (out_pair / GROUP * HEADS + kv_head * GROUP + out_pair % GROUP) * FOURS + sum_four;
    if (out_pair < ROWS * GROUP) {
      if (sum_four + 0u < FOURS) {
        y[at + 0u] = sum_0_0 * factor;
      }
    }
  }
  {
    let out_pair = first_pair + 4u * sum_pair + 1u;
    let factor = factors[4u * sum_pair + 1u];
    let at = (out_pair / GROUP * HEADS + kv_head * GROUP + out_pair % GROUP) * FOURS + sum_four;
    if (out_pair < ROWS * GROUP) {
      if (sum_four + 0u < FOURS) {
        y[at + 0u] = sum_1_0 * factor;
      }
    }
  }
  {
    let out_pair = first_pair + 4u * sum_pair + 2u;
    let factor = factors[4u * sum_pair + 2u];
    let at = (out_pair / GROUP * HEADS + kv_head * GROUP + out_pair % GROUP) * FOURS + sum_four;
    if (out_pair < ROWS * GROUP) {
      if (sum_four + 0u < FOURS) {
        y[at + 0u] = sum_2_0 * factor;
      }
    }
  }
  {
    let out_pair = first_pair + 4u * sum_pair + 3u;
    let factor = factors[4u * sum_pair + 3u];
    let at = (out_pair / GROUP * HEADS + kv_head * GROUP + out_pair % GROUP) * FOURS + sum_four;
    if (out_pair < ROWS * GROUP) {
      if (sum_four + 0u < FOURS) {
        y[at + 0u] = sum_3_0 * factor;
      }
    }
  }
}
