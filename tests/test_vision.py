"""Images: the resizing rule, the order of a patch's values, and (marker ``parity``) transformers' own functions on the same pixels."""

from __future__ import annotations

import ast
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dragoman.model.config import VisionConfig
from dragoman.model.errors import BackendError
from dragoman.model.vision import MAX_PATCHES, VisionEmbedder, cut_patches, target_size
from hypothesis import given
from hypothesis import strategies as st

CONFIG = VisionConfig(mm_embed_dim=8, mm_posemb_size=40)


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), most=st.sampled_from([70, 140, 280, 560, 1120]))
def test_sizes_are_whole_patches_within_the_budget(height: int, width: int, most: int) -> None:
    rows, columns = target_size(height, width, 48, most)
    assert rows % 48 == columns % 48 == 0
    assert 0 < rows * columns <= most * 48 * 48


@pytest.mark.parametrize(
    ("size", "wanted"), [((1080, 1920), (576, 1056)), ((768, 1024), (672, 912)), ((100, 100), (768, 768)), ((10, 5000), (48, 13440))]
)
def test_known_sizes(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert target_size(*size, 48, MAX_PATCHES) == wanted


def test_an_image_of_the_right_size_is_only_cut() -> None:
    """Values of a patch: row by row, column by column, RGB; patches row by row; bytes over 255."""
    image = np.random.default_rng(0).integers(0, 256, (768, 768, 3), dtype=np.uint8)
    patches = cut_patches(image, CONFIG)
    assert patches.shape == (16, 16, 6912)
    assert patches.dtype == np.float32
    np.testing.assert_array_equal(patches[2, 5], (image[96:144, 240:288] / np.float32(255)).reshape(-1))


def test_another_size_is_resized_and_stays_in_range() -> None:
    image = np.zeros((300, 500, 3), dtype=np.uint8)
    image[:, 250:] = 255
    patches = cut_patches(image, CONFIG)
    assert patches.shape[0] * patches.shape[1] <= MAX_PATCHES
    assert patches.min() == 0.0 and patches.max() == 1.0
    assert patches[:, 0].max() < 0.1 and patches[:, -1].min() > 0.9, "left stays dark, right stays bright"


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_not_an_rgb_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(BackendError, match=r"expected an RGB image \[h, w, 3\] of uint8"):
        cut_patches(image, CONFIG)


def test_a_place_has_a_column_and_a_row() -> None:
    """The table is [place, (x, y)]: a patch moved along a row takes another x entry and the same y entry."""
    embedder = VisionEmbedder(CONFIG, 8).eval()
    with torch.no_grad():
        embedder.pos_embedding.normal_()
        same = torch.rand(6912).expand(2, 3, 6912)
        out = embedder(same).view(2, 3, 8)
        embedder.pos_embedding[1, 1].normal_()  # y = 1: the second row
        moved = embedder(same).view(2, 3, 8)
    assert torch.equal(out[0], moved[0])
    assert not torch.isclose(out[1], moved[1]).all(-1).any()


def reference_functions() -> dict[str, Any]:
    """transformers' pure functions of image processing, taken from its source: its module imports torchvision, which is not needed here."""
    models = pytest.importorskip("transformers.models")
    path = Path(models.__file__).parent / "gemma4_unified" / "image_processing_gemma4_unified.py"
    wanted = {"get_aspect_ratio_preserving_size", "convert_image_to_patches", "patches_merge"}
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    found: dict[str, Any] = {"math": math, "torch": torch}
    exec(compile(tree, str(path), "exec"), found)
    return found


REFERENCE = cache(reference_functions)


@pytest.mark.parity
@given(height=st.integers(1, 4000), width=st.integers(1, 4000))
def test_sizes_equal_transformers(height: int, width: int) -> None:
    wanted = REFERENCE()["get_aspect_ratio_preserving_size"](height, width, 16, 280 * 9, 3)
    assert target_size(height, width, 48, 280) == wanted


@pytest.mark.parity
def test_patches_equal_transformers() -> None:
    """Theirs are cut at 16 pixels, then merged three by three."""
    reference = REFERENCE()
    image = np.random.default_rng(1).integers(0, 256, (672, 912, 3), dtype=np.uint8)
    small = reference["convert_image_to_patches"](torch.from_numpy(image).permute(2, 0, 1) / 255, 16)
    across, down = torch.meshgrid(torch.arange(912 // 16), torch.arange(672 // 16), indexing="xy")
    places = torch.stack([across, down], -1).reshape(-1, 2)
    merged, where = reference["patches_merge"](small[None], places[None], len(small) // 9)
    ours = cut_patches(image, CONFIG)
    np.testing.assert_allclose(ours.reshape(-1, 6912), merged[0].numpy(), atol=1e-7)
    columns = ours.shape[1]
    assert where[0].tolist() == [[i % columns, i // columns] for i in range(len(where[0]))]
