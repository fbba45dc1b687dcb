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


def app_parser() -> VerbParser:
    """Return the parser of `app`'s options."""
    parser = verb_parser("app")
    parser.usage = "%(prog)s --ckpt_path CHECKPOINT [--against CHECKPOINT] [--OPTION VALUE ...]"
    add = parser.add_argument
    add(
        "--ckpt_path",
        type=str,
        required=True,
        help="A checkpoint, what `export` wrote for lightning_seg.load, or the folder of a run, of "
        "which the best checkpoint is taken.",
    )
    add(
        "--against",
        type=str | None,
        help="Another one of the same classes, whose masks are shown beside those of the first.",
    )
    add(
        "--host",
        type=str,
        default="127.0.0.1",
        help="The address that the server listens at. At another address than that of this "
        "machine alone, everybody on the network can use the page, without a password.",
    )
    add("--port", type=int, default=8000, help="From 1 to 65535; 0 takes a free port.")
    add(
        "--device",
        type=str,
        default="auto",
        help="cpu, cuda, cuda:1, mps; auto takes a GPU of CUDA where there is one.",
    )
    _add_image_options(parser)
    _add_inference_options(parser)
    return parser


def _add_image_options(parser: VerbParser) -> None:
    add = parser.add_argument
    add(
        "--max_megabytes",
        type=float,
        default=20.0,
        help="Largest size of a file in units of 1,000,000 bytes; default chosen here.",
    )
    add(
        "--max_pixels",
        type=int,
        default=25_000_000,
        help="Largest height x width of an image, at least 1. Default chosen here: an LRASPP takes "
        "6 GB for a whole image of 24,000,000 pixels.",
    )
    add(
        "--image_range",
        type=tuple[float, float] | None,
        help="Values of black and white in images of more than 8 bits a channel, such as [0,4095].",
    )


def _add_inference_options(parser: VerbParser) -> None:
    """Add the arguments of `lightning_seg.inference.Predictor`."""
    add = parser.add_argument
    add(
        "--inference.window",
        type=int | tuple[int, int] | None,
        help="Side of the square windows in pixels, or height and width, at least the stride of "
        "the network; null shows the network whole images.",
    )
    add(
        "--inference.overlap",
        type=float,
        default=0.25,
        help="Smallest share of a window that its neighbour covers, in [0, 1).",
    )
    add(
        "--inference.blend",
        type=Literal["gaussian", "flat"],
        default="gaussian",
        help="gaussian gives pixels near the middle of a window more weight; flat weighs all "
        "windows of a pixel equally.",
    )
    add(
        "--inference.batch_size",
        type=int,
        default=4,
        help="Windows of an image that the network sees at once, at least 1.",
    )
    add(
        "--inference.flip",
        type=bool,
        default=False,
        help="Whether the network also sees a copy that is mirrored from left to right.",
    )
    add(
        "--inference.scales",
        type=list[float],
        default=[1.0],
        help="Factors of the sides of the copies that the network sees, above 0; 1 is the image "
        "itself.",
    )


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
