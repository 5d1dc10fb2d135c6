// Reads a buffer once, as fast as the device can: every thread has 16 loads of 16 bytes in flight.

@group(0) @binding(0) var<storage, read> data: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> result: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let i = group.x * 4096u + thread;
  let a = data[i] ^ data[i + 256u] ^ data[i + 512u] ^ data[i + 768u];
  let b = data[i + 1024u] ^ data[i + 1280u] ^ data[i + 1536u] ^ data[i + 1792u];
  let c = data[i + 2048u] ^ data[i + 2304u] ^ data[i + 2560u] ^ data[i + 2816u];
  let d = data[i + 3072u] ^ data[i + 3328u] ^ data[i + 3584u] ^ data[i + 3840u];
  let all = a ^ b ^ c ^ d;
  if ((all.x ^ all.y ^ all.z ^ all.w) == 1u) {  // never: the buffer is zero
    result[0] = all.x;
  }
}
