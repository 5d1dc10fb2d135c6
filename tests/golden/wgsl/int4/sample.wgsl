// The next token, of one workgroup: the largest logit (of equals the first), or the last step of sampling.

struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
  sampling: u32, seed_low: u32, seed_high: u32, inverse_temperature: u32, top_k: u32, top_p: u32, min_p: u32,
  repetition_penalty: u32, inverse_repetition_penalty: u32, n_stop_tokens: u32, stop_tokens: array<u32, 16>,
}

const N_PARTIALS = 5u;
const VOCAB_SIZE = 271u;
const SPAN = 1024u;
const N_SPANS = 1u;
const THREADS = 256u;
const STOP_TOKEN = 1u;
const STOP_LIMIT = 2u;

struct Candidate {
  key: u32,
  weight: u32,
  token: u32,
}

struct Candidates {
  count: u32,
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

@group(0) @binding(0) var<storage, read> partial_values: array<f32>;
@group(0) @binding(1) var<storage, read> partial_indices: array<u32>;
@group(0) @binding(2) var<storage, read> keys: array<u32>;
@group(0) @binding(3) var<storage, read> weights: array<u32>;
@group(0) @binding(4) var<storage, read> candidates: Candidates;
@group(0) @binding(5) var<storage, read> span_weights: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read_write> sequence: Sequence;
@group(0) @binding(7) var<storage, read_write> tokens: array<i32>;

var<workgroup> draws: bool;

var<workgroup> values: array<f32, THREADS>;
var<workgroup> indices: array<u32, THREADS>;

fn is_better(value: f32, index: u32, than_value: f32, than_index: u32) -> bool {
  return value > than_value || (value == than_value && index < than_index);
}

// Leaves the best candidate in values[0] and indices[0].
fn reduce_argmax(thread: u32, value: f32, index: u32) {
  values[thread] = value;
  indices[thread] = index;
  workgroupBarrier();
  for (var half = THREADS / 2u; half > 0u; half >>= 1u) {
    let other = thread + half;
    if (thread < half && is_better(values[other], indices[other], values[thread], indices[thread])) {
      values[thread] = values[other];
      indices[thread] = indices[other];
    }
    workgroupBarrier();
  }
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

// Whether this step draws a token: not when the arg-max is wanted, nor after the end, nor inside a prompt.
fn sampling_runs() -> bool {
  return sequence.sampling != 0u && sequence.stop == 0u && sequence.total_length == sequence.n_tokens;
}

// Philox-4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011): the first word.
fn philox(counter: u32, seed: vec2<u32>) -> u32 {
  var state = vec4<u32>(counter, 0u, 0u, 0u);
  var key = seed;
  for (var i = 0u; i < 10u; i++) {
    let high = vec2<u32>(multiply_high(0xd2511f53u, state.x), multiply_high(0xcd9e8d57u, state.z));
    let low = vec2<u32>(0xd2511f53u * state.x, 0xcd9e8d57u * state.z);
    state = vec4<u32>(high.y ^ state.y ^ key.x, low.y, high.x ^ state.w ^ key.y, low.x);
    key += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
  }
  return state.x;
}

const TOKENS_PER_THREAD = SPAN / THREADS;
const SAMPLING_DRAW = 1u;

var<workgroup> lows: array<atomic<u32>, THREADS>;
var<workgroup> highs: array<atomic<u32>, THREADS>;
var<workgroup> differing: atomic<u32>;
var<workgroup> n_differing_bits: u32;

fn clear_bins(thread: u32) {
  workgroupBarrier();
  atomicStore(&lows[thread], 0u);
  atomicStore(&highs[thread], 0u);
  workgroupBarrier();
}

fn add_to_bin(bin: u32, value: u32) {
  let old = atomicAdd(&lows[bin], value);
  if (old > ~value) {
    atomicAdd(&highs[bin], 1u);  // the carry: as many in any order
  }
}

fn bin_sum(bin: u32) -> vec2<u32> {
  return vec2<u32>(atomicLoad(&lows[bin]), atomicLoad(&highs[bin]));
}

// A thread reads four candidates at a time, so that it waits for memory once. Behind the last candidate it
// reads that one again.
fn listed(i: u32, step: u32) -> u32 {
  return min(i + step * THREADS, candidates.count - 1u);
}

fn four_keys(i: u32) -> vec4<u32> {
  return vec4<u32>(
    candidates.list[i].key,
    candidates.list[listed(i, 1u)].key,
    candidates.list[listed(i, 2u)].key,
    candidates.list[listed(i, 3u)].key,
  );
}

fn four_weights(i: u32) -> vec4<u32> {
  return vec4<u32>(
    candidates.list[i].weight,
    candidates.list[listed(i, 1u)].weight,
    candidates.list[listed(i, 2u)].weight,
    candidates.list[listed(i, 3u)].weight,
  );
}

fn four_tokens(i: u32) -> vec4<u32> {
  return vec4<u32>(
    candidates.list[i].token,
    candidates.list[listed(i, 1u)].token,
    candidates.list[listed(i, 2u)].token,
    candidates.list[listed(i, 3u)].token,
  );
}

// Which of the four are not behind the last one.
fn four_listed(i: u32) -> vec4<bool> {
  return vec4<u32>(i) + THREADS * vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(candidates.count);
}

// How many of the low bits of their keys the candidates differ in. The others are the same for most lists,
// and need no digit: all candidates would meet in one bin.
fn differing_bits(thread: u32) -> u32 {
  if (thread == 0u) {
    atomicStore(&differing, 0u);
  }
  workgroupBarrier();
  var bits = 0u;
  for (var i = thread; i < candidates.count; i += 4u * THREADS) {
    let keys = four_keys(i) ^ vec4<u32>(candidates.list[0].key);
    bits |= keys.x | keys.y | keys.z | keys.w;
  }
  atomicOr(&differing, bits);
  workgroupBarrier();
  if (thread == 0u) {
    n_differing_bits = 32u - countLeadingZeros(atomicLoad(&differing));
  }
  return workgroupUniformLoad(&n_differing_bits);
}

// The greatest key such that the candidates with that key or a greater one come to `least`, by number or
// by weight: digit after digit, the most significant first.
fn threshold(thread: u32, by_weight: bool, least: vec2<u32>) -> u32 {
  var missing = least;
  var n_bits = differing_bits(thread);  // still to be found
  var mask = select(0u, ~0u << n_bits, n_bits < 32u);
  var prefix = ~candidates.list[0].key & mask;  // of ~key: the greatest key first
  while (n_bits > 0u) {
    let shift = max(n_bits, 8u) - 8u;
    clear_bins(thread);
    for (var i = thread; i < candidates.count; i += 4u * THREADS) {
      let keys = ~four_keys(i);
      let amounts = select(vec4<u32>(1u), four_weights(i), by_weight);
      let bins = (keys >> vec4<u32>(shift)) & vec4<u32>(0xffu);
      let counts = four_listed(i) & (((keys ^ vec4<u32>(prefix)) & vec4<u32>(mask)) == vec4<u32>(0u));
      if (counts.x) {
        add_to_bin(bins.x, amounts.x);
      }
      if (counts.y) {
        add_to_bin(bins.y, amounts.y);
      }
      if (counts.z) {
        add_to_bin(bins.z, amounts.z);
      }
      if (counts.w) {
        add_to_bin(bins.w, amounts.w);
      }
    }
    workgroupBarrier();
    let value = bin_sum(thread);
    let end = find_thread(thread, running_sum(thread, value), value, missing);
    prefix |= end.x << shift;
    mask |= 0xffu << shift;
    missing = subtract_wide(missing, end.yz);
    n_bits = shift;
  }
  return ~prefix;
}

// The weight of the candidates with `key` or a greater one.
fn weight_down_to(thread: u32, key: u32) -> vec2<u32> {
  var sum = vec2<u32>(0u, 0u);
  for (var i = thread; i < candidates.count; i += 4u * THREADS) {
    let weights = select(vec4<u32>(0u), four_weights(i), four_listed(i) & (four_keys(i) >= vec4<u32>(key)));
    sum = add_wide(sum, vec2<u32>(weights.x, 0u));
    sum = add_wide(sum, vec2<u32>(weights.y, 0u));
    sum = add_wide(sum, vec2<u32>(weights.z, 0u));
    sum = add_wide(sum, vec2<u32>(weights.w, 0u));
  }
  running_sum(thread, sum);
  return total();
}

// The weight with which token `i` is drawn: 0 if a filter took it out.
fn surviving_weight(key: u32, weight: u32, least_key: u32) -> u32 {
  return select(0u, weight, key >= least_key && weight >= sequence.min_p);
}

// The same for one seed and place in the text, however the steps are put together.
fn random_word() -> u32 {
  return philox(sequence.n_tokens, vec2<u32>(sequence.seed_low, sequence.seed_high));
}

// A token drawn in proportion to the surviving weights: the first, in the order of the vocabulary, at which
// their running sum is over a random fraction of their total.
fn drawn(thread: u32) -> u32 {
  var least_key = 0u;
  var weight_kept = candidates.all_weight;
  if (candidates.top_k != 0u) {
    least_key = threshold(thread, false, vec2<u32>(candidates.top_k, 0u));
    weight_kept = weight_down_to(thread, least_key);
  }
  if (candidates.top_p != 0u) {
    let least = least_one(fraction_of(weight_kept, candidates.top_p));
    least_key = threshold(thread, true, subtract_wide(least, candidates.weight_above));
  }

  // A thread per span of the vocabulary.
  clear_bins(thread);
  for (var i = thread; i < candidates.count; i += 4u * THREADS) {
    let weights = four_weights(i);
    let survives = (four_keys(i) >= vec4<u32>(least_key)) & (weights >= vec4<u32>(sequence.min_p));
    let amounts = select(vec4<u32>(0u), weights, four_listed(i) & survives);
    let spans = four_tokens(i) / SPAN;
    add_to_bin(spans.x, amounts.x);
    add_to_bin(spans.y, amounts.y);
    add_to_bin(spans.z, amounts.z);
    add_to_bin(spans.w, amounts.w);
  }
  workgroupBarrier();
  var value = bin_sum(thread);
  if (thread < N_SPANS) {
    value = add_wide(value, span_weights[thread]);
  }
  var upto = running_sum(thread, value);
  // The first survivor where a draw is not wanted; 1 is the least running sum there is.
  let random = select(0u, random_word(), sequence.sampling == SAMPLING_DRAW);
  let target_sum = add_wide(fraction_of(total(), random), vec2<u32>(1u, 0u));
  let span = find_thread(thread, upto, value, target_sum);

  // A thread per few tokens of that span.
  let begin = span.x * SPAN + thread * TOKENS_PER_THREAD;
  let end = min(begin + TOKENS_PER_THREAD, VOCAB_SIZE);
  value = vec2<u32>(0u, 0u);
  for (var i = begin; i < end; i++) {
    value = add_wide(value, vec2<u32>(surviving_weight(keys[i], weights[i], least_key), 0u));
  }
  upto = running_sum(thread, value);
  let place = find_thread(thread, upto, value, subtract_wide(target_sum, span.yz));

  var missing = subtract_wide(subtract_wide(target_sum, span.yz), place.yz);
  let first = span.x * SPAN + place.x * TOKENS_PER_THREAD;
  for (var token = first; token < min(first + TOKENS_PER_THREAD, VOCAB_SIZE); token++) {
    let weight = vec2<u32>(surviving_weight(keys[token], weights[token], least_key), 0u);
    if (!is_less(weight, missing)) {
      return token;
    }
    missing = subtract_wide(missing, weight);
  }
  return first;  // no token can be drawn: all are -inf or NaN
}

@compute @workgroup_size(256, 1, 1)
fn main(@builtin(local_invocation_index) thread: u32) {
  if (thread == 0u) {
    draws = sampling_runs();
  }
  var token = 0u;
  if (workgroupUniformLoad(&draws)) {
    token = drawn(thread);
  } else {
    token = most_likely(thread);
  }
  if (thread == 0u) {
    token = min(token, VOCAB_SIZE - 1u);  // all NaN: still a token
    advance(token);
  }
}

fn most_likely(thread: u32) -> u32 {
  var value = -3.4028234e38;
  var index = 0xffffffffu;
  for (var i = thread; i < N_PARTIALS; i += THREADS) {
    if (is_better(partial_values[i], partial_indices[i], value, index)) {
      value = partial_values[i];
      index = partial_indices[i];
    }
  }
  reduce_argmax(thread, value, index);
  return indices[0];
}

fn advance(token: u32) {
  if (sequence.stop != 0u) { return; }
  let past_length = sequence.total_length;
  let is_last_chunk = past_length == sequence.n_tokens;
  sequence.past_length = past_length;
  sequence.length = 1u;
  sequence.total_length = past_length + 1u;
  sequence.call_length = max(past_length + 1u, sequence.n_tokens);
  if (!is_last_chunk) { return; }
  for (var i = 0u; i < sequence.n_stop_tokens; i++) {
    if (token == sequence.stop_tokens[i]) {
      sequence.stop = STOP_TOKEN;
      return;
    }
  }
  tokens[sequence.n_tokens] = i32(token);
  sequence.n_tokens += 1u;
  if (sequence.n_tokens >= sequence.limit) { sequence.stop = STOP_LIMIT; }
}
