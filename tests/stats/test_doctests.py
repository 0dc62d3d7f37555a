import doctest

import pytest

from gateway.stats import bands, drift, experiment, means, sequential, sketch


@pytest.mark.parametrize("module", [bands, drift, experiment, means, sequential, sketch])
def test_the_examples_in_the_docstrings_give_the_stated_numbers(module: object) -> None:
    failures, attempts = doctest.testmod(module)  # type: ignore[arg-type]
    assert attempts
    assert not failures
