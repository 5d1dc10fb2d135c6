// ONNX nodes:
//   /lm_head/MatMul_Q4
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

@group(0) @binding(3) var<storage, read> params: array<u32>;

const BLOCKS = 2u;  // of 32 weights, per row
const CHUNKS_PER_BLOCK = 1u;

// The scale of a block.
fn scale(row: u32, block: u32) -> f32 {
  let i = row * BLOCKS + block;
  return unpack2x16float(params[i >> 1u] >> (16u * (i & 1u))).x;
}

// The zero point z of a block as four bytes 0x80 - z, which is what `centered` adds.
fn zero_bytes(row: u32, block: u32) -> u32 {
  return 0x78787878u;  // symmetric: z = 8
}

// Four nibbles, spread into the low halves of four bytes, to four signed bytes q - z. No byte carries.
fn centered(nibbles: u32, zeros: u32) -> u32 {
  return ((nibbles & 0x0f0f0f0fu) + zeros) ^ 0x80808080u;
}

const THREADS = 32u;
const ROWS = 271u;  // of W
const ROW_CHUNKS = 2u;  // of 32 weights: what a thread takes at a time
const CHUNKS = 2u;

@group(0) @binding(2) var<storage, read> weights: array<vec4<u32>>;

// 32 activations as int8 with one scale, even and odd ones of every eight in separate words, as the
// nibbles of a word of weights come apart. Every workgroup quantises what it reads: that costs a fraction
// of its dot products, and a dispatch that did it once would cost more.
struct Chunk {
  even_x: u32,
  odd_x: u32,
  even_y: u32,
  odd_y: u32,
  even_z: u32,
  odd_z: u32,
  even_w: u32,
  odd_w: u32,
  scale: f32,
}

fn greatest(v: vec4<f32>) -> f32 {
  return max(max(v.x, v.y), max(v.z, v.w));
}

fn int8(v: vec4<f32>) -> u32 {
  return pack4xI8(vec4<i32>(round(v)));
}

fn load_chunk(chunk: u32) -> Chunk {
  let x0 = activation(0u, 8u * chunk + 0u);
  let x1 = activation(0u, 8u * chunk + 1u);
  let x2 = activation(0u, 8u * chunk + 2u);
  let x3 = activation(0u, 8u * chunk + 3u);
  let x4 = activation(0u, 8u * chunk + 4u);
  let x5 = activation(0u, 8u * chunk + 5u);
  let x6 = activation(0u, 8u * chunk + 6u);
  let x7 = activation(0u, 8u * chunk + 7u);
  var largest = abs(x0);
  largest = max(largest, abs(x1));
  largest = max(largest, abs(x2));
  largest = max(largest, abs(x3));
  largest = max(largest, abs(x4));
  largest = max(largest, abs(x5));
  largest = max(largest, abs(x6));
  largest = max(largest, abs(x7));
  let limit = greatest(largest);
  let to_int8 = 127.0 / max(limit, 1e-30);
  return Chunk(
    int8(to_int8 * vec4<f32>(x0.xz, x1.xz)), int8(to_int8 * vec4<f32>(x0.yw, x1.yw)),
    int8(to_int8 * vec4<f32>(x2.xz, x3.xz)), int8(to_int8 * vec4<f32>(x2.yw, x3.yw)),
    int8(to_int8 * vec4<f32>(x4.xz, x5.xz)), int8(to_int8 * vec4<f32>(x4.yw, x5.yw)),
    int8(to_int8 * vec4<f32>(x6.xz, x7.xz)), int8(to_int8 * vec4<f32>(x6.yw, x7.yw)),
    limit / 127.0,
  );
}

fn row_dot(row: u32, chunk: u32, x: Chunk) -> f32 {
  let words = weights[row * ROW_CHUNKS + chunk];
  let block = chunk / CHUNKS_PER_BLOCK;
  let zeros = zero_bytes(row, block);
  var sum = 0;
  sum += dot4I8Packed(centered(words.x, zeros), x.even_x);
  sum += dot4I8Packed(centered(words.x >> 4u, zeros), x.odd_x);
  sum += dot4I8Packed(centered(words.y, zeros), x.even_y);
  sum += dot4I8Packed(centered(words.y >> 4u, zeros), x.odd_y);
  sum += dot4I8Packed(centered(words.z, zeros), x.even_z);
  sum += dot4I8Packed(centered(words.z >> 4u, zeros), x.odd_z);
  sum += dot4I8Packed(centered(words.w, zeros), x.even_w);
  sum += dot4I8Packed(centered(words.w >> 4u, zeros), x.odd_w);
  return scale(row, block) * x.scale * f32(sum);
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

@group(0) @binding(4) var<storage, read_write> y: array<f32>;

// The rows of W that a workgroup takes together; the last ones repeat instead of running past the end.
fn tile_rows(tile: u32) -> u32 {
  return min(tile, ROWS - 1u);
}

@group(0) @binding(5) var<storage, read_write> partial_values: array<f32>;  // per workgroup: its greatest output
@group(0) @binding(6) var<storage, read_write> partial_indices: array<u32>;  // and which one that is

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
