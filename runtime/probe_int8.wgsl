// Dot products of four int8: 256 times 32 per thread, in eight independent chains.

@group(0) @binding(0) var<storage, read> data: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> result: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let x = data[0].x + thread;
  var s0 = i32(0);
  var s1 = i32(1);
  var s2 = i32(2);
  var s3 = i32(3);
  var s4 = i32(4);
  var s5 = i32(5);
  var s6 = i32(6);
  var s7 = i32(7);
  for (var i = 0u; i < 256u; i++) {
    s0 = s0 + dot4I8Packed(x, bitcast<u32>(s0));
    s1 = s1 + dot4I8Packed(x, bitcast<u32>(s1));
    s2 = s2 + dot4I8Packed(x, bitcast<u32>(s2));
    s3 = s3 + dot4I8Packed(x, bitcast<u32>(s3));
    s4 = s4 + dot4I8Packed(x, bitcast<u32>(s4));
    s5 = s5 + dot4I8Packed(x, bitcast<u32>(s5));
    s6 = s6 + dot4I8Packed(x, bitcast<u32>(s6));
    s7 = s7 + dot4I8Packed(x, bitcast<u32>(s7));
    s0 = s0 + dot4I8Packed(x, bitcast<u32>(s0));
    s1 = s1 + dot4I8Packed(x, bitcast<u32>(s1));
    s2 = s2 + dot4I8Packed(x, bitcast<u32>(s2));
    s3 = s3 + dot4I8Packed(x, bitcast<u32>(s3));
    s4 = s4 + dot4I8Packed(x, bitcast<u32>(s4));
    s5 = s5 + dot4I8Packed(x, bitcast<u32>(s5));
    s6 = s6 + dot4I8Packed(x, bitcast<u32>(s6));
    s7 = s7 + dot4I8Packed(x, bitcast<u32>(s7));
    s0 = s0 + dot4I8Packed(x, bitcast<u32>(s0));
    s1 = s1 + dot4I8Packed(x, bitcast<u32>(s1));
    s2 = s2 + dot4I8Packed(x, bitcast<u32>(s2));
    s3 = s3 + dot4I8Packed(x, bitcast<u32>(s3));
    s4 = s4 + dot4I8Packed(x, bitcast<u32>(s4));
    s5 = s5 + dot4I8Packed(x, bitcast<u32>(s5));
    s6 = s6 + dot4I8Packed(x, bitcast<u32>(s6));
    s7 = s7 + dot4I8Packed(x, bitcast<u32>(s7));
    s0 = s0 + dot4I8Packed(x, bitcast<u32>(s0));
    s1 = s1 + dot4I8Packed(x, bitcast<u32>(s1));
    s2 = s2 + dot4I8Packed(x, bitcast<u32>(s2));
    s3 = s3 + dot4I8Packed(x, bitcast<u32>(s3));
    s4 = s4 + dot4I8Packed(x, bitcast<u32>(s4));
    s5 = s5 + dot4I8Packed(x, bitcast<u32>(s5));
    s6 = s6 + dot4I8Packed(x, bitcast<u32>(s6));
    s7 = s7 + dot4I8Packed(x, bitcast<u32>(s7));
  }
  let all = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7;
  if (all == 1234567) {  // never
    result[0] = thread + group.x;
  }
}
