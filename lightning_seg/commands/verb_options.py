"""Options of the verbs that neither train nor read a dataset.

They are parsed before the modules that do the work are imported, which takes seconds.
"""

from __future__ import annotations

from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from lightning_seg.commands.verbs import VerbParser, verb_parser


def compare_parser() -> VerbParser:
    """Return the parser of `compare`'s options."""
    parser = verb_parser("compare")
    parser.add_argument(
        "sides",
        nargs="+",
        metavar="[NAME=]RUN[,RUN...]",
        help="The sides, the baseline first. A run is the folder that holds test/ or validate/; "
        "several runs of a side are trainings with other seeds; a quoted pattern is accepted.",
    )
    parser.add_argument(
        "--masks",
        type=str | None,
        default=None,
        help="A folder of true masks; the sides are then folders of predicted masks.",
    )
    parser.add_argument(
        "--classes",
        type=str | None,
        default=None,
        help="With masks: a text file with a class name a line, or the number of classes.",
    )
    parser.add_argument(
        "--ignore_index", type=int, default=255, help="With masks: the value of void pixels."
    )
    parser.add_argument("--output", default="runs/compare", help="The folder for table and plot.")
    parser.add_argument(
        "--samples",
        type=PositiveInt,
        default=10_000,
        help="Number of resamples of the bootstrap and of exchanges of the permutation test.",
    )
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="Seed of the samples.")
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        help="Share of comparisons without a difference that raise no false alarm.",
    )
    return parser


def report_parser() -> VerbParser:
    """Return the parser of `report`'s options."""
    parser = verb_parser("report")
    parser.add_argument("run", help="The folder of a run, or a folder of scores.")
    parser.add_argument(
        "--baseline",
        type=str | None,
        default=None,
        help="The folder of a run with scores of the same images, to compare with.",
    )
    parser.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="The HTML file; null writes report.html in the folder of the run.",
    )
    return parser


def export_parser() -> VerbParser:
    """Return the parser of `export`'s options."""
    parser = verb_parser("export")
    parser.add_argument(
        "--ckpt_path",
        type=str,
        required=True,
        help="A checkpoint, or the folder of a run, of which the best checkpoint is taken.",
    )
    parser.add_argument(
        "--output",
        type=str,
        default="model.onnx",
        help="The file: .onnx for onnxruntime and others, .pt2 for torch.export.load, or "
        ".safetensors for lightning_seg.load. A name without suffix is a folder for the "
        "HuggingFace Hub, with a model card.",
    )
    parser.add_argument(
        "--returns",
        type=Literal["logits", "probabilities", "labels"],
        default="labels",
        help="What the network returns: class ids (B, H, W) as uint8, or (B, C, H, W).",
    )
    parser.add_argument(
        "--size",
        type=tuple[PositiveInt, PositiveInt],
        default=(512, 512),
        help="Height and width of an image for the trial, and for networks of a fixed size.",
    )
    parser.add_argument(
        "--precision",
        type=Literal["float32", "float16", "int8"],
        default="float32",
        help="float16 or int8 make an ONNX file smaller; its results then differ.",
    )
    return parser


def configs_parser() -> VerbParser:
    """Return the parser of `configs`' options."""
    parser = verb_parser("configs")
    parser.add_argument(
        "--copy",
        type=str | None,
        default=None,
        metavar="NAME",
        help="A file or folder of the list, such as configs/cluster, which is copied to the same "
        "name in the working folder. No file is overwritten.",
    )
    return parser


PARSERS = {
    "configs": (configs_parser, "pieces"),
    "compare": (compare_parser, "compare"),
    "report": (report_parser, "report"),
    "export": (export_parser, "export"),
}
"""Each verb's parser, and the module in which the function of the verb's name does the work."""
