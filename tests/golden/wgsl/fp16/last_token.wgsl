// ONNX nodes:
//   /lm_head/prune/Gather
//   /lm_head/prune/Unsqueeze
// y = the last real row of x.

struct Sequence {
  past_length: u32,
  length: u32,
  total_length: u32,
  call_length: u32,
  n_tokens: u32,
  limit: u32,
  stop: u32,
  sampling: u32,
  seed_low: u32,
  seed_high: u32,
  inverse_temperature: u32,
  top_k: u32,
  top_p: u32,
  min_p: u32,
  repetition_penalty: u32,
  inverse_repetition_penalty: u32,
  n_stop_tokens: u32,
  stop_tokens: array<u32, 16>,
}

const WIDTH = 64u;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> sequence: Sequence;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256, 1, 1)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x >= WIDTH) { return; }
  y[id.x] = x[(max(sequence.length, 1u) - 1u) * WIDTH + id.x];
}
