// The chunk is in the cache now.

struct Sequence {
  past_length: u32, length: u32, total_length: u32,
}

@group(0) @binding(0) var<storage, read_write> sequence: Sequence;

@compute @workgroup_size(1)
fn main() {
  sequence.past_length = sequence.total_length;
}
