struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> softmax: array<vec2f>;  // [heads, splits]: maximum of the scores, sum of the weights
@group(0) @binding(2) var<storage, read> sums: array<vec4f>;  // [heads, splits, head_size]: weighted sum of the values
@group(0) @binding(3) var<storage, read_write> y: array<u32>;  // [heads, head_size] as int8 in words of four, then a scale per 32

const CAPACITY = 48u;
const FOURS = 8u;  // vec4s in a head
const TILE = 32u;  // positions that a split takes at a time
const N_SPLITS = 2u;
const LANES = 8u;  // vec4s of the head merged here

const LOWEST = -3.0e38;  // below every score, and finite: a difference of two is no NaN

// The key that a query at `position` sees first.
fn first_visible(position: u32) -> u32 {
  return 0u;
}

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

var<workgroup> outputs: array<vec4f, LANES>;
var<workgroup> maxima: array<vec4f, 1>;  // of the splits
var<workgroup> totals: array<vec4f, 1>;
var<workgroup> weighted: array<vec4f, 32>;  // [split][lane]

// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul_Q4
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
  let partial = select(vec2f(LOWEST, 0.0), softmax[at], split < n_live);
  let sum_of_split = sums[at * FOURS + min(four, FOURS - 1u)];
  if (lane == 0u) {
    maxima[split / 4u][split % 4u] = partial.x;
  }
  workgroupBarrier();
  var greatest = maxima[0];
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
    outputs[lane] = sum * softmax_factor(head, maximum, total);
  }
  workgroupBarrier();
  if (thread < LANES / 2u) {
    let low = max(max(max(abs(outputs[0]), abs(outputs[1])), abs(outputs[2])), abs(outputs[3]));
    let high = max(max(max(abs(outputs[4]), abs(outputs[5])), abs(outputs[6])), abs(outputs[7]));
    let limit = greatest_of(max(low, high));
    let words = int8_octet(outputs[2u * thread], outputs[2u * thread + 1u], 127.0 / max(limit, 1e-30));
    let to = head * FOURS + group.y * LANES;
    y[to + 2u * thread] = words.x;
    y[to + 2u * thread + 1u] = words.y;
    if (thread == 0u) {
      y[16u + to / LANES] = bitcast<u32>(limit / 127.0);
    }
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
  let sum = weight * select(vec4f(), sums[at], part.y > 0.0);
  return Lane(others.total + weight * part.y, others.sum + sum);
}

var<workgroup> outputs_merge: array<vec4f, 64>;

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
    let part0 = softmax[first];
    let part1 = softmax[first + 1u];
    let maximum = max(part0.x, part1.x);
    let at = first * FOURS + four % FOURS;
    var merged = Lane(0.0, vec4f());
    merged = with_lane(merged, part0, maximum, at);
    merged = with_lane(merged, part1, maximum, at + FOURS);
    outputs_merge[thread] = merged.sum * softmax_factor(head, maximum, merged.total);
  }
  workgroupBarrier();
  // Every second thread packs eight values, with the scale of their block.
  if (four < ROW_FOURS && thread % 2u == 0u) {
    let block = thread / 8u * 8u;
    let low = max(max(max(abs(outputs_merge[block]), abs(outputs_merge[block + 1u])), abs(outputs_merge[block + 2u])), abs(outputs_merge[block + 3u]));
    let high = max(max(max(abs(outputs_merge[block + 4u]), abs(outputs_merge[block + 5u])), abs(outputs_merge[block + 6u])), abs(outputs_merge[block + 7u]));
    let limit = greatest_of(max(low, high));
    let words = int8_octet(outputs_merge[thread], outputs_merge[thread + 1u], 127.0 / max(limit, 1e-30));
    let to = row * 20u + four;
    y[to] = words.x;
    y[to + 1u] = words.y;
    if (thread == block) {
      y[row * 20u + 16u + four / 8u] = bitcast<u32>(limit / 127.0);
    }
  }
}
