"""The nine networks: heads, sizes, weights from files, from the network, and refused."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import video

from tillwatch.errors import ConfigError, ModelError
from tillwatch.models import backbones
from tillwatch.models.architectures import check_input_size
from tillwatch.models.backbones import (
    BACKBONES,
    build_model,
    fetch_kinetics,
    head_of,
    identify_arch,
    read_state_dict,
)

NINE = [
    "r2plus1d_18",
    "r3d_18",
    "mc3_18",
    "s3d",
    "mvit_v1_b",
    "mvit_v2_s",
    "swin3d_t",
    "swin3d_s",
    "swin3d_b",
]


def save(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def kinetics_state() -> dict[str, torch.Tensor]:
    """A state dict of the shape that torchvision serves, with 400 classes."""
    return dict(video.r2plus1d_18(weights=None).state_dict())


def test_all_nine_of_torchvision_are_there() -> None:
    assert [name for name in BACKBONES if name != "tinynet"] == NINE


@pytest.mark.parametrize("arch", NINE)
def test_head_is_dropout_then_the_networks_own_last_layer(arch: str) -> None:
    with torch.device("meta"):  # shapes without a gigabyte of weights
        model = build_model(arch, 3, dropout=0.3, weights=None)
        known = BACKBONES[arch]
        original = known.builder(weights=None).get_submodule(known.head)
        out = model.eval()(torch.empty(2, 3, known.num_frames, known.crop, known.crop))
    dropout, last = head_of(model, arch)
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.3
    assert type(last) is type(original)
    assert isinstance(last.weight, torch.Tensor)
    assert last.weight.shape[0] == 3
    assert out.shape == (2, 3)


@pytest.mark.parametrize("arch", NINE)
def test_table_tells_the_truth_about_the_smallest_input(arch: str) -> None:
    known = BACKBONES[arch]
    smallest = (known.num_frames, known.crop) if known.fixed else (known.min_frames, known.min_crop)
    with torch.device("meta"):
        model = known.builder(weights=None).train()
        assert model(torch.empty(1, 3, smallest[0], smallest[1], smallest[1])).shape == (1, 400)
    check_input_size(arch, smallest[0], (smallest[1], smallest[1]))


@pytest.mark.parametrize("arch", ["r2plus1d_18", "r3d_18", "mc3_18"])
def test_one_pixel_less_than_the_least_fails_in_the_network(arch: str) -> None:
    side = BACKBONES[arch].min_crop - 1
    with torch.device("meta"), pytest.raises(ValueError, match="more than 1 value per channel"):
        BACKBONES[arch].builder(weights=None).train()(torch.empty(1, 3, 1, side, side))


@pytest.mark.parametrize(
    ("arch", "num_frames", "crop", "message"),
    [
        ("mvit_v2_s", 32, 224, "mvit_v2_s takes 16 frames of 224x224 and nothing else, not 32 of 224x224"),
        ("mvit_v1_b", 16, 112, "mvit_v1_b takes 16 frames of 224x224"),
        ("s3d", 13, 224, "s3d takes at least 14 frames; --num-frames is 13"),
        ("s3d", 32, 112, "s3d takes at least 224x224 pixels; --crop is 112x112"),
        ("r2plus1d_18", 32, 16, "r2plus1d_18 takes at least 17x17 pixels"),
    ],
)
def test_sizes_a_network_cannot_take_are_refused_by_name(arch: str, num_frames: int, crop: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_input_size(arch, num_frames, (crop, crop))


def test_frames_and_sizes_are_those_the_networks_are_meant_for() -> None:
    sizes = {arch: (known.num_frames, known.resize, known.crop) for arch, known in BACKBONES.items()}
    assert sizes["r2plus1d_18"] == sizes["r3d_18"] == sizes["mc3_18"] == (32, 128, 112)
    assert sizes["s3d"] == sizes["swin3d_t"] == sizes["swin3d_s"] == sizes["swin3d_b"] == (32, 256, 224)
    assert sizes["mvit_v1_b"] == sizes["mvit_v2_s"] == (16, 256, 224)


@pytest.mark.parametrize("arch", NINE)
def test_mean_and_deviation_are_the_weights_own(arch: str) -> None:
    own = BACKBONES[arch].weights.transforms()
    assert BACKBONES[arch].mean == tuple(own.mean)
    assert BACKBONES[arch].std == tuple(own.std)


def test_unknown_network_lists_the_names() -> None:
    with pytest.raises(ConfigError, match=r"'r2plus1d'.*r2plus1d_18.*Did you mean 'r2plus1d_18'"):
        build_model("r2plus1d", weights=None)


@pytest.mark.parametrize(("num_classes", "dropout"), [(1, 0.5), (0, 0.5), (2, 1.0), (2, -0.1)])
def test_impossible_heads_are_refused(num_classes: int, dropout: float) -> None:
    with pytest.raises(ConfigError):
        build_model("tinynet", num_classes, dropout, None)


def test_torchvision_weights_load_into_the_backbone_and_leave_the_head_new(
    tmp_path: Path, kinetics_state: dict[str, torch.Tensor]
) -> None:
    path = save(kinetics_state, tmp_path / "kinetics.pth")
    model = build_model("r2plus1d_18", 400, weights=path)  # 400 classes: the head would fit, and must not be taken
    state = model.state_dict()
    assert all(torch.equal(state[key], kinetics_state[key]) for key in kinetics_state if not key.startswith("fc."))
    assert not torch.equal(state["fc.1.weight"], kinetics_state["fc.weight"])


def test_tillwatch_weights_keep_their_head_if_it_has_as_many_classes(tmp_path: Path) -> None:
    source = build_model("tinynet", 3, weights=None)
    path = save(source.state_dict(), tmp_path / "model.pth")
    same, other = build_model("tinynet", 3, weights=tmp_path), build_model("tinynet", 2, weights=path)
    assert torch.equal(same.state_dict()["fc.1.weight"], source.state_dict()["fc.1.weight"])
    assert other.state_dict()["fc.1.weight"].shape == (2, 8)
    assert torch.equal(other.state_dict()["stem.0.weight"], source.state_dict()["stem.0.weight"])


def test_weights_of_another_network_are_refused_by_its_name(
    tmp_path: Path, kinetics_state: dict[str, torch.Tensor]
) -> None:
    path = save(kinetics_state, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"are for r2plus1d_18, not for r3d_18; say --arch r2plus1d_18"):
        build_model("r3d_18", weights=path)
    path = save({"layer.weight": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=r"are not for tinynet: \d+ tensors missing, 1 unknown"):
        build_model("tinynet", weights=path)


def test_a_state_dict_tells_its_network(kinetics_state: dict[str, torch.Tensor]) -> None:
    assert identify_arch(kinetics_state) == "r2plus1d_18"
    assert identify_arch({"a": torch.zeros(1)}) is None


class _Marker:
    """Unpickling this makes a folder: proof that code ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_pickles_with_code_are_refused_and_never_executed(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "evil.pth"
    payload = {"fc.weight": _Marker(tmp_path / "executed")}
    if writer == "torch":
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload))
    with pytest.raises(ModelError, match="holding code, which is never executed"):
        build_model("tinynet", weights=path)
    assert not (tmp_path / "executed").exists()
    torch.load(path, weights_only=False) if writer == "torch" else pickle.loads(path.read_bytes())
    assert (tmp_path / "executed").exists(), "the trap works, so not having sprung it means something"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "hold a list, not a state dict"),
        ({"epoch": 3, "w": torch.zeros(1)}, "more than named tensors"),
        ({}, "hold a dict, not a state dict"),
    ],
)
def test_files_that_are_no_state_dict_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_state_dict(save(content, tmp_path / "w.pth"))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = save({"w": torch.zeros(1000)}, tmp_path / "w.pth")
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(ModelError, match="are refused"):
        read_state_dict(path)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(address, folder) of a web server on loopback that serves the folder."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()
    server.server_close()


def test_weights_are_fetched_checked_and_cached(
    served: tuple[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kinetics_state: dict[str, torch.Tensor],
) -> None:
    address, folder = served
    saved = save(kinetics_state, folder / "plain.pth")
    name = f"r2plus1d_18-{hashlib.sha256(saved.read_bytes()).hexdigest()[:8]}.pth"
    saved.rename(folder / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(backbones, "weights_url", lambda arch: f"{address}/{name}")
    model = build_model("r2plus1d_18", 2)  # kinetics400 is the default
    assert torch.equal(model.state_dict()["stem.0.weight"], kinetics_state["stem.0.weight"])
    cached = tmp_path / "torch" / "hub" / "checkpoints" / name
    assert cached.is_file()
    (folder / name).unlink()
    assert fetch_kinetics("r2plus1d_18") == cached, "the second time nothing is fetched"


def test_weights_with_the_wrong_hash_are_not_kept(
    served: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = served
    name = "tinynet-01234567.pth"
    save({"w": torch.zeros(1)}, folder / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(backbones, "weights_url", lambda arch: f"{address}/{name}")
    with pytest.raises(ModelError, match="invalid hash value"):
        fetch_kinetics("tinynet")
    assert list((tmp_path / "torch" / "hub" / "checkpoints").iterdir()) == []


def test_without_a_network_one_line_says_which_file_to_place_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(ModelError) as caught:  # nothing listens on port 9 of loopback
        build_model("tinynet", 2)
    message = str(caught.value)
    assert "place tinynet-00000000.pth in" in message
    assert str(tmp_path / "torch" / "hub" / "checkpoints") in message
    assert "--weights none" in message
    assert "\n" not in message
