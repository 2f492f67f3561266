"""The picture of the masks."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from kxray.data import DiseaseMasks, disease_masks
from kxray.data.phantom import FINDINGS
from training.report.mask_plots import disease_mask_panels


def drawn(uri):
    assert uri.startswith("data:image/jpeg;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))), float)


def test_a_planted_mask_is_red_where_it_is():
    maps = np.zeros((1, 16, 16), np.float32)
    maps[0, 2:6, 2:6] = 1
    masks = DiseaseMasks(("Mass",), maps, ("12 boxes, prior weight 0.45",), (12,))
    picture = drawn(disease_mask_panels(masks, np.full((40, 40), 0.5)))
    height, width = picture.shape[:2]
    # The panel is most of the picture; its colour bar, to the right, is left out.
    panel = picture[height // 5 :, : int(0.74 * width)]
    rows, columns = np.nonzero(panel[..., 0] - panel[..., 2] > 60)
    assert len(rows) > 50
    assert rows.mean() < 0.4 * panel.shape[0] and columns.mean() < 0.4 * panel.shape[1]


def test_a_panel_a_disease_with_and_without_template_and_boxes():
    quad = np.array([[-0.3, 0], [-0.1, 0], [-0.1, 0.2], [-0.3, 0.2]])
    masks = disease_masks(FINDINGS, [("Mass", quad)], size=16)
    two_rows = drawn(disease_mask_panels(masks, boxes=[("Mass", quad)]))
    one = drawn(disease_mask_panels(DiseaseMasks.uniform(["Mass"], 16), np.zeros((8, 8))))
    assert two_rows.shape[0] > 1.5 * one.shape[0] and two_rows.shape[1] > 2.5 * one.shape[1]


def test_a_template_that_is_none():
    with pytest.raises(ValueError, match="expected a template"):
        disease_mask_panels(DiseaseMasks.uniform(["Mass"], 4), np.zeros((4, 4, 1)))
