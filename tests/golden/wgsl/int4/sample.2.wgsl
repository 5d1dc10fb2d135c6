// The next token: the largest logit, of equals the first.

struct Sequence {
  past_length: u32, length: u32, stop: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32,
  sampling: u32, seed_low: u32, seed_high: u32, inverse_temperature: u32, top_k: u32, top_p: u32, min_p: u32,
  repetition_penalty: u32, inverse_repetition_penalty: u32, n_stop_tokens: u32, stop_tokens: array<u32, 16>,
}

const N_PARTIALS = 68u;
const VOCAB_SIZE = 271u;
const THREADS = 16u;
const STOP_TOKEN = 1u;
const STOP_LIMIT = 2u;

@group(0) @binding(0) var<storage, read_write> sequence: Sequence;
@group(0) @binding(1) var<storage, read_write> tokens: array<i32>;
@group(0) @binding(2) var<storage, read> partial_values: array<f32>;
@group(0) @binding(3) var<storage, read> partial_indices: array<u32>;

struct Best {
  value: f32,
  index: u32,
}

const NONE = Best(-3.4028234e38, 0xffffffffu);

var<workgroup> bests: array<Best, THREADS>;

fn better(a: Best, b: Best) -> Best {
  if (b.value > a.value || (b.value == a.value && b.index < a.index)) {
    return b;
  }
  return a;
}

// Leaves the best of all threads in bests[0].
fn reduce_argmax(thread: u32, best: Best) {
  bests[thread] = best;
  for (var n = THREADS / 4; n > 0; n /= 4) {
    workgroupBarrier();
    if (thread < n) {
      bests[thread] = better(
        better(bests[thread], bests[thread + n]), better(bests[thread + 2 * n], bests[thread + 3 * n]));
    }
  }
  workgroupBarrier();
}

@compute @workgroup_size(16)
fn sample_greedy(@builtin(local_invocation_index) thread: u32) {
  let now = sequence;  // before anything waits
  var token = most_likely(thread);
  if (thread == 0) {
    token = min(token, VOCAB_SIZE - 1);  // all NaN: still a token
    advance(token, now);
  }
}

fn most_likely(thread: u32) -> u32 {
  var best = NONE;
  // Four loads before anything waits; behind the end the last one again.
  for (var i = thread; i < N_PARTIALS; i += 4 * THREADS) {
    let a = partial(i);
    let b = partial(i + THREADS);
    let c = partial(i + 2 * THREADS);
    let d = partial(i + 3 * THREADS);
    best = better(best, better(better(a, b), better(c, d)));
  }
  reduce_argmax(thread, best);
  return bests[0].index;
}

fn partial(i: u32) -> Best {
  let at = min(i, N_PARTIALS - 1);
  return Best(partial_values[at], partial_indices[at]);
}

fn advance(token: u32, now: Sequence) {
  if (now.stop != 0) { return; }
  sequence.past_length = now.total_length;
  sequence.length = 1u;
  sequence.total_length = now.total_length + 1;
  sequence.call_length = max(now.total_length + 1, now.n_tokens);
  if (now.total_length != now.n_tokens) { return; }  // more of the prompt is to come
  for (var i = 0u; i < now.n_stop_tokens; i++) {
    if (token == sequence.stop_tokens[i]) {
      sequence.stop = STOP_TOKEN;
      return;
    }
  }
  tokens[now.n_tokens] = i32(token);
  sequence.n_tokens = now.n_tokens + 1;
  if (now.n_tokens + 1 >= now.limit) { sequence.stop = STOP_LIMIT; }
}

// Sampling, step 1 of 4: logits, after the repetition penalty, as u32 keys in their order; 0 is never drawn.

const SPAN = 512u;  // tokens of the vocabulary per workgroup
const HISTOGRAM_WORDS = 768u;

@group(0) @binding(0) var<storage, read> sequence_keys: Sequence;
@group(0) @binding(1) var<storage, read> tokens_keys: array<i32>;
@group(0) @binding(2) var<storage, read> logits: array<u32>;  // f32, read as bits: NaN is told by them
@group(0) @binding(3) var<storage, read_write> keys: array<u32>;
@group(0) @binding(4) var<storage, read_write> span_keys: array<u32>;  // the greatest ones
@group(0) @binding(5) var<storage, read_write> histogram: array<u32>;  // cleared here

var<workgroup> greatest: atomic<u32>;
var<workgroup> seen: array<atomic<u32>, 16>;  // a bit per token of the span

// Not when the arg-max is wanted, nor after the end, nor inside a prompt.
fn sampling_runs(now: Sequence) -> bool {
  return now.sampling != 0 && now.stop == 0 && now.total_length == now.n_tokens;
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

@compute @workgroup_size(16)
fn sample_keys(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (!sampling_runs(sequence_keys)) {
    return;
  }
  let begin = group.x * SPAN;
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
  for (var i = thread; i < min(SPAN, VOCAB_SIZE - begin); i += THREADS) {
    best = max(best, make_key(begin, i, logits[begin + i]));
  }
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
@group(0) @binding(5) var<storage, read_write> count_of_candidates: array<u32>;  // cleared

const BINS = 256u;
var<workgroup> greatest_key: atomic<u32>;

// The upper 32 bits of a · b.
fn multiply_high(a: u32, b: u32) -> u32 {
  let low = (a & 0xffffu) * (b & 0xffffu);
  let middle = (a >> 16) * (b & 0xffffu) + (low >> 16);
  let other = (a & 0xffffu) * (b >> 16) + (middle & 0xffffu);
  return (a >> 16) * (b >> 16) + (middle >> 16) + (other >> 16);
}

// 8 bins per power of two, the greatest weights first.
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

// Top-k looks for numbers of tokens there, top-p for weights.
fn uses_bins() -> bool {
  return sequence_keys.top_k != 0 || sequence_keys.top_p != 0;
}

// Writes down a token's weight, and adds it to its bin.
fn count(token: u32, weight: u32) {
  if (token >= VOCAB_SIZE) {
    return;
  }
  weights[token] = weight;
  if (weight == 0 || !uses_bins()) {
    return;
  }
  let bin = bin_of(weight);
  if (sequence_keys.top_k != 0) {
    atomicAdd(&histogram_weights[bin], 1u);
  }
  if (sequence_keys.top_p == 0) {
    return;
  }
  let old = atomicAdd(&histogram_weights[BINS + bin], weight);
  if (old > ~weight) {
    atomicAdd(&histogram_weights[2 * BINS + bin], 1u);  // the carry: as many in any order
  }
}

@compute @workgroup_size(16)
fn sample_weights(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (!sampling_runs(sequence_keys)) {
    return;
  }
  let begin = group.x * SPAN;
  if (group.x == 0 && thread == 0) {
    count_of_candidates[0] = 0u;
  }
  if (thread == 0) {
    atomicStore(&greatest_key, 0u);
  }
  workgroupBarrier();
  if (thread < N_SPANS) {
    atomicMax(&greatest_key, span_keys_weights[thread]);
  }
  workgroupBarrier();
  let greatest = logit_of(atomicLoad(&greatest_key));
  for (var i = begin + thread; i < min(begin + SPAN, VOCAB_SIZE); i += THREADS) {
    count(i, weight_of(keys_weights[i], greatest));
  }
}

// Sampling, step 3: lists the tokens that the last step must look at: with top-k those down to the bin in which
// it ends, with top-p alone those of that bin.

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
@group(0) @binding(3) var<storage, read> histogram_candidates: array<u32>;
@group(0) @binding(4) var<storage, read_write> candidates: Candidates;
@group(0) @binding(5) var<storage, read_write> span_weights: array<vec2u>;  // without the candidates

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

var<workgroup> sums: array<vec2u, 32>;  // two halves, written by turns
var<workgroup> found: vec3u;

// The sum of `value` over this thread and those before it; sums[i] is that of thread i.
fn running_sum(thread: u32, value: vec2u) -> vec2u {
  workgroupBarrier();  // the sums may still be read from the last call
  var sum = value;
  var half = 0u;  // so that the last one is the first half
  sums[half + thread] = sum;
  for (var step = 1u; step < 16; step *= 4) {
    workgroupBarrier();
    let a = select(vec2u(), sums[half + max(thread, step) - step], thread >= step);
    let b = select(vec2u(), sums[half + max(thread, 2 * step) - 2 * step], thread >= 2 * step);
    let c = select(vec2u(), sums[half + max(thread, 3 * step) - 3 * step], thread >= 3 * step);
    sum = add_wide(add_wide(sum, a), add_wide(b, c));
    half = 16 - half;
    sums[half + thread] = sum;
  }
  workgroupBarrier();
  return sum;
}

fn total() -> vec2u {
  return sums[15];
}

// What the one thread has that finds it; else zeros.
fn find(thread: u32, is_mine: bool, mine: vec3u) -> vec3u {
  if (thread == 0) {
    found = vec3u();
  }
  workgroupBarrier();
  if (is_mine) {
    found = mine;
  }
  return workgroupUniformLoad(&found);
}

const BINS_PER_THREAD = 16u;

// Of a bin the number of tokens, or their weight.
fn bin_sum(bin: u32, by_count: bool) -> vec2u {
  if (by_count) {
    return vec2u(histogram_candidates[bin], 0u);
  }
  return vec2u(histogram_candidates[BINS + bin], histogram_candidates[2 * BINS + bin]);
}

// The bin in which a running sum reaches `least` tokens, or that part of all weight, and the sum before it; else
// bin 0. Leaves the sum of all bins in total().
fn find_bin(thread: u32, least: u32, by_count: bool) -> vec3u {
  var value = vec2u();
  for (var i = 0u; i < BINS_PER_THREAD; i++) {
    value = add_wide(value, bin_sum(thread * BINS_PER_THREAD + i, by_count));
  }
  let upto = running_sum(thread, value);
  let wanted = select(least_one(fraction_of(total(), least)), vec2u(least, 0u), by_count);
  var before = subtract_wide(upto, value);
  var bin = thread * BINS_PER_THREAD;
  let is_mine = is_less(before, wanted) && !is_less(upto, wanted);
  for (var i = 1u; is_mine && i < BINS_PER_THREAD; i++) {
    let sum = add_wide(before, bin_sum(bin, by_count));
    if (!is_less(sum, wanted)) {
      break;
    }
    before = sum;
    bin++;
  }
  return find(thread, is_mine, vec3u(bin, before));
}

// Lists a candidate; the weight of any other that survives.
fn sort_out(token: u32, weight: u32, first: u32, last: u32) -> u32 {
  let bin = bin_of(max(weight, 1u));
  if (token >= VOCAB_SIZE || weight == 0 || bin > last) {
    return 0u;
  }
  if (bin >= first) {
    candidates.list[atomicAdd(&candidates.count, 1u)] = Candidate(keys_weights[token], weight, token);
    return 0u;
  }
  return select(0u, weight, weight >= sequence_keys.min_p);
}

@compute @workgroup_size(16)
fn sample_candidates(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  if (!sampling_runs(sequence_keys)) {
    return;
  }
  let begin = group.x * SPAN;
  // Bins below `first` survive, those behind `last` do not.
  var first = BINS;
  var last = BINS - 1;
  var top_k = 0u;
  if (sequence_keys.top_k != 0) {
    let end = find_bin(thread, sequence_keys.top_k, true);
    if (sequence_keys.top_k < total().x) {
      top_k = sequence_keys.top_k;
      first = 0u;
      last = end.x;
    }
  }
  var all_weight = vec2u();
  var weight_above = vec2u();
  if (sequence_keys.top_p != 0) {
    let end = find_bin(thread, sequence_keys.top_p, false);
    all_weight = total();
    if (top_k == 0) {
      first = end.x;
      last = end.x;
      weight_above = end.yz;
    }
  }

  if (group.x == 0 && thread == 0) {
    candidates.top_k = top_k;
    candidates.top_p = sequence_keys.top_p;
    candidates.all_weight = all_weight;
    candidates.weight_above = weight_above;
  }

  var surviving = vec2u();
  for (var i = begin + thread; i < min(begin + SPAN, VOCAB_SIZE); i += THREADS) {
    surviving = add_wide(surviving, vec2u(sort_out(i, weights_candidates[i], first, last), 0u));
  }
  running_sum(thread, surviving);
  if (thread == 0) {
    span_weights[group.x] = total();
  }
}

// The next token: the largest logit, or sampling's step 4.

struct Listed {
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
@group(0) @binding(6) var<storage, read> listed: Listed;
@group(0) @binding(7) var<storage, read> span_weights_main: array<vec2u>;

var<workgroup> draws: bool;

// The thread at which the running sum reaches `target_sum`, and the sum before it; else thread 0.
fn find_thread(thread: u32, upto: vec2u, value: vec2u, target_sum: vec2u) -> vec3u {
  let before = subtract_wide(upto, value);
  let is_mine = is_less(before, target_sum) && !is_less(upto, target_sum);
  return find(thread, is_mine, vec3u(thread, before));
}

// The first word of Philox-4x32-10 (Salmon et al. 2011).
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

var<workgroup> lows: array<atomic<u32>, THREADS>;
var<workgroup> highs: array<atomic<u32>, THREADS>;
var<workgroup> few: array<Candidate, THREADS>;
var<workgroup> shared_word: atomic<u32>;
var<workgroup> word: u32;

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

fn bin_total(bin: u32) -> vec2u {
  return vec2u(atomicLoad(&lows[bin]), atomicLoad(&highs[bin]));
}

fn start_word(thread: u32, value: u32) {
  if (thread == 0) {
    atomicStore(&shared_word, value);
  }
  workgroupBarrier();
}

fn finished_word(thread: u32) -> u32 {
  workgroupBarrier();
  if (thread == 0) {
    word = atomicLoad(&shared_word);
  }
  return workgroupUniformLoad(&word);
}

// How many of the low bits of their keys the candidates differ in: the others need no digit.
fn differing_bits(thread: u32) -> u32 {
  start_word(thread, 0u);
  var bits = 0u;
  for (var i = thread; i < listed.count; i += THREADS) {
    bits |= listed.list[i].key ^ listed.list[0].key;
  }
  atomicOr(&shared_word, bits);
  return 32 - countLeadingZeros(finished_word(thread));
}

// The least key of those threads whose candidate survives.
fn least_surviving(thread: u32, survives: bool, key: u32) -> u32 {
  start_word(thread, ~0u);
  if (survives) {
    atomicMin(&shared_word, key);
  }
  return finished_word(thread);
}

// Of the first `n` of the few, those above `key`: how many, and their weight.
fn few_above(key: u32, n: u32) -> vec3u {
  var number = 0u;
  var weight = vec2u();
  for (var i = 0u; i < n; i++) {
    let is_above = few[i].key > key;
    number += select(0u, 1u, is_above);
    weight = add_wide(weight, vec2u(select(0u, few[i].weight, is_above), 0u));
  }
  return vec3u(number, weight);
}

// Lists those candidates whose ~key begins with `prefix`, at most one a thread; says how many there are.
fn gather_few(thread: u32, prefix: u32, mask: u32) -> u32 {
  start_word(thread, 0u);
  for (var i = thread; i < listed.count; i += THREADS) {
    if (((~listed.list[i].key ^ prefix) & mask) == 0) {
      few[min(atomicAdd(&shared_word, 1u), THREADS - 1)] = listed.list[i];
    }
  }
  return finished_word(thread);
}

// The greatest key such that the candidates down to it come to `least`, by number or by weight: digit by digit
// of ~key, the greatest key first, until so few are left that each can look at all the others.
fn threshold(thread: u32, by_weight: bool, least: vec2u) -> u32 {
  var missing = least;
  var n_bits = differing_bits(thread);  // still to be found
  var mask = select(0u, ~0u << n_bits, n_bits < 32);
  var prefix = ~listed.list[0].key & mask;
  while (n_bits > 0) {
    let shift = max(n_bits, 4u) - 4;
    clear_bins(thread);
    for (var i = thread; i < listed.count; i += THREADS) {
      let key = ~listed.list[i].key;
      if (((key ^ prefix) & mask) == 0) {
        add_to_bin((key >> shift) & 0xfu, select(1u, listed.list[i].weight, by_weight));
      }
    }
    workgroupBarrier();
    let value = bin_total(thread);
    let end = find_thread(thread, running_sum(thread, value), value, missing);
    prefix |= end.x << shift;
    mask |= 0xfu << shift;
    missing = subtract_wide(missing, end.yz);
    n_bits = shift;
    let n = gather_few(thread, prefix, mask);
    if (n <= THREADS) {
      let key = few[min(thread, max(n, 1u) - 1)].key;
      let above = few_above(key, n);
      let survives = is_less(select(vec2u(above.x, 0u), above.yz, by_weight), missing);
      return least_surviving(thread, thread < n && survives, key);
    }
  }
  return ~prefix;
}

// The weight of the candidates with `key` or a greater one.
fn weight_down_to(thread: u32, key: u32) -> vec2u {
  var sum = vec2u();
  for (var i = thread; i < listed.count; i += THREADS) {
    let weight = select(0u, listed.list[i].weight, listed.list[i].key >= key);
    sum = add_wide(sum, vec2u(weight, 0u));
  }
  running_sum(thread, sum);
  return total();
}

// The weight with which a token is drawn: 0 if a filter took it out.
fn surviving_weight(key: u32, weight: u32, least_key: u32) -> u32 {
  return select(0u, weight, key >= least_key && weight >= sequence.min_p);
}

fn add_to_span(candidate: Candidate, least_key: u32) {
  add_to_bin(candidate.token / SPAN, surviving_weight(candidate.key, candidate.weight, least_key));
}

// One for a seed and a place in the text.
fn random_word() -> u32 {
  return philox(sequence.n_tokens, vec2u(sequence.seed_low, sequence.seed_high));
}

// The least key that no filter takes out, where a thread has a candidate at most.
fn least_of_few(thread: u32) -> u32 {
  let n = listed.count;
  let mine = listed.list[min(thread, n - 1)];
  few[thread] = mine;
  workgroupBarrier();
  let above = few_above(mine.key, n);
  var survives = thread < n;
  var weight_kept = listed.all_weight;
  if (listed.top_k != 0) {
    survives = survives && above.x < listed.top_k;
    running_sum(thread, vec2u(select(0u, mine.weight, survives), 0u));
    weight_kept = total();
  }
  if (listed.top_p != 0) {
    let least = least_one(fraction_of(weight_kept, listed.top_p));
    survives = survives && is_less(add_wide(above.yz, listed.weight_above), least);
  }
  return least_surviving(thread, survives, mine.key);
}

// The first token at which the running sum of the surviving weights is over a random fraction of their total.
fn drawn(thread: u32) -> u32 {
  var least_key = 0u;
  if (listed.count > THREADS) {
    var weight_kept = listed.all_weight;
    if (listed.top_k != 0) {
      least_key = threshold(thread, false, vec2u(listed.top_k, 0u));
      weight_kept = weight_down_to(thread, least_key);
    }
    if (listed.top_p != 0) {
      let least = least_one(fraction_of(weight_kept, listed.top_p));
      least_key = threshold(thread, true, subtract_wide(least, listed.weight_above));
    }
  } else if (listed.count != 0) {
    least_key = least_of_few(thread);
  }

  // A thread per span of the vocabulary.
  clear_bins(thread);
  for (var i = thread; i < listed.count; i += THREADS) {
    add_to_span(listed.list[i], least_key);
  }
  workgroupBarrier();
  var value = bin_total(thread);
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
  value = vec2u();
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

@compute @workgroup_size(16)
fn sample_main(@builtin(local_invocation_index) thread: u32) {
  let now = sequence;  // before anything waits
  if (thread == 0) {
    draws = sampling_runs(now);
  }
  var token = 0u;
  if (workgroupUniformLoad(&draws)) {
    token = drawn(thread);
  } else {
    token = most_likely(thread);
  }
  if (thread == 0) {
    token = min(token, VOCAB_SIZE - 1);  // all NaN: still a token
    advance(token, now);
  }
}
