struct Sequence {
  past_length: u32, length: u32,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> softmax: array<vec2<f32>>;  // [rows, heads, lanes]: maximum, sum of the weights
@group(0) @binding(2) var<storage, read> sums: array<vec4<f32>>;  // [rows, heads, lanes, head_size]
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;  // [rows, heads, head_size]

const FOURS = 8u;  // vec4s in a head
const ROW_FOURS = 16u;

// What turns the sum of exp(score - maximum) · value into a softmax's mean; `total` is the sum of the weights.
fn softmax_factor(head: u32, maximum: f32, total: f32) -> f32 {
  return 1.0 / max(total, 1.0e-30);
}

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
    y[row * ROW_FOURS + four] = sum * softmax_factor(head, maximum, total);
  }
}
