// The second step of sampling: every token's probability as an integer weight, and their histogram.
// weight = 2^31 · exp((logit - greatest) / temperature), rounded down. Integers add up to the same sum in
// any order and on every GPU, which floats do not.

struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
  sampling: u32, seed_low: u32, seed_high: u32, inverse_temperature: u32,
}

const VOCAB_SIZE = 271u;
const SPAN = 1024u;
const N_SPANS = 1u;
const THREADS = 16u;

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> keys: array<u32>;
@group(0) @binding(2) var<storage, read> span_keys: array<u32>;
@group(0) @binding(3) var<storage, read_write> weights: array<u32>;
@group(0) @binding(4) var<storage, read_write> histogram: array<atomic<u32>>;  // [3, bins]: tokens, weight low, weight high
@group(0) @binding(5) var<storage, read_write> candidates: array<u32>;  // its count is cleared

var<workgroup> greatest_key: atomic<u32>;

// Whether this step draws a token: not when the arg-max is wanted, nor after the end, nor inside a prompt.
fn sampling_runs() -> bool {
  return sequence.sampling != 0u && sequence.stop == 0u && sequence.total_length == sequence.n_tokens;
}

// The upper 32 bits of a · b.
fn multiply_high(a: u32, b: u32) -> u32 {
  let low = (a & 0xffffu) * (b & 0xffffu);
  let middle = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
  let other = (a & 0xffffu) * (b >> 16u) + (middle & 0xffffu);
  return (a >> 16u) * (b >> 16u) + (middle >> 16u) + (other >> 16u);
}

// Bins of an eighth of a power of two; the first bins hold the greatest weights.
fn bin_of(weight: u32) -> u32 {
  let octave = countLeadingZeros(weight);
  return 8u * octave + 7u - ((weight << octave) >> 28u) % 8u;
}

fn logit_of(key: u32) -> f32 {
  return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}

// 2^31 · 2^(-x / 2^26), rounded down: a polynomial in the 26-bit fraction, made to be 1 at 0, 1/2 at 1 and
// to fall all the way between (all 2^26 values were tried; it is off by 3.5e-9 at most).
fn power_of_two(x: u32) -> u32 {
  let fraction = x << 6u;
  var sum = 0x00071d9cu;
  sum = 0x005375c2u - multiply_high(fraction, sum);
  sum = 0x0273b234u - multiply_high(fraction, sum);
  sum = 0x0e349a30u - multiply_high(fraction, sum);
  sum = 0x3d7f5603u - multiply_high(fraction, sum);
  sum = 0xb17215e1u - multiply_high(fraction, sum);
  sum = 0x80000000u - multiply_high(fraction, sum) / 2u;
  return sum >> (x >> 26u);
}

// inverse_temperature holds 2^26 · log2(e) / temperature.
fn weight_of(key: u32, greatest: f32) -> u32 {
  if (key == 0u) {
    return 0u;
  }
  let below = (greatest - logit_of(key)) * bitcast<f32>(sequence.inverse_temperature);
  if (below >= 2147483648.0) {
    return 0u;  // less than 2^-32 of the greatest
  }
  return power_of_two(u32(below));
}

@compute @workgroup_size(16, 1, 1)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  if (!sampling_runs()) {
    return;
  }
  if (group.x == 0u && thread == 0u) {
    candidates[0] = 0u;
  }
  if (thread == 0u) {
    atomicStore(&greatest_key, 0u);
  }
  workgroupBarrier();
  if (thread < N_SPANS) {
    atomicMax(&greatest_key, span_keys[thread]);
  }
  workgroupBarrier();
  let greatest = logit_of(atomicLoad(&greatest_key));
  let begin = group.x * SPAN;
  for (var i = begin + thread; i < min(begin + SPAN, VOCAB_SIZE); i += THREADS) {
    let weight = weight_of(keys[i], greatest);
    weights[i] = weight;
    if (weight > 0u) {
      let bin = bin_of(weight);
      atomicAdd(&histogram[bin], 1u);
      let old = atomicAdd(&histogram[256u + bin], weight);
      if (old > ~weight) {
        atomicAdd(&histogram[512u + bin], 1u);  // the carry: as many in any order
      }
    }
  }
}
