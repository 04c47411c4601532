"""The model card of a converted checkpoint: what it is, where it comes from, its licence, how to load it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

_TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ description }}

| | |
| --- | --- |
| converted from | `{{ name }}` |
{%- for file, sha256 in files %}
| SHA-256 of `{{ file }}` | `{{ sha256 }}` |
{%- endfor %}
| class | `{{ architecture }}` |
| parameters | {{ parameters }} |
| paper | [{{ paper_title }}]({{ paper }}) |
| official code | <{{ code }}> |
| licence of the weights | {{ licence }} |

The weights are those of the official checkpoint, unchanged: {{ changes }}. Converting them back gives the official
tensors bit for bit. They were trained by the authors of the paper (or by whoever wrote the file), and stay under the
licence above.

## Use

```python
import hubmodels  # makes the transformers Auto classes know this model
from transformers import {{ auto_class }}, AutoImageProcessor

processor = AutoImageProcessor.from_pretrained("path/to/this/folder")
model = {{ auto_class }}.from_pretrained("path/to/this/folder")
```
{% for note in notes %}
{{ note }}
{% endfor %}
## Citation

```bibtex
{{ citation }}
```
"""


@dataclass(frozen=True)
class Origin:
    """Where the weights of one method come from.

    Args:
        method: name of the method, also a tag of the card.
        paper_title: title of the paper.
        paper: URL of the paper.
        code: URL of the official code.
        licence: Hub identifier of the licence of the official code and weights.
        licence_name: the licence as the card spells it out, with a link.
        citation: BibTeX entry.
    """

    method: str
    paper_title: str
    paper: str
    code: str
    licence: str
    licence_name: str
    citation: str


def converted_card(
    origin: Origin,
    source: Path,
    *,
    title: str,
    description: str,
    architecture: str,
    auto_class: str,
    task: str,
    parameters: int,
    notes: tuple[str, ...] = (),
    files: Sequence[Path] | None = None,
    changes: str = "they were only renamed, and fused tensors were split",
) -> str:
    """Write the card of a converted checkpoint.

    Args:
        origin: the method's paper, code and licence.
        source: the official checkpoint.
        title: heading.
        description: one paragraph on what the weights are.
        architecture: name of the model class.
        auto_class: name of the transformers Auto class that loads it.
        task: Hub pipeline tag.
        parameters: number of values in the weights.
        notes: further paragraphs, each a sentence or two on what to know before using it.
        files: the files of the checkpoint, whose SHA-256 go into the card; default `source`.
        changes: what was done to the tensors.

    Returns:
        Markdown with the Hub's metadata block at the top.
    """
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        license=origin.licence,
        tags=["hubmodels", origin.method, f"arxiv:{origin.paper.rsplit('/', 1)[-1]}"],
    )
    card = ModelCard.from_template(
        metadata,
        template_str=_TEMPLATE,
        title=title,
        description=description,
        name=source.name,
        files=[(file.name, _sha256(file)) for file in files or (source,)],
        changes=changes,
        architecture=architecture,
        auto_class=auto_class,
        parameters=f"{parameters:,}",
        notes=list(notes),
        paper_title=origin.paper_title,
        paper=origin.paper,
        code=origin.code,
        licence=origin.licence_name,
        citation=origin.citation,
    )
    return card.content


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
