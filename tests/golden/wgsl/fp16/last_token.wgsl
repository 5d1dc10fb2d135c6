// y = the last real row of x.

struct Sequence { past_length: u32, length: u32 }

const WIDTH = 64u;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> sequence: Sequence;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

// ONNX nodes:
//   /lm_head/prune/Gather, /lm_head/prune/Unsqueeze
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= WIDTH) { return; }
  y[id.x] = x[(max(sequence.length, 1u) - 1) * WIDTH + id.x];
}
