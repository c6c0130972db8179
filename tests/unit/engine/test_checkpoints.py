"""What is known of a folder of weights before anybody loads it."""

import json
from pathlib import Path
from typing import Any

import pytest

from seer_sgl.engine.checkpoints import (
    Stored,
    UnfitError,
    is_folder_name,
    local_folder,
    misfit,
    other_shape,
    read_checkpoint,
    read_tensors,
)
from seer_sgl.smallmodel import WEIGHTS
from tests.unit.engine.stored import CONFIG, SHAPES, lock, write_checkpoint, write_header, write_tensors

NAME_ONE = "name one that this engine's machine can read"


def unfit(folder: Path, load_format: str | None = None) -> str:
    with pytest.raises(UnfitError) as raised:
        read_checkpoint(folder, load_format)
    return str(raised.value)


def test_a_real_checkpoint_is_read_as_it_is() -> None:
    found = read_checkpoint(WEIGHTS)
    assert found.tensors is not None
    assert found.tensors["model.embed_tokens.weight"] == Stored((432, 256), "model.safetensors")
    assert found.config["architectures"] == ["Qwen2ForCausalLM"]
    assert misfit(found, found) == ""


def test_an_index_tells_the_files(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "model.safetensors").unlink()
    for number, (name, shape) in enumerate(SHAPES.items()):
        write_tensors(folder / f"part-{number}.safetensors", {name: shape})
    write_tensors(folder / "consolidated.safetensors", SHAPES)
    index = folder / "model.safetensors.index.json"
    weight_map = {name: f"part-{number}.safetensors" for number, name in enumerate(SHAPES)}
    index.write_text(json.dumps({"weight_map": weight_map}))
    found = read_checkpoint(folder)
    assert found.tensors == {n: Stored(s, weight_map[n]) for n, s in SHAPES.items()}

    index.write_text(json.dumps({"weight_map": {**weight_map, "more": "part-1.safetensors"}}))
    assert "names more in files that do not hold it" in unfit(folder)
    index.write_text(json.dumps({"weight_map": {**weight_map, "more": "part-2.safetensors"}}))
    assert "part-2.safetensors cannot be read: No such file" in unfit(folder)
    for broken, said in (("{}", "no weight_map"), ("[]", "no JSON object"), ("{", "is no JSON")):
        index.write_text(broken)
        assert said in unfit(folder)
    index.unlink()
    assert "tensor model.embed.weight is in" in unfit(folder)


def test_of_two_whole_sets_the_consolidated_one_is_left_out(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    write_tensors(folder / "consolidated.safetensors", SHAPES)
    tensors = read_checkpoint(folder).tensors
    assert tensors is not None
    assert {stored.file for stored in tensors.values()} == {"model.safetensors"}


def test_what_is_no_folder_of_weights_is_refused(tmp_path: Path) -> None:
    assert "does not exist; name one" in unfit(tmp_path / "none")
    file = tmp_path / "file"
    file.write_text("x")
    assert "is a file" in unfit(file)
    assert "holds no weights" in unfit(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert "config.json is missing" in unfit(tmp_path)
    assert "holds no weights" in unfit(tmp_path, "safetensors")
    (tmp_path / "config.json").write_text("{}x")
    assert "config.json is no JSON" in unfit(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert read_checkpoint(tmp_path).tensors is None
    assert read_checkpoint(tmp_path, "gguf").tensors is None


def test_a_folder_that_cannot_be_looked_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 300)
    assert unfit(long) == f"the folder {long} cannot be read: File name too long; {NAME_ONE}"
    assert local_folder(str(long)) is None
    assert local_folder("owner/" + "x" * 300) is None
    assert local_folder("owner/name", "x" * 300, {"HF_HUB_CACHE": str(tmp_path)}) is None
    assert "cannot be read: embedded null" in unfit(Path("/a\0b"))

    folder = write_checkpoint(tmp_path / "locked" / "checkpoint")
    lock(monkeypatch, folder)
    assert unfit(folder) == f"the folder {folder} cannot be read: Permission denied; {NAME_ONE}"
    assert local_folder(str(folder)) is None
    monkeypatch.undo()
    assert local_folder(str(folder)) == folder


def test_what_is_below_a_file_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "does not exist; name one" in unfit(tmp_path / "file" / "below")


@pytest.mark.parametrize("missing", [1, 7, 100, 160, 10_000])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, missing: int) -> None:
    folder = write_checkpoint(tmp_path)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-missing])
    said = unfit(folder)
    assert str(file) in said
    assert "write it again" in said
    file.write_bytes(whole + b"x")
    assert "is not whole" in unfit(folder)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ([], "no JSON object"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "w is described wrongly"),
        ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "described wrongly"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, "described wrongly"),
        ({"w": {"shape": [1]}}, "described wrongly"),
        ({"w": 3}, "described wrongly"),
        (
            {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
            "tells of 8 bytes of tensors, 4",
        ),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, header: Any, said: str) -> None:
    file = tmp_path / "model.safetensors"
    write_header(file, header, 4)
    with pytest.raises(UnfitError, match=said):
        read_tensors(file)


def test_a_type_that_is_not_known_is_taken_at_its_word(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_header(file, {"w": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}, 4)
    assert read_tensors(file) == {"w": (8,)}
    file.write_bytes((20).to_bytes(8, "little") + b"not json".ljust(20))
    with pytest.raises(UnfitError, match="is no JSON"):
        read_tensors(file)


def change(tmp_path: Path, shapes: Any = SHAPES, config: Any = CONFIG, dtype: str = "F32") -> str:
    served = read_checkpoint(write_checkpoint(tmp_path / "served"))
    new = read_checkpoint(write_checkpoint(tmp_path / "new", shapes, config, dtype))
    return misfit(served, new)


def test_other_types_and_what_means_nothing_fit(tmp_path: Path) -> None:
    more = {"lm_head.weight": (8, 4), "model.layers.0.rotary_emb.inv_freq": (2,)}
    assert change(tmp_path, {**SHAPES, **more}, dtype="BF16") == ""
    assert change(tmp_path, config=None) == ""
    assert change(tmp_path, config={**CONFIG, "torch_dtype": "float16", "rope_theta": 7}) == ""


@pytest.mark.parametrize(("tied", "said"), [(True, ""), (False, "lacks lm_head.weight")])
def test_a_head_of_its_own_may_not_lack(tmp_path: Path, tied: bool, said: str) -> None:
    config = {**CONFIG, "tie_word_embeddings": tied}
    more = {**SHAPES, "lm_head.weight": (8, 4)}
    old = read_checkpoint(write_checkpoint(tmp_path / "old", more, config))
    new = read_checkpoint(write_checkpoint(tmp_path / "new", SHAPES, config))
    assert said in misfit(old, new)
    assert bool(misfit(old, new)) is not tied


def test_layers_that_predict_further_tokens_may_lack_or_come(tmp_path: Path) -> None:
    config = {**CONFIG, "num_hidden_layers": 2}
    more = {**SHAPES, "model.layers.2.eh_proj.weight": (4,), "mtp.fc.weight": (4,)}
    old = read_checkpoint(write_checkpoint(tmp_path / "old", more, config))
    new = read_checkpoint(write_checkpoint(tmp_path / "new", SHAPES, config))
    assert misfit(old, new) == ""
    assert misfit(new, old) == ""
    last = {**SHAPES, "model.layers.1.w": (1,)}
    other = read_checkpoint(write_checkpoint(tmp_path / "other", last, config))
    assert "has model.layers.1.w" in misfit(new, other)
    assert "lacks model.layers.1.w" in misfit(other, new)


def test_what_does_not_fit_is_named_with_both_sides(tmp_path: Path) -> None:
    said = change(tmp_path, {**SHAPES, "model.norm.weight": (5,)})
    assert f"{tmp_path}/new/model.safetensors: tensor model.norm.weight has shape [5]" in said
    assert f"but [4] in {tmp_path}/served/model.safetensors" in said
    assert "save it with the names and shapes" in said
    lacks = change(tmp_path, {"model.norm.weight": (4,)})
    assert f"{tmp_path}/new lacks model.embed.weight, which {tmp_path}/served has" in lacks
    many = {f"w{number}": (1,) for number in range(9)}
    assert "new has w0, w1, w2 and 6 more, which" in change(tmp_path, {**SHAPES, **many})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("architectures", ["LlamaForCausalLM"], 'architectures is ["LlamaForCausalLM"]'),
        ("num_attention_heads", 4, "num_attention_heads is 4, but the engine serves 2"),
    ],
)
def test_another_model_is_refused_by_its_configuration(
    tmp_path: Path, field: str, value: Any, said: str
) -> None:
    told = change(tmp_path, config={**CONFIG, field: value})
    assert said in told
    assert "start an engine for this model" in told


def test_the_parts_of_a_configuration_count_too(tmp_path: Path) -> None:
    old, new = ({**CONFIG, "text_config": {"hidden_size": size}} for size in (4, 6))
    served = read_checkpoint(write_checkpoint(tmp_path / "old", config=old))
    other = read_checkpoint(write_checkpoint(tmp_path / "new", config=new))
    assert "text_config.hidden_size is 6" in misfit(served, other)


def test_a_shape_is_compared_where_the_name_is_known(tmp_path: Path) -> None:
    served = read_checkpoint(write_checkpoint(tmp_path, {"w": (2, 3), "one": (1,)}))
    assert "w has shape [3, 2], but [2, 3]" in other_shape(served, "w", (3, 2))
    assert other_shape(served, "w", (2, 3)) == ""
    assert other_shape(served, "fused", (9,)) == ""
    assert other_shape(served, "one", ()) == "", "SGLang takes one value for one value"


def test_names_of_models(tmp_path: Path) -> None:
    assert is_folder_name(str(tmp_path))
    assert is_folder_name("/none")
    assert is_folder_name("./none")
    assert not is_folder_name("owner/name")
    assert not is_folder_name("s3://bucket/model")
    assert local_folder(str(tmp_path)) == tmp_path
    assert local_folder("/none") is None


def test_a_model_of_a_hub_is_found_in_its_cache(tmp_path: Path) -> None:
    kept = tmp_path / "hub" / "models--owner--name"
    (kept / "snapshots" / "abc").mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    env = {"HF_HOME": str(tmp_path)}
    assert local_folder("owner/name", None, env) == kept / "snapshots" / "abc"
    assert local_folder("owner/name", "abc", {"HF_HUB_CACHE": str(tmp_path / "hub")}) is not None
    assert local_folder("owner/name", "other", env) is None
    assert local_folder("owner/else", None, env) is None
