"""Key maps are reversible and strict in both directions."""

import pytest
import torch
from hubmodels.conversion.checkpoint_reading import ConversionError
from hubmodels.conversion.key_mapping import KeyMap, check_identical, check_keys
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

KEY_MAP = KeyMap(
    [
        WeightRenaming(r"^blocks\.", r"^vit.layers."),
        WeightRenaming(r"^decoder_blocks\.", r"^decoder.layers."),
        WeightConverter([r"\.qkv\."], [".q_proj.", ".k_proj.", ".v_proj."], operations=[Chunk(dim=0)]),
    ]
)


def official_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        f"{stack}.{index}.{name}": shape
        for stack in ("blocks", "decoder_blocks")
        for index in (0, 1, 10)
        for name, shape in (("qkv.weight", (12, 4)), ("qkv.bias", (12,)), ("fc.weight", (8, 4)))
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_names_are_mapped_and_fused_tensors_split():
    official = official_state()
    ours = KEY_MAP.to_ours(official)
    assert len(ours) == len(official) + 2 * 2 * 6
    assert torch.equal(ours["vit.layers.10.k_proj.weight"], official["blocks.10.qkv.weight"][4:8])
    assert torch.equal(ours["decoder.layers.1.v_proj.bias"], official["decoder_blocks.1.qkv.bias"][8:])
    assert ours["vit.layers.0.fc.weight"] is official["blocks.0.fc.weight"]


def test_round_trip_keeps_order_types_and_bits():
    official = official_state()
    official["blocks.0.fc.weight"][0, 0] = float("nan")
    official["blocks.0.qkv.bias"][0] = -0.0
    restored = KEY_MAP.to_official(KEY_MAP.to_ours(official))
    assert list(restored) == list(official)
    check_identical(official, restored)


def test_round_trip_does_not_depend_on_the_order_of_the_parts():
    ours = KEY_MAP.to_ours(official_state())
    check_identical(official_state(), KEY_MAP.to_official({name: ours[name] for name in sorted(ours, reverse=True)}))


def test_two_keys_on_one_name_are_refused():
    with pytest.raises(ConversionError, match=r"two keys .* 'vit\.layers\.0\.a'"):
        KEY_MAP.to_ours({"blocks.0.a": torch.zeros(1), "vit.layers.0.a": torch.zeros(1)})


@pytest.mark.parametrize("replacement", [torch.zeros(1), torch.tensor([-0.0, 1.0]), torch.tensor([0, 1])])
def test_identity_check_sees_shape_sign_and_type(replacement):
    with pytest.raises(ConversionError):
        check_identical({"a": torch.tensor([0.0, 1.0])}, {"a": replacement})


def test_unknown_missing_and_wrong_keys_are_all_listed():
    expected = {"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(2)}
    with pytest.raises(ConversionError) as error:
        check_keys(expected, {"a": torch.zeros(2), "b": torch.zeros(3), "d": torch.zeros(2)})
    assert "unknown keys: d" in str(error.value)
    assert "missing keys: c" in str(error.value)
    assert "wrong shapes: b (found [3], expected [2])" in str(error.value)


def test_long_lists_are_shortened():
    with pytest.raises(ConversionError, match=r"and 988 more"):
        check_keys({}, {f"key{index}": torch.zeros(1) for index in range(1000)})
