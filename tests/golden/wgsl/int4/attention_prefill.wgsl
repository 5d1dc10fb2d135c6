enable f16;

struct Sequence {
  past_length: u32, length: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;  // [rows, heads, head_size]
@group(0) @binding(2) var<storage, read> k_cache: array<vec4<f16>>;  // [kv_heads, capacity, head_size]
@group(0) @binding(3) var<storage, read> v_cache: array<vec4<f16>>;

fn load_key(i: u32) -> vec4<f32> {
  return vec4<f32>(k_cache[i]);
}

fn load_value(i: u32) -> vec4<f32> {
  return vec4<f32>(v_cache[i]);
}

@group(0) @binding(4) var<storage, read_write> softmax: array<vec2<f32>>;  // [rows, heads, lanes]: maximum, sum of the weights
@group(0) @binding(5) var<storage, read_write> sums: array<vec4<f32>>;  // [rows, heads, lanes, head_size]

const HEADS = 2u;
const GROUP = 2u;  // query heads of a KV head
const CAPACITY = 48u;
const FOURS = 8u;  // vec4s in a head
const LANES = 2u;  // workgroups that share the keys of a pair
const PAIRS = 64u;  // in a tile
const KEYS = 32u;  // in a tile
const STAGE = 4u;  // vec4s of a head staged at a time
const THREADS = 64u;
const ALONG = 8u;  // threads with the same pairs

const LOWEST = -3.0e38;  // below every score, and finite: a difference of two is no NaN

// The key that a query at `position` sees first.
fn first_visible(position: u32) -> u32 {
  return 0u;
}

// A query's score for a key, from their dot product.
fn attention_score(dot_product: vec4<f32>) -> vec4<f32> {
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
    vec4<f32>(LOWEST), attention_score(scores), (keys >= vec4<u32>(sees.x)) & (keys < vec4<u32>(sees.y)));
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
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
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
