"""Compute units, one file each; importing this package registers them all."""

from hw.units.bank_mac import BankMac
from hw.units.bitmod_pe import BitmodPe
from hw.units.block_dot import BfpDot, MxDot
from hw.units.csd_chain import CsdChain
from hw.units.dequant_stream import DequantStream
from hw.units.flightllm import FlightCore
from hw.units.huffman_decode import HuffmanDecode
from hw.units.lmul import Lmul, LmulDot8
from hw.units.lut_tensor_core import LutTensorCore
from hw.units.olive_mac import OliveMac
from hw.units.softmax_stream import SoftmaxStream
from hw.units.systolic import Systolic
from hw.units.tensor_core import TensorCore
from hw.units.ternary_row import TernaryRow
from hw.units.vector import VectorUnit
from hw.units.wht import Wht128

__all__ = [
    "BankMac",
    "BfpDot",
    "BitmodPe",
    "CsdChain",
    "DequantStream",
    "FlightCore",
    "HuffmanDecode",
    "Lmul",
    "LmulDot8",
    "LutTensorCore",
    "MxDot",
    "OliveMac",
    "SoftmaxStream",
    "Systolic",
    "TensorCore",
    "TernaryRow",
    "VectorUnit",
    "Wht128",
]
