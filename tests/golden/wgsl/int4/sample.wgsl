// The next token: the largest logit, of equals the first.

struct Sequence {
  past_length: u32, length: u32, stop: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32,
  sampling: u32, seed_low: u32, seed_high: u32, inverse_temperature: u32, top_k: u32, top_p: u32, min_p: u32,
  repetition_penalty: u32, inverse_repetition_penalty: u32, n_stop_tokens: u32, stop_tokens: array<u32, 16>,
}

const N_PARTIALS = 5u;
const PARTIALS_PER_THREAD = 1u;
const VOCAB_SIZE = 271u;
const THREADS = 256u;

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

fn most_likely(thread: u32) -> u32 {
  var best = NONE;
  for (var i = 0u; i < PARTIALS_PER_THREAD; i++) {
    let at = min(thread + i * THREADS, N_PARTIALS - 1);
    best = better(best, Best(partial_values[at], partial_indices[at]));
  }
  reduce_argmax(thread, best);
  return min(bests[0].index, VOCAB_SIZE - 1);  // all NaN: still a token
}

const STOP_TOKEN = 1u;
const STOP_LIMIT = 2u;

var<workgroup> stops: atomic<u32>;

fn advance(thread: u32, now: Sequence, stop_token: u32, token: u32) {
  if (thread < now.n_stop_tokens && token == stop_token) {
    atomicStore(&stops, 1u);
  }
  workgroupBarrier();
  if (thread != 0 || now.stop != 0) {
    return;
  }
  sequence.past_length = now.total_length;
  sequence.length = 1u;
  sequence.total_length = now.total_length + 1;
  sequence.call_length = max(now.total_length + 1, now.n_tokens);
  if (now.total_length != now.n_tokens) {
    return;  // more of the prompt is to come
  }
  if (atomicLoad(&stops) != 0) {
    sequence.stop = STOP_TOKEN;
    return;
  }
  tokens[now.n_tokens] = i32(token);
  sequence.n_tokens = now.n_tokens + 1;
  if (now.n_tokens + 1 >= now.limit) {
    sequence.stop = STOP_LIMIT;
  }
}

@compute @workgroup_size(256)
fn sample_greedy(@builtin(local_invocation_index) thread: u32) {
  let now = sequence;  // before anything waits
  let stop_token = sequence.stop_tokens[min(thread, 15u)];  // one for each thread
  if (thread == 0) {
    atomicStore(&stops, 0u);
  }
  let token = most_likely(thread);
  advance(thread, now, stop_token, token);
}

// Sampling, step 1 of 4: logits, after the repetition penalty, as u32 keys in their order; 0 is never drawn.

const SPAN = 1024u;  // tokens per workgroup
const N_SPANS = 1u;
const SAMPLING_DRAW = 1u;

@group(0) @binding(0) var<storage, read> sequence_keys: Sequence;
@group(0) @binding(1) var<storage, read_write> histogram: array<u32>;
@group(0) @binding(4) var<storage, read_write> selection: array<u32>;
@group(0) @binding(2) var<storage, read_write> scores: array<vec4u>;  // keys, then weights
@group(0) @binding(3) var<storage, read_write> span_keys: array<u32>;  // the greatest of each span
@group(0) @binding(5) var<storage, read> tokens_keys: array<i32>;
@group(0) @binding(6) var<storage, read> logits: array<u32>;  // f32, read as bits: NaN is told by them

var<workgroup> greatest: atomic<u32>;
var<workgroup> seen: array<atomic<u32>, 32>;  // a bit per token of the span

// Not when the arg-max is wanted, nor after the end, nor inside a prompt.
fn sampling_runs(now: Sequence) -> bool {
  return now.sampling != 0 && now.stop == 0 && now.total_length == now.n_tokens;
}

// Words of `selection`: what there is to know of the candidates, and the random number.
const COUNT = 0u;
const RANDOM = 5u;  // in 2^-32: where in the weight of what survives the token is

// The upper 32 bits of a · b.
fn multiply_high(a: u32, b: u32) -> u32 {
  let low = (a & 0xffffu) * (b & 0xffffu);
  let middle = (a >> 16) * (b & 0xffffu) + (low >> 16);
  let other = (a & 0xffffu) * (b >> 16) + (middle & 0xffffu);
  return (a >> 16) * (b >> 16) + (middle >> 16) + (other >> 16);
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

// The reciprocal comes from the host: division is not exact here.
fn penalised(bits: u32) -> u32 {
  if ((bits & 0x7f800000u) == 0x7f800000u) {
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

// Four logits; -inf behind the end.
fn logits_from(token: u32) -> vec4u {
  var four: vec4u;
  for (var i = 0u; i < 4; i++) {
    four[i] = select(0xff800000u, logits[min(token + i, VOCAB_SIZE - 1)], token + i < VOCAB_SIZE);
  }
  return four;
}

// Four tokens of the history; behind its end anything.
fn tokens_from(i: u32) -> vec4u {
  var four: vec4u;
  for (var j = 0u; j < 4; j++) {
    four[j] = u32(tokens_keys[min(i + j * THREADS, arrayLength(&tokens_keys) - 1)]);
  }
  return four;
}

// What one workgroup more does for the steps that follow: clears the histogram, draws the random number.
fn prepare(thread: u32) {
  for (var i = thread; i < 2048; i += THREADS) {
    histogram[i] = 0u;
  }
  if (thread == 0) {
    let random = philox(sequence_keys.n_tokens, vec2u(sequence_keys.seed_low, sequence_keys.seed_high));
    selection[COUNT] = 0u;
    selection[RANDOM] = select(0u, random, sequence_keys.sampling == SAMPLING_DRAW);  // 0: the first survivor
  }
}

@compute @workgroup_size(256)
fn sample_keys(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  let begin = group.x * SPAN;
  var bits = logits_from(begin + 4 * thread);  // asked for before anything waits
  var seen_tokens = tokens_from(thread);
  if (!sampling_runs(sequence_keys)) {
    return;
  }
  if (group.x == N_SPANS) {
    prepare(thread);
    return;
  }
  for (var i = thread; i < SPAN / 32; i += THREADS) {
    atomicStore(&seen[i], 0u);
  }
  if (thread == 0) {
    atomicStore(&greatest, 0u);
  }
  workgroupBarrier();
  let n_seen = select(sequence_keys.n_tokens, 0u, sequence_keys.repetition_penalty == 0x3f800000u);  // 1.0
  for (var i = thread; i < n_seen; i += 4 * THREADS) {
    if (i >= 4 * THREADS) {
      seen_tokens = tokens_from(i);
    }
    for (var j = 0u; j < 4; j++) {
      let place = seen_tokens[j] - begin;  // wraps around below the span
      if (i + j * THREADS < n_seen && place < SPAN) {
        atomicOr(&seen[place / 32], 1u << (place % 32));
      }
    }
  }
  workgroupBarrier();
  for (var place = 4 * thread; place < SPAN; place += 4 * THREADS) {
    let marks = atomicLoad(&seen[place / 32]) >> (place % 32);
    var key: vec4u;
    for (var j = 0u; j < 4; j++) {
      key[j] = key_of(select(bits[j], penalised(bits[j]), (marks >> j) % 2 == 1));
    }
    scores[(begin + place) / 4] = key;
    atomicMax(&greatest, max(max(key.x, key.y), max(key.z, key.w)));
  }
  workgroupBarrier();
  if (thread == 0) {
    span_keys[group.x] = atomicLoad(&greatest);
  }
}

// Sampling, step 2: weights, 2^31 · exp((logit - greatest) / temperature) rounded down, and their histogram.
// Integers add up to the same sum in any order and on every GPU.

const ROOM = 256u;  // fours of tokens in all

@group(0) @binding(1) var<storage, read_write> histogram_weights: array<atomic<u32>>;
@group(0) @binding(3) var<storage, read> span_keys_weights: array<u32>;

var<workgroup> bins: array<atomic<u32>, 2048>;  // of this workgroup: units of 1, and of 2^16

fn has_top_k() -> bool {
  return sequence_keys.top_k != 0 && sequence_keys.top_k < VOCAB_SIZE;
}

// Whether tokens are to be compared one by one.
fn has_candidates() -> bool {
  return has_top_k() || sequence_keys.top_p != 0;
}

// Unsigned integers of 64 bits: low, high.
alias Wide = vec2u;

fn wide(low: u32) -> Wide {
  return Wide(low, 0u);
}

fn add_wide(a: Wide, b: Wide) -> Wide {
  let low = a.x + b.x;
  return Wide(low, a.y + b.y + select(0u, 1u, low < a.x));
}

// Of sums of lower and of upper halves of 32-bit numbers.
fn add_halves(low: u32, high: u32) -> Wide {
  return add_wide(wide(low), Wide(high << 16, high >> 16));
}

// Bins of the histogram: as many low words, then as many high words.
const BINS = 1024u;

// 32 bins per power of two, the greatest weights first.
fn bin_of(weight: u32) -> u32 {
  let octave = countLeadingZeros(weight);
  return 32 * octave + (~(weight << octave) >> 26);
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

// Adds a token to its bin: top-k counts, top-p alone weighs.
fn count(weight: u32) {
  if (weight == 0 || !has_candidates()) {
    return;
  }
  let bin = bin_of(weight);
  let value = select(weight, 1u, has_top_k());
  atomicAdd(&bins[bin], value & 0xffffu);
  atomicAdd(&bins[BINS + bin], value >> 16);
}

@compute @workgroup_size(256)
fn sample_weights(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  let begin = group.x * (SPAN / 4);
  var key = scores[begin + thread];  // before anything waits
  let span_key = span_keys_weights[min(thread, N_SPANS - 1)];
  if (!sampling_runs(sequence_keys)) {
    return;
  }
  for (var i = thread; i < 2 * BINS; i += THREADS) {
    atomicStore(&bins[i], 0u);
  }
  if (thread == 0) {
    atomicStore(&greatest, 0u);
  }
  workgroupBarrier();
  atomicMax(&greatest, span_key);
  workgroupBarrier();
  let logit = logit_of(atomicLoad(&greatest));
  for (var i = thread; i < SPAN / 4; i += THREADS) {
    var weight: vec4u;
    for (var j = 0u; j < 4; j++) {
      weight[j] = weight_of(key[j], logit);
      count(weight[j]);
    }
    scores[ROOM + begin + i] = weight;
  }
  workgroupBarrier();
  for (var bin = thread; bin < BINS && has_candidates(); bin += THREADS) {
    let sum = add_halves(atomicLoad(&bins[bin]), atomicLoad(&bins[BINS + bin]));
    if (sum.x != 0 || sum.y != 0) {
      // Units of 1 and of 2^24: the low words of 256 workgroups have no carry that anyone would wait for.
      atomicAdd(&histogram_weights[bin], sum.x & 0xffffffu);
      atomicAdd(&histogram_weights[BINS + bin], (sum.y << 8) | (sum.x >> 24));
    }
  }
}

// Sampling, step 3: lists the tokens of the bin in which the first filter ends, with top-k and top-p those above it
// too; the last step looks at them one by one.

const BINS_PER_THREAD = 4u;
const FOURS = 1u;  // of bins per thread

@group(0) @binding(1) var<storage, read_write> selection_candidates: array<atomic<u32>>;
@group(0) @binding(2) var<storage, read_write> list: array<vec4u>;  // of candidates: key, weight, token
@group(0) @binding(3) var<storage, read_write> span_weights: array<vec2u>;  // of what survives and is not listed
@group(0) @binding(4) var<storage, read> scores_candidates: array<vec4u>;
@group(0) @binding(5) var<storage, read> histogram_candidates: array<vec4u>;

fn subtract_wide(a: Wide, b: Wide) -> Wide {
  return Wide(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

fn is_less(a: Wide, b: Wide) -> bool {
  return a.y < b.y || (a.y == b.y && a.x < b.x);
}

// a · part / 2^32, rounded down.
fn fraction_of(a: Wide, part: u32) -> Wide {
  return add_wide(Wide(a.y * part, multiply_high(a.y, part)), wide(multiply_high(a.x, part)));
}

fn least_one(a: Wide) -> Wide {
  return select(a, wide(1u), a.x == 0 && a.y == 0);
}

var<workgroup> sums: array<Wide, 2 * THREADS>;  // two halves, written by turns
var<workgroup> found: vec3u;

// The sum of `value` over this thread and those before it; total() is that of all threads.
fn running_sum(thread: u32, value: Wide) -> Wide {
  workgroupBarrier();  // the sums may still be read from the last call
  var sum = value;
  var half = 0u;
  sums[thread] = sum;
  for (var step = 1u; step < THREADS; step *= 4) {
    workgroupBarrier();
    for (var i = 1u; i < 4; i++) {
      if (thread >= i * step) {
        sum = add_wide(sum, sums[half + thread - i * step]);
      }
    }
    half = THREADS - half;
    sums[half + thread] = sum;
  }
  workgroupBarrier();
  return sum;
}

fn total() -> Wide {
  return sums[THREADS - 1];
}

// What the one thread says that sees a running sum reach `least`, and the sum before; else zeros.
fn find(thread: u32, what: u32, before: Wide, upto: Wide, least: Wide) -> vec3u {
  if (thread == 0) {
    found = vec3u();
  }
  workgroupBarrier();
  if (is_less(before, least) && !is_less(upto, least)) {
    found = vec3u(what, before);
  }
  return workgroupUniformLoad(&found);
}

const BY_COUNT = 1u;  // 1 where top-k is the first filter
const TOP_P = 2u;  // of the second one, in 2^-32; 0: there is none
const NEEDED = 3u;  // how many of them, or how much weight, the first one keeps: two words

@compute @workgroup_size(256)
fn sample_candidates(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  let begin = group.x * (SPAN / 4);
  var key = scores_candidates[begin + thread];  // before anything waits
  var weight = scores_candidates[ROOM + begin + thread];
  var bins: array<Wide, BINS_PER_THREAD>;
  var sum = Wide();
  for (var i = 0u; i < FOURS; i++) {
    let low = histogram_candidates[thread * FOURS + i];
    let high = histogram_candidates[BINS / 4 + thread * FOURS + i];
    for (var j = 0u; j < 4; j++) {
      let bin = add_wide(wide(low[j]), Wide(high[j] << 24, high[j] >> 8));
      bins[4 * i + j] = bin;
      sum = add_wide(sum, bin);
    }
  }
  if (!sampling_runs(sequence_keys)) {
    return;
  }

  // Bins below `first` survive, those behind `last` do not.
  var first = BINS;
  var last = BINS;
  if (has_candidates()) {
    let upto = running_sum(thread, sum);
    var least = least_one(fraction_of(total(), sequence_keys.top_p));
    if (has_top_k()) {
      least = wide(min(sequence_keys.top_k, total().x));  // fewer may have a weight
    }
    var before = subtract_wide(upto, sum);
    var bin = thread * BINS_PER_THREAD;
    for (var i = 0u; i < BINS_PER_THREAD - 1; i++) {
      let upto_bin = add_wide(before, bins[i]);
      if (!is_less(upto_bin, least)) {
        break;
      }
      before = upto_bin;
      bin++;
    }
    let end = find(thread, bin, before, upto, least);
    last = end.x;
    first = end.x;
    let has_both = has_top_k() && sequence_keys.top_p != 0;
    if (has_both) {
      first = 0u;
    } else {
      least = subtract_wide(least, end.yz);
    }
    if (group.x == 0 && thread == 0) {
      atomicStore(&selection_candidates[BY_COUNT], select(0u, 1u, has_top_k()));
      atomicStore(&selection_candidates[TOP_P], select(0u, sequence_keys.top_p, has_both));
      atomicStore(&selection_candidates[NEEDED], least.x);
      atomicStore(&selection_candidates[NEEDED + 1], least.y);
    }
  }

  sum = Wide();
  for (var i = thread; i < SPAN / 4; i += THREADS) {
    for (var j = 0u; j < 4; j++) {
      let bin = bin_of(max(weight[j], 1u));
      if (weight[j] != 0 && bin >= first && bin <= last) {
        let at = atomicAdd(&selection_candidates[COUNT], 1u);
        list[at] = vec4u(key[j], weight[j], 4 * (begin + i) + j, 0u);
      } else if (weight[j] >= sequence_keys.min_p && bin < first) {
        sum = add_wide(sum, wide(weight[j]));
      }
    }
  }
  running_sum(thread, sum);
  if (thread == 0) {
    span_weights[group.x] = total();
  }
}

// The next token: the largest logit, or sampling's step 4.

@group(0) @binding(5) var<storage, read> span_weights_main: array<vec2u>;
@group(0) @binding(6) var<storage, read> selection_main: array<u32>;
@group(0) @binding(7) var<storage, read> list_main: array<vec4u>;

var<workgroup> draws: bool;

const TOKENS_PER_THREAD = 4u;
const DIGIT_BITS = 8u;

var<workgroup> lows: array<atomic<u32>, THREADS>;
var<workgroup> highs: array<atomic<u32>, THREADS>;
var<workgroup> greatest_key: atomic<u32>;
var<workgroup> least_key: atomic<u32>;
var<workgroup> n_few: atomic<u32>;
var<workgroup> few_keys: array<vec4u, THREADS / 4>;  // of a candidate per thread; 0 where there is none
var<workgroup> few_weights: array<vec4u, THREADS / 4>;
var<workgroup> shared_words: vec2u;  // what all threads are to know
var<private> candidate: vec4u;  // of this thread, where there are few

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

fn needed() -> Wide {
  return Wide(selection_main[NEEDED], selection_main[NEEDED + 1]);
}

fn bin_sum(bin: u32) -> Wide {
  return Wide(atomicLoad(&lows[bin]), atomicLoad(&highs[bin]));
}

fn sum_of_four(x: vec4u) -> u32 {
  return dot(x, vec4u(1));
}

fn place_few(at: u32, value: vec4u) {
  few_keys[at / 4][at % 4] = value.x;
  few_weights[at / 4][at % 4] = value.y;
}

// The least key kept of the few: those above one must come to less than `least`, by number or by weight, and to less than
// the part `top_p` of the weight of what that leaves.
fn least_of_few(thread: u32, by_count: bool, least: Wide, top_p: u32) -> u32 {
  if (thread == 0) {
    atomicStore(&least_key, ~0u);
  }
  clear_bins(thread);
  let key = few_keys[thread / 4][thread % 4];
  let weight = few_weights[thread / 4][thread % 4];
  var count = vec4u();
  var low = vec4u();
  var high = vec4u();
  for (var i = 0u; i < THREADS / 4 && few_keys[i].x != 0; i++) {
    let is_above = few_keys[i] > vec4u(key);
    let above = select(vec4u(), few_weights[i], is_above);
    count += select(vec4u(), vec4u(1), is_above);
    low += above & vec4u(0xffffu);
    high += above >> vec4u(16);
  }
  let above = add_halves(sum_of_four(low), sum_of_four(high));
  var kept = key != 0 && is_less(select(above, wide(sum_of_four(count)), by_count), least);
  if (top_p != 0) {
    if (kept) {
      atomicAdd(&lows[0], weight & 0xffffu);
      atomicAdd(&highs[0], weight >> 16);
    }
    workgroupBarrier();
    let sum = add_halves(atomicLoad(&lows[0]), atomicLoad(&highs[0]));
    kept = kept && is_less(above, least_one(fraction_of(sum, top_p)));
  }
  if (kept) {
    atomicMin(&least_key, key);
  }
  workgroupBarrier();
  return atomicLoad(&least_key);
}

// The same of any number of candidates, one filter after the other.
fn least_of_many(thread: u32, n: u32) -> u32 {
  let first = threshold(thread, n, selection_main[BY_COUNT] != 0, needed());
  if (selection_main[TOP_P] == 0) {
    return first;
  }
  let kept = weight_down_to(thread, n, first);
  return threshold(thread, n, false, least_one(fraction_of(kept, selection_main[TOP_P])));
}

// The greatest key with which candidates come to `least`, by number or by weight.
fn threshold(thread: u32, n: u32, by_count: bool, least: Wide) -> u32 {
  if (thread == 0) {
    atomicStore(&greatest_key, 0u);
    atomicStore(&least_key, ~0u);
  }
  workgroupBarrier();
  var keys = vec2u(~0u, 0u);
  for (var i = thread; i < n; i += 4 * THREADS) {
    var four: vec4u;  // all asked for before the first is looked at; behind the last, that one again
    for (var j = 0u; j < 4; j++) {
      four[j] = list_main[min(i + j * THREADS, n - 1)].x;
    }
    keys.x = min(keys.x, min(min(four.x, four.y), min(four.z, four.w)));
    keys.y = max(keys.y, max(max(four.x, four.y), max(four.z, four.w)));
  }
  atomicMin(&least_key, keys.x);
  atomicMax(&greatest_key, keys.y);
  workgroupBarrier();
  if (thread == 0) {
    shared_words = vec2u(atomicLoad(&least_key), atomicLoad(&greatest_key));
  }
  let bounds = workgroupUniformLoad(&shared_words);

  // It is at most `range` below `high`. A digit at a time, the greatest keys in the first bin, until few are left.
  var high = bounds.y;
  var range = bounds.y - bounds.x;
  var shift = 32 - countLeadingZeros(range);
  var missing = least;
  while (shift > 0) {
    shift -= min(shift, DIGIT_BITS);
    clear_bins(thread);
    for (var i = thread; i < n; i += THREADS) {
      let below = high - list_main[i].x;
      if (below <= range) {
        add_to_bin(below >> shift, select(list_main[i].y, 1u, by_count));
      }
    }
    workgroupBarrier();
    let upto = running_sum(thread, bin_sum(thread));
    let digit = find(thread, thread, subtract_wide(upto, bin_sum(thread)), upto, missing);
    missing = subtract_wide(missing, digit.yz);
    high -= digit.x << shift;
    range = (1u << shift) - 1;
    if (shift > 0 && collect(thread, n, high, range) <= THREADS) {
      return least_of_few(thread, by_count, missing, 0u);
    }
  }
  return high;
}

// Makes the candidates whose keys are at most `range` below `high` the few. Returns how many there are.
fn collect(thread: u32, n: u32, high: u32, range: u32) -> u32 {
  place_few(thread, vec4u());
  if (thread == 0) {
    atomicStore(&n_few, 0u);
  }
  workgroupBarrier();
  for (var i = thread; i < n; i += THREADS) {
    if (high - list_main[i].x <= range) {
      let at = atomicAdd(&n_few, 1u);
      if (at < THREADS) {
        place_few(at, list_main[i]);
      }
    }
  }
  workgroupBarrier();
  if (thread == 0) {
    shared_words.x = atomicLoad(&n_few);
  }
  return workgroupUniformLoad(&shared_words).x;
}

// The weight of the candidates with `key` or a greater one.
fn weight_down_to(thread: u32, n: u32, key: u32) -> Wide {
  var sum = Wide();
  for (var i = thread; i < n; i += THREADS) {
    sum = add_wide(sum, wide(select(0u, list_main[i].y, list_main[i].x >= key)));
  }
  running_sum(thread, sum);
  return total();
}

// The weight with which a token is drawn: 0 if a filter took it out.
fn drawn_weight(key: u32, weight: u32, least: u32) -> u32 {
  return select(0u, weight, key >= least && weight >= sequence.min_p);
}

// The first token at which the running sum of the surviving weights is over a random fraction of their total.
fn drawn(thread: u32, n: u32, span_weight: Wide) -> u32 {
  var least = 0u;  // the least key that no filter takes out
  if (n > THREADS) {
    least = least_of_many(thread, n);
  } else if (n != 0) {
    place_few(thread, select(vec4u(), candidate, thread < n));
    least = least_of_few(thread, selection_main[BY_COUNT] != 0, needed(), selection_main[TOP_P]);
  }

  // A thread per span of the vocabulary.
  clear_bins(thread);
  for (var i = thread; i < n; i += THREADS) {
    add_to_bin(list_main[i].z / SPAN, drawn_weight(list_main[i].x, list_main[i].y, least));
  }
  workgroupBarrier();
  var value = add_wide(bin_sum(thread), select(Wide(), span_weight, thread < N_SPANS));
  var upto = running_sum(thread, value);
  var missing = add_wide(fraction_of(total(), selection_main[RANDOM]), wide(1u));
  let span = find(thread, thread, subtract_wide(upto, value), upto, missing);
  missing = subtract_wide(missing, span.yz);

  // A thread per few tokens of that span.
  let first = span.x * SPAN + thread * TOKENS_PER_THREAD;
  value = Wide();
  for (var i = 0u; i < TOKENS_PER_THREAD; i++) {
    value = add_wide(value, wide(weight_of_token(first + i, least)));
  }
  upto = running_sum(thread, value);
  var before = subtract_wide(upto, value);
  var token = first;
  while (token < first + TOKENS_PER_THREAD - 1) {
    let sum = add_wide(before, wide(weight_of_token(token, least)));
    if (!is_less(sum, missing)) {
      break;
    }
    before = sum;
    token++;
  }
  return find(thread, token, before, upto, missing).x;  // 0 where all are -inf or NaN
}

fn weight_of_token(token: u32, least: u32) -> u32 {
  let four = token / 4;
  return drawn_weight(scores_candidates[four][token % 4], scores_candidates[ROOM + four][token % 4], least);
}

@compute @workgroup_size(256)
fn sample_main(@builtin(local_invocation_index) thread: u32) {
  let now = sequence;  // before anything waits
  let stop_token = sequence.stop_tokens[min(thread, 15u)];  // one for each thread
  if (thread == 0) {
    atomicStore(&stops, 0u);
  }
  let span_weight = span_weights_main[min(thread, N_SPANS - 1)];
  candidate = list_main[thread];
  let n_candidates = selection_main[COUNT];
  if (thread == 0) {
    draws = sampling_runs(now);
  }
  var token = 0u;
  if (workgroupUniformLoad(&draws)) {
    token = drawn(thread, n_candidates, span_weight);
  } else {
    token = most_likely(thread);
  }
  advance(thread, now, stop_token, token);
}
