from .devices import device_name as device_name, find_device as find_device, torch_version as torch_version
from .files import (
    check_folder as check_folder,
    check_own_folder as check_own_folder,
    locked as locked,
    read_json as read_json,
    write_whole as write_whole,
)
from .identity import (
    checksum as checksum,
    describe as describe,
    file_hash as file_hash,
    question_hash as question_hash,
    refuse_other as refuse_other,
    seed_of as seed_of,
    tensors_checksum as tensors_checksum,
    weights_fingerprint as weights_fingerprint,
)
from .memory import Halving as Halving
from .paths import check_output as check_output, check_output_folder as check_output_folder
from .processes import (
    alone_in as alone_in,
    check_split as check_split,
    computed_precision as computed_precision,
    make_accelerator as make_accelerator,
    same_on_all as same_on_all,
)
from .sealed import read_sealed as read_sealed, write_sealed as write_sealed
from .tensors import DamagedError as DamagedError, read_tensors as read_tensors, write_tensors as write_tensors
