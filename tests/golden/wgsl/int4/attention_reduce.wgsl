// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul_Q4
//   /model/layers.0/attn/GroupQueryAttention
struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> softmax: array<vec2<f32>>;  // [heads, splits]: maximum of the scores, sum of the weights
@group(0) @binding(2) var<storage, read> sums: array<vec4<f32>>;  // [heads, splits, head_size]: weighted sum of the values
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

// What turns the sum of exp(score - maximum) · value into a softmax's mean; `total` is the sum of the weights.
fn softmax_factor(head: u32, maximum: f32, total: f32) -> f32 {
  return 1.0 / max(total, 1.0e-30);
}

// Eight values as int8, the even ones in one word and the odd ones in the next, as 4-bit weights come apart.
fn int8_octet(a: vec4<f32>, b: vec4<f32>, to_int8: f32) -> vec2<u32> {
  let c = vec4<i32>(round(a * to_int8));
  let d = vec4<i32>(round(b * to_int8));
  return vec2<u32>(pack4xI8(vec4<i32>(c.xz, d.xz)), pack4xI8(vec4<i32>(c.yw, d.yw)));
}

fn greatest_of(v: vec4<f32>) -> f32 {
  return max(max(v.x, v.y), max(v.z, v.w));
}

var<workgroup> outputs: array<vec4<f32>, LANES>;
var<workgroup> maxima: array<vec4<f32>, 1>;  // of the splits
var<workgroup> totals: array<vec4<f32>, 1>;
var<workgroup> weighted: array<vec4<f32>, 32>;  // [split][lane]

@compute @workgroup_size(32, 1, 1)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
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
  let partial = select(vec2<f32>(LOWEST, 0.0), softmax[at], split < n_live);
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
  weighted[thread] = select(vec4<f32>(), sum_of_split * weight, split < n_live);
  workgroupBarrier();
  if (split == 0u && four < FOURS) {
    let sum = weighted[lane] + weighted[lane + 8u] + weighted[lane + 16u] + weighted[lane + 24u];
    let total = dot(totals[0], vec4<f32>(1.0));
    outputs[lane] = sum * softmax_factor(head, maximum, total);
  }
  workgroupBarrier();
  if (thread < LANES / 2u) {
    var largest = abs(outputs[0]);
    largest = max(largest, abs(outputs[1]));
    largest = max(largest, abs(outputs[2]));
    largest = max(largest, abs(outputs[3]));
    largest = max(largest, abs(outputs[4]));
    largest = max(largest, abs(outputs[5]));
    largest = max(largest, abs(outputs[6]));
    largest = max(largest, abs(outputs[7]));
    let limit = greatest_of(largest);
    let words = int8_octet(outputs[2u * thread], outputs[2u * thread + 1u], 127.0 / max(limit, 1e-30));
    let to = head * FOURS + group.y * LANES;
    y[to + 2u * thread] = words.x;
    y[to + 2u * thread + 1u] = words.y;
    if (thread == 0u) {
      y[16u + to / LANES] = bitcast<u32>(limit / 127.0);
    }
  }
}
