// Open the next chunk: up to 16 of the known tokens that are not in the cache yet.

struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32,
}

@group(0) @binding(0) var<storage, read_write> sequence: Sequence;

@compute @workgroup_size(1)
fn main() {
  sequence.length = min(16u, sequence.n_tokens - sequence.past_length);
  sequence.total_length = sequence.past_length + sequence.length;
  sequence.call_length = sequence.n_tokens;
}
