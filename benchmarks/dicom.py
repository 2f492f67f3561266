"""DICOM films a second: our readers against a plain pydicom loop, per transfer syntax, in one run.

    python -m benchmarks.dicom --data ../shared/data/dicom [--json OUT]

Every contestant ends with the same thing: the film in [0, 1], bone bright, float32, resized to 64 x 64 with
antialiased bilinear interpolation. The contestants take turns, several rounds of them, and the best round of
each counts, because other programs on the machine only ever make a round slower. The clock of a parallel
reader starts at its first film (how long that took, worker start included, is a column of its own), and the
films it may have had in hand by then are not counted. Processor time a film (parent and workers, without the
start of the workers) is printed beside the rates: on a busy machine it is the figure that keeps.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import click
import numpy as np

SIDE = 64


def shrink(pixels):
    """Antialiased bilinear resize to 64 x 64 (equal to tf.image.resize(antialias=True) within 1e-6)."""
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def shrink_film(film):
    return shrink(film.pixels)


def plain(path):
    """What one writes with pydicom alone."""
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    dataset = pydicom.dcmread(path)
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    pixels = values.astype(np.float32) / np.float32(2**dataset.BitsStored - 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = 1 - pixels
    return shrink(pixels)


def group_by_syntax(folder):
    """Readable films with a plain window or none, by transfer syntax; at most two a syntax."""
    from kxray.io import FilmError, read_image

    groups = {}
    for path in sorted(folder.glob("*.dcm")):
        try:
            facts = read_image(path).facts
        except FilmError as error:
            click.echo(f"left out: {error}", err=True)
            continue
        if path.name.startswith(("RG2_", "XA1_")) or not any(folder.glob("RG2_*.dcm")):
            groups.setdefault(facts["transfer_syntax"], []).append(path)
    return {syntax: paths[:2] for syntax, paths in groups.items()}


def contestants(workers, shrink_in_worker):
    from kxray.io import read_films
    from kxray.io.readers import why_no_tensorflow_io

    def ours(**options):
        def run(paths):
            began = time.perf_counter()
            results = []
            for index, film in read_films(paths, workers=workers, **options):
                results.append(film if isinstance(film, np.ndarray) else shrink(film.pixels))
                if index == 0:
                    first, used = time.perf_counter(), cpu_seconds()
                if index == len(paths) - 1:  # the workers are still there
                    used = cpu_seconds() - used
            counted = len(paths) - 1 - 2 * workers
            return results, counted / (time.perf_counter() - first), first - began, used / counted

        return run

    def plain_loop(paths):
        began, used = time.perf_counter(), cpu_seconds()
        results = [plain(path) for path in paths]
        used = cpu_seconds() - used
        return results, len(paths) / (time.perf_counter() - began), 0.0, used / len(paths)

    table = {
        "plain loop": plain_loop,
        "pydicom threads": ours(mode="threads"),
        "pydicom processes": ours(mode="processes"),
        "pydicom processes, resize there": ours(mode="processes", transform=shrink_in_worker),
    }
    reason = why_no_tensorflow_io()
    if reason:
        click.echo(f"no tensorflow-io: {reason}", err=True)
    else:
        table["tensorflow-io threads"] = ours(dicom_reader="tensorflow-io")
    return table


def cpu_seconds():
    """Processor time of this process and of its running children."""
    ticks = sum(
        sum(map(int, _text(f"/proc/{pid}/stat").rpartition(")")[2].split()[11:13])) for pid in children()
    )
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def children():
    return [pid for task in Path("/proc/self/task").iterdir() for pid in _text(task / "children").split()]


class PeakMemory(threading.Thread):
    """Samples resident memory of this process and its children, with the shared files pixels travel in."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.done = 0, threading.Event()

    def run(self):
        while not self.done.wait(0.02):
            self.peak = max(self.peak, self.now())

    def now(self):
        pids = children()
        total = sum(
            int(_text(f"/proc/{pid}/statm").split()[1] or 0) for pid in ["self", *pids] if _alive(pid)
        )
        return total * os.sysconf("SC_PAGE_SIZE") + sum(_shared_bytes(pid) for pid in pids)


def _text(path):
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _alive(pid):
    return bool(_text(f"/proc/{pid}/statm"))


def _shared_bytes(pid):
    total = 0
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if "memfd:kxray" in os.readlink(link):
                total += os.stat(link).st_blocks * 512
    except OSError:
        pass
    return total


def stream_memory(paths, count, workers):
    """(bytes at rest, peak after a third of the films, peak after all) while `count` films stream by."""
    from kxray.io import read_films

    meter = PeakMemory()
    rest, early = meter.now(), 0
    meter.start()
    for index, _ in read_films(
        (paths[i % len(paths)] for i in range(count)), workers=workers, mode="processes"
    ):
        if index == count // 3:
            early = meter.peak
    meter.done.set()
    meter.join()
    return rest, early, meter.peak


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("../shared/data/dicom"),
    show_default=True,
)
@click.option("--workers", type=click.IntRange(1), default=None, help="Default: the cores of this machine.")
@click.option("--seconds", type=float, default=1.5, show_default=True, help="Length of each plain loop.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--films", type=click.IntRange(1), default=300, show_default=True, help="Streamed for the memory."
)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path))
def main(data, workers, seconds, rounds, films, json_path):
    """Prints films a second per transfer syntax and reader, and the memory of a stream of films."""
    from rich.console import Console
    from rich.table import Table

    from benchmarks.dicom import shrink_film as importable_shrink
    from kxray.io.parallel import available_cores

    workers = workers or available_cores()
    groups = group_by_syntax(data)
    smallest = next(paths for syntax, paths in groups.items() if "VR" in syntax or len(groups) == 1)
    rest, early, peak = stream_memory(smallest, films, workers)
    rows = []
    readers = contestants(workers, importable_shrink)
    for syntax, paths in groups.items():
        plain(paths[0])
        began = time.perf_counter()
        reference = [plain(path) for path in paths]
        repeats = max(-(-4 * (workers + 1) // len(paths)), round(seconds / (time.perf_counter() - began)))
        many = paths * repeats
        rates, starts = dict.fromkeys(readers, 0.0), dict.fromkeys(readers, np.inf)
        processor = dict.fromkeys(readers, np.inf)
        for reader, run in [turn for _ in range(rounds) for turn in readers.items()]:
            results, rate, start, used = run(many)
            processor[reader] = min(processor[reader], used)
            rates[reader], starts[reader] = max(rates[reader], rate), min(starts[reader], start)
            difference = max(np.abs(a - b).max() for a, b in zip(reference, results, strict=False))
            if difference > 2e-3:
                raise click.ClickException(f"{reader} differs from the plain loop by {difference}: {syntax}")
        row = {"transfer_syntax": syntax, "films": len(many), "rounds": rounds}
        rows.append(
            {
                **row,
                "films_per_second": rates,
                "seconds_to_first_film": starts,
                "cpu_seconds_a_film": processor,
            }
        )

    table = Table(
        title=f"DICOM films a second, {workers} workers, 64 x 64 out (ratio to the plain loop), CPU a film"
    )
    table.add_column("transfer syntax")
    for reader in readers:
        table.add_column(reader, justify="right")
    table.add_column("first film of processes", justify="right")
    for row in rows:
        rates = row["films_per_second"]
        base = rates["plain loop"]
        first = f"{row['seconds_to_first_film']['pydicom processes']:.2f} s"
        cells = [
            f"{rate:.1f} ({rate / base:.2f}x) {1000 * row['cpu_seconds_a_film'][reader]:.0f} ms"
            for reader, rate in rates.items()
        ]
        table.add_row(row["transfer_syntax"].partition(",")[0][:38], *cells, first)
    console = Console(width=160)
    console.print(table)
    console.print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    mega = 1e6
    console.print(
        f"memory of parent and workers over {films} full films: {rest / mega:.0f} MB at rest, peak "
        f"{early / mega:.0f} MB in the first third, {peak / mega:.0f} MB in all"
    )
    if json_path:
        memory = {"rest_bytes": rest, "peak_first_third_bytes": early, "peak_bytes": peak, "films": films}
        report = {"workers": workers, "cores": os.cpu_count(), "rows": rows, "memory": memory}
        json_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    main()
