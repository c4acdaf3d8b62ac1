"""An artefact is read back as written, and a damaged one is never read as whole."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import artifact
from distill_jax.types import Distilled

ROOT = Path(__file__).parents[1]
S, B, L, D, C, E = 2, 3, 4, 5, 2, 3


def make_distilled(seed=0):
    kx, ky, kl = jax.random.split(jax.random.key(seed), 3)
    return Distilled(
        jax.random.normal(kx, (S, B, L, D), jnp.float32),
        3 * jax.random.normal(ky, (S, B, C), jnp.float32),
        jax.random.normal(kl, (E, S), jnp.float32) - 2,
    )


def make_card(**changes):
    return {
        "corpus": {"name": "rotten_tomatoes", "sha256": {"text": "ab" * 32}},
        "label_names": ["neg", "pos"],
        "vocabulary": {"sha256": "cd" * 32, "vectors": "glove 6B 50d"},
        "model": {"name": "text_cnn", "settings": {"widths": (2, 3)}},
        "preprocessing": {"tokeniser": "words", "length": L},
        "results": {"accuracy": np.float32(0.75)},
        **changes,
    }


@pytest.fixture
def saved(tmp_path):
    return artifact.save(
        tmp_path / "run" / "set", artifact.from_distilled(make_distilled()), make_card()
    )


def test_sentences_of_their_own_lengths_keep_them(tmp_path):
    one = make_distilled()
    x = np.array(one.x)
    x[0, 1, 2:] = 0
    ragged = one.replace(x=jnp.asarray(x), ragged=True)
    arrays = artifact.from_distilled(ragged)
    expected = np.ones((S, B, L))
    expected[0, 1, 2:] = 0
    np.testing.assert_array_equal(arrays["mask"], expected)
    again = artifact.to_distilled(
        artifact.load(artifact.save(tmp_path / "set", arrays, make_card()))
    )
    assert (
        again.ragged
        and not artifact.to_distilled(
            artifact.Artifact(artifact.from_distilled(one), {})
        ).ragged
    )
    np.testing.assert_array_equal(again.batches.mask, expected)
    assert "mask" not in artifact.from_distilled(one)


def test_loads_what_was_saved(saved):
    loaded = artifact.load(saved)
    again = artifact.to_distilled(loaded)
    for old, new in zip(
        jax.tree.leaves(make_distilled()), jax.tree.leaves(again), strict=True
    ):
        assert new.dtype == old.dtype
        np.testing.assert_array_equal(new, old)
    np.testing.assert_allclose(loaded.arrays["y"].sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(loaded.arrays["lr"], again.lr, rtol=1e-6)
    card = loaded.card
    assert card["results"] == {"accuracy": 0.75}
    assert card["schedule"]["num_minibatches"] == S
    assert card["schedule"]["num_passes"] == E
    assert card["schedule"]["examples_per_minibatch"] == B
    np.testing.assert_allclose(card["schedule"]["step_sizes"], again.lr, rtol=1e-6)
    assert card["versions"]["jax"] == jax.__version__
    content = (saved / "distilled.safetensors").read_bytes()
    assert card["tensors"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert sorted(p.name for p in saved.iterdir()) == [
        "card.json",
        "distilled.safetensors",
    ]


def test_numpy_alone_reads_it(saved):
    content = (saved / "distilled.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    entry = json.loads(content[8:start])["x"]
    first, last = entry["data_offsets"]
    x = np.frombuffer(content[start + first : start + last], "<f4")
    np.testing.assert_array_equal(x.reshape(entry["shape"]), make_distilled().x)


def test_bfloat16_is_stored_as_float32(tmp_path):
    distilled = jax.tree.map(lambda a: a.astype(jnp.bfloat16), make_distilled())
    arrays = artifact.from_distilled(distilled)
    arrays["y"] = np.full_like(arrays["y"], 0.5)
    artifact.save(tmp_path, arrays, make_card())
    x = artifact.load(tmp_path).arrays["x"]
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, distilled.x.astype(jnp.float32))


def test_saving_again_replaces_the_set_and_keeps_other_files(saved):
    (saved / "figure.svg").write_text("kept")
    arrays = artifact.from_distilled(make_distilled(1))
    artifact.save(saved, arrays, make_card())
    np.testing.assert_array_equal(artifact.load(saved).arrays["x"], arrays["x"])
    assert (saved / "figure.svg").read_text() == "kept"


def test_truncated_tensors(saved):
    path = saved / "distilled.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="truncated: .* bytes; copy it again"):
        artifact.load(saved)


def test_changed_tensors(saved):
    path = saved / "distilled.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not the file its card describes"):
        artifact.load(saved)


@pytest.mark.parametrize("name", ["card.json", "distilled.safetensors"])
def test_missing_file(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        artifact.load(saved)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        artifact.load(tmp_path / "absent")


def edit_card(folder, edit):
    path = folder / "card.json"
    card = json.loads(path.read_text())
    edit(card)
    path.write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["tensors"]["shapes"].update(x=[9, 9, 9, 9]), "does not fit its"),
        (lambda c: c["label_names"].append("third"), "names 3 labels, y has 2"),
        (lambda c: c["corpus"].pop("sha256"), "lacks corpus.sha256"),
        (lambda c: c.update(format="distill_jax/9"), "update distill_jax"),
        (lambda c: c.pop("tensors"), "damaged"),
        (lambda c: c["tensors"].pop("bytes"), "damaged"),
    ],
)
def test_card_that_does_not_fit(saved, edit, message):
    edit_card(saved, edit)
    with pytest.raises(ValueError, match=message):
        artifact.load(saved)


def test_card_cut_short(saved):
    path = saved / "card.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="damaged"):
        artifact.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("lr"), "lacks lr"),
        (lambda a: a.update(lr=a["lr"][:, :1]), r"lr must be \[E, 2\], got \[3, 1\]"),
        (lambda a: a.update(x=a["x"][0]), r"x must be \[S, B, L, D\]"),
        (lambda a: a.update(x=a["x"] * np.float32("nan")), "x must be finite"),
        (lambda a: a.update(y=a["y"] + 1), "sum to 1"),
        (lambda a: a.update(lr=-a["lr"]), "lr must not be negative"),
    ],
)
def test_arrays_that_do_not_fit(saved, change, message):
    before = artifact.load(saved)
    arrays = artifact.from_distilled(make_distilled(1))
    change(arrays)
    with pytest.raises(ValueError, match=message):
        artifact.save(saved, arrays, make_card())
    np.testing.assert_array_equal(artifact.load(saved).arrays["x"], before.arrays["x"])


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_card_must_be_json(tmp_path, value):
    arrays = artifact.from_distilled(make_distilled())
    with pytest.raises(ValueError, match="JSON values only"):
        artifact.save(tmp_path / "set", arrays, make_card(results={"accuracy": value}))
    assert not (tmp_path / "set").exists()


FULL_DISK = """
import resource, sys
import numpy as np
from distill_jax import artifact

old = artifact.load(sys.argv[1])
arrays = {k: np.repeat(v, 50, axis=2) if k == "x" else v
          for k, v in old.arrays.items()}
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    artifact.save(sys.argv[1], arrays, old.card)
except OSError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limit to set")
def test_full_disk_leaves_the_old_one(saved):
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(saved)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 7, run.stderr
    assert "was not saved" in run.stdout and "unchanged" in run.stdout
    np.testing.assert_array_equal(artifact.load(saved).arrays["x"], make_distilled().x)
    assert len(list(saved.iterdir())) == 2


@pytest.mark.parametrize("stop_at", [0, 1, 2, 3])
def test_stopped_at_any_moment_leaves_a_whole_one(saved, monkeypatch, stop_at):
    """Power lost before the n-th of the two writes and the two renames."""
    calls = iter(range(4))
    real_fsync, real_replace = os.fsync, os.replace

    class PowerLoss(BaseException):
        pass

    def stopping(real):
        def call(*args):
            if next(calls) == stop_at:
                raise PowerLoss
            return real(*args)

        return call

    arrays = artifact.from_distilled(make_distilled(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", stopping(real_fsync))
        patch.setattr(os, "replace", stopping(real_replace))
        with pytest.raises(PowerLoss):
            artifact.save(saved, arrays, make_card(label_names=["bad", "good"]))
    loaded = artifact.load(saved)
    new = stop_at == 3
    expected = arrays["x"] if new else make_distilled().x
    np.testing.assert_array_equal(loaded.arrays["x"], expected)
    assert loaded.card["label_names"] == (["bad", "good"] if new else ["neg", "pos"])
    artifact.save(saved, arrays, make_card())
    assert len(list(saved.iterdir())) == 2


@pytest.mark.parametrize("fails_at", [0, 1])
def test_half_a_file_is_not_left_behind(saved, monkeypatch, fails_at):
    calls = iter(range(2))

    def full(_):
        if next(calls) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device.*unchanged"):
            artifact.save(
                saved, artifact.from_distilled(make_distilled(1)), make_card()
            )
    assert len(list(saved.iterdir())) == 2
    artifact.load(saved)


def test_the_torch_example_trains(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is the extra torch")
    distilled = make_distilled().replace(raw_lr=jnp.full((20, S), -3.0, jnp.float32))
    artifact.save(tmp_path, artifact.from_distilled(distilled), make_card())
    run = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "train_torch.py"), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    before, after = (float(line.split(": ")[1]) for line in run.stdout.splitlines())
    floor = -(distilled.y * jnp.log(distilled.y)).sum(-1).mean()
    assert after < before - 0.5 * (before - floor)
