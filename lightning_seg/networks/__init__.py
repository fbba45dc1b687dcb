"""Networks: segmentation networks from normalised images to logits, and their opponents.

All are plain `nn.Module`s, and nothing in this package imports Lightning.
"""

from lightning_seg.networks.deeplab_v2 import DeepLabV2
from lightning_seg.networks.deeplab_v3 import DeepLabV3
from lightning_seg.networks.dpt import DPT
from lightning_seg.networks.encoder import TimmEncoder
from lightning_seg.networks.encoder_head import EncoderHead
from lightning_seg.networks.fc_discriminator import FCDiscriminator
from lightning_seg.networks.fcn import FCN, FCN8s
from lightning_seg.networks.hrnet_ocr import HRNetOCR
from lightning_seg.networks.lora import LoRA
from lightning_seg.networks.lraspp import LRASPP
from lightning_seg.networks.named import NamedNetwork
from lightning_seg.networks.pspnet import PSPNet
from lightning_seg.networks.structure_analyzer import StructureAnalyzer
from lightning_seg.networks.unet import UNet

__all__ = [
    "DPT",
    "FCN",
    "LRASPP",
    "DeepLabV2",
    "DeepLabV3",
    "EncoderHead",
    "FCDiscriminator",
    "FCN8s",
    "HRNetOCR",
    "LoRA",
    "NamedNetwork",
    "PSPNet",
    "StructureAnalyzer",
    "TimmEncoder",
    "UNet",
]
