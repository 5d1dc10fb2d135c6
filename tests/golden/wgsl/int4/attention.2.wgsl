struct Sequence { past_length: u32, length: u32, stop: u32, total_length: u32 }

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

alias Keys = array<vec4f, 2>;

// A thread's part of a key.
fn load_keys(row: u32, part: u32) -> Keys {
  return Keys(
    load_key(row + part),
    load_key(row + part + 4));
}

// Of a vec4 of a key and those of 2 heads, from `at` on.
fn products_2(key: vec4f, at: u32) -> vec2f {
  return vec2f(dot(key, q_heads[at]), dot(key, q_heads[at + 8]));
}

// The sums of 2 heads from `first` on, relative to the new maxima.
fn shrunk_2(sums: mat2x4f, first: u32) -> mat2x4f {
  return mat2x4f(sums[0] * shrinks[first], sums[1] * shrinks[first + 1]);
}

fn outer_2(value: vec4f, share: vec4f) -> mat2x4f {
  return mat2x4f(value * share.x, value * share.y);
}

// A key's score, from the parts of its dot product at `at`; LOWEST of a key that is not seen.
fn score(at: u32, key: u32, first: u32, n_keys: u32) -> f32 {
  if (key < first || key >= n_keys) {
    return LOWEST;
  }
  return attention_score(weights[at] + weights[64 + at] + weights[128 + at] + weights[192 + at]);
}

fn maximum_of(head: u32) -> f32 {
  let at = head * 4;
  let four = max(max(max(maxima[at], maxima[at + 1]), maxima[at + 2]), maxima[at + 3]);
  return max(max(four.x, four.y), max(four.z, four.w));
}

fn total_of(head: u32) -> f32 {
  let at = head * 4;
  return dot(maxima[at] + maxima[at + 1] + maxima[at + 2] + maxima[at + 3], vec4f(1.0));
}

// Adds up what the slices have of `n` heads from `head` on.
fn write_sums(n: u32, head: u32, split: u32, thread: u32) {
  for (var i = thread; i < n * FOURS; i += THREADS) {
    let from_slice = i / FOURS * SLICES * FOURS + i % FOURS;
    var sum = slice_sums[from_slice];
    for (var slice = 1u; slice < SLICES; slice++) {
      sum += slice_sums[from_slice + slice * FOURS];
    }
    sums[((head + i / FOURS) * 2 + split) * FOURS + i % FOURS] = sum;
  }
}

// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul_Q4, /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(128)
fn attention_decode(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0) {
    return;
  }
  let n_keys = min(sequence.total_length, CAPACITY);
  let first = first_visible(max(n_keys, 1u) - 1);
  let first_tile = (first / TILE + group.y) * TILE;
  if (first_tile >= n_keys) {
    return;  // the grid is for a full cache
  }
  let first_head = group.x * SERVED;
  let cache_row = first_head / 2 * CAPACITY;
  let last = n_keys - 1;

  // Behind the last position that one is read again, with weight 0.
  let position = thread / PARTS;
  let part = thread % PARTS;
  var keys = load_keys((cache_row + min(first_tile + position, last)) * FOURS, part);
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
    let value_1 = load_value((cache_row + min(begin + slice + 16, last)) * FOURS + four);
    workgroupBarrier();

    // Dot products: each key is read once, for all the heads.
    if (position < TILE) {
      var dots_0 = vec2f();
      dots_0 += products_2(keys[0], part);
      dots_0 += products_2(keys[1], 4 + part);
      weights[(part * SERVED) * TILE + position] = dots_0[0];
      weights[(part * SERVED + 1) * TILE + position] = dots_0[1];
    }
    keys = load_keys((cache_row + min(begin + STRIDE + position, last)) * FOURS, part);
    workgroupBarrier();

    // Softmax weights, relative to the greatest score so far.
    var score_0 = LOWEST;
    var score_1 = LOWEST;
    if (head < SERVED) {
      let at = head * TILE + segment;
      let key = begin + segment;
      score_0 = score(at, key, first, n_keys);
      score_1 = score(at + 16, key + 16, first, n_keys);
      maxima[thread / 4][thread % 4] = max(score_0, score_1);
    }
    workgroupBarrier();
    if (head < SERVED) {
      let top = max(maximum, maximum_of(head));
      let shrink = exp(maximum - top);
      total *= shrink;
      let weight_0 = select(0.0, exp(score_0 - top), score_0 > LOWEST);
      shares[head / 4 * TILE + segment][head % 4] = weight_0;
      total += weight_0;
      let weight_1 = select(0.0, exp(score_1 - top), score_1 > LOWEST);
      shares[head / 4 * TILE + segment + 16][head % 4] = weight_1;
      total += weight_1;
      if (segment == 0) {
        shrinks[head] = shrink;
      }
      maximum = top;
    }
    workgroupBarrier();

    // Weighted sums: each value is read once, for all the heads.
    sums_0 = shrunk_2(sums_0, 0u);
    sums_0 += outer_2(value_0, shares[slice]);
    sums_0 += outer_2(value_1, shares[16 + slice]);
  }

  workgroupBarrier();
  if (head < SERVED) {
    maxima[thread / 4][thread % 4] = total;
    if (segment == 0) {
      shrinks[head] = maximum;
    }
  }
  if (slice < SLICES) {
    slice_sums[thread] = sums_0[0];
    slice_sums[thread + 128] = sums_0[1];
  }
  workgroupBarrier();
  write_sums(2u, first_head, group.y, thread);
  if (thread < SERVED) {
    let at = (first_head + thread) * 2 + group.y;
    softmax[at] = vec2f(shrinks[thread], total_of(thread));
  }
}

@group(0) @binding(1) var<storage, read> softmax_reduce: array<vec2f>;  // [heads, splits]
@group(0) @binding(2) var<storage, read> sums_reduce: array<vec4f>;  // [heads, splits, head_size]
@group(0) @binding(3) var<storage, read_write> y: array<u32>;  // [heads, head_size] as int8 in words of four, then a scale per 32

const N_SPLITS = 2u;
override LANES: u32 = 8u;  // vec4s of the head merged here

// Makes a softmax's mean of the weighted sum of values; `total` is the sum of the weights.
fn softmax_factor(head: u32, maximum: f32, total: f32) -> f32 {
  return 1.0 / max(total, 1.0e-30);
}

// Eight values as int8, the even ones and then the odd ones.
fn int8_octet(a: vec4f, b: vec4f, to_int8: f32) -> vec2u {
  let c = vec4i(round(a * to_int8));
  let d = vec4i(round(b * to_int8));
  return vec2u(pack4xI8(vec4i(c.xz, d.xz)), pack4xI8(vec4i(c.yw, d.yw)));
}

fn greatest_of(v: vec4f) -> f32 {
  return max(max(v.x, v.y), max(v.z, v.w));
}

override OUTPUTS: u32 = 8u;
var<workgroup> outputs: array<vec4f, OUTPUTS>;

// Packs eight outputs to `to`, with the scale of their block.
fn pack(thread: u32, to: u32, scale_to: u32) {
  let block = thread / 8 * 8;
  var largest = abs(outputs[block]);
  for (var i = block + 1; i < block + 8; i++) {
    largest = max(largest, abs(outputs[i]));
  }
  let limit = greatest_of(largest);
  let words = int8_octet(outputs[thread], outputs[thread + 1], 127.0 / max(limit, 1e-30));
  y[to] = words.x;
  y[to + 1] = words.y;
  if (thread == block) {
    y[scale_to] = bitcast<u32>(limit / 127.0);
  }
}

var<workgroup> maxima_reduce: array<vec4f, 1>;  // of the splits
var<workgroup> totals: array<vec4f, 1>;
var<workgroup> weighted: array<vec4f, 32>;  // [split][lane]

// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul_Q4, /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(32)
fn attention_reduce(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (sequence.stop != 0) {
    return;
  }
  let n_keys = min(sequence.total_length, CAPACITY);
  let first = first_visible(max(n_keys, 1u) - 1);
  let n_live = min((n_keys + TILE - 1) / TILE - first / TILE, N_SPLITS);
  let head = group.x;
  let lane = thread % LANES;
  let four = group.y * LANES + lane;
  let split = thread / LANES;

  // These loads do not wait for the sequence: what a split that saw nothing left there is not used.
  let at = head * N_SPLITS + min(split, N_SPLITS - 1);
  let column = min(four, FOURS - 1);
  let sum_0 = sums_reduce[at * FOURS + column];
  let partial_0 = select(vec2f(LOWEST, 0.0), softmax_reduce[at], split < n_live);
  if (lane == 0) {
    maxima_reduce[split / 4][split % 4] = partial_0.x;
  }
  workgroupBarrier();
  var greatest = maxima_reduce[0];
  for (var i = 1u; i < 1; i++) {
    greatest = max(greatest, maxima_reduce[i]);
  }
  let maximum = max(max(greatest.x, greatest.y), max(greatest.z, greatest.w));
  let weight_0 = exp(partial_0.x - maximum);
  if (lane == 0) {
    totals[split / 4][split % 4] = partial_0.y * weight_0;
  }
  weighted[thread] = select(vec4f(), sum_0 * weight_0, split < n_live);
  workgroupBarrier();
  if (split == 0 && four < FOURS) {
    let sum = weighted[lane] + weighted[lane + 8] + weighted[lane + 16] + weighted[lane + 24];
    var all = totals[0];
    for (var i = 1u; i < 1; i++) {
      all += totals[i];
    }
    let total = dot(all, vec4f(1.0));
    outputs[lane] = sum * softmax_factor(head, maximum, total);
  }
  workgroupBarrier();
  if (split == 0 && four < FOURS && lane % 2 == 0) {
    let to = head * FOURS + four;
    pack(lane, to, 16 + to / LANES);
  }
}

const HEADS = 2u;
const GROUP = 2u;  // query heads of a KV head
const PAIRS = 64u;  // in a tile
const KEYS = 32u;  // in a tile
const STAGE = 4u;  // vec4s of a head staged at a time
const ALONG = 8u;  // threads with the same pairs

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

// A pair's row, and its place in [row, head].
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
    let pair = first_pair + 4 * (i / STAGE);
    let components = transpose(mat4x4f(
      query_at(pair, kv_head, four), query_at(pair + 1, kv_head, four),
      query_at(pair + 2, kv_head, four), query_at(pair + 3, kv_head, four)));
    let to = i % STAGE * Q_STRIDE + i / STAGE;
    tile[to] = components[0];
    tile[to + COMPONENT] = components[1];
    tile[to + 2 * COMPONENT] = components[2];
    tile[to + 3 * COMPONENT] = components[3];
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

// For two times four pairs each.
struct Scores {
  key0: mat2x4f,
  key1: mat2x4f,
  key2: mat2x4f,
  key3: mat2x4f,
}

fn queries_at(i: u32) -> mat4x4f {
  return mat4x4f(tile[i], tile[i + COMPONENT], tile[i + 2 * COMPONENT], tile[i + 3 * COMPONENT]);
}

fn add_product(sum: vec4f, queries: mat4x4f, key: vec4f) -> vec4f {
  let half = fma(queries[1], vec4f(key.y), fma(queries[0], vec4f(key.x), sum));
  return fma(queries[3], vec4f(key.w), fma(queries[2], vec4f(key.z), half));
}

fn add_products(sum: mat2x4f, low: mat4x4f, high: mat4x4f, key: vec4f) -> mat2x4f {
  return mat2x4f(add_product(sum[0], low, key), add_product(sum[1], high, key));
}

// Products of the `four`-th staged vec4 of pairs and keys.
fn add_scores(s: Scores, four: u32, quad: u32, key: u32) -> Scores {
  let low = queries_at(four * Q_STRIDE + quad);
  let high = queries_at(four * Q_STRIDE + quad + 8);
  return Scores(
    add_products(s.key0, low, high, k_tile[key * K_STRIDE + four]),
    add_products(s.key1, low, high, k_tile[(key + ALONG) * K_STRIDE + four]),
    add_products(s.key2, low, high, k_tile[(key + 2 * ALONG) * K_STRIDE + four]),
    add_products(s.key3, low, high, k_tile[(key + 3 * ALONG) * K_STRIDE + four]));
}

fn put_scores(key: u32, quad: u32, scores: mat2x4f) {
  tile[key * QUADS + quad] = scores[0];
  tile[key * QUADS + quad + 8] = scores[1];
}

// A pair's scores for four keys; LOWEST of those that it does not see.
fn scores_at(key: u32, pair: u32, end: u32) -> vec4f {
  let at = key * QUADS + pair / 4;
  let c = pair % 4;
  let scores = vec4f(tile[at][c], tile[at + QUADS][c], tile[at + 2 * QUADS][c], tile[at + 3 * QUADS][c]);
  let keys = key + vec4u(0, 1, 2, 3);
  return select(vec4f(LOWEST), attention_score_prefill(scores), keys < vec4u(end));
}

// Weighted sums of values: [pair][component], for two times four pairs.
struct Sums {
  low0: mat4x4f,
  high0: mat4x4f,
}

fn scaled(sum: mat4x4f, f: vec4f) -> mat4x4f {
  return mat4x4f(sum[0] * f.x, sum[1] * f.y, sum[2] * f.z, sum[3] * f.w);
}

fn add_weighted(sum: mat4x4f, w: vec4f, value: vec4f) -> mat4x4f {
  return mat4x4f(sum[0] + w.x * value, sum[1] + w.y * value, sum[2] + w.z * value, sum[3] + w.w * value);
}

// Key `key` of the tile, from `first` on in the cache; behind the last one that one is read, with weight 0.
fn add_value(s: Sums, key: u32, quad: u32, first: u32, last: u32) -> Sums {
  let at = first + min(key, last) * FOURS;
  let low = tile[key * QUADS + quad];
  let high = tile[key * QUADS + quad + 8];
  let value0 = load_value(at);
  return Sums(
    add_weighted(s.low0, low, value0), add_weighted(s.high0, high, value0));
}

fn write_sum(pair: u32, kv_head: u32, lane: u32, four: u32, sum: vec4f) {
  if (row_of(pair) < sequence.length) {
    sums[(place_of(pair, kv_head) * LANES + lane) * FOURS + four] = sum;
  }
}

fn write_sums_prefill(pair: u32, kv_head: u32, lane: u32, four: u32, sum: mat4x4f) {
  write_sum(pair, kv_head, lane, four, sum[0]);
  write_sum(pair + 1, kv_head, lane, four, sum[1]);
  write_sum(pair + 2, kv_head, lane, four, sum[2]);
  write_sum(pair + 3, kv_head, lane, four, sum[3]);
}

// ONNX nodes:
//   /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(64)
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
  let n_keys = min(past + min(row_of(first_pair + PAIRS - 1) + 1, length), CAPACITY);

  // For scores and sums a thread has the pairs 4 * quad + 0..3 and 32 more,
  // keys along + ALONG * j, and vec4s along + ALONG * column.
  let quad = thread % 8;
  let along = thread / 8;
  // For the softmax one pair.
  let pair = first_pair + thread;
  let position = past + row_of(pair);
  let end = select(0u, position + 1, row_of(pair) < length);
  var maximum = LOWEST;
  var total = 0.0;
  var s = Sums();

  for (var tile_index = lane; tile_index * KEYS < n_keys; tile_index += LANES) {
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
    put_scores(along, quad, scores.key0);
    put_scores(along + ALONG, quad, scores.key1);
    put_scores(along + 2 * ALONG, quad, scores.key2);
    put_scores(along + 3 * ALONG, quad, scores.key3);
    workgroupBarrier();

    if (thread < PAIRS) {
      let seen = max(end, first_key) - first_key;  // keys of the tile
      var tops = vec4f(maximum);
      for (var key = 0u; key < KEYS; key += 4) {
        tops = max(tops, scores_at(key, thread, seen));
      }
      let top = max(max(tops.x, tops.y), max(tops.z, tops.w));
      let shrink = exp(maximum - top);
      maximum = top;
      total *= shrink;
      factors[thread / 4][thread % 4] = shrink;
      for (var key = 0u; key < KEYS; key += 4) {
        let score = scores_at(key, thread, seen);
        let weight = select(vec4f(), exp(score - top), score > vec4f(LOWEST));
        let at = key * QUADS + thread / 4;
        tile[at][thread % 4] = weight.x;
        tile[at + QUADS][thread % 4] = weight.y;
        tile[at + 2 * QUADS][thread % 4] = weight.z;
        tile[at + 3 * QUADS][thread % 4] = weight.w;
        total += dot(weight, vec4f(1.0));
      }
    }
    workgroupBarrier();

    let low = factors[quad];
    let high = factors[quad + 8];
    s.low0 = scaled(s.low0, low);
    s.high0 = scaled(s.high0, high);
    let first_value = (kv_head * CAPACITY + first_key) * FOURS + along;
    let last = n_keys - 1 - first_key;
    for (var key = 0u; key < KEYS; key += 8) {
      s = add_value(s, key, quad, first_value, last);
      s = add_value(s, key + 1, quad, first_value, last);
      s = add_value(s, key + 2, quad, first_value, last);
      s = add_value(s, key + 3, quad, first_value, last);
      s = add_value(s, key + 4, quad, first_value, last);
      s = add_value(s, key + 5, quad, first_value, last);
      s = add_value(s, key + 6, quad, first_value, last);
      s = add_value(s, key + 7, quad, first_value, last);
    }
  }

  if (thread < PAIRS && row_of(pair) < length) {
    softmax[place_of(pair, kv_head) * LANES + lane] = vec2f(maximum, total);
  }
  if (lane * KEYS < n_keys) {
    let first = first_pair + 4 * quad;
    write_sums_prefill(first, kv_head, lane, along, s.low0);
    write_sums_prefill(first + 32, kv_head, lane, along, s.high0);
  }
}

const ROW_FOURS = 16u;

struct Lane {
  total: f32,
  sum: vec4f,
}

// A lane without keys has written no sums.
fn with_lane(others: Lane, lane: u32, maximum: f32, column: u32) -> Lane {
  let part = softmax_reduce[lane];
  let weight = exp(part.x - maximum);
  let sum = weight * select(vec4f(), sums_reduce[lane * FOURS + column], part.y > 0.0);
  return Lane(others.total + weight * part.y, others.sum + sum);
}

// ONNX nodes:
//   /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(64)
fn attention_merge(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  let row = group.y;
  if (row >= sequence.length) {
    return;  // no token in this row
  }
  let four = group.x * 64 + thread;
  if (four < ROW_FOURS) {
    let head = four / FOURS;
    let first = (row * 2 + head) * 2;
    let maximum = max(softmax_reduce[first].x, softmax_reduce[first + 1].x);
    let column = four % FOURS;
    var merged = Lane(0.0, vec4f());
    merged = with_lane(merged, first, maximum, column);
    merged = with_lane(merged, first + 1, maximum, column);
    outputs[thread] = merged.sum * softmax_factor(head, maximum, merged.total);
  }
  workgroupBarrier();
  if (four < ROW_FOURS && thread % 2 == 0) {
    pack(thread, row * 20 + four, row * 20 + 16 + four / 8);
  }
}
