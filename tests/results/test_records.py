"""Records: what decides them, what they refuse, and what they say of themselves."""

import pytest
from pydantic import ValidationError
from run_folders import detection_record

from oodbench.results import pass_file
from oodbench.results.facts import CorruptionRecord
from oodbench.results.records import (
    SCHEMA_VERSION,
    SCORING_VERSION,
    DetectionRecord,
    RecognitionRecord,
    corruption_record,
    cost_key,
)

DECIDING = {
    "model": "x", "weights_hash": "x", "in_distribution": "x", "seed": 5, "scoring_version": 9, "in_fingerprint": "x",
    "train_fingerprint": "x", "detector": "x", "variant": "x", "parameters": {"k": 1}, "code": "x", "protocol": "x",
    "transfer_from": "x", "transfer_fingerprint": "x", "dataset": "x", "level": 4, "kind": "x", "fingerprint": "x",
}  # fmt: skip
OTHERS = {
    "status": "failed", "reason": "x", "provenance": {"a": 1}, "wall_seconds": 3.0, "n_in": 4, "n_out": 4, "setting": {"k": 1},
    "head": "mlp", "arrays": {"in_scores": "x"}, "sizes": {"x (test)": (1, 2)}, "non_default": {"k": (1, 2)},
    "auroc_clean": 0.5, "aurc": 0.5, "excess_aurc": 0.25, "look_alikes": 3, "calibrated_on": "training", "drawn_once": True,
    "choice_auroc": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", DECIDING)
def test_the_key_changes_with_all_that_decides(name):
    assert detection_record(**{name: DECIDING[name]}).key != detection_record().key


@pytest.mark.parametrize("name", OTHERS)
def test_the_key_holds_nothing_else(name):
    assert detection_record(**{name: OTHERS[name]}).key == detection_record().key


def test_every_field_is_known_to_decide_or_not():
    left = {"task", "metrics", "corruption", "attack", "calibration"}
    assert DetectionRecord.model_fields.keys() == DECIDING.keys() | OTHERS.keys() | left
    assert DetectionRecord.decides == DECIDING.keys() | {"task"}


def test_a_key_is_sixteen_hex_digits_and_stable():
    assert detection_record(parameters={"a": 1, "b": (2, 3)}).key == detection_record(parameters={"b": [2, 3], "a": 1}).key
    assert detection_record().scoring_version == SCORING_VERSION == 2
    assert SCHEMA_VERSION == 2  # of files; a new version needs a migration of the old one
    assert detection_record().key == "f7ac95b42c31d2be"  # records of today stay finished; raise SCORING_VERSION to void them


def test_what_is_unknown_or_infinite_is_refused():
    with pytest.raises(ValidationError, match="extra"):
        detection_record(more=1)
    with pytest.raises(ValidationError, match="finite"):
        detection_record(wall_seconds=float("inf"))
    with pytest.raises(ValidationError):
        detection_record(status="fine")
    with pytest.raises(ValidationError, match="frozen"):
        detection_record().seed = 1


def test_names():
    plain, variant = detection_record(), detection_record(variant="recon", dataset="digits+haze", level=3)
    assert (plain.row, plain.set_name, plain.place) == ("msp", "photos", ("msp", "unsupervised"))
    assert (variant.row, variant.set_name, variant.place) == ("msp:recon", "digits+haze@3", ("msp:recon", "unsupervised"))


def test_how_a_corrupted_set_was_made():
    generated = CorruptionRecord(corruption="haze", level=3, origin="generated", seed=7)
    assert corruption_record("cifar10+haze", 3, "corruption", 7) == generated
    official = CorruptionRecord(corruption="fog", level=2, origin="official")
    assert corruption_record("cifar10c/fog", 2, "corruption", 7) == official
    assert corruption_record("cifar10+haze", 3, "far-ood", 7) is None
    assert corruption_record("cifar10+haze", None, "corruption", 7) is None
    assert corruption_record("mine", 3, "corruption", 7) is None


def test_costs_are_known_by_detector_parameters_and_setting():
    keys = [cost_key("a", {}, None), cost_key("b", {}, None), cost_key("a", {"k": 1}, None), cost_key("a", {}, {"k": 1})]
    assert len(set(keys)) == 4
    assert cost_key("a", {}, {}) == keys[0]
    assert cost_key("a", {"k": 1, "l": 2}, None) == cost_key("a", {"l": 2, "k": 1}, None)


RECOGNITION = {
    "model": "net", "weights_hash": "w", "in_distribution": "digits", "train_fingerprint": "t", "seed": 0, "source": "network",
    "dataset": "digits+haze", "level": 3, "kind": "corruption", "fingerprint": "f", "status": "ok",
}  # fmt: skip


def test_what_decides_a_record_of_recognition():
    decides = {name: DECIDING[name] for name in RecognitionRecord.decides - {"task", "source"}} | {"source": "duq"}
    outcomes = {name: OTHERS[name] for name in ("reason", "provenance", "arrays", "sizes", "calibrated_on")}
    outcomes |= {"status": "failed", "n": 4, "temperature": 2.0}
    plain = RecognitionRecord(**RECOGNITION)
    assert RecognitionRecord.model_fields.keys() == {*decides, *outcomes, "task", "figures", "corruption", "attack"}
    for name, value in decides.items():
        assert RecognitionRecord(**RECOGNITION | {name: value}).key != plain.key
    for name, value in outcomes.items():
        assert RecognitionRecord(**RECOGNITION | {name: value}).key == plain.key
    assert (plain.row, plain.set_name, plain.place) == ("network", "digits+haze@3", ("network", "recognition"))


def test_records_of_both_tasks_share_a_file(tmp_path):
    records = [detection_record(), RecognitionRecord(**RECOGNITION), detection_record(detector="knn")]
    pass_file.write(tmp_path / "both", records, {})
    assert pass_file.read_records(tmp_path / "both") == [records[0], records[2], records[1]]
    pass_file.write(tmp_path / "one", records[1:2], {})
    assert pass_file.read_records(tmp_path / "one") == records[1:2]
