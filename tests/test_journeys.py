"""A call enters no more files than it does today: who follows it has to open them all."""

import pytest
from journeys import JOURNEYS, follow, import_all


@pytest.fixture(scope="module", autouse=True)
def imported():
    import_all()


@pytest.mark.parametrize("name", JOURNEYS)
def test_a_journey_enters_few_files(name, tmp_path):
    trail = follow(JOURNEYS[name].prepare(tmp_path))
    assert 0 < len(trail.files) <= JOURNEYS[name].most_files, "\n".join(trail.files)
    assert trail.n_functions > len(trail.files)
