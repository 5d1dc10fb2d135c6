// The next token, of one workgroup: the largest logit, of equals the first.

struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
  sampling: u32, seed_low: u32, seed_high: u32, inverse_temperature: u32, top_k: u32, top_p: u32, min_p: u32,
  repetition_penalty: u32, inverse_repetition_penalty: u32, n_stop_tokens: u32, stop_tokens: array<u32, 16>,
}

const N_PARTIALS = 68u;
const VOCAB_SIZE = 271u;
const THREADS = 16u;
const STOP_TOKEN = 1u;
const STOP_LIMIT = 2u;

@group(0) @binding(0) var<storage, read> partial_values: array<f32>;
@group(0) @binding(1) var<storage, read> partial_indices: array<u32>;
@group(0) @binding(2) var<storage, read_write> sequence: Sequence;
@group(0) @binding(3) var<storage, read_write> tokens: array<i32>;

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

@compute @workgroup_size(16, 1, 1)
fn main(@builtin(local_invocation_index) thread: u32) {
  var token = most_likely(thread);
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
