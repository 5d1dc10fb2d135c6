struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;  // [heads, head_size]
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

@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;  // [heads, head_size]

const CAPACITY = 48u;
const FOURS = 8u;  // vec4s in a head
const SERVED = 2u;  // query heads served here, from one read of their KV head
const SPLIT = 64u;  // positions per workgroup
const PARTS = 2u;  // threads that share the dot products of a position
const SEGMENTS = 16u;  // threads that share the softmax of a head
const SLICES = 16u;  // groups of threads that share the sum over positions, a thread per vec4
override THREADS: u32 = 128u;

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
//   /model/layers.0/attn/qkv_proj/MatMul
//   /model/layers.0/attn/qkv_proj/Add
//   /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(128, 1, 1)
fn attention_decode(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
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

@group(0) @binding(4) var<storage, read_write> softmax: array<vec2<f32>>;  // [rows, heads, lanes]: maximum, sum of the weights
@group(0) @binding(5) var<storage, read_write> sums: array<vec4<f32>>;  // [rows, heads, lanes, head_size]

const HEADS = 2u;
const GROUP = 2u;  // query heads of a KV head
const LANES = 2u;  // workgroups that share the keys of a pair
const PAIRS = 64u;  // in a tile
const KEYS = 32u;  // in a tile
const STAGE = 4u;  // vec4s of a head staged at a time
const ALONG = 8u;  // threads with the same pairs

// A query's score for a key, from their dot product.
fn attention_score_prefill(dot_product: vec4<f32>) -> vec4<f32> {
  return dot_product * 0.1767766922712326;
}

// Queries, [component][vec4 of the head][four pairs], and then their scores and weights, [key][four pairs].
var<workgroup> tile: array<vec4<f32>, 512>;
const Q_STRIDE = 17u;  // one more than the fours of pairs: vec4s start in different memory banks
const COMPONENT = 68u;
const QUADS = 16u;  // fours of pairs
var<workgroup> k_tile: array<vec4<f32>, 160>;  // [key][vec4 of the head]
const K_STRIDE = 5u;
var<workgroup> factors: array<vec4<f32>, 16>;  // [four pairs]: what the sums are multiplied with

// The row of a pair of this KV head, and where in [rows, heads] it is.
fn row_of(pair: u32) -> u32 {
  return pair / GROUP;
}

fn place_of(pair: u32, kv_head: u32) -> u32 {
  return pair / GROUP * HEADS + kv_head * GROUP + pair % GROUP;
}

fn query_at(pair: u32, kv_head: u32, four: u32) -> vec4<f32> {
  if (row_of(pair) < sequence.length) {
    return q[place_of(pair, kv_head) * FOURS + four];
  }
  return vec4<f32>();
}

fn stage_tiles(thread: u32, stage: u32, first_pair: u32, kv_head: u32, first_key: u32, n_keys: u32) {
  for (var i = thread; i < QUADS * STAGE; i += THREADS) {
    let four = stage + i % STAGE;
    let pair = first_pair + 4u * (i / STAGE);
    let components = transpose(mat4x4<f32>(
      query_at(pair, kv_head, four), query_at(pair + 1u, kv_head, four),
      query_at(pair + 2u, kv_head, four), query_at(pair + 3u, kv_head, four)));
    let to = i % STAGE * Q_STRIDE + i / STAGE;
    tile[to] = components[0];
    tile[to + COMPONENT] = components[1];
    tile[to + 2u * COMPONENT] = components[2];
    tile[to + 3u * COMPONENT] = components[3];
  }
  for (var i = thread; i < KEYS * STAGE; i += THREADS) {
    let four = stage + i % STAGE;
    let key = first_key + i / STAGE;
    var value = vec4<f32>();
    if (key < n_keys) {
      value = load_key((kv_head * CAPACITY + key) * FOURS + four);
    }
    k_tile[i / STAGE * K_STRIDE + i % STAGE] = value;
  }
}

// Of one key, for two times four pairs.
struct Scores {
  low0: vec4<f32>,
  high0: vec4<f32>,
  low1: vec4<f32>,
  high1: vec4<f32>,
  low2: vec4<f32>,
  high2: vec4<f32>,
  low3: vec4<f32>,
  high3: vec4<f32>,
}

fn queries_at(i: u32) -> mat4x4<f32> {
  return mat4x4<f32>(tile[i], tile[i + COMPONENT], tile[i + 2u * COMPONENT], tile[i + 3u * COMPONENT]);
}

fn add_products(sum: vec4<f32>, queries: mat4x4<f32>, key: vec4<f32>) -> vec4<f32> {
  let half = fma(queries[1], vec4<f32>(key.y), fma(queries[0], vec4<f32>(key.x), sum));
  return fma(queries[3], vec4<f32>(key.w), fma(queries[2], vec4<f32>(key.z), half));
}

// The products of the `four`-th staged vec4 of the thread's pairs and keys.
fn add_scores(s: Scores, four: u32, quad: u32, key: u32) -> Scores {
  let low = queries_at(four * Q_STRIDE + quad);
  let high = queries_at(four * Q_STRIDE + quad + 8u);
  let key0 = k_tile[key * K_STRIDE + four];
  let key1 = k_tile[(key + ALONG) * K_STRIDE + four];
  let key2 = k_tile[(key + 2u * ALONG) * K_STRIDE + four];
  let key3 = k_tile[(key + 3u * ALONG) * K_STRIDE + four];
  return Scores(
    add_products(s.low0, low, key0), add_products(s.high0, high, key0),
    add_products(s.low1, low, key1), add_products(s.high1, high, key1),
    add_products(s.low2, low, key2), add_products(s.high2, high, key2),
    add_products(s.low3, low, key3), add_products(s.high3, high, key3));
}

// A pair's scores for four keys of the tile; LOWEST for a key that it does not see, whatever that is.
fn scores_at(key: u32, pair: u32, sees: vec2<u32>) -> vec4<f32> {
  let at = key * QUADS + pair / 4u;
  let c = pair % 4u;
  let scores = vec4<f32>(tile[at][c], tile[at + QUADS][c], tile[at + 2u * QUADS][c], tile[at + 3u * QUADS][c]);
  let keys = key + vec4<u32>(0u, 1u, 2u, 3u);
  return select(
    vec4<f32>(LOWEST), attention_score_prefill(scores), (keys >= vec4<u32>(sees.x)) & (keys < vec4<u32>(sees.y)));
}

// Weighted sums of values: [pair][component], for two times four pairs.
struct Sums {
  low0: mat4x4<f32>,
  high0: mat4x4<f32>,
}

fn scaled(sum: mat4x4<f32>, f: vec4<f32>) -> mat4x4<f32> {
  return mat4x4<f32>(sum[0] * f.x, sum[1] * f.y, sum[2] * f.z, sum[3] * f.w);
}

fn add_weighted(sum: mat4x4<f32>, w: vec4<f32>, value: vec4<f32>) -> mat4x4<f32> {
  return mat4x4<f32>(sum[0] + w.x * value, sum[1] + w.y * value, sum[2] + w.z * value, sum[3] + w.w * value);
}

// Key `key` of the tile; its value's vec4s begin at `at`.
fn add_value(s: Sums, key: u32, quad: u32, at: u32) -> Sums {
  let low = tile[key * QUADS + quad];
  let high = tile[key * QUADS + quad + 8u];
  let value0 = load_value(at);
  return Sums(
    add_weighted(s.low0, low, value0), add_weighted(s.high0, high, value0));
}

fn write_sums(pair: u32, kv_head: u32, lane: u32, four: u32, sum: mat4x4<f32>) {
  if (row_of(pair) < sequence.length) {
    sums[(place_of(pair, kv_head) * LANES + lane) * FOURS + four] = sum[0];
  }
  if (row_of(pair + 1u) < sequence.length) {
    sums[(place_of(pair + 1u, kv_head) * LANES + lane) * FOURS + four] = sum[1];
  }
  if (row_of(pair + 2u) < sequence.length) {
    sums[(place_of(pair + 2u, kv_head) * LANES + lane) * FOURS + four] = sum[2];
  }
  if (row_of(pair + 3u) < sequence.length) {
    sums[(place_of(pair + 3u, kv_head) * LANES + lane) * FOURS + four] = sum[3];
  }
}

// ONNX nodes:
//   /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(64, 1, 1)
fn attention_prefill(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let kv_head = group.x;
  let first_pair = group.y * PAIRS;
  let lane = group.z;
  let past = sequence.past_length;
  let length = sequence.length;
  let first_row = row_of(first_pair);
  if (first_row >= length) {
    return;  // no token in these rows
  }
  // Keys that some row of the tile sees.
  let n_keys = min(past + min(row_of(first_pair + PAIRS - 1u) + 1u, length), CAPACITY);
  let first_tile = first_visible(past + first_row) / KEYS;
  let lane_tile = first_tile + (lane + LANES - first_tile % LANES) % LANES;

  // For scores and sums a thread has the pairs 4 * quad + 0..3 and 32 more,
  // keys along + ALONG * j, and vec4s along + ALONG * column.
  let quad = thread % 8u;
  let along = thread / 8u;
  // For the softmax one pair.
  let pair = first_pair + thread;
  let position = past + row_of(pair);
  let sees = vec2<u32>(first_visible(position), select(0u, position + 1u, row_of(pair) < length));
  var maximum = LOWEST;
  var total = 0.0;
  var s = Sums();

  for (var tile_index = lane_tile; tile_index * KEYS < n_keys; tile_index += LANES) {
    let first_key = tile_index * KEYS;
    var scores = Scores();
    for (var stage = 0u; stage < FOURS; stage += STAGE) {
      workgroupBarrier();
      stage_tiles(thread, stage, first_pair, kv_head, first_key, n_keys);
      workgroupBarrier();
      scores = add_scores(scores, 0u, quad, along);
      scores = add_scores(scores, 1u, quad, along);
      scores = add_scores(scores, 2u, quad, along);
      scores = add_scores(scores, 3u, quad, along);
    }
    workgroupBarrier();
    tile[along * QUADS + quad] = scores.low0;
    tile[along * QUADS + quad + 8u] = scores.high0;
    tile[(along + ALONG) * QUADS + quad] = scores.low1;
    tile[(along + ALONG) * QUADS + quad + 8u] = scores.high1;
    tile[(along + 2u * ALONG) * QUADS + quad] = scores.low2;
    tile[(along + 2u * ALONG) * QUADS + quad + 8u] = scores.high2;
    tile[(along + 3u * ALONG) * QUADS + quad] = scores.low3;
    tile[(along + 3u * ALONG) * QUADS + quad + 8u] = scores.high3;
    workgroupBarrier();

    if (thread < PAIRS) {
      let seen = max(sees, vec2<u32>(first_key)) - first_key;  // keys of the tile
      var tops = vec4<f32>(maximum);
      for (var key = 0u; key < KEYS; key += 4u) {
        tops = max(tops, scores_at(key, thread, seen));
      }
      let top = max(max(tops.x, tops.y), max(tops.z, tops.w));
      let shrink = exp(maximum - top);
      maximum = top;
      total *= shrink;
      factors[thread / 4u][thread % 4u] = shrink;
      for (var key = 0u; key < KEYS; key += 4u) {
        let score = scores_at(key, thread, seen);
        let weight = select(vec4<f32>(), exp(score - top), score > vec4<f32>(LOWEST));
        let at = key * QUADS + thread / 4u;
        tile[at][thread % 4u] = weight.x;
        tile[at + QUADS][thread % 4u] = weight.y;
        tile[at + 2u * QUADS][thread % 4u] = weight.z;
        tile[at + 3u * QUADS][thread % 4u] = weight.w;
        total += dot(weight, vec4<f32>(1.0));
      }
    }
    workgroupBarrier();

    let low = factors[quad];
    let high = factors[quad + 8u];
    s.low0 = scaled(s.low0, low);
    s.high0 = scaled(s.high0, high);
    // Keys behind the last one have weight 0, and are read as the last one.
    for (var key = 0u; key < KEYS; key += 8u) {
      let last = n_keys - 1u - first_key;
      let first_value = (kv_head * CAPACITY + first_key) * FOURS + along;
      s = add_value(s, key, quad, first_value + min(key, last) * FOURS);
      s = add_value(s, key + 1u, quad, first_value + min(key + 1u, last) * FOURS);
      s = add_value(s, key + 2u, quad, first_value + min(key + 2u, last) * FOURS);
      s = add_value(s, key + 3u, quad, first_value + min(key + 3u, last) * FOURS);
      s = add_value(s, key + 4u, quad, first_value + min(key + 4u, last) * FOURS);
      s = add_value(s, key + 5u, quad, first_value + min(key + 5u, last) * FOURS);
      s = add_value(s, key + 6u, quad, first_value + min(key + 6u, last) * FOURS);
      s = add_value(s, key + 7u, quad, first_value + min(key + 7u, last) * FOURS);
    }
  }

  if (thread < PAIRS && row_of(pair) < length) {
    softmax[place_of(pair, kv_head) * LANES + lane] = vec2<f32>(maximum, total);
  }
  if (lane_tile * KEYS < n_keys) {
    write_sums(first_pair + 4u * quad, kv_head, lane, along, s.low0);
    write_sums(first_pair + 4u * quad + 32u, kv_head, lane, along, s.high0);
  }
}

@group(0) @binding(1) var<storage, read> softmax_merge: array<vec2<f32>>;  // [rows, heads, lanes]: maximum, sum of the weights
@group(0) @binding(2) var<storage, read> sums_merge: array<vec4<f32>>;  // [rows, heads, lanes, head_size]
@group(0) @binding(3) var<storage, read_write> y_merge: array<vec4<f32>>;  // [rows, heads, head_size]

const ROW_FOURS = 16u;

struct Lane {
  total: f32,
  sum: vec4<f32>,
}

// A lane without keys has written no sums.
fn with_lane(others: Lane, part: vec2<f32>, maximum: f32, at: u32) -> Lane {
  let weight = exp(part.x - maximum);
  let sum = weight * select(vec4<f32>(), sums_merge[at], part.y > 0.0);
  return Lane(others.total + weight * part.y, others.sum + sum);
}

// ONNX nodes:
//   /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(64, 1, 1)
fn attention_merge(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let row = group.y;
  if (row >= sequence.length) {
    return;  // no token in this row
  }
  let four = group.x * 64u + thread;
  if (four < ROW_FOURS) {
    let head = four / FOURS;
    let first = (row * 2u + head) * 2u;
    let part0 = softmax_merge[first];
    let part1 = softmax_merge[first + 1u];
    let maximum = max(part0.x, part1.x);
    let at = first * FOURS + four % FOURS;
    var merged = Lane(0.0, vec4<f32>());
    merged = with_lane(merged, part0, maximum, at);
    merged = with_lane(merged, part1, maximum, at + FOURS);
    y_merge[row * ROW_FOURS + four] = merged.sum * softmax_factor(head, maximum, merged.total);
  }
}
