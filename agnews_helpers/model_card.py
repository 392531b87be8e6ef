"""The model card of a classifier: who gets its folder knows what it was trained on."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from pandas import DataFrame

from . import __version__
from .plumbing import storage
from .recipe import HUB_DATA, Recipe

FEW_ROWS = 20  # of a class in the validation rows: chance decides its figures

TEXT = """---
{metadata}
---
# {classes}: a text classifier

Fine-tuned from {base} with agnews_helpers {version}.

## Use

```python
from transformers import pipeline
classifier = pipeline("text-classification", "FOLDER")  # where this file is
print(classifier("A text to label", truncation=True))
```

## Data

`{data}`, rows of each class:

```
{counts}
```

## Result

{result}

## Recipe

```
{recipe}
```

## Limits

- Every text gets one of these classes, also one that belongs to none of them.
- Of a text only the first {max_length} tokens are read.
- On texts of another kind or another language it was not tested.
{few}"""

RESULT = """Epoch {epoch} of {epochs}, on {rows:,} validation rows:
accuracy {accuracy:.1%} (95 % interval {low:.1%} to {high:.1%}),
macro-F1 {macro_f1:.3f}, loss {loss:.3f}. These rows also chose the epoch, so the
figures are a little too high.

If `agnews train` tested it, `test_report.json` beside this folder has the figures.

```
{per_class}
```"""


def write_card(
    folder: Path, recipe: Recipe, counts: Mapping[str, dict], epoch: int, report: dict
) -> None:
    """Write ``README.md`` beside a classifier.

    Parameters
    ----------
    folder : Path
        The classifier's folder.
    recipe : Recipe
        How it was trained.
    counts : Mapping
        Split -> class -> rows; its classes are the model's.
    epoch : int
        The epoch that was kept; 0 before the first validation.
    report : dict
        The figures of its validation, as of `Report.to_dict`; empty if `epoch` is 0.
    """
    table = DataFrame(counts)
    names = ", ".join(table.index[:6]) + (", ..." if len(table) > 6 else "")
    result, few = "It was not validated yet.", ""
    if epoch:
        low, high = report["interval"]
        per_class = DataFrame.from_dict(report["per_class"], "index").round(3)
        result = RESULT.format(
            **report | {"per_class": per_class.to_string()},
            epoch=epoch,
            epochs=recipe.epochs,
            low=low,
            high=high,
        )
        if unsure := per_class.index[per_class["rows"] < FEW_ROWS].tolist():
            few = (
                f"- Fewer than {FEW_ROWS} rows validated {', '.join(unsure)}: the "
                "figures of such a class say little.\n"
            )
    is_folder = Path(recipe.model).is_dir()
    base = Path(recipe.model).name if is_folder else recipe.model
    data = ModelCardData(
        base_model=None if is_folder or base == "mini" else base,
        library_name="transformers",
        pipeline_tag="text-classification",
    )
    # Who gets the folder does not need to know our folders.
    data_name = recipe.data if recipe.data == HUB_DATA else Path(recipe.data).name
    values = recipe.to_dict() | {"model": base, "data": data_name}
    text = TEXT.format(
        metadata=data.to_yaml(),
        classes=names,
        base=base,
        version=__version__,
        data=values["data"],
        counts=table.to_string(),
        result=result,
        recipe="\n".join(f"{name}: {value}" for name, value in values.items()),
        max_length=recipe.max_length,
        few=few,
    )
    ModelCard(text).save(folder / storage.CARD)
