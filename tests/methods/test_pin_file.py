"""The insert as PIN's authors publish it: read as torch would run it, and written so that it reads back."""

import jax
import numpy as np
import pytest

from input_pipeline.errors import UserError
from pin_jax import adapters, vlm
from pin_jax.methods.pin import Pin, sinusoid
from pin_jax.weights import torch_file
from tests.fixtures import tiny, torch_files
from tests.fixtures.tiny import random_params

CONFIG = tiny.flamingo_config()
TOKENS, WIDTH = CONFIG.media_tokens, CONFIG.vision.width
FROZEN = vlm.VLM(tiny.flamingo()[0], None, None, None, (), (), "")


def published(hidden=(6, 5), seed=0):
    """A file's two entries, with random weights."""
    rng, psi, fan_in = np.random.default_rng(seed), {}, 64
    for i, size in enumerate((*hidden, WIDTH)):
        psi[f"{3 * i}.weight"] = rng.normal(size=(size, fan_in)).astype(np.float32) * 0.3
        psi[f"{3 * i}.bias"] = rng.normal(size=size).astype(np.float32)
        if i < len(hidden):
            psi[f"{3 * i + 2}.weight"] = rng.normal(size=size).astype(np.float32) + 1
            psi[f"{3 * i + 2}.bias"] = rng.normal(size=size).astype(np.float32)
        fan_in = size
    return psi, np.asarray(sinusoid(TOKENS))[None]


def by_hand(psi, positions):
    """What torch's Sequential of Linear, SiLU, LayerNorm, ..., Linear makes of the positions."""
    x = positions[0].astype(np.float64)
    for i in range(max(int(key.split(".")[0]) for key in psi) + 1):
        if i % 3 == 0:
            x = x @ psi[f"{i}.weight"].T + psi[f"{i}.bias"]
        elif i % 3 == 1:
            x = x / (1 + np.exp(-x))
        else:
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
            x = x * psi[f"{i}.weight"] + psi[f"{i}.bias"]
    return x


def write(path, psi, positions, monkeypatch):
    held = {"mlp": torch_files.state_dict(psi), "pos_enc": torch_files.tensor(positions)}
    torch_files.write(path, held, monkeypatch)


@pytest.mark.parametrize("hidden", [(6, 5), (7,)])
def test_the_authors_file_is_read(tmp_path, monkeypatch, hidden):
    psi, positions = published(hidden)
    write(tmp_path / "pin.pt", psi, positions, monkeypatch)
    method, params = adapters.load(tmp_path / "pin.pt", FROZEN)
    assert not method.learned and method.hidden == hidden
    expected = by_hand(psi, positions)
    np.testing.assert_allclose(method.inserts(params).vision_output, expected, rtol=1e-5, atol=1e-5)
    write(tmp_path / "pin.pt", psi, positions + 0.1, monkeypatch)
    method, params = adapters.load(tmp_path / "pin.pt", FROZEN)
    assert method.learned
    expected = by_hand(psi, positions + 0.1)
    np.testing.assert_allclose(method.inserts(params).vision_output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("learned", [False, True])
def test_ours_is_written_as_theirs_and_reads_back(tmp_path, learned):
    method = Pin(CONFIG, learned=learned, hidden=(6, 5))
    params = random_params(jax.eval_shape(method.init, jax.random.key(0)))
    adapters.export(tmp_path / "pin.pt", method, params)
    held = torch_file.load(tmp_path / "pin.pt")
    assert set(held) == {"mlp", "pos_enc"} and held["pos_enc"].shape == (1, TOKENS, 64)
    expected = by_hand({key: np.asarray(value) for key, value in held["mlp"].items()}, np.asarray(held["pos_enc"]))
    np.testing.assert_allclose(method.inserts(params).vision_output, expected, rtol=1e-5, atol=1e-5)
    back, same = adapters.load(tmp_path / "pin.pt", FROZEN)
    assert back == method and jax.tree.all(jax.tree.map(np.array_equal, same, params))


def test_what_is_no_insert_of_this_vlm_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "pin.pt"
    psi, positions = published()
    write(path, psi, np.concatenate([positions, positions], 1), monkeypatch)
    with pytest.raises(UserError, match=rf"positions of {2 * TOKENS} tokens x 64, but this VLM's insert has {TOKENS}"):
        adapters.load(path, FROZEN)
    write(path, psi | {"6.weight": psi["6.weight"][1:], "6.bias": psi["6.bias"][1:]}, positions, monkeypatch)
    with pytest.raises(UserError, match=r"mlp.linear_2.weight -> linear_2/kernel: shape \(5, 15\), expected \(5, 16\)"):
        adapters.load(path, FROZEN)
    write(path, {key: value for key, value in psi.items() if key != "3.bias"}, positions, monkeypatch)
    with pytest.raises(UserError, match="no key fills: linear_1/bias"):
        adapters.load(path, FROZEN)
    write(path, psi | {"1.weight": np.ones(3, np.float32)}, positions, monkeypatch)
    with pytest.raises(UserError, match="no place for: mlp.1.weight"):
        adapters.load(path, FROZEN)
    torch_files.write(path, {"mlp": 3}, monkeypatch)
    with pytest.raises(UserError, match="no 'mlp' and 'pos_enc' in it"):
        adapters.load(path, FROZEN)


@pytest.mark.torch
def test_live_torch_both_ways(tmp_path):
    import torch
    from torch import nn

    layers = [nn.Linear(64, 6), nn.SiLU(), nn.LayerNorm(6), nn.Linear(6, 5), nn.SiLU(), nn.LayerNorm(5)]
    psi = nn.Sequential(*layers, nn.Linear(5, WIDTH))
    with torch.no_grad():
        for parameter in psi.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    positions = torch.from_numpy(np.array(sinusoid(TOKENS)))[None]
    torch.save({"mlp": psi.state_dict(), "pos_enc": positions}, tmp_path / "pin.pt")
    method, params = adapters.load(tmp_path / "pin.pt", FROZEN)
    expected = psi(positions)[0].detach().numpy()
    np.testing.assert_allclose(method.inserts(params).vision_output, expected, rtol=1e-5, atol=1e-5)
    adapters.export(tmp_path / "ours.pt", method, params)
    ours = torch.load(tmp_path / "ours.pt", weights_only=True)
    psi.load_state_dict(ours["mlp"])
    np.testing.assert_allclose(psi(ours["pos_enc"])[0].detach().numpy(), expected, rtol=1e-5, atol=1e-5)
