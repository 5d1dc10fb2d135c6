struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> q: array<vec4f>;  // [heads, head_size]
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

@group(0) @binding(4) var<storage, read_write> softmax: array<vec2f>;  // [heads, splits]: maximum of the scores, sum of the weights
@group(0) @binding(5) var<storage, read_write> sums: array<vec4f>;  // [heads, splits, head_size]: weighted sum of the values

const CAPACITY = 48u;
const FOURS = 8u;  // vec4s in a head
const SERVED = 2u;  // query heads served here, from one read of their KV head
const TILE = 32u;  // positions at a time
const STRIDE = 64u;  // from one tile of a workgroup to its next
const PARTS = 4u;  // threads that share the dot products of a position
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

var<workgroup> q_heads: array<vec4f, 16>;
var<workgroup> weights: array<f32, 256>;  // [part][head][position]
var<workgroup> maxima: array<vec4f, 8>;  // of segments
var<workgroup> shares: array<vec4f, 32>;  // the weights of four heads, by position
var<workgroup> shrinks: array<f32, SERVED>;  // what a greater maximum makes of the sums so far; then the maxima
var<workgroup> slice_sums: array<vec4f, 256>;  // [head][slice][vec4]

// Of a vec4 of a key and those of 2 heads, from `at` on.
fn products_2(key: vec4f, at: u32) -> vec2f {
  return vec2f(dot(key, q_heads[at]), dot(key, q_heads[at + 8u]));
}

// The sums of 2 heads from `first` on, relative to the new maxima.
fn shrunk_2(sums: mat2x4f, first: u32) -> mat2x4f {
  return mat2x4f(sums[0] * shrinks[first], sums[1] * shrinks[first + 1u]);
}

fn outer_2(value: vec4f, share: vec4f) -> mat2x4f {
  return mat2x4f(value * share.x, value * share.y);
}

// A key's score, from the parts of its dot product at `at`; LOWEST of a key that is not seen.
fn score(at: u32, key: u32, first: u32, n_keys: u32) -> f32 {
  if (key < first || key >= n_keys) {
    return LOWEST;
  }
  return attention_score(weights[at] + weights[64u + at] + weights[128u + at] + weights[192u + at]);
}

fn maximum_of(head: u32) -> f32 {
  let at = head * 4u;
  let four = max(max(max(maxima[at], maxima[at + 1u]), maxima[at + 2u]), maxima[at + 3u]);
  return max(max(four.x, four.y), max(four.z, four.w));
}

fn total_of(head: u32) -> f32 {
  let at = head * 4u;
  return dot(maxima[at] + maxima[at + 1u] + maxima[at + 2u] + maxima[at + 3u], vec4f(1.0));
}

// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul
//   /model/layers.0/attn/qkv_proj/Add
//   /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(128, 1, 1)
fn attention_decode(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;
  }
  let n_keys = min(sequence.total_length, CAPACITY);
  let first = first_visible(max(n_keys, 1u) - 1u);
  let first_tile = (first / TILE + group.y) * TILE;
  if (first_tile >= n_keys) {
    return;  // the grid is for a full cache
  }
  let first_head = group.x * SERVED;
  let cache_row = first_head / 2u * CAPACITY;
  let last = n_keys - 1u;

  // Behind the last position that one is read again, with weight 0.
  let position = thread / PARTS;
  let part = thread % PARTS;
  var key_0: vec4f;
  var key_1: vec4f;
  var key_row = (cache_row + min(first_tile + position, last)) * FOURS;
  key_0 = load_key(key_row + part);
  key_1 = load_key(key_row + part + 4u);
  let slice = thread / FOURS;
  let four = thread % FOURS;
  let head = thread / SEGMENTS;
  let segment = thread % SEGMENTS;
  var maximum = LOWEST;  // of the thread's head
  var total = 0.0;  // of the weights of the thread's segment
  var sums_0 = mat2x4f();
  for (var i = thread; i < SERVED * FOURS; i += THREADS) {
    q_heads[i] = q[first_head * FOURS + i];
  }
  for (var begin = first_tile; begin < n_keys; begin += STRIDE) {
    // Values, and further down the keys of the next tile, are asked for before anything waits.
    let value_0 = load_value((cache_row + min(begin + slice, last)) * FOURS + four);
    let value_1 = load_value((cache_row + min(begin + slice + 16u, last)) * FOURS + four);
    workgroupBarrier();

    // Dot products: each key is read once, for all the heads.
    if (position < TILE) {
      var dots_0 = vec2f();
      dots_0 += products_2(key_0, part);
      dots_0 += products_2(key_1, 4u + part);
      weights[(part * SERVED) * TILE + position] = dots_0[0];
      weights[(part * SERVED + 1u) * TILE + position] = dots_0[1];
    }
    key_row = (cache_row + min(begin + STRIDE + position, last)) * FOURS;
    key_0 = load_key(key_row + part);
    key_1 = load_key(key_row + part + 4u);
    workgroupBarrier();

    // Softmax weights, relative to the greatest score so far.
    var score_0 = LOWEST;
    var score_1 = LOWEST;
    if (head < SERVED) {
      let at = head * TILE + segment;
      let key = begin + segment;
      var greatest = LOWEST;
      score_0 = score(at, key, first, n_keys);
      greatest = max(greatest, score_0);
      score_1 = score(at + 16u, key + 16u, first, n_keys);
      greatest = max(greatest, score_1);
      maxima[thread / 4u][thread % 4u] = greatest;
    }
    workgroupBarrier();
    if (head < SERVED) {
      let top = max(maximum, maximum_of(head));
      let shrink = exp(maximum - top);
      total *= shrink;
      let weight_0 = select(0.0, exp(score_0 - top), score_0 > LOWEST);
      shares[head / 4u * TILE + segment][head % 4u] = weight_0;
      total += weight_0;
      let weight_1 = select(0.0, exp(score_1 - top), score_1 > LOWEST);
      shares[head / 4u * TILE + segment + 16u][head % 4u] = weight_1;
      total += weight_1;
      if (segment == 0u) {
        shrinks[head] = shrink;
      }
      maximum = top;
    }
    workgroupBarrier();

    // Weighted sums: each value is read once, for all the heads.
    sums_0 = shrunk_2(sums_0, 0u);
    sums_0 += outer_2(value_0, shares[slice]);
    sums_0 += outer_2(value_1, shares[16u + slice]);
  }

  workgroupBarrier();
  if (head < SERVED) {
    maxima[thread / 4u][thread % 4u] = total;
    if (segment == 0u) {
      shrinks[head] = maximum;
    }
  }
  if (slice < SLICES) {
    slice_sums[thread] = sums_0[0];
    slice_sums[thread + 128u] = sums_0[1];
  }
  workgroupBarrier();
  for (var i = thread; i < 2u * FOURS; i += THREADS) {
    let served_head = i / FOURS;
    let from_slice = i / FOURS * SLICES * FOURS + i % FOURS;
    let sum = slice_sums[from_slice] + slice_sums[from_slice + 8u] + slice_sums[from_slice + 16u] + slice_sums[from_slice + 24u]
       + slice_sums[from_slice + 32u] + slice_sums[from_slice + 40u] + slice_sums[from_slice + 48u] + slice_sums[from_slice + 56u]
       + slice_sums[from_slice + 64u] + slice_sums[from_slice + 72u] + slice_sums[from_slice + 80u] + slice_sums[from_slice + 88u]
       + slice_sums[from_slice + 96u] + slice_sums[from_slice + 104u] + slice_sums[from_slice + 112u] + slice_sums[from_slice + 120u];
    sums[((first_head + served_head) * 2u + group.y) * FOURS + i % FOURS] = sum;
  }
  if (thread < SERVED) {
    let at = (first_head + thread) * 2u + group.y;
    softmax[at] = vec2f(shrinks[thread], total_of(thread));
  }
}

@group(0) @binding(1) var<storage, read> softmax_reduce: array<vec2f>;  // [heads, splits]: maximum of the scores, sum of the weights
@group(0) @binding(2) var<storage, read> sums_reduce: array<vec4f>;  // [heads, splits, head_size]: weighted sum of the values
@group(0) @binding(3) var<storage, read_write> y: array<vec4f>;  // [heads, head_size]

const N_SPLITS = 2u;
override LANES: u32 = 8u;  // vec4s of the head merged here

// Makes a softmax's mean of the weighted sum of values; `total` is the sum of the weights.
fn softmax_factor(head: u32, maximum: f32, total: f32) -> f32 {
  return 1.0 / max(total, 1.0e-30);
}

var<workgroup> maxima_reduce: array<vec4f, 1>;  // of the splits
var<workgroup> totals: array<vec4f, 1>;
var<workgroup> weighted: array<vec4f, 32>;  // [split][lane]

// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul
//   /model/layers.0/attn/qkv_proj/Add
//   /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(32, 1, 1)
fn attention_reduce(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0u) {
    return;
  }
  let n_keys = min(sequence.total_length, CAPACITY);
  let first = first_visible(max(n_keys, 1u) - 1u);
  let n_live = min((n_keys + TILE - 1u) / TILE - first / TILE, N_SPLITS);
  let head = group.x;
  let lane = thread % LANES;
  let four = group.y * LANES + lane;
  let split = thread / LANES;

  let at = head * N_SPLITS + min(split, max(n_live, 1u) - 1u);
  let partial = select(vec2f(LOWEST, 0.0), softmax_reduce[at], split < n_live);
  let sum_of_split = sums_reduce[at * FOURS + min(four, FOURS - 1u)];
  if (lane == 0u) {
    maxima_reduce[split / 4u][split % 4u] = partial.x;
  }
  workgroupBarrier();
  var greatest = maxima_reduce[0];
  let maximum = max(max(greatest.x, greatest.y), max(greatest.z, greatest.w));
  let weight = exp(partial.x - maximum);
  if (lane == 0u) {
    totals[split / 4u][split % 4u] = partial.y * weight;
  }
  weighted[thread] = select(vec4f(), sum_of_split * weight, split < n_live);
  workgroupBarrier();
  if (split == 0u && four < FOURS) {
    let sum = weighted[lane] + weighted[lane + 8u] + weighted[lane + 16u] + weighted[lane + 24u];
    let total = dot(totals[0], vec4f(1.0));
    y[head * FOURS + four] = sum * softmax_factor(head, maximum, total);
  }
}

const HEADS = 2u;
const GROUP = 2u;  // query heads of a KV head
const PAIRS = 64u;  // in a tile
const KEYS = 32u;  // in a tile
const STAGE = 4u;  // vec4s of a head staged at a time
const ALONG = 8u;  // threads with the same pairs

// A query's score for a key, from their dot product.
fn attention_score_prefill(dot_product: vec4f) -> vec4f {
  return dot_product * 0.1767766922712326;
}

// Queries, [component][vec4 of the head][four pairs], and then their scores and weights, [key][four pairs].
var<workgroup> tile: array<vec4f, 512>;
const Q_STRIDE = 17u;  // one more than the fours of pairs: vec4s start in different memory banks
const COMPONENT = 68u;
const QUADS = 16u;  // fours of pairs
var<workgroup> k_tile: array<vec4f, 160>;  // [key][vec4 of the head]
const K_STRIDE = 5u;
var<workgroup> factors: array<vec4f, 16>;  // [four pairs]: what the sums are multiplied with

// A pair's row, and its place in [rows, heads].
fn row_of(pair: u32) -> u32 {
  return pair / GROUP;
}

fn place_of(pair: u32, kv_head: u32) -> u32 {
  return pair / GROUP * HEADS + kv_head * GROUP + pair % GROUP;
}

fn query_at(pair: u32, kv_head: u32, four: u32) -> vec4f {
  if (row_of(pair) < sequence.length) {
    return q[place_of(pair, kv_head) * FOURS + four];
  }
  return vec4f();
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
    var value = vec4f();
    if (key < n_keys) {
      value = load_key((kv_head * CAPACITY + key) * FOURS + four);
    }
    k_tile[i / STAGE * K_STRIDE + i % STAGE] = value;
  }
}

// Of one key, for two times four pairs.
struct Scores {
  low0: vec4f,
  high0: vec4f,
  low1: vec4f,
  high1: vec4f,
  low2: vec4f,
  high2: vec4f,
  low3: vec4f,
  high3: vec4f,
}

fn queries_at(i: u32) -> mat4x4<f32> {
  return mat4x4<f32>(tile[i], tile[i + COMPONENT], tile[i + 2u * COMPONENT], tile[i + 3u * COMPONENT]);
}

fn add_products(sum: vec4f, queries: mat4x4<f32>, key: vec4f) -> vec4f {
  let half = fma(queries[1], vec4f(key.y), fma(queries[0], vec4f(key.x), sum));
  return fma(queries[3], vec4f(key.w), fma(queries[2], vec4f(key.z), half));
}

// Products of the `four`-th staged vec4 of pairs and keys.
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

// A pair's scores for four keys; LOWEST of those that it does not see.
fn scores_at(key: u32, pair: u32, sees: vec2u) -> vec4f {
  let at = key * QUADS + pair / 4u;
  let c = pair % 4u;
  let scores = vec4f(tile[at][c], tile[at + QUADS][c], tile[at + 2u * QUADS][c], tile[at + 3u * QUADS][c]);
  let keys = key + vec4u(0u, 1u, 2u, 3u);
  return select(
    vec4f(LOWEST), attention_score_prefill(scores), (keys >= vec4u(sees.x)) & (keys < vec4u(sees.y)));
}

// Weighted sums of values: [pair][component], for two times four pairs.
struct Sums {
  low0: mat4x4<f32>,
  high0: mat4x4<f32>,
}

fn scaled(sum: mat4x4<f32>, f: vec4f) -> mat4x4<f32> {
  return mat4x4<f32>(sum[0] * f.x, sum[1] * f.y, sum[2] * f.z, sum[3] * f.w);
}

fn add_weighted(sum: mat4x4<f32>, w: vec4f, value: vec4f) -> mat4x4<f32> {
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
fn attention_prefill(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
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
  let sees = vec2u(first_visible(position), select(0u, position + 1u, row_of(pair) < length));
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
      let seen = max(sees, vec2u(first_key)) - first_key;  // keys of the tile
      var tops = vec4f(maximum);
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
        let weight = select(vec4f(), exp(score - top), score > vec4f(LOWEST));
        let at = key * QUADS + thread / 4u;
        tile[at][thread % 4u] = weight.x;
        tile[at + QUADS][thread % 4u] = weight.y;
        tile[at + 2u * QUADS][thread % 4u] = weight.z;
        tile[at + 3u * QUADS][thread % 4u] = weight.w;
        total += dot(weight, vec4f(1.0));
      }
    }
    workgroupBarrier();

    let low = factors[quad];
    let high = factors[quad + 8u];
    s.low0 = scaled(s.low0, low);
    s.high0 = scaled(s.high0, high);
    // Keys behind the last one are read as that one, with weight 0.
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
    softmax[place_of(pair, kv_head) * LANES + lane] = vec2f(maximum, total);
  }
  if (lane_tile * KEYS < n_keys) {
    write_sums(first_pair + 4u * quad, kv_head, lane, along, s.low0);
    write_sums(first_pair + 4u * quad + 32u, kv_head, lane, along, s.high0);
  }
}

const ROW_FOURS = 16u;

struct Lane {
  total: f32,
  sum: vec4f,
}

// A lane without keys has written no sums.
fn with_lane(others: Lane, part: vec2f, maximum: f32, at: u32) -> Lane {
  let weight = exp(part.x - maximum);
  let sum = weight * select(vec4f(), sums_reduce[at], part.y > 0.0);
  return Lane(others.total + weight * part.y, others.sum + sum);
}

// ONNX nodes:
//   /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(64, 1, 1)
fn attention_merge(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  let row = group.y;
  if (row >= sequence.length) {
    return;  // no token in this row
  }
  let four = group.x * 64u + thread;
  if (four < ROW_FOURS) {
    let head = four / FOURS;
    let first = (row * 2u + head) * 2u;
    let part0 = softmax_reduce[first];
    let part1 = softmax_reduce[first + 1u];
    let maximum = max(part0.x, part1.x);
    let at = first * FOURS + four % FOURS;
    var merged = Lane(0.0, vec4f());
    merged = with_lane(merged, part0, maximum, at);
    merged = with_lane(merged, part1, maximum, at + FOURS);
    y[row * ROW_FOURS + four] = merged.sum * softmax_factor(head, maximum, merged.total);
  }
}
