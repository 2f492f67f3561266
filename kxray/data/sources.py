"""Folders of films as they are handed around, read into the one table (see `kxray.data.manifest`).

NIH ChestX-ray14: Wang et al., 2017. MIMIC-CXR: Johnson et al., 2019. Shenzhen and Montgomery: Jaeger et al.,
2014.
"""

import math
import os
import re
from pathlib import Path

import pandas as pd

from kxray.data import manifest
from kxray.data.splits import PART_NAMES
from kxray.io.film import FilmError
from kxray.io.headers import film_size

FILM_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom", ".dic")
NIH_FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)
NIH_BOX_SIDE = 1024
# The collection's own patient split: which of its lists a film's name is in.
NIH_SPLIT_LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}
VIEW_OF_POSITION = {"PA": "frontal", "AP": "frontal", "LATERAL": "lateral", "LL": "lateral", "RL": "lateral"}
LOOKED_FOR = (
    "a manifest.csv, a Data_Entry_2017*.csv (NIH), files/p10/p10000032/s50414267/* (MIMIC-CXR), "
    "CHNCXR_0001_0.png or MCUCXR_0001_1.png names (Shenzhen, Montgomery), or one folder of films a class"
)

_NOT_FILMS = re.compile(r"^(\.|__MACOSX$)|masks?$|^segmentations?$", re.IGNORECASE)
_MASK_NAME = re.compile(r"[_-]mask$", re.IGNORECASE)
_TUBERCULOSIS_NAME = re.compile(r"^((?:CHNCXR|MCUCXR)_\d+)_([01])$")
_MIMIC_PATH = re.compile(r"(?:^|/)p\d{2}/p(\d{8})/s(\d+)/([^/]+)$")
_PATIENT_IN_NAME = re.compile(r"(?:^|[/_-])((?:patient|person|subject)[_-]?\d+)", re.IGNORECASE)


def read_source(source, *, check: bool = True) -> pd.DataFrame:
    """Reads a folder of films, or a CSV, into the one table.

    Args:
        source: a folder that holds one of `LOOKED_FOR` (or a single folder that does), or the CSV itself.
        check: raise on broken rows; with `check=False` they stay, for `kxray.data.check_manifest`.

    Returns:
        The table; `attrs["source"]` names its kind and `attrs["notes"]` lists what a reader should know, for
        example how many rows of a partly downloaded collection have no film.

    Raises:
        ManifestError: broken rows, all of them, with row numbers.
        ValueError: the folder is none of these; the message says what was looked for.
    """
    source = Path(source)
    if source.is_file():
        kind, folder, csv_path = _kind_of_csv(source), source.parent, source
    elif source.is_dir():
        kind, folder, csv_path = _recognise(source)
    else:
        raise ValueError(f"{source}: no such file or folder; expected {LOOKED_FOR}")
    if kind == "manifest":
        table = manifest.read_manifest(csv_path, check=False)
        table.attrs = {"source": "manifest.csv", "notes": []}
    elif kind == "nih":
        table = _read_nih(csv_path)
    elif kind == "mimic":
        table = _read_mimic(folder)
    elif kind == "tuberculosis":
        table = _read_tuberculosis_names(folder)
    else:
        table = _read_class_folders(folder)
    if check:
        problems = manifest.check_manifest(table)
        if len(problems):
            raise manifest.ManifestError(problems, source)
    return table


def find_films(folder) -> list[Path]:
    """Every film below a folder, sorted; hidden files, masks and leftovers of unpacking are passed over."""
    found, visited = [], set()
    for current, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(current)
        if real in visited:
            folders[:] = []
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not _NOT_FILMS.search(name))
        found += [Path(current, name) for name in names if _is_film(current, name)]
    return sorted(found)


def _is_film(folder, name) -> bool:
    stem, suffix = os.path.splitext(name)
    if name.startswith(".") or _MASK_NAME.search(stem):
        return False
    if suffix.lower() in FILM_SUFFIXES:
        return True
    # Picture archives export DICOM without a suffix, or with a piece of its identifier as one.
    if suffix and not suffix[1:].isdigit():
        return False
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _kind_of_csv(csv_path) -> str:
    if re.fullmatch(r"mimic-cxr-.*metadata\.csv(\.gz)?", csv_path.name):
        return "mimic"
    return (
        "nih"
        if {"Image Index", "Finding Labels"} <= set(manifest.read_cells(csv_path).columns)
        else "manifest"
    )


def _recognise(folder):
    opened = folder
    while True:
        if (folder / "manifest.csv").is_file():
            return "manifest", folder, folder / "manifest.csv"
        entries = sorted(folder.glob("Data_Entry_2017*.csv"))
        if entries:
            return "nih", folder, entries[-1]
        if any(folder.glob("mimic-cxr-*metadata.csv*")) or any(_mimic_patients(folder)):
            return "mimic", folder, None
        inside = [entry for entry in sorted(folder.iterdir()) if not _NOT_FILMS.search(entry.name)]
        folders = [entry for entry in inside if entry.is_dir()]
        films = [entry for entry in inside if entry.is_file() and _is_film(folder, entry.name)]
        if len(folders) != 1 or films:
            break
        folder = folders[0]
    # Names speak before folders: Shenzhen keeps its films in one folder and its readings in another.
    names = [path.stem for path in find_films(opened)]
    if 2 * sum(bool(_TUBERCULOSIS_NAME.match(name)) for name in names) > len(names):
        return "tuberculosis", opened, None
    if films and not folders:
        raise ValueError(
            f"{opened}: {len(films)} films in {folder}, but nothing tells their labels; expected {LOOKED_FOR}"
        )
    if any(find_films(entry) for entry in folders):
        return "class folders", folder, None
    raise ValueError(f"{opened}: no films that say what they show; expected {LOOKED_FOR}")


def _read_nih(csv_path) -> pd.DataFrame:
    folder = csv_path.parent
    entries = manifest.read_cells(csv_path)
    films = {path.name: str(path.absolute()) for path in find_films(folder)}
    here = entries["Image Index"].isin(list(films))
    absent = int((~here).sum())
    entries = entries.loc[here]
    if entries.empty:
        raise ValueError(
            f"{csv_path}: lists {absent} films, none of which is below {folder}; expected them in images/"
        )
    findings = [set(cell.split("|")) - {"No Finding", ""} for cell in entries["Finding Labels"]]
    extra = sorted(set().union(*findings) - set(NIH_FINDINGS))
    columns = {
        "path": [films[name] for name in entries["Image Index"]],
        "patient_id": list(entries["Patient ID"]),
        **{name: [float(name in present) for present in findings] for name in (*NIH_FINDINGS, *extra)},
    }
    if "View Position" in entries.columns:
        columns["position"] = list(entries["View Position"])
        columns["view"] = [VIEW_OF_POSITION.get(position.upper(), "") for position in columns["position"]]
    if "Patient Age" in entries.columns:
        columns["age"] = [_years(cell) for cell in entries["Patient Age"]]
    for column in ("Patient Gender", "Patient Sex"):
        if column in entries.columns:
            columns["sex"] = list(entries[column])
    if "Follow-up #" in entries.columns:
        columns["follow_up"] = list(entries["Follow-up #"])
    boxes = _nih_boxes(folder / "BBox_List_2017.csv", films)
    if boxes is not None:
        columns["boxes"] = [boxes.get(name, []) for name in entries["Image Index"]]
    parts = _nih_parts(folder)
    if parts is not None:
        columns["split"] = [parts.get(name, "") for name in entries["Image Index"]]
    # The rows of the collection's own CSV stay the row numbers of every later message.
    table = pd.DataFrame(columns, index=entries.index)
    table = manifest.as_manifest(table, findings=[*NIH_FINDINGS, *extra])
    notes = (
        [f"{absent} of {absent + len(table)} rows have no film in the folder and were left out"]
        if absent
        else []
    )
    unlisted = 0 if parts is None else int((table["split"] == "").sum())
    if unlisted:
        lists = " nor ".join(NIH_SPLIT_LISTS)
        notes.append(f"{unlisted} films are neither in {lists}: the split of these lists is not used")
    table.attrs = {"source": "NIH ChestX-ray14", "notes": notes}
    return table


def _nih_boxes(csv_path, films):
    if not csv_path.is_file():
        return None
    boxes = {}
    # The header writes "Bbox [x,y,w,h]" without quotes, so that its commas cut it: columns go by position.
    cells = manifest.read_cells(csv_path)
    for row, cell in zip(manifest.row_numbers(cells), cells.itertuples(index=False, name=None), strict=True):
        name, finding = cell[:2]
        if name not in films:
            continue
        try:
            x, y, width, height = map(float, cell[2:6])
        except ValueError:
            raise ValueError(
                f"{csv_path}: row {row}: expected four numbers x, y, w, h, got {cell[2:6]}"
            ) from None
        scale_y, scale_x = (side / NIH_BOX_SIDE for side in _size_for_boxes(films[name]))
        box = {"x": x * scale_x, "y": y * scale_y, "width": width * scale_x, "height": height * scale_y}
        # The box list calls Infiltration "Infiltrate".
        finding = "Infiltration" if finding == "Infiltrate" else finding
        boxes.setdefault(name, []).append({"finding": finding, **box})
    return boxes


def _nih_parts(folder):
    """The part of each film by the two lists beside the CSV, or None where one of them is missing."""
    lists = {folder / name: part for name, part in NIH_SPLIT_LISTS.items()}
    if not all(path.is_file() for path in lists):
        return None
    parts = {}
    for path, part in lists.items():
        try:
            names = path.read_text(encoding="utf-8-sig").split()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: expected one film name a line, cannot be read: {error}") from None
        twice = sorted(name for name in names if parts.get(name, part) != part)
        if twice:
            raise ValueError(f"{path}: {len(twice)} films are in both lists, such as {twice[0]}")
        parts.update(dict.fromkeys(names, part))
    return parts


def _size_for_boxes(path) -> tuple[int, int]:
    try:
        return film_size(path)
    except FilmError as error:
        raise ValueError(f"{path}: cannot read the image size that its boxes need: {error.problem}") from None


def _years(cell) -> float:
    match = re.fullmatch(r"(\d+)([YMWD]?)", cell.strip().upper())
    if not match:
        return math.nan
    return round(int(match[1]) / {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}[match[2]], 2)


def _mimic_patients(folder):
    yield from folder.glob("files/p[0-9][0-9]/p[0-9]*/s[0-9]*")
    yield from folder.glob("p[0-9][0-9]/p[0-9]*/s[0-9]*")


def _read_mimic(folder) -> pd.DataFrame:
    records = []
    for path in find_films(folder):
        match = _MIMIC_PATH.search(path.as_posix())
        if match:
            records.append((str(path.absolute()), match[1], match[2], path.stem))
    if not records:
        raise ValueError(f"{folder}: no films at files/p10/p10000032/s50414267/*.dcm or *.jpg (MIMIC-CXR)")
    table = pd.DataFrame(records, columns=["path", "patient_id", "study_id", "dicom_id"])
    notes = []
    metadata = _mimic_csv(folder, "metadata")
    if metadata is None:
        notes.append("no mimic-cxr-*-metadata.csv: the views are unknown")
    else:
        positions = dict(zip(metadata["dicom_id"], metadata["ViewPosition"], strict=True))
        table["position"] = [positions.get(name, "") for name in table["dicom_id"]]
        table["view"] = [VIEW_OF_POSITION.get(position.upper(), "") for position in table["position"]]
    splits = _mimic_csv(folder, "split")
    if splits is not None:
        names = dict(zip(splits["dicom_id"], splits["split"], strict=True))
        table["split"] = [PART_NAMES.get(names.get(name, ""), "") for name in table["dicom_id"]]
    findings = []
    labels = _mimic_csv(folder, "chexpert")
    if labels is not None:
        studies = dict(zip(labels["study_id"], labels.to_dict("records"), strict=True))
        findings = [name for name in labels.columns if name not in ("subject_id", "study_id")]
        for name in findings:
            # -1 is "uncertain" (Irvin et al., 2019): neither present nor absent.
            cells = [studies.get(study, {}).get(name, "") for study in table["study_id"]]
            table[name.replace(" ", "_")] = [{"1.0": 1.0, "0.0": 0.0}.get(cell, math.nan) for cell in cells]
    table = manifest.as_manifest(table, findings=[name.replace(" ", "_") for name in findings] or None)
    table.attrs = {"source": "MIMIC-CXR", "notes": notes}
    return table


def _mimic_csv(folder, kind):
    found = sorted(folder.glob(f"mimic-cxr-*{kind}.csv*"))
    return manifest.read_cells(found[0]) if found else None


def _read_tuberculosis_names(folder) -> pd.DataFrame:
    films = find_films(folder)
    matches = [(path, _TUBERCULOSIS_NAME.match(path.stem)) for path in films]
    named = [(str(path.absolute()), match[1], int(match[2])) for path, match in matches if match]
    table = pd.DataFrame(
        {
            "path": [path for path, _, _ in named],
            "patient_id": [patient for _, patient, _ in named],
            "label": [("normal", "tuberculosis")[digit] for _, _, digit in named],
            "view": "frontal",
        }
    )
    table = manifest.as_manifest(table)
    others = len(films) - len(named)
    notes = [f"{others} films without a Shenzhen or Montgomery name were left out"] if others else []
    table.attrs = {"source": "Shenzhen and Montgomery names", "notes": notes}
    return table


def _read_class_folders(folder) -> pd.DataFrame:
    records, notes = [], []
    children = _film_folders(folder)
    split_of = {child: PART_NAMES.get(child.name.lower()) for child in children}
    with_splits = bool(children) and all(split_of.values())
    class_folders = [
        (class_folder, split_of[child] if with_splits else "")
        for child in children
        for class_folder in (_film_folders(child) if with_splits else [child])
    ]
    for class_folder, split in class_folders:
        for path in find_films(class_folder):
            encoded = _PATIENT_IN_NAME.search(path.relative_to(class_folder).as_posix())
            records.append((str(path.absolute()), encoded[1] if encoded else "", class_folder.name, split))
    table = pd.DataFrame(records, columns=["path", "patient_id", "label", "split"])
    classes = sorted(set(table["label"]))
    nested = [entry.name for entry, _ in class_folders if _holds_a_table(entry)]
    if nested:
        raise ValueError(f"{folder}: holds several sources ({', '.join(nested)}, ...); name one of them")
    if len(classes) < 2:
        raise ValueError(f"{folder}: one folder of films only ({', '.join(classes)}); expected {LOOKED_FOR}")
    if not with_splits:
        table = table.drop(columns="split")
    loose = sum(_is_film(folder, name) for name in os.listdir(folder))
    if loose:
        notes.append(f"{loose} films beside the class folders were left out")
    table = manifest.as_manifest(table)
    table.attrs = {"source": "class folders", "notes": notes}
    return table


def _holds_a_table(folder) -> bool:
    return (folder / "manifest.csv").is_file() or any(folder.glob("Data_Entry_2017*.csv"))


def _film_folders(folder):
    inside = (entry for entry in sorted(Path(folder).iterdir()) if entry.is_dir())
    return [entry for entry in inside if not _NOT_FILMS.search(entry.name) and find_films(entry)]
