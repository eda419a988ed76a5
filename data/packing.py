"""Rows for pretraining: documents packed without padding waste, and no attention between documents.

Legend: N rows of T cells; D documents. A row is three arrays that go to the model together:

- `input_ids` (N, T): the tokens, unused cells at the end hold `pad_id`;
- `position_ids` (N, T): 0, 1, 2, ... restarting with each document. transformers builds the block-diagonal causal
  mask from these restarts, if `attention_mask` and `past_key_values` are None (`masking_utils`, 5.23; a forward in
  training needs `use_cache=False`). Unused cells restart at 0 too and so form a block of their own;
- `targets` (N, T): the next token of the same document, already shifted, IGNORE where there is none. Give them to
  transformers as `shift_labels`, or to `cross_entropy(logits.flatten(0, 1), targets.flatten())`.

Because targets are stored and not derived from the row, a document of L tokens takes L - 1 cells, and the cut of a
long document costs no target: every token but the first of a document is predicted exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from launch.errors import UserError
from launch.seeding import numpy_generator

IGNORE = -100
"""The target of a cell that predicts nothing (the default ignore_index of torch's cross-entropy)."""

Batch = dict[str, np.ndarray]
Tokens = Sequence[int] | np.ndarray


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Documents packed into rows, the same in every epoch. `padding` is the number of unused cells."""

    input_ids: np.ndarray
    position_ids: np.ndarray
    targets: np.ndarray
    padding: int

    @property
    def count(self) -> int:
        """Rows in an epoch."""
        return len(self.input_ids)

    @property
    def waste(self) -> float:
        """Share of cells that hold padding."""
        return self.padding / self.input_ids.size

    def take(self, epoch: int, indices: np.ndarray) -> Batch:
        """The rows with these indices: each array (len(indices), T) int64. The epoch does not matter."""
        arrays = {"input_ids": self.input_ids, "position_ids": self.position_ids, "targets": self.targets}
        return {name: array[indices].astype(np.int64) for name, array in arrays.items()}


def cut_lengths(lengths: Sequence[int], row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces of documents of `lengths` cells, each at most `row` long: (document, start, length), int64 (P,) each."""
    counts = -(-np.asarray(lengths, dtype=np.int64) // row)
    document = np.repeat(np.arange(len(counts)), counts)
    first_piece = np.repeat(np.cumsum(counts) - counts, counts)
    start = (np.arange(len(document)) - first_piece) * row
    return document, start, np.minimum(np.asarray(lengths, dtype=np.int64)[document] - start, row)


def best_fit_decreasing(lengths: np.ndarray, row: int) -> list[list[int]]:
    """Pieces (by index) of each row: longest piece first, into the row with the least space that still holds it.

    Johnson 1974; for language models Ding et al. 2024 (arXiv 2404.10830). Equal lengths keep their order and equal
    spaces are filled newest row first, so the result is one function of the lengths. The set of spaces that occur is
    one integer of `row` bits; its lowest set bit from `length` up is the best fit, which makes a step O(row / 64).
    """
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(row + 1)]  # rows by their space left
    spaces = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        candidates = spaces >> length
        if candidates:
            space = length + (candidates & -candidates).bit_length() - 1
            target = open_rows[space].pop()
            if not open_rows[space]:
                spaces &= ~(1 << space)
            rows[target].append(index)
        else:
            space, target = row, len(rows)
            rows.append([index])
        if space > length:
            open_rows[space - length].append(target)
            spaces |= 1 << (space - length)
    return rows


def pack_documents(documents: Sequence[Tokens], row: int, pad_id: int) -> PackedRows:
    """Pack token documents into rows of `row` cells by best-fit decreasing; longer documents are cut into pieces.

    Give each document its end token. A document of one token has nothing to predict and is left out.
    """
    tokens = [np.asarray(document, dtype=np.int32) for document in documents]
    tokens = [document for document in tokens if len(document) > 1]
    if not tokens:
        raise UserError("packing: no document has two tokens or more; give longer text")
    piece_document, piece_start, piece_length = cut_lengths([len(document) - 1 for document in tokens], row)
    rows = best_fit_decreasing(piece_length, row)
    shape = (len(rows), row)
    input_ids = np.full(shape, pad_id, dtype=np.int32)
    position_ids, targets = np.zeros(shape, dtype=np.int32), np.full(shape, IGNORE, dtype=np.int32)
    for number, pieces in enumerate(rows):
        at = 0
        for piece in pieces:
            document, start, length = tokens[piece_document[piece]], int(piece_start[piece]), int(piece_length[piece])
            input_ids[number, at : at + length] = document[start : start + length]
            targets[number, at : at + length] = document[start + 1 : start + length + 1]
            position_ids[number, at : at + length] = np.arange(length)
            at += length
        position_ids[number, at:] = np.arange(row - at)
    return PackedRows(input_ids, position_ids, targets, padding=int((targets == IGNORE).sum()))


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of one long document, cut at an offset that varies by epoch so that no cut is the same twice.

    tokens: int32 (L,). A window is T cells and the target of its last cell, so an epoch has (L - T) // T windows
    at every offset in [0, T).
    """

    tokens: np.ndarray
    row: int
    seed: int

    @property
    def count(self) -> int:
        """Windows in an epoch, the same for every offset."""
        return (len(self.tokens) - self.row) // self.row

    def offset(self, epoch: int) -> int:
        """Where the first window of this epoch starts: uniform in [0, T)."""
        return int(numpy_generator(self.seed, "data/window offset", epoch).integers(self.row))

    def take(self, epoch: int, indices: np.ndarray) -> Batch:
        """The windows with these indices: input_ids, position_ids and targets, int64 (len(indices), T) each."""
        starts = self.offset(epoch) + np.asarray(indices, dtype=np.int64)[:, None] * self.row
        cells = starts + np.arange(self.row)
        position_ids = np.broadcast_to(np.arange(self.row), cells.shape).copy()
        inputs, targets = self.tokens[cells], self.tokens[cells + 1]
        return {
            "input_ids": inputs.astype(np.int64),
            "position_ids": position_ids,
            "targets": targets.astype(np.int64),
        }


def cut_windows(tokens: Tokens, row: int, seed: int) -> Windows:
    """Windows over one long document; UserError when it is shorter than two rows."""
    windows = Windows(np.asarray(tokens, dtype=np.int32), row, seed)
    if windows.count < 1:
        raise UserError(
            f"windows: the text has {len(windows.tokens)} tokens, less than two rows of {row}; give more text"
        )
    return windows
