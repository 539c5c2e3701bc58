"""Compute units, one file each; importing this package registers them all."""

from hw.units.bank_mac import BankMac
from hw.units.bitmod_pe import BitmodPe
from hw.units.block_dot import BfpDot, MxDot
from hw.units.csd_chain import CsdChain
from hw.units.dequant_stream import DequantStream
from hw.units.dot_array import DotArray
from hw.units.flightllm import FlightCore
from hw.units.huffman_decode import HuffmanDecode
from hw.units.lmma_core import LmmaCore
from hw.units.lmul import Lmul, LmulDot8
from hw.units.lut_gemm import LutGemm
from hw.units.lut_tensor_core import LutTensorCore
from hw.units.near_pim import NearUnit
from hw.units.olive_mac import OliveMac
from hw.units.pim import AimUnit, AttAccUnit, BankUnit, HbmPimUnit, NeuPimsUnit
from hw.units.rdu import CapacityTier, Rdu
from hw.units.sail import SailSlices, SimdCores
from hw.units.shift_add import ShiftAdd
from hw.units.softmax_stream import SoftmaxStream
from hw.units.sram_pim_slice import SramPimSlice
from hw.units.storage import FlashArray, StorageAttention
from hw.units.systolic import Systolic
from hw.units.tensor_core import TensorCore
from hw.units.ternary_row import TernaryRow
from hw.units.tmac_core import TmacCore
from hw.units.vector import VectorUnit
from hw.units.wht import Wht128

__all__ = [
    "AimUnit",
    "AttAccUnit",
    "BankMac",
    "BankUnit",
    "BfpDot",
    "BitmodPe",
    "CapacityTier",
    "CsdChain",
    "DequantStream",
    "DotArray",
    "FlashArray",
    "FlightCore",
    "HbmPimUnit",
    "HuffmanDecode",
    "LmmaCore",
    "Lmul",
    "LmulDot8",
    "LutGemm",
    "LutTensorCore",
    "MxDot",
    "NearUnit",
    "NeuPimsUnit",
    "OliveMac",
    "Rdu",
    "SailSlices",
    "ShiftAdd",
    "SimdCores",
    "SoftmaxStream",
    "SramPimSlice",
    "StorageAttention",
    "Systolic",
    "TensorCore",
    "TernaryRow",
    "TmacCore",
    "VectorUnit",
    "Wht128",
]
