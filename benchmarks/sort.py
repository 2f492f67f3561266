"""Films a second that training.sort sorts, against reading the same films and doing nothing with them.

    python -m benchmarks.sort --data ../shared/data/views --model saved_models/view_classifier/1

Both ways decode with the same workers; taken in turn, ratio within a round, median printed. Expected: sorting
reaches at least 0.8 of the decode-only rate.
"""

import os
import resource
import statistics
import time

import click


@click.command(help=__doc__)
@click.option("--data", default="../shared/data/views", show_default=True, help="Folder of films.")
@click.option("--model", default="saved_models/view_classifier/1", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--films", default=1200, show_default=True, help="Films a round; the folder's are repeated.")
def main(data, model, rounds, films):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from kxray.io import read_films
    from training.predictor import Predictor
    from training.sort import find_files, predict_rows

    found = find_files(data)
    paths = (found * (films // len(found) + 1))[:films]
    predictor = Predictor(model)

    def decode_only():
        for _ in read_films(paths):
            pass

    def sort():
        for _ in predict_rows(predictor, paths):
            pass

    rates = {"decode only": [], "sort": []}
    for number in range(rounds + 1):
        for name, run in (("decode only", decode_only), ("sort", sort)):
            began = time.perf_counter()
            run()
            if number:
                rates[name].append(films / (time.perf_counter() - began))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    click.echo(f"{films} films of {data}, {rounds} rounds, {os.cpu_count()} cores, {peak:.2f} GiB at most")
    for name, values in rates.items():
        click.echo(f"{name:<12} {statistics.median(values):8.0f} films/s")
    ratio = statistics.median(
        ours / theirs for ours, theirs in zip(rates["sort"], rates["decode only"], strict=True)
    )
    click.echo(f"sort / decode only: {ratio:.2f} (expected at least 0.8)")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.sort")
