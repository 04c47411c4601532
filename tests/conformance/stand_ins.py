"""What transformers' suites import from parts of its repository that the source distribution leaves out."""


class ExportTesterMixin:
    """Tests of `torch.export`; ours is `ModelConformance.test_torch_export`."""


class GenerationTesterMixin:
    """Tests of text generation; no model of the hub generates."""


# Fields that every configuration takes, with values that are not their defaults.
config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["SomeModel"],
    "id2label": {0: "cat", 1: "dog", 2: "owl"},
    "label2id": {"cat": 0, "dog": 1, "owl": 2},
    "problem_type": "regression",
}


def url_to_local_path(url: str) -> str:
    """Where a test picture of the Hub lies: always there, as nothing is mirrored."""
    return url
