/** The page around the runtime. Every text that comes from a model is set as text, never as HTML. */
import { clearCache, load } from "./runtime.js";
import { TextStream, loadText } from "./text.js";

const $ = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));
const ANNOUNCE_MS = 2000;
const mebibytes = (/** @type {number} */ n) => `${(n / 2 ** 20).toFixed(n < 2 ** 24 ? 1 : 0)} MiB`;
const begun = performance.now();
let announced = -Infinity;

/** @param {string} tag @param {any} [properties] @param {(Node | string)[]} [children] */
function element(tag, properties = {}, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** @param {unknown} error */
function showProblem(error) {
  $("problem").textContent = error instanceof Error ? error.message : String(error);
  $("problem").hidden = false;
}

/** The bar moves with every event; its text, which screen readers speak, now and then.
 * @param {import("../../runtime/web/progress.js").Progress} event */
function showProgress(event) {
  if (event.status === "warning") $("summary").textContent = event.message;
  if (event.status !== "progress_total") return;
  const { progress = 0, loaded = 0, total = 0, fetched = 0, remaining } = event;
  $("bar").value = progress;
  if (progress < 100 && performance.now() - announced < ANNOUNCE_MS) return;
  announced = performance.now();
  const from = fetched ? "" : " from this browser's storage";
  const left = remaining ? `, ${Math.ceil(remaining)} s left` : "";
  const done = progress >= 100 ? "Preparing the GPU …" : `Loading${from}${left} …`;
  $("loading-text").textContent = `${done} ${mebibytes(loaded)} of ${mebibytes(total)}`;
}

async function main() {
  const variant = new URLSearchParams(location.search).get("variant") ?? undefined;
  const session = await load(".", { onProgress: showProgress, ...(variant ? { variant } : {}) });
  Object.assign(globalThis, { session }); // for the console
  const { model, files = {}, sequence } = session.manifest;
  document.title = $("model").textContent = model.name;
  if (sequence) textPage(session, await loadText(files));
  else (await import("./graph.js")).graphPage(session, showProblem);
  $("loading").hidden = true;
  showFacts(session);
  document.body.dataset.ready = String(Math.round(performance.now() - begun));
}

/** @param {import("../../runtime/web/runtime.js").Session} session */
function showFacts(session) {
  const { shaders, sequence, producer, variants } = session.manifest;
  const { description, vendor, architecture } = session.adapterInfo;
  const others = variants.map(({ name }) => name).filter((name) => name !== session.variant);
  const links = others.map((name) => element("a", { href: `?variant=${encodeURIComponent(name)}`, textContent: name }));
  const facts = {
    Variant: [session.variantReason],
    ...(links.length ? { "Try another": links.flatMap((link, i) => (i ? [", ", link] : [link])) } : {}),
    GPU: [description || [vendor, architecture].filter(Boolean).join(" ") || "not named by the browser"],
    "GPU memory": [mebibytes(session.gpuBytes)],
    ...(sequence ? { "Context length": [`${sequence.capacity} tokens`] } : {}),
    "Compiled by": [producer],
  };
  for (const [name, value] of Object.entries(facts)) {
    $("fact-list").append(element("dt", { textContent: name }), element("dd", {}, value));
  }
  const own = new Set(variants.find(({ name }) => name === session.variant)?.launches.map((launch) => launch?.[0]));
  const names = new Set(shaders.filter((_, i) => own.has(i)).map(({ file }) => file));
  $("shader").append(...Array.from(names, (file) => new Option(file)));
  const show = async () => {
    const response = await fetch(`shaders/${$("shader").value}`);
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

/** @param {import("../../runtime/web/runtime.js").Session} session
 * @param {Awaited<ReturnType<typeof loadText>>} text */
function textPage(session, { tokenizer, render, reason, defaults }) {
  const output = $("output");
  const keys = "Ctrl-Enter sends, Escape stops.";
  /** @type {AbortController | null} */
  let running = null;
  let ended = 0;
  /** @type {{role: string, content: string}[]} */
  let messages = [];
  const chatting = () => render && $("chat").checked;

  /** A new part of the output; returns what adds text to it. @param {string} kind @param {string} who */
  const part = (kind, who) => {
    const name = chatting() ? [element("b", { textContent: `${who}\n` })] : [];
    const made = element(chatting() ? "p" : "span", { className: kind }, name);
    output.append(made);
    return (/** @type {string} */ words) => {
      const atEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
      made.append(words);
      if (atEnd) output.scrollTop = output.scrollHeight;
    };
  };

  /** The tokens to add to the sequence for what the visitor wrote. @param {string} words */
  const encode = async (words) => {
    const known = session.tokens;
    if (!tokenizer) return words.split(/[\s,]+/).filter(Boolean).map(Number);
    if (!chatting()) return tokenizer.encode(words, { add_special_tokens: !known.length }).ids;
    const ids = tokenizer.encode(render([...messages, { role: "user", content: words }]), { add_special_tokens: false }).ids;
    let same = 0;
    while (same < known.length && known[same] === ids[same]) same++;
    await session.rewind(same); // what is the same is in the KV cache
    return ids.slice(same);
  };

  const options = () => {
    /** @type {any} */
    const chosen = {};
    /** @type {NodeListOf<HTMLInputElement>} */
    const fields = document.querySelectorAll(".settings input");
    for (const { id, value } of fields) if (value !== "") chosen[id] = Number(value);
    if (chosen.temperature === 0) for (const name of ["topK", "topP", "minP"]) delete chosen[name];
    return chosen;
  };

  const generate = async () => {
    const { signal } = (running = new AbortController());
    $("problem").hidden = true;
    $("go").disabled = true;
    $("stop").disabled = false;
    const words = $("prompt").value;
    const stream = new TextStream(tokenizer);
    const began = performance.now();
    let [count, first, rate, answer] = [0, 0, "", ""];
    try {
      const tokens = session.generate(await encode(words), { ...options(), signal });
      part("given", "You")(words);
      $("prompt").value = "";
      const write = part("answer", session.manifest.model.name);
      const add = (/** @type {string} */ more) => {
        answer += more;
        write(more);
      };
      try {
        for await (const token of tokens) {
          first ||= performance.now();
          count++;
          add(stream.push(token));
          const seconds = (performance.now() - first) / 1000;
          if (count > 1 && seconds) $("rate").textContent = rate = `${((count - 1) / seconds).toFixed(1)} tokens/s`;
        }
      } finally {
        add(stream.finish());
        if (chatting()) messages.push({ role: "user", content: words }, { role: "assistant", content: answer });
      }
    } catch (error) {
      if (!signal.aborted) showProblem(error);
    }
    const why = signal.aborted ? "stopped" : session.finishReason;
    const facts = [rate, `${count} tokens`, first && `first after ${Math.round(first - began)} ms`, why && `ended: ${why}`];
    $("rate").textContent = facts.filter(Boolean).join(", ");
    $("announce").textContent = `${answer.slice(0, 2000)}\nGeneration ended after ${count} tokens.`;
    $("go").disabled = false;
    $("stop").disabled = true;
    running = null;
    output.dataset.ended = String(++ended);
    $("prompt").focus();
  };

  const stop = () => running?.abort();
  const startOver = async () => {
    stop();
    await session.reset();
    messages = [];
    output.replaceChildren();
    $("rate").textContent = "";
    $("prompt").focus();
  };
  const showMode = () => {
    document.querySelector("label[for=prompt]").textContent = chatting() ? "Message" : "Prompt";
    $("go").textContent = chatting() ? "Send" : "Generate";
  };

  for (const [name, value] of Object.entries(defaults)) $(name).value = value;
  $("prompt-hint").textContent = tokenizer ? keys : `Give token ids, as 1 2 3: ${reason}. ${keys}`;
  $("chat").closest("label").hidden = !render;
  showMode();
  $("chat").addEventListener("change", () => startOver().then(showMode, showProblem));
  $("prompt-form").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    if (!running) generate();
  });
  $("prompt").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !running) generate();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
  $("stop").addEventListener("click", stop);
  $("reset").addEventListener("click", () => startOver().catch(showProblem));
  $("text").hidden = false;
}

main().catch((error) => {
  $("loading").hidden = true;
  showProblem(error);
  document.body.dataset.ready = "failed";
});
