"""``tiepoint train``, ``calibrate`` and ``export-weights``, from a folder of photographs to a matcher in use."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiepoint import weights
from tiepoint.cli import main
from tiepoint.matchers.lightglue import LightGlue, LightGlueConfig, from_upstream
from tiepoint.training.loop import FitConfig
from tiepoint.training.pairs.maker import PairConfig
from tiepoint.training.runs import presets
from tiepoint.training.runs.matcher import LEAST_CHUNKS, MatcherSettings, train

MINIATURE = presets.MatcherPreset(
    model=LightGlueConfig(dim=64, heads=2, layers=2),
    pairs=PairConfig(keypoints=48, size=(120, 160), difficulty=0.3, photometric="none", negatives=0.2),
    fit=FitConfig(steps=6, learning_rate=1e-3, warmup=2, log_every=2, evaluate_every=3, save_every=2),
    batch=8,
    distinct=2,
    held_out=1,
)


class Ran:
    """Exit code, stdout and stderr of one run."""

    def __init__(self, code: int, captured: pytest.CaptureResult[str]) -> None:
        self.code, self.out, self.err = code, captured.out, captured.err


@pytest.fixture
def tiepoint(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run the command line in this process, with a preset that takes no time."""
    monkeypatch.setitem(presets.MATCHER_PRESETS, "tiny", MINIATURE)

    def run(*argv: object) -> Ran:
        capsys.readouterr()
        code = main([str(arg) for arg in argv])
        return Ran(code, capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def images(images: Path) -> Path:
    """Ten photographs, and a file that only claims to be one."""
    (images / "broken.jpg").write_bytes(b"\xff\xd8 this is not a photograph")
    return images


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with both stages."""
    run = tmp_path_factory.mktemp("runs") / "first"
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.MATCHER_PRESETS, "tiny", MINIATURE)
        assert main(["train", "matcher", "--images", str(images), "-o", str(run), "--workers", "0"]) == 0
        assert main(["train", "confidence", str(run), "--steps", "6", "--workers", "0"]) == 0
    return run


def test_a_run_tells_everything_about_itself(finished: Path, images: Path) -> None:
    told = json.loads((finished / "config.json").read_text())
    assert told["config"]["kind"] == "lightglue" and told["config"]["fit"]["steps"] == 6
    assert told["machine"]["packages"]["torch"]
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    assert {"loss", "precision", "recall", "pairs_per_s", "waiting", "seconds_left"} <= set(rows[0])
    assert "held_out_precision" in rows[1] and "held_out_recall" in rows[-1]
    baseline = json.loads((finished / "baseline.json").read_text())
    assert set(baseline) == {"0.8", "0.9"} and baseline["0.8"]["precision"] > 0.5
    _, config = weights.load(finished / "weights.safetensors")
    assert config["features"] == ["sift"] and config["scale_orientation"] and config["log_scale"]
    assert config["training"]["pairs"]["keypoints"] == 48
    assert any((finished / "tensorboard").iterdir())


def test_the_stages_share_one_matcher(finished: Path) -> None:
    first, _ = weights.load(finished / "weights.safetensors")
    second, _ = weights.load(finished / "confidence" / "weights.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first if not name.startswith("confidence"))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    origins = [weights.load(finished / name / "weights.safetensors")[1] for name in ("", "confidence")]
    assert origins[1]["training"] == origins[0]["training"] and origins[0]["training"]["fit"]["learning_rate"] == 1e-3
    assert origins[1]["confidence"]["fit"]["steps"] == 6 and "confidence" not in origins[0]


def test_the_same_command_resumes_and_another_configuration_is_refused(
    tiepoint, images: Path, tmp_path: Path, finished: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = (run / "metrics.jsonl").read_text()
    again = tiepoint("train", "matcher", "--images", images, "-o", run, "--workers", 0, "--json")
    assert again.code == 0 and json.loads(again.out)["step"] == 6 and "held_out_recall" in json.loads(again.out)
    assert (run / "metrics.jsonl").read_text() == before, "it was finished"
    other = tiepoint("train", "matcher", "--images", images, "-o", run, "--steps", 9, "--batch", 16)
    assert other.code == 3
    assert "fit.steps is 6 there and 9 here" in other.err and "batch is 8 there and 16 here" in other.err
    other = tiepoint("train", "matcher", "--images", images, "-o", run, "--light", "strong")
    assert other.code == 3 and "photometric is none there and strong here" in other.err


def test_unreadable_photographs_and_small_folders_are_reported(tiepoint, images: Path, tmp_path: Path) -> None:
    ran = tiepoint("train", "matcher", "--images", images, "-o", tmp_path / "run", "--workers", 0, "--dry-run")
    assert ran.code == 0
    assert "1 of 11 files" in ran.err and "broken.jpg" in ran.err and "10 different photographs" in ran.err
    assert "parameters" in ran.out and "minutes in all" in ran.out
    pictures = list((tmp_path / "run" / "dry-run").glob("*.png"))
    assert len(pictures) == 8 and Image.open(pictures[0]).size == (320, 120)
    assert not (tmp_path / "run" / "config.json").exists(), "no run was begun"
    options = ("--workers", 0, "--light", "mild")
    ran = tiepoint("train", "matcher", "--images", images, "-o", tmp_path / "run", *options)
    assert ran.code == 0, "the dry run left nothing that other options would not fit"


def test_superglue_trains_in_the_same_way(
    tiepoint, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(presets.MATCHER_PRESETS, "tiny", replace(MINIATURE, distinct=1))
    options = ("--kind", "superglue", "--workers", 0, "--steps", 2)
    ran = tiepoint("train", "matcher", "--images", images, "-o", tmp_path / "run", *options)
    assert ran.code == 0 and "nearest neighbours, ratio 0.8" in ran.out
    assert ran.err.count("step 2: held-out loss") == 1, "also where no person watches"
    assert tiepoint("train", "confidence", tmp_path / "run").code == 2
    exported = tiepoint("export-weights", tmp_path / "run", "--layout", "upstream")
    assert exported.code == 2 and "superglue" in exported.err


def test_calibrate_then_export(tiepoint, images: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    options = ("--images", images, "-k", 64, "--workers", 0, "--json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiepoint.calibration.calibrate.LEAST_UNRELATED", 8)
        ran = tiepoint("calibrate", run, *options, "--count", 29, "--keep", 0.9)
    assert ran.code == 0 and "at least 29 photographs; there are 4 (held out of the training)" in ran.err
    told = json.loads(ran.out)
    assert (told["pairs"], told["unrelated"]) == (32, 8)
    kept = weights.load(finished / "confidence" / "weights.safetensors")[1]["match_threshold"]
    assert weights.load(run / "calibrated.safetensors")[1]["match_threshold"] == kept != 0.35
    ran = tiepoint("calibrate", run, *options, "--count", 5, "--keep", 0.5, "--match-threshold", 0.35)
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["pairs"] == 8 and told["unrelated"] == 104 and len(told["settings"]) == 10
    assert told["overlap_threshold"] is not None
    _, config = weights.load(run / "calibrated.safetensors")
    assert config["match_threshold"] == 0.35
    assert config["calibration"]["keep"] == 0.5 and config["overlap_threshold"] == told["overlap_threshold"]

    assert tiepoint("export-weights", run, "--half", "-o", tmp_path / "mine.safetensors").code == 0
    _, exported = weights.load(tmp_path / "mine.safetensors")
    assert (
        exported == config
        and (tmp_path / "mine.safetensors").stat().st_size < 0.6 * (run / "calibrated.safetensors").stat().st_size
    )
    matcher = LightGlue("sift", weights=str(tmp_path / "mine.safetensors"))
    assert matcher.config.overlap_threshold == told["overlap_threshold"]
    upstream = tiepoint("export-weights", run, "--layout", "upstream", "-o", tmp_path / "theirs.pth")
    assert upstream.code == 0 and "log2" in upstream.err
    back = from_upstream(torch.load(tmp_path / "theirs.pth", weights_only=True), 2)
    for name, tensor in matcher.net.state_dict().items():
        torch.testing.assert_close(back[name].float(), tensor, atol=2e-3, rtol=2e-3)


def test_calibrate_on_listed_pairs(tiepoint, images: Path, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("0.png 1.png 0.9\n\nimages/2.png images/3.png\n")
    output = tmp_path / "out.safetensors"
    weights_file = finished / "confidence" / "weights.safetensors"
    options = ("--images", images, "--pairs", tmp_path / "pairs.txt", "-o", output)
    ran = tiepoint("calibrate", weights_file, *options, "--keep", 0.5, "--confidence", 0.75)
    assert ran.code == 0 and "exit at confidence" in ran.out
    assert weights.load(output)[1]["calibration"]["pairs"] == 2
    ran = tiepoint("calibrate", weights_file, *options)
    assert ran.code == 2 and "at least 299 pairs, not 2" in ran.err
    for line, words in (
        ("0.png", "one name"),
        ("0.png 0.png", "nothing else"),
        ("0.png 1.png\n0.png no.png", "no.png"),
    ):
        (tmp_path / "pairs.txt").write_text(line)
        ran = tiepoint("calibrate", weights_file, *options)
        assert ran.code == 3 and words in ran.err
    (tmp_path / "pairs.txt").write_text("0.png 1.png\n1.png 0.png\n" * 300)
    ran = tiepoint("calibrate", weights_file, *options)
    assert ran.code == 2 and "not 1" in ran.err, "a pair that comes again is no new one"


def test_calibrate_needs_nothing_of_the_training_but_its_weights(
    tiepoint, images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither posed photographs, nor real pairs, nor the extractor's file."""
    monkeypatch.setattr("tiepoint.calibration.calibrate.LEAST_UNRELATED", 8)
    state, config = weights.load(finished / "confidence" / "weights.safetensors")
    config["training"]["pairs"] |= {"posed": 0.5, "real": 0.2, "features": "sift@gone"}
    weights.save(tmp_path / "moved.safetensors", state, config)
    options = ("--images", images, "--keep", 0.5, "--count", 5, "-k", 64, "--workers", 0)
    ran = tiepoint("calibrate", tmp_path / "moved.safetensors", *options)
    assert ran.code == 2 and "'sift' does not take 'weights'" in ran.err
    ran = tiepoint("calibrate", tmp_path / "moved.safetensors", *options, "--features", "sift")
    assert ran.code == 0, ran.err


def test_what_was_calibrated_before_is_not_exported_for_what_was_trained_since(
    tiepoint, images: Path, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (tmp_path / "pairs.txt").write_text("0.png 1.png\n2.png 3.png\n")
    options = ("--images", images, "--pairs", tmp_path / "pairs.txt", "--keep", 0.5, "--confidence", 0.75)
    calibrate = ("calibrate", run, *options)
    assert tiepoint(*calibrate).code == 0 and tiepoint("export-weights", run).code == 0
    shutil.rmtree(run / "confidence")
    assert tiepoint("train", "confidence", run, "--steps", 3, "--workers", 0).code == 0
    stale = tiepoint("export-weights", run)
    assert stale.code == 3 and "tiepoint calibrate" in stale.err
    assert tiepoint(*calibrate).code == 0 and tiepoint("export-weights", run).code == 0


def test_a_matcher_trained_on_after_its_confidence_stage_is_noticed(tiepoint, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    state, config = weights.load(run / "weights.safetensors")
    weights.save(run / "weights.safetensors", {k: v + 1 for k, v in state.items()}, config)
    ran = tiepoint("export-weights", run)
    assert ran.code == 3 and "train confidence" in ran.err


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["train", "matcher", "--images", "nowhere", "-o", "run"], 3, "nowhere: there is no such folder"),
        (["train", "matcher", "--images", "{few}", "-o", "run"], 3, "at least 8"),
        (["train", "matcher", "--images", "{blank}", "-o", "run"], 3, "finds 0, 0, 0, 0, 0 keypoints"),
        (["train", "matcher", "--images", "{images}", "-o", "run", "-f", "orb"], 2, "bit strings"),
        (["train", "matcher", "--images", "{images}", "-o", "run", "-f", "sitf"], 2, "no extractor .* 'sitf'"),
        (["train", "matcher", "--images", "{images}", "-o", "run", "--batch", "12"], 2, "multiple of 8"),
        (["train", "matcher", "--images", "{images}", "-o", "{few}/0.png/x"], 3, "cannot be made"),
        (["train", "matcher", "--images", "{images}", "-o", "run", "--preset", "huge"], 2, "standard"),
        (["train", "matcher", "--images", "{images}", "-o", "run", "--device", "abacus"], 2, "abacus"),
        (["train", "confidence", "{few}"], 3, "not the folder of a training run"),
        (["export-weights", "{few}"], 3, "holds no weights"),
        (["calibrate", "{few}", "--images", "{images}"], 3, "holds no weights"),
        (["train", "matcher", "--images", "{images}", "-o", "{images}/run"], 2, "lies among the photographs"),
        (["train", "matcher", "--images", "{images}", "-o", "run", "--start", "cairn"], 2, "no LightGlue weights"),
        (["train", "matcher", "--images", "{images}", "-o", "run", "--average"], 2, "nothing to average with"),
        (["train", "features", "--images", "{images}", "-o", "run", "--average"], 2, "nothing to average with"),
        (["export-weights", "{few}/0.png"], 4, "no tensors alone, or damaged"),
        (["match", "{few}/0.png", "{few}/1.png", "--features", "sift", "--matcher", "lightglue@"], 2, "names no file"),
        (
            ["match", "{few}/0.png", "{few}/1.png", "-f", "cairn", "-m", "lightglue@{run}/weights.safetensors"],
            2,
            "match sift, not cairn",
        ),
        (["calibrate", "none.safetensors", "--images", "{images}"], 2, "none.safetensors"),
        (["calibrate", "{run}/weights.safetensors", "--images", "{images}", "--keep", "0.9"], 2, "never trained"),
        (["calibrate", "{run}", "--images", "{images}", "--count", "50"], 2, "at least 299 pairs, not 50"),
        (["export-weights", "{run}", "-o", "w.pth"], 2, r"\.safetensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_come_before_the_first_step(
    tiepoint, images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv, code, words
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, count in (("few", 3), ("blank", 9)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.fromarray(np.full((130, 170, 3), 20 * i, np.uint8)).save(tmp_path / name / f"{i}.png")
    named = {"few": tmp_path / "few", "blank": tmp_path / "blank", "images": images, "run": finished}
    ran = tiepoint(
        *[arg.format(**named) for arg in argv],
        *(["--workers", "0"] if "-o" in argv[:6] and argv[1] == "matcher" else []),
    )
    assert ran.code == code, ran.err
    assert re.search(words, ran.err) and "Traceback" not in ran.err and ran.out == ""
    assert not list(tmp_path.rglob("checkpoint.pt")) and not list(tmp_path.rglob("config.json"))


def test_a_run_without_weights_or_with_a_damaged_checkpoint(
    tiepoint, images: Path, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "checkpoint.pt").write_bytes(b"garbage")
    ran = tiepoint("train", "matcher", "--images", images, "-o", run, "--workers", 0)
    assert ran.code == 1 and "checkpoint.pt is damaged" in ran.err and len(ran.err.splitlines()) < 5
    (run / "weights.safetensors").unlink()
    ran = tiepoint("train", "confidence", run)
    assert ran.code == 3 and "holds no weights yet" in ran.err


def test_a_full_disk_is_an_error_of_ours(tiepoint, images: Path, tmp_path: Path) -> None:
    """No file may grow beyond 1 MB: pairs fit, the checkpoint does not."""
    argv = ["train", "matcher", "--images", str(images), "-o", str(tmp_path / "run"), "--workers", "0"]
    assert tiepoint(*argv, "--dry-run").code == 0  # the photographs are decoded
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
    script = limit + SCRIPT.format(tests=str(Path(__file__).parent), argv=argv, distinct=2).replace("100_000", "2")
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert ran.returncode == 3 and "checkpoint.pt: cannot be written: File too large" in ran.stderr, ran.stderr
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_no_setting_can_be_trusted_with_untrained_classifiers(tiepoint, finished: Path) -> None:
    state, _ = weights.load(finished / "weights.safetensors")
    assert not state["confidence.0.weight"].any(), "the first stage leaves them alone"


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from dataclasses import replace
import test_cli_train as t
from tiepoint.cli import main
from tiepoint.training.runs import presets
fit = replace(t.MINIATURE.fit, steps=100_000, save_every=100_000)
presets.MATCHER_PRESETS["tiny"] = replace(t.MINIATURE, distinct={distinct}, fit=fit)
sys.exit(main({argv!r}))
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_or_a_clusters_sigterm_saves_and_says_so(images: Path, tmp_path: Path, workers: int) -> None:
    """The one to the process alone, the other to all of its group."""
    run = tmp_path / "run"
    argv = ["train", "matcher", "--images", str(images), "-o", str(run), "--workers", str(workers)]
    script = SCRIPT.format(tests=str(Path(__file__).parent), argv=argv, distinct=None if workers else 2)
    running = subprocess.Popen(
        [sys.executable, "-c", script],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 100
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        if workers:
            os.killpg(running.pid, signal.SIGTERM)
        else:
            running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] >= 2
    assert (run / "weights.safetensors").exists()


def test_asked_to_stop_while_pairs_are_made(images: Path, tmp_path: Path) -> None:
    settings = MatcherSettings(images=images, output=tmp_path / "run", preset=MINIATURE, workers=0, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train(settings, stop=lambda: True)
    assert len(list((tmp_path / "run" / "chunks").glob("train-*"))) == 1, "of two"
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_presets_are_consistent() -> None:
    for name, preset in presets.MATCHER_PRESETS.items():
        assert preset.batch % 8 == 0 and preset.model.dim % (2 * preset.model.heads) == 0, name
        assert replace(preset.fit, minutes=None).rate(preset.fit.steps - 1) < 0.01 * preset.fit.learning_rate


def test_training_goes_on_from_given_weights(tiepoint, images: Path, finished: Path, tmp_path: Path) -> None:
    """With a learning rate of nearly nothing the matcher stays what it was."""
    weights_file = finished / "weights.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        fit, model = (
            replace(MINIATURE.fit, learning_rate=1e-12, weight_decay=0.0),
            replace(MINIATURE.model, match_threshold=0.7),
        )
        still = replace(MINIATURE, fit=fit, model=model)
        patch.setitem(presets.MATCHER_PRESETS, "tiny", still)
        ran = tiepoint("train", "matcher", "--images", images, "-o", tmp_path / "on", "--start", weights_file)
    assert ran.code == 0, ran.err
    (before, was), (after, became) = map(weights.load, (weights_file, tmp_path / "on" / "weights.safetensors"))
    assert before.keys() == after.keys() and was["match_threshold"] == became["match_threshold"] != 0.7
    for name in before:
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)
    assert json.loads((tmp_path / "on" / "config.json").read_text())["config"]["start"]
    with pytest.MonkeyPatch.context() as patch:
        wider = replace(MINIATURE, model=LightGlueConfig(dim=96, heads=2, layers=2))
        patch.setitem(presets.MATCHER_PRESETS, "tiny", wider)
        ran = tiepoint("train", "matcher", "--images", images, "-o", tmp_path / "wider", "--start", weights_file)
    assert ran.code == 2 and "dim is 64 there, 96 here" in ran.err


def test_a_short_training_makes_fewer_pairs_ahead() -> None:
    settings = MatcherSettings(images="photographs", output="run", preset="small")
    whole = settings.chosen()
    assert whole.distinct and whole.fit.minutes
    assert replace(settings, minutes=whole.fit.minutes / 4).chosen().distinct == whole.distinct // 4
    assert replace(settings, minutes=0.01).chosen().distinct == LEAST_CHUNKS
    assert replace(settings, minutes=0).chosen().distinct == whole.distinct  # no limit
    assert replace(settings, minutes=10 * whole.fit.minutes).chosen().distinct == whole.distinct
