"""Tables of films, where they come from, how they are split, and what is wrong with them.

Importing this package is light; names are fetched when first used (PEP 562).
"""

import importlib

_PUBLIC = {
    "ManifestError": "manifest",
    "check_films": "manifest",
    "check_manifest": "manifest",
    "drop_problems": "manifest",
    "finding_columns": "manifest",
    "read_manifest": "manifest",
    "write_manifest": "manifest",
    "write_skipped": "manifest",
    "read_source": "sources",
    "SyntheticFacts": "synthetic",
    "generator_digest": "synthetic",
    "is_synthetic": "synthetic",
    "synthetic_rows": "synthetic",
    "write_synthetic": "synthetic",
    "Grouping": "splits",
    "Split": "splits",
    "SplitError": "splits",
    "check_held_out": "held_out",
    "film_groups": "splits",
    "given_split": "splits",
    "load_split": "splits",
    "patient_folds": "splits",
    "patient_split": "splits",
    "save_split": "splits",
    "split_hash": "splits",
    "exact_duplicate_groups": "audit",
    "fingerprint": "audit",
    "near_duplicate_groups": "audit",
    "no_anatomy_baseline": "audit",
    "no_anatomy_features": "audit",
    "scan_films": "audit",
    "load_features": "features",
    "association": "associations",
    "cramers_v": "associations",
    "metadata_columns": "associations",
    "duplicate_pairs": "leaks",
    "straddling_columns": "leaks",
    "Conditions": "conditions",
    "condition_films": "conditions",
    "thin_out": "conditions",
    "gan_batches": "conditional_batches",
    "counterfactual_batches": "target_batches",
    "drawable_targets": "target_batches",
    "Marker": "markers",
    "find_markers": "markers",
    "marker_properties": "markers",
    "DiseaseMasks": "masks",
    "box_cover": "masks",
    "chest_regions": "mask_priors",
    "disease_masks": "masks",
    "disease_prior": "mask_priors",
    "maps_from_model": "masks",
    "scan_shortcuts": "shortcuts",
    "shortcut_scores": "shortcuts",
    "Template": "registration",
    "build_template": "registration",
    "register": "registration",
    "template_regions": "regions",
    "align_folder": "align",
    "Ridge": "calibre",
    "mask_area": "calibre",
    "mask_width": "calibre",
    "ridge_calibre": "calibre",
    "strongest_ridge": "calibre",
    "Similarity": "similarity",
    "quad_box": "similarity",
    "box_size": "relabel",
    "kept_labels": "relabel",
    "measure_sizes": "relabel",
    "relabel_by_size": "relabel",
    "size_classes": "relabel",
    "size_label": "relabel",
    "size_thresholds": "relabel",
}
_MODULES = (
    *("align", "associations", "audit", "calibre", "conditions", "features", "leaks", "manifest", "markers"),
    *("mask_priors", "masks", "phantom", "pipeline", "registration", "relabel", "shortcuts"),
    *("similarity", "sources", "splits", "synthetic", "truth"),
)

__all__ = list(_PUBLIC) + list(_MODULES)


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"kxray.data.{_PUBLIC[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"kxray.data.{name}")
    raise AttributeError(f"module 'kxray.data' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__():
    return sorted(__all__)
