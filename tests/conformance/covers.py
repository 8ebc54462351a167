"""The marker by which a test says which vector of the specification it asserts; `make conformance` counts them."""

import pytest


def covers(*ids: str, part: str = "") -> pytest.MarkDecorator:
    """Marks a test that asserts the numbers of the vectors `ids` ("emb:O18").

    part: which part of them it asserts, where no test asserts all of it. An id of which only parts are asserted counts
        as "part", not as "whole".
    """
    return pytest.mark.covers(*ids, part=part)
