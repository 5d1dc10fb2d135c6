/** The page of a model without a sequence: its inputs, given or at random; its outputs and how long they took. */

const $ = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));
const SHOWN = 100;

/** @param {import("../../runtime/web/runtime.js").Session} session @param {(error: unknown) => void} showProblem */
export function graphPage(session, showProblem) {
  const ports = session.manifest.programs.run.inputs ?? [];
  for (const { name, dtype, shape } of ports) {
    const label = Object.assign(document.createElement("label"), { textContent: `${name}: ${dtype} [${shape.join(", ")}] ` });
    const input = document.createElement("input");
    input.placeholder = "empty for random values; or numbers, as 1 2 3";
    label.append(input);
    $("inputs").append(label);
  }
  const run = async () => {
    const fields = [...$("inputs").querySelectorAll("input")];
    const inputs = Object.fromEntries(ports.map((port, i) => [port.name, values(port, fields[i].value.trim())]));
    const times = [];
    let outputs = {};
    for (let i = 0; i < Number($("repeat").value); i++) {
      const began = performance.now();
      outputs = await session.run(inputs);
      times.push(performance.now() - began);
    }
    const median = times.toSorted((a, b) => a - b)[times.length >> 1];
    $("timing").textContent = `${median.toFixed(1)} ms${times.length > 1 ? `, the median of ${times.length}` : ""}`;
    $("outputs").textContent = Object.entries(outputs).map(shown).join("\n\n");
  };
  $("graph-form").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    $("problem").hidden = true;
    run().catch(showProblem);
  });
  $("graph").hidden = false;
}

/** Numbers from a text; random ones where there is none: floats from -1 to 1, whole numbers 0 and 1.
 * @param {import("../../runtime/web/types.js").Port} port @param {string} text */
function values({ dtype, shape }, text) {
  if (text) return text.split(/[\s,]+/).map(Number);
  const random = () => (dtype.startsWith("float") ? 2 * Math.random() - 1 : Math.round(Math.random()));
  return Array.from({ length: shape.reduce((n, dim) => n * Number(dim), 1) }, random);
}

/** @param {[string, import("../../runtime/web/ports.js").Tensor]} output */
function shown([name, { type, dims, data }]) {
  const some = Array.from(data.slice(0, SHOWN), (value) => (typeof value === "number" ? Number(value.toPrecision(6)) : value));
  return `${name}: ${type} [${dims.join(", ")}]\n${some.join(" ")}${data.length > SHOWN ? " …" : ""}`;
}
