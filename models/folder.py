"""A model folder: model.onnx, its weights, and the small files beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .companions import write_companions
from .config import DecoderConfig
from .decoder import build
from .graph import DATA_FILE, GraphWriter
from .weights import Tensor, write_tensors


def write_decoder(
    directory: str | Path,
    config: DecoderConfig,
    *,
    seed: int = 0,
    weights: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write a model folder and return the path of its model.onnx.

    The same config and seed give the same bytes. `weights=False` leaves model.onnx.data out (see
    `fill_weights`). `progress(done, total)` is told bytes of weights. Raise ValueError for a vocabulary too
    small for the tokenizer, OSError when a file cannot be written.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    writer = build(config)
    path = folder / "model.onnx"
    write_companions(folder, config, seed)
    path.write_bytes(serialized(writer))
    if weights:
        fill(folder, writer.tensors, seed, progress)
    return path


def fill_weights(
    directory: str | Path,
    config: DecoderConfig,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write model.onnx.data beside the model.onnx of `config`, and return the latter's path.

    Raise ValueError when the model.onnx there is not the one that `config` describes.
    """
    path = Path(directory) / "model.onnx"
    writer = build(config)
    if path.read_bytes() != serialized(writer):
        raise ValueError(f"{path} is not the model that its recipe describes")
    fill(path.parent, writer.tensors, seed, progress)
    return path


def fill(folder: Path, tensors: tuple[Tensor, ...], seed: int, progress: Callable[[int, int], None]) -> None:
    total, done = sum(tensor.nbytes for tensor in tensors), 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    write_tensors(folder / DATA_FILE, tensors, seed, count)


def serialized(writer: GraphWriter, origin: str = "Random weights.") -> bytes:
    content: bytes = writer.model(origin).SerializeToString(deterministic=True)
    return content
