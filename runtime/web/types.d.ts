/** The fields of manifest.json that the runtime reads; `runtime/schema.py` documents them all. */
export type Check = (value: any) => void;

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
  sha256: string;
  workgroup: number[];
  access: string;
  features?: string[];
}

export interface Dispatch {
  step: string;
  kernel: string;
  shader: number;
  bindings: number[][];
  grid?: number[];
  indirect?: number[];
}

export interface Copy {
  step: string;
  source: number;
  source_offset: number;
  target: number;
  target_offset: number;
  nbytes: number;
}

export interface Program {
  rows: number;
  steps: any[];
  inputs?: Port[];
  outputs?: Port[];
}

export interface Variant {
  name: string;
  features: string[];
  limits: Record<string, number>;
  programs: Record<string, Program>;
  adapter?: { vendor: string; device?: string };
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

/** As `decodeManifest` gives it: `variants` have every program, spelled out. */
export interface Manifest {
  format: string;
  version: number;
  producer: string;
  model: ModelInfo;
  buffers: BufferInfo[];
  shards: Shard[];
  shaders: ShaderInfo[];
  variants: Variant[];
  sequence?: SequenceState;
  files?: Record<string, string>;
}
