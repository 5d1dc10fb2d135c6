// Open the next chunk: up to ROWS of the known tokens that are not in the cache yet.

struct Sequence {
  past_length: u32, length: u32, stop: u32, total_length: u32, call_length: u32, n_tokens: u32,
}

const ROWS = 16u;

@group(0) @binding(0) var<storage, read_write> sequence: Sequence;

@compute @workgroup_size(1)
fn main() {
  sequence.length = min(ROWS, sequence.n_tokens - sequence.past_length);
  sequence.total_length = sequence.past_length + sequence.length;
  sequence.call_length = sequence.n_tokens;
}
