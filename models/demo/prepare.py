# mypy: disable-error-code="import-not-found,unused-ignore"
"""Prepare the demo model's data: a byte-level BPE vocabulary, token ids, held-out text.

    python models/demo/prepare.py --out DATA [--stdlib FOLDER ...] [--docs FOLDER ...]

Without --stdlib this Python's own standard library is taken. Several folders may be given: the newest first,
as a later one adds only files that the earlier ones lack.
"""

from __future__ import annotations

import argparse
import random
import sysconfig
from pathlib import Path

import numpy as np
from corpus import Document, Group, collect, sources_text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ("<pad>", "<s>", "</s>")  # ids 0, 1, 2
BOS, EOS = 1, 2
VOCAB_SIZE = 8192
HELD_OUT_TEXT_NBYTES = 96 * 1024
SEED = 20


def prepare(folder: Path, stdlibs: list[Path], docs: list[Path], vocab_size: int = VOCAB_SIZE) -> None:
    """Write tokenizer.json, tokens.npz, held-out.txt and sources.txt.

    tokens.npz has two uint16 arrays a group: "library.train", "library.held-out" and so on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    documents = collect(stdlibs, docs)
    random.Random(SEED).shuffle(documents)
    train = [document for document in documents if not document.held_out]
    tokenizer = train_tokenizer(train, vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    arrays = {}
    for group in Group:
        for held_out, split in ((False, "train"), (True, "held-out")):
            chosen = [d for d in documents if d.group is group and d.held_out is held_out]
            arrays[f"{group}.{split}"] = encode(tokenizer, chosen)
    np.savez(folder / "tokens.npz", **arrays)  # type: ignore[arg-type]
    (folder / "held-out.txt").write_text(held_out_text(documents), encoding="utf-8")
    listing = sources_text(sorted(documents, key=lambda document: (document.group, document.path)))
    (folder / "sources.txt").write_text(listing, encoding="utf-8")
    n_tokens = sum(array.size for name, array in arrays.items() if name.endswith(".train"))
    n_characters = sum(len(document.text) for document in train)
    print("\n".join(line for line in listing.splitlines() if line.startswith("#")))
    print(f"train: {n_tokens} tokens, {n_characters / n_tokens:.2f} characters each", flush=True)


def train_tokenizer(documents: list[Document], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=32,
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[Document]) -> np.ndarray:
    """uint16: <s> text </s> of each document, end to end."""
    ids: list[int] = []
    for encoding in tokenizer.encode_batch([document.text for document in documents]):
        ids += [BOS, *encoding.ids, EOS]
    return np.array(ids, np.uint16)


def held_out_text(documents: list[Document]) -> str:
    """Whole held-out library and documentation files in turn, for a perplexity that anyone can repeat."""
    text = ""
    groups = (Group.LIBRARY, Group.DOCUMENTATION)
    queues = [[d.text for d in documents if d.held_out and d.group is group] for group in groups]
    while any(queues):
        for queue in queues:
            if (
                queue
                and len(text.encode()) + len((following := queue.pop(0)).encode()) <= HELD_OUT_TEXT_NBYTES
            ):
                text += following
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare the demo model's data.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stdlib", type=Path, action="append")
    parser.add_argument("--docs", type=Path, action="append", default=[])
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE)
    options = parser.parse_args()
    stdlibs = options.stdlib or [Path(sysconfig.get_paths()["stdlib"])]
    prepare(options.out, stdlibs, options.docs, options.vocab_size)


if __name__ == "__main__":
    main()
