struct Sequence {
  past_length: u32, length: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> softmax: array<vec2<f32>>;  // [rows, heads, lanes]: maximum, sum of the weights
@group(0) @binding(2) var<storage, read> sums: array<vec4<f32>>;  // [rows, heads, lanes, head_size]
@group(0) @binding(3) var<storage, read_write> y: array<u32>;  // per row: int8 values, four to a word, then a scale per 32

const FOURS = 8u;  // vec4s in a head
const ROW_FOURS = 16u;

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

var<workgroup> outputs: array<vec4<f32>, 64>;

// ONNX nodes:
//   /model/layers.0/attn/GroupQueryAttention
@compute @workgroup_size(64, 1, 1)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
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
    var maximum = part0.x;
    maximum = max(maximum, part1.x);
    let at = first * FOURS + four % FOURS;  // a lane without keys has written no sums
    var total = 0.0;
    var sum = vec4<f32>();
    let weight0 = exp(part0.x - maximum);
    total += weight0 * part0.y;
    sum += weight0 * select(vec4<f32>(), sums[at], part0.y > 0.0);
    let weight1 = exp(part1.x - maximum);
    total += weight1 * part1.y;
    sum += weight1 * select(vec4<f32>(), sums[at + FOURS], part1.y > 0.0);
    outputs[thread] = sum * softmax_factor(head, maximum, total);
  }
  workgroupBarrier();
  // Every second thread packs eight values, with the scale of their block.
  if (four < ROW_FOURS && thread % 2u == 0u) {
    let block = thread / 8u * 8u;
    var largest = abs(outputs[block]);
    largest = max(largest, abs(outputs[block + 1u]));
    largest = max(largest, abs(outputs[block + 2u]));
    largest = max(largest, abs(outputs[block + 3u]));
    largest = max(largest, abs(outputs[block + 4u]));
    largest = max(largest, abs(outputs[block + 5u]));
    largest = max(largest, abs(outputs[block + 6u]));
    largest = max(largest, abs(outputs[block + 7u]));
    let limit = greatest_of(largest);
    let words = int8_octet(outputs[thread], outputs[thread + 1u], 127.0 / max(limit, 1e-30));
    let to = row * 20u + four;
    y[to] = words.x;
    y[to + 1u] = words.y;
    if (thread == block) {
      y[row * 20u + 16u + four / 8u] = bitcast<u32>(limit / 127.0);
    }
  }
}
