import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real films, or a skip that says which folder was looked for."""
    folder = Path(os.environ.get("KXRAY_TEST_DATA", REPOSITORY.parent / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"real films not found at {folder}; set KXRAY_TEST_DATA to a folder that has them")
    return folder
