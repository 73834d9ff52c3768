"""Every method gets the same budget, on seeds that never race."""

import json

from benchmarks.methods import METHODS
from benchmarks.race import grids
from benchmarks.race.levels import ADAM, ALONE, HORIZON, SQRT
from benchmarks.race.tuning import RESULTS
from benchmarks.report.claims import CLAIMS
from benchmarks.tasks import TASKS, get_task


def test_every_method_has_the_same_number_of_trials():
    for name in TASKS:
        task = get_task(name)
        for method in METHODS.values():
            if method.enters(task):
                trials = grids.grid(task, method)
                assert len({tuple(t.items()) for t in trials}) == grids.num_trials(task)


def test_a_setting_is_at_an_edge_where_any_of_its_parts_is():
    trials = [{"learning_rate": rate, "t0": t0} for rate in (1.0, 2.0, 4.0) for t0 in (1, 2, 3)]
    assert not grids.at_edge(trials, {"learning_rate": 2.0, "t0": 2})
    assert grids.at_edge(trials, {"learning_rate": 4.0, "t0": 2})
    assert grids.at_edge(trials, {"learning_rate": 2.0, "t0": 1})


def test_the_race_is_not_run_on_the_tuning_seeds():
    seeds = [*grids.TUNING_SEEDS, *grids.TARGET_SEEDS, *grids.RACE_SEEDS]
    assert len(set(seeds)) == len(seeds)


def test_what_the_claim_compares_is_raced_on_all_seeds():
    def seeds(method, task="digits_vit"):
        return grids.race_seeds(get_task(task), METHODS[method])

    references = {name for names in (ADAM, ALONE, SQRT) for name in names.values()}
    compared = {name for c in CLAIMS for name in (c.ours, c.rival)} - {None}
    compared -= {"cosine"}  # it was compared later, on the few seeds that there are
    for name in {*references, *HORIZON, *compared}:
        assert seeds(name) == grids.RACE_SEEDS
    for few in (*map(seeds, ("cosine", "muon", "fgo_by_sasa")), seeds("fgo", "char_gpt")):
        assert few == grids.FEW_RACE_SEEDS


def test_the_committed_settings_say_which_lie_at_an_edge():
    for path in RESULTS.glob("*.json"):
        tuned = json.loads(path.read_text())
        for method in tuned["methods"].values():
            trials = [trial["hyperparameters"] for trial in method["trials"]]
            edges = {level: grids.at_edge(trials, s) for level, s in method["chosen"].items()}
            assert method["at_edge"] == edges
