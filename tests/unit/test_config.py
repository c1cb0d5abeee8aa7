"""What a person who writes a recipe relies on."""

from pathlib import Path

import pytest

from spftsql.config import Config
from spftsql.errors import UserError
from spftsql.recipes import recipe_names, resolve


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndata: {benchmark: demo}\nmodel: {scratch: {layers: 3}}\n")
    return str(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainin.workers=1", "unknown key trainin; did you mean training?"),
        ("training.zero_stag=3", "unknown key training.zero_stag; did you mean zero_stage?"),
        ("vbi.optimization.learning_rat=1", "did you mean learning_rate?"),
        ("selfplay.lamda=1", "did you mean lambda?"),
        ("training.zero_stage=7", "training.zero_stage: input should be 0, 1, 2 or 3"),
        ("model.path=elsewhere", "exactly one of model.path and model.scratch"),
        ("sandbox.hard_seconds=1", "sandbox.hard_seconds must not be below"),
        ("name", "--set takes a.b=value"),
        ("name.first=x", "name is a value, not a section"),
    ],
)
def test_a_bad_override_is_one_clear_line(recipe: str, override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        resolve(recipe, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_overrides_win_and_the_tree_is_frozen(recipe: str) -> None:
    config = resolve(recipe, ["selfplay.lambda=0.5", "training.lora={rank: 8}"])
    assert (config.selfplay.lambda_, config.training.lora and config.training.lora.rank) == (0.5, 8)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_extends_lays_one_recipe_over_another(recipe: str, tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("extends: mine.yaml\nmodel: {scratch: {heads: 2}}\n")
    model = resolve(str(child)).model.scratch
    assert model and (model.layers, model.heads) == (3, 2)


def test_a_recipe_that_extends_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.write_text(f"extends: {path}\n")
    with pytest.raises(UserError, match="extends itself"):
        resolve(str(path))


@pytest.mark.parametrize("text", ["", "- a\n", "name: [unclosed\n"])
def test_a_file_that_is_no_recipe_says_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        resolve(str(path))


def test_a_misspelt_recipe_name_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean geoquery"):
        resolve("geoqery")


def test_every_recipe_in_the_package_resolves() -> None:
    assert {"demo", "geoquery"} <= set(recipe_names())
    for name in recipe_names():
        assert isinstance(resolve(name), Config)


def test_keys_follow_only_the_sections_they_name(recipe: str) -> None:
    one, other = resolve(recipe), resolve(recipe, ["training.workers=2"])
    assert one.key("generation") == other.key("generation")
    assert one.key("training") != other.key("training")


def test_workers_may_be_elastic(recipe: str) -> None:
    assert resolve(recipe, ["training.workers=2"]).training.worker_range == (2, 2)
    assert resolve(recipe, ["training.workers=[1, 4]"]).training.worker_range == (1, 4)
    wrongs = {"[4, 1]": r"must be \[fewest, most\]", "0": r"training\.workers", "[1, 2, 3]": r"training\.workers"}
    for wrong, message in wrongs.items():
        with pytest.raises(UserError, match=message):
            resolve(recipe, [f"training.workers={wrong}"])


def test_four_bit_bases_are_checked(recipe: str) -> None:
    lora = "training.lora={rank: 8, bits: 4}"
    with pytest.raises(UserError, match=r"training\.lora\.bits needs GPUs"):
        resolve(recipe, [lora])
    with pytest.raises(UserError, match=r"does not go with training\.zero_stage 3"):
        resolve(recipe, [lora, "training.gpus=1", "training.zero_stage=3"])
    assert resolve(recipe, [lora, "training.gpus=1"]).training.lora.bits == 4  # type: ignore[union-attr]
