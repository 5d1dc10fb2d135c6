// Open the next chunk: up to 16 of the known tokens that are not in the cache yet.

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

@group(0) @binding(0) var<storage, read_write> sequence: Sequence;

@compute @workgroup_size(1)
fn main() {
  sequence.length = min(16u, sequence.n_tokens - sequence.past_length);
  sequence.total_length = sequence.past_length + sequence.length;
  sequence.call_length = sequence.n_tokens;
}
