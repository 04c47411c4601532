"""Tests of transformers' suites that find out themselves that they do not apply, and why they do not.

They skip themselves or end without having built a model. A test that does so and is not listed here (or in a class' own
`skips`) fails, so nothing falls away unnoticed. Names may be `fnmatch` patterns. An entry allows a skip, it does not
force one: with an accelerator more tests run.
"""

ACCELERATOR = "needs an accelerator, or a library for one"
TEXT = "is about token embeddings and language-model losses"
EXPERTS = "the model has no mixture of experts"
ROTARY = "the model has no rotary positions"
CACHE = "the model generates nothing and keeps no cache"
COMPOSITE = "the model holds no other model with a configuration of its own"
TENSOR_PARALLEL = "the model declares no tensor-parallel plan"
FLOAT32 = "the model keeps no module in float32 when loaded in half precision"
IMAGE_POSITIONS = "the suite resizes a table of text positions, those of images have two directions"
NO_EMBEDDING_WEIGHT = "the suite wants `weight` on the input embedding, which is a patch projection"
ONE_BACKEND = "the processor has one backend, torchvision"

# Tests that not every supported release of transformers has: those of 5.23 and those of 5.24 alone.
NOT_IN_EVERY_RELEASE = frozenset(
    {
        "test_tied_head_has_a_tp_plan_entry",
        "test_bc_cache_name_forward",
        "test_multimodal_outputs_are_returned",
    }
)

MODEL_SELF_SKIPS = {
    "test_can_load_with_device_context_manager": ACCELERATOR,
    "test_can_load_with_global_device_set": ACCELERATOR,
    "test_cpu_offload": ACCELERATOR,
    "test_disk_offload_*": ACCELERATOR,
    "test_flash_attn_*": ACCELERATOR,
    "test_flex_attention_with_grads": ACCELERATOR,
    "test_kernels_can_load_without_crashing": ACCELERATOR,
    "test_model_parallelism": ACCELERATOR,
    "test_resize_*_with_deepspeed*": ACCELERATOR,
    "test_sdpa_can_compile_dynamic": ACCELERATOR,
    "test_sdpa_can_dispatch_on_flash": ACCELERATOR,
    "test_torch_compile_for_training": ACCELERATOR,
    "test_causal_lm_loss_honors_shift_labels": TEXT,
    "test_encoder_decoder_loss_no_double_shift": TEXT,
    "test_inputs_embeds*": TEXT,
    "test_load_with_mismatched_shapes": TEXT,
    "test_model_base_model_prefix": TEXT,
    "test_resize_embeddings_untied*": TEXT,
    "test_resize_tokens_embeddings": TEXT,
    "test_sliding_window_mask": TEXT,
    "test_eager_matches_batched_and_grouped_inference_*": EXPERTS,
    "test_moe_models_record_router_logits": EXPERTS,
    "test_output_router_logits_from_config": EXPERTS,
    "test_bc_cache_name_forward": CACHE,
    "test_multimodal_outputs_are_returned": "the model has one modality",
    "test_model_rope_*": ROTARY,
    "test_vision_axial_rope": ROTARY,
    "test_attn_implementation_composite_models": COMPOSITE,
    "test_can_set_attention_dynamically_composite_model": COMPOSITE,
    "test_internal_model_config_and_subconfig_are_same": COMPOSITE,
    "test_sdpa_can_dispatch_composite_models": COMPOSITE,
    "test_tp_plan_matches_params": TENSOR_PARALLEL,
    "test_get_*_features_*": "the model has no `get_text_features` and the like",
    "test_keep_in_fp32_modules*": FLOAT32,
    "test_resize_position_vector_embeddings": IMAGE_POSITIONS,
    "test_enable_input_require_grads_with_gradient_checkpointing": NO_EMBEDDING_WEIGHT,
}

# For models that are no classifiers, have no loss, are the base model of a method (what AutoModel loads), or are not.
NO_CLASSIFIER = dict.fromkeys(
    ("test_can_load_ignoring_mismatched_shapes", "test_problem_types"), "the model is no classifier"
)
NO_LOSS = {"test_training*": "the model has no loss"}
BASE_MODEL = {"test_torch_save_load": "compares a model with its base model, which this one is"}
NO_BACKBONE = {"test_model_weights_reload_no_missing_tied_weights": "a file without weights of the backbone is refused"}
NO_BASE_MODEL = {"test_model_forward_default_config_values": "is run on the base model of a method"}

# For convolutional models whose state-dict names have always been the current ones.
_NO_ATTENTION = dict.fromkeys(
    (
        "test_attention_outputs",
        "test_can_set_attention_dynamically",
        "test_eager_matches_sdpa_inference_*",
        "test_sdpa_can_dispatch_non_composite_models",
    ),
    "the model has no attention",
)
_NO_HOOKS = dict.fromkeys(
    ("test_can_capture_specific_layers_hidden_states", "test_capture_outputs_decorator"),
    "the model returns its feature maps itself, without transformers' hooks",
)
_ONE_LAYOUT = dict.fromkeys(
    ("test_can_load_from_already_mapped_keys", "test_reverse_loading_mapping"),
    "there is no older layout of the state dict",
)
CONVOLUTIONAL_SELF_SKIPS = MODEL_SELF_SKIPS | _NO_ATTENTION | _NO_HOOKS | _ONE_LAYOUT

IMAGE_PROCESSOR_SELF_SKIPS = {
    "test_backends_equivalence*": ONE_BACKEND,
    "test_pil_can_run_without_torchvision": ONE_BACKEND,
    "test_save_load_backends*": ONE_BACKEND,
    "test_can_compile_torchvision_backend": ACCELERATOR,
    "test_image_processor_preprocess_arguments": "the base class checks the arguments, by `valid_kwargs`",
    "test_override_instance_attributes_does_not_affect_other_instances": "the suite wants `size` to be a dict, "
    "transformers 5 makes it a `SizeDict`",
}
