"""Injected and published label noise: rates, reproducibility, formats, errors."""

import json

import numpy as np
import pytest
import torch

from hubmodels.data import inject_label_noise, load_cifar_n_labels, load_image_dataset
from hubmodels.data.label_noise import (
    CIFAR100_SUPERCLASSES,
    cifar100_map,
    load_noisy_labels,
    noise_cache_path,
    save_noisy_labels,
)

LABELS = np.arange(5000) % 10


def test_symmetric_noise_may_draw_the_true_class_unless_told_not_to():
    usual = inject_label_noise(LABELS, "sym", 0.5, 10, seed=0).report
    exclusive = inject_label_noise(LABELS, "sym", 0.5, 10, seed=0, sym_exclusive=True).report
    assert usual.realised_rate == pytest.approx(0.45, abs=0.02)
    assert exclusive.realised_rate == 0.5
    assert (usual.nominal_rate, usual.mode) == (0.5, "sym")
    assert usual.transitions.sum() == 5000
    assert np.trace(usual.transitions) == round(5000 * (1 - usual.realised_rate))


@pytest.mark.parametrize("mode", ["sym", "asym", "instance", "transition"])
def test_a_seed_determines_the_labels(mode):
    features = np.random.default_rng(0).random((5000, 4))
    matrix = 0.6 * np.eye(10) + 0.04
    rate = None if mode == "transition" else 0.4
    draws = [
        inject_label_noise(torch.from_numpy(LABELS), mode, rate, 10, seed, features=features, transition=matrix)
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(draws[0].labels, draws[1].labels)
    assert not np.array_equal(draws[0].labels, draws[2].labels)
    assert np.array_equal(draws[0].flipped, draws[0].labels != LABELS)
    assert draws[0].labels.dtype == np.int64


def test_asymmetric_noise_follows_the_map():
    noise = inject_label_noise(LABELS, "asym", 0.4, 10, seed=0)
    moved = {(int(a), int(b)) for a, b in zip(LABELS[noise.flipped], noise.labels[noise.flipped], strict=True)}
    assert moved == {(9, 1), (2, 0), (4, 7), (3, 5), (5, 3)}
    assert noise.report.realised_rate == pytest.approx(0.2, abs=0.02)
    for class_map in ({0: 2}, {"0": 2}, {"0": "2"}, {np.int64(0): np.int8(2)}):
        own = inject_label_noise([0, 1, 2] * 100, "asym", 1.0, 3, seed=0, class_map=class_map)
        assert own.labels.tolist() == [2, 1, 2] * 100


def test_cifar100_noise_stays_inside_of_superclasses():
    groups = np.array(CIFAR100_SUPERCLASSES)
    assert np.bincount(groups).tolist() == [5] * 20
    wrong = cifar100_map()
    assert all(groups[a] == groups[b] and a != b for a, b in wrong.items())
    assert sorted(wrong.values()) == list(range(100))
    assert wrong[4] == 30 and wrong[95] == 4  # beaver -> dolphin, ..., whale -> beaver
    noise = inject_label_noise(np.arange(100).repeat(20), "asym", 0.5, 100, seed=0)
    assert noise.report.realised_rate == 0.5


def test_a_transition_matrix_is_realised():
    matrix = [[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]
    transitions = inject_label_noise(
        np.arange(30000) % 3, "transition", None, 3, 0, transition=matrix
    ).report.transitions
    np.testing.assert_allclose(transitions / 10000, matrix, atol=0.02)


def test_instance_noise_depends_on_the_image():
    generator = np.random.default_rng(1)
    features = generator.random((20, 6)).repeat(400, axis=0)
    labels = np.zeros(8000, dtype=np.int64)
    noise = inject_label_noise(labels, "instance", 0.3, 5, seed=0, features=features)
    assert noise.report.realised_rate == pytest.approx(0.3, abs=0.03)
    # Copies of one image mostly go to the same wrong classes, other images to others.
    shares = [np.bincount(part[part > 0], minlength=5) / (part > 0).sum() for part in noise.labels.reshape(20, 400)]
    assert np.std(shares, axis=0).max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "pair"}, r"mode must be one of \('sym', 'asym', 'transition', 'instance'\), got 'pair'"),
        ({"rate": 1.2}, r"rate must be in \[0, 1\], got 1.2"),
        ({"rate": None}, r"rate must be in \[0, 1\], got None"),
        ({"labels": [0, 1, 12]}, r"labels must be in 0..9, got 12 at index 2"),
        ({"labels": [0, -1]}, r"got -1 at index 1"),
        ({"labels": [0.5, 1.0]}, r"labels must be integers of shape \[N\], got float64"),
        ({"mode": "asym", "num_classes": 14}, r"maps for CIFAR-10 and CIFAR-100; for 14 classes give class_map"),
        ({"mode": "asym", "class_map": {0: 10}}, r"class_map must hold classes in 0..9, got 10"),
        ({"mode": "asym", "class_map": {"cat": 1}}, r"class_map must hold classes in 0..9, got 'cat'"),
        ({"mode": "asym", "class_map": {0: 1.5}}, r"class_map must hold classes in 0..9, got 1.5"),
        ({"rng": "numpy"}, r"rng must be 'python', got 'numpy'"),
        ({"mode": "transition"}, r"mode 'transition' needs transition"),
        ({"mode": "transition", "transition": np.eye(3)}, r"shape \(10, 10\), got \(3, 3\)"),
        ({"mode": "transition", "transition": 0.5 * np.eye(10)}, r"rows sum to 1, row 0 sums to 0.5"),
        (
            {"mode": "transition", "num_classes": 2, "labels": [0, 1], "transition": [[1.1, -0.1], [0, 1]]},
            r"transition must be probabilities, got -0.1 in row 0, column 1",
        ),
        ({"mode": "transition", "transition": np.full((10, 10), np.nan)}, r"probabilities, got nan in row 0, column 0"),
        ({"mode": "instance"}, r"mode 'instance' needs features"),
        ({"mode": "instance", "features": np.ones((3, 2))}, r"features must have shape \[5000, D\], got \[3, 2\]"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        inject_label_noise(**{"labels": LABELS, "mode": "sym", "rate": 0.5, "num_classes": 10, "seed": 0} | arguments)


def test_the_generator_can_be_named():
    usual, named = (inject_label_noise(LABELS, "sym", 0.5, 10, 0, **how) for how in ({}, {"rng": "python"}))
    assert np.array_equal(usual.labels, named.labels)


def test_the_official_cache_is_written_and_read(tmp_path):
    path = noise_cache_path(tmp_path, 0.5, "sym")
    assert path.name == "0.5_sym.json" and noise_cache_path(tmp_path, 0.25, "asym").name == "0.25_asym.json"
    labels = inject_label_noise(LABELS, "sym", 0.5, 10, seed=0).labels
    save_noisy_labels(labels, path)
    assert json.loads(path.read_text()) == labels.tolist()
    assert np.array_equal(load_noisy_labels(path, 5000, 10), labels)
    with pytest.raises(FileExistsError, match="noisy labels are not overwritten"):
        save_noisy_labels(labels, path)
    with pytest.raises(ValueError, match=r"a list of 10 labels, one per image, found 5000 labels"):
        load_noisy_labels(path, 10, 10)
    with pytest.raises(ValueError, match=r"labels must be in 0..4"):
        load_noisy_labels(path, 5000, 5)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not a JSON list of labels"):
        load_noisy_labels(path, 5000, 10)


@pytest.fixture
def human(tmp_path):
    """A file such as the published one of CIFAR-10N, of 50,000 labels."""
    clean = np.arange(50000) % 10
    path = tmp_path / "CIFAR-10_human.pt"
    torch.save({"clean_label": clean, "worse_label": (clean + 1) % 10, "random_label1": clean.astype(np.int32)}, path)
    return path


def test_human_labels(human):
    labels = load_cifar_n_labels(human, "worse_label", np.arange(50000) % 10)
    assert labels.dtype == np.int64 and labels[:3].tolist() == [1, 2, 3]
    assert load_cifar_n_labels(human, "random_label1")[:3].tolist() == [0, 1, 2]


def test_human_labels_that_do_not_fit_are_refused(human, tmp_path):
    with pytest.raises(ValueError, match="has no labels 'aggre_label'; it has clean_label, worse_label"):
        load_cifar_n_labels(human, "aggre_label")
    with pytest.raises(ValueError, match="50000 of 50000 true labels differ"):
        load_cifar_n_labels(human, "worse_label", (np.arange(50000) + 3) % 10)
    with pytest.raises(ValueError, match=r"must be 20000 whole numbers, one per image, got int64 of shape \[50000\]"):
        load_cifar_n_labels(human, "worse_label", np.zeros(20000, np.int64))
    torch.save({"worse_label": np.zeros(7, np.int64)}, tmp_path / "short.pt")
    with pytest.raises(ValueError, match=r"must be 50000 whole numbers, one per image, got int64 of shape \[7\]"):
        load_cifar_n_labels(tmp_path / "short.pt", "worse_label")


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_human_labels_of_a_table(suffix, human):
    arrays = {name: load_cifar_n_labels(human, name) for name in ("clean_label", "worse_label")}
    path = human.with_suffix(suffix)
    if suffix == ".npz":
        np.savez(path, **arrays)
    else:
        rows = np.stack(list(arrays.values()), axis=1)
        np.savetxt(path, rows, fmt="%d", delimiter=",", header=",".join(arrays), comments="")
    labels = load_cifar_n_labels(path, "worse_label", arrays["clean_label"])
    assert labels.dtype == np.int64 and np.array_equal(labels, arrays["worse_label"])
    with pytest.raises(ValueError, match="has no labels 'aggre_label'; it has clean_label, worse_label"):
        load_cifar_n_labels(path, "aggre_label")


def test_other_files_of_human_labels_are_refused(tmp_path):
    np.save(tmp_path / "labels.npy", np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=r"labels\.npy"):
        load_cifar_n_labels(tmp_path / "labels.npy", "worse_label")
    np.savez(tmp_path / "objects.npz", worse_label=np.array([Exploit()], dtype=object))
    (tmp_path / "text.npz").write_text("worse_label")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "array.npz").write_bytes((tmp_path / "labels.npy").read_bytes())
    for name in ("objects", "text", "empty", "array"):
        with pytest.raises(ValueError, match=f"{name}.npz must be an .npz file of arrays of numbers"):
            load_cifar_n_labels(tmp_path / f"{name}.npz", "worse_label")
    (tmp_path / "gaps.csv").write_text("clean_label,worse_label\n0,\n1,2\n")
    with pytest.raises(ValueError, match=r"worse_label of .*gaps.csv must be 2 whole numbers, .* got object"):
        load_cifar_n_labels(tmp_path / "gaps.csv", "worse_label", [0, 1])
    (tmp_path / "names.csv").write_text("clean_label,worse_label\ncat,0\ndog,1\n")
    with pytest.raises(ValueError, match="2 of 2 true labels differ"):
        load_cifar_n_labels(tmp_path / "names.csv", "worse_label", [0, 1])


class Exploit:
    """What a malicious file would hold."""

    def __reduce__(self):
        return print, ("executed",)


def test_a_file_with_code_is_refused(tmp_path, capsys):
    torch.save({"worse_label": Exploit()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"refers to builtins.print|refers to __builtin__.print"):
        load_cifar_n_labels(tmp_path / "bad.pt", "worse_label")
    assert "executed" not in capsys.readouterr().out


def test_a_data_set_takes_noisy_labels_and_keeps_the_true_ones():
    images = load_image_dataset("fashion-mnist-small", "train")
    noise = inject_label_noise(images.labels, "sym", 0.5, 10, seed=0)
    noisy = images.with_noisy_labels(noise.labels)
    assert images.clean_labels is None
    part = noisy.subset(100, seed=1)
    for data in (noisy, part):
        positions = data.indices
        assert data.labels.tolist() == noise.labels[positions].tolist()
        assert data.clean_labels.tolist() == images.labels[positions].tolist()
        assert data[3]["label"] == data.labels[3]
    renamed = noisy.relabelled([9, *range(9)], [str(number) for number in range(10)])
    assert torch.equal((renamed.labels + 1) % 10, noisy.labels)
    assert torch.equal((renamed.clean_labels + 1) % 10, noisy.clean_labels)
    with pytest.raises(ValueError, match="expected 2000 labels, one per image, got 5"):
        images.with_noisy_labels(np.zeros(5))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 10\)"):
        images.with_noisy_labels(np.full(2000, 11))


def test_lists_of_class_names(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(["dog", "cat"]))
    assert load_noisy_labels(path, 2, 2, ["cat", "dog"]).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"labels.json has labels that are no class: dog \(classes: cat, emu\)"):
        load_noisy_labels(path, 2, 2, ["cat", "emu"])
    path.write_text("[0, 9]")
    with pytest.raises(ValueError, match=r"labels.json: labels must be in 0..1, got 9 at index 1"):
        load_noisy_labels(path, 2, 2)
