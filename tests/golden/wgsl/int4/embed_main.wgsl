enable f16;

// y[i] = table[ids[i]], one workgroup per id.

const N_ROWS = 271i;
const WIDTH = 64u;
const ROW_NBYTES = 32u;
const BLOCK_SIZE = 32u;
const N_BLOCKS = 2u;  // blocks of a row, each with one scale

struct Sequence { past_length: u32, length: u32, stop: u32 }
@group(0) @binding(0) var<storage, read> table0: array<u32>;
@group(0) @binding(1) var<storage, read> scales: array<f16>;
@group(0) @binding(2) var<storage, read> ids: array<i32>;
@group(0) @binding(3) var<storage, read> sequence: Sequence;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

fn scale_at(i: u32) -> f32 {
  return f32(scales[i]);
}

// Two 4-bit codes per byte, low nibble first.
fn code(byte_at: u32, word: u32, odd: u32) -> f32 {
  return f32((word >> (8 * (byte_at & 3) + 4 * odd)) & 15);
}

// ONNX nodes:
//   /model/embed_tokens/GatherBlockQuantized
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) thread: u32) {
  let i = group.y * groups.x + group.x;
  if (i >= arrayLength(&y) / WIDTH) { return; }
  if (i >= sequence.length || sequence.stop != 0) { return; }
  var id = ids[sequence.past_length + i];
  if (id < 0) { id += N_ROWS; }
  id = clamp(id, 0, N_ROWS - 1);

  for (var k = thread; k < WIDTH; k += 256) {
    let row = u32(id);
    let byte_at = row * ROW_NBYTES + k / 2;
    let word = table0[byte_at >> 2];
    let block = u32(id) * N_BLOCKS + k / BLOCK_SIZE;
    let v = (code(byte_at, word, k & 1) - 8.0) * scale_at(block);
    y[i * WIDTH + k] = v;
  }
}
