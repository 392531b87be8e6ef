"""Published speeds in fp32: of matrix products, and of whole training steps.

`vram_budget.step_time` took its shares of a card's peak from the first, its share of
the bandwidth from the runs marked ``"chosen on"``. The others are the check.
`step_time.py` compares.
"""

from dataclasses import dataclass

from transformers import BertConfig, DistilBertConfig, PretrainedConfig

# TFLOP/s of products of square fp32 matrices of 1024, 2048 and 4096 rows, TF32 off:
# https://github.com/zzc0721/torch-performance-test-data, by issue or pull request. Of
# the T4 (4.17 to 4.43) and the L4 (15.38) only the best of five sizes is published.
PRODUCTS = {
    "GTX 1650 Ti": (73, 1.34, 2.52, 1.73),
    "MX450": (111, 2.10, 2.06, 0.79),
    "RTX 3050 Laptop": (57, 3.67, 4.18, 4.29),
    "RTX 3060 Laptop": (169, 5.34, 4.73, 5.85),
    "RTX 3070 Laptop": (105, 8.91, 9.49, 9.15),
    "RTX 3070 Ti Laptop": (118, 6.69, 6.52, 5.87),
    "RTX 3080 Laptop": (61, 9.49, 9.12, 8.47),
    "RTX 4050 Laptop": (139, 6.29, 6.61, 6.48),
    "RTX 4060 Laptop": (143, 7.57, 8.39, 8.00),
    "RTX 4070 Laptop": (29, 9.20, 10.92, 12.27),
    "RTX 5060 Laptop": (146, 10.70, 10.69, 11.51),
    "RTX 5070 Laptop": (198, 12.36, 14.02, 13.01),
    "RTX 3060 Ti": (55, 9.59, 10.47, 10.86),
    "RTX 4060": (66, 8.34, 8.08, 8.08),
    "RTX 5050": (170, 7.49, 8.45, 7.39),
    "RTX 5060 Ti": (135, 13.77, 15.41, 14.33),
    "GTX 1070 Ti": (192, 5.32, 6.27, 7.03),
    "GTX 1080 Ti": (60, 7.56, 8.60, 10.06),
    "GTX 1660 Ti": (89, 2.62, 4.13, 5.24),
    "P100": (174, 5.37, 6.78, 8.16),
    "V100": (140, 10.56, 12.71, 13.85),
    "A100": (108, 8.99, 9.69, 15.52),
}

BASE = BertConfig(num_labels=2)
LARGE = BertConfig(
    num_labels=2,
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
)
MULTILINGUAL = BertConfig(num_labels=3, vocab_size=119_547)
DISTILBERT = DistilBertConfig(num_labels=2)


@dataclass(frozen=True)
class Run:
    """A published run: a card, a batch, and the milliseconds of a step.

    Attributes
    ----------
    card : str
        Of `vram_budget.CARDS`.
    config : transformers.PretrainedConfig
        The model's shape.
    rows, length : int
        Of a batch, padding included.
    ms : float
        Of a step, from what was stated.
    stated : str
        What the source says, and what we assume.
    source : str
        Where.
    use : str
        "chosen on", "check", or "TF32": not fp32, and not counted.
    attention : str
        As the code of its time computed it.
    """

    card: str
    config: PretrainedConfig
    rows: int
    length: int
    ms: float
    stated: str
    source: str
    use: str = "check"
    attention: str = "eager"


_LAMBDA = "github.com/lambdal/deeplearning-benchmark, pytorch/results/"
# PyTorch 1.4, SQuAD at 384 tokens by NVIDIA's run_squad.py with BertAdam, one card: the
# median rate of its progress bar in the second half. Its own "throughput" has the last,
# shorter step in it.
_SQUAD = "median it/s; batch and length in the log"
_NGC = f"{_SQUAD}; PyTorch 1.7 of NVIDIA, TF32 on by default"
_NEWSGROUPS = "20 Newsgroups, 11,314 rows or nine tenths of them, in"
_MCCORMICK = "mccormickml.com/2020/07/21/gpu-benchmarks-for-fine-tuning-bert"

RUNS = [
    Run("GTX 1080 Ti", BASE, 10, 384, 433, _SQUAD, f"{_LAMBDA}1080Ti", "chosen on"),
    Run("GTX 1080 Ti", LARGE, 2, 384, 424, _SQUAD, f"{_LAMBDA}1080Ti", "chosen on"),
    Run("RTX 2070 Max-Q", BASE, 6, 384, 415, _SQUAD, f"{_LAMBDA}2070MaxQ", "chosen on"),
    Run("RTX 2080 Max-Q", BASE, 6, 384, 386, _SQUAD, f"{_LAMBDA}2080MaxQ", "chosen on"),
    Run(
        "RTX 2080 Super Max-Q",
        BASE,
        6,
        384,
        377,
        _SQUAD,
        f"{_LAMBDA}2080SuperMaxQ",
        "chosen on",
    ),
    Run("RTX 2080 Ti", BASE, 10, 384, 309, _SQUAD, f"{_LAMBDA}2080Ti", "chosen on"),
    Run("RTX 2080 Ti", LARGE, 2, 384, 310, _SQUAD, f"{_LAMBDA}2080Ti", "chosen on"),
    Run("Titan RTX", BASE, 26, 384, 649, _SQUAD, f"{_LAMBDA}TitanRTX", "chosen on"),
    Run("Titan RTX", LARGE, 8, 384, 730, _SQUAD, f"{_LAMBDA}TitanRTX", "chosen on"),
    Run("V100", BASE, 36, 384, 833, f"{_SQUAD}; 32 GB", f"{_LAMBDA}V100", "chosen on"),
    Run("V100", LARGE, 12, 384, 962, f"{_SQUAD}; 32 GB", f"{_LAMBDA}V100", "chosen on"),
    Run(
        "Titan RTX",
        BASE,
        32,
        128,
        248,
        "SST-2, 67,349 rows padded to 128, three epochs in 26:06; evaluation included; "
        "the other eight tasks of that table agree",
        "github.com/huggingface/transformers, "
        "examples/pytorch/text-classification/README.md",
        "chosen on",
    ),
    Run(
        "V100",
        MULTILINGUAL,
        32,
        128,
        259,
        "XNLI, 392,702 rows padded to 128, two epochs in 106 min; no --fp16 in the "
        "command; preparation and evaluation included",
        "the same README",
    ),
    Run(
        "V100",
        LARGE,
        4,
        512,
        451,
        "8.86 samples/s, made-up rows of 512 tokens",
        "huggingface.co/docs/transformers, perf_train_gpu_one (v4.27)",
    ),
    Run(
        "V100",
        LARGE,
        8,
        384,
        667,
        "12 sequences/s at batch 8, 32 GB; NVIDIA's fused kernels",
        "github.com/NVIDIA/DeepLearningExamples, PyTorch/LanguageModeling/BERT",
    ),
    Run(
        "V100",
        BASE,
        12,
        384,
        325,
        "SQuAD, two epochs (14,774 steps of 12) in 80 min without --fp16; preparation "
        "and prediction included; the number of windows is ours",
        "github.com/huggingface/transformers/issues/277",
    ),
    Run(
        "T4",
        BASE,
        16,
        128,
        344,
        "2,500 steps in 14:33 by the Trainer, fp16=False; two evaluations of 872 rows "
        "taken off as 37 steps",
        "github.com/KyriakosTop/bert-distilbert-compression, n8_bert_qlora_gpu_t4",
        attention="sdpa",
    ),
    Run(
        "T4",
        BASE,
        16,
        128,
        383,
        f"{_NEWSGROUPS} 257 s: 363 or 404 ms",
        _MCCORMICK,
    ),
    Run(
        "P100",
        BASE,
        16,
        128,
        203,
        f"{_NEWSGROUPS} 136 s: 192 or 214 ms",
        _MCCORMICK,
    ),
    Run(
        "A100",
        DISTILBERT,
        12,
        512,
        148,
        "IMDb padded to 512, three epochs of 2,917 steps in 22.63 min; PyTorch 2.0, "
        "which has TF32 off; validation taken off as a third of a step a batch",
        "github.com/rasbt/faster-pytorch-blog, 1_pytorch-distilbert.py, and its post",
    ),
    Run(
        "GTX 1080 Ti",
        BASE,
        32,
        128,
        324,
        "100,000 steps in 8 to 10 hours; TensorFlow 1, masked-language model",
        "github.com/xuyige/BERT4doc-Classification/issues/4",
    ),
    Run(
        "RTX 2070",
        BASE,
        8,
        320,
        404,
        "SQuAD, two epochs in around 2 h 30 min; TensorFlow 1; BERT-base and 89,000 "
        "windows assumed",
        "github.com/google-research/bert/issues/365",
    ),
    Run("RTX 3070", BASE, 8, 384, 260, _NGC, f"{_LAMBDA}3070", "TF32"),
    Run("RTX 3080", BASE, 10, 384, 204, _NGC, f"{_LAMBDA}3080", "TF32"),
    Run("RTX 3090", BASE, 26, 384, 349, _NGC, f"{_LAMBDA}3090", "TF32"),
    Run("A10", BASE, 48, 384, 667, _NGC, f"{_LAMBDA}LambdaCloud_A10_v1", "TF32"),
    Run("A100", BASE, 48, 384, 326, _NGC, f"{_LAMBDA}A100_PCIe", "TF32"),
]
