// ONNX nodes:
//   /model/layers.0/mlp/gate_proj/MatMul
//   /model/layers.0/mlp/up_proj/MatMul
//   /model/layers.0/mlp/act_fn/Sigmoid
//   /model/layers.0/mlp/act_fn/Mul
//   /model/layers.0/mlp/Mul
struct Sequence {
  past_length: u32,
  length: u32,
  total_length: u32,
  call_length: u32,
  n_tokens: u32,
  limit: u32,
  stop: u32,
  n_stop_tokens: u32,
  stop_tokens: array<u32, 16>,
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;

// Four activations of a row, from 4 * quad on.
fn activation(row: u32, quad: u32) -> vec4<f32> {
  return x[row * 16u + quad];
}

const THREADS = 32u;
const ROWS = 192u;  // of W
const ROW_CHUNKS = 8u;  // of 8 weights: what a thread takes at a time
const CHUNKS = 8u;

@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>;  // eight f16 each, read without the f16 feature

struct Chunk {
  x0: vec4<f32>,
  x1: vec4<f32>,
}

fn load_chunk(chunk: u32) -> Chunk {
  return Chunk(activation(0u, 2u * chunk), activation(0u, 2u * chunk + 1u));
}

fn row_dot(row: u32, chunk: u32, x: Chunk) -> f32 {
  let words = weights[row * ROW_CHUNKS + chunk];
  return dot(vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y)), x.x0)
       + dot(vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w)), x.x1);
}

// A thread's share of the dot product of x with each of 2 rows of W.
fn thread_dots(rows: vec2<u32>, thread: u32) -> vec2<f32> {
  var sum = vec2<f32>();
  for (var chunk = thread; chunk < CHUNKS; chunk += THREADS) {
    let x_chunk = load_chunk(chunk);
    sum.x += row_dot(rows.x, chunk, x_chunk);
    sum.y += row_dot(rows.y, chunk, x_chunk);
  }
  return sum;
}

var<workgroup> slots: array<vec2<f32>, 32>;

// The sum over the workgroup, for thread 0.
fn workgroup_sum(value: vec2<f32>, thread: u32) -> vec2<f32> {
  workgroupBarrier();  // the slots may still be read from the last call
  slots[thread] = value;
  workgroupBarrier();
  for (var step = 16u; step > 0u; step /= 2u) {
    if (thread < step) {
      slots[thread] += slots[thread + step];
    }
    workgroupBarrier();
  }
  return slots[0];
}

@group(0) @binding(3) var<storage, read_write> y: array<f32>;

// The rows of W that a workgroup takes together; the last ones repeat instead of running past the end.
fn tile_rows(tile: u32) -> vec2<u32> {
  return vec2<u32>(tile, tile + 96u);  // of the gate, of the up projection
}

fn gate(v: f32) -> f32 {
  return v / (1.0 + exp(min(-v, 80.0)));  // exp must not reach infinity
}

@compute @workgroup_size(32, 1, 1)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  let rows = tile_rows(group.x);
  let total = workgroup_sum(thread_dots(rows, thread), thread);
  if (thread == 0u) {
    y[rows.x] = gate(total.x) * total.y;
  }
}
