/** The page around the runtime. Every text that comes from a model is set as text, never as HTML. */
import { clearCache, load } from "./runtime.js";
import { TextStream, loadTokenizer } from "./text.js";

const $ = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));
const SETTINGS = ["temperature", "topK", "topP", "minP", "repetitionPenalty", "seed"];
const mebibytes = (/** @type {number} */ n) => `${(n / 2 ** 20).toFixed(n < 2 ** 24 ? 1 : 0)} MiB`;
const begun = performance.now();

/** @param {unknown} error */
function showProblem(error) {
  $("problem").textContent = error instanceof Error ? error.message : String(error);
  $("problem").hidden = false;
}

/** @param {import("../../runtime/web/runtime.js").Progress} event */
function showProgress(event) {
  if (event.status === "warning") $("summary").textContent = event.message;
  if (event.status !== "progress_total") return;
  const { progress = 0, loaded = 0, total = 0, fetched = 0, remaining } = event;
  $("bar").value = progress;
  const from = fetched ? "" : " from this browser's storage";
  const left = remaining ? `, ${Math.ceil(remaining)} s left` : "";
  const done = progress >= 100 ? "Preparing the GPU …" : `Loading${from}${left} …`;
  $("loading-text").textContent = `${done} ${mebibytes(loaded)} of ${mebibytes(total)}`;
}

async function main() {
  const session = await load(".", { onProgress: showProgress });
  Object.assign(globalThis, { session }); // for the console
  const { model, files = {}, sequence } = session.manifest;
  document.title = $("model").textContent = model.name;
  const { tokenizer, reason } = sequence ? await loadTokenizer(files) : { tokenizer: null, reason: "" };
  $("loading").hidden = true;
  showFacts(session);
  if (sequence) textPage(session, tokenizer, reason);
  else graphPage(session);
  document.body.dataset.ready = String(Math.round(performance.now() - begun));
}

/** @param {import("../../runtime/web/runtime.js").Session} session */
function showFacts(session) {
  const { shaders, sequence, producer } = session.manifest;
  const info = session.adapterInfo;
  const facts = {
    Variant: session.variantReason,
    GPU: info.description || [info.vendor, info.architecture].filter(Boolean).join(" ") || "not named by the browser",
    "GPU memory": mebibytes(session.gpuBytes),
    ...(sequence ? { "Context length": `${sequence.capacity} tokens` } : {}),
    "Compiled by": producer,
  };
  for (const [name, value] of Object.entries(facts)) {
    $("fact-list").append(
      Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: value }),
    );
  }
  shaders.forEach(({ file }, i) => $("shader").append(new Option(file, String(i))));
  const show = async () => {
    const response = await fetch(`shaders/${shaders[Number($("shader").value)].file}`);
    $("wgsl").textContent = await response.text();
  };
  $("shader").addEventListener("change", () => show().catch(showProblem));
  $("shader").closest("details").addEventListener("toggle", () => show().catch(showProblem), { once: true });
  $("clear").addEventListener("click", async () => {
    await clearCache().catch(showProblem);
    $("clear").textContent = "Forgotten";
  });
  $("facts").hidden = false;
}

/** @param {import("../../runtime/web/runtime.js").Session} session @param {any} tokenizer @param {string} reason */
function textPage(session, tokenizer, reason) {
  const words = session.manifest.sequence?.words ?? {};
  for (const label of document.querySelectorAll("[data-word]")) {
    /** @type {any} */ (label).hidden = !Object.hasOwn(words, /** @type {any} */ (label).dataset.word);
  }
  if (!tokenizer) {
    $("prompt-hint").textContent = `Give token ids, as 1 2 3: ${reason}. Ctrl-Enter generates, Escape stops.`;
  }
  const output = $("output");
  /** @type {AbortController | null} */
  let running = null;
  let ended = 0;

  /** @param {string} text @param {string} [kind] */
  const write = (text, kind = "") => {
    const atEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
    const last = output.lastChild;
    if (last && last.className === kind) last.append(text);
    else output.append(Object.assign(document.createElement("span"), { className: kind, textContent: text }));
    if (atEnd) output.scrollTop = output.scrollHeight;
  };

  const encode = () => {
    const text = $("prompt").value;
    if (tokenizer) return tokenizer.encode(text, { add_special_tokens: session.tokens.length === 0 }).ids;
    return text.split(/[\s,]+/).filter(Boolean).map(Number);
  };

  const generate = async () => {
    running = new AbortController();
    $("problem").hidden = true;
    $("go").disabled = true;
    $("stop").disabled = false;
    const stream = new TextStream(tokenizer);
    const began = performance.now();
    let [count, first] = [0, 0];
    try {
      const ids = encode();
      /** @type {any} */
      const options = { signal: running.signal };
      for (const name of ["maxNewTokens", "tokensPerSubmit"]) options[name] = Number($(name).value);
      for (const name of SETTINGS) {
        if (!$(name).closest("label").hidden && $(name).value !== "") options[name] = Number($(name).value);
      }
      if (options.temperature === 0) for (const name of ["topK", "topP", "minP"]) delete options[name];
      const tokens = session.generate(ids, options);
      write($("prompt").value, "given");
      $("prompt").value = "";
      for await (const token of tokens) {
        first ||= performance.now();
        count++;
        write(stream.push(token));
        const seconds = (performance.now() - first) / 1000;
        if (count > 1 && seconds) $("rate").textContent = `${((count - 1) / seconds).toFixed(1)} tokens/s`;
      }
    } catch (error) {
      if (!running.signal.aborted) showProblem(error);
    }
    write(stream.finish());
    const rate = $("rate").textContent.split(",")[0];
    const why = running.signal.aborted ? "stopped" : session.finishReason;
    $("rate").textContent = `${rate}, ${count} tokens, first after ${Math.round(first - began)} ms${why ? `, ended: ${why}` : ""}`;
    $("announce").textContent = `Generation ended after ${count} tokens.`;
    $("go").disabled = false;
    $("stop").disabled = true;
    running = null;
    output.dataset.ended = String(++ended);
    $("prompt").focus();
  };

  const stop = () => running?.abort();
  $("prompt-form").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    if (!running) generate();
  });
  $("prompt").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !running) generate();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
  $("stop").addEventListener("click", stop);
  $("reset").addEventListener("click", async () => {
    stop();
    await session.reset();
    output.replaceChildren();
    $("rate").textContent = "";
    $("prompt").focus();
  });
  $("text").hidden = false;
}

/** @param {import("../../runtime/web/runtime.js").Session} session */
function graphPage(session) {
  const ports = Object.values(session.manifest.variants.find(({ name }) => name === session.variant)?.programs ?? {})[0].inputs ?? [];
  for (const { name, dtype, shape } of ports) {
    const label = document.createElement("label");
    label.textContent = `${name}: ${dtype} [${shape.join(", ")}] `;
    const input = document.createElement("input");
    input.placeholder = "empty for random values; or numbers, as 1 2 3";
    label.append(input);
    $("inputs").append(label);
  }
  $("graph-form").addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    $("problem").hidden = true;
    try {
      const fields = [...$("inputs").querySelectorAll("input")];
      const inputs = Object.fromEntries(
        ports.map(({ name, dtype, shape }, i) => {
          const size = shape.reduce((/** @type {number} */ n, dim) => n * Number(dim), 1);
          const random = () => (dtype.startsWith("float") ? 2 * Math.random() - 1 : 0);
          const text = fields[i].value.trim();
          return [name, text ? text.split(/[\s,]+/).map(Number) : Array.from({ length: size }, random)];
        }),
      );
      const began = performance.now();
      const outputs = await session.run(inputs);
      $("timing").textContent = `${(performance.now() - began).toFixed(1)} ms`;
      $("outputs").textContent = Object.entries(outputs)
        .map(([name, { type, dims, data }]) => {
          const values = Array.from(data.slice(0, 100), (v) => (typeof v === "number" ? Number(v.toPrecision(6)) : v));
          return `${name}: ${type} [${dims.join(", ")}]\n${values.join(" ")}${data.length > 100 ? " …" : ""}`;
        })
        .join("\n\n");
    } catch (error) {
      showProblem(error);
    }
  });
  $("graph").hidden = false;
}

main().catch((error) => {
  $("loading").hidden = true;
  showProblem(error);
  document.body.dataset.ready = "failed";
});
