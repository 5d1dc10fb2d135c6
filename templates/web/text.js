/** Text to token ids and back, with the tokenizer that lies in the artifact. */

const REPLACEMENT = "\ufffd";

/**
 * The tokenizer of the artifact, or null with the reason why the page takes token ids instead of text.
 * @param {Record<string, string>} files the manifest's
 */
export async function loadTokenizer(files) {
  if (!Object.hasOwn(files, "tokenizer.json")) return { tokenizer: null, reason: "there is no tokenizer.json" };
  if (!Object.hasOwn(files, "tokenizers.js")) return { tokenizer: null, reason: "the tokenizer library was not built in" };
  const read = async (/** @type {string} */ name) => (Object.hasOwn(files, name) ? (await fetch(name)).json() : {});
  const [{ Tokenizer }, json, config] = await Promise.all([
    import("./tokenizers.js"),
    read("tokenizer.json"),
    read("tokenizer_config.json"),
  ]);
  return { tokenizer: new Tokenizer(json, config), reason: "" };
}

/** Tokens in, text out as soon as it is certain: a token may be a part of a character, and its text may depend
 * on the one before it, so its text is the difference that it makes to the text of the last few. */
export class TextStream {
  /** @param {any} tokenizer */
  constructor(tokenizer) {
    this.tokenizer = tokenizer;
    /** @type {number[]} */
    this.tokens = [];
    this.start = 0;
    this.given = 0;
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
    const decode = (/** @type {number[]} */ ids) => {
      return ids.length ? this.tokenizer.decode(ids, { skip_special_tokens: true, clean_up_tokenization_spaces: false }) : "";
    };
    const before = decode(this.tokens.slice(this.start, this.given));
    const now = decode(this.tokens.slice(this.start));
    if (now.length <= before.length || (now.endsWith(REPLACEMENT) && !final)) return "";
    [this.start, this.given] = [this.given, this.tokens.length];
    return now.slice(before.length);
  }
}
