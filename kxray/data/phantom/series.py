"""Phantom films on disk: which film comes at which place of a series, its files, and its row of the manifest.

A series is written in chunks of films by worker processes; each finished chunk leaves its rows in `.parts/`,
so an interrupted run continues where it stopped and a finished one can be made longer.
"""

import csv
import dataclasses
import io
import json
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np

from kxray.data.phantom import film as films
from kxray.data.phantom.mix import Mix
from kxray.io.files import write_whole
from kxray.io.parallel import available_cores

KINDS = ("thorax", "fillet")
CHUNK = 25
CALIBRE_NAMES = ("none", "thin", "medium", "thick")
# Raised when the same seed gives other films than before.
VERSION = 1
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from kxray.data.phantom.series import serve; serve(json.loads(sys.argv[2]))"
)


def film(kind, seed, index, mix):
    """Film `index` of a series: a Phantom. It depends on nothing else."""
    if kind == "fillet":
        return films.fillet(seed, index, size=mix.size or 100)
    patient = index // 2
    rng = np.random.default_rng([seed, patient, 3])
    # Of a patient's two films the first is frontal and the second lateral, as often as the fraction asks for.
    both, fraction = (
        rng.random(),
        mix.lateral_fraction if len(mix.views) > 1 else float("lateral" in mix.views),
    )
    view = films.VIEWS[int(fraction > 0.5 or both < 2 * fraction)]
    if index % 2 == 0:
        view = films.VIEWS[int(fraction > 0.5 and both < 2 * fraction - 1)]
    number = int(np.searchsorted([0.45, 0.8], rng.random()))
    picked = rng.permutation(len(mix.allowed))[:number]
    transform = None
    if mix.poses == "wide":
        draw = np.random.default_rng([seed, index, 4])
        transform = (draw.uniform(-20, 20), draw.uniform(0.8, 1.25), tuple(draw.uniform(-0.1, 0.1, 2)))
    return films.thorax(
        seed,
        index,
        view=view,
        size=mix.size or 256,
        findings=tuple(mix.allowed[k] for k in sorted(picked)),
        patient=patient,
        transform=transform,
    )


def write_phantoms(out_dir, kind, count, seed=0, *, mix=None, workers=None, progress=None):
    """Writes films, masks and `manifest.csv` below `out_dir`, or finishes what an earlier run began.

    Film i of a seed is the same whatever `count` and `workers` are, so a folder can be made longer later. The
    two films 2 p and 2 p + 1 of a thorax series show one patient.

    Args:
        out_dir: folder, made where missing.
        kind: "thorax" or "fillet".
        count: number of films.
        seed: integer >= 0.
        mix: which films; by default `Mix()`.
        workers: processes; the cores of this machine by default.
        progress: called with the number of films done so far.

    Returns:
        Path of the manifest. Columns for a thorax: path, patient_id, view, position, one 0/1 column a
        finding, angle, rotation, scale, shift_x, shift_y, spacing, heart_ratio, boxes and masks (JSON); for a
        fillet: path, patient_id, label, calibre (none, thin, medium, thick), calibre_px, boxes, masks.

    Raises:
        ValueError: an unknown kind, a count below 1, or a folder that holds other films.
        OSError: the folder cannot be written.
    """
    mix = mix or Mix()
    if kind not in KINDS:
        raise ValueError(f"kind must be {' or '.join(KINDS)}, got {kind!r}")
    if not isinstance(count, (int, np.integer)) or count < 1:
        raise ValueError(f"count must be a whole number from 1, got {count!r}")
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0, got {seed!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    folder = Path(out_dir)
    options = {"version": VERSION, "kind": kind, "seed": int(seed), **dataclasses.asdict(mix)}
    _claim(folder, json.loads(json.dumps(options)))
    chunks = [(k, min(CHUNK, count - k * CHUNK)) for k in range(-(-count // CHUNK))]
    todo = [(k, length) for k, length in chunks if len(_read_part(folder, k)) < length]
    done = count - sum(length for _, length in todo)
    if progress is not None:
        progress(done)
    job = {"folder": str(folder), **options}
    if workers is None:
        workers = available_cores()
    for _ in _in_processes(job, todo, workers) if len(todo) > 1 else _work(job, todo):
        done += 1
        if progress is not None:
            progress(done)
    rows = [row for k, length in chunks for row in _read_part(folder, k)[:length]]
    write_whole(folder / "manifest.csv", _csv(rows).encode())
    return folder / "manifest.csv"


def _claim(folder, options):
    """Makes the folder this series' own, or says why it cannot be."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "phantoms.json"
    if note.exists():
        try:
            before = json.loads(note.read_text(encoding="utf-8"))
        except ValueError:
            raise ValueError(f"{note}: not readable; choose another folder") from None
        changed = [
            f"{name} {before.get(name)!r}, now {value!r}"
            for name, value in options.items()
            if before.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"{folder} holds phantoms of other options ({'; '.join(changed)}); choose another folder"
            )
    elif (folder / "manifest.csv").exists():
        raise ValueError(f"{folder} holds a manifest.csv of other films; choose another folder")
    for name in ("films", "masks", ".parts"):
        (folder / name).mkdir(exist_ok=True)
    write_whole(note, (json.dumps(options, indent=2) + "\n").encode())


def _in_processes(job, todo, workers):
    """Shares chunks out to worker processes; yields once a film written.

    They are started by hand: `multiprocessing` would import the caller's main program, and with it
    TensorFlow.
    """
    workers = min(workers, len(todo))
    # One thread a process; and freed memory stays with the process, or every temporary array costs its page
    # faults again (a quarter of the time with glibc).
    settings = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    settings.update({"MALLOC_MMAP_THRESHOLD_": str(1 << 26), "MALLOC_TRIM_THRESHOLD_": str(1 << 28)})
    settings["MALLOC_TOP_PAD_"] = str(1 << 25)
    finished = threading.Semaphore(0)
    failures, written = [], []

    def listen(process):
        for line in process.stdout:
            written.append(1) if line == "film\n" else failures.append(line.strip())
            finished.release()
        if process.wait() and not failures:
            failures.append(f"a worker process ended with status {process.returncode}")
        finished.release()

    processes = []
    try:
        for k in range(workers):
            arguments = json.dumps(sys.path), json.dumps({**job, "todo": todo[k::workers]})
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", _START, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **settings},
                )  # fmt: skip
            )
            threading.Thread(target=listen, args=(processes[-1],), daemon=True).start()
        total, reported = sum(length for _, length in todo), 0
        while reported < total and not failures:
            finished.acquire()
            while reported < len(written):
                reported += 1
                yield
        for process in processes if not failures else ():
            process.wait()
        if failures:
            raise OSError(f"writing phantoms to {job['folder']} failed: {failures[0]}")
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


def serve(job):
    """Main function of a worker process."""
    try:
        for _ in _work(job, job["todo"]):
            print("film", flush=True)
    except BrokenPipeError:
        os._exit(1)
    except (OSError, ValueError) as error:
        print(error, flush=True)
        os._exit(1)


def _work(job, todo):
    folder = Path(job["folder"])
    mix = Mix(**{field.name: job[field.name] for field in dataclasses.fields(Mix)})
    for chunk, length in todo:
        rows = []
        for index in range(chunk * CHUNK, chunk * CHUNK + length):
            rows.append(write_film(folder, job["kind"], job["seed"], index, mix))
            yield
        write_whole(folder / ".parts" / f"{chunk:06d}.csv", _csv(rows).encode())


def write_film(folder, kind, seed, index, mix):
    """Writes one film and its masks; returns its row of the manifest as text cells."""
    made = film(kind, seed, index, mix)
    name = f"{index:06d}"
    path = f"films/{name}.{'png' if mix.format == 'png' else 'dcm'}"
    masks = {finding: f"masks/{name}_{finding}.png" for finding, mask in made.masks.items() if mask.any()}
    for finding, where in masks.items():
        write_whole(folder / where, png(made.masks[finding].astype(np.uint8) * 255))
    boxes = [
        {"finding": finding, **dict(zip(("x", "y", "width", "height"), box, strict=True))}
        for finding, box in made.boxes.items()
    ]
    facts = made.facts
    if kind == "fillet":
        row = {"path": path, "patient_id": f"F{index:06d}", "label": made.label}
        row["calibre"] = CALIBRE_NAMES[facts["calibre"]]
        row["calibre_px"] = f"{facts['calibre_px']:.2f}" if facts["calibre"] else ""
    else:
        row = {"path": path, "patient_id": f"P{facts['patient']:06d}", "view": made.label}
        row["position"] = facts["position"]
        row.update({finding: str(int(finding in made.findings)) for finding in films.FINDINGS})
        transform = facts["transform"]
        numbers = {
            "angle": facts["angle"], "rotation": transform["rotation"], "scale": transform["scale"],
            "shift_x": transform["shift"][0], "shift_y": transform["shift"][1],
            "spacing": facts["spacing"], "heart_ratio": facts["heart_ratio"],
        }  # fmt: skip
        row.update({key: f"{value:.5f}" for key, value in numbers.items()})
    row["boxes"] = json.dumps(boxes) if boxes else ""
    row["masks"] = json.dumps(masks) if masks else ""
    if mix.format == "png":
        content = png(np.round(made.pixels * 65535).astype(np.uint16))
    else:
        from kxray.data.phantom.dicom import dicom

        content = dicom(made, row["patient_id"], seed, index)
    write_whole(folder / path, content)
    return row


def png(pixels):
    """A grey PNG of uint8 or uint16 (H, W) as bytes; twice as quick as Pillow's and no larger for noisy
    films."""
    height, width = pixels.shape
    raw = pixels.astype(">u2").view(np.uint8) if pixels.dtype == np.uint16 else pixels
    lines = np.full((height, raw.shape[1] + 1), 2, np.uint8)  # filter "up": the difference to the line above
    lines[0, 1:] = raw[0]
    np.subtract(raw[1:], raw[:-1], out=lines[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 1)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def _csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read_part(folder, chunk):
    """Rows of a finished chunk whose films are still there."""
    try:
        with open(folder / ".parts" / f"{chunk:06d}.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    return rows if all((folder / row["path"]).exists() for row in rows) else []
