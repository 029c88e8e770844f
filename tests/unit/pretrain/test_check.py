"""`beit pretrain --check` refuses what a run would refuse when it builds its model and engine."""

import pytest

from beit.common.errors import InputError
from beit.pretrain.train import check
from beit.tests.support import write_store
from beit.tests.unit.pretrain.test_train import make_config


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optimizer": {"kind": "muon"}, "deepspeed": {"zero_stage": 2}}, "needs whole matrices"),
        ({"deepspeed": {"config": "zero.json"}}, "zero.json sets zero_optimization.stage to 7"),
        ({"deepspeed": {"config": "none.json"}}, "none.json. cannot be read"),
    ],
)
def test_optimizer_and_partition_are_looked_at_without_a_store(sections, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 7}}')
    with pytest.raises(InputError, match=message):
        check(make_config(**sections), store="store", run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_block_to_aggregate_from_is_looked_for_in_the_model(tmp_path):
    store = write_store(tmp_path / "store")
    config = make_config(objective={"aggregate": 2, "aggregate_from": 24})
    with pytest.raises(InputError, match=r"objective.aggregate_from \(24\) must be in"):
        check(config, store=str(store.location), run_dir=tmp_path / "run")
    config = make_config(objective={"aggregate": 2, "aggregate_from": 1})
    assert "are right" in check(config, store=str(store.location), run_dir=tmp_path / "run")
