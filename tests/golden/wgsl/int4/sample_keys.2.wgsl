// The first of the four steps of sampling: every logit, after the repetition penalty, as a key.
// Keys are u32 in the order of the logits; 0 stands for a token that is never drawn (-inf, NaN).

struct Sequence {
  past_length: u32, length: u32, total_length: u32, call_length: u32, n_tokens: u32, limit: u32, stop: u32,
  sampling: u32, seed_low: u32, seed_high: u32, inverse_temperature: u32, top_k: u32, top_p: u32, min_p: u32,
  repetition_penalty: u32, inverse_repetition_penalty: u32,
}

const VOCAB_SIZE = 271u;
const SPAN = 1024u;  // tokens of the vocabulary per workgroup
const THREADS = 16u;
const HISTOGRAM_WORDS = 768u;

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> tokens: array<i32>;
@group(0) @binding(2) var<storage, read> logits: array<u32>;  // f32, read as bits: NaN is told by them
@group(0) @binding(3) var<storage, read_write> keys: array<u32>;
@group(0) @binding(4) var<storage, read_write> span_keys: array<u32>;  // the greatest key of each span
@group(0) @binding(5) var<storage, read_write> histogram: array<u32>;  // cleared here for the next step

var<workgroup> greatest: atomic<u32>;
var<workgroup> seen: array<atomic<u32>, 32>;  // a bit per token of the span

// Whether this step draws a token: not when the arg-max is wanted, nor after the end, nor inside a prompt.
fn sampling_runs() -> bool {
  return sequence.sampling != 0u && sequence.stop == 0u && sequence.total_length == sequence.n_tokens;
}

// The logit as transformers penalises it. The reciprocal comes from the host: division is not exact here.
fn penalised(bits: u32, is_seen: bool) -> u32 {
  if (!is_seen || (bits & 0x7f800000u) == 0x7f800000u) {
    return bits;  // infinities and NaN as they are
  }
  let logit = bitcast<f32>(bits);
  let factor = select(sequence.repetition_penalty, sequence.inverse_repetition_penalty, logit > 0.0);
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

@compute @workgroup_size(16, 1, 1)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  if (!sampling_runs()) {
    return;
  }
  if (group.x == 0u) {
    for (var i = thread; i < HISTOGRAM_WORDS; i += THREADS) {
      histogram[i] = 0u;
    }
  }
  if (thread == 0u) {
    atomicStore(&greatest, 0u);
  }
  for (var i = thread; i < SPAN / 32u; i += THREADS) {
    atomicStore(&seen[i], 0u);
  }
  workgroupBarrier();
  let begin = group.x * SPAN;
  if (sequence.repetition_penalty != 0x3f800000u) {  // 1.0
    for (var i = thread; i < sequence.n_tokens; i += THREADS) {
      let offset = u32(tokens[i]) - begin;  // wraps around below the span
      if (offset < SPAN) {
        atomicOr(&seen[offset / 32u], 1u << (offset % 32u));
      }
    }
  }
  workgroupBarrier();
  var best = 0u;
  for (var i = thread; i < min(SPAN, VOCAB_SIZE - begin); i += THREADS) {
    let is_seen = (atomicLoad(&seen[i / 32u]) >> (i % 32u)) % 2u == 1u;
    let key = key_of(penalised(logits[begin + i], is_seen));
    keys[begin + i] = key;
    best = max(best, key);
  }
  atomicMax(&greatest, best);
  workgroupBarrier();
  if (thread == 0u) {
    span_keys[group.x] = atomicLoad(&greatest);
  }
}
