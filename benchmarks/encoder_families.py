"""Which encoders does ``vram_budget`` predict? Each against a step that is really run.

    python benchmarks/encoder_families.py            # prints, and writes the JSON
    python benchmarks/encoder_families.py --only MPNet XLNet

Each family with the shape of its published base model, random weights, 8 rows of 128
tokens, eager attention (the CPU has not the fused kernel of CUDA), fp32 and fused Adam.
"real" is what PyTorch's profiler counts in two such steps on the CPU. tests/vram_budget
does the same with two or three layers and a vocabulary of 1,000. The table with SDPA,
for a card, stands in vram_budget/README.md. Some minutes; the largest needs 12 GiB of
memory.
"""

import argparse
import gc
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import transformers
from transformers import PretrainedConfig

from vram_budget import InvalidValue, StepOptions, step_budget, trace
from vram_budget.allocator import MIB

sys.path.insert(0, str(Path(__file__).parents[1]))  # where this is run as a script
from benchmarks.vram_accuracy import plain_step, real_peak  # noqa: E402

ROWS, TOKENS = 8, 128
CLASSES = 4
EAGER = StepOptions(attention="eager")
WIDE = dict(hidden_size=768, num_attention_heads=12, intermediate_size=3072)
OF_ROBERTA = dict(max_position_embeddings=514, type_vocab_size=1, pad_token_id=1)
RELATIVE = dict(
    relative_attention=True,
    pos_att_type="p2c|c2p",
    position_biased_input=False,
    type_vocab_size=0,
)
DROPOUT = "dropout's backward pass takes a temporary on the CPU, and none on CUDA"


@dataclass(frozen=True)
class Family:
    """One family of encoders.

    Attributes
    ----------
    checkpoint : str
        The published model whose shape it has.
    kind : str
        The class of its configuration, without "Config".
    shape : dict
        What its configuration has other than its class.
    small : dict
        The same for the small one.
    why : str
        Why the traced peak is not the real one on the CPU.
    """

    checkpoint: str
    kind: str
    shape: dict = field(default_factory=dict)
    small: dict = field(default_factory=lambda: {"num_hidden_layers": 2})
    why: str = ""

    def config(self, is_small: bool = False) -> PretrainedConfig:
        """Return its configuration, with the classes of AG News."""
        make = getattr(transformers, f"{self.kind}Config")
        changes = {"vocab_size": 1000, **self.small} if is_small else {}
        return make(**{"num_labels": CLASSES, **self.shape, **changes})


FAMILIES = {
    "BERT": Family("google-bert/bert-base-uncased", "Bert"),
    "RoBERTa": Family(
        "FacebookAI/roberta-base", "Roberta", {"vocab_size": 50265, **OF_ROBERTA}
    ),
    "DistilBERT": Family("distilbert/distilbert-base-uncased", "DistilBert"),
    "ALBERT": Family(
        "albert/albert-base-v2",
        "Albert",
        WIDE | dict(hidden_dropout_prob=0, attention_probs_dropout_prob=0),
    ),
    "ELECTRA": Family(
        "google/electra-base-discriminator", "Electra", WIDE | dict(embedding_size=768)
    ),
    "DeBERTa": Family("microsoft/deberta-base", "Deberta", RELATIVE),
    "DeBERTa-v3": Family(
        "microsoft/deberta-v3-base",
        "DebertaV2",
        WIDE
        | RELATIVE
        | dict(
            num_hidden_layers=12,
            position_buckets=256,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
        ),
    ),
    "XLM-RoBERTa": Family(
        "FacebookAI/xlm-roberta-base",
        "XLMRoberta",
        {"vocab_size": 250002, **OF_ROBERTA},
    ),
    "MPNet": Family("microsoft/mpnet-base", "MPNet", dict(max_position_embeddings=514)),
    "CamemBERT": Family(
        "almanach/camembert-base", "Camembert", {"vocab_size": 32005, **OF_ROBERTA}
    ),
    "MobileBERT": Family("google/mobilebert-uncased", "MobileBert"),
    "SqueezeBERT": Family(
        "squeezebert/squeezebert-uncased",
        "SqueezeBert",
        dict(vocab_size=30528),
        why="convolutions in groups are copied on the CPU; cuDNN's scratch is unknown",
    ),
    "FNet": Family("google/fnet-base", "FNet"),
    "Funnel": Family(
        "funnel-transformer/small", "Funnel", small=dict(block_sizes=[1, 1])
    ),
    "ConvBERT": Family("YituTech/conv-bert-base", "ConvBert"),
    "LayoutLM": Family("microsoft/layoutlm-base-uncased", "LayoutLM"),
    "ModernBERT": Family(
        "answerdotai/ModernBERT-base",
        "ModernBert",
        small=dict(num_hidden_layers=3)
        | dict.fromkeys([f"{name}_token_id" for name in ("pad", "cls", "sep")], 0),
    ),
    "RemBERT": Family("google/rembert", "RemBert"),
    "MegatronBERT": Family("nvidia/megatron-bert-uncased-345m", "MegatronBert"),
    "XLNet": Family(
        "xlnet/xlnet-base-cased",
        "XLNet",
        dict(d_model=768, n_head=12, d_inner=3072, n_layer=12),
        dict(n_layer=2),
        DROPOUT,
    ),
    "BigBird": Family("google/bigbird-roberta-base", "BigBird"),
    "Nyströmformer": Family(
        "uw-madison/nystromformer-512",
        "Nystromformer",
        dict(max_position_embeddings=510),
    ),
    "RoFormer": Family("junnyu/roformer_chinese_base", "RoFormer"),
    "CANINE": Family("google/canine-s", "Canine"),
    "Data2VecText": Family(
        "facebook/data2vec-text-base",
        "Data2VecText",
        {"vocab_size": 50265, **OF_ROBERTA},
    ),
    "Longformer": Family("allenai/longformer-base-4096", "Longformer"),
    "I-BERT": Family("kssteven/ibert-roberta-base", "IBert"),
    "XLM": Family("FacebookAI/xlm-mlm-en-2048", "XLM"),
}
WITHOUT_A_FIGURE = ("Longformer", "I-BERT", "XLM")


def traced_peak(config: PretrainedConfig) -> float:
    """Return the traced peak in MiB, without CUDA's workspaces."""
    found = trace(plain_step, config, [(ROWS, TOKENS)] * 2, EAGER)
    _, place = found.peak()
    return (
        sum(
            allocation.size if made else -allocation.size
            for allocation, made in found.events[: place + 1]
            if allocation.category != "workspaces"
        )
        / MIB
    )


def compared(config: PretrainedConfig) -> tuple[float, float]:
    """Return the traced and the real peak in MiB."""
    traced = traced_peak(config)
    return traced, real_peak(config, ROWS, TOKENS, EAGER)


def measure(name: str) -> dict:
    """Return the row of one family, with the shape of its published base model."""
    family = FAMILIES[name]
    row = {"family": name, "model": family.checkpoint}
    try:
        traced, real = compared(family.config())
    except InvalidValue as error:
        return row | {"why": str(error)}
    events = trace(plain_step, family.config(), [(ROWS, TOKENS)] * 2, EAGER).events
    weights = sum(a.size for a, made in events if made and a.phase == "load")
    on_card = step_budget(plain_step, family.config(), ROWS, TOKENS)
    why = family.why if abs(traced / real - 1) >= 0.01 else ""
    return row | {
        "million": round(weights / 4e6, 1),
        "traced": round(traced, 1),
        "real": round(real, 1),
        "error": round(traced / real - 1, 4),
        "on_card": round(on_card.reserved),
        "why": why,
    }


def markdown(rows: list[dict]) -> str:
    """Write the table of the README of `vram_budget`."""
    lines = [
        "| family | million parameters | MiB reserved | traced against real | |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            percent = f"{100 * row['error'] + 0.0:+.1f} %".replace("-0.0", "+0.0")
            figures = f"{row['million']} | {row['on_card']:,} | {percent}"
            lines.append(f"| {row['family']} | {figures} | {row['why']} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=[*FAMILIES])
    rows = []
    chosen = parser.parse_args().only
    for name in chosen:
        rows.append(measure(name))
        print(rows[-1], flush=True)
        gc.collect()
    print(markdown(rows))
    if chosen == [*FAMILIES]:
        target = Path(__file__).with_suffix(".json")
        shape = {"rows": ROWS, "tokens": TOKENS}
        text = json.dumps({"batch": shape, "families": rows}, indent=2)
        target.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
