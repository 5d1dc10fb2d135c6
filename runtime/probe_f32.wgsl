// Multiplies and adds f32: 256 times 32 per thread and component, in eight independent chains.

@group(0) @binding(0) var<storage, read> data: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> result: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let x = vec4<f32>(bitcast<f32>(data[0].x) + f32(thread));
  var s0 = vec4<f32>(0);
  var s1 = vec4<f32>(1);
  var s2 = vec4<f32>(2);
  var s3 = vec4<f32>(3);
  var s4 = vec4<f32>(4);
  var s5 = vec4<f32>(5);
  var s6 = vec4<f32>(6);
  var s7 = vec4<f32>(7);
  for (var i = 0u; i < 256u; i++) {
    s0 = fma(s0, x, x);
    s1 = fma(s1, x, x);
    s2 = fma(s2, x, x);
    s3 = fma(s3, x, x);
    s4 = fma(s4, x, x);
    s5 = fma(s5, x, x);
    s6 = fma(s6, x, x);
    s7 = fma(s7, x, x);
    s0 = fma(s0, x, x);
    s1 = fma(s1, x, x);
    s2 = fma(s2, x, x);
    s3 = fma(s3, x, x);
    s4 = fma(s4, x, x);
    s5 = fma(s5, x, x);
    s6 = fma(s6, x, x);
    s7 = fma(s7, x, x);
    s0 = fma(s0, x, x);
    s1 = fma(s1, x, x);
    s2 = fma(s2, x, x);
    s3 = fma(s3, x, x);
    s4 = fma(s4, x, x);
    s5 = fma(s5, x, x);
    s6 = fma(s6, x, x);
    s7 = fma(s7, x, x);
    s0 = fma(s0, x, x);
    s1 = fma(s1, x, x);
    s2 = fma(s2, x, x);
    s3 = fma(s3, x, x);
    s4 = fma(s4, x, x);
    s5 = fma(s5, x, x);
    s6 = fma(s6, x, x);
    s7 = fma(s7, x, x);
  }
  let all = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7;
  if (all.x + all.y + all.z + all.w == 1.25) {  // never
    result[0] = thread + group.x;
  }
}
