// The third step of sampling: which tokens the last step must look at one by one.
// The histogram says in which bin of weights top-k or top-p ends. With top-k the candidates are the tokens
// down to that bin; with top-p alone those of that bin: all above survive it. Without either, none.

struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
  sampling: u32, seed_low: u32, seed_high: u32, inverse_temperature: u32, top_k: u32, top_p: u32, min_p: u32,
}

const VOCAB_SIZE = 271u;
const SPAN = 1024u;
const THREADS = 256u;

struct Candidate {
  key: u32,
  weight: u32,
  token: u32,
}

struct Candidates {
  count: atomic<u32>,
  top_k: u32,  // 0: all
  top_p: u32,  // in 2^-32; 0: all
  padding: u32,
  all_weight: vec2<u32>,
  weight_above: vec2<u32>,  // of the tokens that survive top-p and are not listed
  list: array<Candidate>,
}

fn least_one(weight: vec2<u32>) -> vec2<u32> {
  return select(weight, vec2<u32>(1u, 0u), weight.x == 0u && weight.y == 0u);
}

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> keys: array<u32>;
@group(0) @binding(2) var<storage, read> weights: array<u32>;
@group(0) @binding(3) var<storage, read> histogram: array<u32>;  // [3, bins]: tokens, weight low, weight high
@group(0) @binding(4) var<storage, read_write> candidates: Candidates;
@group(0) @binding(5) var<storage, read_write> span_weights: array<vec2<u32>>;  // without the candidates

// Whether this step draws a token: not when the arg-max is wanted, nor after the end, nor inside a prompt.
fn sampling_runs() -> bool {
  return sequence.sampling != 0u && sequence.stop == 0u && sequence.total_length == sequence.n_tokens;
}

// 64-bit unsigned integers are vec2<u32>(low, high).
fn add_wide(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
  let low = a.x + b.x;
  return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn subtract_wide(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
  return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

fn is_less(a: vec2<u32>, b: vec2<u32>) -> bool {
  return a.y < b.y || (a.y == b.y && a.x < b.x);
}

// The upper 32 bits of a · b.
fn multiply_high(a: u32, b: u32) -> u32 {
  let low = (a & 0xffffu) * (b & 0xffffu);
  let middle = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
  let other = (a & 0xffffu) * (b >> 16u) + (middle & 0xffffu);
  return (a >> 16u) * (b >> 16u) + (middle >> 16u) + (other >> 16u);
}

// a · part / 2^32, rounded down.
fn fraction_of(a: vec2<u32>, part: u32) -> vec2<u32> {
  return add_wide(vec2<u32>(a.y * part, multiply_high(a.y, part)), vec2<u32>(multiply_high(a.x, part), 0u));
}

var<workgroup> sums: array<vec2<u32>, 256>;
var<workgroup> found: vec3<u32>;

// The sum of `value` over this thread and those before it; sums[i] is that of thread i.
fn running_sum(thread: u32, value: vec2<u32>) -> vec2<u32> {
  workgroupBarrier();  // the sums may still be read from the last call
  sums[thread] = value;
  workgroupBarrier();
  for (var step = 1u; step < 256u; step <<= 1u) {
    var before = vec2<u32>(0u, 0u);
    if (thread >= step) {
      before = sums[thread - step];
    }
    workgroupBarrier();
    sums[thread] = add_wide(sums[thread], before);
    workgroupBarrier();
  }
  return sums[thread];
}

fn total() -> vec2<u32> {
  return sums[255];
}

// The thread at which the running sum, `upto`, reaches `target_sum`, and the sum before it; else thread 0.
fn find_thread(thread: u32, upto: vec2<u32>, value: vec2<u32>, target_sum: vec2<u32>) -> vec3<u32> {
  if (thread == 0u) {
    found = vec3<u32>(0u, 0u, 0u);
  }
  workgroupBarrier();
  let before = subtract_wide(upto, value);
  if (is_less(before, target_sum) && !is_less(upto, target_sum)) {
    found = vec3<u32>(thread, before);
  }
  return workgroupUniformLoad(&found);
}

// Bins of an eighth of a power of two; the first bins hold the greatest weights.
fn bin_of(weight: u32) -> u32 {
  let octave = countLeadingZeros(weight);
  return 8u * octave + 7u - ((weight << octave) >> 28u) % 8u;
}

@compute @workgroup_size(256, 1, 1)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  if (!sampling_runs()) {
    return;
  }
  let count = vec2<u32>(histogram[thread], 0u);
  let weight = vec2<u32>(histogram[256u + thread], histogram[512u + thread]);
  let count_upto = running_sum(thread, count);
  let n_possible = total().x;
  let weight_upto = running_sum(thread, weight);
  let all_weight = total();

  // Where top-k or top-p ends: bins below `first` survive, those behind `last` do not.
  let by_count = sequence.top_k != 0u && sequence.top_k < n_possible;
  let by_weight = sequence.top_p != 0u && !by_count;
  let kept_weight = least_one(fraction_of(all_weight, sequence.top_p));
  let least = select(kept_weight, vec2<u32>(sequence.top_k, 0u), by_count);
  let end = find_thread(
    thread,
    select(weight_upto, count_upto, by_count),
    select(weight, count, by_count),
    least,
  );
  let last = select(255u, end.x, by_count || by_weight);
  let first = select(select(256u, end.x, by_weight), 0u, by_count);

  if (group.x == 0u && thread == 0u) {
    candidates.top_k = select(0u, sequence.top_k, by_count);
    candidates.top_p = sequence.top_p;
    candidates.all_weight = all_weight;
    candidates.weight_above = select(vec2<u32>(0u, 0u), end.yz, by_weight);
  }

  var surviving = vec2<u32>(0u, 0u);
  let begin = group.x * SPAN;
  for (var i = begin + thread; i < min(begin + SPAN, VOCAB_SIZE); i += THREADS) {
    let weight = weights[i];
    let bin = bin_of(max(weight, 1u));
    if (weight == 0u || bin > last) {
      continue;
    }
    if (bin >= first) {
      candidates.list[atomicAdd(&candidates.count, 1u)] = Candidate(keys[i], weight, i);
    } else if (weight >= sequence.min_p) {
      surviving = add_wide(surviving, vec2<u32>(weight, 0u));
    }
  }
  running_sum(thread, surviving);
  if (thread == 0u) {
    span_weights[group.x] = total();
  }
}
