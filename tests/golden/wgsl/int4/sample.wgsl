// The next token: the largest logit, of equals the first.

struct Sequence {
  past_length: u32, length: u32, stop: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32,
  sampling: u32, seed_low: u32, seed_high: u32, inverse_temperature: u32, top_k: u32, top_p: u32, min_p: u32,
  repetition_penalty: u32, inverse_repetition_penalty: u32, n_stop_tokens: u32, stop_tokens: array<u32, 16>,
}

const N_PARTIALS = 5u;
const VOCAB_SIZE = 271u;
const THREADS = 256u;
const STOP_TOKEN = 1u;
const STOP_LIMIT = 2u;

@group(0) @binding(0) var<storage, read_write> sequence: Sequence;
@group(0) @binding(1) var<storage, read_write> tokens: array<i32>;
@group(0) @binding(2) var<storage, read> partial_values: array<f32>;
@group(0) @binding(3) var<storage, read> partial_indices: array<u32>;

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
  for (var half = THREADS / 2; half > 0; half >>= 1u) {
    let other = thread + half;
    if (thread < half && is_better(values[other], indices[other], values[thread], indices[thread])) {
      values[thread] = values[other];
      indices[thread] = indices[other];
    }
    workgroupBarrier();
  }
}

@compute @workgroup_size(256)
fn sample_greedy(@builtin(local_invocation_index) thread: u32) {
  var token = most_likely(thread);
  if (thread == 0) {
    token = min(token, VOCAB_SIZE - 1);  // all NaN: still a token
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
  if (sequence.stop != 0) { return; }
  let past_length = sequence.total_length;
  let is_last_chunk = past_length == sequence.n_tokens;
  sequence.past_length = past_length;
  sequence.length = 1u;
  sequence.total_length = past_length + 1;
  sequence.call_length = max(past_length + 1, sequence.n_tokens);
  if (!is_last_chunk) { return; }
  for (var i = 0u; i < sequence.n_stop_tokens; i++) {
    if (token == sequence.stop_tokens[i]) {
      sequence.stop = STOP_TOKEN;
      return;
    }
  }
  tokens[sequence.n_tokens] = i32(token);
  sequence.n_tokens += 1;
  if (sequence.n_tokens >= sequence.limit) { sequence.stop = STOP_LIMIT; }
}

// Sampling, step 1 of 4: logits, after the repetition penalty, as u32 keys in their order; 0 is never drawn.

const SPAN = 512u;  // tokens_keys of the vocabulary per workgroup
const HISTOGRAM_WORDS = 768u;

@group(0) @binding(0) var<storage, read> sequence_keys: Sequence;
@group(0) @binding(1) var<storage, read> tokens_keys: array<i32>;
@group(0) @binding(2) var<storage, read> logits: array<u32>;  // f32, read as bits: NaN is told by them
@group(0) @binding(3) var<storage, read_write> keys: array<u32>;
@group(0) @binding(4) var<storage, read_write> span_keys: array<u32>;  // the greatest key of each span
@group(0) @binding(5) var<storage, read_write> histogram: array<u32>;  // cleared here for the next step

var<workgroup> greatest: atomic<u32>;
var<workgroup> seen: array<atomic<u32>, 16>;  // a bit per token of the span

// Not when the arg-max is wanted, nor after the end, nor inside a prompt.
fn sampling_runs() -> bool {
  return sequence_keys.sampling != 0 && sequence_keys.stop == 0 && sequence_keys.total_length == sequence_keys.n_tokens;
}

// The reciprocal comes from the host: division is not exact here.
fn penalised(bits: u32, is_seen: bool) -> u32 {
  if (!is_seen || (bits & 0x7f800000u) == 0x7f800000u) {
    return bits;  // infinities and NaN as they are
  }
  let logit = bitcast<f32>(bits);
  let factor = select(sequence_keys.repetition_penalty, sequence_keys.inverse_repetition_penalty, logit > 0.0);
  return bitcast<u32>(logit * bitcast<f32>(factor));
}

fn key_of(bits: u32) -> u32 {
  let magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u || bits == 0xff800000u) {
    return 0u;  // NaN, -inf
  }
  let finite = min(magnitude, 0x7f7fffffu);
  return select(0x80000000u | finite, ~bits, bits > 0x80000000u);  // -0 is 0
}

// Writes the key of the token at place `i` of the span.
fn make_key(begin: u32, i: u32, bits: u32) -> u32 {
  if (begin + i >= VOCAB_SIZE) {
    return 0u;
  }
  let is_seen = (atomicLoad(&seen[i / 32]) >> (i % 32)) % 2 == 1;
  let key = key_of(penalised(bits, is_seen));
  keys[begin + i] = key;
  return key;
}

@compute @workgroup_size(256)
fn sample_keys(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (!sampling_runs()) {
    return;
  }
  let begin = group.x * SPAN;
  // All loads before the first wait.
  let bits_0 = logits[min(begin + thread + 0, VOCAB_SIZE - 1)];
  let bits_1 = logits[min(begin + thread + 256, VOCAB_SIZE - 1)];
  if (group.x == 0) {
    for (var i = thread; i < HISTOGRAM_WORDS; i += THREADS) {
      histogram[i] = 0u;
    }
  }
  if (thread == 0) {
    atomicStore(&greatest, 0u);
  }
  for (var i = thread; i < SPAN / 32; i += THREADS) {
    atomicStore(&seen[i], 0u);
  }
  workgroupBarrier();
  if (sequence_keys.repetition_penalty != 0x3f800000u) {  // 1.0
    for (var i = thread; i < sequence_keys.n_tokens; i += THREADS) {
      let offset = u32(tokens_keys[i]) - begin;  // wraps around below the span
      if (offset < SPAN) {
        atomicOr(&seen[offset / 32], 1u << (offset % 32));
      }
    }
  }
  workgroupBarrier();
  var best = 0u;
  best = max(best, make_key(begin, thread + 0, bits_0));
  best = max(best, make_key(begin, thread + 256, bits_1));
  atomicMax(&greatest, best);
  workgroupBarrier();
  if (thread == 0) {
    span_keys[group.x] = atomicLoad(&greatest);
  }
}

// Sampling, step 2: weights, 2^31 · exp((logit - greatest) / temperature) rounded down, and their histogram.
// Integers add up to the same sum in any order and on every GPU.

const N_SPANS = 1u;

@group(0) @binding(1) var<storage, read> keys_weights: array<u32>;
@group(0) @binding(2) var<storage, read> span_keys_weights: array<u32>;
@group(0) @binding(3) var<storage, read_write> weights: array<u32>;
@group(0) @binding(4) var<storage, read_write> histogram_weights: array<atomic<u32>>;  // [3, bins]: tokens, weight low, weight high
@group(0) @binding(5) var<storage, read_write> candidates: array<u32>;  // its count is cleared

var<workgroup> greatest_key: atomic<u32>;
var<workgroup> counts: array<atomic<u32>, 256>;
var<workgroup> lows: array<atomic<u32>, 256>;
var<workgroup> highs: array<atomic<u32>, 256>;

// The upper 32 bits of a · b.
fn multiply_high(a: u32, b: u32) -> u32 {
  let low = (a & 0xffffu) * (b & 0xffffu);
  let middle = (a >> 16) * (b & 0xffffu) + (low >> 16);
  let other = (a & 0xffffu) * (b >> 16) + (middle & 0xffffu);
  return (a >> 16) * (b >> 16) + (middle >> 16) + (other >> 16);
}

// Eight bins per power of two, the greatest weights first.
fn bin_of(weight: u32) -> u32 {
  let octave = countLeadingZeros(weight);
  return 8 * octave + 7 - ((weight << octave) >> 28) % 8;
}

fn logit_of(key: u32) -> f32 {
  return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}

// 2^31 · 2^(-x / 2^26), rounded down; off by 3.5e-9 at most.
fn power_of_two(x: u32) -> u32 {
  let fraction = x << 6;
  var sum = 0x00071d9cu;
  sum = 0x005375c2u - multiply_high(fraction, sum);
  sum = 0x0273b234u - multiply_high(fraction, sum);
  sum = 0x0e349a30u - multiply_high(fraction, sum);
  sum = 0x3d7f5603u - multiply_high(fraction, sum);
  sum = 0xb17215e1u - multiply_high(fraction, sum);
  sum = 0x80000000u - multiply_high(fraction, sum) / 2;
  return sum >> (x >> 26);
}

// inverse_temperature holds 2^26 · log2(e) / temperature.
fn weight_of(key: u32, greatest: f32) -> u32 {
  if (key == 0) {
    return 0u;
  }
  let below = (greatest - logit_of(key)) * bitcast<f32>(sequence_keys.inverse_temperature);
  if (below >= 2147483648.0) {
    return 0u;  // less than 2^-32 of the greatest
  }
  return power_of_two(u32(below));
}

// Writes down a token's weight, and adds it to its bin.
fn count(token: u32, weight: u32) {
  if (token >= VOCAB_SIZE) {
    return;
  }
  weights[token] = weight;
  if (weight == 0) {
    return;
  }
  let bin = bin_of(weight);
  atomicAdd(&counts[bin], 1u);
  let old = atomicAdd(&lows[bin], weight);
  if (old > ~weight) {
    atomicAdd(&highs[bin], 1u);  // the carry: as many in any order
  }
}

@compute @workgroup_size(256)
fn sample_weights(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (!sampling_runs()) {
    return;
  }
  let begin = group.x * SPAN;
  // All loads before the first wait.
  let key_0 = keys_weights[min(begin + thread + 0, VOCAB_SIZE - 1)];
  let key_1 = keys_weights[min(begin + thread + 256, VOCAB_SIZE - 1)];
  if (group.x == 0 && thread == 0) {
    candidates[0] = 0u;
  }
  if (thread == 0) {
    atomicStore(&greatest_key, 0u);
  }
  atomicStore(&counts[thread], 0u);
  atomicStore(&lows[thread], 0u);
  atomicStore(&highs[thread], 0u);
  workgroupBarrier();
  if (thread < N_SPANS) {
    atomicMax(&greatest_key, span_keys_weights[thread]);
  }
  workgroupBarrier();
  let greatest = logit_of(atomicLoad(&greatest_key));
  count(begin + thread + 0, weight_of(key_0, greatest));
  count(begin + thread + 256, weight_of(key_1, greatest));
  workgroupBarrier();
  let n_tokens = atomicLoad(&counts[thread]);
  if (n_tokens > 0) {
    let low = atomicLoad(&lows[thread]);
    atomicAdd(&histogram_weights[thread], n_tokens);
    let old = atomicAdd(&histogram_weights[256 + thread], low);
    atomicAdd(&histogram_weights[512 + thread], atomicLoad(&highs[thread]) + select(0u, 1u, old > ~low));
  }
}

// Sampling, step 3: lists what the last step must look at one by one. With top-k the tokens down to the bin in
// which it ends, with top-p alone those of that bin, without either none.

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
  all_weight: vec2u,
  weight_above: vec2u,  // of the tokens that survive top-p and are not listed
  list: array<Candidate>,
}

fn least_one(weight: vec2u) -> vec2u {
  return select(weight, vec2u(1u, 0u), weight.x == 0 && weight.y == 0);
}

@group(0) @binding(2) var<storage, read> weights_candidates: array<u32>;
@group(0) @binding(3) var<storage, read> histogram_candidates: array<u32>;  // [3, bins]: tokens, weight low, weight high
@group(0) @binding(4) var<storage, read_write> candidates_candidates: Candidates;
@group(0) @binding(5) var<storage, read_write> span_weights: array<vec2u>;  // without the candidates_candidates

// 64-bit unsigned integers are vec2u(low, high).
fn add_wide(a: vec2u, b: vec2u) -> vec2u {
  let low = a.x + b.x;
  return vec2u(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn subtract_wide(a: vec2u, b: vec2u) -> vec2u {
  return vec2u(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

fn is_less(a: vec2u, b: vec2u) -> bool {
  return a.y < b.y || (a.y == b.y && a.x < b.x);
}

// a · part / 2^32, rounded down.
fn fraction_of(a: vec2u, part: u32) -> vec2u {
  return add_wide(vec2u(a.y * part, multiply_high(a.y, part)), vec2u(multiply_high(a.x, part), 0u));
}

var<workgroup> sums: array<vec2u, 512>;  // two halves, written by turns
var<workgroup> found: vec3u;

// The sum of `value` over this thread and those before it; sums[i] is that of thread i.
fn running_sum(thread: u32, value: vec2u) -> vec2u {
  workgroupBarrier();  // the sums may still be read from the last call
  var sum = value;
  var half = 0u;  // so that the last one is the first half
  sums[half + thread] = sum;
  for (var step = 1u; step < 256; step *= 4) {
    workgroupBarrier();
    let a = select(vec2u(), sums[half + max(thread, step) - step], thread >= step);
    let b = select(vec2u(), sums[half + max(thread, 2 * step) - 2 * step], thread >= 2 * step);
    let c = select(vec2u(), sums[half + max(thread, 3 * step) - 3 * step], thread >= 3 * step);
    sum = add_wide(add_wide(sum, a), add_wide(b, c));
    half = 256 - half;
    sums[half + thread] = sum;
  }
  workgroupBarrier();
  return sum;
}

fn total() -> vec2u {
  return sums[255];
}

// The thread at which the running sum reaches `target_sum`, and the sum before it; else thread 0.
fn find_thread(thread: u32, upto: vec2u, value: vec2u, target_sum: vec2u) -> vec3u {
  if (thread == 0) {
    found = vec3u(0u, 0u, 0u);
  }
  workgroupBarrier();
  let before = subtract_wide(upto, value);
  if (is_less(before, target_sum) && !is_less(upto, target_sum)) {
    found = vec3u(thread, before);
  }
  return workgroupUniformLoad(&found);
}

// Lists a candidate; the weight of any other that survives.
fn sort_out(token: u32, weight: u32, first: u32, last: u32) -> u32 {
  let bin = bin_of(max(weight, 1u));
  if (token >= VOCAB_SIZE || weight == 0 || bin > last) {
    return 0u;
  }
  if (bin >= first) {
    candidates_candidates.list[atomicAdd(&candidates_candidates.count, 1u)] = Candidate(keys_weights[token], weight, token);
    return 0u;
  }
  return select(0u, weight, weight >= sequence_keys.min_p);
}

@compute @workgroup_size(256)
fn sample_candidates(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (!sampling_runs()) {
    return;
  }
  let begin = group.x * SPAN;
  // All loads before the first wait.
  let weight_0 = weights_candidates[min(begin + thread + 0, VOCAB_SIZE - 1)];
  let weight_1 = weights_candidates[min(begin + thread + 256, VOCAB_SIZE - 1)];
  let count = vec2u(histogram_candidates[thread], 0u);
  let weight = vec2u(histogram_candidates[256 + thread], histogram_candidates[512 + thread]);
  let count_upto = running_sum(thread, count);
  let n_possible = total().x;
  let weight_upto = running_sum(thread, weight);
  let all_weight = total();

  // Bins below `first` survive, those behind `last` do not.
  let by_count = sequence_keys.top_k != 0 && sequence_keys.top_k < n_possible;
  let by_weight = sequence_keys.top_p != 0 && !by_count;
  let kept_weight = least_one(fraction_of(all_weight, sequence_keys.top_p));
  let least = select(kept_weight, vec2u(sequence_keys.top_k, 0u), by_count);
  let end = find_thread(
    thread,
    select(weight_upto, count_upto, by_count),
    select(weight, count, by_count),
    least,
  );
  let last = select(255u, end.x, by_count || by_weight);
  let first = select(select(256u, end.x, by_weight), 0u, by_count);

  if (group.x == 0 && thread == 0) {
    candidates_candidates.top_k = select(0u, sequence_keys.top_k, by_count);
    candidates_candidates.top_p = sequence_keys.top_p;
    candidates_candidates.all_weight = all_weight;
    candidates_candidates.weight_above = select(vec2u(0u, 0u), end.yz, by_weight);
  }

  var surviving = vec2u(0u, 0u);
  surviving = add_wide(surviving, vec2u(sort_out(begin + thread + 0, weight_0, first, last), 0u));
  surviving = add_wide(surviving, vec2u(sort_out(begin + thread + 256, weight_1, first, last), 0u));
  running_sum(thread, surviving);
  if (thread == 0) {
    span_weights[group.x] = total();
  }
}

// The next token: the largest logit, or sampling's step 4.

struct Candidates_main {
  count: u32,
  top_k: u32,  // 0: all
  top_p: u32,  // in 2^-32; 0: all
  padding: u32,
  all_weight: vec2u,
  weight_above: vec2u,  // of the tokens that survive top-p and are not listed
  list: array<Candidate>,
}

@group(0) @binding(4) var<storage, read> keys_main: array<u32>;
@group(0) @binding(5) var<storage, read> weights_main: array<u32>;
@group(0) @binding(6) var<storage, read> candidates_main: Candidates_main;
@group(0) @binding(7) var<storage, read> span_weights_main: array<vec2u>;

var<workgroup> draws: bool;

fn sampling_runs_main() -> bool {
  return sequence.sampling != 0 && sequence.stop == 0 && sequence.total_length == sequence.n_tokens;
}

// Philox-4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011): the first word.
fn philox(counter: u32, seed: vec2u) -> u32 {
  var state = vec4u(counter, 0u, 0u, 0u);
  var key = seed;
  for (var i = 0u; i < 10; i++) {
    let high = vec2u(multiply_high(0xd2511f53u, state.x), multiply_high(0xcd9e8d57u, state.z));
    let low = vec2u(0xd2511f53u * state.x, 0xcd9e8d57u * state.z);
    state = vec4u(high.y ^ state.y ^ key.x, low.y, high.x ^ state.w ^ key.y, low.x);
    key += vec2u(0x9e3779b9u, 0xbb67ae85u);
  }
  return state.x;
}

const TOKENS_PER_THREAD = SPAN / THREADS;
const SAMPLING_DRAW = 1u;

var<workgroup> lows_main: array<atomic<u32>, THREADS>;
var<workgroup> highs_main: array<atomic<u32>, THREADS>;
var<workgroup> differing: atomic<u32>;
var<workgroup> n_differing_bits: u32;

fn clear_bins(thread: u32) {
  workgroupBarrier();
  atomicStore(&lows_main[thread], 0u);
  atomicStore(&highs_main[thread], 0u);
  workgroupBarrier();
}

fn add_to_bin(bin: u32, value: u32) {
  let old = atomicAdd(&lows_main[bin], value);
  if (old > ~value) {
    atomicAdd(&highs_main[bin], 1u);  // the carry: as many in any order
  }
}

fn bin_sum(bin: u32) -> vec2u {
  return vec2u(atomicLoad(&lows_main[bin]), atomicLoad(&highs_main[bin]));
}

// Four candidates of the list. Behind its end they are the last one, and not `there`.
struct Four {
  keys: vec4u,
  weights: vec4u,
  tokens: vec4u,
  there: vec4<bool>,
}

const AT_ONCE = 8 * THREADS;  // candidates_main that are asked for before anything waits: eight of each thread

fn four(i: u32) -> Four {
  let places = vec4u(i) + THREADS * vec4u(0u, 1u, 2u, 3u);
  let last = candidates_main.count - 1;
  let a = candidates_main.list[min(places.x, last)];
  let b = candidates_main.list[min(places.y, last)];
  let c = candidates_main.list[min(places.z, last)];
  let d = candidates_main.list[min(places.w, last)];
  return Four(
    vec4u(a.key, b.key, c.key, d.key),
    vec4u(a.weight, b.weight, c.weight, d.weight),
    vec4u(a.token, b.token, c.token, d.token),
    places <= vec4u(last));
}

// How many of the low bits of their keys the candidates differ in: the others need no digit.
fn differing_bits(thread: u32) -> u32 {
  if (thread == 0) {
    atomicStore(&differing, 0u);
  }
  workgroupBarrier();
  var bits = 0u;
  for (var i = thread; i < candidates_main.count; i += AT_ONCE) {
    let first = vec4u(candidates_main.list[0].key);
    let keys_main = (four(i).keys ^ first) | (four(i + AT_ONCE / 2).keys ^ first);
    bits |= keys_main.x | keys_main.y | keys_main.z | keys_main.w;
  }
  atomicOr(&differing, bits);
  workgroupBarrier();
  if (thread == 0) {
    n_differing_bits = 32 - countLeadingZeros(atomicLoad(&differing));
  }
  return workgroupUniformLoad(&n_differing_bits);
}

// Bins the candidates whose ~key begins with `prefix` by their next digit.
fn add_digits(four: Four, by_weight: bool, prefix: u32, mask: u32, shift: u32) {
  let keys_main = ~four.keys;
  let amounts = select(vec4u(1), four.weights, by_weight);
  let bins = (keys_main >> vec4u(shift)) & vec4u(0xffu);
  let counts = four.there & (((keys_main ^ vec4u(prefix)) & vec4u(mask)) == vec4u(0));
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

// The greatest key such that the candidates down to it come to `least`, by number or by weight: digit by digit.
fn threshold(thread: u32, by_weight: bool, least: vec2u) -> u32 {
  var missing = least;
  var n_bits = differing_bits(thread);  // still to be found
  var mask = select(0u, ~0u << n_bits, n_bits < 32);
  var prefix = ~candidates_main.list[0].key & mask;  // of ~key: the greatest key first
  while (n_bits > 0) {
    let shift = max(n_bits, 8u) - 8;
    clear_bins(thread);
    for (var i = thread; i < candidates_main.count; i += AT_ONCE) {
      let these = four(i);
      let those = four(i + AT_ONCE / 2);
      add_digits(these, by_weight, prefix, mask, shift);
      add_digits(those, by_weight, prefix, mask, shift);
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

fn weight_down(four: Four, key: u32) -> vec2u {
  let weights_main = select(vec4u(0), four.weights, four.there & (four.keys >= vec4u(key)));
  let sum = add_wide(vec2u(weights_main.x, 0u), vec2u(weights_main.y, 0u));
  return add_wide(sum, add_wide(vec2u(weights_main.z, 0u), vec2u(weights_main.w, 0u)));
}

// The weight of the candidates with `key` or a greater one.
fn weight_down_to(thread: u32, key: u32) -> vec2u {
  var sum = vec2u(0u, 0u);
  for (var i = thread; i < candidates_main.count; i += AT_ONCE) {
    let these = four(i);
    let those = four(i + AT_ONCE / 2);
    sum = add_wide(sum, add_wide(weight_down(these, key), weight_down(those, key)));
  }
  running_sum(thread, sum);
  return total();
}

// The weight with which token `i` is drawn: 0 if a filter took it out.
fn surviving_weight(key: u32, weight: u32, least_key: u32) -> u32 {
  return select(0u, weight, key >= least_key && weight >= sequence.min_p);
}

fn add_to_spans(four: Four, least_key: u32) {
  let survives = (four.keys >= vec4u(least_key)) & (four.weights >= vec4u(sequence.min_p));
  let amounts = select(vec4u(0), four.weights, four.there & survives);
  let spans = four.tokens / SPAN;
  add_to_bin(spans.x, amounts.x);
  add_to_bin(spans.y, amounts.y);
  add_to_bin(spans.z, amounts.z);
  add_to_bin(spans.w, amounts.w);
}

// One for a seed and a place in the text.
fn random_word() -> u32 {
  return philox(sequence.n_tokens, vec2u(sequence.seed_low, sequence.seed_high));
}

// The first token at which the running sum of the surviving weights is over a random fraction of their total.
fn drawn(thread: u32) -> u32 {
  var least_key = 0u;
  var weight_kept = candidates_main.all_weight;
  if (candidates_main.top_k != 0) {
    least_key = threshold(thread, false, vec2u(candidates_main.top_k, 0u));
    weight_kept = weight_down_to(thread, least_key);
  }
  if (candidates_main.top_p != 0) {
    let least = least_one(fraction_of(weight_kept, candidates_main.top_p));
    least_key = threshold(thread, true, subtract_wide(least, candidates_main.weight_above));
  }

  // A thread per span of the vocabulary.
  clear_bins(thread);
  for (var i = thread; i < candidates_main.count; i += AT_ONCE) {
    let these = four(i);
    let those = four(i + AT_ONCE / 2);
    add_to_spans(these, least_key);
    add_to_spans(those, least_key);
  }
  workgroupBarrier();
  var value = bin_sum(thread);
  if (thread < N_SPANS) {
    value = add_wide(value, span_weights_main[thread]);
  }
  var upto = running_sum(thread, value);
  // The first survivor where a draw is not wanted.
  let random = select(0u, random_word(), sequence.sampling == SAMPLING_DRAW);
  let target_sum = add_wide(fraction_of(total(), random), vec2u(1u, 0u));
  let span = find_thread(thread, upto, value, target_sum);

  // A thread per few tokens of that span.
  let begin = span.x * SPAN + thread * TOKENS_PER_THREAD;
  let end = min(begin + TOKENS_PER_THREAD, VOCAB_SIZE);
  value = vec2u(0u, 0u);
  for (var i = begin; i < end; i++) {
    value = add_wide(value, vec2u(surviving_weight(keys_main[i], weights_main[i], least_key), 0u));
  }
  upto = running_sum(thread, value);
  let place = find_thread(thread, upto, value, subtract_wide(target_sum, span.yz));

  var missing = subtract_wide(subtract_wide(target_sum, span.yz), place.yz);
  let first = span.x * SPAN + place.x * TOKENS_PER_THREAD;
  for (var token = first; token < min(first + TOKENS_PER_THREAD, VOCAB_SIZE); token++) {
    let weight = vec2u(surviving_weight(keys_main[token], weights_main[token], least_key), 0u);
    if (!is_less(weight, missing)) {
      return token;
    }
    missing = subtract_wide(missing, weight);
  }
  return first;  // no token can be drawn: all are -inf or NaN
}

@compute @workgroup_size(256)
fn sample_main(@builtin(local_invocation_index) thread: u32) {
  if (thread == 0) {
    draws = sampling_runs_main();
  }
  var token = 0u;
  if (workgroupUniformLoad(&draws)) {
    token = drawn(thread);
  } else {
    token = most_likely(thread);
  }
  if (thread == 0) {
    token = min(token, VOCAB_SIZE - 1);  // all NaN: still a token
    advance(token);
  }
}
