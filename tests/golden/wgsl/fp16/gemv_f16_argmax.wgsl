// ONNX nodes:
//   /lm_head/MatMul
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
const ROWS = 271u;  // of W
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

// A thread's share of the dot product of x with one row of W.
fn thread_dots(rows: u32, thread: u32) -> f32 {
  var sum = f32();
  for (var chunk = thread; chunk < CHUNKS; chunk += THREADS) {
    let x_chunk = load_chunk(chunk);
    sum += row_dot(rows, chunk, x_chunk);
  }
  return sum;
}

var<workgroup> slots: array<f32, 32>;

// The sum over the workgroup, for thread 0.
fn workgroup_sum(value: f32, thread: u32) -> f32 {
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
fn tile_rows(tile: u32) -> u32 {
  return min(tile, ROWS - 1u);
}

@group(0) @binding(4) var<storage, read_write> partial_values: array<f32>;  // per workgroup: its greatest output
@group(0) @binding(5) var<storage, read_write> partial_indices: array<u32>;  // and which one that is

struct Best {
  value: f32,
  index: u32,
}

const NO_INDEX = 0xffffffffu;
const GREATEST = 0x1.fffffep+127f;

// The better of two; the first of equal ones. NaN, told by its bits, counts as the greatest f32.
fn better(best: Best, value: f32, index: u32) -> Best {
  let is_nan = (bitcast<u32>(value) & 0x7fffffffu) > 0x7f800000u;
  let finite = select(clamp(value, -GREATEST, GREATEST), GREATEST, is_nan);
  if (finite > best.value || best.index == NO_INDEX) {
    return Best(finite, index);
  }
  return best;
}

@compute @workgroup_size(32, 1, 1)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  if (sequence.stop != 0u) {
    return;  // generation has ended
  }
  var best = Best(-GREATEST, NO_INDEX);
  let rows = tile_rows(group.x);
  let total = workgroup_sum(thread_dots(rows, thread), thread);
  if (thread == 0u) {
    y[rows] = total;
    best = better(best, total, rows);
  }
  if (thread == 0u) {
    partial_values[group.x] = best.value;
    partial_indices[group.x] = best.index;
  }
}
