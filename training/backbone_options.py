"""What recipes on a backbone share: how its stages and its starting weights are named at the shell."""

from pathlib import Path


def parse_taps(text):
    """ "3" -> 3, "block2,block4" -> ("block2", "block4")."""
    return int(text) if text.strip().isdigit() else tuple(name.strip() for name in text.split(","))


def check_init(init) -> None:
    """Raises ValueError unless --init names weights that there are, or none."""
    if init not in (None, "imagenet") and not Path(init).exists():
        raise ValueError(f"--init {init}: no such run folder or file of weights")
