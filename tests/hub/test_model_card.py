"""Model cards: metadata that the Hub reads, and the user's own text kept."""

import json

import pytest
from hub_server import card_problems
from huggingface_hub import ModelCard

from hubmodels.catalog import CHECKPOINTS, METHODS, get_checkpoint, get_method
from hubmodels.catalog_records import Metric
from hubmodels.model_card import CardFacts, build_card, complete_card

CLASSIFIER = {"architectures": ["MAEForImageClassification"], "model_type": "mae"}
MAE = get_method("mae")


def test_card_of_converted_official_weights_states_their_licence():
    checkpoint = get_checkpoint("mae_finetuned_vit_base")
    card = build_card("alice/mae", CLASSIFIER, MAE, CardFacts.from_checkpoint(checkpoint), checkpoint.parameters)
    data = card.data.to_dict()
    assert data["license"] == "cc-by-nc-4.0"
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-classification"
    assert data["base_model"] == "mae_pretrain_vit_base"
    assert data["datasets"] == ["imagenet-1k"]
    assert {"hubmodels", "mae", "arxiv:2111.06377"} <= set(data["tags"])
    (model,) = data["model-index"]
    assert model["name"] == "mae"
    assert model["results"][0]["metrics"][0] == {"type": "accuracy", "value": 83.664, "name": "accuracy"}
    assert "Weights: cc-by-nc-4.0. Code: apache-2.0." in card.text
    assert 'AutoModelForImageClassification.from_pretrained("alice/mae", trust_remote_code=True)' in card.text
    assert "86.6 M parameters" in card.text


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda checkpoint: checkpoint.name)
def test_cards_of_all_checkpoints_are_valid(checkpoint):
    method = get_method(checkpoint.method)
    config = {"architectures": [method.auto_classes["AutoModel"]], "model_type": method.name}
    text = str(build_card(checkpoint.name, config, method, CardFacts.from_checkpoint(checkpoint)))
    assert card_problems(text) == []
    assert ModelCard(text).data.license == checkpoint.licence
    assert len(ModelCard(text).data.eval_results or []) == len(checkpoint.metrics)


def test_licence_follows_the_base_model_and_is_our_own_otherwise():
    assert CardFacts().resolved_licence() == "apache-2.0"
    assert CardFacts(base_model="mae_pretrain_vit_base").resolved_licence() == "cc-by-nc-4.0"
    assert CardFacts(licence="mit", base_model="mae_pretrain_vit_base").resolved_licence() == "mit"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_example_of_every_architecture_names_a_known_auto_class(method):
    for auto_class, architecture in method.auto_classes.items():
        if auto_class.startswith("AutoModel"):
            card = build_card("x", {"architectures": [architecture]}, method)
            assert f'model = {auto_class}.from_pretrained("x"' in card.text
            assert card.data.pipeline_tag in method.tasks


def test_own_card_keeps_text_and_metadata_and_gains_the_missing():
    own = "---\nlicense: mit\ntags:\n- shoes\nwidget: []\n---\n\n# My shoes\n\nHand-written *text* -- kept.\n"
    facts = CardFacts(datasets=("fashion-mnist",), metrics=(Metric("accuracy", 90.5, "fashion-mnist test", "cmd"),))
    text = complete_card(own, build_card("alice/shoes", CLASSIFIER, MAE, facts))
    card = ModelCard(text)
    assert text.endswith("---\n\n# My shoes\n\nHand-written *text* -- kept.\n")
    assert card.data.license == "mit"
    assert card.data.tags[0] == "shoes" and "mae" in card.data.tags
    assert card.data.datasets == ["fashion-mnist"]
    assert card.data.to_dict()["widget"] == []
    assert card.data.eval_results[0].metric_value == 90.5
    assert complete_card(text, build_card("alice/shoes", CLASSIFIER, MAE, facts)) == text


def test_own_card_without_metadata_keeps_its_text():
    text = complete_card("# Shoes\n\nText.\n", build_card("shoes", CLASSIFIER, MAE))
    assert text.endswith("---\n\n# Shoes\n\nText.\n")
    assert ModelCard(text).data.license == "apache-2.0"


def test_own_results_are_not_replaced():
    own = str(build_card("a", CLASSIFIER, MAE, CardFacts(metrics=(Metric("accuracy", 1.0, "mine", ""),))))
    other = build_card("a", CLASSIFIER, MAE, CardFacts(metrics=(Metric("accuracy", 2.0, "other", ""),)))
    assert [r.metric_value for r in ModelCard(complete_card(own, other)).data.eval_results] == [1.0]


def test_facts_of_a_folder_come_from_its_evaluation_and_card(tmp_path):
    figures = {"eval_top1_accuracy": 91.2, "eval_runtime": 3.0, "eval_loss": float("nan"), "epoch": 2.0}
    (tmp_path / "eval_results.json").write_text(json.dumps(figures | {"eval_dataset": "clothing test"}))
    (tmp_path / "README.md").write_text("---\nbase_model: mae_pretrain_vit_base\n---\n# Mine\n")
    facts = CardFacts.from_folder(tmp_path)
    assert facts.metrics == (Metric("top1 accuracy", 91.2, "clothing test", ""),)
    assert facts.resolved_licence() == "cc-by-nc-4.0"
    assert "| clothing test | top1 accuracy | 91.2 | measured |" in build_card("x", CLASSIFIER, MAE, facts).text
    (tmp_path / "eval_results.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        CardFacts.from_folder(tmp_path)


def test_descendant_has_the_licence_of_its_base(tmp_path):
    official = tmp_path / "mae-base"
    official.mkdir()
    (official / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n\n# Converted\n")
    facts = CardFacts.of_descendant(official, ["photos"])
    assert (facts.licence, facts.base_model, facts.datasets) == ("cc-by-nc-4.0", "mae-base", ("photos",))
    run = tmp_path / "run"
    run.mkdir()
    (run / "README.md").write_text(facts.metadata())
    assert CardFacts.from_folder(run) == facts
    assert CardFacts.of_descendant(run).licence == "cc-by-nc-4.0"


def test_descendant_of_unknown_weights_claims_no_licence(tmp_path):
    assert CardFacts.of_descendant(None).licence == "apache-2.0"
    assert CardFacts.of_descendant("someone/weights").licence == "unknown"
    assert CardFacts.of_descendant("mae_pretrain_vit_base").licence == "cc-by-nc-4.0"
    assert CardFacts.of_descendant(tmp_path).licence == "unknown"


def test_card_without_text_gets_the_generated_text():
    generated = build_card("me/model", {"architectures": ["MAEModel"]}, get_method("mae"))
    card = complete_card(CardFacts("cc-by-nc-4.0", "mae-base", ("photos",)).metadata(), generated)
    assert "license: cc-by-nc-4.0" in card and "base_model: mae-base" in card
    assert "# model" in card and "from_pretrained" in card
