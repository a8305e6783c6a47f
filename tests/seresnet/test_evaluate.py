"""Evaluations of trained runs: numbers against sklearn and hand sums, the published arrays' order, adapted batch norm, pages and errors."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

import seresnet
from seresnet.adaptation import adapted
from seresnet.calibration import expected_calibration_error, hardest, reliability, score
from seresnet.checkpoint import find_runs
from seresnet.corruptions import OPERATIONS
from seresnet.digits import read_digits
from seresnet.errors import ConfigError, DataError
from seresnet.evaluate import main
from seresnet.evaluate_view import Evaluated, confusion_shares, markdown
from seresnet.folding import FoldedNetwork
from seresnet.plan_record import asked_for
from seresnet.robustness import Shift, TestSet, check_published, shifted_sets


@pytest.fixture(scope="module")
def guesses() -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(0).gamma(1.0, size=(200, 4))
    return drawn / drawn.sum(1, keepdims=True), np.random.default_rng(1).integers(0, 4, 200)


def test_scores_are_sklearns(guesses) -> None:
    probabilities, labels = guesses
    found = score(probabilities, labels)
    assert found.top1_pct == pytest.approx(100 * accuracy_score(labels, probabilities.argmax(1)))
    assert found.loss == pytest.approx(log_loss(labels, probabilities))
    assert found.confusion == confusion_matrix(labels, probabilities.argmax(1)).tolist()
    assert found.brier == pytest.approx(np.mean([sum((row - np.eye(4)[label]) ** 2) for row, label in zip(*guesses, strict=True)]))


def test_calibration_error_is_the_hand_sum() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.2, 0.8]])
    labels = np.array([0, 1, 1, 1])
    # Bins of 1/15: 0.9 -> (0.867, 0.933], 0.65 -> (0.6, 0.667], 0.8 -> (0.733, 0.8].
    expected = (2 * abs(0.9 - 0.5) + abs(0.65 - 1) + abs(0.8 - 1)) / 4
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected)
    assert sum(part.n for part in reliability(probabilities, labels)) == 4


def test_the_hardest_images_are_those_whose_class_got_least(guesses) -> None:
    probabilities, labels = guesses
    own = [probabilities[i, label] for i, label in enumerate(labels)]
    assert hardest(probabilities, labels, 5).tolist() == sorted(range(200), key=lambda i: own[i])[:5]


def test_adapted_statistics_are_the_means_over_batches_in_training_mode(two_runs: list[Path]) -> None:
    classifier, pixels = seresnet.load(two_runs[0]), read_digits().test_images[:60] // 2
    found = adapted(classifier, pixels)
    stem = classifier.network.get_submodule("stem.0")(classifier.prepared(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    norm = found.network.get_submodule("stem.1")
    torch.testing.assert_close(norm.running_mean.double(), stem.double().mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(norm.running_var.double(), stem.double().var((0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_a_share_of_the_source_mixes_and_leaves_the_given_network_alone(two_runs: list[Path]) -> None:
    classifier, pixels = seresnet.load(two_runs[0]), read_digits().test_images[:60] // 2
    before = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    whole, half, none = (adapted(classifier, pixels, share).network.get_submodule("stem.1").running_mean for share in (1.0, 0.5, 0.0))
    torch.testing.assert_close(whole, before["stem.1.running_mean"])
    torch.testing.assert_close(half, (whole + none) / 2)
    assert all(torch.equal(value, before[name]) for name, value in classifier.network.state_dict().items())


def test_a_sweep_is_evaluated_with_spreads_on_every_corruption(two_runs: list[Path], tmp_path: Path, capsys) -> None:
    command = [str(two_runs[0].parent), "--corruptions", "--adapt-bn", "--images", "30", "--output", str(tmp_path / "out")]
    assert main(command) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert [(run["arm"], run["seed"], len(run["shifts"])) for run in record["runs"]] == [("se", 0, 75), ("se", 1, 75)]
    plain = [np.mean([shift["plain"]["top1_pct"] for shift in run["shifts"]]) for run in record["runs"]]
    gain = [np.mean([s["adapted"]["top1_pct"] - s["plain"]["top1_pct"] for s in run["shifts"]]) for run in record["runs"]]
    page = (tmp_path / "out/evaluation.md").read_text()
    assert page == capsys.readouterr().out and "30 test images, 2 runs" in page
    assert f"{np.mean(plain):.2f} ± {np.std(plain, ddof=1):.2f}" in page
    assert f"{np.mean(gain):.2f} ± {np.std(gain, ddof=1):.2f}" in page
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "evaluation.json", "evaluation.md", "hardest.png", "reliability.png", "confusion.png", "corruptions.png",
    }  # fmt: skip
    least = sorted(hard["true_probability"] for hard in record["hardest"])
    assert len(least) == 30 and [hard["true_probability"] for hard in record["hardest"]] == least


SETTINGS = {"weights": "last", "images": 1, "tta": False, "corruptions": "computed", "adapt_bn_source_share": None}


def guessing(arm: str, seed: int, right: np.ndarray) -> Evaluated:
    """Two images of each of ten classes, of which those are recognised; any other is taken for the next class."""
    labels = np.repeat(np.arange(10), 2)
    probabilities = np.eye(10)[np.where(right, labels, (labels + 1) % 10)]
    return Evaluated(arm=arm, seed=seed, origin=arm, clean=score(probabilities, labels), probabilities=probabilities)


def test_each_class_has_its_accuracy_with_the_spread_over_seeds_of_each_arm() -> None:
    right = np.ones(20, dtype=bool)
    half = right.copy()
    half[[6, 12, 13]] = False  # one image of class 3, both of class 6
    found = [guessing("plain", 0, right), guessing("plain", 1, half), guessing("se", 0, half)]
    rows = [
        line.split("|")[1:-1] for line in markdown(found, read_digits(), SETTINGS).partition("by class:")[2].splitlines() if "|" in line
    ]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert cells["class"] == ["plain", "se"] and len(cells) == 12
    assert (cells["3"], cells["6"], cells["0"]) == (["75.0 ± 35.4", "50.0"], ["50.0 ± 70.7", "0.0"], ["100.0 ± 0.0", "100.0"])
    shares = confusion_shares(found[:2])
    assert (shares[3, 3], shares[3, 4], shares[6, 7]) == (75.0, 25.0, 50.0)


def test_of_many_classes_the_lowest_are_shown() -> None:
    one = guessing("plain", 0, np.arange(20) >= 4)  # classes 0 and 1 are never recognised
    many = replace(one, clean=replace(one.clean, confusion=np.kron(np.eye(3, dtype=int), one.clean.confusion).tolist()))
    page = markdown([many], replace(read_digits(), classes=tuple(f"c{place}" for place in range(30))), SETTINGS)
    rows = [line.split("|")[1].strip() for line in page.partition("the 20 lowest of 30 classes:")[2].splitlines() if line.startswith("| c")]
    assert len(rows) == 21 and {"c0", "c1", "c10", "c11", "c20", "c21"} <= set(rows)


def test_arms_are_compared_at_equal_seeds() -> None:
    def at(arm: str, seed: int, mean_pct: float) -> Evaluated:
        right = replace(score(np.eye(10)[[0]], np.array([0])), top1_pct=mean_pct)
        shift = Shift(corruption="fog", severity=1, plain=right, adapted=None)
        return Evaluated(arm=arm, seed=seed, origin=arm, clean=right, probabilities=np.eye(10)[[0]], shifts=(shift,))

    found = [
        at("plain", 0, 50.0),
        at("plain", 1, 60.0),
        at("augmix", 1, 65.0),
        at("augmix", 0, 53.0),
        at("augmix", 2, 99.0),
        at("alone", 7, 1.0),
    ]
    page = markdown(found, read_digits(), SETTINGS)
    # 53 - 50 and 65 - 60; seed 2 has no partner.
    (header, *rows) = [
        line.split("|")[1:-1] for line in page.splitlines() if "| mean of" in line or line.startswith(("| plain ", "| augmix ", "| alone "))
    ][-4:]
    assert header[-1].strip() == "minus plain"
    assert {row[0].strip(): row[-1].strip() for row in rows} == {"plain": "-", "augmix": "+4.00 ± 1.41", "alone": "-"}


def test_clean_accuracy_is_that_of_the_result(two_runs: list[Path], tmp_path: Path) -> None:
    assert main([str(two_runs[1]), "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())["runs"][0]["clean"]
    result = json.loads((two_runs[1] / "result.json").read_text())
    assert (found["n"], found["top1_pct"], found["confusion"]) == (120, pytest.approx(result["last_test_top1_pct"]), result["confusion"])
    assert found["loss"] == pytest.approx(result["last_test_loss"], abs=1e-6)


def test_a_run_in_bf16_is_evaluated_in_bf16_with_batch_norm_folded(two_runs: list[Path]) -> None:
    plain, pixels = seresnet.load(two_runs[0]), read_digits().test_images[:30]
    low = replace(plain, amp="bf16")
    folded = FoldedNetwork(plain.network)
    folded.refresh()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = folded.network(plain.prepared(torch.from_numpy(pixels).permute(0, 3, 1, 2))).float()
    assert torch.equal(low.folded().logits(pixels), expected)
    assert not torch.equal(plain.logits(pixels), expected)
    torch.testing.assert_close(plain.folded().logits(pixels), plain.logits(pixels), rtol=1e-4, atol=1e-4)


def published(folder: Path, labels: np.ndarray) -> None:
    """Arrays in CIFAR-10-C's layout whose pixels tell their severity and their row."""
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    for number, name in enumerate(OPERATIONS):
        array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, (50_000, 2, 2, 3))
        for severity in range(5):
            rows = np.arange(10_000) % 199
            array[severity * 10_000 : (severity + 1) * 10_000] = (rows + 10 * severity + number)[:, None, None, None] % 256


def test_the_published_arrays_are_read_by_severity_and_index(tmp_path: Path) -> None:
    labels, chosen = np.arange(10_000) % 10, np.array([3, 777, 9_999])
    published(tmp_path / "c", labels)
    check_published(tmp_path / "c", labels)
    test = TestSet(images=np.zeros((3, 2, 2, 3), np.uint8), labels=labels[chosen], indices=chosen)
    found = {(name, severity): images for name, severity, images in shifted_sets(test, torch.device("cpu"), tmp_path / "c")}
    assert len(found) == 75
    expected = (chosen % 199 + 10 * 3 + list(OPERATIONS).index("fog")) % 256
    assert found["fog", 4][:, 0, 0, 0].tolist() == expected.tolist()


def test_published_arrays_of_another_order_or_shape_are_refused(tmp_path: Path) -> None:
    labels = np.arange(10_000) % 10
    published(tmp_path / "c", labels)
    with pytest.raises(DataError, match="the labels are not those of this run's test images"):
        check_published(tmp_path / "c", labels[::-1])
    test = TestSet(images=np.zeros((1, 4, 4, 3), np.uint8), labels=labels[:1], indices=np.array([0]))
    with pytest.raises(DataError, match=r"gaussian_noise.npy: is uint8 \(50000, 2, 2, 3\), not uint8 \(50000, 4, 4, 3\)"):
        next(shifted_sets(test, torch.device("cpu"), tmp_path / "c"))


def a_sweep(two_runs: list[Path], folder: Path, *arms: list[int]) -> Path:
    """Both runs in a sweep whose plan asks for those of the arms."""
    folder.mkdir()
    for run in two_runs:
        (folder / run.name).symlink_to(run)
    plan = {
        "arms": {f"arm{place}": [two_runs[one].name for one in arm] for place, arm in enumerate(arms)},
        "runs": {run.name: {"folder": run.name} for run in two_runs},
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def test_runs_of_a_sweep_are_those_it_asks_for_in_the_order_of_its_arms(two_runs: list[Path], tmp_path: Path, capsys) -> None:
    both = a_sweep(two_runs, tmp_path / "both", [1], [0])
    assert [run.path.name for run in asked_for(both, find_runs(both))] == [two_runs[1].name, two_runs[0].name]
    one = a_sweep(two_runs, tmp_path / "one", [1])
    assert [run.path.name for run in asked_for(one, find_runs(one))] == [two_runs[1].name]
    assert "1 of 2 runs are no longer asked for by one and are left out" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="none of its 2 runs is asked for any more"):
        none = a_sweep(two_runs, tmp_path / "none", [])
        asked_for(none, find_runs(none))


def test_a_damaged_plan_hides_no_run(two_runs: list[Path], tmp_path: Path) -> None:
    sweep = a_sweep(two_runs, tmp_path / "sweep", [0])
    (sweep / "plan.json").write_text('{"arms": ["x"]}')
    assert len(asked_for(sweep, find_runs(sweep))) == 2


def test_an_unfinished_run_is_refused_by_name(two_runs: list[Path], tmp_path: Path, capsys) -> None:
    (tmp_path / "run/ckpt").mkdir(parents=True)
    (tmp_path / "run/run.yaml").write_text((two_runs[0] / "run.yaml").read_text())
    assert main([str(tmp_path / "run")]) == 2
    assert "is not finished, so there is no network to evaluate" in capsys.readouterr().err


def test_options_of_corrupted_images_without_corruptions_are_refused(two_runs: list[Path], capsys) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(two_runs[0]), "--adapt-bn"])
    assert left.value.code == 2 and "add --corruptions" in capsys.readouterr().err
