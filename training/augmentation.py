"""What training films go through, by the options that recipes share."""


def film_layers(recipe) -> tuple:
    """The augmenting layers of a recipe, in order: mirror images and quarter turns, motions, exposure.

    Args:
        recipe: its options flips, rotation (degrees), shift and zoom (fractions), brightness (share of full
            range), contrast (fraction) and blur (pixels).
    """
    from kxray.layers import RandomAffine, RandomDihedral, RandomExposure

    mirrored = () if recipe.flips != "dihedral" else (RandomDihedral(dtype="float32"),)
    moved = RandomAffine(
        recipe.rotation,
        recipe.shift,
        recipe.shift,
        0.0,
        recipe.zoom,
        horizontal_flip=recipe.flips == "horizontal",
        dtype="float32",
    )
    exposed = RandomExposure(recipe.brightness, recipe.contrast, recipe.blur, dtype="float32")
    return (*mirrored, moved, exposed)
