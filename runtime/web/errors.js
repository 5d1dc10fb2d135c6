/**
 * The one way the runtime says no: one sentence for the user. What it is about; what is wrong; what to do.
 * `detail` holds lines that do not fit a sentence, such as a driver's message.
 */
export class RuntimeFailure extends Error {
  name = "RuntimeFailure";

  /** @param {string} subject @param {string} problem @param {string} hint @param {string} [detail] */
  constructor(subject, problem, hint, detail = "") {
    super(`${subject}: ${problem}; ${hint}.${detail && `\n${detail}`}`);
    this.problem = problem;
  }
}

/** The GPU went away: a driver reset, a sleeping laptop, another tab. `generate` starts again by itself. */
export class DeviceLost extends RuntimeFailure {
  name = "DeviceLost";

  /** @param {string} reason */
  constructor(reason) {
    super("the GPU", `was lost while it worked (${reason})`, "load the artifact again");
  }
}

/** @param {string} subject @param {string} problem @param {string} hint @param {string} [detail] @returns {never} */
export function fail(subject, problem, hint, detail) {
  throw new RuntimeFailure(subject, problem, hint, detail);
}

export const RECOMPILE = "compile the model again with webgpu-compile";
export const COPY = "copy the whole folder that webgpu-compile wrote to the server";
