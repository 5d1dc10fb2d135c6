/** The fields of manifest.json that the runtime reads; `runtime/schema.py` documents them all. */
export interface ModelPort {
  name: string;
  dtype: string;
  shape: (number | string)[];
}

export interface Port {
  name: string;
  dtype: string;
  shape: number[];
  storage: string;
  buffer: number;
  nbytes: number;
}

export interface BufferInfo {
  name: string;
  nbytes: number;
  kind: string;
  indirect?: boolean;
}

export interface Shard {
  file: string;
  nbytes: number;
  data_offset: number;
  buffer: number;
  block_nbytes: number;
  blocks: string[];
}

export interface ShaderInfo {
  file: string;
  workgroup: number[];
  access: string;
  features?: string[];
  entry?: string;
  constants?: Record<string, number>;
}

export interface Program {
  rows: number;
  /** [kernel, range of binding 0, …], or a copy: {source, target}, also ranges. */
  steps: any[];
  inputs?: Port[];
  outputs?: Port[];
}

export interface Variant {
  name: string;
  features: string[];
  limits: Record<string, number>;
  /** Of each kernel [shader, grid] or null; a grid is three numbers or a range. */
  launches: any[];
  /** What it was tuned for. */
  adapter?: { vendor: string; device?: string };
  /** For GPUs that a CPU plays. */
  software?: boolean;
  /** All of them, as `decodeManifest` gives it. */
  programs: Record<string, Program>;
}

export interface SequenceState {
  buffer: number;
  tokens: number;
  words: Record<string, number>;
  capacity: number;
  vocab_size: number;
  max_stop_tokens: number;
  stop_tokens: number[];
  driven_by: string;
  all_logits: boolean;
  ids: string;
  logits: string;
}

export interface ModelInfo {
  name: string;
  kind: string;
  inputs: ModelPort[];
  outputs: ModelPort[];
}

export interface Manifest {
  format: string;
  version: number;
  producer: string;
  model: ModelInfo;
  buffers: BufferInfo[];
  shards: Shard[];
  /** SHA-256 by file. */
  modules: Record<string, string>;
  shaders: ShaderInfo[];
  /** [buffer, offset, nbytes] */
  ranges: number[][];
  programs: Record<string, Program>;
  variants: Variant[];
  sequence?: SequenceState;
  files?: Record<string, string>;
}
