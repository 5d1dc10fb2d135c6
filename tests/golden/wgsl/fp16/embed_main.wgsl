// y[i] = table[ids[i]], one workgroup per id.

const N_ROWS = 271i;
const WIDTH = 64u;

struct Sequence { past_length: u32, length: u32, stop: u32 }
@group(0) @binding(0) var<storage, read> table0: array<u32>;
@group(0) @binding(1) var<storage, read> ids: array<i32>;
@group(0) @binding(2) var<storage, read> sequence: Sequence;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

fn element0(i: u32) -> f32 {
  return unpack2x16float(table0[i >> 1])[i & 1];
}

// ONNX nodes:
//   /model/embed_tokens/Gather
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
    let v = element0(row * WIDTH + k);
    y[i * WIDTH + k] = v;
  }
}
