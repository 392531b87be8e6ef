"""The model card of a classifier: who gets its folder knows what it was trained on."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from pandas import DataFrame

from . import __version__
from .plumbing import storage
from .recipe import HUB_DATA, Recipe

TEXT = """---
{metadata}
---
# A text classifier

It answers with one of the classes below. Fine-tuned with agnews_helpers {version};
`mini` stands for sentence-transformers/all-MiniLM-L6-v2 in DistilBERT's class.

## Use

```python
from transformers import pipeline
classifier = pipeline("text-classification", "FOLDER")  # where this file is
print(classifier("A text to label", truncation=True))
```

## Data

Rows of each class:

```
{counts}
```

## Result

Epoch {epoch} of {epochs}, on the validation rows. These rows also chose the epoch, so
the figures are a little too high; those of a class with few rows say little. If
`agnews train` tested it, `test_report.json` beside this folder has the figures.

```
{result}
```

## Recipe

```
{recipe}
```

## Limits

- Every text gets one of these classes, also one that belongs to none of them.
- Of a text only the first {max_length} tokens are read.
- On texts of another kind or another language it was not tested.
"""


def write_card(
    folder: Path, recipe: Recipe, counts: DataFrame, epoch: int, result: str
) -> None:
    """Write ``README.md`` beside a classifier.

    Parameters
    ----------
    folder : Path
        The classifier's folder.
    recipe : Recipe
        How it was trained.
    counts : DataFrame
        The rows of each class, in a column for each split; the index has the names.
    epoch : int
        The epoch that was kept; 0 before the first validation.
    result : str
        The figures of its validation, as of `Report.describe`.
    """
    public = None if Path(recipe.model).is_dir() else recipe.model
    metadata = ModelCardData(
        base_model=None if public == "mini" else public,
        pipeline_tag="text-classification",
    )
    # Who gets the folder does not need to know our folders.
    data = recipe.data if recipe.data == HUB_DATA else Path(recipe.data).name
    named = {"model": public or Path(recipe.model).name, "data": data}
    values = recipe.to_dict() | named
    # What others named, such as classes, stands in fences alone.
    text = TEXT.format(
        **values,
        metadata=metadata.to_yaml(),
        version=__version__,
        counts=counts.to_string(),
        epoch=epoch,
        result=result or "It was not validated yet.",
        recipe="\n".join(f"{name}: {value}" for name, value in values.items()),
    )
    ModelCard(text).save(folder / storage.CARD)
