"""Files of a DenseCL pre-training: with all of its state, or with the encoder alone."""

import copy
import functools
from os import PathLike

from transformers import PreTrainedModel

from .loading_densecl import check_queue_types, stored_tensors


class DenseCLTrainingState:
    """How a model with a momentum encoder and queues is saved, pushed and loaded. A mixin."""

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs):
        # Afterwards all tensors have the types of the model, whatever they were.
        check_queue_types(stored_tensors(state_dict, checkpoint_files))
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | PathLike,
        *args,
        state_dict: dict | None = None,
        include_training_state: bool = True,
        **kwargs,
    ):
        """
        As in transformers.

        Args:
            include_training_state (`bool`): also write the momentum encoder and the queues, which continued
                pre-training needs (published: 64 MiB and a second encoder); without them only the encoder is written.
        """
        if not include_training_state:
            state = self.state_dict() if state_dict is None else state_dict
            state_dict = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
        return super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)

    def push_to_hub(self, repo_id: str, *args, include_training_state: bool = True, **kwargs) -> str:
        """
        As in transformers.

        Args:
            repo_id (`str`): the repository.
            include_training_state (`bool`): as for [`save_pretrained`].
        """
        pushed = copy.copy(self)  # transformers calls its `save_pretrained` without options
        pushed.save_pretrained = functools.partial(self.save_pretrained, include_training_state=include_training_state)
        return PreTrainedModel.push_to_hub(pushed, repo_id, *args, **kwargs)


__all__ = ["DenseCLTrainingState"]
