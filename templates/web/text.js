/** Text to token ids and back, with the tokenizer that lies in the artifact. */

const REPLACEMENT = "\ufffd";

const SPECIAL_TOKENS = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/** The settings of the page and their names in generation_config.json. */
const SAMPLING = { temperature: "temperature", topK: "top_k", topP: "top_p", minP: "min_p", repetitionPenalty: "repetition_penalty" };

/**
 * What the artifact has for text: its tokenizer, or null with the reason why the page takes token ids; the chat
 * template as a function of messages, or null; and how its makers want tokens to be chosen.
 * @param {Record<string, string>} files the manifest's
 */
export async function loadText(files) {
  const has = (/** @type {string} */ name) => Object.hasOwn(files, name);
  const read = async (/** @type {string} */ name) => (has(name) ? (await fetch(name)).json() : {});
  const [config, map, generation, genai] = await Promise.all(
    ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "genai_config.json"].map(read),
  );
  const defaults = samplingDefaults({ ...generation, ...genai.search });
  const missing = !has("tokenizer.json") ? "there is no tokenizer.json" : "the tokenizer library was not built in";
  if (!has("tokenizer.json") || !has("tokenizers.js")) return { tokenizer: null, render: null, reason: missing, defaults };
  const [{ Tokenizer }, json] = await Promise.all([import("./tokenizers.js"), read("tokenizer.json")]);
  const render = has("jinja.js") ? await chatTemplate(has("chat_template.jinja"), config, { ...map, ...config }) : null;
  return { tokenizer: new Tokenizer(json, config), render, reason: "", defaults };
}

/** As runtime/chat_template.py does it. @param {boolean} file @param {any} config @param {any} special */
async function chatTemplate(file, config, special) {
  let source = file ? await (await fetch("chat_template.jinja")).text() : config.chat_template;
  if (Array.isArray(source)) source = (source.find(({ name }) => name === "default") ?? source[0])?.template;
  if (typeof source !== "string") return null;
  const { Template } = await import("./jinja.js");
  const template = new Template(source);
  const names = SPECIAL_TOKENS.map((name) => [name, special[name]?.content ?? special[name]]);
  const tokens = Object.fromEntries(names.filter(([, token]) => typeof token === "string"));
  const fixed = { tools: null, documents: null, ...tokens, add_generation_prompt: true };
  return (/** @type {{role: string, content: string}[]} */ messages) => /** @type {string} */ (template.render({ ...fixed, messages }));
}

/** As runtime/sampling_defaults.py does it: without do_sample only the repetition penalty counts.
 * @param {any} config @returns {Record<string, number>} */
function samplingDefaults(config) {
  const all = config.do_sample === true;
  const own = Object.entries(SAMPLING).filter(([name]) => all || name === "repetitionPenalty");
  const values = own.map(([name, theirs]) => [name, config[theirs]]).filter(([, value]) => Number.isFinite(value));
  return { ...(all ? { temperature: 1 } : {}), ...Object.fromEntries(values) };
}

/** Tokens in, text out as soon as it is certain: a token may be a part of a character, and its text may depend
 * on the one before it, so its text is the difference that it makes to the text of the last few. */
export class TextStream {
  /** @type {number[]} */
  tokens = [];
  start = 0;
  given = 0;

  /** @param {any} tokenizer */
  constructor(tokenizer) {
    this.tokenizer = tokenizer;
  }

  /** The text that `token` completes. @param {number} token */
  push(token) {
    if (!this.tokenizer) return `${token} `;
    this.tokens.push(token);
    return this.next(false);
  }

  /** What is left, complete or not. */
  finish() {
    return this.tokenizer ? this.next(true) : "";
  }

  /** @param {boolean} final */
  next(final) {
    const options = { skip_special_tokens: true, clean_up_tokenization_spaces: false };
    const decode = (/** @type {number[]} */ ids) => (ids.length ? this.tokenizer.decode(ids, options) : "");
    const before = decode(this.tokens.slice(this.start, this.given));
    const now = decode(this.tokens.slice(this.start));
    if (now.length <= before.length || (now.endsWith(REPLACEMENT) && !final)) return "";
    [this.start, this.given] = [this.given, this.tokens.length];
    return now.slice(before.length);
  }
}
