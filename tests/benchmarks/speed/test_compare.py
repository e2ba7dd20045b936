"""jaxfed and its peers must end with the same weights."""

import compare
import pytest


def test_norms_that_differ_end_the_comparison():
    compare.agree({"jaxfed": [1.0, 2.0], "torch loop2": [1.0, 2.001]})
    with pytest.raises(SystemExit, match="torch loop2 differs after round 2"):
        compare.agree({"jaxfed": [1.0, 2.0], "torch loop2": [1.0, 2.01]})


def test_jaxfed_stands_beside_the_fastest_peer_by_way_of_the_loop():
    seconds = {"jaxfed": {"median": 0.5}, "torch loop2": {"median": 1.0}}
    loop, fastest, _ = compare.TABLE["W3"]
    assert f"takes {0.5 * loop / fastest:.2f} of the" in compare.against_the_fastest("W3", seconds)
