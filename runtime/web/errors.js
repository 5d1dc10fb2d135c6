/**
 * The one way the runtime says no: one sentence for the user. What it is about; what is wrong; what to do.
 * `detail` holds lines that do not fit a sentence, such as the place in a shader that a driver rejects.
 */
export class RuntimeFailure extends Error {
  /**
   * @param {string} subject
   * @param {string} problem
   * @param {string} hint
   * @param {string} [detail]
   */
  constructor(subject, problem, hint, detail = "") {
    super(`${subject}: ${problem}; ${hint}.${detail && `\n${detail}`}`);
    this.name = "RuntimeFailure";
    this.subject = subject;
    this.problem = problem;
    this.hint = hint;
    this.detail = detail;
  }
}

/** The GPU went away: a driver reset, a sleeping laptop, another tab. `generate` starts again by itself. */
export class DeviceLost extends RuntimeFailure {
  /** @param {string} reason */
  constructor(reason) {
    super("the GPU", `was lost while it worked (${reason})`, "load the artifact again");
    this.name = "DeviceLost";
  }
}

export const RECOMPILE = "compile the model again with webgpu-compile";
