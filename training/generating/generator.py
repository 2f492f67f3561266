"""A trained generator as the programs use it: its classes by name, its films in chunks that never change."""

import dataclasses
from pathlib import Path

import numpy as np

from kxray.data.conditions import DISEASES, NORMAL
from kxray.data.phantom import FINDINGS
from kxray.data.sources import NIH_FINDINGS
from kxray.data.synthetic import SyntheticFacts, generator_digest
from training import runs
from training.generating.gan_films import FINDINGS as COLUMNS

# Films are always made so many at a time, the last chunk too: sums of another batch may round differently.
CHUNK = 16
GENERATOR = "generator"


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """A generator's run.

    Attributes:
        run: its folder.
        gan: the model.
        spec: its ModelSpec.
        facts: what its films' files and tables say.
    """

    run: Path
    gan: object
    spec: object
    facts: SyntheticFacts

    @property
    def side(self) -> int:
        """Of the largest films, in pixels."""
        return max(self.gan.sides)

    def index(self, label) -> int:
        """A class's place. Raises ValueError, which lists the known ones."""
        if label not in self.spec.labels:
            raise ValueError(
                f"unknown class {label!r}; {self.run} makes films of: {', '.join(self.spec.labels)} (or all)"
            )
        return self.spec.labels.index(label)

    def chunks(self, label, seed, count, truncation=1.0, wanted=None):
        """Films of a class, chunk by chunk: number i depends on the class, `seed` and i alone.

        Args:
            label: one of the spec's.
            seed: of the latents.
            count: films.
            truncation: see `gan.sample`.
            wanted: function of (start, stop), whether any film of a chunk is needed; all by default.

        Yields:
            (number of the first film, dict from side to float32 (n, side, side, 1) in [0, 1]); None instead
            of the dict where nothing is wanted.
        """
        from kxray.models import latents

        index, z = self.index(label), None
        for start in range(0, count, CHUNK):
            stop = min(start + CHUNK, count)
            if wanted is not None and not wanted(start, stop):
                yield start, None
                continue
            if z is None:
                z = latents(seed, -(-count // CHUNK) * CHUNK, self.gan.latent)
            made = self.gan.sample(
                np.full(CHUNK, index), z=z[start : start + CHUNK], truncation=truncation, batch_size=CHUNK
            )
            yield start, {side: films[: stop - start] for side, films in made.items()}

    def films(self, label, seed, count, truncation=1.0) -> np.ndarray:
        """The largest films of a class, float32 (count, side, side, 1) in [0, 1]."""
        made = [films[self.side] for _, films in self.chunks(label, seed, count, truncation)]
        return np.concatenate(made) if made else np.zeros((0, self.side, self.side, 1), np.float32)


def load_generator(run, truncation=1.0) -> Generator:
    """Opens the run of a generator, whose films are to say by which truncation they were made.

    Raises:
        FileNotFoundError, ValueError: no such run, or one of a classifier.
    """
    import kxray

    run = Path(run)
    place = run if run.is_dir() else run.parent
    if (place / "spec.json").is_file():
        check_generator(kxray.ModelSpec.read(place / "spec.json"), run)
    gan, spec = kxray.load(run)
    check_generator(spec, run)
    findings = _are_findings(spec, place)
    digest, view = generator_digest(gan, spec.labels), "frontal" if findings else ""
    facts = SyntheticFacts(spec.name, digest, spec.labels, findings, view, truncation)
    return Generator(run, gan, spec, facts)


def check_generator(spec, run) -> None:
    """Raises ValueError unless a spec is that of a generator."""
    if spec.task != GENERATOR:
        raise ValueError(
            f"{run}: {spec.name!r} is a {spec.task} classifier, it makes no films; give a run of "
            "training.fit attention_cgan or cdcgan"
        )


def _are_findings(spec, folder) -> bool:
    """Whether classes are findings, which have a 0/1 column each, or values of one column."""
    told = spec.provenance.get("conditions_from")
    if told is None and (folder / "config.json").is_file():
        told = runs.read_config(folder).get("conditions_from")
    if told is not None:
        return told == COLUMNS
    # A run that does not say so is told by the names.
    return {*spec.labels} <= {*DISEASES, *NIH_FINDINGS, *FINDINGS, NORMAL}
