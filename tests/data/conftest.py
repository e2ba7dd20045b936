"""Real data sets, for tests that want them."""

import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def shared():
    """A folder of real data sets, which is no part of this repository."""
    folder = pathlib.Path(os.environ.get("JAXFED_DATA", ROOT / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist; set JAXFED_DATA to the folder of the data sets")
    return folder
