struct Sequence { past_length: u32, length: u32 }

@group(0) @binding(0) var<storage, read> sequence: Sequence;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;

// Four activations of a row, from 4 * quad on.
fn activation(row: u32, quad: u32) -> vec4f {
  return x[row * 16 + quad];
}

@group(0) @binding(3) var<storage, read> params: array<u32>;

fn bias(row: u32) -> f32 {
  return unpack2x16float(params[0 + (row >> 1)] >> (16 * (row & 1))).x;
}

override N: u32 = 128u;  // outputs

// The rows of W behind the `quad`-th four columns; the last ones repeat instead of running past the end.
fn weight_rows(quad: u32) -> vec4u {
  return min(4 * quad + vec4u(0, 1, 2, 3), vec4u(N - 1));
}

// A workgroup computes 16 rows of y by 64 rows of W, a thread 4 by 4.
// Along K it goes in steps of 32.
const THREADS = 64u;
override STEPS: u32 = 2u;
const X_QUADS = 4u;  // fours of rows of x in a tile
const W_QUADS = 16u;  // fours of rows of W in a tile

var<workgroup> x_tile: array<vec4f, 128>;  // [k][four rows of x]
var<workgroup> w_tile: array<vec4f, 512>;  // [k][four rows of W]

@group(0) @binding(2) var<storage, read> weights: array<vec2u>;

override ROW_QUADS: u32 = 16u;  // of four weights

// Four weights of a row, k = 32 * step + 4 * part and on.
fn weights_at(row: u32, step: u32, part: u32) -> vec4f {
  let quad = min(8 * step + part, ROW_QUADS - 1);  // behind the row x is 0
  let words = weights[row * ROW_QUADS + quad];
  return vec4f(unpack2x16float(words.x), unpack2x16float(words.y));
}

// Where in the tile weight i of `part` lies along K.
fn weight_k(part: u32, i: u32) -> u32 {
  return 4 * part + i;
}

@group(0) @binding(4) var<storage, read_write> y: array<f32>;

fn store(row: u32, column: u32, total: vec4f) {
  if (row >= sequence.length) {
    return;
  }
  let w_rows = weight_rows(column / 4);
  let v = total + vec4f(bias(w_rows.x), bias(w_rows.y), bias(w_rows.z), bias(w_rows.w));
  let at = row * 128 + column;
  y[at] = v.x;
  y[at + 1] = v.y;
  y[at + 2] = v.z;
  y[at + 3] = v.w;
}

// ONNX nodes:
//   /model/layers.0/attn/qkv_proj/MatMul, /model/layers.0/attn/qkv_proj/Add
@compute @workgroup_size(64)
fn gemm_f16(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  let first_row = group.y * 16;
  if (first_row >= sequence.length) {
    return;  // no token in these rows
  }
  let w_quad = thread % W_QUADS;
  let x_quad = thread / W_QUADS * 1;
  var sum0 = vec4f();
  var sum1 = vec4f();
  var sum2 = vec4f();
  var sum3 = vec4f();
  for (var step = 0u; step < STEPS; step++) {
    for (var item = thread; item < X_QUADS * 8; item += THREADS) {
      let quad = item / 8;
      let part = item % 8;
      let rows = min(first_row + 4 * quad + vec4u(0, 1, 2, 3), vec4u(sequence.length - 1));
      let a = activation(rows.x, 8 * step + part);
      let b = activation(rows.y, 8 * step + part);
      let c = activation(rows.z, 8 * step + part);
      let d = activation(rows.w, 8 * step + part);
      let to = 4 * part * X_QUADS + quad;
      x_tile[to] = vec4f(a.x, b.x, c.x, d.x);
      x_tile[to + X_QUADS] = vec4f(a.y, b.y, c.y, d.y);
      x_tile[to + 2 * X_QUADS] = vec4f(a.z, b.z, c.z, d.z);
      x_tile[to + 3 * X_QUADS] = vec4f(a.w, b.w, c.w, d.w);
    }
    for (var item = thread; item < W_QUADS * 8; item += THREADS) {
      let quad = item / 8;
      let part = item % 8;
      let rows = weight_rows(group.x * W_QUADS + quad);
      let a = weights_at(rows.x, step, part);
      let b = weights_at(rows.y, step, part);
      let c = weights_at(rows.z, step, part);
      let d = weights_at(rows.w, step, part);
      w_tile[weight_k(part, 0u) * W_QUADS + quad] = vec4f(a.x, b.x, c.x, d.x);
      w_tile[weight_k(part, 1u) * W_QUADS + quad] = vec4f(a.y, b.y, c.y, d.y);
      w_tile[weight_k(part, 2u) * W_QUADS + quad] = vec4f(a.z, b.z, c.z, d.z);
      w_tile[weight_k(part, 3u) * W_QUADS + quad] = vec4f(a.w, b.w, c.w, d.w);
    }
    workgroupBarrier();
    for (var k = 0u; k < 32; k++) {
      let w = w_tile[k * W_QUADS + w_quad];
      let x0 = x_tile[k * X_QUADS + x_quad];
      sum0 += x0.x * w;
      sum1 += x0.y * w;
      sum2 += x0.z * w;
      sum3 += x0.w * w;
    }
    workgroupBarrier();
  }
  let row = first_row + 4 * x_quad;
  let column = 4 * (group.x * W_QUADS + w_quad);
  store(row, column, sum0);
  store(row + 1, column, sum1);
  store(row + 2, column, sum2);
  store(row + 3, column, sum3);
}

@group(0) @binding(3) var<storage, read_write> y_2: array<f32>;

fn store_2(row: u32, column: u32, total: vec4f) {
  if (row >= sequence.length) {
    return;
  }
  let at = row * 64 + column;
  y_2[at] = total.x;
  y_2[at + 1] = total.y;
  y_2[at + 2] = total.z;
  y_2[at + 3] = total.w;
}

// ONNX nodes:
//   /model/layers.0/attn/o_proj/MatMul
@compute @workgroup_size(64)
fn gemm_f16_2(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  let first_row = group.y * 16;
  if (first_row >= sequence.length) {
    return;  // no token in these rows
  }
  let w_quad = thread % W_QUADS;
  let x_quad = thread / W_QUADS * 1;
  var sum0 = vec4f();
  var sum1 = vec4f();
  var sum2 = vec4f();
  var sum3 = vec4f();
  for (var step = 0u; step < STEPS; step++) {
    for (var item = thread; item < X_QUADS * 8; item += THREADS) {
      let quad = item / 8;
      let part = item % 8;
      let rows = min(first_row + 4 * quad + vec4u(0, 1, 2, 3), vec4u(sequence.length - 1));
      let a = activation(rows.x, 8 * step + part);
      let b = activation(rows.y, 8 * step + part);
      let c = activation(rows.z, 8 * step + part);
      let d = activation(rows.w, 8 * step + part);
      let to = 4 * part * X_QUADS + quad;
      x_tile[to] = vec4f(a.x, b.x, c.x, d.x);
      x_tile[to + X_QUADS] = vec4f(a.y, b.y, c.y, d.y);
      x_tile[to + 2 * X_QUADS] = vec4f(a.z, b.z, c.z, d.z);
      x_tile[to + 3 * X_QUADS] = vec4f(a.w, b.w, c.w, d.w);
    }
    for (var item = thread; item < W_QUADS * 8; item += THREADS) {
      let quad = item / 8;
      let part = item % 8;
      let rows = weight_rows(group.x * W_QUADS + quad);
      let a = weights_at(rows.x, step, part);
      let b = weights_at(rows.y, step, part);
      let c = weights_at(rows.z, step, part);
      let d = weights_at(rows.w, step, part);
      w_tile[weight_k(part, 0u) * W_QUADS + quad] = vec4f(a.x, b.x, c.x, d.x);
      w_tile[weight_k(part, 1u) * W_QUADS + quad] = vec4f(a.y, b.y, c.y, d.y);
      w_tile[weight_k(part, 2u) * W_QUADS + quad] = vec4f(a.z, b.z, c.z, d.z);
      w_tile[weight_k(part, 3u) * W_QUADS + quad] = vec4f(a.w, b.w, c.w, d.w);
    }
    workgroupBarrier();
    for (var k = 0u; k < 32; k++) {
      let w = w_tile[k * W_QUADS + w_quad];
      let x0 = x_tile[k * X_QUADS + x_quad];
      sum0 += x0.x * w;
      sum1 += x0.y * w;
      sum2 += x0.z * w;
      sum3 += x0.w * w;
    }
    workgroupBarrier();
  }
  let row = first_row + 4 * x_quad;
  let column = 4 * (group.x * W_QUADS + w_quad);
  store_2(row, column, sum0);
  store_2(row + 1, column, sum1);
  store_2(row + 2, column, sum2);
  store_2(row + 3, column, sum3);
}

fn weight_rows_gated(quad: u32) -> vec4u {
  let outputs = min(2 * quad + vec2u(0, 1), vec2u(N - 1));
  return vec4u(outputs, outputs + vec2u(N));  // two of the gate, two of the up projection
}

fn gate(v: f32) -> f32 {
  return v / (1.0 + exp(min(-v, 80.0)));  // exp must not reach infinity
}

// Two gates, then the two of the up projection.
fn store_gated(row: u32, column: u32, total: vec4f) {
  if (row >= sequence.length) {
    return;
  }
  let first = column / 2;
  let at = row * 96 + first;
  y_2[at] = gate(total.x) * total.z;
  y_2[at + 1] = gate(total.y) * total.w;
}

// ONNX nodes:
//   /model/layers.0/mlp/gate_proj/MatMul, /model/layers.0/mlp/up_proj/MatMul,
//     /model/layers.0/mlp/act_fn/Sigmoid, /model/layers.0/mlp/act_fn/Mul, /model/layers.0/mlp/Mul
@compute @workgroup_size(64)
fn gemm_f16_gated(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  let first_row = group.y * 16;
  if (first_row >= sequence.length) {
    return;  // no token in these rows
  }
  let w_quad = thread % W_QUADS;
  let x_quad = thread / W_QUADS * 1;
  var sum0 = vec4f();
  var sum1 = vec4f();
  var sum2 = vec4f();
  var sum3 = vec4f();
  for (var step = 0u; step < STEPS; step++) {
    for (var item = thread; item < X_QUADS * 8; item += THREADS) {
      let quad = item / 8;
      let part = item % 8;
      let rows = min(first_row + 4 * quad + vec4u(0, 1, 2, 3), vec4u(sequence.length - 1));
      let a = activation(rows.x, 8 * step + part);
      let b = activation(rows.y, 8 * step + part);
      let c = activation(rows.z, 8 * step + part);
      let d = activation(rows.w, 8 * step + part);
      let to = 4 * part * X_QUADS + quad;
      x_tile[to] = vec4f(a.x, b.x, c.x, d.x);
      x_tile[to + X_QUADS] = vec4f(a.y, b.y, c.y, d.y);
      x_tile[to + 2 * X_QUADS] = vec4f(a.z, b.z, c.z, d.z);
      x_tile[to + 3 * X_QUADS] = vec4f(a.w, b.w, c.w, d.w);
    }
    for (var item = thread; item < W_QUADS * 8; item += THREADS) {
      let quad = item / 8;
      let part = item % 8;
      let rows = weight_rows_gated(group.x * W_QUADS + quad);
      let a = weights_at(rows.x, step, part);
      let b = weights_at(rows.y, step, part);
      let c = weights_at(rows.z, step, part);
      let d = weights_at(rows.w, step, part);
      w_tile[weight_k(part, 0u) * W_QUADS + quad] = vec4f(a.x, b.x, c.x, d.x);
      w_tile[weight_k(part, 1u) * W_QUADS + quad] = vec4f(a.y, b.y, c.y, d.y);
      w_tile[weight_k(part, 2u) * W_QUADS + quad] = vec4f(a.z, b.z, c.z, d.z);
      w_tile[weight_k(part, 3u) * W_QUADS + quad] = vec4f(a.w, b.w, c.w, d.w);
    }
    workgroupBarrier();
    for (var k = 0u; k < 32; k++) {
      let w = w_tile[k * W_QUADS + w_quad];
      let x0 = x_tile[k * X_QUADS + x_quad];
      sum0 += x0.x * w;
      sum1 += x0.y * w;
      sum2 += x0.z * w;
      sum3 += x0.w * w;
    }
    workgroupBarrier();
  }
  let row = first_row + 4 * x_quad;
  let column = 4 * (group.x * W_QUADS + w_quad);
  store_gated(row, column, sum0);
  store_gated(row + 1, column, sum1);
  store_gated(row + 2, column, sum2);
  store_gated(row + 3, column, sum3);
}

fn activation_3(row: u32, quad: u32) -> vec4f {
  return x[row * 24 + quad];
}

// ONNX nodes:
//   /model/layers.0/mlp/down_proj/MatMul
@compute @workgroup_size(64)
fn gemm_f16_3(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  let first_row = group.y * 16;
  if (first_row >= sequence.length) {
    return;  // no token in these rows
  }
  let w_quad = thread % W_QUADS;
  let x_quad = thread / W_QUADS * 1;
  var sum0 = vec4f();
  var sum1 = vec4f();
  var sum2 = vec4f();
  var sum3 = vec4f();
  for (var step = 0u; step < STEPS; step++) {
    for (var item = thread; item < X_QUADS * 8; item += THREADS) {
      let quad = item / 8;
      let part = item % 8;
      let rows = min(first_row + 4 * quad + vec4u(0, 1, 2, 3), vec4u(sequence.length - 1));
      let a = activation_3(rows.x, 8 * step + part);
      let b = activation_3(rows.y, 8 * step + part);
      let c = activation_3(rows.z, 8 * step + part);
      let d = activation_3(rows.w, 8 * step + part);
      let to = 4 * part * X_QUADS + quad;
      x_tile[to] = vec4f(a.x, b.x, c.x, d.x);
      x_tile[to + X_QUADS] = vec4f(a.y, b.y, c.y, d.y);
      x_tile[to + 2 * X_QUADS] = vec4f(a.z, b.z, c.z, d.z);
      x_tile[to + 3 * X_QUADS] = vec4f(a.w, b.w, c.w, d.w);
    }
    for (var item = thread; item < W_QUADS * 8; item += THREADS) {
      let quad = item / 8;
      let part = item % 8;
      let rows = weight_rows(group.x * W_QUADS + quad);
      let a = weights_at(rows.x, step, part);
      let b = weights_at(rows.y, step, part);
      let c = weights_at(rows.z, step, part);
      let d = weights_at(rows.w, step, part);
      w_tile[weight_k(part, 0u) * W_QUADS + quad] = vec4f(a.x, b.x, c.x, d.x);
      w_tile[weight_k(part, 1u) * W_QUADS + quad] = vec4f(a.y, b.y, c.y, d.y);
      w_tile[weight_k(part, 2u) * W_QUADS + quad] = vec4f(a.z, b.z, c.z, d.z);
      w_tile[weight_k(part, 3u) * W_QUADS + quad] = vec4f(a.w, b.w, c.w, d.w);
    }
    workgroupBarrier();
    for (var k = 0u; k < 32; k++) {
      let w = w_tile[k * W_QUADS + w_quad];
      let x0 = x_tile[k * X_QUADS + x_quad];
      sum0 += x0.x * w;
      sum1 += x0.y * w;
      sum2 += x0.z * w;
      sum3 += x0.w * w;
    }
    workgroupBarrier();
  }
  let row = first_row + 4 * x_quad;
  let column = 4 * (group.x * W_QUADS + w_quad);
  store_2(row, column, sum0);
  store_2(row + 1, column, sum1);
  store_2(row + 2, column, sum2);
  store_2(row + 3, column, sum3);
}
