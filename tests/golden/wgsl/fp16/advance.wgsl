// The chunk is in the cache now.

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

@group(0) @binding(0) var<storage, read_write> sequence: Sequence;

@compute @workgroup_size(1)
fn main() {
  sequence.past_length = sequence.total_length;
}
