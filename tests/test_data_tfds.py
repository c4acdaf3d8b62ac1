"""TensorFlow Datasets, through real builders prepared on disk, without TensorFlow."""

import importlib.util
import json
import shutil
import socket
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from distill_jax import data

NAMES = ["very negative", "negative", "neutral", "positive", "very positive"]


@pytest.fixture(scope="module")
def rows(request) -> dict[str, list[tuple[str, int]]]:
    """The first sentences of each split of SST-5."""
    shared = request.getfixturevalue("shared_data")
    corpus = data.load(str(shared / "sst5"))
    return {
        name: list(zip(split.texts[:120], split.labels[:120].tolist(), strict=True))
        for name, split in corpus.splits.items()
    }


def builder_class(name, rows, *, features, supervised=None, registered=False):
    """A builder, which `tfds.builder` finds by its name if it is registered."""
    import tensorflow_datasets as library

    def info(self):
        return library.core.DatasetInfo(
            builder=self,
            supervised_keys=supervised,
            features=library.features.FeaturesDict(features(library.features)),
        )

    body = {
        "__doc__": "A slice of SST-5.",
        "__module__": __name__,
        "VERSION": library.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, downloads: {
            split: enumerate(examples) for split, examples in rows.items()
        },
        "_generate_examples": lambda self: None,
    }
    parents = (library.core.GeneratorBasedBuilder,)
    return type(name, parents, body, skip_registration=not registered)


def prepare(kind, folder: Path) -> Path:
    builder = kind(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def plain(features):
    return {
        "text": features.Text(),
        "label": features.ClassLabel(names=NAMES),
    }


def examples(pairs):
    return [{"text": text, "label": label} for text, label in pairs]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, rows) -> Path:
    """`sst5_slice` prepared on disk; the folder that holds it."""
    folder = tmp_path_factory.mktemp("tfds")
    made = {name: examples(pairs) for name, pairs in rows.items()}
    kind = builder_class(
        "Sst5Slice", made, features=plain, supervised=("text", "label")
    )
    prepare(kind, folder)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_prepared_corpus_is_read_without_its_code(prepared, rows, no_network):
    made = data.load("tfds:sst5_slice", data_dir=prepared)
    assert made.name == "tfds:sst5_slice" and made.label_names == tuple(NAMES)
    for name, split in made.splits.items():
        pairs = zip(split.texts, split.labels.tolist(), strict=True)
        assert sorted(pairs) == sorted(rows[name])
    assert made.notes == ()
    assert "sst5_slice/1.0.0" in made.provenance
    assert len(made.sha256) == 3 and all(len(v) == 64 for v in made.sha256.values())
    assert "tensorflow" not in sys.modules


def test_exact_version_can_be_named(prepared):
    assert len(data.load("tfds:sst5_slice:1.0.0", data_dir=prepared).train) == 120
    with pytest.raises(ValueError, match="no dataset of this name"):
        data.load("tfds:sst5_slice:2.0.0", data_dir=prepared)


def test_newest_version_is_read(prepared, tmp_path):
    shutil.copytree(prepared / "sst5_slice", tmp_path / "sst5_slice")
    old, new = (tmp_path / "sst5_slice" / v for v in ("1.0.0", "1.0.10"))
    shutil.copytree(old, new)
    info = json.loads((new / "dataset_info.json").read_text())
    info["version"] = "1.0.10"
    (new / "dataset_info.json").write_text(json.dumps(info))
    shutil.copytree(old, tmp_path / "sst5_slice" / "1.0.9")
    made = data.load("tfds:sst5_slice", data_dir=tmp_path)
    assert "sst5_slice/1.0.10" in made.provenance


def as_tfrecord(source: Path, target: Path) -> Path:
    """Copies prepared data as TFRecord files, the format that TFDS prefers."""
    from array_record.python.array_record_module import ArrayRecordReader

    shutil.copytree(source, target)
    for path in target.glob("*.array_record*"):
        reader = ArrayRecordReader(str(path))
        records = reader.read_all()
        reader.close()
        framed = b"".join(
            struct.pack("<Q", len(r)) + b"\0\0\0\0" + r + b"\0\0\0\0" for r in records
        )
        Path(str(path).replace("array_record", "tfrecord")).write_bytes(framed)
        path.unlink()
    info = json.loads((target / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        split["filepathTemplate"] = split["filepathTemplate"].replace(
            "array_record", "tfrecord"
        )
    (target / "dataset_info.json").write_text(json.dumps(info))
    return target


def test_tfrecord_is_read_without_tensorflow(prepared, tmp_path):
    folder = tmp_path / "sst5_slice" / "1.0.0"
    as_tfrecord(prepared / "sst5_slice" / "1.0.0", folder)
    ours = data.load("tfds:sst5_slice", data_dir=tmp_path)
    theirs = data.load("tfds:sst5_slice", data_dir=prepared)
    assert ours.splits["test"].texts == theirs.splits["test"].texts
    np.testing.assert_array_equal(ours.train.labels, theirs.train.labels)
    shard = next(folder.glob("*train*tfrecord*"))
    first = 16 + struct.unpack("<Q", shard.read_bytes()[:8])[0]
    shard.write_bytes(shard.read_bytes()[first:])
    with pytest.raises(ValueError, match="train holds 119 rows of the 120 it promises"):
        data.load("tfds:sst5_slice", data_dir=tmp_path)
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(ValueError, match="ends in the middle of a record"):
        data.load("tfds:sst5_slice", data_dir=tmp_path)


def test_unreadable_preparations_are_refused(prepared, tmp_path):
    shutil.copytree(prepared / "sst5_slice", tmp_path / "sst5_slice")
    folder = tmp_path / "sst5_slice" / "1.0.0"
    info = folder / "dataset_info.json"
    content = info.read_text()

    def refused(message):
        with pytest.raises(ValueError, match=f"tfds:sst5_slice: .*{message}"):
            data.load("tfds:sst5_slice", data_dir=tmp_path)

    assert content.count('"120"') == 3
    info.write_text(content.replace('"120"', '"150"'))
    refused("train are not whole .*120")
    info.write_text(content.replace('"array_record"', '"parquet"'))
    shard = next(folder.glob("*train*"))
    shard.rename(str(shard).replace("array_record", "parquet"))
    refused("prepared as parquet, which is not read")
    info.write_text(content)
    refused(f"prepared files are missing: {shard.name}")
    shard.write_bytes(b"not records")
    refused("train are not whole")


def test_features_are_found_and_unlabelled_test_is_carved(tmp_path, rows):
    made = {
        "train": [
            {"sentence": t, "coarse": int(la > 2), "fine": la, "idx": i}
            for i, (t, la) in enumerate(rows["train"])
        ],
        "test": [
            {"sentence": t, "coarse": -1, "fine": -1, "idx": i}
            for i, (t, _) in enumerate(rows["test"][:9])
        ],
        "extra": [
            {"sentence": t, "coarse": 0, "fine": 0, "idx": i}
            for i, (t, _) in enumerate(rows["test"][:3])
        ],
    }

    def features(kinds):
        return {
            "sentence": kinds.Text(),
            "coarse": kinds.ClassLabel(names=["no", "yes"]),
            "fine": kinds.ClassLabel(names=NAMES),
            "idx": np.int32,
        }

    prepare(builder_class("Odd", made, features=features), tmp_path)
    corpus = data.load("tfds:odd", data_dir=tmp_path)
    assert corpus.label_names == ("no", "yes")
    assert "label: coarse, of coarse, fine" in corpus.notes
    assert "test: discarded, its 9 rows have no labels" in corpus.notes
    assert "splits not read: extra" in corpus.notes
    assert sum(map(len, corpus.splits.values())) == 120
    fine = data.load("tfds:odd", data_dir=tmp_path, label_column="fine")
    assert fine.label_names == tuple(NAMES)
    with pytest.raises(ValueError, match="no text feature 'body'; it has 'sentence'"):
        data.load("tfds:odd", data_dir=tmp_path, text_column="body")


def test_pairs_of_texts_need_a_choice(tmp_path, rows):
    made = {
        "train": [
            {"question": t, "answer": t, "label": la} for t, la in rows["train"][:40]
        ]
    }

    def features(kinds):
        return {
            "question": kinds.Text(),
            "answer": kinds.Text(),
            "label": kinds.ClassLabel(names=NAMES),
        }

    prepare(builder_class("Pairs", made, features=features), tmp_path)
    with pytest.raises(ValueError, match="pass text_column, one of 'answer', 'quest"):
        data.load("tfds:pairs", data_dir=tmp_path)
    corpus = data.load("tfds:pairs", data_dir=tmp_path, text_column="question")
    assert len(corpus.train) < 40 and len(corpus.test) > 0


@pytest.mark.parametrize(
    "name",
    ["glue/sst2", "ag_news_subset", "imdb_reviews", "trec", "yelp_polarity_reviews"],
)
def test_stock_names_resolve_and_say_what_to_do(tmp_path, no_network, name):
    with pytest.raises(FileNotFoundError, match=f"tfds:{name}: not prepared under"):
        data.load(f"tfds:{name}", data_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_stock_name_is_read_where_it_is_prepared(prepared, tmp_path, no_network):
    """Found on disk first: this builder's own code is never asked."""
    as_tfrecord(prepared / "sst5_slice" / "1.0.0", tmp_path / "glue" / "sst2" / "2.0.0")
    for path in (tmp_path / "glue" / "sst2" / "2.0.0").glob("sst5_slice*"):
        path.rename(path.with_name(path.name.replace("sst5_slice", "glue")))
    info_path = tmp_path / "glue" / "sst2" / "2.0.0" / "dataset_info.json"
    info = json.loads(info_path.read_text())
    info |= {"name": "glue", "configName": "sst2", "version": "2.0.0"}
    info_path.write_text(json.dumps(info))
    made = data.load("tfds:glue/sst2", data_dir=tmp_path)
    assert len(made.train) == 120 and "glue/sst2/2.0.0" in made.provenance
    assert len(data.load("tfds:glue", data_dir=tmp_path).test) == 120
    shutil.copytree(tmp_path / "glue" / "sst2", tmp_path / "glue" / "cola")
    with pytest.raises(ValueError, match="name one: tfds:glue/cola, tfds:glue/sst2"):
        data.load("tfds:glue", data_dir=tmp_path)


def test_prepared_hugging_face_corpus_is_found(prepared, tmp_path, no_network):
    with pytest.raises(FileNotFoundError, match="not prepared under"):
        data.load("tfds:huggingface:sst5-slice", data_dir=tmp_path)
    made = data.load("tfds:huggingface:SST5-slice", data_dir=prepared)
    assert len(made.train) == 120


@pytest.mark.parametrize("name", ["glue/nosuch", "ag_news_subset:9.0.0"])
def test_unknown_configs_and_versions_are_refused(tmp_path, no_network, name):
    with pytest.raises(ValueError, match=f"tfds:{name}: .*(nosuch|9.0.0)"):
        data.load(f"tfds:{name}", data_dir=tmp_path)


def test_unknown_names_suggest_close_ones(tmp_path, no_network):
    with pytest.raises(ValueError, match="no dataset of this name.*ag_news_subset"):
        data.load("tfds:ag_news_subst", data_dir=tmp_path)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed"
)
def test_builders_that_need_tensorflow_say_so(tmp_path, no_network):
    with pytest.raises(ModuleNotFoundError, match="itself needs the package tensorf"):
        data.load("tfds:goemotions", data_dir=tmp_path)


def test_download_prepares_once(tmp_path, rows, no_network):
    with pytest.raises(ValueError, match="no dataset of this name"):
        data.load("tfds:fetched", data_dir=tmp_path, download=True)
    made = {name: examples(pairs) for name, pairs in rows.items()}
    kind = builder_class("Fetched", made, features=plain, registered=True)
    corpus = data.load("tfds:fetched", data_dir=tmp_path, download=True)
    assert len(corpus.train) == 120
    assert (tmp_path / "fetched" / "1.0.0" / "dataset_info.json").is_file()

    def fail(self):
        raise OSError("no route to host")

    kind.download_and_prepare = fail
    assert len(data.load("tfds:fetched", data_dir=tmp_path, download=True).test) == 120
    with pytest.raises(RuntimeError, match="tfds:fetched: could not be .*no route"):
        data.load("tfds:fetched", data_dir=tmp_path / "other", download=True)
